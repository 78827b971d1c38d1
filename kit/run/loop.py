"""Around the steps of a stage: resuming, preparing batches, the log, evaluations, checkpoints, stopping."""
import math
import time

from tqdm import tqdm

from kit.device import autocast
from kit.files import BadInput
from kit.run import distributed
from kit.run.ahead import look_ahead

OUT_OF_TIME = 1000  # a reason to stop; other reasons are numbers of signals
MOST_SKIPPED = 10   # steps in a row that may be skipped


class Loop:
    """for step in Loop(run, stage, steps): the numbers of all steps from where it stopped. Then `read` gives
    {source: samples}. steps: which batch of which sources that is, as data.mixture says it.

    After a signal, or when time is up, the current step is finished and saved and is the last one. `complete`
    then says whether the stage came to its end.
    """

    def __init__(self, run, stage, steps):
        self.run, self.stage, self.steps = run, stage, steps
        self.start = run.restore(stage)
        self.step, self.saved, self.complete = self.start - 1, self.start, False
        self.skipped, self.last_evaluation = 0, ''
        self.clock, self.n_token = time.time(), 0  # of the last line of the log, and tokens read since
        if self.start == 0:
            run.save_progress(0)  # from here on, training.pt says what is left to do
        self.ahead = look_ahead(stage.data, steps[self.start:]) if run.config.workers else None

    def read(self):
        """-> what the current step reads; to be called once for each step, in their order"""
        i, sources = self.steps[self.step]
        return next(self.ahead) if self.ahead else self.stage.data.read(sources, i)

    def __iter__(self):
        run, stage = self.run, self.stage
        with tqdm(total=stage.n_iter, desc=stage.name, initial=self.start) as self.bar:
            for self.step in range(self.start, stage.n_iter):
                yield self.step
                self.bar.update()
                self.find_out_whether_to_stop()
                if run.stop and self.saved != self.step + 1:
                    self.save()
                if run.stop:
                    break
        self.complete = self.is_last

    @property
    def is_last(self):
        return self.step + 1 == self.stage.n_iter

    def find_out_whether_to_stop(self):
        run = self.run
        if run.config.max_minutes and time.time() - run.started > 60 * run.config.max_minutes:
            run.stop = run.stop or OUT_OF_TIME
        run.stop = distributed.largest(run.stop or 0) or None  # if one rank stops, all do

    # -----------------------------------------------------------------------------------------
    # A step that is not finite would ruin the weights

    def check_finite(self, losses, norm):
        """Whether every loss and the gradient's norm are finite. If not, the log and the screen say which
        losses are not; or all, if it is the gradient alone. Raises BadInput after MOST_SKIPPED such steps in
        a row."""
        wrong = [source for source, loss in losses.items() if not math.isfinite(loss)]
        if math.isfinite(norm) and not wrong:
            self.skipped = 0
            return True
        run, name, self.skipped = self.run, self.stage.name, self.skipped + 1
        source = ' + '.join(wrong or losses)
        run.log.append({'stage': name, 'iter': self.step + 1, 'skipped': source})
        if distributed.rank() == 0:
            tqdm.write(f'{name} step {self.step + 1}: loss or gradient of {source} is not finite; skipped')
        if self.skipped == MOST_SKIPPED:
            if distributed.rank() == 0:
                run.write_log()
            raise BadInput(f'{name}: {MOST_SKIPPED} steps in a row were not finite ({source}); '
                           f'the last good state is in {run.path("training.pt")}')
        return False

    # -----------------------------------------------------------------------------------------
    # The log

    def log(self, losses, norm, n_token):
        """Add a line to log.csv every --log_every steps."""
        run, stage = self.run, self.stage
        self.n_token += n_token * distributed.world()
        if (self.step + 1) % run.config.log_every and not self.is_last:
            return
        line = {'stage': stage.name, 'iter': self.step + 1,
                **{'loss_' + k: round(v, 6) for k, v in losses.items()},
                'lr': stage.optimizer.param_groups[0]['lr'], 'grad_norm': round(norm, 5),
                **stage.log_values()}
        line['tokens_per_s'] = round(self.n_token / (time.time() - self.clock))
        line['minutes'] = round(run.minutes(), 3)
        run.log.append(line)
        self.clock, self.n_token = time.time(), 0
        said = ' '.join(f'{source} {loss:.3f}' for source, loss in losses.items())
        self.bar.set_postfix_str(said + self.last_evaluation)

    def time_to_evaluate(self):
        return self.time_to_save() or self.is_last

    def time_to_save(self):
        """Every eval_every steps. Another evaluation at the end needs none: the stage's own file follows."""
        return (self.step + 1) % self.run.config.eval_every == 0

    def evaluate(self):
        """Log the stage's own evaluation."""
        run, stage = self.run, self.stage
        with autocast(run.device, run.dtype):
            found = stage.evaluate()
        run.log.append({'stage': stage.name, 'iter': self.step + 1, 'minutes': round(run.minutes(), 3),
                         **{'eval_' + k: round(v, 4) for k, v in found.items()}})
        self.last_evaluation = ' | ' + ' '.join(f'{k} {v:.0%}' for k, v in found.items())
        self.clock = time.time()

    def save(self):
        """Save the state to continue from."""
        self.run.save_progress(self.step + 1, self.stage)
        self.saved, self.clock = self.step + 1, time.time()
