"""Where does the model look at each word? Attention of the gated layers, followed back through the resampler
to the picture.

    weights of a word on a place  =  Σ_r  (mean over gated layers and heads: word → visual token r)
                                        · (mean over resampler layers and heads: visual token r → place)
"""
import contextlib
import math

import torch

from xattn import sees


def text_to_visual(layer, y, visual, image_index):
    """The weights of one gated layer, mean over heads, for the arguments of its forward, B = 1 -> (T,N,R),
    which sum to 1, or to 0 where a token sees no picture."""
    q, (k, _) = layer.queries(y), layer.keys_values(visual)                           # (1,T,H,d), (1,N,H,R,d)
    score = torch.einsum('thd,nhrd->thnr', q[0], k[0]) / math.sqrt(layer.head_dim)
    seen = sees(image_index[0], score.shape[2], layer.attend)                         # (T,N)
    score = score.masked_fill(~seen[:, None, :, None], -torch.inf)
    weight = score.flatten(2).softmax(-1).nan_to_num(0.0)  # NaN where nothing is seen
    return weight.view_as(score).mean(1)


def visual_to_places(layer, latents, features):
    """The weights of one resampler layer on the places, mean over heads, for what the layer is given:
    latents (B,R,D), features (B,F*S,D) -> (B,R,F*S), which sum to less than 1: latents look at each other,
    too."""
    q, k, _ = layer.queries_keys_values(latents, features)                   # (B,H,R,d), (B,H,F*S+R,d)
    score = q @ k.transpose(2, 3) / math.sqrt(layer.head_dim)
    return score.softmax(-1).mean(1)[..., :-latents.shape[1]]


@contextlib.contextmanager
def watching(layers, hook):
    """Inside, hook(layer, its arguments) comes before each of the layers."""
    handles = [layer.register_forward_pre_hook(hook) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def look(model, tokens, image_index, features, frame_mask):
    """tokens, image_index (1,T), features (frames,S,D) of all frames, frame_mask (1,N,F) -> (T,N,F,S): how
    much each token, while the next one is predicted, looks at each place of each picture; sums to 1 over all
    of them, or to 0 where it sees none."""
    visual = model.resample(features, frame_mask)
    from_text = []
    with watching(model.gated, lambda layer, args: from_text.append(text_to_visual(layer, *args))):
        model.stream(tokens, image_index, visual)
    from_text = sum(from_text) / len(from_text)                                       # (T,N,R)
    n_place = features.shape[1]
    out = torch.zeros(len(from_text), *frame_mask.shape[1:], n_place, device=features.device)
    for n, clip in enumerate(features.split(frame_mask[0].sum(-1).tolist())):  # clips differ in length
        maps, real = [], len(clip)
        with watching(model.resampler.layers, lambda at, args: maps.append(visual_to_places(at, *args))):
            model.resample(clip[None, None])
        to_places = sum(maps)[0]
        to_places = to_places / to_places.sum(-1, keepdim=True)                       # (R,F*S)
        out[:, n, :real] = (from_text[:, n] @ to_places).unflatten(-1, (real, n_place))
    return out


def with_answer(asker, document, answer):
    """A prompt and the token ids of its answer, as far as they fit the context -> what asker.prompts gives
    of both, and how many tokens are the prompt's."""
    prompts = asker.prompts([document])
    n_prompt = prompts['tokens'].shape[1]
    answer = torch.tensor([answer[:asker.model.lm.n_context - n_prompt]], dtype=torch.long)      # (1,answer)
    tokens = torch.cat([prompts['tokens'], answer.to(prompts['tokens'].device)], dim=1)
    last = prompts['image_index'][:, -1:]
    index = torch.cat([prompts['image_index'], last.expand(-1, answer.shape[1])], dim=1)
    length = prompts['length'] + answer.shape[1]
    return prompts | dict(tokens=tokens, image_index=index, length=length), n_prompt


def looks(asker, prompts, n_prompt):
    """What `with_answer` gives, with pictures -> for each word {'word', 'place' (of its first token),
    'answer' (is it of the answer?), 'index' (φ, 0 for none), 'image' (the one most looked at, from 0; None
    where the word sees none), 'weights' (F,S) on its frames and places}."""
    tokens, index = prompts['tokens'], prompts['image_index']
    weights = look(asker.model, tokens, index, prompts['features'], prompts['frame_mask']).cpu()  # (T,N,F,S)
    out = []
    for part in whole_words(tokens[0].tolist(), n_prompt, asker.tokenizer):
        # A word is predicted by the token before it, so that is the one whose look counts.
        seen = torch.stack([weights[t - 1] for t, _ in part]).mean(0)                 # (N,F,S)
        image = int(seen.sum((1, 2)).argmax()) if seen.sum() > 0 else None
        out.append({'word': asker.tokenizer.decode([token for _, token in part]).strip(),
                    'place': part[0][0], 'answer': part[0][0] >= n_prompt,
                    'index': int(index[0, part[0][0]]), 'image': image,
                    'weights': None if image is None else seen[image]})
    return out


def whole_words(tokens, n_prompt, tokenizer):
    """Token ids of a prompt of n_prompt and of its answer -> [[(place, id), …] of each word]; tags are
    none."""
    parts = []
    for t, token in enumerate(tokens):
        if token >= tokenizer.image or token in (tokenizer.bos, tokenizer.pad):
            continue
        begins = t == n_prompt or tokenizer.decode([token]).startswith((' ', '\n'))
        if begins or not parts or parts[-1][-1][0] != t - 1:
            parts.append([])
        parts[-1].append((t, token))
    return parts
