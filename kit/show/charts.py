"""Charts: training curves, gates, accuracy over shots."""
import math
import re

import numpy as np

from kit.show.canvas import Canvas, grid, note, with_title
from kit.show.lettering import GREY, one_line, PALE, PALETTE, shorten, text_width, WHITE


# ---------------------------------------------------------------------------------------------
# Charts


def floats(values):
    """An array in which None is NaN, and which no difference or quotient can push out of float64."""
    array = np.array([np.nan if v is None else v for v in values], dtype=np.float64)
    array[np.isinf(array)] = np.nan
    array[np.abs(array) < 1e-290] = 0
    return np.clip(array, -1e300, 1e300)


def value_range(values, log=False):
    """Lowest and highest value to show, with a little air."""
    values = values[np.isfinite(values) & ((values > 0) | (not log))]
    if len(values) == 0:
        return (1.0, 10.0) if log else (0.0, 1.0)
    low, high = values.min(), values.max()
    if log:
        return (low / 1.2, high * 1.2) if high > 1.01 * low else (low / 2, high * 2)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        air = abs(high) / 10 or 1.0
    else:
        air = 0.04 * (high - low)
    return (0.0 if 0 <= low < high / 2 else low - air), high + air  # from zero, if that costs little room


def round_ticks(low, high, count):
    """About `count` numbers from low to high, apart by 1, 2 or 5 times a power of ten."""
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= 0.999 * rough)
    return [k * step for k in range(math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6) + 1)]


def log_ticks(low, high, count):
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in (1,), (1, 2, 5):
        ticks = [m * 10.0 ** p for p in powers for m in factors if low <= m * 10.0 ** p <= high]
        if len(ticks) >= 3:
            return ticks[::math.ceil(len(ticks) / (2 * count))]
    return [tick for tick in round_ticks(low, high, count) if tick > 0]


def short_number(value, digits):
    """Scientific notation as people write it: 2e8, not 2e+08."""
    mantissa, exponent = f'{value:.{digits}e}'.split('e')
    mantissa = mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa
    return f'{mantissa}e{int(exponent)}' if value else '0'


def tick_labels(ticks, log=False, percent=False):
    if percent:
        return [label + '%' for label in tick_labels([100 * tick for tick in ticks], log)]
    if log:
        return [f'{t:g}' if 1e-3 <= t < 1e5 else short_number(t, 0) for t in ticks]
    biggest = max(map(abs, ticks), default=0) or 1
    step = min(np.diff(ticks), default=0) or biggest
    places = -math.floor(math.log10(step) + 1e-9)  # decimals that tell neighbouring ticks apart
    if biggest >= 1e7 or step < 1e-5:
        return [short_number(t, max(0, math.floor(math.log10(biggest)) + places)) for t in ticks]
    if biggest >= 1e4 and step >= 100:
        return [f'{t / 1000:g}k' if t else '0' for t in ticks]
    return [f'{t:.{max(0, places)}f}' for t in ticks]


