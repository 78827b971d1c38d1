"""Prompting: prompts from text, examples by similarity, a chat that never reads its history twice, attention on pictures."""
import io
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import save_tiny

import sample
from data import Document, EndOfChunk, Given, Media
from kit.files import BadInput, BadItem
from kit.sources.base import Pairs, Report
from kit.sources.forms import open_folder
from kit.tasks import attention, rices
from kit.tasks.asker import load
from kit.tasks.chat import Chat, chat_turn, run_chat
from kit.tasks.encoders import embed_media
from kit.tasks.prompts import as_text, file_media, parse_prompt
from kit.world.draw import clip_media, picture_media
from resampler import ResamplerLayer, taken_apart
from rounding import LOG_P
from xattn import GatedCrossAttention, route_tokens

COLOURS = {'a': 'red', 'b': 'blue', 'c': 'green', 'q': (250, 10, 10)}


@pytest.fixture(scope='module')
def out(tmp_path_factory):
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
    return load(str(out / 'flamingo.pt'))


# ---------------------------------------------------------------------------------------------
# Prompts


def test_a_prompt_is_texts_and_pictures(out):
    path = out / 'pictures' / 'a.png'
    pieces = parse_prompt(f'<image:{path}>Output: dax<EOC>so <EOC x> <image:{path}>Output:').pieces
    assert [type(p) for p in pieces] == [Media, Given, EndOfChunk, Given, Media, Given]
    assert pieces[1] == 'Output: dax' and pieces[3] == 'so <EOC x> '
    assert as_text(Document(pieces, 'prompt')).startswith(f'<image:{path}>Output: dax<EOC>so')


@pytest.mark.parametrize('text, message', [('<image>Output:', '1 <image> tags and 0 pictures'), ('<image:a.png><image>', '2 <image> tags and 1 pictures'),
                                           ('<image:>x', 'names no file'), ('', 'is empty')])
def test_prompts_that_cannot_be_shown(text, message):
    with pytest.raises(BadInput, match=message):
        parse_prompt(text)


def run(monkeypatch, capsys, loaded, *argv):
    monkeypatch.setattr('sys.argv', ['sample.py', '--device=cpu', '--max_new_tokens=3', '--beam_size=1', *argv])
    monkeypatch.setattr(sample, 'load', lambda *_: loaded)
    sample.main()
    return capsys.readouterr()


def test_a_prompt_without_any_picture_is_refused_with_the_numbers(monkeypatch, capsys, loaded, out):
    with pytest.raises(BadInput, match='tokens and 0 pictures'):
        run(monkeypatch, capsys, loaded, f'--out_dir={out}', '--prompt=Output:')


# ---------------------------------------------------------------------------------------------
# RICES


def test_the_nearest_comes_last_and_the_query_is_not_among_them(loaded, out):
    asker, contrastive = loaded
    pairs = open_folder(str(out / 'pictures'), split=None)
    items, embeddings = rices.folder_embeddings(pairs, contrastive, asker.features, str(out / 'r.pt'), Report())
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
    items, embeddings = rices.folder_embeddings(Pairs(twice, 'x'), contrastive, asker.features, str(out / 'r3.pt'), Report())
    query = file_media(str(out / 'pictures' / 'q.png'))
    said = [items[k].text for k in rices.nearest(query, items, embeddings, contrastive, asker.features, 8)]
    assert len(said) == 3 and all(text.endswith(', 0') for text in said) and said[-1] == 'thing a, 0'


def test_embeddings_are_kept_until_a_picture_or_the_encoder_changes(loaded, out, monkeypatch, tmp_path):
    asker, contrastive = loaded
    asked, embed = [], embed_media
    monkeypatch.setattr(rices, 'embed_media', lambda vision, features, media: asked.append(len(media)) or embed(vision, features, media))
    cache = str(tmp_path / 'r.pt')

    def ask(contrastive=contrastive):
        asked.clear()
        found = rices.folder_embeddings(open_folder(str(out / 'pictures'), split=None), contrastive, asker.features, cache, Report())
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
    said = json.loads(run(monkeypatch, capsys, loaded, f'--out_dir={out}', f'--prompt=<image:{q}>Output:', f'--rices={out}/pictures', '--shots=2', '--json=True').out)
    assert said['prompt'].count('<image:') == 3 and said['prompt'].count('<EOC>') == 2 and said['prompt'].endswith(f'<image:{q}>Output:')
    assert 'thing a<EOC>' in said['prompt'] and any(name.startswith('rices-') for name in os.listdir(out))
    with pytest.raises(BadInput, match='--rices'):
        run(monkeypatch, capsys, loaded, f'--out_dir={out}', f'--rices={out}/pictures')


