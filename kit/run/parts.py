"""A step in parts: of a batch too large for one pass, and of many ranks."""
from collections import Counter
from functools import wraps

from kit.run import distributed


def in_parts(gradients):
    """train.gradients of one pass -> of a whole step, whose parts add up. With the same arguments it returns
    {name: mean loss of the whole step, of all ranks}, as floats, and the tokens read by this rank."""
    @wraps(gradients)
    def of_whole_step(run, stage, samples, lambdas):
        parts, found, mean = parts_of(stage, samples), [], Counter()
        for k, (part, share) in enumerate(parts):
            shares = {m: weight * share[m] for m, weight in lambdas.items()}
            with distributed.accumulating(stage.net, more=k < len(parts) - 1):  # ranks exchange after it
                found.append(gradients(run, stage, part, shares))
        distributed.average(stage.module, run.config.shard)  # with --shard; else DDP has done it
        for (_, share), (losses, _) in zip(parts, found):
            mean.update({m: share[m] * loss.item() for m, loss in losses.items()})  # a Counter adds up
        return distributed.mean_of(mean), sum(n_token for _, n_token in found)
    return of_whole_step


def parts_of(stage, samples):
    """{source: samples} of a step -> [(a part of them, {name of a loss: the part's share of it})], cut as
    StageData.parts says. By default there is one, of all samples, whose shares are 1.

    The mean L_m of a whole step is the sum of its parts' means, each times the part's share of what it is a
    mean over: of two parts with 6 and 2 pages, L = ¾ L_1 + ¼ L_2. Ranks average their gradients, so shares
    are of the mean over ranks.
    """
    parts = stage.data.parts(samples)
    in_part = [{m: sum(map(stage.data.n_loss, part[m])) for m in part} for part in parts]
    in_step = distributed.mean_of({m: sum(n.get(m, 0) for n in in_part) for m in samples})
    shares = []
    for n in in_part:
        of_all = sum(n.values()) / (sum(in_step[m] for m in n) or 1)
        shares.append({name: of_all for name in stage.lambdas}  # a loss of another name is one of all sources
                      | {m: n[m] / (in_step[m] or 1) for m in n})
    return list(zip(parts, shares))
