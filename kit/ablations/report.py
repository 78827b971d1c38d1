"""The table and the chart of an ablation: the paper's change of the score beside ours."""
import math
from collections import defaultdict

import numpy as np

from kit.show import changes
from kit.show.lettering import text_table

# Half the width of a 95 % interval over n seeds is T[n - 1] standard errors (Student's t, 0.975).
T = (math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def score_task(row):
    return 'zero_shot' if row.stage == 'vision' else 'overall'


def summary(found, rows):
    """Rows of results, [Row] -> of each Row that was measured a dict: 'row', 'table', 'says', 'paper' (the
    change there; None where it has none), 'score', 'change', 'low', 'high' (from the row that it is
    compared with; in points, all of them), 'seeds', 'parameters', 'step_time' and 'tasks' {task: mean}.

    Of several seeds the interval is Student's, over the differences seed by seed; with one alone,
    that of the episodes: what another seed would change is then unknown.
    """
    cells = defaultdict(dict)  # (row, task) -> {seed: result}
    for result in found:
        cells[result['row'], result['task']][result['seed']] = result
    out = []
    for row in rows:
        mine = cells.get((row.name, score_task(row)), {})
        base, base_score = row.base
        theirs = cells.get((base, score_task(row)), {})
        seeds = sorted(set(mine) & set(theirs))
        if not mine:
            continue
        entry = {'row': row.name, 'table': row.table, 'says': row.says, 'seeds': len(mine),
                 'paper': None if row.paper is None else row.paper - base_score,
                 'score': 100 * mean(mine), 'change': None, 'low': None, 'high': None,
                 'parameters': next(iter(mine.values()))['parameters'],
                 'step_time': np.mean([r['step_time'] for r in mine.values()]),
                 'tasks': {task: 100 * mean(of_row) for (name, task), of_row in cells.items()
                           if name == row.name and task != 'overall'}}
        if row.name == base:
            entry |= interval([100 * r['value'] for r in mine.values()], mine.values(), entry['score'])
            entry['change'] = 0.0
        elif seeds:
            each = [100 * (mine[seed]['value'] - theirs[seed]['value']) for seed in seeds]
            entry['change'] = float(np.mean(each))
            entry |= interval(each, [cells_of[seed] for cells_of in (mine, theirs) for seed in seeds])
        out.append(entry)
    return out


def mean(results):
    return float(np.mean([r['value'] for r in results.values()]))


def interval(each, results, centre=0.0):
    """each: a number a seed; results: what they come from -> {'low', 'high'} around their mean, less
    `centre`."""
    middle = float(np.mean(each)) - centre
    if len(each) > 1:
        half = T[min(len(each), len(T)) - 1] * np.std(each, ddof=1) / math.sqrt(len(each))
    else:
        half = 196 * math.sqrt(sum(r['value'] * (1 - r['value']) / r['n'] for r in results))
    return {'low': middle - half, 'high': middle + half}


def table(entries):
    """The summary as text, with how many rows agree in sign with the paper."""
    if not entries:
        return 'no cell has been measured yet'
    tasks = list(dict.fromkeys(task for e in entries for task in e['tasks']))
    signed = lambda x: '' if x is None else f'{x:+.1f}'
    body = [[e['row'], e['table'], signed(e['paper']), signed(e['change']),
             '' if e['low'] is None else f'{e["low"]:+.1f} to {e["high"]:+.1f}',
             f'{e["score"]:.1f}', e['seeds'],
             *(f'{e["tasks"][t]:.0f}' if t in e['tasks'] else '' for t in tasks),
             f'{e["parameters"] / 1e6:.2f} M', f'{e["step_time"]:.2f}'] for e in entries]
    header = ['row', 'table', 'paper', 'ours', '95 %', 'score', 'seeds', *tasks, 'parameters', 's a step']
    return f'{text_table(body, header)}\n{agreement(entries)}'


def agreement(entries):
    """How many rows go the paper's way."""
    both = [e for e in entries if e['paper'] and e['change'] is not None]
    same = [e for e in both if e['paper'] * e['change'] > 0]
    large = [e for e in both if abs(e['paper']) >= 4]
    clear = [e for e in large if e['low'] > 0 or e['high'] < 0]
    return (f'{len(same)} of {len(both)} rows change the score in the direction of the paper; of those where '
            f'its change is at least 4 points, {sum(e in same for e in large)} of {len(large)}, and of these '
            f'where ours is outside its own noise, {sum(e in same for e in clear)} of {len(clear)}')


def chart(entries):
    shown = [(e['row'], e['paper'], e['change'], e['low'], e['high']) for e in entries]
    return changes.changes_chart(shown, 'Change of the overall score, in points')
