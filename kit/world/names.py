"""Made-up names of every kind that people choose: syllables, names of all sounds, codes, two words.

*Why of every kind.* What the frozen language model has never had to copy it will not copy, whatever the
picture says. A model that had met 48 × 48 syllables only, saw what was meant, and yet held "x" to be
impossible after " da".

One in six stems is held out for good: a stem is the first three letters of a word, so a held-out name is no
trained one with another ending.
"""
import zlib

import numpy as np

from kit.world.draw import COLOURS, FILLS, NUMBERS, PLACES, SHAPES, SIZES

BEGINNINGS = [a + b for a in (*'bdfgklmnpz', 'bl', 'gr') for b in 'aeiu']
ENDINGS = [a + b for a in ('ck', *'dfglmnprstx') for b in ('et', 'o', 'us', 'in')]

# Of all sounds. What stands twice or more is drawn more often: names are mostly simple.
ONSETS = (
    *2 * ('',),
    *2 * tuple('bcdfghjklmnprstvwz'),
    *'qxy',
    *'bl br ch cl cr dr fl fr gl gr kn pl pr ph qu sc sh sk sl sm sn sp st str sw th tr tw wh wr'.split(),
)
NUCLEI = (*3 * 'aeiou', *'y', *'ai ay ea ee ie oa oo ou au io'.split())
ENDS = (
    *2 * 'bdgklmnprstx',
    *'cfvz',
    *'aeo',
    *'ble ck ff ft ght ld le ll lt mp nce nd ne ng nk nt ss rd re rk rn'.split(),
    *'rt se sh sk st tch te th tle zz'.split(),
)
CODAS = ('',) * 6 + ENDS
KNOWN = {*COLOURS, *SHAPES, *SIZES, *FILLS, *PLACES, *NUMBERS}  # words of the world: 'red' is no made-up name
LETTERS, DIGITS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ', '0123456789'


def one_of(rng, things):
    return things[int(rng.integers(len(things)))]


def any_of(rng, kinds):
    """One of ((thing, weight), ...)"""
    things, weights = zip(*kinds)
    return things[int(rng.choice(len(things), p=np.divide(weights, sum(weights))))]


def some_of(rng, letters, least, most):
    """least to most letters, one after the other"""
    return ''.join(one_of(rng, letters) for _ in range(int(rng.integers(least, most + 1))))


def two_syllables(rng):
    """'bafet': few enough of them that parts recur, and the tokenizer knows many whole"""
    return one_of(rng, BEGINNINGS) + one_of(rng, ENDINGS)


def all_sounds(rng):
    """'strauph', 'Mialo': one to three syllables, three in ten with a capital"""
    n = one_of(rng, (1, 1, 1, 2, 2, 2, 3))
    name = ''.join(one_of(rng, ONSETS) + one_of(rng, NUCLEI) for _ in range(n)) + one_of(rng, CODAS)
    while len(name) < 3:
        name += one_of(rng, ENDS)
    return name.capitalize() if rng.random() < 0.3 else name


def code(rng):
    """'XK7', 'R2D2', '4TQ': capitals, then digits; or the two mixed, with a capital at one end at least"""
    if rng.random() < 0.5:
        return some_of(rng, LETTERS, 1, 3) + some_of(rng, DIGITS, 1, 3)
    letter, mixed = one_of(rng, LETTERS), some_of(rng, LETTERS + DIGITS, 1, 3)
    return letter + mixed if rng.random() < 0.5 else mixed + letter


def two_words(rng):
    """'bafet strauph', 'Mialo Gree'"""
    words = [one_of(rng, (two_syllables, code) + (all_sounds,) * 8)(rng) for _ in range(2)]
    return ' '.join(w.capitalize() for w in words) if rng.random() < 0.3 else ' '.join(words)


NAMES = ((two_syllables, 0.16), (all_sounds, 0.38), (code, 0.16), (two_words, 0.30))


def is_held(word):
    """Is a word's stem among those that are held out? The same on every machine."""
    return zlib.crc32(word[:3].lower().encode()) % 6 == 0


def made_up_names(rng, n, split='train'):
    """n different names of a split; of two words, both are of it."""
    names = {}
    while len(names) < n:
        make = any_of(rng, NAMES)
        while True:  # of its kind, so that both splits have kinds in the same shares
            name = make(rng)
            words = name.lower().split()
            if all(is_held(word) == (split == 'held') and word not in KNOWN for word in words):
                break
        names[name] = True
    return list(names)
