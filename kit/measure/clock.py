"""What a call costs: time, floating-point operations, and memory at its peak."""
import statistics
import time
import weakref
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from kit.fast import packed


@dataclass
class Work:
    """One row, or one for each implementation. calls: {who: function}; each returns how many `unit`s it went
    through."""
    what: str
    calls: dict
    images: int | None = None
    unit: str = 'tokens'

    def __str__(self):
        return self.what + (f', {self.images} image{"s" if self.images != 1 else ""}' if self.images else '')


# PyTorch counts the kernels of GPUs, but not these of CPUs.
# {operator: (FLOPs from shapes, how many of its arguments have them)}
ATEN = torch.ops.aten
CPU_ONLY = {
    ATEN._scaled_dot_product_flash_attention_for_cpu.default: (sdpa_flop_count, 3),
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward.default: (sdpa_backward_flop_count, 4),
}
if packed.OPERATOR is not None:
    CPU_ONLY[packed.OPERATOR.default] = (lambda x, w: 2 * x.numel() * w[0], 2)


class Counter(TorchDispatchMode):
    """Watches every operation inside.

    flops: of matrix products, convolutions and attention. A multiplication and an addition are two; attention
        with a mask counts in full.
    peak: the most bytes that tensors made inside held at one time; what was there before costs nothing.
    """

    def __init__(self):
        super().__init__()
        self.flops, self.now, self.peak, self.known = 0, 0, 0, {}

    def follow(self, tensor, new):
        opaque = tensor.layout is torch._mkldnn  # packed weights (kit/fast/packed.py) show no storage
        holder = tensor if opaque else tensor.untyped_storage()
        if holder._cdata not in self.known:
            size = tensor.numel() * tensor.itemsize if opaque else holder.nbytes()
            self.known[holder._cdata] = size if new else 0
            self.now += self.known[holder._cdata]
            self.peak = max(self.peak, self.now)
            weakref.finalize(holder, self.forget, holder._cdata)

    def forget(self, holder):
        self.now -= self.known.pop(holder, 0)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        if function in CPU_ONLY:
            count, n = CPU_ONLY[function]
            self.flops += count(*(x.shape for x in args[:n]))
        elif function.overloadpacket in flop_registry:
            self.flops += flop_registry[function.overloadpacket](*args, **kwargs, out_val=out)
        for new, values in ((False, (args, kwargs)), (True, out)):
            for x in tree_leaves(values):
                if isinstance(x, torch.Tensor):
                    self.follow(x, new)
        return out


def cost(call, device):
    """-> (FLOPs of a call, bytes it holds at its peak beyond what was there before)"""
    cuda = torch.device(device).type == 'cuda'
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    with Counter() as counter:
        call()
    return counter.flops, torch.cuda.max_memory_allocated(device) - before if cuda else counter.peak


def wait(device):
    """Until the device has done what it was told: only then is the time measured the time it took."""
    kind = torch.device(device).type
    if kind in ('cuda', 'mps'):
        getattr(torch, kind).synchronize()


def seconds(call, device):
    """-> (seconds of one call, what it returned)"""
    wait(device)
    start = time.perf_counter()
    count = call()
    wait(device)
    return time.perf_counter() - start, count


def take_turns(calls, device, runs, limit):
    """-> {who: [(seconds, count) of each run]}, the implementations in alternation, run by run.

    limit: stop after this many seconds, if each has run three times.
    """
    for _ in range(2):
        for call in calls.values():
            call()
    times, start = {who: [] for who in calls}, time.perf_counter()
    for run in range(runs):
        if run >= 3 and time.perf_counter() - start > limit:
            break
        for who, call in calls.items():
            times[who].append(seconds(call, device))
    return times


def matmul_rate(device, dtype, n=2048):
    """FLOP/s of the machine's best n × n × n matrix product: the limit that everything is held against."""
    n = n if torch.device(device).type == 'cpu' else 4 * n
    a, b = torch.randn(2, n, n, device=device, dtype=dtype)
    return 2 * n ** 3 / min(seconds(lambda: a @ b, device)[0] for _ in range(10))


def measure(work, rate, device, runs, limit):
    """-> (rows, lines for the table, {peer: median over the turns of its time over ours})"""
    times = take_turns(work.calls, device, runs, limit)
    rows, lines = [], []
    for who, call in work.calls.items():
        spent = [t for t, _ in times[who]]
        ms, per_s = 1e3 * statistics.median(spent), sum(n for _, n in times[who]) / sum(spent)
        low, _, high = statistics.quantiles(spent, n=4) if len(spent) > 1 else spent * 3
        flops, held = cost(call, device)
        mib, share = held / 2 ** 20, flops / (ms / 1e3) / rate
        rows.append({'what': work.what, 'who': who, 'images': work.images, 'ms': ms,
                     'tokens_per_s': per_s if work.unit == 'tokens' else None,
                     'peak_mib': mib, 'of_peak_flops': share})
        lines.append([work.what, who, work.images, f'{ms:.1f}', f'±{500 * (high - low):.1f}',
                      f'{per_s:,.0f}', work.unit + '/s', f'{mib:.1f}', f'{share:.0%}'])
    slower = {who: statistics.median(t / o for (t, _), (o, _) in zip(times[who], times['ours']))
              for who in times if who != 'ours'}
    return rows, lines, slower
