"""Train Flamingo from nothing: eyes, then language, then the bridge between them.

    python train.py                        # all three stages on the drawn world, minutes on a laptop
    python train.py config/gpt2.py         # from GPT-2 and an ImageNet NFNet: see there what to fetch
    python train.py --align=pictures --m3w=align --text=align --ltip= --vtp=       # your own pictures
    python train.py --stage=flamingo --n_latent=16 --out_dir=out16   # with vision.pt and language.pt in it
    torchrun --standalone --nproc_per_node=8 train.py config/gpt2.py               # docs/scaling.md

    vision     NFNet and text tower from random weights: which caption goes with which picture? (appendix B.1)
    language   a GPT from random weights, on text alone
    flamingo   both frozen; the resampler and the gated layers between them learn to answer   (§2.4)
    finetune   the same, the vision encoder training too, at a small learning rate            (appendix B.2)

It writes to out_dir: vision.pt, language.pt, flamingo.pt, results.json, log.csv, curves.png, samples.png (and
finetune.pt after --stage=finetune). Run it again, and it continues where it was interrupted.

One step of the Flamingo stage, its calls indented (of the seven files, if no other is named). On the right:
nano's first step.

    train_stage
        Loop.read (kit/run/loop.py)                 asks for what data.mixture says
            StageData.read (kit/run/batches.py)     -> {source: sequences}            18 + 8 + 8 + 4 sequences
                SequenceData.of_source              batch i of one source: n Documents from number i·n on
                    Reader.document                 decodes pictures into reader.pixels (kit/run/reading.py)
                        Source.document             number -> Document of kit/world/pages.py or a folder
                    SequenceData.encoded            -> data.Encoded, at a random place of the context
                        data.encode                 -> tokens, image_index, loss_mask (T,)  T here: 5 to 118
        gradients                                   adds ∇ Σ λ L; in parts, if need be (kit/run/parts.py)
            SequenceData.batch                      sequences of all sources -> tensors        tokens (14,118)
                data.collate                        pads; short sequences share a row
            FlamingoStage.losses                    L of each source, a mean over its sequences
                FlamingoStage.pictures              these pixels -> features (kit/features.py)     (282,9,384)
                Flamingo.forward                    -> the loss of each target                         (1135,)
                data.Batch.mean_of_each             -> the mean of each sequence                         (38,)
        Stage.clip (kit/run/stage.py)
        optimizer.step

A *target* is a token to be predicted; image_index is the paper's φ. Pictures and their features are kept, as
far as memory allows. docs/one_step.md takes two steps in numbers. The other stages (M different pictures):

    VisionStage     PairData of kit/run/batches.py: pictures (M,3,48,48), captions of each source (96,T)
                    NFNet.embed -> v (M,128), TextTower.embed -> l (96,128); contrastive_loss vision.py
    LanguageStage   TextData: tokens (8,448) -> GPT.forward                                   model.py
"""
import math
from dataclasses import replace

import numpy as np
import torch

from data import collate, encode, mixture
from model import Flamingo
from vision import contrastive_loss
from xattn import SEES
# What surrounds them:
from kit.agc import adaptive_gradient_clip
from kit.cli import command, configure
from kit.device import autocast
from kit.fast.routing import one_image_per_token
from kit.features import drop_channels, FrozenFeatures
from kit.run import begin, checks, distributed
from kit.run.batches import all_sequences, FOR_SEQUENCES, PairData, StageData, TextData
from kit.run.driver import finish, missing_stages, session
from kit.run.finetuning import Finetuning
from kit.run.keys import FIRST, GONE, RARE, SOURCES, check_values
from kit.run.loop import Loop
from kit.run.parallel import parallel_flamingo, parallel_language, parallel_vision
from kit.run.parts import in_parts, is_one_part
from kit.run.stage import Stage


# ---------------------------------------------------------------------------------------------
# The loop


