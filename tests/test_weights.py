"""Published weights: GPT-2's and timm's NFNets against slow references, in every form of their files."""
import json
import math
import os
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import vision
from kit.files import BadInput
from kit.weights import gpt2, gpt2_sizes, nfnet, nfnet_sizes
from kit.weights.reading import read_published
from rounding import EPS, assert_near

# ---------------------------------------------------------------------------------------------
# GPT-2


def gpt2_state(n_layer=2, dim=128, n_vocab=300, n_context=40, prefix='transformer.'):
    """A tiny GPT-2 as the hub has it: matrices as (in, out), the masks among the weights, the head a second
    name of wte."""
    g = torch.Generator().manual_seed(0)
    state = {'wte.weight': (n_vocab, dim), 'wpe.weight': (n_context, dim)}
    state |= {'ln_f.weight': (dim,), 'ln_f.bias': (dim,)}
    matrices = {'attn.c_attn': (dim, 3 * dim), 'attn.c_proj': (dim, dim),
                'mlp.c_fc': (dim, 4 * dim), 'mlp.c_proj': (4 * dim, dim)}
    for i in range(n_layer):
        for name, (n_in, n_out) in matrices.items():
            state |= {f'h.{i}.{name}.weight': (n_in, n_out), f'h.{i}.{name}.bias': (n_out,)}
        state |= {f'h.{i}.{ln}.{part}': (dim,) for ln in ('ln_1', 'ln_2') for part in ('weight', 'bias')}
    gains = {k: float('ln_' in k and k.endswith('weight')) for k in state}
    state = {prefix + k: torch.randn(shape, generator=g) * 0.15 + gains[k] for k, shape in state.items()}
    mask = torch.ones(1, 1, n_context, n_context).tril()
    state |= {f'{prefix}h.{i}.attn.bias': mask for i in range(n_layer)}
    state |= {f'{prefix}h.{i}.attn.masked_bias': torch.tensor(-1e4) for i in range(n_layer)}
    return state | {'lm_head.weight': state[prefix + 'wte.weight']}


def slow_gpt2(state, tokens, n_head=2, eps=1e-5, by_layer=False, scaled=True):
    """OpenAI's forward from the file's own tensors, float64, one head at a time: tokens (T,) -> logits (T,V).

    by_layer: scores are divided by the number of the layer too, from 1; scaled: and by the root of the
    head's width.
    """
    w = {k.removeprefix('transformer.'): v.double().numpy() for k, v in state.items()}
    dim = w['wte.weight'].shape[1]
    width = dim // n_head

    def norm(x, name):
        x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + eps)
        return x * w[name + '.weight'] + w[name + '.bias']

    def conv1d(x, name):
        return x @ w[name + '.weight'] + w[name + '.bias']

    x = w['wte.weight'][tokens] + w['wpe.weight'][:len(tokens)]
    for i in range(sum(k.endswith('attn.c_attn.weight') for k in w)):
        qkv = conv1d(norm(x, f'h.{i}.ln_1'), f'h.{i}.attn.c_attn')
        heads = []
        for h in range(n_head):
            q, k, v = (qkv[:, part * dim + h * width: part * dim + (h + 1) * width] for part in range(3))
            score = q @ k.T / (math.sqrt(width) if scaled else 1) / (i + 1 if by_layer else 1)
            score[np.triu_indices(len(tokens), 1)] = -np.inf
            p = np.exp(score - score.max(1, keepdims=True))
            heads.append(p / p.sum(1, keepdims=True) @ v)
        x = x + conv1d(np.concatenate(heads, 1), f'h.{i}.attn.c_proj')
        z = conv1d(norm(x, f'h.{i}.ln_2'), f'h.{i}.mlp.c_fc')
        z = 0.5 * z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z ** 3)))
        x = x + conv1d(z, f'h.{i}.mlp.c_proj')
    return norm(x, 'ln_f') @ w['wte.weight'].T


TOKENS = torch.randint(0, 300, (40,), generator=torch.Generator().manual_seed(1))


def check_logits(lm, state, **options):
    """A GPT's logits, computed in float64, are those of the slow reference."""
    expected = slow_gpt2(state, TOKENS.numpy(), **options)
    with torch.no_grad():
        logits, _ = lm.double()(TOKENS[None])
    assert_near(logits[0], torch.from_numpy(expected), 1e4)
    assert expected.std() > 0.5


