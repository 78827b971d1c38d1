"""Train Flamingo from nothing: eyes, then language, then the bridge between them.

    python train.py                                    # all three stages on the embedded world, minutes on a laptop
    python train.py --stage=flamingo --n_latent=16     # one stage, other sizes
    python train.py config/emoji.py --align=pictures   # your own pictures with captions
    python train.py config/gpt2.py                     # start from GPT-2 and an ImageNet NFNet: see there what to fetch

On many GPUs (the batch of a step is dealt out, so the numbers of a run do not depend on how many there are):

    torchrun --standalone --nproc_per_node=8 train.py config/gpt2.py                   # one machine, data-parallel
    torchrun --standalone --nproc_per_node=8 train.py config/flamingo_3b.py            # the same, weights sharded
    torchrun --nproc_per_node=8 --nnodes=2 --node_rank=0 --master_addr=10.0.0.1 --master_port=1234 train.py ...  # first of two machines
    torchrun --nproc_per_node=8 --nnodes=2 --node_rank=1 --master_addr=10.0.0.1 --master_port=1234 train.py ...  # and on the second one

Several machines need one out_dir that all of them can read.

What it leaves in out_dir: vision.pt, language.pt, flamingo.pt, results.json, log.csv, curves.png, samples.png; finetune.pt after
--stage=finetune.
Run it again and it continues where it was interrupted (init_from=auto).

    vision     NFNet + text tower from random weights: which caption belongs to which picture?     (appendix B.1)
    language   a GPT from random weights, on text alone
    flamingo   both frozen; the resampler and the gated layers between them learn to answer         (§3.2)
    finetune   the same, the vision encoder training too, at a small learning rate                  (appendix)
"""
import contextlib
import json
import math
import os
import shlex
import signal
import sys
import time

import numpy as np
import torch
from tqdm import tqdm

from data import collate, stack_frames
from kit.augment import augment
from kit.cli import check_range, command, configure
from kit.device import autocast, frozen_dtype
from kit.features import FrozenFeatures
from kit.files import BadInput, BadItem, only_run, whole_file
from kit.run import distributed
from kit.run.ahead import look_ahead
from kit.run.run import check_same_keys, kind_of, Run, SIZE_FIELDS, SOURCES
from kit.show import canvas
from kit.tasks.asker import Asker
from kit.tasks.controls import BLANK
from kit.tasks.encoders import nearest_row, pad_texts, retrieval, zero_shot
from kit.tasks.episodes import episodes_of
from kit.tasks.results import measure
from kit.tasks.tables import first_table, sheet, table
from kit.weights import checkpoint
from kit.world.words import made_up_names, SYLLABLES
from model import Flamingo, GPT, PRESETS
from vision import adaptive_gradient_clip, new_contrastive, NFNet, SIZES, TEXT_CONTEXT

