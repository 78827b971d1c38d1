"""What the paper leaves open, asked of a trained model: each question a function that gives rows of results.

    python evaluate.py --questions=all --n=100
    python evaluate.py --questions=new_kinds,against_meaning

docs/questions.md has the answers.
"""
import contextlib
import copy
import math
from dataclasses import replace
from itertools import permutations

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from data import CAPTION_PROMPT, Document, Example, Given, question_prompt
from kit.episode import Episode
from kit.files import BadItem
from kit.tasks import attention
from kit.tasks.asker import Asker
from kit.tasks.encoders import embed_media, zero_shot
from kit.tasks.episodes import episodes_of
from kit.tasks.occlusion import occlusion, widened
from kit.tasks.options import listed
from kit.tasks.results import measure, row, row_of
from kit.world.draw import COLOURS, HELD_PAIRS, PAIRS, PLACE_WORDS, SHAPES
from kit.world.tasks import kind_episode, KINDS, one_scene, scene_media
from kit.world.words import caption, yes_or_no
from model import GPT

SEED = 3


def accuracy(asker, task, episodes, ways=None, shots=None, control=None, metric='accuracy'):
    return row_of('accuracy', task, episodes, asker.answer(episodes), ways, shots, control, label=metric)


def share(task, hits, shots=None, control=None, metric='accuracy'):
    """A row of a proportion, from a list of truths."""
    return row(task, float(np.mean(hits)), len(hits), shots=shots, control=control, metric=metric)


def generators(n, *key):
    return [np.random.default_rng([SEED, i, *key]) for i in range(n)]


# ---------------------------------------------------------------------------------------------
# A new task, or the location of a trained one?


def new_kinds(asker, contrastive, n):
    """Made-up names for what no training page named: a size, a fill, a background, a count, a place. All else
    differs from picture to picture. Two names; chance is one half."""
    rows = [measure(asker, 'naming', shots, n, 2, seed=SEED)[0] | {'task': 'names of pairs'}
            for shots in (1, 2, 4, 8)]
    for k, kind in enumerate(KINDS):
        for shots in (1, 2, 4, 8):
            episodes = [kind_episode(rng, kind, 2, shots, i) for i, rng in enumerate(generators(n, k))]
            rows.append(accuracy(asker, f'names of a {kind}', episodes, 2, shots))
    return rows


def against_meaning(asker, contrastive, n):
    """Real words in other places: of two colours (or shapes) each is called by the other's name. Does it
    follow the prompt, or what its weights know? The choices are the two words."""
    rows = []
    for k, (kind, words) in enumerate((('colour', tuple(COLOURS)), ('shape', SHAPES))):
        for flipped in (False, True):
            for shots in (1, 2, 4, 8):
                episodes = [word_episode(rng, kind, words, shots, flipped, i)
                            for i, rng in enumerate(generators(n, 10 + k))]
                task = f'{kind} words, ' + ('exchanged' if flipped else 'as they are')
                rows.append(accuracy(asker, task, episodes, 2, shots, metric='follows the prompt'))
    return rows


def word_episode(rng, kind, words, shots, flipped, turn):
    a, b = (words[k] for k in rng.choice(len(words), 2, replace=False))
    called = {a: b, b: a} if flipped else {a: a, b: b}

    def show(value):
        return Example(scene_media(one_scene(rng, **{kind: value})), CAPTION_PROMPT, called[value])

    query = show((a, b)[turn % 2])
    support = [show(value) for value in (a, b) for _ in range(shots)]
    return Episode([support[k] for k in rng.permutation(len(support))], query, choices=[a, b])


# ---------------------------------------------------------------------------------------------
# Is it the language model alone?


def language_model(asker, contrastive, n):
    """The same prompts with another language model in the middle: of random weights; and without the head
    that says what followed the same words last time (kit/copying.py)."""
    def without_copying(lm):
        d = lm.wte.weight.shape[1] // lm.h[1].attn.n_head
        lm.h[1].attn.c_proj.weight[:, :d] = 0.0

    def of_random_weights(lm):
        torch.manual_seed(SEED)
        lm.load_state_dict(GPT.from_config(asker.model.config).state_dict())

    rows = []
    for name, change in (('as it is', lambda lm: None), ('it cannot copy', without_copying),
                         ('random weights', of_random_weights)):
        model = copy.deepcopy(asker.model)
        with torch.no_grad():
            change(model.lm)
        other = Asker(model, asker.tokenizer, asker.features, asker.batch_size)
        for task, shots, ways in (('naming', 1, 4), ('caption', 4, None), ('question', 4, None)):
            rows.append(measure(other, task, shots, n, ways, seed=SEED)[0] | {'control': name})
    for control in ('text_only', 'blank_support', 'blank_query'):
        rows.append(measure(asker, 'naming', 1, n, 4, control, seed=SEED)[0])
    return rows


# ---------------------------------------------------------------------------------------------
# Can it localise?


