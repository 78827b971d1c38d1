"""Metrics against cases worked out by hand, and against slow sums over all pairs."""
import math

import numpy as np
import pytest

from kit.tasks.metrics import (
    average_precision, bootstrap, cider, interval, mean_average_precision, ndcg, normalise_answer, roc_auc,
    tokenise, top_1, vqa_accuracy)

# --------------------------------------------------------------------------------------------- CIDEr. Two
# items with the references "a b" and "a c": a is in both, so it weighs log(2/2) = 0; every other n-gram
# weighs log 2.

REFERENCES = [['a b'], ['a c']]


@pytest.mark.parametrize(
    'candidate, value',
    [
        ('a b', 10 * (1 + 1) / 4),  # words and pairs agree; there are no longer n-grams
        ('b b', 10 * 0.5 / 4),  # b counts once, not twice: L·L / (2L · L)
        ('b', 10 * math.exp(-1 / 72) / 4),  # one word short: exp(−1²/2·6²)
        ('a b b b', 10 * math.exp(-4 / 72) *
         (1 / 3 + 1 / math.sqrt(1 + 2**2)) / 4),  # pairs: "a b" once, "b b" twice
        ('a', 0.0),  # only what weighs nothing
        ('c', 0.0),
        ('', 0.0),
    ])
def test_cider_as_worked_out_by_hand(candidate, value):
    mean, each = cider([candidate, 'a c'], REFERENCES)
    assert each == pytest.approx([value, 5.0], abs=1e-12)
    assert mean == pytest.approx((value + 5.0) / 2, abs=1e-12)


def test_cider_is_the_mean_over_references():
    _, [value, _] = cider(['a b', 'a c'], [['a b', 'x y'], ['a c']])
    assert value == pytest.approx(2.5)  # 5 with the first, 0 with the second


def test_cider_of_one_item_alone_is_zero_and_of_none_too():
    assert cider(['a b'], [['a b']]) == (0.0, [0.0])
    assert cider([], []) == (0.0, [])


def test_cider_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match='2 candidates and 1'):
        cider(['a', 'b'], [['a']])
    with pytest.raises(ValueError, match='no reference'):
        cider(['a', 'b'], [['a'], []])


def slow_cider(candidates, references):
    """The same from its definition, as dense vectors over all n-grams there are."""
    grams = lambda text, n: [tuple(text.split()[i:i + n]) for i in range(len(text.split()) - n + 1)]
    values = np.zeros(len(candidates))
    for n in range(1, 5):
        texts = candidates + [r for refs in references for r in refs]
        place = {g: k for k, g in enumerate(sorted({g for t in texts for g in grams(t, n)}))}
        count = lambda text: np.bincount([place[g]
                                          for g in grams(text, n)], minlength=len(place)).astype(float)
        frequency = sum((sum(count(r) for r in refs) > 0).astype(float) for refs in references)
        idf = math.log(len(candidates)) - np.log(np.maximum(frequency, 1))
        for i, (candidate, refs) in enumerate(zip(candidates, references)):
            for r in refs:
                g, h = count(candidate) * idf, count(r) * idf
                size = np.linalg.norm(g) * np.linalg.norm(h)
                gap = len(candidate.split()) - len(r.split())
                values[i] += (np.minimum(g, h) @ h / size if size else 0.0) * math.exp(
                    -gap**2 / 72) * 10 / 4 / len(refs)
    return values


def test_cider_agrees_with_dense_vectors():
    rng = np.random.default_rng(0)
    text = lambda least: ' '.join(rng.choice(list('abcdefg'), rng.integers(least, 12)))
    references = [[text(1) for _ in range(rng.integers(1, 6))] for _ in range(30)]
    candidates = [text(0) if rng.random() < 0.5 else refs[0] for refs in references]
    mean, each = cider(candidates, references)
    assert each == pytest.approx(slow_cider(candidates, references), abs=1e-9)
    assert mean == pytest.approx(np.mean(each)) and mean > 1


@pytest.mark.parametrize('text, tokens', [
    ('A dog, and a cat!', 'a dog and a cat'),
    ("Don't: the dog's \"t-shirt\" -- yes...", "do n't the dog 's t-shirt yes"),
    ('(two) dogs;\n two cats', 'two dogs two cats'),
    ('', ''),
])
def test_tokeniser(text, tokens):
    assert tokenise(text) == tokens


# ---------------------------------------------------------------------------------------------
# VQA


@pytest.mark.parametrize('text, same', [('The two dogs.', '2 dogs'), ('none', '0'), ('an A380', 'a380'),
                                        ("dont know", "don't know"), ("hed've", "he'd've"),
                                        ("he'dve", "he'd've"), ('1,000', '1000'), ('3.5', '3.5'),
                                        ('red/blue', 'red blue'), ('red, blue', 'red blue'),
                                        ('left-hand', 'left hand'), ('\tyes\n', 'yes'), ('', ''),
                                        ("it's", "it's"), ('U.S.', 'us'), ])
