"""A step in parts: of a batch too large for one pass, and of many ranks."""
from collections import Counter

from kit.run import distributed


class Parts:
    """for samples, lambdas in Parts(stage, samples): what goes through the model at one time, {source:
    samples}, and λ of each loss: the stage's, times the part's share. Then `add` what came out.
    """

    def __init__(self, stage, samples):
        self.stage, self.found = stage, []
        self.parts, self.shares = parts_of(stage, samples)

    def __iter__(self):
        for k, (part, share) in enumerate(zip(self.parts, self.shares)):
            with distributed.accumulating(self.stage.net, more=k < len(self.parts) - 1):
                yield part, {m: weight * share[m] for m, weight in self.stage.lambdas.items()}

    def add(self, losses, n_token):
        """losses: {name: the part's mean}; n_token: tokens read, padding included"""
        self.found.append((losses, n_token))

    def whole(self):
        """-> {name: mean loss} of the whole step, of all ranks, and the tokens read by this one"""
        mean = Counter()
        for share, (losses, _) in zip(self.shares, self.found):
            mean.update({m: share[m] * loss.item() for m, loss in losses.items()})  # a Counter adds up
        return distributed.mean_of(mean), sum(n_token for _, n_token in self.found)


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
