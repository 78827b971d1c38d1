"""The two contrastive encoders at work: retrieval, zero-shot, a linear probe, the nearest neighbour."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from asking import ask, asker, config, loaded, out, pictures_in  # noqa: F401 (fixtures)
from test_official import coco

from data import Example, Media
from kit.episode import Episode
from kit.files import BadInput
from kit.sources.base import Report
from kit.tasks import encoders
from kit.tasks.encoders import (
    classify, linear_probe, nearest, nearest_row, ranks, retrieval, run_probe, run_retrieval, run_zero_shot)


def test_pictures_of_coco_are_found_for_retrieval_too(loaded, tmp_path):
    argv = coco(tmp_path)
    rows = run_retrieval(config(f'--retrieval={tmp_path}/captions.json', argv[1]), *loaded, Report())
    assert [(r['metric'], r['n']) for r in rows][:1] == [('i2t_R@1', 3)]


def test_the_nearest_neighbour_by_hand(monkeypatch):
    """Two examples of each name, their mean counts; what all have in common (here 100 in every dimension)
    tells nothing."""
    points = {'a1': (1, 0), 'a2': (3, 0), 'b1': (0, 1), 'b2': (0, 3), 'q': (0.4, 0.3), 'r': (0, 9)}
    see = lambda media: torch.tensor([points[m.key] for m in media]) + 100.0
    monkeypatch.setattr(encoders, 'pool_media', lambda features, media: see(media))
    support = [
        Example(Media(k, None), 'Output:', name)
        for k, name in (('a1', 'dax'), ('b1', 'wug'), ('a2', 'dax'), ('b2', 'wug'))
    ]
    episodes = [
        Episode(support, Example(Media(k, None), 'Output:', answer), ['dax', 'wug'])
        for k, answer in (('q', 'dax'), ('r', 'wug'), ('r', 'dax'))
    ]
    assert nearest(see, episodes) == ['dax', 'wug', 'wug']
    assert nearest_row(None, episodes)['value'] == pytest.approx(2 / 3)


def test_retrieval_by_hand(monkeypatch):
    """Picture a has two captions, two pictures the caption "it"; each stands among the answers once, and any
    of its own is right."""
    pictures = {'a': (1, 0), 'b': (0, 1), 'c': (-1, 0), 'd': (0.8, 0.6)}
    texts = {'one': (1, 0), 'two': (0.9, -0.1), 'it': (0.1, 1), 'far': (-0.6, 0.8)}
    pairs = [('a', 'one'), ('a', 'two'), ('b', 'it'), ('d', 'it'), ('c', 'far')]

    class Found(list):
        items = [SimpleNamespace(text=text) for _, text in pairs]
        media = staticmethod(lambda i: Media(pairs[i][0], None))

    monkeypatch.setattr(encoders, 'readable_pairs', lambda pairs, *_: pairs)
    monkeypatch.setattr(
        encoders, 'embed_media',
        lambda vision, features, media: torch.tensor([pictures[m.key] for m in media], dtype=torch.float))
    monkeypatch.setattr(
        encoders, 'embed_texts',
        lambda tower, tokenizer, said: torch.tensor([texts[t] for t in said], dtype=torch.float))
    rows = retrieval(Found(pairs), SimpleNamespace(vision=None, text=None), SimpleNamespace(pixels=None),
                     None, None)
    values = {r['metric']: (r['value'], r['n']) for r in rows}
    # Pictures: a's captions are first and second; b's "it" is first; c's "far" is; d is nearer to "one" and
    # "two" than to "it".
    assert values['i2t_R@1'] == (0.75, 4) and values['i2t_R@5'] == (1.0, 4)
    # Texts: "one", "two" find a, "it" finds b (d is right as well), "far" finds b (0.8) before its c (0.6).
    assert values['t2i_R@1'] == (0.75, 4) and values['t2i_R@10'] == (1.0, 4)


def test_ranks_do_not_depend_on_the_size_of_a_block():
    """Against the definition, question by question, in float64."""
    g = np.random.default_rng(0)
    asked, answers = g.normal(size=(23, 4)), g.normal(size=(31, 4))
    belong = [(q, int(g.integers(31))) for q in [*range(23), *g.integers(23, size=20).tolist()]]
    expected = []
    for q in range(23):
        right = {a for other, a in belong if other == q}
        near = asked[q] @ answers.T
        expected.append(sum(near[a] >= max(near[list(right)]) for a in range(31) if a not in right))
    for block in (1, 5, 100):
        assert ranks(torch.tensor(asked), torch.tensor(answers), belong, block).tolist() == expected


def test_linear_probe_is_logistic_regression():
    """It separates what can be separated, and where features say nothing it knows what is frequent."""
    torch.manual_seed(0)
    truth = torch.arange(60) % 3
    x = torch.randn(60, 5) + 4 * torch.nn.functional.one_hot(truth, 5)
    assert (linear_probe(x, truth, x, 3) == truth).all()
    assert linear_probe(x[:, :1] * 0, torch.tensor([1] * 40 + [0] * 20), x[:4, :1] * 0,
                        2).tolist() == [1] * 4  # only the bias can tell
    far = torch.zeros(3, 5).index_put((torch.arange(3), torch.arange(3)), torch.tensor(9.0))
    assert linear_probe(x, truth, far, 3).tolist() == [0, 1, 2]


def test_zero_shot_classes_are_means_over_templates(monkeypatch):
    """A picture goes to the class whose descriptions, on average, lie nearest."""
    vectors = {'p': [1.0, 0.0], 'q': [0.0, 1.0], 'r': [-1.0, 0.0]}
    monkeypatch.setattr(encoders, 'embed_texts',
                        lambda tower, tokenizer, texts: torch.tensor([vectors[t] for t in texts]))
    monkeypatch.setattr(encoders, 'embed_media', lambda vision, features, media: torch.tensor(media))
    value = classify(SimpleNamespace(text=None, vision=None), None, None,
                     [[0.8, 0.6], [-0.6, 0.8], [-1.0, 0.1]], [0, 1, 0], [['p', 'q'], ['r', 'q']])
    assert value == pytest.approx(2 / 3)


def test_zero_shot_and_probe_on_a_folder(asker, loaded, tmp_path):
    folder = pictures_in(tmp_path / 'c', [f'{c}/{i}.png' for c in ('cat', 'dog') for i in range(6)])
    (folder / 'cat' / 'broken.png').write_bytes(b'no picture')
    [row] = run_zero_shot(config(f'--zero_shot={folder}'), asker, loaded[1], Report())
    assert (row['task'], row['ways'], row['n']) == ('zero_shot', 2, 12)
    [row] = run_probe(config(f'--probe={folder}'), asker, loaded[1], Report())
    assert (row['task'], row['n']) == ('linear_probe', 2)
    with pytest.raises(BadInput, match='templates'):
        run_zero_shot(config(f'--zero_shot={folder}', '--templates=a photo'), asker, loaded[1], Report())
