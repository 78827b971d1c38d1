"""Reading the documents of all sources: what is damaged is counted, and replaced by something else.

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
    """

    def __init__(self, sources, model_config, report):
        self.sources, self.report = sources, report
        self.pixels = Pixels(model_config.image_size, model_config.n_frame)
        self.tried, self.failed = Counter(), Counter()  # {source: number of documents}
        self.left_out = {}                              # {where: kind} of what training could not read

    def first_readable(self, source, number, read):
        """-> read(source, number). Where that raises BadItem, it is counted, and another number is read,
        always the same one. Raises BadInput if most of the source cannot be read."""
        for attempt in range(50):
            self.tried[source] += 1
            try:
                return read(source, number + attempt * FAR)
            except BadItem as e:
                self.leave_out(e)
                self.failed[source] += 1
                if self.tried[source] >= 50 and 2 * self.failed[source] > self.tried[source]:
                    break
        raise BadInput(f'{source}: {self.failed[source]} of {self.tried[source]} documents cannot be read: '
                       + '; '.join(self.report.lines()))

    def document(self, source, number):
        """-> the Document of this number, its pictures decoded and kept in `pixels`; without those that are
        damaged. Where it cannot be read at all, another one."""
        return self.first_readable(source, number, self.whole_document)

    def whole_document(self, source, number):
        """-> the Document of this number, without damaged pictures. Raises BadItem."""
        document = self.sources[source].document(number)
        for bad in document.dropped:
            self.leave_out(bad)
        bad = self.decode(document.media)
        return self.without(document, bad) if bad else document

    def text(self, source, number):
        """-> the text of this number, or another one"""
        return self.first_readable(source, number, lambda source, number: self.sources[source].text(number))

    def decode(self, media):
        """Decode pictures into `pixels` -> [(Media, BadItem)] of those that cannot be decoded"""
        bad = []
        for one in media:
            try:
                self.pixels(one)
            except BadItem as e:
                bad.append((one, e))
        return bad

    def without(self, document, bad):
        """-> the Document without these pictures [(Media, BadItem)], which are counted. A web page loses only
        them; a page of examples, their texts, too. Raises BadItem if no picture is left, or it is no page."""
        if document.kind not in ('page', 'examples'):
            raise bad[0][1]
        for _, reason in bad:
            self.leave_out(reason)
        return without(document, [media for media, _ in bad])

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
