"""Weights as others publish them: GPT-2 from the Hugging Face hub, NFNets from timm. Nothing in a file is
executed."""
import os

import torch
from torch import nn

from kit.files import BadInput, read_json
from kit.sizes import language_sizes
from kit.weights.checkpoint import check_shapes
from kit.weights.reading import read_published
from model import FlamingoConfig, GPT
from vision import NFNet, SIZES, WSConv2d

LIMIT_CONFIG = 1 << 20  # bytes of a config.json
# What a config.json may say of a GPT-2 (None: nothing) for model.GPT to compute the same. Dropout, and
# reorder_and_upcast_attn, which is about half precision, do not change what it computes.
AS_OURS = {
    'model_type': ('gpt2', None),
    'activation_function': ('gelu_new', 'gelu_pytorch_tanh', 'gelu_fast', None),  # all three: the tanh form
    'add_cross_attention': (False, None),
}


def gpt2(path):
    """GPT-2's weights -> model.GPT, float32.

    path: a file, or a folder with pytorch_model.bin, model.safetensors or several files and their index (see
        kit/weights/reading.py). A config.json beside it is read.
    Sizes follow from the shapes (gpt2, -medium, -large, -xl, distilgpt2 and their fine-tuned kin), the number
    of heads from config.json; without one, heads are 64 wide. Raises BadInput that names the first key that
    is missing, unknown or of the wrong shape, or what config.json asks for and model.GPT does not do.
    """
    state, path, sizes, config = read_gpt2(path)
    n_layer, dim, n_head = sizes.lm_layer, sizes.lm_dim, sizes.lm_head
    with torch.device('meta'):  # nothing is drawn at random that the file is going to replace
        lm = GPT.from_config(sizes)
    ours = lm.state_dict()
    # OpenAI's layers compute x W, ours x Wᵀ: these four are stored transposed.
    turned = [k for k in ours if k.endswith(('attn.c_attn.weight', 'c_proj.weight', 'mlp.c_fc.weight'))]
    shapes = {k: v.shape[::-1] if k in turned else v.shape for k, v in ours.items()}
    # Not weights at all: the causal mask, and the number that masked scores are set to. And the head, wte
    # once more.
    mask = (1, 1, sizes.n_context, sizes.n_context)
    rest = {f'h.{i}.attn.bias': mask for i in range(n_layer)}
    rest |= {f'h.{i}.attn.masked_bias': () for i in range(n_layer)}
    rest |= {'lm_head.weight': state['wte.weight'].shape}
    check_shapes(state, shapes, f'{path}: ', optional=rest)
    table, head = state['wte.weight'], state.get('lm_head.weight', state['wte.weight'])
    if table.dtype != head.dtype or not torch.equal(table, head):
        raise BadInput(f'{path}: lm_head.weight is not wte.weight; a GPT-2 has one table for both')
    check_numbers(state, ours, path)
    weights = {k: torch.empty(ours[k].shape).copy_(state[k].T if k in turned else state[k]) for k in ours}
    for i in range(n_layer):  # where scores are divided otherwise than by √d, the queries take it up
        for name in ('weight', 'bias'):
            weights[f'h.{i}.attn.c_attn.{name}'][:dim] *= query_scale(config, i, dim // n_head)
    lm.load_state_dict(weights, assign=True)
    return lm.requires_grad_(True)


def gpt2_sizes(path):
    """-> the FlamingoConfig fields of published weights, {name: size}. Raises BadInput."""
    return language_sizes(read_gpt2(path)[2])


def read_gpt2(path):
    """-> (state dict, path of the file, FlamingoConfig, what config.json says)"""
    state, path = read_published(path)
    for key in ('wte.weight', 'wpe.weight'):
        if key not in state or state[key].ndim != 2:
            raise BadInput(f'{path}: not a GPT-2: no matrix {key}')
    (n_vocab, dim), n_context = state['wte.weight'].shape, len(state['wpe.weight'])
    n_layer = len({k.split('.')[1] for k in state if k.startswith('h.')})
    beside = os.path.join(os.path.dirname(path), 'config.json')
    if os.path.exists(beside):
        config = read_json(beside, LIMIT_CONFIG)
    elif dim % 64:
        raise BadInput(f'{path}: heads are 64 wide where no config.json says otherwise, its width is {dim}')
    else:
        config = {'n_head': dim // 64}
    if not isinstance(config, dict):
        raise BadInput(f'{beside}: not an object')
    for name, values in AS_OURS.items():
        if config.get(name) not in values:
            raise BadInput(f'{beside}: {name}={config[name]!r}; model.GPT has {values[0]!r}')
    if config.get('tie_word_embeddings') is False and 'lm_head.weight' not in state:
        raise BadInput(f'{beside}: tie_word_embeddings=False, and {path} has no lm_head.weight')
    theirs = {'n_layer': n_layer, 'n_embd': dim, 'n_positions': n_context, 'vocab_size': n_vocab,
              'n_inner': 4 * dim}
    for name, value in theirs.items():
        if config.get(name, value) not in (value, None):
            raise BadInput(f'{beside}: {name}={config[name]}, and in {path} it is {value}')
    n_head, eps = config.get('n_head'), config.get('layer_norm_epsilon', 1e-5)
    if type(n_head) is not int or n_head < 1 or dim % n_head or not 0 < n_layer <= 200:
        raise BadInput(f'{path}: no GPT-2 has {n_layer} layers of width {dim} and {n_head} heads')
    if type(eps) is not float or not 0 < eps < 1:
        raise BadInput(f'{beside}: layer_norm_epsilon={eps!r}: must be from 0 to 1')
    sizes = FlamingoConfig(n_vocab, lm_layer=n_layer, lm_dim=dim, lm_head=n_head, lm_eps=eps,
                           n_context=n_context)
    return state, path, sizes, config


def query_scale(config, layer, head_dim):
    """By what a layer's queries are multiplied so that attention, which divides by √d, scores as theirs."""
    scale = 1.0 if config.get('scale_attn_weights', True) else head_dim ** 0.5
    return scale / (layer + 1) if config.get('scale_attn_by_inverse_layer_idx') else scale


def check_numbers(state, names, path):
    """Raises BadInput if a weight is no floating-point number: it would need a scale of its own."""
    for name in names:
        if not state[name].is_floating_point():
            raise BadInput(f'{path}: has {name} of type {state[name].dtype}, expected floating-point numbers')


class Classifier(nn.Module):
    """An NFNet and the head that it was published with: forward(images (B,3,height,width)) -> logits
    (B,classes)"""

    def __init__(self, net, n_class=1000):
        super().__init__()
        self.net, self.head = net, nn.Linear(net.dim, n_class)

    def forward(self, images):
        return self.head(self.net(images).mean(1))


def nfnet(path, dim_embed=0, head=False):
    """timm's dm_nfnet_f0 … f6 (the weights that DeepMind published, trained on ImageNet) -> vision.NFNet,
    float32, or with `head` a Classifier around it.

    path: as for `gpt2`. The size follows from the depth. The projection to dim_embed, which no file has, is
    random. Pictures are to be normalised by NFNet.normalise, and of 256, 320, 352, 416, 512, 544 or 576
    pixels (F0 to F6; in training it was 192 to 448). Raises BadInput that names the first key that is
    missing, unknown or of the wrong shape.
    """
    state, path, size = read_nfnet(path)
    if head and 'head.fc.weight' not in state:
        raise BadInput(f'{path}: lacks head.fc.weight')
    net = NFNet(size, dim_embed)
    depth = list(SIZES[size]['depths'])
    names = {key: timm_name(key, depth) for key in net.state_dict() if not key.startswith('projection.')}
    ours = {key: net.state_dict()[key] for key in names}
    shapes = {names[key]: timm_shape(key, v) for key, v in ours.items()}
    heads = {}
    if 'head.fc.weight' in state:
        heads = {'head.fc.weight': (None, net.dim), 'head.fc.bias': state['head.fc.weight'].shape[:1]}
    check_shapes(state, shapes | heads if head else shapes, f'{path}: ', optional=heads)
    check_numbers(state, shapes, path)
    net.load_state_dict({k: state[names[k]].float().reshape(v.shape) for k, v in ours.items()}, strict=False)
    adapt_gains(net)
    if not head:
        return net
    classifier = Classifier(net, len(state['head.fc.bias']))
    classifier.head.load_state_dict({k: state['head.fc.' + k].float() for k in ('weight', 'bias')})
    return classifier


def nfnet_sizes(path):
    """-> the FlamingoConfig fields of published weights, {name: size}. Raises BadInput."""
    return {'vision': read_nfnet(path)[2]}


def read_nfnet(path):
    """-> (state dict, path of the file, key of SIZES)"""
    state, path = read_published(path)
    depth = [len({k.split('.')[2] for k in state if k.startswith(f'stages.{i}.')}) for i in range(4)]
    size = next((name for name, spec in SIZES.items() if list(spec['depths']) == depth), None)
    if size is None:
        raise BadInput(f'{path}: not a dm_nfnet_f0 … f6: its stages have {", ".join(map(str, depth))} blocks')
    return state, path, size


def timm_name(key, depth):
    """Our name of a weight of an NFNet with these numbers of blocks a stage -> timm's"""
    where, number, rest = (key.split('.', 2) + ['', ''])[:3]
    if where == 'stem':
        return f'stem.conv{int(number) + 1}.{rest}'
    if where != 'blocks':
        return key
    theirs = {'squeeze_excite.': 'attn_last.', 'shortcut.': 'downsample.conv.', 'skip_gain': 'skipinit_gain'}
    for a, b in theirs.items():
        rest = rest.replace(a, b)
    stages = [f'stages.{i}.{j}' for i, n in enumerate(depth) for j in range(n)]
    return f'{stages[int(number)]}.{rest}'


def timm_shape(key, value):
    """timm has gains as (D,1,1,1), and the two layers of squeeze-excite as 1x1 convolutions."""
    if key.endswith('.gain'):
        return *value.shape, 1, 1, 1
    return (*value.shape, 1, 1) if '.fc' in key and value.ndim == 2 else value.shape


@torch.no_grad()
def adapt_gains(net):
    """timm divides by √(fan_in·(var + 1e-5)), DeepMind's code (and ours) by √max(fan_in·var, 1e-4): the
    gain takes up the difference, so that what comes out is timm's."""
    for conv in (m for m in net.modules() if isinstance(m, WSConv2d)):
        fan_in, var = conv.weight[0].numel(), conv.weight.var(dim=(1, 2, 3), correction=0)
        conv.gain.mul_(((fan_in * var).clamp(min=conv.eps) / (fan_in * (var + 1e-5))).sqrt())
