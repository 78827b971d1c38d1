"""A tiny Flamingo to put questions to, pictures to ask about, and evaluate.py's keys: for tests of
evaluation."""
import pytest
import torch
from PIL import Image
from tiny_model import save_tiny

import evaluate
from kit.cli import configure
from kit.sources.base import Report
from kit.tasks.asker import load


@pytest.fixture(scope='module')
def out(tmp_path_factory):
    """A folder with a flamingo.pt."""
    folder = tmp_path_factory.mktemp('out')
    save_tiny(folder / 'flamingo.pt')
    return folder


@pytest.fixture(scope='module')
def loaded(out):
    """(Asker, Contrastive)"""
    torch.set_num_threads(1)
    return load(str(out / 'flamingo.pt'))


@pytest.fixture()
def asker(loaded):
    a = loaded[0]
    a.beam_size, a.max_new_tokens, a.ensemble, a.batch_size, a.fps = 1, 3, 1, 16, 1.0
    return a


def config(*argv):
    return configure(evaluate.KEYS, list(argv))


def ask(run, asker, *argv, contrastive=None, report=None):
    """What evaluate.py would do with these arguments -> rows. run: one of evaluate.SOURCES."""
    return run(config(*argv), asker, contrastive, Report() if report is None else report)


def pictures_in(folder, names):
    """Small pictures of different colours."""
    folder.mkdir(exist_ok=True, parents=True)
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        Image.new('RGB', (20, 20), (40 * i % 255, 200 - 30 * i % 200, 90)).save(folder / name)
    return folder
