"""Every task of the drawn world over the number of shots: what evaluate.py asks unless told otherwise."""
import numpy as np
from tqdm import tqdm

from kit.files import BadInput, BadItem
from kit.tasks.encoders import zero_shot
from kit.tasks.episodes import episodes_of, frozen_episode, TASKS
from kit.tasks.naming import naming_ways
from kit.tasks.options import listed, numbers
from kit.tasks.results import check_lengths, row_of
from kit.tasks.tables import NAMING_SHOTS, SHOTS

# Frozen's naming protocol: (shots, repeats, is the task announced?), at 2 and 5 ways.
FROZEN = [(1, 0, False), (1, 0, True), (3, 0, True), (5, 0, True), (1, 1, True), (1, 3, True), (1, 5, True)]


def cells(config):
    """The table of the drawn world -> [(task, ways, shots)]"""
    plan = []
    for task in listed(config, 'tasks', TASKS):
        if task == 'naming':
            shots = [s for s in numbers(config, 'shots', NAMING_SHOTS) if s > 0]
            plan += [(task, ways, s) for ways in naming_ways(config) for s in shots]
        else:
            plan += [(task, None, s) for s in (numbers(config, 'shots', SHOTS) if task != 'action' else [0])]
    return plan


def run_suite(config, asker, contrastive, report):
    """Every task of the drawn world over the number of shots, and Frozen's naming protocol -> rows.
    What does not fit the context is left out, and reported."""
    rows = []
    if not config.tasks:
        rows.append(zero_shot(contrastive, asker.tokenizer, asker.features, 8 * config.n))

    def ask(task, ways, shots, wanted, change=None, label=None):
        seeds = range(config.seed, config.seed + config.seeds)
        episodes = [e for seed in seeds for e in
                    episodes_of(task, shots, config.n, ways, seed, text_examples=config.text_examples)]
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
                rows.append(row_of(metric, task, episodes, answers, ways, shots, label=label))
            except ValueError as e:  # one episode alone has no ROC curve
                raise BadInput(f'{task}: {e}; take more episodes (--n)') from e

    for task, ways, shots in tqdm(cells(config), desc='tasks × shots', leave=False):
        ask(task, ways, shots, TASKS[task][1])
    if 'naming' in listed(config, 'tasks', TASKS) and not (config.ways or config.shots):
        for ways in (2, 5):
            for shots, repeats, induction in FROZEN:
                label = 'written' + (f', {repeats} repeats' if repeats else '')
                label += '' if induction else ', no induction'
                ask('naming', ways, shots, ['accuracy'],
                    lambda e, rng: frozen_episode(e, rng, repeats, induction), label)
    return rows
