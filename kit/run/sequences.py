"""What the Flamingo stage reads: Documents of four sources -> sequences of tokens -> one padded batch.

    SequenceData.of_source   a source's Documents, each by data.encode
    SequenceData.batches     the sequences of all sources, by data.collate

See kit/run/batches.py for what all stages' data have in common.
"""
from dataclasses import dataclass

import numpy as np
import torch

from data import Batch, collate, encode
from kit.adapt import with_prompt
from kit.episode import BLANK
from kit.run import distributed
from kit.run.batches import StageData
from kit.run.keys import SOURCES
from xattn import one_image_per_token


FOR_PAGES = 7  # tells its random numbers from those that others draw with the same seed


@dataclass
class SequenceBatch(Batch):
    """A data.Batch on the device, and which source each of its targets comes from. (Pixels are not in it:
    of_source has decoded them into the reader's cache, from which FrozenFeatures takes them by the key of
    each Media.)

    source_id (targets,): which source each learned token is from, as its number in n_in_step; in the order of
               the targets, row by row, in which the model gives their losses
    n_in_step: {source: learned tokens of the whole step, of all micro-batches and all ranks}

    For a page of three learned tokens and a caption of two, [0,0,0,1,1] and {'m3w': 3, 'align': 2}.
    """
    source_id: torch.Tensor
    n_in_step: dict
    more: bool

    @property
    def n_token(self):
        return self.tokens.numel()


class SequenceData(StageData):

    def of_source(self, source, i):
        c = self.config
        n = {'m3w': c.batch_m3w, 'align': c.batch_align, 'ltip': c.batch_ltip, 'vtp': c.batch_vtp}[source]
        mine = distributed.mine(n, 'batch=' + source)  # one GPU: range(n)
        return [self.reader.sample(self.sequence, source, i * n + k) for k in mine]

    def sequence(self, document, source, number):
        """Document of this number -> Encoded: a window of it, somewhere in the context. (The reader decodes
        the pictures in the window; where one is damaged, it asks again without it, and the same random
        numbers are drawn.)"""
        rng = np.random.default_rng([self.config.seed, FOR_PAGES, number, SOURCES.index(source)])
        sequence = encode(document, self.tokenizer, self.size.n_token, self.size.n_image, rng,
                          self.config.p_next, earlier=not one_image_per_token(self.size.attend))
        sequence.source, sequence.seed = source, int(rng.integers(2 ** 31))
        sequence.start = self.place(rng, len(sequence.tokens))
        return sequence

    def place(self, rng, n_token):
        """The position of a page's first token: half of the pages start at 0, as prompts do, the others
        anywhere in the context.

        *Why.* A gated layer's queries also depend on a word's position. A model that has met examples only
        near the beginning cannot use those where a long prompt ends.
        """
        return int(rng.integers(self.size.n_context - n_token + 1)) if rng.random() < 0.5 else 0

    def batches(self, samples, i):
        """All sources in one pass. Gradients are the same as for one source after the other, and short
        sequences fill the gaps beside long ones. With --mixing=merged all sources count as one."""
        merged = self.config.mixing == 'merged'
        # One GPU: how many tokens of each source are learned; otherwise, on all of them together.
        counts = distributed.total(*(sum(s.n_learned for s in of_source) for of_source in samples.values()))
        n_in_step = {'merged': sum(counts)} if merged else dict(zip(samples, counts))
        index = {source: 0 if merged else k for k, source in enumerate(samples)}
        for part in range(n := self.config.micro_batches):
            sequences = [s for of_source in samples.values() for s in of_source[part::n]]
            if not any(s.media for s in sequences):
                # A picture that no token looks at: all ranks must run the same layers, pictures or not.
                sequences[0].media.append(BLANK)
            batch = collate(sequences, self.tokenizer, share=one_image_per_token(self.size.attend))
            source_id = torch.tensor([index[s.source] for s in batch.sequences for _ in range(s.n_learned)])
            yield SequenceBatch(**vars(batch.to(self.device)), source_id=source_id.to(self.device),
                                n_in_step=n_in_step, more=part + 1 < n)


class PromptedData(SequenceData):
    """Sequences that begin with soft words (kit/adapt.py)."""

    def sequence(self, document, source, number):
        return with_prompt(super().sequence(document, source, number), self.size)
