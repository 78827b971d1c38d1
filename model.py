"""The language model that gets frozen, and Flamingo, which teaches it to see.

    media ─► NFNet (frozen) ─► features (B,N,F,S,D_v) ─► PerceiverResampler ─► visual (B,N,R,D)
    tokens ─► embed ─► [ GatedCrossAttention(visual, image_index) ─► GPT block (frozen) ] × L ─► logits (B,T,V+2)

Shapes, in all files unless said there: B batch, T tokens, N images in the sequence, F frames, S spatial positions,
R visual tokens per image, D width, V vocabulary of the language model, H heads, d head width, K beams. Sections (§) are those
of the paper's first version on arXiv; tables, figures and appendices (A, B) those of its second.
"""
import math
from copy import copy
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import nn

from kit.fast.packed import packed
from kit.files import BadInput
from kit.weights import checkpoint
from resampler import attention, PerceiverResampler
from vision import NFNet, SIZES
from xattn import GatedCrossAttention, route_tokens


@dataclass
class FlamingoConfig:
    """Every size there is. `n_vocab`, `bos` and `pad` come from the tokenizer, the rest from a preset."""
    n_vocab: int = 1024
    bos: int = 1022
    pad: int = 1023
    # language model (Table 4 of the paper: layers / width / heads)
    lm_layer: int = 4
    lm_dim: int = 128
    lm_head: int = 4
    n_context: int = 512        # longest sequence, in tokens
    # gated cross-attention
    xattn_every: int = 1        # one before LM blocks 0, k, 2k, …
    xattn_head: int = 4
    xattn_head_dim: int = 32
    attend: str = 'last'        # or 'all_previous', the paper's ablation
    visual_dim: int = 0         # width that visual tokens are projected to before all gated layers; 0: as the resampler gives them
    # resampler
    resampler_layer: int = 2
    resampler_dim: int = 128
    resampler_head: int = 4
    resampler_head_dim: int = 32
    n_latent: int = 8           # R
    n_frame: int = 8            # F in training
    # vision
    vision: str = 'nano'        # a key of vision.SIZES
    image_size: int = 48        # pixels, height and width
    per_image: bool = False     # each picture normalised by its own mean and deviation, not by ImageNet's
    dim_embed: int = 128        # width of the contrastive space
    text_layer: int = 0         # the contrastive text tower; 0: a bag of words (see vision.TextTower)
    text_dim: int = 128
    text_head: int = 4
    plain_words: bool = False   # the bag has no order, and a word counts as much as it learned to (see vision.TextTower)
    # what a training sequence holds (§3.2: L=256 tokens, N=5 images)
    n_token: int = 448          # L
    n_image: int = 33           # N

    def __post_init__(self):
        """Raises ValueError, naming the size, where no model can have it: a stranger's checkpoint may claim anything."""
        for f in fields(self):
            value, least = getattr(self, f.name), 0 if f.name in ('bos', 'pad', 'text_layer', 'visual_dim') else 1
            most = {'layer': 200, 'size': 4096}.get(f.name.rpartition('_')[2], 1 << 20)
            if type(value) is not type(f.default):
                raise ValueError(f'{f.name}={value!r}: must be of type {type(f.default).__name__}')
            if type(value) is int and not least <= value <= most:
                raise ValueError(f'{f.name}={value}: must be from {least} to {most}')
        for name, allowed in (('vision', tuple(SIZES)), ('attend', ('last', 'all_previous'))):
            if getattr(self, name) not in allowed:
                raise ValueError(f'{name}={getattr(self, name)}: must be one of {", ".join(allowed)}')
        for dim, head in (('lm_dim', 'lm_head'), ('text_dim', 'text_head')):
            if getattr(self, dim) % getattr(self, head):
                raise ValueError(f'{dim}={getattr(self, dim)}: must be a multiple of {head}={getattr(self, head)}')


# The three large ones are the paper's (Table 4), with its vision encoder, NFNet-F6 at 320 pixels. Their visual tokens are
# widened to the language model's width: the paper does not say so, but its counts of 1.6 B and 10 B for the gated layers
# are 12 D² a layer, keys and values from D-wide tokens; from 1536-wide ones they would be 1.4 B and 8.4 B.
_PAPER = dict(n_vocab=32000, bos=1, pad=0, n_context=2048, xattn_head_dim=128, resampler_layer=6, resampler_dim=1536, resampler_head=16,
              resampler_head_dim=128, n_latent=64, vision='F6', image_size=320, dim_embed=1376, text_layer=12, text_dim=768,
              text_head=12, n_token=256, n_image=5)
