"""What is asked: episodes of every task, of the embedded world and of what people have on disk; and the controls, which
spoil a prompt on purpose to find out what an answer came from.

    shapes, folders, .jsonl, COCO, VQA  ──►  data.Episode: examples, a query, its answer  ──►  evaluate.Asker
"""
from dataclasses import replace

import numpy as np

from data import CAPTION_PROMPT, Episode, Example
from kit.files import BadInput
from kit.world.tasks import (
    action_episode, caption_episode, choice_episode, clip_episode, clip_question_episode, dialogue_episode,
    naming_episode, question_episode, reading_episode, statement_episode)
from kit.world.words import made_up_names


# One small twin for each kind among the paper's 16 benchmarks: how episodes are made, and the metrics (the first one leads).
TASKS = {
    'caption': (caption_episode, ('accuracy', 'cider')),           # COCO, Flickr30k
    'question': (question_episode, ('accuracy',)),                 # VQAv2, OKVQA, VizWiz
    'reading': (reading_episode, ('accuracy',)),                   # TextVQA
    'clip_caption': (clip_episode, ('accuracy', 'cider')),         # VATEX, YouCook2
    'clip_question': (clip_question_episode, ('accuracy',)),       # MSVD-QA, MSRVTT-QA, iVQA, NextQA
    'choice': (choice_episode, ('accuracy',)),                     # STAR
    'dialogue': (dialogue_episode, ('ndcg',)),                     # VisDial
    'statement': (statement_episode, ('roc_auc',)),                # HatefulMemes
    'action': (action_episode, ('mean_average_precision',)),       # RareAct: without examples only
    'naming': (naming_episode, ('accuracy',)),                     # Frozen's open-ended miniImageNet, and ours
}
IN_TURN = ('naming', 'statement')  # whose maker takes `turn`, so that chance is what it should be


def can_ask(pairs, ways, shots, within=False):
    """Are there enough things, and pictures, to ask this of them? pairs: None for the embedded world, which has enough."""
    if pairs is None:
        return True
    if not ways:
        return len({picture_of(item) for item in pairs.items}) > shots
    return max(map(len, things_of(pairs, within))) >= ways


def episodes_of(task, shots, n, ways=None, seed=0, pairs=None, text_examples=0, within=False):
    """n episodes of a task, the same ones for the same seed: of the embedded world, or made of `pairs` (kit.sources)
    that were held out of training.

    shots: examples in all; of naming, examples of each of `ways` names. With 0 shots and text_examples=2, the prompt is
    the paper's for zero shots: so many examples as text alone, their pictures and tags removed. (With one, the answers
    are drawn to it; with none, the form of an answer is unknown. Tasks with choices need none.)
    within: the things of an episode are of one group of class folders.
    """
    rng = np.random.default_rng([seed, shots, ways or 0, *task.encode()])
    name = f'{pairs.name if pairs is not None else task}, ' + (f'{ways}-way, ' if ways else '') + f'{shots}-shot, seed {seed}'
    if pairs is not None and task == 'caption':
        episodes = [folder_caption(rng, pairs, shots) for _ in range(n)]
    elif pairs is not None:
        groups = groups_of(pairs, ways, within)
        episodes = [folder_naming(rng, pairs, groups, ways, shots, i) for i in range(n)]
    else:
        make, _ = TASKS[task]
        sizes = (ways, shots) if task == 'naming' else (shots or text_examples,)
        episodes = [make(rng, 'held', *sizes, **({'turn': i} if task in IN_TURN else {})) for i in range(n)]
        episodes = episodes if shots else [zero_shot_prompt(e) for e in episodes]
    return [replace(e, where=f'{name}, episode {i + 1}') for i, e in enumerate(episodes)]


def zero_shot_prompt(episode):
    """Its examples as text alone: pictures and tags removed. None at all where there are choices."""
    return replace(episode, support=[replace(e, media=None) for e in episode.support] if episode.choices is None else [])