def train_stage(run, stage):
    """Train one stage -> whether it was finished. run (kit/run/run.py) has config: all keys; model_config:
    sizes; reader: Documents of all sources; tokenizer; device."""
    loop = Loop(run, stage, mixture(stage.sources, stage.mixing, stage.n_iter))
    for step in loop:                                     # ends early on a signal
        samples = loop.read()                             # {source: its next batch}, of stage.data
        lr = stage.lr * schedule(stage.schedule_name, step, run.config.warmup, stage.n_iter)
        for group in stage.optimizer.param_groups:
            group['lr'] = lr * group['scale']
        if is_one_part(stage, samples):
            losses, n_token = gradients(run, stage, samples, stage.lambdas)
        else:                                             # a batch too large for one pass, or many processes
            losses, n_token = in_parts(gradients, run, stage, samples)
        norm = stage.clip().item()                        # once: clipping per source would change the mix
        if loop.check_finite(losses, norm):               # if not, this step is skipped, and the log says so
            stage.optimizer.step()
        stage.optimizer.zero_grad(set_to_none=True)
        loop.log(losses, norm, n_token)
        if loop.time_to_evaluate():
            loop.evaluate()
        if loop.time_to_save():
            loop.save()
    return loop.complete


def gradients(run, stage, samples, lambdas):
    """Adds the gradient of Σ_m λ_m L_m (§2.4, appendix B.1.2) to every parameter's .grad. m: the sources.
    samples: {source: samples of its batch} -> ({source: L_m} as floats, tokens read, padding included)

    The paper's L_m are sums over a sequence's targets, ours are means. A caption has few targets, so a mean
    gives each of them more weight than a sum does, and the equivalent λ is smaller. For align and
    ltip ours is half of that (means of few targets are noisy), for vtp three times it (not tuned).

        source   targets of a sequence   paper's λ, of sums   the same, of means     ours, of means
        m3w               45                   1                     1                    1
        align              5                   0.2            0.2 · 5/45  ≈ 0.02          0.01
        ltip              14                   0.2            0.2 · 14/45 ≈ 0.06          0.03
        vtp               14                   0.03           0.03 · 14/45 ≈ 0.01         0.03
    """
    batch = stage.data.batch(samples)
    with autocast(run.device, run.dtype, cache=False):
        losses = stage.losses(batch)                      # {source: L_m}
    sum(lambdas[m] * loss for m, loss in losses.items()).backward()
    return {m: loss.item() for m, loss in losses.items()}, batch.n_token


def adamw(named_parameters, weight_decay, gate_scale=1.0):
    """AdamW; `train_stage` sets its learning rate. Only matrices decay, none of the resampler's (B.1.2):
    decay would work against gates, gains and norms, and shrink the two new embedding rows among frozen ones.
    Gates learn `gate_scale` times as fast, to the end (why: xattn.py)."""
    groups = {'matrix': {'params': [], 'weight_decay': weight_decay, 'scale': 1.0},
              'gate': {'params': [], 'weight_decay': 0.0, 'scale': gate_scale},
              'other': {'params': [], 'weight_decay': 0.0, 'scale': 1.0}}
    for name, p in named_parameters:
        if p.requires_grad:
            matrix = p.ndim >= 2 and not name.startswith(('resampler.', 'new_rows', 'soft_prompt'))
            kind = 'gate' if 'alpha_' in name else 'matrix' if matrix else 'other'
            groups[kind]['params'].append((name, p))
    groups = distributed.apart(groups.values())           # for --shard; else as they are
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)  # betas: not in the paper


def schedule(kind, step, warmup, n):
    """The learning rate at `step` of n, as a share of its peak: linear warm-up times one of four decays."""
    left = 1 - step / n
    decay = {'cosine': 0.5 * (1 + math.cos(math.pi * (1 - left))), 'linear': left,
             'constant': 1.0, 'trapezoid': min(1.0, left / 0.3)}[kind]  # flat, linear over the last 30 %
    return min(1.0, (step + 1) / max(warmup, 1)) * decay


