"""From answers to numbers: rows of results and their intervals."""
import numpy as np
import torch

from kit.files import BadInput, BadItem
from kit.tasks import metrics
from kit.tasks.controls import CONTROLS, taught
from kit.tasks.episodes import episodes_of, TASKS
from kit.tasks.metrics import interval


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
    metric = TASKS[task][1][0]
    value, bounds = value_of(metric, episodes, answers)
    return row(task, value, n, ways, shots, control, metric, bounds), episodes, answers


def spoil(control, episodes, seed=0):
    rng = np.random.default_rng([seed, *control.encode()])
    return [CONTROLS[control](e, rng) for e in episodes]


def control_rows(asker, task, episodes, ways, shots):
    """The rows of every control, and of the episodes as they are, for comparison."""
    rows = [row(task, value_of('accuracy', episodes, asker.answer(episodes))[0], len(episodes), ways, shots)]
    for control in CONTROLS:
        spoiled = spoil(control, episodes)
        answers = asker.answer(spoiled)
        rows.append(row(task, value_of('accuracy', spoiled, answers)[0], len(episodes), ways, shots, control))
        if control == 'shuffle_answers':  # against the names that the prompt teaches now
            follows = [a['prediction'] == taught(e, s) for e, s, a in zip(episodes, spoiled, answers)]
            rows.append(row(task, sum(follows) / len(follows), len(follows), ways, shots, control, 'follows'))
    return rows
