"""From a Document to tensors: everything Flamingo reads is an ordered list of texts and pictures.

A web page, a captioned picture, a captioned clip, a few-shot prompt and a chat are all a `Document`.
This file tells how a Document becomes what the model eats (Flamingo §3.1.3, §3.2 and appendix A.3):

    Document([Media, "Output: a red ring.", Media, ...])
       │  encode: insert <BOS>, <image>, <EOC>; find for each token the one picture it may look at
       ▼
    tokens (T,)   image_index (T,)   loss_mask (T,)   media [Media, ...]
       │  collate: pad
       ▼
    Batch of tokens (B,T), image_index (B,T), targets (B,T), media [[Media, ...], ...]

Shapes: B batch, T tokens, N images in the sequence, F frames, H and W pixels.

    python data.py PATH     # what a source on disk holds, what is left out of it and why, and a sheet of its first pictures
"""
import base64
import hashlib
import json
import os
import sys
import tempfile
from dataclasses import dataclass, field
from functools import cached_property
from typing import Callable

import numpy as np
import tiktoken
import torch
from PIL import Image
from tiktoken.load import data_gym_to_mergeable_bpe_ranks

from kit import checkpoint
from kit.configurator import BadInput, BadItem, check_range, command, configure, one_line, open_file

# ---------------------------------------------------------------------------------------------
# Documents


@dataclass
class Media:
    """One picture, or one clip. `load()` gives its frames as RGB pictures; one frame = a picture.

    `key` names the exact pixels: two Media with the same key look the same, so whatever was computed
    from one (frozen features) may be reused for the other. An empty key promises nothing.
    `load` must survive pickling (a functools.partial of a top-level function does), so that worker
    processes can decode. It raises `kit.configurator.BadItem` where the file is damaged.
    """
    key: str
    load: Callable[[], list]


class Given(str):
    """Text that a reader supplies and the model need not learn to predict ("Output:", a question)."""


class EndOfChunk:
    """An <EOC> in a place of its own, where no picture follows: the end of a text-only example."""


@dataclass
class Document:
    """Ordered pieces: `str` (learned), `Given` (read, not learned), `Media`, and seldom an `EndOfChunk`.

    kind: 'page'      a web page: a picture may belong to the text before it or after it, nobody knows
          'examples'  picture, then its text, several times: a few-shot prompt with all its answers
          'pair'      one picture or clip and its caption
          'prompt'    like examples, but the last text is unfinished
    """
    pieces: list
    kind: str = 'page'
    where: str = ''  # file and line, for messages
    dropped: list = field(default_factory=list)  # pictures that it has lost on the way here: BadItems


@dataclass
class Example:
    """A picture, what is asked about it ("Output:", "Question: … Answer:"), and the answer. media may be None: text only."""
    media: Media | None
    prompt: str
    answer: str

    def pieces(self, learned=True, answered=True):
        """-> Document pieces. The answer follows the prompt after a space, in training and in prompts alike."""
        answer = [' ' + self.answer if learned else Given(' ' + self.answer)] if answered else []
        # A picture closes the example before it by itself; a text-only example must be closed by hand.
        closed = [EndOfChunk()] if self.media is None and answered else []
        return [*([] if self.media is None else [self.media]), Given(self.prompt), *answer, *closed]


@dataclass
class Episode:
    """A few-shot task: examples to learn from, and a query whose answer is the truth (§4, appendix A.2).

    choices: the answers to choose from, by log-likelihood; None: the answer is generated.
    check(text) -> bool says whether a generated answer is right; by default when it is the same text.
    people: all answers or captions that people gave, where the metric wants more than one (VQA accuracy, CIDEr).
    relevance: for each choice, how right it is, where that is a matter of degree (VisDial's NDCG).
    where: file and line, for messages;  induction: text that opens the prompt (Frozen's "Answer with dax or blicket.").
    """
    support: list
    query: Example
    choices: list | None = None
    check: Callable[[str], bool] | None = None
    people: list | None = None
    relevance: list | None = None
    where: str = ''
    induction: str = ''

    def document(self):
        pieces = [Given(self.induction)] if self.induction else []
        pieces += [piece for example in self.support for piece in example.pieces()]
        return Document(pieces + self.query.pieces(answered=False), 'prompt', self.where)

    def is_right(self, text):
        if self.check is not None:
            return self.check(text)
        return text.strip().rstrip('.').lower() == self.query.answer.strip().rstrip('.').lower()


