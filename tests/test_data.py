"""Documents become tokens as written out by hand here, one token after the other; pixels keep what they
show."""
import base64
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiktoken.load import load_tiktoken_bpe
from tiktoken_ext.openai_public import r50k_pat_str

import look as look_command
from data import (
    collate, Document, encode, EndOfChunk, Example, Given, load_pixels, Media, to_pixels)
from kit.episode import Episode
from kit.augment import augment
from kit.bpe import train_bpe
from kit.features import stack_frames
from kit.cli import command
from kit.files import BadInput, BadItem
from kit.tokenizer import Tokenizer

BYTES = Tokenizer({bytes([b]): b for b in range(256)})  # a letter is a token
SHIPPED = Tokenizer.load(Path(__file__).parent.parent / 'assets' / 'tokenizer.tiktoken')
SPECIAL = '<image><EOC><BOS><PAD><|endoftext|>'


def media(key=''):
    return Media(key, list)


def written(encoded):
    """-> three strings: the tokens (^ <BOS>, # <image>, $ <EOC>), the picture each may look at, x where it
    is learned."""
    sign = {BYTES.bos: '^', BYTES.image: '#', BYTES.eoc: '$'}
    return (''.join(sign.get(t) or chr(t) for t in encoded.tokens), ''.join(map(str, encoded.image_index)),
            ''.join('x' if learned else '.' for learned in encoded.loss_mask))


def rng(seed=0):
    return np.random.default_rng(seed)


# ---------------------------------------------------------------------------------------------
# Tokenizer


def any_text(r):
    """Letters, spaces, accents, scripts, emoji with their joiners, control characters: anything that is not
    half a pair."""
    ranges = [(32, 127)] * 4 + [(0, 32), (0xa0, 0x250), (0x300, 0x370), (0x4e00, 0x9fff), (0x1f300, 0x1faff),
                                (0x200b, 0x2070), (0xe000, 0x10ffff)]
    return ''.join(chr(r.randrange(*r.choice(ranges))) for _ in range(r.randrange(40)))


@pytest.mark.parametrize('tokenizer', [BYTES, SHIPPED])
def test_any_text_comes_back_whole(tokenizer):
    r = random.Random(0)
    for text in ['', ' ', '\n\n', '👨‍👩‍👧‍👦 fünf Äpfel', SPECIAL, *(any_text(r) for _ in range(400))]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert all(0 <= i < len(tokenizer.ranks) for i in ids)


def test_no_text_can_say_a_special_token():
    """Not even with a vocabulary that was made of nothing but their names. An ordinary `<image>` in a
    caption would otherwise shift every picture after it."""
    learned = Tokenizer(train_bpe([SPECIAL, *['<image>', '<EOC>', '<BOS>', '<|endoftext|>', '<PAD>']], 400))
    for tokenizer in BYTES, SHIPPED, learned:
        special = {tokenizer.bos, tokenizer.pad, tokenizer.image, tokenizer.eoc}
        for text in (SPECIAL, '<image>', ' <image>', '<EOC>', '<BOS>', '<PAD>', '<|endoftext|>'):
            assert len(special) == 4 and not special & set(tokenizer.encode(text))
            assert tokenizer.decode(tokenizer.encode(text)) == text
        page = encode(Document([SPECIAL, media('1'), ' <image> ', media('2'), SPECIAL]), tokenizer)
        assert [int((page.tokens == i).sum())
                for i in (tokenizer.bos, tokenizer.image, tokenizer.eoc)] == [1, 2, 3]
        assert page.image_index.max() == 2
        assert tokenizer.decode(page.tokens.tolist()) == SPECIAL + ' <image> ' + SPECIAL


def test_ids_of_the_language_model_come_before_the_new_ones():
    """V ids are frozen with the language model; <image> and <EOC> are V and V+1. GPT-2's own <|endoftext|>
    may be both <BOS> and <PAD>."""
    assert (BYTES.bos, BYTES.pad, BYTES.n_vocab, BYTES.image, BYTES.eoc) == (256, 257, 258, 258, 259)
    lent = Tokenizer(BYTES.ranks, bos=256, pad=256)
    assert (lent.n_vocab, lent.image, lent.eoc) == (257, 257, 258)
    with pytest.raises(BadInput, match='rank'):
        Tokenizer({b'a': 0, b'b': 2})


