"""What the stages of a training share: the configuration, the data, and the folder that keeps it all.

Two questions are answered here. What is there to learn from, and in what sizes? And what must be on disk for
the next session to continue as if nothing had happened? (Batches are in kit/run/batches.py, the steps in
kit/run/loop.py.)
"""
import csv
import os
import time
from dataclasses import asdict, fields, replace
from types import SimpleNamespace

import torch

from kit.bpe import train_bpe
from kit.cli import flat, spell
from kit.device import check_memory, pick_device, pick_dtype
from kit.files import BadInput, BadItem, one_line, whole_file
from kit.run import class_words, distributed
from kit.run.fit import fit_to_folder
from kit.run.keys import SOURCES
from kit.run.reading import Reader
from kit.show import canvas, charts
from kit.sizes import check_sizes, language_sizes
from kit.sources.base import SPLITS, FolderSpec, Report, readable_pairs
from kit.sources.fewshot import PageSpec
from kit.sources.forms import is_pages, open_folder, open_source, split_spec
from kit.tasks.episodes import can_ask
from kit.tokenizer import Tokenizer
from kit.weights import checkpoint, gpt2_sizes, nfnet_sizes
from kit.weights.vocabulary import gpt2_tokenizer
from kit.world.words import SYLLABLES
from model import PRESETS, Flamingo, FlamingoConfig

# All sizes but three, which come from the tokenizer.
SIZE_FIELDS = [f for f in fields(FlamingoConfig) if f.name not in ('n_vocab', 'bos', 'pad')]
# Keys that say how a run is carried out, not what it computes. They may change when it continues.
FREE_KEYS = {'stage', 'out_dir', 'init_from', 'device', 'dtype', 'compile', 'shard',
             'activation_checkpointing', 'micro_batches', 'workers', 'log_every', 'max_minutes', 'test_n'}
# The sizes that the modules in a stage's file are built from. Other sizes may have changed since.
BUILT_FROM = {
    'vision': ('n_vocab', 'vision', 'per_image', 'dim_embed', 'text_layer', 'text_dim', 'text_head',
               'plain_words'),
    'language': tuple(language_sizes(FlamingoConfig())),
    'flamingo': tuple(f.name for f in fields(FlamingoConfig)
                      if f.name not in ('image_size', 'n_token', 'n_image')),
}


