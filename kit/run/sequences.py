"""What the Flamingo stage reads: Documents of four sources -> sequences of tokens -> one padded batch.

    SequenceData.of_source   a source's Documents, each by data.encode
    SequenceData.batches     the sequences of all sources, by data.collate

See kit/run/batches.py for what all stages' data have in common.
"""
from dataclasses import dataclass, replace

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
    """A data.Batch on the device, and which source each of its tokens comes from.

    Pixels are not in it. They are in reader.pixels since `sample` decoded them, and whoever needs them finds
    them there by the key of each Media: FrozenFeatures (kit/features.py), or fine-tuning.

    source_id (B,T): the source of each token, as its place in n_learned
    n_learned:       {source: learned tokens of the whole step, all micro-batches, a mean over ranks}: each
                     rank divides its sums by it, the gradients of W ranks are averaged, and Σ / (n/W) / W is
                     the mean over all n
    """
    source_id: torch.Tensor
    n_learned: dict
    more: bool

    @property
    def n_token(self):
        return self.tokens.numel()


class SequenceData(StageData):

    def of_source(self, source, i):
        c = self.config
        n = {'m3w': c.batch_m3w, 'align': c.batch_align, 'ltip': c.batch_ltip, 'vtp': c.batch_vtp}[source]
        mine = distributed.mine(n, 'batch=' + source)  # one GPU: range(n)
        return [self.reader.sample(source, i * n + k, self.sequence) for k in mine]

    def sequence(self, document, source, number):
        """Document of this number -> Encoded: a window of it, somewhere in the context"""
        rng = np.random.default_rng([self.config.seed, FOR_PAGES, number, SOURCES.index(source)])
        sequence = encode(document, self.tokenizer, self.model_config.n_token, self.model_config.n_image, rng,
                          self.config.p_next)
        sequence.source, sequence.seed = source, int(rng.integers(2 ** 31))
        sequence.start = self.place(rng, len(sequence.tokens))
        return sequence

    def place(self, rng, n_token):
        """The position of a page's first token: half of the pages start at 0, as prompts do, the others
        anywhere in the context.

        *Why.* A gated layer's queries also depend on a word's position. A model that has met examples only
        near the beginning cannot use those where a long prompt ends.
        """
        return int(rng.integers(self.model_config.n_context - n_token + 1)) if rng.random() < 0.5 else 0

    def batches(self, samples, i):
        """All sources in one pass. Gradients are the same as for one source after the other, and short
        sequences fill the gaps beside long ones. With --mixing=merged all sources count as one."""
        merged = self.config.mixing == 'merged'
        # Over many GPUs a mean over them, since they average their gradients.
        counts = distributed.mean(*(sum(s.n_learned for s in of_source) for of_source in samples.values()))
        n_learned = {'merged': sum(counts)} if merged else dict(zip(samples, counts))
        index = {source: 0 if merged else k for k, source in enumerate(samples)}
        for part in range(n := self.config.micro_batches):
            sequences = [s for of_source in samples.values() for s in of_source[part::n]]
            if not any(s.media for s in sequences):
                # A picture that no token looks at: all ranks must run the same layers, pictures or not.
                sequences[0] = replace(sequences[0], media=[BLANK])
            batch = collate(sequences, self.tokenizer, share=one_image_per_token(self.model_config.attend))
            source_of = torch.tensor([index[s.source] for s in batch.sequences])                # (sequences,)
            yield SequenceBatch(**vars(batch.to(self.device)), n_learned=n_learned, more=part + 1 < n,
                                source_id=source_of[batch.sequence].to(self.device))


class PromptedData(SequenceData):
    """Sequences that begin with soft words (kit/adapt.py)."""

    def sequence(self, document, source, number):
        return with_prompt(super().sequence(document, source, number), self.model_config)
