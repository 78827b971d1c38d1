"""Class folders: the folder's name is the caption (the torchvision ImageFolder). What is left where there is
no list of captions."""
import filecmp
import os
from collections import Counter

from kit.files import BadInput, BadItem
from kit.sources.base import Item
from kit.sources.decode import is_picture
from kit.sources.finding import split_in, split_level


# Folders that say nothing about the pictures in them, where there are other folders above.
SAY_NOTHING = set('image images img imgs picture pictures pic pics photo photos jpegimages jpg jpeg png data '
                  'frames'.split())


def find_classes(place):
    """[(split, class folder as a tuple of names, picture), ...] of all pictures that lie in some folder
    below.

    Where all of them lie in folders called `images` and the like, those above are the classes:
    cat/images/1.jpg.
    """
    pictures = [(parts, os.path.join(place.root, *parts, name))
                for parts, name in place.files if is_picture(name)]
    if all(len(parts) > 1 and parts[-1].lower() in SAY_NOTHING for parts, _ in pictures if parts):
        pictures = [(parts[:-1], path) for parts, path in pictures]
    level = split_level({parts for parts, _ in pictures if parts})
    if level is None:
        found = [('train', parts, path) for parts, path in pictures]
    else:
        found = [(split_in(parts[level]) if len(parts) > level else None, parts, path)
                 for parts, path in pictures]
        # archive/train and archive/test: the archive is no class. train/train/cat: nor is the second train.
        kept = 0 if len({parts[:level] for parts, _ in pictures}) == 1 else level
        found = [(split, parts[:kept] + tuple(p for p in parts[level + 1:] if p != parts[level]), path)
                 for split, parts, path in found]
    classes = [(split, parts, path) for split, parts, path in found if split and parts]
    for split, parts, path in found if classes else []:
        if not split:
            place.report.add(BadItem('in no split' if parts else 'in no class folder', path))
        elif not parts and level is not None:
            place.aside.add(BadItem('unlabelled', path))  # a test split whose classes are for others to know
        elif not parts:
            place.report.add(BadItem('in no class folder', path))
    return classes


def read_classes(found, place):
    """-> list of Items, all classes named together. Raises BadInput."""
    return class_items(found, place.spec)


def class_items(pictures, spec):
    """[(split, class folder as a tuple of names, picture), ...] -> list of Items, read as the FolderSpec
    says. Raises BadInput."""
    if spec.class_depth:
        if shallow := next((file for _, parts, file in pictures if len(parts) < spec.class_depth), None):
            raise BadInput(f'--class_depth={spec.class_depth}: {shallow} lies less deep')
        pictures = same_once([(split, parts[-spec.class_depth:], file) for split, parts, file in pictures])
    held = {name.strip() for name in spec.held_groups.split(',')} - {''}
    groups = {parts[-2] for _, parts, _ in pictures if len(parts) > 1}
    if unknown := held - groups:
        there = ', '.join(sorted(groups)) or 'nothing to hold out'
        raise BadInput(f'--held_groups={spec.held_groups}: no class folders lie in {min(unknown)!r}; '
                       f'there is {there}')
    captions, items = name_classes({parts for _, parts, _ in pictures}), []
    for turn in range(4 if spec.rotate else 1):
        said = f' turned {90 * turn}' if turn else ''
        for split, parts, file in pictures:
            is_held = len(parts) > 1 and parts[-2] in held
            if not (turn and (is_held or split != 'train')):  # what is asked about stands upright
                name = captions[parts] + said
                group = ' '.join(parts[:-1]) + said
                items.append(Item(file, name, 'val' if is_held else split, name, file, group, turn))
    return items


def same_once(pictures):
    """Without the copies of a picture in its own class: an alphabet may have been packed twice."""
    seen, kept = {}, []
    for split, parts, file in pictures:
        twins = seen.setdefault((parts, os.path.basename(file)), [])
        if not any(filecmp.cmp(file, twin, shallow=False) for twin in twins):
            twins.append(file)
            kept.append((split, parts, file))
    return kept


def name_classes(classes):
    """{class folder (tuple of names): caption}. The caption is the folder's own name, with as many parents
    before it as it takes to tell it from another class: birds/crane and machines/crane."""
    depth = dict.fromkeys(classes, 1)
    while True:
        captions = {parts: ' '.join(spell(part) for part in parts[-n:]) for parts, n in depth.items()}
        count = Counter(captions.values())
        same = [parts for parts in classes if count[captions[parts]] > 1 and depth[parts] < len(parts)]
        if not same:
            return captions  # what still reads the same, hot_dog and hot-dog, is the same
        for parts in same:
            depth[parts] += 1


def spell(name):
    """A folder's name as words."""
    name = os.fsencode(name).decode('utf-8', 'replace')  # a name on disk need not be text
    return ' '.join(name.replace('_', ' ').replace('-', ' ').split()) or name