def test_text_is_split_as_gpt2_splits_it():
    """Against the pattern that tiktoken publishes for GPT-2, on text full of contractions, numbers and odd
    spaces."""
    theirs, r = Tokenizer(SHIPPED.ranks, r50k_pat_str), random.Random(1)
    parts = ["it's", "we'LL", "'re", ' 12', '3a', '\n', '  ', '\t', ' ...', "''", 'é', ' red', '!?', ' _',
             '\u00a0']
    for _ in range(300):
        text = ''.join(r.choice(parts) for _ in range(12))
        assert SHIPPED.encode(text) == theirs.encode(text)


def test_a_tokenizer_survives_its_file_and_its_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv('TIKTOKEN_CACHE_DIR', '')
    tokenizer = Tokenizer(train_bpe(['a red ring and a red star'] * 3, 270), bos=280, pad=3)
    tokenizer.save(tmp_path / 't.tiktoken')
    assert load_tiktoken_bpe(str(tmp_path / 't.tiktoken')) == tokenizer.ranks  # others can read it too
    assert Tokenizer.load(tmp_path / 't.tiktoken').ranks == tokenizer.ranks
    state = tokenizer.state()
    torch.save(state, tmp_path / 's.pt')
    again = Tokenizer.from_state(torch.load(tmp_path / 's.pt', weights_only=True))
    assert vars(again) == vars(tokenizer)
    assert again.encode('a red star 🙂') == tokenizer.encode('a red star 🙂')


@pytest.mark.parametrize('line', [b'\xff\xfe', b'aGk=', b'aGk= x', b'a!k= 1', b'aGk= 1 2', b'', b'{"a": 1}'])
def test_a_damaged_tokenizer_file_is_named_with_its_line(tmp_path, line):
    path = tmp_path / 'bad.tiktoken'
    path.write_bytes(base64.b64encode(b'a') + b' 0\n' + line + b'\n')
    with pytest.raises(BadInput, match=r'bad\.tiktoken:2:'):
        Tokenizer.load(path)


def test_a_tokenizer_file_that_cannot_encode_everything_is_refused(tmp_path):
    """Empty, or with a byte missing: better said now than at the first text that needs it."""
    for name, tokens in ('empty', []), ('lacking', [bytes([b]) for b in range(255)]):
        path = tmp_path / name
        path.write_bytes(b''.join(base64.b64encode(t) + b' %d\n' % i for i, t in enumerate(tokens)))
        with pytest.raises(BadInput, match=name):
            Tokenizer.load(path)
    with pytest.raises(BadInput, match='nowhere'):
        Tokenizer.load(tmp_path / 'nowhere')


# ---------------------------------------------------------------------------------------------
# Document -> tokens, by hand

A, B = media('A'), media('B')