def frozen_episode(episode, rng, repeats=0, induction=True):
    """A naming episode after Frozen (Tsimpoukelli et al. 2021): the answer is written, not chosen. Each example is shown
    `repeats` more times, and the task is announced: "Answer with dax or blicket.". The prompt is ours, "Output: dax" (Frozen's: "This is a
    dax."), the search a beam, and neither case nor a full stop at the end counts."""
    support = [episode.support[k] for _ in range(repeats + 1) for k in rng.permutation(len(episode.support))]
    return replace(episode, support=support, choices=None, induction=f'Answer with {" or ".join(episode.choices)}.' if induction else '')


# ---------------------------------------------------------------------------------------------
# Folders


def picture_of(item):
    """What tells the pictures of items apart: several may be captions of one."""
    return item.path, item.turn


def things_of(pairs, within=False):
    """Pairs -> list of lists of things, each the indices of its items, one for each group of class folders; without `within` one of all.
    A picture that has several captions is what the first of them says."""
    groups, known = {}, set()
    for k, item in enumerate(pairs.items):
        if picture_of(item) not in known:
            known.add(picture_of(item))
            groups.setdefault(item.group if within else None, {}).setdefault(item.label, []).append(k)
    return [list(labels.values()) for labels in groups.values()]


def groups_of(pairs, ways, within=False):
    """What the things of an episode are drawn from: `things_of` where there are `ways` of them. Raises BadInput where that is nowhere."""
    groups = things_of(pairs, within)
    large = [things for things in groups if len(things) >= ways]
    if not large:
        raise BadInput(f'{pairs.name}: {ways}-way episodes need {ways} kinds of things, and there are {max(map(len, groups))}'
                       + (' in the largest group' if within else ''))
    return large


def folder_naming(rng, pairs, groups, ways, shots, i):
    """Made-up names for things of a folder. Where a thing has too few pictures, it is shown in variants of them."""
    labels = groups[i % len(groups)]
    kinds = [labels[k] for k in rng.choice(len(labels), ways, replace=False)]
    names = made_up_names(rng, ways, 'held')
    asked = i % ways

    def views(kind, n):  # n different pictures of a kind
        order = rng.permutation(kind)
        return [pairs.media(int(order[j % len(order)]), 0 if n <= len(order) else 1 + j // len(order)) for j in range(n)]

    shown = [views(kind, shots + (w == asked)) for w, kind in enumerate(kinds)]
    query = Example(shown[asked].pop(), CAPTION_PROMPT, names[asked])
    support = [Example(m, CAPTION_PROMPT, names[w]) for w, row in enumerate(shown) for m in row]
    return Episode([support[k] for k in rng.permutation(len(support))], query, choices=names)


def folder_trials(rng, pairs, ways, n):
    """Naming in the form that Omniglot's one-shot trials were published in: `ways` classes of one group, shown as one hand drew
    them, and each asked about as another hand drew it -> n episodes, `ways` of them a trial. Whose hand it is, is told by a
    picture's number in its class folder. Raises BadInput where classes have one picture only."""
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
            episodes.append(Episode([support[j] for j in rng.permutation(ways)], query, choices=names, where=f'{pairs.name}, episode {len(episodes) + 1}'))
    return episodes[:n]


def folder_caption(rng, pairs, shots):
    """The caption of a picture, word for word, after captions of others."""
    k, *rest = chosen = rng.choice(len(pairs), shots + 1, replace=False)
    if len({picture_of(pairs.items[j]) for j in chosen}) <= shots:  # several captions of one picture
        k, *rest = {picture_of(pairs.items[j]): j for j in rng.permutation(len(pairs))}.values()
        rest = rest[:shots]
    return Episode([Example(pairs.media(int(r)), CAPTION_PROMPT, pairs.items[r].text) for r in rest],
                   Example(pairs.media(int(k)), CAPTION_PROMPT, pairs.items[k].text))
