"""The page to prompt on, without a browser: what it answers, what it refuses, and that it answers as
sample.py does."""
import base64
import contextlib
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from functools import partial
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import save_tiny

import sample
from data import Media
from kit import answers
from kit.cli import configure
from kit.files import BadInput
from kit.page import desk, server
from kit.page.desk import Desk
from kit.show import sheets
from kit.tasks import attention, controls, occlusion
from kit.tasks.asker import load, NANO
from kit.tasks.episodes import episodes_of
from kit.tasks.prompts import as_episode, as_text, examples, parse_prompt
from kit.tasks.tables import sheet

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def asker():
    torch.set_num_threads(1)
    return load(NANO)[0]


@pytest.fixture(scope='module')
def page(asker):
    """A server in this process, on the model that is shipped."""
    with served(asker) as it:
        yield it


@contextlib.contextmanager
def served(asker, *argv):
    it = server.Server('127.0.0.1', 0, Desk(asker, configure(sample.KEYS, list(argv)), 'nano.pt'))
    thread = threading.Thread(target=it.serve_forever, kwargs={'poll_interval': 0.02}, daemon=True)
    thread.start()
    try:
        yield it
    finally:
        it.shutdown()
        it.server_close()


def ask(page, path, body=None, method='POST', headers=None, kind='application/json'):
    """-> (status, headers, bytes)"""
    connection = http.client.HTTPConnection('127.0.0.1', page.port, timeout=60)
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
    given = {'Content-Type': kind} if method == 'POST' else {}
    connection.request(method, path, body, given | (headers or {}))
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), content


def said(page, path, body, **more):
    status, _, content = ask(page, path, body, **more)
    assert status == 200, content
    return json.loads(content)


def refused(page, path, body=None, **more):
    """-> (status, the one line that says why)"""
    status, _, content = ask(page, path, body, **more)
    message = json.loads(content)['error']
    assert status >= 400 and '\n' not in message and 'Traceback' not in message and str(ROOT) not in message
    return status, message


def upload(page, name, content):
    return said(page, f'/picture?name={name}', content, kind='application/octet-stream')


def events(page, request):
    """What /ask tells, line by line."""
    status, headers, content = ask(page, '/ask', request)
    assert status == 200 and headers['Content-Type'] == 'application/x-ndjson'
    return [json.loads(line) for line in content.splitlines()]


def answer(page, request, run='before'):
    """-> everything that is told of a run, the later in place of the earlier"""
    told = events(page, request)
    assert told[-1] == {'done': True}, told[-1]
    out = {}
    for event in told:
        out |= event if event.get('run') == run else {}
    return out


def drawn(page, kind='naming', seed=1, shots=1, **more):
    """A prompt of the world -> (what /draw says, the request that asks it)"""
    got = said(page, '/draw', {'kind': kind, 'seed': seed, 'shots': shots, **more})
    text = '<EOC>'.join((f'<image:{c["picture"]}>' if c['picture'] else '') + c['text'] for c in got['cards'])
    request = {'prompt': text, 'pictures': {name: p['id'] for name, p in got['pictures'].items()},
               'keys': {'choices': got['choices'], 'beam_size': 1, 'max_new_tokens': 6}}
    return got, request


def png(colour, size=(40, 30), **save):
    out = io.BytesIO()
    Image.new('RGB', size, colour).save(out, 'PNG', **save)
    return out.getvalue()


# ---------------------------------------------------------------------------------------------
# The same answer as sample.py


def test_twenty_random_prompts_are_answered_as_by_sample_py(page, asker, tmp_path, monkeypatch, capsys):
    """Any number of pictures and clips, any texts, written or chosen, with any keys: the same words, the same
    log-probabilities."""
    rng = np.random.default_rng(0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sample, 'load', lambda *_, **__: (asker, None))
    words = 'Output: dax wug a red Question: what color is it? Answer: ring circle. ü “no” <b>'.split()
    for number in range(20):
        got, request = drawn(page, str(rng.choice(list(desk.KINDS))), int(rng.integers(1000)),
                             int(rng.integers(1, 4)), ways=int(rng.integers(1, 4)))
        if number % 2:  # texts that no task has, and a picture that no card has
            for name in got['pictures']:
                text = ' '.join(rng.choice(words, int(rng.integers(0, 7))))
                request['prompt'] = request['prompt'].replace(f'<image:{name}>', f'<image:{name}>{text} ', 1)
        keys = {'beam_size': int(rng.integers(1, 4)), 'max_new_tokens': int(rng.integers(1, 9)),
                'temperature': float(rng.choice([0, 0, 0.7])), 'top_k': int(rng.integers(0, 9)),
                'seed': int(rng.integers(99)), 'calibrate': bool(rng.integers(2)),
                'choices': str(rng.choice(['', 'dax | a red ring.|wug', request['keys']['choices']]))}
        for name, picture in got['pictures'].items():
            (tmp_path / name).write_bytes(base64.b64decode(picture['content']))
        mine = answer(page, request | {'keys': keys})
        monkeypatch.setattr('sys.argv', ['sample.py', '--device=cpu', '--json=True', '--out_dir=.',
                                         f'--prompt={request["prompt"]}',
                                         *(f'--{name}={value}' for name, value in keys.items())])
        sample.main()
        theirs = json.loads(capsys.readouterr().out)
        if keys['choices']:
            assert list(mine['choices']) == list(theirs['choices'])
            assert list(mine['choices'].values()) == pytest.approx(list(theirs['choices'].values()), abs=1e-4)
        else:
            assert mine['completion'] == theirs['completion']
            assert mine['logprob'] == pytest.approx(theirs['logprob'], abs=1e-4)
            assert mine['prompt'].replace(f'<image:{tmp_path}/', '<image:') == \
                theirs['prompt'].replace(f'<image:{tmp_path}/', '<image:')


