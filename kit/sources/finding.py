"""Finding things on disk: the files below a folder, the picture that a list names, the split that a name
stands for.

    Finder(root)('val2014\\\\Bär.JPG')  ──►  the real path of the file that is meant
    split_of('Training')              ──►  'train'
    Place(path).files                 ──►  every file below it, walked once
"""
import itertools
import os
import re
import unicodedata
from dataclasses import dataclass, field
from functools import cached_property

from kit.files import BadItem
from kit.sources.base import FolderSpec, locate, Report, split_of
from kit.sources.decode import is_picture, is_video, natural


LIMIT_FILES = 5_000_000  # looked through below a folder for a name that is not there as it stands


# ---------------------------------------------------------------------------------------------
# Splits

def split_in(name):
    """'captions_train2017.json', 'seg_test', 'trainImages' -> the split that the name speaks of; None if of
    none, or of two."""
    words = re.findall('[a-z]+', re.sub('([a-z])([A-Z])', r'\1 \2', name).lower())
    found = {split for word in words if (split := split_of(word))}
    return found.pop() if len(found) == 1 else None


def split_level(folders):
    """At which depth folders are splits: a number, or None. folders: a set of tuples of names, of all that
    hold something.

    Those of one depth are splits if all their names speak of one (seg_train, test_images), and of more than
    one; at the top, also if all are called by one. There, others may stand beside them, but then it takes
    two, and they must hold folders: a 'train' between 'bus' and 'tram' is a train. Names that only speak of a
    split are believed beside others where the same class folder lies in both.
    """
    for depth in range(max(map(len, folders), default=0)):
        names = {parts[depth] for parts in folders if len(parts) > depth}
        called = {name for name in names if split_of(name)}
        different = len(set(map(split_of, called)))
        if depth == 0 and called == names:
            return depth
        spoken = set(map(split_in, names))
        if len(spoken) > 1 and None not in spoken and all(len(parts) > depth for parts in folders):
            return depth
        holding = {parts[0] for parts in folders if len(parts) > 1}
        if depth == 0 and different > 1 and called & holding:
            return depth
        leaves = {}  # split -> names of class folders in it
        for parts in folders:
            if len(parts) > depth + 1 and split_in(parts[depth]):
                leaves.setdefault(split_in(parts[depth]), set()).add(parts[-1])
        if len(leaves) > 1 and set.intersection(*leaves.values()):
            return depth
    return None


# ---------------------------------------------------------------------------------------------
# Pictures by name

def fold(name):
    """The same for every way to write a name: either slash, composed letters (NFC) or not (NFD), capitals or
    not."""
    return unicodedata.normalize('NFC', name.replace('\\', '/').casefold())


def given_path(path):
    """A path as a person types it: ~ is home, and letters may be composed on one side only."""
    path = os.path.expanduser(os.fspath(path))
    for spelling in (path, *(unicodedata.normalize(form, path) for form in ('NFC', 'NFD'))):
        if os.path.exists(spelling):
            return spelling
    return path


class Finder:
    """Finds the pictures that a list names, in a folder or several: find(name) -> real path.

    A name is taken as it stands. Where there is no such file, it is looked for as `fold` spells it, and with
    folders on one side only: the list says val2014/1.jpg and the disk has 1.jpg, or the other way round. Two
    that disagree, big/1.jpg and small/1.jpg, are two pictures; so are cat/1.jpg and 1.jpg where there is a
    folder cat. Raises BadItem.
    """

    def __init__(self, *roots):
        self.roots = [os.path.realpath(given_path(root)) for root in roots]
        self.known = {}  # {folder: its real path}

    def __call__(self, name):
        if re.match(r'(https?|ftp|s3|gs)://', name):
            raise BadItem('remote picture', name[:200])
        troubles = []
        for root in self.roots:
            try:
                return locate(root, name, self.known)
            except BadItem as e:
                troubles.append(e)
        if troubles[0].kind == 'missing':
            *above, last = [part for part in fold(name).split('/') if part not in ('', '.')] or ['']
            if '..' in above:
                raise BadItem('outside the folder', os.path.join(self.roots[0], name))
            for root, (names, _, tops) in zip(self.roots, self.index):
                fitting = [(min(len(folders), len(above)), path) for folders, path in names.get(last, ())
                           if agree(folders, above) and (len(above) <= len(folders) or above[0] not in tops)]
                if fitting:
                    most = max(fitting)[0]
                    return self.only(root, [path for shared, path in fitting if shared == most], name)
        raise troubles[0]

    def by_id(self, number, hint=''):
        """The picture of an id: a file name, its stem, or the number it ends in
        (COCO_val2014_000000000042.jpg is 42). hint: what stands in the path of the right one, where there are
        several."""
        number = str(number)
        if is_picture(number):
            return self(number)
        for root, (_, stems, _) in zip(self.roots, self.index):
            stem = fold(number)
            found = stems.get(stem) or (stems.get(int(stem)) if stem.isdecimal() and len(stem) < 20 else None)
            if found:
                return self.only(root, [path for path in found if hint in path] or found, number)
        raise BadItem('missing', os.path.join(self.roots[0], number), f'no picture of image {number}')

    def anywhere(self, name):
        """Like find(name), for a list that the user wrote: the picture may lie outside the folder, and ~ is
        home. What is not found is the path as it stands, and will be missed when it is opened."""
        path = os.path.abspath(os.path.join(self.roots[0], os.path.expanduser(name)))
        if os.path.exists(path):
            return path
        try:
            return self(name)
        except BadItem:
            return path

    def only(self, root, paths, name):
        """The one of these paths; of several, the one that is spelt just so."""
        just_so = [path for path in paths if os.path.basename(path) == os.path.basename(name)]
        paths = just_so or paths
        if len(paths) > 1:
            raise BadItem('several of this name', os.path.join(root, name), ', '.join(paths[:3]))
        return locate(root, paths[0])

    @cached_property
    def index(self):
        """For each root: {file name: [(its folders, path)]}, {stem, or number it ends in: [paths]}, the
        folders at the top. All as `fold` spells them; made when a name is first not found as it stands."""
        made = []
        for root in self.roots:
            names, stems, tops = {}, {}, set()
            for parts, name in itertools.islice(walk(root), LIMIT_FILES):
                path, folders = os.path.join(*parts, name), [fold(part) for part in parts]
                names.setdefault(fold(name), []).append((folders, path))
                tops.update(folders[:1])
                if is_picture(name):
                    stem = fold(os.path.splitext(name)[0])
                    stems.setdefault(stem, []).append(path)
                    if digits := re.search(r'\d{1,18}$', stem):
                        stems.setdefault(int(digits[0]), []).append(path)
            made.append((names, stems, tops))
        return made


