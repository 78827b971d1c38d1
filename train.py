"""Train Flamingo from nothing: eyes, then language, then the bridge between them.

    python train.py                                    # all three stages on the embedded world, minutes on a laptop
    python train.py --stage=flamingo --n_latent=16     # one stage, other sizes
    python train.py config/emoji.py --align=pictures   # your own pictures with captions

What it leaves in out_dir: vision.pt, language.pt, flamingo.pt, results.json, log.csv, curves.png, samples.png.
Run it again and it continues where it was interrupted (init_from=auto).

    vision     NFNet + text tower from random weights: which caption belongs to which picture?     (appendix B.1)
    language   a GPT from random weights, on text alone
    flamingo   both frozen; the resampler and the gated layers between them learn to answer         (§2, §3.3)
    finetune   the same, the vision encoder training too, at a small learning rate                  (appendix)
"""
import csv
import json
import math
import os
import shlex
import signal
import sys
import time
from dataclasses import asdict, fields

import numpy as np
import torch
from tqdm import tqdm

import evaluate
from data import Media, Tokenizer, augment, collate, encode, stack_frames
from kit import checkpoint, pictures
from kit.bpe import train_bpe
from kit.configurator import BadInput, BadItem, autocast, command, configure, pick_device, pick_dtype
from kit.encoders import pad_texts
from kit.features import FrozenFeatures, Pixels
from kit.sources import Report, open_folder, open_source
from model import GPT, PRESETS, Flamingo, FlamingoConfig
from vision import TEXT_CONTEXT, adaptive_gradient_clip, new_contrastive

