"""Putting questions to a trained Flamingo: answers are ranked by log-likelihood, or written (§2.5)."""
import os
import re
import sys
from dataclasses import replace

import numpy as np
from tqdm import tqdm

from data import collate, encode, Given
from kit.adapt import N_SOFT, Prompted, with_prompt
from kit.answers import generate, score
from kit.features import FrozenFeatures, Pixels
from kit.files import BadInput, one_line
from kit.sources.base import FolderSpec
from kit.sources.forms import open_folder
from kit.tasks.controls import blank_support
from kit.tasks.prompts import file_media
from kit.weights.flamingo import read_flamingo


ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # of the project
NANO = os.path.join(ROOT, 'assets', 'nano.pt')  # trained already, for the impatient
CHECKPOINT = 'flamingo.pt'
MOST_CHOICES = 10_000  # of one episode
MOST_BEAMS = 64      # of generation: each takes the memory of a prompt
MOST_FRAMES = 1000   # of a clip, and in a second
LEAST_FPS = 0.001
NEXT_PROMPT = re.compile(r'\b(Output|Question|Answer|Caption):')  # as the prompts in data.py begin


def find_checkpoint(out_dir, name=CHECKPOINT):
    """The path of the checkpoint to read: in out_dir, or else assets/nano.pt, and a line that says so. A name
    with a folder in it is a path of its own."""
    if os.path.dirname(name):
        os.makedirs(out_dir, exist_ok=True)
        return name
    path = os.path.join(out_dir, name)
    if name != CHECKPOINT or os.path.exists(path) or not os.path.exists(NANO):
        return path
    print(f'there is no {one_line(path)}; using {os.path.relpath(NANO)}, which was trained already '
          '(python train.py trains your own)', file=sys.stderr)
    os.makedirs(out_dir, exist_ok=True)
    return NANO


def load(path, device='cpu', batch_size=16, n_frame=0, fps=1.0):
    """flamingo.pt -> (Asker, Contrastive with the same encoder). Raises BadInput.

    n_frame: most frames of a clip, 0 for as many as in training. The resampler stretches its embeddings of
    time over more (appendix B.1.2: trained on 8 frames at 1 a second, asked about 30 at 3 a second).
    """
    model, contrastive, tokenizer, keys = read_flamingo(path)
    pixels = Pixels(model.config.image_size, n_frame or model.config.n_frame)
    features = FrozenFeatures(model.vision, pixels, device)
    asker = Asker(model.to(device), tokenizer, features, batch_size, fps=fps)
    if type(share := keys.get('held_share')) is float and 0 < share < 1:
        asker.held_share = share
    return asker, contrastive.to(device).eval()


def trim(text):
    """What stands before the next prompt: a model that does not stop at <EOC> goes on with a question of its
    own (the first version of the paper trims so, too)."""
    return NEXT_PROMPT.split(text, maxsplit=1)[0].strip()


