"""Captions of a folder's pictures: what is known and what is new; what is right, near, and of a kind."""
import json

import pytest
import torch
from asking import ask, asker, config, loaded, out, pictures_in  # noqa: F401 (fixtures)
from PIL import Image

from kit.files import BadInput
from kit.sources.base import Report
from kit.tasks.asker import load
from kit.tasks.captions import run_captions
from kit.tasks.metrics import cider
from kit.weights import checkpoint

ROWS = [('a.png', 'red car', 'vehicle', 'train'), ('b.png', 'grey cat', 'animal', 'train'),
        ('c.png', 'Red car.', 'vehicle', 'val'), ('c.png', 'an auto', 'vehicle', 'val'),
        ('d.png', 'grey cat', 'animal', 'val'), ('e.png', 'brown dog', 'animal', 'val'),
        ('f.png', 'blue bus', 'vehicle', 'val')]


@pytest.fixture()
def folder(tmp_path):
    pictures_in(tmp_path / 'p', dict.fromkeys(name for name, *_ in ROWS))
    lines = [json.dumps(dict(zip(('file_name', 'text', 'category', 'split'), row))) for row in ROWS]
    (tmp_path / 'p' / 'metadata.jsonl').write_text('\n'.join(lines))
    return tmp_path / 'p'


def answers_by(asker, monkeypatch, said):
    """The answers are said[name of the picture asked about] -> the list of episodes asked."""
    seen = []

    def answer(episodes, progress=None):
        seen.extend(episodes)
        texts = [said[e.query.media.key.split('/')[-1][0]] for e in episodes]
        return [{'prediction': text, 'answer': e.query.answer, 'correct': e.is_right(text)}
                for e, text in zip(episodes, texts)]
    monkeypatch.setattr(asker, 'answer', answer)
    return seen


def test_known_and_new_things_by_hand(asker, folder, tmp_path, monkeypatch):
    """c has two captions, of which the second is of no known thing, and counts for it; of e is said a known
    thing of its category, of f one of another."""
    seen = answers_by(asker, monkeypatch, {'c': 'An auto', 'd': 'red car', 'e': 'grey cat', 'f': 'grey cat'})
    rows = ask(run_captions, asker, f'--captions={folder}', '--split=val', f'--out_dir={tmp_path}')
    found = {(r['task'], r['metric']): (r['value'], r['n']) for r in rows}
    near = {'known': cider(['an auto', 'red car'], [['red car', 'an auto'], ['grey cat']])[0], 'new': 0.0}
    assert found == {
        ('caption, known things', 'accuracy'): (0.5, 2), ('caption, new things', 'accuracy'): (0.0, 2),
        ('caption, known things', 'cider'): (pytest.approx(near['known']), 2),
        ('caption, new things', 'cider'): (near['new'], 2),
        ('caption, known things', 'category'): (0.0, 2), ('caption, new things', 'category'): (0.5, 2)}
    assert all(e.query.prompt == 'Output:' and not e.support for e in seen)
    with Image.open(tmp_path / 'captions.png') as picture:
        assert picture.width > 100


def test_examples_are_of_the_split_train(asker, folder, tmp_path, monkeypatch):
    seen = answers_by(asker, monkeypatch, dict.fromkeys('cdef', 'x'))
    rows = ask(run_captions, asker, f'--captions={folder}', '--shots=0,2', f'--out_dir={tmp_path}', '--n=3')
    assert {r['shots'] for r in rows} == {0, 2} and len(seen) == 6
    assert {s.answer for e in seen[3:] for s in e.support} == {'red car', 'grey cat'}


def test_bad_input(asker, folder, tmp_path):
    with pytest.raises(BadInput, match="no captions to ask about; there is .*'train': 2"):
        ask(run_captions, asker, f'--captions={folder}', '--split=test')
    with pytest.raises(BadInput, match='--shots=3: there are 2 examples in the split train'):
        ask(run_captions, asker, f'--captions={folder}', '--shots=3')


def test_what_training_held_out_is_the_split_val(asker, tmp_path, monkeypatch):
    """Of a folder without splits: by the same rule as train.py --folders=held_share=0.5."""
    names = [f'thing {k}' for k in range(40)]
    folder = pictures_in(tmp_path / 'whole', [f'{name}.png' for name in names])
    for name in names:
        (folder / f'{name}.txt').write_text('a ' + name)
    assert asker.pairs(str(folder), Report()).splits == {'train': 40}
    with pytest.raises(BadInput, match="no split 'val'"):
        asker.pairs(str(folder), Report(), 'val')
    monkeypatch.setattr(asker, 'held_share', 0.5)
    held = {item.text for item in asker.pairs(str(folder), Report(), 'val').items}
    rest = {item.text for item in asker.pairs(str(folder), Report(), 'train').items}
    assert 10 < len(held) < 30 and not held & rest and len(held | rest) == 40
    seen = answers_by(asker, monkeypatch, {'t': 'x'})
    ask(run_captions, asker, f'--captions={folder}', f'--out_dir={tmp_path}')
    assert {e.query.answer for e in seen} == held


def test_the_checkpoint_says_what_was_held_out():
    assert load('assets/pictures.pt')[0].held_share == 0.1 and load('assets/nano.pt')[0].held_share == 0.0


@pytest.mark.parametrize('keys', [[1], 'x', {'held_share': 'much'}, {'held_share': 7.0}])
def test_a_checkpoint_of_odd_keys_held_out_nothing(keys, out, tmp_path):
    content = torch.load(out / 'flamingo.pt', weights_only=True)
    rest = {k: v for k, v in content.items() if k not in ('format', 'kind', 'keys')}
    checkpoint.save(str(tmp_path / 'flamingo.pt'), 'flamingo', **rest, keys=keys)
    assert load(str(tmp_path / 'flamingo.pt'))[0].held_share == 0.0