PRESETS = {
    'nano': dict(),
    'gpt2': dict(n_vocab=50257, bos=50256, pad=50256, lm_layer=12, lm_dim=768, lm_head=12, n_context=1024, xattn_head=12, xattn_head_dim=64,
                 resampler_layer=6, resampler_dim=768, resampler_head=12, resampler_head_dim=64, n_latent=64, vision='F0', image_size=256,
                 dim_embed=512, text_layer=4, text_dim=256, text_head=4, n_token=256, n_image=5),
    'flamingo-3b': dict(_PAPER, lm_layer=24, lm_dim=2048, lm_head=16, xattn_every=1, xattn_head=16, visual_dim=2048),
    'flamingo-9b': dict(_PAPER, lm_layer=40, lm_dim=4096, lm_head=32, xattn_every=4, xattn_head=32, visual_dim=4096),
    'flamingo-80b': dict(_PAPER, lm_layer=80, lm_dim=8192, lm_head=64, xattn_every=7, xattn_head=64, visual_dim=8192),
}


# ---------------------------------------------------------------------------------------------
# The language model: GPT-2's architecture, parameter names included, so that its published weights fit.


class SelfAttention(nn.Module):
    def __init__(self, dim, n_head):
        super().__init__()
        self.n_head = n_head
        self.c_attn = nn.Linear(dim, 3 * dim)
        self.c_proj = nn.Linear(dim, dim)

    def forward(self, x, cache=None, layer=0, mask=None):
        """x (B,T,D). With a cache, x are the tokens that come after what it holds. mask (B,1,T,T): what each token sees, where
        that is not simply all before it."""
        b, t, _ = x.shape
        qkv = self.c_attn(x).view(b, t, 3, self.n_head, -1)                          # (B,T,3,H,d)
        q, k, v = (z.transpose(1, 2) for z in qkv.unbind(2))                         # (B,H,T,d) each
        if cache is not None:
            k, v = cache.extend(layer, qkv[:, :, 1:])                                # (B,H,K,d): all keys so far
            mask = cache.mask
        out = attention(q, k, v, mask, causal=mask is None)                          # (B,H,T,d)
        return self.c_proj(out.transpose(1, 2).reshape(b, t, -1))


class Block(nn.Module):
    """x += SA(LN(x));  x += MLP(LN(x))"""

    def __init__(self, dim, n_head):
        super().__init__()
        self.ln_1 = nn.LayerNorm(dim)
        self.attn = SelfAttention(dim, n_head)
        self.ln_2 = nn.LayerNorm(dim)
        self.mlp = nn.ModuleDict(dict(c_fc=nn.Linear(dim, 4 * dim), c_proj=nn.Linear(4 * dim, dim)))

    def forward(self, x, cache=None, layer=0, mask=None):
        x = x + self.attn(self.ln_1(x), cache, layer, mask)
        h = F.gelu(self.mlp.c_fc(self.ln_2(x)), approximate='tanh')  # GPT-2's GELU is the tanh form
        return x + self.mlp.c_proj(h)


