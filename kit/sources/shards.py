"""Pairs in .tar shards (the WebDataset convention): key.jpg beside key.txt or key.json.

A shard is run through once, to note where each picture and each caption begins; nothing else of it is kept. From then on any
pair can be read by its number, which is what kit.sources.Pairs needs to shuffle, to split over workers and to resume.
"""
import glob
import os
import re

import numpy as np

from kit.files import BadInput, BadItem
from kit.sources.base import check_caption, Item, LIMIT_LINE, parse_json, SPLITS
from kit.sources.decode import Inside, natural, only_bad_items, PICTURES, VIDEOS


def find_tars(root, report):
    """[(shard, split)] of a .tar, of a pattern such as 'pairs-{000..127}.tar' or 'pairs-*.tar', and of a folder of them
    (or of split folders that hold them). A shard that is not there goes into the report."""
    if re.search(r'\.(tar\.\w+|tgz)$', root) and not os.path.isdir(root):
        raise BadInput(f'{root}: a packed tar cannot be read at any place; unpack it first (gunzip, unzstd), leaving the .tar')
    if os.path.isdir(root):
        found = [(path, None) for path in sorted(glob.glob(os.path.join(glob.escape(root), '*.tar')), key=natural)]
        return found or [(path, split) for split in SPLITS
                         for path in sorted(glob.glob(os.path.join(glob.escape(root), split, '*.tar')), key=natural)]
    if not root.endswith('.tar') or os.path.isfile(root):
        return [(root, None)] if os.path.isfile(root) and root.endswith('.tar') else []
    found = []
    for name in expand_braces(root):
        here = sorted(glob.glob(name), key=natural) if glob.has_magic(name) else [name] * os.path.isfile(name)
        if not here:
            report.add(BadItem('missing', name))
        found += [(path, None) for path in here]
    if not found:
        raise BadInput(f'{root}: no such file')
    return found


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


