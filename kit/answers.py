"""Answers: functions over a Flamingo that write text after a prompt, or weigh answers that are given (§2.5).

    generate         writes: sample.greedy for many prompts, with beams or samples, nothing computed twice
    log_likelihoods  the idea of weighing: how likely is each word? A score is the sum over an answer
    score            the same for many prompts and answers, nothing computed twice

Prompts are tokens (B,T), padded on the right, the first `length` (B,) of a row real, and image_index (B,T).
Their pictures are given as in Flamingo.forward: media, or features, and frame_mask. K is the number of keys
that a cache can hold.
"""
import contextlib
from copy import copy

import torch
import torch.nn.functional as F

from kit.fast.kept import keeping
from kit.fast.packed import packed
from xattn import sees


@torch.no_grad()
def log_likelihoods(model, tokens, image_index, visual):
    """tokens (B,T), image_index (B,T), visual (B,N,R,D) -> the log-probability of each token but the first,
    given all before it and the pictures that these see (B,T-1)"""
    y = model.stream(tokens, image_index, visual)                                     # (B,T,D)
    said = F.log_softmax(model.head(y[:, :-1]).float(), dim=-1)                       # (B,T-1,V+2)
    return said.gather(2, tokens[:, 1:, None]).squeeze(2)


@torch.no_grad()
def generate(model, tokens, length, image_index, max_new_tokens=32, beam_size=3, temperature=0.0, top_k=0,
             generator=None, told=None, media=None, features=None, frame_mask=None):
    """Continue prompts -> list of B pairs (token ids without <EOC>, log-probability of the answer with it).

    temperature 0: beam search, the most likely answer by sum of log-probabilities (beam_size 1 is greedy, 3
    the paper's). temperature > 0: sampling, from the top_k most likely words if top_k > 0. An answer ends
    at <EOC>, or where its own prompt leaves no room in the context, whatever stands beside it in the batch.
    told: see `search`. Raises ValueError where a prompt is longer than the context.
    """
    room = model.lm.n_context + 1 - length                                    # (B,) the last word is not read
    if room.min() < 1:
        longest, most = int(length.max()), model.lm.n_context
        raise ValueError(f'a prompt of {longest} tokens is longer than the context of {most}')
    n_new = room.clamp(max=max_new_tokens)                                            # (B,)
    pictures = dict(media=media, features=features, frame_mask=frame_mask)
    cache, logits, index = prefill(model, tokens, length, image_index, int(n_new.max()), **pictures)
    return search(model, cache, logits, index, n_new, beam_size, temperature, top_k, generator, told)


@torch.no_grad()
def search(model, cache, logits, index, n_new, beam_size=3, temperature=0.0, top_k=0, generator=None,
           told=None):
    """`generate` from where a cache stands: logits (B,V+2) after its last token, index (B,1) the image of
    new words, n_new (B,) how many each row may have. The cache is used up: its rows become beams.

    Beams compete by their plain sums of log-probabilities, finished or not: the paper says no more than
    "beam search". told(ids, log_p), if given, is called after each word with the first prompt's best beam so
    far and the log-probabilities (V+2,) that its last word was chosen by; what it raises ends the search.
    """
    k, b, device = 1 if temperature > 0 else beam_size, len(logits), logits.device
    beams = torch.arange(b, device=device).repeat_interleave(k)                      # (B*k,) row of each beam
    if k > 1:
        cache.repeat(beams)
    logits, index, n_new = logits[beams], index[beams], n_new[beams]
    # Only one beam of each prompt is alive at first: k equal beams would all choose the same word.
    score = torch.where(torch.arange(b * k, device=device) % k == 0, 0.0, -torch.inf)  # (B*k,)
    done = torch.zeros(b * k, dtype=torch.bool, device=device)
    answer = torch.zeros(b * k, 0, dtype=torch.long, device=device)
    fast = packed(model, b * k, int(n_new.max()))
    with torch.inference_mode() if fast is not model else contextlib.nullcontext():
        fast = keeping(fast, cache.visual)
        for i in range(int(n_new.max())):
            log_p = F.log_softmax(forbid(model, logits.float()), dim=-1)              # (B*k,V+2)
            log_p.masked_fill_(done[:, None], -torch.inf)
            log_p[:, model.eoc].masked_fill_(done, 0.0)                     # a finished answer stays as it is
            if temperature > 0:
                word, parent = sample(log_p, temperature, top_k, generator), beams
                score = score + log_p.gather(1, word[:, None]).squeeze(1)
            else:
                word, parent, score = best_of(log_p, score, k)
            answer = torch.cat([answer[parent], word[:, None]], dim=1)
            done = done[parent] | (word == model.eoc) | (i + 1 >= n_new)
            if told is not None:
                best = int(score[:k].argmax())
                told(answer[best].tolist(), log_p[parent[best]])
            if done.all():
                break
            if k > 1:
                cache.reorder(parent)
            logits = fast.head(read(fast, cache, word[:, None], index)[:, -1])
    best = score.view(b, k).argmax(1) + torch.arange(b, device=device) * k
    answers = [[w for w in row if w != model.eoc] for row in answer[best].tolist()]
    return list(zip(answers, score[best].tolist()))


