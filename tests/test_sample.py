"""Prompting: prompts from text, examples by similarity."""
import json
import os
from dataclasses import replace

import pytest
import torch
from PIL import Image
from prompting import loaded, out, run  # noqa: F401 (fixtures)

import evaluate
from data import Document, EndOfChunk, Example, Given, Media
from kit.episode import Episode
from kit.cli import configure
from kit.files import BadInput
from kit.sources.base import Pairs, Report
from kit.sources.forms import open_folder
from kit.tasks import rices
from kit.tasks.asker import load
from kit.tasks.encoders import embed_media
from kit.tasks.files import read_episodes
from kit.tasks.official import read_captions
from kit.tasks.prompts import as_text, file_media, parse_prompt


def test_a_prompt_is_texts_and_pictures(out):
    path = out / 'pictures' / 'a.png'
    pieces = parse_prompt(f'<image:{path}>Output: dax<EOC>so <EOC x> <image:{path}>Output:').pieces
    assert [type(p) for p in pieces] == [Media, Given, EndOfChunk, Given, Media, Given]
    assert pieces[1] == 'Output: dax' and pieces[3] == 'so <EOC x> '
    assert as_text(Document(pieces, 'prompt')).startswith(f'<image:{path}>Output: dax<EOC>so')


@pytest.mark.parametrize('text, message', [('<image>Output:', '1 <image> tags and 0 pictures'),
                                           ('<image:a.png><image>', '2 <image> tags and 1 pictures'),
                                           ('<image:>x', 'names no file'), ('', 'is empty')])
def test_prompts_that_cannot_be_shown(text, message):
    with pytest.raises(BadInput, match=message):
        parse_prompt(text)



def test_a_prompt_without_any_picture_is_refused_with_the_numbers(monkeypatch, capsys, loaded, out):
    with pytest.raises(BadInput, match='tokens and 0 pictures'):
        run(monkeypatch, capsys, loaded, f'--out_dir={out}', '--prompt=Output:')


# ---------------------------------------------------------------------------------------------
# RICES


def test_the_nearest_comes_last_and_the_query_is_not_among_them(loaded, out):
    asker, contrastive = loaded
    pairs = open_folder(str(out / 'pictures'), split=None)
    items, embeddings = rices.folder_embeddings(pairs, contrastive, asker.features, str(out / 'r.pt'),
                                                Report())
    assert embeddings.norm(dim=-1).tolist() == pytest.approx([1.0] * 4, abs=1e-5)
    query = file_media(str(out / 'pictures' / 'q.png'))
    found = rices.nearest(query, items, embeddings, contrastive, asker.features, 3)
    own = embed_media(contrastive.vision, asker.features, [query])[0]
    alike = [float(own @ embed_media(contrastive.vision, asker.features, [pairs.media(k)])[0]) for k in found]
    assert {items[k].text for k in found} == {'thing a', 'thing b', 'thing c'} and alike == sorted(alike)
    assert items[found[-1]].text == 'thing a'  # the other red one
    [best] = rices.nearest(query, items, embeddings, contrastive, asker.features, 1)
    assert items[best].text == 'thing a'


def test_a_picture_with_many_captions_is_one_example(loaded, out):
    asker, contrastive = loaded
    pairs = open_folder(str(out / 'pictures'), split=None)
    twice = [replace(item, text=f'{item.text}, {k}') for item in pairs.items for k in range(3)]
    items, embeddings = rices.folder_embeddings(Pairs(twice, 'x'), contrastive, asker.features,
                                                str(out / 'r3.pt'), Report())
    query = file_media(str(out / 'pictures' / 'q.png'))
    said = [items[k].text for k in rices.nearest(query, items, embeddings, contrastive, asker.features, 8)]
    assert len(said) == 3 and all(text.endswith(', 0') for text in said) and said[-1] == 'thing a, 0'


