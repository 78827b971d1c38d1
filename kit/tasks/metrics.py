"""What the paper's tables are made of: CIDEr, VQA accuracy, NDCG, ROC AUC, mean average precision, top-1, and
their intervals; at the end METRICS, the table that evaluation chooses from.

Each is the metric as its benchmark publishes it, written from its definition. Three are missing: RareAct's
mWAP, NextQA's WUPS and iVQA's accuracy; plain mean average precision and the same answer stand for them.
Nothing here knows about models. Values lie between 0 and 1, CIDEr's between 0 and 10 (papers print it times
100).
"""
import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import Callable

import numpy as np


# ---------------------------------------------------------------------------------------------
# Captions

# What the COCO caption evaluation drops after its Penn Treebank tokeniser has set them apart.
PUNCTUATION = re.compile(r"""[.,:;?!"'`()\[\]{}]|(?<!\w)-|-(?!\w)""")  # a hyphen stays inside a word
CLITIC = re.compile(r"(n't|'s|'re|'ve|'ll|'d|'m)\b")


def tokenise(text):
    """'A dog, and a cat!' -> 'a dog and a cat': lower case, punctuation dropped, one space between words.

    A simple stand-in for the Java tokeniser of the COCO evaluation: like it, it parts don't as "do n't" and
    dog's as "dog 's"; on words that hold dots ("u.s.") the two may differ.
    """
    parts = CLITIC.split(CLITIC.sub(r' \1 ', text.lower()))
    # Every second part is a clitic, which keeps its apostrophe.
    kept = [part if i % 2 else PUNCTUATION.sub(' ', part) for i, part in enumerate(parts)]
    return ' '.join(' '.join(kept).split())


def n_grams(text, most=4):
    """Tokenised text -> Counter of its n-grams (tuples of words), n = 1 … most"""
    words = text.split()
    return Counter(tuple(words[i:i + n]) for n in range(1, most + 1) for i in range(len(words) - n + 1))


def cider(candidates, references, sigma=6.0, most=4):
    """CIDEr-D, as the COCO caption evaluation computes it (Vedantam et al. 2015, with length penalty and
    clipping).

        g(c)     = (count of an n-gram in c) · log(number of items / number of items whose references hold it)
        CIDEr-D  = 10/4 Σ_n mean over references r of
                   exp(−(l_c − l_r)²/2σ²) · min(g_n(c), g_n(r)) · g_n(r) / ‖g_n(c)‖‖g_n(r)‖

    candidates: N tokenised texts; references: for each a list of one or more tokenised texts. -> (mean, [N
    values]). Document frequencies come from these references: values of different sets of items do not
    compare, and of one item alone every value is 0. Raises ValueError where the lengths differ, or an item
    has no reference.
    """
    if len(candidates) != len(references):
        raise ValueError(f'{len(candidates)} candidates and {len(references)} lists of references')
    if not all(references):
        raise ValueError('an item has no reference')
    if not candidates:
        return 0.0, []
    truth = [[n_grams(r, most) for r in refs] for refs in references]
    frequency = Counter(gram for refs in truth for gram in set().union(*refs))  # in how many items
    log_n = math.log(len(candidates))

    def vector(counts):
        """-> for each n a dict {n-gram: tf·idf}, and their norms"""
        vectors = [{} for _ in range(most)]
        for gram, count in counts.items():
            vectors[len(gram) - 1][gram] = count * (log_n - math.log(max(1, frequency[gram])))
        return vectors, [math.sqrt(sum(v * v for v in part.values())) for part in vectors]

    values = []
    for candidate, texts, refs in zip(candidates, references, truth):
        ours, our_norms = vector(n_grams(candidate, most))
        total = 0.0
        for text, counts in zip(texts, refs):
            theirs, norms = vector(counts)
            penalty = math.exp(-(len(candidate.split()) - len(text.split())) ** 2 / (2 * sigma ** 2))
            for a, b, norm_a, norm_b in zip(ours, theirs, our_norms, norms):
                if norm_a and norm_b:
                    alike = sum(min(w, b[gram]) * b[gram] for gram, w in a.items() if gram in b)
                    total += penalty * alike / (norm_a * norm_b)
        values.append(10.0 * total / most / len(refs))
    return sum(values) / len(values), values


# ---------------------------------------------------------------------------------------------
# Short answers

ARTICLES = {'a', 'an', 'the'}
NUMBERS = 'zero one two three four five six seven eight nine ten'.split()
NUMBERS = {word: str(n) for n, word in enumerate(NUMBERS)} | {'none': '0'}
# Words that the VQA evaluation mends where one of their apostrophes is missing.
CONTRACTED = """ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've
    hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
    might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't
    shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's
    something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've
    they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
    where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
    wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've""".split()
