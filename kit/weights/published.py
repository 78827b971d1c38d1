"""Weights as others publish them: GPT-2 from the Hugging Face hub, NFNets from timm. Nothing in a file is
executed."""
import os

import torch
from torch import nn

from kit.files import BadInput
from kit.weights.checkpoint import check_shapes
from model import GPT
from vision import NFNet, SIZES, WSConv2d


def read_published(path):
    """-> (state dict, path of the file). Raises BadInput.

    path: a file of torch.save (.bin, .pth, .pt) or a .safetensors (the optional package of that name reads
    it), or a folder that holds pytorch_model.bin or model.safetensors.
    """
    if os.path.isdir(path):
        names = ('pytorch_model.bin', 'model.safetensors')
        names = [name for name in names if os.path.exists(os.path.join(path, name))]
        if not names:
            raise BadInput(f'{path}: holds neither pytorch_model.bin nor model.safetensors')
        path = os.path.join(path, names[0])
    if not os.path.exists(path):
        raise BadInput(f'{path}: no such file')
    if not os.path.isfile(path):
        raise BadInput(f'{path}: not a file; published weights were expected')
    try:
        if str(path).endswith('.safetensors'):
            try:
                from safetensors.torch import load_file
            except ImportError as e:
                raise BadInput(f'{path}: pip install safetensors to read it, or give the .bin') from e
            state = load_file(path)
        else:
            state = torch.load(path, map_location='cpu', weights_only=True)
    except BadInput:
        raise
    except OSError as e:
        raise BadInput(f'{path}: {e.strerror or e}') from e
    except Exception as e:  # a damaged file can fail anywhere in there
        raise BadInput(f'{path}: damaged, refused, or no file of weights at all ({type(e).__name__})') from e
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise BadInput(f'{path}: not a dict of tensors')
    return state, path


def gpt2(path):
    """GPT-2's weights -> model.GPT, float32.

    path: pytorch_model.bin or model.safetensors, or the folder with one of them. Sizes are told by the
    shapes (gpt2, -medium, -large, -xl, distilgpt2 and their fine-tuned kin: heads are always 64 wide).
    Raises BadInput that names the first key that is missing, unknown or of the wrong shape.
    """
    state, path = read_published(path)
    state = {k.removeprefix('transformer.'): v for k, v in state.items()}
    for key in ('wte.weight', 'wpe.weight'):
        if key not in state or state[key].ndim != 2:
            raise BadInput(f'{path}: not a GPT-2: no matrix {key}')
    (n_vocab, dim), n_context = state['wte.weight'].shape, len(state['wpe.weight'])
    n_layer = len({k.split('.')[1] for k in state if k.startswith('h.')})
    if dim % 64 or not n_layer:
        raise BadInput(f'{path}: no GPT-2 has {n_layer} layers of width {dim}: its heads are 64 wide')
    with torch.device('meta'):  # nothing is drawn at random that the file is going to replace
        lm = GPT(n_vocab, n_layer, dim, dim // 64, n_context)
    ours = lm.state_dict()
    # OpenAI's layers compute x W, ours x Wᵀ: these four are stored the other way around.
    turned = [k for k in ours if k.endswith(('attn.c_attn.weight', 'c_proj.weight', 'mlp.c_fc.weight'))]
    shapes = {k: v.shape[::-1] if k in turned else v.shape for k, v in ours.items()}
    # Not weights at all: the causal mask, and the number that masked scores are set to. And the head, wte
    # once more.
    rest = {f'h.{i}.attn.bias': (1, 1, n_context, n_context) for i in range(n_layer)}
    rest |= {f'h.{i}.attn.masked_bias': () for i in range(n_layer)} | {'lm_head.weight': (n_vocab, dim)}
    check_shapes(state, shapes, f'{path}: ', optional=rest)
    if 'lm_head.weight' in state and not torch.equal(state['lm_head.weight'], state['wte.weight']):
        raise BadInput(f'{path}: lm_head.weight is not wte.weight; a GPT-2 has one table for both')
    state = {k: state[k].T if k in turned else state[k] for k in ours}
    lm.load_state_dict({k: v.float().contiguous() for k, v in state.items()}, assign=True)
    return lm.requires_grad_(True)


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

    path: the file (.pth, .bin, .safetensors) or the folder with one. The size is told by the depth. The
    projection to dim_embed, which no file has, is random. Pictures are to be normalised by NFNet.normalise,
    and of 256, 320, 352, 416, 512, 544 or 576 pixels (F0 to F6; in training it was 192 to 448). Raises
    BadInput that names the first key that is missing, unknown or of the wrong shape.
    """
    state, path = read_published(path)
    depth = [len({k.split('.')[2] for k in state if k.startswith(f'stages.{i}.')}) for i in range(4)]
    size = next((name for name, spec in SIZES.items() if list(spec['depths']) == depth), None)
    if size is None:
        raise BadInput(f'{path}: not a dm_nfnet_f0 … f6: its stages have {", ".join(map(str, depth))} blocks')
    if head and 'head.fc.weight' not in state:
        raise BadInput(f'{path}: lacks head.fc.weight')
    net = NFNet(size, dim_embed)
    names = {key: timm_name(key, depth) for key in net.state_dict() if not key.startswith('projection.')}
    ours = {key: net.state_dict()[key] for key in names}
    shapes = {names[key]: timm_shape(key, v) for key, v in ours.items()}
    heads = {}
    if 'head.fc.weight' in state:
        heads = {'head.fc.weight': (None, net.dim), 'head.fc.bias': state['head.fc.weight'].shape[:1]}
    check_shapes(state, shapes | heads if head else shapes, f'{path}: ', optional=heads)
    net.load_state_dict({k: state[names[k]].float().reshape(v.shape) for k, v in ours.items()}, strict=False)
    adapt_gains(net)
    if not head:
        return net
    classifier = Classifier(net, len(state['head.fc.bias']))
    classifier.head.load_state_dict({k: state['head.fc.' + k].float() for k in ('weight', 'bias')})
    return classifier


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