def agree(one, other):
    """Whether two lists of folders end alike, as far as the shorter one goes."""
    return all(a == b for a, b in zip(reversed(one), reversed(other)))


# ---------------------------------------------------------------------------------------------
# Files below a folder

LEFT_BY_SYSTEMS = ('thumbs.db', 'desktop.ini', '__macosx')  # which, like hidden files, are nobody's data


def walk(root, troubles=None):
    """(folders as a tuple of names, file name) of every file below a folder. Links to folders are not
    followed; links that lead out of it, or nowhere, and folders that cannot be read go into the list
    `troubles` as BadItems."""
    folders, troubles = [()], [] if troubles is None else troubles
    while folders:
        parts = folders.pop()
        try:
            entries = sorted(os.scandir(os.path.join(root, *parts)), key=lambda entry: natural(entry.name))
        except OSError as e:
            troubles.append(BadItem('unreadable', os.path.join(root, *parts), e.strerror))
            continue
        for entry in entries:
            if entry.name.startswith('.') or entry.name.lower() in LEFT_BY_SYSTEMS:
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(parts + (entry.name,))
                continue
            try:
                if entry.is_symlink() or not entry.is_file():
                    locate(os.path.realpath(root), os.path.join(*parts, entry.name))
                if entry.is_file():  # a folder that a link leads to is read where it lies
                    yield parts, entry.name
            except BadItem as e:
                troubles.append(e)


def kind_of_file(name):
    """What a file is called in a Report that nobody can read: 'a .heic file'."""
    if is_video(name):
        return 'a video'
    ending = os.path.splitext(name)[1].lower()
    return f'a {ending} file' if re.fullmatch(r'\.\w{1,12}', ending) else 'a file without extension'


@dataclass
class Place:
    """One path of a source, and how it is to be read. report: what is bad in it; aside: what is left out on
    purpose."""
    path: str
    spec: FolderSpec = field(default_factory=FolderSpec)
    n_frame: int = 8
    seed: int = 0
    role: str = ''       # which of the four sources, or the text, it is opened for
    share: float = 1.0   # of that source
    report: Report = field(default_factory=Report)
    aside: Report = field(default_factory=Report)
    read_too: set = field(default_factory=set)  # real paths of files that were read besides what was found

    @cached_property
    def is_folder(self):
        return os.path.isdir(self.path)

    @cached_property
    def root(self):
        """The real path of the folder: itself, or the one that the file lies in."""
        return os.path.realpath(self.path if self.is_folder else os.path.dirname(self.path))

    @cached_property
    def files(self):
        """[(folders below root as a tuple of names, file name)]; `troubles` is filled on the way."""
        return list(walk(self.root, self.troubles)) if self.is_folder else []

    @cached_property
    def troubles(self):
        return []

    @cached_property
    def tops(self):
        """The names in the folder itself, sorted; none of a file, or where it cannot be read."""
        try:
            return sorted((name for name in os.listdir(self.path) if not name.startswith('.')), key=natural)
        except OSError:
            return []

    def at(self, *parts):
        return os.path.join(self.path, *parts)

    def finder(self, *folders):
        """Of the pictures that a list names: in spec.images, where that is said, else in these folders."""
        return Finder(*([self.spec.images] if self.spec.images else folders))
