"""The masked system is what the summary describes: one bidirectional stream, words and patches masked,
answers by filling masks."""
import math

import numpy as np
import pytest
import torch

from data import Encoded
from kit.ablations.masked import MaskedAsker
from kit.features import FrozenFeatures, Pixels
from kit.masked import MaskedSystem
from kit.tasks.episodes import episodes_of
from kit.tokenizer import Tokenizer
from kit.variants import with_places
from model import FlamingoConfig
from vision import NFNet


def system(**changes):
    torch.manual_seed(0)
    sizes = dict(n_vocab=20, bos=18, pad=19, n_context=64, image_size=32) | changes
    return MaskedSystem(FlamingoConfig(**sizes), 2, 16, 2).eval()


def sequence(model):
    """^ # w w $ with four places for the patches of the picture"""
    c = model.config
    encoded = Encoded(np.array([c.bos, model.image, 2, 3, model.eoc]), np.array([0, 1, 1, 1, 1]),
                      np.ones(5, bool), ['a'])
    encoded = with_places(encoded, model.image, c.pad, model.n_patch)
    return torch.tensor(encoded.tokens)[None], torch.tensor(encoded.image_index)[None]


def test_patches_stand_row_by_row_where_their_places_are():
    model = system()
    pixels = torch.arange(3 * 32 * 32, dtype=torch.float32).view(1, 3, 32, 32)
    patches = model.patches(pixels)
    assert patches.shape == (4, 3 * 16 * 16)
    assert torch.equal(patches[1].view(3, 16, 16), pixels[0, :, :16, 16:])
    tokens, index = sequence(model)
    assert model.places(tokens, index)[0].tolist() == [False, False, True, True, True, True] + [False] * 3


def test_all_of_it_sees_all_of_it():
    """A word changes what stands before it, as no causal model would have it."""
    model = system()
    tokens, index = sequence(model)
    patches = model.patches(torch.randn(1, 3, 32, 32))
    other = tokens.clone()
    other[0, 7] = 9
    before, after = (model.stream(t, index, patches) for t in (tokens, other))
    assert (before - after).abs().sum(-1)[0].min() > 1e-6


def test_a_mask_hides_what_is_under_it():
    model = system()
    tokens, index = sequence(model)
    pixels, answer = torch.randn(1, 3, 32, 32), torch.zeros(1, 9, dtype=torch.bool)
    answer[0, 6:8] = True
    other = tokens.masked_fill(answer, 5)
    assert torch.equal(model.fill(tokens, index, pixels, answer), model.fill(other, index, pixels, answer))
    hidden = torch.tensor([True, False, False, False])
    one, two = model.patches(pixels), model.patches(pixels).clone()
    two[0] += 1
    assert torch.equal(model.stream(tokens, index, one, hidden), model.stream(tokens, index, two, hidden))


def test_the_losses_are_their_formulas():
    model = system()
    tokens, index = sequence(model)
    tokens, index = tokens.repeat(2, 1), index.repeat(2, 1)
    tokens[1, 6] = 7
    pixels, learn = torch.randn(2, 3, 32, 32), (tokens < 18)

    def coins(seed):
        torch.manual_seed(seed)
        return learn & (torch.rand(2, 9) < 0.15), torch.rand(8) < 0.15

    seed = next(seed for seed in range(100) if all(coin.any() for coin in coins(seed)))
    words, hidden = coins(seed)
    torch.manual_seed(seed)
    losses = model(tokens, index, pixels, learn)
    y = model.stream(tokens.masked_fill(words, model.mask), index, model.patches(pixels), hidden)
    by_hand = [-math.log(torch.softmax(y[b, t] @ model.word.weight[:22].T, 0)[tokens[b, t]].item())
               for b, t in words.nonzero().tolist()]
    assert losses['words'].item() == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-4)
    flat, squares = y[:, 2:6].flatten(0, 1), []
    for k in hidden.nonzero().flatten().tolist():
        squares += ((model.paint(flat[k]) - model.patches(pixels)[k]) ** 2).tolist()
    assert losses['patches'].item() == pytest.approx(sum(squares) / len(squares), rel=1e-4)
    assert losses['contrast'].item() > 0


def test_it_answers_by_filling_masks():
    tokenizer = Tokenizer.load('assets/tokenizer.tiktoken')
    model = system(n_vocab=tokenizer.n_vocab, bos=tokenizer.bos, pad=tokenizer.pad, n_context=400,
                   image_size=48)
    asker = MaskedAsker(model, tokenizer, FrozenFeatures(None, Pixels(48, 8)), NFNet('nano').normalise)
    for task, ways in (('naming', 2), ('caption', None), ('clip_caption', None)):
        episodes = episodes_of(task, 1, 2, ways)
        answers = asker.answer(episodes)
        assert [a['answer'] for a in answers] == [e.query.answer for e in episodes]
        assert all(a['logprob'] < 0 for a in answers)
        if ways:
            assert all(set(a['scores']) == set(e.choices) for a, e in zip(answers, episodes))
