"""What each stage reads: Documents -> samples -> tensors on the device, which the stage's `losses` takes.

There is one class for each kind of data, and each has two halves. `read` makes samples, in numpy; a worker
process may do it ahead of time (kit/run/ahead.py). `batch` turns them into tensors, in the main process.

    class         read by    a sample                                          a batch
    PairData      vision     Pair: the Document of a picture and its caption   PairBatch
    TextData      language   Row: tokens, and where in the context they stand  TextBatch
    SequenceData  flamingo   Encoded: a page, pair or clip, tokenized          data.Batch  (train.py)

Batch i of a source depends on i and the seed only. So resuming needs no more than the number of the step, and
every rank and every worker reads its own samples without asking the others.
"""
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from data import Document
from kit.augment import augment
from kit.contrastive import pad_texts
from kit.episode import BLANK
from kit.run import distributed
from kit.run.keys import SOURCES
from vision import TEXT_CONTEXT


class StageData:
    """read(sources, i)     -> {source: samples of its batch i}, those of this rank
    of_source(source, i) -> the samples of one source, before `change`
    media(samples)       -> all Media of one source's samples, for a worker to decode, too
    parts(samples)       -> {source: samples} of a step in parts, each of which goes through the model at one
                            time: --micro_batches of them; in the vision stage see PairData
    n_loss(sample)       -> how many losses it adds to the mean of its source
    batch(samples)       -> tensors, from {source: samples} of such a part. It has n_token, padding included

    A sample has media. A StageData may be sent to worker processes, so it holds no model.
    """

    change = None  # sample -> sample, for models that read something else: soft prompts, places for patches

    def __init__(self, run):
        self.config, self.reader, self.tokenizer = run.config, run.reader, run.tokenizer
        self.model_config, self.device = run.model_config, run.device

    def read(self, sources, i):
        samples = {source: self.of_source(source, i) for source in sources}
        return {m: list(map(self.change, of)) for m, of in samples.items()} if self.change else samples

    def numbers(self, i, key):
        """-> the numbers of this rank's Documents in batch i, of n = config[key] Documents: i·n, …,
        i·n + n - 1, if there is one rank"""
        n = getattr(self.config, key)
        return [i * n + k for k in distributed.mine(n, key)]

    def media(self, samples):
        return [one for sample in samples for one in sample.media]

    def n_loss(self, sample):
        return 1

    def parts(self, samples):
        n = self.config.micro_batches
        return [{source: of_source[k::n] for source, of_source in samples.items()} for k in range(n)]


def all_sequences(samples):
    """{source: [data.Encoded]} -> [data.Encoded], one source after the other. If there is no picture at all,
    the first gets a blank one, which no token looks at: all ranks must run the same layers."""
    sequences = [s for of_source in samples.values() for s in of_source]
    if any(s.media for s in sequences):
        return sequences
    return [replace(sequences[0], media=[BLANK]), *sequences[1:]]


# ---------------------------------------------------------------------------------------------
# Contrastive stage


class Captions(NamedTuple):
    """tokens (N,T) int, mask (N,T) bool of real ones; caption n describes picture shows[n], shows (N,) int"""
    tokens: torch.Tensor
    mask: torch.Tensor
    shows: torch.Tensor


@dataclass
class PairBatch:
    """images (M,3,height,width) uint8: each picture once. captions: {source: Captions}"""
    images: torch.Tensor
    captions: dict

    @property
    def n_token(self):
        return sum(captions.tokens.numel() for captions in self.captions.values())


class Pair(NamedTuple):
    """A picture and its caption, and the number of its batch, which says how it is augmented."""
    document: Document
    batch: int

    @property
    def media(self):
        return self.document.media


