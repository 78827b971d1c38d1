"""Pairs in .tar shards (the WebDataset convention): key.jpg beside key.txt or key.json.

A shard is run through once, to note where each picture and each caption begins; nothing else of it is kept.
From then on any pair can be read by its number, which is what base.Pairs needs to shuffle, to split over
workers and to resume.
"""
import glob
import os
import re
import tarfile

import numpy as np

from kit.files import BadInput, BadItem
from kit.sources.base import captions_in, Item, LIMIT_LINE, split_of
from kit.sources.decode import Inside, natural, only_bad_items, PICTURES, VIDEOS
from kit.sources.finding import kind_of_file, split_in


LIMIT_HEADERS = 1 << 20  # bytes of the extended headers of one member


# ---------------------------------------------------------------------------------------------
# Which files are shards

def find_tars(place):
    """[(shard, split)] of a .tar, of a pattern such as 'pairs-{000..127}.tar' or 'pairs-*.tar', and of a
    folder of them (or of split folders that hold them; or their names say the split). A shard that is not
    there goes into the report."""
    root = place.path
    if re.search(r'\.(tar\.\w+|tgz)$', root) and not place.is_folder:
        raise BadInput(f'{root}: a packed tar cannot be read at any place; unpack it first (gunzip, unzstd), '
                       'leaving the .tar')
    if place.is_folder:
        found = [(place.at(name), split_in(name)) for name in place.tops if is_tar(place.at(name))]
        return found or [(path, split_of(top)) for top in filter(split_of, place.tops)
                         for path in sorted(glob.glob(glob.escape(place.at(top)) + '/*'), key=natural)
                         if is_tar(path)]
    if os.path.isfile(root):
        return [(root, None)] if is_tar(root) else []
    if not root.lower().endswith('.tar'):
        return []
    found = []
    for name in expand_braces(root):
        here = sorted(glob.glob(name), key=natural) if glob.has_magic(name) else [name] * os.path.isfile(name)
        if not here:
            place.report.add(BadItem('missing', name))
        found += [(path, split_in(os.path.basename(path))) for path in here]
    if not found:
        raise BadInput(f'{root}: no such file')
    several = len({split for _, split in found}) > 1  # whoever names shards of one split means all of them
    return [(path, split if several else None) for path, split in found]


def is_tar(path):
    return path.lower().endswith('.tar') and os.path.isfile(path)


def expand_braces(pattern):
    """'a-{08..10}.tar' -> ['a-08.tar', 'a-09.tar', 'a-10.tar']"""
    match = re.search(r'\{(\d{1,9})\.\.(\d{1,9})\}', pattern)
    if match is None:
        return [pattern]
    first, last = match[1], match[2]
    if not 0 <= int(last) - int(first) < 1_000_000:
        raise BadInput(f'{pattern}: {match[0]} must count upwards, to a million at most')
    return [name for k in range(int(first), int(last) + 1)
            for name in expand_braces(f'{pattern[:match.start()]}{k:0{len(first)}}{pattern[match.end():]}')]


# ---------------------------------------------------------------------------------------------
# Members

class Bounded:
    """An open file as tarfile reads it: no more at once, and for one member, than headers may take. Raises
    BadItem."""

    def __init__(self, file, where):
        self.file, self.where, self.left = file, where, LIMIT_HEADERS
        self.seek, self.tell, self.end = file.seek, file.tell, os.fstat(file.fileno()).st_size

    def read(self, n):
        at = self.tell()
        self.left -= n
        if n < 0 or self.left < 0:
            kind = 'truncated' if n < 0 or at + n > self.end else 'damaged'
            raise BadItem(kind, f'{self.where} at byte {at}', 'an extended header without end')
        return self.file.read(n)


def tar_members(f, where):
    """(name, start, size) of each ordinary file in an open tar (POSIX ustar and pax, GNU). A name is '' where
    it leads out of the folder or is a link. Raises BadItem where the tar is damaged or cut short.

    tarfile reads the headers. It would keep every member that it has met, so its list is emptied as they
    pass; and it trusts the sizes that headers claim, so they are held against the file's own.
    """
    file = Bounded(f, where)
    try:
        with tarfile.open(fileobj=file, mode='r:', errors='replace') as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()
                check_size(f, member, file.end, where)
                outside = member.name.startswith('/') or '..' in member.name.split('/')
                outside = outside or member.issym() or member.islnk()
                if outside or member.isreg() and not member.issparse():
                    yield '' if outside else member.name, member.offset_data, member.size
                f.seek(tar.offset)
                file.left = LIMIT_HEADERS
            check_end(f, tar.offset, where)
    except (BadItem, OSError):
        raise
    except Exception as e:  # tarfile.ReadError, and what damaged numbers and endless chains lead to
        at = max(0, f.tell() - 512)
        raise BadItem('truncated' if file.end < 512 else 'damaged', f'{where} at byte {at}', str(e)) from e


def check_size(f, member, end, where):
    """Raises BadItem unless a member's size is a number, as tar writes them, and its body lies within the
    file."""
    f.seek(max(0, member.offset_data - 512))
    size = b'' if member.issparse() else f.read(512)[124:136]
    # int() would take a sign as well, and lead backwards. Above 8 GB the size is binary, the first bit being
    # set.
    if size and not size[0] & 128 and not re.fullmatch(rb'[ \0]*[0-7]*[ \0]*', size):
        raise BadItem('damaged', f'{where} at byte {member.offset}', 'not the header of a member')
    if member.isreg() and not 0 <= member.size <= end - member.offset_data:
        raise BadItem('truncated', f'{where}:{member.name}')


