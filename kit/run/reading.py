"""Documents that can be read: what is damaged is counted, and replaced by something else.

Documents of a source have numbers, endlessly many. Which of them make a batch is said in kit/run/batches.py.
"""
from collections import Counter

from data import Document, Media
from kit.features import Pixels
from kit.files import BadInput, BadItem
from kit.run import distributed


FAR = 1 << 40  # beyond the numbers of all documents that are read


class Reader:
    """The documents of all sources, the pixels of their pictures, and a count of what cannot be read.

    sources:      {name: kit.sources.source.Source}
    model_config: FlamingoConfig
    report:       kit.sources.base.Report

    A sample is made of a document like this; unless something is damaged, the loop's body runs once:

        for document, number in reader.documents(source, number):
            sample = …                        # made of this document: a sequence of tokens, for one
            if reader.decode(sample.media):   # its pixels are in reader.pixels now
                return sample
    """

    def __init__(self, sources, model_config, report):
        self.sources, self.report = sources, report
        self.pixels = Pixels(model_config.image_size, model_config.n_frame)
        self.bad = []                                   # [(Media, BadItem)] of the last `decode`
        self.tried, self.failed = Counter(), Counter()  # {source: number of documents}
        self.left_out = {}                              # {where: kind} of what training could not read

    def documents(self, source, number):
        """Yields (Document, its number): that of this number; then, for as long as more is asked for, what is
        left of it without the pictures that could not be decoded, and then documents of other numbers."""
        for number in self.numbers(source, number):
            try:
                document = self.sources[source].document(number)
                for bad in document.dropped:
                    self.leave_out(bad)
                while True:
                    yield document, number
                    document = self.without_bad(document)
            except BadItem as e:
                self.leave_out(e)

    def text(self, source, number):
        """-> the text of this number; where it cannot be read, another"""
        for number in self.numbers(source, number):
            try:
                return self.sources[source].text(number)
            except BadItem as e:
                self.leave_out(e)

    def decode(self, media):
        """Decode pictures into `pixels` -> whether all of them could be; `bad` has the others."""
        self.bad = []
        for one in media:
            try:
                self.pixels(one)
            except BadItem as e:
                self.bad.append((one, e))
        return not self.bad

    def without_bad(self, document):
        """-> the Document without the pictures that could not be decoded: of pages those alone, of pages of
        examples their texts, too. Raises BadItem where that leaves no picture, or the Document is no page."""
        if document.kind not in ('page', 'examples'):
            raise self.bad[0][1]
        for _, reason in self.bad:
            self.leave_out(reason)
        return without(document, [media for media, _ in self.bad])

    def numbers(self, source, number):
        """Yields this number and, for as long as what has it cannot be read, others, always the same ones.
        Raises BadInput if most of the source cannot be read."""
        for attempt in range(50):
            self.tried[source] += 1
            yield number + attempt * FAR
            self.failed[source] += 1  # or nobody would have asked for another
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
    rest = Document(pieces, document.kind, document.where)
    if not rest.media:
        raise BadItem('page without pictures', document.where)
    return rest
