"""The vision encoder: an NFNet, and the contrastive training that teaches it to see (§2.1, appendix B.1).

Flamingo sees by a Normalizer-Free ResNet (Brock et al. 2021, arXiv 2102.06171), trained to tell which caption
belongs to which picture. After that it is frozen, and only its last grid is read.

*Why no batch norm.* In a contrastive loss the pictures of a batch compete for each caption. Batch statistics
would let the encoder cheat: a picture's features would also tell what else is in the batch. An NFNet keeps
the variance of its signal in check by design: every weight is standardised, every activation rescaled, every
residual branch of F0–F6 shrunk by a known amount.

Shapes: B pictures or texts, S places, D width, T tokens, E width of the common embedding.
"""
import math

import torch
import torch.nn.functional as F
from torch import nn

TEXT_CONTEXT = 64  # tokens of a caption that the text tower reads

# GELU leaves a third of the variance of a Gaussian signal. γ = 1/std of what is left, so that γ·gelu(x) has
# unit variance again when x does. (Tested against a numerical integral.)
GAMMA = 1.7015043497085571


def scaled_gelu(x):
    """γ·gelu(x)"""
    return GAMMA * F.gelu(x)


class WSConv2d(nn.Conv2d):
    """Convolution with the weights Ŵ = g · (W − μ) / √(fan_in · var), μ and var per output.

    With an input of unit variance, the output has unit variance too, whatever the raw weights are. (A mean
    that all inputs share is cancelled: Ŵ sums to zero.)
    Pads like TensorFlow's SAME, as the published weights expect: where the padding is odd, the extra pixel
    goes to the right and bottom.
    """

    def __init__(self, n_in, n_out, kernel=1, stride=1, groups=1):
        super().__init__(n_in, n_out, kernel, stride, groups=groups)
        nn.init.normal_(self.weight, std=self.weight[0].numel() ** -0.5)
        nn.init.zeros_(self.bias)
        self.gain = nn.Parameter(torch.ones(n_out))
        self.eps = 1e-4

    def standardised_weight(self):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        power = weight.square().sum((1, 2, 3), keepdim=True)  # fan_in · var
        return weight * (self.gain.view(-1, 1, 1, 1) * torch.rsqrt(power.clamp(min=self.eps)))

    def forward(self, x):
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride == 1:
            padding = kernel // 2
        else:
            padding = 0
            high, wide = (max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[-2:])
            x = F.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2))
        return F.conv2d(x, self.standardised_weight(), self.bias, stride, padding, 1, self.groups)