def localise(asker, contrastive, n):
    """Where-questions; and the pointing game: does the peak of a map lie on the thing that is named? Beside
    each its share by chance, the thing's share of the area.

    Maps: the attention of the gated layers followed to the picture (kit/tasks/attention.py); the same less
    its mean over all pictures; and occlusion (kit/tasks/occlusion.py), of the answer. All smooth, at 48 x 48.
    """
    rngs, places = generators(n, 20), list(PLACE_WORDS)
    episodes = [place_episode(rng, places) for rng in rngs]
    rows = [accuracy(asker, 'where is it?', episodes, 5, 4)]
    maps, masks = {'attention': [], 'attention less its mean': [], 'occlusion': []}, []
    for rng in generators(min(n, 100), 21):
        scene = one_scene(rng, place=places[int(rng.integers(5))], size='small', background='any')
        media, empty = scene_media(scene), scene_media(replace(scene, count=0))
        pixels, without = (asker.features.pixels(m)[0].float() for m in (media, empty))
        masks.append(((pixels - without).abs().max(0).values > 24).numpy())                   # (H,W)
        said = Given(f' {caption(scene)}')
        prompts = asker.prompts([Document([media, Given(CAPTION_PROMPT), said], 'prompt')])
        n_prompt = prompts['tokens'].shape[1] - len(asker.tokenizer.encode(said))
        look = attention.look(asker.model, prompts['tokens'], prompts['image_index'], prompts['features'],
                              prompts['frame_mask'])[:, 0, 0]                                 # (T,S)
        maps['attention'].append(look[n_prompt - 1:-1].mean(0))
        lost = occlusion(asker, [media], prompts)[0]                                          # (T-1,P)
        maps['occlusion'].append(lost[n_prompt - 1:].sum(0))
    mean = torch.stack(maps['attention']).mean(0)
    maps['attention less its mean'] = [m - mean for m in maps['attention']]
    rows.append(row('pointing game', float(np.mean([m.mean() for m in masks])), len(masks), control='chance'))
    for name, found in maps.items():
        full = [(widened if name == 'occlusion' else stretched)(m, mask.shape[0]).numpy()
                for m, mask in zip(found, masks)]
        rows.append(share('pointing game', [mask.flat[m.argmax()] for m, mask in zip(full, masks)],
                          control=name))
        on = [m.clip(0)[mask].sum() / max(m.clip(0).sum(), 1e-9) for m, mask in zip(full, masks)]
        rows.append(row('pointing game', float(np.mean(on)), len(on), control=name, metric='weight on it'))
    return rows


def stretched(weights, side):
    """A map on the encoder's places (S,) -> (side,side), smooth between their middles"""
    n = math.isqrt(len(weights))
    small = weights.view(1, 1, n, n).float()
    return F.interpolate(small, (side, side), mode='bilinear', align_corners=False)[0, 0]


def place_episode(rng, places):
    def show():
        place = places[int(rng.integers(len(places)))]
        return Example(scene_media(one_scene(rng, place=place, size='small')),
                       question_prompt('where is it?'), PLACE_WORDS[place])
    query = show()
    return Episode([show() for _ in range(4)], query, choices=list(PLACE_WORDS.values()))


# ---------------------------------------------------------------------------------------------
# Does the <image> token see its own image?


class ShiftedTag(Asker):
    """The tag of each picture, and the text up to its answer, sees the picture before."""
    until = 0  # how many tokens after the tag, too

    def encode(self, document):
        encoded = super().encode(document)
        tag = np.flatnonzero(encoded.tokens == self.model.image)
        index = encoded.image_index.copy()
        for k in range(self.until + 1):
            at = tag[tag + k < len(index)] + k
            index[at] = np.maximum(index[at] - 1, 0)
        return replace(encoded, image_index=index)


def image_token(asker, contrastive, n):
    """As it is, the tag's own token sees its picture (φ moves on at the tag). What if it did not, or if
    "Output:" did not, either?"""
    rows = []
    for name, until in (('as it is', None), ('the tag sees the picture before', 0),
                        ('tag and "Output:" see the picture before', 2)):
        other = asker
        if until is not None:
            other = ShiftedTag(asker.model, asker.tokenizer, asker.features, asker.batch_size)
            other.until = until
        for task, shots, ways in (('naming', 1, 4), ('caption', 0, None), ('question', 0, None)):
            rows.append(measure(other, task, shots, n, ways, seed=SEED)[0] | {'control': name})
    return rows


# ---------------------------------------------------------------------------------------------
# Hallucination


def hallucination(asker, contrastive, n):
    """Questions about what is not there, after four examples: a sign on a picture without one (is a letter
    read, or "no"?), and is it a thing that it is not?"""
    signs, yes = [], {True: [], False: []}
    for rng in generators(n, 30):
        support = [sign_example(rng, glyph) for glyph in ('A', 'K', '7', 'X')]
        query = sign_example(rng, '')
        signs.append(Episode(support, query))
        for true in (True, False):
            yes[true].append(Episode([yes_example(rng, None) for _ in range(4)], yes_example(rng, true),
                                     choices=['yes', 'no']))
    said = [a['prediction'] for a in asker.answer(signs)]
    rows = [share('a sign that is not there', [len(s) == 1 and s.isalnum() for s in said], 4,
                  metric='a letter is read')]
    for true, episodes in yes.items():
        answers = asker.answer(episodes)
        rows.append(share('is it …? ' + ('it is' if true else 'it is not'),
                          [a['prediction'] == 'yes' for a in answers], 4, metric='says yes'))
    return rows


