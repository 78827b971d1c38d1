"""A step in parts: of a batch too large for one pass, and of many ranks."""
from collections import Counter

from kit.run import distributed


def in_parts(gradients, run, stage, samples):
    """`gradients` of train.py for each part of a step's samples, as StageData.parts cuts them -> ({source:
    L_m}, tokens read) of the whole step, of all ranks. Of one part, as by default, and one rank it is no more
    than gradients(run, stage, samples, stage.lambdas).

    The mean L_m of a whole step is the sum of its parts' means, each times the part's share of the targets:
    of two parts with 30 and 10 targets, L = ¾ L_1 + ¼ L_2. So of each part λ_m is multiplied by its share.
    Ranks average their gradients, so a share is of the ranks' mean.
    """
    parts, lambdas = stage.data.parts(samples), stage.lambdas
    in_part = [{m: sum(s.n_target for s in part[m]) for m in part} for part in parts]
    in_step = distributed.mean_of({m: sum(n.get(m, 0) for n in in_part) for m in samples})
    if stage.mixing == 'merged':  # one batch of all sources: each target counts the same
        lambdas = {m: n / (sum(in_step.values()) or 1) for m, n in in_step.items()}
    losses, n_token = Counter(), 0
    for k, (part, n) in enumerate(zip(parts, in_part)):
        share = {m: n[m] / (in_step[m] or 1) for m in n}
        of_all = sum(n.values()) / (sum(in_step[m] for m in n) or 1)
        share |= {name: of_all for name in lambdas if name not in n}  # a loss of all sources
        with distributed.accumulating(stage.net, more=k + 1 < len(parts)):  # exchanged after the last
            means, read = gradients(run, stage, part, {m: weight * share[m] for m, weight in lambdas.items()})
        losses.update({m: loss * share[m] for m, loss in means.items()})  # a Counter adds up
        n_token += read
    distributed.average(stage.module, run.config.shard)  # with --shard; else DDP has done it
    return distributed.mean_of(losses), n_token
