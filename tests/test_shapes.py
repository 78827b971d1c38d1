"""The drawn world keeps its word: pictures show what is said of them, what is held out stays out, and
every number always means the same document. Also the tokenizer that is trained on its text."""
import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from data import Media
from kit.bpe import train_bpe
from kit.tokenizer import Tokenizer
from kit.world.draw import (
    BACKGROUNDS, Clip, clip, CLIP_SPLITS, COLOURS, DIRECTIONS, draw, draw_clip, FILLS, GLYPHS, HELD_PAIRS,
    PAIRS, PLACES, Scene, scene, SHAPES, SIZES, TRAIN_PAIRS)
from kit.world.names import made_up_names
from kit.world.pages import (
    judging_page, LATER_PAGES, naming_page, other_words_page, PAGES, PLAINLY, question_page, Shapes,
    story_page)
from kit.world.tasks import (
    caption_episode, caption_is_right, clip_episode, direction_is_right, naming_episode, question_episode,
    zero_shot_classes, zero_shot_pictures)
from kit.world.words import (
    caption, clip_caption, FILLER, in_other_words, judged, long_caption, placed_caption, plural, questions,
    yes_or_no)

ROLES = ('m3w', 'align', 'ltip', 'vtp')
SINGULAR = {plural(s): s for s in SHAPES} | {s: s for s in SHAPES}
HELD = set(HELD_PAIRS)


def words_of(text):
    return [w.strip('.,:;!?') for w in text.lower().split()]


def as_written(text):
    """The same with its capitals, which are part of a name."""
    return {w.strip('.,:;!?') for w in text.split()}


def held_pairs_in(text):
    """Held-out pairs that stand in a text as a colour with its shape right after it."""
    words = words_of(text)
    return [(a, b) for a, b in zip(words, words[1:]) if (a, SINGULAR.get(b)) in HELD]


def pairs_shown(media):
    """Which pairs a picture or clip shows, by the number in its key; one that turns shows a second one at
    its end."""
    kind, split, number = media.key.split('/')
    if kind == 'shapes':
        s = scene(split, int(number))
        return {(s.colour, s.shape)}
    c = clip(split, int(number))
    return {(c.scene.colour, c.scene.shape)} | ({(c.becomes, c.scene.shape)} if c.becomes else set())


def documents(role, n, seed=0):
    rng, source = np.random.default_rng(seed), Shapes(role, seed=seed)
    # Far apart: the first few thousand pages are captions.
    return [source.document(100 * i, rng) for i in range(n)]


def texts(n, seed=0):
    rng, source = np.random.default_rng(seed), Shapes('m3w')
    return [source.text(i, rng) for i in range(n)]


def spoken(document):
    return [str(piece) for piece in document.pieces if isinstance(piece, str)]


def shown(document):
    return document.media


@pytest.fixture(scope='module')
def held_names():
    """Words of names that are held out."""
    return {word for name in made_up_names(np.random.default_rng(0), 150, 'held') for word in name.split()}


# ---------------------------------------------------------------------------------------------
# Held out


def test_held_pairs_are_two_of_every_row_and_column():
    """So every colour and every shape is known from training, and only their meeting is new."""
    assert set(TRAIN_PAIRS) | HELD == set(PAIRS) and not set(TRAIN_PAIRS) & HELD
    assert Counter(c for c, _ in HELD) == dict.fromkeys(COLOURS, 2)
    assert Counter(s for _, s in HELD) == dict.fromkeys(SHAPES, 2)


@pytest.mark.parametrize('role', ROLES)
def test_no_training_document_shows_or_names_what_is_held_out(role, held_names):
    for document in documents(role, 300):
        media = shown(document)
        assert media and all(m.key.split('/')[1] == 'train' for m in media)
        assert not any(pairs_shown(m) & HELD for m in media)
        for text in spoken(document) + [' '.join(spoken(document))]:
            assert not held_pairs_in(text) and not held_names & as_written(text)


def test_no_training_clip_turns_into_something_held_out():
    """A red star that turns blue is a blue star from then on."""
    _, n, _ = CLIP_SPLITS['train']
    turned = {(c.becomes, c.scene.shape) for c in (clip('train', i) for i in range(n)) if c.becomes}
    assert len(turned) > 20 and not turned & HELD


def test_no_training_text_names_what_is_held_out(held_names):
    """Not in captions, and not by chance in a list of random words either."""
    for text in texts(1500):
        assert not held_pairs_in(text), text
        assert not held_names & as_written(text), text


