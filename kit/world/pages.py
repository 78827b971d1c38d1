"""Training pages and texts of the drawn world."""
import re

import numpy as np

from data import CAPTION_PROMPT, Document, Example, question_prompt
from kit.world.draw import (
    clip, clip_media, COLOURS, FILLS, picture_media, PLACES, random_clip, random_picture, SHAPES, SIZES,
    TRAIN_PAIRS, training_picture)
from kit.world.names import any_of, made_up_names, one_of
from kit.world.words import (
    caption, clip_caption, clip_questions, in_other_words, judged, long_caption, noisy_caption,
    placed_caption, questions, yes_or_no)


# ---------------------------------------------------------------------------------------------
# Training documents


def naming_page(rng, n_image=(8, 13), ways=(2, 6)):
    """Pictures of a few kinds of thing, each kind with a name made up for this page alone.

    *Why.* The name can only come from the page: from an earlier picture that looks alike. Whoever predicts
    it has learned to learn from the prompt. A name's first showing cannot be known, so it is given, not
    learned.
    """
    pairs = rng.choice(len(TRAIN_PAIRS), int(rng.integers(*ways)), replace=False)
    names = made_up_names(rng, len(pairs))
    seen, pieces = set(), []
    for _ in range(int(rng.integers(*n_image))):
        kind = int(rng.integers(len(pairs)))
        media = picture_media('train', random_picture(rng, 'train', int(pairs[kind])))
        pieces += Example(media, CAPTION_PROMPT, names[kind]).pieces(learned=kind in seen)
        seen.add(kind)
    return Document(pieces, 'examples')


def caption_page(rng, n_image=(4, 12), p_placed=0.4):
    """Four pages in ten also say where things are and what signs say. *Why.* Until the resampler carries
    places, neither "where is it?" nor the direction of a motion can be learned, and long captions alone,
    with their small λ, made it carry them in one run and not in the next."""
    say, pieces = placed_caption if rng.random() < p_placed else caption, []
    for _ in range(int(rng.integers(*n_image))):
        media, s = training_picture(rng)
        pieces += Example(media, CAPTION_PROMPT, say(s)).pieces()
    return Document(pieces, 'examples')


def question_page(rng, n_image=(5, 12), p_long=0.33):
    """A share p_long of them may be as long as a prompt of 32 examples, and so are the rows of the language
    stage. *Why.* Where no page had been longer than 11, questions were answered less and less after more
    examples than that (24 % after 32). Captions and clips need no such pages."""
    n = int(rng.integers(n_image[0], 34 if rng.random() < p_long else n_image[1]))
    return Document([piece for _ in range(n) for piece in question_example(rng).pieces()], 'examples')


def longer_question_page(rng):
    """*Why more long ones.* Each page counts once in the loss, so the questions of a long one count less."""
    return question_page(rng, p_long=0.5)


def question_example(rng):
    """What one asks about a picture; one in four is about a clip, and one in four is answered by yes or no.

    The forms of three tasks are never trained, and test what is carried over: statements, dialogues, actions.
    """
    about = rng.random()
    if about < 0.25:
        i = random_clip(rng, 'train')
        media, asked = clip_media('train', i), clip_questions(clip('train', i))
    else:
        media, s = training_picture(rng)
        asked = [yes_or_no(rng, s)] if about < 0.5 else questions(s)
    _, question, answer = one_of(rng, asked)
    return Example(media, question_prompt(question), answer)


def asked_plainly(rng, s):
    """-> (prompt, 'yes' or 'no')"""
    _, question, answer = yes_or_no(rng, s)
    return question_prompt(question), answer


def asked_in_other_words(rng, s):
    """Of colour, of shape, or of both at once -> (prompt, 'yes' or 'no'). A pair that is held out is not even
    said wrongly."""
    _, said, answer = judged(rng, s, pairs=TRAIN_PAIRS if rng.random() < 0.35 else None)
    return in_other_words(rng, said, at_random=0.3), answer


