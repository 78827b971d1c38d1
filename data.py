"""From a Document to tensors: everything Flamingo reads is an ordered list of texts and pictures.

A web page, a captioned picture or clip, a few-shot prompt and a chat are all a `Document` (§2.3, §2.4,
A.3):

    Document([Media, Given("Output:"), " a red ring.", Media, ...])
       │  encode: insert <BOS>, <image>, <EOC>; assign to each token the picture that it may see
       ▼
    tokens (T,)   image_index (T,)   loss_mask (T,)   media [Media, ...]
       │  collate: pad; short sequences may share a row
       ▼
    Batch of tokens (B,T), image_index (B,T), targets (B,T), media [[Media, ...], ...]

Shapes: B batch, T tokens, N images in the sequence, F frames.
"""
import sys
from dataclasses import dataclass, field, replace
from typing import Callable

import numpy as np
import torch
from PIL import Image

from kit.fast.rows import share_rows
from kit.files import BadInput, BadItem

# ---------------------------------------------------------------------------------------------
# Documents


@dataclass
class Media:
    """One picture, or one clip. `load()` gives its frames as RGB pictures; one frame = a picture.

    `key` names the exact pixels: two Media with the same key look the same, so whatever was computed from
    one (its frozen features) may serve the other. Nothing is kept of one without a key. `load` must survive
    pickling, so that worker processes can decode. It raises BadItem where the file is damaged.
    """
    key: str
    load: Callable[[], list]


class Given(str):
    """Text that a reader supplies and the model need not learn to predict ("Output:", a question)."""


class EndOfChunk:
    """An <EOC> written out: in a typed prompt, or after an example without a picture, as in the paper's
    zero-shot prompts. (Before a picture, and at the end, `encode` adds it by itself.)"""


@dataclass
class Document:
    """Ordered pieces: `str` (learned), `Given` (read, not learned), `Media`, and seldom an `EndOfChunk`.

    kind: 'page'      a web page: a picture may belong to the text before it or after it. It is not known
                      which, so `encode` tosses a coin
          'examples'  picture, then its text, several times: a few-shot prompt with all its answers (a
                      damaged picture takes its text with it: kit/run/reading.py)
          'pair'      one picture or clip and its caption, sometimes with a space before it
          'prompt'    like examples, but the last text is unfinished: no <EOC> at the end
    """
    pieces: list
    kind: str = 'page'
    where: str = ''  # file and line, for error messages
    dropped: list = field(default_factory=list)  # pictures that could not be read: BadItems

    @property
    def media(self):
        return [piece for piece in self.pieces if isinstance(piece, Media)]


@dataclass
class Example:
    """A picture, what is asked about it ("Output:", "Question: … Answer:"), and the answer. media None:
    text only."""
    media: Media | None
    prompt: str
    answer: str

    def pieces(self, learned=True, answered=True):
        """-> Document pieces. The answer follows the prompt after a space, in training and in prompts
        alike."""
        pieces = [Given(self.prompt)] if self.media is None else [self.media, Given(self.prompt)]
        if answered:
            pieces.append(' ' + self.answer if learned else Given(' ' + self.answer))
            if self.media is None:  # a picture closes the example before it; without one, it is closed here
                pieces.append(EndOfChunk())
        return pieces


# ---------------------------------------------------------------------------------------------
# Prompts of every kind of task, in the paper's words. The answer follows after a space.

CAPTION_PROMPT = 'Output:'   # captions, names and classes


def question_prompt(question):
    return f'Question: {question} Answer:'


# ---------------------------------------------------------------------------------------------
# Document -> tokens


@dataclass
class Encoded:
    """One sequence. tokens, image_index and loss_mask have one length T; media are the pictures that its
    <image> tags stand for, in order."""
    tokens: np.ndarray       # int64
    image_index: np.ndarray  # int64, φ: for each token the picture it may look at, counted from 1; 0 = none
    loss_mask: np.ndarray    # bool: is this token learned? (Never the first: nothing stands before it.)
    media: list
    # The rest is set by train.SequenceData.encoded:
    source: str = ''         # which of the sources it came from
    seed: int = 0            # says which channels of its pictures are left out (kit.features.drop_channels)
    start: int = 0           # where in the context its first token stands

    @property
    def n_target(self):
        """How many of its tokens are learned."""
        return int(self.loss_mask.sum())