KEYS = {
    'stage': ('all', 'all, vision, language, flamingo or finetune'),
    'out_dir': ('out', 'folder for everything the run leaves behind'),
    'init_from': ('auto', 'auto: continue or fill in what is missing; scratch: start over; resume: continue, or fail'),
    'preset': ('nano', f'sizes of everything: {", ".join(PRESETS)}'),
    'device': ('auto', 'auto, cpu, cuda, cuda:1, mps'),
    'dtype': ('auto', 'of activations and frozen weights: auto, float32 or bfloat16'),
    'compile': (False, 'torch.compile the networks'),
    'seed': (0, 'of weights and data; the same seed gives the same run on the same CPU'),
    'tokenizer': ('assets/tokenizer.tiktoken', "a tiktoken file, or 'sources' to train one on the captions of the sources"),
    # What to learn from: 'shapes', a path, several 'path:weight' with commas, or empty for none.
    'm3w': ('shapes', 'interleaved pages'),
    'align': ('shapes', 'pairs with short, noisy captions'),
    'ltip': ('shapes', 'pairs with long captions'),
    'vtp': ('shapes', 'clips with captions'),
    'text': ('shapes', 'plain text for the language stage'),
    'lambda_m3w': (1.0, 'weight of each source in the loss (λ; appendix A.1.3)'),
    'lambda_align': (0.2, ''),
    'lambda_ltip': (0.2, ''),
    'lambda_vtp': (0.03, ''),
    'mixing': ('accumulate', "accumulate gradients of all sources each step, 'round_robin' over steps, or 'merged' batches"),
    'batch_m3w': (24, 'sequences of each source a step, in the Flamingo stage'),
    'batch_align': (8, ''),
    'batch_ltip': (16, ''),
    'batch_vtp': (4, ''),
    'p_next': (0.5, 'chance that the text of a page sees the next picture instead of the one before'),
    'blind_loss': (True, 'learn text that can see no picture, too'),
    # Stage 1
    'naming': (0.6, 'share of naming pages among the pages made of a folder'),
    'vision_iters': (1000, 'steps of the contrastive stage'),
    'vision_batch': (64, 'pairs a step, of each of align and ltip'),
    'vision_lr': (5e-3, 'peak learning rate'),
    'augment': (0.0, 'strength of colour and geometric augmentation in the contrastive stage, 0 for none'),
    'flip': (False, 'mirror pictures at random; off where left and right or letters mean something'),
    'agc': (0.01, 'adaptive gradient clipping of the NFNet'),
    # Stage 2
    'language_iters': (900, 'steps of the language stage'),
    'language_batch': (32, 'rows a step'),
    'language_tokens': (96, 'tokens a row, at a random place of the context'),
    'language_lr': (3e-3, 'peak learning rate'),
    # Stage 3
    'flamingo_iters': (700, 'steps of the Flamingo stage'),
    'flamingo_lr': (2e-3, 'peak learning rate'),
    'flamingo_schedule': ('trapezoid', 'full until 70 % of the steps, then linear to zero; or one of the others (the paper: constant)'),
    'gate_scale': (5.0, 'how much faster the gates learn than the rest'),
    'finetune_iters': (200, 'steps of fine-tuning'),
    'finetune_lr': (1e-4, 'peak learning rate'),
    'schedule': ('cosine', 'of the first two stages, after warm-up: cosine, linear, trapezoid or constant (the paper: linear for vision)'),
    'warmup': (50, 'steps from zero to the peak (the paper: 5,000)'),
    'weight_decay': (0.1, 'of matrices; never of the resampler, of gates, gains and norms'),
    'grad_clip': (1.0, 'global norm of the gradient, after all sources are accumulated'),
    'log_every': (10, 'steps between rows of log.csv'),
    'eval_every': (100, 'steps between evaluations, which also save a checkpoint'),
    'eval_n': (96, 'episodes of each kind in an evaluation'),
    'test_n': (400, 'episodes of each kind in the final table'),
    'max_minutes': (0.0, 'stop this sitting after so long, saved and ready to be continued; 0 for no limit'),
}
SIZES = [f for f in fields(FlamingoConfig) if f.name not in ('n_vocab', 'bos', 'pad')]
KEYS |= {f.name: (f.default, 'size; the preset decides unless said') for f in SIZES}
SOURCES = ('m3w', 'align', 'ltip', 'vtp')
SCHEDULES = ('cosine', 'linear', 'trapezoid', 'constant')
# Keys that say how a run is carried out, not what it computes; they may change when it continues.
FREE_KEYS = {'stage', 'out_dir', 'init_from', 'device', 'dtype', 'compile', 'log_every', 'max_minutes', 'test_n'}


# ---------------------------------------------------------------------------------------------
# The three stages. Each has: name, module, optimizer, n_iter, lr, sources {name: λ}, loss(source, i), clip(),
# evaluate(), save(). Batch number i of a source is the same whenever it is asked for, so the position in the data
# is the step number, and resuming needs nothing else.


