"""What `sample.py --explain=True` says is what the model does: flags, shapes, lines, probabilities."""
import json
import sys
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import sample
from data import Document, encode, Given, load_pixels, Media
from kit.episode import BLANK
from kit.tasks import explain
from kit.tasks.asker import load, NANO
from kit.tasks.controls import blank_support
from kit.world.draw import clip_media, picture_media
from kit.world.tasks import naming_episode


@pytest.fixture(scope='module')
def asker():
    return load(NANO)[0]


@pytest.fixture(scope='module')
def episode():
    return naming_episode(np.random.default_rng([0, 2]), 'held', 4, 1)


@pytest.fixture(scope='module')
def explained(asker, episode):
    return explain.explain(asker, episode.document(), episode.query.answer)


def training_text(episode):
    pieces = [p for e in [*episode.support, episode.query] for p in e.pieces()]
    return Document(pieces, 'examples')


# ---------------------------------------------------------------------------------------------
# Tokens


def test_tokens_are_those_of_the_same_text_in_training(asker, episode, explained):
    """Examples as Example.pieces gives them to training, which is where their answers are learned."""
    encoded = encode(training_text(episode), asker.tokenizer)
    assert [t.learned for t in explained.tokens] == encoded.loss_mask.tolist()
    assert [t.image_index for t in explained.tokens] == encoded.image_index.tolist()
    texts = {asker.tokenizer.bos: '<BOS>', asker.tokenizer.image: '<image>', asker.tokenizer.eoc: '<EOC>'}
    expected = [texts.get(i) or asker.tokenizer.decode([i]) for i in encoded.tokens.tolist()]
    assert [t.text for t in explained.tokens] == expected
    assert explained.n_prompt == len(encode(episode.document(), asker.tokenizer).tokens)


# ---------------------------------------------------------------------------------------------
# Tensors


@pytest.fixture(scope='module')
def hooked(asker, episode):
    """What torch's own hooks see of the modules' outputs, the same prompt read -> {module: [shape, …]}"""
    model, seen = asker.model, {}

    def hook(name):
        return lambda module, inputs, out: seen.setdefault(name, []).append(tuple(out.shape))

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules()
               if isinstance(module, (torch.nn.Linear, torch.nn.LayerNorm)) or name in (
                   'vision', 'resampler', 'vision.blocks.0', 'gated.0', 'lm.h.0', 'lm.h.0.attn')]
    try:
        prompts = asker.prompts([Document(training_text(episode).pieces, 'prompt')])
        media = torch.stack([torch.from_numpy(load_pixels(m, 48, 8)) for m in training_text(episode).pieces
                             if isinstance(m, Media)])[None]
        model(prompts['tokens'], prompts['image_index'], media, frame_mask=prompts['frame_mask'])
    finally:
        for handle in handles:
            handle.remove()
    return seen


def shape(tuple_):
    return str(tuple_).replace(' ', '')


def last_of(explained, function):
    return [line for line in explained.lines if line.path[-1] == function][-1].shapes


def test_shapes_are_those_that_hooks_see(explained, hooked):
    for function, module in (('NFNet.forward', 'vision'), ('PerceiverResampler.forward', 'resampler'),
                             ('NFBlock.forward', 'vision.blocks.0'), ('Block.forward', 'lm.h.0'),
                             ('GatedCrossAttention.forward', 'gated.0'),
                             ('SelfAttention.forward', 'lm.h.0.attn')):
        assert last_of(explained, function) == [shape(hooked[module][-1])], function


def test_the_way_in_short_is_complete_and_right(asker, explained, hooked):
    c, n, t = asker.model.config, 5, len(explained.tokens) - 1
    parts = {name: line.shapes[-1] for name, line in explain.stations(explained.lines).items()}
    assert parts == {
        'pixels': f'(1,{n},1,3,{c.image_size},{c.image_size})',
        'features': shape(hooked['vision'][-1]),
        'visual tokens': f'(1,{n},{c.n_latent},{c.resampler_dim})',
        'keys and values': f'2 × (1,{n},{c.xattn_head},{c.n_latent},{c.xattn_head_dim})',
        'stream': f'(1,{t},{c.lm_dim})',
        'logits': f'(1,{t},{c.n_vocab + 2})',
    }


