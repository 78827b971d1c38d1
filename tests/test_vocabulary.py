"""GPT-2's tokenizer as people have it on disk: vocab.json and merges.txt, tokenizer.json, added tokens."""
import json
import random
import re

import pytest

from kit.files import BadInput
from kit.tokenizer import Tokenizer
from kit.weights.vocabulary import gpt2_tokenizer
from model import PRESETS

MERGES = [('t', 'h'), ('th', 'e'), ('Ġ', 'the'), ('r', 'e'), ('re', 'd'), ('Ġ', 'red'), ('a', 't')]
END = '<|endoftext|>'


def vocabulary(merges, first=()):
    """(words in the order of their ids, bytes in the order of theirs): what comes first, the 256 bytes in
    GPT-2's disguise, the merges."""
    printable = [b for b in range(256) if chr(b).isprintable() and chr(b) != ' ']
    order = printable + [b for b in range(256) if b not in printable]
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    return [*first, *letters, *(a + b for a, b in merges)], order


def write_vocabulary(folder, merges, last=(END,)):
    """vocab.json and merges.txt -> bytes in the order of their ids"""
    words, order = vocabulary(merges)
    words += last
    ids = json.dumps({word: i for i, word in enumerate(words)})
    lines = ['#version: 0.2\n', *(f'{a} {b}\n' for a, b in merges)]
    (folder / 'vocab.json').write_text(ids, encoding='utf-8')
    (folder / 'merges.txt').write_text(''.join(lines), encoding='utf-8')
    return order


def write_tokenizer_json(folder, merges, added=(END,), first=(), pairs=True, **changes):
    """tokenizer.json as save_pretrained writes it. added: special tokens, in the order of their ids,
    after the words or, if they are `first`, before them."""
    words, _ = vocabulary(merges, first)
    numbers = range(0 if first else len(words), 1 << 10)
    ids = {word: i for i, word in enumerate(words + [END][:not first])}  # GPT-2's own is in both lists
    tokens = [{'id': i, 'content': word, 'single_word': False, 'lstrip': False, 'rstrip': False,
               'normalized': False, 'special': True} for i, word in zip(numbers, added)]
    merges = [list(pair) if pairs else ' '.join(pair) for pair in merges]
    content = {'version': '1.0', 'truncation': None, 'padding': None, 'added_tokens': tokens,
               'normalizer': None,
               'pre_tokenizer': {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True,
                                 'use_regex': True},
               'post_processor': {'type': 'ByteLevel', 'add_prefix_space': True, 'trim_offsets': False},
               'decoder': {'type': 'ByteLevel', 'add_prefix_space': True, 'trim_offsets': True},
               'model': {'type': 'BPE', 'dropout': None, 'unk_token': None, 'continuing_subword_prefix': '',
                         'end_of_word_suffix': '', 'fuse_unk': False, 'byte_fallback': False,
                         'ignore_merges': False, 'vocab': ids, 'merges': merges}}
    for key, value in changes.items():
        content[key] = {**content[key], **value} if type(value) is type(content[key]) is dict else value
    (folder / 'tokenizer.json').write_text(json.dumps(content), encoding='utf-8')


def slow_bpe(text, merges, words):
    """[id]: the first merge of the list that fits anywhere, again and again. For letters and spaces."""
    out = []
    for part in re.findall(r' ?[a-z]+| +', text):
        pieces = list(part.replace(' ', 'Ġ'))
        while True:
            pairs = list(zip(pieces, pieces[1:]))
            best = next((m for m in merges if m in pairs), None)
            if best is None:
                break
            i = pairs.index(best)
            pieces[i:i + 2] = [''.join(best)]
        out += [words.index(p) for p in pieces]
    return out


