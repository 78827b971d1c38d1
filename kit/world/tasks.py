"""Few-shot tasks of the drawn world, about pairs and names that were never trained on."""
from dataclasses import replace
from functools import partial

import numpy as np

from data import CAPTION_PROMPT, Example, Media, question_prompt
from kit.episode import ACTION_PROMPT, dialogue_prompt, Episode, statement_prompt
from kit.world.draw import (
    BACKGROUNDS, clip, clip_media, CLIP_SPLITS, COLOURS, DIRECTIONS, draw, EVENTS, FILLS, GLYPHS, HELD_PAIRS,
    NUMBERS, PAIRS, picture_media, PLACE_WORDS, random_clip, random_picture, Scene, scene, SHAPES, SIZES,
    SPLITS)
from kit.world.names import made_up_names
from kit.world.words import caption, clip_caption, clip_questions, happening, phrase, plural, questions


# ---------------------------------------------------------------------------------------------
# Few-shot tasks about pairs and names that were never trained on. A query is drawn before its examples, so
# that it is the same for any number of them.


def naming_episode(rng, split, ways, shots, turn=None):
    """Which of the made-up names has the thing in the last picture? `shots` examples of each of `ways`
    kinds, in random order. Kinds and names are drawn for this episode; no picture appears twice.

    turn: the query shows the kind of support picture number `turn`. Taking them in turn makes chance
    exactly 1/ways for whoever goes by place (by luck, "the last one" can be right in a third of 400
    four-way episodes).
    """
    pairs, n_picture, _ = SPLITS[split]
    kinds = rng.choice(len(pairs), ways, replace=False)
    names = made_up_names(rng, ways, split)
    asked, n_each = int(rng.integers(ways)), n_picture // len(pairs)
    own = int(rng.integers(n_each))  # the query's: drawn before anything that depends on the number of shots

    def show(kind, n):
        return Example(picture_media(split, int(kinds[kind]) + len(pairs) * n), CAPTION_PROMPT, names[kind])

    place = int(rng.integers(ways * shots)) if turn is None else turn % (ways * shots)
    rest = np.repeat(np.arange(ways), shots - (np.arange(ways) == asked))
    order = np.insert(rng.permutation(rest), place, asked).tolist()
    numbers = [iter(rng.choice(n_each - 1, shots, replace=False).tolist()) for _ in kinds]
    support = [(kind, next(numbers[kind])) for kind in order]
    support = [(kind, n + (kind == asked and n >= own)) for kind, n in support]  # all but the query's own
    return Episode([show(*which) for which in support], show(asked, own), choices=names)


def caption_episode(rng, split, shots):
    """Describe a picture of a new pair; the support shows known pairs."""
    def one(split):
        i = random_picture(rng, split)
        return Example(picture_media(split, i), CAPTION_PROMPT, caption(scene(split, i))), scene(split, i)
    query, truth = one(split)
    return Episode([one('train')[0] for _ in range(shots)], query, check=partial(caption_is_right, truth))


def asked_episode(rng, split, shots, draw, media, asked_about):
    """A question about something new; the support asks about known things.
    draw(rng,split) -> i, media(split,i), asked_about(split,i) -> [(_, question, answer)]"""
    def one(split):
        i = draw(rng, split)
        asked = asked_about(split, i)
        _, question, answer = asked[int(rng.integers(len(asked)))]
        return Example(media(split, i), question_prompt(question), answer)
    query = one(split)
    return Episode([one('train') for _ in range(shots)], query)


def question_episode(rng, split, shots):
    """Answer a question about a new pair. The support asks questions about known pairs."""
    return asked_episode(rng, split, shots, random_picture, picture_media,
                         lambda split, i: questions(scene(split, i)))


def clip_episode(rng, split, shots):
    """Which way does it move? Any caption counts whose direction is right."""
    def one(split):
        while True:
            i = int(rng.integers(CLIP_SPLITS[split][1]))
            if clip(split, i).event in DIRECTIONS:
                c = clip(split, i)
                return Example(clip_media(split, i), CAPTION_PROMPT, clip_caption(c)), c

    query, truth = one(split)
    return Episode([one('train')[0] for _ in range(shots)], query, check=partial(direction_is_right, truth))


