"""A Flamingo of a few thousand weights, random but with open gates: for tests of what surrounds the model."""
from dataclasses import asdict

import torch

from gates import open_gates
from kit.contrastive import new_contrastive
from kit.copying import wire_copying
from kit.tokenizer import Tokenizer
from kit.weights import checkpoint
from model import Flamingo, FlamingoConfig, GPT


def save_tiny(path, seed=0, **changes):
    """Write it as a flamingo.pt."""
    torch.manual_seed(seed)
    tokenizer = Tokenizer.load('assets/tokenizer.tiktoken')
    sizes = dict(lm_layer=2, lm_dim=32, lm_head=2, xattn_head=2, xattn_head_dim=16, resampler_layer=1,
                 resampler_dim=32, resampler_head=2,
                 resampler_head_dim=16, n_latent=4, dim_embed=32, text_dim=32, text_head=2, n_context=256)
    config = FlamingoConfig(n_vocab=tokenizer.n_vocab, bos=tokenizer.bos, pad=tokenizer.pad,
                            **sizes | changes)
    contrastive = new_contrastive(config)
    model = Flamingo(config, contrastive.vision, wire_copying(GPT.from_config(config)))
    for layer in model.gated:
        open_gates(layer, 0.76, 0.46)
    text = {k: v for k, v in contrastive.state_dict().items() if not k.startswith('vision.')}
    checkpoint.save(str(path), 'flamingo', config=asdict(config), tokenizer=tokenizer.state(),
                    keys={'seed': seed, 'n_latent': 4}, given=['--n_latent=4', '--device=cpu'],
                    flamingo=model.state_dict(), contrastive=text)