CONTRACTIONS = {word[:i] + word[i + 1:]: word for word in CONTRACTED for i, c in enumerate(word) if c == "'"}
CONTRACTIONS["somebody'd"] = 'somebodyd'  # as published
MARKS = ';/[]"{}()=+\\_-><@`,?!'


def normalise_answer(text):
    """The VQA evaluation's idea of the same answer: 'The two dogs.' -> '2 dogs'.

    Lower case; no articles; number words as digits; missing apostrophes put back; punctuation gone, or a
    space where it joins two words; periods only before a digit.
    """
    text = text.replace('\n', ' ').replace('\t', ' ').strip()
    joined = text
    digits = re.search(r'\d,\d', text) is not None  # 1,000: then all marks go without leaving a space
    for mark in MARKS:
        alone = mark + ' ' in text or ' ' + mark in text
        joined = joined.replace(mark, '' if alone or digits else ' ')
    joined = re.sub(r'\.(?!\d)', '', joined)
    words = [NUMBERS.get(word, word) for word in joined.lower().split()]
    return ' '.join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def vqa_accuracy(answer, human_answers):
    """Mean over the people, each left out in turn, of min(1, how many of the others said the same / 3) -> 0 …
    1.

    Both sides are always normalised, as the challenge's server does; its published script leaves texts as
    they are where all ten people agree to the letter. Of fewer than four people no answer reaches 1: two the
    same give 1/3. Raises ValueError where nobody answered.
    """
    if not human_answers:
        raise ValueError('there is no human answer')
    answer, people = normalise_answer(answer), [normalise_answer(a) for a in human_answers]
    same = [person == answer for person in people]
    return sum(min(1.0, (sum(same) - own) / 3) for own in same) / len(people)


# ---------------------------------------------------------------------------------------------
# Rankings. Ties are nobody's luck: no value depends on the order in which tied items come.


def ndcg(scores, relevance):
    """Normalised discounted cumulative gain as VisDial defines it -> 0 … 1.

    scores, relevance: (K,) numbers for K answers, relevance ≥ 0. As many places count as there are relevant
    answers: Σ_i relevance_i / log2(i + 1) over them, divided by the best there could be; 0 where none is
    relevant. Of tied answers the value is the mean over all their orders.
    """
    scores, relevance = np.asarray(scores, dtype=np.float64), np.asarray(relevance, dtype=np.float64)
    if scores.shape != relevance.shape:
        raise ValueError(f'{scores.size} scores and {relevance.size} relevances')
    places = int((relevance > 0).sum())
    if places == 0:
        return 0.0
    order = np.argsort(-scores, kind='stable')
    _, tie = np.unique(-scores[order], return_inverse=True)
    gain = (np.bincount(tie, relevance[order]) / np.bincount(tie))[tie]  # what is tied shares its relevance
    discount = 1 / np.log2(np.arange(places) + 2)
    return float((gain[:places] * discount).sum() / (np.sort(relevance)[::-1][:places] * discount).sum())


def roc_auc(scores, labels):
    """The chance that a positive scores higher than a negative, a tie counting half -> 0 … 1.

    scores (K,) numbers, labels (K,) bool. Raises ValueError where one of the two classes is empty.
    """
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    if labels.all() or not labels.any():
        raise ValueError('ROC AUC needs positives and negatives')
    values, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]  # from 1; what is tied shares the mean
    positive, negative = int(labels.sum()), int((~labels).sum())
    return float((rank[labels].sum() - positive * (positive + 1) / 2) / (positive * negative))


def average_precision(scores, labels):
    """Σ over thresholds of (growth of recall) · precision -> 0 … 1.

    Tied items pass a threshold together, as in scikit-learn: of three tied items with one positive the value
    is 1/3. (The mean over all orders of the three would be more: (1 + 1/2 + 1/3) / 3.) scores (K,) numbers,
    labels (K,) bool. Raises ValueError where nothing is positive.
    """
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    if not labels.any():
        raise ValueError('average precision needs positives')
    order = np.argsort(-scores, kind='stable')
    found = np.cumsum(labels[order])
    last = np.append(np.diff(scores[order]) != 0, True)  # the last of each tie
    found, shown = found[last], np.flatnonzero(last) + 1
    return float((np.diff(found, prepend=0) / labels.sum() * (found / shown)).sum())


def mean_average_precision(scores, labels):
    """scores (K,C) of K items for C classes, labels (K,C) bool -> mean of the classes' average precision, of
    those that occur. Raises ValueError where none does."""
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    occur = np.flatnonzero(labels.any(0))
    if len(occur) == 0:
        raise ValueError('mean average precision needs positives')
    return float(np.mean([average_precision(scores[:, c], labels[:, c]) for c in occur]))


