"""Rows of data -> tensors on the device: what a stage's `losses` takes.

Each function yields the micro-batches of one step, one after the other; their gradients are added up. Each
has n_token, how many tokens it holds with padding, and more, whether another one follows.
"""
from dataclasses import dataclass

import numpy as np
import torch

from data import collate, stack_frames
from kit.augment import augment
from kit.run import distributed
from kit.run.keys import SOURCES
from kit.run.reading import Reader
from kit.tasks.controls import BLANK
from kit.tasks.encoders import pad_texts
from vision import TEXT_CONTEXT
from xattn import sees_its_own_only

# ---------------------------------------------------------------------------------------------
# Contrastive stage


@dataclass
class PairBatch:
    """images (M,3,H,W) uint8: each picture once. captions: {source: (tokens (N,T) int, mask (N,T) bool,
    shows (N,) int)}; caption n describes picture shows[n]."""
    images: torch.Tensor
    captions: dict
    more: bool

    @property
    def n_token(self):
        return sum(tokens.numel() for tokens, _, _ in self.captions.values())


def pair_batches(run, sources, i):
    """Batch i of align, ltip or both.

    If both show the same pictures with different captions, the two are read together and each picture is
    encoded once. Different pictures would gain nothing from that and take twice the memory.
    """
    config = run.config
    changed = config.augment_strength > 0 or config.augment_warp > 0
    together = config.align == config.ltip and not changed
    parts = [sources] if together else [[source] for source in sources]
    for names in parts:
        images, captions = {}, {}  # images: each once, by a key that names its pixels
        for source in names:
            documents = run.reader.rows(Reader.pairs, source, i)
            rng = rows_rng(run, i, source)
            pixels = [run.reader.pixels(d.pieces[0])[0] for d in documents]  # a clip: its first frame
            if changed:
                pixels = augment(torch.stack(pixels), rng, config.augment_flip, config.augment_strength,
                                 config.augment_colour, config.augment_warp)
            keys = [(source, k) if changed else d.pieces[0].key or (source, k)
                    for k, d in enumerate(documents)]
            for key, picture in zip(keys, pixels):
                images.setdefault(key, picture)
            place = {key: k for k, key in enumerate(images)}
            texts = [run.tokenizer.encode(' ' + d.pieces[-1].lstrip()) for d in documents]
            tokens, mask = pad_texts(texts, TEXT_CONTEXT)
            mask = drop_words(mask, config.augment_word_dropout, rng)
            shows = torch.tensor([place[key] for key in keys])
            captions[source] = [x.to(run.device) for x in (tokens, mask, shows)]
        images = torch.stack(list(images.values())).to(run.device)
        yield PairBatch(images, captions, more=names is not parts[-1])


def rows_rng(run, i, source):
    """A random generator for this rank's rows. It draws for the whole batch and returns only these rows, so
    a row's numbers do not depend on how many ranks there are."""
    n = run.config.vision_batch
    rng = np.random.default_rng([run.config.seed, i, SOURCES.index(source)])
    return distributed.RowsOf(rng, n, distributed.rows(n, 'vision_batch'))


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
    """tokens, targets (B,T) int64. start (B,): the position of each row's first token. share: the part of
    the whole batch that these rows are."""
    tokens: torch.Tensor
    targets: torch.Tensor
    start: torch.Tensor
    share: float
    more: bool

    @property
    def n_token(self):
        return self.tokens.numel()


def text_batches(run, sources, i):
    """Batch i of text."""
    [source], n = sources, run.config.micro_batches
    tokens, start = run.reader.rows(Reader.texts, source, i)
    for part in range(n):
        ids, places = (torch.from_numpy(x[part::n]).to(run.device) for x in (tokens, start))
        yield TextBatch(ids[:, :-1], ids[:, 1:], places, share=1 / n, more=part + 1 < n)


# ---------------------------------------------------------------------------------------------
# Flamingo stage


@dataclass
class SequenceBatch:
    """inputs: keyword arguments of Flamingo.forward. Of its targets, number k belongs to source
    `source[k]`, an index into n_learned: {source: targets of the whole step, of all micro-batches and of
    all ranks together}."""
    inputs: dict
    source: torch.Tensor
    n_learned: dict
    more: bool

    @property
    def n_token(self):
        return self.inputs['tokens'].numel()

    def mean_of_each_source(self, each):
        """each (number of targets,): the loss of every target -> {source: this part of the mean over its
        targets}.

        Parts and ranks add up to the mean over the whole step. Ranks *average* their gradients, so each
        counts as many times as there are ranks.
        """
        total = each.new_zeros(len(self.n_learned)).index_add(0, self.source, each)        # (sources,)
        return {source: total[k] * distributed.world() / max(n, 1)
                for k, (source, n) in enumerate(self.n_learned.items())}


def sequence_batches(run, sources, i, view, merged=False):
    """Batch i of each of these sources, all in one pass. Gradients are the same as for one source after the
    other, and short sequences fill the gaps beside long ones.

    view(batch) -> the keyword arguments of Flamingo.forward that are about pictures.
    merged: count all sources as one.
    """
    rows = {source: run.reader.rows(Reader.sequences, source, i) for source in sources}
    counts = distributed.total(*(sum(s.n_learned for s in of_source) for of_source in rows.values()))
    n_learned = {'merged': sum(counts)} if merged else dict(zip(rows, counts))
    index = {source: 0 if merged else k for k, source in enumerate(rows)}
    for part in range(n := run.config.micro_batches):
        sequences = [s for of_source in rows.values() for s in of_source[part::n]]
        if not any(s.media for s in sequences):
            # A picture that no token looks at: every rank must run the same layers, with pictures or without.
            sequences[0].media.append(BLANK)
        batch = collate(sequences, run.tokenizer, share=sees_its_own_only(run.size.attend))
        names = ['tokens', 'image_index', 'targets', 'position']
        if len(batch.tokens) < len(sequences):  # some share a row; else plain causal attention will do
            names.append('document')
        inputs = {name: getattr(batch, name).to(run.device) for name in names} | view(batch)
        # The model gives losses row by row, and batch.sequences is in the order of the rows.
        source = torch.tensor([index[s.source] for s in batch.sequences for _ in range(s.n_learned)])
        yield SequenceBatch(inputs, source.to(run.device), n_learned, more=part + 1 < n)


def frozen_view(features, dropout):
    """-> the `view` of a frozen encoder. It gives the encoder's features; a random share of each picture's
    channels is zeroed, different ones each time.

    *Why.* A frozen encoder knows its training pictures by heart, and a few of its channels are enough to
    tell them apart. Those say nothing about something new. A model that cannot rely on any single channel
    learns what many of them agree on.
    """
    def view(batch):
        found, frame_mask = features(batch.media)
        if found is not None and dropout > 0:
            draws = [np.random.default_rng(s.seed).random((len(s.media), found.shape[-1]), np.float32)
                     for s in batch.sequences]
            kept = torch.from_numpy(np.concatenate(draws) >= dropout).to(found)                # (pictures,D)
            kept /= 1 - dropout
            n_frame = frame_mask.sum(-1)[frame_mask.any(-1)]                                   # (pictures,)
            found = found * kept.repeat_interleave(n_frame, dim=0).unsqueeze(1)                # (frames,S,D)
        return {'features': found, 'frame_mask': frame_mask}
    return view


def pixel_view(pixels, device):
    """-> the `view` of an encoder that trains. It gives pixels: features that change cannot be kept."""
    def view(batch):
        media, frame_mask = stack_frames(batch.media, pixels)
        return {} if media is None else {'media': media.to(device), 'frame_mask': frame_mask.to(device)}
    return view