def test_vocab_and_merges(tmp_path):
    order = write_vocabulary(tmp_path, [('t', 'h'), ('th', 'e'), ('Ġ', 'the')])
    tokenizer = gpt2_tokenizer(str(tmp_path))
    assert tokenizer.encode('the the') == [257, 258]
    assert tokenizer.encode('té') == [order.index(b) for b in 'té'.encode()]
    assert tokenizer.decode(tokenizer.encode('té the')) == 'té the'
    assert tokenizer.bos == tokenizer.pad == 259 and tokenizer.n_vocab == 260 and tokenizer.image == 260
    assert 259 not in tokenizer.encode('<|endoftext|>')  # typed by a person it is thirteen letters
    assert Tokenizer.from_state(tokenizer.state()).encode('the the') == [257, 258]
    assert 'n_vocab' not in tokenizer.state()            # as in checkpoints made before there was one
    write_vocabulary(tmp_path, [('h', 'e'), ('t', 'he'), ('Ġ', 'the')])  # another one under the same names
    assert gpt2_tokenizer(str(tmp_path)).encode('he') == [256]
    (tmp_path / 'merges.txt').write_text('#version: 0.2\nx y\n')
    with pytest.raises(BadInput, match='do not belong together'):
        gpt2_tokenizer(str(tmp_path))
    (tmp_path / 'merges.txt').unlink()
    with pytest.raises(BadInput, match='merges.txt: No such file'):
        gpt2_tokenizer(str(tmp_path))


def test_the_cached_one_is_never_fetched(tmp_path, monkeypatch):
    monkeypatch.setenv('TIKTOKEN_CACHE_DIR', str(tmp_path))
    monkeypatch.setattr('tiktoken.get_encoding', lambda name: pytest.fail('that goes to the network'))
    with pytest.raises(BadInput, match='not in tiktoken.s cache'):
        gpt2_tokenizer()


