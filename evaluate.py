"""Does it learn from its prompt? Few-shot tasks, and the numbers that answer.

    python evaluate.py                                         # every task of the embedded world, 0 to 32 shots
    python evaluate.py --controls=True                         # does it really look at the pictures in its prompt?
    python evaluate.py --tasks=caption,question --shots=0,8    # some of it

On your own data:

    python evaluate.py --episodes=trials.jsonl                 # episodes, one a line
    python evaluate.py --folder=my_classes --ways=5 --shots=1  # new names for the classes of a folder
    python evaluate.py --coco_annotations=captions_val2014.json --images=val2014 --predictions=captions.json
    python evaluate.py --vqa_questions=Q.json --vqa_annotations=A.json --images=val2014 --predictions=answers.json
    python evaluate.py --zero_shot=my_classes                  # the CLIP way: class names in templates
    python evaluate.py --probe=my_classes                      # a linear classifier on the frozen features
    python evaluate.py --retrieval=my_pictures --split=val     # which caption belongs to which picture?

A task gives `data.Episode`s (kit/tasks.py). Where an episode has choices, each is scored by log-likelihood and the best
one is the prediction; elsewhere the answer is generated (§4). Rows of results are dicts
{"task", "ways", "shots", "control", "metric", "value", "low", "high", "n"}; low and high bound the 95 % interval.
"""
import json
import os
import sys
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from data import Media, Tokenizer, collate, encode
from kit import checkpoint, metrics, pictures, shapes, tasks
from kit.configurator import BadInput, BadItem, check_range, command, configure, one_line, pick_device
from kit.encoders import classify, embed_media, embed_texts, linear_probe, pool_media, ranks
from kit.features import FrozenFeatures, Pixels
from kit.metrics import interval
from kit.sources import Classes, Report, open_folder, readable_pairs
from kit.tasks import can_ask, episodes_of
from model import GPT, Flamingo, FlamingoConfig
from vision import new_contrastive

KEYS = {
    'out_dir': ('out', 'folder with the flamingo.pt to evaluate; results go there too'),
    'checkpoint': ('flamingo.pt', 'file in out_dir; finetune.pt after fine-tuning. Without any, assets/nano.pt'),
    'device': ('auto', 'auto, cpu, cuda, mps'),
    'seed': (1, 'of the episodes'),
    'seeds': (3, 'so many seeds, from this one on'),
    'n': (100, 'episodes of each kind and seed; of a COCO or VQA file all, unless said'),
    'tasks': ('', f'some of {", ".join(tasks.TASKS)}; empty for all'),
    'ways': ('', 'naming: how many names, several with commas; empty for 2,4'),
    'shots': ('', 'examples in the prompt, several with commas (naming: of each name); empty for 0,4,8,16,32 (naming: 1,2,4,8)'),
    'text_examples': (2, "at 0 shots: examples as text alone, the paper's two; 0 for none"),
    'ensemble': (1, 'answers to choose from: mean log-likelihood over so many orders of the examples (the paper: 6)'),
    'controls': (False, 'spoil the prompts on purpose: blank, swap, rename (of the embedded world, a folder or episodes)'),
    'batch_size': (16, 'episodes at a time'),
    'beam_size': (3, 'for generated answers'),
    'max_new_tokens': (24, 'for generated answers'),
    'episodes': ('', 'a .jsonl file of your own episodes, one a line'),
    'folder': ('', 'a folder of class folders, or with metadata.jsonl: new names for its classes'),
    'class_depth': (0, 'of a folder: how many folder names make a class, as in train.py'),
    'held_groups': ('', "of a folder: parents of class folders that make its split 'val', as in train.py"),
    'within_group': (False, 'of a folder: all classes of an episode lie in one parent folder'),
    'trials': (False, "of a folder: Omniglot's published form, one parent folder, one hand's drawings shown, another's asked about"),
    'write_episodes': ('', 'of a folder: a .jsonl file to write its episodes to, instead of asking them'),
    'written': (False, 'of a folder or episodes: have the names written, too, rather than chosen'),
    'coco_annotations': ('', 'a COCO captions_*.json'),
    'vqa_questions': ('', 'a VQA questions file'),
    'vqa_annotations': ('', 'the VQA annotations that belong to it'),
    'images': ('', 'the folder of pictures of a COCO or VQA file, wherever one is given'),
    'predictions': ('', 'where to write the predictions: of episodes one line each, of COCO and VQA the official results file'),
    'zero_shot': ('', 'a folder of class folders: contrastive zero-shot'),
    'templates': ('{}|a {}|a photo of a {}', 'of zero_shot: class names are put into each of these, and the mean is taken'),
    'probe': ('', 'a folder of class folders: linear probe of the frozen encoder'),
    'retrieval': ('', 'a folder with metadata.jsonl: which caption belongs to which picture?'),
    'split': ('', 'the split of a folder to use; empty for all'),
}
SOURCES = ('episodes', 'folder', 'coco_annotations', 'vqa_questions', 'zero_shot', 'probe', 'retrieval')  # the keys that say what to ask about
SHOTS, NAMING_SHOTS, NAMING_WAYS = (0, 4, 8, 16, 32), (1, 2, 4, 8), (2, 4)
NANO = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'assets', 'nano.pt')  # trained already, for the impatient

