"""What is said about the embedded world: names, captions, questions."""
from kit.world.draw import NUMBERS, PLACE_WORDS


# One token each where the tokenizer was trained on the sources (kit.run.Run.choose_tokenizer adds them to its texts).
# With a capital letter, so that they are no parts of the made-up names on pages.
SYLLABLES = [consonant + vowel for vowel in ('a', 'e', 'i', 'o', 'u', 'ai', 'au', 'ei', 'oo') for consonant in 'BCDFGHJKLMNPRSTVWXYZ']


def invented_names(rng, n):
    """n different names of one to three syllables, from all letters and many clusters of them: a model that has copied only a few
    syllables does not copy others."""
    begin = ('', *'bcdfghjklmnpqrstvwxyz', 'bl', 'br', 'ch', 'dr', 'fl', 'gr', 'kl', 'pl', 'sh', 'sk', 'sl', 'sn', 'sp', 'st', 'th', 'tr', 'tw', 'wh')
    end = ('', '', *'bcdfgklmnprstvxz', 'ck', 'ff', 'ft', 'ld', 'lt', 'mp', 'nd', 'ng', 'nk', 'rk', 'rn', 'sh', 'sk', 'ss', 'st', 'th', 'zz')
    middle = (*'aeiouaeiouy', 'ee', 'oo', 'ai', 'ou')
    names, others = {}, {a + b for a in BEGINNINGS for b in ENDINGS}  # some of which are held out
    while len(names) < n:
        parts = [begin[rng.integers(len(begin))] + middle[rng.integers(len(middle))] for _ in range(int(rng.integers(1, 4)))]
        name = ''.join(parts) + end[rng.integers(len(end))]
        if len(name) >= 3 and name not in others:
            names[name] = True
    return list(names)


# Made-up names: one of 48 beginnings and one of 48 endings; one in six is held out.
BEGINNINGS = [a + b for a in ('b', 'd', 'f', 'g', 'k', 'l', 'm', 'n', 'p', 'z', 'bl', 'gr') for b in 'aeiu']
ENDINGS = [a + b for a in ('ck', 'd', 'f', 'g', 'l', 'm', 'n', 'p', 'r', 's', 't', 'x') for b in ('et', 'o', 'us', 'in')]


def made_up_names(rng, n, split='train'):
    """n different made-up names of a split."""
    names = []
    while len(names) < n:
        a, b = int(rng.integers(len(BEGINNINGS))), int(rng.integers(len(ENDINGS)))
        if ('held' if (a + b) % 6 == 0 else 'train') == split and BEGINNINGS[a] + ENDINGS[b] not in names:
            names.append(BEGINNINGS[a] + ENDINGS[b])
    return names


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


def long_caption(s):
    """Everything there is to say, as LTIP's captions do."""
    text = phrase(s)
    if s.count == 1:
        text += ' ' + PLACE_WORDS[s.place]
    text += f' on a {"busy " if s.busy else ""}{s.background} background'
    return text + (f' with the sign {s.glyph}' if s.glyph else '') + '.'


def noisy_caption(s, rng):
    """Short and careless, as ALIGN's alt texts are: something is always missing, in any order, with odd words.

    What is missing matters: from 'red' and 'three stars' the encoder learns colour and shape each for itself. Where
    captions always name both, it learns the pairs by heart, and a new pair is a stranger.
    """
    named = {'count': NUMBERS[s.count] if s.count > 1 else '', 'size': s.size if s.count == 1 else '', 'fill': s.fill if s.fill != 'plain' else '',
             'colour': s.colour, 'shape': s.shape if s.count == 1 else plural(s.shape)}
    words = [w for kind, w in named.items() if w and rng.random() < {'colour': 0.5, 'shape': 0.7}.get(kind, 0.3)]
    if rng.random() < 0.2:
        words = [words[k] for k in rng.permutation(len(words))]
    before = ('', '', 'photo of a ', 'nice ', 'my ')[int(rng.integers(5))]
    after = ('', '', '', f' {int(rng.integers(10, 99))}', '!')[int(rng.integers(5))]
    return before + (' '.join(words) or s.shape) + after


def clip_caption(c):
    return f'{phrase(c.scene, size=False, fill=False)} {c.event}{" " + c.becomes if c.becomes else ""}.'


def questions(s):
    """Every question a scene can answer, as (kind, question, answer)."""
    asked = [('colour', 'what color is it?', s.colour), ('shape', 'what shape is it?', s.shape), ('count', 'how many are there?', NUMBERS[s.count])]
    if s.count == 1:
        asked += [('size', 'is it small or large?', s.size), ('place', 'where is it?', PLACE_WORDS[s.place])]
    return asked + ([('sign', 'what does the sign say?', s.glyph)] if s.glyph else [])


def happening(c):
    """What a clip shows, as its caption says it: 'moves up', 'turns blue'"""
    return f'{c.event} {c.becomes}' if c.becomes else c.event


def clip_questions(c):
    """Every question a clip can answer, as (kind, question, answer)."""
    asked = [('event', 'what does it do?', happening(c)), ('shape', 'what shape is it?', c.scene.shape)]
    return asked + ([('becomes', 'what color does it turn?', c.becomes)] if c.becomes else [('colour', 'what color is it?', c.scene.colour)])