KEYS = {
    'stage': ('all', 'all, vision, language, flamingo or finetune'),
    'out_dir': ('out', 'folder for everything the run leaves behind'),
    'init_from': ('auto', 'auto: continue or fill in what is missing; scratch: start over; resume: continue, or fail'),
    'preset': ('nano', f'sizes of everything: {", ".join(PRESETS)}'),
    'device': ('auto', 'auto, cpu, cuda, cuda:1, mps'),
    'dtype': ('auto', 'of matrix products and, on a GPU, frozen weights: auto, float32 or bfloat16'),
    'compile': (False, 'torch.compile the networks'),
    'shard': (False, 'split weights and optimizer over the processes of torchrun (FSDP), for models that do not fit on one GPU'),
    'activation_checkpointing': (False, 'keep only what goes into each block and compute the rest again: less memory, a third more work'),
    'micro_batches': (1, 'read each batch in so many parts, adding up gradients; not in the contrastive stage, whose batch is compared with itself'),
    'seed': (0, 'of weights and data; the same seed gives the same run on the same CPU'),
    'tokenizer': ('assets/tokenizer.tiktoken', "a tiktoken file, a folder with GPT-2's vocab.json and merges.txt, 'gpt2' where tiktoken has it "
                                               "in its cache, or 'sources' to train one on the captions of the sources"),
    'tokenizer_ranks': (1022, "size of a tokenizer trained on the sources; large enough, and nearly every word of theirs is one token"),
    'gpt2': ('', "GPT-2's weights, as published: the language stage starts from them (with language_iters=0 it takes them as they are)"),
    'nfnet': ('', "timm's dm_nfnet weights, as published: the vision stage starts from them (vision_iters=0: takes them as they are)"),
    # What to learn from: 'shapes', a path, several 'path:weight' with commas, or empty for none.
    'm3w': ('shapes', 'interleaved pages'),
    'align': ('shapes', 'pairs with short, noisy captions'),
    'ltip': ('shapes', 'pairs with long captions'),
    'vtp': ('shapes', 'clips with captions'),
    'text': ('shapes', 'plain text for the language stage'),
    'images': ('', 'folder of the pictures that a COCO captions file or a documents.jsonl names, where they are not beside it'),
    'workers': (0, 'processes that read and decode the next steps while the model computes; for pictures larger than the nano size'),
    'lambda_m3w': (1.0, 'weight of each source in the loss (λ; appendix B.1.2)'),
    'lambda_align': (0.2, 'the same of align'),
    'lambda_ltip': (0.2, 'the same of ltip'),
    'lambda_vtp': (0.03, 'the same of vtp'),
    'mixing': ('accumulate', "in the Flamingo stage: accumulate gradients of all sources each step, 'round_robin' over steps, or 'merged' batches, without λ"),
    'batch_m3w': (24, 'sequences of each source a step, in the Flamingo stage'),
    'batch_align': (8, 'the same of align'),
    'batch_ltip': (16, 'the same of ltip'),
    'batch_vtp': (4, 'the same of vtp'),
    'p_next': (0.5, 'chance that the text of a page sees the next picture instead of the one before'),
    'blind_loss': (True, 'learn text that can see no picture, too'),
    # Folders of class folders, and the pages made of any folder
    'class_depth': (0, 'how many folder names make a class: 2 for alphabet/character, wherever the alphabet lies; 0 for all of them'),
    'rotate': (False, 'turned by 90, 180 and 270 degrees, each class is three more'),
    'held_groups': ('', 'folders of class folders that training never sees and evaluation asks about, several with commas'),
    'words': (0, 'made-up words of so many syllables replace class names after the vision stage: what looks alike shares syllables; 0: none'),
    'word_centres': (32, 'syllables to choose from, for each place in a word'),
    'naming': (0.6, 'share of naming pages among the pages made of a folder'),
    'page_examples': (12, 'most examples on such a page; half as many at least'),
    'page_variants': (4, 'in how many variants it shows each picture: turned, scaled and shifted a little; 1 for as it is'),
    'ways': (5, 'most names on a naming page'),
    'within_group': (0.0, 'share of naming pages whose classes are all of one group: of the same parent folder'),
    'captions_first': (0, 'so many pages have captions only, before naming pages come'),
    'ways_rise': (0, 'pages over which the most names on a page rise from two'),
    # Stage 1
    'vision_iters': (1200, 'steps of the contrastive stage'),
    'vision_batch': (96, 'pairs a step, of each of align and ltip'),
    'vision_lr': (5e-3, 'peak learning rate'),
    'augment': (0.0, 'strength of colour and geometric augmentation in the contrastive stage, 0 for none'),
    'augment_colour': (True, 'whether it changes colours; off where there are none'),
    'warp': (0.0, 'how much it slants, stretches and bends pictures besides: drawings, of which no two are alike'),
    'word_dropout': (0.0, 'share of the tokens of a caption that the contrastive stage leaves out, others each time'),
    'flip': (False, 'mirror pictures at random; off where left and right or letters mean something'),
    'agc': (0.01, 'adaptive gradient clipping of the NFNet'),
    # Stage 2
    'language_iters': (400, 'steps of the language stage'),
    'language_batch': (8, 'rows a step'),
    'language_tokens': (448, 'tokens a row, at a random place of the context; as many as the longest prompt will have'),
    'language_lr': (3e-3, 'peak learning rate'),
    # Stage 3
    'flamingo_iters': (600, 'steps of the Flamingo stage'),
    'flamingo_lr': (2e-3, 'peak learning rate'),
    'flamingo_schedule': ('trapezoid', 'full until 70 % of the steps, then linear to zero; or one of the others (the paper: constant)'),
    'feature_dropout': (0.3, 'share of the channels of the frozen features that training leaves out, others for each picture; not in fine-tuning'),
    'gate_scale': (15.0, 'how much faster the gates learn than the rest'),
    'finetune_iters': (200, 'steps of fine-tuning'),
    'finetune_lr': (1e-4, 'peak learning rate (the paper, for much larger models: 3e-8 to 1e-5)'),
    'schedule': ('cosine', 'of the first two stages, after warm-up: cosine, linear, trapezoid or constant (the paper: linear for vision)'),
    'warmup': (50, 'steps from zero to the peak (the paper: 5,000)'),
    'weight_decay': (0.1, 'of matrices; never of the resampler, of gates, gains and norms'),
    'grad_clip': (1.0, 'global norm of the gradient, after all sources are accumulated'),
    'log_every': (10, 'steps between rows of log.csv'),
    'eval_every': (100, 'steps between evaluations, which also save a checkpoint'),
    'eval_n': (64, 'episodes of each kind in an evaluation'),
    'test_n': (400, 'episodes of each kind in the final table'),
    'max_minutes': (0.0, 'stop this sitting after so long, saved and ready to be continued; 0 for no limit'),
}
KEYS |= {f.name: (f.default, 'size; the preset decides unless said') for f in SIZE_FIELDS}
SCHEDULES = ('cosine', 'linear', 'trapezoid', 'constant')
OUT_OF_TIME = 1000  # a reason to stop; the others are numbers of signals