@pytest.mark.parametrize('prefix', ['transformer.', ''])
def test_gpt2_logits_are_those_of_a_slow_reference(tmp_path, prefix):
    state = gpt2_state(prefix=prefix)
    torch.save(state, tmp_path / 'pytorch_model.bin')
    lm = gpt2(str(tmp_path))
    sizes = {'n_vocab': 300, 'lm_layer': 2, 'lm_dim': 128, 'lm_head': 2, 'lm_eps': 1e-5,
             'lm_qk_norm': False, 'n_context': 40}
    assert gpt2_sizes(tmp_path) == sizes
    assert all(p.requires_grad and p.dtype == torch.float32 for p in lm.parameters())
    check_logits(lm, state)


# config.json as the hub has it, for the sizes above.
CONFIG = {'model_type': 'gpt2', 'architectures': ['GPT2LMHeadModel'], 'activation_function': 'gelu_new',
          'n_head': 2, 'n_embd': 128, 'n_layer': 2, 'n_positions': 40, 'n_inner': None, 'vocab_size': 300,
          'layer_norm_epsilon': 1e-05, 'attn_pdrop': 0.1, 'scale_attn_weights': True, 'bos_token_id': 50256}


def write_gpt2(folder, **config):
    state = gpt2_state()
    torch.save(state, folder / 'pytorch_model.bin')
    (folder / 'config.json').write_text(json.dumps(CONFIG | config))
    return state


@pytest.mark.parametrize('config, options', [
    ({}, {}),
    ({'n_head': 4}, {'n_head': 4}),
    ({'n_head': 1}, {'n_head': 1}),
    ({'layer_norm_epsilon': 1e-2}, {'eps': 1e-2}),
    ({'scale_attn_by_inverse_layer_idx': True}, {'by_layer': True}),
    ({'scale_attn_weights': False}, {'scaled': False}),
    ({'scale_attn_by_inverse_layer_idx': True, 'scale_attn_weights': False, 'n_head': 8},
     {'by_layer': True, 'scaled': False, 'n_head': 8}),
    ({'reorder_and_upcast_attn': True, 'activation_function': 'gelu_pytorch_tanh'}, {}),
])
def test_config_json_is_honoured(tmp_path, config, options):
    state = write_gpt2(tmp_path, **config)
    lm = gpt2(tmp_path)
    check_logits(lm, state, **options)
    plain, asked = (slow_gpt2(state, TOKENS.numpy(), **said) for said in ({}, options))
    assert not options or np.abs(plain - asked).max() > 1e-2  # a case that would show if it were ignored
    sizes = gpt2_sizes(tmp_path / 'pytorch_model.bin')
    assert (sizes['lm_head'], sizes['lm_eps']) == (options.get('n_head', 2), options.get('eps', 1e-5))


@pytest.mark.parametrize('config, message', [
    ({'activation_function': 'gelu'}, "config.json: activation_function='gelu'; model.GPT has 'gelu_new'"),
    ({'activation_function': 'relu'}, "activation_function='relu'"),
    ({'model_type': 'gpt_neo'}, "model_type='gpt_neo'"),
    ({'add_cross_attention': True}, 'add_cross_attention=True'),
    ({'n_head': 3}, '2 layers of width 128 and 3 heads'),
    ({'n_head': None}, 'None heads'), ({'n_head': 0}, '0 heads'), ({'n_head': True}, 'True heads'),
    ({'layer_norm_epsilon': 0}, 'layer_norm_epsilon=0'),
    ({'layer_norm_epsilon': 'x'}, "layer_norm_epsilon='x'"),
    ({'n_layer': 12}, r'config.json: n_layer=12, and in .*pytorch_model.bin it is 2'),
    ({'n_embd': 64}, 'n_embd=64'), ({'n_positions': 1024}, 'n_positions=1024'),
    ({'vocab_size': 50257}, 'vocab_size=50257'),
    ({'n_inner': 256}, 'n_inner=256'),
])
def test_what_gpt_does_not_do_is_refused_by_name(tmp_path, config, message):
    write_gpt2(tmp_path, **config)
    for read in gpt2, gpt2_sizes:
        with pytest.raises(BadInput, match=message) as e:
            read(tmp_path)
        assert '\n' not in str(e.value) and str(tmp_path) in str(e.value)