class VisionStage:
    """Contrastive: the pictures of a batch against the captions of the batch (appendix B.1)."""
    name = 'vision'

    def __init__(self, run):
        self.run, self.config, self.size = run, run.config, run.size
        self.module = new_contrastive(self.size).to(run.device)
        self.sources = {name: run.config['lambda_' + name] and 1.0 for name in ('align', 'ltip') if run.config[name]}
        if not self.sources:
            raise BadInput('the vision stage needs pairs: give align or ltip')
        self.n_iter, self.lr = self.config['vision_iters'], self.config['vision_lr']
        self.optimizer = adamw(self.module.named_parameters(), self.lr, 0.0)  # the paper: Adam, no weight decay

    def loss(self, source, i):
        n = self.config['vision_batch']
        documents = self.run.documents(source, i * n, n)
        rng = np.random.default_rng([self.config['seed'], i, SOURCES.index(source)])
        images = torch.stack([self.run.pixels(d.pieces[0])[0] for d in documents])  # of a clip, its first frame
        if self.config['augment'] > 0:
            images = augment(images, rng, self.config['flip'], self.config['augment'])
        tokens, mask = pad_texts([self.run.tokenizer.encode(' ' + d.pieces[-1]) for d in documents], TEXT_CONTEXT)
        vision, self.n_token = self.module.vision, tokens.numel()
        return self.module(vision.normalise(images.to(self.run.device)), tokens.to(self.run.device), mask.to(self.run.device))

    def clip(self):
        """AGC for the NFNet, a plain global norm of 10 for the text tower."""
        adaptive_gradient_clip(self.module.vision.parameters(), self.config['agc'])
        return torch.nn.utils.clip_grad_norm_(self.module.text.parameters(), 10.0)

    def evaluate(self):
        features = FrozenFeatures(self.module.vision, self.run.pixels, self.run.device)  # of the encoder as it is now
        self.module.eval()
        if self.run.held_out is None:
            result = {'zero_shot': evaluate.zero_shot(self.module, self.run.tokenizer, features, 4 * self.config['eval_n'])['value']}
        else:
            rows = evaluate.retrieval(self.run.held_out, self.module, features, self.run.tokenizer, self.run.report)
            result = {r['metric']: r['value'] for r in rows if r['metric'] in ('i2t_R@1', 'i2t_R@5')}
        self.module.train()
        return result

    def state(self):
        """What else log.csv says about a step."""
        return {'beta': round(self.module.log_beta.exp().item(), 3)}

    def content(self):
        return {'contrastive': self.module.state_dict()}


class LanguageStage:
    """Next word, on text alone."""
    name = 'language'

    def __init__(self, run):
        self.run, self.config, self.size = run, run.config, run.size
        self.module = GPT.from_config(self.size).to(run.device)
        self.sources = {'text': 1.0}
        self.n_iter, self.lr = self.config['language_iters'], self.config['language_lr']
        self.optimizer = adamw(self.module.named_parameters(), self.lr, self.config['weight_decay'])

    def batch(self, i):
        """-> token ids (B, T+1): texts one after the other, each after a <BOS>; and where each row starts (B,)."""
        source, tokenizer, n = self.run.sources['text'], self.run.tokenizer, min(self.config['language_tokens'], self.size.n_context)
        rows, number = [], i << 20  # room for a million texts a step
        for _ in range(self.config['language_batch']):
            row = []
            while len(row) <= n:
                row += [tokenizer.bos] + tokenizer.encode(source.text(number))
                number += 1
            rows.append(row[:n + 1])
        rng = np.random.default_rng([self.config['seed'], 8, i])
        return torch.tensor(rows), torch.from_numpy(rng.integers(self.size.n_context - n + 1, size=len(rows)))

    def loss(self, source, i):
        tokens, start = (x.to(self.run.device) for x in self.batch(i))
        self.n_token = tokens.numel()
        return self.module(tokens[:, :-1], tokens[:, 1:], start)[1]

    def clip(self):
        return torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.config['grad_clip'])

    def evaluate(self):
        """How sure it is of a random word sequence the second time it sees it: the copying that Flamingo will need."""
        return {'copying': copying(self.module, self.run)}

    def state(self):
        return {}

    def content(self):
        return {'lm': self.module.state_dict()}