def encode(document, tokenizer, n_token=None, n_image=None, rng=None, p_next=0.5, p_space=0.5):
    """Document -> Encoded (appendices A.3.2 and B.1.2).

                  <BOS> text <EOC> <image> text <EOC> <image> text <EOC>
        φ           0    0    0      1      1    1      2      2    2      text sees the picture before it
        or          0    1    1      1      2    2      2      2    2      … the next (see p_next)
        learned          ✓    ✓             ✓    ✓             ✓    ✓

    An <EOC> stands at the end (in the paper's pairs <EOC><EOS>), and before each image if anything has come
    since the last one. Learned: text and <EOC>. Not learned: <BOS>, <image>, padding, Given text.

    n_token, n_image: the most tokens (L) and pictures (N); None for no limit. See `window`.
    rng:     a numpy Generator; without one, nothing is left to chance: previous picture, no added space
    p_next:  the chance that the text of a page sees the picture after it, if there is one, instead of the one
             before it. *Why.* On the web both happen, and fixing either teaches the model to ignore half of
             the pages (p_next 0 or 1 cost the paper 1.1 and 0.3 points, Table 10).
    p_space: the chance of a space in front of a pair's caption: "dog" and " dog" are different tokens
    Raises BadInput if the Document is a prompt and longer than n_token, or has more than n_image pictures.
    """
    total = len(document.media)
    looks_ahead = document.kind == 'page' and rng is not None and rng.random() < p_next
    phi = min(1, total) if looks_ahead else 0       # which picture text sees now
    entries, media = [(tokenizer.bos, 0, False)], []  # (token, its φ, is it learned?)
    open_chunk = False                              # has anything come since the last <EOC>?
    for piece in document.pieces:
        if isinstance(piece, Media):
            if open_chunk:
                entries.append((tokenizer.eoc, phi, True))
            media.append(piece)
            entries.append((tokenizer.image, len(media), False))  # φ moves on at the tag itself (Figure 7)
            phi = min(len(media) + 1, total) if looks_ahead else len(media)
        elif isinstance(piece, EndOfChunk):
            entries.append((tokenizer.eoc, phi, True))
        else:
            space = document.kind == 'pair' and rng is not None and rng.random() < p_space
            ids = tokenizer.encode(' ' + piece if space else piece)
            entries += [(i, phi, not isinstance(piece, Given)) for i in ids]
        open_chunk = not isinstance(piece, EndOfChunk)
    if open_chunk and document.kind != 'prompt':
        entries.append((tokenizer.eoc, phi, True))
    tokens, image_index, learned = (np.array(column) for column in zip(*entries))
    if document.kind == 'prompt':
        check_prompt(document, len(tokens), len(media), n_token, n_image)
        return Encoded(tokens, image_index, loss_mask=learned, media=media)
    return window(tokens, image_index, learned, media, tokenizer.image, n_token, n_image, rng)


def check_prompt(document, length, n_media, n_token, n_image):
    where = document.where or 'prompt'
    if n_token is not None and length > n_token:
        raise BadInput(f'{where}: {length} tokens are longer than the context of {n_token}')
    if n_image is not None and n_media > n_image:
        raise BadInput(f'{where}: {n_media} pictures are more than {n_image}')


def window(tokens, image_index, learned, media, image, n_token, n_image, rng):
    """Cut a window of at most n_token tokens out of a longer sequence, at a random place (at its beginning
    without an rng), and end it before picture n_image + 1. Its pictures are counted from 1 again.

        the whole    <BOS> <image>  a  <EOC> <image>  b  <EOC>
            φ          0      1     1    1      2     2    2
        a window                    a  <EOC> <image>  b
            φ                       0    0      1     1

    A picture is kept if its tag is in the window. But text may lose its picture: one before the window or, if
    it looks ahead, one after it. Such text sees none, and is learned all the same.
    """
    tags = np.flatnonzero(tokens == image)  # where each picture's tag stands
    start, stop = 0, len(tokens)
    if n_token is not None and stop > n_token:
        start = int(rng.integers(stop - n_token + 1)) if rng is not None else 0
        stop = start + n_token
    inside = tags[(tags >= start) & (tags < stop)]
    if n_image is not None and len(inside) > n_image:
        stop, inside = int(inside[n_image]), inside[:n_image]
    before, n = int(np.searchsorted(tags, start)), len(inside)  # pictures before the window, and in it
    index = image_index[start:stop] - before
    index = np.where(index > n, 0, index.clip(min=0))  # of a picture before or after the window: none
    learned = learned[start:stop].copy()
    learned[:1] = False
    return Encoded(tokens[start:stop], index, loss_mask=learned, media=media[before:before + n])


# ---------------------------------------------------------------------------------------------
# Sequences -> one batch