BY_HAND = {
    'a page: text sees the picture above it': (
        Document(['ab', A, 'c', B, 'de']), {},
        '^ab$#c$#de$',
        '00001112222',
        '.xxx.xx.xxx'),
    'the same page, read as speaking of the picture below; the last text has none below and keeps its own': (
        Document(['ab', A, 'c', B, 'de']), dict(rng=rng(), p_next=1.0),
        '^ab$#c$#de$',
        '01111222222',
        '.xxx.xx.xxx'),
    'p_next = 0 is the picture above': (
        Document(['ab', A, 'c', B, 'de']), dict(rng=rng(), p_next=0.0),
        '^ab$#c$#de$',
        '00001112222',
        '.xxx.xx.xxx'),
    'a page that begins with a picture has no <EOC> before it': (
        Document([A, 'ab']), {},
        '^#ab$',
        '01111',
        '..xxx'),
    'two pictures in a row: an <EOC> between them, as before every picture but the first thing on a page': (
        Document([A, B, 'a']), {},
        '^#$#a$',
        '011222',
        '..x.xx'),
    'two pictures in a row, read as speaking of the one below': (
        Document([A, B, 'a']), dict(rng=rng(), p_next=1.0),
        '^#$#a$',
        '012222',
        '..x.xx'),
    'a picture at the end': (
        Document(['a', A]), {},
        '^a$#$',
        '00011',
        '.xx.x'),
    'text in two pieces is one chunk': (
        Document([A, 'a', 'b']), {},
        '^#ab$',
        '01111',
        '..xxx'),
    'an <EOC> of its own takes the place of the one that a picture brings': (
        Document(['a', EndOfChunk(), A, 'b', EndOfChunk(), 'c']), {},
        '^a$#b$c$',
        '00011111',
        '.xx.xxxx'),
    'no picture at all, nothing below to speak of': (
        Document(['ab']), dict(rng=rng(), p_next=1.0),
        '^ab$',
        '0000',
        '.xxx'),
    'nothing at all': (Document([]), {}, '^', '0', '.'),
    'given text is read, not learned; what follows it is': (
        Document([A, Given('Q:'), 'a', B, Given('Q:'), 'b'], 'examples'), {},
        '^#Q:a$#Q:b$',
        '01111122222',
        '....xx...xx'),
    'few-shot examples speak of the picture above, whatever p_next': (
        Document([A, 'a', B, 'b'], 'examples'), dict(rng=rng(), p_next=1.0),
        '^#a$#b$',
        '0111222',
        '..xx.xx'),
    'a prompt stays open at its end': (
        Document([A, Given('Q:'), 'a', B, Given('Q:')], 'prompt'), {},
        '^#Q:a$#Q:',
        '011111222',
        '....xx...'),
    'a pair with a space in front of its caption': (
        Document([A, 'ab'], 'pair'), dict(rng=rng(), p_space=1.0),
        '^# ab$',
        '011111',
        '..xxxx'),
    'a pair without': (
        Document([A, 'ab'], 'pair'), dict(rng=rng(), p_space=0.0),
        '^#ab$',
        '01111',
        '..xxx'),
    'only pairs get a space': (
        Document([A, 'ab'], 'page'), dict(rng=rng(), p_space=1.0, p_next=0.0),
        '^#ab$',
        '01111',
        '..xxx'),
    'a window of six tokens without chance: the beginning': (
        Document(['ab', A, 'c', B, 'de']), dict(n_token=6),
        '^ab$#c',
        '000011',
        '.xxx.x'),
    'one picture at most: up to the second': (
        Document(['ab', A, 'c', B, 'de']), dict(n_image=1),
        '^ab$#c$',
        '0000111',
        '.xxx.xx'),
    'text that speaks of the picture below, which one picture too many has cut off, sees nothing': (
        Document(['ab', A, 'c', B, 'de']), dict(n_image=1, rng=rng(), p_next=1.0),
        '^ab$#c$',
        '0111100',
        '.xxx.xx'),
}


@pytest.mark.parametrize('name', BY_HAND)
def test_documents_read_as_written_by_hand(name):
    document, options, tokens, index, learned = BY_HAND[name]
    encoded = encode(document, BYTES, **options)
    assert written(encoded) == (tokens, index, learned)
    assert [m.key for m in encoded.media] == ['A', 'B'][:tokens.count('#')]


def test_chance_decides_once_for_a_page_and_once_for_a_caption():
    """p_next and p_space of one half: both readings come, about equally often, and never mixed within one
    page."""
    page, pair = Document(['a', A, 'b', B, 'c']), Document([A, 'ab'], 'pair')
    above, below = '000111222', '011122222'
    indices = [written(encode(page, BYTES, rng=rng(i)))[1] for i in range(400)]
    assert set(indices) == {above, below}
    assert 150 < indices.count(above) < 250
    spaces = [written(encode(pair, BYTES, rng=rng(i)))[0] for i in range(400)]
    assert set(spaces) == {'^#ab$', '^# ab$'}
    assert 150 < spaces.count('^#ab$') < 250


