"""A step in parts: of a batch too large for one pass, and of many ranks. The plain form: train.gradients"""
from collections import Counter

from kit.run import distributed


def in_parts(gradients, run, stage, samples):
    """`gradients` of train.py for all samples of a step, one part of them after the other (StageData.parts),
    on every rank -> ({source: L_m}, tokens read): L_m a mean over all of the step, of all ranks.

    The mean L_m of a whole step is the sum of its parts' means, each times the part's share of the targets.
    Every rank divides by the mean over ranks of its targets, and gradients are averaged over ranks.
    """
    parts, weights = stage.data.parts(samples), stage.loss_weights
    counts = [{source: sum(s.n_target for s in part[source]) for source in part} for part in parts]
    whole = distributed.mean_of({source: sum(n.get(source, 0) for n in counts) for source in samples})
    losses, n_token = Counter(), 0
    for k, (part, n) in enumerate(zip(parts, counts)):
        of_all = sum(n.values()) / (sum(whole[source] for source in n) or 1)  # for a loss of all sources
        share = dict.fromkeys(weights, of_all) | {source: n[source] / (whole[source] or 1) for source in n}
        lambdas = {name: weight * share[name] for name, weight in weights.items()}
        with distributed.accumulating(stage.net, more=k + 1 < len(parts)):  # ranks exchange after the last
            found, n_token_part = gradients(run, stage, part, lambdas)
        losses.update({name: loss * share[name] for name, loss in found.items()})  # a Counter adds up
        n_token += n_token_part
    distributed.average(stage.module, run.config.shard)  # with --shard; else the ranks have averaged already
    return distributed.mean_of(losses), n_token