def test_a_head_of_its_own_is_refused(tmp_path):
    """tie_word_embeddings=False is harmless if the two are the same; a missing head would be random."""
    state = write_gpt2(tmp_path, tie_word_embeddings=False)
    check_logits(gpt2(tmp_path), state)
    torch.save({k: v for k, v in state.items() if k != 'lm_head.weight'}, tmp_path / 'pytorch_model.bin')
    with pytest.raises(BadInput, match='tie_word_embeddings=False'):
        gpt2(tmp_path)


@pytest.mark.parametrize('content', ['', '[]', '3', '{"n_head": 2', '[' * 100_000, '\xff'])
def test_a_damaged_config_is_one_line(tmp_path, content):
    write_gpt2(tmp_path)
    (tmp_path / 'config.json').write_bytes(content.encode('latin-1'))
    with pytest.raises(BadInput, match='config.json') as e:
        gpt2(tmp_path)
    assert '\n' not in str(e.value)


def test_gpt2_half_precision_becomes_float32(tmp_path):
    torch.save({k: v.half() for k, v in gpt2_state().items()}, tmp_path / 'w.bin')
    assert {p.dtype for p in gpt2(tmp_path / 'w.bin').parameters()} == {torch.float32}


def change(state, key, value):
    return {k: v for k, v in (state | {key: value}).items() if v is not None}


@pytest.mark.parametrize('key, value, message', [
    ('transformer.h.1.mlp.c_fc.bias', None, r'lacks h\.1\.mlp\.c_fc\.bias'),
    ('transformer.h.1.mlp.c_fc.weight', torch.zeros(512, 128),
     r'has h\.1\.mlp\.c_fc\.weight of shape \(512, 128\), expected \(128, 512\)'),
    ('transformer.h.0.crossattention.c_attn.weight', torch.zeros(3),
     r'has h\.0\.crossattention\.c_attn\.weight, which the model lacks'),
    ('lm_head.weight', torch.zeros(300, 128), r'lm_head\.weight is not wte\.weight'),
    ('lm_head.weight', torch.zeros(300, 128).half(), r'lm_head\.weight is not wte\.weight'),
    ('transformer.wte.weight', torch.zeros(300, 100), r'width is 100'),
    ('transformer.wpe.weight', None, r'not a GPT-2: no matrix wpe\.weight'),
    ('transformer.h.0.attn.c_proj.bias', torch.zeros(128, dtype=torch.int8),
     r'attn\.c_proj\.bias of type torch\.int8'),
    ('wte.weight', torch.zeros(300, 128), r'has wte\.weight twice'),
])
def test_gpt2_names_the_first_offending_key(tmp_path, key, value, message):
    torch.save(change(gpt2_state(), key, value), tmp_path / 'w.bin')
    with pytest.raises(BadInput, match=message) as e:
        gpt2(str(tmp_path / 'w.bin'))
    assert '\n' not in str(e.value) and 'w.bin' in str(e.value)


# ---------------------------------------------------------------------------------------------
# Files


def same(path, state):
    read = read_published(path)[0]
    assert list(read) == [k.removeprefix('transformer.') for k in state]
    assert all(torch.equal(value, read[k.removeprefix('transformer.')]) for k, value in state.items())


def save_safetensors(state, path):
    """As the package of that name writes it: the header's length, the header, the numbers."""
    header, data = {'__metadata__': {'format': 'pt'}}, b''
    names = {torch.float32: 'F32', torch.float16: 'F16', torch.bfloat16: 'BF16', torch.bool: 'BOOL'}
    for key, value in state.items():
        raw = bytes(value.contiguous().flatten().view(torch.uint8).numpy())
        header[key] = {'dtype': names[value.dtype], 'shape': list(value.shape),
                       'data_offsets': [len(data), len(data) + len(raw)]}
        data += raw
    header = json.dumps(header).encode()
    path.write_bytes(len(header).to_bytes(8, 'little') + header + data)


def test_safetensors_are_read_without_their_package(tmp_path):
    state = gpt2_state()
    save_safetensors(state, tmp_path / 'model.safetensors')
    same(tmp_path, state)
    check_logits(gpt2(tmp_path), state)
    odd = {'a': torch.tensor([True, False, True]), 'b': torch.randn(3, 5).bfloat16(), 'c': torch.zeros(0, 4),
           'd': torch.randn(2, 2), 'e': torch.tensor(2.5).half()}  # after 3 bytes, all lie askew
    save_safetensors(odd, tmp_path / 'model.safetensors')
    same(tmp_path, odd)