def top_1(scores, truth):
    """scores (K,C), truth (K,) int -> the share of items whose truth scores highest; of n tied at the top it
    counts 1/n. 0 for no items."""
    scores = np.asarray(scores, dtype=np.float64)
    if len(scores) == 0:
        return 0.0
    best = scores == scores.max(1, keepdims=True)
    return float((best[np.arange(len(scores)), np.asarray(truth)] / best.sum(1)).mean())


# ---------------------------------------------------------------------------------------------
# How sure are we?


def interval(value, n, z=1.96):
    """Wilson's 95 % interval of a proportion seen n times -> (low, high). Unlike ± it stays within 0 and
    1."""
    if n == 0:
        return 0.0, 1.0
    middle = (value + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(value * (1 - value) / n + z * z / (4 * n * n))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def bootstrap(statistic, n, times=1000, seed=0):
    """The 95 % interval of whatever is no proportion: statistic(indices of items) over items drawn again and
    again, with replacement, from the n there are -> (low, high). Draws on which the statistic is not defined
    (ValueError) are left out."""
    rng, values = np.random.default_rng(seed), []
    for _ in range(times):
        try:
            values.append(statistic(rng.integers(n, size=n)))
        except ValueError:
            pass
    if not values:
        raise ValueError('the statistic is not defined on these items')
    return tuple(float(v) for v in np.percentile(values, [2.5, 97.5]))


# ---------------------------------------------------------------------------------------------
# The table that evaluation chooses from


@dataclass(frozen=True)
class Metric:
    """each(episodes, answers) -> (N,…), what it takes of each of N episodes (kit.episode.Episode) and of the
    answer to it (see Asker.answer); whole: of any of these rows -> the value, or ValueError where there is
    none.

    needs: fields of an episode without which it is not defined. proportion: of right and wrong. percent:
    printed as such; else times 100 without a sign. times: draws of the bootstrap.
    """
    each: Callable
    whole: Callable = np.mean
    needs: tuple = ()
    proportion: bool = False
    percent: bool = True
    times: int = 1000


def right(episodes, answers):
    return [a['correct'] for a in answers]


def tokenised(episodes, answers):
    """-> (what was said of each, [N texts]; what people said, [N lists of texts])"""
    people = [[tokenise(t) for t in e.people or [e.query.answer]] for e in episodes]
    return [tokenise(a['prediction']) for a in answers], people


def ciders(episodes, answers):
    return cider(*tokenised(episodes, answers))[1]


def vqa_accuracies(episodes, answers):
    return [vqa_accuracy(a['prediction'], e.people) for e, a in zip(episodes, answers)]


def ndcgs(episodes, answers):
    return [ndcg([a['scores'][c] for c in e.choices], e.relevance) for e, a in zip(episodes, answers)]


def margins(episodes, answers):
    """How much more likely the first of two choices (yes) is than the second, and whether it is the
    answer."""
    return [[a['scores'][e.choices[0]] - a['scores'][e.choices[1]], e.choices[0] == e.query.answer]
            for e, a in zip(episodes, answers)]


def shares(episodes, answers):
    """How likely each choice is among all of them, and whether it is the answer (2,C): only so do episodes
    with other words for the same choices compare."""
    out = []
    for e, a in zip(episodes, answers):
        p = np.exp(np.array([a['scores'][c] for c in e.choices]) - max(a['scores'].values()))
        out.append([p / p.sum(), [c == e.query.answer for c in e.choices]])
    return out


def top_5(episodes, answers):
    """Is the answer among the five likeliest of its choices? Of n tied with it, as many count as there is
    room for."""
    out = []
    for e, a in zip(episodes, answers):
        scores, own = np.array(list(a['scores'].values())), a['scores'][e.query.answer]
        out.append(np.clip((5 - (scores > own).sum()) / (scores == own).sum(), 0, 1))
    return out


# Of captions: all of them are printed, of COCO's and, after accuracy, of the drawn world's.
CAPTIONS = {
    'cider': Metric(ciders, percent=False),
}

# Where a metric compares choices between episodes, they have them in the same order of meaning (yes and no;
# the actions).
METRICS = {
    'accuracy': Metric(right, proportion=True),
    'top_5': Metric(top_5, needs=('choices',), proportion=True),
    **CAPTIONS,
    'vqa_accuracy': Metric(vqa_accuracies, needs=('people',)),
    'ndcg': Metric(ndcgs, needs=('choices', 'relevance')),
    'roc_auc': Metric(margins, lambda x: roc_auc(x[:, 0], x[:, 1]), needs=('choices',), times=200),
    'mean_average_precision': Metric(shares, lambda x: mean_average_precision(x[:, 0], x[:, 1]),
                                     needs=('choices',), times=200),
}
