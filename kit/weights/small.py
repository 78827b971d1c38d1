"""A small checkpoint to give away.

    python -m kit.weights.small out/flamingo.pt assets/nano.pt

It is half as large, and assets/nano.json beside it has its command and its table.
"""
import json
import os
import shlex
import sys

import torch

from kit.cli import command
from kit.files import BadInput, read_json, whole_file
from kit.weights.checkpoint import load, save


# ---------------------------------------------------------------------------------------------
# A small one to give away


def halve(source, target):
    """A trained flamingo.pt with its weights in float16, for others to try, and beside it a .json with the
    command that made it and the table of its results.json. Loading turns them back into float32. Raises
    BadInput."""
    content = load(source, 'flamingo', given=list, keys=dict, flamingo=dict, contrastive=dict)
    name, extension = os.path.splitext(target)
    if extension != '.pt':
        raise BadInput(f'{target}: must end in .pt')
    results = os.path.join(os.path.dirname(source), 'results.json')  # which training ends with
    rows = read_json(results, 1 << 24)
    # Without the stage: where they were trained one by one, this is the command for all of them.
    given = [argument for argument in content['given']
             if argument.split('=')[0] not in ('--stage', '--out_dir', '--init_from', '--device')]
    content['given'], content['keys']['out_dir'] = given, 'out'  # where it lay is nobody's business
    for part in ('flamingo', 'contrastive'):
        content[part] = {k: v.half() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
                         for k, v in content[part].items()}
    save(target, 'flamingo', **{k: v for k, v in content.items() if k not in ('format', 'kind')})
    with whole_file(name + '.json', 'w') as f:
        made_by = shlex.join(['python', 'train.py', *given])
        json.dump({'made by': made_by, 'rows': rows}, f, indent=1)
    print(f'{target}: {os.path.getsize(target) / 1e6:.1f} MB, and {name}.json')


def main():
    if len(sys.argv) != 3:
        raise BadInput('python -m kit.weights.small FROM.pt TO.pt')
    halve(*sys.argv[1:])


if __name__ == '__main__':
    command(main)
