"""The vision encoder: an NFNet, and the contrastive training that teaches it to see (§3.1.1, appendix B.1).

Flamingo's eyes are a Normalizer-Free ResNet (Brock et al. 2021, arXiv 2102.06171), trained from nothing by
telling which caption belongs to which picture. After that it is frozen for good, and only its last grid of
features is read.

*Why no batch norm.* A contrastive loss compares the pictures of a batch with each other, and batch statistics
leak between them. An NFNet instead keeps the variance of its signal in check by design: every weight is
standardised, every activation rescaled, every residual branch shrunk by a known amount.

Shapes: N pictures, S spatial positions, D width, T tokens, E width of the common embedding.
"""
import math

import torch
import torch.nn.functional as F
from torch import nn

from kit.files import BadInput
from kit.run import distributed
from kit.weights import checkpoint

# What each size is made of. F0–F6 share everything but depth; `nano` is small enough for two cores.
#   stem: channels of the four 3x3 convolutions in front    widths, depths: of the four (three) stages
#   group: channels per group of the 3x3 convolutions       train, test: resolution in pixels it was made for
#   alpha: how much of each residual branch is added, so that the variance of the stream grows by α² a block. 0.2
#          keeps 84 blocks (F6) tame; nano has three, whose branches hold most of what it can see, so it takes them whole.
SIZES = {'nano': dict(stem=(8, 16, 16, 32), widths=(64, 128, 192), depths=(1, 1, 1), group=16, alpha=1.0, train=48, test=48, dropout=0.0, drop_path=0.0)}
for i, (train, test, dropout) in enumerate([(192, 256, .2), (224, 320, .3), (256, 352, .4), (320, 416, .4), (384, 512, .5), (416, 544, .5), (448, 576, .5)]):
    SIZES[f'F{i}'] = dict(stem=(16, 32, 64, 128), widths=(256, 512, 1536, 1536), depths=tuple(d * (i + 1) for d in (1, 2, 6, 3)),
                          group=128, alpha=0.2, train=train, test=test, dropout=dropout, drop_path=0.25)

TEXT_CONTEXT = 64  # tokens of a caption that the text tower reads

# ReLU throws away half of a Gaussian signal, GELU a little less. γ = 1/std of what is left, so that
# γ·act(x) has unit variance again when x does. (Tested against a numerical integral.)
GAMMA = 1.7015043497085571


class WSConv2d(nn.Conv2d):
    """Convolution with scaled weight standardisation:  Ŵ = g · (W − μ) / √(fan_in · var),  μ and var per output channel.

    With a unit-variance input of mean zero, the output has unit variance too, whatever the raw weights are.
    Pads like TensorFlow's SAME, as the published weights expect: where the padding is odd, the extra pixel
    goes to the right and bottom.

    scale: of its input, by which the weights are multiplied instead: a factor γ or β costs nothing here, while a pass over
    the activations would cost nearly as much as the activation function itself.
    """

    def __init__(self, n_in, n_out, kernel=1, stride=1, groups=1, scale=1.0):
        super().__init__(n_in, n_out, kernel, stride, groups=groups)
        nn.init.normal_(self.weight, std=self.weight[0].numel() ** -0.5)
        nn.init.zeros_(self.bias)
        self.gain = nn.Parameter(torch.ones(n_out))
        self.eps, self.scale = 1e-4, scale

    def standardised_weight(self):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        power = weight.square().sum((1, 2, 3), keepdim=True)  # fan_in · var, four times as fast as by var_mean
        return weight * (self.scale * self.gain.view(-1, 1, 1, 1) * torch.rsqrt(power.clamp(min=self.eps)))

    def forward(self, x):
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride == 1:
            padding = kernel // 2
        else:
            padding = 0
            total = [max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[-2:]]
            x = F.pad(x, (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2))
        return F.conv2d(x, self.standardised_weight(), self.bias, stride, padding, 1, self.groups)