def check_end(f, at, where):
    """Raises BadItem where a tar ends in something else than zeros, or nothing: many a tool leaves the zeros
    out."""
    f.seek(at)
    rest = f.read(512)
    if rest.strip(b'\0'):
        kind = 'truncated' if len(rest) < 512 else 'damaged'
        raise BadItem(kind, f'{where} at byte {at}', 'not the header of a member')


# ---------------------------------------------------------------------------------------------
# Pairs

TEXTS = ('.txt', '.json')  # where there are both, the .txt counts
# Members may be called by what they are: s0.image.png and s0.caption.txt are the pair s0.
ROLES = {'picture': ('image', 'img', 'picture', 'photo', 'rgb', 'input', *(kind[1:] for kind in PICTURES)),
         'text': ('caption', 'captions', 'text', 'txt', 'prompt', 'description', 'json')}
ROLES['text'] += ROLES['picture']  # and there is a.jpg with a.jpg.txt


def key_of(name):
    """A member's name -> (its key, 'picture', '.txt', '.json', 'video' or ''). The key ends at the dot before
    the ending, so it may have dots of its own: 22.05.png is 22.05."""
    key, ending = os.path.splitext(name)
    part = ending.lower()
    part = 'picture' if part in PICTURES else 'video' if part in VIDEOS else part if part in TEXTS else ''
    stem, _, role = key.rpartition('.')
    if part and os.path.basename(stem) and role.lower() in ROLES['text' if part in TEXTS else 'picture']:
        key = stem
    return key, part


class TarItems:
    """Items in shards, as numbers: where each picture and each caption is. 48 bytes a pair; captions are read
    when asked for.

    rows: (N,6) int64 shard, start of the picture, its size, start of the text, its size (below zero: of a
    .json), and which of the captions in it.
    """

    def __init__(self, tars, rows):
        self.tars, self.rows = tars, rows  # tars: [(path, split)]

    def __len__(self):
        return len(self.rows)

    @property
    def splits(self):
        names = [split or 'train' for _, split in self.tars]
        return [names[t] for t in self.rows[:, 0].tolist()]

    def take(self, which):
        return TarItems(self.tars, self.rows[which])

    def __getitem__(self, k):
        tar, start, size, text_start, text_size, which = self.rows[k].tolist()
        path, split = self.tars[tar]
        picture = Inside(path, start, size)
        with only_bad_items(path):  # it may have gone, or been cut short
            texts, prompt = captions_in(Inside(path, text_start, abs(text_size)).read(), text_size < 0, path)
        text = texts[which]
        return Item(picture, text, split or 'train', '' if prompt else text, str(picture), prompt=prompt)


def read_tars(found, place):
    """[(shard, split)] -> TarItems; what is wrong goes into the report. Each shard is run through once,
    bodies skipped, and after that any pair in it can be read by its number."""
    rows = [read_tar(number, path, place.report) for number, (path, _) in enumerate(found)]
    return TarItems(found, np.concatenate(rows))


def read_tar(number, path, report):
    """Rows of TarItems of one shard. A pair is what has the same key, wherever in the shard it is."""
    pairs = {}  # key -> {part: (start, size, captions or what is wrong with them)}
    try:
        with open(path, 'rb') as f:
            for name, start, size in tar_members(f, path):
                if not name:
                    report.add(BadItem('outside the folder', f'{path} at byte {start - 512}'))
                    continue
                key, part = key_of(name)
                if os.path.basename(name).startswith('.'):  # .DS_Store and the like
                    continue
                pair = pairs.setdefault(key, {})
                if part not in ('picture', *TEXTS):
                    pair.setdefault('other', name)
                elif part in pair:  # whose caption would it be?
                    report.add(BadItem('the same name again', f'{path}:{name}'))
                else:
                    f.seek(start)
                    said = None if part == 'picture' else captions_at(f, size, part == '.json')
                    pair[part] = start, size, said
    except BadItem as e:
        report.add(e)  # what came before the damage is good
    except OSError as e:
        raise BadInput(f'{path}: {e.strerror}') from e
    return rows_of(pairs, number, path, report)


def captions_at(f, size, is_json):
    """How many captions begin here in an open shard; or what is wrong with them, in a word or two."""
    try:
        if size > LIMIT_LINE:
            raise BadItem('text too long', '')
        return len(captions_in(f.read(size), is_json, '')[0])
    except BadItem as e:
        return e.kind


def rows_of(pairs, number, path, report):
    """{key: its members} -> rows of TarItems; what is no pair goes into the report, unless it belongs to one
    (a.seg.png)."""
    rows, whole = [], set()
    for key, pair in pairs.items():
        start, size, said = pair.get('.txt') or pair.get('.json') or (0, 0, 'no text')
        if 'picture' in pair and not isinstance(said, str):
            where = number, *pair['picture'][:2], start, size if '.txt' in pair else -size
            rows += [(*where, k) for k in range(said)]
            whole.add(key)
    for key, pair in pairs.items():
        stem, _, rest = key.rpartition('.')
        if key in whole or stem in whole and re.fullmatch('[A-Za-z_]+', rest):
            continue
        said = (pair.get('.txt') or pair.get('.json') or (0, 0, 'no text'))[2]
        if 'picture' in pair or isinstance(said, str) and said != 'no text':
            kind = said if isinstance(said, str) else 'no picture'
        else:
            kind = kind_of_file(pair['other']) if 'other' in pair else 'no picture'
        report.add(BadItem(kind, f'{path}:{key}'))
    return np.array(rows, dtype=np.int64).reshape(-1, 6)
