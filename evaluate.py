"""Does it learn from its prompt? Few-shot tasks, and the numbers that answer.

    python evaluate.py                                         # the few-shot table of the embedded world
    python evaluate.py --episodes=trials.jsonl                 # your own episodes, one a line
    python evaluate.py --retrieval=my_pictures --split=val     # which caption belongs to which picture?

A task gives `data.Episode`s. Where an episode has choices, each is scored by log-likelihood and the best one is the
prediction; elsewhere the answer is generated (§4, appendix A.2). Rows of results are dicts
{"task", "ways", "shots", "control", "metric", "value", "low", "high", "n"}; low and high bound the 95 % interval.
"""
import json
import math
import os
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from data import Episode, Example, Media, Tokenizer, collate, encode
from kit import checkpoint, pictures, shapes
from kit.configurator import BadInput, BadItem, check_range, command, configure, pick_device
from kit.features import FrozenFeatures, Pixels
from kit.sources import Pairs, Report, open_folder, parse_json, read_frames, read_lines
from model import GPT, Flamingo, FlamingoConfig
from vision import new_contrastive

KEYS = {
    'out_dir': ('out', 'folder with the flamingo.pt to evaluate; results go there too'),
    'checkpoint': ('flamingo.pt', 'file in out_dir; finetune.pt after fine-tuning'),
    'device': ('auto', 'auto, cpu, cuda, mps'),
    'seed': (1, 'of the episodes of the embedded world'),
    'n': (400, 'episodes of each kind'),
    'batch_size': (16, 'episodes at a time'),
    'beam_size': (3, 'for generated answers'),
    'max_new_tokens': (24, 'for generated answers'),
    'episodes': ('', 'a .jsonl file of your own episodes, one a line'),
    'predictions': ('', 'with episodes: where to write one line for each'),
    'retrieval': ('', 'a folder with metadata.jsonl: which caption belongs to which picture?'),
    'split': ('', 'with retrieval: the split to use; empty for all'),
}

MOST_BEAMS = 64      # of generation: each takes the memory of a prompt
MOST_CHOICES = 1000  # of one episode: each takes the memory of a prompt

# ---------------------------------------------------------------------------------------------
# Asking a model


def blank_frame():
    return [Image.new('RGB', (shapes.SIZE, shapes.SIZE), (128, 128, 128))]


BLANK = Media('blank', blank_frame)


def blank_support(episode):
    """The same episode with nothing to see in its support pictures. What is left is their text."""
    return replace(episode, support=[replace(e, media=e.media and BLANK) for e in episode.support])


