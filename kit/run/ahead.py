"""Batches read and decoded by worker processes while the model computes.

Documents are addressed by number, so a worker needs no more than the number of a step: there is no position to hand over and
no seed of its own, and a run is the same, to the bit, with any number of workers, interrupted or not.
"""
import multiprocessing
import os
import signal
import threading

import torch

from kit.files import BadInput
from kit.sources.base import Report


class Heard(Report):
    """A Report of a worker process, which also keeps what the main process has not been told yet."""

    def __init__(self):
        super().__init__()
        self.news = []

    def add(self, bad_item):
        super().add(bad_item)
        self.news.append(bad_item)


class Ahead(torch.utils.data.Dataset):
    """Entry k: the batches of step steps[k] = (i, names of sources), with the pixels of their pictures."""

    def __init__(self, run, reads, steps):
        self.run, self.reads, self.steps = run, reads, steps

    def __len__(self):
        return len(self.steps)

    def __getitem__(self, k):
        run, (i, names) = self.run, self.steps[k]
        if not isinstance(run.report, Heard):  # a worker's first step: `run` is its own copy
            run.report = Heard()
        run.report.news = []
        try:
            batches = {(self.reads, name, i): run.batch(self.reads, name, i) for name in names}
        except BadInput as e:
            return e
        entries = [] if self.reads == 'texts' else [entry for batch in batches.values() for entry in batch]
        media = [m for entry in entries for m in (entry.pieces[:1] if self.reads == 'pairs' else entry.media)]
        # numpy, not torch: tensors would travel through shared memory, of which containers have next to none.
        return batches, {m.key: run.pixels(m).numpy() for m in media if m.key}, run.report.news


def look_ahead(run, reads, steps):
    """An iterator that gives the names of each step's sources, and beforehand fills run.ahead with their batches.

    steps: [(i, names)]; reads: the method of `run` that makes batch i of a source. Without workers, run.ahead stays empty, and
    the batches are made when they are asked for.
    """
    if not run.config['workers']:
        yield from (names for _, names in steps)
        return
    loader = torch.utils.data.DataLoader(
        Ahead(run, reads, steps), batch_size=None, num_workers=run.config['workers'], collate_fn=as_it_is, worker_init_fn=quiet,
        generator=torch.Generator())  # its own, or it would draw from the one that dropout uses
    for (_, names), prepared in zip(steps, loader):
        if isinstance(prepared, BadInput):
            raise prepared
        run.ahead, pixels, bad_items = prepared
        for key, frames in pixels.items():
            if key not in run.pixels.kept:
                run.pixels.kept.keep(key, torch.from_numpy(frames))
        for bad in bad_items:
            run.leave_out(bad)
        yield names


def as_it_is(x):
    return x


def quiet(number):
    """Ctrl-C is for the main process; SIGTERM, which that one catches, ends a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent():
    """A worker whose main process was killed would wait for ever until somebody reads what it has prepared."""
    multiprocessing.parent_process().join()
    os._exit(1)
