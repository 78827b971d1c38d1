"""What some rows read otherwise: merged pairs, text beside pages, places for visual tokens; a ViT."""
from functools import partial

import torch
import torch.nn.functional as F

from kit.contrastive import new_contrastive
from kit.files import BadInput
from kit.run.batches import Captions, PairBatch, PairData, StageData, TextData
from kit.run.checks import RankedAsker
from kit.run.keys import SOURCES
from kit.variants import ViT, with_places


class MergedPairs(PairData):
    """One batch of both sources."""

    def of_source(self, source, i):
        # In the drawn world, pair i of either source shows one picture: others for the second.
        return super().of_source(source, i + (SOURCES.index(source) << 20))

    def parts(self, samples):
        return [samples]

    def batch(self, samples):
        parts = [super(MergedPairs, self).batch({source: of}) for source, of in samples.items()]
        longest = max(x.shape[1] for part in parts for x, _, _ in part.captions.values())
        first, merged = 0, []
        for part in parts:
            [(tokens, mask, shows)] = part.captions.values()
            room = 0, longest - tokens.shape[1]
            merged.append((F.pad(tokens, room), F.pad(mask, room), shows + first))
            first += len(part.images)
        captions = {'merged': Captions(*map(torch.cat, zip(*merged)))}
        return PairBatch(torch.cat([part.images for part in parts]), captions)


class WithText(StageData):
    """Sequences (train.SequenceData), and rows of plain text as the language stage reads them."""

    def __init__(self, run, sequences):
        super().__init__(run)
        self.sequences, self.texts = sequences, TextData(run)

    def of_source(self, source, i):
        return (self.texts if source == 'text' else self.sequences).of_source(source, i)

    def parts(self, samples):
        """Parts of sequences, then parts of text."""
        text = {source: samples[source] for source in samples if source == 'text'}
        sequences = {source: samples[source] for source in samples if source != 'text'}
        return [part for both in (sequences, text) if both for part in super(WithText, self).parts(both)]

    def batch(self, samples):
        return (self.texts if 'text' in samples else self.sequences).batch(samples)


def spread(run, n):
    """-> what changes a sequence to one with n free places for the visual tokens, or patches, of each
    picture"""
    return partial(with_places, image=run.tokenizer.image, pad=run.tokenizer.pad, n_latent=n,
                   n_context=run.model_config.n_context)


class SpreadAsker(RankedAsker):
    """Prompts with free places for visual tokens."""

    def encode(self, document):
        c = self.model.config
        spread = with_places(super().encode(document), self.model.image, c.pad, c.n_latent)
        if len(spread.tokens) >= c.n_context:
            raise BadInput(f'{document.where}: {len(spread.tokens)} tokens and visual tokens are longer than '
                           f'the context of {c.n_context}')
        return spread


def new_encoders(run, row):
    """-> a Contrastive of random weights"""
    c = run.model_config
    contrastive = new_contrastive(c)
    if row.encoder == 'vit':
        contrastive.vision = ViT(c.image_size, c.dim_embed, per_image=c.per_image)
    return contrastive