# ---------------------------------------------------------------------------------------------
# Prompts of every kind of task, in the paper's words. The answer follows after a space.

CAPTION_PROMPT = 'Output:'   # captions, names and classes
ACTION_PROMPT = 'Caption:'   # unusual actions, RareAct: 'Caption: a person cuts a phone'


def question_prompt(question):
    return f'Question: {question} Answer:'


def statement_prompt(text, asked='Is it hateful?'):
    """A text on a picture, to be judged: yes or no (the form that the paper found for HatefulMemes)."""
    return f'is an image with written: "{text}" on it. {asked} Answer:'


def dialogue_prompt(caption, turns, question):
    """VisDial: the caption unprompted, the turns so far, [(question, answer), …], and what is asked now."""
    return ' '.join([*([caption] if caption else []), *(f'{question_prompt(q)} {a}' for q, a in turns), question_prompt(question)])


# ---------------------------------------------------------------------------------------------
# Tokenizer

# GPT-2's own pattern: contractions, words with their leading space, numbers, punctuation, spaces.
SPLIT = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
PATTERNS = (SPLIT,)  # that a checkpoint may ask for: a stranger's regular expression can run for ever
LIMIT_TOKENIZER = 64 << 20  # bytes of a tiktoken file
LONGEST = 20_000     # characters given to tiktoken at once: a million spaces in a row would overflow its stack and end the process