MOST_BEAMS = 64      # of generation: each takes the memory of a prompt
MOST_CHOICES = 1000  # of one episode: each takes the memory of a prompt
MOST_NAMES = 100     # of one episode that are made up: there are a few hundred

# ---------------------------------------------------------------------------------------------
# Asking a model


class Asker:
    """A trained Flamingo and all that is needed to put questions to it.

    ensemble: how many orders of the examples a choice is scored in; the mean log-likelihood counts (appendix A.2, Table 7).
    """

    def __init__(self, model, tokenizer, features, batch_size=16, beam_size=3, max_new_tokens=24, ensemble=1):
        self.model, self.tokenizer, self.features, self.batch_size = model.eval(), tokenizer, features, batch_size
        self.beam_size, self.max_new_tokens, self.ensemble = beam_size, max_new_tokens, ensemble

    def prompts(self, documents):
        """-> keyword arguments of `generate` and `score`. Raises BadInput where a prompt is too long."""
        encoded = [encode(d, self.tokenizer, n_token=self.model.lm.n_context - 1) for d in documents]
        batch = collate(encoded, self.tokenizer)
        features, frame_mask = self.features(batch.media)
        device = self.features.device
        return dict(tokens=batch.tokens.to(device), length=batch.length.to(device), image_index=batch.image_index.to(device),
                    features=features, frame_mask=frame_mask)

    def candidates(self, choices, n_prompt, where):
        """Answers to rank -> lists of token ids, each after a space and closed by <EOC>. n_prompt: tokens of the prompt before
        them. Raises BadInput where there are too many, or one is too long to follow it."""
        if len(choices) > MOST_CHOICES:
            raise BadInput(f'{where}: {len(choices)} choices are more than {MOST_CHOICES}')
        ids = [self.tokenizer.encode(' ' + c) + [self.tokenizer.eoc] for c in choices]
        longest, most = max(map(len, ids)), self.model.lm.n_context + 1
        if n_prompt + longest > most:
            raise BadInput(f'{where}: a prompt of {n_prompt} tokens and an answer of {longest} are longer than the context of {most - 1}')
        return ids

    def check_length(self, episode):
        """Raises BadInput where the prompt, with one of its choices, does not fit the context."""
        prompt = encode(episode.document(), self.tokenizer, n_token=self.model.lm.n_context - 1)
        if episode.choices is not None:
            self.candidates(episode.choices, len(prompt.tokens), episode.where or 'episode')

    def check(self, episode):
        """The same, and raises BadItem where a picture cannot be read."""
        self.check_length(episode)
        for e in [*episode.support, episode.query]:  # last: a prompt that is too long may have any number of them
            if e.media is not None:
                self.features.pixels(e.media)

    def score(self, episodes):
        """-> for each episode the log-probabilities of its choices, in their order"""
        prompts = self.prompts([e.document() for e in episodes])
        ids = [self.candidates(e.choices, n, e.where or 'episode') for e, n in zip(episodes, prompts['length'].tolist())]
        longest = max(len(answer) for answers in ids for answer in answers)
        # One's long prompt and another's long answer need not fit together, nor all of their choices into memory.
        if len(episodes) > 1 and (prompts['tokens'].shape[1] + longest > self.model.lm.n_context + 1 or sum(map(len, ids)) > MOST_CHOICES):
            return [scores for e in episodes for scores in self.score([e])]
        return self.model.score(candidates=ids, **prompts)

    def choose(self, episodes):
        """-> for each episode a dict {choice: log-probability}, the mean over so many orders of its examples"""
        total = [dict.fromkeys(e.choices, 0.0) for e in episodes]
        for order in range(self.ensemble):
            if order > 0:
                episodes = [replace(e, support=[e.support[k] for k in np.random.default_rng(order).permutation(len(e.support))]) for e in episodes]
            for sums, e, scores in zip(total, episodes, self.score(episodes)):
                for choice, score in dict(zip(e.choices, scores)).items():  # a choice may be there twice
                    sums[choice] += score / self.ensemble
        return total

    def write(self, episodes):
        """-> for each episode a pair (text, log-probability)"""
        answers = self.model.generate(max_new_tokens=self.max_new_tokens, beam_size=self.beam_size,
                                      **self.prompts([e.document() for e in episodes]))
        return [(self.tokenizer.decode(ids).strip(), log_p) for ids, log_p in answers]

    def answer(self, episodes, progress=None):
        """-> for each episode a dict {"prediction", "answer", "correct", "logprob"}, in order; and "scores" {choice: log-probability}
        where it has choices.

        Similar episodes are asked together: those with choices, and prompts of like length, so that little is padding.
        """
        order = sorted(range(len(episodes)), key=lambda i: (episodes[i].choices is None, len(episodes[i].support)))
        out = [None] * len(episodes)
        bar = tqdm(total=len(episodes), desc=progress, disable=progress is None, leave=False)
        while order:
            closed = episodes[order[0]].choices is not None
            part = [i for i in order[:self.batch_size] if (episodes[i].choices is not None) == closed]
            order = order[len(part):]
            asked = [episodes[i] for i in part]
            if closed:
                for i, e, scores in zip(part, asked, self.choose(asked)):
                    best = max(scores, key=scores.get)
                    out[i] = {'prediction': best, 'answer': e.query.answer, 'correct': best == e.query.answer, 'logprob': scores[best], 'scores': scores}
            else:
                for i, e, (text, log_p) in zip(part, asked, self.write(asked)):
                    out[i] = {'prediction': text, 'answer': e.query.answer, 'correct': bool(e.is_right(text)), 'logprob': log_p}
            bar.update(len(part))
        bar.close()
        return out