def test_the_answer_is_written_word_by_word(page, asker):
    """Each draft goes on from the one before; the likeliest words beside it hold the word that was taken; the
    last draft is the answer."""
    got, request = drawn(page, 'caption', 3, 2)
    told = [e for e in events(page, request) if 'draft' in e]
    drafts, final = [e['draft'] for e in told], answer(page, request)
    assert len(drafts) > 3 and all(b.startswith(a) for a, b in zip(drafts, drafts[1:]))
    assert drafts[-1].strip() == final['answer'] == final['completion'].strip()
    for event, before in zip(told, ['', *drafts]):
        assert len(event['likely']) == 5
        probabilities = [p for _, p in event['likely']]
        assert probabilities == sorted(probabilities, reverse=True) and 0 < sum(probabilities) <= 1 + 1e-9
        assert event['likely'][0][0] in (event['draft'][len(before):], '<EOC>')  # greedy takes the first
    # The steps of the finished answer, from one pass over all of it, say the same again.
    assert [s['text'] for s in final['steps']][-1] == '<EOC>'
    for step, event in zip(final['steps'], told):
        assert [w for w, _ in step['likely']] == [w for w, _ in event['likely']]
        assert [p for _, p in step['likely']] == pytest.approx([p for _, p in event['likely']], abs=1e-3)
    assert sum(np.log([s['p'] for s in final['steps']])) == pytest.approx(final['logprob'], abs=1e-2)


def test_what_is_told_of_a_search_is_its_best_beam(asker):
    [episode] = episodes_of('caption', 2, 1, seed=5)
    told = []
    [(ids, _)] = answers.generate(asker.model, beam_size=3, told=lambda *x: told.append(x),
                                  **asker.prompts([episode.document()]))
    last, log_p = told[-1]
    assert [i for i in last if i != asker.model.eoc] == ids and len(told) <= 32
    assert all(len(words) == k + 1 for k, (words, _) in enumerate(told))
    assert torch.logsumexp(log_p, 0).item() == pytest.approx(0, abs=1e-4)


def test_ranked_choices_and_calibration(page, asker):
    got, request = drawn(page, 'naming', 2, ways=3)
    [episode] = episodes_of('naming', 1, 1, 3, 2)
    mine = answer(page, request)['choices']
    assert mine == pytest.approx(dict(zip(episode.choices, asker.score([episode])[0])), abs=1e-4)
    keys = request['keys'] | {'calibrate': True}
    asker.calibrate = True
    try:
        [wanted] = asker.scores([episode])
    finally:
        asker.calibrate = False
    assert list(answer(page, request | {'keys': keys})['choices'].values()) == pytest.approx(wanted, abs=1e-4)


def test_the_keys_of_the_command_are_the_defaults(asker):
    with served(asker, '--temperature=0.5', '--seed=7', '--ways=2') as page:
        about = said(page, '/start', {})
        assert about['keys']['temperature'] == 0.5 and about['keys']['seed'] == 7 and about['ways'] == 2
        assert about['gates'] == [list(g) for g in asker.model.gates()] and about['context'] == 512


# ---------------------------------------------------------------------------------------------
# Spoilt prompts


def same(one, other, asker):
    """Are two prompts the same to the model: tokens, φ, and the pictures?"""
    a, b = asker.encode(one), asker.encode(other)
    return (a.tokens.tolist(), a.image_index.tolist(), [m.key for m in a.media]) == \
        (b.tokens.tolist(), b.image_index.tolist(), [m.key for m in b.media])


@pytest.mark.parametrize('task', ['naming', 'caption', 'question', 'dialogue', 'clip_caption'])
def test_a_prompt_taken_apart_is_the_episode_it_was(asker, task):
    """Through its text: the same tokens and pictures, unspoilt and under each control."""
    [episode] = episodes_of(task, 2, 1, 3 if task == 'naming' else None, seed=4)
    known = {p.key: p for p in episode.document().media}
    document = parse_prompt(as_text(episode.document()), media=known.get)
    assert same(document, episode.document(), asker)
    apart = as_episode(document)
    assert [(e.prompt, e.answer) for e in apart.support] == [(e.prompt, e.answer) for e in episode.support]
    assert same(apart.document(), episode.document(), asker)
    for name in desk.CONTROLS:
        wanted = controls.CONTROLS[name](episode, np.random.default_rng(0))
        if examples(wanted.document()) != examples(episode.document()):
            assert same(controls.spoilt(document, [name], seed=0), wanted.document(), asker), name