def judging_page(rng, n_image=(2, 6), n_question=(3, 8), ask=asked_plainly):
    """Several questions about each picture, all to be answered by yes or no. *Why.* For that a word has to be
    compared with a picture, and the answer, one token, says little about how. Asked once a picture, on one
    question in four, it was not learned in 700 steps (50 %); asked as often as this, it was (95 %). With 11
    questions on a page instead of 17 it was not, either."""
    pieces = []
    for _ in range(int(rng.integers(*n_image))):
        media, s = training_picture(rng)
        pieces.append(media)
        for _ in range(int(rng.integers(*n_question))):
            pieces += Example(None, *ask(rng, s)).pieces()
    return Document(pieces, 'examples')


def other_words_page(rng):
    """*Why.* In "is it red? Answer:" the word always stands at one distance from the answer, and what is
    learned is to look there. With one more sentence between the two it was lost (50 %)."""
    return judging_page(rng, ask=asked_in_other_words)


def story_page(rng, n_image=(3, 7)):
    """Running text with pictures in it. It speaks of the one above or of the one below, as people do; and as
    web pages do not say which, `encode` tosses its coin (p_next): half of the stories see the wrong one."""
    above = rng.random() < 0.5
    pieces = ['Some things I saw.']
    for _ in range(int(rng.integers(*n_image))):
        media, s = training_picture(rng)
        said = long_caption(s)
        pieces += [media, f' Above you see {said}'] if above else [f' Below you see {said}', media]
    return Document(pieces, 'page')


def clip_page(rng, n_clip=(2, 10)):
    pieces = []
    for _ in range(int(rng.integers(*n_clip))):
        i = random_clip(rng, 'train')
        pieces += Example(clip_media('train', i), CAPTION_PROMPT, clip_caption(clip('train', i))).pieces()
    return Document(pieces, 'examples')


PAGES = ((naming_page, 0.21), (judging_page, 0.30), (caption_page, 0.29), (longer_question_page, 0.12),
         (clip_page, 0.05), (story_page, 0.03))
# The first 1,000 pages (18 a step) have captions only, of pictures and of clips; the others are phased in
# over the next 1,000. *Why.* Captions tie what the encoder sees to words that the language model knows, and
# that opens the gates. Names mean nothing to it; while the gates are shut their loss is pure noise, and
# enough of it keeps them shut (with 45 % naming pages from the start, still at chance after 400 steps;
# captions alone were learned in 125).
ONLY_CAPTIONS = 1000
FIRST_PAGES = ((caption_page, 0.85), (clip_page, 0.15))
# From page 6,500 on, when the plain ones are learned, most pages of judgements ask in other words.
PLAINLY = 6500
LATER_PAGES = ((naming_page, 0.24), (judging_page, 0.06), (other_words_page, 0.13), (caption_page, 0.38),
               (longer_question_page, 0.14), (clip_page, 0.03), (story_page, 0.02))


class Shapes:
    """The drawn world as one of the four sources: role 'm3w' (pages), 'align' (short noisy pairs),
    'ltip' (long pairs) or 'vtp' (clips).

    document(i, rng) -> Document; text(i, rng) -> str for the language stage. Both are endless and drawn
    from rng, except that pair number i of 'align' and of 'ltip' show the same picture (another one with
    another seed): it is encoded once for the two.
    """
    name = 'shapes'

    def __init__(self, role, share=1.0, seed=0):
        """share: this world's part of a mix of sources. The other pages come in when the mix as a whole has
        shown ONLY_CAPTIONS pages, and the later ones when it has shown PLAINLY."""
        self.role, self.share, self.seed = role, share, seed

    def document(self, i, rng):
        if self.role == 'm3w':
            page = i / self.share                                   # number of the page in the whole mix
            other_pages = min(max(page / ONLY_CAPTIONS - 1, 0), 1)  # their share rises from 0 to 1
            pages = LATER_PAGES if page >= PLAINLY else PAGES
            return any_of(rng, pages if rng.random() <= other_pages else FIRST_PAGES)(rng)
        if self.role == 'vtp':
            return clip_page(rng, n_clip=(1, 4))
        media, s = training_picture(np.random.default_rng([self.seed, i]))  # the same one in both roles
        return Document([media, noisy_caption(s, rng) if self.role == 'align' else long_caption(s)], 'pair')

    def text(self, i, rng):
        return any_of(rng, TEXTS)(rng)