# ---------------------------------------------------------------------------------------------
# Numbers


def row(task, value, n, ways=None, shots=None, control=None, metric='accuracy', bounds=None):
    """bounds: the 95 % interval of what is no proportion."""
    low, high = bounds or interval(value, n)
    return {'task': task, 'ways': ways, 'shots': shots, 'control': control, 'metric': metric, 'value': value, 'low': low, 'high': high, 'n': n}


def value_of(metric, episodes, answers):
    """-> (value, interval or None for a proportion's). Episodes with choices have them in the same order of meaning where the
    metric compares them between episodes (yes and no; the actions)."""
    n = len(episodes)
    if metric == 'accuracy':
        return sum(a['correct'] for a in answers) / n, None
    scores = [[a['scores'][c] for c in e.choices or []] for e, a in zip(episodes, answers)]
    if metric in ('cider', 'vqa_accuracy', 'ndcg'):  # means over the episodes
        if metric == 'cider':
            people = [[metrics.tokenise(t) for t in e.people or [e.query.answer]] for e in episodes]
            each = metrics.cider([metrics.tokenise(a['prediction']) for a in answers], people)[1]
        elif metric == 'vqa_accuracy':
            each = [metrics.vqa_accuracy(a['prediction'], e.people) for e, a in zip(episodes, answers)]
        else:
            each = [metrics.ndcg(s, e.relevance) for s, e in zip(scores, episodes)]
        each = np.array(each)
        return float(each.mean()), metrics.bootstrap(lambda k: each[k].mean(), n)
    truth = np.array([[c == e.query.answer for c in e.choices] for e in episodes])
    if metric == 'roc_auc':  # how much more likely yes is than no
        margin, label = np.array(scores) @ [1.0, -1.0], truth[:, 0]
        measure = lambda k: metrics.roc_auc(margin[k], label[k])
    else:  # mean_average_precision: how likely the action is, of all actions of this thing
        share = torch.tensor(scores).softmax(1).numpy()
        measure = lambda k: metrics.mean_average_precision(share[k], truth[k])
    return measure(np.arange(n)), metrics.bootstrap(measure, n, times=200)


def check_lengths(asker, episodes, task, shots, ways=None):
    """Raises BadItem where one of them does not fit the context. All or nothing: those that happen to fit are not like the others.
    All processes find out, before any of them begins to answer."""
    try:
        for e in episodes:
            asker.check_length(e)
    except BadInput as e:
        raise BadItem('longer than the context', f'{task}, ' + (f'{ways}-way, ' if ways else '') + f'{shots} shots', str(e)) from e


def measure(asker, task, shots, n, ways=None, control=None, seed=0, pairs=None, within=False):
    """-> (row of the task's first metric, episodes, answers). Raises BadItem where one is longer than the context."""
    episodes = episodes_of(task, shots, n, ways, seed, pairs, within=within)
    if control:
        episodes = spoil(control, episodes, seed)
    check_lengths(asker, episodes, task, shots, ways)
    answers = asker.answer(episodes)
    metric = tasks.TASKS[task][1][0]
    value, bounds = value_of(metric, episodes, answers)
    return row(task, value, n, ways, shots, control, metric, bounds), episodes, answers


def nearest(features, episodes):
    """What the frozen encoder would answer without any language model: of each episode, the name whose examples look most like the
    query -> [answer]. A picture's features are the mean over places, as in the contrastive stage, and a name's the mean over its
    examples; what all names have in common is taken away, and the cosine compares."""
    out = []
    for e in episodes:
        x = pool_media(features, [*(s.media for s in e.support), e.query.media])  # (examples + 1,D)
        names = list(dict.fromkeys(s.answer for s in e.support))
        shown = torch.stack([torch.stack([row for row, s in zip(x, e.support) if s.answer == name]).mean(0) for name in names])
        mean = shown.mean(0)
        out.append(names[int((F.normalize(shown - mean, dim=-1) @ F.normalize(x[-1] - mean, dim=0)).argmax())])
    return out


def nearest_row(features, episodes, ways=None, shots=None):
    right = [name == e.query.answer for name, e in zip(nearest(features, episodes), episodes)]
    return row('naming', sum(right) / len(right), len(right), ways, shots, metric='nearest')


def further_rows(asker, episodes, ways, shots, written=False):
    """What else there is to say about naming episodes: the nearest neighbour, where all has pictures, and the written answer."""
    rows = []
    if all(e.media is not None for episode in episodes for e in [*episode.support, episode.query]) and all(e.support for e in episodes):
        rows.append(nearest_row(asker.features, episodes, ways, shots))
    if written:
        asked = [replace(e, choices=None) for e in episodes]
        rows.append(row('naming', value_of('accuracy', asked, asker.answer(asked, 'written'))[0], len(asked), ways, shots, metric='written'))
    return rows


def spoil(control, episodes, seed=0):
    rng = np.random.default_rng([seed, *control.encode()])
    return [tasks.CONTROLS[control](e, rng) for e in episodes]