# ---------------------------------------------------------------------------------------------
# What the Flamingo stage reads (the other stages: kit/run/batches.py)


class SequenceData(StageData):
    """Documents of four sources -> sequences of tokens -> padded batches."""

    def of_source(self, source, i):
        """-> batch i of a source, [Encoded]: its Documents from number i·n on, n of them"""
        return [self.encoded(self.reader.document(source, number), source, number)
                for number in self.numbers(i, 'batch_' + source)]

    def encoded(self, document, source, number):
        """Document of this number -> Encoded: a window of it, somewhere in the context"""
        sizes = self.model_config
        rng = np.random.default_rng([self.config.seed, FOR_SEQUENCES, number, SOURCES.index(source)])
        sequence = encode(document, self.tokenizer, sizes.n_token, sizes.n_image, rng, self.config.p_next)
        seed = int(rng.integers(2 ** 31))  # of the channels that drop_channels leaves out
        # Half of them begin where prompts do, the others anywhere. Gated layers' queries depend on positions,
        # too: had they met examples near the beginning only, they could not use those late in a long prompt.
        room = sizes.n_context - len(sequence.tokens)
        start = int(rng.integers(room + 1)) if rng.random() < 0.5 else 0
        return replace(sequence, source=source, seed=seed, start=start)

    def batch(self, samples):
        """{source: [Encoded]} -> data.Batch: one pass for all sources. `losses` tells them apart again."""
        share = one_image_per_token(SEES[self.model_config.attend])
        return collate(all_sequences(samples), self.tokenizer, share).to(self.device)


# ---------------------------------------------------------------------------------------------
# The stages: three, and fine-tuning. What the loop asks of each (kit/run/stage.py says all):
#
#     sources, lambdas         what it learns from, and the λ of each
#     data                     reads their samples, and makes batches of them
#     module, net              the weights; what is called: the module, or what many GPUs make of it
#     optimizer, lr, n_iter, schedule_name
#     losses(batch)            -> {source: L_m}
#     clip()                   clips the gradient -> its norm before
#     evaluate(), content()    -> {name: value} for the curves; what its file holds


class VisionStage(Stage):
    """Contrastive pretraining: the pictures of a batch against its captions (§2.1, appendix B.1)."""
    name = 'vision'

    def __init__(self, run):
        super().__init__(run, PairData(run))
        self.set_lambdas({'align': 1.0, 'ltip': 1.0}, 'the vision stage needs pairs: give align or ltip')
        self.module = self.load()
        self.net = parallel_vision(run, self.module)
        self.n_iter, self.lr = self.config.vision_iters, self.config.vision_lr
        self.schedule_name = self.config.schedule_vision
        self.optimizer = adamw(self.module.named_parameters(), weight_decay=0.0)  # the paper: Adam

    def load(self):
        return begin.new_encoders(self.run)

    def losses(self, batch):
        images = self.module.vision.normalise(batch.images)
        texts = [(captions.tokens, captions.mask) for captions in batch.captions.values()]
        v, l, beta = self.net(images, texts)          # (pictures,E), for each source (captions,E), β
        losses = {}
        for (source, captions), l_source in zip(batch.captions.items(), l):
            # (captions,E): the picture that each describes; a picture may have a caption of each source
            v_source = v[captions.shows]
            losses[source] = contrastive_loss(*distributed.of_all_ranks(v_source, l_source), beta)
        return losses

    def clip(self):
        """AGC for the NFNet, a global norm of 10 for the text tower -> the gradient's norm before clipping"""
        norm = distributed.grad_norm(self.module.parameters())
        adaptive_gradient_clip(self.module.vision.parameters())
        distributed.clip_grad_norm(self.module.text.parameters(), 10.0)
        return norm

    def evaluate(self):
        return checks.encoder(self.run, self.module)

    def log_values(self):
        return {'beta': round(self.module.log_beta.exp().item(), 3)}

    def content(self):
        return {'contrastive': self.module.state_dict()}