def test_plain_text_never_says_a_colour_before_a_shape():
    """Or the frozen model would know which pairs there are, and consider new ones impossible. Each alone is
    said all the time."""
    said = Counter()
    for text in texts(600):
        words = text.replace('.', ' ').replace(',', ' ').replace(':', ' ').split()
        shapes_said = set(SHAPES) | {plural(s) for s in SHAPES}
        assert not any(a in COLOURS and b in shapes_said for a, b in zip(words, words[1:])), text
        said.update(words)
    assert min(said[w] for w in (*COLOURS, *SHAPES)) > 50


def test_no_name_is_a_word_that_the_world_says(held_names):
    ordinary = {w for text in texts(100) for w in words_of(text)}
    assert {'red', 'star', 'output'} <= ordinary and not {'red', 'star', 'output'} & held_names


# ---------------------------------------------------------------------------------------------
# The same number, the same thing


@pytest.mark.parametrize('role', ROLES)
def test_documents_come_from_their_rng_alone(role):
    """A resumed run goes on counting and must meet the same pages, to the pixel and in another process
    too."""
    one, two, other = documents(role, 20), documents(role, 20), documents(role, 20, seed=1)
    key = lambda document: [p.key if isinstance(p, Media) else (type(p).__name__, p) for p in document.pieces]
    assert [key(d) for d in one] == [key(d) for d in two]
    assert [key(d) for d in one] != [key(d) for d in other]
    for a, b in zip(one[:5], two):
        for m, n in zip(shown(a)[:2], shown(b)):
            carried = pickle.loads(pickle.dumps(n))
            assert [f.tobytes() for f in m.load()] == [f.tobytes() for f in carried.load()]


def test_texts_come_from_their_rng_alone():
    assert texts(30) == texts(30) != texts(30, seed=1)


def test_a_key_names_exact_pixels():
    """What was computed from a picture is kept under its key: two pictures must never share one."""
    by_key = {}
    for role in ROLES:
        for m in (m for document in documents(role, 15) for m in shown(document)):
            frames = b''.join(f.tobytes() for f in m.load()[:2])
            assert by_key.setdefault(m.key, frames) == frames
    assert len(set(by_key.values())) == len(by_key) > 50


# ---------------------------------------------------------------------------------------------
# What is drawn


def ink(image):
    """How far each pixel is from the commonest colour, (H,W): 0 on a plain background."""
    pixels = np.asarray(image).astype(float)
    colours, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    return np.abs(pixels - colours[counts.argmax()]).sum(-1)


def centre(weights):
    """Centre of mass (x, y)."""
    y, x = np.indices(weights.shape)
    return np.array([(x * weights).sum(), (y * weights).sum()]) / weights.sum()


def test_things_are_where_the_caption_says():
    """Small or large, of any shape: left is left of right, top is above bottom, by many pixels; the middle
    is between."""
    for i, shape in enumerate(SHAPES):
        for size in SIZES:
            where = {place: centre(ink(draw(Scene('red', shape, size, place=place, seed=i))))
                     for place in PLACES}
            assert where['right'][0] - where['left'][0] > 10
            assert where['bottom'][1] - where['top'][1] > 10
            assert where['left'][0] + 3 < where['middle'][0] < where['right'][0] - 3
            assert where['top'][1] + 3 < where['middle'][1] < where['bottom'][1] - 3
            assert abs(where['left'][1] - where['right'][1]) < 8


@pytest.mark.parametrize('background', BACKGROUNDS)
def test_things_have_the_colour_that_is_said(background):
    """Light differs from picture to picture, but over a few of them the commonest colour besides the
    background is nearer to the named one than to any other."""
    for colour in COLOURS:
        seen = []
        for i, shape in enumerate(SHAPES):
            image = draw(Scene(colour, shape, background=background, seed=i))
            assert image.size == (48, 48) and image.mode == 'RGB'
            seen.append(Counter(map(tuple, np.asarray(image)[ink(image) > 60].tolist())).most_common(1)[0][0])
        assert min(COLOURS, key=lambda c: np.square(np.mean(seen, axis=0) - COLOURS[c]).sum()) == colour


