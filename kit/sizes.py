"""Which sizes no model can have: a command line or a stranger's file may claim anything."""
from dataclasses import fields

from vision import SIZES
from xattn import SEES

MAY_BE_0 = ('bos', 'pad', 'text_layer', 'visual_dim')  # other whole numbers are at least 1
MOST = {'layer': 200, 'size': 4096, 'context': 1 << 17}  # by the last word of the name; else a million


def language_sizes(config):
    """FlamingoConfig -> what its language model is built from, {name: size}"""
    names = [f.name for f in fields(config) if f.name.startswith('lm_')]
    return {name: getattr(config, name) for name in ('n_vocab', *names, 'n_context')}


def check_sizes(config):
    """FlamingoConfig -> the same. Raises ValueError, naming the size, where no model can have it."""
    def demand(right, name, what):
        if not right:
            raise ValueError(f'{name}={getattr(config, name)}: must be {what}')

    for f in fields(config):
        value, kind = getattr(config, f.name), type(f.default)
        demand(type(value) is kind, f.name, f'of type {kind.__name__}, not {type(value).__name__}')
        if kind is int:
            least = 0 if f.name in MAY_BE_0 else 1
            most = MOST.get(f.name.rpartition('_')[2], 1 << 20)
            demand(least <= value <= most, f.name, f'from {least} to {most}')
    demand(config.vision in SIZES, 'vision', 'one of ' + ', '.join(SIZES))
    demand(config.attend in SEES, 'attend', 'one of ' + ', '.join(SEES))
    demand(0 < config.lm_eps < 1, 'lm_eps', 'above 0 and below 1')
    for dim, head in (('lm_dim', 'lm_head'), ('text_dim', 'text_head')):
        n_head = getattr(config, head)
        demand(getattr(config, dim) % n_head == 0, dim, f'a multiple of {head}={n_head}')
    demand(not (config.plain_words and config.text_layer), 'text_layer', '0 with plain_words')
    return config
