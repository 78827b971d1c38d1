"""Made-up names for the classes of a folder, or for the things of the drawn world; and the controls.

    python evaluate.py --folder=my_classes --ways=5 --shots=1
    python evaluate.py --controls=True
"""
import os
from dataclasses import replace

import numpy as np

from kit.files import BadInput, BadItem
from kit.show import canvas
from kit.tasks.encoders import further_rows
from kit.tasks.episodes import can_ask, episodes_of, folder_trials
from kit.tasks.files import episode_line, none_usable, usable, write_lines
from kit.tasks.options import numbers
from kit.tasks.results import control_rows, row_of
from kit.tasks.tables import confusions, NAMING_SHOTS, NAMING_WAYS
from kit.world.draw import HELD_PAIRS


MOST_NAMES = 100  # of one episode that are made up: there are a few hundred


def naming_ways(config):
    """--ways -> [int]. Raises BadInput."""
    return numbers(config, 'ways', NAMING_WAYS, 2, MOST_NAMES if config.folder else len(HELD_PAIRS))


def open_classes(config, asker, report):
    """--folder=DIR -> Pairs; for the drawn world None"""
    if not config.folder:
        return None
    return asker.pairs(config.folder, report, config.split, images=config.images,
                       class_depth=config.class_depth, held_groups=config.held_groups)


def naming_episodes(config, ways, shots, pairs):
    """n episodes of each seed, of a folder (Pairs) or, with None, of the drawn world"""
    episodes = []
    for seed in range(config.seed, config.seed + config.seeds):
        if config.trials and pairs is not None:
            trials = folder_trials(np.random.default_rng([seed, ways]), pairs, ways, config.n)
            episodes += [replace(e, where=f'{e.where}, seed {seed}') for e in trials]
        else:
            episodes += episodes_of('naming', shots, config.n, ways, seed, pairs, within=config.within_group)
    return episodes


def possible_ways(config, pairs, report):
    """--ways -> [int]; where nothing is said, those of the usual ones that there are things enough for."""
    for ways in naming_ways(config):
        if config.ways or can_ask(pairs, ways, 1, config.within_group or config.trials):
            yield ways
        else:
            report.add(BadItem('too few kinds of things', f'{ways}-way'))


def naming_cells(config, asker, pairs, report, all_shots):
    """(ways, shots, the episodes that can be asked) of every cell of a table; a cell that has none is left
    out and reported. Raises BadInput where no cell has any, or where --ways asks for more names than there
    are things."""
    found = False
    for ways in possible_ways(config, pairs, report):
        for shots in numbers(config, 'shots', all_shots, 1):
            kept = usable(naming_episodes(config, ways, shots, pairs), asker.check, report)
            if good := [e for e in kept if e is not None]:
                found = True
                yield ways, shots, good
    if not found:
        raise none_usable(config.folder or 'naming', report)


def run_folder(config, asker, contrastive, report):
    """--folder=DIR: new names for its classes -> rows; and confusions.png, of those with the most names"""
    if config.write_episodes:
        return write_episodes(config, asker, report)
    rows, wrong = [], {}
    pairs = open_classes(config, asker, report)
    all_shots = (1,) if config.trials else NAMING_SHOTS
    for ways, shots, good in naming_cells(config, asker, pairs, report, all_shots):
        answers = asker.answer(good, f'{ways}-way {shots}-shot')
        rows.append(row_of('accuracy', 'naming', good, answers, ways, shots))
        rows += further_rows(asker, good, ways, shots, config.written)
        wrong[ways] = [(e, answer) for e, answer in zip(good, answers) if not answer['correct']]
    wrong = {ways: mistakes for ways, mistakes in wrong.items() if mistakes}
    if wrong:
        canvas.save(confusions(wrong[max(wrong)]), os.path.join(config.out_dir, 'confusions.png'))
    return rows


def write_episodes(config, asker, report):
    """--write_episodes=FILE: the episodes of a folder, for --episodes. Nothing is asked: no rows."""
    lines, folder = [], os.path.dirname(os.path.abspath(config.write_episodes))
    pairs = open_classes(config, asker, report)
    for ways in possible_ways(config, pairs, report):
        for shots in numbers(config, 'shots', (1,), 1):
            lines += [episode_line(e, folder) for e in naming_episodes(config, ways, shots, pairs)]
    if not lines:
        raise BadInput(f'{config.folder}: no episodes: ' + '; '.join(report.lines()))
    write_lines(config.write_episodes, lines)
    print(f'{config.write_episodes}: {len(lines)} episodes')
    return []


def run_controls(config, asker, contrastive, report):
    """--controls=True: the naming episodes of the drawn world, or of a folder, under every control ->
    rows."""
    rows, pairs = [], open_classes(config, asker, report)
    for ways, shots, good in naming_cells(config, asker, pairs, report, (1,)):
        rows += control_rows(asker, 'naming', good, ways, shots)
    return rows
