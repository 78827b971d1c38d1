"""The rows of a batch. Batch i of a source depends on i and the seed only.

The position in the data is the step number, so resuming needs nothing else, and every rank and every worker
process can read its own rows without asking the others. Who calls whom:

    FlamingoStage.batches(sources, i)                  train.py; i is the number of the batch
      sequence_batches                                 kit/run/batches.py: tensors of rows, by data.collate
        Reader.rows(Reader.sequences, source, i)       here, unless a worker has made them (kit/run/ahead.py)
          Reader.sequence(source, number)              a row of a Document, by data.encode
            Source.document(number)                    kit/sources/forms.py: of which part, with which chance
              Shapes.document, or a folder's           kit/world/pages.py, kit/sources/
"""
from collections import Counter

import numpy as np

from data import Document, Media, encode
from kit.features import Pixels
from kit.files import BadInput, BadItem
from kit.run import distributed
from kit.run.keys import SOURCES
from xattn import sees_its_own_only


class Reader:
    """The rows of every batch, and a count of what cannot be read.

    config:  namespace of all keys of train.py
    sources: {name: kit.sources.forms.Source}
    size:    FlamingoConfig
    report:  kit.sources.base.Report
    """

    def __init__(self, config, sources, tokenizer, size, report):
        self.config, self.sources, self.tokenizer = config, sources, tokenizer
        self.size, self.report = size, report
        self.pixels = Pixels(size.image_size, size.n_frame)
        self.tried, self.failed = Counter(), Counter()  # {source: number of documents}
        self.left_out = {}                              # {where: kind} of what training could not read
        self.made = {}                                 # {(method, source, i): rows} of the current step

    def rows(self, method, source, i):
        """This rank's rows of batch i of a source. method: Reader.pairs, Reader.texts or Reader.sequences.

        They are made once, for all micro-batches: here, or by a worker process, which puts them into
        `ahead` before the step (kit/run/ahead.py).
        """
        if (method, source, i) not in self.made:
            kept = {key: rows for key, rows in self.made.items() if key[2] == i}
            self.made = kept | {(method, source, i): method(self, source, i)}
        return self.made[method, source, i]

    def pairs(self, source, i):
        """For the contrastive stage -> [Document of a picture and its caption]"""
        n = self.config.vision_batch
        rows = distributed.rows(n, 'vision_batch')
        return [self.read(source, i * n + k, lambda number: self.readable(source, number)) for k in rows]

    def texts(self, source, i):
        """For the language stage -> token ids (B,T+1) int64, texts one after the other, each after a <BOS>;
        and the position of each row's first token (B,)."""
        n, batch = min(self.config.language_tokens, self.size.n_context), []
        rows = distributed.rows(self.config.language_batch, 'language_batch')
        for k in rows:
            row, number = [], (i << 24) + (k << 10)  # numbers for 16,000 rows a step of a thousand texts each
            while len(row) <= n:
                text = self.read(source, number, self.sources[source].text)
                row += [self.tokenizer.bos, *self.tokenizer.encode(text)]
                number += 1
            batch.append(row[:n + 1])
        rng = np.random.default_rng([self.config.seed, 8, i])
        start = rng.integers(self.size.n_context - n + 1, size=self.config.language_batch)
        return np.array(batch), start[rows.start:rows.stop]

    def sequences(self, source, i):
        """For the Flamingo stage -> [data.Encoded]"""
        n = getattr(self.config, 'batch_' + source)
        rows = distributed.rows(n, 'batch=' + source)
        return [self.read(source, i * n + k, lambda number: self.sequence(source, number)) for k in rows]

    def sequence(self, source, number):
        """Document of this number -> Encoded, all of its pictures readable.

        A page may have many pictures; only those in its window are decoded. An unreadable one is taken out of
        a page (on example pages together with its text), and the page is encoded again with the same random
        numbers. Raises BadItem if that leaves no picture.
        """
        document = self.document(source, number)
        while True:
            rng = np.random.default_rng([self.config.seed, 7, number, SOURCES.index(source)])
            sequence = encode(document, self.tokenizer, self.size.n_token, self.size.n_image, rng,
                              self.config.p_next, earlier=not sees_its_own_only(self.size.attend))
            bad = self.unreadable(sequence.media)
            if not bad:
                sequence.source, sequence.seed = source, int(rng.integers(2 ** 31))
                sequence.start = self.place(rng, len(sequence.tokens))
                return sequence
            if document.kind not in ('page', 'examples'):
                raise bad[0][1]
            for _, reason in bad:
                self.leave_out(reason)
            document = without(document, [media for media, _ in bad])

    def place(self, rng, n_token):
        """The position of a page's first token: half of the pages start at 0, as prompts do, the others
        anywhere in the context.

        *Why.* A gated layer's queries also depend on a word's position. A model that has met examples only
        near the beginning cannot use those where a long prompt ends.
        """
        return int(rng.integers(self.size.n_context - n_token + 1)) if rng.random() < 0.5 else 0

    # -----------------------------------------------------------------------------------------
    # What cannot be read

    def document(self, source, number):
        document = self.sources[source].document(number)
        for bad in document.dropped:
            self.leave_out(bad)
        return document

    def readable(self, source, number):
        """-> the Document of this number, all of its pictures readable. Raises BadItem."""
        document = self.document(source, number)
        for _, reason in self.unreadable([piece for piece in document.pieces if isinstance(piece, Media)]):
            raise reason
        return document

    def unreadable(self, media):
        """-> [(Media, BadItem)] of those that cannot be read. The others are decoded and kept."""
        bad = []
        for one in media:
            try:
                self.pixels(one)
            except BadItem as e:
                bad.append((one, e))
        return bad

    def read(self, source, number, make):
        """make(number), a document or a text. An unreadable one is counted and replaced by another (always
        the same one). Raises BadInput if most cannot be read."""
        for attempt in range(50):
            self.tried[source] += 1
            try:
                return make(number + (attempt << 40))
            except BadItem as e:
                self.leave_out(e)
                self.failed[source] += 1
                if self.tried[source] >= 50 and 2 * self.failed[source] > self.tried[source]:
                    break
        raise BadInput(f'{source}: {self.failed[source]} of {self.tried[source]} documents cannot be read: '
                       + '; '.join(self.report.lines()))

    def leave_out(self, bad_item):
        """Count a damaged item once, although every epoch meets it again."""
        if bad_item.where not in self.left_out:
            self.left_out[bad_item.where] = bad_item.kind
            self.report.add(bad_item)

    def share_left_out(self):
        """Tell every rank what the others could not read."""
        for left_out in distributed.gather(self.left_out):
            for where, kind in left_out.items():
                self.leave_out(BadItem(kind, where))


def without(document, media):
    """The Document without these pictures; if it is made of examples, also without their texts. Raises
    BadItem if no picture is left."""
    pieces, gone = [], False
    for piece in document.pieces:
        if isinstance(piece, Media):
            gone = any(piece is one for one in media)
        if not (gone and (isinstance(piece, Media) or document.kind == 'examples')):
            pieces.append(piece)
    if not any(isinstance(piece, Media) for piece in pieces):
        raise BadItem('page without pictures', document.where)
    return Document(pieces, document.kind, document.where)
