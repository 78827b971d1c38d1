"""What train.train_stage asks of a stage."""
from kit.run import distributed


class Stage:
    """A stage has, besides what follows,

        name                 of its file and its lines in the log
        lambdas, mixing      {source: λ}, its sources and their weights; how they mix: data.mixture
        data                 reads the samples of its sources (kit/run/batches.py)
        module, net          what it trains; the same as training calls it (over many processes)
        optimizer            with the share of `lr` that each group of its parameters gets
        n_iter, lr, decay    how many steps; the peak of the learning rate, and how it falls: train.schedule
        losses(batch)        -> {source: this micro-batch's part of the mean loss}; all parts of a step add up
        evaluate()           -> {name: value}, for the curves
        content()            -> what its file holds
    """
    mixing = 'accumulate'

    def __init__(self, run, data):
        self.run, self.config, self.data = run, run.config, data

    def batches(self, samples, i):
        """-> the micro-batches of a step, from {source: samples of batch i}"""
        return self.data.batches(samples, i)

    def clip(self):
        """Clips the gradient -> its norm before"""
        return distributed.clip_grad_norm(self.module.parameters(), self.config.grad_clip)

    def log_values(self):
        """-> {name: value} for every line of the log"""
        return {}