class FlamingoStage:
    """Resampler, gated layers and two embedding rows, between the frozen two (§3.3)."""
    name = 'flamingo'

    def __init__(self, run):
        self.run, self.config, self.size = run, run.config, run.size
        contrastive = new_contrastive(self.size)
        path = run.path('vision.pt')
        checkpoint.load_into(contrastive, run.load_stage('vision')['contrastive'], path)
        lm = GPT.from_config(self.size)
        checkpoint.load_into(lm, run.load_stage('language')['lm'], run.path('language.pt'))
        self.contrastive = contrastive.to(run.device)
        self.module = Flamingo(self.size, contrastive.vision, lm).to(run.device)
        self.sources = {name: run.config['lambda_' + name] for name in SOURCES if run.config[name]}
        if not self.sources:
            raise BadInput('the Flamingo stage needs a source: give m3w, align, ltip or vtp')
        self.n_iter, self.lr = self.config['flamingo_iters'], self.config['flamingo_lr']
        trained = [(n, p) for n, p in self.module.named_parameters() if p.requires_grad]
        self.optimizer = adamw(trained, self.lr, self.config['weight_decay'], self.config['gate_scale'])
        self.features = FrozenFeatures(self.module.vision, run.pixels, run.device)
        self.asker = evaluate.Asker(self.module, run.tokenizer, self.features)
        self.module.train()

    def batch(self, source, i):
        n = self.config['batch_' + source]
        rng = np.random.default_rng([self.config['seed'], 7, i, SOURCES.index(source)])
        return [encode(d, self.run.tokenizer, self.size.n_token, self.size.n_image, rng, self.config['p_next'], blind_loss=self.config['blind_loss'])
                for d in self.run.documents(source, i * n, n)]

    def loss(self, source, i):
        names = self.sources if source == 'merged' else [source]
        batch = collate([s for name in names for s in self.batch(name, i)], self.run.tokenizer)
        self.n_token = batch.tokens.numel()
        tokens, image_index, targets = (x.to(self.run.device) for x in (batch.tokens, batch.image_index, batch.targets))
        return self.module(tokens, image_index, targets=targets, **self.see(batch.media))[1]

    def see(self, media):
        """What the frozen encoder says about these pictures, as keyword arguments of Flamingo.forward."""
        features, frame_mask = self.features(media)
        return {'features': features, 'frame_mask': frame_mask}

    def clip(self):
        return torch.nn.utils.clip_grad_norm_([p for p in self.module.parameters() if p.requires_grad], self.config['grad_clip'])

    def evaluate(self):
        ask = lambda task, ways=None: evaluate.measure(self.asker, task, 1 if ways else 0, self.config['eval_n'], ways, pairs=self.run.held_out)[0]['value']
        result = {'naming_2way': ask('naming', 2), 'naming_4way': ask('naming', 4), 'caption': ask('caption')}
        if self.run.held_out is None:
            result['clip'] = ask('clip_caption')
        self.module.train()
        return result

    def state(self):
        """The gates by depth: how far the frozen model has been opened."""
        return {f'gate_{which}_{depth}': round(value, 5) for depth, pair in enumerate(self.module.gates()) for which, value in zip('xd', pair)}

    def content(self):
        text = {k: v for k, v in self.contrastive.state_dict().items() if not k.startswith('vision.')}
        return {'flamingo': self.module.state_dict(), 'contrastive': text}  # the encoder is in both: once is enough


class FinetuneStage(FlamingoStage):
    """The end of the paper's appendix: a trained Flamingo goes on at a small learning rate, and its eyes with it."""
    name = 'finetune'

    def __init__(self, run):
        super().__init__(run)
        checkpoint.load_into(self.module, run.load_stage('flamingo')['flamingo'], run.path('flamingo.pt'))
        self.module.freeze(vision=False)
        self.n_iter, self.lr = self.config['finetune_iters'], self.config['finetune_lr']
        trained = [(n, p) for n, p in self.module.named_parameters() if p.requires_grad]
        self.optimizer = adamw(trained, self.lr, self.config['weight_decay'], self.config['gate_scale'])

    def see(self, media):
        """Pixels this time: features of an encoder that changes cannot be kept."""
        pixels, frame_mask = stack_frames(media, self.run.pixels)
        return {} if pixels is None else {'media': pixels.to(self.run.device), 'frame_mask': frame_mask.to(self.run.device)}

    def evaluate(self):
        self.features.kept.clear()
        return super().evaluate()


STAGES = {stage.name: stage for stage in (VisionStage, LanguageStage, FlamingoStage, FinetuneStage)}


