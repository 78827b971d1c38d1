"""One line for each change: the paper's, and beside it ours with its interval."""
from kit.show.canvas import Canvas, note
from kit.show.charts import Axis, floats, round_ticks, tick_labels, value_range
from kit.show.lettering import GREY, INK, PALE, PALETTE, shorten

LEFT, RIGHT, TOP, LINE = 190, 24, 64, 20


def changes_chart(entries, title, width=760):
    """entries: [(name, the paper's change, ours, low, high)], None where there is none -> a picture. A ring
    stands for the paper, a dot for ours, a bar for its interval."""
    numbers = floats([x for _, *values in entries for x in values] + [0.0])
    if not entries:
        return note('no cell has been measured yet')
    canvas = Canvas(width, TOP + LINE * len(entries) + 30, scale=2)
    axis = Axis(*value_range(numbers), LEFT, width - RIGHT)
    bottom = TOP + LINE * len(entries)
    canvas.text(14, 12, title, size=16, bold=True)
    canvas.dot(LEFT + 5, 46, GREY, 4)
    canvas.dot(LEFT + 5, 46, (255, 255, 255), 2.2)
    canvas.text(LEFT + 16, 46, 'the paper', GREY, anchor='lm')
    canvas.dot(LEFT + 105, 46, PALETTE[0], 4)
    canvas.text(LEFT + 116, 46, 'ours, 95 % interval', PALETTE[0], anchor='lm')
    ticks = round_ticks(axis.low, axis.high, 8)
    for tick, label in zip(ticks, tick_labels(ticks)):
        x = float(axis(tick))
        canvas.box(x, TOP - 4, 1, bottom - TOP + 4, GREY if tick == 0 else PALE)
        canvas.text(x, bottom + 8, label, GREY, anchor='ma')
    for k, (name, theirs, ours, low, high) in enumerate(entries):
        y = TOP + LINE * (k + 0.5)
        canvas.text(LEFT - 10, y, shorten(name, LEFT - 20), INK, anchor='rm')
        if low is not None:
            canvas.box(float(axis(low)), y - 1, float(axis(high)) - float(axis(low)) + 1, 2, PALETTE[0])
        if ours is not None:
            canvas.dot(float(axis(ours)), y, PALETTE[0], 4)
        if theirs is not None:
            canvas.dot(float(axis(theirs)), y, GREY, 4)
            canvas.dot(float(axis(theirs)), y, (255, 255, 255), 2.2)
    return canvas.done()