# ---------------------------------------------------------------------------------------------
# The stages: three, and fine-tuning. Each has: name, reads (which of Run's methods makes its batches), module, net (the module as
# training calls it: DDP around it, or itself), optimizer, n_iter, lr, n_part (micro-batches), sources {name: λ}, losses(sources, i, part),
# one_pass (does it read all sources together?), n_token (read in the step at hand, padding included), clip(), evaluate(), state(),
# content(). Batch number i of a source is the same whenever it is asked for, so the position in the data is the step number, and
# resuming needs nothing else. Of each batch, a process reads its own rows only.


class VisionStage:
    """Contrastive: the pictures of a batch against the captions of the batch (appendix B.1)."""
    name, reads, n_token = 'vision', 'pairs', 0

    def __init__(self, run):
        self.run, self.config, self.size = run, run.config, run.size
        self.module = new_contrastive(self.size)
        if self.config['nfnet']:
            self.module.vision = NFNet.from_timm(self.config['nfnet'], self.size.dim_embed)
            run.expect_sizes('nfnet', {'vision': self.module.vision.size})
        self.sources = {name: run.config['lambda_' + name] and 1.0 for name in ('align', 'ltip') if run.config[name]}
        if not self.sources:
            raise BadInput('the vision stage needs pairs: give align or ltip')
        # Of the same world or folder, both show the same pictures, each with a caption of its own: a picture is encoded once for the two.
        # Where pictures differ, or are augmented, to read both batches at once would only take twice the memory.
        self.changed = self.config['augment'] > 0 or self.config['warp'] > 0
        self.one_pass = self.config['align'] == self.config['ltip'] and not self.changed
        self.n_iter, self.lr, self.n_part = self.config['vision_iters'], self.config['vision_lr'], 1
        vision, text = self.module.vision, self.module.text
        blocks = [*vision.blocks, *text.layers]
        self.net = run.spread(self.module, [*blocks, vision.projection, vision, text], recomputed=blocks, methods=[(vision, 'embed'), (text, 'embed')])
        self.optimizer = adamw(self.module.named_parameters(), self.lr, 0.0)  # the paper: Adam, no weight decay

    def losses(self, sources, i, part=0):
        n, images, texts = self.config['vision_batch'], {}, []  # images: each only once, by what tells it from others
        for source in sources:
            documents = self.run.batch('pairs', source, i)
            rng = distributed.RowsOf(np.random.default_rng([self.config['seed'], i, SOURCES.index(source)]), n, distributed.rows(n, 'vision_batch'))
            pixels = [self.run.pixels(d.pieces[0])[0] for d in documents]  # of a clip, its first frame
            if self.changed:
                pixels = augment(torch.stack(pixels), rng, self.config['flip'], self.config['augment'], self.config['augment_colour'], self.config['warp'])
            keys = [(source, k) if self.changed else d.pieces[0].key or (source, k) for k, d in enumerate(documents)]
            for key, picture in zip(keys, pixels):
                images.setdefault(key, picture)
            place = {key: k for k, key in enumerate(images)}
            tokens, mask = pad_texts([self.run.tokenizer.encode(' ' + d.pieces[-1]) for d in documents], TEXT_CONTEXT)
            if self.config['word_dropout'] > 0:  # what is left must do: a picture may not be known by its rarest word alone
                kept = mask & torch.from_numpy(rng.uniform(0, 1, (n, TEXT_CONTEXT))[:, :mask.shape[1]] >= self.config['word_dropout'])
                mask = torch.where(kept.any(1, keepdim=True), kept, mask)  # never all of them
            self.n_token += tokens.numel()
            texts.append([x.to(self.run.device) for x in (tokens, mask, torch.tensor([place[key] for key in keys]))])
        images = self.module.vision.normalise(torch.stack(list(images.values())).to(self.run.device))
        return dict(zip(sources, self.net(images, texts)))

    def clip(self):
        """AGC for the NFNet, a plain global norm of 10 for the text tower. -> the norm of all before it, by which
        a step that is not finite is told and skipped."""
        norm = distributed.grad_norm(self.module.parameters())
        adaptive_gradient_clip(self.module.vision.parameters(), self.config['agc'])
        distributed.clip_grad_norm(self.module.text.parameters(), 10.0)
        return norm

    def evaluate(self):
        features = FrozenFeatures(self.module.vision, self.run.pixels, self.run.device)  # of the encoder as it is now
        self.module.eval()
        if self.config['words']:  # class names that say nothing: are new things told apart?
            ways = self.run.ask_ways()
            episodes = {w: episodes_of('naming', 1, self.config['eval_n'], w, pairs=self.run.held_out, within=self.run.within()) for w in ways}
            result = {f'nearest_{w}way': nearest_row(features, found)['value'] for w, found in episodes.items()}
        elif self.run.held_out is None:
            result = {'zero_shot': zero_shot(self.module, self.run.tokenizer, features, 4 * self.config['eval_n'])['value']}
        else:
            rows = retrieval(self.run.held_out, self.module, features, self.run.tokenizer, self.run.report, most=2000)
            result = {r['metric']: r['value'] for r in rows if r['metric'] in ('i2t_R@1', 'i2t_R@5')}
        self.module.train()
        return result

    def state(self):
        """What else log.csv says about a step."""
        return {'beta': round(self.module.log_beta.exp().item(), 3)}

    def content(self):
        return {'contrastive': self.module.state_dict(), 'words': self.run.find_words(self.module.vision)}