def adamw(named_parameters, lr, weight_decay, gate_scale=1.0):
    """Weight decay pulls matrices only, and none of the resampler's (appendix A.1.3): a gate, gain or norm that
    decays would undo what it is for. The gates learn `gate_scale` times as fast: while they are shut, everything
    behind them learns through a keyhole."""
    groups = {'matrix': [], 'other': [], 'gate': []}
    for name, p in named_parameters:
        matrix = p.ndim >= 2 and not name.startswith('resampler.') and name != 'new_rows'
        groups['gate' if 'alpha_' in name else 'matrix' if matrix else 'other'].append(p)
    groups = [{'params': ps, 'weight_decay': weight_decay if kind == 'matrix' else 0.0, 'scale': gate_scale if kind == 'gate' else 1.0}
              for kind, ps in groups.items() if ps]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)


def schedule(kind, i, warmup, n):
    """The learning rate of step i of n, as a share of its peak."""
    left = 1 - i / n
    decay = {'cosine': 0.5 * (1 + math.cos(math.pi * (1 - left))), 'linear': left, 'trapezoid': min(1.0, left / 0.3), 'constant': 1.0}[kind]
    return min(1.0, (i + 1) / max(warmup, 1)) * decay


def copying(lm, run):
    """Accuracy on the second half of random word sequences that come twice; 1.0 = copies perfectly."""
    from kit.shapes import made_up_names
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(32):
        ids = [t for name in made_up_names(rng, 12, 'held') for t in run.tokenizer.encode(' ' + name)][:24]
        rows.append([run.tokenizer.bos] + ids + ids)
    n = min(map(len, rows))
    tokens = torch.tensor([r[-n:] for r in rows], device=run.device)
    with torch.no_grad():
        guess = lm(tokens[:, :-1]).argmax(-1)
    half = n // 2 + 2
    return (guess[:, half:] == tokens[:, 1 + half:]).float().mean().item()


# ---------------------------------------------------------------------------------------------
# A run: what all stages share


