"""Attention on pictures: the weights are those that the layers use."""
import pytest
import torch
from PIL import Image
from prompting import loaded, out, run  # noqa: F401 (fixtures)
from tiny_model import save_tiny

from data import Document, Given
from kit.tasks import attention
from kit.tasks.asker import load
from kit.world.draw import clip_media, picture_media
from resampler import ResamplerLayer
from xattn import GatedCrossAttention


def encode_clip(asker):
    """A picture, then a clip of eight frames."""
    p = asker.prompts([
        Document([picture_media('held', 1),
                  Given('Output: dax'),
                  clip_media('held', 2),
                  Given('Output:')], 'prompt')
    ])
    return attention.look(asker.model, p['tokens'], p['image_index'], p['features'], p['frame_mask'])


@pytest.mark.parametrize('attend', ['last', 'all_previous'])
def test_each_word_looks_at_its_own_picture(tmp_path, attend):
    save_tiny(tmp_path / 'm.pt', attend=attend)
    asker, _ = load(str(tmp_path / 'm.pt'))
    document = Document([
        Given('hello '),
        picture_media('held', 1),
        Given('Output: dax'),
        picture_media('held', 2),
        Given('Output:')
    ], 'prompt')
    p = asker.prompts([document])
    weights = attention.look(asker.model, p['tokens'], p['image_index'], p['features'],
                             p['frame_mask'])  # (T,N,F,S)
    index = p['image_index'][0]
    total = weights.sum((1, 2, 3))
    assert torch.allclose(total, (index > 0).float(), atol=1e-5)
    by_image = weights.sum((2, 3))
    assert (by_image[index == 1][:, 1] == 0).all() and (by_image[index == 1][:, 0] > 0.99).all()
    second = by_image[index == 2]
    clip = encode_clip(asker)
    assert clip.shape[2] == 8 and torch.allclose(clip.sum((2, 3))[-1],
                                                 torch.tensor([0.0, 1.0]) if attend == 'last' else clip.sum(
                                                     (2, 3))[-1],
                                                 atol=1e-5)
    assert (clip[:, 0, 1:] == 0).all()  # a picture beside a clip has one frame
    assert (second[:, 0] == 0).all() if attend == 'last' else (
        (second > 0.01).all() and torch.allclose(second.sum(1), torch.ones(len(second)), atol=1e-5))


@pytest.mark.parametrize('attend', ['last', 'all_previous'])
def test_the_weights_are_those_that_the_layer_uses(attend):
    """Where all heads have the same values v, the mean of what the heads give is Σ weights · v."""
    torch.manual_seed(0)
    layer = GatedCrossAttention(16, 16, n_head=2, head_dim=8, attend=attend)
    y, visual, index = torch.randn(1, 7, 16), torch.randn(1, 3, 4, 16), torch.tensor([[0, 1, 1, 2, 3, 3, 4]])
    k, v = layer.keys_values(visual)                                                      # (B,N,H,R,d) each
    v = v[:, :, :1].expand_as(v)
    layer.to_out, layer.keys_values = torch.nn.Identity(), lambda visual: (k, v)
    out = layer.cross_attention(y, visual, index)[0].unflatten(-1, (2, 8)).mean(1)  # (T,d)
    weights = attention.text_to_visual(layer, y, visual, index)
    assert torch.allclose(torch.einsum('tnr,nrd->td', weights, v[0, :, 0]), out, atol=1e-5)


@torch.no_grad()
def test_the_resamplers_weights_are_those_it_uses():
    """Where both heads have the same values, what they give is Σ weights · v over the places, and the rest of
    the weight, up to one, lies on the latents: a mixture of their values."""
    torch.manual_seed(0)
    layer = ResamplerLayer(16, 2, 8)
    latents, features = torch.randn(3, 4, 16), torch.randn(3, 6, 16)
    value = layer.to_kv.weight[16:].view(2, 8, 16)
    value[1] = value[0]
    seen = torch.cat([layer.norm_media(features), layer.norm_latents(latents)], 1)        # (N,F*S+R,D)
    values = seen @ value[0].T                                                            # (N,F*S+R,d)
    weights = attention.visual_to_places(layer, latents, features)
    layer.to_out = torch.nn.Identity()
    full = layer.cross_attention(latents, features).unflatten(-1, (2, 8)).mean(2)         # (N,R,d)
    assert (weights > 0).all() and (weights.sum(-1) < 1).all()
    rest, own = (full - weights @ values[:, :6]) / (1 - weights.sum(-1, keepdim=True)), values[:, 6:]
    assert (rest <= own.max(1, keepdim=True).values +
            1e-4).all() and (rest >= own.min(1, keepdim=True).values - 1e-4).all()


def test_attention_from_the_command_line(monkeypatch, capsys, loaded, out):
    run(monkeypatch, capsys, loaded, f'--out_dir={out}', f'--attention={out}/look.png', '--ways=2')
    assert Image.open(out / 'look.png').width > 200


def test_each_word_of_a_prompt_and_its_answer_says_where_it_looks(loaded):
    """Of several tokens the mean, each by the token before it: that one predicts it."""
    asker, pieces = loaded[0], [Given('so'), picture_media('held', 1), Given('Output: a strange'),
                                picture_media('held', 2), Given('Output:')]
    answer = asker.tokenizer.encode(' ring')
    prompts, n_prompt = attention.with_answer(asker, Document(pieces, 'prompt'), answer)
    assert prompts['tokens'][0, n_prompt:].tolist() == answer and prompts['length'] == n_prompt + len(answer)
    looks = attention.looks(asker, prompts, n_prompt)
    assert [(x['word'], x['answer'], x['index'], x['image']) for x in looks] == [
        ('so', False, 0, None), ('Output:', False, 1, 0), ('a', False, 1, 0), ('strange', False, 1, 0),
        ('Output:', False, 2, 1), ('ring', True, 2, 1)]
    weights = attention.look(asker.model, prompts['tokens'], prompts['image_index'], prompts['features'],
                             prompts['frame_mask'])
    last, n = looks[-1]['weights'], len(answer)
    assert torch.allclose(last, weights[-1 - n:-1, 1].mean(0), atol=1e-6) and looks[0]['weights'] is None
    assert last.sum().item() == pytest.approx(1, abs=1e-4)