class Tokenizer:
    """Byte-level BPE (tiktoken) and four ids that no text can ever produce.

    Ids 0 … V-1 belong to the language model and are frozen with it: the BPE ranks, then <BOS> and <PAD>.
    Ids V and V+1 are <image> and <EOC>, which the language model never met: Flamingo trains their two
    rows itself (§3.2; the paper adds <EOC> only, and writes <image> as plain text).
    """

    def __init__(self, ranks, pattern=SPLIT, bos=None, pad=None):
        n = len(ranks)
        if sorted(ranks.values()) != list(range(n)):
            raise BadInput(f'tokenizer: the ranks must be 0 … {n - 1}, each once')
        if not all(bytes([b]) in ranks for b in range(256)):
            raise BadInput('tokenizer: not all 256 single bytes are in it, so not every text could be encoded')
        self.ranks, self.pattern = ranks, pattern
        self.bos = n if bos is None else bos
        self.pad = n + 1 if pad is None else pad
        self.n_vocab = max(n, self.bos + 1, self.pad + 1)  # V: what the language model knows
        self.image, self.eoc = self.n_vocab, self.n_vocab + 1

    @cached_property
    def _bpe(self):
        # No special tokens are handed to tiktoken at all: "<image>" typed by a person stays seven letters.
        return tiktoken.Encoding('nanoflamingo', pat_str=self.pattern, mergeable_ranks=self.ranks, special_tokens={})

    def encode(self, text):
        """str -> list of ids below V; never <BOS>, <PAD>, <image> or <EOC>, whatever the text says."""
        ids, start = [], 0
        while start < len(text):
            stop = start + LONGEST
            if stop < len(text):
                space = text.rfind(' ', start + 1, stop)  # tokens begin there anyway
                stop = space if space > 0 else stop
            ids += self._bpe.encode_ordinary(text[start:stop])
            start = stop
        return ids

    def decode(self, ids):
        """list of ids -> str; the four special ids are left out."""
        return self._bpe.decode([i for i in ids if i < len(self.ranks)], errors='replace')

    @classmethod
    def load(cls, path):
        """Read a tiktoken file: a base64 token and its rank on each line."""
        ranks = {}
        with open_file(path, LIMIT_TOKENIZER) as f:
            for number, line in enumerate(f, 1):
                try:
                    token, rank = line.split()
                    ranks[base64.b64decode(token, validate=True)] = int(rank)
                except ValueError as e:
                    raise BadInput(f'{path}:{number}: not a "base64-token rank" line') from e
        try:
            return cls(ranks)
        except BadInput as e:
            raise BadInput(f'{path}: {e}') from e

    @classmethod
    def from_gpt2(cls, folder=None):
        """GPT-2's own: vocab.json and merges.txt of a folder as published on the Hugging Face hub; without a folder, what
        tiktoken has in its cache. Never fetched from the network. <|endoftext|>, its last id, is <BOS> and <PAD>: GPT-2
        was trained with it between documents, and padding is neither seen nor learned. Raises BadInput."""
        if folder is None:
            names = [f'https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/{n}' for n in ('vocab.bpe', 'encoder.json')]
            cache = os.environ.get('TIKTOKEN_CACHE_DIR', os.environ.get('DATA_GYM_CACHE_DIR', os.path.join(tempfile.gettempdir(), 'data-gym-cache')))
            if not all(os.path.exists(os.path.join(cache, hashlib.sha1(n.encode()).hexdigest())) for n in names):
                raise BadInput("--tokenizer=gpt2: not in tiktoken's cache, and nothing is fetched unasked; to fetch it: "
                               'python -c "import tiktoken; tiktoken.get_encoding(\'gpt2\')"')
            ranks = tiktoken.get_encoding('gpt2')._mergeable_ranks
        else:
            merges, vocab = os.path.join(folder, 'merges.txt'), os.path.join(folder, 'vocab.json')
            try:
                # tiktoken keeps copies of files by their names; the hashes make it notice that one has changed.
                hashes = []
                for path in (merges, vocab):
                    with open(path, 'rb') as f:
                        hashes.append(hashlib.sha256(f.read()).hexdigest())
                ranks = data_gym_to_mergeable_bpe_ranks(merges, vocab, *hashes)
            except OSError as e:
                raise BadInput(f'{path}: {e.strerror}') from e
            except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as e:
                raise BadInput(f"{folder}: vocab.json and merges.txt are not GPT-2's, or do not belong together") from e
        return cls(ranks, bos=len(ranks), pad=len(ranks))

    def save(self, path):
        with checkpoint.whole_file(path) as f:
            for token, rank in sorted(self.ranks.items(), key=lambda item: item[1]):
                f.write(base64.b64encode(token) + b' %d\n' % rank)

    def state(self):
        """Plain values for a checkpoint; `from_state` is the way back."""
        tokens = sorted(self.ranks, key=self.ranks.get)
        return {'tokens': [base64.b64encode(t).decode() for t in tokens], 'pattern': self.pattern, 'bos': self.bos, 'pad': self.pad}

    @classmethod
    def from_state(cls, state):
        """Raises BadInput where it is no tokenizer."""
        try:
            ranks = {base64.b64decode(t, validate=True): i for i, t in enumerate(state['tokens'])}
            if state['pattern'] not in PATTERNS or not all(type(state[name]) is int and state[name] >= 0 for name in ('bos', 'pad')):
                raise ValueError
        except (KeyError, TypeError, ValueError) as e:
            raise BadInput('tokenizer: damaged, or of an unknown kind') from e
        return cls(ranks, state['pattern'], state['bos'], state['pad'])


# ---------------------------------------------------------------------------------------------
# Document -> tokens


@dataclass
class Encoded:
    """One sequence: tokens, image_index and loss_mask are numpy arrays of one length T; media are the pictures its
    <image> tags stand for, in order."""
    tokens: np.ndarray       # int64
    image_index: np.ndarray  # int64, φ: for each token the picture it may look at, counted from 1; 0 = none
    loss_mask: np.ndarray    # bool: is there something to learn in predicting this token?
    media: list
    source: str = ''         # which of the sources it came from
    seed: int = 0            # of what training leaves to chance about its pictures
    start: int = 0           # where in the context its first token stands

    @property
    def n_learned(self):
        """How many tokens the loss is a mean over; the first has nothing before it to be predicted from."""
        return int(self.loss_mask[1:].sum())