def test_embeddings_are_kept_until_a_picture_or_the_encoder_changes(loaded, out, monkeypatch, tmp_path):
    asker, contrastive = loaded
    asked, embed = [], embed_media
    monkeypatch.setattr(
        rices, 'embed_media',
        lambda vision, features, media: asked.append(len(media)) or embed(vision, features, media))
    cache = str(tmp_path / 'r.pt')

    def ask(contrastive=contrastive):
        asked.clear()
        found = rices.folder_embeddings(open_folder(str(out / 'pictures'), split=None), contrastive,
                                        asker.features, cache, Report())
        return sum(asked), found
    n, (_, first) = ask()
    assert n == 4
    n, (_, again) = ask()
    assert n == 0 and torch.equal(first, again)
    Image.new('RGB', (33, 30), 'black').save(out / 'pictures' / 'c.png')
    n, (_, changed) = ask()
    assert n == 1 and not torch.allclose(first[2], changed[2]) and torch.equal(first[0], changed[0])
    with open(cache, 'r+b') as f:
        f.truncate(100)
    assert ask()[0] == 4  # damaged: made anew
    with torch.no_grad():
        contrastive.vision.projection.weight[0, 0] += 0.5
    assert ask()[0] == 4
    with torch.no_grad():
        contrastive.vision.projection.weight[0, 0] -= 0.5


def test_rices_from_the_command_line(monkeypatch, capsys, loaded, out):
    q = out / 'pictures' / 'q.png'
    said = json.loads(
        run(monkeypatch, capsys, loaded, f'--out_dir={out}', f'--prompt=<image:{q}>Output:',
            f'--rices={out}/pictures', '--shots=2', '--json=True').out)
    assert said['prompt'].count('<image:') == 3 and said['prompt'].count(
        '<EOC>') == 2 and said['prompt'].endswith(f'<image:{q}>Output:')
    assert 'thing a<EOC>' in said['prompt'] and any(name.startswith('rices-') for name in os.listdir(out))
    with pytest.raises(BadInput, match='--rices'):
        run(monkeypatch, capsys, loaded, f'--out_dir={out}', f'--rices={out}/pictures')


def test_a_prompt_that_begins_with_text_begins_a_new_example(monkeypatch, capsys, loaded, out):
    """After the examples of RICES: the last of them ends with <EOC>, as it would before a picture."""
    q = out / 'pictures' / 'q.png'
    said = run(monkeypatch, capsys, loaded, f'--out_dir={out}', f'--prompt=Now this: <image:{q}>Output:',
               f'--rices={out}/pictures', '--shots=2', '--json=True').out
    assert 'Output: thing a<EOC>Now this: <EOC><image:' in json.loads(said)['prompt']


# ---------------------------------------------------------------------------------------------
# The end of a prompt


ENDS = ['', ' ', '  ', '\n', '\r\n', ' \r\n\n', '\t']


def test_the_end_of_a_prompt_is_trimmed_wherever_it_comes_from(monkeypatch, capsys, loaded, out, tmp_path):
    """As a key, as a file, after RICES' examples; written and chosen from: the answer is that of the trimmed
    prompt."""
    prompt = f'<image:{out}/pictures/a.png>Output: a red circle.<EOC><image:{out}/pictures/b.png>Output:'
    answers = {}
    for number, end in enumerate(ENDS):
        (tmp_path / f'{number}.txt').write_bytes((prompt + end).encode())
        for how, given in (('key', f'--prompt={prompt}{end}'), ('file',
                                                                f'--prompt_file={tmp_path}/{number}.txt')):
            for more in (['--choices=a blue circle.|a red circle.'], [],
                         [f'--rices={out}/pictures', '--shots=1']):
                said = json.loads(
                    run(monkeypatch, capsys, loaded, f'--out_dir={out}', given, '--json=True', *more).out)
                said.pop('prompt', None)
                answers.setdefault(tuple(more), []).append(said)
    for said in answers.values():
        assert len(said) == 2 * len(ENDS) and all(other == said[0] for other in said)