def test_each_line_is_where_its_names_are_given(explained):
    """The line of the file says it: `name = …`, several names, or `return …`."""
    source = {}
    for line in explained.lines:
        if line.file not in source:
            with open(line.file, encoding='utf-8') as f:
                source[line.file] = f.read().splitlines()
        text, *more = source[line.file][line.line - 1:line.line + 4]
        for name in line.names:
            assert name == 'return' and 'return ' in text or name in text.split('#')[0], (line, text)
        assert line.letters in ' '.join([text, *more])


def test_letters_agree_with_shapes_in_number(explained):
    """A comment (B,T,D) stands beside a tensor of three dimensions."""
    stated = [line for line in explained.lines if line.letters]
    assert len(stated) > 15
    for line in stated:
        n = len([part for part in line.letters.strip('()').split(',') if part])
        for made in line.shapes:
            assert len([part for part in made.split('(')[1].strip(')').split(',') if part]) == n, line


def test_loops_are_counted_and_layers_followed_once(asker, explained):
    stream = [line for line in explained.lines if line.path[-1] == 'Flamingo.stream' and line.times > 1]
    assert [line.times for line in stream] == [asker.model.config.lm_layer] * 2  # gated layers and blocks
    assert sum(line.path[-1] == 'Block.forward' and 'return' in line.names for line in explained.lines) == 1


def test_watching_leaves_no_trace_behind():
    before = sys.gettrace()
    with pytest.raises(ZeroDivisionError), explain.Watch():
        1 / 0
    assert sys.gettrace() is before


# ---------------------------------------------------------------------------------------------
# Words


def plain_probabilities(asker, document, n_prompt):
    """A forward in float64, pictures and all -> (answer,V+2)"""
    model = deepcopy(asker.model).double()
    encoded = encode(document, asker.tokenizer)
    frames = [load_pixels(m, 48, 8) for m in encoded.media]
    longest = max(map(len, frames))
    mask = torch.tensor([[[k < len(f) for k in range(longest)] for f in frames]])
    media = torch.zeros(1, len(frames), longest, 3, 48, 48, dtype=torch.uint8)
    for n, f in enumerate(frames):
        media[0, n, :len(f)] = torch.from_numpy(f)
    tokens, index = (torch.from_numpy(x)[None, :-1] for x in (encoded.tokens, encoded.image_index))
    with torch.no_grad():
        return model(tokens, index, media, frame_mask=mask)[0][0, n_prompt - 1:].softmax(-1)


def check_words(asker, words, ids, exact, blanked=False):
    assert len(words) == len(ids) == len(exact)
    for word, token, p in zip(words, ids, exact):
        said = word.probability_blanked if blanked else word.probability
        likely = word.blanked if blanked else word.likely
        # Logits of up to 20 in float32, after some ten layers, are off by 1e-4 at most.
        assert said == pytest.approx(float(p[token]), rel=1e-3, abs=1e-6)
        assert [q for _, q in likely] == pytest.approx(p.topk(5).values.tolist(), rel=1e-3, abs=1e-6)
        texts = [explain.token_text(asker.tokenizer, i) for i in p.topk(8).indices.tolist()]
        assert {text for text, _ in likely} <= set(texts)


def test_probabilities_are_those_of_a_plain_forward(asker, episode, explained):
    ids = encode(training_text(episode), asker.tokenizer).tokens[explained.n_prompt:].tolist()
    exact = plain_probabilities(asker, training_text(episode), explained.n_prompt)
    check_words(asker, explained.words, ids, exact)
    exact = plain_probabilities(asker, training_text(blank_support(episode)), explained.n_prompt)
    check_words(asker, explained.words, ids, exact, blanked=True)
    assert explained.words[0].probability > explained.words[0].probability_blanked  # it did look