@pytest.mark.parametrize('text, cards', [
    ('x', [(None, 'x')]), ('a<EOC>', [(None, 'a'), (None, '')]), ('<EOC>x', [(None, ''), (None, 'x')]),
    ('<image:a>x<EOC><EOC><image:b>', [('a', 'x'), (None, ''), ('b', '')]),
    ('so <image:a><image:b>y<EOC>z', [(None, 'so '), ('a', ''), ('b', 'y'), (None, 'z')]),
])
def test_cards_joined_are_the_prompt_again(asker, text, cards):
    document = parse_prompt(text, media=lambda path: Media(path, None))
    assert [(m and m.key, t) for m, t in examples(document)] == cards
    joined = '<EOC>'.join((f'<image:{name}>' if name else '') + t for name, t in cards)
    assert same(parse_prompt(joined, media=lambda path: Media(path, None)), document, asker)


def test_before_and_after(page, asker):
    """Blanked examples: a prompt's answer is no better than chance, and what was asked is shown."""
    right = {'before': 0, 'after': 0}
    for seed in range(12):
        got, request = drawn(page, 'naming', seed, ways=4)
        for run in right:
            out = answer(page, request | {'controls': ['blank_support']}, run)
            right[run] += out['answer'] == got['truth']
    assert out['cards'][:-1] == [{'picture': 'blank', 'text': c['text']} for c in got['cards'][:-1]]
    assert out['cards'][-1] == got['cards'][-1]
    assert right['before'] >= 10 and right['after'] <= 7  # 3 of 12 are expected by chance; 8 in 1 of 360


def test_each_card_can_be_blanked_alone(page, asker):
    got, request = drawn(page, 'naming', 3, ways=3)
    names = [c['picture'] for c in got['cards']]
    out = answer(page, request | {'blank': [names[1], names[3]]}, 'after')
    assert [c['picture'] for c in out['cards']] == [names[0], 'blank', names[2], 'blank']
    twice = request | {'prompt': request['prompt'].replace(names[0], names[1]), 'blank': [names[1]]}
    assert [c['picture'] for c in answer(page, twice, 'after')['cards']] == ['blank', 'blank', *names[2:]]


def test_a_control_that_changes_nothing_is_said(page):
    got, request = drawn(page, 'naming', 3, ways=1)
    assert events(page, request | {'controls': ['shuffle_answers']})[-1]['error'] == \
        'the prompt: shuffle answers changes nothing in it'
    bare = request | {'prompt': re.sub('Output: .*?<EOC>', 'dax<EOC>', request['prompt'])}
    assert 'example 1 has no answer' in events(page, bare | {'controls': ['swap_support']})[-1]['error']
    assert 'controls' in events(page, request | {'controls': ['rename_answers']})[-1]['error']


# ---------------------------------------------------------------------------------------------
# What it sees


def test_each_word_says_which_picture_it_sees_and_where_it_looks(page, asker):
    got, request = drawn(page, 'naming', 4, ways=2)
    request['prompt'] = 'so this: ' + request['prompt'].replace('<image', '<EOC><image', 1)
    out = answer(page, request)
    words = out['words']
    assert [w['word'] for w in words if w['index'] == 0] == ['so', 'this:']
    assert all(w['image'] is None and w['weights'] is None for w in words if w['index'] == 0)
    assert [w['index'] for w in words] == sorted(w['index'] for w in words) and words[-1]['index'] == 3
    assert ' '.join(w['word'] for w in words if w['answer']) == out['answer']
    for word in words:
        if word['index']:
            assert word['image'] == word['index'] - 1
            assert len(word['weights']) == 1 and sum(word['weights'][0]) == pytest.approx(1000, abs=9)
    document, _ = page.desk.document(request)
    prompts = attention.with_answer(asker, document, asker.tokenizer.encode(' ' + out['answer']))
    wanted, mine = attention.looks(asker, *prompts)[-1]['weights'], np.array(words[-1]['weights'][0])
    assert mine / 1000 == pytest.approx((wanted[0] / wanted.sum()).numpy(), abs=2e-3)


def test_what_each_word_would_lose_is_the_map_that_sample_py_draws(page, asker):
    """Of the words that see one picture, in the prompt as it is and in the spoilt one."""
    got, request = drawn(page, 'naming', 4, ways=2)
    request |= {'controls': ['blank_support'], 'answer': 'dax'}
    for run, image in (('before', 0), ('before', 2), ('after', 2)):
        maps = said(page, '/lost', request | {'run': run, 'image': image})['maps']
        runs, _ = page.desk.runs(request)
        steps, _ = occlusion.words(asker, runs[run], asker.tokenizer.encode(' dax'))
        mine = [s for s in steps if f'picture {image + 1}:' in s['word']]
        assert sorted(map(int, maps)) == [s['place'] for s in mine] and len(mine) > 1
        wanted = sheets.heat(mine[-1]['picture'], mine[-1]['weights'], 224, mine[-1]['top'])
        png = Image.open(io.BytesIO(base64.b64decode(maps[str(mine[-1]['place'])])))
        assert np.array_equal(np.asarray(png), np.asarray(wanted))
    words = answer(page, request)['words']
    assert {w['place'] for w in words if w['index'] == 3 and not w['answer']} <= set(map(int, maps))
    assert 'image' in refused(page, '/lost', request | {'run': 'before', 'image': 3})[1]
    assert 'run' in refused(page, '/lost', request | {'run': 'x', 'image': 0})[1]


