"""A step in parts: of a batch too large for one pass, and of many ranks."""
from collections import Counter

from kit.run import distributed


class Parts:
    """for part, lambdas in Parts(run, stage, samples): parts of a step's samples, as StageData.parts cuts them,
    and the weights λ of a part's losses. `add` takes these losses; `total` gives those of the whole step, of
    all ranks. By default there is one part, of all samples, with stage.lambdas.

    The mean L_m of a whole step is the sum of its parts' means, each times the part's share of the targets:
    of two parts with 30 and 10 targets, L = ¾ L_1 + ¼ L_2. So of each part λ_m is multiplied by its share.
    Ranks average their gradients, so a share is of the ranks' mean.
    """

    def __init__(self, run, stage, samples):
        self.run, self.stage, self.sources = run, stage, list(samples)
        self.parts = stage.data.parts(samples)
        self.losses, self.n_token = Counter(), 0

    def __iter__(self):
        stage, lambdas = self.stage, self.stage.lambdas
        in_part = [{m: sum(s.n_target for s in part[m]) for m in part} for part in self.parts]
        in_step = distributed.mean_of({m: sum(n.get(m, 0) for n in in_part) for m in self.sources})
        if stage.mixing == 'merged':  # one batch of all sources: each target counts the same
            lambdas = {m: n / (sum(in_step.values()) or 1) for m, n in in_step.items()}
        for k, (part, n) in enumerate(zip(self.parts, in_part)):
            share = {m: n[m] / (in_step[m] or 1) for m in n}
            of_all = sum(n.values()) / (sum(in_step[m] for m in n) or 1)
            share |= {name: of_all for name in lambdas if name not in n}  # a loss of all sources
            self.share = share
            with distributed.accumulating(stage.net, more=k + 1 < len(self.parts)):  # exchanged after the last
                yield part, {m: weight * share[m] for m, weight in lambdas.items()}
        distributed.average(stage.module, self.run.config.shard)  # with --shard; else DDP has done it

    def add(self, losses, n_token):
        """The losses {source: mean} of the part that came last, and how many tokens it read."""
        self.losses.update({m: loss.item() * self.share[m] for m, loss in losses.items()})  # a Counter adds up
        self.n_token += n_token

    def total(self):
        """-> {source: mean loss} of the whole step, of all ranks; tokens read by this one"""
        return distributed.mean_of(self.losses), self.n_token
