"""What a folder of pictures asks for: what is chosen, what is left as given, and what is refused before
training."""
import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import train
from data import CAPTION_PROMPT, Example, Given, Media
from kit.cli import configure
from kit.copying import wire_copying
from kit.episode import Episode
from kit.files import BadInput
from kit.run import class_words
from kit.run.fit import fit, look
from kit.run.keys import check_values
from kit.run.run import Run
from kit.run.shared_words import share_words
from kit.sources.base import FolderSpec
from kit.sources.fewshot import LOOKS_PROMPT
from kit.sources.forms import open_folder
from kit.tasks.asker import load, ROOT
from kit.tasks.controls import blank_support
from model import GPT

COLOURS = 'red green blue gold pink grey cyan plum navy teal rust lime'.split()


def folder(root, captions, each=1, split=None):
    """Pictures of noise with these captions, `each` of them that many times, as metadata.jsonl."""
    rng, lines = np.random.default_rng(0), []
    (root / 'images').mkdir(parents=True)
    for k, text in enumerate(captions):
        for j in range(each):
            name = f'images/{k}-{j}.png'
            Image.fromarray(rng.integers(256, size=(12, 12, 3), dtype=np.uint8)).save(root / name)
            row = {'file_name': name, 'text': text} | ({'split': split(k)} if split else {})
            lines.append(json.dumps(row))
    (root / 'metadata.jsonl').write_text('\n'.join(lines))
    return str(root)


def found_in(path, **spec):
    return look(open_folder(path, FolderSpec(**spec), split=None))


def test_it_counts_what_is_there(tmp_path):
    captions = [f'a {colour} hat' for colour in COLOURS]
    found = found_in(folder(tmp_path / 'a', captions, 3, lambda k: 'train' if k else 'val'))
    assert (found.pictures, found.things, found.held) == (33, 11, (3, 1))
    assert found.again == 1 and found.words == 13 and found.length == 3 and not found.silent
    assert found_in(folder(tmp_path / 'b', captions)).again == 0


def test_what_it_chooses_follows_from_the_folder(tmp_path):
    captions = [f'a {colour} hat' for colour in COLOURS]
    several, lines = fit(found_in(folder(tmp_path / 'several', captions, 3)))
    single, others = fit(found_in(folder(tmp_path / 'single', captions)))
    assert len(lines) == len(others) == 5
    assert 'different pictures' in lines[2] and 'variants' in others[2]
    assert several['keep_captions'] and several['words'] == 2
    assert several['vision_batch'] <= 36 and single['vision_batch'] <= 12  # never more than there is
    assert 'few' in lines[4]
    for name in several:
        assert name in vars(configure(train.KEYS, []))  # each of them is a key


def test_names_that_are_numbers_are_replaced_by_words(tmp_path):
    for k in range(6):
        (tmp_path / f'character{k:02}').mkdir()
        for j in range(2):
            Image.new('RGB', (8, 8), (40 * k, j, 0)).save(tmp_path / f'character{k:02}' / f'{j}.png')
    keys, lines = fit(found_in(str(tmp_path)))
    assert not keys['keep_captions'] and 'numbers only' in lines[1]


@pytest.mark.parametrize('captions, said', [
    (['a hat'], 'a single picture'),
    (['a hat'] * 5, 'are the same'),
    ([f'{k}-0' for k in range(5)], 'names of their files'),
])
def test_nothing_to_learn_is_said_before_training(tmp_path, captions, said):
    with pytest.raises(BadInput, match=said):
        found_in(folder(tmp_path / 'a', captions))


def test_the_command_refuses_and_writes_nothing(tmp_path):
    path = folder(tmp_path / 'a', ['a hat'] * 5)
    done = subprocess.run([sys.executable, 'train.py', 'config/pictures.py', f'--align={path}',
                           f'--out_dir={tmp_path}/out'], capture_output=True, text=True)
    assert done.returncode == 2 and 'are the same' in done.stderr and done.stderr.count('\n') == 1
    assert not (tmp_path / 'out' / 'training.pt').exists()


def test_a_share_of_the_things_is_held_out_whole(tmp_path):
    captions = [f'thing {k}' for k in range(200)]
    path = folder(tmp_path / 'a', captions, 2)
    pairs = open_folder(path, FolderSpec(held_share=0.25), split=None)
    held = {item.text for item in pairs.items if item.split == 'val'}
    assert 30 <= len(held) <= 70 and pairs.splits['val'] == 2 * len(held)  # all pictures of a thing
    assert 'val' not in open_folder(path, split=None).splits
    divided = folder(tmp_path / 'b', captions, 1, lambda k: 'train' if k else 'test')
    assert open_folder(divided, FolderSpec(held_share=0.25), split=None).splits == {'test': 1, 'train': 199}


def run_of(path, out, *arguments):
    config = configure(train.KEYS, [
        'config/pictures.py', f'--align={path}', f'--out_dir={out}', '--device=cpu', '--image_size=32',
        '--eval_n=2', *arguments])
    check_values(config, train.KEYS)
    return Run(config, train.KEYS)


