"""What is said about the drawn world: captions and questions."""
from dataclasses import replace

from data import question_prompt
from kit.world.draw import COLOURS, NUMBERS, PLACE_WORDS, SHAPES
from kit.world.names import one_of


# One token each where the tokenizer was trained on the sources (kit.run.run.Run.choose_tokenizer adds them to
# its texts). With a capital letter, so that they are no parts of the made-up names on pages.
SYLLABLES = [
    consonant + vowel
    for vowel in ('a', 'e', 'i', 'o', 'u', 'ai', 'au', 'ei', 'oo')
    for consonant in 'BCDFGHJKLMNPRSTVWXYZ'
]


# ---------------------------------------------------------------------------------------------
# What is said about them


def plural(shape):
    return shape + 'es' if shape == 'cross' else shape + 's'


def phrase(s, size=True, fill=True):
    """'a large striped red ring', 'two red rings'"""
    words = [s.size] if size and s.count == 1 else []
    words += [s.fill] if fill and s.fill != 'plain' else []
    words += [s.colour, s.shape if s.count == 1 else plural(s.shape)]
    if s.count > 1:
        return f'{NUMBERS[s.count]} {" ".join(words)}'
    return f'{"an" if words[0][0] in "aeiou" else "a"} {" ".join(words)}'


def caption(s):
    """What few-shot examples say: 'a large striped red ring.'"""
    return phrase(s) + '.'


def placed(s):
    """'a small red ring on the left'"""
    return phrase(s) + (' ' + PLACE_WORDS[s.place] if s.count == 1 else '')


def sign(s):
    return f' with the sign {s.glyph}' if s.glyph else ''


def placed_caption(s):
    """And where it is, and what a sign beside it says: 'a small red ring on the left with the sign K.'"""
    return placed(s) + sign(s) + '.'


def long_caption(s):
    """Everything there is to say, as LTIP's captions do."""
    return f'{placed(s)} on a {"busy " if s.busy else ""}{s.background} background{sign(s)}.'


def noisy_caption(s, rng):
    """Short and careless, as ALIGN's alt texts are: something is always missing, in any order, with odd
    words.

    What is missing matters: from 'red' and 'three stars' the encoder learns colour and shape each for
    itself. Where captions always name both, it learns the pairs by heart, and a new pair is a stranger.
    """
    named = {'count': NUMBERS[s.count] if s.count > 1 else '', 'size': s.size if s.count == 1 else '',
             'fill': s.fill if s.fill != 'plain' else '', 'colour': s.colour,
             'shape': s.shape if s.count == 1 else plural(s.shape), 'sign': s.glyph and f'sign {s.glyph}'}
    often = {'colour': 0.5, 'shape': 0.7, 'sign': 0.5}
    words = [w for kind, w in named.items() if w and rng.random() < often.get(kind, 0.3)]
    if rng.random() < 0.2:
        words = [words[k] for k in rng.permutation(len(words))]
    before = ('', '', 'photo of a ', 'nice ', 'my ')[int(rng.integers(5))]
    after = ('', '', '', f' {int(rng.integers(10, 99))}', '!')[int(rng.integers(5))]
    return before + (' '.join(words) or s.shape) + after


def clip_caption(c):
    return f'{phrase(c.scene, size=False, fill=False)} {c.event}{" " + c.becomes if c.becomes else ""}.'


def questions(s):
    """Every question a scene can answer, as (kind, question, answer)."""
    asked = [
        ('colour', 'what color is it?', s.colour),
        ('shape', 'what shape is it?', s.shape),
        ('count', 'how many are there?', NUMBERS[s.count]),
    ]
    if s.count == 1:
        asked += [('size', 'is it small or large?', s.size), ('place', 'where is it?', PLACE_WORDS[s.place])]
    return asked + ([('sign', 'what does the sign say?', s.glyph)] if s.glyph else [])


def yes_or_no(rng, s):
    """A question about a scene's colour or shape, as (kind, question, answer): every other answer is yes."""
    kind, said, answer = judged(rng, s)
    return kind, f'is it {said}?', answer


def judged(rng, s, pairs=None):
    """What may be said of a scene's colour or shape, as (kind, said, answer): ('colour', 'red', 'yes'). Every
    other answer is yes. pairs: say both, 'a red ring', and where that is wrong, it is wrong in `kind` and one
    of these pairs."""
    kind, values = one_of(rng, (('colour', COLOURS), ('shape', SHAPES)))
    true, told = rng.random() < 0.5, s
    if not true:
        others = [replace(s, **{kind: v}) for v in values if v != getattr(s, kind)]
        told = one_of(rng, [o for o in others if pairs is None or (o.colour, o.shape) in pairs])
    said = told.colour if kind == 'colour' else 'a ' + told.shape
    return kind, said if pairs is None else phrase(told, size=False, fill=False), 'yes' if true else 'no'


BEFORE = (
    'is it', 'do we see', 'would you call this', 'I say it is', 'they call it', 'look here:', 'we have',
    'somebody told me that it is', 'my friend thinks of', 'a note on it says:', 'the word for it is')
AFTER = (
    '?', ', right?', '. am I right?', ' or not?', ': yes or no?', '. do you agree?', ' as they say?',
    '. is that so?', ' here? please tell.', '. what do you think of that?', ' is what they say. can it be?',
    '. so it says here. is it right?', ' in a letter. does it fit?')
FILLER = (
    'the of and to in that it was for on are as with his they at be this from have or by had not but what '
    'all were when we there can an your which their said if do will each about how out them then she many '
    'some so these would other into has more her like him see time could make than been its who now '
    'people my made over did only way find use may very after words called just where most know').split()


def filler(rng, least, most):
    return ' '.join(rng.choice(FILLER, int(rng.integers(least, most + 1))))


def in_other_words(rng, said, at_random=0.0):
    """-> a prompt about what is said, which stands two to eleven words before the answer. at_random: share of
    the wordings that are words at random: what is said must be found by what it is, not by what stands around
    it."""
    said = f'"{said}"' if rng.random() < 0.25 else said
    if rng.random() >= at_random:
        text = f'{one_of(rng, BEFORE)} {said}{one_of(rng, AFTER)}'
    else:
        before, after = filler(rng, 1, 7), filler(rng, 0, 7)
        text = f'{before}{one_of(rng, ("", ":"))} {said}{one_of(rng, ("", ",", ".", "?"))} {after}'.rstrip()
        text += one_of(rng, ('.', '?', '?'))
    return question_prompt(text) if rng.random() < 0.5 else text + ' Answer:'


def happening(c):
    """What a clip shows, as its caption says it: 'moves up', 'turns blue'"""
    return f'{c.event} {c.becomes}' if c.becomes else c.event


def clip_questions(c):
    """Every question a clip can answer, as (kind, question, answer)."""
    asked = [('event', 'what does it do?', happening(c)), ('shape', 'what shape is it?', c.scene.shape)]
    return asked + (
        [('becomes', 'what color does it turn?', c.becomes)]
        if c.becomes
        else [('colour', 'what color is it?', c.scene.colour)]
    )
