"""What a folder of pictures asks for. `--folders=fit=True` chooses the keys that nobody has given, and says
why.

    folder  ──look──►  Found: how many pictures, of how many things, said in which words
    Found   ──fit───►  {key: value}, and five lines: the pictures, their words, the pages, the steps, what to
                       expect

Two things decide. *Do things come again?* A naming page shows a thing twice, as two pictures or, if there is
one only, as two variants of it: then it learns less of how things of one kind differ. *Do the captions say
what is seen?* "polar bear" does, and the encoder learns from its words; "character17" does not, and the
encoder's own words replace it (kit/run/class_words.py). Folders of which nothing can be learned are refused
before any training.
"""
import re
from collections import Counter
from dataclasses import dataclass

from kit.files import BadInput, one_line
from kit.run import distributed
from kit.sources.base import doubts
from kit.sources.forms import open_folder, split_spec

FEW = 500  # pictures: with fewer, what is learned is learned by heart
LONG = 7   # words: a caption of more is a sentence, and hardly any will be right to the letter


@dataclass(frozen=True)
class Found:
    """What a folder holds. pictures, things: to learn from; again: share of these pictures whose thing has
    another one; held: (pictures, things) to ask about; words: different ones; length: mean words of a
    caption; silent: whether names of classes say nothing; whole: whether every item is known (not of tar
    shards)."""
    pictures: int
    things: int
    again: float
    held: tuple
    words: int
    length: float
    silent: bool
    whole: bool


def look(pairs):
    """Pairs of all splits -> Found. Raises BadInput where nothing can be learned."""
    items = [pairs.items[k] for k in range(len(pairs))]
    train = [item for item in items if item.split == 'train']
    if not train:
        raise BadInput(f'{pairs.name}: nothing to learn from: no picture is of the split train')
    pictures = len({(str(item.path), item.turn) for item in train})
    if pictures < 2:
        raise BadInput(f'{pairs.name}: nothing can be learned from a single picture')
    for line in doubts([(item.text, item.path) for item in train], folders=False):
        raise BadInput(f'{pairs.name}: nothing can be learned: {line}')
    labels = Counter(item.label or item.text for item in train)
    held = [item for item in items if item.split != 'train']
    said = [text.split() for text in labels]
    numbered = len({re.sub(r'\d+', '', text) for text in labels}) <= len(labels) / 2
    return Found(
        pictures, len(labels), sum(n for n in labels.values() if n > 1) / len(train),
        (len(held), len({item.label for item in held})),
        len({word.lower() for text in said for word in text}), sum(map(len, said)) / len(said),
        silent=numbered and items[0].group is not None, whole=isinstance(pairs.items, list))


def fit(found):
    """Found -> ({key: value}, [line that says why])"""
    batch = max(8, min(128, found.pictures // 4))
    several, lines, keys = found.again >= 0.5, [], {}
    to_ask = f'{found.held[0]:,} of {found.held[1]:,} to ask about' if found.held[0] else 'none held out'
    lines.append(f'pictures: {found.pictures:,} of {found.things:,} things to learn from, {to_ask}')

    words = 2 if found.whole else 0
    keys['words'], keys['keep_captions'] = words, not found.silent
    n_token = min(8190, max(1022, round(700 + 2 * found.words, -2)))
    keys['tokenizer'] = f'sources:{n_token}'
    if found.silent:
        lines.append('words: names of classes that differ in their numbers only: the encoder\'s own words '
                     'replace them')
    else:
        beside = ', and the encoder\'s own words beside them' if words else ''
        lines.append(f'words: {found.words:,} different ones in captions of {found.length:.1f}: '
                     f'{n_token:,} tokens{beside}')

    ways = max(2, min(16, found.things))
    keys |= {'ways': ways, 'page_examples': 32, 'naming': 0.6, 'page_variants': 4, 'captions_first': 1200,
             'ways_rise': 4800, 'augment_strength': 1.0, 'augment_warp': 0.5, 'augment_lines': 0.4,
             'augment_word_dropout': 0.0 if found.silent else 0.3}
    how = ('as different pictures of it' if several else
           'as variants of its one picture, which teach less')
    lines.append(f'pages: 60 % give up to {ways} things new names and show each again, {how}; captions first')

    vision = round(min(8000, max(300, 3000 * (found.pictures / 5000) ** 0.5)), -2)
    keys |= {'vision_batch': batch, 'vision_iters': int(vision), 'language_iters': 600,
             'flamingo_iters': 1200}
    lines.append(f'steps: {keys["vision_iters"]:,} of {batch} pictures to see, {keys["language_iters"]:,} to '
                 f'read, {keys["flamingo_iters"]:,} to do both')
    lines.append('expect: ' + expectation(found, several))
    return keys, lines


def expectation(found, several):
    if found.pictures < FEW:
        return f'little: of {found.pictures:,} pictures it learns each by heart; {FEW} are few'
    naming = ('new things named from one example' if several else
              'new things named where they look nearly alike, as the variants of one picture that the table '
              'asks about; less often where they do not')
    captions = ('captions in its own words only' if found.silent else
                'captions of known things' if several and found.length <= LONG else
                f'captions like those of {found.length:.0f} words, seldom to the letter')
    return f'{naming}; {captions}'


def fit_to_folder(config, spec):
    """Set the keys of config that nobody has given to what its folder of pictures asks for, and say so. spec:
    FolderSpec. Raises BadInput where there is no folder, or nothing to learn in it."""
    paths = [path for path, _ in split_spec('align', config.align)] if config.align else []
    if not paths or 'shapes' in paths:
        raise BadInput('--folders=fit=True chooses keys for a folder of pictures: give --align=FOLDER')
    keys, lines = fit(look(open_folder(paths, spec, config.n_frame, split=None)))
    for name, value in keys.items():
        if name not in config.given:
            setattr(config, name, value)
    for line in lines if distributed.rank() == 0 else []:
        print(one_line(line))