def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers():
    """Cutting it silently would answer another question."""
    prompt = Document([A, 'abc', B, Given('d')], 'prompt', where='line 3')
    assert len(encode(prompt, BYTES, n_token=8, n_image=2).tokens) == 8  # <BOS> <image> a b c <EOC> <image> d
    with pytest.raises(BadInput, match=r'line 3.*\b8\b.*\b7\b'):
        encode(prompt, BYTES, n_token=7)
    with pytest.raises(BadInput, match=r'line 3.*\b2\b.*\b1\b'):
        encode(prompt, BYTES, n_image=1)


def random_page(r):
    """Pictures and texts in any order. No letter appears twice, so that every token says where it comes
    from."""
    letters = iter(map(chr, range(33, 127)))
    pieces = []
    for _ in range(r.randrange(9)):
        if r.random() < 0.5:
            pieces.append(media(str(len(pieces))))
        else:
            text = ''.join(next(letters) for _ in range(r.randrange(1, 6)))
            pieces.append(Given(text) if r.random() < 0.3 else text)
    return Document(pieces, r.choice(['page', 'page', 'examples', 'pair']))


def test_every_window_is_a_piece_of_its_page_with_nothing_made_up():
    """Random pages, random limits. The window is a stretch of the whole sequence, at most as long and with
    at most as many pictures as allowed; its tags and its pictures are the same ones; each token sees what
    it saw in the whole page, or nothing where that was cut off; and it is learned where it was, but for the
    very first."""
    r, cut, blinded = random.Random(0), 0, 0
    for seed in range(600):
        document, n_token, n_image = random_page(r), r.choice([None, 1, 3, 6, 12]), r.choice([None, 1, 2, 4])
        whole = encode(document, BYTES, rng=rng(seed))
        window = encode(document, BYTES, n_token, n_image, rng=rng(seed))
        n = len(window.tokens)
        assert len(window.image_index) == len(window.loss_mask) == n > 0
        assert n_token is None or n <= n_token
        assert n_image is None or len(window.media) <= n_image
        assert len(window.media) == (window.tokens == BYTES.image).sum()
        assert not window.loss_mask[0]

        def saw(encoded, at):
            return encoded.media[encoded.image_index[at] - 1].key if encoded.image_index[at] else None

        kept = {m.key for m in window.media}
        expected = [[(t, saw(whole, at) if saw(whole, at) in kept else None, bool(whole.loss_mask[at]))
                     for at, t in enumerate(whole.tokens) if start <= at < start + n]
                     for start in range(len(whole.tokens) - n + 1)]
        found = [(t, saw(window, at), bool(window.loss_mask[at])) for at, t in enumerate(window.tokens)]
        assert any(found[1:] == stretch[1:] and found[0][:2] == stretch[0][:2] for stretch in expected)
        cut += n < len(whole.tokens)
        blinded += any(saw(whole, at) not in kept for at in range(len(whole.tokens)) if whole.image_index[at]
                       and whole.tokens[at] in window.tokens)
    assert cut > 100 and blinded > 50  # the limits did matter


def test_windows_start_anywhere():
    """A long page is learned to its end, and its beginning is no more likely than the rest."""
    page = Document(['abcdefgh'])
    starts = [written(encode(page, BYTES, n_token=4, rng=rng(i)))[0] for i in range(700)]
    assert set(starts) == {'^abc', 'abcd', 'bcde', 'cdef', 'defg', 'efgh', 'fgh$'}
    assert min(starts.count(s) for s in set(starts)) > 60


# ---------------------------------------------------------------------------------------------
# Examples, episodes, batches


def test_an_example_reads_the_same_in_training_and_in_a_prompt():
    """The answer follows after a space; in a prompt it is missing, and nothing else is."""
    shown = Example(A, 'Output:', 'a ring.')
    assert shown.pieces() == [A, 'Output:', ' a ring.']
    assert [type(p) for p in shown.pieces()] == [Media, Given, str]
    assert [type(p) for p in shown.pieces(learned=False)] == [Media, Given, Given]
    assert shown.pieces(answered=False) == [A, 'Output:']
    assert Example(None, 'Q:', 'yes').pieces(answered=False) == ['Q:']