class Run:
    """The configuration, the data and the folder of one `python train.py`.

    config: namespace of all keys of train.py, those of tables by their own names
    keys:   train.KEYS, every key and its default

    It has, for the stages: `config`, the keys of train.py; `model_config`, the sizes of the model (a
    FlamingoConfig, made of them); `sources` and `held_out` (see open_sources) and the
    `reader` of them (kit/run/reading.py); the `tokenizer`; `device` and `dtype`; `stop`, why to stop.
    """

    def __init__(self, config, keys):
        self.keys = keys
        defaults = {name: default for name, (default, _) in flat(keys).items()}
        if config.fit:
            fit_to_folder(config, of_keys(FolderSpec, config))
        if config.preset not in PRESETS:
            raise BadInput(f'--preset={config.preset}: expected one of {", ".join(PRESETS)}')
        preset = {k: v for k, v in PRESETS[config.preset].items() if k in defaults and k not in config.given}
        self.config = SimpleNamespace(**{name: preset.get(name, getattr(config, name)) for name in defaults})
        self.n_row = self.take_sizes(config.given)
        given = {name: getattr(config, name) for name in defaults if getattr(config, name) != defaults[name]}
        self.given = spell(given, keys)  # what a command line must say to get these keys
        self.device = distributed.begin(pick_device(config.device, meta=False), config.shard)
        self.dtype = pick_dtype(config.dtype, self.device)
        self.report = Report()
        self.open_sources()
        self.tokenizer = self.choose_tokenizer(defaults['tokenizer'])
        self.model_config = self.check_model_config()
        self.reader = Reader(self.sources, self.model_config, self.report)
        self.held_out = self.held_out and readable_pairs(self.held_out, self.reader.pixels, self.report)
        self.missing = []          # names of the stages to be trained, the one at hand first
        self.progress = None       # of one that was interrupted: the content of training.pt
        self.log = []              # lines of log.csv, {column: value}
        self.complete = False      # was everything there when this session began?
        self.stop = None           # why to stop after this step: a signal's number, or loop.OUT_OF_TIME
        self.training = True       # would anything be lost by leaving at once?
        self.started = time.time()
        self.minutes_before = 0.0  # of earlier sessions of the same run

    # -----------------------------------------------------------------------------------------
    # What there is to learn from, and in what sizes

    def open_sources(self):
        """Sets self.sources {name: Source} and self.held_out: the Pairs that training never sees and
        evaluation asks about, or None for the drawn world's own."""
        config = self.config
        # A source may be given as the name of another: m3w = 'align' makes pages of the same folder.
        given = {role: getattr(config, role) for role in (*SOURCES, 'text')}
        self.specs = {role: given[spec] if spec in SOURCES else spec for role, spec in given.items()}
        self.folders = replace(of_keys(FolderSpec, config), flip=config.augment_flip)
        page_examples = max(3, min(config.page_examples, config.n_image))
        pages = replace(of_keys(PageSpec, config), page_examples=page_examples)
        self.sources = {role: self.open(role, spec, pages) for role, spec in self.specs.items() if spec}
        doubts = [line for source in self.sources.values() for line in source.doubts()]
        for line in dict.fromkeys(doubts) if distributed.rank() == 0 else []:
            print('warning:', one_line(line))
        m3w = [path for path, _ in split_spec('m3w', self.specs['m3w'])] if self.specs['m3w'] else []
        self.held_out = None if 'shapes' in m3w else held_out(self.specs, config.n_frame, self.folders)
        if config.words:
            class_words.begin(self)

    def open(self, role, spec, pages):
        return open_source(role, spec, self.folders, pages, self.config.n_frame, self.config.seed)

    def take_sizes(self, given):
        """Set the sizes that come from the files of published weights -> rows of GPT-2's table of words, or
        None. given: the keys that were set; they must agree. Raises BadInput."""
        sizes = gpt2_sizes(self.config.gpt2) if self.config.gpt2 else {}
        n_row = sizes.pop('n_vocab', None)
        sizes |= nfnet_sizes(self.config.nfnet) if self.config.nfnet else {}
        for name, value in sizes.items():
            if name in given and getattr(self.config, name) != value:
                [said] = spell({name: getattr(self.config, name)}, self.keys)
                file = self.config.nfnet if name == 'vision' else self.config.gpt2
                raise BadInput(f'{file} has {name}={value}: leave {said} out')
            setattr(self.config, name, value)
        return n_row

    def choose_tokenizer(self, default):
        name, config = self.config.tokenizer, self.config
        if config.gpt2 and name == default:  # weights are worth nothing without their own tokenizer
            name = config.gpt2 if os.path.isdir(config.gpt2) else os.path.dirname(config.gpt2) or '.'
        if name == 'gpt2' or os.path.isdir(name):
            return gpt2_tokenizer(None if name == 'gpt2' else name, self.n_row)
        kind, _, n_rank = name.partition(':')
        if kind != 'sources':
            return Tokenizer.load(name)
        n_rank = n_rank or '1022'
        if not n_rank.isdecimal() or not 256 <= int(n_rank) <= 1 << 16:  # every byte is a token
            raise BadInput(f'--tokenizer={name}: the number of tokens must be from 256 to {1 << 16}')
        return Tokenizer(train_bpe(self.texts_for_tokenizer(), int(n_rank)))

    def texts_for_tokenizer(self):
        """Captions only, no naming pages: all made-up names stay in pieces, so that a new one is no different
        from those of training. If classes are named by syllables, each syllable should be a token."""
        captions = self.open('text', self.specs['text'], PageSpec(naming=0.0)) if self.specs['text'] else None
        texts = []
        for i in range(4000 if captions else 0):
            try:
                texts.append(captions.text(i))
            except BadItem as e:
                self.report.add(e)
        if self.config.words:
            # In small letters, too, as they come inside made-up names.
            texts += [' '.join(['', *SYLLABLES, *(f'{s} -{s}'.lower() for s in SYLLABLES)])] * 1000
        if self.config.words and not self.config.keep_captions:
            texts += [' '.join(['', *sorted({item.text for item in class_words.items_of(self)})])] * 1000
        return texts

    def check_model_config(self):
        """-> FlamingoConfig. Raises BadInput if these sizes make no model, or a model larger than the
        device's memory."""
        t, config = self.tokenizer, self.config
        if self.n_row not in (None, t.n_vocab):
            raise BadInput(f'{config.gpt2} has {self.n_row} words, and --tokenizer={config.tokenizer} '
                           f'{t.n_vocab}: leave --tokenizer out, for the one beside the weights')
        try:
            size = check_sizes(FlamingoConfig(**{f.name: getattr(config, f.name) for f in SIZE_FIELDS},
                                              n_vocab=t.n_vocab, bos=t.bos, pad=t.pad))
        except ValueError as e:
            raise BadInput(f'--{e}') from e
        if size.n_context < 64:
            raise BadInput(f'--n_context={size.n_context}: few-shot prompts need at least 64 tokens')
        if size.n_token > size.n_context:
            raise BadInput(f'--n_token={size.n_token}: longer than the context, --n_context={size.n_context}')
        with torch.device('meta'):  # tensors there have sizes but take no memory
            n = sum(p.numel() for p in Flamingo(size).parameters())
        n_byte = 4 * n // (distributed.world() if config.shard else 1)
        check_memory(n_byte, self.device, f'a model of {n / 1e6:,.0f} million numbers')
        return size

    # -----------------------------------------------------------------------------------------
    # What evaluations ask

    def ask_ways(self):
        """-> the numbers of names for naming episodes: 2, 4 and, for folders, the most that training has."""
        most = [self.config.ways] if self.held_out is not None and self.config.ways > 5 else []
        return [ways for ways in (2, 4, *most) if can_ask(self.held_out, ways, 1, self.within())]

    def within(self):
        """Whether all classes of a naming episode come from one group, as most do in training."""
        return self.held_out is not None and self.config.within_group > 0.5

    # -----------------------------------------------------------------------------------------
    # The folder

    def path(self, name):
        return os.path.join(self.config.out_dir, name)

    def minutes(self):
        """Minutes of training, all sessions together."""
        return self.minutes_before + (time.time() - self.started) / 60

    def save_stage(self, stage):
        """Write NAME.pt. It is not missing any more, and training.pt says so."""
        content = distributed.whole(stage.content())  # all ranks gather it, ...
        if stage.name == 'vision':  # of what it sees now; nothing unless --folders=words=N
            content['words'] = class_words.find(self, stage.module.vision)
        if distributed.rank() == 0:                   # ... one writes it, ...
            checkpoint.save(self.path(stage.name + '.pt'), kind_of(stage.name),
                            config=asdict(self.model_config), tokenizer=self.tokenizer.state(),
                            keys=vars(self.config), given=self.given, **content)
        distributed.barrier()                         # ... and all read it next
        if self.missing:
            self.missing = self.missing[1:]
            self.save_progress(0)

    def load_stage(self, name, module):
        """-> the content of NAME.pt. Raises BadInput if it lacks `module`, or was made with another tokenizer
        or other sizes."""
        path = self.path(name + '.pt')
        if not os.path.exists(path):
            raise BadInput(f'{path}: no such file; python train.py --stage={name} makes it')
        content = checkpoint.load(path, name, config=dict, tokenizer=dict, keys=dict, **{module: dict})
        made = content['keys']
        if content['tokenizer'] != self.tokenizer.state():
            before, now = made.get('tokenizer'), self.config.tokenizer
            raise BadInput(f'{path} was made with another tokenizer, --tokenizer={before}; ' + (
                f'now --tokenizer={now}' if now != before else 'what it is made of has changed since'))
        for key in BUILT_FROM[name]:
            theirs = content['config'].get(key, getattr(FlamingoConfig, key))
            ours = getattr(self.model_config, key)
            if theirs != ours:
                raise BadInput(f'{path} was made with --preset={made.get("preset")} and {key}={theirs}; '
                               f'now --preset={self.config.preset} and {key}={ours}')
        return content

    def on_signal(self, number, frame):
        """Ctrl-C or a polite kill: finish this step, save, leave. A second one leaves at once, and so does
        one that comes when everything is saved."""
        # Under torchrun each Ctrl-C comes twice: from the terminal, and from torchrun.
        again = self.stop is not None and distributed.world() == 1
        self.stop = number
        if again or not self.training:
            raise KeyboardInterrupt

    def save_progress(self, i, stage=None):
        """Write training.pt: everything needed to continue with step i of the first missing stage as if
        nothing had happened."""
        self.reader.share_left_out()
        state = {'missing': self.missing, 'iter': i, 'keys': vars(self.config), 'rows': self.log,
                 'minutes': self.minutes(), 'left_out': self.reader.left_out}
        if stage is not None:
            state |= {'module': distributed.whole(stage.module.state_dict()),
                      'optimizer': distributed.whole(stage.optimizer.state_dict()),
                      'random': checkpoint.random_state()}
        if distributed.rank() == 0:
            checkpoint.save(self.path('training.pt'), 'training', **state)
            self.write_log()

    def load_progress(self, stages):
        """-> what `save_progress` saved. The log and the counts continue from it. Raises BadInput."""
        path = self.path('training.pt')
        progress = checkpoint.load(path, 'training', missing=list, iter=int, keys=dict, rows=list,
                                   minutes=float, left_out=dict)
        good = all(name in stages for name in progress['missing']) and progress['iter'] >= 0
        good &= all(isinstance(row, dict) and 'stage' in row for row in progress['rows'])
        good &= 'module' not in progress or all(isinstance(progress.get(part), dict)
                                                for part in ('module', 'optimizer', 'random'))
        if not good:
            raise BadInput(f'{path}: damaged: it is no state of this program')
        self.check_same_keys(progress['keys'], path)
        self.log, self.minutes_before = progress['rows'], progress['minutes']
        for where, kind in progress['left_out'].items():
            self.reader.leave_out(BadItem(kind, where))
        return progress

    def check_same_keys(self, saved, path):
        """Raises BadInput unless the keys are those that the run was begun with, saved {name: value}."""
        for key, value in saved.items():
            now = getattr(self.config, key, value)
            if key not in FREE_KEYS and now != value:
                [theirs], [ours] = spell({key: value}, self.keys), spell({key: now}, self.keys)
                raise BadInput(f'{path} was made with {theirs}, now {ours}: give the same, '
                               'another --out_dir, or --init_from=scratch to start over')

    def restore(self, stage):
        """Put weights, optimizer and random state of an interrupted stage back -> the number of the step to
        continue with; 0 of one that begins."""
        progress, self.progress = self.progress, None
        if progress is None or 'module' not in progress:
            return 0
        path = self.path('training.pt')
        distributed.load_module(stage.module, progress['module'], path)
        distributed.load_optimizer(stage.optimizer, progress['optimizer'], path)
        checkpoint.set_random_state(progress['random'])
        return progress['iter']

    def read_log(self):
        path = self.path('log.csv')
        if not os.path.exists(path):
            return []
        try:
            with open(path, encoding='utf-8', newline='') as f:
                rows = list(csv.DictReader(f))
            if not all('stage' in row and None not in row for row in rows):
                raise ValueError('a row without its stage, or with more columns than the first')
            return rows
        except (ValueError, csv.Error) as e:  # a UnicodeDecodeError is a ValueError
            raise BadInput(f'{path}: not a log of this program ({e}); move it away to go on') from e

    def write_log(self):
        columns = list(dict.fromkeys(key for row in self.log for key in row))
        with whole_file(self.path('log.csv'), 'w', encoding='utf-8') as f:
            writer = csv.DictWriter(f, columns)
            writer.writeheader()
            writer.writerows(self.log)
        canvas.save(charts.curves(self.log), self.path('curves.png'))