def encode(document, tokenizer, n_token=None, n_image=None, rng=None, p_next=0.5, p_space=0.5, blind_loss=True):
    """Document -> Encoded (appendices A.3.2 and B.1.2).

    <BOS> text <EOC> <image> text <EOC> <image> text <EOC>        (<EOC> before each image and at the end; the paper's
                                                                  pairs end with <EOC><EOS>, and GPT-2 has no <EOS>)

    n_token, n_image: L and N, at most this long; None for no limit. A longer page gives a window of L tokens that
        starts at a random place (at its beginning without an rng), ending before the N+1st picture (the paper keeps
        its text, which then sees a picture that it does not speak of). A tag is one token, so no window can cut a
        picture from its tag; text whose picture is outside sees none.
    rng: a numpy Generator; without one, nothing is left to chance: previous picture, no added space.
    p_next: for a page, the chance that its text sees the picture after it instead of the one before it. *Why:* on
        the web both happen. Fixing either would teach the model to ignore half of the pages (Table 10: p_next 0 or 1
        cost 1.1 and 0.3 points). The last text, with no picture after it, keeps the one before it.
    p_space: for a pair, the chance of a space in front of its caption: "dog" and " dog" are different tokens, and a
        prompt may end in either way.
    blind_loss: whether text that sees no picture is learned too (OpenFlamingo leaves it out).

    Learned: text and <EOC>. Not learned: <BOS>, <image>, padding, Given text.
    Raises BadInput if the Document is a prompt and longer than n_token, or has more than n_image pictures.
    """
    tokens, index, learn, media = [tokenizer.bos], [0], [False], []
    follow = document.kind == 'page' and rng is not None and rng.random() < p_next
    total = sum(isinstance(piece, Media) for piece in document.pieces)
    sees = min(1, total) if follow else 0   # what text sees now
    open_chunk = False                      # is there anything since the last <EOC>?

    def put(ids, image, learned):
        tokens.extend(ids)
        index.extend([image] * len(ids))
        learn.extend([learned] * len(ids))

    for piece in document.pieces:
        if isinstance(piece, Media):
            if open_chunk:
                put([tokenizer.eoc], sees, True)
            media.append(piece)
            put([tokenizer.image], len(media), False)  # φ moves on at the tag itself (Figure 7)
            sees = min(len(media) + 1, total) if follow else len(media)
        elif isinstance(piece, EndOfChunk):
            put([tokenizer.eoc], sees, True)
            open_chunk = False
            continue
        else:
            space = document.kind == 'pair' and rng is not None and rng.random() < p_space
            put(tokenizer.encode(' ' + piece if space else piece), sees, not isinstance(piece, Given))
        open_chunk = True
    if open_chunk and document.kind != 'prompt':
        put([tokenizer.eoc], sees, True)

    tokens, index, learn = np.array(tokens), np.array(index), np.array(learn)
    if document.kind == 'prompt':
        if n_token is not None and len(tokens) > n_token:
            raise BadInput(f'{document.where or "prompt"}: {len(tokens)} tokens are longer than the context of {n_token}')
        if n_image is not None and len(media) > n_image:
            raise BadInput(f'{document.where or "prompt"}: {len(media)} pictures are more than {n_image}')
    else:
        tokens, index, learn, media = window(tokens, index, learn, media, tokenizer.image, n_token, n_image, rng)
    if not blind_loss:
        learn &= index > 0
    return Encoded(tokens, index, learn, media)


def window(tokens, index, learn, media, image_token, n_token, n_image, rng):
    """Cut at most n_token tokens and n_image pictures out of a sequence, at random; pictures are counted anew."""
    start, stop = 0, len(tokens)
    if n_token is not None and stop > n_token:
        start = int(rng.integers(stop - n_token + 1)) if rng is not None else 0
        stop = start + n_token
    tags = np.flatnonzero(tokens == image_token)                    # where each picture's tag stands
    first = int(np.searchsorted(tags, start))                       # pictures before the window
    kept = tags[(tags >= start) & (tags < stop)]
    if n_image is not None and len(kept) > n_image:
        stop, kept = int(kept[n_image]), kept[:n_image]
    tokens, index, learn = tokens[start:stop], index[start:stop] - first, learn[start:stop].copy()
    index = np.where((index >= 1) & (index <= len(kept)), index, 0)  # pictures outside are not seen
    if len(learn):
        learn[0] = False                                            # nothing stands before it to predict it from
    return tokens, index, learn, media[first:first + len(kept)]