def best_of(log_p, score, k):
    """One step of beam search: log_p (B*k,V+2) of the next word of each beam, score (B*k,) of the beams so
    far -> the k best continuations of each prompt: word, parent (the beam that goes on) and score, (B*k,)
    each"""
    total = (score[:, None] + log_p).view(-1, k * log_p.shape[-1])                    # (B,k*(V+2))
    score, choice = total.topk(k, dim=-1)                                             # (B,k) each
    first = torch.arange(len(total), device=log_p.device)[:, None] * k
    parent = first + choice // log_p.shape[-1]
    return (choice % log_p.shape[-1]).flatten(), parent.flatten(), score.flatten()


def sample(log_p, temperature, top_k, generator):
    """log_p (B,V) -> one word each (B,), drawn from the top_k most likely (0: from all)."""
    # The best is put at 0, and the temperature within what a float32 can divide by: or nothing but -inf is
    # left.
    log_p = (log_p - log_p.amax(-1, keepdim=True)) / min(max(temperature, 1e-6), 1e6)
    if top_k > 0:
        least = log_p.topk(min(top_k, log_p.shape[-1]), dim=-1).values[:, -1:]
        log_p = log_p.masked_fill(log_p < least, -torch.inf)
    return torch.multinomial(log_p.softmax(-1), 1, generator=generator).squeeze(1)


def forbid(model, logits):
    """What no answer may contain: a tag without its picture, a new document, padding. In place."""
    logits[..., [model.image, model.config.bos, model.config.pad]] = -torch.inf
    return logits


@torch.no_grad()
def score(model, tokens, length, image_index, candidates, media=None, features=None, frame_mask=None):
    """Log-likelihood of given answers. candidates: for each prompt a list of token id lists (an <EOC> at
    the end says that the answer must stop there) -> for each prompt a list of floats, Σ log p over the
    answer's tokens.

    The prompt is read once for all of its candidates (§2.5: close-ended tasks are ranked by log-likelihood).
    Raises ValueError where a candidate is empty, or does not fit the context after its own prompt.
    """
    rows = [(row, ids) for row, answers in enumerate(candidates) for ids in answers]
    if not all(ids for _, ids in rows):
        raise ValueError('a candidate answer is empty')
    longest = max(len(ids) for _, ids in rows)
    t = max(n + len(ids) - 1 for n, answers in zip(length.tolist(), candidates) for ids in answers)
    if t > model.lm.n_context:
        raise ValueError(f'{t} tokens are more than the context of {model.lm.n_context}')
    pictures = dict(media=media, features=features, frame_mask=frame_mask)
    cache, logits, index = prefill(model, tokens, length, image_index, longest, **pictures)
    total, n = [], at_once(model, cache, longest)
    for start in range(0, len(rows), n):
        total += score_some(model, copy(cache), logits, index, rows[start:start + n])
    total = iter(total)
    return [[next(total) for _ in answers] for answers in candidates]