# ---------------------------------------------------------------------------------------------
# Chat


@pytest.fixture()
def chat(loaded):
    return Chat(loaded[0], max_new_tokens=4, beam_size=2)


def next_word(chat):
    """What the model would say after the chat: from the cache, and read from the beginning."""
    model, ids = chat.model, chat.tokenizer.encode(' and')
    length = chat.cache.length
    cached = chat.read(ids, chat.n_image)
    chat.cache.keep(length, chat.n_image)
    prompts = chat.asker.prompts([Document(chat.document().pieces + [Given(' and')], 'prompt')])
    plain, _ = model(prompts['tokens'], prompts['image_index'], features=prompts['features'], frame_mask=prompts['frame_mask'])
    return cached, plain[:, -1]


def test_a_chat_says_what_reading_it_from_the_beginning_says(chat):
    for step in (lambda: chat.ask('is anybody there?'), lambda: chat.image(picture_media('held', 1)), lambda: chat.ask('what color is it?'),
                 lambda: chat.image(picture_media('held', 2)), lambda: chat.ask('and now?'), lambda: chat.ask('what shape is it?'), chat.undo):
        step()
        cached, plain = next_word(chat)
        assert torch.allclose(cached, plain, atol=LOG_P)
    assert chat.n_image == 2 and len(chat.before) == 5


@pytest.mark.parametrize('attend', ['last', 'all_previous'])
def test_the_cache_of_a_chat_keeps_all_pictures(tmp_path, attend):
    """An answer needs one picture, and the chat may go back to an earlier one: an answer takes none away, of either kind."""
    save_tiny(tmp_path / 'm.pt', attend=attend)
    chat = Chat(load(str(tmp_path / 'm.pt'))[0], max_new_tokens=2)
    for n in (1, 2, 3):
        chat.image(picture_media('held', n))
        chat.ask('what is it?')
        assert {x.shape[1] for kv in chat.cache.visual for x in kv} == {n} == {chat.cache.n_image}
    cached, plain = next_word(chat)
    assert torch.allclose(cached, plain, atol=LOG_P)
    for n in (2, 2, 1, 1):  # the third question and picture are taken back, then the second
        chat.undo()
        assert chat.n_image == chat.cache.n_image
    assert chat.n_image == 1 and torch.allclose(*next_word(chat), atol=LOG_P)


def test_a_file_that_changed_is_looked_at_anew(chat, tmp_path):
    keys = []
    for colour in ('red', 'blue', 'blue'):
        Image.new('RGB', (20, 20), colour).save(tmp_path / 'camera.png')
        chat.image(file_media(tmp_path / 'camera.png'))
        keys.append(chat.cache.visual[0][0][:, -1].clone())
    assert not torch.allclose(keys[0], keys[1]) and torch.equal(keys[1], keys[2])


def test_the_answers_are_those_of_generate(chat):
    chat.image(picture_media('held', 3))
    answer = chat.ask('what color is it?')
    [(ids, _)] = chat.model.generate(max_new_tokens=4, beam_size=2, **chat.asker.prompts([Document(chat.pieces[:-1], 'prompt')]))
    assert answer == chat.tokenizer.decode(ids).strip() and chat.pieces[-1] == chat.tokenizer.decode(ids)


def test_history_is_not_read_again(chat, monkeypatch):
    read = []
    stream = chat.model.stream
    monkeypatch.setattr(chat.model, 'stream', lambda tokens, *rest, **more: read.append(tokens.shape[1]) or stream(tokens, *rest, **more))
    chat.image(picture_media('held', 1))
    chat.ask('what color is it?')
    read.clear()
    chat.ask('why?')
    asked, said = len(chat.tokenizer.encode(' Question: why? Answer:')), len(chat.tokenizer.encode(chat.pieces[-1]))
    assert read[0] == asked and sum(read[1:]) <= 3 + said  # the question, then the answer: word by word, and once more to keep it