def test_size_count_fill_sign_and_clutter_can_be_seen():
    """Each one changes the picture as it should: more ink, more separate things, two tones, dark strokes,
    an uneven ground."""
    def area(**attributes):
        return (ink(draw(Scene('blue', 'circle', **{'seed': 5, **attributes}))) > 60).sum()

    def pixels(*attributes, **more):
        return np.asarray(draw(Scene(*attributes, seed=5, **more))).astype(float)

    one = area(size='small')
    assert area(size='large') > 2 * one
    assert area(size='small', count=2) > 1.6 * one and area(size='small', count=3) > 2.4 * one
    tones = {fill: pixels('blue', 'circle', fill=fill)[18:30, 18:30].std((0, 1)).max() for fill in FILLS}
    assert tones['plain'] < 5 and tones['striped'] > 15 and tones['dotted'] > 15
    strokes = [(pixels('yellow', 'star', 'small', place='left', glyph=glyph).max(-1) < 90).sum()
               for glyph in ('', *GLYPHS)]
    assert strokes[0] == 0 and min(strokes[1:]) > 5
    uneven = [pixels('red', 'ring', 'small', place='left', busy=busy)[:, 30:].std((0, 1)).max()
              for busy in (False, True)]
    assert uneven[0] < 1 and uneven[1] > 3


def test_signs_differ_from_each_other():
    """'What does the sign say?' has an answer only if no two look alike."""
    pictures = [np.asarray(draw(Scene('red', 'ring', 'small', place='left', glyph=glyph, seed=5)), float)
                for glyph in GLYPHS]
    for i, a in enumerate(pictures):
        for b in pictures[:i]:
            assert np.abs(a - b).max() > 60


def movement(c):
    """From the first frame to the last: how far the thing moved (x, y). The background is what most frames
    agree on."""
    frames = np.stack([np.asarray(f).astype(float) for f in draw_clip(c)])
    difference = np.abs(frames - np.median(frames, axis=0)).sum(-1)
    difference[difference < 40] = 0
    return centre(difference[-1]) - centre(difference[0])


def test_clips_move_the_way_they_say():
    checked = Counter()
    for i in range(60):
        c = clip('held', i)
        if c.event in DIRECTIONS:
            x, y = movement(c)
            along, across = (x, y) if c.event in ('moves to the left', 'moves to the right') else (y, x)
            if c.event in ('moves to the left', 'moves up'):  # y counts downwards
                along = -along
            assert along > 10 and abs(across) < 4, (i, c.event)
            checked[c.event] += 1
    assert len(checked) == 4


def test_clips_grow_shrink_and_turn_as_they_say():
    plain = Scene('red', 'circle', 'small', seed=3)
    area = lambda frame: (ink(frame) > 60).sum()
    growing, shrinking = draw_clip(Clip(plain, 'grows')), draw_clip(Clip(plain, 'shrinks'))
    assert area(growing[-1]) > 3 * area(growing[0]) and area(shrinking[0]) > 3 * area(shrinking[-1])
    turning = draw_clip(Clip(plain, 'turns', 'blue'))
    middle = [np.asarray(f)[ink(f) > 200].mean(0) for f in (turning[0], turning[-1])]
    assert middle[0][0] > middle[0][2] + 50 and middle[1][2] > middle[1][0] + 50  # red, then blue
    assert len({f.tobytes() for f in turning}) == 2  # and nothing else changes


# ---------------------------------------------------------------------------------------------
# What is said


@pytest.mark.parametrize('split', ['train', 'held'])
def test_true_captions_are_right(split):
    """Short and long ones, as training has both."""
    for i in range(300):
        s = scene(split, i)
        assert caption_is_right(s, caption(s))
        assert caption_is_right(s, caption(s).upper().rstrip('.'))
        for said in (long_caption(s), placed_caption(s)):
            assert caption_is_right(s, said), said
        assert (s.place in placed_caption(s)) == (s.count == 1) and s.glyph in placed_caption(s)


@pytest.mark.parametrize('split', ['train', 'held'])
def test_captions_with_one_thing_wrong_are_wrong(split):
    """The caption of the same scene with another colour, shape, size, fill or number."""
    tried = Counter()
    for i in range(150):
        s = scene(split, i)
        wrong = [('colour', c) for c in COLOURS] + [('shape', h) for h in SHAPES]
        wrong += [('count', n) for n in (1, 2, 3)] + [('size', z) for z in SIZES if s.count == 1]
        # A plain thing's caption says nothing of its fill.
        wrong += [('fill', f) for f in FILLS if f != 'plain']
        for what, value in wrong:
            if getattr(s, what) != value:
                other = caption(replace(s, **{what: value}))
                assert not caption_is_right(s, other), (caption(s), what, value)
                tried[what] += 1
    assert min(tried.values()) > 20 and len(tried) == 5