def test_the_old_format_of_torch_is_read(tmp_path):
    """OpenAI's GPT-2 on the hub is of 2019: pickles one after the other, no zip archive."""
    state = gpt2_state()
    torch.save(state, tmp_path / 'pytorch_model.bin', _use_new_zipfile_serialization=False)
    same(tmp_path, state)
    check_logits(gpt2(tmp_path), state)


def write_shards(folder, state, safe):
    """The same tensors in three files and an index, as save_pretrained writes large models."""
    names, where = list(state), {}
    ending, stem = ('safetensors', 'model') if safe else ('bin', 'pytorch_model')
    for n in range(3):
        name = f'{stem}-{n + 1:05d}-of-00003.{ending}'
        part = {k: state[k] for k in names[n::3]}
        where |= dict.fromkeys(part, name)
        save_safetensors(part, folder / name) if safe else torch.save(part, folder / name)
    index = folder / f'{stem}.{ending}.index.json'
    index.write_text(json.dumps({'metadata': {'total_size': 3}, 'weight_map': where}))
    return index, where


@pytest.mark.parametrize('safe', [True, False])
def test_weights_in_several_files(tmp_path, safe):
    state = gpt2_state()
    index, where = write_shards(tmp_path, state, safe)
    for path in tmp_path, index:
        check_logits(gpt2(path), state)
    (tmp_path / sorted(where.values())[-1]).unlink()
    with pytest.raises(BadInput, match='00003-of-00003.*: no such file'):
        gpt2(tmp_path)


@pytest.mark.parametrize('name', ['../secret.bin', '/secret.bin', 'a/secret.bin', '..', '.', '',
                                  'C:secret.bin', '..\\secret.bin'])
def test_an_index_never_leaves_its_folder(tmp_path, name):
    (tmp_path / 'a').mkdir()
    torch.save(gpt2_state(), tmp_path / 'secret.bin')
    index, where = write_shards(tmp_path / 'a', gpt2_state(), False)
    name = str(tmp_path / 'secret.bin') if name.startswith('/') else name
    index.write_text(json.dumps({'weight_map': where | {'lm_head.weight': name}}))
    with pytest.raises(BadInput, match='not a file beside it'):
        gpt2(tmp_path / 'a')


@pytest.mark.parametrize('content, message', [
    ('{}', 'no weight_map'), ('[]', 'no weight_map'), ('{"weight_map": {}}', 'no weight_map'),
    ('{', 'not JSON'),
    ('{"weight_map": {"wte.weight": 3}}', 'no weight_map'), ('{"weight_map": [1]}', 'no weight_map'),
    ('{"weight_map": {"x": "pytorch_model-00001-of-00003.bin"}}', 'pytorch_model-00001-of-00003.bin lacks x'),
    ('{"weight_map": {"x": "pytorch_model.bin.index.json"}}', 'damaged'),
])
def test_a_damaged_index_is_one_line(tmp_path, content, message):
    index, _ = write_shards(tmp_path, gpt2_state(), False)
    index.write_text(content)
    with pytest.raises(BadInput, match=message):
        gpt2(tmp_path)


@pytest.mark.parametrize('wrap', [
    lambda s: {'state_dict': s, 'epoch': 3, 'optimizer': {'lr': 0.1}},
    lambda s: {'model': s, 'iter_num': 3},
    lambda s: {'model': {'state_dict': s}},
    lambda s: {'module.' + k: v for k, v in s.items()},
    lambda s: {'_orig_mod.' + k: v for k, v in s.items()},
    lambda s: {'state_dict': {'module._orig_mod.' + k: v for k, v in s.items()}},
    lambda s: {k.replace('.h.0.', '.h.0._orig_mod.'): v for k, v in s.items()},
    lambda s: {'model.' + k: torch.nn.Parameter(v, requires_grad=False) for k, v in s.items()},
])
def test_wrappers_and_prefixes(tmp_path, wrap):
    """What PyTorch's own tools put around a state dict and before its names."""
    state = gpt2_state()
    torch.save(wrap(state), tmp_path / 'w.pt')
    same(tmp_path / 'w.pt', state)