def control_rows(asker, task, episodes, ways, shots):
    """The rows of every control, and of the episodes as they are, for comparison."""
    rows = [row(task, value_of('accuracy', episodes, asker.answer(episodes))[0], len(episodes), ways, shots)]
    for control in tasks.CONTROLS:
        spoiled = spoil(control, episodes)
        answers = asker.answer(spoiled)
        rows.append(row(task, value_of('accuracy', spoiled, answers)[0], len(episodes), ways, shots, control))
        if control == 'shuffle_answers':  # against the names that the prompt teaches now
            follows = [a['prediction'] == tasks.taught(e, s) for e, s, a in zip(episodes, spoiled, answers)]
            rows.append(row(task, sum(follows) / len(follows), len(follows), ways, shots, control, 'follows'))
    return rows


# ---------------------------------------------------------------------------------------------
# The contrastive encoders


def zero_shot(contrastive, tokenizer, features, n):
    """Contrastive zero-shot: pictures of held-out pairs, the nearest description among all 64 pairs -> row."""
    media, truth = shapes.zero_shot_pictures('held', n)
    return row('zero_shot', classify(contrastive, tokenizer, features, media, truth, shapes.zero_shot_classes()), n)


def retrieval(pairs, contrastive, features, tokenizer, report, most=None):
    """Which caption belongs to which picture, both ways: R@k = a right one is among the first k -> rows.

    As is usual: each picture and each text is asked about once and stands among the answers once, however many captions a picture has
    (COCO: five) or pictures a text (class folders), and any that belongs to it is right. most: so many pairs, always the same, stand for
    all."""
    if most is not None and len(pairs) > most:
        pairs = pairs.take(np.sort(np.random.default_rng(0).choice(len(pairs), most, replace=False)).tolist())
    pairs = readable_pairs(pairs, features.pixels, report)
    items, media = pairs.items, [pairs.media(i) for i in range(len(pairs))]
    seen, said = {m.key: m for m in media}, dict.fromkeys(item.text for item in items)  # P pictures and T texts, each once
    v = embed_media(contrastive.vision, features, list(seen.values()))                 # (P,E)
    l = embed_texts(contrastive.text, tokenizer, list(said))                           # (T,E)
    picture, text = ({key: n for n, key in enumerate(keys)} for keys in (seen, said))
    belong = [(picture[m.key], text[item.text]) for m, item in zip(media, items)]
    rows = []
    for way, rank in (('i2t', ranks(v, l, belong)), ('t2i', ranks(l, v, [(t, p) for p, t in belong]))):
        rows += [row('retrieval', (rank < k).float().mean().item(), len(rank), metric=f'{way}_R@{k}') for k in (1, 5, 10)]
    return rows


# ---------------------------------------------------------------------------------------------
# Tables


def first_table(asker, contrastive, n=400, seed=1, pairs=None, all_ways=NAMING_WAYS, within=False, report=None):
    """The table that train.py ends with -> (rows, [(title, Document, answer)] to look at). contrastive: None where no text
    tower was trained, and there is nothing to say without a prompt. all_ways: of naming; within: as in `episodes_of`; report: is told
    of rows that are left out, as their prompts are longer than the context."""
    report = report or Report()
    plan = [('naming', ways, shots, None) for ways in all_ways for shots in (1, 2, 4) if ways * shots <= 20]
    plan += [('naming', ways, 1, 'blank_support') for ways in all_ways]
    if pairs is None:
        rows = [zero_shot(contrastive, asker.tokenizer, asker.features, 2 * n)] if contrastive else []
        plan += [(task, None, shots, None) for task in ('caption', 'question', 'clip_caption') for shots in (0, 4, 8)]
    else:
        rows = retrieval(pairs, contrastive, asker.features, asker.tokenizer, report, most=10_000) if contrastive else []
        plan += [('caption', None, shots, None) for shots in (0, 4, 8)]
    plan = [(task, ways, shots, control) for task, ways, shots, control in plan if can_ask(pairs, ways, shots, within and task == 'naming')]
    shown = []
    for task, ways, shots, control in tqdm(plan, desc='few-shot table', leave=False):
        try:
            result, episodes, answers = measure(asker, task, shots, n, ways, control, seed, pairs, within and task == 'naming')
        except BadItem as e:
            report.add(e)
            continue
        rows.append(result)
        if pairs is not None and task == 'naming' and control is None:
            rows += further_rows(asker, episodes, ways, shots)
        if control is None and shots <= 4:
            shown.append((f'{task}{f", {ways}-way" if ways else ""}, {shots} shot{"s" if shots != 1 else ""}', episodes[0].document(), answers[0]))
    return rows, shown