# ---------------------------------------------------------------------------------------------
# Plain text for the language model, which must learn to copy before it is frozen
#
# A colour never stands before a shape in it. *Why.* From captions as they are it learns which pairs there
# are, and then takes a new one to be impossible: a frozen model's prejudice, against which the picture has to
# argue for ever. (Its log-probability of the right shape after the colour of a held-out pair was −2.7,
# where knowing nothing gives −2.1; with the prejudice subtracted, 84 % of the shapes were right, and 76 %
# with it.)


def copy_text(rng):
    """The same random words again and again: nothing but copying predicts them (this grows induction
    heads)."""
    words = made_up_names(rng, int(rng.integers(3, 7)))
    pool = list(COLOURS) + list(SHAPES) + list(PLACES)
    words += [str(w) for w in rng.choice(pool, int(rng.integers(1, 7)), replace=False)]
    while True:
        words = [words[k] for k in rng.permutation(len(words))]
        if not any(a in COLOURS and b in SHAPES for a, b in zip(words, words[1:] + words[:1])):
            return ' '.join(words * int(rng.integers(2, 5)))


def naming_text(rng):
    """Made-up names that recur next to what they name, in random order: a naming page without its pictures.

    Mostly the thing is a single word, next to its name: looking that up is the simplest copying there is,
    and on a page with pictures, where every token sees its picture, the look-up is as short.
    """
    if rng.random() < 0.7:
        words = [*COLOURS, *SHAPES, *PLACES, *FILLS, *SIZES]
        things = [str(w) for w in rng.choice(words, int(rng.integers(2, 7)), replace=False)]
        link, end = one_of(rng, [(' ', '. '), (': ', '. '), (' ', ' ')])
    else:
        pairs = [f'{a} {b}' for a in (*SIZES, *FILLS) for b in (*COLOURS, *SHAPES)]
        things = [str(p) for p in rng.choice(pairs, int(rng.integers(2, 6)), replace=False)]
        link, end = one_of(rng, [(' Output: ', '\n'), (': ', '. '), (' ', ', '), (' Output: ', ' ')])
    names = made_up_names(rng, len(things))
    order = rng.integers(len(things), size=int(rng.integers(8, 33)))
    return end.join(things[k] + link + names[k] for k in order)


def echo_text(rng, n=(8, 33)):
    """What was it that was said? The word stands at any distance before its answer. *Why.* So the model
    learns, from text alone, to look for it. Where it had not, pages in other words were not learned."""
    words, said = [*COLOURS, *SHAPES, *PLACES, *SIZES], []
    for _ in range(int(rng.integers(*n))):
        word, [name] = one_of(rng, words), made_up_names(rng, 1)
        told = one_of(rng, 2 * (word, f'a {word}') + (f'a {word} {name}', f'a {name} {word}'))
        said.append(f'{in_other_words(rng, told)} {word}')
    return ' '.join(said)


def plain_text(rng):
    """A page of captions, questions, a story or clips, its pictures left out, and of each colour with its
    shape one of the two replaced by a made-up word."""
    page = any_of(rng, SAID)(rng, (3, 33))  # as long as a prompt may get
    text = ' '.join(piece.strip() for piece in page.pieces if isinstance(piece, str))
    names = made_up_names(rng, int(rng.integers(2, 6)))  # that recur: a name said once is noise to learn from

    def part(found):
        name = one_of(rng, names)
        return f'{name} {found[2]}' if rng.random() < 0.5 else f'{found[1]} {name}'
    return PAIR.sub(part, text)


PAIR = re.compile(rf"\b({'|'.join(COLOURS)}) ((?:{'|'.join(SHAPES)})(?:s|es)?)\b")
SAID = ((caption_page, 0.3), (question_page, 0.45), (story_page, 0.1), (clip_page, 0.15))
TEXTS = ((copy_text, 0.15), (naming_text, 0.30), (plain_text, 0.35), (echo_text, 0.20))
