"""Words for what it sees: clusters, names made of them, and that the later stages speak so."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import train
from kit.cli import configure
from kit.files import BadInput
from kit.run import class_words
from kit.sources.fewshot import Pages
from kit.run.keys import check_values
from kit.run.run import Run
from kit.world.words import SYLLABLES


def blobs(rng, centres, n, spread):
    return np.concatenate([c + spread * rng.standard_normal((n, len(c))) for c in centres])


def test_k_means_finds_what_is_there():
    rng = np.random.default_rng(0)
    centres = 10 * rng.standard_normal((6, 5))
    x = blobs(rng, centres, 20, 0.1)[rng.permutation(120)]
    found = class_words.k_means(x, 6)
    assert np.sqrt(class_words.distances(centres, found).min(1)).max() < 0.1  # each has a centre of its own
    assert np.array_equal(found, class_words.k_means(x, 6)) and len(class_words.k_means(x[:3], 6)) == 3
    assert len(class_words.k_means(np.ones((9, 2)), 4)) == 1  # nothing to tell apart


def test_what_looks_alike_shares_syllables():
    """Five kinds, each with the same three variants: the first syllable says the kind, the second the
    variant."""
    rng = np.random.default_rng(1)
    kinds, variants = 20 * rng.standard_normal((5, 8)), 3 * rng.standard_normal((3, 8))
    variants -= variants.mean(0)
    x = np.array([k + v for k in kinds for v in variants]) + 0.01 * rng.standard_normal((15, 8))
    found = [w.split() for w in class_words.make_words(x, np.ones(15, bool), 2, 5)]
    first = [w[0] for w in found]
    assert len(set(first)) == 5 and all(len(set(first[i:i + 3])) == 1 for i in range(0, 15, 3))
    assert len({tuple(w) for w in found}) == 15
    assert not {w[0] for w in found} & {w[1] for w in found}  # no syllable means two things
    # Whoever only joins changes nothing for the others, and is called like its neighbour.
    joined = class_words.make_words(np.concatenate([x, x[:1] + 0.01]), np.arange(16) < 15, 2, 5)
    assert joined == [' '.join(w) for w in found] + [' '.join(found[0])]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Two groups of six classes; a class is a bar of its own place and slope, four times."""
    root = tmp_path_factory.mktemp('classes')
    for g, group in enumerate(('north', 'south')):
        for k in range(6):
            for j in range(4):
                image = Image.new('L', (40, 40), 255)
                ImageDraw.Draw(image).line((5 + 5 * k + j % 2, 5, 35 - 5 * g * k, 35 - j), fill=0, width=3)
                path = root / group / f'c{k}' / f'{j}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path)
    return str(root)


def run_of(folder, out, *arguments):
    config = configure(train.KEYS, [
        f'--out_dir={out}', '--device=cpu', f'--align={folder}', '--m3w=align', '--text=align', '--ltip=',
        '--vtp=', '--folders=words=2 word_centres=3', '--tokenizer=sources', '--image_size=32',
        '--eval_n=4', '--vision_batch=8', *arguments])
    check_values(config, train.KEYS)
    return Run(config, train.KEYS)


def test_later_stages_speak_in_words(folder, tmp_path):
    run = run_of(folder, tmp_path, '--folders=held_groups=south')
    torch.manual_seed(0)
    captions = {item.label: item.text for item in class_words.items_of(run)}
    assert len(set(captions.values())) == len(captions) == 12
    # No two share a token.
    assert all(len(run.tokenizer.encode(' ' + name)) == 1 for name in captions.values())
    run.save_stage(train.VisionStage(run))
    assert Image.open(tmp_path / 'words.png').width > 100
    named = torch.load(tmp_path / 'vision.pt', weights_only=True)['words']
    assert set(named) == set(captions) and all(len(w.split()) == 2 for w in named.values())
    assert all(len(run.tokenizer.encode(' ' + s)) == 1 for s in SYLLABLES)  # a syllable is a token
    assert [len(run.tokenizer.encode(' ' + name)) for name in ('toma', 'dax', 'kobadu')] == [2, 2, 3]

    again = run_of(folder, tmp_path, '--folders=held_groups=south')  # another sitting: the same words
    train.LanguageStage(again)
    assert {item.label: item.text for item in class_words.items_of(again)} == named
    pages = again.sources['m3w'].parts[0]
    assert isinstance(pages, Pages)
    assert {named[label] for label in pages.labels} == {item.text for item in pages.pairs.items}
    assert {item.text for item in again.held_out.items} <= set(named.values())
    said = again.sources['text'].text(3)
    assert any(word in said for word in named.values())


def test_first_names_differ_however_many_there_are():
    labels = [f'class {k}' for k in range(len(SYLLABLES) ** 2 + 1)]
    names = class_words.first_names(labels)
    assert set(names) == set(labels) and len(set(names.values())) == len(labels)
    few = class_words.first_names(labels[999::-1])
    assert few == class_words.first_names(labels[:1000])
    assert all(name.isalpha() and name == name.capitalize() for name in few.values())


def test_words_are_refused_where_there_are_none(folder, tmp_path):
    run = run_of(folder, tmp_path)
    stage = train.VisionStage(run)
    run.config.words = 0
    run.save_stage(stage)
    run.config.words = 2
    with pytest.raises(BadInput, match='no word for'):
        train.LanguageStage(run)


def test_there_are_only_so_many_syllables(folder, tmp_path):
    with pytest.raises(BadInput, match='180 syllables'):
        run_of(folder, tmp_path, '--folders=word_centres=100')