def test_clips_have_weights_for_every_frame(page):
    _, request = drawn(page, 'clips', 1)
    last = answer(page, request)['words'][-1]
    assert len(last['weights']) == 8 and sum(map(sum, last['weights'])) == pytest.approx(1000, abs=72)


# ---------------------------------------------------------------------------------------------
# Pictures, drawn and given


def test_drawn_pictures_are_files_with_the_same_pixels(page, asker):
    got, _ = drawn(page, 'clips', 6)
    [episode] = episodes_of('clip_caption', 1, 1, seed=6)
    media = [e.media for e in [*episode.support, episode.query]]
    for media, (name, picture) in zip(media, got['pictures'].items()):
        own = page.desk.media(name, base64.b64decode(picture['content']))
        assert torch.equal(asker.features.pixels(own), asker.features.pixels(media))
        assert len(picture['frames']) == 8
        frame = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture['frames'][3]))))
        assert np.array_equal(frame, np.asarray(media.load()[3]))


@pytest.mark.parametrize('kind', ['picture', 'clip'])
def test_one_picture_is_drawn(page, kind):
    one, = said(page, '/draw', {'kind': kind, 'seed': 5})['pictures'].values()
    again, = said(page, '/draw', {'kind': kind, 'seed': 5})['pictures'].values()
    assert one == again and len(one['frames']) == (1 if kind == 'picture' else 8)


def test_a_photo_a_clip_and_a_name_in_any_script(page):
    assert len(upload(page, 'photo%20%C3%BC%20%E7%8C%AB.png', png('red'))['frames']) == 1
    gif = io.BytesIO()
    frames = [Image.new('RGB', (20, 20), (40 * k, 0, 0)) for k in range(6)]
    frames[0].save(gif, 'GIF', save_all=True, append_images=frames[1:], duration=1000)
    got = upload(page, 'clip.gif', gif.getvalue())
    assert len(got['frames']) == 6
    out = answer(page, {'prompt': '<image:clip.gif>Output:', 'pictures': {'clip.gif': got['id']},
                        'keys': {'max_new_tokens': 2}})
    assert out['cards'] == [{'picture': 'clip.gif', 'text': 'Output:'}]


@pytest.mark.parametrize('name, content, why', [
    ('a.png', b'', 'empty'), ('a.png', b'no picture', 'not a picture'),
    ('a.png', png('red')[:60], 'truncated'),
    ('a.svg', b'<svg xmlns="http://www.w3.org/2000/svg"/>', 'not a picture'), ('a.mp4', b'x', 'a video'),
    ('a.eps', b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run', 'not a picture'),
])
def test_bad_pictures_are_said_with_their_name(page, name, content, why):
    status, _, body = ask(page, f'/picture?name={name}', content, kind='application/octet-stream')
    assert status == 400 and why in json.loads(body)['error'] and json.loads(body)['picture'] == name


def test_uploads_are_bounded_in_pixels_before_they_are_decoded(page):
    """A picture that says it is 60,000 pixels wide and high has 200 bytes, and would take 10 GB."""
    content = bytearray(png('red'))
    content[16:24] = (60000).to_bytes(4, 'big') * 2
    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, 'big')
    start = time.monotonic()
    status, message = refused(page, '/picture?name=a.png', bytes(content), kind='application/octet-stream')
    assert status == 400 and 'too large' in message and time.monotonic() - start < 5


@pytest.mark.parametrize('name', ['', '..', '../a.png', 'a/b.png', 'a%5Cb.png', '%2Fetc%2Fpasswd', 'a%00.png',
                                  'a%3Eb.png', '.hidden', 'C:a.png', 'x' * 101])
def test_names_that_are_ways_to_places(page, name):
    status, message = refused(page, f'/picture?name={name}', png('red'), kind='application/octet-stream')
    assert status == 400 and 'not a name' in message


def test_pictures_that_are_held_no_more_are_asked_for_again(asker, monkeypatch):
    monkeypatch.setattr(desk, 'LIMIT_KEPT', 1000)
    with served(asker) as page:
        first = upload(page, 'a.png', png('red', (64, 64)))
        for k in range(9):
            upload(page, 'b.png', png((k, 9, 9), (64, 64)))
        request = {'prompt': '<image:a.png>Output:', 'pictures': {'a.png': first['id']}}
        assert events(page, request)[-1]['missing'] == ['a.png']
        status, _, body = ask(page, '/save', request)
        assert status == 409 and json.loads(body)['missing'] == ['a.png']


# ---------------------------------------------------------------------------------------------
# Text and files