class SqueezeExcite(nn.Module):
    """x (N,D,H,W) -> by how much each channel is to be multiplied, (N,D,1,1): 2·σ(MLP(mean over space)). The factor 2 keeps the
    average at one."""

    def __init__(self, dim):
        super().__init__()
        self.fc1 = nn.Linear(dim, dim // 2)
        self.fc2 = nn.Linear(dim // 2, dim)

    def forward(self, x):
        mean = x.sum((2, 3)) / x[0, 0].numel()              # the gradient of a sum is a view, that of a mean a tensor like x
        scale = self.fc2(F.relu(self.fc1(mean)))            # (N,D)
        return 2 * torch.sigmoid(scale)[:, :, None, None]


class NFBlock(nn.Module):
    """x ← shortcut(x) + α · skip_gain · branch(β · γ·gelu(x)):  bottleneck with grouped 3x3 pair and squeeze-excite.

    β = 1/(expected std of x) makes the branch see unit variance although the stream's variance grows block by block.
    """

    def __init__(self, n_in, n_out, group, stride, alpha, beta, drop_path):
        super().__init__()
        self.alpha, self.beta, self.drop_path = alpha, beta, drop_path
        mid = max(n_out // 2 // group * group, group)
        self.conv1 = WSConv2d(n_in, mid, scale=GAMMA * beta)
        self.conv2 = WSConv2d(mid, mid, 3, stride, groups=mid // group, scale=GAMMA)
        self.conv2b = WSConv2d(mid, mid, 3, groups=mid // group, scale=GAMMA)
        self.conv3 = WSConv2d(mid, n_out, scale=GAMMA)
        self.squeeze_excite = SqueezeExcite(n_out)
        # A transition (new width or stride) needs a shortcut of its own; elsewhere the stream passes as it is.
        self.pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False) if stride == 2 else nn.Identity()
        self.shortcut = WSConv2d(n_in, n_out, scale=GAMMA * beta) if stride == 2 or n_in != n_out else None
        self.skip_gain = nn.Parameter(torch.zeros(()))  # SkipInit: the branch starts silent

    def forward(self, x):
        h = F.gelu(x)  # γ, here and below, and β are in the weights of the convolution that reads it
        shortcut = x if self.shortcut is None else self.shortcut(self.pool(h))
        h = self.conv1(h)
        h = self.conv2(F.gelu(h))
        h = self.conv2b(F.gelu(h))
        h = self.conv3(F.gelu(h))
        scale = self.alpha * self.skip_gain * self.squeeze_excite(h)  # (N,D,1,1)
        if self.training and self.drop_path > 0:  # stochastic depth, per picture, without 1/keep rescaling
            scale = scale * (torch.rand(len(h), 1, 1, 1, device=h.device) >= self.drop_path).to(h.dtype)
        return torch.addcmul(shortcut, scale, h)


class NFNet(nn.Module):
    """NFNet F0–F6 and `nano` (see SIZES).

    forward(images (N,3,H,W) float, normalised) -> (N,S,D): the grid that Flamingo reads, after the last 1x1
        convolution and its activation. S = ⌈H/32⌉·⌈W/32⌉ (nano: by 16, 9 places at 48 pixels), D = `dim` = twice the last stage's width.
    embed(images) -> (N,E): mean over space, projected, of length 1. For comparing with text.
    normalise(pixels uint8) -> float: what `forward` expects.

    n_class > 0 adds the 1000-way head of the published ImageNet networks; dim_embed > 0 the projection; per_image: see `normalise`.
    """

    def __init__(self, size='nano', dim_embed=0, n_class=0, per_image=False):
        super().__init__()
        if size not in SIZES:
            raise ValueError(f'no NFNet {size!r}: there are {", ".join(SIZES)}')
        self.size, spec = size, SIZES[size]
        stem = (3, *spec['stem'])
        strides = (2, 1, 1, 2)
        self.stem = nn.ModuleList(WSConv2d(stem[i], stem[i + 1], 3, strides[i], scale=GAMMA if i else 1.0) for i in range(4))
        blocks, n_in, std = [], stem[-1], 1.0
        n_block = sum(spec['depths'])
        for stage, (width, depth) in enumerate(zip(spec['widths'], spec['depths'])):
            for i in range(depth):
                beta = 1 / std  # a transition still divides by the std of the stage before it …
                if i == 0:
                    std = 1.0   # … and its own shortcut then brings the stream back to one
                std = math.sqrt(std ** 2 + spec['alpha'] ** 2)
                stride = 2 if i == 0 and stage > 0 else 1
                blocks.append(NFBlock(n_in, width, spec['group'], stride, spec['alpha'], beta, spec['drop_path'] * len(blocks) / n_block))
                n_in = width
        self.blocks = nn.ModuleList(blocks)
        self.dim = 2 * n_in
        self.final_conv = WSConv2d(n_in, self.dim)
        self.projection = nn.Linear(self.dim, dim_embed, bias=False) if dim_embed else None
        self.dropout = nn.Dropout(spec['dropout'])
        self.head = nn.Linear(self.dim, n_class) if n_class else None
        if self.head is not None:
            nn.init.normal_(self.head.weight, std=0.01)
            nn.init.zeros_(self.head.bias)
        self.per_image = per_image
        self.register_buffer('mean', torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer('std', torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)

    def normalise(self, pixels):
        """(…,3,H,W) uint8, 0–255 -> float of about zero mean and unit variance: ImageNet's, as timm's weights want, or with
        `per_image` each picture's own, which takes lighting away and brightness with it."""
        if self.per_image:
            std, mean = torch.std_mean(pixels.to(self.mean.dtype), dim=(-3, -2, -1), keepdim=True, correction=0)
            return (pixels - mean) / std.clamp(min=1)  # a picture of one colour is all zero
        return (pixels.to(self.mean.dtype) / 255 - self.mean) / self.std

    def grid(self, images):
        """(N,3,H,W) -> (N,D,h,w)"""
        x = images.contiguous(memory_format=torch.channels_last)  # the faster layout on CPU and tensor cores
        for i, conv in enumerate(self.stem):
            x = conv(x if i == 0 else F.gelu(x))  # no activation after the last: the first block brings its own
        for block in self.blocks:
            x = block(x)
        return GAMMA * F.gelu(self.final_conv(x))

    def forward(self, images):
        return self.grid(images).flatten(2).transpose(1, 2)  # (N,S,D)

    def embed(self, images):
        pooled = self.forward(images).mean(1)                # (N,D)
        return F.normalize(self.projection(pooled), dim=-1)  # (N,E)

    def classify(self, images):
        """(N,3,H,W) -> (N, n_class) logits, for the published ImageNet heads."""
        return self.head(self.dropout(self.forward(images).mean(1)))

    @classmethod
    def from_timm(cls, path, dim_embed=0, head=False):
        """timm's dm_nfnet_f0 … f6 (the weights that DeepMind published, trained on ImageNet) -> NFNet, float32.

        path: the file (.pth, .bin, .safetensors) or the folder with one. Size is told by the depth. head: keep the 1000-way
        classifier. The projection to dim_embed, which no file has, is random. Pictures are to be normalised by `normalise`;
        SIZES[size]['train'] and ['test'] are the resolutions in pixels that it was made for.
        Raises BadInput that names the first key that is missing, unknown or of the wrong shape.
        """
        state, path = checkpoint.read_published(path)
        depth = [len({k.split('.')[2] for k in state if k.startswith(f'stages.{i}.')}) for i in range(4)]
        size = next((name for name, spec in SIZES.items() if list(spec['depths']) == depth), None)
        if size is None:
            raise BadInput(f'{path}: not a dm_nfnet_f0 … f6: its stages have {", ".join(map(str, depth))} blocks')
        has_head = 'head.fc.weight' in state
        if head and not has_head:
            raise BadInput(f'{path}: lacks head.fc.weight')
        net = cls(size, dim_embed, len(state['head.fc.weight']) if head else 0)
        ours = {k: v for k, v in net.state_dict().items() if not k.startswith('projection.')}
        stages = [f'stages.{i}.{j}' for i, n in enumerate(depth) for j in range(n)]

        def theirs(key):
            """Our name of a weight -> timm's."""
            where, number, rest = (key.split('.', 2) + ['', ''])[:3]
            if where == 'stem':
                return f'stem.conv{int(number) + 1}.{rest}'
            if where == 'blocks':
                for a, b in (('squeeze_excite.', 'attn_last.'), ('shortcut.', 'downsample.conv.'), ('skip_gain', 'skipinit_gain')):
                    rest = rest.replace(a, b)
                return f'{stages[int(number)]}.{rest}'
            return key.replace('head.', 'head.fc.')

        names = {key: theirs(key) for key in ours}
        # theirs: gains as (D,1,1,1), and the two layers of squeeze-excite as 1x1 convolutions
        shapes = {names[k]: (*v.shape, 1, 1, 1) if k.endswith('.gain') else (*v.shape, 1, 1) if '.fc' in names[k] and 'head' not in k and v.ndim == 2 else v.shape
                  for k, v in ours.items()}
        unused = {'head.fc.weight': (None, net.dim), 'head.fc.bias': (None,)} if has_head and not head else {}
        checkpoint.check_shapes(state, shapes, f'{path}: ', optional=unused)
        net.load_state_dict({k: state[names[k]].float().reshape(v.shape) for k, v in ours.items()}, strict=False)
        with torch.no_grad():
            for conv in (m for m in net.modules() if isinstance(m, WSConv2d)):
                # timm divides by √(fan_in·(var + 1e-5)), DeepMind's code (and ours) by √max(fan_in·var, 1e-4): the gain takes
                # up the difference, so that what comes out is timm's.
                fan_in, var = conv.weight[0].numel(), conv.weight.var(dim=(1, 2, 3), correction=0)
                conv.gain.mul_(((fan_in * var).clamp(min=conv.eps) / (fan_in * (var + 1e-5))).sqrt())
        return net


class TextTower(nn.Module):
    """A small bidirectional transformer, mean-pooled (the paper: a BERT; its size for the F6 is not stated).

    embed(tokens (N,T) int, mask (N,T) bool, True where real) -> (N,E) of length 1.

    Without layers it is a bag of words: what it says of "a red star" is red plus star, so the encoder must find red and
    star each for itself to match it, and has seen most of a new pair before. (The nano model after 500 steps, pairs held out
    for choosing settings: 82 % zero-shot with no layer, 75 % with one.) Many real captions need the layers.

    Of a few hundred or thousand captions that people wrote, most words come once, and many say little ("of", "with"). plain_words
    makes the bag for them: words have no place, and are normalised after the mean, not each before it, so that one that says
    little, or was never met, can be short and hardly count. (Emoji, 160 concepts cut out of the training split, right caption
    among the first five, one seed: 27 % in pieces of words, 30 % with whole words as tokens, 29 % with words left out besides, 34 %
    with that and plain_words; 34 and 36 % on two other cuts.)
    """

    def __init__(self, n_vocab, dim, n_layer, n_head, n_context, dim_embed, plain_words=False):
        super().__init__()
        self.plain_words, self.n_context = plain_words, n_context
        self.token = nn.Embedding(n_vocab, dim)
        self.position = None if plain_words else nn.Embedding(n_context, dim)
        nn.init.normal_(self.token.weight, std=0.02)
        if not plain_words:
            nn.init.normal_(self.position.weight, std=0.02)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, n_head, 4 * dim, dropout=0.0, activation='gelu', batch_first=True, norm_first=True) for _ in range(n_layer))
        self.norm = nn.LayerNorm(dim)
        self.projection = nn.Linear(dim, dim_embed, bias=False)

    def embed(self, tokens, mask):
        x = self.token(tokens)                                                    # (N,T,D)
        if not self.plain_words:
            x = x + self.position.weight[:tokens.shape[1]]
        padding = ~mask & mask.any(1, keepdim=True)                               # a row of padding alone would be NaN
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=padding)                            # (N,T,D), every word sees every other
        x = x if self.plain_words else self.norm(x)
        real = mask.unsqueeze(-1).to(x.dtype)
        pooled = (x * real).sum(1) / real.sum(1).clamp(min=1)                     # mean over real tokens
        pooled = self.norm(pooled) if self.plain_words else pooled
        return F.normalize(self.projection(pooled), dim=-1)


class Contrastive(nn.Module):
    """Vision encoder and text tower, side by side, and how much to trust their similarity (appendix B.1).

    forward(images (M,3,H,W) normalised, texts) -> the two-term loss of each of the texts, a list of scalars. texts: of each source
        (tokens (N,T) int, mask (N,T) bool, shows (N,) int): caption n describes picture shows[n]. One that several describe is encoded once.
    """

    def __init__(self, vision, text):
        super().__init__()
        self.vision, self.text = vision, text
        # β, the inverse temperature, learned as its logarithm. The paper does not say where it starts: CLIP's 1/0.07.
        self.log_beta = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, images, texts):
        with torch.no_grad():  # clamped here, not in the product below: there its gradient would be lost for good
            self.log_beta.clamp_(max=math.log(100))
        embedded, losses = self.vision.embed(images).to(self.log_beta), []             # (M,E)
        for tokens, mask, shows in texts:
            v, l = embedded[shows], self.text.embed(tokens, mask).to(self.log_beta)    # (N,E) each
            # In float32, whatever the encoders run in: β is large, and bfloat16 would round what tells one pair from the next.
            with torch.autocast(v.device.type, enabled=False):
                losses.append(contrastive_loss(v, l, self.log_beta.exp(), all_v=distributed.gather_rows(v), all_l=distributed.gather_rows(l),
                                               first=distributed.rank() * len(v)))
        return losses


def new_contrastive(config):
    """FlamingoConfig -> Contrastive with random weights."""
    text = TextTower(config.n_vocab, config.text_dim, config.text_layer, config.text_head, TEXT_CONTEXT, config.dim_embed, config.plain_words)
    return Contrastive(NFNet(config.vision, config.dim_embed, per_image=config.per_image), text)


def contrastive_loss(v, l, beta, label_smoothing=0.1, all_v=None, all_l=None, first=0):
    """v (N,E) pictures, l (N,E) texts, unit length, row i of one belonging to row i of the other -> scalar.

    On many GPUs each compares its own rows with those of all, all_v and all_l (W·N,E), of which its own begin at `first`.

    L_txt2im = −1/N Σ_i log [ exp(β l_iᵀv_i) / Σ_j exp(β l_iᵀv_j) ]   and L_im2txt with the roles swapped.
    The paper minimises their *sum* (CLIP halves it). Its labels are smoothed, too: a tenth of each goes to all pairs alike, for in a
    large batch a caption may well fit another picture.
    """
    all_v, all_l = v if all_v is None else all_v, l if all_l is None else all_l
    pair = first + torch.arange(len(v), device=v.device)
    txt2im = F.cross_entropy(beta * l @ all_v.T, pair, label_smoothing=label_smoothing)  # (N,W·N) row: text, column: picture
    im2txt = F.cross_entropy(beta * v @ all_l.T, pair, label_smoothing=label_smoothing)  # (N,W·N) row: picture, column: text
    return txt2im + im2txt


@torch.no_grad()
def adaptive_gradient_clip(parameters, clip=0.01, eps=1e-3):
    """AGC: no unit's gradient may be longer than `clip` times its weight; in place (Brock et al. 2021, eq. 3).

    G_i ← G_i · clip·max(‖W_i‖, eps) / ‖G_i‖  where that is smaller. A unit is an output channel or feature of a
    weight, and the whole of a vector or scalar. Without normalisation layers, a large step on a small weight is
    what makes an NFNet diverge.
    """
    for p in parameters:
        if p.grad is None:
            continue
        within = tuple(range(1, p.ndim)) if p.ndim > 1 else None
        norm = lambda x: torch.linalg.vector_norm(x, dim=within, keepdim=True)
        longest = clip * norm(p).clamp(min=eps)
        p.grad.mul_((longest / norm(p.grad).clamp(min=1e-6)).clamp(max=1.0))