class Evil:
    def __reduce__(self):
        return os.system, ('echo this must never run; exit 1',)


class Bomb:
    def __reduce__(self):
        return bytearray, (10 ** 11,)


def test_files_that_are_no_weights(tmp_path):
    (tmp_path / 'bad.bin').write_bytes(b'no weights at all')
    torch.save([1, 2], tmp_path / 'list.bin')
    torch.save({'a': 3}, tmp_path / 'numbers.bin')
    torch.save({'wte.weight': torch.zeros(1).expand(10 ** 6, 64)}, tmp_path / 'huge.bin')
    torch.save(gpt2_state(), tmp_path / 'short.bin')
    (tmp_path / 'short.bin').write_bytes((tmp_path / 'short.bin').read_bytes()[:-1000])
    for name, content in ('evil', Evil()), ('bomb', Bomb()):
        for new in True, False:
            torch.save({'a': content}, tmp_path / f'{name}{new}.bin', _use_new_zipfile_serialization=new)
    (tmp_path / 'plain.bin').write_bytes(pickle.dumps({'a': Evil()}))
    itself = {}
    itself['model'] = itself
    torch.save(itself, tmp_path / 'itself.bin')
    cases = {'none.bin': 'no such file', 'bad.bin': 'damaged', 'list.bin': 'not a dict',
             'numbers.bin': 'not a dict', 'huge.bin': 'larger than the file', 'short.bin': 'damaged',
             'evilTrue.bin': 'nothing in it was run',
             'evilFalse.bin': 'nothing in it was run', 'bombTrue.bin': 'nothing in it was run',
             'bombFalse.bin': 'nothing in it was run', 'plain.bin': 'nothing in it was run',
             'itself.bin': 'not a dict', '.': 'holds neither'}
    for name, message in cases.items():
        with pytest.raises(BadInput, match=message) as e:
            gpt2(str(tmp_path / name))
        assert '\n' not in str(e.value)


@pytest.mark.parametrize('header', [
    {'dtype': 'F32', 'shape': [3], 'data_offsets': [0, 8]},         # shape and place disagree
    {'dtype': 'F32', 'shape': [2], 'data_offsets': [4, 12]},        # beyond the end
    {'dtype': 'F32', 'shape': [2], 'data_offsets': [-8, 0]},
    {'dtype': 'F32', 'shape': [-1, -2], 'data_offsets': [0, 8]},
    {'dtype': 'F32', 'shape': [10 ** 30], 'data_offsets': [0, 8]},
    {'dtype': 'F32', 'shape': 'x', 'data_offsets': [0, 8]},
    {'dtype': 'F8_E4M3', 'shape': [8], 'data_offsets': [0, 8]},
    {'dtype': ['F32'], 'shape': [2], 'data_offsets': [0, 8]}, 3, None, {},
])
def test_damaged_safetensors_are_one_line(tmp_path, header):
    raw = json.dumps({'a': header}).encode()
    good = len(raw).to_bytes(8, 'little')
    for content in (good + raw + bytes(8), b'', b'12345', (1 << 60).to_bytes(8, 'little')):
        (tmp_path / 'model.safetensors').write_bytes(content)
        with pytest.raises(BadInput, match='model.safetensors') as e:
            read_published(tmp_path)
        assert '\n' not in str(e.value)