class PairData(StageData):

    def of_source(self, source, i):
        return [Pair(self.reader.document(source, number), i) for number in self.numbers(i, 'vision_batch')]

    def parts(self, samples):
        """One for each source; or, where both show the same pictures with different captions, as in the
        drawn world, one for the two, in which each picture is encoded once. (Of different pictures that
        would gain nothing and take twice the memory.)"""
        once = self.config.align == self.config.ltip and not self.augmented
        return [samples] if once else [{source: pairs} for source, pairs in samples.items()]

    def batch(self, samples):
        """{source: Pairs} -> PairBatch, in which a picture that several of them show is there once"""
        images, captions = {}, {}  # images: by keys that name their pixels
        for source, pairs in samples.items():
            documents, rng = [pair.document for pair in pairs], self.rng(source, pairs[0].batch)
            keys, pictures = self.pictures(source, documents, rng)
            for key, picture in zip(keys, pictures):
                images.setdefault(key, picture)
            place = {key: k for k, key in enumerate(images)}
            shows = torch.tensor([place[key] for key in keys])
            tokens, mask = self.texts(documents, rng)
            captions[source] = Captions(*(x.to(self.device) for x in (tokens, mask, shows)))
        return PairBatch(torch.stack(list(images.values())).to(self.device), captions)

    @property
    def augmented(self):
        c = self.config
        return max(c.augment_strength, c.augment_warp, c.augment_lines) > 0

    def pictures(self, source, documents, rng):
        """-> for each document a key that names the pixels of its picture, and these (3,height,width)"""
        c = self.config
        pixels = [self.reader.pixels(d.pieces[0])[0] for d in documents]  # of a clip the first frame
        if self.augmented:
            pixels = augment(torch.stack(pixels), rng, c.augment_flip, c.augment_strength, c.augment_colour,
                             c.augment_warp, c.augment_lines)
        keys = [None if self.augmented else d.pieces[0].key for d in documents]
        return [key or (source, k) for k, key in enumerate(keys)], pixels

    def texts(self, documents, rng):
        """-> the captions' tokens (N,T), and a mask (N,T) of those that count"""
        texts = [self.tokenizer.encode(' ' + d.pieces[-1].lstrip()) for d in documents]
        tokens, mask = pad_texts(texts, TEXT_CONTEXT)
        return tokens, drop_words(mask, self.config.augment_word_dropout, rng)

    def rng(self, source, i):
        """A random generator for this rank's samples. It draws for the whole batch and returns only theirs,
        so a sample's numbers do not depend on how many ranks there are."""
        n = self.config.vision_batch
        rng = np.random.default_rng([self.config.seed, i, SOURCES.index(source)])
        return distributed.Mine(rng, n, distributed.mine(n, 'vision_batch'))


def drop_words(mask, share, rng):
    """mask (N,T) bool of real tokens -> the same with a random share of them left out, but never a whole
    caption. *Why.* No picture should be recognised by its rarest word alone."""
    if share == 0:
        return mask
    kept = mask & torch.from_numpy(rng.uniform(0, 1, (len(mask), TEXT_CONTEXT))[:, :mask.shape[1]] >= share)
    return torch.where(kept.any(1, keepdim=True), kept, mask)


# ---------------------------------------------------------------------------------------------
# Language stage


@dataclass
class TextBatch:
    """tokens, targets (B,T) int64. position (B,T): where in the context each token stands"""
    tokens: torch.Tensor
    targets: torch.Tensor
    position: torch.Tensor

    @property
    def n_token(self):
        return self.tokens.numel()


# More than there ever are, so that no two rows of all steps have a text in common.
TEXTS_A_ROW = 1 << 10
TEXTS_A_STEP = 1 << 24
# Tell their random numbers from those of other uses of a seed:
FOR_SEQUENCES, FOR_TEXT, FOR_RANDOM_TEXT = 7, 8, 9


class Row(NamedTuple):
    """tokens: T+1 ids, texts one after the other, each after a <BOS>. start: position of the first of them.
    Short rows at random places train all positions of a long context for the price of a short one. As usual
    for language models, a text may read those before it in its row."""
    tokens: list
    start: int
    media = ()


class TextData(StageData):

    def of_source(self, source, i):
        """-> this rank's Rows of batch i"""
        n, rows = min(self.config.language_tokens, self.model_config.n_context), []
        rng = np.random.default_rng([self.config.seed, FOR_TEXT, i])
        start = rng.integers(self.model_config.n_context - n + 1, size=self.config.language_batch)
        for k in distributed.mine(self.config.language_batch, 'language_batch'):
            row, number = [], i * TEXTS_A_STEP + k * TEXTS_A_ROW
            while len(row) <= n:
                row += [self.tokenizer.bos, *self.text(source, number)]
                number += 1
            rows.append(Row(row[:n + 1], int(start[k])))
        return rows

    def n_loss(self, row):
        return len(row.tokens) - 1

    def text(self, source, number):
        """-> the tokens of the text of this number; a share of them, --folders=random_text, is random tokens,
        again and again.

        *Why.* A tokenizer made from captions has pieces of their words that no text contains by themselves,
        and names that people choose are made of these. What is never read or said drifts to one place, all
        such pieces to the same, and a model that cannot tell them apart cannot copy them.
        """
        rng = np.random.default_rng([self.config.seed, FOR_RANDOM_TEXT, number])
        if rng.random() >= self.config.random_text:
            return self.tokenizer.encode(self.reader.text(source, number))
        tokens = rng.choice(sorted(self.tokenizer.text_ids), int(rng.integers(4, 17)))
        return tokens.tolist() * int(rng.integers(2, 5))

    def batch(self, samples):
        [rows] = samples.values()  # of the one source, text
        ids, start = (torch.tensor(x, device=self.device) for x in zip(*rows))                 # (B,T+1), (B,)
        position = start[:, None] + torch.arange(ids.shape[1] - 1, device=self.device)         # (B,T)
        return TextBatch(ids[:, :-1], ids[:, 1:], position)
