"""Made-up names: of every kind, each split with its own stems, the same for the same generator."""
from collections import Counter

import numpy as np
import pytest

from kit.tokenizer import Tokenizer
from kit.world.draw import COLOURS, FILLS, NUMBERS, SHAPES, SIZES
from kit.world.names import all_sounds, code, made_up_names, NAMES, two_syllables, two_words

TRAINED = made_up_names(np.random.default_rng(0), 6000)
HELD = made_up_names(np.random.default_rng(0), 1000, 'held')


def kind_of(name):
    """By its form alone; two syllables are among all sounds."""
    if ' ' in name:
        return 'two words'
    return 'code' if name.isupper() or any(c.isdigit() for c in name) else 'word'


def test_names_come_from_their_rng_alone_and_are_different():
    assert made_up_names(np.random.default_rng(0), 6000) == TRAINED
    assert made_up_names(np.random.default_rng(1), 50) != TRAINED[:50]
    assert len(set(TRAINED)) == 6000 and len(set(HELD)) == 1000


@pytest.mark.parametrize('names', [TRAINED, HELD], ids=['train', 'held'])
def test_both_splits_have_every_kind_in_its_share(names):
    share = {kind: n / len(names) for kind, n in Counter(map(kind_of, names)).items()}
    wanted = {'two words': dict(NAMES)[two_words], 'code': dict(NAMES)[code],
              'word': dict(NAMES)[two_syllables] + dict(NAMES)[all_sounds]}
    for kind, part in wanted.items():  # short ones are soon all drawn: of 6,000 different names fewer are
        assert abs(share[kind] - part) < 0.05, (kind, share)


def test_held_out_names_share_no_stem_with_trained_ones():
    """Not the first three letters of any of their words, in capitals or not."""
    stems = lambda names: {word[:3].lower() for name in names for word in name.split()}
    trained, held = stems(TRAINED), stems(HELD)
    assert not trained & held
    assert 0.1 < len(held) / (len(held) + len(trained)) < 0.25
    assert len(stems(made_up_names(np.random.default_rng(3), 500)) & held) == 0  # of other documents neither


def test_no_made_up_name_is_a_word_of_the_world():
    """Or texts would say 'a red heart', a held-out pair, of a heart that is called so. Of all sounds some are
    such words."""
    rng, words = np.random.default_rng(0), {*COLOURS, *SHAPES, *SIZES, *FILLS, *NUMBERS}
    assert words & {all_sounds(rng).lower() for _ in range(20_000)}
    names = TRAINED + HELD + made_up_names(rng, 20_000)
    assert not words & {word for name in names for word in name.lower().split()}


def test_words_have_all_letters_in_many_beginnings_and_some_a_capital():
    words = [name for name in TRAINED if kind_of(name) == 'word']
    assert set(''.join(words).lower()) == set('abcdefghijklmnopqrstuvwxyz')
    assert len({word[:2].lower() for word in words}) > 150
    assert 0.1 < np.mean([word[0].isupper() for word in words]) < 0.3
    assert all(word[1:].islower() for word in words)
    assert min(map(len, words)) >= 3


def test_names_are_of_a_few_to_many_tokens():
    tokenizer = Tokenizer.load('assets/tokenizer.tiktoken')
    length = Counter(len(tokenizer.encode(' ' + name)) for name in TRAINED)
    assert all(length[n] > 20 for n in range(2, 9))
    assert np.mean([len(tokenizer.encode(' ' + name)) for name in TRAINED]) < 4.5  # a page's worth of tokens


@pytest.mark.parametrize('make, like', [(two_syllables, 'bafet'), (all_sounds, 'strauph'), (code, 'XK7'),
                                        (two_words, 'bafet Mialo')])
def test_each_kind_looks_as_it_says(make, like):
    rng = np.random.default_rng(0)
    for _ in range(300):
        name = make(rng)
        assert len(name.split()) == len(like.split()) and name == name.strip()
        assert all(word.isalnum() and word.isascii() for word in name.split())
        if make is code:
            assert 2 <= len(name) <= 6 and name == name.upper() and not name.isdigit()
