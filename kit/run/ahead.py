"""Samples read, and their pictures decoded, by worker processes while the model computes.

Documents are addressed by number, so a worker needs nothing but the number of a step: there is no position
to hand over and no seed of its own. A run is therefore the same, bit for bit, with any number of workers,
interrupted or not.
"""
import multiprocessing
import os
import signal
import threading

import torch

from kit.files import BadInput
from kit.sources.base import Report


class Heard(Report):
    """The Report of a worker process. `news` is what the main process has not been told yet."""

    def __init__(self):
        super().__init__()
        self.news = []

    def add(self, bad_item):
        super().add(bad_item)
        self.news.append(bad_item)


class Ahead(torch.utils.data.Dataset):
    """Entry k: the samples of step steps[k] = (i, names of sources), with the pixels of their pictures."""

    def __init__(self, data, steps):
        self.data, self.steps = data, steps

    def __len__(self):
        return len(self.steps)

    def __getitem__(self, k):
        data, reader, (i, sources) = self.data, self.data.reader, self.steps[k]
        if not isinstance(reader.report, Heard):  # a worker's first step: `reader` is its own copy
            reader.report = Heard()
        reader.report.news = []
        try:
            samples = data.read(sources, i)
        except BadInput as e:
            return e
        media = [one for of_source in samples.values() for one in data.media(of_source)]
        # numpy, not torch: tensors would travel through shared memory, and containers have next to none.
        return samples, {m.key: reader.pixels(m).numpy() for m in media if m.key}, reader.report.news


def look_ahead(data, steps):
    """Yields data.read(sources, i) for each of the steps [(i, sources)], read by --workers processes."""
    reader = data.reader
    loader = torch.utils.data.DataLoader(
        Ahead(data, steps), batch_size=None, num_workers=data.config.workers,
        collate_fn=as_it_is, worker_init_fn=quiet,
        generator=torch.Generator())  # its own, or it would draw from torch's global one
    for prepared in loader:
        if isinstance(prepared, BadInput):
            raise prepared
        samples, pixels, bad_items = prepared
        for key, frames in pixels.items():
            if key not in reader.pixels.kept:
                reader.pixels.kept.keep(key, torch.from_numpy(frames))
        for bad in bad_items:
            reader.leave_out(bad)
        yield samples


def as_it_is(x):
    return x


def quiet(number):
    """Ctrl-C is for the main process. SIGTERM, which the main process catches, ends a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent():
    """Without this, a worker would outlive a killed main process, waiting for its queue to be read."""
    multiprocessing.parent_process().join()
    os._exit(1)