class LanguageStage:
    """Next word, on text alone."""
    name, reads, one_pass, n_token = 'language', 'texts', False, 0

    def __init__(self, run):
        self.run, self.config, self.size = run, run.config, run.size
        run.use_words()
        self.module = GPT.from_config(self.size)
        if self.config['gpt2']:
            self.module = GPT.from_gpt2(self.config['gpt2'])
            run.expect_sizes('gpt2', self.module.sizes())
        if not self.config['text'] and self.config['language_iters']:
            raise BadInput('the language stage needs text: give text')
        self.sources = {'text': 1.0}
        self.n_iter, self.lr, self.n_part = self.config['language_iters'], self.config['language_lr'], self.config['micro_batches']
        self.net = run.spread(self.module, self.module.h, recomputed=self.module.h)
        self.optimizer = adamw(self.module.named_parameters(), self.lr, self.config['weight_decay'])

    def losses(self, sources, i, part=0):
        [source] = sources
        tokens, start = (torch.from_numpy(x[part::self.n_part]).to(self.run.device) for x in self.run.batch('texts', source, i))
        self.n_token += tokens.numel()
        return {source: self.net(tokens[:, :-1], tokens[:, 1:], start)[1] / self.n_part}

    def clip(self):
        return distributed.clip_grad_norm(self.module.parameters(), self.config['grad_clip'])

    def evaluate(self):
        """How often it is right about a random word sequence the second time it sees it: the copying that Flamingo will need."""
        return {'copying': copying(self.module, self.run)}

    def state(self):
        return {}

    def content(self):
        return {'lm': self.module.state_dict()}