# ---------------------------------------------------------------------------------------------
# Clips with more frames than in training


def clip(folder, n, name='clip', seconds=None):
    """n frames, each of another grey: a folder, or a GIF that lasts so many seconds."""
    frames = [Image.new('RGB', (16, 16), (8 * k + 4,) * 3) for k in range(n)]
    if seconds is not None:
        path = folder / f'{name}.gif'
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=int(1000 * seconds / n))
        return path
    (folder / name).mkdir()
    for k, frame in enumerate(frames):
        frame.save(folder / name / f'{k}.png')
    return folder / name


@pytest.mark.parametrize('n_frame, fps, of_folder, of_gif', [(0, 1.0, 8, 8), (30, 3.0, 30, 30),
                                                             (30, 1.0, 30, 10), (4, 1.0, 4, 4),
                                                             (30, 0.5, 30, 5)])
def test_clips_have_as_many_frames_as_are_wanted(out, tmp_path, n_frame, fps, of_folder, of_gif):
    """In prompts, episodes, COCO files and folders alike: 8 as in training, or 30 of ten seconds at 3 a
    second."""
    asker, _ = load(str(out / 'flamingo.pt'), n_frame=n_frame, fps=fps)
    folder, gif = clip(tmp_path, 40), clip(tmp_path, 30, seconds=10)
    line = {'support': [], 'query': {'image': 'clip.gif', 'prompt': 'Output:'}, 'answer': 'x'}
    (tmp_path / 'e.jsonl').write_text(json.dumps(line))
    (tmp_path / 'c.json').write_text(json.dumps({'images': [{'id': 1, 'file_name': 'clip.gif'}],
                                                 'annotations': [{'image_id': 1, 'caption': 'it fades'}]}))
    (tmp_path / 'metadata.jsonl').write_text(json.dumps({'file_name': 'clip.gif', 'text': 'it fades'}))
    prompt = parse_prompt(f'<image:{folder}>Output: x<EOC><image:{gif}>Output:', media=asker.media)
    [episode] = read_episodes(str(tmp_path / 'e.jsonl'), Report(), asker.media)
    [asked] = read_captions(str(tmp_path / 'c.json'), str(tmp_path), Report(), asker.media)
    pairs = asker.pairs(str(tmp_path), Report())
    shown = [prompt.pieces[0], prompt.pieces[3], episode.query.media, asked.example.media, pairs.media(0)]
    pixels = [asker.features.pixels(media) for media in shown]
    assert [len(p) for p in pixels] == [of_folder] + [of_gif] * 4
    assert all(torch.equal(p, pixels[1]) for p in pixels[2:])
    grey = pixels[1][:, 0].float().mean((1, 2))
    assert (grey.diff() > 0).all()  # in their order


def test_more_frames_reach_the_model(out, tmp_path):
    """Frames beyond those of training change the answer's probability: they are read, with stretched
    embeddings."""
    folder, answers = clip(tmp_path, 30), []
    for n_frame in (8, 30):
        asker, _ = load(str(out / 'flamingo.pt'), n_frame=n_frame)
        prompts = asker.prompts([parse_prompt(f'<image:{folder}>Output:', media=asker.media)])
        assert prompts['frame_mask'].shape == (1, 1, n_frame)
        answers.append(
            asker.choose([Episode([], Example(asker.media(folder), 'Output:', 'a'), ['a', 'b'])])[0]['a'])
    assert answers[0] != pytest.approx(answers[1], abs=1e-6)


def test_keys_of_frames(monkeypatch, capsys, out):
    for argument in ('--n_frame=-1', '--n_frame=100000', '--fps=0', '--fps=-2'):
        with pytest.raises(BadInput, match=argument.split('=')[0]):
            run(monkeypatch, capsys, None, f'--out_dir={out}', argument)
        with pytest.raises(BadInput, match=argument.split('=')[0]):
            evaluate.check_values(configure(evaluate.KEYS, [argument]))