def test_an_episode_is_an_unfinished_page_of_examples():
    """With pictures; and with text-only examples (the paper's zero-shot prompts), which see nothing, have
    no tag, and end with their <EOC> all the same."""
    query, one, two = Example(B, 'Q:', '3'), ('Q:', '1'), ('Q:', '2')
    pages = {('^#Q: 1$#Q:',
              '0111111222',
              '....xxx...'): [Example(A, *one)],
             ('^Q: 1$Q: 2$#Q:',
              '00000000000111',
              '...xxx..xxx...'): [Example(None, *one), Example(None, *two)]}
    for expected, support in pages.items():
        assert written(encode(Episode(support, query).document(), BYTES)) == expected


def test_answers_are_compared_as_text_unless_the_episode_says_otherwise():
    episode = Episode([], Example(A, 'Output:', 'A ring.'))
    assert [episode.is_right(text)
            for text in (' a ring', 'A RING.\n', 'a rings', 'ring', '')] == [True, True, False, False, False]
    lenient = Episode([], Example(A, 'Output:', 'A ring.'), check=lambda text: 'ring' in text)
    assert lenient.is_right('two rings') and not lenient.is_right('a star')


def test_a_batch_is_padded_and_each_token_predicts_the_next():
    one = encode(Document(['ab', A, 'c']), BYTES)        # ^ab$#c$
    two = encode(Document([B, Given('x')], 'examples'), BYTES)  # ^#x$
    batch = collate([one, two], BYTES)
    a, b, c, x = map(ord, 'abcx')
    bos, pad, image, eoc = BYTES.bos, BYTES.pad, BYTES.image, BYTES.eoc
    assert batch.tokens.tolist() == [[bos, a, b, eoc, image, c, eoc], [bos, image, x, eoc, pad, pad, pad]]
    assert batch.image_index.tolist() == [[0, 0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 0, 0, 0]]
    assert batch.targets.tolist() == [[a, b, eoc, -100, c, eoc, -100],
                                      [-100, -100, eoc, -100, -100, -100, -100]]
    assert batch.length.tolist() == [7, 4] and batch.media == [[A], [B]]
    assert {t.dtype for t in (batch.tokens, batch.image_index, batch.targets)} == {torch.int64}


def test_short_sequences_share_a_row():
    """The longest has a row to itself, the two others fit into one: pictures are counted on, positions
    begin where each stands, and no sequence predicts the next one's first token."""
    documents = Document(['abcd', A, 'ef']), Document([B, Given('x')], 'examples'), Document(['a', A])
    long, one, two = (encode(document, BYTES) for document in documents)
    one.start = 7
    batch = collate([one, long, two], BYTES, share=True)
    bos, image, eoc, pad = BYTES.bos, BYTES.image, BYTES.eoc, BYTES.pad
    assert all(a is b for a, b in zip(batch.sequences, (long, two, one), strict=True))
    assert batch.media == [[A], [A, B]]
    assert batch.tokens[1].tolist() == [bos, ord('a'), eoc, image, eoc, bos, image, ord('x'), eoc, pad]
    assert batch.image_index[1].tolist() == [0, 0, 0, 1, 1, 0, 2, 2, 2, 0]
    assert batch.position[1].tolist() == [0, 1, 2, 3, 4, 7, 8, 9, 10, 0]
    assert batch.sequence[1].tolist() == [2, 2, 2, 2, 2, 3, 3, 3, 3, 0]
    assert batch.targets[1].tolist() == [ord('a'), eoc, -100, eoc, -100, -100, -100, eoc, -100, -100]
    assert batch.length.tolist() == [10, 9]


def test_frames_are_stacked_and_the_rest_is_marked_as_padding():
    frames = {'one': torch.tensor([[1.0]]), 'two': torch.tensor([[2.0], [3.0]])}
    stacked, mask = stack_frames([[media('two'), media('one')], [media('one')], []], lambda m: frames[m.key])
    assert stacked.squeeze(-1).tolist() == [[[2, 3], [1, 0]], [[1, 0], [0, 0]], [[0, 0], [0, 0]]]
    assert mask.tolist() == [[[True, True], [True, False]], [[True, False], [False, False]],
                             [[False, False], [False, False]]]
    assert stack_frames([[], []], None) == (None, None)


