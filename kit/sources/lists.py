"""Lists of captions: a file whose lines name a picture and say what is said about it.

    metadata.jsonl, .csv, .tsv, .parquet      the Hugging Face ImageFolder
    captions.txt, results.csv, *.token        Flickr8k and Flickr30k, as they are downloaded
    train.csv, val.tsv, anything.jsonl, ...   any table with a column for pictures (PICTURE_KEYS) and one for
                                              texts (TEXT_KEYS), or for a question and its answer

Lists with a header and without, and separated by commas, tabs, bars or spaces, are told apart by their first
line.
"""
import csv
import importlib.util
import os
import re
from fnmatch import fnmatch
from functools import lru_cache

from kit.files import BadInput, BadItem, open_file
from kit.sources.base import (
    first_object, first_of, is_row, Item, LIMIT_LIST, LIMIT_TEXT, lower_keys, parse_json, PICTURE_KEYS,
    read_lines, said_in, split_of, SPLIT_KEYS, TEXT_KEYS)
from kit.sources.decode import is_picture
from kit.sources.finding import split_in


METADATA = ('metadata.jsonl', 'metadata.csv', 'metadata.tsv', 'metadata.parquet')
# Names that promise captions: where such a list cannot be read, that is an error.
NAMED = ('captions*.txt', 'captions*.csv', 'captions*.tsv', 'captions*.jsonl', '*.token', '*token.txt')
LEMMAS = '*lemma*'  # Flickr8k's captions once more, each word in its ground form
ENDINGS = ('.jsonl', '.csv', '.tsv', '.txt', '.token', '.parquet')


# ---------------------------------------------------------------------------------------------
# Which files are lists

def find_metadata(place):
    """[(file, split)]: the folder's own metadata.*, or else one in each of its split folders; or the one that
    is given."""
    if not place.is_folder:
        return [(place.path, None)] if os.path.basename(place.path) in METADATA else []
    found = []
    for top in ('', *filter(split_of, place.tops)):
        files = [place.at(top, name) for name in METADATA]
        found += [(file, split_of(top)) for file in files if os.path.isfile(file)][:1]
        if found and not top:
            break
    return found


def find_lists(place):
    """[(file, split)] of all other lists of captions in a folder, or in its split folders; or of the one that
    is given.

    Where some of them speak of a split (train.csv), those that do not are left aside: they would show the
    test pictures again. Raises BadInput where a list by its name cannot be read.
    """
    if not place.is_folder:
        if not os.path.isfile(place.path) or not place.path.lower().endswith(ENDINGS):
            return []
        check_list(place.path)
        return [(place.path, None)]  # whoever names one file means all of it
    found = [(place.at(name), split_in(name)) for name in place.tops if is_list(place.at(name))]
    found = found or [(place.at(split, name), split_of(split)) for split in place.tops if split_of(split)
                      for name in listed(place.at(split)) if is_list(place.at(split, name))]
    for file, split in found:
        if split is None and any(split for _, split in found):
            place.aside.add(BadItem('a list of no split beside others', file))
            place.read_too.add(os.path.realpath(file))
    return [(file, split) for file, split in found if split or not any(split for _, split in found)]


def listed(folder):
    return sorted(os.listdir(folder)) if os.path.isdir(folder) else []


def is_list(file):
    """Whether a file is a list of captions. Raises BadInput where its name says so, and its content does
    not."""
    name = os.path.basename(file).lower()
    if not name.endswith(ENDINGS) or fnmatch(name, LEMMAS) or not os.path.isfile(file):
        return False
    if any(fnmatch(name, pattern) for pattern in NAMED):
        check_list(file)
        return True
    try:
        return not name.endswith(('.txt', '.parquet')) and check_list(file) is None
    except BadInput:
        return False


def check_list(file):
    """Raises BadInput unless a picture and a text can be found in the lines of this file."""
    if file.lower().endswith('.parquet'):
        return
    if file.lower().endswith('.jsonl'):
        if not is_row(fields := first_object(file)):
            raise BadInput(f'{file}: {wanted(fields)}')
    elif layout(file) is None:
        raise BadInput(f'{file}: {wanted(first_line(file)[:100].split(","))}')


