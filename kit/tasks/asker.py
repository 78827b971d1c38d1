"""Putting episodes to a model."""
import os
from dataclasses import replace

import numpy as np
import torch
from tqdm import tqdm

from data import collate, encode
from kit.features import FrozenFeatures, Pixels
from kit.files import BadInput
from kit.tokenizer import Tokenizer
from kit.weights import checkpoint
from model import Flamingo, FlamingoConfig, GPT
from vision import new_contrastive


ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # of the project
NANO = os.path.join(ROOT, 'assets', 'nano.pt')  # trained already, for the impatient
MOST_CHOICES = 1000  # of one episode: each takes the memory of a prompt


# ---------------------------------------------------------------------------------------------
# Asking a model


class Asker:
    """A trained Flamingo and all that is needed to put questions to it.

    ensemble: how many orders of the examples a choice is scored in; the mean log-likelihood counts (appendix A.2, Table 7).
    """

    def __init__(self, model, tokenizer, features, batch_size=16, beam_size=3, max_new_tokens=24, ensemble=1):
        self.model, self.tokenizer, self.features, self.batch_size = model.eval(), tokenizer, features, batch_size
        self.beam_size, self.max_new_tokens, self.ensemble = beam_size, max_new_tokens, ensemble

    def prompts(self, documents):
        """-> keyword arguments of `generate` and `score`. Raises BadInput where a prompt is too long."""
        encoded = [encode(d, self.tokenizer, n_token=self.model.lm.n_context - 1) for d in documents]
        batch = collate(encoded, self.tokenizer)
        features, frame_mask = self.features(batch.media)
        device = self.features.device
        return dict(tokens=batch.tokens.to(device), length=batch.length.to(device), image_index=batch.image_index.to(device),
                    features=features, frame_mask=frame_mask)

    def candidates(self, choices, n_prompt, where):
        """Answers to rank -> lists of token ids, each after a space and closed by <EOC>. n_prompt: tokens of the prompt before
        them. Raises BadInput where there are too many, or one is too long to follow it."""
        if len(choices) > MOST_CHOICES:
            raise BadInput(f'{where}: {len(choices)} choices are more than {MOST_CHOICES}')
        ids = [self.tokenizer.encode(' ' + c) + [self.tokenizer.eoc] for c in choices]
        longest, most = max(map(len, ids)), self.model.lm.n_context + 1
        if n_prompt + longest > most:
            raise BadInput(f'{where}: a prompt of {n_prompt} tokens and an answer of {longest} are longer than the context of {most - 1}')
        return ids

    def check_length(self, episode):
        """Raises BadInput where the prompt, with one of its choices, does not fit the context."""
        prompt = encode(episode.document(), self.tokenizer, n_token=self.model.lm.n_context - 1)
        if episode.choices is not None:
            self.candidates(episode.choices, len(prompt.tokens), episode.where or 'episode')

    def check(self, episode):
        """The same, and raises BadItem where a picture cannot be read."""
        self.check_length(episode)
        for e in [*episode.support, episode.query]:  # last: a prompt that is too long may have any number of them
            if e.media is not None:
                self.features.pixels(e.media)

    def score(self, episodes):
        """-> for each episode the log-probabilities of its choices, in their order"""
        prompts = self.prompts([e.document() for e in episodes])
        ids = [self.candidates(e.choices, n, e.where or 'episode') for e, n in zip(episodes, prompts['length'].tolist())]
        longest = max(len(answer) for answers in ids for answer in answers)
        # One's long prompt and another's long answer need not fit together, nor all of their choices into memory.
        if len(episodes) > 1 and (prompts['tokens'].shape[1] + longest > self.model.lm.n_context + 1 or sum(map(len, ids)) > MOST_CHOICES):
            return [scores for e in episodes for scores in self.score([e])]
        return self.model.score(candidates=ids, **prompts)

    def choose(self, episodes):
        """-> for each episode a dict {choice: log-probability}, the mean over so many orders of its examples"""
        total = [dict.fromkeys(e.choices, 0.0) for e in episodes]
        for order in range(self.ensemble):
            if order > 0:
                episodes = [replace(e, support=[e.support[k] for k in np.random.default_rng(order).permutation(len(e.support))]) for e in episodes]
            for sums, e, scores in zip(total, episodes, self.score(episodes)):
                for choice, score in dict(zip(e.choices, scores)).items():  # a choice may be there twice
                    sums[choice] += score / self.ensemble
        return total

    def write(self, episodes):
        """-> for each episode a pair (text, log-probability)"""
        answers = self.model.generate(max_new_tokens=self.max_new_tokens, beam_size=self.beam_size,
                                      **self.prompts([e.document() for e in episodes]))
        return [(self.tokenizer.decode(ids).strip(), log_p) for ids, log_p in answers]

    def answer(self, episodes, progress=None):
        """-> for each episode a dict {"prediction", "answer", "correct", "logprob"}, in order; and "scores" {choice: log-probability}
        where it has choices.

        Similar episodes are asked together: those with choices, and prompts of like length, so that little is padding.
        """
        order = sorted(range(len(episodes)), key=lambda i: (episodes[i].choices is None, len(episodes[i].support)))
        out = [None] * len(episodes)
        bar = tqdm(total=len(episodes), desc=progress, disable=progress is None, leave=False)
        while order:
            closed = episodes[order[0]].choices is not None
            part = [i for i in order[:self.batch_size] if (episodes[i].choices is not None) == closed]
            order = order[len(part):]
            asked = [episodes[i] for i in part]
            if closed:
                for i, e, scores in zip(part, asked, self.choose(asked)):
                    best = max(scores, key=scores.get)
                    out[i] = {'prediction': best, 'answer': e.query.answer, 'correct': best == e.query.answer, 'logprob': scores[best], 'scores': scores}
            else:
                for i, e, (text, log_p) in zip(part, asked, self.write(asked)):
                    out[i] = {'prediction': text, 'answer': e.query.answer, 'correct': bool(e.is_right(text)), 'logprob': log_p}
            bar.update(len(part))
        bar.close()
        return out


def load(path, device='cpu', batch_size=16):
    """flamingo.pt -> (Asker, Contrastive with the same encoder). The file needs nothing beside it. Raises BadInput."""
    content = checkpoint.load(path, 'flamingo', config=dict, tokenizer=dict, flamingo=dict, contrastive=dict)
    try:
        config, tokenizer = FlamingoConfig(**content['config']), Tokenizer.from_state(content['tokenizer'])
        if (config.n_vocab, config.bos, config.pad) != (tokenizer.n_vocab, tokenizer.bos, tokenizer.pad):
            raise BadInput(f'its tokenizer has {tokenizer.n_vocab} words, and its model {config.n_vocab}')
    except (TypeError, ValueError) as e:  # sizes with another name, of another type, or that no model has
        raise BadInput(f'{path}: {e}') from e

    def fill(check):
        contrastive = new_contrastive(config)
        model = Flamingo(config, contrastive.vision, GPT.from_config(config))
        check(model, content['flamingo'], path)
        vision = {'vision.' + k: v for k, v in model.vision.state_dict().items()}  # in the file once
        check(contrastive, content['contrastive'] | vision, path)
        return contrastive, model

    with torch.device('meta'):  # before any memory is taken: do the tensors in the file have the sizes that it claims?
        fill(checkpoint.check_state)
    contrastive, model = fill(checkpoint.load_into)
    features = FrozenFeatures(model.vision, Pixels(config.image_size, config.n_frame), device)
    return Asker(model.to(device), tokenizer, features, batch_size), contrastive.to(device).eval()