class LanguageStage(Stage):
    """Predicting the next word, on text alone. Flamingo will freeze what is learned here."""
    name = 'language'

    def __init__(self, run):
        super().__init__(run, TextData(run))
        if self.config.language_iters:  # GPT-2 as it was published needs none
            self.set_lambdas({'text': 1.0}, 'the language stage needs text: give text')
        self.module = begin.new_language(run)         # random weights, a few heads wired to copy; or GPT-2
        self.net = parallel_language(run, self.module)
        self.n_iter, self.lr = self.config.language_iters, self.config.language_lr
        self.schedule_name = self.config.schedule_language
        self.optimizer = adamw(self.module.named_parameters(), self.config.weight_decay)

    def losses(self, batch):
        _, loss = self.net(batch.tokens, batch.targets, batch.position)
        return {'text': loss}

    def evaluate(self):
        return {'copying': checks.copying(self.run, self.module)}

    def content(self):
        return {'lm': self.module.state_dict()}


class FlamingoStage(Stage):
    """The resampler, the gated layers and two embedding rows learn, between two frozen models (§2.4).

    What lets a small model learn this in minutes is our addition:
        the first pages show and caption, no more      kit/world/pages.py, FIRST_PAGES (pages, not steps)
        the language model starts with heads that copy kit/copying.py
        gates learn 15 times as fast as the rest       --gate_scale, `adamw`
        some channels of each picture are left out     --feature_dropout, kit/features.py
          (otherwise it relies on a few that distinguish training pictures, but not new ones)
        pages stand anywhere in the context            SequenceData.encoded
    """
    name = 'flamingo'

    def __init__(self, run):
        super().__init__(run, SequenceData(run))
        c, self.mixing = self.config, self.config.mixing
        self.set_lambdas({m: getattr(c, 'lambda_' + m) for m in SOURCES},
                         'nothing to learn from: give m3w, align, ltip or vtp, and a lambda above 0')
        self.contrastive, self.module = self.load()
        self.features = FrozenFeatures(self.module.vision, run.reader.pixels, run.device)
        self.n_iter, self.lr, self.schedule_name = c.flamingo_iters, c.flamingo_lr, c.schedule_flamingo
        self.net = parallel_flamingo(run, self.module)
        self.optimizer = adamw(self.module.named_parameters(), c.weight_decay, c.gate_scale)
        self.asker = checks.RankedAsker(self.module, run.tokenizer, self.features, sharded=c.shard)

    def load(self, model=Flamingo):
        contrastive, lm = begin.load_trained(self.run)                       # of vision.pt and language.pt
        flamingo = model(self.run.model_config, contrastive.vision, lm)
        return contrastive, begin.cast_frozen(self.run, flamingo)   # on a GPU bfloat16, if wide

    def pictures(self, batch):
        """The frozen encoder's features of batch.media, less some channels"""
        features, frame_mask = self.features(batch.media)
        features = drop_channels(features, frame_mask, batch.sequences, self.config.feature_dropout)
        return {'features': features, 'frame_mask': frame_mask}

    def losses(self, batch):
        """L_m: for each sequence s of source m 1/K_s Σ −log p(token | text before it, images it sees) over
        its K_s targets; the mean of these"""
        _, nll = self.net(
            batch.tokens, batch.image_index, targets=batch.targets, position=batch.position,
            sequence=batch.sequence if batch.shared else None,  # else every row is one sequence
            reduction='none', **self.pictures(batch))                                          # (K,) −log p
        each = batch.mean_of_each(nll)                                                        # (sequences,)
        numbers = batch.by_source()
        return {m: each[numbers[m]].mean() for m in self.sources if m in numbers}

    def evaluate(self):
        return checks.few_shot(self.run, self.module, self.asker)

    def log_values(self):
        """The gates by depth: how far they have opened."""
        return {f'gate_{kind}_{depth}': round(gate, 5) for depth, gates in enumerate(self.module.gates())
                for kind, gate in zip('xd', gates)}

    def content(self):
        text = {k: v for k, v in self.contrastive.state_dict().items() if not k.startswith('vision.')}
        return {'flamingo': self.module.state_dict(), 'contrastive': text}  # the encoder: only once


