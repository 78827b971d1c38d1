"""How fast is it, what memory does it take, and how far is that from what the machine can do?

    python bench.py                                      # every row, nano sizes
    python bench.py --what=xattn,generate --peers=True   # rows by how their names begin, beside other code
    python bench.py config/gpt2.py --what=step_flamingo  # the keys of train.py hold here, too
    python bench.py --preset=flamingo-3b --device=meta   # nothing runs: parameter counts, memory, FLOPs

    xattn_forward, xattn_train   a gated layer: width 512, 8 heads, 64 visual tokens, 2 times 256 tokens
    resampler_train              6 layers, 64 latents, 256 inputs, width 512, 10 pictures
    generate_cached, _uncached   8 prompts of 5 pictures and 60 tokens, 64 new tokens; 6 layers, width 256
    step_train                   a training step of that model on those 8, encoder and language model frozen
    vision, block                the encoder and a block of the language model, forward, sizes of the preset
    step_vision, _language, _flamingo   a training step of each stage as train.py does it, data and all
    prefill, decode, episode     few-shot prompts: read 8 of them, one more word for each, answer 16 episodes
    data, data_vision, data_language    the batches of a step alone, and how much faster they come than go

Times are medians over runs after a warm-up; `±` is half the distance between their quartiles. Implementations
that are compared take turns, run by run, so that what else the machine does meets all of them; ratios are
medians over the turns. Memory is what a call holds at its peak beyond what was there before it. The machine's
limit is the rate of its best large matrix product, measured first. What is compared with others computes in
float32, the rest as --dtype says. A row's FLOPs are those of its matrix products, convolutions and attention.
"""
import itertools
import json
import tempfile

import torch

import train
from data import collate
from kit import answers
from kit.cli import check_range, command, configure
from kit.device import autocast, check_memory, pick_device, pick_dtype
from kit.files import BadInput, whole_file
from kit.measure import accounting, peers
from kit.measure.clock import matmul_rate, measure, Work
from kit.run.keys import check_values
from kit.run.parts import in_parts
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
    'seconds': (20.0, 'stop a row after this long, if it has been called three times'),
    'width': (512, 'of the single layers; whole models that are compared have half of it'),
} | train.KEYS

N_SEQUENCE, N_TOKEN, N_LATENT, N_HEAD = 2, 256, 64, 8  # of the single layers


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
    layers = {'ours': (ours, lambda y, visual: ours(y, visual, index))}
    layers |= peers.gated_layers(beside, width, N_HEAD, index)
    calls, n_token = {}, N_SEQUENCE * N_TOKEN
    for who, (layer, run) in layers.items():
        for p in layer.to(device).parameters():
            if p.numel() == 1:
                torch.nn.init.constant_(p, 0.5)  # the gates
        both_ways = train_call(layer, run, (y, visual), n_token)
        calls[who] = both_ways if training else forward_call(run, (y, visual), n_token)
    return Work('xattn_train' if training else 'xattn_forward', calls, n_image)


def resampler(width, device, beside, n_image=5, n_layer=6, n_input=256):
    media = torch.randn(N_SEQUENCE, n_image, n_input, width, device=device)  # wants no gradient
    ours = PerceiverResampler(width, n_latent=N_LATENT, n_layer=n_layer, n_head=N_HEAD)
    modules = {'ours': (ours, lambda media: ours(media.unsqueeze(2)))}
    modules |= peers.resamplers(beside, width, n_layer, N_HEAD, N_LATENT, n_image)
    calls = {who: train_call(module.to(device), run, (media,), N_SEQUENCE * n_image)
             for who, (module, run) in modules.items()}
    return Work('resampler_train', calls, n_image, 'images')


