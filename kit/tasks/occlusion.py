"""What does an answer lose when a place of a picture is blanked? The map that needs no look inside.

Attention says what a layer reads; it does not say what comes of it, and a place of the encoder's grid has
seen more than its own pixels. Here a square of pixels is painted over with the picture's mean colour, and the
log-probability of each word is computed once more (Zeiler & Fergus 2014, arXiv:1311.2901).
"""
import torch
import torch.nn.functional as F

SHARE, STEPS = 3, 2  # a square has a third of the picture's side; it moves by half of its own


def squares(side):
    """-> [(top, left, bottom, right)] in pixels, row by row, and how many stand in a row"""
    edge = max(side // SHARE, 1)
    step = max(edge // STEPS, 1)
    starts = range(0, side - edge + 1, step)
    return [(y, x, y + edge, x + edge) for y in starts for x in starts], len(starts)


def blanked(pixels):
    """pixels (F,3,H,W) uint8 of one picture -> (P,F,3,H,W), in each one square painted over"""
    places, _ = squares(pixels.shape[-1])
    mean = pixels.float().mean((-2, -1), keepdim=True).round().to(torch.uint8)        # (F,3,1,1)
    out = pixels.expand(len(places), *pixels.shape).clone()
    for copy, (top, left, bottom, right) in zip(out, places):
        copy[..., top:bottom, left:right] = mean
    return out


def log_p(model, tokens, image_index, visual):
    """-> log-probability of each token after the ones before it: tokens (B,T) -> (B,T-1)"""
    y = model.stream(tokens, image_index, visual)                                     # (B,T,D)
    said = F.log_softmax(model.head(y[:, :-1]).float(), -1)
    return said.gather(2, tokens[:, 1:, None]).squeeze(2)


@torch.no_grad()
def occlusion(asker, media, prompts, images=None):
    """media: the pictures of one prompt (N of them); prompts: what asker.prompts makes of it, with any answer
    behind it -> {n: (T-1,P)}: by how much the log-probability of each token but the first falls when square
    p of picture n is blanked.

    images: which pictures, counted from 0; all unless said
    """
    model, tokens, index = asker.model, prompts['tokens'], prompts['image_index']
    visual = model.resample(features=prompts['features'], frame_mask=prompts['frame_mask'])   # (1,N,R,D)
    whole, found = log_p(model, tokens, index, visual), {}
    for n in range(len(media)) if images is None else images:
        pixels = blanked(asker.features.pixels(media[n]))                             # (P,F,3,H,W)
        features = asker.features.encode(pixels.flatten(0, 1)).to(tokens.device)      # (P*F,S,D)
        mask = torch.ones(len(pixels), 1, pixels.shape[1], dtype=torch.bool, device=tokens.device)
        changed = visual.repeat(len(pixels), 1, 1, 1)                                 # (P,N,R,D)
        changed[:, n] = model.resample(features=features, frame_mask=mask)[:, 0]
        rows = (len(pixels), -1)
        found[n] = (whole - log_p(model, tokens.expand(rows), index.expand(rows), changed)).T
    return found
