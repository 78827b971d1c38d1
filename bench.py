"""How fast is it, what memory does it take, and how far is that from what the machine can do?

    python bench.py                                        # every row, nano sizes
    python bench.py --what=xattn,generate --peers=True     # rows by the beginning of their names, beside other implementations
    python bench.py config/gpt2.py --what=step_flamingo    # the keys of train.py hold here too: sizes, sources, device, dtype
    python bench.py --preset=flamingo-3b --device=meta     # nothing is computed: parameter counts, memory, FLOPs

    xattn_forward, xattn_train   one gated layer: width 512, 8 heads, 64 visual tokens an image, 256 tokens, 2 sequences
    resampler_train              6 layers, 64 latents, 256 inputs, width 512, 10 pictures
    generate_cached, _uncached   4-shot prompts of 5 pictures and 60 tokens, 8 at a time, 64 new tokens; 6 layers of width 256
    step_train                   a training step of that model on those 8 sequences, encoder and language model frozen
    vision, block                the encoder and one block of the language model, forward, sizes of the preset
    step_vision, _language, _flamingo   a whole training step of each stage as train.py does it, data and all sources
    prefill, decode, episode     few-shot prompts: read 8 of them, one word more for each, answer 16 episodes
    data, data_vision, data_language    the batches of one step alone, and how much faster they come than the model uses them up

Times are medians over runs after a warm-up; `±` is half the distance between their quartiles. Implementations that are
compared take turns, run by run, so that what else the machine does meets all of them; ratios are medians over the turns.
Memory is what a call holds at its peak beyond what was there before it. The machine's limit is the rate of its best
large matrix product, measured first; what is compared with others computes in float32, the rest as --dtype says. A row's
FLOPs are those of its matrix products, convolutions and attention.
"""
import itertools
import json
import statistics
import tempfile
import time
import weakref
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

import train
from data import collate, Media
from kit import answers
from kit.cli import check_range, command, configure
from kit.device import autocast, check_memory, pick_device, pick_dtype
from kit.fast import packed
from kit.files import BadInput, whole_file
from kit.measure import accounting, peers
from kit.run.keys import check_values
from kit.run.run import Run, SIZE_FIELDS
from kit.show import lettering
from kit.tasks.episodes import episodes_of
from model import Flamingo, FlamingoConfig
from resampler import PerceiverResampler
from xattn import GatedCrossAttention

KEYS = {
    'what': ('', 'rows to measure: beginnings of their names, with commas; empty for all'),
    'peers': (False, f'measure beside whichever of {", ".join(peers.NAMES)} can be imported'),
    'out': ('', 'a .json file for the rows'),
    'runs': (20, 'timed calls of each'),
    'seconds': (20.0, 'stop a row after so long, if it has been called three times'),
    'width': (512, 'of the single layers; whole models that are compared have half of it'),
} | train.KEYS

N_SEQUENCE, N_TOKEN, N_LATENT, N_HEAD = 2, 256, 64, 8  # of the single layers


# ---------------------------------------------------------------------------------------------
# Measuring


@dataclass
class Work:
    """One row, or one for each implementation. calls: {who: function}, each returning how many `unit`s it went through."""
    what: str
    calls: dict
    images: int | None = None
    unit: str = 'tokens'


# PyTorch counts the kernels of GPUs, but not these of CPUs: {operator: (FLOPs from shapes, how many of its arguments have them)}
CPU_ONLY = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default: (sdpa_flop_count, 3),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default: (sdpa_backward_flop_count, 4),
}
if packed.OPERATOR is not None:
    CPU_ONLY[packed.OPERATOR.default] = (lambda x, w: 2 * x.numel() * w[0], 2)


class Counter(TorchDispatchMode):
    """Watches every operation inside. `flops`: of matrix products, convolutions and attention, where a multiplication and
    an addition are two, and attention with a mask counts in full. `peak`: the most bytes that tensors made inside held at
    one time; what was there before costs nothing."""

    def __init__(self):
        super().__init__()
        self.flops, self.now, self.peak, self.known = 0, 0, 0, {}

    def follow(self, tensor, new):
        holder = tensor if tensor.layout is torch._mkldnn else tensor.untyped_storage()  # packed weights (kit/fast/packed.py) show no storage
        if holder._cdata not in self.known:
            self.known[holder._cdata] = (tensor.numel() * tensor.itemsize if holder is tensor else holder.nbytes()) if new else 0
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
    """-> {who: [(seconds, count) of each run]}, the implementations in alternation, run by run."""
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
    a, b = torch.randn(n, n, device=device, dtype=dtype), torch.randn(n, n, device=device, dtype=dtype)
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
        rows.append({'what': work.what, 'who': who, 'images': work.images, 'ms': ms, 'tokens_per_s': per_s if work.unit == 'tokens' else None,
                     'peak_mib': mib, 'of_peak_flops': share})
        lines.append([work.what, who, '' if work.images is None else work.images, f'{ms:.1f}', f'±{500 * (high - low):.1f}',
                      f'{per_s:,.0f}', work.unit + '/s', f'{mib:.1f}', f'{share:.0%}'])
    slower = {who: statistics.median(t / o for (t, _), (o, _) in zip(times[who], times['ours'])) for who in times if who != 'ours'}
    return rows, lines, slower