class SqueezeExcite(nn.Module):
    """x (B,D,height,width) -> by how much each channel is multiplied, (B,D,1,1): 2·σ(MLP(mean over space)).

    The factor 2 keeps the average at one.
    """

    def __init__(self, dim):
        super().__init__()
        self.fc1 = nn.Linear(dim, dim // 2)
        self.fc2 = nn.Linear(dim // 2, dim)

    def forward(self, x):
        mean = x.sum((2, 3)) / x[0, 0].numel()     # (x.mean would store a gradient as large as x)
        scale = self.fc2(F.relu(self.fc1(mean)))   # (B,D)
        return 2 * torch.sigmoid(scale)[:, :, None, None]


class NFBlock(nn.Module):
    """x ← shortcut + α · skip_gain · SE(h) · h, h = branch(β · γ·gelu(x)), a bottleneck with two grouped 3x3.
    The shortcut is x, or, where width or stride change, conv(pool(β · γ·gelu(x))).

    β = 1/(expected std of x), computed as if every earlier skip_gain were 1: it gives this branch an input of
    about unit variance, although the stream's grows. skip_gain begins at 0: branches fade in (SkipInit).
    (α and β are the NFNet paper's, not those of the gates and of the contrastive loss.)
    """

    def __init__(self, n_in, n_out, group, stride, alpha, beta, drop_path):
        super().__init__()
        self.alpha, self.beta, self.drop_path = alpha, beta, drop_path
        mid = max(n_out // 2 // group * group, group)  # half the width, in whole groups
        self.conv1 = WSConv2d(n_in, mid)
        self.conv2 = WSConv2d(mid, mid, 3, stride, groups=mid // group)
        self.conv2b = WSConv2d(mid, mid, 3, groups=mid // group)
        self.conv3 = WSConv2d(mid, n_out)
        self.squeeze_excite = SqueezeExcite(n_out)
        pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
        self.pool = pool if stride == 2 else nn.Identity()
        self.shortcut = WSConv2d(n_in, n_out) if stride == 2 or n_in != n_out else None
        self.skip_gain = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        h = self.beta * scaled_gelu(x)
        shortcut = x if self.shortcut is None else self.shortcut(self.pool(h))
        h = self.conv1(h)
        h = self.conv2(scaled_gelu(h))
        h = self.conv2b(scaled_gelu(h))
        h = self.conv3(scaled_gelu(h))                                # (B,D,height,width)
        scale = self.alpha * self.skip_gain * self.squeeze_excite(h)  # (B,D,1,1)
        if self.training and self.drop_path > 0:  # stochastic depth, per picture, without 1/keep rescaling
            scale = scale * (torch.rand(len(h), 1, 1, 1, device=h.device) >= self.drop_path).to(h.dtype)
        return shortcut + scale * h


def expected_variances(depths, alpha):
    """-> for each block, the variance of x when it enters, as if every earlier skip_gain were 1. A branch
    adds α² to it. The first block of a stage has a shortcut of β · γ·gelu(x), whose variance is 1 again.
    nano, three stages of one block: 1, 2, 2. F0's third stage, six blocks: 1.08, 1.04, 1.08, … 1.20."""
    variances, variance = [], 1.0
    for depth in depths:
        for i in range(depth):
            variances.append(variance)
            variance = (1.0 if i == 0 else variance) + alpha ** 2
    return variances


class NFNet(nn.Module):
    """NFNet F0–F6 and `nano` (see SIZES). Raises ValueError for another size.

    forward(images (B,3,height,width) float, normalised) -> (B,S,D): the grid that Flamingo reads, after the
        last 1x1 convolution and its activation. S = ⌈height/32⌉·⌈width/32⌉ (nano: by 16, 9 places at 48
        pixels), D = `dim` = twice the last stage's width.
    embed(images) -> (B,E): mean over space, projected, of length 1, to compare with text; needs dim_embed = E
    normalise(pixels uint8) -> float: what `forward` expects
    """

    def __init__(self, size='nano', dim_embed=0, per_image=False):
        super().__init__()
        if size not in SIZES:
            raise ValueError(f'no NFNet {size!r}: there are {", ".join(SIZES)}')
        self.size, spec = size, SIZES[size]
        n_in, self.stem, self.blocks = 3, nn.ModuleList(), nn.ModuleList()
        for n_out, stride in zip(spec['stem'], (2, 1, 1, 2)):
            self.stem.append(WSConv2d(n_in, n_out, 3, stride))
            n_in = n_out
        variances = iter(expected_variances(spec['depths'], spec['alpha']))
        for stage, (width, depth) in enumerate(zip(spec['widths'], spec['depths'])):
            for i in range(depth):
                beta = 1 / math.sqrt(next(variances))
                stride = 2 if i == 0 and stage > 0 else 1
                drop_path = spec['drop_path'] * len(self.blocks) / sum(spec['depths'])
                block = NFBlock(n_in, width, spec['group'], stride, spec['alpha'], beta, drop_path)
                self.blocks.append(block)
                n_in = width
        self.dim = 2 * n_in
        self.final_conv = WSConv2d(n_in, self.dim)
        self.projection = nn.Linear(self.dim, dim_embed, bias=False) if dim_embed else None
        self.per_image = per_image
        for name, value in (('mean', [0.485, 0.456, 0.406]), ('std', [0.229, 0.224, 0.225])):  # of ImageNet
            self.register_buffer(name, torch.tensor(value).view(3, 1, 1), persistent=False)

    def normalise(self, pixels):
        """(…,3,height,width) uint8, 0–255 -> float of about zero mean and unit variance: ImageNet's, as
        published weights want, or with `per_image` each picture's own, which takes lighting and brightness
        away."""
        if self.per_image:
            pixels = pixels.to(self.mean.dtype)
            std, mean = torch.std_mean(pixels, dim=(-3, -2, -1), keepdim=True, correction=0)
            return (pixels - mean) / std.clamp(min=1)  # a picture of one colour is all zero
        return (pixels.to(self.mean.dtype) / 255 - self.mean) / self.std

    def grid(self, images):
        """(B,3,height,width) -> (B,D,h,w)"""
        x = images.contiguous(memory_format=torch.channels_last)  # the faster layout on CPU and tensor cores
        for i, conv in enumerate(self.stem):
            x = conv(scaled_gelu(x)) if i else conv(x)  # none after the last: a block brings its own
        for block in self.blocks:
            x = block(x)
        return scaled_gelu(self.final_conv(x))

    def forward(self, images):
        return self.grid(images).flatten(2).transpose(1, 2)  # (B,S,D)

    def embed(self, images):
        pooled = self.forward(images).mean(1)                # (B,D)
        return F.normalize(self.projection(pooled), dim=-1)  # (B,E)


def mean_of_words(x, mask):
    """x (B,T,D), mask (B,T) bool, True where real -> (B,D), the mean over real words; 0 if there are none"""
    real = mask.unsqueeze(-1).to(x.dtype)
    return (x * real).sum(1) / real.sum(1).clamp(min=1)


class TextTower(nn.Module):
    """A small bidirectional transformer (nano: of no layers), mean-pooled (the paper: a BERT of some size).

    embed(tokens (B,T) int, mask (B,T) bool, True where real) -> (B,E) of length 1.

    Without layers it is little more than a mean of words: "a red star" is half red, half star. To match that,
    the encoder must find red and star separately, and so a new pair of the two is mostly familiar to it. Most
    captions that people write need the layers.
    """

    def __init__(self, n_vocab, dim, n_layer, n_head, n_context, dim_embed):
        super().__init__()
        self.n_context = n_context
        self.token = nn.Embedding(n_vocab, dim)
        self.position = nn.Embedding(n_context, dim)
        nn.init.normal_(self.token.weight, std=0.02)
        nn.init.normal_(self.position.weight, std=0.02)
        layer = dict(dropout=0.0, activation='gelu', batch_first=True, norm_first=True)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, n_head, 4 * dim, **layer) for _ in range(n_layer))
        self.norm = nn.LayerNorm(dim)
        self.projection = nn.Linear(dim, dim_embed, bias=False)

    def embed(self, tokens, mask):
        x = self.token(tokens) + self.position.weight[:tokens.shape[1]]  # (B,T,D)
        padding = ~mask & mask.any(1, keepdim=True)                      # a row of padding alone would be NaN
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=padding)                  # (B,T,D), every word sees every other
        pooled = mean_of_words(self.norm(x), mask)                       # (B,D)
        return F.normalize(self.projection(pooled), dim=-1)


class Contrastive(nn.Module):
    """Vision encoder and text tower, side by side, and β, which scales their similarities (appendix B.1).

    forward(images (M,3,height,width) normalised, texts) -> (v (M,E), [l (B,E) of each of the texts], β).
    texts: of each source (tokens (B,T) int, mask (B,T) bool): a picture may have one in each, or none.
    """

    def __init__(self, vision, text):
        super().__init__()
        self.vision, self.text = vision, text
        # β, the inverse temperature, learned as its logarithm. Where it starts is not stated: as in CLIP.
        self.log_beta = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, images, texts):
        with torch.no_grad():  # in place: a clamp in the graph has no gradient beyond its limit
            self.log_beta.clamp_(max=math.log(100))
        # In float32 whatever the encoders run in: β is large, bfloat16 would round what tells pairs apart.
        v = self.vision.embed(images).to(self.log_beta)      # (M,E)
        captions = [self.text.embed(tokens, mask).to(self.log_beta) for tokens, mask in texts]
        return v, captions, self.log_beta.exp()


def contrastive_loss(v, l, beta, label_smoothing=0.1):
    """v (B,E) pictures, l (B,E) texts, unit length, row i of one belonging to row i of the other -> scalar.

    L_txt2im = −1/B Σ_i log [ exp(β l_iᵀv_i) / Σ_j exp(β l_iᵀv_j) ]   and L_im2txt with the roles swapped.
    The paper minimises their *sum* (CLIP halves it). β is the inverse temperature. Labels are smoothed, as in
    the paper: a tenth of each goes to all pairs alike, for in a large batch a caption may well fit another
    picture.
    """
    pair = torch.arange(len(v), device=v.device)
    with torch.autocast(v.device.type, enabled=False):
        txt2im = F.cross_entropy(beta * l @ v.T, pair, label_smoothing=label_smoothing)
        im2txt = F.cross_entropy(beta * v @ l.T, pair, label_smoothing=label_smoothing)
    return txt2im + im2txt


# ---------------------------------------------------------------------------------------------
# Sizes


# What each size is made of. F0–F6 share everything but depth; `nano` is small enough for two cores.
#   stem: channels of the four 3x3 convolutions in front    widths, depths: of the four (three) stages
#   group: channels per group of the 3x3 convolutions       drop_path: stochastic depth of the last block
#   alpha: how much of each residual branch is added, so that the variance of the stream grows by α² a block.
#          0.2 keeps the 84 blocks of F6 tame. nano has only three, and α = 1.
_SMALL = dict(depths=(1, 1, 1), alpha=1.0, drop_path=0.0)
_PAPER = dict(stem=(16, 32, 64, 128), widths=(256, 512, 1536, 1536), group=128, alpha=0.2, drop_path=0.25)
SIZES = {
    'nano': dict(_SMALL, stem=(8, 8, 8, 32), widths=(64, 128, 192), group=16),
    **{f'F{f}': dict(_PAPER, depths=tuple(n * (f + 1) for n in (1, 2, 6, 3))) for f in range(7)},
    'half': dict(_SMALL, stem=(4, 4, 4, 16), widths=(32, 64, 96), group=8),
    'quarter': dict(_SMALL, stem=(2, 2, 2, 8), widths=(16, 32, 48), group=4),
    'nano16': dict(_SMALL, stem=(8, 16, 16, 32), widths=(64, 128, 192), group=16),  # a wider stem
}