def full_table(asker, contrastive, config, report):
    """Every task of the embedded world over the number of shots, and Frozen's naming protocol -> rows."""
    names = listed(config, 'tasks', list(tasks.TASKS))
    plan = []
    for task in names:
        if task == 'naming':
            plan += [(task, ways, shots) for ways in naming_ways(config) for shots in numbers(config, 'shots', NAMING_SHOTS) if shots]
        else:
            plan += [(task, None, shots) for shots in (numbers(config, 'shots', SHOTS) if task != 'action' else [0])]
    rows = [] if config.tasks else [zero_shot(contrastive, asker.tokenizer, asker.features, 8 * config.n)]

    def ask(task, ways, shots, wanted, change=None, label=None):
        episodes = [e for s in range(config.seeds) for e in episodes_of(task, shots, config.n, ways, config.seed + s, text_examples=config.text_examples)]
        if change is not None:
            rng = np.random.default_rng(config.seed)
            episodes = [change(e, rng) for e in episodes]
        try:
            check_lengths(asker, episodes, task, shots, ways)
        except BadItem as e:
            return report.add(e)
        answers = asker.answer(episodes, task)
        for metric in wanted:
            try:
                value, bounds = value_of(metric, episodes, answers)
            except ValueError as e:  # one episode alone has no ROC curve
                raise BadInput(f'{task}: {e}; take more episodes (--n)') from e
            rows.append(row(task, value, len(episodes), ways, shots, metric=label or metric, bounds=bounds))

    for task, ways, shots in tqdm(plan, desc='tasks × shots', leave=False):
        ask(task, ways, shots, tasks.TASKS[task][1])
    if 'naming' in names and not (config.ways or config.shots):  # Frozen: 2- and 5-way, inner shots 1, 3, 5, repeats 0, 1, 3, 5
        for ways in (2, 5):
            for shots, repeats, induction in [(1, 0, False), (1, 0, True), (3, 0, True), (5, 0, True), (1, 1, True), (1, 3, True), (1, 5, True)]:
                label = 'written' + (f', {repeats} repeats' if repeats else '') + ('' if induction else ', no induction')
                ask('naming', ways, shots, ['accuracy'], lambda e, rng: tasks.frozen_episode(e, rng, repeats, induction), label)
    return rows


def control_table(asker, config):
    """The naming episodes of the embedded world, or of a folder, under every control -> rows."""
    report = Report()
    pairs = open_classes(config, asker, report) if config.folder else None
    rows = []
    for ways, shots, good in naming_cells(config, asker, pairs, report, (1,)):
        rows += control_rows(asker, 'naming', good, ways, shots)
    tell(report)
    return rows


def none_usable(where, report):
    return BadInput(f'{where}: no episode can be used: ' + '; '.join(report.lines() or ['there is none']))


def usable(asker, episodes, report, where):
    """The episodes that can be asked, None in the places of the others. Raises BadInput where none can."""
    kept = tasks.usable(episodes, asker.check, report)
    if all(e is None for e in kept):
        raise none_usable(where, report)
    return kept


def table(rows):
    """Rows of results as text: tasks down, shots across."""
    shots = sorted({r['shots'] for r in rows if r['shots'] is not None})
    lines = {}
    for r in rows:
        name = r['task'] + (f', {r["ways"]}-way' if r['ways'] else '') + (f', {r["control"]}' if r['control'] else '')
        name += '' if r['metric'] == 'accuracy' else f', {r["metric"]}'
        if r['metric'] == 'cider':  # times 100, as the papers print it; it may be more than 100
            cell = f'{100 * r["value"]:.1f} ({100 * r["low"]:.0f}–{100 * r["high"]:.0f})'
        else:
            cell = f'{r["value"]:.1%} ({r["low"]:.0%}–{r["high"]:.0%})'
        lines.setdefault(name, {})[r['shots']] = cell
    header = ['task', *(['no prompt'] if any(r['shots'] is None for r in rows) else []), *[f'{s} shot{"s" if s != 1 else ""}' for s in shots]]
    columns = [None, *shots] if 'no prompt' in header else shots
    return pictures.text_table([[name, *[cells.get(s, '') for s in columns]] for name, cells in lines.items()], header)


def tables(rows):
    """The table of the tasks, and apart from it those of naming: there, shots count the examples of each name."""
    parts = {'': [], 'naming: the likeliest of the names, examples of each': [], "naming after Frozen: the name is written, examples of each": []}
    for r in rows:
        list(parts.values())[(r['task'] == 'naming') + (r['metric'].startswith('written'))].append(r)
    return '\n\n'.join(f'{title}\n{table(part)}'.lstrip() for title, part in parts.items() if part)


def control_text(rows):
    """Rows of controls as text: controls down, episodes across, and what chance would give."""
    columns = list(dict.fromkeys((r['ways'], r['shots']) for r in rows))
    lines = {}
    for r in rows:
        name = (r['control'] or 'as they are').replace('_', ' ') + (', the new name counts' if r['metric'] == 'follows' else '')
        lines.setdefault(name, {})[r['ways'], r['shots']] = f'{r["value"]:.1%} ({r["low"]:.0%}–{r["high"]:.0%})'
    header = [f'{f"{ways}-way" if ways else "your episodes"}{f", {shots}-shot" if shots else ""}' for ways, shots in columns]
    lines['chance'] = {(ways, shots): f'{1 / ways:.1%}' if ways else '' for ways, shots in columns}
    return pictures.text_table([[name, *[cells.get(c, '') for c in columns]] for name, cells in lines.items()], ['control', *header])


def sheet(shown, columns=1, title=''):
    """[(name, Document, answer)] -> one picture with a title: prompts with their pictures, and what the model said."""
    prompts = []
    for name, document, answer in shown:
        pieces = []
        for piece in document.pieces:
            if isinstance(piece, Media):
                frames = piece.load()
                pieces.append(frames[0] if len(frames) == 1 else frames)
            elif isinstance(piece, str) and pieces and isinstance(pieces[-1], str):
                pieces[-1] += piece  # an example's prompt and its answer are one text
            elif isinstance(piece, str):
                pieces.append(str(piece))
        prompts.append({'title': name, 'pieces': pieces, 'answer': answer['prediction'], 'truth': answer['answer']})
    return pictures.prompt_sheet(prompts, columns, title=title)