@pytest.mark.parametrize('name', ['w.safetensors', 'new.bin', 'old.bin', 'config.json', 'w.bin.index.json'])
def test_wounded_files_are_read_or_refused(tmp_path, name):
    """Bytes changed, cut out and doubled, mostly near the beginning, where the headers are."""
    state, rng = gpt2_state(n_layer=1, dim=64, n_vocab=20, n_context=4), np.random.default_rng(0)
    (tmp_path / 'config.json').write_text(json.dumps({'n_head': 1, 'layer_norm_epsilon': 1e-5}))
    save_safetensors(state, tmp_path / 'w.safetensors')
    torch.save(state, tmp_path / 'new.bin')
    torch.save(state, tmp_path / 'old.bin', _use_new_zipfile_serialization=False)
    (tmp_path / 'w.bin.index.json').write_text(json.dumps({'weight_map': dict.fromkeys(state, 'new.bin')}))
    whole, refused = (tmp_path / name).read_bytes(), 0
    path = tmp_path / ('new.bin' if name == 'config.json' else name)
    gpt2(path)
    for k in range(100):
        i = int(rng.integers(len(whole) if k % 4 == 0 else min(len(whole), 2000)))
        raw = bytes(rng.integers(0, 256, int(rng.integers(1, 4)), dtype=np.uint8))
        changed, cut = whole[:i] + raw + whole[i + len(raw):], whole[:i] + whole[i + 3:]
        new = [changed, cut, whole[:i] + whole[i // 2:], whole[:i]][k % 4]
        (tmp_path / name).unlink()  # a new file: the old one may still be mapped into memory
        (tmp_path / name).write_bytes(new)
        try:
            gpt2(path)
        except BadInput as e:
            refused += 1
            assert str(tmp_path) in str(e)
    assert refused > 20


def test_many_names_for_the_same_numbers_take_no_memory(tmp_path):
    """A small file may claim any number of tensors of one and the same storage."""
    raw = torch.zeros(1000)
    torch.save({f'h.{i}.x': raw for i in range(100)}, tmp_path / 'w.bin')
    with pytest.raises(BadInput, match='larger than the file'):
        read_published(tmp_path / 'w.bin')


# ---------------------------------------------------------------------------------------------
# timm's NFNet

TINY = dict(stem=(4, 4, 8, 8), widths=(16, 32, 32, 48), depths=(1, 1, 2, 1), group=8, alpha=0.2,
            drop_path=0.25)


def timm_state():
    """Weights in the layout of timm's dm_nfnet files, for the widths of TINY; some filters of almost no
    variance."""
    g = torch.Generator().manual_seed(0)
    state, stem = {}, (3, *TINY['stem'])

    def conv(name, n_in, n_out, kernel):
        scale = torch.where(torch.arange(n_out) % 3 == 0, 3e-3, 0.2)[:, None, None, None]
        state[name + '.weight'] = torch.randn(n_out, n_in, kernel, kernel, generator=g) * scale + 0.1
        state[name + '.bias'] = 0.1 * torch.randn(n_out, generator=g)
        state[name + '.gain'] = 1 + 0.2 * torch.randn(n_out, 1, 1, 1, generator=g)

    for i in range(4):
        conv(f'stem.conv{i + 1}', stem[i], stem[i + 1], 3)
    n_in = stem[-1]
    for s, (width, depth) in enumerate(zip(TINY['widths'], TINY['depths'])):
        for j in range(depth):
            name, mid = f'stages.{s}.{j}', width // 2 // 8 * 8
            if j == 0:
                conv(name + '.downsample.conv', n_in, width, 1)
            conv(name + '.conv1', n_in, mid, 1)
            conv(name + '.conv2', 8, mid, 3)
            conv(name + '.conv2b', 8, mid, 3)
            conv(name + '.conv3', mid, width, 1)
            for fc, a, b in (('fc1', width, width // 2), ('fc2', width // 2, width)):
                state[f'{name}.attn_last.{fc}.weight'] = torch.randn(b, a, 1, 1, generator=g) * 0.3
                state[f'{name}.attn_last.{fc}.bias'] = torch.randn(b, generator=g)
            state[name + '.skipinit_gain'] = torch.tensor(0.8)
            n_in = width
    conv('final_conv', n_in, 2 * n_in, 1)
    state['head.fc.weight'] = torch.randn(10, 2 * n_in, generator=g)
    return state | {'head.fc.bias': torch.randn(10, generator=g)}


def slow_timm(state, x):
    """timm's forward_features from the file's own tensors: standardised by batch_norm with eps 1e-5 on the
    variance, SAME padding."""
    w = {k: v.double() for k, v in state.items()}

    def conv(x, name, stride=1):
        weight = w[name + '.weight']
        flat = weight.reshape(1, len(weight), -1)
        gain = w[name + '.gain'].flatten() * weight[0].numel() ** -0.5
        flat = F.batch_norm(flat, None, None, weight=gain, training=True, momentum=0.0, eps=1e-5)
        weight = flat.view_as(weight)
        pad = [max((math.ceil(n / stride) - 1) * stride + weight.shape[-1] - n, 0) for n in x.shape[-2:]]
        x = F.pad(x, (pad[1] // 2, pad[1] - pad[1] // 2, pad[0] // 2, pad[0] - pad[0] // 2))
        return F.conv2d(x, weight, w[name + '.bias'], stride, groups=x.shape[1] // weight.shape[1])

    act = lambda x: F.gelu(x) * 1.7015043497085571
    x = conv(x.double(), 'stem.conv1', 2)
    for i in (2, 3, 4):
        x = conv(act(x), f'stem.conv{i}', 2 if i == 4 else 1)
    variance = 1.0
    for s, depth in enumerate(TINY['depths']):
        for j in range(depth):
            name, stride = f'stages.{s}.{j}', 2 if j == 0 and s > 0 else 1
            h, shortcut = act(x) / variance ** 0.5, x
            if j == 0:
                variance = 1.0
                if stride == 2:
                    shortcut = F.avg_pool2d(h, 2, 2, ceil_mode=True, count_include_pad=False)
                else:
                    shortcut = h
                shortcut = conv(shortcut, name + '.downsample.conv')
            variance += 0.04
            h = conv(act(conv(h, name + '.conv1')), name + '.conv2', stride)
            h = conv(act(conv(act(h), name + '.conv2b')), name + '.conv3')
            fc1, fc2 = ([w[f'{name}.attn_last.fc{n}.{part}'] for part in ('weight', 'bias')] for n in (1, 2))
            z = F.relu(F.conv2d(h.mean((2, 3), keepdim=True), *fc1))
            h = 2 * h * torch.sigmoid(F.conv2d(z, *fc2))
            x = 0.2 * w[name + '.skipinit_gain'] * h + shortcut
    return act(conv(x, 'final_conv'))


@pytest.fixture()
def tiny_nfnet(monkeypatch):
    monkeypatch.setitem(vision.SIZES, 'tiny', TINY)


@pytest.mark.parametrize('height, width', [(64, 64), (96, 32), (50, 75), (33, 65)])
def test_nfnet_features_are_timms(tmp_path, tiny_nfnet, height, width):
    state = timm_state()
    torch.save(state, tmp_path / 'dm_nfnet.pth')
    classifier = nfnet(str(tmp_path / 'dm_nfnet.pth'), head=True).eval().double()
    x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))
    expected = slow_timm(state, x)
    logits = expected.mean((2, 3)) @ state['head.fc.weight'].double().T + state['head.fc.bias']
    roundings = 60 * EPS / torch.finfo(torch.float64).eps  # the gains of some 30 convolutions become float32
    with torch.no_grad():
        assert_near(classifier.net.grid(x.double()), expected, roundings)
        assert_near(classifier(x.double()), logits, roundings)
    assert expected.std() > 0.2


def test_nfnet_with_and_without_its_head(tmp_path, tiny_nfnet):
    state = timm_state()
    torch.save(state, tmp_path / 'pytorch_model.bin')
    net = nfnet(tmp_path, dim_embed=16)
    assert net.projection.weight.shape == (16, 96) and net.size == 'tiny'
    assert nfnet_sizes(tmp_path) == {'vision': 'tiny'}
    torch.save({k: v for k, v in state.items() if not k.startswith('head')}, tmp_path / 'pytorch_model.bin')
    assert nfnet(tmp_path).dim == 96
    with pytest.raises(BadInput, match='lacks head.fc.weight'):
        nfnet(tmp_path, head=True)


@pytest.mark.parametrize('key, value, message', [
    ('stages.2.1.conv2b.gain', None, r'lacks stages\.2\.1\.conv2b\.gain'),
    ('stages.0.0.skipinit_gain', None, r'lacks stages\.0\.0\.skipinit_gain'),  # timm's own nfnet_f0 has none
    ('stages.2.1.conv2b.gain', torch.ones(16),
     r'stages\.2\.1\.conv2b\.gain of shape \(16,\), expected \(16, 1, 1, 1\)'),
    ('stem.conv5.weight', torch.ones(1), r'has stem\.conv5\.weight, which the model lacks'),
    ('stages.3.1.conv1.weight', torch.ones(1), r'not a dm_nfnet_f0 … f6: its stages have 1, 1, 2, 2 blocks'),
])
def test_nfnet_names_the_first_offending_key(tmp_path, tiny_nfnet, key, value, message):
    torch.save(change(timm_state(), key, value), tmp_path / 'w.pth')
    with pytest.raises(BadInput, match=message):
        nfnet(str(tmp_path / 'w.pth'))
