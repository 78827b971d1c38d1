"""Fine-tuning with few weights: what trains is what should, it starts as the model that it adapts, and the
file that it leaves answers as the model in memory does."""
import numpy as np
import pytest
import torch

from data import Encoded
from kit import adapt
from kit.tasks.asker import load
from kit.tasks.episodes import episodes_of
from kit.weights import checkpoint
from model import Flamingo, FlamingoConfig
from test_end_to_end import TINY, run
from tiny_model import save_tiny

SIZES = dict(n_vocab=40, bos=38, pad=39, lm_layer=2, lm_dim=16, lm_head=2, n_context=32, xattn_head=2,
             xattn_head_dim=8, resampler_layer=1, resampler_dim=16, resampler_head=2, resampler_head_dim=8,
             n_latent=3, image_size=32, dim_embed=8)


def build(way):
    """-> a plain Flamingo, and one that begins as it does"""
    torch.manual_seed(0)
    plain = Flamingo(FlamingoConfig(**SIZES))
    for layer in plain.gated:
        torch.nn.init.constant_(layer.alpha_x, 0.5)
        torch.nn.init.constant_(layer.alpha_d, 0.5)
    model = adapt.WAYS[way].model(plain.config)
    model.load_state_dict(adapt.grown(model, plain.state_dict()))
    adapt.begin(model, way)
    return plain.eval(), model.eval()


def inputs():
    tokens = torch.tensor([[38, 1, 40, 2, 3, 41]])
    return tokens, torch.tensor([[0, 0, 1, 1, 1, 1]]), torch.randn(1, 1, 1, 3, 32, 32)


@pytest.mark.parametrize('way', adapt.WAYS)
def test_it_begins_as_the_model_that_it_adapts(way):
    plain, model = build(way)
    assert torch.equal(plain(*inputs()[:2])[0], model(*inputs()[:2])[0])
    tokens, index, media = inputs()
    assert torch.equal(plain(tokens, index, media)[0], model(tokens, index, media)[0])


@pytest.mark.parametrize('way', adapt.WAYS)
def test_only_what_should_train_trains(way):
    _, model = build(way)
    before = {name: p.clone() for name, p in model.named_parameters()}
    tokens, index, media = inputs()
    if way == 'prompt':
        encoded = adapt.with_prompt(Encoded(tokens[0].numpy(), index[0].numpy(), np.ones(6, bool), ['a']),
                                    model.config)
        tokens, index = (torch.tensor(x)[None] for x in (encoded.tokens, encoded.image_index))
    targets = tokens.roll(-1, 1).masked_fill(tokens.roll(-1, 1) >= 38, -100)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1.0)
    for _ in range(2):  # a silent adapter's first matrix moves from the second step on
        model(tokens, index, media, targets)[1].backward()
        optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    expected = {
        'prompt': lambda name: name == 'soft_prompt',
        'adapter': lambda name: '.adapter.' in name,
        'bitfit': lambda name: name.endswith('bias') and not name.startswith('vision'),
        'all': lambda name: not name.startswith('lm.') and name != 'vision.projection.weight'}[way]
    assert moved and all(map(expected, moved))
    if way == 'all':
        assert any(name.startswith('vision.') for name in moved)
    if way == 'bitfit':
        assert any(name.startswith('lm.') for name in moved)


def test_soft_words_stand_after_bos_and_change_nothing_else():
    config = FlamingoConfig(**SIZES)
    encoded = Encoded(np.array([38, 1, 40, 2, 41]), np.array([0, 0, 1, 1, 1]),
                      np.array([False, True, False, True, True]), ['a'], start=30)
    found = adapt.with_prompt(encoded, config)
    assert found.tokens.tolist() == [38, *range(42, 50), 1, 40, 2, 41]
    assert found.image_index.tolist() == [0] * 9 + [0, 1, 1, 1]
    assert found.loss_mask.tolist() == [False] * 9 + [True, False, True, True]
    assert found.start == 32 - 13 and found.media == ['a']
    window = Encoded(np.array([40, 2]), np.array([1, 1]), np.array([False, True]), ['a'])  # begins later
    assert adapt.with_prompt(window, config).tokens.tolist() == [*range(42, 50), 40, 2]
    long = Encoded(np.arange(30) % 30, np.zeros(30, int), np.ones(30, bool), [])
    assert len(adapt.with_prompt(long, config).tokens) == 32


def test_the_head_never_says_a_soft_word():
    _, model = build('prompt')
    assert model(*inputs()[:2])[0].shape[-1] == 42


@pytest.mark.parametrize('way', ['prompt', 'adapter'])
def test_the_file_answers_as_the_model_in_memory(way, tmp_path):
    save_tiny(tmp_path / 'flamingo.pt')
    plain, _ = load(str(tmp_path / 'flamingo.pt'))
    content = checkpoint.load(str(tmp_path / 'flamingo.pt'), 'flamingo')
    model = adapt.WAYS[way].model(plain.model.config)
    model.load_state_dict(adapt.grown(model, content['flamingo']))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if adapt.WAYS[way].trains(name):
                p.copy_(torch.randn_like(p) * 0.3)
    kept = {k: v for k, v in content.items() if k not in ('format', 'kind')}
    kept |= {'flamingo': model.state_dict(), 'adapt': way}
    checkpoint.save(str(tmp_path / 'finetune.pt'), 'flamingo', **kept)
    adapted, _ = load(str(tmp_path / 'finetune.pt'))
    episodes = episodes_of('naming', 1, 2, 2)
    before, after = plain.answer(episodes), adapted.answer(episodes)
    assert before[0]['logprob'] != after[0]['logprob']
    adapted.model = model.eval()
    assert adapted.answer(episodes) == after


def test_an_unknown_way_is_refused(tmp_path):
    save_tiny(tmp_path / 'flamingo.pt')
    content = checkpoint.load(str(tmp_path / 'flamingo.pt'), 'flamingo')
    kept = {k: v for k, v in content.items() if k not in ('format', 'kind')}
    checkpoint.save(str(tmp_path / 'flamingo.pt'), 'flamingo', **kept | {'adapt': 'magic'})
    with pytest.raises(ValueError, match='adapted in a way'):
        load(str(tmp_path / 'flamingo.pt'))


def test_train_py_adapts(tmp_path):
    out = f'--out_dir={tmp_path}/out'
    run('train.py', out, *TINY)
    run('train.py', out, *TINY, '--stage=finetune', '--adapt=prompt', '--finetune_iters=2')
    asker, _ = load(f'{tmp_path}/out/finetune.pt')
    assert asker.model.soft_prompt.shape[0] == adapt.N_SOFT
    assert 'expected all, adapter' in run('train.py', out, '--stage=finetune', '--adapt=lora', code=2)
