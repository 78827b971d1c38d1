"""Sizes and costs of a preset, computed without allocating it:

    python bench.py --preset=flamingo-3b --device=meta
"""
from kit import accounting
from kit.configurator import BadInput, command, configure
from model import PRESETS

KEYS = {
    'preset': ('nano', f'sizes of everything: {", ".join(PRESETS)}'),
    'device': ('meta', 'meta: parameters, FLOPs and memory, computed from the sizes'),
}


def main():
    config = configure(KEYS, usage=__doc__)
    if config.preset not in PRESETS:
        raise BadInput(f'--preset={config.preset}: expected one of {", ".join(PRESETS)}')
    if config.device != 'meta':
        raise BadInput(f'--device={config.device}: expected meta')
    print(accounting.report(config.preset))


if __name__ == '__main__':
    command(main)