def test_undo_forgets_the_last_step_and_nothing_else(chat):
    chat.image(picture_media('held', 1))
    chat.ask('what color is it?')
    before = next_word(chat)[0]
    chat.image(picture_media('held', 2))
    chat.ask('what color is it?')
    chat.undo()
    chat.undo()
    assert torch.allclose(next_word(chat)[0], before, atol=LOG_P)
    chat.undo()
    chat.undo()
    with pytest.raises(BadInput, match='undo'):
        chat.undo()
    chat.reset()
    assert chat.pieces == [] and int(chat.cache.length) == 1


@pytest.mark.parametrize('line, message', [('/image nowhere.png', 'missing'), ('/image', '/image PATH'), ('/bad', '/image PATH'), ('word ' * 300, 'context of 256')])
def test_a_command_that_fails_leaves_the_chat_as_it_was(chat, out, line, message):
    chat.image(picture_media('held', 1))
    chat.ask('what color is it?')
    pieces, length, steps, before = list(chat.pieces), int(chat.cache.length), len(chat.before), next_word(chat)[0]
    with pytest.raises((BadInput, BadItem), match=message):
        chat_turn(chat, line, str(out))
    assert (chat.pieces, int(chat.cache.length), len(chat.before)) == (pieces, length, steps)
    assert torch.allclose(next_word(chat)[0], before, atol=LOG_P)


def test_a_chat_goes_on_after_lines_of_any_kind(chat, out, monkeypatch, capsys):
    """Each gets one line, on stderr where it is a mistake, and none moves the cursor."""
    lines = [f'/image {out}/pictures/a.png', 'what is \x1b[2J \u202e it? \ufffd', '/image /dev/zero', '/image \0', '', '/image', '/bad', '/undo', '/undo', '/undo', '/reset', '/quit', 'never']
    monkeypatch.setattr('sys.stdin', io.StringIO('\n'.join(lines)))
    run_chat(chat, str(out))
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 5 and printed.out.splitlines()[0] == 'picture 1'
    errors = [line for line in printed.err.splitlines() if 'error: ' in line]
    assert len(errors) == 5 == len(printed.err.splitlines()) - 1 and '\x1b' not in printed.out + printed.err and '\u202e' not in printed.out + printed.err
    assert chat.pieces == []


def test_a_chat_can_be_saved_and_read_again(chat, out):
    path = out / 'pictures' / 'a.png'
    assert chat_turn(chat, f'/image {path}', str(out)) == 'picture 1'
    chat_turn(chat, 'what is it?', str(out))
    chat_turn(chat, '/save', str(out))
    assert Image.open(out / 'chat.png').width > 50
    saved = open(out / 'chat.txt').read()
    assert saved.startswith(f'<image:{path}>Question: what is it? Answer:')
    assert len(parse_prompt(saved.replace('<EOC>', '')).pieces) == 2
    assert chat_turn(chat, '/reset', str(out)) and chat.pieces == []


# ---------------------------------------------------------------------------------------------
# Attention


def encode_clip(asker):
    """A picture, then a clip of eight frames."""
    p = asker.prompts([Document([picture_media('held', 1), Given('Output: dax'), clip_media('held', 2), Given('Output:')], 'prompt')])
    return attention.look(asker.model, p['tokens'], p['image_index'], p['features'], p['frame_mask'])