def test_a_pasted_prompt_finds_its_pictures_by_name(page):
    names = ['a.png', 'b c.png']
    text = '<image:some/where/a.png>Output: dax<EOC>only text<EOC><image:C:\\x\\b c.png>Output:'
    assert said(page, '/parse', {'prompt': text, 'names': names}) == {'cards': [
        {'picture': 'a.png', 'text': 'Output: dax'}, {'picture': None, 'text': 'only text'},
        {'picture': 'b c.png', 'text': 'Output:'}]}
    unknown = {'prompt': '<image:d.png>', 'names': names}
    assert 'no picture here is called d.png' in refused(page, '/parse', unknown)[1]
    assert 'is empty' in refused(page, '/parse', {'prompt': '', 'names': []})[1]


def test_a_saved_prompt_is_one_for_sample_py_and_comes_back(page, asker, tmp_path, monkeypatch, capsys):
    got, request = drawn(page, 'naming', 8, ways=3)
    request |= {'keys': {'max_new_tokens': 7, 'choices': ''}, 'blank': ['x'], 'kind': 'naming',
                'truth': 'dax'}
    status, _, content = ask(page, '/save', request)
    assert status == 200
    zipfile.ZipFile(io.BytesIO(content)).extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sample, 'load', lambda *_, **__: (asker, None))
    monkeypatch.setattr('sys.argv', ['sample.py', '--prompt_file=prompt/prompt.txt', '--max_new_tokens=7',
                                     '--json=True', '--device=cpu', '--out_dir=.'])
    sample.main()
    mine = answer(page, request | {'blank': []})
    assert json.loads(capsys.readouterr().out)['completion'] == mine['completion']
    with served(asker) as other:  # it has never seen these pictures
        back = said(other, '/load?name=x.zip', content, kind='application/octet-stream')
        assert back['cards'] == got['cards'] and back['page'] == {
            'keys': request['keys'], 'controls': None, 'blank': ['x'], 'kind': 'naming', 'truth': 'dax'}
        assert {n: p['content'] for n, p in back['pictures'].items()} == \
            {n: p['content'] for n, p in got['pictures'].items()}
        request['pictures'] = {name: p['id'] for name, p in back['pictures'].items()}
        assert answer(other, request | {'blank': []})['completion'] == mine['completion']


def zipped(*members, compression=zipfile.ZIP_STORED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w', compression) as file:
        for name, content in members:
            file.writestr(name, content)
    return out.getvalue()


TEXT, REST = ('prompt/prompt.txt', '<image:a.png>Output:'), ('prompt/page.json', '{}')


@pytest.mark.parametrize('content, why', [
    (b'', 'not a prompt'), (b'PK\3\4 rubbish', 'not a prompt'), (zipped(), 'not a prompt'),
    (zipped(TEXT), 'not a prompt'), (zipped(TEXT, ('prompt/page.json', '[1]')), 'not a prompt'),
    (zipped(TEXT, REST), 'no picture here is called a.png'),
    (zipped(('prompt/prompt.txt', b'\xff\xfe'), REST), 'not a prompt'),
    (zipped(TEXT, REST, ('prompt/pictures/..', b'x')), 'not a prompt'),
    (zipped(TEXT, REST, ('prompt/pictures/a.png', b'x')), 'not a picture'),
    (zipped(TEXT, REST, *((f'x{k}', '') for k in range(300))), 'not a prompt'),
    (zipped(TEXT, REST, ('prompt/pictures/a.png', bytes(70 << 20)), compression=zipfile.ZIP_DEFLATED),
     'not a prompt'),
])
def test_files_that_are_no_saved_prompt(page, content, why):
    start = time.monotonic()
    status, message = refused(page, '/load?name=x', content, kind='application/octet-stream')
    assert status == 400 and why in message and time.monotonic() - start < 5


def test_the_sheet_is_the_one_that_sample_py_saves(page):
    got, request = drawn(page, 'naming', 9)
    status, headers, content = ask(page, '/sheet', request | {'answer': 'dax', 'truth': got['truth']})
    document, _ = page.desk.document(request)
    wanted = sheet([('', document, {'prediction': 'dax', 'answer': got['truth']})])
    assert status == 200 and headers['Content-Type'] == 'image/png'
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), np.asarray(wanted))


# ---------------------------------------------------------------------------------------------
# Who may ask, and what


def test_the_page_is_three_small_files_and_asks_for_nothing_elsewhere(page):
    size = 0
    for path, kind in (('/', 'text/html'), ('/page.css', 'text/css'), ('/page.js', 'text/javascript')):
        status, headers, content = ask(page, path, method='GET')
        assert status == 200 and headers['Content-Type'] == f'{kind}; charset=utf-8'
        policy = headers['Content-Security-Policy']
        assert "default-src 'none'" in policy and 'unsafe' not in policy
        assert headers['X-Content-Type-Options'] == 'nosniff'
        text = content.decode()
        assert not re.search(r'(https?:)?//[\w.-]+\.\w+/', text)
        assert 'innerHTML' not in text and 'eval(' not in text and not re.search(r'\son\w+=|\sstyle=', text)
        assert max(map(len, text.splitlines())) <= 110
        size += len(content)
    assert size < 100_000


