"""The paper's ablations (Tables 3 and 10), on a laptop: what is each choice worth here?

    python train.py                                     # first: vision.pt and language.pt
    python ablate.py                                    # every row, three seeds
    python ablate.py --rows=baseline,vanilla,grafting --seeds=1 --jobs=2
    python ablate.py --rows=                            # the table of what has been measured so far
    python ablate.py --rows=tuning                      # Table 2: prompting against fine-tuning, on new tasks

Each cell of the table, a row and a seed, trains the third stage from the vision.pt and language.pt in
out_dir (rows about the encoder train the vision stage, too), and is then asked five tasks with four examples
each; the overall score is their mean, as the paper's is. A cell is one process of one thread. It leaves its
rows in out_dir/ablations.json; given again, the command goes on where it stopped and trains no finished cell
twice. At the end come a table and ablations.png, the paper's change of the score beside ours.

kit/ablations/rows.py says what each row changes, kit/variants.py has the models. docs/ablations.md: results.
"""
import os
import sys
import time
from types import SimpleNamespace

import torch

import train
from kit.ablations import jobs, report, rows, tuning
from kit.ablations.masked import MaskedStage
from kit.ablations.reads import MergedPairs, new_encoders, spread, SpreadAsker, WithText
from kit.ablations.score import few_shot
from kit.cli import check_range, command, configure
from kit.copying import wire_copying
from kit.device import autocast
from kit.features import FrozenFeatures
from kit.files import BadInput, only_run
from kit.masked import MaskedSystem
from kit.run import begin
from kit.run.batches import TextBatch
from kit.run.driver import missing_stages, session
from kit.run.keys import check_values
from kit.show import canvas
from kit.tasks.encoders import zero_shot
from kit.variants import OneStream
from model import GPT

KEYS = {
    'rows': ('all', 'some of the rows of kit/ablations/rows.py, with commas; empty for none'),
    'seeds': (3, 'this many seeds of each, from --seed on'),
    'jobs': (1, 'cells side by side, each with one thread'),
    'n': (200, 'episodes of each task'),
    'cell': ('', 'ROW:SEED, in this process: what --jobs starts'),
} | train.KEYS


# ---------------------------------------------------------------------------------------------
# The stages of train.py, as a row wants them


class Vision(train.VisionStage):
    def __init__(self, run, row):
        self.row = row
        mixing = run.config.mixing if row.stage == 'vision' else self.mixing
        super().__init__(run)
        if mixing == 'merged':  # one loss, of both sources
            self.data, self.lambdas = MergedPairs(run), {'merged': 1.0}
        else:
            self.mixing = mixing

    def load(self):
        return new_encoders(self.run, self.row)

    def evaluate(self):
        return {}  # once, at the end

    def ask(self, n):
        self.module.eval()
        features = FrozenFeatures(self.module.vision, self.run.reader.pixels, self.run.device)
        return [zero_shot(self.module, self.run.tokenizer, features, 5 * n)]


class Bridge(train.FlamingoStage):
    """The third stage."""

    def __init__(self, run, row):
        self.row = row
        super().__init__(run)
        if row.text:
            self.data, self.lambdas['text'] = WithText(run, self.data), 1.0  # its λ is not in the paper
            self.sources.append('text')
        if row.text and row.language == 'pretrained':
            self.slow_down('lm.', 0.1)
        if row.model is OneStream:
            self.data.change = spread(run, run.model_config.n_latent)
            self.asker = SpreadAsker(self.module, run.tokenizer, self.features, sharded=False)

    def load(self):
        run, row = self.run, self.row
        contrastive, lm = begin.load_trained(run, new_encoders(run, row))
        model = begin.cast_frozen(run, row.model(run.model_config, contrastive.vision, lm))
        if row.language == 'random':  # as the language stage begins
            model.lm.load_state_dict(wire_copying(GPT.from_config(run.model_config)).state_dict())
        if row.vision == 'random':
            model.vision.load_state_dict(new_encoders(run, row).vision.state_dict())
        model.freeze(row.vision == 'frozen', row.language == 'frozen')
        return contrastive, model

    def slow_down(self, part, scale):
        """Parameters whose names begin with `part` learn `scale` times as fast as the others."""
        config, named = self.config, [x for x in self.module.named_parameters() if x[1].requires_grad]
        mine = [x for x in named if x[0].startswith(part)]
        rest = [x for x in named if not x[0].startswith(part)]
        self.optimizer = train.adamw(rest, config.weight_decay, config.gate_scale)
        for group in train.adamw(mine, config.weight_decay).param_groups:
            self.optimizer.add_param_group(group | {'scale': scale})

    def pictures(self, batch):
        kind = train.FlamingoStage if self.row.vision == 'frozen' else train.FinetuneStage
        return kind.pictures(self, batch)

    def losses(self, batch):
        if not isinstance(batch, TextBatch):
            return super().losses(batch)
        _, loss = self.module.lm(batch.tokens, batch.targets, batch.position)
        return {'text': loss}

    def evaluate(self):
        return {}

    def ask(self, n):
        self.module.eval()
        self.features.kept.clear()  # the encoder may have trained
        return few_shot(self.asker, n)


