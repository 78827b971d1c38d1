"""A text beside each picture: 00000/3.jpg and 00000/3.txt, as img2dataset and kohya's scripts leave them.

Several lines are several captions. Where there is no .txt (or .caption), a .json with one of TEXT_KEYS.
"""
import os

from kit.files import BadItem
from kit.sources.base import captions_in, Item, LIMIT_LINE
from kit.sources.decode import is_picture
from kit.sources.finding import split_in, split_level


TEXTS = ('.txt', '.caption', '.json')  # the first that is there counts


def find_sidecars(place):
    """[(split, picture, text or None)] of all pictures, where at least one has a text beside it, 1.txt or
    1.jpg.txt; or most have one in a folder beside theirs, images/1.jpg and texts/1.txt."""
    texts = [(parts, *os.path.splitext(name)) for parts, name in place.files if name.lower().endswith(TEXTS)]
    pictures = [(parts, name) for parts, name in place.files if is_picture(name)]
    if not texts or not pictures:
        return []
    beside = {}  # (folders, stem) -> {ending: file}
    for parts, stem, ending in texts:
        file = os.path.join(place.root, *parts, stem + ending)
        beside.setdefault((parts, stem), {})[ending.lower()] = file
    stems = [(parts, os.path.splitext(name)[0]) for parts, name in pictures]
    mine = [beside.get(key) or beside.get((key[0], name)) for key, (_, name) in zip(stems, pictures)]
    if not any(mine):
        there = {key: files for stem, files in beside.items() for key in keys_elsewhere(*stem)}
        mine = [next((there[key] for key in keys_elsewhere(*stem) if key in there), None) for stem in stems]
        mine = mine if 2 * sum(map(bool, mine)) >= len(mine) else []
    some = [files for files in mine if files]
    if not any('.txt' in files or '.caption' in files or has_caption(files['.json']) for files in some[:20]):
        return []
    level, found = split_level({parts for parts, _ in pictures}), []
    for (parts, name), files in zip(pictures, mine):
        split = split_in(parts[level]) if level is not None and len(parts) > level else None
        file = next(files[ending] for ending in TEXTS if ending in files) if files else None
        found.append((split or 'train', os.path.join(place.root, *parts, name), file))
    return found


def keys_elsewhere(parts, stem):
    """What a file has in common with one of the same name that lies in another folder, at one depth."""
    return [(depth, parts[:depth] + parts[depth + 1:], stem) for depth in range(len(parts))]


def has_caption(file):
    """Whether a .json beside a picture says something about it: there are many that hold boxes, or how it was
    made."""
    try:
        return bool(read_text(file))
    except BadItem:
        return False


def read_sidecars(found, place):
    """-> list of Items, one a caption; what has none goes into the report."""
    items = []
    for split, picture, file in found:
        try:
            if file is None:
                raise BadItem('no text', picture)
            texts, prompt = read_text(file)
            label = lambda text: '' if prompt else text
            items += [Item(picture, text, split, label(text), file, prompt=prompt) for text in texts]
        except BadItem as e:
            place.report.add(e)
    return items


def read_text(file):
    """([captions], prompt) of the file beside a picture. Raises BadItem."""
    try:
        is_json = file.lower().endswith('.json')
        with open(file, 'rb') as f:
            content = f.read(LIMIT_LINE)
    except OSError as e:
        raise BadItem('unreadable', file, e.strerror) from e
    return captions_in(content, is_json, file)