def test_a_caption_must_name_colour_and_shape():
    s = Scene('red', 'ring', 'large')
    assert caption_is_right(s, 'a red ring') and caption_is_right(s, 'red ring')
    assert not any(caption_is_right(s, text)
                   for text in ('', 'a ring.', 'red', 'a large thing', 'red rings two',
                                'a red ring and a blue ring'))


def test_directions_are_judged_by_the_direction_alone():
    for i in range(60):
        c = clip('held', i)
        if c.event in DIRECTIONS:
            assert direction_is_right(c, clip_caption(c)) and direction_is_right(c, f'it {c.event}')
            for d in DIRECTIONS:
                assert direction_is_right(c, clip_caption(replace(c, event=d))) == (d == c.event)
            assert not direction_is_right(c, '') and not direction_is_right(c, ' and '.join(DIRECTIONS))


def test_questions_have_the_answer_that_is_in_the_picture():
    for i in range(100):
        s = scene('train', i)
        answers = {kind: answer for kind, _, answer in questions(s)}
        assert (answers['colour'], answers['shape']) == (s.colour, s.shape)
        assert answers['count'] == {1: 'one', 2: 'two', 3: 'three'}[s.count]
        assert answers.get('sign', '') == s.glyph
        assert ('size' in answers) == ('place' in answers) == (s.count == 1)  # several have no one place
        if s.count == 1:
            assert answers['size'] == s.size and s.place in answers['place']


def test_yes_and_no_are_true_and_equally_frequent():
    rng, said = np.random.default_rng(0), Counter()
    for i in range(400):
        s = scene('train', i)
        kind, question, answer = yes_or_no(rng, s)
        named = question.removeprefix('is it ').removeprefix('a ').removesuffix('?')
        assert named in {'colour': COLOURS, 'shape': SHAPES}[kind]
        assert answer == ('yes' if named in (s.colour, s.shape) else 'no')
        said[kind, answer] += 1
    assert len(said) == 4 and min(said.values()) > 70


@pytest.mark.parametrize('pairs', [None, TRAIN_PAIRS])
def test_what_is_judged_is_right_or_wrong_in_what_is_said(pairs):
    """Of one attribute, or of both, where a false one is wrong in one of them, and a pair of training."""
    rng, wrong = np.random.default_rng(0), Counter()
    for i in range(300):
        s = scene('train', i)
        kind, said, answer = judged(rng, s, pairs)
        words = [SINGULAR.get(w, w) for w in said.split()]
        named = {'colour': w for w in words if w in COLOURS} | {'shape': w for w in words if w in SHAPES}
        assert set(named) == ({kind} if pairs is None else {'colour', 'shape'})
        assert [k for k in named if named[k] != getattr(s, k)] == ([] if answer == 'yes' else [kind])
        assert pairs is None or (named['colour'], named['shape']) in pairs
        wrong[kind, answer] += 1
    assert len(wrong) == 4 and min(wrong.values()) > 50


@pytest.mark.parametrize('at_random', [0, 0.3, 1])
def test_other_words_leave_what_is_said_as_it_is_and_in_any_place(at_random):
    """And are none of those of a statement or of a dialogue, whose forms are never trained. No word at random
    is an answer or is asked about."""
    rng, after, known = np.random.default_rng(0), Counter(), {*COLOURS, *SHAPES, *SIZES, *FILLS, 'yes', 'no'}
    assert len(set(FILLER)) == len(FILLER) and not known & set(FILLER)
    wordings = [in_other_words(rng, 'a red ring', at_random) for _ in range(300)]
    for wording in wordings:
        before, rest = wording.split('a red ring')
        assert not known - {'yes', 'no'} & set(words_of(before + rest))
        assert rest.endswith(' Answer:') and not before.endswith('Answer:')
        assert before.count('"') == rest.count('"') <= 1
        assert not {'image', 'written', 'true'} & set(words_of(before + rest))
        after[len(rest.split())] += 1
    assert len(after) >= 7 and max(after) >= 8
    assert (len(set(wordings)) > 290) == (at_random == 1)


# ---------------------------------------------------------------------------------------------
# Training pages and few-shot episodes