def confusions(wrong, most=9):
    """[(Episode, answer)] of naming, answered wrongly -> one picture: of each, the example of the right name, that of the name it said,
    and the query."""
    shown = []
    for e, answer in wrong[:most]:
        two = [next(s for s in e.support if s.answer == name) for name in (e.query.answer, answer['prediction'])]
        shown.append(('', replace(e, support=two).document(), answer))
    return sheet(shown, 3, 'mistakes: the right one, what it said, the query')


# ---------------------------------------------------------------------------------------------
# Your own model and data


def find_checkpoint(config):
    """The path of the checkpoint to read: in out_dir, or else assets/nano.pt, and a line that says so."""
    path = os.path.join(config.out_dir, config.checkpoint)
    if config.checkpoint != KEYS['checkpoint'][0] or os.path.exists(path) or not os.path.exists(NANO):
        return path
    print(f'there is no {one_line(path)}; using {os.path.relpath(NANO)}, which was trained already (python train.py trains your own)', file=sys.stderr)
    os.makedirs(config.out_dir, exist_ok=True)
    return NANO


def load(path, device='cpu', batch_size=16):
    """flamingo.pt -> (Asker, Contrastive with the same encoder). The file needs nothing beside it. Raises BadInput."""
    content = checkpoint.load(path, 'flamingo', config=dict, tokenizer=dict, flamingo=dict, contrastive=dict)
    try:
        config, tokenizer = FlamingoConfig(**content['config']), Tokenizer.from_state(content['tokenizer'])
        if (config.n_vocab, config.bos, config.pad) != (tokenizer.n_vocab, tokenizer.bos, tokenizer.pad):
            raise BadInput(f'its tokenizer has {tokenizer.n_vocab} words, and its model {config.n_vocab}')
    except (TypeError, ValueError) as e:  # sizes with another name, of another type, or that no model has
        raise BadInput(f'{path}: {e}') from e

    def fill(check):
        contrastive = new_contrastive(config)
        model = Flamingo(config, contrastive.vision, GPT.from_config(config))
        check(model, content['flamingo'], path)
        vision = {'vision.' + k: v for k, v in model.vision.state_dict().items()}  # in the file once
        check(contrastive, content['contrastive'] | vision, path)
        return contrastive, model

    with torch.device('meta'):  # before any memory is taken: do the tensors in the file have the sizes that it claims?
        fill(checkpoint.check_state)
    contrastive, model = fill(checkpoint.load_into)
    features = FrozenFeatures(model.vision, Pixels(config.image_size, config.n_frame), device)
    return Asker(model.to(device), tokenizer, features, batch_size), contrastive.to(device).eval()


def tell(report):
    for line in report.lines():
        print('left out', line)


def listed(config, key, allowed):
    """'caption,question' -> ['caption', 'question']. Raises BadInput."""
    names = [name.strip() for name in getattr(config, key).split(',')] if getattr(config, key) else allowed
    for name in names:
        if name not in allowed:
            raise BadInput(f'--{key}={getattr(config, key)}: {name!r} is none of {", ".join(allowed)}')
    return names


def numbers(config, key, default, least=0, most=100):
    """'0,4' -> [0, 4]. Raises BadInput."""
    text = getattr(config, key)
    try:
        found = [int(part) for part in text.split(',')] if text else list(default)
    except ValueError as e:
        raise BadInput(f'--{key}={text}: expected whole numbers with commas') from e
    if min(found) < least or max(found) > most:
        raise BadInput(f'--{key}={text}: must be at ' + (f'least {least}' if min(found) < least else f'most {most}'))
    return found


def naming_ways(config):
    """--ways -> [int]. Raises BadInput."""
    return numbers(config, 'ways', NAMING_WAYS, 2, MOST_NAMES if config.folder else len(shapes.HELD_PAIRS))


def templates(config):
    """--templates -> [str]. Raises BadInput."""
    found = config.templates.split('|')
    if not all('{}' in t for t in found):
        raise BadInput(f'--templates={config.templates}: each must hold {{}}, the place of the name')
    return found


def write_predictions(path, lines=None, whole=None):
    """lines: one JSON object a line; whole: one JSON document."""
    with checkpoint.whole_file(path, 'w', encoding='utf-8') as f:
        if whole is not None:
            json.dump(whole, f)
        for line in lines or []:
            f.write(json.dumps(line) + '\n')


def run_episodes(config, asker):
    """--episodes=FILE: accuracy with its interval, and one prediction a line -> rows."""
    report = Report()
    episodes = usable(asker, tasks.read_episodes(config.episodes, report), report, config.episodes)
    good = [e for e in episodes if e is not None]
    tell(report)
    ways = {len(e.choices) if e.choices is not None else None for e in good}
    ways = ways.pop() if len(ways) == 1 else None
    if config.controls:
        taught = [(e, [s.answer for s in e.support]) for e in good if e.choices is not None]
        teaches = [e for e, answers in taught if e.query.answer in answers and len({*answers, *e.choices}) <= MOST_NAMES]
        if not teaches:
            raise BadInput(f'{config.episodes}: controls need episodes with choices, at most {MOST_NAMES} of them, whose support shows the answer')
        return control_rows(asker, 'naming', teaches, ways, None)
    answers = asker.answer(good, 'episodes')
    if config.predictions:
        found, nothing = iter(answers), {'prediction': None, 'answer': None, 'correct': False, 'logprob': None}
        lines = [nothing if e is None else next(found) for e in episodes]
        write_predictions(config.predictions, [{key: line[key] for key in nothing} for line in lines])
    return [row('naming', value_of('accuracy', good, answers)[0], len(good), ways)] + further_rows(asker, good, ways, None, config.written)