@pytest.mark.parametrize('path', ['/sample.py', '/../sample.py', '/..%2f..%2fsample.py', '//etc/passwd', '*',
                                  '/page.css/..', '/index.html', '/etc/passwd', '/page.js?x', '/%00',
                                  '/kit/page/server.py'])
def test_no_path_leads_to_the_disk(page, path):
    assert refused(page, path, method='GET')[0] in (400, 404)
    assert refused(page, path, {})[0] in (400, 404)


@pytest.mark.parametrize('method', ['PUT', 'DELETE', 'OPTIONS', 'TRACE', 'CONNECT'])
def test_other_methods(page, method):
    status, headers, _ = ask(page, '/ask', method=method)
    assert status == 501 and not any(name.lower().startswith('access-control') for name in headers)
    assert ask(page, '/ask', method='HEAD')[0] == 501 and refused(page, '/ask', method='GET')[0] == 405


@pytest.mark.parametrize('headers', [
    {'Host': 'evil.example'}, {'Host': 'evil.example:{port}'}, {'Host': '127.0.0.1:1'}, {'Host': '127.0.0.1'},
    {'Host': 'localhost.evil.example:{port}'}, {'Host': '127.0.0.1:{port}@evil.example'}, {'Host': ''},
    {'Host': '192.168.0.1:{port}'}, {'Origin': 'http://evil.example'}, {'Origin': 'null'}, {'Origin': ''},
    {'Origin': 'http://localhost:{port}'}, {'Origin': 'https://127.0.0.1:{port}'},
    {'Origin': 'http://127.0.0.1:1'},
    {'Sec-Fetch-Site': 'cross-site'}, {'Sec-Fetch-Site': 'same-site'},
])
def test_a_page_elsewhere_cannot_ask(page, headers):
    headers = {name: value.replace('{port}', str(page.port)) for name, value in headers.items()}
    assert refused(page, '/start', {}, headers=headers)[0] == 403
    if 'Host' in headers:
        assert refused(page, '/', method='GET', headers=headers)[0] == 403


def test_its_own_page_can_ask_by_each_of_its_names(page):
    for host in ('127.0.0.1', 'localhost', 'LOCALHOST', '[::1]'):
        host = f'{host}:{page.port}'
        headers = {'Host': host, 'Origin': f'http://{host}', 'Sec-Fetch-Site': 'same-origin'}
        assert said(page, '/start', {}, headers=headers)['checkpoint'] == 'nano.pt'


def test_two_hosts_are_one_too_many(page):
    answer = raw(page, b'GET / HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nHost: evil.example\r\n\r\n' % page.port)
    assert answer.startswith(b'HTTP/1.1 403')
    assert raw(page, b'GET / HTTP/1.1\r\n\r\n').startswith(b'HTTP/1.1 403')
    assert raw(page, b'GET / HTTP/1.0\r\n\r\n').startswith(b'HTTP/1.1 403')


def raw(page, request):
    """Bytes as they are -> all that comes back"""
    with socket.create_connection(('127.0.0.1', page.port), timeout=60) as s:
        s.sendall(request)
        s.shutdown(socket.SHUT_WR)
        return b''.join(iter(lambda: s.recv(1 << 16), b''))


def test_another_address_must_be_said_and_names_are_still_checked(asker):
    it = server.Server('0.0.0.0', 0, Desk(asker, configure(sample.KEYS, [])))
    try:
        names = ('192.168.0.7', '[fe80::1]', 'localhost', 'evil.example', '1.2.3.4.evil.example')
        assert [it.is_host(f'{name}:{it.port}') for name in names] == [True, True, True, False, False]
    finally:
        it.server_close()


@pytest.mark.parametrize('kind', ['text/plain', 'application/x-www-form-urlencoded', 'multipart/form-data',
                                  ''])
def test_what_a_form_elsewhere_could_send_is_refused(page, kind):
    assert refused(page, '/start', {}, kind=kind)[0] == 415
    assert refused(page, '/picture?name=a.png', png('red'), kind=kind)[0] == 415


def test_bodies_are_bounded(page):
    host = b'Host: 127.0.0.1:%d\r\n' % page.port
    post, json_type = b'POST /start HTTP/1.1\r\n' + host, b'Content-Type: application/json\r\n'
    for length, status in ((b'Content-Length: 1048577', 413), (b'Content-Length: ' + b'9' * 40, 413),
                           (b'Content-Length: -1', 411), (b'Content-Length: 0x10', 411), (b'X: y', 411),
                           (b'Content-Length: 5\r\nTransfer-Encoding: chunked', 411),
                           (b'Content-Length: 50', 408)):
        answer = raw(page, post + json_type + length + b'\r\n\r\n{}')
        assert answer.startswith(b'HTTP/1.1 %d' % status), (length, answer[:80])
    assert refused(page, '/start', b' ' * ((1 << 20) + 1))[0] == 413
    big = b'POST /picture?name=a.png HTTP/1.1\r\n' + host + b'Content-Type: application/octet-stream\r\n'
    assert raw(page, big + b'Content-Length: 33554433\r\n\r\n').startswith(b'HTTP/1.1 413')
    assert raw(page, b'GET /' + b'x' * 70000 + b' HTTP/1.1\r\n' + host + b'\r\n').startswith(b'HTTP/1.1 414')
    many = b''.join(b'X%d: y\r\n' % k for k in range(200))
    assert raw(page, b'GET / HTTP/1.1\r\n' + host + many + b'\r\n').startswith(b'HTTP/1.1 431')