class FlamingoStage:
    """Resampler, gated layers and two embedding rows, between the frozen two (§3.2)."""
    name, reads, one_pass, n_token = 'flamingo', 'sequences', True, 0

    def __init__(self, run):
        self.run, self.config, self.size = run, run.config, run.size
        run.use_words()
        contrastive = new_contrastive(self.size)
        path = run.path('vision.pt')
        checkpoint.load_into(contrastive, run.load_stage('vision', 'contrastive')['contrastive'], path)
        lm = GPT.from_config(self.size)
        checkpoint.load_into(lm, run.load_stage('language', 'lm')['lm'], run.path('language.pt'))
        self.contrastive = contrastive.to(run.device)
        self.module = Flamingo(self.size, contrastive.vision, lm)
        self.prepare()
        for frozen in self.module.frozen:
            frozen.to(frozen_dtype(run.dtype, run.device, self.size.lm_dim))
        self.sources = {name: run.config['lambda_' + name] for name in SOURCES if run.config[name]}
        if not self.sources:
            raise BadInput('the Flamingo stage needs a source: give m3w, align, ltip or vtp')
        self.n_part = self.config['micro_batches']
        # The vision encoder stays whole (so it does in the paper): its features are kept, and each rank asks when it needs new ones.
        # The resampler is put together at once: how often its layers are called depends on the pictures, which differ by rank.
        m = self.module
        self.net = run.spread(m, [*m.lm.h, *m.gated, m.resampler], replicated=[m.vision], methods=[(m, 'generate'), (m, 'score')],
                              recomputed=[*m.lm.h, *m.gated, *m.resampler.layers, *([] if m.vision in m.frozen else m.vision.blocks)])
        trained = [(n, p) for n, p in self.module.named_parameters() if p.requires_grad]
        self.optimizer = adamw(trained, self.lr, self.config['weight_decay'], self.config['gate_scale'])
        self.features = FrozenFeatures(self.module.vision, run.pixels, run.device)
        self.asker = Asker(self.module, run.tokenizer, self.features, shared=not self.config['shard'])
        self.module.train()

    def prepare(self):
        """What fine-tuning does differently."""
        self.n_iter, self.lr = self.config['flamingo_iters'], self.config['flamingo_lr']

    def losses(self, sources, i, part=0):
        """The mean loss of each source, or of all that there are as one: ['merged']. All are read in one pass, which gives the same
        gradients as one after the other, and their short sequences fill the gaps beside the long ones."""
        batches = {name: self.run.batch('sequences', name, i) for name in (self.sources if sources == ['merged'] else sources)}
        sequences = [s for batch in batches.values() for s in batch[part::self.n_part]]
        if not any(s.media for s in sequences):  # a picture that nobody looks at: every rank must do the same work, with or without pictures
            sequences[0].media.append(BLANK)
        # With all previous pictures in view, those of another document in the row would be, too.
        batch = collate(sequences, self.run.tokenizer, share=self.size.attend == 'last')
        tokens, image_index, targets, position, document = (
            x.to(self.run.device) for x in (batch.tokens, batch.image_index, batch.targets, batch.position, batch.document))
        if len(tokens) == len(sequences):  # one in each row: plain causal attention, which has faster kernels
            document = None
        self.n_token += batch.tokens.numel()
        each = self.net(tokens, image_index, targets=targets, position=position, document=document, each=True, **self.see(batch))[1]  # (targets,)
        number = {name: 0 if sources == ['merged'] else k for k, name in enumerate(batches)}
        of_source = torch.tensor([number[s.source] for s in batch.sequences]).repeat_interleave(torch.tensor([s.n_learned for s in batch.sequences]))
        total = each.new_zeros(len(sources)).index_add(0, of_source.to(each.device), each)
        # The mean is over the whole batch: the targets of all its parts, and of all ranks.
        # The mean over a source's tokens, where the paper has their sum: λ then says the same of long pages and of short captions.
        n_learned = [sum(s.n_learned for s in batch) for batch in batches.values()]
        n_learned = distributed.total(*([sum(n_learned)] if sources == ['merged'] else n_learned))
        return {name: total[k] * distributed.world() / max(n, 1) for k, (name, n) in enumerate(zip(sources, n_learned))}

    def see(self, batch):
        """What the frozen encoder says about the pictures of a batch, as keyword arguments of Flamingo.forward.

        Of each picture some channels are left out, others each time. *Why.* A frozen encoder knows its training pictures by
        heart, and a few of its channels are enough to tell them apart; of something new they tell nothing. Who cannot rely
        on any one channel reads what many of them agree on. (Captions of pairs held out for choosing settings: 74 % right with
        0.3, 64 % without.)
        """
        features, frame_mask = self.features(batch.media)
        drop = self.config['feature_dropout']
        if features is not None and drop > 0:
            kept = [np.random.default_rng(s.seed).random((len(s.media), features.shape[-1]), np.float32) >= drop for s in batch.sequences]
            kept = torch.from_numpy(np.concatenate(kept)).to(features) / (1 - drop)                       # (pictures,D_v)
            features = features * kept.repeat_interleave(frame_mask.sum(-1)[frame_mask.any(-1)], dim=0).unsqueeze(1)  # (M,S,D_v)
        return {'features': features, 'frame_mask': frame_mask}

    def clip(self):
        return distributed.clip_grad_norm(self.module.parameters(), self.config['grad_clip'])

    def evaluate(self):
        self.module.eval()
        run, result = self.run, {}
        plan = [(f'naming_{ways}way', 'naming', ways) for ways in run.ask_ways()] + [('caption', 'caption', None)]
        for name, task, ways in plan + [('clip', 'clip_caption', None)] * (run.held_out is None):
            try:
                found, *_ = measure(self.asker, task, 1 if ways else 0, self.config['eval_n'], ways, pairs=run.held_out, within=run.within())
                result[name] = found['value']
            except BadItem as e:  # longer than the context
                run.report.add(e)
        self.module.train()
        return result

    def state(self):
        """The gates by depth: how far the frozen model has been opened."""
        return {f'gate_{which}_{depth}': round(value, 5) for depth, pair in enumerate(self.module.gates()) for which, value in zip('xd', pair)}

    def content(self):
        text = {k: v for k, v in self.contrastive.state_dict().items() if not k.startswith('vision.')}
        return {'flamingo': self.module.state_dict(), 'contrastive': text}  # the encoder is in both: once is enough


class FinetuneStage(FlamingoStage):
    """The end of the paper's appendix: a trained Flamingo goes on at a small learning rate, and its eyes with it. (The paper
    also shows larger pictures here, 480 x 480.)"""
    name = 'finetune'

    def prepare(self):
        checkpoint.load_into(self.module, self.run.load_stage('flamingo', 'flamingo')['flamingo'], self.run.path('flamingo.pt'))
        self.module.freeze(vision=False)
        self.n_iter, self.lr = self.config['finetune_iters'], self.config['finetune_lr']

    def see(self, batch):
        """Pixels this time: features of an encoder that changes cannot be kept."""
        pixels, frame_mask = stack_frames(batch.media, self.run.pixels)
        return {} if pixels is None else {'media': pixels.to(self.run.device), 'frame_mask': frame_mask.to(self.run.device)}

    def evaluate(self):
        self.features.kept.clear()
        return super().evaluate()