# ---------------------------------------------------------------------------------------------
# What is compared with others: one layer, one resampler, one small model


def image_tags(n_token, n_image):
    """Where the <image> tags stand (T,) bool: n_image of them, evenly, the first in front."""
    tags = torch.zeros(n_token, dtype=torch.bool)
    tags[torch.arange(n_image) * n_token // n_image] = True
    return tags


def forward_call(run, inputs, count):
    def call():
        with torch.no_grad():
            run(*inputs)
        return count
    return call


def train_call(module, run, inputs, count):
    """Forward and backward, for weights and for those inputs that want it."""
    def call():
        run(*inputs).sum().backward()
        for x in (*module.parameters(), *inputs):
            x.grad = None
        return count
    return call


def xattn(n_image, width, device, beside, training):
    """One gated layer, its gates open, against the same layer of others."""
    y = torch.randn(N_SEQUENCE, N_TOKEN, width, device=device, requires_grad=training)
    visual = torch.randn(N_SEQUENCE, n_image, N_LATENT, width, device=device, requires_grad=training)
    index = image_tags(N_TOKEN, n_image).cumsum(0).expand(N_SEQUENCE, -1).to(device)
    ours = GatedCrossAttention(width, n_head=N_HEAD)
    layers = {'ours': (ours, lambda y, visual: ours(y, visual, index))} | peers.gated_layers(beside, width, N_HEAD, index)
    calls = {}
    for who, (layer, run) in layers.items():
        for name, p in layer.to(device).named_parameters():
            if p.numel() == 1:
                torch.nn.init.constant_(p, 0.5)  # the gates
        calls[who] = train_call(layer, run, (y, visual), y.shape[0] * y.shape[1]) if training else forward_call(run, (y, visual), y.shape[0] * y.shape[1])
    return Work('xattn_train' if training else 'xattn_forward', calls, n_image)


def resampler(width, device, beside, n_image=5, n_layer=6, n_input=256):
    media = torch.randn(N_SEQUENCE, n_image, n_input, width, device=device)  # of a frozen encoder: no gradient wanted
    ours = PerceiverResampler(width, n_latent=N_LATENT, n_layer=n_layer, n_head=N_HEAD)
    modules = {'ours': (ours, lambda media: ours(media.unsqueeze(2)))} | peers.resamplers(beside, width, n_layer, N_HEAD, N_LATENT, n_image)
    calls = {who: train_call(module.to(device), run, (media,), N_SEQUENCE * n_image) for who, (module, run) in modules.items()}
    return Work('resampler_train', calls, n_image, 'images')


class SmallModel:
    """Flamingo and its 4-shot prompts: what generation and the training step are compared on."""

    def __init__(self, width, device, beside, n_image=5, words=11, batch=8, n_new=64):
        torch.manual_seed(0)
        head = dict(lm_head=4, xattn_head=4, xattn_head_dim=width // 4, resampler_head=4, resampler_head_dim=width // 4)
        self.config = FlamingoConfig(n_vocab=1024, lm_layer=6, lm_dim=width, n_context=128, resampler_layer=2, resampler_dim=width, n_latent=16,
                                     vision='nano', image_size=48, **head)
        self.model = Flamingo(self.config).to(device)
        with torch.no_grad():
            self.model.new_rows.zero_()  # <EOC> is then never the likeliest word: every answer has all of its 64
        self.n_new, self.n_image, t = n_new, n_image, n_image * (1 + words)
        tags = image_tags(t, n_image).expand(batch, -1)
        self.tokens = torch.randint(0, 1022, (batch, t)).masked_fill(tags, self.model.image).to(device)
        self.index = tags.cumsum(1).to(device)
        self.targets = self.tokens.roll(-1, 1).masked_fill(tags.roll(-1, 1).to(device), -100)
        self.media = torch.randn(batch, n_image, 1, 3, self.config.image_size, self.config.image_size, device=device)
        self.length = torch.full((batch,), t, device=device)
        self.others = peers.models(beside, self, device)

    def generate(self):
        self.model.eval()
        answers.generate(self.model, self.tokens, self.length, self.index, self.n_new, beam_size=1, media=self.media)
        return self.n_new * len(self.tokens)

    @torch.no_grad()
    def generate_uncached(self):
        """The plain forward for every new word. The frozen encoder still looks only once."""
        self.model.eval()
        tokens, index, features = self.tokens, self.index, self.model.see(self.media)
        for _ in range(self.n_new):
            word = answers.forbid(self.model, self.model(tokens, index, features=features)[0][:, -1]).argmax(-1, keepdim=True)
            tokens, index = torch.cat([tokens, word], 1), torch.cat([index, index[:, -1:]], 1)
        return self.n_new * len(self.tokens)

    def generation(self, cached):
        calls = {'ours': self.generate if cached else self.generate_uncached}
        calls |= {who: peer.generate_call(cached) for who, peer in self.others.items()}
        return Work('generate_cached' if cached else 'generate_uncached', calls, self.n_image)

    def training(self):
        """Forward, backward and optimizer, everything but encoder and language model being trained."""
        def step(loss, module):
            optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-4, fused=True)

            def call():
                module.train()
                loss().backward()
                optimizer.step()
                optimizer.zero_grad()
                return self.tokens.numel()
            return call

        calls = {'ours': step(lambda: self.model(self.tokens, self.index, self.media, self.targets)[1], self.model)}
        calls |= {who: step(peer.loss, peer.model) for who, peer in self.others.items()}
        return Work('step_train', calls, self.n_image)

    def __str__(self):
        count = lambda model: f'{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters'
        return 'generate_* and step_train: ' + ', '.join([f'ours {count(self.model)}'] + [f'{who} {count(peer.model)}' for who, peer in self.others.items()])


# ---------------------------------------------------------------------------------------------
# What train.py and evaluate.py do, in the sizes of the preset


def stage_step(run, stage, numbers):
    """A step as in train.train_stage, at the next place in the data."""
    def call():
        _, n_token = train.gradients(run, stage, list(stage.weights), next(numbers))
        stage.clip()
        stage.optimizer.step()
        stage.optimizer.zero_grad()
        return n_token
    return call


class Whole:
    """The three stages of a run, from random weights, at work on its sources."""

    def __init__(self, config):
        with tempfile.TemporaryDirectory() as config.out_dir:
            self.run = Run(config, train.KEYS)
            torch.manual_seed(0)
            self.vision, self.language = train.VisionStage(self.run), train.LanguageStage(self.run)
            self.run.save_stage(self.vision)
            self.run.save_stage(self.language)
            self.flamingo = train.FlamingoStage(self.run)
        self.numbers = itertools.count()  # of batches: each call takes the next, as training does
        self.model, self.size = self.flamingo.module, self.run.size

    def steps(self):
        for stage in (self.vision, self.language, self.flamingo):
            yield Work('step_' + stage.name, {'ours': stage_step(self.run, stage, self.numbers)})

    def parts(self, batch=32):
        images = torch.randn(batch, 3, self.size.image_size, self.size.image_size, device=self.run.device)
        yield Work('vision', {'ours': forward_call(self.autocast(self.model.vision), (images,), batch)}, batch, 'images')
        x = torch.randn(8, self.size.n_token, self.size.lm_dim, device=self.run.device, dtype=self.model.lm.wte.weight.dtype)
        yield Work('block', {'ours': forward_call(self.autocast(self.model.lm.h[0]), (x,), x.shape[0] * x.shape[1])})

    def autocast(self, module):
        def run(*inputs):
            with autocast(self.run.device, self.run.dtype):
                return module(*inputs)
        return run

    @torch.no_grad()
    def answers(self):
        asker = self.flamingo.asker
        episodes = episodes_of('naming', 1, 16, ways=4)
        prompts = self.autocast(asker.prompts)([e.document() for e in episodes[:8]])
        n_image = prompts['frame_mask'].shape[1]

        read = self.autocast(lambda: answers.prefill(self.model, n_new=2, **prompts))
        step = self.autocast(lambda: self.model.head(answers.read(self.model, cache, word, index)))

        def prefill():
            read()
            return prompts['tokens'].numel()

        cache, logits, index = read()
        word = logits.argmax(-1, keepdim=True)

        def decode():
            step()
            cache.length = prompts['length']  # the next run writes to the same place
            return len(word)

        self.model.eval()
        yield Work('prefill', {'ours': no_grad(prefill)}, n_image)
        yield Work('decode', {'ours': no_grad(decode)}, n_image)
        yield Work('episode', {'ours': lambda: len(self.autocast(asker.answer)(episodes))}, n_image, 'episodes')

    def data(self):
        def flamingo():
            i, n_token = next(self.numbers), 0
            for name in self.flamingo.weights:
                batch = collate(self.run.reader.sequences(name, i), self.run.tokenizer)
                for m in (m for row in batch.media for m in row):
                    self.run.reader.pixels(m)
                n_token += batch.tokens.numel()
            return n_token

        def vision():
            i = next(self.numbers)
            pairs = [d for name in self.vision.weights for d in self.run.reader.pairs(name, i)]
            return sum(isinstance(p, Media) for d in pairs for p in d.pieces)

        yield Work('data', {'ours': flamingo})
        yield Work('data_vision', {'ours': vision}, unit='images')
        yield Work('data_language', {'ours': lambda: self.run.reader.texts('text', next(self.numbers))[0].size})


def no_grad(call):
    return torch.no_grad()(call)


# ---------------------------------------------------------------------------------------------
# The script


OF_RUN = ('vision', 'block', 'step_vision', 'step_language', 'step_flamingo', 'prefill', 'decode', 'episode', 'data', 'data_vision', 'data_language')
STEP_OF = {'data': 'step_flamingo', 'data_vision': 'step_vision', 'data_language': 'step_language'}  # what uses up these batches
NAMES = ('xattn_forward', 'xattn_train', 'resampler_train', 'generate_cached', 'generate_uncached', 'step_train', *OF_RUN)


def works(config, device, wanted):
    """All the work that is wanted, prepared one after the other."""
    beside = peers.importable() if config.peers else {}
    for training in (False, True):
        if wanted('xattn_train' if training else 'xattn_forward'):
            for n_image in (1, 5, 32):
                yield xattn(n_image, config.width, device, beside, training)
    if wanted('resampler_train'):
        yield resampler(config.width, device, beside)
    if wanted('generate_cached', 'generate_uncached', 'step_train'):
        small = SmallModel(config.width // 2, device, beside)
        print(small)
        for work in (small.generation(True), small.generation(False), small.training()):
            if wanted(work.what):
                yield work
    if wanted(*OF_RUN):
        whole = Whole(config)
        for work in itertools.chain(whole.parts(), whole.steps(), whole.answers(), whole.data()):
            if wanted(work.what):
                yield work


def main():
    config = configure(KEYS, usage=__doc__)
    check_values(config, train.KEYS)
    if config.device == 'meta':
        try:
            return print(accounting.report(config.preset, {f.name: getattr(config, f.name) for f in SIZE_FIELDS if f.name in config.given}))
        except ValueError as e:
            raise BadInput(f'--{e}') from e
    beginnings = tuple(part.strip() for part in config.what.split(',') if part.strip()) or ('',)
    for part in beginnings:
        if not any(name.startswith(part) for name in NAMES):
            raise BadInput(f'--what={config.what}: no row begins with {part!r}; there are {", ".join(NAMES)}')
    check_range(config, 1, float('inf'), 'runs')
    check_range(config, 0, float('inf'), 'seconds')
    if config.width < 16 or config.width % 16:
        raise BadInput(f'--width={config.width}: must be a multiple of 16, for its 8 heads and the 4 of half the width')
    beginnings += tuple(step for data, step in STEP_OF.items() if data.startswith(beginnings))
    wanted = lambda *names: any(name.startswith(beginnings) for name in names)
    device = config.device = pick_device(config.device)
    check_memory(4 * 12 * config.width ** 2, device, f'a gated layer of width {config.width:,}')
    dtype = pick_dtype(config.dtype, device)
    rates = {d: matmul_rate(device, d) for d in dict.fromkeys([torch.float32, dtype])}
    print(f'{device}, {torch.get_num_threads()} threads: matrix products at '
          + ', '.join(f'{rate / 1e9:,.0f} GFLOP/s in {str(d).removeprefix("torch.")}' for d, rate in rates.items()))
    rows, lines, ratios = [], [], []
    for work in works(config, device, wanted):
        some, more, slower = measure(work, rates[dtype if work.what in OF_RUN else torch.float32], device, config.runs, config.seconds)
        rows, lines = rows + some, lines + more
        if slower:
            fastest = min(slower, key=slower.get)
            name = work.what + (f', {work.images} image{"s" if work.images != 1 else ""}' if work.images else '')
            ratios.append(f'{name}: {1 / slower[fastest]:.2f} × the time of {fastest}, the fastest peer ({", ".join(f"{who} {1 / r:.2f}" for who, r in slower.items())})')
        print('.', end='', flush=True)  # one for each piece of work done
    print('\n' + lettering.text_table(lines, ['what', 'who', 'images', 'ms', '', 'rate', '', 'peak MiB', 'of limit']))
    ms = {row['what']: row['ms'] for row in rows if row['who'] == 'ours'}
    ratios += [f'{data}: read {ms[step] / ms[data] - 1:.1f} × as fast as the model uses it up ({step}, which reads it too)' for data, step in STEP_OF.items() if data in ms]
    print(*ratios, sep='\n')
    if config.out:
        with whole_file(config.out, 'w', encoding='utf-8') as f:
            json.dump(rows, f, indent=1)


if __name__ == '__main__':
    command(main)
