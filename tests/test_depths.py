"""Where what it sees is lost: what is read at each place, and what is asked of it."""
import pytest
import torch
from asking import ask, asker, config, loaded, out, pictures_in  # noqa: F401 (fixtures)

from data import CAPTION_PROMPT, Example
from kit.episode import Episode
from kit.files import BadInput
from kit.tasks.depths import at_depths, last_of_each, run_depths


def test_each_place_is_read_where_it_is(asker, tmp_path):
    pictures_in(tmp_path, ['a.png', 'b.png', 'c.png'])
    media = [asker.media(str(tmp_path / name)) for name in ('a.png', 'b.png', 'c.png')]
    seen, model = at_depths(asker, media, batch_size=2), asker.model
    assert list(seen) == ['encoder', 'resampler', *(f'gated layer {k + 1}' for k in range(len(model.gated)))]
    for k, one in enumerate(media):  # each by itself, and the first gated layer by hand
        prompts = asker.prompts([Episode([], Example(one, CAPTION_PROMPT, '')).document()])
        visual = model.resample(prompts['features'], prompts['frame_mask'])
        y = model.lm.add_positions(model.embed(prompts['tokens']), None)
        y = model.gated[0](y, visual, prompts['image_index'])
        assert torch.allclose(seen['encoder'][k], prompts['features'][0].mean(0), atol=1e-4)
        assert torch.allclose(seen['resampler'][k], visual.flatten(), atol=1e-4)
        assert torch.allclose(seen['gated layer 1'][k], y[0, -1], atol=1e-4)


def test_what_is_asked(asker, tmp_path):
    names = [f'{thing}/{k}.png' for thing in ('cat', 'dog', 'bus') for k in range(2)]
    pictures_in(tmp_path, names)
    rows = ask(run_depths, asker, f'--depths={tmp_path}', '--ways=2', '--n=4', '--seeds=1')
    places = 2 + len(asker.model.gated)
    assert len(rows) == 2 * places
    assert {r['n'] for r in rows if r['metric'].startswith('probe')} == {3}  # the second of each
    assert all(0 <= r['value'] <= 1 for r in rows)


def test_the_last_picture_of_each_thing_that_has_another():
    assert last_of_each(['cat', 'dog', 'cat', 'bus', 'dog']) == [2, 4]


def test_things_with_one_picture_are_refused(asker, tmp_path):
    pictures_in(tmp_path, ['cat/0.png', 'dog/0.png'])
    with pytest.raises(BadInput, match='two pictures'):
        ask(run_depths, asker, f'--depths={tmp_path}')