@pytest.mark.parametrize('body', [b'', b'{', b'[]', b'null', b'"x"', b'\xff\xfe', b'{"a":' * 100000,
                                  b'{"a": "\\ud800"}', b'[' * 1000000, b'1' * 10000])
def test_what_is_no_json_object(page, body):
    assert refused(page, '/ask', body)[0] == 400


@pytest.mark.parametrize('change, why', [
    ({'prompt': None}, 'prompt: must be a text'), ({'prompt': 7}, 'prompt'), ({'prompt': ''}, 'is empty'),
    ({'prompt': '<image>'}, 'tags'),
    ({'prompt': '<image:/etc/passwd>'}, 'no picture here is called /etc/passwd'),
    ({'prompt': '<image:sample.py>'}, 'no picture'), ({'prompt': 'Output:'}, '0 pictures'),
    ({'prompt': '<image:a.png>' + 'word ' * 3000}, 'longer than the context'),
    ({'prompt': '<image:a.png>' * 20000}, 'longer than the context'),
    ({'pictures': []}, 'pictures'), ({'pictures': {'a.png': 1}}, 'sent again'),
    ({'pictures': {'../x': '1'}}, 'not a name'),
    ({'pictures': {'a.png': '/etc/passwd'}}, 'sent again'), ({'pictures': {'a.png': ['x']}}, 'sent again'),
    ({'keys': 1}, 'keys'), ({'keys': {'out_dir': '/tmp'}}, 'keys: some of'), ({'keys': {'seed': -1}}, 'seed'),
    ({'keys': {'beam_size': 65}}, 'beam_size'), ({'keys': {'beam_size': 1e300}}, 'beam_size'),
    ({'keys': {'temperature': float('nan')}}, 'temperature'), ({'keys': {'temperature': -1}}, 'temperature'),
    ({'keys': {'max_new_tokens': 0}}, 'max_new_tokens'), ({'keys': {'choices': ['a']}}, 'choices'),
    ({'keys': {'choices': 'a||b'}}, 'an answer is empty'),
    ({'keys': {'choices': '|'.join('a' * 101)}}, 'more than 100'),
    ({'keys': {'choices': 'word ' * 600}}, 'context'),
    ({'controls': 'x'}, 'controls'), ({'controls': [1]}, 'controls'),
    ({'blank': {}}, 'blank'),
])
def test_hostile_requests_are_one_line_each(page, change, why):
    request = simple(page, 2)
    last = events(page, request | change)[-1]
    assert why in last['error'] and '\n' not in last['error'] and str(ROOT) not in last['error']
    assert answer(page, request)['answer'] is not None  # and the next one is answered


def test_no_request_opens_a_file(page):
    """Whatever a request names: Python tells of every file that it opens."""
    opened, watching = [], True

    def heard(event, arguments):
        if watching and event in ('open', 'os.listdir', 'os.mkdir', 'os.rename', 'os.remove'):
            opened.append((event, str(arguments[0])))

    picture = upload(page, 'a.png', png('red'))
    asked = {'prompt': '<image:a.png>Output: dax<EOC><image:secret.png>Output:', 'names': ['secret.png'],
             'pictures': {'a.png': picture['id'], 'secret.png': picture['id']}, 'answer': 'x'}
    for path in ('/ask', '/sheet', '/save', '/parse'):
        ask(page, path, asked)  # once before: imports and fonts are read
    sys.addaudithook(heard)
    try:
        for prompt in ('<image:secret.png>Output:', '<image:/tmp/secret.png>x', '<image:~/secret.png>',
                       '<image:assets/prompt.png>', '<image:assets>'):
            for path in ('/ask', '/sheet', '/save', '/parse', '/draw', '/start'):
                ask(page, path, asked | {'prompt': prompt, 'kind': prompt, 'seed': 1})
        ask(page, '/picture?name=secret.png', png('blue'), kind='application/octet-stream')
        ask(page, '/load?name=/tmp/secret.zip', b'x', kind='application/octet-stream')
        ask(page, '/../sample.py', method='GET')
    finally:
        watching = False
    assert opened == []


# ---------------------------------------------------------------------------------------------
# Several at once, slow ones, and some that go away