class Asker(Asker):
    """Puts the questions of an evaluation to the model, each rank its share of them. Not where the model itself is
    shared out (sharded): then every answer needs all ranks, and all ask the same."""

    def __init__(self, *arguments, shared):
        super().__init__(*arguments)
        self.shared = shared

    def answer(self, episodes, progress=None):
        if not self.shared:
            return super().answer(episodes, progress)
        mine = super().answer(episodes[distributed.rank()::distributed.world()], progress)
        answers = [None] * len(episodes)
        for r, part in enumerate(distributed.gather(mine)):
            answers[r::distributed.world()] = part
        return answers


STAGES = {stage.name: stage for stage in (VisionStage, LanguageStage, FlamingoStage, FinetuneStage)}


def adamw(named_parameters, lr, weight_decay, gate_scale=1.0):
    """Weight decay pulls matrices only, and none of the resampler's (appendix B.1.2, which spares nothing else): a gate, gain or norm
    that decays would undo what it is for, and the two new rows stand among rows that do not decay. The paper does not say its betas.
    The gates learn `gate_scale` times as fast: while they are shut, everything behind them learns through a keyhole. (With 15 instead
    of 5 names are learned 100 steps sooner.)"""
    groups = {}
    for name, p in named_parameters:
        matrix = p.ndim >= 2 and not name.startswith('resampler.') and name != 'new_rows'
        kind = 'gate' if 'alpha_' in name else 'matrix' if matrix else 'other'
        # Scalars and the encoder apart: they may be whole where the rest is sharded, and one group cannot mix the two.
        groups.setdefault((kind, p.ndim == 0, name.startswith('vision.')), []).append(p)
    groups = [{'params': ps, 'weight_decay': weight_decay if kind == 'matrix' else 0.0, 'scale': gate_scale if kind == 'gate' else 1.0}
              for (kind, _, _), ps in groups.items()]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)


def schedule(kind, i, warmup, n):
    """The learning rate of step i of n, as a share of its peak."""
    left = 1 - i / n
    decay = {'cosine': 0.5 * (1 + math.cos(math.pi * (1 - left))), 'linear': left, 'trapezoid': min(1.0, left / 0.3), 'constant': 1.0}[kind]
    return min(1.0, (i + 1) / max(warmup, 1)) * decay


