"""Few-shot pages made of pairs: what a folder of captioned pictures, or of class folders, becomes for `m3w`
and `text`."""
from dataclasses import dataclass
from functools import cached_property

from data import CAPTION_PROMPT, Document, Example
from kit.files import BadInput


COPIES = 0.3  # share of the text made of a folder that is nothing but copying
ALIKE = 0.5  # share of naming pages of things that share a syllable of the encoder's words
WRONG_WORDS = 0.25  # share of naming pages on which things are called by the captions of others
LOOKS_PROMPT = 'Looks:'  # what the encoder's own words answer, where they stand beside the captions


@dataclass(frozen=True)
class PageSpec:
    """What pages are made of pairs: the keys of train.py of the same names.

    naming: share of naming pages; page_examples: most examples on a page, half as many at least;
    page_variants: in how many variants each picture is shown, 1 being the plain one only; ways: most names on
    a naming page; mirrored: share of the labels there whose pictures are mirrored; within_group: share of
    naming pages whose labels are all of one group; captions_first: this many pages have captions only;
    ways_rise: pages over which the most names on a page rise from two.
    """
    naming: float = 0.6
    page_examples: int = 12
    page_variants: int = 4
    ways: int = 5
    mirrored: float = 0.0
    within_group: float = 0.0
    captions_first: int = 0
    ways_rise: int = 0

    def sizes(self):
        """As keyword arguments of Pages."""
        return {'n_image': (-(-self.page_examples // 2), self.page_examples), 'n_way': (2, self.ways),
                'naming': self.naming, 'mirrored': self.mirrored, 'within': self.within_group,
                'captions_first': self.captions_first, 'ways_rise': self.ways_rise}


class Pages:
    """Pages on which things recur, made of a Pairs: the diet on which in-context learning grows.

    A naming page gives each of a few labels a made-up name, for this page only, and shows each label again
    and again. Knowing the world does not help; only looking at the earlier examples does. What learns from
    such bursts of things with fleeting names learns to learn in context (Chan et al. 2022, arXiv:2205.05055).
    The other pages show distinct pictures with their own captions, or with what is asked about them and its
    answer.

    names: list of made-up names; n_image, n_way: (least, most) examples and labels on a page; naming: how
    often a page is a naming page (never, where all items are questions: those have no label); mirrored: how
    often all pictures of a label are mirrored there: it is then a thing that the encoder has never seen, and
    is matched as new things will be; within: how often the labels of a page are all of one group, which are
    harder to tell apart; captions_first: this many pages have captions only, and after as many more the
    others are as frequent as they will be; ways_rise: over this many pages the most labels on a page rise
    from the least. Raises BadInput when there are too few labels or names.
    """

    def __init__(self, pairs, names, n_image=(6, 12), naming=0.6, n_way=(2, 4), mirrored=0.0,
                 within=0.0, captions_first=0, ways_rise=0):
        self.pairs, self.names = pairs, sorted(set(names))
        self.n_image, self.n_way = n_image, n_way
        self.mirrored, self.within = mirrored, within
        self.captions_first, self.ways_rise = captions_first, ways_rise
        self.items, groups = {}, {}  # label -> indices of its items; group -> its labels
        for k, item in enumerate(pairs.items):
            if not item.prompt:
                self.items.setdefault(item.label, []).append(k)
            if item.group is not None:
                groups.setdefault(item.group, {})[item.label] = True
        self.labels = list(self.items)
        self.naming = naming = naming if self.labels else 0.0
        self.groups = [list(labels) for labels in groups.values() if len(labels) >= n_way[0]]
        if naming > 0 and len(self.labels) < n_way[0]:
            raise BadInput(f'{pairs.name}: naming pages need {n_way[0]} different labels, and there is '
                           f'{len(self.labels)}')
        if naming > 0 and len(self.names) < n_way[1]:
            raise BadInput(f'{pairs.name}: naming pages need {n_way[1]} different names, and there are '
                           f'{len(self.names)}')

    def document(self, i, rng):
        """Page number i -> Document. rng: numpy Generator."""
        come_in = min(1.0, i / self.captions_first - 1) if self.captions_first else 1.0
        if rng.random() < self.naming * come_in:
            rise = min(1.0, i / self.ways_rise) if self.ways_rise else 1.0
            most = round(self.n_way[0] + rise * (self.n_way[1] - self.n_way[0]))
            alike = self.has_words and rng.random() < ALIKE
            dealt = self.deal(rng, most, alike)
            examples = [(k, variant, CAPTION_PROMPT, name) for k, variant, name in dealt]
            new = {name for *_, name in examples}  # nobody can know a name at its first showing: it is given
            mirrored = {name for name in sorted(new) if rng.random() < self.mirrored} if self.mirrored else ()
        else:
            new, mirrored = set(), ()
            in_words = self.has_words and rng.random() < 0.5
            examples = [(k, int(rng.integers(self.pairs.n_variant)), *self.asked(k, in_words))
                        for k in self.distinct(i, rng)]
        pieces = []
        for k, variant, prompt, answer in examples:
            media = self.pairs.media(k, variant, answer in mirrored)
            pieces += Example(media, prompt, answer).pieces(learned=answer not in new)
            new.discard(answer)
        return Document(pieces, kind='examples', where=self.pairs.items[examples[0][0]].where)

    @property
    def has_words(self):
        """Whether the encoder's words stand beside the captions: not before it can see."""
        return bool(self.pairs.items[0].word)

    def kind_of(self, label):
        """The first syllable of the encoder's word for a label."""
        return self.pairs.items[self.items[label][0]].word.split()[0]

    @cached_property
    def kinds(self):
        """{first syllable: labels}: what looks alike is harder to tell apart."""
        kinds = {}
        for label in self.labels:
            kinds.setdefault(self.kind_of(label), []).append(label)
        return kinds

    def asked(self, k, in_words=False):
        """What is asked about item k, and its answer."""
        item = self.pairs.items[k]
        return (LOOKS_PROMPT, item.word) if in_words else (item.prompt or CAPTION_PROMPT, item.text)

    def text(self, i, rng):
        """The same diet without pictures, for the language model, which must learn to copy before it is
        frozen: words that come again and again; a caption, or some; and naming pages in words ("heart: dax.
        tram: wug. heart: dax.")."""
        if self.naming > 0 and rng.random() < COPIES:
            return self.copies(rng)
        if rng.random() < self.naming:
            return self.naming_text(rng)
        in_words = self.has_words and rng.random() < 0.5
        if rng.random() < 0.5:
            item = self.pairs.items[self.pairs.order(i)]
            if in_words:  # a frozen model that knows what looks so says it as soon as it sees the words
                return f'{LOOKS_PROMPT} {item.word} {CAPTION_PROMPT} {item.text}'
            return f'{item.prompt} {item.text}' if item.prompt else item.text
        return '\n'.join(' '.join(self.asked(k, in_words)) for k in self.distinct(i, rng))

    def copies(self, rng):
        """Random words in an order that comes again: nothing but copying predicts them."""
        n = min(len(self.names), int(rng.integers(3, 7)))
        words = [self.names[j] for j in rng.choice(len(self.names), size=n, replace=False)]
        shown = rng.integers(len(self.pairs), size=int(rng.integers(1, 5)))
        words += [w for k in shown for w in self.said(k, rng).split()[:4]]
        return ' '.join([words[j] for j in rng.permutation(len(words))] * int(rng.integers(2, 5)))

    def naming_text(self, rng):
        """Mostly a thing is told by a single word, next to its name: looking that up is the simplest copying
        there is, and on a page with pictures, where every token sees its picture, the look-up is as short."""
        called = lambda text: text.rstrip('.') or text
        deal = [(called(self.said(k, rng)), name) for k, _, name in self.deal(rng, self.n_way[1])]
        link, end = [(': ', '. '), (' ', '. '), (' ', '. '), (' ', ' '), (' ', '\n')][int(rng.integers(5))]
        told = {}  # name -> what the thing is called
        for thing, name in deal:
            words = thing.split()
            word = words[int(rng.integers(len(words)))] if rng.random() < 0.85 else thing
            told.setdefault(name, thing if word in told.values() else word)
        return ''.join(told[name] + link + name + end for _, name in deal).rstrip()

    def said(self, k, rng):
        """What item k is called: its caption, or the encoder's words for it."""
        item = self.pairs.items[k]
        return item.word if item.word and rng.random() < 0.5 else item.text

    def distinct(self, i, rng):
        """Different items for a page of captions; the first is item i of the epoch, so that each gets its
        turn."""
        lead = self.pairs.order(i)
        n = min(int(rng.integers(self.n_image[0], self.n_image[1] + 1)), len(self.pairs))
        others = rng.choice(len(self.pairs), size=n, replace=False).tolist()
        return [lead] + [k for k in others if k != lead][:n - 1]

    def deal(self, rng, most, alike=False):
        """The plan of a naming page of at most this many labels: [(item, variant, name), ...] in the order
        they are shown. alike: of labels that look alike to the encoder."""
        n = int(rng.integers(self.n_image[0], self.n_image[1] + 1))
        way = int(rng.integers(self.n_way[0], most + 1))
        labels = self.labels
        if self.within and self.groups and rng.random() < self.within:
            labels = self.groups[int(rng.integers(len(self.groups)))]
        if alike:
            kind = self.kinds[self.kind_of(self.labels[int(rng.integers(len(self.labels)))])]
            labels = kind if len(kind) >= self.n_way[0] else labels
        way = min(way, max(self.n_way[0], n // 2), len(labels))  # so that each can come twice
        labels = [labels[j] for j in rng.choice(len(labels), size=way, replace=False)]
        names = [self.names[j] for j in rng.choice(len(self.names), size=way, replace=False)]
        if self.has_words and rng.random() < WRONG_WORDS:
            names = self.wrong_words(rng, names)
        # Twice each, and whatever room is left goes to anyone.
        turns = (list(range(way)) * 2)[:n] + rng.integers(way, size=max(0, n - 2 * way)).tolist()
        views = [iter(self.views(label, turns.count(w), rng)) for w, label in enumerate(labels)]
        return [(*next(views[w]), names[w]) for w in rng.permutation(turns)]

    def wrong_words(self, rng, names):
        """Names, as many of them as possible replaced by words of anybody's captions: who calls a hammer
        "rabbit" on a page is to be believed there."""
        said = ' '.join(self.pairs.items[k].text for k in rng.integers(len(self.pairs), size=2 * len(names)))
        words = dict.fromkeys(word for word in said.split() if word.isalpha() and len(word) > 2)
        return [*words, *names][:len(names)]

    def views(self, label, n, rng):
        """n ways to see a label, [(item, variant), ...], no two of them the same pixels.

        They are different items as long as there are any; then the same ones come again in further variants,
        even if `n_variant` is 1: a picture repeated exactly could be recognised without seeing what is in it.
        """
        items = rng.choice(self.items[label], size=min(n, len(self.items[label])), replace=False).tolist()
        rounds = -(-n // len(items))
        variants = rng.permutation(max(rounds, self.pairs.n_variant)).tolist()
        return [(items[j % len(items)], variants[j // len(items)]) for j in range(n)]