def wanted(there):
    return (f'a list of captions names a picture ({", ".join(PICTURE_KEYS[:4])}, ...) and a text '
            f'({", ".join(TEXT_KEYS[:4])}, ...); here is ' + (', '.join(map(str, there)) or 'nothing'))


def first_line(file):
    """The first line that is not empty, as text. Raises BadInput where it is no text at all."""
    with open_file(file, LIMIT_LIST) as f:
        content = f.read(1 << 16)
    if content.startswith((b'\xff\xfe', b'\xfe\xff')):
        raise BadInput(f'{file}: UTF-16; save it as UTF-8')
    lines = re.split(r'\r\n|\r|\n', content.decode('utf-8-sig', 'replace'))
    return next((line for line in lines if line.strip()), '')


# ---------------------------------------------------------------------------------------------
# Tables as text

def layout(file):
    """(what separates the cells, the columns, whether they stand in the first line) of a table; None where it
    is no list of captions. Without a header, the first cell is a picture and the last its caption."""
    line = first_line(file)
    for separator in '\t|,;':
        columns = [cell.lower() for cell in cells_of(line, separator)]
        if set(columns) & set(PICTURE_KEYS) and set(columns) & {*TEXT_KEYS, 'question'}:
            return separator, columns, True
    for separator in '\t|,; ':
        cells = cells_of(line, separator)
        if len(cells) > 1 and is_picture(os.path.basename(name_in(cells[0]))):
            numbered = len(cells) > 2 and cells[1].isdecimal()
            return separator, ['file_name', 'number', 'text'] if numbered else ['file_name', 'text'], False
    return None


def cells_of(line, separator):
    """A line -> its cells, without spaces around them. Quotes mean something between commas only, or around a
    whole cell."""
    if separator in ',;':
        try:
            row = next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])
        except csv.Error:
            row = line.split(separator)
    else:
        row = line.strip().split(None, 1) if separator == ' ' else line.strip('\r\n').split(separator)
        row = [re.sub(r'^"(.*)"$', lambda found: found[1].replace('""', '"'), cell.strip()) for cell in row]
    return [cell.strip() for cell in row]


def name_in(cell):
    """The file name in a cell: Flickr's lists number the captions of a picture, 1000.jpg#0."""
    return re.sub(r'#\d+$', '', cell.strip())


def table_rows(file, report):
    """(where, {column: cell}) of each row of a table of text; what is no row goes into the report."""
    if layout(file) is None:
        raise BadInput(f'{file}: {wanted(first_line(file)[:100].split(","))}')
    separator, columns, header = layout(file)
    number, last = 0, ''

    def lines():
        nonlocal number, last
        for number, _, line in read_lines(file, report):
            try:
                yield (last := line.decode('utf-8-sig'))
            except UnicodeDecodeError as e:
                report.add(BadItem('not UTF-8', f'{file}:{number}', str(e)))

    # strict: a quote that is never closed would swallow the lines after it
    rows = (csv.reader(lines(), delimiter=separator, strict=True, skipinitialspace=True) if separator in ',;'
            else (cells_of(line, separator) for line in lines()))
    while True:
        try:
            cells = next_row(rows)
        except StopIteration:
            return
        except csv.Error as e:
            report.add(BadItem('not a row', f'{file}:{number}', str(e)))
            continue
        if header:
            header = False
        elif cells:
            if columns[-1] in TEXT_KEYS and len(cells) > len(columns):  # commas in a caption without quotes
                cells[len(columns) - 1:] = last.split(separator, len(columns) - 1)[-1:]
            yield f'{file}:{number}', dict(zip(columns, (cell.strip() or None for cell in cells)))