def score_some(model, cache, logits, index, rows):
    """rows: [(number of a prompt, token ids of an answer)] -> Σ log p of each. cache, logits (B,V+2) and
    index (B,1): of the prompts; the cache's rows become those of the answers."""
    device, longest = logits.device, max(len(ids) for _, ids in rows)
    owner = torch.tensor([row for row, _ in rows], device=device)              # (answers,) the prompt of each
    words = torch.tensor([ids + [0] * (longest - len(ids)) for _, ids in rows], device=device)
    n_word = torch.tensor([len(ids) for _, ids in rows], device=device)        # (answers,)
    real = torch.arange(longest, device=device) < n_word[:, None]            # (answers,longest), as are words
    cache.repeat(owner)
    logits = logits[owner][:, None]                                            # (answers,1,V+2)
    if longest > 1:
        rest = model.head(read(model, cache, words[:, :-1], index[owner].expand(-1, longest - 1)))
        logits = torch.cat([logits, rest], dim=1)                              # (answers,longest,V+2)
    log_p = F.log_softmax(logits.float(), dim=-1).gather(2, words.unsqueeze(-1)).squeeze(-1)
    return (log_p * real).sum(1).tolist()


AT_ONCE = 256 << 20  # bytes of answers that are scored together: their keys, values and logits


