"""What the stages of a training share: the configuration, the data, and the folder that keeps it all.

A `Run` answers three questions. What is batch number i of a source? (Always the same, whoever asks and whenever: the position in
the data is the step number, and resuming needs nothing else.) What cannot be read, and how much of it is too much? And what must
be on disk for the next sitting to go on as if nothing had happened?
"""
import csv
import os
import time
from collections import Counter
from dataclasses import asdict, fields, replace
from functools import partial

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint as recompute

from data import Document, encode, Media
from kit.bpe import train_bpe
from kit.device import check_memory, pick_device, pick_dtype
from kit.features import FrozenFeatures, Pixels
from kit.files import BadInput, BadItem, whole_file
from kit.run import class_words, distributed
from kit.show import canvas, charts
from kit.sources.base import FolderSpec, Pairs, readable_pairs, Report, SPLITS
from kit.sources.fewshot import PageSpec
from kit.sources.forms import is_pages, open_folder, open_source, split_spec
from kit.tasks.episodes import can_ask
from kit.tokenizer import Tokenizer
from kit.weights import checkpoint
from kit.world.words import invented_names, made_up_names, SYLLABLES
from model import Flamingo, FlamingoConfig, PRESETS


SIZE_FIELDS = [f for f in fields(FlamingoConfig) if f.name not in ('n_vocab', 'bos', 'pad')]
SOURCES = ('m3w', 'align', 'ltip', 'vtp')
# Keys that say how a run is carried out, not what it computes; they may change when it continues.
FREE_KEYS = {'stage', 'out_dir', 'init_from', 'device', 'dtype', 'compile', 'shard', 'activation_checkpointing', 'micro_batches', 'workers', 'log_every',
             'max_minutes', 'test_n'}