def finite_runs(good):
    """Index ranges (start, end) of the unbroken stretches in a list of truths."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], good.astype(int), [0]])))
    return list(zip(edges[::2], edges[1::2]))


def dashes(points, on=5, off=4):
    """A line of points cut into strokes of length `on`, `off` apart."""
    x, y = np.array(points, dtype=float).T
    length = np.concatenate([[0], np.cumsum(np.hypot(np.diff(x), np.diff(y)))])
    for start in np.arange(0, length[-1], on + off):
        along = np.linspace(start, min(start + on, length[-1]), 4)
        yield list(zip(np.interp(along, length, x), np.interp(along, length, y)))


def spread_labels(wanted, low, high, gap):
    """Heights near the wanted ones (in rising order), at least `gap` apart, within low..high if they fit."""
    heights = []
    for y in wanted:
        heights.append(max(y, heights[-1] + gap if heights else low))
    limit = high
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], limit)
        limit = heights[i] - gap
    return heights


class Axis:
    """Values from low to high, shown from the pixel `start` to the pixel `end`."""

    def __init__(self, low, high, start, end, log=False):
        self.low, self.high, self.start, self.end, self.log = low, high, start, end, log

    def __call__(self, values):
        """-> where values stand, NaN where they have no place; at most 1000 pixels outside"""
        low, high = self.low, self.high
        if self.log:
            with np.errstate(divide='ignore', invalid='ignore'):  # no logarithm: a gap
                values = np.where(np.asarray(values) > 0, np.log(values), np.nan)
            low, high = np.log(low), np.log(high)
        places = self.start + (values - low) / (high - low) * (self.end - self.start)
        return np.clip(places, min(self.start, self.end) - 1000, max(self.start, self.end) + 1000)


def shown_x(xs, x_ticks):
    """The lowest and the highest x of a chart"""
    low, high = (xs.min(), xs.max()) if len(xs) else (0.0, 1.0)
    if x_ticks is not None:
        return low - 0.2, high + 0.2
    if 0 < low < high / 20:
        return 0.0, high  # a log that starts at iteration 10 reads better from 0
    return value_range(xs) if high - low <= 1e-9 * max(abs(low), abs(high)) else (low, high)


def shown_y(ys, y_range, log_y, percent):
    """The lowest and the highest y of a chart"""
    if y_range is not None and y_range[0] < y_range[1] and not (log_y and y_range[0] <= 0):
        return y_range
    if percent and not log_y:
        return min(0.0, np.nanmin(ys, initial=0)), max(1.0, np.nanmax(ys, initial=1))
    return value_range(ys, log_y)


def number_ticks(x_low, x_high, xs, width):
    """[(x, label)] for an axis of `width` pixels"""
    ticks = round_ticks(x_low, x_high, max(2, width // 75))
    if len(xs) and (xs == np.round(xs)).all():  # there is no iteration 2.5
        ticks = [x for x in ticks if abs(x - round(x)) < 1e-6 * max(1, abs(x))] or [xs[0]]
    return list(zip(ticks, tick_labels(ticks)))


def draw_band(canvas, xs, lows, highs, color):
    """The area between lows and highs, in places on the canvas"""
    n = min(len(xs), len(lows), len(highs))
    for a, b in finite_runs(np.isfinite(xs[:n] + lows[:n] + highs[:n])):
        outline = list(zip(xs[a:b], lows[a:b])) + list(zip(xs[a:b], highs[a:b]))[::-1]
        if b - a > 1:
            canvas.area(outline, color + '30')
        else:  # one point has no area: an upright stroke
            canvas.line(outline, color + '60', 3)


def draw_series(canvas, xs, ys, color, dashed):
    """A line with its gaps, in places on the canvas -> the height where it ends, None if it is all gap"""
    n = min(len(xs), len(ys))
    xs, ys = xs[:n], ys[:n]
    good = np.isfinite(xs + ys)
    for a, b in finite_runs(good):
        points = list(zip(xs[a:b], ys[a:b]))
        for stroke in dashes(points) if dashed else [points]:
            canvas.line(stroke, color, 1.3 if dashed else 1.8)
        if b - a == 1 or (good.sum() <= 12 and not dashed):
            for x, y in points:
                canvas.dot(x, y, color, 3)
    return ys[good][-1] if good.any() else None


class Plot:
    """An empty chart: axes and margins, which are as wide as what has to stand in them.

    xs, y_low, y_high: what is to be shown; labels: what will stand in the right margin
    """

    def __init__(self, size, xs, x_ticks, y_low, y_high, log_y, percent, labels, x_label, y_label):
        self.width, self.height = max(size[0], 240), max(size[1], 160)
        self.y_ticks = (log_ticks if log_y else round_ticks)(y_low, y_high, max(2, (self.height - 90) // 40))
        self.y_names = tick_labels(self.y_ticks, log_y, percent)
        self.label_width = min(max(map(text_width, labels), default=0), 0.34 * self.width)
        self.left = 18 + max(map(text_width, self.y_names), default=0)
        self.right = self.width - 24 - self.label_width
        self.top, self.bottom = 46 + 18 * bool(y_label), self.height - 28 - 18 * bool(x_label)
        x_low, x_high = shown_x(xs, x_ticks)
        self.x_ticks = number_ticks(x_low, x_high, xs, self.right - self.left) if x_ticks is None else x_ticks
        self.at_x = Axis(x_low, x_high, self.left, self.right)
        self.at_y = Axis(y_low, y_high, self.bottom, self.top, log_y)
        self.canvas = Canvas(self.width, self.height, scale=3)

    def grid(self):
        for y in self.at_y(np.array(self.y_ticks)):
            self.canvas.box(self.left, y, self.right - self.left, 1, PALE)
        self.canvas.box(self.left, self.bottom, self.right - self.left, 1, GREY)

    def level(self, y):
        """A broken line across the chart"""
        for x in range(round(self.left), round(self.right), 9):
            self.canvas.box(x, y, min(5, self.right - x), 1, GREY)

    def clear_margins(self):
        """A given y_range may have let lines run out of the chart."""
        self.canvas.box(0, 0, self.width, self.top - 4, WHITE)
        self.canvas.box(0, self.bottom + 4, self.width, self.height, WHITE)
        self.canvas.box(0, 0, self.left - 4, self.height, WHITE)
        self.canvas.box(self.right + 4, 0, self.width, self.height, WHITE)

    def words(self, title, x_label, y_label, empty):
        """Everything but the names of the lines"""
        canvas, middle = self.canvas, (self.left + self.right) / 2
        for y, label in zip(self.at_y(np.array(self.y_ticks)), self.y_names):
            canvas.text(self.left - 6, y, label, GREY, anchor='rm')
        for x, label in self.x_ticks:
            canvas.box(self.at_x(x), self.bottom, 1, 4, GREY)
            canvas.text(self.at_x(x), self.bottom + 7, one_line(label), GREY, anchor='ma')
        canvas.text(14, 12, shorten(title, self.width - 40, 15), size=15, bold=True)
        canvas.text(14, 35, shorten(y_label, self.width - 28), GREY)
        canvas.text(middle, self.height - 18, shorten(x_label, self.right - self.left), GREY, anchor='ma')
        if empty:
            canvas.text(middle, (self.top + self.bottom) / 2, 'no data', GREY, anchor='mm')

    def names(self, ends):
        """Names in the right margin, beside the ends of their lines. ends: [(height, name, colour)]"""
        top, bottom, right = self.top, self.bottom, self.right
        ends = sorted(ends, key=lambda end: end[0])
        ends = ends[::math.ceil(len(ends) * 14 / (bottom - top + 14)) or 1]  # too many: every second, …
        ends = [(min(max(y, top), bottom), name, color) for y, name, color in ends]
        heights = spread_labels([y for y, _, _ in ends], top, bottom, 14)
        for (y, name, color), label_y in zip(ends, heights):
            self.canvas.line([(right + 5, y), (right + 11, label_y)], color, 1)
            self.canvas.text(right + 14, label_y, shorten(name, self.label_width + 1), color, anchor='lm')


def line_chart(series, title, x_label='', y_label='', size=(560, 360), y_range=None, log_y=False,
               percent=False, chance=None, bands=None, colors=None, dashed=(), x_ticks=None):
    """Lines with their names beside their ends, where no line can run through them.

    series   name -> (xs, ys); None and NaN are gaps
    bands    name -> (lows, highs): an area around the line of that name
    chance   a level, or several, drawn as broken lines
    colors   name -> '#RRGGBB', where the order of the palette will not do
    dashed   names drawn broken and without a label of their own
    x_ticks  [(x, label)], where x stands for something else than a number
    """
    lines = {name: (floats(xs), floats(ys)) for name, (xs, ys) in series.items()}
    bands = {name: tuple(map(floats, band)) for name, band in (bands or {}).items() if name in lines}
    levels = floats([] if chance is None else np.atleast_1d(chance))
    colors = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(lines)} | (colors or {})
    all_x = np.concatenate([xs[np.isfinite(xs)] for xs, _ in lines.values()] or [[]])
    edges = [edge for band in bands.values() for edge in band]
    all_y = np.concatenate([levels, *(ys for _, ys in lines.values()), *edges])
    labels = [one_line(name) for name in lines if name not in dashed] + ['chance'] * len(levels)
    y_low, y_high = shown_y(all_y, y_range, log_y, percent)
    plot = Plot(size, all_x, x_ticks, y_low, y_high, log_y, percent, labels, x_label, y_label)

    # From the back to the front: grid, bands, chance, lines, words.
    plot.grid()
    for name, (lows, highs) in bands.items():
        xs = plot.at_x(lines[name][0])
        draw_band(plot.canvas, xs, plot.at_y(lows), plot.at_y(highs), colors[name])
    ends = [(y, 'chance', GREY) for y in plot.at_y(levels) if np.isfinite(y)]  # of names in the margin
    for y, _, _ in ends:
        plot.level(y)
    empty = True
    for name, (xs, ys) in lines.items():
        end = draw_series(plot.canvas, plot.at_x(xs), plot.at_y(ys), colors[name], name in dashed)
        empty = empty and end is None
        if end is not None and str(name) and name not in dashed:
            ends.append((end, name, colors[name]))
    plot.clear_margins()
    plot.words(title, x_label, y_label, empty)
    plot.names(ends)
    return plot.canvas.done()


# ---------------------------------------------------------------------------------------------
# What train.py saves as curves.png


def column(rows, name):
    """(xs, ys) of one column of the log. Blanks are left out: rare evaluations still join to a line."""
    points = {}
    for row in rows:
        try:
            x, y = float(row['iter']), float(row[name])
        except (KeyError, TypeError, ValueError):
            continue
        if math.isfinite(x) and math.isfinite(y):
            points[x] = y  # an interrupted run logs some iterations twice: the later one counts
    return [list(axis) for axis in zip(*sorted(points.items()))] or [[], []]


def columns(rows, prefix):
    """name without prefix -> (xs, ys), for the columns that hold something."""
    names = dict.fromkeys(name for row in rows for name in row if str(name).startswith(prefix))
    found = {name[len(prefix):]: column(rows, name) for name in names}
    return {name: points for name, points in found.items() if points[0]}


def summarise(series, bins=100):
    """Means of neighbouring points as a line, their range as a band: thousands of values hide each other."""
    lines, bands = {}, {}
    for name, (xs, ys) in series.items():
        if len(xs) <= 2 * bins:
            lines[name] = xs, ys
            continue
        xs, ys = np.array_split(xs, bins), np.array_split(ys, bins)
        lines[name] = [x.mean() for x in xs], [y.mean() for y in ys]
        bands[name] = [y.min() for y in ys], [y.max() for y in ys]
    return lines, bands


def depth_colors(count):
    """From orange through red to indigo: a ramp, because layers have an order."""
    stops = np.array([[230, 159, 0], [204, 72, 100], [48, 48, 140]])
    where = np.linspace(0, 2, max(count, 2))
    mixed = [[round(np.interp(w, [0, 1, 2], stops[:, channel])) for channel in range(3)] for w in where]
    return ['#%02X%02X%02X' % tuple(color) for color in mixed]


def gate_chart(rows):
    """How far the gates of each layer have opened: attention solid, feed-forward dashed."""
    gates = columns(rows, 'gate_')  # x_0, x_1, ..., d_0, d_1, ...
    layers = sorted({int(name[2:]) for name in gates if re.fullmatch(r'[xd]_\d+', name)})
    series, colors, dashed = {}, {}, set()
    for layer, color in zip(layers, depth_colors(len(layers))):
        for gate, name in (f'd_{layer}', f'feed-forward {layer}'), (f'x_{layer}', f'layer {layer}'):
            if gate in gates:
                series[name], colors[name] = gates[gate], color
                if gate[0] == 'd':
                    dashed.add(name)
    if not series:
        return None
    return line_chart(series, 'How far the gates have opened', 'iteration',
                      'gate (solid: attention, dashed: feed-forward)', colors=colors, dashed=dashed)


def accuracy_chart(rows, title):
    scores = {re.sub(r'(\d)way', r'\1-way', name.replace('_', ' ')): points
              for name, points in columns(rows, 'eval_').items()}
    if not scores:
        return None
    ways = {int(number) for name in scores for number in re.findall(r'([1-9]\d*)-way', name)}
    return line_chart(scores, title, 'iteration', percent=True, chance=[1 / n for n in sorted(ways)] or None)


def curves(log_rows):
    """Rows of log.csv (values may be text, '' = missing) as one sheet: losses by stage, gates, accuracies."""
    stages = {stage: [row for row in log_rows if row.get('stage') == stage]
              for stage in ('vision', 'language', 'flamingo', 'finetune')}
    titles = {'vision': 'Vision: contrastive loss', 'language': 'Language: loss',
              'flamingo': 'Flamingo: loss by source', 'finetune': 'Fine-tuning: loss by source'}
    charts = []
    for stage, rows in stages.items():
        lines, bands = summarise(columns(rows, 'loss_'))
        if lines:
            charts.append(line_chart(lines, titles[stage], 'iteration', bands=bands))
    charts += [gate_chart(stages['flamingo']) or gate_chart(stages['finetune']),
               accuracy_chart(stages['flamingo'], 'Flamingo: few-shot accuracy'),
               accuracy_chart(stages['finetune'], 'Fine-tuning: accuracy'),
               accuracy_chart(stages['vision'], 'Vision: zero-shot accuracy')]
    charts = [chart for chart in charts if chart is not None]
    return grid(charts, 2) if charts else note('Nothing has been logged yet.')


# ---------------------------------------------------------------------------------------------
# What evaluate.py saves as evaluate.png


def shots_chart(rows, title, plain=()):
    """Rows of evaluate.json as lines over the number of shots; a chart for each task where one is crowded.

    plain: the metrics that are not shown in percent.
    """
    rows = [row for row in rows if not row.get('control') and row.get('shots') is not None]
    lines = {}
    for row in rows:
        lines.setdefault((row['task'], row.get('ways'), row.get('metric')), []).append(row)
    if not lines:
        return note(f'{title}: no results')
    if len(lines) <= 6 and len({metric for _, _, metric in lines}) == 1:
        return one_shots_chart(lines, title, (680, 400), plain)
    tasks = dict.fromkeys((task, metric) for task, _, metric in lines)
    if len({metric for _, metric in tasks}) > 4:  # retrieval has six metrics: they share a chart
        tasks = dict.fromkeys((task, None) for task, _ in tasks)
    charts = []
    for task, metric in tasks:
        some = {key: rows for key, rows in lines.items() if key[0] == task and metric in (None, key[2])}
        charts.append(one_shots_chart(some, str(task).replace('_', ' '), (460, 290), plain))
    return with_title(grid(charts, 2), title)


def one_shots_chart(lines, title, size, plain):
    tasks, metrics = {key[0] for key in lines}, {key[2] for key in lines}
    shots = sorted({row['shots'] for rows in lines.values() for row in rows})
    series, bands = {}, {}
    for (task, ways, metric), rows in lines.items():
        parts = task if len(tasks) > 1 else '', ways and f'{ways}-way', metric if len(metrics) > 1 else ''
        name = ' '.join(str(part) for part in parts if part).replace('_', ' ')
        rows = sorted(rows, key=lambda row: row['shots'])
        series[name] = [shots.index(row['shots']) for row in rows], [row['value'] for row in rows]
        bands[name] = [row.get('low') for row in rows], [row.get('high') for row in rows]
    values = floats(row['value'] for rows in lines.values() for row in rows)
    percent = bool((values[np.isfinite(values)] <= 1).all()) and not metrics & set(plain)
    ways = {way for _, way, _ in lines if way}
    y_label = ' / '.join(sorted(map(str, metrics))) if len(metrics) < 3 else ''
    chance = [1 / n for n in sorted(ways)] if ways and percent else None
    x_ticks = [(i, str(count)) for i, count in enumerate(shots)]
    return line_chart(series, title, 'shots', y_label, size, percent=percent, chance=chance, bands=bands,
                      x_ticks=x_ticks)