@dataclass
class Batch:
    """Padded rows, of one sequence each or of several.

    tokens, image_index (B,T) int64
    targets (B,T):  the tokens moved by one, and -100 where there is nothing to learn
    position (B,T): where in the context each token stands
    sequence (B,T): which of `sequences` a token belongs to, counted from 1; 0 for padding
    length (B,):    of each row, without padding
    media:          B lists of Media;  sequences: all Encoded, in the order in which they stand in the rows

    A row that two captions share, the batch's sequences 4 and 5:

        tokens       <BOS> <image> a  <EOC> <BOS> <image> b  <EOC> <PAD>
        image_index    0      1    1    1     0      2    2    2     0    each picture has its own number
        targets        -      a  <EOC>  -     -      b  <EOC>  -     -    (- is -100)
        sequence       4      4    4    4     5      5    5    5     0    self-attention stays within it
        position       0      1    2    3     0      1    2    3     0    (or from another start)
    """
    tokens: torch.Tensor
    image_index: torch.Tensor
    targets: torch.Tensor
    position: torch.Tensor
    sequence: torch.Tensor
    length: torch.Tensor
    media: list
    sequences: list

    @property
    def n_token(self):  # padding included
        return self.tokens.numel()

    @property
    def shared(self):  # does any row hold several sequences?
        return len(self.sequences) > len(self.tokens)

    def mean_of_each(self, losses):
        """losses (K,) of all targets, row by row -> the mean of each sequence's (sequences,)"""
        owner = self.sequence[self.targets != -100] - 1            # (K,) the sequence of each target, from 0
        n_target = torch.tensor([max(s.n_target, 1) for s in self.sequences], device=losses.device)
        return losses.new_zeros(len(n_target)).index_add(0, owner, losses) / n_target

    def by_source(self):
        """-> {source: the numbers of its sequences, from 0}"""
        numbers = {}
        for k, s in enumerate(self.sequences):
            numbers.setdefault(s.source, []).append(k)
        return numbers

    def to(self, device):
        return replace(self, **{name: x.to(device) for name, x in vars(self).items() if torch.is_tensor(x)})


def collate(sequences, tokenizer, share=False):
    """list of Encoded -> Batch, padded on the right with <PAD>. Padding sees no picture and is never learned.

    share: short sequences may share a row, if each token sees one image only (kit/fast/routing.py), so that
    none can see another sequence's. *Why.* Pages differ in length, and the longest of a batch is twice as
    long as the mean: with a row for each, nearly half of all work would be padding.
    """
    rows = share_rows(sequences) if share else [[s] for s in sequences]
    length = torch.tensor([sum(len(s.tokens) for s in row) for row in rows])
    shape = len(rows), int(length.max())
    tokens, targets = np.full(shape, tokenizer.pad), np.full(shape, -100)
    image_index, position, sequence = (np.zeros(shape, int) for _ in range(3))
    number = 0
    for b, row in enumerate(rows):
        start, n_image = 0, 0
        for s in row:
            stop = start + len(s.tokens)
            number += 1
            tokens[b, start:stop] = s.tokens
            image_index[b, start:stop] = np.where(s.image_index > 0, s.image_index + n_image, 0)
            targets[b, start:stop - 1] = np.where(s.loss_mask[1:], s.tokens[1:], -100)  # ℓ predicts ℓ+1
            position[b, start:stop] = s.start + np.arange(len(s.tokens))
            sequence[b, start:stop] = number
            start = stop
            n_image += len(s.media)
    tensors = map(torch.from_numpy, (tokens, image_index, targets, position, sequence))
    return Batch(*tensors, length,
                 media=[[m for s in row for m in s.media] for row in rows],
                 sequences=[s for row in rows for s in row])


# ---------------------------------------------------------------------------------------------
# The mixture of sources


def mixture(sources, mixing, n_step):
    """Which batches each of n_step steps reads -> [(number of the batch, names of sources), ...] (appendix
    B.1.2).

    'accumulate': a batch of every source, and a step on Σ_m λ_m ∇L_m (all in one pass, which adds up the
    same). 'merged': the same batches, in which each sequence counts the same, without λ (kit/run/stage.py).
    'round_robin': one source a step, in turns, which cost the paper 7.8 points (Table 3).
    """
    if mixing == 'round_robin':
        return [(i // len(sources), [sources[i % len(sources)]]) for i in range(n_step)]
    return [(i, sources) for i in range(n_step)]


# ---------------------------------------------------------------------------------------------
# Pictures -> pixels


def to_pixels(image, size):
    """PIL RGB picture -> (3,size,size) uint8: aspect kept, longer side resized, the rest filled with the
    picture's mean colour (appendix B.1.2)."""
    if image.size != (size, size):
        scale = size / max(image.size)
        shape = tuple(max(1, round(side * scale)) for side in image.size)
        # BOX would do for shrinking; BICUBIC with its widened window is right in both directions.
        small = image.resize(shape, Image.Resampling.BICUBIC)
        mean = tuple(int(round(c)) for c in np.asarray(small).reshape(-1, 3).mean(0))
        image = Image.new('RGB', (size, size), mean)
        image.paste(small, tuple((size - side) // 2 for side in shape))
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def load_pixels(media, size, n_frame):
    """Media -> (F,3,size,size) uint8, F ≤ n_frame frames spread evenly. Raises BadItem where it cannot be
    read."""
    frames = media.load()
    if not frames:
        raise BadItem('empty', media.key, 'no frames')
    if len(frames) > n_frame:
        frames = [frames[round(i * (len(frames) - 1) / max(n_frame - 1, 1))] for i in range(n_frame)]
    return np.stack([to_pixels(frame, size) for frame in frames])


if __name__ == '__main__':
    sys.exit(print('python data.py PATH is python look.py PATH now', file=sys.stderr) or 2)
