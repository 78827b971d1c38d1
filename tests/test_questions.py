"""The paper's open questions: each gives rows, and what it asks is what it says it asks."""
import numpy as np
import pytest
import torch

from data import CAPTION_PROMPT, Document, Given
from kit.answers import log_likelihoods
from kit.tasks import questions
from kit.tasks.asker import load
from kit.tasks.occlusion import blanked, occlusion, squares, widened, words
from kit.world.draw import HELD_PAIRS
from kit.world.tasks import kind_episode, KINDS, one_scene, scene_media
from tiny_model import save_tiny


@pytest.fixture(scope='module')
def loaded(tmp_path_factory):
    path = tmp_path_factory.mktemp('questions') / 'flamingo.pt'
    save_tiny(path, n_context=512)
    return load(str(path))


@pytest.mark.parametrize('name', sorted(set(questions.QUESTIONS) - {'plateau', 'contrastive_or_generative'}))
def test_every_question_gives_rows(loaded, name):
    rows = questions.QUESTIONS[name](*loaded, 2)
    assert rows and all(r['low'] <= r['value'] <= r['high'] for r in rows)


@pytest.mark.parametrize('kind', KINDS)
def test_names_for_a_kind_name_nothing_else(kind):
    """Two pictures of one name agree in the attribute; pairs of colour and shape were never trained."""
    episode = kind_episode(np.random.default_rng(0), kind, 2, 8, turn=1)
    assert len(episode.support) == 16 and episode.query.answer == episode.choices[1]
    text = [e.media.key for e in episode.support]
    value = lambda key: key.split(f'{kind}=')[1].split(',')[0].rstrip(')')
    named = {e.answer: {value(key) for key, other in zip(text, episode.support) if other.answer == e.answer}
             for e in episode.support}
    assert len(named) == 2 and all(len(values) == 1 for values in named.values())
    assert len({*map(str, named.values())}) == 2
    assert len({key.split('colour=')[1].split(',')[0] for key in text}) > 2


def test_scenes_are_of_pairs_that_were_held_out():
    scenes = [one_scene(np.random.default_rng(i)) for i in range(20)]
    assert all((s.colour, s.shape) in HELD_PAIRS for s in scenes)


def test_exchanged_words_count_as_the_prompt_teaches_them():
    episode = questions.word_episode(np.random.default_rng(0), 'colour', ('red', 'blue'), 2, True, 0)
    for e in (*episode.support, episode.query):
        shown = e.media.key.split("colour='")[1].split("'")[0]
        assert {shown, e.answer} == {'red', 'blue'}


def test_a_square_is_blanked_with_the_median_colour():
    pixels = torch.arange(3 * 48 * 48).view(1, 3, 48, 48).remainder(251).to(torch.uint8)
    places, n = squares(48)
    assert n == 11 and len(places) == 121 and places[0] == (0, 0, 9, 9) and places[-1] == (39, 39, 48, 48)
    out = blanked(pixels)
    assert out.shape == (121, 1, 3, 48, 48)
    for picture, (top, left, bottom, right) in zip(out, places):
        changed = (picture != pixels)[0].any(0)
        assert not changed[:top].any() and not changed[bottom:].any()
        assert not changed[:, :left].any() and not changed[:, right:].any()
        for c in range(3):
            median = sorted(pixels[0, c].flatten().tolist())[48 * 48 // 2 - 1]
            assert (picture[0, c, top:bottom, left:right] == median).all()


def test_occlusion_is_the_difference_of_two_plain_passes(loaded):
    asker, _ = loaded
    scene = one_scene(np.random.default_rng(1))
    media = scene_media(scene)
    prompts = asker.prompts([Document([media, Given(CAPTION_PROMPT), Given(' a red ring.')], 'prompt')])
    lost = occlusion(asker, [media], prompts)[0]
    assert lost.shape == (prompts['tokens'].shape[1] - 1, 121)
    pixels = asker.features.pixels(media)
    changed = asker.features.encode(blanked(pixels)[7])
    see = lambda features: asker.model.resample(features, prompts['frame_mask'])
    text = prompts['tokens'], prompts['image_index']
    of = lambda features: log_likelihoods(asker.model, *text, see(features))
    expected = of(prompts['features']) - of(changed)
    assert torch.allclose(lost[:, 7], expected[0], atol=1e-4)
    assert (lost[0] == 0).all()  # <BOS> and the tag come before anything is seen


def test_a_map_is_widened_to_the_pixels_it_speaks_of():
    weights = torch.zeros(121)
    weights[-1] = 1.0
    wide = widened(weights, 48)
    assert wide.shape == (48, 48) and wide[47, 47] == 1 and wide[:39].max() == 0
    small = torch.tensor([0.0, 0, 0, 0, 0, 1, 0, 0, 0])
    y, x = np.unravel_index(questions.stretched(small, 48).argmax().item(), (48, 48))
    assert 16 <= y < 32 and x >= 32


def test_every_word_of_a_prompt_and_its_answer_has_its_map(loaded):
    asker, _ = loaded
    document = Document([scene_media(one_scene(np.random.default_rng(1))), Given('Output: a red'),
                         scene_media(one_scene(np.random.default_rng(2))), Given('Output:')], 'prompt')
    steps, title = words(asker, document, asker.tokenizer.encode(' ring'))
    assert [s['word'] for s in steps] == [
        'prompt, picture 1: Output:', 'prompt, picture 1: a', 'prompt, picture 1: red',
        'prompt, picture 2: Output:', 'answer, picture 2: ring']
    assert all(s['weights'].shape == (48, 48) and (s['weights'] >= 0).all() for s in steps)
    assert all(s['weights'].max() <= s['top'] for s in steps) and '0.76' in title
    assert words(asker, Document([Given('hello')], 'prompt'), [1]) == ([], 'no picture')