def caption_is_right(scene, text):
    """Every attribute that the text names is the scene's, and it names at least colour and shape."""
    words = text.lower().replace('.', ' ').replace(',', ' ').split()
    true = {
        'colour': scene.colour,
        'shape': scene.shape,
        'size': scene.size if scene.count == 1 else None,
        'fill': scene.fill,
        'count': NUMBERS[scene.count],
    }
    singular = {plural(s): s for s in SHAPES} | {s: s for s in SHAPES}
    named = {
        'colour': [w for w in words if w in COLOURS],
        'shape': [singular[w] for w in words if w in singular],
        'size': [w for w in words if w in SIZES],
        'fill': [w for w in words if w in FILLS],
        'count': [w for w in words if w in NUMBERS],
    }
    if not named['count'] and ('a' in words or 'an' in words):
        named['count'].append('one')
    if scene.count > 1:
        named['size'] = []  # several are always small; saying so is neither asked nor wrong
    return bool(named['colour'] and named['shape']) and all(
        w == true[kind] for kind, said in named.items() for w in said
    )


def direction_is_right(clip, text):
    return [d for d in DIRECTIONS if d in text] == [clip.event]


def zero_shot_classes():
    """Every pair, described in three ways, for naming a picture by comparing embeddings (the CLIP way)."""
    return [[f'{c} {s}', f'a {c} {s}', f'photo of a {c} {s}'] for c, s in PAIRS]


def zero_shot_pictures(split, n):
    """n pictures of a split, and which of PAIRS each shows."""
    return [picture_media(split, i) for i in range(n)], [
        PAIRS.index(SPLITS[split][0][i % len(SPLITS[split][0])]) for i in range(n)
    ]


# ---------------------------------------------------------------------------------------------
# Twins of the paper's other benchmarks. Each shows new pairs after examples of known ones.


def reading_episode(rng, split, shots):
    """What does the sign say? (TextVQA: to answer is to read.)"""
    def one(split):
        while True:
            i = random_picture(rng, split)
            if scene(split, i).glyph:
                question = question_prompt('what does the sign say?')
                return Example(picture_media(split, i), question, scene(split, i).glyph)

    query = one(split)
    return Episode([one('train') for _ in range(shots)], query)


def clip_question_episode(rng, split, shots):
    """Answer a question about a clip (MSVD-QA, MSRVTT-QA, iVQA, NextQA)."""
    return asked_episode(rng, split, shots, random_clip, clip_media,
                         lambda split, i: clip_questions(clip(split, i)))


def choice_episode(rng, split, shots, ways=4):
    """What does it do: one of four (STAR: multiple choice over clips)."""
    def one(split):
        i = random_clip(rng, split)
        c = clip(split, i)
        return Example(clip_media(split, i), question_prompt('what does it do?'), happening(c)), c

    query, truth = one(split)
    others = [e if e != 'turns' else f'turns {rng.choice(list(COLOURS))}' for e in EVENTS if e != truth.event]
    choices = [query.answer, *(str(e) for e in rng.choice(others, ways - 1, replace=False))]
    choices = [choices[k] for k in rng.permutation(ways)]
    return Episode([one('train')[0] for _ in range(shots)], query, choices=choices)


def dialogue_episode(rng, split, shots):
    """The last question of a dialogue about a picture, its possible answers ranked (VisDial).

    The truth counts 1, an answer that says it among other things one half, all others 0.
    """
    def one(split):
        i = random_picture(rng, split)
        s = scene(split, i)
        asked = questions(s)
        turns = rng.permutation(len(asked))[: int(rng.integers(2, 4))]
        *before, (kind, question, answer) = [asked[k] for k in turns]
        caption = f'a {s.colour} thing.' if kind != 'colour' else 'a thing.'
        prompt = dialogue_prompt(caption, [(q, a) for _, q, a in before], question)
        return Example(picture_media(split, i), prompt, answer), s, kind
    query, s, kind = one(split)
    says_it_too = phrase(s, size=kind == 'size', fill=False)
    right = {query.answer: 1.0, says_it_too: 0.5 if kind in ('colour', 'shape', 'count', 'size') else 0.0}
    wrong = {'colour': COLOURS, 'shape': SHAPES, 'count': NUMBERS[1:], 'size': SIZES,
             'place': PLACE_WORDS.values(), 'sign': GLYPHS}
    pool = [w for words in wrong.values() for w in words if w not in right and w != query.answer]
    pool = [w for w in wrong[kind] if w not in right] + [str(w) for w in rng.choice(pool, 6, replace=False)]
    choices = [*right, *dict.fromkeys(pool)][:12]
    order = rng.permutation(len(choices))
    return Episode([one('train')[0] for _ in range(shots)], query, choices=[choices[k] for k in order],
                   relevance=[right.get(choices[k], 0.0) for k in order])


