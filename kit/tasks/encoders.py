"""The two contrastive encoders at work: pictures and texts in one space, classes from descriptions,
retrieval, a linear probe on the frozen features.

    python evaluate.py --zero_shot=my_classes
    python evaluate.py --probe=my_classes
    python evaluate.py --retrieval=my_pictures --split=val
"""
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from kit.contrastive import pad_texts
from kit.files import BadInput
from kit.sources.base import readable_pairs
from kit.tasks import metrics
from kit.tasks.options import templates
from kit.tasks.results import row, row_of
from kit.world.tasks import zero_shot_classes, zero_shot_pictures


def classify(contrastive, tokenizer, features, media, truth, classes):
    """The CLIP way: a class is the mean of what its descriptions look like, a picture belongs to the nearest.
    -> accuracy

    classes: for each class a list of descriptions; truth: for each Media the number of its class.
    """
    classes = torch.stack([embed_texts(contrastive.text, tokenizer, forms).mean(0) for forms in classes])
    classes = F.normalize(classes, dim=-1)                                           # (C,E)
    similarity = embed_media(contrastive.vision, features, media) @ classes.T         # (N,C)
    return metrics.top_1(similarity.float().cpu(), truth)


@torch.no_grad()
def embed_texts(tower, tokenizer, texts, batch_size=64):
    """list of N str -> (N,E), of length 1. A text begins with a space, as in training: "red" and " red" are
    two tokens."""
    out = []
    for i in range(0, len(texts), batch_size):
        ids = [tokenizer.encode(' ' + t) for t in texts[i:i + batch_size]]
        tokens, mask = pad_texts(ids, tower.n_context)
        device = tower.token.weight.device
        out.append(tower.embed(tokens.to(device), mask.to(device)))
    return torch.cat(out)


@torch.no_grad()
def pool_media(features, media, batch_size=64):
    """list of N Media -> (N,D): the mean over places of the frozen encoder's features; a clip counts as the
    mean of its frames"""
    out = []
    for i in range(0, len(media), batch_size):
        grid, mask = features([[m] for m in media[i:i + batch_size]])                # (M,S,D), (N,1,F)
        out += [clip.mean(0) for clip in grid.mean(1).split(mask.sum((1, 2)).tolist())]
    return torch.stack(out)


@torch.no_grad()
def embed_media(vision, features, media):
    """list of N Media -> (N,E), of length 1"""
    return F.normalize(vision.projection(pool_media(features, media)), dim=-1)


def ranks(asked, answers, belong, block=1024):
    """How many wrong answers stand before the first right one, ties against us -> (Q,).

    asked (Q,E), answers (A,E), of length 1; belong: (question, answer) of all that are right. A block of
    questions at a time: all similarities at once may be too many for the memory.
    """
    belong, rank = torch.tensor(belong, device=asked.device), []
    for start in range(0, len(asked), block):
        similarity = asked[start:start + block] @ answers.T                            # (block,A)
        question, answer = belong[(belong[:, 0] >= start) & (belong[:, 0] < start + block)].T
        right = torch.zeros_like(similarity, dtype=torch.bool)
        right[question - start, answer] = True
        best = similarity.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
        rank.append(((similarity >= best) & ~right).sum(1))
    return torch.cat(rank)


def linear_probe(train, train_truth, test, n_class, decay=1e-3):
    """Logistic regression on frozen features, by L-BFGS: train (N,D), train_truth (N,) int, test (M,D) ->
    (M,) classes."""
    mean, std = train.mean(0), train.std(0, correction=0).clamp(min=1e-6)
    train, test = (train - mean) / std, (test - mean) / std
    weight = torch.zeros(train.shape[1], n_class, requires_grad=True, device=train.device)
    bias = torch.zeros(n_class, requires_grad=True, device=train.device)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, tolerance_grad=1e-5, tolerance_change=1e-7,
                                  line_search_fn='strong_wolfe')

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(train @ weight + bias, train_truth) + decay * weight.square().sum() / 2
        loss.backward()
        return loss
    optimizer.step(closure)
    return (test @ weight + bias).argmax(1)


# ---------------------------------------------------------------------------------------------
# Rows of results


def zero_shot(contrastive, tokenizer, features, n):
    """Contrastive zero-shot: pictures of held-out pairs, the nearest description among all 64 pairs ->
    row."""
    media, truth = zero_shot_pictures('held', n)
    return row('zero_shot', classify(contrastive, tokenizer, features, media, truth, zero_shot_classes()), n)