def test_clips_and_pictures_side_by_side(asker):
    pieces = [clip_media('held', 1), Given('Output:'), ' it moves up.',
              picture_media('held', 2), Given('Output:')]
    explained = explain.explain(asker, Document(pieces, 'prompt'), 'a red cross.')
    whole = Document(pieces + [' a red cross.'], 'examples')
    ids = encode(whole, asker.tokenizer).tokens[explained.n_prompt:].tolist()
    check_words(asker, explained.words, ids, plain_probabilities(asker, whole, explained.n_prompt))
    blanked = Document([BLANK, *pieces[1:], ' a red cross.'], 'examples')
    exact = plain_probabilities(asker, blanked, explained.n_prompt)
    check_words(asker, explained.words, ids, exact, blanked=True)
    assert explain.stations(explained.lines)['pixels'].shapes == ['(1,2,8,3,48,48)']


def test_one_picture_leaves_nothing_to_blank(asker):
    document = Document([picture_media('held', 2), Given('Output:')], 'prompt')
    explained = explain.explain(asker, document, 'a red cross.')
    assert all(word.blanked is None and word.probability_blanked is None for word in explained.words)
    assert 'blanked  ' not in explain.as_text(explained)
    explain.as_picture(explained)


def test_what_does_not_fit_the_context_is_left_out(asker):
    document = Document([picture_media('held', 2), Given('Output:' + ' a' * 490)], 'prompt')
    explained = explain.explain(asker, document, 'red ' * 100)
    assert len(explained.tokens) == asker.model.lm.n_context + 1
    assert len(explained.words) == len(explained.tokens) - explained.n_prompt > 0


def test_an_empty_answer_is_only_its_end(asker):
    document = Document([picture_media('held', 2), Given('Output:')], 'prompt')
    assert [word.text for word in explain.explain(asker, document, '').words] == ['<EOC>']


# ---------------------------------------------------------------------------------------------
# On screen and as a picture


@pytest.mark.parametrize('width', [40, 100])
def test_tokens_wrap_to_the_screen_and_none_is_lost(explained, width):
    tokens = explained.tokens * 20
    table = explain.token_table(tokens, width)
    rows = table.splitlines()
    assert max(map(len, rows)) <= width
    assert ' '.join(row[8:] for row in rows if row.startswith('token')).split() == \
        [explain.visible(t.text) for t in tokens]
    sees = ' '.join(row[8:] for row in rows if row.startswith('sees')).split()
    assert sees == [str(t.image_index) for t in tokens]
    assert sum(row.count('✓') for row in rows) == sum(t.learned for t in tokens)


def test_text_is_all_there(explained):
    text = explain.as_text(explained)
    for line in explained.lines:
        assert f'{line.file}:{line.line} ' in text and line.shapes[-1] in text
    for word in explained.words:
        assert f'{100 * word.probability:.1f} %' in text and f'{100 * word.probability_blanked:.1f} %' in text


def test_hostile_text_can_be_explained(asker):
    text = '\u202e\x1b[31m 漢字 \U0001F600 <image> \n\n' + 'x' * 60
    explained = explain.explain(asker, Document([picture_media('held', 2), Given(text)], 'prompt'), text)
    shown = explain.as_text(explained)
    assert '\x1b' not in shown and '\u202e' not in shown
    assert explain.as_picture(explained).width == 1000


def test_sample_shows_it(asker, tmp_path, monkeypatch, capsys):
    picture = tmp_path / 'way.png'
    arguments = f'--out_dir={tmp_path}', '--explain=True', f'--picture={picture}'
    monkeypatch.setattr(sys, 'argv', ['sample.py', *arguments])
    sample.main()
    said = capsys.readouterr().out
    assert all(title in said for title, _ in explain.TITLES)
    with Image.open(picture) as image:
        assert image.width == 1000 and image.height > 1000
    config = SimpleNamespace(explain=True, picture='', json=True)
    document = Document([picture_media('held', 2), Given('Output:')], 'prompt')
    explain.show(asker, document, 'a red cross.', config)
    told = json.loads(capsys.readouterr().out)
    assert len(told['words']) == len(told['tokens']) - told['n_prompt'] and told['pictures'] == 1