def next_row(rows):
    """next(rows) of a csv.reader, whose cells may be as long as a caption. The limit (Python's own is an
    eighth of that) is the whole process's, and so is set back."""
    before = csv.field_size_limit(LIMIT_TEXT)
    try:
        return next(rows)
    finally:
        csv.field_size_limit(before)


def json_rows(file, report):
    """(where, fields) of each line of a .jsonl; what is no object goes into the report."""
    for number, _, line in read_lines(file, report):
        where = f'{file}:{number}'
        try:
            yield where, parse_json(line, where)
        except BadItem as e:
            report.add(e)


def parquet_rows(file, report):
    """(where, {column: value}) of each row of a .parquet, read in parts. Raises BadInput where nobody can
    read one."""
    if importlib.util.find_spec('pyarrow') is None:
        raise BadInput(f'{file}: reading .parquet takes pyarrow (pip install pyarrow); or save it as .csv')
    from pyarrow import ArrowException, parquet
    number = 0
    try:
        with parquet.ParquetFile(file) as table:
            for batch in table.iter_batches():
                for fields in batch.to_pylist():
                    number += 1
                    yield f'{file}:{number}', lower_keys(fields)
    except (ArrowException, OSError) as e:
        raise BadInput(f'{file}: not a .parquet: {e}') from e


# ---------------------------------------------------------------------------------------------
# Rows -> Items

def read_lists(found, place):
    """[(file, split)] -> list of Items; bad rows go into the report."""
    items, splits = [], splits_named(place)
    for file, split in found:
        ending = os.path.splitext(file)[1].lower()
        rows = {'.jsonl': json_rows, '.parquet': parquet_rows}.get(ending, table_rows)(file, place.report)
        items += rows_to_items(rows, split, place.finder(os.path.dirname(file) or '.'), place.report)
    for item in items if splits else []:
        item.split = splits.get(os.path.basename(item.path), item.split)
    if len(found) > 1:  # captions.txt and captions.csv may say the same
        items = list({(item.path, item.text, item.prompt): item for item in items}.values())
    return items


def splits_named(place):
    """{file name: split}: Flickr8k's Flickr_8k.testImages.txt and the like, a picture's name a line and
    nothing else."""
    splits = {}
    for file in map(place.at, place.tops):
        split = split_in(os.path.basename(file))
        named = split and file.lower().endswith('.txt') and os.path.isfile(file)
        if named and is_picture(first_line(file).strip()):
            place.read_too.add(os.path.realpath(file))
            for _, _, line in read_lines(file, place.report):
                splits[os.path.basename(line.decode('utf-8', 'replace').strip())] = split
    return splits


def rows_to_items(rows, split, find, report):
    """(where, fields) of each row -> list of Items, one a caption. find: a Finder."""
    items = []
    for where, fields in rows:
        try:
            items += row_items(lower_keys(fields), split, find, where)
        except BadItem as e:
            report.add(BadItem(e.kind, where, e.message))
    return items


def row_items(fields, split, find, where):
    """One row -> its Items, one a caption. Raises BadItem."""
    texts, prompt = said_in(fields, where)
    name = first_of(fields, PICTURE_KEYS)
    name = name.get('path') if isinstance(name, dict) else name  # a Hugging Face Image
    if not isinstance(name, str) or not name.strip():
        raise BadItem('no file_name', where)
    mine = first_of(fields, SPLIT_KEYS) or split
    if not isinstance(mine, str | None):
        raise BadItem('bad split', where, repr(mine))
    path = find(name_in(name))
    if not mine:  # one list of pictures in train/ and in test/
        mine = split_above(os.path.dirname(path.removeprefix(find.roots[0])))
    mine = split_of(mine) or mine
    category = fields.get('category')
    category = category.strip() if isinstance(category, str) else ''
    return [Item(path, text, mine, '' if prompt else text, where, prompt=prompt, category=category)
            for text in texts]


@lru_cache(1 << 12)
def split_above(folders):
    """'/train/cat' -> 'train', the first of these folders that is called by a split; 'train' if none is"""
    return next(filter(split_of, folders.split(os.sep)), 'train')