def open_classes(config, asker, report):
    """--folder=DIR -> Pairs"""
    classes = Classes(config.class_depth, held=config.held_groups)
    return open_folder(config.folder, asker.model.config.n_frame, split=config.split or None, images=config.images, report=report, classes=classes)


def naming_episodes(config, ways, shots, pairs):
    """n episodes of each seed, of a folder (Pairs) or, with None, of the embedded world"""
    if config.trials and pairs is not None:
        return [replace(e, where=f'{e.where}, seed {config.seed + s}') for s in range(config.seeds)
                for e in tasks.folder_trials(np.random.default_rng([config.seed + s, ways]), pairs, ways, config.n)]
    return [e for s in range(config.seeds) for e in episodes_of('naming', shots, config.n, ways, config.seed + s, pairs, within=config.within_group)]


def possible_ways(config, pairs, report):
    """--ways -> [int]; where nothing is said, those of the usual ones that there are things enough for."""
    for ways in naming_ways(config):
        if config.ways or can_ask(pairs, ways, 1, config.within_group or config.trials):
            yield ways
        else:
            report.add(BadItem('too few kinds of things', f'{ways}-way'))


def naming_cells(config, asker, pairs, report, all_shots):
    """(ways, shots, the episodes that can be asked) of every cell of a table; a cell that has none is left out and reported. Raises
    BadInput where no cell has any, or where --ways asks for more names than there are things."""
    found = False
    for ways in possible_ways(config, pairs, report):
        for shots in numbers(config, 'shots', all_shots, 1):
            kept = tasks.usable(naming_episodes(config, ways, shots, pairs), asker.check, report)
            if good := [e for e in kept if e is not None]:
                found = True
                yield ways, shots, good
    if not found:
        raise none_usable(config.folder or 'naming', report)


def run_folder(config, asker):
    """--folder=DIR: new names for its classes -> rows; and confusions.png, of those with the most names"""
    report, rows, wrong = Report(), [], {}
    pairs = open_classes(config, asker, report)
    for ways, shots, good in naming_cells(config, asker, pairs, report, (1,) if config.trials else NAMING_SHOTS):
        answers = asker.answer(good, f'{ways}-way {shots}-shot')
        rows.append(row('naming', value_of('accuracy', good, answers)[0], len(good), ways, shots))
        rows += further_rows(asker, good, ways, shots, config.written)
        wrong[ways] = [(e, answer) for e, answer in zip(good, answers) if not answer['correct']]
    wrong = {ways: mistakes for ways, mistakes in wrong.items() if mistakes}
    if wrong:
        pictures.save(confusions(wrong[max(wrong)]), os.path.join(config.out_dir, 'confusions.png'))
    tell(report)
    return rows


def write_episodes(config, asker):
    """--write_episodes=FILE: the episodes of a folder, for --episodes."""
    report, lines = Report(), []
    pairs = open_classes(config, asker, report)
    for ways in possible_ways(config, pairs, report):
        for shots in numbers(config, 'shots', (1,), 1):
            lines += [tasks.episode_line(e, os.path.dirname(os.path.abspath(config.write_episodes))) for e in naming_episodes(config, ways, shots, pairs)]
    if not lines:
        raise BadInput(f'{config.folder}: no episodes: ' + '; '.join(report.lines()))
    write_predictions(config.write_episodes, lines)
    tell(report)
    print(f'{config.write_episodes}: {len(lines)} episodes')


def run_official(config, asker):
    """COCO captions or VQA -> rows; and the predictions in the official results format, one entry for each question asked."""
    if not config.images:
        raise BadInput('--images: name the folder of pictures')
    shots = numbers(config, 'shots', (4,))
    if config.predictions and len(shots) > 1:
        raise BadInput(f'--predictions: holds one run; --shots={config.shots} are {len(shots)}')
    report, rows = Report(), []
    if config.coco_annotations:
        file, task, metric, items = config.coco_annotations, 'caption', 'cider', tasks.read_coco(config.coco_annotations, config.images, report)
    else:
        file, task, metric = config.vqa_questions, 'question', 'vqa_accuracy'
        items = tasks.read_vqa(config.vqa_questions, config.vqa_annotations, config.images, report)
    for count in shots:
        asked = tasks.official_episodes(items, count, config.n if 'n' in config.given else 0, config.seed, asker.features.pixels, config.text_examples)
        episodes = usable(asker, [e for _, e in asked], report, file)
        good = [e for e in episodes if e is not None]
        answers = asker.answer(good, task)
        value, bounds = value_of(metric, good, answers)
        rows.append(row(task, value, len(good), shots=count, metric=metric, bounds=bounds))
        if config.predictions:  # the servers want an entry for everything that was asked, so what cannot be answered gets ''
            found, names = iter(answers), ('image_id', 'caption') if task == 'caption' else ('question_id', 'answer')
            said = ['' if e is None else next(found)['prediction'] for e in episodes]
            write_predictions(config.predictions, whole=[{names[0]: number, names[1]: text} for (number, _), text in zip(asked, said)])
    tell(report)
    return rows