class Run:
    """The configuration, the data and the folder of one `python train.py`."""

    def __init__(self, config, keys):
        """keys: train.KEYS, all there are and their defaults"""
        self.config = {k: v for k, v in vars(config).items() if k in keys}
        self.given = [k for k, v in self.config.items() if v != keys[k][0]]  # the keys that are not as they would be unsaid
        self.default_tokenizer = keys['tokenizer'][0]
        if config.preset not in PRESETS:
            raise BadInput(f'--preset={config.preset}: expected one of {", ".join(PRESETS)}')
        self.device = distributed.begin(pick_device(config.device, meta=False), config.shard)
        self.dtype = pick_dtype(config.dtype, self.device)
        sizes = {f.name: self.config[f.name] for f in SIZE_FIELDS if f.name in config.given or f.name not in PRESETS[config.preset]}
        self.config |= {k: v for k, v in PRESETS[config.preset].items() if k in self.config and k not in sizes}
        self.report = Report()
        # A source may be given as the name of another: m3w = 'align' makes pages of the same folder.
        specs = {role: self.config[self.config[role] if self.config[role] in SOURCES else role] for role in (*SOURCES, 'text')}
        folders, pages = (kind(**{f.name: getattr(config, f.name) for f in fields(kind) if hasattr(config, f.name)})
                          for kind in (FolderSpec, PageSpec))  # the keys of the same names
        if config.words:
            names = [*made_up_names(np.random.default_rng(0), 1000), *invented_names(np.random.default_rng(0), 3000)]
            pages = replace(pages, names=tuple(names))
        self.sources = {role: open_source(role, spec, folders, pages, self.config['n_frame'], config.seed)
                        for role, spec in specs.items() if spec}
        self.tried, self.failed = Counter(), Counter()  # documents of each source
        self.left_out = {}                              # what was met in training and cannot be read: where -> kind
        self.ahead = {}                                 # (reads, source, i) -> a batch of the step at hand
        # What training never sees and evaluation asks about: of the embedded world None, of a folder its other split.
        paths = [path for path, _ in split_spec('m3w', specs['m3w'])] if specs['m3w'] else []
        self.held_out = None if 'shapes' in paths else held_out(specs, self.config['n_frame'], folders)
        if self.config['words']:
            labels = {item.label for item in self.class_items()}
            if not labels:
                raise BadInput(f'--words={config.words}: no source has class folders, whose names words could replace')
            self.call_classes(class_words.first_names(labels))
        self.tokenizer = self.choose_tokenizer(specs['text'], folders)
        self.size = self.check_size()
        self.pixels = Pixels(self.size.image_size, self.size.n_frame)
        self.held_out = self.held_out and readable_pairs(self.held_out, self.pixels, self.report)
        self.rows = []        # of log.csv
        self.stop = None      # why to stop after this step: a signal's number, or OUT_OF_TIME
        self.training = True  # is there anything that would be lost?
        self.started = time.time()
        self.minutes_before = 0.0  # of earlier sittings of the same run

    def check_size(self):
        """-> FlamingoConfig. Raises BadInput where these sizes make no model, or none that this machine could hold."""
        t = self.tokenizer
        try:
            size = FlamingoConfig(**{f.name: self.config[f.name] for f in SIZE_FIELDS}, n_vocab=t.n_vocab, bos=t.bos, pad=t.pad)
        except ValueError as e:
            raise BadInput(f'--{e}') from e
        if size.n_context < 64:
            raise BadInput(f'--n_context={size.n_context}: few-shot prompts need at least 64 tokens')
        if size.n_token > size.n_context:
            raise BadInput(f'--n_token={size.n_token}: longer than the context, --n_context={size.n_context}')
        with torch.device('meta'):  # where tensors have sizes and take no memory
            n = sum(p.numel() for p in Flamingo(size).parameters())
        check_memory(4 * n // (distributed.world() if self.config['shard'] else 1), self.device, f'a model of {n / 1e6:,.0f} million numbers')
        return size

    def choose_tokenizer(self, text, folders):
        """text: what to learn from, if that is asked for. Captions only: a made-up name stays in pieces, so that one which is
        new, later, is no different from those of the training pages."""
        name = self.config['tokenizer']
        if self.config['gpt2'] and name == self.default_tokenizer:  # weights are worth nothing without the words they were trained on
            name = self.config['gpt2'] if os.path.isdir(self.config['gpt2']) else os.path.dirname(self.config['gpt2']) or '.'
        if name == 'gpt2' or os.path.isdir(name):
            return Tokenizer.from_gpt2(None if name == 'gpt2' else name)
        if name != 'sources':
            return Tokenizer.load(name)
        config = self.config
        captions = open_source('text', text, folders, PageSpec(naming=0.0), config['n_frame'], config['seed']) if text else None
        texts = [self.read('text', i, captions.text) for i in range(4000)] if captions else []
        if config['words']:  # a token for each syllable, and the same in small letters: names are read by syllables, and most begin differently
            texts += [' '.join(['', *SYLLABLES, *(f'{s} -{s}'.lower() for s in SYLLABLES)])] * 1000
            texts += [' '.join(['', *sorted({item.text for item in self.class_items()})])] * 1000  # and for the first name of each class
        return Tokenizer(train_bpe(texts, config['tokenizer_ranks']))

    def spread(self, module, blocks, recomputed, replicated=(), methods=()):
        """Put a stage's module where it is trained -> what to call in training. recomputed: the blocks that activation
        checkpointing computes again; the rest as in kit.distributed.spread."""
        if self.config['activation_checkpointing']:
            for block in recomputed:
                block.forward = partial(recompute, block.forward, use_reentrant=False)
        return distributed.spread(module, self.device, self.config['shard'], blocks, replicated, methods)

    def expect_sizes(self, key, theirs):
        """The sizes of a published network, {name: size}, must be this run's. Raises BadInput."""
        wrong = [k for k in theirs if theirs[k] != getattr(self.size, k)]
        if wrong:
            raise BadInput(f'{self.config[key]} has ' + ', '.join(f'{k}={theirs[k]} (this run: {getattr(self.size, k)})' for k in wrong)
                           + '; give ' + ('a tokenizer of its own' if wrong == ['n_vocab'] else ' '.join(f'--{k}={theirs[k]}' for k in wrong if k != 'n_vocab')))

    def path(self, name):
        return os.path.join(self.config['out_dir'], name)

    def read(self, source, number, make):
        """make(number of a document or text). One that cannot be read is counted and replaced by another, always the same
        one. Raises BadInput where most cannot be read."""
        for attempt in range(50):
            self.tried[source] += 1
            try:
                return make(number + (attempt << 40))
            except BadItem as e:
                self.leave_out(e)
                self.failed[source] += 1
                if self.tried[source] >= 50 and 2 * self.failed[source] > self.tried[source]:
                    break
        raise BadInput(f'{source}: {self.failed[source]} of {self.tried[source]} documents cannot be read: ' + '; '.join(self.report.lines()))

    def document(self, source, number):
        document = self.sources[source].document(number)
        for bad in document.dropped:
            self.leave_out(bad)
        return document

    def ask_ways(self):
        """How many names the naming episodes of an evaluation have: 2 and 4, and of folders as many as training has at most."""
        most = [self.config['ways']] if self.held_out is not None and self.config['ways'] > 5 else []
        return [ways for ways in (2, 4, *most) if can_ask(self.held_out, ways, 1, self.within())]

    def within(self):
        """Whether their things are of one group, as most are in training."""
        return self.held_out is not None and self.config['within_group'] > 0.5

    def class_items(self):
        """The items of all class folders, those held out too."""
        found = [getattr(part, 'pairs', part) for source in self.sources.values() for part in source.parts] + [self.held_out]
        return [item for pairs in found if isinstance(pairs, Pairs) and isinstance(pairs.items, list) for item in pairs.items if item.group is not None]

    def find_words(self, vision):
        """-> {class: word} from what the trained encoder sees (kit/words.py), or {}; and words.png."""
        items = self.class_items() if self.config['words'] else []
        if not items:
            return {}
        features = FrozenFeatures(vision, self.pixels, self.device)
        found, shown = class_words.name_classes(items, vision, features, self.config['n_frame'], self.config['words'], self.config['word_centres'], self.leave_out)
        if distributed.rank() == 0:
            canvas.save(class_words.sheet(found, shown), self.path('words.png'))
        return found

    def use_words(self):
        """From here on, captions of class folders are the words that were found at the end of the vision stage."""
        if not self.config['words']:
            return
        self.call_classes(self.load_stage('vision', 'contrastive').get('words') or {})

    def call_classes(self, names):
        """{class: what it is called from here on}. Raises BadInput where one has no name."""
        for item in self.class_items():
            if item.label not in names:
                raise BadInput(f'{self.path("vision.pt")} has no word for {item.label!r}: it was trained without --words, or on other folders')
            item.text = names[item.label]

    def batch(self, reads, source, i):
        """This process's rows of batch i of a source: as a worker has prepared them, or made here, once for all micro-batches.
        They are the same, whoever makes them."""
        if (reads, source, i) not in self.ahead:
            self.ahead = {key: batch for key, batch in self.ahead.items() if key[2] == i} | {(reads, source, i): getattr(self, reads)(source, i)}
        return self.ahead[reads, source, i]

    def documents(self, source, start, n):
        """Documents start … start+n-1 of a source, all of their pictures readable."""
        def readable(number):
            document = self.document(source, number)
            for piece in document.pieces:
                if isinstance(piece, Media):
                    self.pixels(piece)
            return document
        return [self.read(source, number, readable) for number in range(start, start + n)]

    def pairs(self, source, i):
        """-> list of Documents, of a picture and its caption each. Here and below: this process's rows of batch i."""
        n = self.config['vision_batch']
        rows = distributed.rows(n, 'vision_batch')
        return self.documents(source, i * n + rows.start, len(rows))

    def texts(self, source, i):
        """-> token ids (B, T+1) int64: texts one after the other, each after a <BOS>; and where each row starts (B,)."""
        n, batch = min(self.config['language_tokens'], self.size.n_context), []
        rows = distributed.rows(self.config['language_batch'], 'language_batch')
        for k in rows:
            row, number = [], (i << 24) + (k << 10)  # room for 16,000 rows a step, of a thousand texts each
            while len(row) <= n:
                row += [self.tokenizer.bos] + self.tokenizer.encode(self.read(source, number, self.sources[source].text))
                number += 1
            batch.append(row[:n + 1])
        rng = np.random.default_rng([self.config['seed'], 8, i])
        start = rng.integers(self.size.n_context - n + 1, size=self.config['language_batch'])
        return np.array(batch), start[rows.start:rows.stop]

    def sequences(self, source, i):
        """-> list of data.Encoded whose pictures can be read."""
        n = self.config['batch_' + source]
        rows = distributed.rows(n, 'batch_' + source)
        return [self.read(source, i * n + k, lambda number: self.sequence(source, number)) for k in rows]

    def sequence(self, source, number):
        """Document of that number -> Encoded. Only the pictures in its window are decoded: a page may have many. One that
        cannot be read is taken out of a page (of examples, with what is said about it), which is then read again with the same luck."""
        document = self.document(source, number)
        while True:
            rng = np.random.default_rng([self.config['seed'], 7, number, SOURCES.index(source)])  # of its own: whoever reads it, it is the same
            sequence = encode(document, self.tokenizer, self.size.n_token, self.size.n_image, rng, self.config['p_next'],
                              blind_loss=self.config['blind_loss'])
            bad = []
            for media in sequence.media:
                try:
                    self.pixels(media)
                except BadItem as e:
                    if document.kind not in ('page', 'examples'):
                        raise
                    self.leave_out(e)
                    bad.append(media)
            if not bad:
                sequence.source, sequence.seed, sequence.start = source, int(rng.integers(2 ** 31)), self.place(rng, len(sequence.tokens))
                return sequence
            pieces, gone = [], False
            for piece in document.pieces:
                if isinstance(piece, Media):
                    gone = any(piece is media for media in bad)
                if not (gone and (isinstance(piece, Media) or document.kind == 'examples')):
                    pieces.append(piece)
            if not any(isinstance(piece, Media) for piece in pieces):
                raise BadItem('page without pictures', document.where)
            document = Document(pieces, document.kind, document.where)

    def place(self, rng, n_token):
        """Where in the context a page begins: every other one at its beginning, as prompts do, the others anywhere. *Why.* What a
        gated layer asks depends on where a word stands, too. When no page had been longer than 150 tokens, four examples were
        enough at the beginning (89 % of questions answered), and not a hundred tokens further on (52 %), where long prompts end."""
        return int(rng.integers(self.size.n_context - n_token + 1)) if rng.random() < 0.5 else 0

    def leave_out(self, bad_item):
        """Count a damaged item, once: it is met again in every epoch."""
        if bad_item.where not in self.left_out:
            self.left_out[bad_item.where] = bad_item.kind
            self.report.add(bad_item)

    def share_left_out(self):
        """Every process learns what the others could not read."""
        for left_out in distributed.gather(self.left_out):
            for where, kind in left_out.items():
                self.leave_out(BadItem(kind, where))

    def save_stage(self, stage):
        content = distributed.whole(stage.content())  # by all ranks, ...
        if distributed.rank() == 0:                   # ... and written by one
            checkpoint.save(self.path(stage.name + '.pt'), kind_of(stage.name), config=asdict(self.size), tokenizer=self.tokenizer.state(), keys=self.config,
                            given=self.given,
                            **content)
        distributed.barrier()                         # the others read it next

    def load_stage(self, name, module):
        """-> the content of NAME.pt, which must hold `module` and be of the same sizes and words."""
        path = self.path(name + '.pt')
        content = checkpoint.load(path, name, config=dict, tokenizer=dict, keys=dict, **{module: dict})
        made = content['keys']
        if content['tokenizer'] != self.tokenizer.state():
            raise BadInput(f'{path} was made with another tokenizer, --tokenizer={made.get("tokenizer")}; now --tokenizer={self.config["tokenizer"]}')
        for key, ours in asdict(self.size).items():
            content['config'].setdefault(key, getattr(FlamingoConfig, key))  # a size that is younger than the file
            if content['config'][key] != ours:
                raise BadInput(f'{path} was made with --preset={made.get("preset")} and {key}={content["config"][key]}; '
                               f'now --preset={self.config["preset"]} and {key}={ours}')
        return content

    def on_signal(self, number, frame):
        """Ctrl-C or a polite kill: finish this step, save, leave. A second one, or one when all is saved, leaves at once."""
        again = self.stop is not None and distributed.world() == 1  # torchrun passes every Ctrl-C on, after all have had it already
        self.stop = number
        if again or not self.training:
            raise KeyboardInterrupt

    def save_progress(self, missing, i, stage=None):
        """training.pt: everything needed to go on with step i of stage missing[0] as if nothing had happened."""
        self.share_left_out()
        state = {'missing': missing, 'iter': i, 'keys': self.config, 'rows': self.rows, 'minutes': self.minutes(), 'left_out': self.left_out}
        if stage is not None:
            state |= {'module': distributed.whole(stage.module.state_dict()), 'optimizer': distributed.whole(stage.optimizer.state_dict()),
                      'random': checkpoint.random_state()}
        if distributed.rank() == 0:
            checkpoint.save(self.path('training.pt'), 'training', **state)
            self.write_log()

    def load_progress(self, stages):
        """-> what `save_progress` saved; the log and the counts of this run go on from there. Raises BadInput."""
        path = self.path('training.pt')
        progress = checkpoint.load(path, 'training', missing=list, iter=int, keys=dict, rows=list, minutes=float, left_out=dict)
        good = all(name in stages for name in progress['missing']) and progress['iter'] >= 0
        good &= all(isinstance(row, dict) and 'stage' in row for row in progress['rows'])
        good &= 'module' not in progress or all(isinstance(progress.get(part), dict) for part in ('module', 'optimizer', 'random'))
        if not good:
            raise BadInput(f'{path}: damaged: it is no state of this program')
        check_same_keys(progress['keys'], self.config, path)
        self.rows, self.minutes_before = progress['rows'], progress['minutes']
        for where, kind in progress['left_out'].items():
            self.leave_out(BadItem(kind, where))
        return progress

    def minutes(self):
        """Of training, all sittings together."""
        return self.minutes_before + (time.time() - self.started) / 60

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
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        with whole_file(self.path('log.csv'), 'w', encoding='utf-8') as f:
            writer = csv.DictWriter(f, columns)
            writer.writeheader()
            writer.writerows(self.rows)
        canvas.save(charts.curves(self.rows), self.path('curves.png'))


def kind_of(stage_name):
    """A fine-tuned Flamingo is a Flamingo still: sample.py and evaluate.py read it as such."""
    return 'flamingo' if stage_name == 'finetune' else stage_name


def held_out(specs, n_frame, folders):
    """What evaluation asks about: the val (valid, validation, test, or any but train) split of the first source of pairs; where groups of
    class folders are held out, of the first that has class folders. All of it, if it has no such split: then evaluation shows what was
    learned by heart, and that is printed. None where there are no pairs but those of the embedded world."""
    paths = [path for role in ('align', 'ltip', 'm3w', 'vtp') if specs[role] for path, _ in split_spec(role, specs[role])]
    paths = [path for path in dict.fromkeys(paths) if path != 'shapes' and not is_pages(path)][:None if folders.held_groups else 1]
    opened = [open_folder(path, folders, n_frame, split=None) for path in paths]
    if not opened:
        return None
    pairs = next((p for p in opened if folders.held_groups and any(item.group is not None for item in p.items)), opened[0])
    for name in (*SPLITS, *sorted(pairs.splits)):
        if name != 'train' and name in pairs.splits:
            return pairs.split(name)
    if distributed.rank() == 0:
        print(f'{pairs.name} has no val or test split: evaluation asks about what was trained on')
    return pairs


def check_same_keys(saved, now, path):
    """A run may only be continued with the keys it was begun with."""
    for key in saved:
        if key in now and key not in FREE_KEYS and saved[key] != now[key]:
            raise BadInput(f'{path} was made with --{key}={saved[key]}, now --{key}={now[key]}: '
                           f'give the same, another --out_dir, or --init_from=scratch to start over')
