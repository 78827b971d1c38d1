"""A step in parts: of a batch too large for one pass, and of many ranks."""
from collections import Counter

from kit.run import distributed


class Parts:
    """for part, lambdas in Parts(run, stage, samples): the samples of a step in parts, as StageData.parts
    cuts them, and of each the weights of its losses. `add` takes the losses of the part at hand; then `total`
    has those of the whole step, of all ranks. By default there is one part: `samples` and `stage.lambdas`.

    The mean L_m of a whole step is the sum of its parts' means, each times the part's share of the targets:
    of two parts with 30 and 10 targets, L = ¾ L_1 + ¼ L_2. So of each part λ_m is multiplied by its share;
    with one part, on one GPU, by 1. Ranks average their gradients, so a share is of the ranks' mean.
    """

    def __init__(self, run, stage, samples):
        self.run, self.stage, self.samples = run, stage, samples
        self.losses, self.n_token = Counter(), 0
        self.share = {}  # of the part at hand: {loss: its part of the step's targets}

    def __iter__(self):
        stage, parts = self.stage, self.stage.data.parts(self.samples)
        in_part = [{m: sum(s.n_target for s in part[m]) for m in part} for part in parts]
        in_step = distributed.mean_of({m: sum(n.get(m, 0) for n in in_part) for m in self.samples})
        lambdas = stage.lambdas
        if stage.mixing == 'merged':  # one batch of all sources: each target counts the same
            lambdas = {m: n / (sum(in_step.values()) or 1) for m, n in in_step.items()}
        for k, (part, n) in enumerate(zip(parts, in_part)):
            self.share = {m: n[m] / (in_step[m] or 1) for m in n}
            of_all = sum(n.values()) / (sum(in_step[m] for m in n) or 1)
            self.share |= {name: of_all for name in lambdas if name not in n}  # a loss of all sources
            with distributed.accumulating(stage.net, more=k + 1 < len(parts)):  # exchanged after the last
                yield part, {m: weight * self.share[m] for m, weight in lambdas.items()}

    def add(self, losses, n_token):
        """losses {source: L_m}, tensors, and tokens read, of the part at hand"""
        self.losses.update({m: loss.item() * self.share[m] for m, loss in losses.items()})  # added up
        self.n_token += n_token

    def total(self):
        """-> ({source: L_m}, tokens read) of the whole step. The ranks exchange what they have not yet."""
        distributed.average(self.stage.module, self.run.config.shard)  # with --shard; else DDP has done it
        return distributed.mean_of(self.losses), self.n_token
