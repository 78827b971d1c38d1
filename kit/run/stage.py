"""What train.train_stage asks of a stage."""
from kit.files import BadInput
from kit.run import class_words, distributed


class Stage:
    """A stage has, besides what follows,

        name                 of its file and its lines in the log
        sources              the names of what it learns from
        lambdas              {name of a loss: its weight λ}; as a rule each source has one loss, of its name
        mixing               how these mix: data.mixture
        data                 reads the samples of its sources (kit/run/batches.py)
        module, net          what it trains; what training calls: the same, or DDP around it on many GPUs
        optimizer            with the factor on `lr` of each group of its parameters
        n_iter, lr           how many steps; the peak of the learning rate
        schedule_name        how it rises and falls: train.schedule
        losses(batch)        -> {source: mean loss of the batch}, or {another name: one of all sources}
        evaluate()           -> {name: value}, for the curves
        content()            -> what its file holds
    """
    mixing = 'accumulate'

    def __init__(self, run, data):
        self.run, self.config, self.data = run, run.config, data
        self.sources, self.lambdas = [], {}
        if self.name != 'vision':
            class_words.use(run)  # --folders=words=N: captions become the words found by the vision stage

    def set_lambdas(self, lambdas, without_any):
        """Keep of {source: λ} those that are given and weigh something. Raises BadInput, which says
        `without_any`, if there are none."""
        self.lambdas = {source: weight for source, weight in lambdas.items()
                        if weight and getattr(self.config, source)}
        if not self.lambdas:
            raise BadInput(without_any)
        self.sources = list(self.lambdas)
        if self.mixing == 'merged':  # one batch of all sources, in which each sequence counts the same
            n = {source: getattr(self.config, 'batch_' + source) for source in self.sources}
            self.lambdas = {source: n[source] / sum(n.values()) for source in self.sources}

    def clip(self):
        """Clips the gradient -> its norm before"""
        return distributed.clip_grad_norm(self.module.parameters(), self.config.grad_clip)

    def log_values(self):
        """-> {name: value} for every line of the log"""
        return {}
