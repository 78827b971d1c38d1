"""The encoders of the contrastive stage from their sizes, and what their texts look like; another text tower,
for --sizes=plain_words=True"""
import torch
import torch.nn.functional as F
from torch import nn

from vision import Contrastive, mean_of_words, NFNet, TEXT_CONTEXT, TextTower


def new_contrastive(config):
    """FlamingoConfig -> Contrastive with random weights."""
    c = config
    text = (PlainWords(c.n_vocab, c.text_dim, TEXT_CONTEXT, c.dim_embed) if c.plain_words else
            TextTower(c.n_vocab, c.text_dim, c.text_layer, c.text_head, TEXT_CONTEXT, c.dim_embed))
    return Contrastive(NFNet(c.vision, c.dim_embed, per_image=c.per_image), text)


def pad_texts(ids, longest):
    """lists of token ids -> tokens (N,T), mask (N,T); what is longer than `longest` is cut"""
    ids = [i[:longest] or [0] for i in ids]
    t = max(map(len, ids))
    tokens = torch.tensor([i + [0] * (t - len(i)) for i in ids])
    return tokens, torch.arange(t) < torch.tensor([[len(i)] for i in ids])


class PlainWords(nn.Module):
    """A text tower for few captions, written by people: most words come once, many ("of", "with") say little.

    embed(tokens (B,T) int, mask (B,T) bool) -> (B,E) of length 1. Words have no order, and are normalised
    after the mean, not each before it: one that says little, or is new, can be short and hardly count.
    """
    layers = ()

    def __init__(self, n_vocab, dim, n_context, dim_embed):
        super().__init__()
        self.n_context = n_context
        self.token = nn.Embedding(n_vocab, dim)
        nn.init.normal_(self.token.weight, std=0.02)
        self.norm = nn.LayerNorm(dim)
        self.projection = nn.Linear(dim, dim_embed, bias=False)

    def embed(self, tokens, mask):
        pooled = self.norm(mean_of_words(self.token(tokens), mask))      # (B,D)
        return F.normalize(self.projection(pooled), dim=-1)
