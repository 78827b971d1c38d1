"""What does an answer lose when a place of a picture is blanked? The map that needs no look inside.

Attention says what a layer reads; it does not say what comes of it, and a place of the encoder's grid has
seen more than its own pixels. Here a square of pixels is painted over with the picture's median colour (the
background's, mostly), and the log-probability of each word is computed once more (Zeiler & Fergus 2014,
arXiv:1311.2901). docs/questions.md: how much oftener its peak lies on the thing named.
"""
import math

import torch
from PIL import Image

from kit.answers import log_likelihoods
from kit.tasks.attention import whole_words, with_answer

LEAST = 0.05         # of log-probability, below which a loss is no loss
SHARE, STEPS = 5, 2  # a square has a fifth of the picture's side; it moves by half of its own


def squares(side):
    """-> [(top, left, bottom, right)] in pixels, row by row, and how many stand in a row"""
    edge = max(side // SHARE, 1)
    n = math.ceil((side - edge) / max(edge // STEPS, 1)) + 1
    starts = [round(i * (side - edge) / max(n - 1, 1)) for i in range(n)]  # from edge to edge
    return [(y, x, y + edge, x + edge) for y in starts for x in starts], len(starts)


def blanked(pixels):
    """pixels (F,3,H,W) uint8 of one picture -> (P,F,3,H,W), in each one square painted over"""
    places, _ = squares(pixels.shape[-1])
    colour = pixels.flatten(-2).median(-1).values[..., None, None]                    # (F,3,1,1)
    out = pixels.expand(len(places), *pixels.shape).clone()
    for copy, (top, left, bottom, right) in zip(out, places):
        copy[..., top:bottom, left:right] = colour
    return out


@torch.no_grad()
def occlusion(asker, media, prompts, images=None):
    """media: the pictures of one prompt (N of them); prompts: what asker.prompts makes of it, with any answer
    behind it -> {n: (T-1,P)}: by how much the log-probability of each token but the first falls when square
    p of picture n is blanked.

    images: which pictures, counted from 0; all unless said
    """
    model, tokens, index = asker.model, prompts['tokens'], prompts['image_index']
    visual = model.resample(prompts['features'], prompts['frame_mask'])   # (1,N,R,D)
    whole, found = log_likelihoods(model, tokens, index, visual), {}
    for n in range(len(media)) if images is None else images:
        pixels = blanked(asker.features.pixels(media[n]))                             # (P,F,3,H,W)
        features = asker.features.encode(pixels.flatten(0, 1)).to(tokens.device)      # (P*F,S,D)
        mask = torch.ones(len(pixels), 1, pixels.shape[1], dtype=torch.bool, device=tokens.device)
        changed = visual.repeat(len(pixels), 1, 1, 1)                                 # (P,N,R,D)
        changed[:, n] = model.resample(features, mask)[:, 0]
        rows = (len(pixels), -1)
        found[n] = (whole - log_likelihoods(model, tokens.expand(rows), index.expand(rows), changed)).T
    return found


def widened(lost, side):
    """What each square costs (P,) -> (side,side): at a pixel, the mean over the squares that cover it"""
    total, times = torch.zeros(side, side), torch.zeros(side, side)
    for value, (top, left, bottom, right) in zip(lost.tolist(), squares(side)[0]):
        total[top:bottom, left:right] += value
        times[top:bottom, left:right] += 1
    return total / times.clamp(min=1)


def words(asker, document, answer, most=48, images=None):
    """The last `most` words of a prompt and of the answer to it, for sheets.attention_sheet, and a title.

    document: data.Document; answer: token ids, read as far as they fit the context; images: see `occlusion`.
    -> ([{'word', 'place' (of its first token), 'picture', 'weights', 'top'}], title). The picture is the one
    that the word sees, of a clip the frame in the middle; words that see none are left out. Weights are what
    the word's log-probability loses, where it loses any.
    """
    media = document.media
    if not media:
        return [], 'no picture'
    prompts, n_prompt = with_answer(asker, document, answer)
    lost, steps = occlusion(asker, media, prompts, images), []
    for part in whole_words(prompts['tokens'][0].tolist(), n_prompt, asker.tokenizer)[-most:]:
        # A word is told by the token before it, so what that one sees is what counts.
        image = int(prompts['image_index'][0, part[0][0] - 1])
        if image - 1 not in lost:
            continue
        pixels = asker.features.pixels(media[image - 1])                              # (F,3,H,W)
        gone = sum(lost[image - 1][t - 1] for t, _ in part).clamp(min=0).cpu()        # (P,)
        word = asker.tokenizer.decode([token for _, token in part]).strip()
        where, weights = 'answer' if part[0][0] >= n_prompt else 'prompt', widened(gone, pixels.shape[-1])
        steps.append({'word': f'{where}, picture {image}: {word}', 'place': part[0][0],
                      'picture': Image.fromarray(pixels[len(pixels) // 2].permute(1, 2, 0).numpy()),
                      'weights': weights.numpy(), 'top': max(weights.max().item(), LEAST)})
    gates = '  '.join(f'{x:.2f} {d:.2f}' for x, d in asker.model.gates())
    return steps, f'Where words come from: each loses most without what is bright. Gates, by depth: {gates}'