@pytest.fixture()
def slow(tmp_path_factory, monkeypatch):
    """A server whose model takes a tenth of a second for each word and does not come to an end."""
    path = tmp_path_factory.mktemp('tiny') / 'flamingo.pt'
    save_tiny(path)
    tiny, read = load(str(path))[0], answers.read
    tiny.busy, tiny.words = threading.Event(), 0

    def slowly(model, cache, tokens, index):
        if model is not asking[0]:
            return read(model, cache, tokens, index)
        tiny.busy.set()
        tiny.words += 1
        time.sleep(0.1)
        return read(model, cache, tokens, index)

    asking = [tiny.model]
    monkeypatch.setattr(answers, 'packed', lambda model, *_: model)
    monkeypatch.setattr(answers, 'read', slowly)
    forbid = answers.forbid

    def endless(model, logits):
        logits = forbid(model, logits)
        logits[..., model.eoc] = -torch.inf
        return logits

    monkeypatch.setattr(answers, 'forbid', endless)
    with served(tiny) as page:
        yield page


def simple(page, n=200):
    picture = upload(page, 'a.png', png('red'))
    return {'prompt': '<image:a.png>Output:', 'pictures': {'a.png': picture['id']},
            'keys': {'max_new_tokens': n, 'beam_size': 1}}


def begin(page, request):
    """A connection on which an answer has begun to come -> (socket, its file)"""
    s = socket.create_connection(('127.0.0.1', page.port), timeout=60)
    body = json.dumps(request).encode()
    s.sendall(b'POST /ask HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n'
              b'Content-Length: %d\r\n\r\n%s' % (page.port, len(body), body))
    return s, s.makefile('rb')


def test_two_clients_at_once_are_answered_one_after_the_other(slow):
    request, out = simple(slow, 8), {}

    def one(name):
        out[name] = events(slow, request)

    threads = [threading.Thread(target=one, args=(name,)) for name in 'ab']
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for told in out.values():
        assert told[0] == {'doing': 'waiting its turn'} and told[-1] == {'done': True}
    finals = [next(e['completion'] for e in told if 'completion' in e) for told in out.values()]
    assert finals[0] == finals[1] == answer(slow, request)['completion']


def test_a_client_that_goes_away_frees_the_model(slow):
    """In the middle of an answer of twenty seconds; also one that waits for its turn behind it."""
    request = simple(slow)
    first, stream = begin(slow, request)
    while b'draft' not in stream.readline():
        pass
    second, waiting = begin(slow, request)
    time.sleep(0.3)
    for each in (waiting, second, stream, first):
        each.close()
    words, start = slow.desk.asker.words, time.monotonic()
    assert answer(slow, request | {'keys': {'max_new_tokens': 1, 'beam_size': 1}})['answer'] is not None
    assert time.monotonic() - start < 5 and slow.desk.asker.words - words < 20


def test_one_too_many_is_told_to_come_again(slow):
    request = simple(slow)
    waiting = [begin(slow, request) for _ in range(1 + server.MOST_WAITING)]
    for _, stream in waiting:
        assert b'200' in stream.readline()
    status, message = refused(slow, '/ask', request)
    assert status == 503 and 'try again' in message
    for s, stream in waiting:
        stream.close()
        s.close()
    deadline = time.monotonic() + 20
    while ask(slow, '/start', {})[0] != 200:
        assert time.monotonic() < deadline


def test_connections_are_bounded_and_slow_ones_end(slow, monkeypatch):
    monkeypatch.setattr(server.Handler, 'timeout', 0.5)
    silent = [socket.create_connection(('127.0.0.1', slow.port), timeout=60)
              for _ in range(server.MOST_CONNECTIONS + 5)]
    time.sleep(2)
    assert all(s.recv(1) == b'' for s in silent)  # all are closed: by the bound, or since they said nothing
    assert ask(slow, '/', method='GET')[0] == 200


def test_a_mistake_of_ours_is_told_without_its_traceback(slow, monkeypatch, capsys):
    monkeypatch.setattr(Desk, 'start', lambda *_: 1 / 0)
    status, message = refused(slow, '/start', {})
    assert status == 500 and message == 'something went wrong; the terminal says what'
    assert 'ZeroDivisionError' in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------
# The command


def test_the_command_serves_until_ctrl_c(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k not in ('DISPLAY', 'WAYLAND_DISPLAY')}
    command = [sys.executable, 'sample.py', '--page=True', f'--out_dir={tmp_path}']
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # tests in the background ignore Ctrl-C
    run = subprocess.Popen([*command, '--port=0'], cwd=ROOT, env=environment, stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, text=True, preexec_fn=listen)
    line = run.stdout.readline()
    port = int(re.match(r'http://127\.0\.0\.1:(\d+)/ ', line)[1])
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=60)
    connection.request('GET', '/')
    assert connection.getresponse().status == 200
    other = subprocess.run([*command, f'--port={port}'], cwd=ROOT, capture_output=True, text=True)
    said = other.stderr.splitlines()[-1]
    assert other.returncode == 2 and said.startswith(f'error: --host=127.0.0.1 --port={port}: cannot listen')
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 130 and 'Traceback' not in errors and os.listdir(tmp_path) == []


def test_keys_of_the_page():
    for argument in ('--port=-1', '--port=65536'):
        with pytest.raises(BadInput, match='--port'):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr('sys.argv', ['sample.py', argument])
                sample.main()