class SmallModel:
    """Flamingo and its 4-shot prompts: what generation and the training step are compared on."""

    def __init__(self, width, device, beside, n_image=5, words=11, batch=8, n_new=64):
        torch.manual_seed(0)
        self.config = FlamingoConfig(
            n_vocab=1024, n_context=128, lm_layer=6, lm_dim=width, lm_head=4,
            xattn_head=4, xattn_head_dim=width // 4, n_latent=16,
            resampler_layer=2, resampler_dim=width, resampler_head=4, resampler_head_dim=width // 4)
        self.model = Flamingo(self.config).to(device)
        with torch.no_grad():
            self.model.new_rows.zero_()  # <EOC> is then never the likeliest word: every answer has all its 64
        self.n_new, self.n_image, t = n_new, n_image, n_image * (1 + words)
        tags = image_tags(t, n_image).expand(batch, -1)
        self.tokens = torch.randint(0, 1022, (batch, t)).masked_fill(tags, self.model.image).to(device)
        self.index = tags.cumsum(1).to(device)
        self.targets = self.tokens.roll(-1, 1).masked_fill(tags.roll(-1, 1).to(device), -100)
        side = self.config.image_size
        self.media = torch.randn(batch, n_image, 1, 3, side, side, device=device)
        self.length = torch.full((batch,), t, device=device)
        self.others = peers.models(beside, self, device)

    def generate(self):
        self.model.eval()
        answers.generate(self.model, self.tokens, self.length, self.index, self.n_new, beam_size=1,
                         media=self.media)
        return self.n_new * len(self.tokens)

    @torch.no_grad()
    def generate_uncached(self):
        """The plain forward for every new word. The frozen encoder still looks only once."""
        self.model.eval()
        tokens, index, (features, mask) = self.tokens, self.index, self.model.see(self.media)
        for _ in range(self.n_new):
            logits = self.model(tokens, index, features=features, frame_mask=mask)[0][:, -1]
            word = answers.forbid(self.model, logits).argmax(-1, keepdim=True)
            tokens, index = torch.cat([tokens, word], 1), torch.cat([index, index[:, -1:]], 1)
        return self.n_new * len(self.tokens)

    def generation(self, cached):
        calls = {'ours': self.generate if cached else self.generate_uncached}
        calls |= {who: peer.generate_call(cached) for who, peer in self.others.items()}
        return Work('generate_cached' if cached else 'generate_uncached', calls, self.n_image)

    def training(self):
        """Forward, backward and optimizer, everything but encoder and language model being trained."""
        def step(loss, module):
            trained = [p for p in module.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)

            def call():
                module.train()
                loss().backward()
                optimizer.step()
                optimizer.zero_grad()
                return self.tokens.numel()
            return call

        loss = lambda: self.model(self.tokens, self.index, self.media, self.targets)[1]
        calls = {'ours': step(loss, self.model)}
        calls |= {who: step(peer.loss, peer.model) for who, peer in self.others.items()}
        return Work('step_train', calls, self.n_image)

    def __str__(self):
        models = {'ours': self.model} | {who: peer.model for who, peer in self.others.items()}
        sizes = [f'{who} {accounting.count(model) / 1e6:.2f} M parameters' for who, model in models.items()]
        return 'generate_* and step_train: ' + ', '.join(sizes)


# ---------------------------------------------------------------------------------------------
# What train.py and evaluate.py do, in the sizes of the preset


def stage_step(run, stage, numbers):
    """A step as in train.train_stage, at the next place in the data."""
    def call():
        i = next(numbers)
        _, n_token = in_parts(train.gradients, run, stage, stage.data.read(stage.sources, i))
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
        self.model, self.model_config = self.flamingo.module, self.run.model_config

    def steps(self):
        for stage in (self.vision, self.language, self.flamingo):
            yield Work('step_' + stage.name, {'ours': stage_step(self.run, stage, self.numbers)})

    def parts(self, batch=32):
        vision, block = self.model.vision, self.model.lm.h[0]
        size = self.model_config.image_size
        images = torch.randn(batch, 3, size, size, device=self.run.device)
        forward = forward_call(self.autocast(vision), (images,), batch)
        yield Work('vision', {'ours': forward}, batch, 'images')
        dtype, n_token = self.model.lm.wte.weight.dtype, self.model_config.n_token
        x = torch.randn(8, n_token, self.model_config.lm_dim, device=self.run.device, dtype=dtype)
        yield Work('block', {'ours': forward_call(self.autocast(block), (x,), 8 * n_token)})

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

        def answer():
            return len(self.autocast(asker.answer)(episodes))

        self.model.eval()
        yield Work('prefill', {'ours': torch.no_grad()(prefill)}, n_image)
        yield Work('decode', {'ours': torch.no_grad()(decode)}, n_image)
        yield Work('episode', {'ours': answer}, n_image, 'episodes')

    def data(self):
        def flamingo():
            data, n_token = self.flamingo.data, 0
            for samples in data.read(self.flamingo.sources, next(self.numbers)).values():
                for m in data.media(samples):
                    self.run.reader.pixels(m)
                n_token += collate(samples, self.run.tokenizer).tokens.numel()
            return n_token

        def vision():
            data = self.vision.data
            read = data.read(self.vision.sources, next(self.numbers))
            return sum(len(data.media(samples)) for samples in read.values())

        def language():
            rows = self.language.data.of_source('text', next(self.numbers))
            return sum(len(row.tokens) for row in rows)

        yield Work('data', {'ours': flamingo})
        yield Work('data_vision', {'ours': vision}, unit='images')
        yield Work('data_language', {'ours': language})


# ---------------------------------------------------------------------------------------------
# The script


COMPARED = ('xattn_forward', 'xattn_train', 'resampler_train', 'generate_cached', 'generate_uncached',
            'step_train')
OF_RUN = ('vision', 'block', 'step_vision', 'step_language', 'step_flamingo', 'prefill', 'decode', 'episode',
          'data', 'data_vision', 'data_language')
NAMES = COMPARED + OF_RUN
# What uses up these batches.
STEP_OF = {'data': 'step_flamingo', 'data_vision': 'step_vision', 'data_language': 'step_language'}


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


def wanted_rows(config):
    """-> function(names…): is a row of one of these names wanted? Raises BadInput."""
    beginnings = tuple(part.strip() for part in config.what.split(',') if part.strip()) or ('',)
    for part in beginnings:
        if not any(name.startswith(part) for name in NAMES):
            raise BadInput(f'--what={config.what}: no row begins with {part!r}; there are {", ".join(NAMES)}')
    beginnings += tuple(step for data, step in STEP_OF.items() if data.startswith(beginnings))
    return lambda *names: any(name.startswith(beginnings) for name in names)


def against_peers(work, slower):
    """{peer: its time over ours} -> a line"""
    fastest = min(slower, key=slower.get)
    each = ', '.join(f'{who} {1 / ratio:.2f}' for who, ratio in slower.items())
    return f'{work}: {1 / slower[fastest]:.2f} × the time of {fastest}, the fastest peer ({each})'


def against_model(rows):
    """Rows -> a line for each that reads batches: how much faster is that than the step that uses them up?"""
    ms = {row['what']: row['ms'] for row in rows if row['who'] == 'ours'}
    return [f'{data}: read {ms[step] / ms[data] - 1:.1f} × as fast as the model uses it up '
            f'({step}, which reads it too)' for data, step in STEP_OF.items() if data in ms]


def without_running(config):
    """The tables of --device=meta. Raises BadInput."""
    changes = {f.name: getattr(config, f.name) for f in SIZE_FIELDS if f.name in config.given}
    try:
        return accounting.report(config.preset, changes)
    except ValueError as e:
        raise BadInput(f'--{e}') from e


def main():
    config = configure(KEYS, usage=__doc__)
    check_values(config, train.KEYS)
    if config.device == 'meta':
        return print(without_running(config))
    wanted = wanted_rows(config)
    check_range(config, 1, float('inf'), 'runs')
    check_range(config, 0, float('inf'), 'seconds')
    if config.width < 16 or config.width % 16:
        raise BadInput(f'--width={config.width}: must be a multiple of 16, for 8 heads and 4 of half of it')
    device = config.device = pick_device(config.device)
    check_memory(4 * 12 * config.width ** 2, device, f'a gated layer of width {config.width:,}')
    dtype = pick_dtype(config.dtype, device)
    rates = {d: matmul_rate(device, d) for d in dict.fromkeys([torch.float32, dtype])}
    fast = [f'{rate / 1e9:,.0f} GFLOP/s in {str(d).removeprefix("torch.")}' for d, rate in rates.items()]
    print(f'{device}, {torch.get_num_threads()} threads: matrix products at {", ".join(fast)}')
    rows, lines, ratios = [], [], []
    for work in works(config, device, wanted):
        rate = rates[dtype if work.what in OF_RUN else torch.float32]
        some, more, slower = measure(work, rate, device, config.runs, config.seconds)
        rows, lines = rows + some, lines + more
        ratios += [against_peers(work, slower)] if slower else []
        print('.', end='', flush=True)  # one for each piece of work done
    header = ['what', 'who', 'images', 'ms', '', 'rate', '', 'peak MiB', 'of limit']
    print('\n' + lettering.text_table(lines, header))
    print(*ratios, *against_model(rows), sep='\n')
    if config.out:
        with whole_file(config.out, 'w', encoding='utf-8') as f:
            json.dump(rows, f, indent=1)


if __name__ == '__main__':
    command(main)
