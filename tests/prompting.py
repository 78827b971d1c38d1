"""A tiny Flamingo and a folder of four plain pictures: for tests of prompting."""
import json

import pytest
from PIL import Image
from tiny_model import save_tiny

import sample
from kit.tasks.asker import load

COLOURS = {'a': 'red', 'b': 'blue', 'c': 'green', 'q': (250, 10, 10)}


@pytest.fixture(scope='module')
def out(tmp_path_factory):
    """A folder with a flamingo.pt, and pictures/ with captions "thing a" …"""
    folder = tmp_path_factory.mktemp('out')
    save_tiny(folder / 'flamingo.pt')
    (folder / 'pictures').mkdir()
    with open(folder / 'pictures' / 'metadata.jsonl', 'w') as f:
        for name, colour in COLOURS.items():
            Image.new('RGB', (40, 30), colour).save(folder / 'pictures' / f'{name}.png')
            f.write(json.dumps({'file_name': f'{name}.png', 'text': f'thing {name}'}) + '\n')
    return folder


@pytest.fixture(scope='module')
def loaded(out):
    """(Asker, Contrastive)"""
    return load(str(out / 'flamingo.pt'))


def run(monkeypatch, capsys, loaded, *argv):
    """sample.py in this process, with the model that is there."""
    monkeypatch.setattr('sys.argv',
                        ['sample.py', '--device=cpu', '--max_new_tokens=3', '--beam_size=1', *argv])
    monkeypatch.setattr(sample, 'load', lambda *_, **__: loaded)
    sample.main()
    return capsys.readouterr()