@pytest.mark.parametrize('attend', ['last', 'all_previous'])
def test_each_word_looks_at_its_own_picture(tmp_path, attend):
    save_tiny(tmp_path / 'm.pt', attend=attend)
    asker, _ = load(str(tmp_path / 'm.pt'))
    document = Document([Given('hello '), picture_media('held', 1), Given('Output: dax'), picture_media('held', 2), Given('Output:')], 'prompt')
    p = asker.prompts([document])
    weights = attention.look(asker.model, p['tokens'], p['image_index'], p['features'], p['frame_mask'])  # (T,N,F,S)
    index = p['image_index'][0]
    total = weights.sum((1, 2, 3))
    assert torch.allclose(total, (index > 0).float(), atol=1e-5)
    by_image = weights.sum((2, 3))
    assert (by_image[index == 1][:, 1] == 0).all() and (by_image[index == 1][:, 0] > 0.99).all()
    second = by_image[index == 2]
    clip = encode_clip(asker)
    assert clip.shape[2] == 8 and torch.allclose(clip.sum((2, 3))[-1], torch.tensor([0.0, 1.0]) if attend == 'last' else clip.sum((2, 3))[-1], atol=1e-5)
    assert (clip[:, 0, 1:] == 0).all()  # a picture beside a clip has one frame
    assert (second[:, 0] == 0).all() if attend == 'last' else ((second > 0.01).all() and torch.allclose(second.sum(1), torch.ones(len(second)), atol=1e-5))


@pytest.mark.parametrize('attend', ['last', 'all_previous'])
def test_the_weights_are_those_that_the_layer_uses(attend):
    """Where all heads have the same values v, the mean of what the heads give is Σ weights · v."""
    torch.manual_seed(0)
    layer = GatedCrossAttention(16, 16, n_head=2, head_dim=8, attend=attend)
    y, visual, index = torch.randn(1, 7, 16), torch.randn(1, 3, 4, 16), torch.tensor([[0, 1, 1, 2, 3, 3, 4]])
    k, v = layer.keys_values(visual)                                                      # (B,N,H,R,d) each
    v = v[:, :, :1].expand_as(v)
    layer.to_out = torch.nn.Identity()
    out = layer.cross_attention(y, None, index, (k, v), route_tokens(index, 3))[0].unflatten(-1, (2, 8)).mean(1)  # (T,d)
    weights = attention.text_to_visual(layer, y, index, (k, v))
    rows = slice(0, 6) if attend == 'all_previous' else slice(0, 7)  # a tag without its picture is another matter there
    assert torch.allclose(torch.einsum('tnr,nrd->td', weights, v[0, :, 0])[rows], out[rows], atol=1e-5)


@torch.no_grad()
def test_the_resamplers_weights_are_those_it_uses():
    """Where both heads have the same values, what they give is Σ weights · v over the places, and the rest of the weight, up to
    one, lies on the latents: a mixture of their values."""
    torch.manual_seed(0)
    layer = ResamplerLayer(16, 2, 8)
    latents, features, time = torch.randn(3, 4, 16), torch.randn(3, 2, 3, 16), torch.randn(2, 16)
    media = taken_apart(features, time)
    value = layer.to_kv.weight[16:].view(2, 8, 16)
    value[1] = value[0]
    seen = layer.norm_media(features + time[:, None]).flatten(1, 2)                       # (N,F*S,D)
    values = torch.cat([seen, layer.norm_latents(latents)], 1) @ value[0].T               # (N,F*S+R,d)
    weights = attention.visual_to_places(layer, latents, media)
    layer.to_out = torch.nn.Identity()
    full = layer.attention(latents, media).unflatten(-1, (2, 8)).mean(2)                  # (N,R,d)
    assert (weights > 0).all() and (weights.sum(-1) < 1).all()
    rest, own = (full - weights @ values[:, :6]) / (1 - weights.sum(-1, keepdim=True)), values[:, 6:]
    assert (rest <= own.max(1, keepdim=True).values + 1e-4).all() and (rest >= own.min(1, keepdim=True).values - 1e-4).all()


def test_attention_from_the_command_line(monkeypatch, capsys, loaded, out):
    run(monkeypatch, capsys, loaded, f'--out_dir={out}', f'--attention={out}/look.png', '--ways=2')
    assert Image.open(out / 'look.png').width > 200
    steps, title = attention.words(loaded[0], Document([picture_media('held', 1), Given('Output: a red'), picture_media('held', 2), Given('Output:')], 'prompt'),
                                   loaded[0].tokenizer.encode(' ring'))
    assert [s['word'] for s in steps] == ['prompt, picture 1: Output:', 'prompt, picture 1: a', 'prompt, picture 1: red', 'prompt, picture 2: Output:',
                                          'answer, picture 2: ring']
    assert all(s['weights'].shape[0] == s['weights'].shape[1] and np.isfinite(s['weights']).all() for s in steps) and '0.76' in title  # tanh(1)
