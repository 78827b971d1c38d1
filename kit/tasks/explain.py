"""One prompt, followed through the model: what `python sample.py --explain=True` shows.

    explanation = explain(asker, document, answer)
    print(as_text(explanation))                        # or kit.show.explained.explained_sheet(explanation)

The prompt and its answer are encoded as training would encode them, and go through one plain forward pass.
Nothing about the inside of the model is written down here: while it runs, Python reports every line
(sys.settrace), and each line that gives a tensor a name is noted with the tensor's shape. So names, lines and
comments are always those of the code itself.
"""
import ast
import itertools
import json
import linecache
import os
import re
import shutil
import sys
import textwrap
from dataclasses import asdict, dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from PIL import Image

from data import Document, encode, load_pixels
from kit.episode import BLANK
from kit.features import stack_frames
from kit.files import one_line
from kit.show import canvas
from kit.show.explained import explained_sheet, tree_rows, with_said
from kit.show.lettering import printable, text_table
from kit.tasks.asker import ROOT

# whose lines are reported
FILES = 'data.py', 'kit/features.py', 'vision.py', 'resampler.py', 'xattn.py', 'model.py'
MOST_LIKELY = 5
LETTERS = re.compile(r'#.*?(\((?:[\w*+/·…-]+,)+[\w*+/·…-]*\))')  # '# (B,T,H,d)'


@dataclass
class Token:
    """text: as the tokenizer splits it; image_index: φ, the picture that it sees (0 = none); learned: does
    training learn to predict it?"""
    text: str
    image_index: int
    learned: bool


@dataclass
class Line:
    """A line of code that made tensors. path: its function, after those that called it; names: what the code
    calls the tensors, or 'return'; shapes: the first, and each that differs from that of the run before;
    letters: of the comment beside it, '(B,T,D)', or ''; times: how often it ran."""
    path: list
    names: list
    shapes: list
    letters: str
    file: str
    line: int
    times: int = 1


@dataclass
class Word:
    """A token of the answer. likely: [(text, probability)] of the five likeliest in its place; blanked: the
    same with the pictures of the examples blanked, None where there are none."""
    text: str
    probability: float
    likely: list
    probability_blanked: float | None
    blanked: list | None


@dataclass
class Explanation:
    """pictures: the first frame of each, (3,H,W) uint8; n_prompt: how many of the tokens are the prompt's."""
    tokens: list
    n_prompt: int
    pictures: list
    lines: list
    words: list


# ---------------------------------------------------------------------------------------------
# Which line made which tensor?


def shape_of(value):
    """'(1,61,128)' of a tensor or array, '2 × (1,61,128)' of several alike, None of scalars and all else."""
    if isinstance(value, (torch.Tensor, np.ndarray)) and value.ndim > 0:
        return str(tuple(value.shape)).replace(' ', '')
    if isinstance(value, (list, tuple)) and len(value) > 1:
        shapes = {shape_of(x) if isinstance(x, torch.Tensor) else None for x in value}
        return f'{len(value)} × {shapes.pop()}' if len(shapes) == 1 and None not in shapes else None
    return None


@lru_cache
def last_lines(path):
    """-> {the first line of a statement: its last line}"""
    simple = ast.Assign, ast.AugAssign, ast.Return
    nodes = ast.walk(ast.parse(''.join(linecache.getlines(path))))
    return {node.lineno: node.end_lineno for node in nodes if isinstance(node, simple)}


def letters_beside(path, number):
    """The shape that a comment beside the statement on this line states: '# (B,T,H,d) each' -> '(B,T,H,d)'"""
    for n in range(number, last_lines(path).get(number, number) + 1):
        if found := LETTERS.search(linecache.getline(path, n)):
            return found[1]
    return ''


class Watch:
    """Inside `with Watch() as watch`, watch.lines becomes a list of Line, in the order in which they ran.

    A function is followed through its first call only: of layers that are alike, the first stands for all.
    """

    def __init__(self, files=FILES):
        self.files = {os.path.join(ROOT, name): name for name in files}
        self.lines, self.followed, self.path = [], set(), []

    def __enter__(self):
        self.before = sys.gettrace()
        sys.settrace(self.called)
        return self

    def __exit__(self, *error):
        sys.settrace(self.before)

    def called(self, frame, event, argument):
        code = frame.f_code
        if code.co_filename not in self.files or code in self.followed or code.co_name.startswith('<'):
            return None
        self.followed.add(code)
        owner = frame.f_locals.get('self')
        self.path.append(code.co_name if owner is None else f'{type(owner).__name__}.{code.co_name}')
        return Following(self, frame).event


