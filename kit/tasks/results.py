"""From answers to numbers: rows of results and their intervals.

A row is {"task", "ways", "shots", "control", "metric", "value", "low", "high", "n"}; low and high bound the
95 % interval, n counts the episodes.
"""
import sys

import numpy as np

from kit.files import BadInput, BadItem
from kit.tasks.controls import CONTROLS, taught
from kit.tasks.episodes import episodes_of, TASKS
from kit.tasks.metrics import bootstrap, interval, METRICS


def row(task, value, n, ways=None, shots=None, control=None, metric='accuracy', bounds=None):
    """bounds: the 95 % interval of what is no proportion."""
    low, high = bounds or interval(value, n)
    return {'task': task, 'ways': ways, 'shots': shots, 'control': control, 'metric': metric, 'value': value,
            'low': low, 'high': high, 'n': n}


def value_of(metric, episodes, answers):
    """metric: a key of METRICS -> (value, its interval; None for that of a proportion). Raises ValueError
    where it is not defined on these episodes."""
    metric = METRICS[metric]
    each = np.asarray(metric.each(episodes, answers), dtype=np.float64)
    bounds = None
    if not metric.proportion:
        bounds = bootstrap(lambda k: metric.whole(each[k]), len(each), metric.times)
    return float(metric.whole(each)), bounds


def row_of(metric, task, episodes, answers, ways=None, shots=None, control=None, label=None):
    """The row of a metric. label: what the row calls it, where that is not its name."""
    value, bounds = value_of(metric, episodes, answers)
    return row(task, value, len(episodes), ways, shots, control, label or metric, bounds)


def warn_few(metric, episodes):
    """A line where VQA accuracy cannot reach 100 %: it counts an answer as right that three other people
    gave."""
    few = sum(len(e.people) < 4 for e in episodes) if metric == 'vqa_accuracy' else 0
    if few:
        print(f'warning: {few} of {len(episodes)} questions have fewer than four human answers: VQA accuracy '
              'leaves one out and wants three that agree, so it cannot reach 100 %', file=sys.stderr)


def check_lengths(asker, episodes, task, shots, ways=None):
    """Raises BadItem where one of them does not fit the context. All or nothing: those that happen to fit are
    not like the others. All processes find out before any of them begins to answer."""
    try:
        for e in episodes:
            asker.check_length(e)
    except BadInput as e:
        cell = f'{task}, ' + (f'{ways}-way, ' if ways else '') + f'{shots} shots'
        raise BadItem('longer than the context', cell, str(e)) from e


def measure(asker, task, shots, n, ways=None, control=None, seed=0, pairs=None, within=False):
    """-> (row of the task's first metric, episodes, answers). Raises BadItem where one is longer than the
    context."""
    episodes = episodes_of(task, shots, n, ways, seed, pairs, within=within)
    if control:
        episodes = spoil(control, episodes, seed)
    check_lengths(asker, episodes, task, shots, ways)
    answers = asker.answer(episodes)
    return row_of(TASKS[task][1][0], task, episodes, answers, ways, shots, control), episodes, answers


def spoil(control, episodes, seed=0):
    """The episodes under a control (kit.tasks.controls), always the same way."""
    rng = np.random.default_rng([seed, *control.encode()])
    return [CONTROLS[control](e, rng) for e in episodes]


def control_rows(asker, task, episodes, ways, shots):
    """The rows of every control, and of the episodes as they are, for comparison."""
    rows = [row_of('accuracy', task, episodes, asker.answer(episodes), ways, shots)]
    for control in CONTROLS:
        spoiled = spoil(control, episodes)
        answers = asker.answer(spoiled)
        rows.append(row_of('accuracy', task, spoiled, answers, ways, shots, control))
        if control == 'shuffle_answers':  # against the names that the prompt teaches now
            follows = [a['prediction'] == taught(e, s) for e, s, a in zip(episodes, spoiled, answers)]
            rows.append(row(task, sum(follows) / len(follows), len(follows), ways, shots, control, 'follows'))
    return rows
