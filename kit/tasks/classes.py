"""Classes by their names, as the paper asks ImageNet and Kinetics (Table 7): every class name is a possible
answer to "Output:", ranked by log-likelihood after examples that look like the query (RICES).

    python evaluate.py --classify=imagenet --shots=16 --per_class=5 --ensemble=6 --n=1000

The examples come from the split `train`, the queries from another; a folder without splits is divided by
class.
"""
import numpy as np

from data import CAPTION_PROMPT, Example
from kit.episode import Episode
from kit.files import BadInput
from kit.sources.base import readable_pairs
from kit.tasks.encoders import embed_media
from kit.tasks.files import usable_or_fail
from kit.tasks.options import numbers
from kit.tasks.results import row_of


def divided(pairs, split, per_class, rng):
    """-> (numbers of the items that examples are taken from, at most per_class of each class; of those asked
    about).

    split: what is asked about; '' for whatever is not `train`. Raises BadInput where nothing is left to ask.
    """
    order, taken = rng.permutation(len(pairs)).tolist(), {}
    splits = pairs.split_names()
    whole = len(set(splits)) == 1
    for k in order:
        of_class = taken.setdefault(pairs.items[k].label, [])
        if len(of_class) < per_class and (whole or splits[k] == 'train'):
            of_class.append(k)
    support = [k for of_class in taken.values() for k in of_class]
    if whole:
        asked = [k for k in order if k not in set(support)]
    else:
        asked = [k for k in order if (splits[k] == split if split else splits[k] != 'train')]
    if not asked or not support:
        what = 'to ask about' if support else 'in the split train, where examples come from'
        raise BadInput(f'{pairs.name}: nothing {what}; there is {pairs.splits}')
    return support, asked


def class_episodes(pairs, support, asked, shots, nearest, seed):
    """-> an Episode of each item asked about, its choices the names of all classes, after `shots` examples.

    nearest: for each item asked about the numbers in `support` of those most like it, the most alike last;
    None: at random. For any number of shots the same is asked.
    """
    names = list(dict.fromkeys(item.label for item in pairs.items))

    def example(k):
        return Example(pairs.media(k), CAPTION_PROMPT, pairs.items[k].label)

    episodes = []
    for i, k in enumerate(asked):
        order = np.random.default_rng([seed, i]).permutation(len(support)) if nearest is None else nearest[i]
        shown = [example(support[j]) for j in order[len(order) - shots:]]
        where = pairs.items[k].where or pairs.items[k].path
        episodes.append(Episode(shown, example(k), choices=names, where=where))
    return episodes


def likeness(pairs, support, asked, contrastive, features):
    """How the items asked about look like those of the support -> for each their numbers, the most alike
    last."""
    def embed(which):
        return embed_media(contrastive.vision, features, [pairs.media(k) for k in which]).cpu()

    there, nearest = embed(support), []
    for part in embed(asked).split(256):  # (256,E): all at once may be many
        nearest += (part @ there.T).argsort(dim=-1, stable=True).tolist()
    return nearest


def run_classes(config, asker, contrastive, report):
    """--classify=DIR -> rows: top 1 and top 5 over the number of shots"""
    pairs = asker.pairs(config.classify, report, images=config.images, class_depth=config.class_depth,
                        held_groups=config.held_groups)
    pairs = readable_pairs(pairs, asker.features.pixels, report)
    n_class = len({item.label for item in pairs.items})
    if n_class < 2:
        raise BadInput(f'{config.classify}: only one class')
    support, asked = divided(pairs, config.split, config.per_class, np.random.default_rng(config.seed))
    asked = asked[:config.n] if 'n' in config.given else asked
    nearest = likeness(pairs, support, asked, contrastive, asker.features) if config.rices else None
    rows = []
    for shots in numbers(config, 'shots', (min(8, len(support)),)):
        if shots > len(support):
            raise BadInput(f'--shots={shots}: there are {len(support)} examples')
        made = class_episodes(pairs, support, asked, shots, nearest, config.seed)
        good = [e for e in usable_or_fail(asker, made, report, config.classify) if e is not None]
        answers = asker.answer(good, f'{n_class} classes')
        for metric in ('accuracy', 'top_5'):
            rows.append(row_of(metric, 'classification', good, answers, n_class, shots))
    return rows