class GPT(nn.Module):
    """Decoder-only transformer, pre-norm, learned positions, output head tied to the embedding.

    forward(tokens (B,T) int, targets (B,T) int or None) -> logits (B,T,V), or with targets (logits, loss);
    a target of -100 is left out of the loss. `start` (B,) is the position of each row's first token, 0 unless said:
    short rows at random places train all positions of a long context for the price of a short one.
    Raises ValueError where T is longer than the context.
    """

    def __init__(self, n_vocab, n_layer, dim, n_head, n_context):
        super().__init__()
        self.n_context = n_context
        self.wte = nn.Embedding(n_vocab, dim)
        self.wpe = nn.Embedding(n_context, dim)
        self.h = nn.ModuleList(Block(dim, n_head) for _ in range(n_layer))
        self.ln_f = nn.LayerNorm(dim)
        std = dim ** -0.5  # GPT-2's 0.02 is made for widths of a thousand; on 128 it leaves attention flat for long
        for name, p in self.named_parameters():
            if p.ndim == 2:  # the residual projections at zero: a block begins silent
                nn.init.normal_(p, std=0.0 if name.endswith('c_proj.weight') else std)
            elif name.endswith('bias'):
                nn.init.zeros_(p)
        self.wire_copying()

    @torch.no_grad()
    def wire_copying(self):
        """Begin with two heads that copy: "after A came B last time, so after A comes B" (an induction head, Olsson et al. 2022).

        One head notes for each token its predecessor; a head of the next block finds the token whose predecessor is the one at
        hand, and says it. Large models grow such heads by themselves and in-context learning hangs on them; a model of this size
        takes longer to than all of its training here. So their projections begin random, as all others, but matched to
        each other, and training goes on from there. (Held-out words, a dozen that come twice: the second time 80 % are predicted
        after 350 steps, and 6 % after 600 steps with the first head alone.) A model of one block gets the first head only.
        """
        look, note, match = 3.0, 0.1, 3.0                                            # how sharply, how loudly, how strictly
        dim, n_head = self.wte.weight.shape[1], self.h[0].attn.n_head
        d = dim // n_head
        n = min(d // 2, dim // 8)                                                    # frequencies, of two dimensions each
        w = torch.exp(-torch.arange(n) / n * math.log(self.n_context / 4))
        angle = torch.arange(self.n_context)[:, None] * w
        # Positions are sinusoids p(t) = (sin wt, cos wt) in dimensions of their own, and the first head's query is p turned back
        # by one step: Σ_w cos(w (t-1-s)) is largest at s = t-1.
        self.wte.weight[:, :2 * n] = 0.0
        self.wpe.weight[:, 2 * n:] = 0.0
        self.wpe.weight[:, :2 * n] = dim ** -0.5 * 2 ** 0.5 * torch.cat([angle.sin(), angle.cos()], dim=1)
        q, k, v = self.h[0].attn.c_attn.weight.split(dim)                            # (D,D) each; rows are outputs
        q[:2 * n], k[:2 * n] = 0.0, 0.0
        i = torch.arange(n)
        k[i, i] = k[n + i, n + i] = look
        q[i, i], q[i, n + i] = look * w.cos(), -look * w.sin()                       # sin w(t-1)
        q[n + i, i], q[n + i, n + i] = look * w.sin(), look * w.cos()                # cos w(t-1)
        if len(self.h) < 2:
            return
        # It reads P x of its predecessor and writes Rᵀ P x; the second head's keys are R y, so that they hold P x, and its query is P
        # of the token at hand: they agree where the two tokens are the same. P, R, S: orthonormal rows, blind to positions.
        p, r, s = torch.zeros(3, d, dim)
        for m in (p, r, s):
            m[:, 2 * n:] = nn.init.orthogonal_(torch.empty(d, dim - 2 * n))
        v[:d] = p
        self.h[0].attn.c_proj.weight[:, :d] = note * r.T
        q, k, v = self.h[1].attn.c_attn.weight.split(dim)
        q[:d], k[:d], v[:d] = match * p, match * r, s
        self.h[1].attn.c_proj.weight[:, :d] = s.T                                    # what is found is said

    @classmethod
    def from_config(cls, config):
        return cls(config.n_vocab, config.lm_layer, config.lm_dim, config.lm_head, config.n_context)

    def sizes(self):
        """-> dict of the FlamingoConfig fields that describe it"""
        n_vocab, dim = self.wte.weight.shape
        return {'n_vocab': n_vocab, 'lm_layer': len(self.h), 'lm_dim': dim, 'lm_head': self.h[0].attn.n_head, 'n_context': self.n_context}

    @classmethod
    def from_gpt2(cls, path):
        """GPT-2's weights as published on the Hugging Face hub -> GPT, float32.

        path: pytorch_model.bin or model.safetensors, or the folder with one of them. Sizes are told by the shapes (gpt2,
        -medium, -large, -xl, distilgpt2 and their fine-tuned kin: heads are always 64 wide). Raises BadInput that names
        the first key that is missing, unknown or of the wrong shape.
        """
        state, path = checkpoint.read_published(path)
        state = {k.removeprefix('transformer.'): v for k, v in state.items()}
        for key in ('wte.weight', 'wpe.weight'):
            if key not in state or state[key].ndim != 2:
                raise BadInput(f'{path}: not a GPT-2: no matrix {key}')
        (n_vocab, dim), n_context = state['wte.weight'].shape, len(state['wpe.weight'])
        n_layer = len({k.split('.')[1] for k in state if k.startswith('h.')})
        if dim % 64 or not n_layer:
            raise BadInput(f'{path}: a GPT-2 of {n_layer} layers of width {dim} does not exist: its heads are 64 wide')
        with torch.device('meta'):  # nothing is drawn at random that the file is going to replace
            lm = cls(n_vocab, n_layer, dim, dim // 64, n_context)
        ours = lm.state_dict()
        # OpenAI's layers compute x W, ours x Wᵀ: these four are stored the other way around.
        turned = [k for k in ours if k.endswith(('attn.c_attn.weight', 'c_proj.weight', 'mlp.c_fc.weight'))]
        shapes = {k: v.shape[::-1] if k in turned else v.shape for k, v in ours.items()}
        # Not weights at all: the causal mask, and the number that masked scores are set to. And the head, a second name of wte.
        rest = {f'h.{i}.attn.bias': (1, 1, n_context, n_context) for i in range(n_layer)} | {f'h.{i}.attn.masked_bias': () for i in range(n_layer)}
        rest |= {'lm_head.weight': (n_vocab, dim)}
        checkpoint.check_shapes(state, shapes, f'{path}: ', optional=rest)
        if 'lm_head.weight' in state and not torch.equal(state['lm_head.weight'], state['wte.weight']):
            raise BadInput(f'{path}: lm_head.weight is not wte.weight; a GPT-2 has one table for both')
        lm.load_state_dict({k: (state[k].T if k in turned else state[k]).float().contiguous() for k in ours}, assign=True)
        return lm.requires_grad_(True)

    def check_length(self, t):
        if t > self.n_context:
            raise ValueError(f'{t} tokens are more than the context of {self.n_context}')

    def forward(self, tokens, targets=None, start=None):
        t = tokens.shape[1]
        self.check_length(t)
        position = torch.arange(t, device=tokens.device)
        if start is not None:
            position = start[:, None] + position                                     # (B,T)
        x = self.wte(tokens) + self.wpe(position)                                    # (B,T,D)
        for block in self.h:
            x = block(x)
        logits = self.ln_f(x) @ self.wte.weight.T                                    # (B,T,V)
        if targets is None:
            return logits
        return logits, F.cross_entropy(logits.flatten(0, 1).to(self.wte.weight.dtype), targets.flatten(), ignore_index=-100)


class Cache:
    """What generation would otherwise compute again for every new word: the keys and values of all text so far,
    and those of all pictures.

    Rows may have different lengths: prompts are padded on the right, each row writes its next token at its own
    `length`, and a key is visible only up to a row's own position, so padding is never seen and is overwritten.
    """

    def __init__(self, config, n_row, n_total, device, dtype, visual):
        shape = (n_row, n_total, 2, config.lm_head, config.lm_dim // config.lm_head)  # (B,K,2,H,d): keys and values side by side
        self.text = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.lm_layer)]
        self.length = torch.zeros(n_row, dtype=torch.long, device=device)            # (B,) tokens held
        self.visual = visual                                                         # per gated layer: keys and values (B,N,H,R,d)
        self.row = None                                                              # whose pictures each row sees (B,); None: its own
        self.n_image = 0 if visual[0] is None else visual[0][0].shape[1]

    def begin(self, t):
        """Before T more tokens: their positions, and which keys each of them may see."""
        self.position = self.length[:, None] + torch.arange(t, device=self.length.device)  # (B,T)
        self.n_key = int(self.length.max()) + t
        self.place = (torch.arange(len(self.position), device=self.length.device)[:, None] * self.text[0].shape[1] + self.position).flatten()  # (B*T,)
        hidden = torch.arange(self.n_key, device=self.length.device) > self.position[:, :, None]  # (B,T,K)
        # In the form that attention adds to its scores, or every layer would make it anew.
        self.mask = torch.zeros(hidden.shape, dtype=self.text[0].dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)[:, None]  # (B,1,T,K)

    def extend(self, layer, kv):
        """kv (B,T,2,H,d) of the new tokens -> all keys and values (B,H,K,d)"""
        held = self.text[layer]
        held.flatten(0, 1).index_copy_(0, self.place, kv.flatten(0, 1).to(held.dtype))
        return held[:, :self.n_key].transpose(1, 3).unbind(2)

    def keep_only(self, index):
        """index (B,1): the picture that every further word of a row sees. The others are let go, so that no word has to
        fetch its own from among them. -> the index to go on with (B,1): 1, or 0 for none"""
        one = (index - 1).clamp(0, self.n_image - 1)
        rows = torch.arange(len(index), device=index.device)[:, None]
        self.visual = [[x[rows, one] for x in kv] for kv in self.visual]             # (B,1,H,R,d)
        seen, self.n_image = (index >= 1) & (index <= self.n_image), 1
        return seen.long()

    def show(self, visual):
        """More pictures, after those there are: their keys and values, as `Flamingo.visual_keys_values` gives them."""
        if self.n_image > 0:
            visual = [[torch.cat(pair, dim=1) for pair in zip(old, new)] for old, new in zip(self.visual, visual)]
        self.visual, self.n_image = visual, visual[0][0].shape[1]

    def keep(self, length, n_image):
        """Back to when it held so many tokens (B,) and pictures; what lies beyond is overwritten."""
        self.visual = [[x[:, :n_image] for x in kv] if n_image > 0 else None for kv in self.visual]
        self.length, self.n_image = length, n_image

    def copy(self):
        """What is done to the copy leaves this one as it is; the pictures are shared."""
        other = copy(self)
        other.text = [kv.clone() for kv in self.text]
        return other

    def select(self, rows):
        """Keep these rows, in this order; a row may be taken several times (beams, candidates)."""
        self.text = [kv.index_select(0, rows) for kv in self.text]
        self.length, self.row = self.length[rows], rows if self.row is None else self.row[rows]  # the pictures stay where they are


# ---------------------------------------------------------------------------------------------
# Flamingo


class Flamingo(nn.Module):
    """A frozen encoder, a frozen language model, and between them what is trained (§3).

    forward(tokens (B,T), image_index (B,T), media, targets=None) -> (logits (B,T,V+2), None) or (None, loss).
    media: (B,N,F,3,H,W), uint8 pixels or already normalised floats; or None for text alone. Instead of media,
    `features` of the frozen encoder may be given, as `see` makes them. frame_mask (B,N,F) bool: which frames are real.
    position (B,T): where in the context each token stands, its place in the row unless said. document (B,T): where several share
    a row, which of them each token belongs to; they do not see each other.
    Ids V and V+1 are <image> and <EOC>. With targets (B,T), -100 where there is nothing to learn, logits are
    computed only where the loss needs them and the mean loss is returned; with nothing to learn it is 0. each: instead of their
    mean, the loss of every target, one after the other, row by row.
    """

    def __init__(self, config, vision=None, lm=None):
        super().__init__()
        self.config = config
        self.vision = vision or NFNet(config.vision, config.dim_embed, per_image=config.per_image)
        self.lm = lm or GPT.from_config(config)
        self.resampler = PerceiverResampler(config.resampler_dim, self.vision.dim, config.n_latent, config.resampler_layer,
                                            config.resampler_head, config.resampler_head_dim, config.n_frame)
        visual_dim = config.visual_dim or config.resampler_dim
        self.widen = nn.Linear(config.resampler_dim, visual_dim, bias=False) if visual_dim != config.resampler_dim else nn.Identity()
        self.gated = nn.ModuleList(
            GatedCrossAttention(config.lm_dim, visual_dim, config.xattn_head, config.xattn_head_dim, config.attend)
            for _ in range(0, config.lm_layer, config.xattn_every))
        # <image> and <EOC>: the only words the frozen model does not know. Their rows live apart from its table
        # and are trained (left frozen at random they cost OpenFlamingo 12 points of VQAv2); tied like its own.
        self.new_rows = nn.Parameter(torch.randn(2, config.lm_dim) * 0.02)
        self.image, self.eoc = config.n_vocab, config.n_vocab + 1
        self.freeze()

    def freeze(self, vision=True):
        """The one place that says what is trained. The language model never is; the vision encoder only when
        fine-tuning at the very end (appendix: fine-tuning)."""
        self.requires_grad_(True)
        self.lm.requires_grad_(False)
        self.vision.requires_grad_(not vision)
        if self.vision.projection is not None:  # into the contrastive space, where Flamingo never goes
            self.vision.projection.requires_grad_(False)
        self.frozen = [self.lm, self.vision] if vision else [self.lm]
        assert not any(p.requires_grad for m in self.frozen for p in m.parameters())
        return self.train(self.training)

    def train(self, mode=True):
        super().train(mode)
        for module in self.frozen:  # frozen also means: no dropout, no stochastic depth
            module.eval()
        return self

    def see(self, media, frame_mask=None):
        """media (B,N,F,3,H,W) -> features (B,N,F,S,D_v); with a frame_mask those of the M real frames, one after the other
        (M,S,D_v): what is padding is neither computed nor kept."""
        images = media.flatten(0, 2) if frame_mask is None else media[frame_mask]    # (M,3,H,W)
        if not media.is_floating_point():
            images = self.vision.normalise(images)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.vision not in self.frozen):
            grid = self.vision(images)                                               # (M,S,D_v)
        return grid.unflatten(0, media.shape[:3]) if frame_mask is None else grid

    def resample(self, media=None, features=None, frame_mask=None):
        """-> visual tokens (B,N,R,D), or None for text alone"""
        if features is None and media is not None and media.shape[1] > 0:
            features = self.see(media, frame_mask)
        if features is None or features.numel() == 0:
            return None
        # Each position on a scale of one. An encoder's grid can be of any size (our nano NFNet's has an rms of 16), and
        # the time embedding that is added to it would be lost underneath: clips would be pictures.
        features = F.layer_norm(features, features.shape[-1:])
        return self.widen(self.resampler(features, frame_mask))

    def visual_keys_values(self, media=None, features=None, frame_mask=None):
        """-> for each gated layer keys and values (B,N,H,R,d), or None for text alone"""
        visual = self.resample(media, features, frame_mask)
        # Through `forward`: where weights are sharded over processes, it is what puts a layer together.
        return [None if visual is None else layer(None, visual) for layer in self.gated]

    def embed(self, tokens):
        """(B,T) -> (B,T,D): the frozen table for its own words, the trained rows for the two new ones."""
        new = tokens >= self.image
        known = self.lm.wte(tokens.masked_fill(new, 0))
        # F.embedding, not an index: that one's gradient adds up in the order in which threads come, another each time.
        return torch.where(new.unsqueeze(-1), F.embedding((tokens - self.image).clamp(min=0), self.new_rows).to(known.dtype), known)

    def stream(self, tokens, image_index, visual=None, cache=None, position=None, document=None):
        """The whole tower: tokens (B,T) -> what the language model would say next, before the head (B,T,D).
        With a cache, visual is not needed: its keys and values are kept there."""
        t, mask = tokens.shape[1], None
        if cache is None:
            self.lm.check_length(t)
            row, n_image = None, 0 if visual is None else visual.shape[1]
            if position is None:
                position = torch.arange(t, device=tokens.device)
            if document is not None:
                mask = (document[:, :, None] == document[:, None]).tril()[:, None]   # (B,1,T,T)
        else:
            cache.begin(t)
            position, row, n_image = cache.position, cache.row, cache.n_image
        route = route_tokens(image_index, n_image, row) if n_image > 1 and self.config.attend == 'last' else None  # once, for all gated layers
        y = self.embed(tokens) + self.lm.wpe(position)                               # (B,T,D)
        for i, block in enumerate(self.lm.h):
            if i % self.config.xattn_every == 0:
                gated = i // self.config.xattn_every
                y = self.gated[gated](y, visual, image_index, cache.visual[gated] if cache is not None else None, route, row)
            y = block(y, cache, i, mask)
        return self.lm.ln_f(y)

    def head(self, y):
        """(…,D) -> logits (…,V+2)"""
        return torch.cat([y @ self.lm.wte.weight.T, y @ self.new_rows.T.to(y.dtype)], dim=-1)

    def forward(self, tokens, image_index, media=None, targets=None, *, features=None, frame_mask=None, position=None, document=None, each=False):
        y = self.stream(tokens, image_index, self.resample(media, features, frame_mask), position=position, document=document)
        if targets is None:
            return self.head(y), None
        learn = targets != -100                                                      # (B,T)
        logits = self.head(y[learn])                                                 # (number of targets, V+2)
        losses = F.cross_entropy(logits.float(), targets[learn], reduction='none')
        # The sum over none is 0, where a mean would be NaN: a sequence may have nothing to learn.
        return None, losses if each else losses.sum() / max(len(losses), 1)

    def gates(self):
        """-> [(tanh α_x, tanh α_d) of each gated layer], floats"""
        return [(layer.alpha_x.tanh().item(), layer.alpha_d.tanh().item()) for layer in self.gated]

    # -----------------------------------------------------------------------------------------
    # Answers

    def prefill(self, tokens, length, image_index, n_new, media=None, features=None, frame_mask=None):
        """Read the prompts once -> (cache, logits after each prompt (B,V+2), image index that goes on (B,1)).

        The cache is for answering: no other picture comes after a prompt, so the one that its last word sees is all that it
        keeps. A chat, which may show more pictures and go back to earlier ones, fills a cache of its own (kit/chat.py)."""
        b, t = tokens.shape
        self.lm.check_length(t + n_new - 1)
        visual = self.visual_keys_values(media, features, frame_mask)
        dtype = torch.get_autocast_dtype(tokens.device.type) if torch.is_autocast_enabled(tokens.device.type) else self.lm.wte.weight.dtype
        cache = Cache(self.config, b, t + n_new, tokens.device, dtype, visual)
        y = self.stream(tokens, image_index, cache=cache)
        cache.length = length.clone()
        last = (length - 1)[:, None]                                                 # (B,1)
        y = y.gather(1, last.unsqueeze(-1).expand(-1, -1, y.shape[-1])).squeeze(1)   # (B,D)
        index = image_index.gather(1, last)
        if cache.n_image > 0 and self.config.attend == 'last':
            index = cache.keep_only(index)
        return cache, self.head(y), index

    def step(self, cache, tokens, image_index):
        """tokens (B,T) that follow what the cache holds -> logits (B,T,V+2)"""
        y = self.stream(tokens, image_index, cache=cache)
        cache.length = cache.length + tokens.shape[1]
        return self.head(y)

    @torch.no_grad()
    def generate(self, tokens, length, image_index, max_new_tokens=32, beam_size=3, temperature=0.0, top_k=0, generator=None,
                 media=None, features=None, frame_mask=None):
        """Continue prompts: tokens (B,T) padded on the right to T, of which length (B,) are real.

        temperature 0: beam search, the most likely answer by sum of log-probabilities (beam_size 1 is greedy, 3 the
        paper's). temperature > 0: sampling, from the top_k most likely words if top_k > 0. An answer ends at <EOC>.
        -> list of B pairs (token ids without <EOC>, log-probability of the answer with it).
        Raises ValueError where a prompt is longer than the context.
        """
        room = self.lm.n_context - tokens.shape[1] + 1
        if room < 1:
            raise ValueError(f'a prompt of {tokens.shape[1]} tokens is longer than the context of {self.lm.n_context}')
        n_new = min(max_new_tokens, room)
        cache, logits, index = self.prefill(tokens, length, image_index, n_new, media, features, frame_mask)
        return self.decode(cache, logits, index, n_new, beam_size, temperature, top_k, generator)

    @torch.no_grad()
    def decode(self, cache, logits, index, n_new, beam_size=3, temperature=0.0, top_k=0, generator=None):
        """`generate` from where a cache stands: logits (B,V+2) after its last token, index (B,1) the picture that new words see.
        The cache is used up: its rows become beams."""
        k, b, device = 1 if temperature > 0 else beam_size, len(logits), logits.device
        beams = torch.arange(b, device=device).repeat_interleave(k)                  # (B*K,) row of each beam
        if k > 1:
            cache.select(beams)
        logits, index = logits[beams], index[beams]
        # Only one beam of each prompt is alive at first: K equal beams would all choose the same word.
        score = torch.where(torch.arange(b * k, device=device) % k == 0, 0.0, -torch.inf)  # (B*K,)
        done = torch.zeros(b * k, dtype=torch.bool, device=device)
        answer = torch.zeros(b * k, 0, dtype=torch.long, device=device)
        with packed(self, b * k, n_new):
            for i in range(n_new):
                log_p = F.log_softmax(self.forbid(logits.float()), dim=-1)           # (B*K,V+2)
                log_p.masked_fill_(done[:, None], -torch.inf)
                log_p[:, self.eoc].masked_fill_(done, 0.0)                           # a finished answer stays as it is
                if temperature > 0:
                    word = sample(log_p, temperature, top_k, generator)              # (B,)
                    parent = torch.arange(b, device=device)
                    score = score + log_p.gather(1, word[:, None]).squeeze(1)
                else:
                    total = (score[:, None] + log_p).view(b, -1)                     # (B,K*(V+2))
                    score, choice = total.topk(k, dim=-1)
                    score = score.flatten()
                    word = (choice % log_p.shape[-1]).flatten()
                    parent = (choice // log_p.shape[-1] + torch.arange(b, device=device)[:, None] * k).flatten()
                answer = torch.cat([answer[parent], word[:, None]], dim=1)
                done = done[parent] | (word == self.eoc)
                if done.all() or i + 1 == n_new:
                    break
                if k > 1:
                    cache.select(parent)
                logits = self.step(cache, word[:, None], index)[:, -1]
        best = score.view(b, k).argmax(1) + torch.arange(b, device=device) * k
        answers = [[w for w in row if w != self.eoc] for row in answer[best].tolist()]
        return list(zip(answers, score[best].tolist()))

    def forbid(self, logits):
        """What no answer may contain: a tag without its picture, a new document, padding."""
        logits[..., [self.image, self.config.bos, self.config.pad]] = -torch.inf
        return logits

    @torch.no_grad()
    def score(self, tokens, length, image_index, candidates, media=None, features=None, frame_mask=None):
        """Log-likelihood of given answers. candidates: for each prompt a list of token id lists (an <EOC> at the end
        says that the answer must stop there) -> for each prompt a list of floats, Σ log p over the answer's tokens.

        The prompt is read once for all of its candidates (§4: close-ended tasks are ranked by log-likelihood).
        """
        rows = [(row, ids) for row, answers in enumerate(candidates) for ids in answers]
        if not all(ids for _, ids in rows):
            raise ValueError('a candidate answer is empty')
        longest = max(len(ids) for _, ids in rows)
        cache, logits, index = self.prefill(tokens, length, image_index, longest, media, features, frame_mask)
        owner = torch.tensor([row for row, _ in rows], device=tokens.device)
        words = torch.tensor([ids + [0] * (longest - len(ids)) for _, ids in rows], device=tokens.device)
        real = torch.tensor([[1.0] * len(ids) + [0.0] * (longest - len(ids)) for _, ids in rows], device=tokens.device)
        cache.select(owner)
        logits = logits[owner][:, None]                                              # (C,1,V+2)
        if longest > 1:
            rest = self.step(cache, words[:, :-1], index[owner].expand(-1, longest - 1))
            logits = torch.cat([logits, rest], dim=1)                                # (C,longest,V+2)
        log_p = F.log_softmax(logits.float(), dim=-1).gather(2, words.unsqueeze(-1)).squeeze(-1)
        total = iter((log_p * real).sum(1).tolist())
        return [[next(total) for _ in answers] for answers in candidates]


def sample(log_p, temperature, top_k, generator):
    """log_p (B,V) -> one word each (B,), drawn from the top_k most likely (0: from all)."""
    # The best is put at 0 and T within what a float32 can divide by, or a tiny T would leave nothing but -inf, a huge one NaN.
    log_p = (log_p - log_p.amax(-1, keepdim=True)) / min(max(temperature, 1e-6), 1e6)
    if top_k > 0:
        least = log_p.topk(min(top_k, log_p.shape[-1]), dim=-1).values[:, -1:]
        log_p = log_p.masked_fill(log_p < least, -torch.inf)
    return torch.multinomial(log_p.softmax(-1), 1, generator=generator).squeeze(1)