# ---------------------------------------------------------------------------------------------
# Pixels


def test_a_wide_picture_keeps_its_aspect_on_its_own_mean_colour():
    """4 x 2, half (200, 0, 0) and half (0, 100, 40), in a square of 4: two rows of it, and (100, 50, 20)
    around them."""
    left, right, mean = (200, 0, 0), (0, 100, 40), (100, 50, 20)
    wide = Image.new('RGB', (4, 2), left)
    wide.paste(right, (2, 0, 4, 2))
    expected = np.array([[mean] * 4, [left, left, right, right], [left, left, right, right], [mean] * 4])
    assert (to_pixels(wide, 4).transpose(1, 2, 0) == expected).all()
    # and a tall one
    assert (to_pixels(wide.transpose(Image.Transpose.TRANSPOSE), 4).transpose(2, 1, 0) == expected).all()
    line = to_pixels(Image.new('RGB', (1000, 1), left), 48)  # thinner than a pixel: still there
    assert (line.reshape(3, -1).T == left).all()


def test_pictures_are_scaled_without_loss_of_sense():
    """A square of the right size is untouched; a small one grows to fill the square; a fine pattern shrinks
    to its mean instead of to some of its pixels."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert (to_pixels(Image.fromarray(noise), 8) == noise.transpose(2, 0, 1)).all()
    half = np.zeros((2, 2, 3), dtype=np.uint8)
    half[:, 1] = 255
    large = to_pixels(Image.fromarray(half), 16)
    assert large.shape == (3, 16, 16) and (large[:, :, :4] < 40).all() and (large[:, :, 12:] > 215).all()
    board = (np.indices((96, 96)).sum(0) % 2 * 255).astype(np.uint8)
    small = to_pixels(Image.fromarray(board).convert('RGB'), 24)[:, 2:-2, 2:-2]
    assert (abs(small.astype(int) - 127) < 12).all()


def test_frames_are_spread_evenly_over_a_clip():
    """Of ten frames four: 0, 3, 6 and 9, the first and the last among them. A short clip keeps all of its
    own."""
    def clip(n):
        return Media('clip', lambda: [Image.new('RGB', (4, 4), (i, i, i)) for i in range(n)])
    shown = lambda n, n_frame: load_pixels(clip(n), 4, n_frame)[:, 0, 0, 0].tolist()
    assert shown(10, 4) == [0, 3, 6, 9]
    assert shown(3, 4) == [0, 1, 2]
    assert shown(5, 1) == [0]
    with pytest.raises(BadItem, match='clip'):
        load_pixels(clip(0), 4, 4)


def noise(n, size=12):
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8,
                         generator=torch.Generator().manual_seed(0))


def test_augmentation_is_chance_from_rng_alone():
    """The same rng, the same pictures (a resumed run must see what the other would have seen); and to each
    its own."""
    pixels = noise(1).expand(6, -1, -1, -1)
    once, again, other = (augment(pixels, rng(seed), flip=True) for seed in (0, 0, 1))
    assert torch.equal(once, again) and not torch.equal(once, other)
    assert once.dtype == torch.uint8 and once.shape == pixels.shape
    assert len({bytes(p.numpy().tobytes()) for p in once}) == 6


def test_flips_mirror_about_half_and_only_when_asked():
    pixels = noise(400)
    assert torch.equal(augment(pixels, rng(), strength=0), pixels)
    flipped = augment(pixels, rng(), flip=True, strength=0)
    same, mirrored = ((flipped == p).flatten(1).all(1) for p in (pixels, pixels.flip(-1)))
    assert (same ^ mirrored).all() and 150 < mirrored.sum() < 250
    bright_left = torch.zeros(200, 3, 16, 16, dtype=torch.uint8)
    bright_left[..., :8] = 255
    turned = augment(bright_left, rng()).float()
    # moved and turned, never mirrored
    assert (turned[..., :8].mean((1, 2, 3)) > turned[..., 8:].mean((1, 2, 3))).all()


def test_what_comes_into_view_is_the_nearest_edge():
    """A picture of one colour stays of one colour, however it is turned and moved: no black corners."""
    plain = torch.tensor([200, 120, 60], dtype=torch.uint8).view(1, 3, 1, 1).expand(50, 3, 16, 16)
    seen = augment(plain, rng()).float()
    assert (seen.amax((2, 3)) - seen.amin((2, 3)) <= 1).all()
    assert len(seen[:, :, 0, 0].unique(dim=0)) > 40  # its colour did change


def test_without_colour_only_places_change():
    grey = noise(20)[:, :1].expand(-1, 3, -1, -1)
    seen = augment(grey, rng(), colour=False, warp=1.0)
    assert torch.equal(seen[:, :1].expand(-1, 3, -1, -1), seen)
    plain = torch.full((9, 3, 16, 16), 77, dtype=torch.uint8)
    assert torch.equal(augment(plain, rng(), colour=False, warp=1.0), plain)
    assert torch.equal(augment(grey, rng(), strength=0, colour=False), grey)


def test_warping_slants_stretches_and_bends():
    """A straight line through the middle: moved and turned it stays straight; slanted and stretched, too;
    bent, it does not."""
    line = torch.zeros(60, 3, 33, 33, dtype=torch.uint8)
    line[..., 16] = 255
    y = torch.arange(33.0)[8:25]

    # how far the line's middle, in each row of pixels, is from the best straight line
    def off_straight(pixels):
        x = (pixels[:, 0].float()
             * torch.arange(33.0)).sum(-1)[:, 8:25] / pixels[:, 0].float().sum(-1)[:, 8:25]
        design = torch.stack([y, torch.ones_like(y)], 1)
        return (x - (design @ torch.linalg.lstsq(design, x.T).solution).T).abs().amax(1)
    turned, warped = (off_straight(augment(line, rng(), 0.5 * (1 - warp), colour=False, warp=warp))
                      for warp in (0.0, 1.0))
    assert turned.max() < 0.2 and warped.median() > 0.3
    square = torch.zeros(60, 3, 32, 32, dtype=torch.uint8)
    square[..., 8:24, 8:24] = 255
    def aspect(pixels):
        wide, high = ((pixels[:, 0] > 127).any(d).sum(1) for d in (1, 2))
        return (wide / high).log().abs()
    assert aspect(augment(square, rng(), strength=0.0, colour=False, warp=1.0)).mean() > 0.1


def test_traced_pictures_keep_their_outlines_and_lose_their_colours():
    """A red square on white: dark along its border, lighter inside than it was, white on four of ten."""
    square = torch.full((200, 3, 32, 32), 255, dtype=torch.uint8)
    square[:, 1:, 8:24, 8:24] = 0
    traced = augment(square, rng(), strength=0.0, lines=1.0).float() / 255
    border, inside, outside = (traced[..., place, 12:20].mean((2, 3)) for place in ([7, 8], [12], [2]))
    assert (border.amax(1) < 0.4).all() and (outside == 1).all()
    assert ((inside[:, 0] == 1) & (inside[:, 1] >= 0)).all() and inside[:, 1].std() > 0.2
    assert 0.3 < (inside[:, 1] == 1).float().mean() < 0.5
    plain = torch.full((4, 3, 16, 16), 200, dtype=torch.uint8)  # nothing to trace: no ink at all
    assert (augment(plain, rng(), strength=0.0, lines=1.0) >= 200).all()
    some = augment(square, rng(), strength=0.0, lines=0.3)
    assert 0.2 < (some != square).flatten(1).any(1).float().mean() < 0.4


# ---------------------------------------------------------------------------------------------
# python look.py PATH


@pytest.fixture()
def look(monkeypatch, capsys):
    """look(arguments, code=0) -> what the command prints; where it fails, its one line on stderr."""
    def look(*arguments, code=0):
        monkeypatch.setattr(sys, 'argv', ['look.py', *map(str, arguments)])
        try:
            command(look_command.main)
            found = 0
        except SystemExit as e:
            found = e.code
        printed = capsys.readouterr()
        assert found == code, printed.err
        assert code == 0 or printed.err.startswith('error: ') and printed.err.count('\n') == 1
        return printed.err if code else printed.out
    return look


@pytest.fixture()
def folder(tmp_path):
    """Three good pairs, a picture cut short, a line without text."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    for name in 'abcd':
        Image.fromarray(noise).save(tmp_path / f'{name}.jpg')
    (tmp_path / 'd.jpg').write_bytes((tmp_path / 'd.jpg').read_bytes()[:1000])
    entries = [('a', 'a red fox'), ('b', 'a tram'), ('c', 'a ring'), ('d', 'cut short'), ('a', ' ')]
    (tmp_path
     / 'metadata.jsonl').write_text(''.join(json.dumps({'file_name': f'{name}.jpg', 'text': text}) + '\n'
                                            for name, text in entries))
    return tmp_path


