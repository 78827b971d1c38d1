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
import time
from dataclasses import asdict, dataclass, fields, replace

import numpy as np
import torch
from tqdm import tqdm

import evaluate
from data import Document, Media, Tokenizer, augment, collate, encode, load_pixels
from kit import checkpoint, pictures
from kit.configurator import BadInput, autocast, command, configure, pick_device, pick_dtype
from kit.features import FrozenFeatures
# from kit.sources import open_source
from model import GPT, PRESETS, Flamingo, FlamingoConfig
from vision import Contrastive, NFNet, TextTower, adaptive_gradient_clip

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
    'batch_ltip': (8, ''),
    'batch_vtp': (8, ''),
    'p_next': (0.5, 'chance that the text of a page sees the next picture instead of the one before'),
    'blind_loss': (True, 'learn text that can see no picture, too'),
    # Stage 1
    'vision_iters': (600, 'steps of the contrastive stage'),
    'vision_batch': (96, 'pairs a step, of each of align and ltip'),
    'vision_lr': (2e-3, 'peak learning rate'),
    'augment': (0.3, 'strength of colour and geometric augmentation in the contrastive stage, 0 for none'),
    'flip': (False, 'mirror pictures at random; off where left and right or letters mean something'),
    'agc': (0.01, 'adaptive gradient clipping of the NFNet'),
    # Stage 2
    'language_iters': (700, 'steps of the language stage'),
    'language_batch': (6, 'rows of n_context tokens a step'),
    'language_lr': (2e-3, 'peak learning rate'),
    # Stage 3
    'flamingo_iters': (700, 'steps of the Flamingo stage'),
    'flamingo_lr': (2e-3, 'peak learning rate'),
    'finetune_iters': (200, 'steps of fine-tuning'),
    'finetune_lr': (1e-4, 'peak learning rate'),
    'schedule': ('cosine', "after warm-up: cosine or linear to zero, constant, or 'paper' (linear for vision, constant for Flamingo)"),
    'warmup': (50, 'steps from zero to the peak (the paper: 5,000)'),
    'weight_decay': (0.1, 'of matrices; never of the resampler, of gates, gains and norms'),
    'grad_clip': (1.0, 'global norm of the gradient, after all sources are accumulated'),
    'log_every': (10, 'steps between rows of log.csv'),
    'eval_every': (100, 'steps between evaluations, which also save a checkpoint'),
    'eval_n': (96, 'episodes of each kind in an evaluation'),
    'test_n': (400, 'episodes of each kind in the final table'),
    'max_minutes': (0.0, 'stop after this long, saved and ready to be continued; 0 for no limit'),
}
SIZES = [f for f in fields(FlamingoConfig) if f.name not in ('n_vocab', 'bos', 'pad')]
KEYS |= {f.name: (f.default, 'size; the preset decides unless said') for f in SIZES}
SOURCES = ('m3w', 'align', 'ltip', 'vtp')
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
        tokens, mask = evaluate.pad_texts([self.run.tokenizer.encode(' ' + d.pieces[-1]) for d in documents], TEXT_CONTEXT)
        vision = self.module.vision
        return self.module(vision.normalise(images.to(self.run.device)), tokens.to(self.run.device), mask.to(self.run.device))

    def clip(self):
        """AGC for the NFNet, a plain global norm of 10 for the text tower."""
        adaptive_gradient_clip(self.module.vision.parameters(), self.config['agc'])
        return torch.nn.utils.clip_grad_norm_(self.module.text.parameters(), 10.0)

    def evaluate(self):
        features = FrozenFeatures(self.module.vision, self.run.pixels, self.run.device)  # of the encoder as it is now
        result = evaluate.zero_shot(self.module.eval(), self.run.tokenizer, features, 'dev', 4 * self.config['eval_n'])
        self.module.train()
        return {'zero_shot': result['value']}

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
        """(B, n_context+1) token ids: documents one after the other, each after a <BOS>."""
        source, tokenizer = self.run.sources['text'], self.run.tokenizer
        rows, number = [], i << 20  # room for a million texts a step
        for _ in range(self.config['language_batch']):
            row = []
            while len(row) <= self.size.n_context:
                row += [tokenizer.bos] + tokenizer.encode(source.text(number))
                number += 1
            rows.append(row[:self.size.n_context + 1])
        return torch.tensor(rows)

    def loss(self, source, i):
        tokens = self.batch(i).to(self.run.device)
        return self.module(tokens[:, :-1], tokens[:, 1:])[1]

    def clip(self):
        return torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.config['grad_clip'])

    def evaluate(self):
        """How sure it is of a random word sequence the second time it sees it: the copying that Flamingo will need."""
        return {'copying': copying(self.module, self.run)}

    def content(self):
        return {'lm': self.module.state_dict()}