def test_what_is_given_stays_and_words_stand_beside_captions(tmp_path, capsys):
    captions = [f'a {colour} hat' for colour in COLOURS]
    path = folder(tmp_path / 'a', captions, 3)
    run = run_of(path, tmp_path / 'out', '--vision_iters=7', '--folders=ways=3 word_centres=3 held_share=0.2')
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert (run.config.vision_iters, run.config.ways, run.config.words) == (7, 3, 2)
    page = lambda i: run.sources['m3w'].document(i).pieces
    said = lambda pieces: [str(p) for p in pieces if not isinstance(p, Media)]
    assert CAPTION_PROMPT in said(page(1)) and LOOKS_PROMPT not in said(page(1))  # it cannot see yet
    names = {item.label: f'Ba {k}' for k, item in enumerate(class_words.items_of(run))}
    class_words.call(run, names)
    assert {item.text for item in class_words.items_of(run)} == set(captions)
    pages = [said(page(i)) for i in range(40)]
    looks = [p for p in pages if LOOKS_PROMPT in p]
    assert 0 < len(looks) < 40
    for p in looks:  # one page says what things look like, another what they are
        assert CAPTION_PROMPT not in p and all(text.strip() in {LOOKS_PROMPT, *names.values()} for text in p)
    assert any(f'{LOOKS_PROMPT} Ba' in run.sources['text'].text(i) for i in range(60))


def test_a_folder_must_be_given(tmp_path):
    with pytest.raises(BadInput, match='--align=FOLDER'):
        run_of('', tmp_path / 'out')


def test_a_language_model_begins_with_the_words_of_the_text_tower():
    torch.manual_seed(0)
    lm = wire_copying(GPT(50, 2, 64, 2, 32))
    before, table = lm.wte.weight.detach().clone(), torch.randn(50, 24)
    words = torch.tensor([3, 7, 8, 20, 41])
    share_words(lm, table, words)
    after = lm.wte.weight.detach()
    others = [k for k in range(50) if k not in words.tolist()]
    assert torch.equal(after[others], before[others])
    assert torch.allclose(after.norm(dim=1), before.norm(dim=1), rtol=1e-4)
    blind = (before == 0).all(0)
    assert blind.any() and (after[:, blind] == 0).all()  # where positions stand
    alike = lambda x: F.normalize(x, dim=1) @ F.normalize(x, dim=1).T
    seen = table[words] - table[words].mean(0)
    assert torch.allclose(alike(after[words]), alike(seen), atol=1e-4)  # as near as in the tower


def test_some_things_are_called_by_the_captions_of_others(tmp_path):
    """Only where the encoder's words stand beside the captions; at its first showing a name is given."""
    captions = [f'a {colour} hat' for colour in COLOURS]
    run = run_of(folder(tmp_path / 'a', captions, 3), tmp_path / 'out', '--folders=word_centres=3')
    pages, rng = run.sources['m3w'].parts[0], np.random.default_rng
    plain = [{name for *_, name in pages.deal(rng(i), 4)} for i in range(200)]
    assert not set.union(*plain) & {*COLOURS, 'hat'}
    class_words.call(run, {item.label: 'Ba Po' for item in class_words.items_of(run)})
    called = [{name for *_, name in pages.deal(rng(i), 4)} for i in range(200)]
    assert 20 < sum(bool(names & {*COLOURS, 'hat'}) for names in called) < 90
    for i in range(4000, 4040):  # naming pages come after those of captions
        said, given = [], []
        for piece in pages.document(i, rng(i)).pieces:
            if isinstance(piece, str) and piece.strip() not in (CAPTION_PROMPT, LOOKS_PROMPT):
                said.append(piece.strip())
                given.append(isinstance(piece, Given))
        if any(given):
            assert all(g == (name not in said[:k]) for k, (name, g) in enumerate(zip(said, given)))


def test_half_of_the_naming_pages_have_things_that_look_alike(tmp_path):
    captions = [f'a {colour} hat' for colour in COLOURS]
    run = run_of(folder(tmp_path / 'a', captions, 3), tmp_path / 'out', '--folders=word_centres=3')
    pages, rng = run.sources['m3w'].parts[0], np.random.default_rng
    kind = {text: ('Ba' if k < 6 else 'Po') for k, text in enumerate(captions)}
    class_words.call(run, {text: f'{kind[text]} Xa' for text in captions})
    of = lambda page: {kind[pages.pairs.items[k].text] for k, *_ in page}
    said = [of(pages.deal(rng(i), 4, alike=True)) for i in range(50)]
    assert all(len(kinds) == 1 for kinds in said) and len(set.union(*said)) == 2
    mixed = [of(pages.deal(rng(i), 4)) for i in range(50)]
    assert sum(len(kinds) == 2 for kinds in mixed) > 25


def test_the_shipped_model_names_real_things_in_a_hand_it_never_saw():
    """assets/pictures.pt, fresh from a clone: of each two of six things, shown once, which is the other
    drawing?"""
    asker, _ = load(os.path.join(ROOT, 'assets', 'pictures.pt'))
    folder = os.path.join(ROOT, 'assets', 'pictures')
    at = lambda name: Example(asker.media(os.path.join(folder, f'{name}.png')), CAPTION_PROMPT, '')
    things, episodes = ('elephant', 'tent', 'dragon', 'eggplant', 'volleyball', 'telephone'), []
    for pair in itertools.permutations(things, 2):
        for asked, name in zip(pair, ('dax', 'wug')):
            support = [replace(at(thing), answer=said) for thing, said in zip(pair, ('dax', 'wug'))]
            episodes.append(Episode(support, replace(at(asked + '_2'), answer=name), choices=['dax', 'wug']))
    right = [answer['correct'] for answer in asker.answer(episodes)]
    blind = [answer['correct'] for answer in asker.answer([blank_support(e) for e in episodes])]
    assert sum(right) >= 40 and 22 <= sum(blind) <= 38  # of 60
