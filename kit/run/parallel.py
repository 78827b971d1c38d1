"""A stage's module on its device or devices -> what to call in training: the module itself, or DDP around it.

With --shard=True every rank keeps a part of each weight (FSDP2, kit/run/distributed.py). A *unit* is what
is put together at one time, before its forward, and taken apart after it.
"""
from functools import partial

from torch.utils.checkpoint import checkpoint as recompute

from kit.run import distributed


def parallel_vision(run, contrastive):
    vision, text = contrastive.vision, contrastive.text
    blocks = [*vision.blocks, *text.layers]
    return parallel(run, contrastive, units=[*blocks, vision.projection, vision, text], recomputed=blocks,
                  methods=[(vision, 'embed'), (text, 'embed')])


def parallel_language(run, gpt):
    return parallel(run, gpt, units=gpt.h, recomputed=gpt.h)


def parallel_flamingo(run, flamingo):
    """The vision encoder stays whole, as in the paper: each rank calls it when it needs new features,
    others may not need any. The resampler is one unit: how often its layers are called depends on a rank's
    pictures."""
    m = flamingo
    trained_vision = [] if m.vision in m.frozen else m.vision.blocks
    methods = [(m, name) for name in ('resample', 'stream', 'head')]  # what kit/answers.py calls
    return parallel(run, m, units=[*m.lm.h, *m.gated, m.resampler], replicated=[m.vision], methods=methods,
                  recomputed=[*m.lm.h, *m.gated, *m.resampler.layers, *trained_vision])


def parallel(run, module, units, recomputed, replicated=(), methods=()):
    """recomputed: the blocks that activation checkpointing computes again in the backward pass; the other
    arguments are those of kit.run.distributed.parallel."""
    if run.config.activation_checkpointing:
        for block in recomputed:
            block.forward = partial(recompute, block.forward, use_reentrant=False)
    net = distributed.parallel(module, run.device, run.config.shard, units, replicated, methods)
    if run.config.compile:
        module.compile()
    return net
