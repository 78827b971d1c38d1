"""Made-up words for classes whose own names say nothing to a language model.

"Balinese character17" can only be learned by heart, and a frozen language model has no way to say what
something new looks like. So once the encoder can see, the classes are clustered in levels: first into kinds,
then by what is left of each class when its kind's mean is subtracted, and so on. A class is named by one
syllable for each level, that of its cluster. Things that look alike share syllables, so a new thing can be
described by the syllables of what it resembles.

The encoder itself learns from words that mean nothing and only differ, one token for each class. In "Balinese
character17 turned 90" every word is shared with hundreds of classes that look nothing like it, and a bag of
words cannot separate them.
"""
import itertools

import numpy as np
from PIL import Image

from kit.features import FrozenFeatures
from kit.files import BadInput, BadItem
from kit.run import distributed
from kit.show import canvas, sheets
from kit.sources.base import Pairs
from kit.sources.decode import media_of
from kit.tasks.encoders import embed_media
from kit.world.words import SYLLABLES


def first_names(labels):
    """-> {class: name}: a different word for each, used until the encoder can see."""
    n = 2
    while len(SYLLABLES) ** n < len(labels):
        n += 1
    words = (''.join(syllables).capitalize() for syllables in itertools.product(SYLLABLES, repeat=n))
    return dict(zip(sorted(labels), words))


def k_means(x, n, seed=0, rounds=100):
    """x (C,D) -> n centres (n,D), fewer if x has fewer different rows. The same x and seed give the same."""
    rng = np.random.default_rng(seed)
    centres = x[rng.integers(len(x), size=1)]
    while len(centres) < n:  # k-means++: the next one is likely far from those chosen so far
        far = distances(x, centres).min(1)                                            # (C,)
        if far.max() < 1e-12:
            break
        centres = np.concatenate([centres, x[rng.choice(len(x), size=1, p=far / far.sum())]])
    for _ in range(rounds):
        mine = distances(x, centres).argmin(1)
        moved = np.stack([x[mine == k].mean(0) if (mine == k).any() else centre
                          for k, centre in enumerate(centres)])
        if np.array_equal(moved, centres):
            break
        centres = moved
    return centres


def distances(x, centres):
    """x (C,D), centres (n,D) -> squared distances (C,n)"""
    return ((x[:, None] - centres) ** 2).sum(-1)


def make_words(x, learn, n_level, n_centre):
    """-> a word of n_level syllables for each class. Classes that look nearly the same share a word.

    x (C,D): what each class looks like to the encoder. learn (C,) bool: the classes that make the clusters;
    the others only join them.
    """
    rest, syllables = np.asarray(x, np.float64), []
    for level in range(n_level):
        centres = k_means(rest[learn], n_centre, seed=level)
        mine = distances(rest, centres).argmin(1)
        rest = rest - centres[mine]
        syllables.append([SYLLABLES[level * n_centre + k] for k in mine])             # each level has its own
    return [' '.join(word) for word in zip(*syllables)]


def name_classes(items, vision, features, n_frame, n_level, n_centre, leave_out, most=10):
    """-> ({class: word}, {class: a PIL picture of it}), from the encoder's view of `most` pictures of each.

    items: kit.sources.base.Item of class folders. Classes held out of training join the clusters that the
    others make. leave_out(BadItem) is called for each unreadable picture.
    """
    classes, media, owner = {}, [], []
    for item in items:
        classes.setdefault(item.label, {})[item.path] = item  # once, even if several sources show it
    for number, mine in enumerate(classes.values()):
        for item in list(mine.values())[:most]:
            try:
                one = media_of(item.path, n_frame, turn=item.turn)
                features.pixels(one)
            except BadItem as e:
                leave_out(e)
                continue
            media.append(one)
            owner.append(number)
    seen, owner = embed_media(vision, features, media).cpu().numpy(), np.array(owner)
    x = np.stack([seen[owner == k].mean(0) if (owner == k).any() else 0 * seen[0]
                  for k in range(len(classes))])                                      # (C,E)
    learn = np.array([any(item.split == 'train' for item in mine.values()) for mine in classes.values()])
    words = dict(zip(classes, make_words(x, learn, n_level, n_centre)))
    pictures = {}  # of each class, the first that was read
    for one, number in zip(media, owner.tolist()):
        if number not in pictures:
            pictures[number] = Image.fromarray(features.pixels(one)[0].permute(1, 2, 0).numpy())
    return words, {label: pictures[k] for k, label in enumerate(classes) if k in pictures}


# ---------------------------------------------------------------------------------------------
# Of a run


def items_of(run):
    """The items of all class folders, including those held out. With keep_captions, of all that have a
    caption."""
    found = [getattr(part, 'pairs', part) for source in run.sources.values() for part in source.parts]
    return [item for pairs in [*found, run.held_out]
            if isinstance(pairs, Pairs) and isinstance(pairs.items, list)
            for item in pairs.items
            if (item.label if run.config.keep_captions else item.group is not None)]


def begin(run):
    """Until the encoder can see, every class is named by a different word, unless captions are kept. Raises
    BadInput if there is no class."""
    labels = {item.label for item in items_of(run)}
    if not labels:
        raise BadInput(f'--folders=words={run.config.words}: no source has class folders, '
                       'whose names words could replace')
    if not run.config.keep_captions:
        call(run, first_names(labels))


def find(run, vision):
    """-> {class: word} from what the trained encoder sees, {} if none are wanted. Writes words.png."""
    items = items_of(run) if run.config.words else []
    if not items:
        return {}
    features = FrozenFeatures(vision, run.reader.pixels, run.device)
    found, shown = name_classes(items, vision, features, run.config.n_frame, run.config.words,
                                run.config.word_centres, run.reader.leave_out)
    if distributed.rank() == 0:
        canvas.save(sheet(found, shown), run.path('words.png'))
    return found


def use(run):
    """From here on, captions of class folders are the words found at the end of the vision stage, or have
    them beside them."""
    if run.config.words:
        call(run, run.load_stage('vision', 'contrastive').get('words') or {})


def call(run, names):
    """names: {class: its name from here on}. Raises BadInput if a class has none."""
    for item in items_of(run):
        if item.label not in names:
            raise BadInput(f'{run.path("vision.pt")} has no word for {item.label!r}: '
                           'it was trained without words, or on other folders')
        setattr(item, 'word' if run.config.keep_captions else 'text', names[item.label])


def sheet(words, shown, rows=12, columns=10):
    """{class: word}, {class: picture} -> one picture. Each row shows classes that share their first syllable,
    the most frequent syllables first."""
    sharing = {}
    for label, picture in shown.items():
        sharing.setdefault(words[label].split()[0], []).append((picture, words[label]))
    sharing = sorted(sharing.values(), key=len, reverse=True)
    columns = min(columns, len(sharing[0]))
    nothing = (Image.new('RGB', (1, 1), 'white'), '')
    entries = []
    for found in sharing[:rows]:
        entries += sorted(found[:columns], key=lambda entry: entry[1]) + [nothing] * (columns - len(found))
    return sheets.contact_sheet(entries, columns, cell=64, title='classes that share their first syllable')
