"""The masked system among the others: what it reads, and how it is asked."""
import torch

from kit.ablations.reads import spread
from kit.ablations.score import few_shot
from kit.features import FrozenFeatures
from kit.files import BadInput
from kit.masked import MaskedSystem
from kit.run.keys import SOURCES
from kit.run.stage import Stage
from kit.tasks.asker import Asker, chosen, written
from kit.variants import with_places
from vision import NFNet


def pixels_of(media, pixels, normalise):
    """Media of all rows -> (pictures,3,H,W) float. Of a clip the first frame: there is no path for video."""
    return normalise(torch.stack([pixels(m)[0] for row in media for m in row]))


class MaskedStage(Stage):
    """All of the masked system at once. optimizer_of, data_of: train.adamw, train.SequenceData"""
    name = 'flamingo'

    def __init__(self, run, row):
        c = run.model_config
        n_layer = c.lm_layer + len(range(0, c.lm_layer, c.xattn_every)) + c.resampler_layer
        self.module = MaskedSystem(c, n_layer, c.lm_dim, c.lm_head).to(run.device)
        super().__init__(run, self.data_of(run))
        self.data.change = spread(run, self.module.n_patch)
        self.net, self.schedule_name = self.module, run.config.schedule_flamingo
        self.set_lambdas(dict.fromkeys(SOURCES, 1.0), 'nothing to learn from: give m3w, align, ltip or vtp')
        self.lambdas = {'words': 1.0, 'patches': 1.0, 'contrast': 1.0}  # of all sources together
        self.n_iter, self.lr = self.config.flamingo_iters, self.config.flamingo_lr
        self.optimizer = self.optimizer_of(self.module.named_parameters(), self.config.weight_decay)
        self.normalise = NFNet('nano', per_image=c.per_image).normalise

    def losses(self, batch):
        tokens, index = batch.tokens, batch.image_index
        pixels = pixels_of(batch.media, self.run.reader.pixels, self.normalise).to(tokens.device)
        c = self.run.model_config
        words = (tokens < self.module.image) & (tokens != c.pad) & (tokens != c.bos)
        return self.net(tokens, index, pixels, words)

    def evaluate(self):
        return {}

    content = evaluate

    def ask(self, n):
        features = FrozenFeatures(None, self.run.reader.pixels, self.run.device)
        return few_shot(MaskedAsker(self.module, self.run.tokenizer, features, self.normalise), n)


class MaskedAsker(Asker):
    """Answers are as many masks as the answer has tokens, filled at once. Where there are choices, each fills
    its own; elsewhere the number of masks is the true answer's, which helps."""

    def __init__(self, model, tokenizer, features, normalise):
        super().__init__(model, tokenizer, features)
        self.normalise = normalise

    def encode(self, document):
        c = self.model.config
        spread = with_places(super().encode(document), self.model.image, c.pad, self.model.n_patch)
        if len(spread.tokens) >= c.n_context:
            raise BadInput(f'{document.where}: {len(spread.tokens)} tokens and patches are longer than the '
                           f'context of {c.n_context}')
        return spread

    def answer(self, episodes, progress=None):
        return [self.answer_one(e) for e in episodes]

    def answer_one(self, episode):
        base, tokenizer = self.encode(episode.document()), self.tokenizer
        pixels = pixels_of([base.media], self.features.pixels, self.normalise).to(self.features.device)
        if episode.choices is None:
            [log_p] = self.fill(base, pixels, [tokenizer.encode(' ' + episode.query.answer)])
            best, ids = log_p.max(-1)
            text = tokenizer.decode([i for i in ids.tolist() if i < tokenizer.image])
            return written(episode, (text.strip(), best.sum().item()))
        ids = [tokenizer.encode(' ' + c) + [self.model.eoc] for c in episode.choices]
        scores = [log_p.gather(1, torch.tensor(one)[:, None].to(log_p.device)).sum().item()
                  for log_p, one in zip(self.fill(base, pixels, ids), ids)]
        return chosen(episode, dict(zip(episode.choices, scores)))

    def fill(self, base, pixels, answers):
        """-> for each answer (token ids) the log-probabilities at its masks (its length,V+2)"""
        found = []
        for ids in answers:
            tokens = torch.tensor([*base.tokens, *ids], device=pixels.device)[None]
            index = torch.tensor([*base.image_index, *[base.image_index[-1]] * len(ids)],
                                 device=pixels.device)[None]
            place = torch.arange(tokens.shape[1], device=pixels.device)[None] >= len(base.tokens)
            found.append(self.model.fill(tokens, index, pixels, place)[0, len(base.tokens):])
        return found
