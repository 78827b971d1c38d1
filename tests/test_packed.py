"""Packed weights: the same products, words and log-probabilities, and the model itself stays as it was."""
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from gates import open_gates
from kit.answers import generate
from kit.fast import packed
from model import Flamingo, FlamingoConfig
from rounding import EPS, near_log_p

needs_operator = pytest.mark.skipif(packed.OPERATOR is None,
                                    reason='this build of PyTorch has no oneDNN; then nothing is packed')


def tiny(**changes):
    torch.manual_seed(0)
    sizes = dict(n_vocab=50, bos=48, pad=49, lm_layer=3, lm_dim=32, lm_head=2, n_context=64, xattn_every=2,
                 xattn_head=2, xattn_head_dim=16, resampler_layer=1,
                 resampler_dim=32, resampler_head=2, resampler_head_dim=16, n_latent=4, n_image=2)
    model = Flamingo(FlamingoConfig(**sizes | changes)).eval()
    for layer in model.gated:
        open_gates(layer, 0.76, 0.46)
    with torch.no_grad():
        for block in model.lm.h:  # a fresh block is silent
            nn.init.normal_(block.mlp.c_proj.weight, std=0.2)
            nn.init.normal_(block.attn.c_proj.weight, std=0.2)
    return model


def ask(model, n_new=12, **options):
    """Two prompts of different lengths with one picture each."""
    g = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 48, (2, 9), generator=g)
    tokens[:, 1] = model.image
    index = (tokens == model.image).cumsum(1)
    media = torch.randn(2, 1, 1, 3, 48, 48, generator=g)
    return generate(model, tokens, torch.tensor([9, 7]), index, n_new, media=media,
                    generator=torch.Generator().manual_seed(2), **options)


@pytest.fixture
def small_pays(monkeypatch):
    """-> the list of products packed, (D', D, rows) each"""
    monkeypatch.setattr(packed, 'LEAST_WEIGHTS', 0)
    made, product = [], packed.product
    monkeypatch.setattr(packed, 'product', lambda w, b, n: made.append((*w.shape, n)) or product(w, b, n))
    return made


@needs_operator
@pytest.mark.parametrize('n_row', [1, 3, 8, 24])
@pytest.mark.parametrize('bias', [True, False])
def test_a_packed_product_is_the_product(n_row, bias):
    torch.manual_seed(n_row)
    layer, x = nn.Linear(40, 56, bias=bias), torch.randn(n_row, 1, 40)
    with torch.no_grad():
        y = packed.product(layer.weight, layer.bias, n_row)(x)
    w, b = layer.weight.double(), layer.bias.double() if bias else torch.zeros(())
    expected = torch.einsum('btd,ed->bte', x.double(), w) + b
    size = torch.einsum('btd,ed->bte', x.double().abs(), w.abs()) + b.abs()
    assert y.shape == (n_row, 1, 56) and y.dtype == torch.float32
    assert ((y.double() - expected).abs() <= 41 * EPS * size).all()  # a sum of 41 terms, in any order


@needs_operator
@pytest.mark.parametrize('options', [dict(beam_size=1), dict(beam_size=3), dict(temperature=1.0)])
def test_answers_are_the_same(small_pays, monkeypatch, options):
    model = tiny()
    answers = ask(model, **options)
    n = 1 if 'temperature' in options else options['beam_size']
    # Every matrix of the language model, those of the gated layers before blocks 0 and 2 (but for keys and
    # values), and the head.
    block, gated = [(96, 32), (32, 32), (128, 32), (32, 128)], [(32, 32), (32, 32), (128, 32), (32, 128)]
    assert sorted(small_pays) == sorted((*shape, 2 * n) for shape in 3 * block + 2 * gated + [(52, 32)])
    monkeypatch.setattr(packed, 'OPERATOR', None)
    plain = ask(model, **options)
    assert [words for words, _ in answers] == [words for words, _ in plain]
    assert any(words for words, _ in plain)
    assert [p for _, p in answers] == near_log_p([p for _, p in plain], n_word=12)


@needs_operator
def test_the_model_is_afterwards_what_it_was(small_pays):
    model = tiny()
    before = [(m, set(m.__dict__), set(m._modules)) for m in model.modules()]
    ask(model)
    fast = packed.packed(model, 2, 12)
    assert type(fast.lm.h[0].attn.c_attn) is packed.Packed and fast.vision is model.vision
    assert fast.lm.wte is model.lm.wte
    assert type(model.lm.h[0].attn.c_attn) is nn.Linear and 'head' not in model.__dict__
    assert [(m, set(m.__dict__), set(m._modules)) for m in model.modules()] == before
    with torch.no_grad():  # new weights are used, not those that were packed
        model.lm.h[0].mlp.c_fc.weight.mul_(-2.0)
    first = ask(model)
    model.load_state_dict(model.state_dict())
    assert ask(model) == first and first != ask(tiny())
    loss = model(torch.tensor([[1, 2]]), torch.zeros(1, 2, dtype=torch.long),
                 targets=torch.tensor([[2, 3]]))[1]
    loss.backward()
    assert model.new_rows.grad is not None


@needs_operator
def test_layers_that_somebody_changed_stay_as_they_are(small_pays, monkeypatch):
    class Adapted(nn.Linear):
        def forward(self, x):
            return super().forward(x) + x.flip(-1)

    model = tiny()
    one, two = model.lm.h[0].attn.c_proj, model.lm.h[1].attn.c_proj
    adapted = Adapted(32, 32)
    adapted.load_state_dict(one.state_dict())
    model.lm.h[0].attn.c_proj = adapted
    two.forward = lambda x: nn.Linear.forward(two, x) - 0.5 * x
    answers = ask(model)
    assert len(small_pays) == 3 * 4 + 2 * 4 + 1 - 2 and 'forward' in two.__dict__
    monkeypatch.setattr(packed, 'OPERATOR', None)
    for (words, p), (plain_words, plain_p) in zip(answers, ask(model)):
        assert words == plain_words and p == near_log_p(plain_p, n_word=12)


@needs_operator
def test_what_another_thread_asks_meanwhile_has_its_gradients(small_pays):
    model = tiny()
    packed.packed(model, 2, 12)
    with torch.inference_mode(), ThreadPoolExecutor(1) as other:
        def train():
            model(torch.tensor([[1, 2, 3]]), torch.zeros(1, 3, dtype=torch.long),
                  targets=torch.tensor([[2, 3, 4]]))[1].backward()
        other.submit(train).result()
    assert small_pays and model.new_rows.grad.abs().sum() > 0
    assert model.gated[0].feed_forward.up.weight.grad is not None


@needs_operator
def test_it_is_left_alone_where_it_does_not_pay(small_pays, monkeypatch):
    model = tiny()
    ask(model, n_new=packed.LEAST_WORDS - 1)
    with torch.autocast('cpu', torch.bfloat16):
        ask(model)
    monkeypatch.setattr(packed, 'LEAST_WEIGHTS', 10 ** 6)
    ask(model)
    monkeypatch.setattr(packed, 'LEAST_WEIGHTS', 0)
    monkeypatch.setattr(packed, 'MOST_WEIGHTS', 10 ** 3)
    ask(model)
    assert small_pays == []
