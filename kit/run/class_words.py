"""Words for what it sees: made-up names for classes whose own names say nothing to a language model.

"Balinese character17" can only be learned by heart, and a frozen language model has no way to say what something new
looks like. So once the encoder can see, its classes are clustered in levels: first into a number of kinds, then what is
left of each class when its kind is taken away, and so on. A class is called by one syllable for each level, its cluster
there: what looks alike shares syllables, and something new can be told by the syllables of what it looks like.

The encoder itself learns from words that need not mean anything, only differ, one token for each class: in "Balinese
character17 turned 90" every word is shared with hundreds of classes that look nothing like it, and a bag of words cannot
tell them apart.
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
    """{class: name}: a word of its own for each, until the encoder can see."""
    n = 2
    while len(SYLLABLES) ** n < len(labels):
        n += 1
    words = (''.join(syllables).capitalize() for syllables in itertools.product(SYLLABLES, repeat=n))
    return dict(zip(sorted(labels), words))


def k_means(x, n, seed=0, rounds=100):
    """x (C,D) -> n centres (n,D), fewer where x has fewer different rows. Always the same for the same x and seed."""
    rng = np.random.default_rng(seed)
    centres = x[rng.integers(len(x), size=1)]
    while len(centres) < n:  # far from those there are (k-means++)
        far = distances(x, centres).min(1)                                            # (C,)
        if far.max() < 1e-12:
            break
        centres = np.concatenate([centres, x[rng.choice(len(x), size=1, p=far / far.sum())]])
    for _ in range(rounds):
        mine = distances(x, centres).argmin(1)
        moved = np.stack([x[mine == k].mean(0) if (mine == k).any() else centre for k, centre in enumerate(centres)])
        if np.array_equal(moved, centres):
            break
        centres = moved
    return centres


def distances(x, centres):
    """x (C,D), centres (n,D) -> squared distances (C,n)"""
    return ((x[:, None] - centres) ** 2).sum(-1)


def make_words(x, learn, n_level, n_centre):
    """x (C,D), what each class looks like to the encoder; learn (C,) bool: which of them make the clusters; the others only
    join them -> a word for each, of n_level syllables. Classes that look much alike have the same."""
    rest, syllables = np.asarray(x, np.float64), []
    for level in range(n_level):
        centres = k_means(rest[learn], n_centre, seed=level)
        mine = distances(rest, centres).argmin(1)
        rest = rest - centres[mine]
        syllables.append([SYLLABLES[level * n_centre + k] for k in mine])             # each level has its own
    return [' '.join(word) for word in zip(*syllables)]


def name_classes(items, vision, features, n_frame, n_level, n_centre, leave_out, most=10):
    """items: of class folders (kit.sources.Item) -> ({class: word}, {class: a PIL picture of it}), from what the encoder sees in at
    most so many pictures of each. Classes held out of training join the clusters that the others make. leave_out(BadItem) is
    told of what cannot be read."""
    classes, media, owner = {}, [], []
    for item in items:
        classes.setdefault(item.label, {})[item.path] = item  # once, though several sources may show it
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
    x = np.stack([seen[owner == k].mean(0) if (owner == k).any() else 0 * seen[0] for k in range(len(classes))])  # (C,E)
    learn = np.array([any(item.split == 'train' for item in mine.values()) for mine in classes.values()])
    shown = {k: Image.fromarray(features.pixels(m)[0].permute(1, 2, 0).numpy()) for m, k in reversed(list(zip(media, owner.tolist())))}
    return dict(zip(classes, make_words(x, learn, n_level, n_centre))), {label: shown[k] for k, label in enumerate(classes) if k in shown}


# ---------------------------------------------------------------------------------------------
# Of a run


def items_of(run):
    """The items of all class folders, those held out too."""
    found = [getattr(part, 'pairs', part) for source in run.sources.values() for part in source.parts] + [run.held_out]
    return [item for pairs in found if isinstance(pairs, Pairs) and isinstance(pairs.items, list)
            for item in pairs.items if item.group is not None]


def begin(run):
    """Until the encoder can see, every class is called by a word of its own. Raises BadInput where there is no class."""
    labels = {item.label for item in items_of(run)}
    if not labels:
        raise BadInput(f'--folders=words={run.config.words}: no source has class folders, whose names words could replace')
    call(run, first_names(labels))


def find(run, vision):
    """-> {class: word} from what the trained encoder sees, or {} where none are wanted; and words.png"""
    items = items_of(run) if run.config.words else []
    if not items:
        return {}
    features = FrozenFeatures(vision, run.reader.pixels, run.device)
    found, shown = name_classes(items, vision, features, run.config.n_frame, run.config.words, run.config.word_centres,
                                run.reader.leave_out)
    if distributed.rank() == 0:
        canvas.save(sheet(found, shown), run.path('words.png'))
    return found


def use(run):
    """From here on, captions of class folders are the words that were found at the end of the vision stage."""
    if run.config.words:
        call(run, run.load_stage('vision', 'contrastive').get('words') or {})


def call(run, names):
    """names {class: what it is called from here on}. Raises BadInput where one has no name."""
    for item in items_of(run):
        if item.label not in names:
            raise BadInput(f'{run.path("vision.pt")} has no word for {item.label!r}: '
                           'it was trained without words, or on other folders')
        item.text = names[item.label]


def sheet(words, shown, rows=12, columns=10):
    """{class: word}, {class: picture} -> one picture: in each row classes that share their first syllable, the frequent ones first."""
    sharing = {}
    for label, picture in shown.items():
        sharing.setdefault(words[label].split()[0], []).append((picture, words[label]))
    sharing = sorted(sharing.values(), key=len, reverse=True)
    columns = min(columns, len(sharing[0]))
    row = lambda found: sorted(found[:columns], key=lambda entry: entry[1]) + [(Image.new('RGB', (1, 1), 'white'), '')] * (columns - len(found))
    return sheets.contact_sheet([entry for found in sharing[:rows] for entry in row(found)], columns, cell=64,
                                  title='classes that share their first syllable')