def of_keys(kind, config):
    """A dataclass filled from the keys that have the names of its fields."""
    return kind(**{f.name: getattr(config, f.name) for f in fields(kind) if hasattr(config, f.name)})


def kind_of(stage_name):
    """The kind of a stage's file: a fine-tuned Flamingo is read like any other."""
    return 'flamingo' if stage_name == 'finetune' else stage_name


def held_out(specs, n_frame, folders):
    """What evaluation asks about -> Pairs, or None if only the drawn world has pairs.

    It is the val split (or test, or any other that is not train) of the first source of pairs; if groups of
    class folders are held out, of the first source with class folders. A source without such a split is used
    whole: evaluation then shows what was learned by heart, and a line on the screen says so.
    """
    roles = [role for role in ('align', 'ltip', 'm3w', 'vtp') if specs[role]]
    paths = [path for role in roles for path, _ in split_spec(role, specs[role])]
    paths = [path for path in dict.fromkeys(paths) if path != 'shapes' and not is_pages(path)]
    paths = paths[:None if folders.held_groups else 1]
    opened = [open_folder(path, folders, n_frame, split=None) for path in paths]
    if not opened:
        return None
    grouped = [p for p in opened if folders.held_groups and any(item.group is not None for item in p.items)]
    pairs = (grouped or opened)[0]
    for name in (*SPLITS, *sorted(pairs.splits)):
        if name != 'train' and name in pairs.splits:
            return pairs.split(name)
    if distributed.rank() == 0:
        print(f'{pairs.name} has no val or test split: evaluation asks about what was trained on')
    return pairs