def run_encoders(config, asker, contrastive):
    """--zero_shot, --probe or --retrieval: what the contrastive encoders know -> rows"""
    report, features = Report(), asker.features
    path = config.zero_shot or config.probe or config.retrieval
    pairs = open_folder(path, asker.model.config.n_frame, split=config.split or None, images=config.images, report=report)
    if config.retrieval:
        rows = retrieval(pairs, contrastive, features, asker.tokenizer, report)
    else:
        pairs = readable_pairs(pairs, features.pixels, report)
        media, items = [pairs.media(i) for i in range(len(pairs))], pairs.items
        names = list(dict.fromkeys(item.label for item in items))
        truth = [names.index(item.label) for item in items]
        if len(names) < 2:
            raise BadInput(f'{path}: only one class')
    if config.zero_shot:
        classes = [[t.replace('{}', name) for t in templates(config)] for name in names]
        value = classify(contrastive, asker.tokenizer, features, media, truth, classes)
        rows = [row('zero_shot', value, len(media), ways=len(names))]
    elif config.probe:
        # Its own splits if it has any; else every fifth picture of a shuffled folder is held out.
        order = np.random.default_rng(config.seed).permutation(len(items))
        if len({item.split for item in items}) > 1:
            test = np.array([item.split != 'train' for item in items])
        else:
            test = np.isin(np.arange(len(items)), order[:max(1, len(items) // 5)])
        if test.all() or not test.any():
            raise BadInput(f'{path}: the probe needs pictures to train on and others to test on')
        pooled, truth, test = pool_media(features, media), torch.tensor(truth, device=features.device), torch.from_numpy(test)
        guess = linear_probe(pooled[~test], truth[~test], pooled[test], len(names))
        rows = [row('linear_probe', (guess == truth[test]).float().mean().item(), int(test.sum()), ways=len(names))]
    tell(report)
    return rows


def check_values(config):
    """Values of the right type that make no sense. Raises BadInput."""
    check_range(config, 1, 100_000, 'n')
    check_range(config, 1, 100, 'seeds', 'ensemble')
    check_range(config, 0, 100, 'text_examples', 'class_depth')
    check_range(config, 1, 10_000, 'batch_size')
    check_range(config, 1, MOST_BEAMS, 'beam_size')
    check_range(config, 1, 1 << 40, 'max_new_tokens')
    check_range(config, 0, 2 ** 63 - 1, 'seed')
    listed(config, 'tasks', list(tasks.TASKS)), naming_ways(config), numbers(config, 'shots', SHOTS), templates(config)
    asked = [key for key in SOURCES if getattr(config, key)]
    if len(asked) > 1:
        raise BadInput(f'--{asked[0]} and --{asked[1]}: give one of the two')
    if bool(config.vqa_questions) != bool(config.vqa_annotations):
        raise BadInput('--vqa_questions and --vqa_annotations belong together')
    for key in ('write_episodes', 'trials', 'within_group'):
        if getattr(config, key) and not config.folder:
            raise BadInput(f'--{key}={getattr(config, key)}: of a --folder only')
    if config.predictions and (config.controls or not {'episodes', 'coco_annotations', 'vqa_questions'} & set(asked)):
        raise BadInput(f'--predictions={config.predictions}: of --episodes, COCO and VQA only, and not of --controls')
    if config.written and not {'episodes', 'folder'} & set(asked):
        raise BadInput('--written=True: of a --folder or --episodes only')
    if config.trials and config.shots not in ('', '1'):
        raise BadInput(f'--trials=True: one example of each name, not --shots={config.shots}')
    if config.controls and asked and asked[0] not in ('episodes', 'folder'):
        raise BadInput(f'--controls=True: of the embedded world, a --folder or --episodes, not of --{asked[0]}')


def main():
    config = configure(KEYS, usage=__doc__)
    check_values(config)
    asker, contrastive = load(find_checkpoint(config), pick_device(config.device, meta=False), config.batch_size)
    asker.beam_size, asker.max_new_tokens, asker.ensemble = config.beam_size, config.max_new_tokens, config.ensemble
    if config.write_episodes:
        return write_episodes(config, asker)
    if config.episodes:
        rows = run_episodes(config, asker)
    elif config.coco_annotations or config.vqa_questions:
        rows = run_official(config, asker)
    elif config.zero_shot or config.probe or config.retrieval:
        rows = run_encoders(config, asker, contrastive)
    elif config.controls:
        rows = control_table(asker, config)
    elif config.folder:
        rows = run_folder(config, asker)
    else:
        report = Report()
        rows = full_table(asker, contrastive, config, report)
        tell(report)
    drawn = [r for r in rows if r['metric'] == tasks.TASKS.get(r['task'], ('', (r['metric'],)))[1][0]]  # one metric a task
    pictures.save(pictures.shots_chart(drawn or rows, 'Few-shot learning'), os.path.join(config.out_dir, 'evaluate.png'))
    with checkpoint.whole_file(os.path.join(config.out_dir, 'evaluate.json'), 'w', encoding='utf-8') as f:
        json.dump(rows, f, indent=1)
    print(control_text(rows) if config.controls else tables(rows))


if __name__ == '__main__':
    command(main)
