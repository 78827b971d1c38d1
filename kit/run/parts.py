"""A step in parts: of a batch too large for one pass, and of many ranks."""
from collections import Counter
from dataclasses import dataclass, field

from kit.run import distributed


@dataclass
class Part:
    """Samples that go through the model at one time, what their losses count, and what came out."""
    samples: dict   # {source: samples}
    share: dict     # {name of a loss: this part's share of what its mean in the whole step is over}
    losses: dict = field(default_factory=dict)  # {name: the part's mean}, set by train.gradients
    n_token: int = 0                            # tokens read, likewise


def parts_of(stage, samples):
    """{source: samples} of a step -> [Part], as StageData.parts cuts them. By default there is one, of all
    samples, whose shares are 1.

    The mean L_m of a whole step is the sum of its parts' means, each times the part's share of what it is a
    mean over: of two parts with 6 and 2 pages, L = ¾ L_1 + ¼ L_2. Ranks average their gradients, so shares
    are of the mean over ranks.
    """
    parts = stage.data.parts(samples)
    in_part = [{m: sum(s.n_loss for s in part[m]) for m in part} for part in parts]
    in_step = distributed.mean_of({m: sum(n.get(m, 0) for n in in_part) for m in samples})
    result = []
    for part, n in zip(parts, in_part):
        share = {m: n[m] / (in_step[m] or 1) for m in n}
        of_all = sum(n.values()) / (sum(in_step[m] for m in n) or 1)
        share |= {name: of_all for name in stage.lambdas if name not in n}  # one of all sources
        result.append(Part(part, share))
    return result


def one_by_one(run, stage, parts):
    """for part in one_by_one(run, stage, parts): its forward and backward. After the last, ranks exchange
    their gradients."""
    for part in parts:
        with distributed.accumulating(stage.net, more=part is not parts[-1]):
            yield part
    distributed.average(stage.module, run.config.shard)  # with --shard; else DDP has done it


def of_whole_step(parts):
    """-> {name: mean loss} of the whole step, of all ranks; tokens read by this one"""
    losses = Counter()
    for part in parts:  # a Counter adds up
        losses.update({m: part.share[m] * loss.item() for m, loss in part.losses.items()})
    return distributed.mean_of(losses), sum(part.n_token for part in parts)
