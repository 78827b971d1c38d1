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
from tqdm import tqdm

from kit.cli import check_range, command, configure
from kit.device import pick_device
from kit.files import BadInput, BadItem, one_line, whole_file
from kit.show import canvas, charts
from kit.sources.base import readable_pairs, Report
from kit.sources.folders import Classes
from kit.sources.forms import open_folder
from kit.tasks.asker import load, NANO
from kit.tasks.encoders import classify, further_rows, linear_probe, pool_media, retrieval, zero_shot
from kit.tasks.episodes import can_ask, episodes_of, folder_trials, frozen_episode, TASKS
from kit.tasks.files import episode_line, official_episodes, read_coco, read_episodes, read_vqa, usable
from kit.tasks.results import check_lengths, control_rows, row, value_of
from kit.tasks.tables import confusions, control_text, NAMING_SHOTS, NAMING_WAYS, SHOTS, tables
from kit.world.draw import HELD_PAIRS


KEYS = {
    'out_dir': ('out', 'folder with the flamingo.pt to evaluate; results go there too'),
    'checkpoint': ('flamingo.pt', 'file in out_dir; finetune.pt after fine-tuning. Without any, assets/nano.pt'),
    'device': ('auto', 'auto, cpu, cuda, mps'),
    'seed': (1, 'of the episodes'),
    'seeds': (3, 'so many seeds, from this one on'),
    'n': (100, 'episodes of each kind and seed; of a COCO or VQA file all, unless said'),
    'tasks': ('', f'some of {", ".join(TASKS)}; empty for all'),
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

MOST_BEAMS = 64      # of generation: each takes the memory of a prompt
MOST_NAMES = 100     # of one episode that are made up: there are a few hundred


def full_table(asker, contrastive, config, report):
    """Every task of the embedded world over the number of shots, and Frozen's naming protocol -> rows."""
    names = listed(config, 'tasks', list(TASKS))
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
        ask(task, ways, shots, TASKS[task][1])
    if 'naming' in names and not (config.ways or config.shots):  # Frozen: 2- and 5-way, inner shots 1, 3, 5, repeats 0, 1, 3, 5
        for ways in (2, 5):
            for shots, repeats, induction in [(1, 0, False), (1, 0, True), (3, 0, True), (5, 0, True), (1, 1, True), (1, 3, True), (1, 5, True)]:
                label = 'written' + (f', {repeats} repeats' if repeats else '') + ('' if induction else ', no induction')
                ask('naming', ways, shots, ['accuracy'], lambda e, rng: frozen_episode(e, rng, repeats, induction), label)
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


def usable_or_fail(asker, episodes, report, where):
    """The episodes that can be asked, None in the places of the others. Raises BadInput where none can."""
    kept = usable(episodes, asker.check, report)
    if all(e is None for e in kept):
        raise none_usable(where, report)
    return kept


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
    return numbers(config, 'ways', NAMING_WAYS, 2, MOST_NAMES if config.folder else len(HELD_PAIRS))


def templates(config):
    """--templates -> [str]. Raises BadInput."""
    found = config.templates.split('|')
    if not all('{}' in t for t in found):
        raise BadInput(f'--templates={config.templates}: each must hold {{}}, the place of the name')
    return found


def write_predictions(path, lines=None, whole=None):
    """lines: one JSON object a line; whole: one JSON document."""
    with whole_file(path, 'w', encoding='utf-8') as f:
        if whole is not None:
            json.dump(whole, f)
        for line in lines or []:
            f.write(json.dumps(line) + '\n')


def run_episodes(config, asker):
    """--episodes=FILE: accuracy with its interval, and one prediction a line -> rows."""
    report = Report()
    episodes = usable_or_fail(asker, read_episodes(config.episodes, report), report, config.episodes)
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
                for e in folder_trials(np.random.default_rng([config.seed + s, ways]), pairs, ways, config.n)]
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
            kept = usable(naming_episodes(config, ways, shots, pairs), asker.check, report)
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
        canvas.save(confusions(wrong[max(wrong)]), os.path.join(config.out_dir, 'confusions.png'))
    tell(report)
    return rows


def write_episodes(config, asker):
    """--write_episodes=FILE: the episodes of a folder, for --episodes."""
    report, lines = Report(), []
    pairs = open_classes(config, asker, report)
    for ways in possible_ways(config, pairs, report):
        for shots in numbers(config, 'shots', (1,), 1):
            lines += [episode_line(e, os.path.dirname(os.path.abspath(config.write_episodes))) for e in naming_episodes(config, ways, shots, pairs)]
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
        file, task, metric, items = config.coco_annotations, 'caption', 'cider', read_coco(config.coco_annotations, config.images, report)
    else:
        file, task, metric = config.vqa_questions, 'question', 'vqa_accuracy'
        items = read_vqa(config.vqa_questions, config.vqa_annotations, config.images, report)
    for count in shots:
        asked = official_episodes(items, count, config.n if 'n' in config.given else 0, config.seed, asker.features.pixels, config.text_examples)
        episodes = usable_or_fail(asker, [e for _, e in asked], report, file)
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
    listed(config, 'tasks', list(TASKS)), naming_ways(config), numbers(config, 'shots', SHOTS), templates(config)
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
    drawn = [r for r in rows if r['metric'] == TASKS.get(r['task'], ('', (r['metric'],)))[1][0]]  # one metric a task
    canvas.save(charts.shots_chart(drawn or rows, 'Few-shot learning'), os.path.join(config.out_dir, 'evaluate.png'))
    with whole_file(os.path.join(config.out_dir, 'evaluate.json'), 'w', encoding='utf-8') as f:
        json.dump(rows, f, indent=1)
    print(control_text(rows) if config.controls else tables(rows))


if __name__ == '__main__':
    command(main)