class FinetuneStage(Finetuning, FlamingoStage):
    """A trained Flamingo trains on at a small learning rate, its vision encoder included (appendix B.2, where
    pictures are also larger, 480 x 480); or, with --adapt, a few weights of it (kit/run/finetuning.py)."""
    name = 'finetune'


STAGES = {stage.name: stage for stage in (VisionStage, LanguageStage, FlamingoStage, FinetuneStage)}


# ---------------------------------------------------------------------------------------------
# The command, and its keys


BATCH = {  # --batch='m3w=12' sets config.batch_m3w
    'batch_m3w': (18, 'interleaved pages'),
    'batch_align': (8, 'pairs with short captions'),
    'batch_ltip': (8, 'pairs with long captions'),
    'batch_vtp': (4, 'clips'),
}
# Keys in groups, each with its default and its meaning. FIRST and RARE, all the others: kit/run/keys.py
GROUPS = FIRST | {
    'How sources mix in the Flamingo stage (appendix B.1.2)': {
        'lambda_m3w': (1.0, 'λ, weight of m3w in the loss; why these: see `gradients`'),
        'lambda_align': (0.01, 'of align (the paper: 0.2, of sums over tokens)'),
        'lambda_ltip': (0.03, 'of ltip (0.2)'),
        'lambda_vtp': (0.03, 'of vtp (0.03)'),
        'mixing': ('accumulate', "gradients of all sources in each step; 'round_robin': one source a step; "
                                 "'merged': each sequence counts the same, without λ"),
        'p_next': (0.5, "chance that a page's text sees the next picture instead of the previous one"),
    },
    'Steps': {
        'vision_iters': (1200, 'of the contrastive stage'),
        'vision_batch': (96, 'pairs a step, of each of align and ltip'),
        'vision_lr': (5e-3, 'peak learning rate'),
        'language_iters': (500, 'of the language stage'),
        'language_batch': (8, 'rows a step'),
        'language_tokens': (448, 'tokens a row, at a random place of the context'),
        'language_lr': (2e-3, 'peak learning rate'),
        'flamingo_iters': (840, 'of the Flamingo stage'),
        'batch': (BATCH, 'sequences of each source a step, in the Flamingo stage'),
        'flamingo_lr': (2e-3, 'peak learning rate'),
        'warmup': (50, 'steps from zero to the peak (the paper: 5,000)'),
        'weight_decay': (0.1, 'of matrices; not of the resampler, nor of what `adamw` names'),
        'grad_clip': (1.0, 'largest global norm of the gradient, all sources together'),
        'gate_scale': (15.0, 'how much faster the gates learn than the rest'),
        'feature_dropout': (0.5, 'share of the channels of the frozen features that training leaves out, '
                                 'different ones for each picture; not where the encoder trains'),
    },
} | RARE
KEYS = {name: entry for group in GROUPS.values() for name, entry in group.items()}


def main():
    config = configure(KEYS, usage=__doc__, groups=GROUPS, gone=GONE)
    check_values(config, KEYS)
    with session(config, KEYS) as run:
        for name in missing_stages(run, STAGES):          # whose file is not there yet
            torch.manual_seed(config.seed)
            stage = STAGES[name](run)
            if not train_stage(run, stage):               # a signal came, or time was up
                break
            run.save_stage(stage)
        finish(run, FlamingoStage)                        # the few-shot table


if __name__ == '__main__':
    command(main)