@pytest.mark.parametrize('share', [1, 0.5])
def test_judgements_are_asked_plainly_before_they_are_asked_in_other_words(share):
    """The page's number counts the whole mix, of which this world may be a share."""
    source, plain = Shapes('m3w', share), {True: [], False: []}
    for page in range(3000, 2 * PLAINLY, 30):
        pieces = source.document(int(page * share), np.random.default_rng(page)).pieces
        prompts = [p for p in pieces if isinstance(p, str) and p.endswith('Answer:')]
        if prompts and len(prompts) == sum(p in (' yes', ' no') for p in pieces):  # a page of judgements
            plainly = [p.startswith('Question: is it ') and len(p.split()) <= 6 for p in prompts]
            plain[page < PLAINLY].append(all(plainly))
    assert all(plain[True]) and min(map(len, plain.values())) > 20
    later, n = dict(LATER_PAGES), len(plain[False])
    expected = later[judging_page] / (later[judging_page] + later[other_words_page])
    assert abs(np.mean(plain[False]) - expected) < 4 * (expected * (1 - expected) / n) ** 0.5


def test_shares_of_pages_add_up():
    """Judgements are asked in other words later, and then more often than not."""
    first, later = dict(PAGES), dict(LATER_PAGES)
    assert sum(first.values()) == pytest.approx(1) and sum(later.values()) == pytest.approx(1)
    assert other_words_page not in first and later[other_words_page] > later[judging_page]


def test_a_naming_page_learns_a_name_only_when_it_could_be_known():
    """Given at its first showing, learned from the second on; and one name belongs to one kind of thing."""
    rng, repeats = np.random.default_rng(0), 0
    for _ in range(100):
        pieces = naming_page(rng).pieces
        meaning = {}
        for m, prompt, answer in zip(pieces[::3], pieces[1::3], pieces[2::3]):
            (pair,), known = pairs_shown(m), answer in meaning
            assert prompt == 'Output:' and type(answer).__name__ == ('str' if known else 'Given')
            assert meaning.setdefault(str(answer), pair) == pair
            repeats += known
        assert len(set(meaning.values())) == len(meaning)
    assert repeats > 300


def test_question_pages_ask_about_clips_and_for_yes_and_no_and_leave_the_forms_of_two_tasks_out():
    rng = np.random.default_rng(0)
    pages = [question_page(rng) for _ in range(60)]
    clips = sum(m.key.startswith('shapes-clip/train/') for page in pages for m in shown(page))
    told = Counter(answer.strip() for page in pages for answer in spoken(page)[1::2])
    asked = ' '.join(text for page in pages for text in spoken(page)[::2])
    n = sum(told.values())
    assert 0.2 < clips / n < 0.3 and 0.2 < (told['yes'] + told['no']) / n < 0.3
    assert 'what does it do?' in asked and 'what does the sign say?' in asked
    assert 'Is it true?' not in asked and 'written' not in asked          # of statements
    assert all(text.count('Question:') == 1 and text.startswith('Question:')  # dialogues ask several
               for page in pages for text in spoken(page)[::2])


def test_in_a_mix_the_later_pages_come_as_early_as_without_one():
    """Captions come first until the gates are open, which takes all documents, not this world's alone: page
    k of a quarter of them is as page 4 k."""
    whole, quarter = Shapes('m3w'), Shapes('m3w', share=0.25)
    for k in range(500, 1300, 20):  # a quarter of the way through captions only, to where there are all kinds
        mine, theirs = (source.document(i, np.random.default_rng(k))
                        for source, i in ((quarter, k), (whole, 4 * k)))
        assert spoken(mine) == spoken(theirs)
        assert [m.key for m in shown(mine)] == [m.key for m in shown(theirs)]
    early, late = ([quarter.document(i, np.random.default_rng(i)) for i in range(start, start + 60)]
                   for start in (0, 1200))
    names = lambda page: (any('Question' in text for text in spoken(page))
                          or len(set(spoken(page)[1::2])) < len(shown(page)) - 2)
    assert sum(map(names, early)) < 5 and sum(map(names, late)) > 20


def test_a_story_page_speaks_of_one_side_throughout():
    """Some speak of the picture above and some of the one below, which is what p_next is for."""
    rng, sides = np.random.default_rng(0), Counter()
    for _ in range(40):
        pieces = story_page(rng).pieces
        side = 'Below' if isinstance(pieces[-1], Media) else 'Above'
        for i in (i for i, p in enumerate(pieces) if isinstance(p, Media)):
            said = pieces[i + 1] if side == 'Above' else pieces[i - 1]
            _, split, number = pieces[i].key.split('/')
            assert side in said and long_caption(scene(split, int(number))) in said
        sides[side] += 1
    assert min(sides.values()) > 8