# ---------------------------------------------------------------------------------------------
# Sequences -> one batch


@dataclass
class Batch:
    """Padded rows, of one sequence each or of several. tokens, image_index, targets, position, document (B,T) int64; length (B,);
    media: B lists of Media; sequences: all of them, in the order in which they stand in the rows.

    targets are the tokens moved by one, and -100 where there is nothing to learn; position: where in the context each token stands;
    document: which sequence of its row it belongs to, 0 for padding.
    """
    tokens: torch.Tensor
    image_index: torch.Tensor
    targets: torch.Tensor
    position: torch.Tensor
    document: torch.Tensor
    length: torch.Tensor
    media: list
    sequences: list


def collate(sequences, tokenizer, share=False):
    """list of Encoded -> Batch, padded on the right with <PAD>. Padding sees no picture and is never learned.

    share: short sequences may share a row. *Why.* Pages are as long as they happen to be, the longest of a batch twice the mean:
    with a row for each, nearly half of all work would be padding. `document` tells those in one row apart.
    """
    rows, room = [], max(len(s.tokens) for s in sequences)
    for s in sorted(sequences, key=lambda s: -len(s.tokens)) if share else sequences:  # longest first: the short ones fill the gaps
        row = next((row for row in rows if sum(len(other.tokens) for other in row) + len(s.tokens) <= room), None) if share else None
        if row is None:
            rows.append(row := [])
        row.append(s)
    length = torch.tensor([sum(len(s.tokens) for s in row) for row in rows])
    shape = len(rows), int(length.max())
    tokens, image_index, targets, position, document = (np.full(shape, value) for value in (tokenizer.pad, 0, -100, 0, 0))
    for r, row in enumerate(rows):
        start, n_image = 0, 0
        for number, s in enumerate(row, 1):
            n = len(s.tokens)
            here = slice(start, start + n)
            tokens[r, here] = s.tokens
            image_index[r, here] = np.where(s.image_index > 0, s.image_index + n_image, 0)
            targets[r, start:start + n - 1] = np.where(s.loss_mask[1:], s.tokens[1:], -100)  # position ℓ predicts token ℓ+1
            position[r, here], document[r, here] = s.start + np.arange(n), number
            start, n_image = start + n, n_image + len(s.media)
    media = [[m for s in row for m in s.media] for row in rows]
    return Batch(*map(torch.from_numpy, (tokens, image_index, targets, position, document)), length, media, [s for row in rows for s in row])


# ---------------------------------------------------------------------------------------------
# Pictures -> pixels


