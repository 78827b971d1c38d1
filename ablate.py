"""The paper's ablations (Tables 3 and 10), on a laptop: what is each choice worth here?

    python train.py                                     # first: vision.pt and language.pt
    python ablate.py                                    # every row, three seeds
    python ablate.py --rows=baseline,vanilla,grafting --seeds=1 --jobs=2
    python ablate.py --rows=                            # the table of what has been measured so far

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
import torch.nn.functional as F

import train
from kit.ablations import jobs, report, rows
from kit.cli import check_range, command, configure
from kit.contrastive import new_contrastive
from kit.copying import wire_copying
from kit.device import autocast
from kit.features import FrozenFeatures
from kit.files import BadInput, only_run
from kit.run.batches import PairBatch, PairData, SequenceData, TextBatch, TextData
from kit.run.checks import RankedAsker
from kit.run.driver import session, stages_to_train
from kit.run.keys import SOURCES, check_values
from kit.show import canvas
from kit.tasks.encoders import zero_shot
from kit.tasks.results import measure, row as row_of
from kit.variants import OneStream, ViT, with_places
from model import GPT

KEYS = {
    'rows': ('all', 'some of the rows of kit/ablations/rows.py, with commas; empty for none'),
    'seeds': (3, 'this many seeds of each, from --seed on'),
    'jobs': (1, 'cells side by side, each with one thread'),
    'n': (200, 'episodes of each task'),
    'cell': ('', 'ROW:SEED, in this process: what --jobs starts'),
} | train.KEYS
# (task, shots, ways): twins of COCO, VQAv2, VATEX and MSVD-QA; and new names, one example of each of four
TASKS = [('caption', 4, None), ('question', 4, None), ('clip_caption', 4, None), ('clip_question', 4, None),
         ('naming', 1, 4)]


# ---------------------------------------------------------------------------------------------
# The stages of train.py, as a row wants them


class Vision(train.VisionStage):
    def __init__(self, run, row):
        self.row = row
        super().__init__(run)
        if row.stage == 'vision':
            self.mixing = run.config.mixing
        if self.mixing == 'merged':
            self.data = MergedPairs(run)

    def load(self):
        return new_encoders(self.run, self.row)

    def evaluate(self):
        return {}  # once, at the end

    def ask(self, n):
        self.module.eval()
        features = FrozenFeatures(self.module.vision, self.run.reader.pixels, self.run.device)
        return [zero_shot(self.module, self.run.tokenizer, features, 5 * n)]


class MergedPairs(PairData):
    """One batch of both sources."""

    def of_source(self, source, i):
        # In the drawn world, pair i of either source shows one picture: others for the second.
        return super().of_source(source, i + (SOURCES.index(source) << 20))

    def batches(self, samples, i):
        parts = [next(super(MergedPairs, self).batches({source: of}, i)) for source, of in samples.items()]
        longest = max(x.shape[1] for part in parts for x, _, _ in part.captions.values())
        first, merged = 0, []
        for part in parts:
            [(tokens, mask, shows)] = part.captions.values()
            room = 0, longest - tokens.shape[1]
            merged.append((F.pad(tokens, room), F.pad(mask, room), shows + first))
            first += len(part.images)
        captions = {'merged': tuple(map(torch.cat, zip(*merged)))}
        yield PairBatch(torch.cat([part.images for part in parts]), captions, more=False)


class Bridge(train.FlamingoStage):
    """The third stage."""

    def __init__(self, run, row):
        self.row = row
        super().__init__(run)
        if row.text:
            self.data, self.lambdas['text'] = WithText(run), 1.0  # its λ is not in the paper
        if row.text and row.language == 'pretrained':
            self.slow_down('lm.', 0.1)
        if row.model is OneStream:
            self.data = SpreadData(run)
            self.asker = SpreadAsker(self.module, run.tokenizer, self.features, sharded=False)

    def load(self):
        run, row = self.run, self.row
        contrastive, model = train.load_frozen(run, new_encoders(run, row), row.model)
        if row.language == 'random':  # as the language stage begins
            model.lm.load_state_dict(wire_copying(GPT.from_config(run.size)).state_dict())
        if row.vision == 'random':
            model.vision.load_state_dict(new_encoders(run, row).vision.state_dict())
        model.freeze(row.vision == 'frozen', row.language == 'frozen')
        return contrastive, model

    def slow_down(self, part, scale):
        """Parameters whose names begin with `part` learn `scale` times as fast as the others."""
        config, named = self.config, [x for x in self.module.named_parameters() if x[1].requires_grad]
        mine = [x for x in named if x[0].startswith(part)]
        rest = [x for x in named if not x[0].startswith(part)]
        self.optimizer = train.adamw(rest, self.lr, config.weight_decay, config.gate_scale)
        for group in train.adamw(mine, self.lr, config.weight_decay).param_groups:
            self.optimizer.add_param_group(group | {'scale': scale})

    def pictures(self, batch):
        kind = train.FlamingoStage if self.row.vision == 'frozen' else train.FinetuneStage
        return kind.pictures(self, batch)

    def losses(self, batch):
        if not isinstance(batch, TextBatch):
            return super().losses(batch)
        _, loss = self.module.lm(batch.tokens, batch.targets, batch.position)
        return {'text': batch.share * loss}

    def batches(self, samples, i):
        for batch in self.data.batches(samples, i):
            if not isinstance(batch, TextBatch):
                batch.pictures = self.pictures(batch)
            yield batch

    def evaluate(self):
        return {}

    def ask(self, n):
        self.module.eval()
        self.features.kept.clear()  # the encoder may have trained
        return [measure(self.asker, task, shots, n, ways, seed=1)[0] for task, shots, ways in TASKS]


class WithText(SequenceData):
    """Sequences, and rows of plain text as the language stage reads them."""

    def of_source(self, source, i):
        return TextData.of_source(self, source, i) if source == 'text' else super().of_source(source, i)

    def media(self, samples):
        return [] if isinstance(samples, tuple) else super().media(samples)

    def batches(self, samples, i):
        sequences = {source: of for source, of in samples.items() if source != 'text'}
        if sequences:
            yield from super().batches(sequences, i)
        if 'text' in samples:
            yield from TextData.batches(self, {'text': samples['text']}, i)


class SpreadData(SequenceData):
    """Sequences with free places for visual tokens."""

    def sequence(self, source, number):
        return with_places(super().sequence(source, number), self.tokenizer.image, self.tokenizer.pad,
                           self.size.n_latent, self.size.n_context)


class SpreadAsker(RankedAsker):
    """Prompts with free places for visual tokens."""

    def encode(self, document):
        c = self.model.config
        spread = with_places(super().encode(document), self.model.image, c.pad, c.n_latent)
        if len(spread.tokens) >= c.n_context:
            raise BadInput(f'{document.where}: {len(spread.tokens)} tokens and visual tokens are longer than '
                           f'the context of {c.n_context}')
        return spread


def new_encoders(run, row):
    """-> a Contrastive of random weights"""
    contrastive = new_contrastive(run.size)
    if row.encoder == 'vit':
        contrastive.vision = ViT(run.size.image_size, run.size.dim_embed, per_image=run.size.per_image)
    return contrastive


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
    n, config = config.n, SimpleNamespace(**vars(config) | changes | {'given': config.given | set(changes)})
    for name in ('vision', 'flamingo') if row.new_vision else (row.stage,):
        if name != row.stage and os.path.exists(os.path.join(folder, name + '.pt')):
            continue  # the encoder, in an earlier session
        config.stage = name
        with session(config, train.KEYS) as run:
            missing, progress = stages_to_train(run, train.STAGES)
            torch.manual_seed(seed)
            stage, begun = STAGES[name](run, row), time.time()
            if not train.train_stage(run, stage, missing, progress):
                continue  # a signal: session ends the process
            step_time = (time.time() - begun) / max(stage.n_iter - (progress or {'iter': 0})['iter'], 1)
            if name != row.stage:
                run.save_stage(stage, missing)
                continue
            with autocast(run.device, run.dtype):
                found = stage.ask(n)
            if name == 'flamingo':
                score = sum(r['value'] for r in found) / len(found)
                found.append(row_of('overall', score, sum(r['n'] for r in found), shots=4))
            size = sum(p.numel() for p in stage.module.parameters())
            about = {'row': row.name, 'seed': seed, 'steps': stage.n_iter, 'parameters': size,
                     'step_time': round(step_time, 4)}
            jobs.write_rows(os.path.join(folder, 'rows.json'), [r | about for r in found])


STAGES = {'vision': Vision, 'flamingo': Bridge}


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
    wanted = rows.chosen(config.rows, config)
    for row in wanted:
        rows.sizes_of(row, jobs.resolved(config))  # does it fit?
    cells = [(row, config.seed + k) for k in range(config.seeds) for row in wanted]
    jobs.check_checkpoints(config, wanted)
    with only_run(config.out_dir):
        failed = jobs.run_all(config, cells, os.path.abspath(__file__), sys.argv[1:])
    found = jobs.read_rows(os.path.join(config.out_dir, jobs.FILE))
    summary = report.summary(jobs.for_table(config, found), rows.all_rows(config))
    print(report.table(summary))
    canvas.save(report.chart(summary), os.path.join(config.out_dir, 'ablations.png'))
    if failed:
        raise BadInput(f'{len(failed)} cells failed: ' + '; '.join(failed))


if __name__ == '__main__':
    command(main)