def at_once(model, cache, longest):
    """How many answers of up to `longest` tokens are scored together: each holds once more what the cache has
    of its prompt, and what the model says of every word after each of its own."""
    kept = [*cache.text, *([] if cache.visual is None else [cache.visual])]
    kept = sum(x[0].nbytes for x in kept)
    return max(1, AT_ONCE // (kept + 4 * longest * (model.config.n_vocab + 2)))


# ---------------------------------------------------------------------------------------------
# What is kept


def prefill(model, tokens, length, image_index, n_new, media=None, features=None, frame_mask=None):
    """Read the prompts once -> (cache with room for n_new more tokens, logits after each prompt (B,V+2),
    image_index of what follows (B,1)).

    The cache is for answering: no other picture comes after a prompt, so those that its last word sees are
    all that it keeps. A chat, which shows more pictures and goes back to earlier ones, has a cache of its
    own.
    """
    b, t = tokens.shape
    if features is None:
        features, frame_mask = model.see(media, frame_mask)
    visual = model.resample(features, frame_mask)                                     # (B,N,R,D_r), or None
    kind = tokens.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.lm.wte.weight.dtype
    cache = Cache(model.config, b, t + n_new, tokens.device, dtype, visual)
    y = read(model, cache, tokens, image_index)                                       # (B,T,D)
    cache.length = length.clone()                                            # what lies beyond is overwritten
    last = (length - 1)[:, None]                                                      # (B,1)
    y = y.gather(1, last.unsqueeze(-1).expand(-1, -1, y.shape[-1])).squeeze(1)        # (B,D)
    return cache, model.head(y), cache.keep_seen(image_index.gather(1, last))


def read(model, cache, tokens, image_index):
    """tokens (B,T) that follow what the cache holds, into it -> Flamingo.stream's (B,T,D)"""
    position, mask, past = cache.next(tokens.shape[1])
    y = model.stream(tokens, image_index, cache.visual, position, mask, past)
    cache.length = cache.length + tokens.shape[1]
    return y


class Cache:
    """What would otherwise be computed again for every new word: keys and values of all text, and what was
    seen in all pictures.

    Rows may have different lengths: prompts are padded on the right, each row writes its next token at its
    own `length`, and a key is visible only up to a row's own place, so padding is never seen and is
    overwritten.
    """

    def __init__(self, config, n_row, n_key, device, dtype, visual=None):
        heads = (config.lm_head, config.lm_dim // config.lm_head)                     # (H,d)
        shape = (n_row, n_key, 2, *heads)                                             # keys beside values
        self.config = config
        self.text = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.lm_layer)]
        self.length = torch.zeros(n_row, dtype=torch.long, device=device)             # (B,) tokens held
        self.visual = visual                                                          # (B,N,R,D_r), or None

    @property
    def n_image(self):
        return 0 if self.visual is None else self.visual.shape[1]

    def next(self, t):
        """What Flamingo.stream must know of t more tokens: position (B,T), mask (B,1,T,K), and for each block
        a Past"""
        place = self.length[:, None] + torch.arange(t, device=self.length.device)     # (B,T)
        n_key = int(self.length.max()) + t                                     # K, of those that anybody sees
        hidden = torch.arange(n_key, device=place.device) > place[:, :, None]         # (B,T,K)
        # In the form that attention adds to its scores, or every layer would make it of the other.
        mask = torch.zeros(hidden.shape, dtype=self.text[0].dtype, device=place.device)
        mask.masked_fill_(hidden, -torch.inf)
        row = torch.arange(len(place), device=place.device)[:, None] * self.text[0].shape[1]
        past = [Past(held, (row + place).flatten(), n_key) for held in self.text]
        # A row that has ended goes on beside the others, maybe beyond the context; nobody reads what it says.
        return place.clamp(max=self.config.n_context - 1), mask[:, None], past

    def keep_seen(self, index):
        """index (B,1): that of all further words of a row. The pictures that these do not see are let go,
        so that no word has to find its own among them. -> the index to go on with (B,1)

        It relies on what all of xattn.SEES have in common: how far back an image lies decides whether it is
        seen.
        """
        if self.n_image == 0:
            return index
        seen = sees(index, self.n_image, self.config.attend)                          # (B,1,N)
        first = seen.int().argmax(-1)                                        # (B,1) before the first one seen
        index = torch.where(seen.any(-1), index - first, 0)
        n_kept = int(index.clamp(1, self.n_image).max())
        kept = (first + torch.arange(n_kept, device=index.device)).clamp(max=self.n_image - 1)  # (B,n_kept)
        rows = torch.arange(len(index), device=index.device)[:, None]
        self.visual = self.visual[rows, kept]
        return index

    def repeat(self, rows):
        """Keep these rows, in this order; a row may be taken several times (beams, candidates)."""
        self.reorder(rows)
        self.visual = None if self.visual is None else self.visual.index_select(0, rows)

    def reorder(self, rows):
        """The same among rows that have the same pictures: the beams of a prompt change places."""
        self.text = [kv.index_select(0, rows) for kv in self.text]
        self.length = self.length[rows]

    def show(self, visual):
        """More pictures (B,N,R,D_r), after those there are."""
        self.visual = visual if self.visual is None else torch.cat([self.visual, visual], dim=1)

    def keep(self, length, n_image):
        """Back to when it held this many tokens (B,) and pictures; what lies beyond is overwritten."""
        self.length = length
        self.visual = self.visual[:, :n_image] if n_image else None

    def copy(self):
        """What is done to the copy leaves this one as it is; the pictures are shared."""
        other = copy(self)
        other.text = [kv.clone() for kv in self.text]
        return other


class Past:
    """Keys and values of the tokens that one block has read: held (B,K,2,H,d), of which n_key are in sight
    of any token at hand; place (B*T,) of the tokens at hand, in its first two dimensions."""

    def __init__(self, held, place, n_key):
        self.held, self.place, self.n_key = held, place, n_key

    def extend(self, k, v):
        """k, v (B,H,T,d) of the tokens at hand -> those of all tokens so far (B,H,n_key,d)"""
        kv = torch.stack([k.transpose(1, 2), v.transpose(1, 2)], dim=2)               # (B,T,2,H,d)
        self.held.flatten(0, 1).index_copy_(0, self.place, kv.flatten(0, 1).to(self.held.dtype))
        return self.held[:, :self.n_key].transpose(1, 3).unbind(2)
