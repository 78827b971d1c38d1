"""The masked system: what a circulating summary of the paper describes (docs/questions.md), not Flamingo.

Visual and text tokens stand in one bidirectional stream with learned positions, trained end to end from
random weights. Of the words and of the patches of pictures 15 % are masked: words are to be named, patches to
be painted (mean squared error), and a contrastive term pulls a picture and its text together. It answers by
filling masks. No stage before it, no frozen part, no resampler, no gate: nothing of model.py is in it.

It is a row of ablate.py, to see what is left of learning from the prompt. Shapes: as in model.py; P patches
of a picture.
"""
import torch
import torch.nn.functional as F
from torch import nn

PATCH, SHARE = 16, 0.15


class MaskedSystem(nn.Module):
    """forward(tokens (B,T), image_index (B,T), pixels (pictures,3,H,W) float, learn (B,T) bool) -> {term:
    loss}

    tokens: with P free places after each tag (kit/variants.py, with_places): <PAD> that has a picture. The
    patches stand there, picture after picture, row by row.
    """

    def __init__(self, config, n_layer, dim, n_head):
        super().__init__()
        c = self.config = config
        self.image, self.eoc, self.mask = c.n_vocab, c.n_vocab + 1, c.n_vocab + 2
        self.n_patch = (c.image_size // PATCH) ** 2
        self.word = nn.Embedding(c.n_vocab + 3, dim)
        self.position = nn.Embedding(c.n_context, dim)
        nn.init.normal_(self.word.weight, std=0.02)
        nn.init.normal_(self.position.weight, std=0.02)
        self.patch = nn.Linear(3 * PATCH ** 2, dim)
        self.hidden = nn.Parameter(torch.randn(dim) * 0.02)  # stands for a patch that is masked
        layer = dict(dropout=0.0, activation='gelu', batch_first=True, norm_first=True)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, n_head, 4 * dim, **layer) for _ in range(n_layer))
        self.norm = nn.LayerNorm(dim)
        self.paint = nn.Linear(dim, 3 * PATCH ** 2)

    def patches(self, pixels):
        """(pictures,3,H,W) -> (pictures*P,3*PATCH*PATCH)"""
        return F.unfold(pixels, PATCH, stride=PATCH).transpose(1, 2).flatten(0, 1)

    def stream(self, tokens, image_index, patches, hidden=None):
        """-> (B,T,D). hidden (pictures*P,) bool: which patches are masked"""
        place = self.places(tokens, image_index)                                             # (B,T)
        seen = self.patch(patches)                                                           # (pictures*P,D)
        if hidden is not None:
            seen = torch.where(hidden[:, None], self.hidden.to(seen), seen)
        y = self.word(tokens)
        y = y.masked_scatter(place.unsqueeze(-1), seen.to(y.dtype))
        y = y + self.position.weight[:tokens.shape[1]]
        padding = (tokens == self.config.pad) & ~place
        for block in self.blocks:
            y = block(y, src_key_padding_mask=padding)
        return self.norm(y)

    def places(self, tokens, image_index):
        return (tokens == self.config.pad) & (image_index > 0)

    def say(self, y):
        return y @ self.word.weight[:self.mask].T                                            # (…,V+2)

    def forward(self, tokens, image_index, pixels, learn):
        patches = self.patches(pixels)
        coin = lambda *shape: torch.rand(*shape, device=tokens.device) < SHARE
        words, hidden = learn & coin(*tokens.shape), coin(len(patches))
        y = self.stream(tokens.masked_fill(words, self.mask), image_index, patches, hidden)
        place = self.places(tokens, image_index)
        losses = {'words': F.cross_entropy(self.say(y[words]), tokens[words], reduction='sum') /
                  words.sum().clamp(min=1)}
        painted = self.paint(y[place][hidden])
        losses['patches'] = F.mse_loss(painted, patches[hidden], reduction='sum') / max(painted.numel(), 1)
        losses['contrast'] = self.contrast(y, place, learn)
        return losses

    def contrast(self, y, place, text):
        """Each row's pictures against its text, among the rows of the batch."""
        mean = lambda which: F.normalize((y * which.unsqueeze(-1)).sum(1) /
                                         which.sum(1, keepdim=True).clamp(min=1), dim=-1)
        score = 10 * mean(place) @ mean(text).T                                              # (B,B)
        pair = torch.arange(len(score), device=score.device)
        return (F.cross_entropy(score, pair) + F.cross_entropy(score.T, pair)) / 2

    @torch.no_grad()
    def fill(self, tokens, image_index, pixels, answer):
        """tokens (B,T) with masks where answer (B,T) bool says -> log-probabilities there (B,T,V+2)"""
        y = self.stream(tokens.masked_fill(answer, self.mask), image_index, self.patches(pixels))
        return F.log_softmax(self.say(y).float(), -1)
