"""A chat that never reads its history twice."""
import io

import pytest
import torch
from PIL import Image
from prompting import loaded, out  # noqa: F401 (fixtures)
from rounding import LOG_P
from tiny_model import save_tiny

from data import Document, Given
from kit.files import BadInput, BadItem
from kit.answers import generate
from kit.tasks.asker import load
from kit.tasks.chat import Chat, chat_turn, run_chat
from kit.tasks.prompts import file_media, parse_prompt
from kit.world.draw import picture_media


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
    plain, _ = model(prompts['tokens'],
                     prompts['image_index'],
                     features=prompts['features'],
                     frame_mask=prompts['frame_mask'])
    return cached, plain[:, -1]


def test_a_chat_says_what_reading_it_from_the_beginning_says(chat):
    for step in (lambda: chat.ask('is anybody there?'), lambda: chat.image(picture_media('held', 1)),
                 lambda: chat.ask('what color is it?'), lambda: chat.image(picture_media('held', 2)),
                 lambda: chat.ask('and now?'), lambda: chat.ask('what shape is it?'), chat.undo):
        step()
        cached, plain = next_word(chat)
        assert torch.allclose(cached, plain, atol=LOG_P)
    assert chat.n_image == 2 and len(chat.before) == 5


@pytest.mark.parametrize('attend', ['last', 'all_previous'])
def test_the_cache_of_a_chat_keeps_all_pictures(tmp_path, attend):
    """An answer needs one picture, and the chat may go back to an earlier one: an answer takes none away, of
    either kind."""
    save_tiny(tmp_path / 'm.pt', attend=attend)
    chat = Chat(load(str(tmp_path / 'm.pt'))[0], max_new_tokens=2)
    for n in (1, 2, 3):
        chat.image(picture_media('held', n))
        chat.ask('what is it?')
        assert chat.cache.visual.shape[1] == n == chat.cache.n_image
    cached, plain = next_word(chat)
    assert torch.allclose(cached, plain, atol=LOG_P)
    for n in (2, 2, 1, 1):  # the third question and picture are taken back, then the second
        chat.undo()
        assert chat.n_image == chat.cache.n_image
    assert chat.n_image == 1 and torch.allclose(*next_word(chat), atol=LOG_P)


def test_a_file_that_changed_is_looked_at_anew(chat, tmp_path):
    seen = []
    for colour in ('red', 'blue', 'blue'):
        Image.new('RGB', (20, 20), colour).save(tmp_path / 'camera.png')
        chat.image(file_media(tmp_path / 'camera.png'))
        seen.append(chat.cache.visual[:, -1].clone())
    assert not torch.allclose(seen[0], seen[1]) and torch.equal(seen[1], seen[2])


def test_the_answers_are_those_of_generate(chat):
    chat.image(picture_media('held', 3))
    answer = chat.ask('what color is it?')
    [(ids, _)] = generate(chat.model, max_new_tokens=4, beam_size=2,
                           **chat.asker.prompts([Document(chat.pieces[:-1], 'prompt')]))
    assert answer == chat.tokenizer.decode(ids).strip() and chat.pieces[-1] == chat.tokenizer.decode(ids)


def test_history_is_not_read_again(chat, monkeypatch):
    read = []
    stream = chat.model.stream
    monkeypatch.setattr(
        chat.model, 'stream',
        lambda tokens, *rest, **more: read.append(tokens.shape[1]) or stream(tokens, *rest, **more))
    chat.image(picture_media('held', 1))
    chat.ask('what color is it?')
    read.clear()
    chat.ask('why?')
    asked, said = len(chat.tokenizer.encode(' Question: why? Answer:')), len(
        chat.tokenizer.encode(chat.pieces[-1]))
    assert read[0] == asked and sum(
        read[1:]) <= 3 + said  # the question, then the answer: word by word, and once more to keep it


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


@pytest.mark.parametrize('line, message', [('/image nowhere.png', 'missing'), ('/image', '/image PATH'),
                                           ('/bad', '/image PATH'), ('word ' * 300, 'context of 256')])
def test_a_command_that_fails_leaves_the_chat_as_it_was(chat, out, line, message):
    chat.image(picture_media('held', 1))
    chat.ask('what color is it?')
    pieces, length, steps, before = list(chat.pieces), int(chat.cache.length), len(
        chat.before), next_word(chat)[0]
    with pytest.raises((BadInput, BadItem), match=message):
        chat_turn(chat, line, str(out))
    assert (chat.pieces, int(chat.cache.length), len(chat.before)) == (pieces, length, steps)
    assert torch.allclose(next_word(chat)[0], before, atol=LOG_P)


def test_a_chat_goes_on_after_lines_of_any_kind(chat, out, monkeypatch, capsys):
    """Each gets one line, on stderr where it is a mistake, and none moves the cursor."""
    lines = [
        f'/image {out}/pictures/a.png', 'what is \x1b[2J \u202e it? \ufffd', '/image /dev/zero', '/image \0',
        '', '/image', '/bad', '/undo', '/undo', '/undo', '/reset', '/quit', 'never'
    ]
    monkeypatch.setattr('sys.stdin', io.StringIO('\n'.join(lines)))
    run_chat(chat, str(out))
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 5 and printed.out.splitlines()[0] == 'picture 1'
    errors = [line for line in printed.err.splitlines() if 'error: ' in line]
    assert len(errors) == 5 == len(printed.err.splitlines(
    )) - 1 and '\x1b' not in printed.out + printed.err and '\u202e' not in printed.out + printed.err
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