class Run:
    """The configuration, the data and the folder of one `python train.py`."""

    def __init__(self, config):
        self.config = {k: v for k, v in vars(config).items() if k in KEYS}
        if config.preset not in PRESETS:
            raise BadInput(f'--preset={config.preset}: expected one of {", ".join(PRESETS)}')
        self.device = pick_device(config.device)
        self.dtype = pick_dtype(config.dtype, self.device)
        sizes = {f.name: self.config[f.name] for f in SIZES if f.name in config.given or f.name not in PRESETS[config.preset]}
        self.config |= {k: v for k, v in PRESETS[config.preset].items() if k in self.config and k not in sizes}
        self.report = Report()
        # A source may be given as the name of another: m3w = 'align' makes pages of the same folder.
        specs = {role: self.config.get(self.config[role], self.config[role]) for role in (*SOURCES, 'text')}
        self.sources = {role: open_source(role, spec, self.config['n_frame'], config.seed, config.naming, config.flip)
                        for role, spec in specs.items() if spec}
        # What training never sees and evaluation asks about: of the embedded world None, of a folder its other split.
        self.held_out = None if 'shapes' in specs['m3w'] else held_out(specs['align'] or specs['m3w'], self.config['n_frame'])
        self.tokenizer = self.choose_tokenizer()
        t = self.tokenizer
        self.size = FlamingoConfig(**{f.name: self.config[f.name] for f in SIZES}, n_vocab=t.n_vocab, bos=t.bos, pad=t.pad)
        self.pixels = Pixels(self.size.image_size, self.size.n_frame)
        self.rows = []        # of log.csv
        self.stop = None      # why to stop after this step: a signal's number, or 'time'
        self.started = time.time()
        self.minutes_before = 0.0  # of earlier sittings of the same run

    def choose_tokenizer(self):
        if self.config['tokenizer'] != 'sources':
            return Tokenizer.load(self.config['tokenizer'])
        texts = [source.text(i) for name, source in self.sources.items() if name == 'text' for i in range(4000)]
        return Tokenizer(train_bpe(texts, 1022))

    def path(self, name):
        return os.path.join(self.config['out_dir'], name)

    def documents(self, source, start, n):
        """Documents start … start+n-1 of a source. One whose picture cannot be read is counted and replaced by another,
        always the same one."""
        documents = []
        for number in range(start, start + n):
            for attempt in range(50):
                document = self.sources[source].document(number + (attempt << 40))
                try:
                    for piece in document.pieces:
                        if isinstance(piece, Media):
                            self.pixels(piece)
                    documents.append(document)
                    break
                except BadItem as e:
                    self.report.add(e)
            else:
                raise BadInput(f'{source}: 50 documents in a row cannot be read: ' + '; '.join(self.report.lines()))
        return documents

    def save_stage(self, stage):
        checkpoint.save(self.path(stage.name + '.pt'), kind_of(stage.name), config=asdict(self.size), tokenizer=self.tokenizer.state(), keys=self.config,
                        **stage.content())

    def load_stage(self, name):
        """-> the content of NAME.pt, which must be of the same sizes and words."""
        path = self.path(name + '.pt')
        content = checkpoint.load(path, name)
        for key, ours in asdict(self.size).items():
            if content['config'].get(key) != ours:
                raise BadInput(f'{path} was made with {key}={content["config"].get(key)}, now {key}={ours}')
        if content['tokenizer'] != self.tokenizer.state():
            raise BadInput(f'{path} was made with another tokenizer')
        return content

    def on_signal(self, number, frame):
        """Ctrl-C or a polite kill: finish this step, save, leave. A second one leaves at once."""
        if self.stop is not None:
            raise KeyboardInterrupt
        self.stop = number

    def save_progress(self, missing, i, stage=None):
        """training.pt: everything needed to go on with step i of stage missing[0] as if nothing had happened."""
        state = {'missing': missing, 'iter': i, 'keys': self.config, 'rows': self.rows, 'minutes': self.minutes()}
        if stage is not None:
            state |= {'module': stage.module.state_dict(), 'optimizer': stage.optimizer.state_dict(), 'random': checkpoint.random_state()}
        checkpoint.save(self.path('training.pt'), 'training', **state)
        self.write_log()

    def minutes(self):
        """Of training, all sittings together."""
        return self.minutes_before + (time.time() - self.started) / 60

    def read_log(self):
        if not os.path.exists(self.path('log.csv')):
            return []
        with open(self.path('log.csv'), encoding='utf-8', newline='') as f:
            return list(csv.DictReader(f))

    def write_log(self):
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        with checkpoint.whole_file(self.path('log.csv'), 'w', encoding='utf-8') as f:
            writer = csv.DictWriter(f, columns)
            writer.writeheader()
            writer.writerows(self.rows)
        pictures.save(pictures.curves(self.rows), self.path('curves.png'))


def kind_of(stage_name):
    """A fine-tuned Flamingo is a Flamingo still: sample.py and evaluate.py read it as such."""
    return 'flamingo' if stage_name == 'finetune' else stage_name


def held_out(spec, n_frame):
    """The val (or test) split of a folder; all of it, if it has none: then evaluation shows what was learned by heart."""
    folder = spec.split(',')[0].rpartition(':')[0] or spec
    pairs = open_folder(folder if os.path.exists(folder) else spec.split(',')[0], n_frame, split=None)
    return next((pairs.split(name) for name in ('val', 'test') if name in pairs.splits), pairs)


def check_same_keys(saved, now, path):
    """A run may only be continued with the keys it was begun with."""
    for key in saved:
        if key in now and key not in FREE_KEYS and saved[key] != now[key]:
            raise BadInput(f'{path} was made with --{key}={saved[key]}, now --{key}={now[key]}: '
                           f'give the same, another --out_dir, or --init_from=scratch to start over')


# ---------------------------------------------------------------------------------------------
# The loop


