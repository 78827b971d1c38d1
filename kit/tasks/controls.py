"""Controls: what did the answer come from? Each spoils a prompt on purpose.

A control is a function (Episode, numpy Generator) -> Episode.
"""
from dataclasses import replace

import numpy as np

from data import Media
from kit.episode import BLANK
from kit.files import BadInput
from kit.tasks.prompts import as_episode, examples
from kit.world.names import made_up_names


def blank_support(episode, rng=None):
    """Nothing to see in its support pictures. What is left is their text."""
    return replace(episode, support=[replace(e, media=e.media and BLANK) for e in episode.support])


def blanked(document, which):
    """A prompt with nothing to see in these of its pictures, counted from 0"""
    shown = [k for k, piece in enumerate(document.pieces) if isinstance(piece, Media)]
    blank = {shown[n] for n in which}
    return replace(document, pieces=[BLANK if k in blank else p for k, p in enumerate(document.pieces)])


def blank_examples(document):
    """A prompt with nothing to see in any picture but its last, the one that is asked about."""
    n_media = len(document.media)
    return blanked(document, range(n_media - 1))


def swap_support(episode, rng):
    """Its support pictures dealt out among the examples at random: which name belongs to what cannot be
    known."""
    order = rng.permutation(len(episode.support))
    support = [replace(e, media=episode.support[k].media) for e, k in zip(episode.support, order)]
    return replace(episode, support=support)


def shuffle_answers(episode, rng):
    """Its names dealt out among the kinds of things at random, the same for all examples of a kind. Who
    learns from the prompt follows: the right answer is now `taught(episode, shuffled)`."""
    names = list(dict.fromkeys(e.answer for e in episode.support))
    return renamed(episode, dict(zip(names, (names[k] for k in rng.permutation(len(names))))))


def rename_answers(episode, rng):
    """New names for all things, in the support, among the choices and for the truth: nothing has changed but
    the words."""
    old, new = list(dict.fromkeys([*episode.choices, *(e.answer for e in episode.support)])), []
    while len(new) < len(old):
        new += [name for name in made_up_names(rng, 1, 'held') if name not in old + new]
    names = dict(zip(old, new))
    query = replace(episode.query, answer=names[episode.query.answer])
    return replace(renamed(episode, names), query=query, choices=[names[c] for c in episode.choices])


def blank_query(episode, rng=None):
    """Nothing to see in the picture that is asked about."""
    return replace(episode, query=replace(episode.query, media=episode.query.media and BLANK))


def text_only(episode, rng=None):
    """Its examples as text alone, pictures and tags removed."""
    return replace(episode, support=[replace(e, media=None) for e in episode.support])


CONTROLS = {f.__name__: f for f in (blank_support, swap_support, shuffle_answers, rename_answers, blank_query,
                                    text_only)}


def spoilt(document, names, seed=0):
    """A prompt under these controls, one after the other -> Document. Raises BadInput where one of them
    changes nothing."""
    rng, before = np.random.default_rng(seed), as_episode(document)
    for name in names:
        # A permutation may leave all in its place; so another one is drawn, a few times.
        drawn = (CONTROLS[name](before, rng) for _ in range(20))
        after = next((e for e in drawn if examples(e.document()) != examples(before.document())), None)
        if after is None:
            raise BadInput(f'{document.where}: {name.replace("_", " ")} changes nothing in it')
        before = after
    return before.document()


def renamed(episode, names):
    """The same examples with other answers: {old: new}"""
    return replace(episode, support=[replace(e, answer=names[e.answer]) for e in episode.support])


def taught(before, after):
    """What the examples of `after` call the thing that the query of `before` asks for."""
    names = {old.answer: new.answer for old, new in zip(before.support, after.support)}
    return names[before.query.answer]
