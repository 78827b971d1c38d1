"""What is asked: episodes of every task, of the drawn world or made of a folder's pictures.

    the world, folders, .jsonl, COCO, VQA  ──►  kit.episode.Episode: examples, a query, its answer  ──►  Asker
"""
from dataclasses import replace

import numpy as np

from data import CAPTION_PROMPT, Example
from kit.episode import Episode
from kit.files import BadInput
from kit.tasks.metrics import CAPTIONS
from kit.world.tasks import (
    action_episode, caption_episode, choice_episode, clip_episode, clip_question_episode, dialogue_episode,
    naming_episode, question_episode, reading_episode, statement_episode)
from kit.world.names import made_up_names


# One small twin for each kind among the paper's 16 benchmarks: how episodes are made, and the metrics of
# kit.tasks.metrics.METRICS, of which the first leads.
TASKS = {
    'caption': (caption_episode, ('accuracy', *CAPTIONS)),         # COCO, Flickr30k
    'question': (question_episode, ('accuracy',)),                 # VQAv2, OKVQA, VizWiz
    'reading': (reading_episode, ('accuracy',)),                   # TextVQA
    'clip_caption': (clip_episode, ('accuracy', *CAPTIONS)),       # VATEX, YouCook2
    'clip_question': (clip_question_episode, ('accuracy',)),       # MSVD-QA, MSRVTT-QA, iVQA, NextQA
    'choice': (choice_episode, ('accuracy',)),                     # STAR
    'dialogue': (dialogue_episode, ('ndcg',)),                     # VisDial
    'statement': (statement_episode, ('roc_auc',)),                # HatefulMemes
    'action': (action_episode, ('mean_average_precision',)),       # RareAct: without examples only
    'naming': (naming_episode, ('accuracy',)),                     # Frozen's miniImageNet, and ours
}
IN_TURN = ('naming', 'statement')  # whose maker takes `turn`, so that chance is what it should be


def can_ask(pairs, ways, shots, within=False):
    """Are there enough things, and pictures, to ask this of them? pairs: None for the drawn world, which
    has enough."""
    if pairs is None:
        return True
    if not ways:
        return len({picture_of(item) for item in pairs.items}) > shots
    return max(map(len, things_of(pairs, within))) >= ways


def episodes_of(task, shots, n, ways=None, seed=0, pairs=None, text_examples=0, within=False):
    """n episodes of a task, the same ones for the same seed: of the drawn world, or made of `pairs`
    (kit.sources.base.Pairs) that were held out of training.

    shots: examples in all; of naming, examples of each of `ways` names. Whatever their number, episode i asks
    the same: the columns of a table differ in the examples only. With 0 shots and text_examples=2, the prompt
    is the paper's for zero shots: two examples as text alone, their pictures and tags removed. (With one, the
    answers are drawn to it; with none, the form of an answer is unknown. Tasks with choices need none.)
    within: the things of an episode are of one group of class folders.
    """
    name = f'{pairs.name if pairs is not None else task}, ' + (f'{ways}-way, ' if ways else '')
    groups = groups_of(pairs, ways, within) if pairs is not None and task == 'naming' else None
    episodes = []
    for i in range(n):
        rng = np.random.default_rng([seed, i, ways or 0, *task.encode()])  # the query is drawn first
        if pairs is not None and task == 'caption':
            episode = folder_caption(rng, pairs, shots)
        elif pairs is not None:
            episode = folder_naming(rng, pairs, groups, ways, shots, i)
        else:
            sizes = (ways, shots) if task == 'naming' else (shots or text_examples,)
            episode = TASKS[task][0](rng, 'held', *sizes, **({'turn': i} if task in IN_TURN else {}))
            episode = episode if shots else zero_shot_prompt(episode)
        episodes.append(replace(episode, where=f'{name}{shots}-shot, seed {seed}, episode {i + 1}'))
    return episodes


def zero_shot_prompt(episode):
    """Its examples as text alone: pictures and tags removed. None at all where there are choices."""
    shown = episode.support if episode.choices is None else []
    return replace(episode, support=[replace(e, media=None) for e in shown])