def copying(lm, run):
    """Accuracy on the second half of random word sequences that come twice; 1.0 = copies perfectly."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(32):
        ids = [t for name in made_up_names(rng, 12, 'held') for t in run.tokenizer.encode(' ' + name)][:min(24, lm.n_context // 2)]
        rows.append([run.tokenizer.bos] + ids + ids)
    n = min(map(len, rows))
    tokens = torch.tensor([r[-n:] for r in rows], device=run.device)
    with torch.no_grad():
        guess = lm(tokens[:, :-1]).argmax(-1)
    half = n // 2 + 2
    return (guess[:, half:] == tokens[:, 1 + half:]).float().mean().item()


# ---------------------------------------------------------------------------------------------
# The loop


def backward(run, stage, names, i, more=False):
    """Add the gradient of one batch of each of these sources, times its λ, to what is there, one micro-batch after the other.
    -> {source: loss of this process's rows}. more: other batches follow, so processes need not exchange their gradients yet."""
    total = dict.fromkeys(names, 0.0)
    for part in range(stage.n_part):
        with distributed.accumulating(stage.net, more or part + 1 < stage.n_part):
            with autocast(run.device, run.dtype, cache=False):
                losses = stage.losses(names, i, part)
            sum(stage.sources.get(name, 1.0) * loss for name, loss in losses.items()).backward()
        for name, loss in losses.items():
            total[name] += loss.item()
    return total


def gradients(run, stage, names, i):
    """The gradients of step i: one batch from each source, weighted by λ, added up (appendix B.1.2), and clipped.

    -> ({source: loss}, global norm before clipping), of all processes together, and the same on all.
    """
    losses, stage.n_token = {}, 0
    for together in [names] if stage.one_pass else [[name] for name in names]:
        losses |= backward(run, stage, together, i, more=together[-1] != names[-1])
    distributed.average(stage.module, run.config['shard'])
    norm = stage.clip().item()  # once, after all sources: clipping each would change their balance
    return dict(zip(losses, (x / distributed.world() for x in distributed.total(*losses.values())))), norm


def not_finite(run, stage, names, i):
    """Which of the sources of step i gave a loss or gradient that is not finite? Each alone, once more: this is seldom asked."""
    found = []
    for name in names:
        stage.optimizer.zero_grad(set_to_none=True)
        losses, norm = gradients(run, stage, [name], i)
        if not (math.isfinite(losses[name]) and math.isfinite(norm)):
            found.append(name)
    return found or names  # each is finite, and their sum is not


def train_stage(run, stage, missing, progress=None):
    """Train one stage to its end, from where `progress` (training.pt) left it. Returns whether it came to its end."""
    config, start = run.config, 0
    if progress is not None and 'module' in progress:
        path, start = run.path('training.pt'), progress['iter']
        distributed.load_module(stage.module, progress['module'], path)
        distributed.load_optimizer(stage.optimizer, progress['optimizer'], path)
        checkpoint.set_random_state(progress['random'])
    if config['compile']:
        stage.module.compile()
    names = list(stage.sources)
    bar = tqdm(range(start, stage.n_iter), desc=stage.name, initial=start, total=stage.n_iter)
    last_eval, skipped = '', 0
    clock, n_token = time.time(), 0
    few_shot = stage.name in ('flamingo', 'finetune')
    mixing = config['mixing'] if few_shot else 'accumulate'
    # Which batches a step reads: (number, names of sources). In turns each source is asked once in so many steps, and skips none of its own.
    steps = [(i // len(names), [names[i % len(names)]]) if mixing == 'round_robin' else (i, names) for i in range(stage.n_iter)]
    prepared = look_ahead(run, stage.reads, steps[start:])
    kind = config['flamingo_schedule' if few_shot else 'schedule']
    for i in bar:
        for group in stage.optimizer.param_groups:
            group['lr'] = stage.lr * group['scale'] * schedule(kind, i, config['warmup'], stage.n_iter)
        needed = next(prepared)  # the sources of this step
        batches, number = ['merged'] if mixing == 'merged' else needed, steps[i][0]
        losses, norm = gradients(run, stage, batches, number)
        if math.isfinite(norm) and all(map(math.isfinite, losses.values())):
            stage.optimizer.step()
            skipped = 0
        else:  # a step that would spoil the weights is left out
            skipped += 1
            source = ' + '.join(not_finite(run, stage, batches, number))
            run.rows.append({'stage': stage.name, 'iter': i + 1, 'skipped': source})
            if distributed.rank() == 0:
                tqdm.write(f'{stage.name} step {i + 1}: loss or gradient of {source} is not finite; skipped')
            if skipped == 10:
                if distributed.rank() == 0:
                    run.write_log()
                raise BadInput(f'{stage.name}: ten steps in a row were not finite ({source}); the last good state is in {run.path("training.pt")}')
        stage.optimizer.zero_grad(set_to_none=True)

        n_token += stage.n_token * distributed.world()
        done = i + 1 == stage.n_iter
        if config['max_minutes'] and time.time() - run.started > 60 * config['max_minutes']:
            run.stop = run.stop or OUT_OF_TIME
        run.stop = distributed.largest(run.stop or 0) or None  # one that stops, stops all
        if (i + 1) % config['log_every'] == 0 or done:
            row = {'stage': stage.name, 'iter': i + 1, **{'loss_' + k: round(v, 6) for k, v in losses.items()},
                   'lr': stage.optimizer.param_groups[0]['lr'], 'grad_norm': round(norm, 5), **stage.state()}
            run.rows.append(row)
            row['tokens_per_s'] = round(n_token / (time.time() - clock))
            row['minutes'] = round(run.minutes(), 3)
            clock, n_token = time.time(), 0
            bar.set_postfix_str(' '.join(f'{k} {v:.3f}' for k, v in losses.items()) + last_eval)
        if (i + 1) % config['eval_every'] == 0 or done:
            with autocast(run.device, run.dtype):
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
               'schedule': SCHEDULES, 'flamingo_schedule': SCHEDULES, 'preset': tuple(PRESETS), 'attend': ('last', 'all_previous'),
               'vision': tuple(SIZES)}
    for key, allowed in choices.items():
        if getattr(config, key) not in allowed:
            raise BadInput(f'--{key}={getattr(config, key)}: expected {", ".join(allowed[:-1])} or {allowed[-1]}')
    if not config.out_dir:
        raise BadInput('--out_dir=: must name a folder')
    check_range(config, 2, 100, 'ways')
    check_range(config, 3, 100, 'page_examples')  # half as many are two names, once each
    check_range(config, 0, 1, 'within_group')
    if config.words * config.word_centres > len(SYLLABLES):
        raise BadInput(f'--words={config.words} --word_centres={config.word_centres}: there are {len(SYLLABLES)} syllables, and each place in a word has its own')
    most = {'seed': 2 ** 63 - 1, 'eval_n': 100_000, 'test_n': 100_000}  # a batch, or all episodes of an evaluation, are in memory at once
    most |= dict.fromkeys((key for key in KEYS if 'batch' in key), 16_384)  # the paper's largest
    most |= {'p_next': 1, 'naming': 1, 'feature_dropout': 0.99, 'word_dropout': 0.99}  # shares of a whole
    for key, (default, _) in KEYS.items():
        if type(default) in (int, float):
            taken_as_it_is = key == 'language_iters' and config.gpt2 or key == 'vision_iters' and config.nfnet
            may_be_0 = key in ('seed', 'warmup', 'text_layer', 'visual_dim', 'workers', 'words', 'class_depth', 'captions_first', 'ways_rise')
            least = 1 if type(default) is int and not may_be_0 and not taken_as_it_is else 0
            check_range(config, least, most.get(key, float('inf')), key)
    check_range(config, 256, 1 << 16, 'tokenizer_ranks')  # every byte is one


def finish(run):
    """The few-shot table, on screen and in results.json, and samples.png."""
    stage = FlamingoStage(run)
    distributed.load_module(stage.module, run.load_stage('flamingo', 'flamingo')['flamingo'], run.path('flamingo.pt'))
    stage.module.eval()
    with autocast(run.device, run.dtype):
        contrastive = stage.contrastive if run.config['vision_iters'] and not run.config['words'] else None  # its captions were other words
        rows, shown = first_table(stage.asker, contrastive, run.config['test_n'], pairs=run.held_out, all_ways=run.ask_ways(), within=run.within(),
                                           report=run.report)
    if distributed.rank() > 0:
        return
    with whole_file(run.path('results.json'), 'w', encoding='utf-8') as f:
        json.dump(rows, f, indent=1)
    canvas.save(sheet(shown), run.path('samples.png'))
    print(table(rows))
    print(f'\n{run.minutes():.1f} minutes. Look at {run.path("samples.png")} and {run.path("curves.png")}; then: python sample.py'
          + ('' if run.config['out_dir'] == 'out' else f' --out_dir={run.config["out_dir"]}'))


def carry_out(run, config):
    """All stages that are asked for and missing, in order. Returns why it stopped early: a signal, OUT_OF_TIME or None."""
    wanted = ['vision', 'language', 'flamingo'] if config.stage == 'all' else [config.stage]
    missing = [name for name in wanted if config.init_from == 'scratch' or not os.path.exists(run.path(name + '.pt'))]
    progress = None
    if config.init_from == 'scratch' or not os.path.exists(run.path('training.pt')):
        if config.init_from == 'resume':
            raise BadInput(f'{run.path("training.pt")}: no such file, nothing to resume')
        run.rows = [row for row in run.read_log() if row['stage'] not in missing]  # of stages trained before, one by one
        for name in wanted:
            if name not in missing:
                path = run.path(name + '.pt')
                check_same_keys(checkpoint.load(path, kind_of(name), keys=dict)['keys'], run.config, path)
    else:
        progress = run.load_progress(STAGES)
        # What was begun is ended, whatever was asked for; its stage, then what is missing besides.
        begun = progress['missing']
        missing = begun + [name for name in missing if name not in begun]
    for name in missing:  # before anything is trained
        keys = {'vision': ['vision_batch'], 'language': ['language_batch']}.get(name, ['batch_' + source for source in SOURCES if run.config[source]])
        for key in keys:
            distributed.rows(run.config[key], key, 1 if name == 'vision' else config.micro_batches)
    finished = not missing and progress is None and ('flamingo' not in wanted or os.path.exists(run.path('results.json')))
    distributed.barrier()  # all have seen the same files, and only now they may change
    if finished:
        if distributed.rank() == 0:
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
        if run.stop:
            return run.stop
    run.training = False
    if 'flamingo' in wanted:
        finish(run)
    run.share_left_out()
    if distributed.rank() == 0:
        with contextlib.suppress(FileNotFoundError):  # all stages were there, and only results.json was missing
            os.remove(run.path('training.pt'))
        for line in run.report.lines():
            print('left out', line)
        if skipped := sum(bool(row.get('skipped')) for row in run.rows):
            print(f'{skipped} steps were skipped, their loss or gradient not being finite; {run.path("log.csv")} says of which source')
    return None


def main():
    config = configure(KEYS, usage=__doc__)
    check_values(config)
    with only_run(config.out_dir) if distributed.rank() == 0 else contextlib.nullcontext():
        run = Run(config, KEYS)
        try:
            stopped = carry_out(run, config)
        except KeyboardInterrupt:  # at once, without finishing the step
            stopped = run.stop or signal.SIGINT
    distributed.end()
    if stopped is not None:
        if distributed.rank() == 0:
            given = [a for a in sys.argv[1:] if not a.startswith('--init_from')]
            if config.init_from == 'scratch' and any(a.endswith('.py') for a in given):  # it may be a config file that says so
                given.append('--init_from=auto')
            print(f'stopped and saved; to continue: python train.py {shlex.join(given)}')
        sys.exit(0 if stopped == OUT_OF_TIME else 128 + stopped)


if __name__ == '__main__':
    command(main)
