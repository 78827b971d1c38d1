"""Table 2 in miniature: a new task with a few examples. In the prompt, or trained on, and how much of the
model?

Two tasks whose form no stage has trained (kit/world/tasks.py): is a written statement true of its picture,
and the last question of a dialogue. To train on, examples are a folder of pictures like any other, given to
`train.py --stage=finetune --adapt=WAY --align=FOLDER`; asked, the trained model sees no example. In a prompt
stand as many as fit.
"""
import json
import os
from collections import defaultdict

import numpy as np

from kit.files import BadItem
from kit.show.charts import line_chart
from kit.show.lettering import text_table
from kit.tasks.episodes import TASKS
from kit.tasks.results import measure

FITTING = (32, 24, 16, 8)  # shots to try where all examples do not fit the context
NOTHING = {'adapt': 'bitfit', 'finetune_iters': 1, 'finetune_lr': 0.0}  # prompting trains nothing


def keys(row, folder, seed):
    """The keys of train.py that a row of rows.TUNING sets. Its examples are written to `folder`."""
    task, way, n = row.tuned
    examples = write(task, n, os.path.join(folder, 'examples'), seed)
    data = {'align': examples, 'ltip': '', 'vtp': '', 'm3w': '', 'lambda_align': 1.0}
    return data | {'batch_align': min(n, 16)} | (NOTHING if way == 'prompting' else {'adapt': way})


def write(task, n, folder, seed):
    """n examples of a task as a folder with metadata.jsonl -> its path"""
    os.makedirs(folder, exist_ok=True)
    lines = []
    for i in range(n):
        example = TASKS[task][0](np.random.default_rng([5, seed, i]), 'train', 0).query
        example.media.load()[0].save(os.path.join(folder, f'{i}.png'))
        lines.append(json.dumps({'file_name': f'{i}.png', 'prompt': example.prompt, 'text': example.answer}))
    with open(os.path.join(folder, 'metadata.jsonl'), 'w', encoding='utf-8') as f:
        f.write('\n'.join(lines))
    return folder


def ask(asker, row, n):
    """-> the row of the task: without examples; of prompting with as many as fit"""
    task, way, examples = row.tuned
    for shots in [examples, *(s for s in FITTING if s < examples)] if way == 'prompting' else [0]:
        try:
            return [measure(asker, task, shots, n, seed=1)[0]]
        except BadItem:  # longer than the context
            continue
    return []


def means(found):
    """-> {way: {examples: mean over tasks and seeds}}, {way: (trained parameters, seconds)}"""
    values, cost = defaultdict(lambda: defaultdict(list)), defaultdict(list)
    for r in found:
        _, way, n = r['row'].rsplit('_', 2)
        values[way][int(n)].append(r['value'])
        cost[way].append((r['parameters'], r['step_time'] * r['steps']))
    return ({way: {n: float(np.mean(v)) for n, v in sorted(by.items())} for way, by in values.items()},
            {way: tuple(np.mean(c, axis=0)) for way, c in cost.items()})


def label(way, cost):
    return way if way == 'prompting' else f'{way}, {cost[0] / 1e3:.1f} k, {cost[1]:.0f} s'


def chart(found):
    values, cost = means(found)
    at = {n: k for k, n in enumerate(sorted({n for by in values.values() for n in by}))}
    series = {label(way, cost[way]): ([at[n] for n in by], list(by.values())) for way, by in values.items()}
    return line_chart(series, 'New tasks from few examples: trained parameters, seconds', 'examples',
                      'mean of two tasks', (720, 420), percent=True, x_ticks=[(k, n) for n, k in at.items()])


def table(found):
    values, cost = means(found)
    sizes = sorted({n for by in values.values() for n in by})
    body = [[label(way, cost[way]), *(f'{100 * by[n]:.1f}' if n in by else '' for n in sizes)]
            for way, by in values.items()]
    return text_table(body, ['way', *(f'{n} examples' for n in sizes)])