def frozen_episode(episode, rng, repeats=0, induction=True):
    """A naming episode after Frozen (Tsimpoukelli et al. 2021): the answer is written, not chosen.

    Each example is shown `repeats` more times, and the task is announced: "Answer with dax or blicket.". The
    prompt is ours, "Output: dax" (Frozen's: "This is a dax."), the search a beam, and neither case nor a full
    stop at the end counts.
    """
    support = [episode.support[k] for _ in range(repeats + 1) for k in rng.permutation(len(episode.support))]
    said = f'Answer with {" or ".join(episode.choices)}.' if induction else ''
    return replace(episode, support=support, choices=None, induction=said)


# ---------------------------------------------------------------------------------------------
# Folders


def picture_of(item):
    """What tells the pictures of items apart: several may be captions of one."""
    return item.path, item.turn


def things_of(pairs, within=False):
    """Pairs -> list of lists of things, each the indices of its items: one for each group of class folders,
    or without `within` one of all. A picture that has several captions is what the first of them says."""
    groups, known = {}, set()
    for k, item in enumerate(pairs.items):
        if picture_of(item) not in known:
            known.add(picture_of(item))
            groups.setdefault(item.group if within else None, {}).setdefault(item.label, []).append(k)
    return [list(labels.values()) for labels in groups.values()]


def groups_of(pairs, ways, within=False):
    """What the things of an episode are drawn from: `things_of` where there are `ways` of them. Raises
    BadInput where that is nowhere."""
    groups = things_of(pairs, within)
    large = [things for things in groups if len(things) >= ways]
    if not large:
        where = ' in the largest group' if within else ''
        raise BadInput(f'{pairs.name}: {ways}-way episodes need {ways} kinds of things, '
                       f'and there are {max(map(len, groups))}{where}')
    return large


def folder_naming(rng, pairs, groups, ways, shots, i):
    """Made-up names for things of a folder. Where a thing has too few pictures, it is shown in variants of
    them."""
    labels = groups[i % len(groups)]
    kinds = [rng.permutation(labels[k]) for k in rng.choice(len(labels), ways, replace=False)]
    names = made_up_names(rng, ways, 'held')

    def view(w, j):  # picture number j of kind w, as an example
        variant, k = divmod(j, len(kinds[w]))
        return Example(pairs.media(int(kinds[w][k]), variant), CAPTION_PROMPT, names[w])

    asked = i % ways
    # The query comes first: it is the same for any number of shots.
    support = [view(w, j + (w == asked)) for w in range(ways) for j in range(shots)]
    return Episode([support[k] for k in rng.permutation(len(support))], view(asked, 0), choices=names)


def folder_trials(rng, pairs, ways, n):
    """Naming in the form that Omniglot's one-shot trials were published in: `ways` classes of one group,
    shown as one hand drew them, and each asked about as another hand drew it -> n episodes, `ways` of them a
    trial.

    A picture's number in its class folder tells whose hand it is. Raises BadInput where classes have one
    picture only.
    """
    groups, episodes = groups_of(pairs, ways, within=True), []
    while len(episodes) < n:
        labels = groups[len(episodes) // ways % len(groups)]
        kinds = [labels[k] for k in rng.choice(len(labels), ways, replace=False)]
        hands = min(map(len, kinds))
        if hands < 2:
            raise BadInput(f'{pairs.name}: trials need classes of two pictures at least')
        one, other = (int(k) for k in rng.choice(hands, 2, replace=False))
        names = made_up_names(rng, ways, 'held')
        support = [Example(pairs.media(kind[one]), CAPTION_PROMPT, name) for kind, name in zip(kinds, names)]
        for k in rng.permutation(ways):
            query = Example(pairs.media(kinds[k][other]), CAPTION_PROMPT, names[k])
            shown = [support[j] for j in rng.permutation(ways)]
            where = f'{pairs.name}, episode {len(episodes) + 1}'
            episodes.append(Episode(shown, query, choices=names, where=where))
    return episodes[:n]


def folder_caption(rng, pairs, shots):
    """The caption of a picture, word for word, after captions of others."""
    def example(k):
        return Example(pairs.media(k), pairs.items[k].prompt or CAPTION_PROMPT, pairs.items[k].text)

    query = int(rng.integers(len(pairs)))
    chosen = {picture_of(pairs.items[query]): query}  # of several captions of a picture one
    for k in rng.permutation(len(pairs)).tolist():
        if len(chosen) > shots:
            break
        chosen.setdefault(picture_of(pairs.items[k]), k)
    return Episode([example(k) for k in list(chosen.values())[1:]], example(query))