@pytest.mark.parametrize('ways, shots', [(2, 1), (4, 2)])
def test_naming_episodes_are_fair(ways, shots, held_names):
    """Held-out things with held-out names; as many examples of each; never the query's own picture; and
    with the places asked in turn, whoever always says the name at one place of the prompt is right once in
    `ways`."""
    rng, known = np.random.default_rng(0), set(made_up_names(np.random.default_rng(1), 300))
    last = Counter()
    for i in range(64):
        episode = naming_episode(rng, 'held', ways, shots, turn=i)
        assert len(set(episode.choices)) == ways and not set(episode.choices) & known
        assert Counter(e.answer for e in episode.support) == dict.fromkeys(episode.choices, shots)
        assert episode.query.answer == episode.support[i % (ways * shots)].answer
        pair_of = {}
        for example in [*episode.support, episode.query]:
            pair, = pairs_shown(example.media)
            assert pair in HELD and pair_of.setdefault(example.answer, pair) == pair
        assert len(set(pair_of.values())) == ways
        keys = [e.media.key for e in episode.support] + [episode.query.media.key]
        assert len(set(keys)) == len(keys)
        last[episode.support[-1].answer == episode.query.answer] += 1
    # Always saying the last name is right by chance only.
    assert last[True] == 64 // ways if shots == 1 else 5 < last[True] < 30
    assert naming_episode(rng, 'train', 2, 1).choices[0] not in held_names


@pytest.mark.parametrize('make', [caption_episode, question_episode, clip_episode])
def test_other_episodes_ask_about_new_things_after_showing_known_ones(make):
    """Their own answer is right, and the answer to another query mostly is not (of four directions one in
    four is)."""
    rng = np.random.default_rng(0)
    episodes = [make(rng, 'held', 3) for _ in range(30)]
    for episode in episodes:
        assert len(episode.support) == 3 and episode.choices is None
        assert pairs_shown(episode.query.media) <= HELD
        assert not any(pairs_shown(e.media) & HELD for e in episode.support)
        assert episode.is_right(' ' + episode.query.answer)
    pairs = [(a, b) for a in episodes for b in episodes if a.query.answer != b.query.answer]
    assert sum(a.is_right(b.query.answer) for a, b in pairs) < 0.35 * len(pairs)


def test_zero_shot_pictures_show_the_class_they_are_given():
    for split in 'train', 'held':
        media, classes = zero_shot_pictures(split, 100)
        assert [{PAIRS[k]} for k in classes] == [pairs_shown(m) for m in media]
    for (colour, shape), said in zip(PAIRS, zero_shot_classes(), strict=True):
        assert all(f'{colour} {shape}' in text for text in said)


# ---------------------------------------------------------------------------------------------
# The tokenizer's training


def test_bpe_merges_as_worked_out_by_hand():
    """'abab', ' abab', ' ab': (a,b) stands there five times and goes first. Then (ab,ab) and (' ',ab) are
    both there twice; ' ' sorts before 'a'. That leaves (' ab',ab) and (ab,ab) once each, in that order; and
    then nothing to merge."""
    ranks = train_bpe(['abab abab ab'], 1000)
    assert [ranks[bytes([b])] for b in range(256)] == list(range(256))
    assert {token: rank for token, rank in ranks.items() if rank >= 256} == {b'ab': 256, b' ab': 257,
                                                                             b' abab': 258, b'abab': 259}
    assert Tokenizer(ranks).encode('abab abab ab b') == [259, 258, 257, 32, 98]
    # All once: their order decides.
    assert train_bpe(['zb ya'], 1000).items() >= {b' y': 256, b' ya': 257, b'zb': 258}.items()
    assert train_bpe(['abab abab ab'], 258) == {token: rank for token, rank in ranks.items() if rank < 258}


def test_bpe_never_merges_across_words_and_always_gives_a_tokenizer():
    """On the world's own text: no token holds a space but in front, numbers and letters do not mix, the
    text becomes shorter, and comes back whole."""
    corpus = texts(40)
    ranks = train_bpe(corpus, 400)
    tokenizer = Tokenizer(ranks)
    assert sorted(ranks.values()) == list(range(400))
    assert not any(b' ' in token[1:] for token in ranks if token.strip())
    ids = tokenizer.encode(' '.join(corpus))
    assert tokenizer.decode(ids) == ' '.join(corpus) and len(ids) < 0.6 * len(' '.join(corpus))
    assert train_bpe(reversed(corpus), 400) == ranks  # the order of the texts does not matter