class Masked(MaskedStage):
    optimizer_of, data_of = staticmethod(train.adamw), train.SequenceData


class Tuning(train.FinetuneStage):
    """Fine-tuning on the examples of one task."""

    def __init__(self, run, row):
        self.row = row
        super().__init__(run)

    def evaluate(self):
        return {}

    def ask(self, n):
        self.module.eval()
        self.features.kept.clear()
        return tuning.ask(self.asker, self.row, n)


STAGES = {'vision': Vision, 'flamingo': Bridge, 'finetune': Tuning}


# ---------------------------------------------------------------------------------------------
# One cell


def run_cell(config, row, seed):
    """Train a cell in its folder, out_dir/cells/ROW-SEED, and write its rows.json there."""
    torch.set_num_threads(1)
    folder = jobs.folder(config, row, seed)
    os.makedirs(folder, exist_ok=True)
    jobs.link_checkpoints(config, row, folder)
    key = row.stage + '_iters'
    changes = rows.sizes_of(row, jobs.resolved(config)) | {
        'out_dir': folder, 'seed': seed, 'init_from': 'auto', 'eval_every': 100,
        key: round(getattr(config, key) * row.more)}
    if row.tuned:
        changes |= tuning.keys(row, folder, seed)
    n, config = config.n, SimpleNamespace(**vars(config) | changes | {'given': config.given | set(changes)})
    for name in ('vision', 'flamingo') if row.new_vision else (row.stage,):
        if name != row.stage and os.path.exists(os.path.join(folder, name + '.pt')):
            continue  # the encoder, in an earlier session
        config.stage = name
        with session(config, train.KEYS) as run:
            missing_stages(run, train.STAGES)
            done = (run.progress or {'iter': 0})['iter']  # steps of an earlier session
            torch.manual_seed(seed)
            kind = Masked if row.model is MaskedSystem else STAGES[name]
            stage, begun = kind(run, row), time.time()
            if not train.train_stage(run, stage):
                continue  # a signal: session ends the process
            step_time = (time.time() - begun) / max(stage.n_iter - done, 1)
            if name != row.stage:
                run.save_stage(stage)
                continue
            with autocast(run.device, run.dtype):
                found = stage.ask(n)
            size = sum(p.numel() for p in stage.module.parameters() if p.requires_grad or not row.tuned)
            about = {'row': row.name, 'seed': seed, 'steps': stage.n_iter, 'parameters': size,
                     'step_time': round(step_time, 4)}
            jobs.write_rows(os.path.join(folder, 'rows.json'), [r | about for r in found])


# ---------------------------------------------------------------------------------------------
# All of them


def main():
    config = configure(KEYS, usage=__doc__, groups={'The table': list(KEYS)[:5]} | train.GROUPS,
                       gone=train.GONE)
    check_values(config, train.KEYS)
    check_range(config, 1, 1000, 'seeds')
    check_range(config, 1, 256, 'jobs')
    check_range(config, 1, 100_000, 'n')
    if config.cell:
        name, _, seed = config.cell.partition(':')
        if not seed.isdecimal():
            raise BadInput(f'--cell={config.cell}: expected ROW:SEED')
        [row] = rows.chosen(name, config)
        return run_cell(config, row, int(seed))
    wanted, reasons = rows.fitting(rows.chosen(config.rows, config), jobs.resolved(config))
    if reasons and config.rows != 'all':
        raise reasons[0]
    for why in reasons:
        print('left out:', why)
    cells = [(row, config.seed + k) for k in range(config.seeds) for row in wanted]
    jobs.check_checkpoints(config, wanted)
    with only_run(config.out_dir):
        failed = jobs.run_all(config, cells, os.path.abspath(__file__), sys.argv[1:])
    found = jobs.read_rows(os.path.join(config.out_dir, jobs.FILE))
    everything = rows.all_rows(config)
    summary = report.summary(jobs.for_table(config, found, everything), everything)
    print(report.table(summary))
    canvas.save(report.chart(summary), os.path.join(config.out_dir, 'ablations.png'))
    if tuned := jobs.for_table(config, found, rows.TUNING):
        canvas.save(tuning.chart(tuned), os.path.join(config.out_dir, 'tuning.png'))
        print(tuning.table(tuned))
    if failed:
        raise BadInput(f'{len(failed)} cells failed: ' + '; '.join(failed))


if __name__ == '__main__':
    command(main)