def test_looking_at_a_source(folder, look):
    """What is counted, in the file and on screen; and the sheet, a picture of some size."""
    printed = look(folder, f'--out={folder}/out.json', f'--picture={folder}/sheet.png')
    # <BOS>, <image>, <EOC>
    expected = sum(3 + len(SHIPPED.encode(text)) for text in ('a red fox', 'a tram', 'a ring'))
    assert json.loads((folder / 'out.json').read_text()) == {
        'documents': 3, 'images': 3, 'tokens': expected, 'dropped': {'truncated': 1, 'no text': 1},
        'different_texts': 3,
        'first_texts': ['a red fox', 'a tram', 'a ring']}
    assert f'3 documents, 3 images, {expected} tokens' in printed
    assert f'no text: 1 ({folder}/metadata.jsonl:5)' in printed
    sheet = np.asarray(Image.open(folder / 'sheet.png').convert('RGB')).astype(int)
    assert sheet.shape[1] > 3 * 128 and (abs(sheet - 255).sum(-1) > 100).mean() > 0.2


def test_looking_at_pages(folder, look):
    """Each picture counts; those that a page has lost are named; text is tied to the picture before it."""
    pages = [{'texts': ['x', None, None, 'y', None],
              'images': [None, 'a.jpg', 'https://example.org/b.jpg', None, 'd.jpg']},
             {'texts': ['only lost ones', None], 'images': [None, 'd.jpg']},
             {'texts': [None, 'z'], 'images': ['b.jpg', None]}]
    (folder / 'documents.jsonl').write_text(''.join(json.dumps(page) + '\n' for page in pages))
    look(folder / 'documents.jsonl', f'--out={folder}/out.json', '--picture=')
    found = json.loads((folder / 'out.json').read_text())
    assert found['documents'] == 2 and found['images'] == 2
    # the same file cut short, twice
    assert found['dropped'] == {'truncated': 1, 'remote picture': 1, 'page without pictures': 1}


def test_looking_at_nonsense(folder, look):
    assert look(code=2).startswith('error: write python look.py PATH')
    assert 'no such folder' in look(folder / 'none', code=2)
    assert 'image_size' in look(folder, '--image_size=0', code=2)
    for name in 'abc':
        (folder / f'{name}.jpg').write_bytes(b'broken')
    assert '4 of 4 documents cannot be used' in look(folder, f'--out={folder}/out.json', '--picture=', code=2)
    assert json.loads((folder / 'out.json').read_text())['documents'] == 0


def test_the_command_itself(folder):
    """As a script its classes must be the ones that the readers make."""
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, 'look.py', folder, '--picture='], cwd=root, capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == 0 and '3 documents, 3 images' in done.stdout, done.stderr[-2000:]


def test_the_moved_command_says_where_it_went():
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, 'data.py', 'folder'], cwd=root, capture_output=True, text=True)
    assert done.returncode == 2 and 'python look.py' in done.stderr