def to_pixels(image, size):
    """PIL RGB picture -> (3,size,size) uint8: aspect kept, longer side resized, the rest filled with the picture's
    mean colour (appendix B.1.2)."""
    if image.size != (size, size):
        scale = size / max(image.size)
        w, h = (max(1, round(side * scale)) for side in image.size)
        # BOX would do for shrinking; BICUBIC with its widened window is right in both directions.
        small = image.resize((w, h), Image.Resampling.BICUBIC)
        if (w, h) != (size, size):
            mean = tuple(int(round(c)) for c in np.asarray(small).reshape(-1, 3).mean(0))
            image = Image.new('RGB', (size, size), mean)
            image.paste(small, ((size - w) // 2, (size - h) // 2))
        else:
            image = small
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def load_pixels(media, size, n_frame):
    """Media -> (F,3,size,size) uint8, F ≤ n_frame frames spread evenly. Raises BadItem where it cannot be read."""
    frames = media.load()
    if not frames:
        raise BadItem('empty', media.key, 'no frames')
    if len(frames) > n_frame:
        frames = [frames[round(i * (len(frames) - 1) / max(n_frame - 1, 1))] for i in range(n_frame)]
    return np.stack([to_pixels(frame, size) for frame in frames])


def stack_frames(media, frames):
    """B lists of Media -> (B,N,F,…) tensor, zero where there is no frame, and frame_mask (B,N,F) bool.

    `frames(media)` gives one of them as a tensor (F,…): its pixels, or its features. Without any: (None, None).
    """
    arrays = [[frames(m) for m in row] for row in media]
    mask = frame_mask([[len(a) for a in row] for row in arrays])
    if mask is None:
        return None, None
    arrays = torch.cat([a for row in arrays for a in row])  # all real frames, one after the other
    stacked = arrays.new_zeros(*mask.shape, *arrays.shape[1:])
    stacked[mask] = arrays
    return stacked, mask


def frame_mask(lengths):
    """How many frames each picture has, in B lists -> (B,N,F) bool, True where there is a frame; None without any picture."""
    n = max(len(row) for row in lengths)
    if n == 0:
        return None
    lengths = torch.tensor([row + [0] * (n - len(row)) for row in lengths])               # (B,N)
    return torch.arange(int(lengths.max())) < lengths.unsqueeze(-1)


def augment(pixels, rng, flip=False, strength=1.0, colour=True, warp=0.0):
    """A batch of pictures (N,3,H,W) uint8, each turned, scaled, moved and recoloured a little -> the same, uint8.

    Random colour and flips are the paper's augmentation, of the Flamingo stage, too; there, ours has features that were kept, and
    shows pictures as they are, but for the variants on pages made of a folder. Flips are off where left and right, or letters,
    mean something, colour where there is none. Pixels that come into view take the colour of the nearest edge.
    warp: how much each is slanted, stretched and bent besides, as two hands differ that draw the same.
    """
    n = len(pixels)
    draw = lambda low, high, *shape: torch.from_numpy(rng.uniform(low, high, (n, *shape)).astype(np.float32))
    x = pixels.float() / 255
    angle = draw(-0.25, 0.25) * strength                                        # radians
    scale = torch.exp(draw(-0.2, 0.2) * strength)
    shift = draw(-0.15, 0.15, 2) * strength
    mirror = torch.where(draw(0, 1) < 0.5, -1.0, 1.0) if flip else torch.ones(n)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    matrix = lambda a, b, c, d: torch.stack([a, b, c, d], 1).unflatten(1, (2, 2))  # (N,2,2)
    theta = matrix(cos * mirror, -sin, sin * mirror, cos)
    if warp > 0:
        slant, stretch = draw(-0.2, 0.2) * warp, torch.exp(draw(-0.15, 0.15) * warp)
        theta = theta @ matrix(stretch, slant / stretch, torch.zeros(n), 1 / stretch)
    where = torch.nn.functional.affine_grid(torch.cat([theta, shift.unsqueeze(-1)], 2), x.shape, align_corners=False)  # (N,H,W,2)
    if warp > 0:  # 4 x 4 points move, and what is between them goes along
        bend = torch.nn.functional.interpolate(draw(-0.12, 0.12, 2, 4, 4) * warp, size=x.shape[-2:], mode='bicubic', align_corners=True)
        where = where + bend.permute(0, 2, 3, 1)
    x = torch.nn.functional.grid_sample(x, where, padding_mode='border', align_corners=False)
    if colour:
        grey = x.mean(1, keepdim=True)
        fade = torch.where(draw(0, 1, 1, 1, 1) < 0.5 * strength, 0.0, 1 + strength * draw(-0.5, 0.5, 1, 1, 1))
        x = grey + (x - grey) * fade                                            # saturation, now and then none at all
        x = x * (1 + strength * draw(-0.25, 0.25, 3, 1, 1))                     # colour cast
        x = (x - 0.5) * (1 + strength * draw(-0.3, 0.3, 1, 1, 1)) + 0.5 + strength * draw(-0.15, 0.15, 1, 1, 1)
    return (x.clamp(0, 1) * 255).round().to(torch.uint8)


# ---------------------------------------------------------------------------------------------
# python data.py PATH


KEYS = {
    'out': ('', 'file for the counts: {"documents", "images", "tokens", "dropped": {kind: count}}'),
    'picture': ('contact_sheet.png', 'file for the sheet of pictures, each with the text that sees it; empty for none'),
    'images': ('', 'folder of the pictures that a COCO captions file or a documents.jsonl names, where they are not beside it'),
    'tokenizer': ('assets/tokenizer.tiktoken', 'a tiktoken file'),
    'image_size': (48, 'pixels, height and width, as the model will see them'),
    'n_frame': (8, 'F, most frames of a clip'),
    'n_token': (192, 'L, most tokens of a page on the sheet'),
    'n_image': (12, 'N, most pictures of a page on the sheet'),
    'show': (24, 'pictures on the sheet'),
}


LIMIT_SIDE = 1024    # pixels of a picture on the sheet
LIMIT_SHEET = 1000   # pictures on it


def check_pictures(document, config, report):
    """-> (the Document, {id of its Media: pixels}). A picture that cannot be read goes into the report and is taken out of a
    page; where there is nothing to take it out of, or none is left, raises BadItem."""
    pixels, pieces = {}, []
    for bad in document.dropped:
        report.add(bad)
    for piece in document.pieces:
        if isinstance(piece, Media):
            try:
                pixels[id(piece)] = load_pixels(piece, config.image_size, config.n_frame)
            except BadItem as e:
                if document.kind != 'page':
                    raise
                report.add(e)
                continue
        pieces.append(piece)
    if not pixels:
        raise BadItem('page without pictures', document.where)
    return Document(pieces, document.kind, document.where), pixels


def main():
    from kit import pictures
    from kit.sources import open_path
    paths = [argument for argument in sys.argv[1:] if not argument.startswith('-') and not argument.endswith('.py')]
    config = configure(KEYS, [argument for argument in sys.argv[1:] if argument not in paths], usage=__doc__)
    if len(paths) != 1:
        raise BadInput('write python data.py PATH: a folder, a .tar, a captions_*.json, a documents.jsonl')
    check_range(config, 1, LIMIT_SIDE, 'image_size')  # a sheet of these is in memory at once
    check_range(config, 1, float('inf'), 'n_frame', 'n_token', 'n_image')
    check_range(config, 0, LIMIT_SHEET, 'show')
    tokenizer = Tokenizer.load(config.tokenizer)
    source = open_path(paths[0], config.n_frame, split=None, images=config.images)
    report, documents, images, tokens, shown = source.report, 0, 0, 0, []
    for k in range(len(source)):
        try:
            document, pixels = check_pictures(source.at(k), config, report)
        except BadItem as e:
            report.add(e)
            continue
        documents, images, tokens = documents + 1, images + len(pixels), tokens + len(encode(document, tokenizer).tokens)
        if len(shown) < config.show:
            page = encode(document, tokenizer, config.n_token, config.n_image)
            for number, media in enumerate(page.media, 1):
                frames = [Image.fromarray(frame.transpose(1, 2, 0)) for frame in pixels[id(media)]]
                text = tokenizer.decode(page.tokens[page.image_index == number].tolist())
                shown.append((pictures.grid(frames, columns=-(-len(frames) // 2)) if len(frames) > 1 else frames[0], text.strip()))

    found = {'documents': documents, 'images': images, 'tokens': tokens, 'dropped': report.as_dict()}
    splits = ', '.join(f'{split} {n:,}' for split, n in getattr(source, 'splits', {}).items())
    print(f'{paths[0]}: {"pairs, " + splits if splits else "pages"}\n{documents:,} documents, {images:,} images, {tokens:,} tokens '
          '(with <BOS>, <image> and <EOC>)')
    for line in report.lines():
        print('left out', line)
    if config.out:
        with checkpoint.whole_file(config.out, 'w', encoding='utf-8') as f:
            json.dump(found, f, indent=1)
    if config.picture:
        pictures.save(pictures.contact_sheet(shown[:config.show], columns=6, title=paths[0]), config.picture)
        print(one_line(f'the first pictures, each with the text that sees it: {config.picture}'))
    if 2 * documents < len(source):  # one damaged file is bad luck; most of them are a mistake
        raise BadInput(f'{paths[0]}: {len(source) - documents} of {len(source)} documents cannot be used')


if __name__ == '__main__':
    from data import main  # by its name: the classes of __main__ would be others than those that kit.sources makes
    command(main)
