"""A step in parts: of a batch too large for one pass, and of many ranks."""
import functools
from collections import Counter

from kit.run import distributed


def in_parts(gradients):
    """Decorates train.gradients(run, stage, samples, lambdas): the samples of a step go through it one part
    after the other (StageData.parts), on every rank. What comes back is of the whole step, too.

    The mean L_m of a whole step is the sum of its parts' means, each times the part's share of the targets:
    of two parts with 30 and 10 targets, L = ¾ L_1 + ¼ L_2. So each part's λ_m is multiplied by its share;
    with one part, on one GPU, by 1. Ranks average their gradients, so a share is of the ranks' mean.
    """
    @functools.wraps(gradients)
    def of_whole_step(run, stage, samples, lambdas):
        parts = stage.data.parts(samples)
        in_part = [{m: sum(s.n_target for s in part[m]) for m in part} for part in parts]
        in_step = distributed.mean_of({m: sum(n.get(m, 0) for n in in_part) for m in samples})
        if stage.mixing == 'merged':  # one batch of all sources: each target counts the same
            lambdas = {m: n / (sum(in_step.values()) or 1) for m, n in in_step.items()}
        losses, n_token = Counter(), 0
        for k, (part, n) in enumerate(zip(parts, in_part)):
            of_all = sum(n.values()) / (sum(in_step[m] for m in n) or 1)  # for a loss of all sources together
            share = dict.fromkeys(lambdas, of_all) | {m: n[m] / (in_step[m] or 1) for m in n}
            with distributed.accumulating(stage.net, more=k + 1 < len(parts)):  # exchanged after the last
                found, n_token_part = gradients(run, stage, part, {m: lambdas[m] * share[m] for m in lambdas})
            losses.update({m: loss * share[m] for m, loss in found.items()})  # a Counter adds up
            n_token += n_token_part
        distributed.average(stage.module, run.config.shard)  # with --shard; else the ranks have averaged
        return distributed.mean_of(losses), n_token
    return of_whole_step
