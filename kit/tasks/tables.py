"""Tables and pictures of results."""
from dataclasses import replace

from tqdm import tqdm

from data import Media
from kit.files import BadItem
from kit.show import lettering, sheets
from kit.sources.base import Report
from kit.tasks.encoders import further_rows, retrieval, zero_shot
from kit.tasks.episodes import can_ask
from kit.tasks.metrics import METRICS
from kit.tasks.results import measure


SHOTS, NAMING_SHOTS, NAMING_WAYS = (0, 4, 8, 16, 32), (1, 2, 4, 8), (2, 4)


def first_table(asker, contrastive, n=400, seed=1, pairs=None, all_ways=NAMING_WAYS, within=False,
                report=None):
    """The table that train.py ends with -> (rows, [(title, Document, answer)] to look at).

    contrastive: None where no text tower was trained, and there is nothing to say without a prompt. all_ways:
    of naming; within: as in `episodes_of`; report: is told of rows that are left out, as their prompts are
    longer than the context.
    """
    report = report or Report()
    plan = [('naming', ways, shots, None) for ways in all_ways for shots in (1, 2, 4) if ways * shots <= 20]
    plan += [('naming', ways, 1, 'blank_support') for ways in all_ways]
    if pairs is None:
        rows = [zero_shot(contrastive, asker.tokenizer, asker.features, 2 * n)] if contrastive else []
        plan += [(task, None, shots, None)
                 for task in ('caption', 'question', 'clip_caption') for shots in (0, 4, 8)]
    else:
        rows = []
        if contrastive:
            rows = retrieval(pairs, contrastive, asker.features, asker.tokenizer, report, most=10_000)
        plan += [('caption', None, shots, None) for shots in (0, 4, 8)]
    shown = []
    for task, ways, shots, control in tqdm(plan, desc='few-shot table', leave=False):
        grouped = within and task == 'naming'
        if not can_ask(pairs, ways, shots, grouped):
            continue
        try:
            result, episodes, answers = measure(asker, task, shots, n, ways, control, seed, pairs, grouped)
        except BadItem as e:
            report.add(e)
            continue
        rows.append(result)
        if pairs is not None and task == 'naming' and control is None:
            rows += further_rows(asker, episodes, ways, shots)
        if control is None and shots <= 4:
            title = task + (f', {ways}-way' if ways else '') + f', {counted(shots)}'
            shown.append((title, episodes[0].document(), answers[0]))
    return rows, shown


def counted(shots):
    return f'{shots} shot{"s" if shots != 1 else ""}'


def table(rows):
    """Rows of results as text: tasks down, shots across."""
    shots = sorted({r['shots'] for r in rows if r['shots'] is not None})
    lines = {}
    for r in rows:
        ways, control = f', {r["ways"]}-way' if r['ways'] else '', f', {r["control"]}' if r['control'] else ''
        metric = '' if r['metric'] == 'accuracy' else f', {r["metric"]}'
        lines.setdefault(r['task'] + ways + control + metric, {})[r['shots']] = cell(r)
    columns = [None, *shots] if any(r['shots'] is None for r in rows) else shots
    header = ['task', *('no prompt' if s is None else counted(s) for s in columns)]
    body = [[name, *[cells.get(s, '') for s in columns]] for name, cells in lines.items()]
    return lettering.text_table(body, header)


def cell(r):
    """A row's value with its interval, times 100 as papers print it: in percent, or without a sign."""
    sign = '%' if METRICS.get(r['metric'], METRICS['accuracy']).percent else ''
    return f'{100 * r["value"]:.1f}{sign} ({100 * r["low"]:.0f}{sign}–{100 * r["high"]:.0f}{sign})'


def tables(rows):
    """The table of the tasks, and apart from it those of naming: there, shots count the examples of each
    name."""
    parts = {'': [], 'naming: the likeliest of the names, examples of each': [],
             'naming after Frozen: the name is written, examples of each': []}
    for r in rows:
        list(parts.values())[(r['task'] == 'naming') + (r['metric'].startswith('written'))].append(r)
    return '\n\n'.join(f'{title}\n{table(part)}'.lstrip() for title, part in parts.items() if part)


def control_text(rows):
    """Rows of controls as text: controls down, episodes across, and what chance would give."""
    columns = list(dict.fromkeys((r['ways'], r['shots']) for r in rows))
    lines = {}
    for r in rows:
        name = (r['control'] or 'as they are').replace('_', ' ')
        name += ', the new name counts' if r['metric'] == 'follows' else ''
        lines.setdefault(name, {})[r['ways'], r['shots']] = cell(r)
    lines['chance'] = {(ways, shots): f'{1 / ways:.1%}' if ways else '' for ways, shots in columns}
    header = [(f'{ways}-way' if ways else 'your episodes') + (f', {shots}-shot' if shots else '')
              for ways, shots in columns]
    body = [[name, *[cells.get(c, '') for c in columns]] for name, cells in lines.items()]
    return lettering.text_table(body, ['control', *header])


def sheet(shown, columns=1, title=''):
    """[(name, Document, answer)] -> one picture with a title: prompts with their pictures, and what the model
    said."""
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
        prompts.append({'title': name, 'pieces': pieces, 'answer': answer['prediction'],
                        'truth': answer['answer']})
    return sheets.prompt_sheet(prompts, columns, title=title)


def confusions(wrong, most=9):
    """[(Episode, answer)] of naming, answered wrongly -> one picture: of each, the example of the right name,
    that of the name it said, and the query."""
    shown = []
    for e, answer in wrong[:most]:
        names = e.query.answer, answer['prediction']
        two = [next(s for s in e.support if s.answer == name) for name in names]
        shown.append(('', replace(e, support=two).document(), answer))
    return sheet(shown, 3, 'mistakes: the right one, what it said, the query')