class Asker:
    """A trained Flamingo and all that is needed to put questions to it.

    batch_size: episodes at a time. beam_size, max_new_tokens: of written answers. ensemble: how many orders
    of the examples a choice is scored in; the mean log-likelihood counts (appendix A.2, Table 7). fps: frames
    a second of animations. calibrate: rank choices by how much more likely the pictures of the examples make
    them (contextual calibration, Zhao et al. 2021, arXiv:2102.09690); the paper ranks by log-likelihood.
    held_share: of the things of a folder without splits, that training held out.
    """

    def __init__(self, model, tokenizer, features, batch_size=16, beam_size=3, max_new_tokens=24, ensemble=1,
                 fps=1.0):
        self.model, self.tokenizer, self.features = model.eval(), tokenizer, features
        self.batch_size, self.beam_size, self.max_new_tokens = batch_size, beam_size, max_new_tokens
        self.ensemble, self.fps, self.calibrate, self.held_share = ensemble, fps, False, 0.0

    @property
    def n_frame(self):
        """Most frames of a clip."""
        return self.features.pixels.n_frame

    def media(self, path):
        """A picture or clip on disk as Media, with as many frames as are wanted."""
        return file_media(path, self.n_frame, self.fps)

    def pairs(self, path, report, split=None, **spec):
        """A folder of pictures and what is said about them -> Pairs, with as many frames of clips as are
        wanted.

        split: '' or None for all. Where the folder has none, val is what training held out, and train the
        rest. spec: fields of kit.sources.base.FolderSpec. Raises BadInput.
        """
        spec = FolderSpec(**{'fps': self.fps, 'held_share': self.held_share if split else 0.0} | spec)
        return open_folder(path, spec, self.n_frame, split=split or None, report=report)

    def encode(self, document):
        """A prompt -> data.Encoded. Raises BadInput where it is too long.

        Its end is trimmed, wherever it comes from: an answer brings the space before it, and after another
        one, or a line's end, models say what they never learned to say.
        """
        if document.pieces and isinstance(document.pieces[-1], str):
            *pieces, last = document.pieces
            document = replace(document, pieces=[*pieces, Given(last.rstrip())])
        n_token = self.model.config.n_context - 1
        if not isinstance(self.model, Prompted):
            return encode(document, self.tokenizer, n_token)
        return with_prompt(encode(document, self.tokenizer, n_token - N_SOFT), self.model.config, cut=False)

    def prompts(self, documents):
        """Documents -> keyword arguments of `generate` and `score`. Raises BadInput where one is too long."""
        batch = collate([self.encode(d) for d in documents], self.tokenizer)
        features, frame_mask = self.features(batch.media)
        device = self.features.device
        return dict(tokens=batch.tokens.to(device), length=batch.length.to(device),
                    image_index=batch.image_index.to(device), features=features, frame_mask=frame_mask)

    def candidates(self, choices, n_prompt, where):
        """Answers to rank -> lists of token ids, each after a space and closed by <EOC>.

        n_prompt: tokens of the prompt before them. Raises BadInput where there are too many, or one is too
        long to follow the prompt.
        """
        if len(choices) > MOST_CHOICES:
            raise BadInput(f'{where}: {len(choices)} choices are more than {MOST_CHOICES}')
        ids = [self.tokenizer.encode(' ' + c) + [self.tokenizer.eoc] for c in choices]
        self.check_room(n_prompt, max(map(len, ids)), where)
        return ids

    def check_room(self, n_prompt, n_answer, where):
        """Raises BadInput where the answer does not fit the context after the prompt. Its last word is not
        read."""
        n_context = self.model.config.n_context
        if n_prompt + n_answer > n_context + 1:
            raise BadInput(f'{where}: a prompt of {n_prompt} tokens and an answer of {n_answer} '
                           f'are longer than the context of {n_context}')

    def check_length(self, episode):
        """Raises BadInput where the prompt with its answer does not fit the context: with the longest of the
        choices, or with a written one as long as `max_new_tokens` allows."""
        where, n_prompt = episode.where or 'episode', len(self.encode(episode.document()).tokens)
        if episode.choices is not None:
            self.candidates(episode.choices, n_prompt, where)
        else:
            self.check_room(n_prompt, self.max_new_tokens, where)

    def check(self, episode):
        """The same, and raises BadItem where a picture cannot be read."""
        self.check_length(episode)
        for e in [*episode.support, episode.query]:  # last: a prompt too long may have any number of them
            if e.media is not None:
                self.features.pixels(e.media)

    def score(self, episodes):
        """-> for each episode the log-probabilities of its choices, in their order"""
        prompts = self.prompts([e.document() for e in episodes])
        ids = [self.candidates(e.choices, n, e.where or 'episode')
               for e, n in zip(episodes, prompts['length'].tolist())]
        return score(self.model, candidates=ids, **prompts)

    def scores(self, episodes):
        """The same; with `calibrate`, less what they are where the pictures of the examples show nothing."""
        scores = self.score(episodes)
        if not self.calibrate:
            return scores
        blind = self.score([blank_support(e) for e in episodes])
        return [[a - b for a, b in zip(mine, prior)] for mine, prior in zip(scores, blind)]

    def choose(self, episodes):
        """-> for each episode a dict {choice: score}, the mean over `ensemble` orders of its
        examples"""
        total = [dict.fromkeys(e.choices, 0.0) for e in episodes]
        for order in range(self.ensemble):
            asked = episodes if order == 0 else [reordered(e, np.random.default_rng(order)) for e in episodes]
            for sums, e, scores in zip(total, asked, self.scores(asked)):
                for choice, score in dict(zip(e.choices, scores)).items():  # a choice may be there twice
                    sums[choice] += score / self.ensemble
        return total

    def write(self, episodes):
        """-> for each episode a pair (text, log-probability of all that was written)"""
        answers = generate(self.model, max_new_tokens=self.max_new_tokens, beam_size=self.beam_size,
                           **self.prompts([e.document() for e in episodes]))
        return [(trim(self.tokenizer.decode(ids)), log_p) for ids, log_p in answers]

    def answer(self, episodes, progress=None):
        """-> for each episode, in order, a dict {"prediction", "answer", "correct", "logprob"}, and where it
        has choices "scores" {choice: log-probability}. progress: what a bar says meanwhile.

        Similar episodes are asked together: those with choices, and prompts of like length, so that little is
        padding.
        """
        def kind(i):
            return episodes[i].choices is None, len(episodes[i].support)

        order, out = sorted(range(len(episodes)), key=kind), [None] * len(episodes)
        bar = tqdm(total=len(episodes), desc=progress, disable=progress is None, leave=False)
        while order:
            part = [i for i in order[:self.batch_size] if kind(i)[0] == kind(order[0])[0]]
            order = order[len(part):]
            asked = [episodes[i] for i in part]
            if kind(part[0])[0]:
                said = map(written, asked, self.write(asked))
            else:
                said = map(chosen, asked, self.choose(asked))
            for i, answer in zip(part, said):
                out[i] = answer
            bar.update(len(part))
        bar.close()
        return out


def reordered(episode, rng):
    """The same examples in another order."""
    return replace(episode, support=[episode.support[k] for k in rng.permutation(len(episode.support))])


def chosen(episode, scores):
    """The answer of an episode with choices: the likeliest."""
    best, truth = max(scores, key=scores.get), episode.query.answer
    return {'prediction': best, 'answer': truth, 'correct': best == truth, 'logprob': scores[best],
            'scores': scores}


def written(episode, said):
    """The answer of an episode without choices. said: (text, log-probability)."""
    text, log_p = said
    return {'prediction': text, 'answer': episode.query.answer, 'correct': bool(episode.is_right(text)),
            'logprob': log_p}