class Following:
    """One call of a function, line by line."""

    def __init__(self, watch, frame):
        self.watch, self.path, self.code = watch, list(watch.path), frame.f_code
        self.known = dict(frame.f_locals)  # its arguments: made elsewhere
        self.number, self.rows = frame.f_lineno, {}

    def event(self, frame, event, value):
        # A 'line' comes before that line is run: what is new was made by the one before it.
        new = {name: x for name, x in frame.f_locals.items() if self.known.get(name, self) is not x}
        self.known |= new
        self.note(new)
        if event == 'return':
            if not any(value is x for x in self.known.values()):  # an expression that has no name
                self.note({'return': value})
            self.watch.path.pop()
        self.number = frame.f_lineno
        return self.event

    def note(self, new):
        by_shape = {}
        for name, x in new.items():
            if (shape := shape_of(x)) is not None:
                by_shape.setdefault(shape, []).append(name)
        for shape, names in by_shape.items():
            row = self.rows.get((self.number, tuple(names)))
            if row is not None:
                row.times += 1
                if row.shapes[-1] != shape:
                    row.shapes.append(shape)
                continue
            path = self.code.co_filename
            row = Line(self.path, names, [shape], letters_beside(path, self.number), self.watch.files[path],
                       self.number)
            self.rows[self.number, tuple(names)] = row
            self.watch.lines.append(row)


# ---------------------------------------------------------------------------------------------
# The explanation


def explain(asker, document, answer):
    """Asker, a prompt and its answer -> Explanation. What does not fit the context is left out."""
    model, tokenizer = asker.model, asker.tokenizer
    n_prompt = len(encode(document, tokenizer).tokens)
    pieces = document.pieces + ([' ' + answer] if answer else [])
    whole = Document(pieces, 'examples', document.where)  # as training reads it
    with Watch() as watch, torch.no_grad():
        encoded = encode(whole, tokenizer)
        tokens = torch.tensor(encoded.tokens[None, :model.lm.n_context + 1], device=asker.features.device)
        index = torch.tensor(encoded.image_index[None, :tokens.shape[1] - 1], device=asker.features.device)
        pixels, frame_mask = pictures_of(asker, encoded.media)
        logits = model(tokens[:, :-1], index, pixels, frame_mask=frame_mask)[0]
    blanked = None
    if len(encoded.media) > 1:
        *support, query = encoded.media
        with torch.no_grad():
            pixels_blanked, mask = pictures_of(asker, [BLANK for _ in support] + [query])
            blanked = model(tokens[:, :-1], index, pixels_blanked, frame_mask=mask)[0]
    ids = tokens[0].tolist()
    shown = [Token(token_text(tokenizer, t), int(i), bool(learned))
             for t, i, learned in zip(ids, encoded.image_index, encoded.loss_mask)]
    likely = [likeliest(tokenizer, x, ids, n_prompt) for x in (logits, blanked) if x is not None]
    words = [Word(shown[n_prompt + k].text, *both[0], *(both[1] if len(both) > 1 else (None, None)))
             for k, both in enumerate(zip(*likely))]
    pictures = [] if pixels is None else list(pixels[0, :, 0].cpu())
    return Explanation(shown, n_prompt, pictures, watch.lines, words)


def pictures_of(asker, media):
    """list of Media -> pixels (1,N,F,3,H,W) uint8 and frame_mask (1,N,F), or (None, None). Never from what is
    kept: reading them is part of the way."""
    size, n_frame = asker.features.pixels.image_size, asker.features.pixels.n_frame
    pixels, mask = stack_frames([media], lambda m: torch.from_numpy(load_pixels(m, size, n_frame)))
    device = asker.features.device
    return (None, None) if pixels is None else (pixels.to(device), mask.to(device))


def token_text(tokenizer, token):
    names = {tokenizer.pad: '<PAD>', tokenizer.bos: '<BOS>',  # GPT-2 has one id for both
             tokenizer.image: '<image>', tokenizer.eoc: '<EOC>'}
    return names[token] if token in names else one_line(tokenizer.decode([token]))


def likeliest(tokenizer, logits, ids, n_prompt):
    """logits (1,T,V+2) -> for each token of the answer (its probability, [(text, probability)] …)"""
    p = logits[0, n_prompt - 1:].double().softmax(-1)                                # (answer,V+2)
    return [(float(row[token]), top_words(tokenizer, row)) for row, token in zip(p, ids[n_prompt:])]


def top_words(tokenizer, p):
    """Probabilities (V+2,) -> [(text, probability)] of the likeliest tokens, the first of them first"""
    best = p.topk(min(MOST_LIKELY, len(p)))
    return [(token_text(tokenizer, i), x) for i, x in zip(best.indices.tolist(), best.values.tolist())]


# ---------------------------------------------------------------------------------------------
# On screen


