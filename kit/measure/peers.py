"""Other implementations of Flamingo's parts, for bench.py to measure beside ours.

Whichever of NAMES can be imported is used. open_flamingo's layers stand in a file of their own, which is
loaded alone: the package around it needs torchvision and open_clip. Sizes are chosen so that each has as many
weights as ours.
"""
import importlib
import importlib.util
import os

import torch

from kit.files import one_line

PACKAGES = {'flamingo-pytorch': 'flamingo-pytorch', 'open_flamingo': 'open-flamingo',
            'idefics': 'transformers'}
NAMES = tuple(PACKAGES)


def importable():
    """-> {name: module}. Of those that cannot be imported, the screen says why."""
    found, loaders = {}, (flamingo_pytorch, open_flamingo_layers, idefics)
    for name, load in zip(NAMES, loaders):
        try:
            found[name] = load()
        except ImportError as e:
            print(one_line(f'not measured beside {name}: {e} (pip install {PACKAGES[name]})'))
    return found


def flamingo_pytorch():
    return importlib.import_module('flamingo_pytorch')


def open_flamingo_layers():
    package = importlib.util.find_spec('open_flamingo')
    if package is None:
        raise ImportError("No module named 'open_flamingo'")
    path = os.path.join(package.submodule_search_locations[0], 'src', 'helpers.py')
    spec = importlib.util.spec_from_file_location('open_flamingo_helpers', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def idefics():
    from transformers.models.idefics import modeling_idefics
    return modeling_idefics


def idefics_config(dim, n_head, **more):
    """Idefics has a gated MLP of three matrices: 8/3 · D wide inside, it has as many weights as one of two,
    4 · D wide."""
    from transformers import IdeficsConfig
    vision = dict(embed_dim=dim, image_size=48, patch_size=16, num_hidden_layers=1,
                  num_attention_heads=n_head, intermediate_size=2 * dim)
    return IdeficsConfig(hidden_size=dim, num_attention_heads=n_head, intermediate_size=8 * dim // 3,
                         alpha_initializer='ones', vision_config=vision, attn_implementation='sdpa', **more)


def last_image(image_index, n_image):
    """(B,T) -> (B,T,N): 1 where a token may look, Idefics' image_attention_mask"""
    return (image_index.unsqueeze(-1) == torch.arange(1, n_image + 1, device=image_index.device)).long()


def gated_layers(found, dim, n_head, image_index):
    """-> {name: (layer, run(y (B,T,D), visual (B,N,R,D)) -> (B,T,D))}. image_index (B,T): which image each
    token sees"""
    tags = image_index.diff(dim=1, prepend=torch.zeros_like(image_index[:, :1])) > 0
    layers, size = {}, dict(dim=dim, dim_head=dim // n_head, heads=n_head)
    if 'flamingo-pytorch' in found:
        one = found['flamingo-pytorch'].GatedCrossAttentionBlock(**size)
        layers['flamingo-pytorch'] = one, lambda y, visual: one(y, visual, media_locations=tags)
    if 'open_flamingo' in found:
        two = found['open_flamingo'].GatedCrossAttentionBlock(dim_visual=dim, **size)
        layers['open_flamingo'] = two, lambda y, visual: two(y, visual, media_locations=tags)
    if 'idefics' in found:
        three = found['idefics'].IdeficsGatedCrossAttentionLayer(idefics_config(dim, n_head), layer_idx=0)

        def run(y, visual):
            n_image, n_latent = visual.shape[1:3]
            see = last_image(image_index, n_image).repeat_interleave(n_latent, dim=2)[:, None]  # (B,1,T,N*R)
            mask = torch.where(see.bool(), 0.0, torch.finfo(y.dtype).min)
            gate = (mask == 0.0).any(-1).to(y.dtype).squeeze(1)
            return three(y, image_hidden_states=visual.flatten(1, 2), image_attention_mask=mask,
                         cross_attention_gate=gate)
        layers['idefics'] = three, run
    return layers


def resamplers(found, dim, n_layer, n_head, n_latent, n_image):
    """-> {name: (module, run(media (B,N,S,D)) -> (B,N,R,D))}"""
    size = dict(dim=dim, depth=n_layer, dim_head=dim // n_head, heads=n_head, num_latents=n_latent)
    modules = {}
    if 'flamingo-pytorch' in found:
        one = found['flamingo-pytorch'].PerceiverResampler(**size, num_media_embeds=n_image)
        modules['flamingo-pytorch'] = one, one
    if 'open_flamingo' in found:
        two = found['open_flamingo'].PerceiverResampler(**size)
        modules['open_flamingo'] = two, lambda media: two(media.unsqueeze(2))
    if 'idefics' in found:
        sizes = dim, n_layer, n_head, dim // n_head, n_latent
        three = found['idefics'].IdeficsPerceiverResampler(idefics_config(dim, n_head), *sizes)
        modules['idefics'] = three, lambda media: three(media.flatten(0, 1))
    return modules


class Idefics:
    """transformers' Idefics in the sizes of bench.SmallModel, on its prompts."""

    def __init__(self, module, small, device):
        c = small.config
        perceiver = dict(
            use_resampler=True, resampler_n_latents=c.n_latent, resampler_depth=c.resampler_layer,
            resampler_n_heads=c.resampler_head, resampler_head_dim=c.resampler_head_dim)
        config = idefics_config(
            c.lm_dim, c.lm_head, num_hidden_layers=c.lm_layer, vocab_size=c.n_vocab + 2,
            max_position_embeddings=c.n_context, use_resampler=True, perceiver_config=perceiver,
            tie_word_embeddings=True, freeze_lm_head=True, eos_token_id=None)
        self.model, self.n_new = module.IdeficsForVisionText2Text(config).to(device), small.n_new
        self.inputs = dict(
            input_ids=small.tokens, attention_mask=torch.ones_like(small.tokens),
            pixel_values=small.media[:, :, 0], image_attention_mask=last_image(small.index, small.n_image))
        self.labels = small.tokens.masked_fill(small.tokens == small.model.image, -100)

    def loss(self):
        return self.model(**self.inputs, labels=self.labels).loss

    def generate_call(self, cached):
        def call():
            self.model.eval()
            out = self.model.generate(**self.inputs, max_new_tokens=self.n_new, do_sample=False,
                                      use_cache=cached)
            return out.numel() - self.inputs['input_ids'].numel()
        return call


def models(found, small, device):
    """-> {name: whole model}"""
    return {'idefics': Idefics(found['idefics'], small, device)} if 'idefics' in found else {}