def retrieval(pairs, contrastive, features, tokenizer, report, most=None):
    """Which caption belongs to which picture, both ways: R@k = a right one is among the first k -> rows.

    As is usual: each picture and each text is asked about once and stands among the answers once, however
    many captions a picture has (COCO: five) or pictures a text (class folders), and any that belongs to it is
    right. most: this many pairs, always the same, stand for all.
    """
    if most is not None and len(pairs) > most:
        pairs = pairs.take(sorted(np.random.default_rng(0).choice(len(pairs), most, replace=False).tolist()))
    pairs = readable_pairs(pairs, features.pixels, report)
    items, media = pairs.items, [pairs.media(i) for i in range(len(pairs))]
    seen, said = {m.key: m for m in media}, dict.fromkeys(item.text for item in items)  # each once
    v = embed_media(contrastive.vision, features, list(seen.values()))                 # (pictures,E)
    l = embed_texts(contrastive.text, tokenizer, list(said))                           # (texts,E)
    picture, text = ({key: n for n, key in enumerate(keys)} for keys in (seen, said))
    belong = [(picture[m.key], text[item.text]) for m, item in zip(media, items)]
    rows = []
    for way, rank in (('i2t', ranks(v, l, belong)), ('t2i', ranks(l, v, [(t, p) for p, t in belong]))):
        rows += [row('retrieval', (rank < k).float().mean().item(), len(rank), metric=f'{way}_R@{k}')
                 for k in (1, 5, 10)]
    return rows


def nearest(see, episodes):
    """What would be answered without any language model: of each episode, the name whose examples look most
    like the query -> [answer].

    see(list of N Media) -> (N,D), what is seen of each. A name is the mean over its examples; what all names
    have in common is taken away, and the cosine compares.
    """
    out = []
    for e in episodes:
        x = see([*(s.media for s in e.support), e.query.media])                       # (examples + 1,D)
        names = list(dict.fromkeys(s.answer for s in e.support))
        of_name = [torch.stack([y for y, s in zip(x, e.support) if s.answer == name]) for name in names]
        shown = torch.stack([y.mean(0) for y in of_name])                             # (names,D)
        mean = shown.mean(0)
        alike = F.normalize(shown - mean, dim=-1) @ F.normalize(x[-1] - mean, dim=0)  # (names,)
        out.append(names[int(alike.argmax())])
    return out


def nearest_row(features, episodes, ways=None, shots=None):
    """The row of the nearest neighbour in the frozen encoder's features, their mean over places, as in the
    contrastive stage."""
    said = nearest(lambda media: pool_media(features, media), episodes)
    right = [name == e.query.answer for name, e in zip(said, episodes)]
    return row('naming', sum(right) / len(right), len(right), ways, shots, metric='nearest')


def further_rows(asker, episodes, ways, shots, written=False):
    """What else there is to say about naming episodes: the nearest neighbour, where all examples have
    pictures, and the written answer."""
    rows, shown = [], [s.media for e in episodes for s in [*e.support, e.query]]
    if all(e.support for e in episodes) and all(media is not None for media in shown):
        rows.append(nearest_row(asker.features, episodes, ways, shots))
    if written:
        asked = [replace(e, choices=None) for e in episodes]
        answers = asker.answer(asked, 'written')
        rows.append(row_of('accuracy', 'naming', asked, answers, ways, shots, label='written'))
    return rows


# ---------------------------------------------------------------------------------------------
# What evaluate.py calls


def run_retrieval(config, asker, contrastive, report):
    """--retrieval=DIR -> rows"""
    pairs = asker.pairs(config.retrieval, report, config.split, images=config.images)
    return retrieval(pairs, contrastive, asker.features, asker.tokenizer, report)


def classes_of(path, config, asker, report):
    """-> (Pairs that can be read, the names of their classes, for each picture the number of its class).
    Raises BadInput where there is one class only."""
    pairs = asker.pairs(path, report, config.split, images=config.images)
    pairs = readable_pairs(pairs, asker.features.pixels, report)
    names = list(dict.fromkeys(item.label for item in pairs.items))
    if len(names) < 2:
        raise BadInput(f'{path}: only one class')
    return pairs, names, [names.index(item.label) for item in pairs.items]


def run_zero_shot(config, asker, contrastive, report):
    """--zero_shot=DIR: class names in templates -> rows"""
    pairs, names, truth = classes_of(config.zero_shot, config, asker, report)
    classes = [[t.replace('{}', name) for t in templates(config)] for name in names]
    media = [pairs.media(i) for i in range(len(pairs))]
    value = classify(contrastive, asker.tokenizer, asker.features, media, truth, classes)
    return [row('zero_shot', value, len(media), ways=len(names))]


def run_probe(config, asker, contrastive, report):
    """--probe=DIR: a linear classifier of the frozen features -> rows. It is trained on the split `train` and
    asked about the others; without other splits, about a fifth."""
    pairs, names, truth = classes_of(config.probe, config, asker, report)
    order = np.random.default_rng(config.seed).permutation(len(pairs))
    if len({item.split for item in pairs.items}) > 1:
        test = np.array([item.split != 'train' for item in pairs.items])
    else:
        test = np.isin(np.arange(len(pairs)), order[:max(1, len(pairs) // 5)])
    if test.all() or not test.any():
        raise BadInput(f'{config.probe}: the probe needs pictures to train on and others to test on')
    pooled = pool_media(asker.features, [pairs.media(i) for i in range(len(pairs))])
    truth, test = torch.tensor(truth, device=pooled.device), torch.from_numpy(test)
    guess = linear_probe(pooled[~test], truth[~test], pooled[test], len(names))
    value = (guess == truth[test]).float().mean().item()
    return [row('linear_probe', value, int(test.sum()), ways=len(names))]