def tar_members(f, where):
    """(name, start, size) of each ordinary file in an open tar (POSIX ustar and pax, GNU). A name is b'' where it leads
    out of the folder or is a link. Raises BadItem where the tar is damaged or cut short.

    *Why not the tarfile module:* it keeps every member it has met, and trusts whatever sizes an extended header claims.
    """
    end = os.fstat(f.fileno()).st_size
    name, size, extended = None, None, 0  # what an extended header said about the next member
    while (header := f.read(512)).strip(b'\0'):
        at = f.tell() - len(header)
        if len(header) < 512:
            raise BadItem('truncated', f'{where} at byte {at}')
        # Above 8 GB the size is written in binary, the first bit being set.
        length = int.from_bytes(header[125:136], 'big') if header[124] & 128 else octal(header[124:136])
        if length is None or octal(header[148:156]) != sum(header[:148]) + 8 * 32 + sum(header[156:]):
            raise BadItem('damaged', f'{where} at byte {at}', 'not the header of a member')
        kind, start = header[156:157], at + 512
        if kind in b'123456':  # links, devices and folders have no body, whatever size they claim
            length = 0
        elif kind in b'0\0007' and size is not None:
            length = size
        if start + length > end:
            name = header[:100].split(b'\0')[0] if name is None else name
            raise BadItem('truncated', f'{where}:{name.decode("utf-8", "replace")}')
        if kind in b'xgLK':  # extended headers, for names too long for this one
            if length > 1 << 20 or extended > 8:
                raise BadItem('damaged', f'{where} at byte {at}', 'an extended header without end')
            content, extended = f.read(length), extended + 1
            if kind == b'L':
                name = content.rstrip(b'\0')
            elif kind == b'x':
                name, digits = pax_field(content, b'path', name), pax_field(content, b'size', b'')
                size = int(digits) if digits.isdigit() and len(digits) < 20 else size
        else:
            if name is None:
                name = header[:100].split(b'\0')[0]
                prefix = header[345:500].split(b'\0')[0]
                name = prefix + b'/' + name if prefix and header[257:263] == b'ustar\0' else name
            outside = name.startswith(b'/') or b'..' in name.split(b'/')
            if kind in b'0\0007':  # no folders, no devices
                yield b'' if outside else name, start, length
            elif kind in b'12':  # links could lead anywhere
                yield b'', start, 0
            name, size, extended = None, None, 0
        f.seek(start + -(-length // 512) * 512)


    # An end without the closing zeros is as good: many a tool leaves them out.


def octal(field):
    """A number as tar writes it, b'0000644\\0'; None where it is none. int() would take a sign as well, and lead backwards."""
    match = re.fullmatch(rb'[ \0]*([0-7]*)[ \0]*', field)
    return int(match[1] or b'0', 8) if match else None


def pax_field(content, key, otherwise):
    """The value of one record of a pax header, b'30 path=...\n'."""
    match = re.search(rb'(?:^|\n)\d+ ' + key + rb'=([^\n]*)\n', content)
    return match[1] if match else otherwise


class TarItems:
    """Items in shards, as numbers: where each picture and each caption is. 40 bytes a pair; captions are read when asked for.

    rows: (N,5) int64 shard, start of the picture, its size, start of the caption, its size (below zero: of a .json).
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
        tar, start, size, text_start, text_size = self.rows[k].tolist()
        path, split = self.tars[tar]
        picture = Inside(path, start, size)
        caption = Inside(path, text_start, abs(text_size))
        with only_bad_items(path):  # it may have gone, or been cut short
            text = read_caption(caption.read(), text_size < 0, path)
        return Item(picture, text, split or 'train', text, str(picture))


def read_caption(content, is_json, where):
    """The text of a .txt or .json member (bytes). Raises BadItem."""
    if is_json:
        fields = parse_json(content, where)
        return check_caption(fields.get('caption', fields.get('text')), where)
    try:
        return check_caption(content.decode('utf-8-sig'), where)
    except UnicodeDecodeError as e:
        raise BadItem('not UTF-8', where, str(e)) from e


def read_tars(tars, report):
    """[(shard, split)] -> TarItems; what is wrong goes into the report. Each shard is run through once, bodies skipped, and
    after that any pair in it can be read by its number."""
    rows = [read_tar(number, path, report) for number, (path, _) in enumerate(tars)]
    return TarItems(tars, np.concatenate(rows))


def read_tar(number, path, report):
    """Rows of TarItems of one shard. A pair is what has the same name up to the first dot, wherever in the shard it is."""
    pairs = {}  # name -> what is known of it
    try:
        with open(path, 'rb') as f:
            for name, start, size in tar_members(f, path):
                if not name:
                    report.add(BadItem('outside the folder', f'{path} at byte {start - 512}'))
                    continue
                folder, slash, file = name.rpartition(b'/')
                stem, _, kind = file.partition(b'.')
                kind = '.' + kind.decode('utf-8', 'replace').lower()
                if not stem:  # .DS_Store and the like
                    continue
                pair = pairs.setdefault(folder + slash + stem, {})
                part = 'picture' if kind in PICTURES else kind
                if part not in ('picture', '.txt', '.json'):
                    pair['video'] = pair.get('video') or kind in VIDEOS
                elif part in pair:  # whose caption would it be?
                    report.add(BadItem('the same name again', f'{path}:{name.decode("utf-8", "replace")}'))
                else:
                    f.seek(start)
                    pair[part] = start, size, None if part == 'picture' else caption_trouble(f, size, kind == '.json')
    except BadItem as e:
        report.add(e)  # what came before the damage is good
    except OSError as e:
        raise BadInput(f'{path}: {e.strerror}') from e
    rows = []
    for name, pair in pairs.items():
        caption = pair.get('.txt') or pair.get('.json')  # where there are both, the .txt
        start, size, trouble = caption or (0, 0, 'no text')
        if 'picture' in pair and trouble is None:
            rows.append((number, *pair['picture'][:2], start, size if '.txt' in pair else -size))
        else:
            kind = trouble or ('a video' if pair.get('video') else 'no picture')
            report.add(BadItem(kind, f'{path}:{name.decode("utf-8", "replace")}'))
    return np.array(rows, dtype=np.int64).reshape(-1, 5)


def caption_trouble(f, size, is_json):
    """What is wrong with the caption that begins here in an open shard: a word or two, or None."""
    try:
        if size > LIMIT_LINE:
            raise BadItem('text too long', '')
        read_caption(f.read(size), is_json, '')
    except BadItem as e:
        return e.kind