class FlamingoStage:
    """Resampler, gated layers and two embedding rows, between the frozen two (§3.3)."""
    name = 'flamingo'

    def __init__(self, run):
        self.run, self.config, self.size = run, run.config, run.size
        contrastive = new_contrastive(self.size)
        path = run.path('vision.pt')
        checkpoint.load_into(contrastive, run.load('vision')['contrastive'], path)
        lm = GPT.from_config(self.size)
        checkpoint.load_into(lm, run.load('language')['lm'], run.path('language.pt'))
        self.contrastive = contrastive.to(run.device)
        self.module = Flamingo(self.size, contrastive.vision, lm).to(run.device)
        self.sources = {name: run.config['lambda_' + name] for name in SOURCES if run.config[name]}
        if not self.sources:
            raise BadInput('the Flamingo stage needs a source: give m3w, align, ltip or vtp')
        self.n_iter, self.lr = self.config['flamingo_iters'], self.config['flamingo_lr']
        trained = [(n, p) for n, p in self.module.named_parameters() if p.requires_grad]
        self.optimizer = adamw(trained, self.lr, self.config['weight_decay'])
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
        features, frame_mask = self.features(batch.media)
        tokens, image_index, targets = (x.to(self.run.device) for x in (batch.tokens, batch.image_index, batch.targets))
        return self.module(tokens, image_index, targets=targets, features=features, frame_mask=frame_mask)[1]

    def clip(self):
        return torch.nn.utils.clip_grad_norm_([p for p in self.module.parameters() if p.requires_grad], self.config['grad_clip'])

    def evaluate(self):
        n = self.config['eval_n']
        result = {'naming_2way': evaluate.measure(self.asker, 'naming', 'dev', 1, n, ways=2)[0]['value'],
                  'naming_4way': evaluate.measure(self.asker, 'naming', 'dev', 1, n, ways=4)[0]['value'],
                  'caption': evaluate.measure(self.asker, 'caption', 'dev', 0, n)[0]['value'],
                  'clip': evaluate.measure(self.asker, 'clip_caption', 'dev', 0, n)[0]['value']}
        self.module.train()
        return result

    def content(self):
        text = {k: v for k, v in self.contrastive.state_dict().items() if not k.startswith('vision.')}
        return {'flamingo': self.module.state_dict(), 'contrastive': text}  # the encoder is in both: once is enough


STAGES = {stage.name: stage for stage in (VisionStage, LanguageStage, FlamingoStage)}
TEXT_CONTEXT = 64  # tokens of a caption that the contrastive text tower reads


def new_contrastive(size):
    text = TextTower(size.n_vocab, size.text_dim, size.text_layer, size.text_head, TEXT_CONTEXT, size.dim_embed)
    return Contrastive(NFNet(size.vision, size.dim_embed), text)


def adamw(named_parameters, lr, weight_decay):
    """Weight decay pulls matrices only, and none of the resampler's (appendix A.1.3): a gate, gain or norm that
    decays would undo what it is for."""
    groups = {True: [], False: []}
    for name, p in named_parameters:
        groups[p.ndim >= 2 and not name.startswith('resampler.') and name != 'new_rows'].append(p)
    groups = [{'params': groups[True], 'weight_decay': weight_decay}, {'params': groups[False], 'weight_decay': 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)


def schedule(kind, stage, i, warmup, n):
    """The learning rate of step i of n, as a share of its peak."""
    if kind == 'paper':
        kind = 'linear' if stage == 'vision' else 'constant'
    left = 1 - i / n
    decay = {'cosine': 0.5 * (1 + math.cos(math.pi * (1 - left))), 'linear': left, 'constant': 1.0}[kind]
    return min(1.0, (i + 1) / max(warmup, 1)) * decay


def copying(lm, run):
    """Accuracy on the second half of random word sequences that come twice; 1.0 = copies perfectly."""
    from kit.shapes import made_up_names
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(32):
        ids = [t for name in made_up_names(rng, 12, 'dev') for t in run.tokenizer.encode(' ' + name)][:24]
        rows.append([run.tokenizer.bos] + ids + ids)
    n = min(map(len, rows))
    tokens = torch.tensor([r[-n:] for r in rows], device=run.device)
    with torch.no_grad():
        guess = lm(tokens[:, :-1]).argmax(-1)
    half = n // 2 + 2
    return (guess[:, half:] == tokens[:, 1 + half:]).float().mean().item()