TITLES = (
    ('1. Every token, the picture it sees, and whether training learns to predict it',
     'A space is shown as ·. Sees: φ, the number of the picture; 0 is none. Text that is given, such as a '
     'question or what is typed as --prompt, is read, not learned.'),
    ('2. The way in short', 'What comes out of each part, and the line of code that makes it.'),
    ('3. Every tensor on the way',
     'All lines of code that made one, in the order in which they ran. Of layers that are alike, the first '
     'is followed; × says how often a line ran.'),
    ('4. The answer, word by word',
     'The five likeliest words in each place and how likely they are: with the pictures of the examples, and '
     'with these blanked.'),
)
# What comes out of each part: the last line of a function.
STATIONS = {
    'pixels': 'stack_frames',
    'features': 'NFNet.forward',
    'visual tokens': 'PerceiverResampler.forward',
    'keys and values': 'GatedCrossAttention.keys_values',
    'stream': 'Flamingo.stream',
    'logits': 'Flamingo.head',
}


def stations(lines):
    """-> {part: Line}, of those parts that the prompt went through"""
    last = {line.path[-1]: line for line in lines}
    return {part: last[function] for part, function in STATIONS.items() if function in last}


def visible(text):
    return printable(text).replace(' ', '·')


def as_text(explanation, width=100):
    """Explanation -> its four tables. Tokens are wrapped to `width`."""
    short = [[part, *cells(line)[1:]] for part, line in stations(explanation.lines).items()]
    bodies = (token_table(explanation.tokens, width), text_table(short, ['', 'where', 'letters', 'shape']),
              line_table(explanation.lines), word_table(explanation.words))
    return '\n\n'.join('\n'.join([title, textwrap.fill(note, width), '', body])
                       for (title, note), body in zip(TITLES, bodies))


def show(asker, document, answer, config):
    """For the keys of sample.py: explain (on screen, or with --json=True as a JSON object) and picture."""
    explanation = explain(asker, document, answer)
    if config.picture:
        canvas.save(as_picture(explanation), config.picture)
    if config.explain:
        plain = asdict(replace(explanation, pictures=len(explanation.pictures)))
        print(json.dumps(plain, ensure_ascii=False) if config.json
              else '\n' + as_text(explanation, terminal_width()))


def terminal_width():
    return min(max(shutil.get_terminal_size((100, 0)).columns, 40), 160)


def token_table(tokens, width):
    """Tokens side by side, and on to the next stripe like a text; three lines each."""
    names = 'token  ', 'sees   ', 'learned'
    stripes, room = [[]], width - len(names[0])
    for t in tokens:
        column = visible(t.text), str(t.image_index), '✓' if t.learned else ''
        wide = max(map(len, column))
        if wide + 1 > room and stripes[-1]:
            stripes, room = stripes + [[]], width - len(names[0])
        room -= wide + 1
        stripes[-1].append([cell.ljust(wide) for cell in column])
    return '\n\n'.join('\n'.join(' '.join([name, *row]).rstrip() for name, row in zip(names, zip(*stripe)))
                       for stripe in stripes)


def cells(line):
    """A Line -> what it says in a table: names, place, letters, shapes"""
    times = f'  × {line.times}' if line.times > 1 else ''
    return [', '.join(line.names), f'{line.file}:{line.line}', line.letters, ' → '.join(line.shapes) + times]


def line_table(lines):
    """The lines of each function below its name, indented by who calls whom."""
    rows = [['  ' * depth + text, *(cells(line)[1:] if line else ['', '', ''])]
            for depth, text, line in tree_rows(lines)]
    wide = [max(len(row[k]) for row in rows) for k in range(4)] if rows else []
    return '\n'.join('  '.join(cell.ljust(w) for cell, w in zip(row, wide)).rstrip() for row in rows)


def as_picture(explanation):
    """Explanation -> the same as a picture"""
    pictures = [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in explanation.pictures]
    return explained_sheet(explanation.tokens, pictures, stations(explanation.lines), explanation.lines,
                           explanation.words, [title for title, _ in TITLES])


def word_table(words):
    def column(word, likely, probability):
        return [[visible(text), f'{100 * p:.1f} %'] for text, p in with_said(likely, word.text, probability)]

    rows, beside = [], any(word.blanked for word in words)
    for word in words:
        left = column(word, word.likely, word.probability)
        right = column(word, word.blanked, word.probability_blanked) if beside else []
        for k, (a, b) in enumerate(itertools.zip_longest(left, right, fillvalue=['', ''])):
            rows.append([visible(word.text) if k == 0 else '', *a, *(b if beside else [])])
    return text_table(rows, ['said', 'as it is', ''] + (['blanked', ''] if beside else []))
