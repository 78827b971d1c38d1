"""A trained Flamingo from its file."""
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from kit.adapt import WAYS
from kit.contrastive import new_contrastive
from kit.files import BadInput
from kit.sizes import check_sizes
from kit.tokenizer import Tokenizer
from kit.weights import checkpoint
from model import FlamingoConfig, GPT


class Unfilled(TorchFunctionMode):
    """Inside, new weights stay empty: they are neither drawn at random nor scaled.

    *Why.* On `meta` there is nothing to fill, and yet torch would import its compiler for it, which takes
    longer than to read a small checkpoint.
    """
    FILLS = (nn.init.normal_, nn.init.uniform_, torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.mul)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in self.FILLS:
            return args[0] if args else kwargs['tensor']
        return (torch.empty if function is torch.randn else function)(*args, **kwargs)


def read_flamingo(path):
    """flamingo.pt -> (Flamingo, Contrastive with the same encoder, Tokenizer, {key of train.py: its value in
    that training}, whatever their types), on the CPU, float32.

    The file needs nothing beside it. Raises BadInput where it is damaged, or its parts do not fit each other.
    """
    content = checkpoint.load(path, 'flamingo', config=dict, tokenizer=dict, flamingo=dict, contrastive=dict)
    way = content.get('adapt', 'all')
    if way not in list(WAYS):
        raise BadInput(f'{path}: was adapted in a way that this code does not know')
    stem = content['flamingo'].get('vision.stem.1.weight')
    if content['config'].get('vision') == 'nano' and isinstance(stem, torch.Tensor) and len(stem) == 16:
        content['config']['vision'] = 'nano16'  # a file from before the stem of `nano` became thinner
    try:
        config = check_sizes(FlamingoConfig(**content['config']))
        tokenizer = Tokenizer.from_state(content['tokenizer'])
        if (config.n_vocab, config.bos, config.pad) != (tokenizer.n_vocab, tokenizer.bos, tokenizer.pad):
            raise BadInput(f'its tokenizer has {tokenizer.n_vocab} words, and its model {config.n_vocab}')
    except (TypeError, ValueError) as e:  # sizes with another name, of another type, or that no model has
        raise BadInput(f'{path}: {e}') from e

    def fill(check):
        contrastive = new_contrastive(config)
        model = WAYS[way].model(config, contrastive.vision, GPT.from_config(config))
        check(model, content['flamingo'], path)
        vision = {'vision.' + k: v for k, v in model.vision.state_dict().items()}  # in the file once
        check(contrastive, content['contrastive'] | vision, path)
        return model, contrastive

    # Before any memory is taken: are the tensors as large as the file claims?
    with torch.device('meta'), Unfilled():
        fill(checkpoint.check_state)
    keys = content.get('keys')  # files that others write may have none
    return *fill(checkpoint.load_into), tokenizer, keys if isinstance(keys, dict) else {}
