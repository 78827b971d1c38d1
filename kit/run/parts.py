"""A step in parts: of a batch too large for one pass, and of many ranks. It adds up to the same."""
from collections import Counter

from kit.run import distributed


def is_one_part(stage, samples):
    return distributed.world() == 1 and len(stage.data.parts(samples)) == 1


def in_parts(gradients, run, stage, samples):
    """What train.gradients does of a step, {source: samples}, part by part and on every rank."""
    parts, shares = parts_of(stage, samples)
    mean, n_token = Counter(), 0
    for k, (part, share) in enumerate(zip(parts, shares)):
        lambdas = {m: weight * share[m] for m, weight in stage.lambdas.items()}
        with distributed.accumulating(stage.net, more=k < len(parts) - 1):
            losses, n = gradients(run, stage, part, lambdas)
        mean.update({m: share[m] * loss for m, loss in losses.items()})  # a Counter adds up
        n_token += n
    distributed.average(stage.module, run.config.shard)  # over ranks; without --shard DDP has done it
    return distributed.mean_of(mean), n_token


def parts_of(stage, samples):
    """{source: samples} of a step -> parts of them, and for each {name of a loss: the part's share of it}.
    They are cut as StageData.parts says; by default there is one, of all samples, whose shares are 1.

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
    return parts, shares