def sign_example(rng, glyph):
    place = ('left', 'right', 'top', 'bottom')[int(rng.integers(4))]
    return Example(scene_media(one_scene(rng, size='small', place=place, glyph=glyph)),
                   question_prompt('what does the sign say?'), glyph)


def yes_example(rng, true):
    """A question that is answered by yes or no; true: which of the two, None for either."""
    while True:
        scene = one_scene(rng)
        _, question, answer = yes_or_no(rng, scene)
        if true is None or (answer == 'yes') == true:
            return Example(scene_media(scene), question_prompt(question), answer)


# ---------------------------------------------------------------------------------------------
# Order and choice of examples


def order(asker, contrastive, n):
    """All 24 orders of four examples: how far accuracy differs between the best and the worst, how often an
    episode is right in all of them, how often the answer is the last example's name (a quarter, if place said
    nothing). And for captions: examples that look like the query (RICES) against any."""
    episodes = episodes_of('naming', 1, max(n // 2, 1), 4, SEED)
    orders, right, last = list(permutations(range(4))), [], []
    for chosen in orders:
        asked = [replace(e, support=[e.support[k] for k in chosen]) for e in episodes]
        answers = asker.answer(asked)
        right.append([a['correct'] for a in answers])
        last += [a['prediction'] == e.support[-1].answer for e, a in zip(asked, answers)]
    right = np.array(right)                                                           # (24, episodes)
    rows = [share('names, 24 orders', right[k], 4, name) for name, k in
            (('the worst order', right.mean(1).argmin()), ('the best order', right.mean(1).argmax()))]
    rows += [share('names, 24 orders', right.all(0), 4, 'right in all orders'),
             share('names, 24 orders', last, 4, metric='says the last name')]
    return rows + rices(asker, n)


def rices(asker, n):
    rows = []
    for nearest in (False, True):
        episodes = []
        for i, rng in enumerate(generators(n, 40)):
            episode = episodes_of('caption', 32, 1, None, 1000 + i)[0]
            keep = rng.choice(32, 4, replace=False)
            if nearest:
                media = [e.media for e in (*episode.support, episode.query)]
                seen = embed_media(asker.model.vision, asker.features, media)         # (33,E)
                keep = (seen[:-1] @ seen[-1]).topk(4).indices.flip(0).tolist()        # the nearest last
            episodes.append(replace(episode, support=[episode.support[k] for k in keep]))
        rows.append(accuracy(asker, 'captions', episodes, None, 4, 'RICES' if nearest else 'any examples'))
    return rows


# ---------------------------------------------------------------------------------------------
# Long prompts; contrastive against generative


def plateau(asker, contrastive, n):
    """0 to 32 examples, and more: pages had at most 11 pictures to describe, 9 clips, and 33 to ask about."""
    rows = []
    for task in ('caption', 'question', 'clip_caption'):
        for shots in (0, 1, 2, 4, 8, 16, 24, 32, 40):
            with contextlib.suppress(BadItem):  # longer than the context
                rows.append(measure(asker, task, shots, n, seed=SEED)[0])
    return rows


def contrastive_or_generative(asker, contrastive, n):
    """Which of all 64 pairs is it (none of the pictures' pairs was trained)? By the encoders, and by the
    likelihood of each as a caption, after 0 and 4 examples."""
    rows = [zero_shot(contrastive, asker.tokenizer, asker.features, n) | {'control': 'contrastive'}]
    for shots in (0, 4):
        episodes = [pair_episode(rng, shots) for rng in generators(n, 50)]
        rows.append(accuracy(asker, 'zero_shot', episodes, 64, shots, 'generative'))
    return rows


def pair_episode(rng, shots):
    def show(pairs):
        colour, shape = pairs[int(rng.integers(len(pairs)))]
        return Example(scene_media(one_scene(rng, colour=colour, shape=shape)), CAPTION_PROMPT,
                       said(colour, shape))

    def said(colour, shape):
        return f'a large {colour} {shape}.'
    query = show(HELD_PAIRS)
    train = [pair for pair in PAIRS if pair not in HELD_PAIRS]
    return Episode([show(train) for _ in range(shots)], query, choices=[said(*pair) for pair in PAIRS])


QUESTIONS = {f.__name__: f for f in (new_kinds, against_meaning, language_model, localise, image_token,
                                     hallucination, order, plateau, contrastive_or_generative)}


def run_questions(config, asker, contrastive, report):
    """--questions: some of QUESTIONS with commas, or 'all' -> rows"""
    names = QUESTIONS if 'all' in config.questions.split(',') else listed(config, 'questions', QUESTIONS)
    ask = lambda name: QUESTIONS[name](asker, contrastive, config.n)
    return [found for name in tqdm(names, desc='questions') for found in ask(name)]