def test_the_gpt2_preset_fits_the_vocabulary():
    """50,256 ranks and <|endoftext|>, which is <BOS> and <PAD>."""
    words = [bytes([i]) for i in range(256)] + [bytes([i % 256, i // 256, 0]) for i in range(50000)]
    tokenizer = Tokenizer({word: i for i, word in enumerate(words)}, bos=50256, pad=50256)
    assert all(PRESETS['gpt2'][k] == getattr(tokenizer, k) for k in ('n_vocab', 'bos', 'pad'))


@pytest.mark.parametrize('pairs', [True, False])
def test_tokenizer_json_alone_is_the_same_tokenizer(tmp_path, pairs):
    """Merges as pairs, which is how they are written today, or as texts with a space, as before."""
    for name in 'ab':
        (tmp_path / name).mkdir()
    write_vocabulary(tmp_path / 'a', MERGES)
    write_tokenizer_json(tmp_path / 'b', MERGES, pairs=pairs)
    old, new = gpt2_tokenizer(tmp_path / 'a'), gpt2_tokenizer(tmp_path / 'b')
    assert vars(old) == vars(new)
    words, r = vocabulary(MERGES)[0], random.Random(0)
    for _ in range(50):
        text = ''.join(r.choice('thered a') for _ in range(30))
        assert new.encode(text) == slow_bpe(text, MERGES, words)


@pytest.mark.parametrize('form', ['tokenizer.json', 'added_tokens.json', 'vocab.json'])
def test_an_added_pad_is_read_and_no_text_says_it(tmp_path, form):
    """The commonest change to GPT-2's vocabulary: a token of its own for padding, one more row."""
    if form == 'tokenizer.json':
        write_tokenizer_json(tmp_path, MERGES, added=(END, '[PAD]'))
    else:
        write_vocabulary(tmp_path, MERGES, last=(END, '[PAD]') if form == 'vocab.json' else (END,))
    if form == 'added_tokens.json':
        (tmp_path / form).write_text('{"[PAD]": 264}')
    tokenizer = gpt2_tokenizer(tmp_path)
    assert (tokenizer.bos, tokenizer.n_vocab, tokenizer.image, tokenizer.eoc) == (263, 265, 265, 266)
    assert len(tokenizer.encode('[PAD]')) == 5 and tokenizer.encode(' the') == [258]
    assert tokenizer.decode([258, 264, 263, 265, 258]) == ' the the'
    again = Tokenizer.from_state(tokenizer.state())
    assert again.state() == tokenizer.state() and again.n_vocab == 265 and again.encode(' the') == [258]


def test_added_tokens_may_come_first(tmp_path):
    """As where a tokenizer of the same kind was trained on other texts: <|endoftext|> is 1,
    and the bytes follow."""
    write_tokenizer_json(tmp_path, MERGES, added=('[PAD]', END), first=('[PAD]', END))
    tokenizer = gpt2_tokenizer(tmp_path)
    assert (tokenizer.bos, tokenizer.pad, tokenizer.n_vocab) == (1, 1, 265)
    assert tokenizer.encode(' the') == [260]
    assert tokenizer.decode([0, 260, 1]) == ' the'
    again = Tokenizer.from_state(tokenizer.state())
    assert again.encode(' the') == [260] and again.decode([0, 260, 1]) == ' the'


def test_the_table_of_words_decides_how_many_there_are(tmp_path):
    write_tokenizer_json(tmp_path, MERGES, added=(END, '[PAD]'))
    assert gpt2_tokenizer(tmp_path, 320).image == 320  # rows that make the number round
    assert gpt2_tokenizer(tmp_path, 264).image == 264  # no row was added for [PAD]: nothing needs it
    with pytest.raises(BadInput, match='ids up to 263, its weights only 263 rows'):
        gpt2_tokenizer(tmp_path, 263)


@pytest.mark.parametrize('changes, message', [
    (dict(normalizer={'type': 'NFKC'}), 'has a normalizer'),
    (dict(pre_tokenizer={'add_prefix_space': True}), 'pre_tokenizer has add_prefix_space=True'),
    (dict(pre_tokenizer={'type': 'Sequence'}), "pre_tokenizer has type='Sequence'"),
    (dict(model={'type': 'WordPiece'}), "model has type='WordPiece'"),
    (dict(model={'byte_fallback': True}), 'model has byte_fallback=True'),
    (dict(model={'end_of_word_suffix': '</w>'}), "model has end_of_word_suffix='</w>'"),
    (dict(added_tokens=[{'id': 264, 'content': 'dax', 'special': False}]),
     "added token 'dax' is an ordinary word"),
    (dict(added_tokens=[{'id': 7, 'content': '[PAD]', 'special': True}]), 'do not belong together'),
    (dict(added_tokens=[{'id': 1 << 40, 'content': '[PAD]', 'special': True}]), 'do not belong together'),
    (dict(model={'merges': [['x', 'y']]}), 'do not belong together'),
    (dict(model={'merges': [['t', 'h'], ['r', 'e'], ['th', 'e']]}), 'do not belong together'),
    (dict(model={'merges': 3}), 'not a tokenizer.json'),
    (dict(model={'vocab': []}), 'do not belong together'),
    (dict(added_tokens=3), 'not a tokenizer.json'),
    (dict(pre_tokenizer=None), 'not a tokenizer.json'),
])
def test_what_gpt2_has_not_is_refused_by_name(tmp_path, changes, message):
    write_tokenizer_json(tmp_path, MERGES, **changes)
    with pytest.raises(BadInput, match=message) as e:
        gpt2_tokenizer(tmp_path)
    assert '\n' not in str(e.value) and str(tmp_path) in str(e.value)


def test_a_vocabulary_without_its_end_is_refused(tmp_path):
    write_vocabulary(tmp_path, MERGES, last=())
    with pytest.raises(BadInput, match='lacks <.endoftext.>'):
        gpt2_tokenizer(tmp_path)


@pytest.mark.parametrize('content', ['', '[]', '{"model": 3}', '{' * 100_000, '[' * 100_000, '\xff', 'null'])
def test_damaged_files_are_one_line(tmp_path, content):
    for name in ('tokenizer.json', 'vocab.json'):
        for other in tmp_path.iterdir():
            other.unlink()
        (tmp_path / name).write_bytes(content.encode('latin-1'))
        (tmp_path / 'merges.txt').write_text('#version: 0.2\nt h\n')
        with pytest.raises(BadInput) as e:
            gpt2_tokenizer(tmp_path)
        assert '\n' not in str(e.value)
