"""What some rows read otherwise: merged pairs, text beside pages, places for visual tokens; a ViT."""
import torch
import torch.nn.functional as F

from kit.contrastive import new_contrastive
from kit.files import BadInput
from kit.run.batches import Captions, PairBatch, PairData, TextData
from kit.run.checks import RankedAsker
from kit.run.keys import SOURCES
from kit.run.sequences import SequenceData
from kit.variants import ViT, with_places


class MergedPairs(PairData):
    """One batch of both sources."""

    def of_source(self, source, i):
        # In the drawn world, pair i of either source shows one picture: others for the second.
        return super().of_source(source, i + (SOURCES.index(source) << 20))

    def batches(self, samples, i):
        parts = [next(super(MergedPairs, self).batches({source: of}, i)) for source, of in samples.items()]
        longest = max(x.shape[1] for part in parts for x, _, _ in part.captions.values())
        first, merged = 0, []
        for part in parts:
            [(tokens, mask, shows)] = part.captions.values()
            room = 0, longest - tokens.shape[1]
            merged.append((F.pad(tokens, room), F.pad(mask, room), shows + first))
            first += len(part.images)
        captions = {'merged': Captions(*map(torch.cat, zip(*merged)))}
        yield PairBatch(torch.cat([part.images for part in parts]), captions, more=False)


class WithText(SequenceData):
    """Sequences, and rows of plain text as the language stage reads them."""

    def __init__(self, run):
        super().__init__(run)
        self.texts = TextData(run)

    def of_source(self, source, i):
        return self.texts.of_source(source, i) if source == 'text' else super().of_source(source, i)

    def media(self, samples):
        return [] if isinstance(samples, tuple) else super().media(samples)

    def batches(self, samples, i):
        sequences = {source: of for source, of in samples.items() if source != 'text'}
        if sequences:
            yield from super().batches(sequences, i)
        if 'text' in samples:
            yield from self.texts.batches({'text': samples['text']}, i)


class SpreadData(SequenceData):
    """Sequences with n free places for the visual tokens, or patches, of each picture."""

    def __init__(self, run, n):
        super().__init__(run)
        self.n_place = n

    def sequence(self, document, source, number):
        sequence = super().sequence(document, source, number)
        return with_places(sequence, self.tokenizer.image, self.tokenizer.pad, self.n_place,
                           self.model_config.n_context)


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