def test_answers_are_normalised(text, same):
    assert normalise_answer(text) == same


@pytest.mark.parametrize('answer, people, value', [
    ('2', ['two'] * 3 + ['3'] * 7, (3 * (2 / 3) + 7 * 1) / 10),  # each of the three, left out, leaves two
    ('Yes.', ['yes'] + ['no'] * 9, (0 + 9 / 3) / 10),
    ('a dog', ['dog'] * 10, 1.0),
    ('cat', ['dog'] * 10, 0.0),
    ('', ['dog'] * 9 + ['cat'], 0.0),
    ('dog', ['dog'] * 4 + ['cat'] * 6, 1.0),
])
def test_vqa_accuracy_leaves_one_out(answer, people, value):
    assert vqa_accuracy(answer, people) == pytest.approx(value)


def test_vqa_accuracy_needs_people():
    with pytest.raises(ValueError):
        vqa_accuracy('dog', [])


# ---------------------------------------------------------------------------------------------
# Rankings


def test_ndcg_by_hand():
    ideal = 1 + 0.5 / math.log2(3)
    assert ndcg([3, 2, 1], [1, 0.5, 0]) == pytest.approx(1.0)
    assert ndcg([1, 3, 2], [1, 0.5, 0]) == pytest.approx(0.5 / ideal)         # two places count: 0.5 and 0
    assert ndcg([1, 2, 3], [1, 0.5, 0]) == pytest.approx(0.5 / math.log2(3) / ideal)
    assert ndcg([7, 7, 7], [1, 0.5, 0]) == pytest.approx(0.5 * (1 + 1 / math.log2(3)) /
                                                         ideal)  # all tied: each is worth 0.5
    assert ndcg([7, 7, 1], [0, 1, 0]) == pytest.approx(0.5)  # first or second by luck, and one place counts
    assert ndcg([1, 2], [0, 0]) == 0.0 and ndcg([], []) == 0.0


def test_roc_auc_is_the_share_of_pairs_in_order():
    assert roc_auc([1, 2, 3], [0, 1, 1]) == 1.0
    assert roc_auc([3, 1, 2], [1, 1, 0]) == 0.5
    assert roc_auc([5, 5], [0, 1]) == 0.5
    rng = np.random.default_rng(1)
    scores, labels = rng.integers(0, 6, 40), rng.random(40) < 0.4
    pairs = [(p > q) + 0.5 * (p == q) for p in scores[labels] for q in scores[~labels]]
    assert roc_auc(scores, labels) == pytest.approx(np.mean(pairs))
    for one_class in ([1, 1], [0, 0], []):
        with pytest.raises(ValueError):
            roc_auc([0.0] * len(one_class), one_class)


def test_average_precision_by_hand():
    assert average_precision([3, 2, 1], [1, 0, 1]) == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert average_precision([1, 2, 3], [1, 0, 0]) == pytest.approx(1 / 3)
    assert average_precision([5, 5, 5], [0, 1, 0]) == pytest.approx(1 / 3)    # tied: they come together
    assert average_precision([5, 5, 1], [0, 1, 1]) == pytest.approx(1 / 2 * 1 / 2 + 1 / 2 * 2 / 3)
    with pytest.raises(ValueError):
        average_precision([1.0], [0])


def test_mean_average_precision_is_over_the_classes_that_occur():
    scores = np.array([[3, 1, 9], [2, 2, 9], [1, 3, 9]])
    labels = np.array([[1, 1, 0], [0, 0, 0], [1, 0, 0]])
    assert mean_average_precision(scores, labels) == pytest.approx(((1 + 2 / 3) / 2 + 1 / 3) / 2)
    with pytest.raises(ValueError):
        mean_average_precision(scores, np.zeros((3, 3)))


def test_top_1_shares_ties():
    assert top_1([[1, 2], [3, 0], [5, 5]], [1, 1, 0]) == pytest.approx((1 + 0 + 0.5) / 3)
    assert top_1([], []) == 0.0


# ---------------------------------------------------------------------------------------------
# Intervals


@pytest.mark.parametrize('value, n, low, high', [(0.5, 10, 0.2366, 0.7634), (1.0, 10, 0.7225, 1.0),
                                                 (0.0, 10, 0.0, 0.2775), (0.9, 100, 0.8256, 0.9448)])
def test_wilsons_interval(value, n, low, high):
    assert interval(value, n) == pytest.approx((low, high), abs=1e-4)


def test_nothing_seen_could_be_anything():
    assert interval(0.0, 0) == (0.0, 1.0)


def test_the_bootstrap_finds_the_standard_error_of_a_mean():
    x = np.random.default_rng(0).normal(size=400)
    low, high = bootstrap(lambda k: x[k].mean(), len(x), times=2000)
    assert (high - low) / 2 == pytest.approx(1.96 * x.std() / 20, rel=0.1) and low < x.mean() < high
    assert (low, high) == bootstrap(lambda k: x[k].mean(), len(x), times=2000)