def train_stage(run, stage, missing, progress=None):
    """Train one stage to its end, from where `progress` (training.pt) left it. Returns whether it came to its end."""
    config, start = run.config, 0
    if progress is not None and 'module' in progress:
        start = progress['iter']
        stage.module.load_state_dict(progress['module'])
        stage.optimizer.load_state_dict(progress['optimizer'])
        checkpoint.set_random_state(progress['random'])
    if config['compile']:
        stage.module.compile()
    names = list(stage.sources)
    bar = tqdm(range(start, stage.n_iter), desc=stage.name, initial=start, total=stage.n_iter)
    last_eval, skipped = '', 0
    clock, n_token = time.time(), 0
    kind = config['flamingo_schedule' if stage.name in ('flamingo', 'finetune') else 'schedule']
    for i in bar:
        for group in stage.optimizer.param_groups:
            group['lr'] = stage.lr * group['scale'] * schedule(kind, i, config['warmup'], stage.n_iter)
        # One step: the gradients of one batch from each source, weighted by λ, added up (appendix A.1.3).
        losses = {}
        for name in {'accumulate': names, 'round_robin': [names[i % len(names)]], 'merged': ['merged']}[config['mixing'] if stage.name == 'flamingo' else 'accumulate']:
            with autocast(run.device, run.dtype):
                loss = stage.loss(name, i)
            (stage.sources.get(name, 1.0) * loss).backward()
            losses[name] = loss.item()
        norm = stage.clip().item()  # once, after all sources: clipping each would change their balance
        if math.isfinite(norm) and all(map(math.isfinite, losses.values())):
            stage.optimizer.step()
            skipped = 0
        else:  # a step that would spoil the weights is left out
            skipped += 1
            tqdm.write(f'{stage.name} step {i}: not finite ({losses}, gradient norm {norm}); skipped')
            if skipped == 10:
                raise BadInput(f'{stage.name}: ten steps in a row were not finite; the last good state is in {run.path("training.pt")}')
        stage.optimizer.zero_grad(set_to_none=True)

        n_token += stage.n_token  # what this step has read, padding included
        done = i + 1 == stage.n_iter
        if config['max_minutes'] and time.time() - run.started > 60 * config['max_minutes']:
            run.stop = run.stop or 'time'
        if (i + 1) % config['log_every'] == 0 or done:
            row = {'stage': stage.name, 'iter': i + 1, **{'loss_' + k: round(v, 5) for k, v in losses.items()},
                   'lr': stage.optimizer.param_groups[0]['lr'], 'grad_norm': round(norm, 5), **stage.state()}
            run.rows.append(row)
            row['tokens_per_s'] = round(n_token / (time.time() - clock))
            row['minutes'] = round(run.minutes(), 3)
            clock, n_token = time.time(), 0
            bar.set_postfix_str(' '.join(f'{k} {v:.3f}' for k, v in losses.items()) + last_eval)
        if (i + 1) % config['eval_every'] == 0 or done:
            result = stage.evaluate()
            run.rows.append({'stage': stage.name, 'iter': i + 1, **{'eval_' + k: round(v, 4) for k, v in result.items()}, 'minutes': round(run.minutes(), 3)})
            last_eval = ' | ' + ' '.join(f'{k} {v:.0%}' for k, v in result.items())
            clock = time.time()
        if run.stop or (i + 1) % config['eval_every'] == 0:
            run.save_progress(missing, i + 1, stage)
        if run.stop:
            return done
    bar.close()
    return True


