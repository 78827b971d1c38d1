"""Rows of data -> tensors on the device: what a stage's `losses` takes.

Each function yields the micro-batches of one step. They are run one after the other, and their gradients are
added up.
"""
from dataclasses import dataclass

import numpy as np
import torch

from data import collate, stack_frames
from kit.augment import augment
from kit.run import distributed
from kit.run.keys import SOURCES
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
    n_token: int


def pair_batches(run, sources, i):
    """Batch i of align, ltip or both.

    If both show the same pictures with different captions, the two are read together and each picture is
    encoded once. Different pictures would gain nothing from that and take twice the memory.
    """
    config = run.config
    changed = config.augment_strength > 0 or config.augment_warp > 0
    together = config.align == config.ltip and not changed
    for names in [sources] if together else [[source] for source in sources]:
        images, captions = {}, {}  # images: each once, by a key that names its pixels
        for source in names:
            documents = run.reader.rows('pairs', source, i)
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
        n_token = sum(tokens.numel() for tokens, _, _ in captions.values())
        yield PairBatch(torch.stack(list(images.values())).to(run.device), captions, n_token)


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

    @property
    def n_token(self):
        return self.tokens.numel()


def text_batches(run, sources, i):
    """Batch i of text."""
    [source], n = sources, run.config.micro_batches
    tokens, start = run.reader.rows('texts', source, i)
    for part in range(n):
        ids, places = (torch.from_numpy(x[part::n]).to(run.device) for x in (tokens, start))
        yield TextBatch(ids[:, :-1], ids[:, 1:], places, 1 / n)


# ---------------------------------------------------------------------------------------------
# Flamingo stage


@dataclass
class SequenceBatch:
    """What Flamingo.forward takes, and which source each target belongs to.

    inputs:    keyword arguments of Flamingo.forward
    source:    (number of targets,) int, an index into n_learned, in the order of the model's losses
    n_learned: {source: number of targets that a step averages over}
    """
    inputs: dict
    source: torch.Tensor
    n_learned: dict
    n_token: int


def sequence_batches(run, sources, i, see, merged=False):
    """Batch i of each of these sources, all in one pass. Gradients are the same as for one source after the
    other, and short sequences fill the gaps beside long ones.

    see(batch) -> the keyword arguments of Flamingo.forward that are about pictures.
    merged: count all sources as one.
    """
    n = run.config.micro_batches
    rows = {source: run.reader.rows('sequences', source, i) for source in sources}
    # Losses are means over the whole batch: over the targets of all micro-batches and all ranks.
    counts = distributed.total(*(sum(s.n_learned for s in sequences) for sequences in rows.values()))
    n_learned = {'merged': sum(counts)} if merged else dict(zip(rows, counts))
    number = dict.fromkeys(rows, 0) if merged else {source: k for k, source in enumerate(rows)}
    for part in range(n):
        sequences = [s for of_source in rows.values() for s in of_source[part::n]]
        if not any(s.media for s in sequences):
            # A picture that no token looks at: every rank must run the same layers, with pictures or without.
            sequences[0].media.append(BLANK)
        batch = collate(sequences, run.tokenizer, share=sees_its_own_only(run.size.attend))
        document = batch.document.to(run.device)
        if len(batch.tokens) == len(sequences):  # one in each row: plain causal attention has faster kernels
            document = None
        inputs = {name: getattr(batch, name).to(run.device)
                  for name in ('tokens', 'image_index', 'targets', 'position')}
        source = torch.tensor([number[s.source] for s in batch.sequences])
        source = source.repeat_interleave(torch.tensor([s.n_learned for s in batch.sequences]))
        yield SequenceBatch(inputs | {'document': document} | see(batch), source.to(run.device),
                            {name: max(count, 1) / distributed.world() for name, count in n_learned.items()},
                            batch.tokens.numel())


def frozen_view(features, share):
    """-> the `see` of a frozen encoder. It gives the encoder's features; a random share of each picture's
    channels is zeroed, different ones each time.

    *Why.* A frozen encoder knows its training pictures by heart, and a few of its channels are enough to
    tell them apart. Those say nothing about something new. A model that cannot rely on any single channel
    learns what many of them agree on.
    """
    def see(batch):
        found, frame_mask = features(batch.media)
        if found is not None and share > 0:
            kept = [np.random.default_rng(s.seed).random((len(s.media), found.shape[-1]), np.float32) >= share
                    for s in batch.sequences]
            kept = torch.from_numpy(np.concatenate(kept)).to(found) / (1 - share)              # (pictures,D)
            n_frame = frame_mask.sum(-1)[frame_mask.any(-1)]                                   # (pictures,)
            found = found * kept.repeat_interleave(n_frame, dim=0).unsqueeze(1)                # (frames,S,D)
        return {'features': found, 'frame_mask': frame_mask}
    return see


def pixel_view(pixels, device):
    """-> the `see` of an encoder that trains. It gives pixels: features that change cannot be kept."""
    def see(batch):
        media, frame_mask = stack_frames(batch.media, pixels)
        return {} if media is None else {'media': media.to(device), 'frame_mask': frame_mask.to(device)}
    return see