class Asker:
    """A trained Flamingo and all that is needed to put questions to it."""

    def __init__(self, model, tokenizer, features, batch_size=16, beam_size=3, max_new_tokens=24):
        self.model, self.tokenizer, self.features, self.batch_size = model.eval(), tokenizer, features, batch_size
        self.beam_size, self.max_new_tokens = beam_size, max_new_tokens

    def prompts(self, documents):
        """-> keyword arguments of `generate` and `score`. Raises BadInput where a prompt is too long."""
        encoded = [encode(d, self.tokenizer, n_token=self.model.lm.n_context - 1) for d in documents]
        batch = collate(encoded, self.tokenizer)
        features, frame_mask = self.features(batch.media)
        device = self.features.device
        return dict(tokens=batch.tokens.to(device), length=batch.length.to(device), image_index=batch.image_index.to(device),
                    features=features, frame_mask=frame_mask)

    def candidates(self, choices, n_prompt, where):
        """Answers to rank -> lists of token ids, each closed by <EOC>. n_prompt: tokens of the prompt before them. Raises
        BadInput where there are too many, or one is too long to follow it."""
        if len(choices) > MOST_CHOICES:
            raise BadInput(f'{where}: {len(choices)} choices are more than {MOST_CHOICES}')
        ids = [self.tokenizer.encode(' ' + c) + [self.tokenizer.eoc] for c in choices]
        longest, most = max(map(len, ids)), self.model.lm.n_context + 1
        if n_prompt + longest > most:
            raise BadInput(f'{where}: a prompt of {n_prompt} tokens and an answer of {longest} are longer than the context of {most - 1}')
        return ids

    def choose(self, episodes):
        """-> for each episode a dict {choice: log-probability}"""
        prompts = self.prompts([e.document() for e in episodes])
        ids = [self.candidates(e.choices, n, 'episode') for e, n in zip(episodes, prompts['length'].tolist())]
        longest = max(len(answer) for answers in ids for answer in answers)
        # One's long prompt and another's long answer need not fit together, nor all of their choices into memory.
        if len(episodes) > 1 and (prompts['tokens'].shape[1] + longest > self.model.lm.n_context + 1 or sum(map(len, ids)) > MOST_CHOICES):
            return [scores for e in episodes for scores in self.choose([e])]
        scores = self.model.score(candidates=ids, **prompts)
        return [dict(zip(e.choices, s)) for e, s in zip(episodes, scores)]

    def write(self, episodes):
        """-> for each episode a pair (text, log-probability)"""
        answers = self.model.generate(max_new_tokens=self.max_new_tokens, beam_size=self.beam_size,
                                      **self.prompts([e.document() for e in episodes]))
        return [(self.tokenizer.decode(ids).strip(), log_p) for ids, log_p in answers]

    def answer(self, episodes, progress=None):
        """-> for each episode a dict {"prediction", "answer", "correct", "logprob"}, in order.

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
                best = [max(scores.items(), key=lambda item: item[1]) for scores in self.choose(asked)]
            else:
                best = self.write(asked)
            for i, e, (text, log_p) in zip(part, asked, best):
                right = text == e.query.answer if closed else e.is_right(text)
                out[i] = {'prediction': text, 'answer': e.query.answer, 'correct': bool(right), 'logprob': log_p}
            bar.update(len(part))
        bar.close()
        return out


# ---------------------------------------------------------------------------------------------
# Tables


def interval(value, n, z=1.96):
    """Wilson's 95 % interval of a proportion seen n times -> (low, high). Unlike ± it stays within 0 and 1."""
    if n == 0:
        return 0.0, 1.0
    middle = (value + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(value * (1 - value) / n + z * z / (4 * n * n))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def row(task, value, n, ways=None, shots=None, control=None, metric='accuracy'):
    low, high = interval(value, n)
    return {'task': task, 'ways': ways, 'shots': shots, 'control': control, 'metric': metric, 'value': value, 'low': low, 'high': high, 'n': n}


def episodes_of(task, shots, n, ways=None, seed=0, pairs=None):
    """n episodes of a task, the same ones for the same seed: of the embedded world, or made of `pairs` (kit.sources)
    that were held out of training."""
    rng = np.random.default_rng([seed, shots, ways or 0, *task.encode()])
    if pairs is not None:
        make = {'naming': folder_naming, 'caption': folder_caption}[task]
        return [make(rng, pairs, ways, shots, i) for i in range(n)]
    make = {'naming': shapes.naming_episode, 'caption': shapes.caption_episode, 'question': shapes.question_episode, 'clip_caption': shapes.clip_episode}[task]
    return [make(rng, 'held', ways, shots, turn=i) if ways else make(rng, 'held', shots) for i in range(n)]


def folder_naming(rng, pairs, ways, shots, i):
    """Made-up names for things of a folder. Where a thing has one picture only, it is shown in variants of it."""
    labels = {}
    for k, item in enumerate(pairs.items):
        labels.setdefault(item.label, []).append(k)
    kinds = [list(labels.values())[k] for k in rng.choice(len(labels), ways, replace=False)]
    names = shapes.made_up_names(rng, ways, 'held')
    asked = i % ways

    def views(kind, n):  # n different pictures of a kind
        order = rng.permutation(kind)
        return [pairs.media(int(order[j % len(order)]), 1 + j // len(order)) for j in range(n)]

    shown = [views(kind, shots + (w == asked)) for w, kind in enumerate(kinds)]
    query = Example(shown[asked].pop(), 'Output:', names[asked])
    support = [Example(m, 'Output:', names[w]) for w, row in enumerate(shown) for m in row]
    return Episode([support[k] for k in rng.permutation(len(support))], query, choices=names)


def folder_caption(rng, pairs, ways, shots, i):
    """The caption of a picture, word for word."""
    k, *rest = rng.choice(len(pairs), shots + 1, replace=False)
    return Episode([Example(pairs.media(int(r)), 'Output:', pairs.items[r].text) for r in rest], Example(pairs.media(int(k)), 'Output:', pairs.items[k].text))


def can_ask(pairs, ways, shots):
    """Are there enough things, and pictures, to ask this of them? pairs: None for the embedded world, which has enough."""
    return pairs is None or (len({item.label for item in pairs.items}) >= ways if ways else len(pairs) > shots)


def measure(asker, task, shots, n, ways=None, control=None, seed=0, pairs=None):
    """-> (row, episodes, answers)"""
    episodes = episodes_of(task, shots, n, ways, seed, pairs)
    if control == 'blank_support':
        episodes = [blank_support(e) for e in episodes]
    answers = asker.answer(episodes)
    return row(task, sum(a['correct'] for a in answers) / n, n, ways, shots, control), episodes, answers


def zero_shot(contrastive, tokenizer, features, n):
    """Contrastive zero-shot: pictures of held-out pairs, the nearest description among all 64 pairs -> row."""
    media, truth = shapes.zero_shot_pictures('held', n)
    classes = torch.stack([embed_texts(contrastive.text, tokenizer, forms).mean(0) for forms in shapes.zero_shot_classes()])
    right = (embed_media(contrastive.vision, features, media) @ classes.T).argmax(1) == torch.tensor(truth, device=classes.device)
    return row('zero_shot', right.float().mean().item(), n)


@torch.no_grad()
def embed_texts(tower, tokenizer, texts, batch_size=64):
    """list of N str -> (N,E), of length 1. A text begins with a space, as in training: "red" and " red" are two tokens."""
    out = []
    for i in range(0, len(texts), batch_size):
        tokens, mask = pad_texts([tokenizer.encode(' ' + t) for t in texts[i:i + batch_size]], len(tower.position.weight))
        device = tower.token.weight.device
        out.append(tower.embed(tokens.to(device), mask.to(device)))
    return torch.cat(out)


@torch.no_grad()
def embed_media(vision, features, media, batch_size=64):
    """list of N Media -> (N,E), of length 1; a clip counts as the mean of its frames"""
    out = []
    for i in range(0, len(media), batch_size):
        grid, mask = features([[m] for m in media[i:i + batch_size]])                # (N,1,F,S,D), (N,1,F)
        weight = mask[:, 0, :, None].float()                                         # (N,F,1)
        pooled = (grid[:, 0].mean(2) * weight).sum(1) / weight.sum(1)                # (N,D)
        out.append(torch.nn.functional.normalize(vision.projection(pooled), dim=-1))
    return torch.cat(out)


def pad_texts(ids, longest):
    """lists of token ids -> tokens (N,T), mask (N,T); what is longer than `longest` is cut"""
    ids = [i[:longest] or [0] for i in ids]
    t = max(map(len, ids))
    tokens = torch.tensor([i + [0] * (t - len(i)) for i in ids])
    return tokens, torch.arange(t) < torch.tensor([[len(i)] for i in ids])


def first_table(asker, contrastive, n=400, seed=1, pairs=None):
    """The table that train.py ends with -> (rows, [(title, Document, answer)] to look at)."""
    plan = [('naming', ways, shots, None) for ways in (2, 4) for shots in (1, 2, 4)]
    plan += [('naming', ways, 1, 'blank_support') for ways in (2, 4)]
    if pairs is None:
        rows = [zero_shot(contrastive, asker.tokenizer, asker.features, 2 * n)]
        plan += [(task, None, shots, None) for task in ('caption', 'question', 'clip_caption') for shots in (0, 4, 8)]
    else:
        rows = retrieval(pairs, contrastive, asker.features, asker.tokenizer, Report())
        plan += [('caption', None, shots, None) for shots in (0, 4, 8)]
    plan = [(task, ways, shots, control) for task, ways, shots, control in plan if can_ask(pairs, ways, shots)]
    shown = []
    for task, ways, shots, control in tqdm(plan, desc='few-shot table', leave=False):
        result, episodes, answers = measure(asker, task, shots, n, ways, control, seed, pairs)
        rows.append(result)
        if control is None and shots <= 4:
            shown.append((f'{task}{f", {ways}-way" if ways else ""}, {shots} shot{"s" if shots != 1 else ""}', episodes[0].document(), answers[0]))
    return rows, shown


def table(rows):
    """Rows of results as text: tasks down, shots across."""
    shots = sorted({r['shots'] for r in rows if r['shots'] is not None})
    lines = {}
    for r in rows:
        name = r['task'] + (f', {r["ways"]}-way' if r['ways'] else '') + (f', {r["control"]}' if r['control'] else '')
        name += '' if r['metric'] == 'accuracy' else f', {r["metric"]}'
        cell = f'{r["value"]:.1%} ({r["low"]:.0%}–{r["high"]:.0%})'
        lines.setdefault(name, {})[r['shots']] = cell
    header = ['task', *(['no prompt'] if any(r['shots'] is None for r in rows) else []), *[f'{s} shot{"s" if s != 1 else ""}' for s in shots]]
    columns = [None, *shots] if 'no prompt' in header else shots
    return pictures.text_table([[name, *[cells.get(s, '') for s in columns]] for name, cells in lines.items()], header)


def sheet(shown):
    """[(title, Document, answer)] -> one picture: prompts with their pictures, and what the model said."""
    prompts = []
    for title, document, answer in shown:
        pieces = []
        for piece in document.pieces:
            if isinstance(piece, Media):
                frames = piece.load()
                pieces.append(frames[0] if len(frames) == 1 else frames)
            elif isinstance(piece, str) and pieces and isinstance(pieces[-1], str):
                pieces[-1] += piece  # an example's prompt and its answer are one text
            elif isinstance(piece, str):
                pieces.append(str(piece))
        prompts.append({'title': title, 'pieces': pieces, 'answer': answer['prediction'], 'truth': answer['answer']})
    return pictures.prompt_sheet(prompts)


# ---------------------------------------------------------------------------------------------
# Your own data


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


def file_media(path, n_frame=8):
    """A picture, animation or folder of frames on disk as Media."""
    return Media(os.path.abspath(path), partial(read_frames, path, n_frame))


def read_episodes(path, report):
    """The episodes of a .jsonl file, in order; None where a line cannot be used, which the report then names.

    {"support": [{"image": "a.png", "prompt": "Output:", "answer": "dax"}, …], "query": {"image": "q.png", "prompt": "Output:"},
    "answer": "dax", "choices": ["dax", "blicket"]}; paths are relative to the file, and without choices the answer is generated.
    """
    folder, episodes = os.path.dirname(os.path.abspath(path)), []

    def example(entry, answer):
        image = entry.get('image')
        media = None if image is None else file_media(os.path.join(folder, image))
        return Example(media, entry['prompt'], answer)

    before = report.total
    for number, _, line in read_lines(path, report):
        where = f'{path}:{number}'
        try:
            entry = parse_json(line, where)
            episode = Episode([example(e, e['answer']) for e in entry['support']], example(entry['query'], entry['answer']), entry.get('choices'))
            texts = [t for e in [*episode.support, episode.query] for t in (e.prompt, e.answer)] + (episode.choices or [])
            if not all(isinstance(t, str) for t in texts):
                raise TypeError('prompts, answers and choices must be text')
            if episode.choices is not None and episode.query.answer not in episode.choices:
                raise BadItem('choices lack the answer', where)
            episodes += [None] * (report.total - before) + [episode]  # those left out since the last good one
            before = report.total
        except BadItem as e:
            report.add(e)
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            report.add(BadItem('not an episode', where, f'lacks {e}' if isinstance(e, KeyError) else str(e)))
    return episodes + [None] * (report.total - before)


def readable(asker, episodes, path, report):
    """The episodes whose pictures can be read and that fit the context; the others become None and are reported."""
    out = []
    for number, episode in enumerate(episodes, 1):
        try:
            if episode is not None:
                prompt = encode(episode.document(), asker.tokenizer, n_token=asker.model.lm.n_context - 1)
                if episode.choices is not None:
                    asker.candidates(episode.choices, len(prompt.tokens), 'episode')
                for e in [*episode.support, episode.query]:  # last: a prompt that is too long may have any number of them
                    if e.media is not None:
                        asker.features.pixels(e.media)
            out.append(episode)
        except BadItem as e:
            report.add(BadItem(e.kind, f'{path}, episode {number}', e.where))
            out.append(None)
        except BadInput as e:
            report.add(BadItem('too long', f'{path}, episode {number}', str(e)))
            out.append(None)
    return out


def run_episodes(config, asker):
    """--episodes=FILE: accuracy with its interval, and one prediction a line."""
    report = Report()
    episodes = readable(asker, read_episodes(config.episodes, report), config.episodes, report)
    good = [e for e in episodes if e is not None]
    if not good:
        raise BadInput(f'{config.episodes}: no episode can be used: ' + '; '.join(report.lines() or ['the file is empty']))
    found = iter(asker.answer(good, 'episodes'))
    answers = [None if e is None else next(found) for e in episodes]
    if config.predictions:
        with checkpoint.whole_file(config.predictions, 'w', encoding='utf-8') as f:
            for a in answers:
                f.write(json.dumps(a if a is not None else {'prediction': None, 'answer': None, 'correct': False, 'logprob': None}) + '\n')
    ways = {len(e.choices) if e.choices is not None else None for e in good}
    right = sum(a['correct'] for a in answers if a is not None) / len(good)
    for line in report.lines():
        print('left out', line)
    return [row('naming', right, len(good), ways.pop() if len(ways) == 1 else None, None)]


def readable_pairs(pairs, pixels, report):
    """The Pairs whose pictures can be read; what cannot is in the report. Raises BadInput if there are none."""
    good = []
    for i, item in enumerate(pairs.items):
        try:
            pixels(pairs.media(i))
            good.append(item)
        except BadItem as e:
            report.add(e)
    if not good:
        raise BadInput(f'{pairs.name}: no picture can be read: ' + '; '.join(report.lines()))
    return Pairs(good, pairs.name, pairs.n_frame, pairs.n_variant, pairs.seed, pairs.flip, pairs.report)


def retrieval(pairs, contrastive, features, tokenizer, report):
    """Which caption belongs to which picture, both ways: R@k = the right one is among the first k -> rows."""
    pairs = readable_pairs(pairs, features.pixels, report)
    media = [pairs.media(i) for i in range(len(pairs))]
    v = embed_media(contrastive.vision, features, media)
    l = embed_texts(contrastive.text, tokenizer, [item.text for item in pairs.items])
    rows = []
    for way, similarity in (('i2t', v @ l.T), ('t2i', l @ v.T)):
        own = similarity.diagonal()[:, None]
        rank = ((similarity >= own).sum(1) - 1)                                        # ties count against us
        rows += [row('retrieval', (rank < k).float().mean().item(), len(media), metric=f'{way}_R@{k}') for k in (1, 5, 10)]
    return rows


def main():
    config = configure(KEYS, usage=__doc__)
    check_range(config, 1, 100_000, 'n')
    check_range(config, 1, 10_000, 'batch_size')
    check_range(config, 1, MOST_BEAMS, 'beam_size')
    check_range(config, 1, 1 << 40, 'max_new_tokens')
    check_range(config, 0, 2 ** 63 - 1, 'seed')
    asker, contrastive = load(os.path.join(config.out_dir, config.checkpoint), pick_device(config.device, meta=False), config.batch_size)
    asker.beam_size, asker.max_new_tokens = config.beam_size, config.max_new_tokens
    if config.episodes:
        rows = run_episodes(config, asker)
    elif config.retrieval:
        report = Report()
        pairs = open_folder(config.retrieval, asker.model.config.n_frame, split=config.split or None, report=report)
        rows = retrieval(pairs, contrastive, asker.features, asker.tokenizer, report)
        for line in report.lines():
            print('left out', line)
    else:
        rows, _ = first_table(asker, contrastive, config.n, config.seed)
        pictures.save(pictures.shots_chart(rows, 'Few-shot accuracy on the embedded world'), os.path.join(config.out_dir, 'evaluate.png'))
    with checkpoint.whole_file(os.path.join(config.out_dir, 'evaluate.json'), 'w', encoding='utf-8') as f:
        json.dump(rows, f, indent=1)
    print(table(rows))


if __name__ == '__main__':
    command(main)