def check_values(config):
    """Values of the right type that make no sense. Raises BadInput."""
    choices = {'stage': ('all', *STAGES), 'init_from': ('auto', 'scratch', 'resume'), 'mixing': ('accumulate', 'round_robin', 'merged'),
               'schedule': SCHEDULES, 'flamingo_schedule': SCHEDULES, 'preset': tuple(PRESETS), 'attend': ('last', 'all_previous')}
    for key, allowed in choices.items():
        if getattr(config, key) not in allowed:
            raise BadInput(f'--{key}={getattr(config, key)}: expected {", ".join(allowed[:-1])} or {allowed[-1]}')
    for key, (default, _) in KEYS.items():
        value = getattr(config, key)
        if type(default) in (int, float) and value < 0:
            raise BadInput(f'--{key}={value}: must not be negative')
        if type(default) is int and value == 0 and key not in ('seed', 'warmup'):
            raise BadInput(f'--{key}=0: must be at least 1')


def finish(run):
    """The few-shot table, on screen and in results.json, and samples.png."""
    stage = FlamingoStage(run)
    content = run.load_stage('flamingo')
    checkpoint.load_into(stage.module, content['flamingo'], run.path('flamingo.pt'))
    stage.module.eval()
    rows, shown = evaluate.first_table(stage.asker, stage.contrastive, n=run.config['test_n'], pairs=run.held_out)
    with checkpoint.whole_file(run.path('results.json'), 'w', encoding='utf-8') as f:
        json.dump(rows, f, indent=1)
    pictures.save(evaluate.sheet(shown), run.path('samples.png'))
    print(evaluate.table(rows))
    print(f'\n{run.minutes():.1f} minutes. Look at {run.path("samples.png")} and {run.path("curves.png")}; then: python sample.py'
          + ('' if run.config['out_dir'] == 'out' else f' --out_dir={run.config["out_dir"]}'))


def carry_out(run, config):
    """All stages that are asked for and missing, in order. Returns why it stopped early: a signal, 'time' or None."""
    wanted = ['vision', 'language', 'flamingo'] if config.stage == 'all' else [config.stage]
    progress = None
    if config.init_from == 'scratch' or not os.path.exists(run.path('training.pt')):
        if config.init_from == 'resume':
            raise BadInput(f'{run.path("training.pt")}: no such file, nothing to resume')
        missing = [name for name in wanted if config.init_from == 'scratch' or not os.path.exists(run.path(name + '.pt'))]
        run.rows = [row for row in run.read_log() if row['stage'] not in missing]  # of stages trained before, one by one
        for name in wanted:
            if name not in missing:
                check_same_keys(checkpoint.load(run.path(name + '.pt'), kind_of(name))['keys'], run.config, run.path(name + '.pt'))
    else:
        progress = checkpoint.load(run.path('training.pt'), 'training')
        check_same_keys(progress['keys'], run.config, run.path('training.pt'))
        missing, run.rows = progress['missing'], progress['rows']
        run.minutes_before = progress['minutes']
    finished = not missing and os.path.exists(run.path('results.json'))
    if finished:
        print(f'{config.out_dir} is complete. --init_from=scratch starts over; python sample.py shows what it learned.')
        return None
    signal.signal(signal.SIGINT, run.on_signal)
    signal.signal(signal.SIGTERM, run.on_signal)
    while missing:
        torch.manual_seed(run.config['seed'])
        stage = STAGES[missing[0]](run)
        if progress is None or 'module' not in progress:
            run.save_progress(missing, 0)  # from here on, training.pt says what is left to do
        if not train_stage(run, stage, missing, progress):
            return run.stop
        run.save_stage(stage)
        missing, progress = missing[1:], None
        run.save_progress(missing, 0)
    if 'flamingo' in wanted:
        finish(run)
    os.remove(run.path('training.pt'))
    for line in run.report.lines():
        print('left out', line)
    return None


def main():
    config = configure(KEYS, usage=__doc__)
    check_values(config)
    with checkpoint.only_run(config.out_dir):
        stopped = carry_out(Run(config), config)
    if stopped is not None:
        print(f'stopped and saved; to continue: python train.py {shlex.join(a for a in sys.argv[1:] if not a.startswith("--init_from"))}')
        sys.exit(0 if stopped == 'time' else 128 + stopped)


if __name__ == '__main__':
    command(main)
