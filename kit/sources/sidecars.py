"""A text beside each picture: 00000/3.jpg and 00000/3.txt, as img2dataset and kohya's scripts leave them.

Several lines are several captions. Where there is no .txt (or .caption), a .json with one of TEXT_KEYS.
"""
import itertools
import os

from kit.files import BadItem
from kit.sources.base import captions_in, Item, LIMIT_LINE
from kit.sources.decode import is_picture
from kit.sources.finding import split_in, split_level


TEXTS = ('.txt', '.caption', '.json')  # the first that is there counts


def find_sidecars(place):
    """[(split, picture, text or None)] of all pictures, where at least one has a text beside it."""
    files = {}
    for parts, name in place.files:
        stem, ending = os.path.splitext(name)
        if ending.lower() in TEXTS:
            files.setdefault((parts, stem), {})[ending.lower()] = os.path.join(place.root, *parts, name)
    pictures = [(parts, name, files.get((parts, os.path.splitext(name)[0]), {}))
                for parts, name in place.files if is_picture(name)]
    beside = [texts for _, _, texts in pictures if texts]
    if not any('.txt' in texts or '.caption' in texts for texts in beside) and not any(
            has_caption(texts['.json']) for texts in itertools.islice(beside, 20)):
        return []
    level, found = split_level({parts for parts, _, _ in pictures}), []
    for parts, name, texts in pictures:
        split = split_in(parts[level]) if level is not None and len(parts) > level else None
        text = next((texts[kind] for kind in TEXTS if kind in texts), None)
        found.append((split or 'train', os.path.join(place.root, *parts, name), text))
    return found


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