def statement_episode(rng, split, shots, turn=None):
    """Is a written statement true of the picture? Yes or no (the form of HatefulMemes). A false one is
    wrong in its colour or in its shape. turn: odd for a true statement; by chance unless said."""
    def one(split, true):
        i = random_picture(rng, split)
        s = scene(split, i)
        told = s
        if not true:
            kind, values = (('colour', list(COLOURS)), ('shape', SHAPES))[int(rng.integers(2))]
            told = replace(s, **{kind: str(rng.choice([v for v in values if v != getattr(s, kind)]))})
        prompt = statement_prompt(phrase(told, size=False, fill=False), 'Is it true?')
        return Example(picture_media(split, i), prompt, 'yes' if true else 'no')

    query = one(split, bool(rng.integers(2) if turn is None else turn % 2))
    return Episode([one('train', bool(rng.integers(2))) for _ in range(shots)], query, choices=['yes', 'no'])


def action_episode(rng, split, shots):
    """Every action there is, as a caption of this clip (RareAct: things do what nobody saw them do before).
    The choices are in the order of EVENTS."""
    def one(split):
        i = random_clip(rng, split)
        c = clip(split, i)
        thing = phrase(c.scene, size=False, fill=False)
        new = str(rng.choice([n for n in COLOURS if n != c.scene.colour]))
        does = {e: happening(c) if e == c.event else f'{e} {new}' if e == 'turns' else e for e in EVENTS}
        said = [f'{thing} {does[e]}' for e in EVENTS]
        return Example(clip_media(split, i), ACTION_PROMPT, said[list(EVENTS).index(c.event)]), said
    query, said = one(split)
    return Episode([one('train')[0] for _ in range(shots)], query, choices=said)


# ---------------------------------------------------------------------------------------------
# Names for what no training page has named

KINDS = {'size': SIZES, 'fill': FILLS, 'background': tuple(BACKGROUNDS), 'count': (1, 2, 3),
         'place': tuple(PLACE_WORDS)}


def one_scene(rng, background='any', **given):
    """A scene of a held-out pair: large, plain, in the middle, alone, without a sign, unless given."""
    colour, shape = HELD_PAIRS[int(rng.integers(len(HELD_PAIRS)))]
    background = str(rng.choice(list(BACKGROUNDS))) if background == 'any' else background
    size = 'small' if {'place', 'count'} & set(given) else 'large'  # or there is no room
    seed = int(rng.integers(2 ** 31))
    scene = dict(colour=colour, shape=shape, size=size, background=background, seed=seed)
    return Scene(**scene | given)


def scene_media(scene):
    return Media(f'shapes/{scene}', partial(draw_one, scene))


def draw_one(scene):
    return [draw(scene)]


def kind_episode(rng, kind, ways, shots, turn):
    """Made-up names for values of one attribute, `kind`; the pair and the background differ from picture to
    picture. The query shows each in turn."""
    values = [KINDS[kind][k] for k in rng.choice(len(KINDS[kind]), ways, replace=False)]
    names = made_up_names(rng, ways, 'held')

    def show(k):
        return Example(scene_media(one_scene(rng, **{kind: values[k]})), CAPTION_PROMPT, names[k])

    query = show(turn % ways)
    support = [show(k) for k in range(ways) for _ in range(shots)]
    return Episode([support[k] for k in rng.permutation(len(support))], query, choices=names)
