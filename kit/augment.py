"""Augmentation: each picture of a batch is changed a little."""
import numpy as np
import torch
import torch.nn.functional as F


def augment(pixels, rng, flip=False, strength=1.0, colour=True, warp=0.0, lines=0.0):
    """(N,3,H,W) uint8 -> (N,3,H,W) uint8, each picture turned, scaled, moved and recoloured a little.

    flip:     mirror half of the pictures; off if left and right, or letters, mean something
    strength: of the changes of place and colour
    colour:   change colours, too; off for pictures without any
    warp:     how much to slant, stretch and bend as well, as two people's drawings of the same thing differ
    lines:    share of the pictures to trace: see `traced`
    Pixels that come into view take the colour of the nearest edge.

    The paper changes colours and flips pictures in the Flamingo stage, too. Ours augments only the
    contrastive stage: Flamingo trains on kept features of unchanged pictures (except for the variants on
    pages made from a folder).
    """
    n = len(pixels)
    draw = lambda low, high, *shape: torch.from_numpy(rng.uniform(low, high, (n, *shape)).astype(np.float32))
    x = pixels.float() / 255
    angle = draw(-0.25, 0.25) * strength                                        # radians
    scale = torch.exp(draw(-0.2, 0.2) * strength)
    shift = draw(-0.15, 0.15, 2) * strength
    mirror = torch.where(draw(0, 1) < 0.5, -1.0, 1.0) if flip else torch.ones(n)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    matrix = lambda a, b, c, d: torch.stack([a, b, c, d], 1).unflatten(1, (2, 2))  # (N,2,2)
    theta = matrix(cos * mirror, -sin, sin * mirror, cos)
    if warp > 0:
        slant, stretch = draw(-0.2, 0.2) * warp, torch.exp(draw(-0.15, 0.15) * warp)
        theta = theta @ matrix(stretch, slant / stretch, torch.zeros(n), 1 / stretch)
    theta = torch.cat([theta, shift.unsqueeze(-1)], 2)                          # (N,2,3)
    where = F.affine_grid(theta, x.shape, align_corners=False)                  # (N,H,W,2)
    if warp > 0:  # 4 x 4 points move; pixels between them move along
        bend = draw(-0.12, 0.12, 2, 4, 4) * warp
        bend = F.interpolate(bend, size=x.shape[-2:], mode='bicubic', align_corners=True)
        where = where + bend.permute(0, 2, 3, 1)
    x = F.grid_sample(x, where, padding_mode='border', align_corners=False)
    if colour:
        grey = x.mean(1, keepdim=True)
        fade = torch.where(draw(0, 1, 1, 1, 1) < 0.5 * strength, 0.0, 1 + strength * draw(-0.5, 0.5, 1, 1, 1))
        x = grey + (x - grey) * fade                                            # saturation, sometimes none
        x = x * (1 + strength * draw(-0.25, 0.25, 3, 1, 1))                     # colour cast
        contrast, light = draw(-0.3, 0.3, 1, 1, 1), draw(-0.15, 0.15, 1, 1, 1)
        x = (x - 0.5) * (1 + strength * contrast) + 0.5 + strength * light
    x = x.clamp(0, 1)
    if lines > 0:
        x = torch.where(draw(0, 1, 1, 1, 1) < lines, traced(x, draw), x)
    return (x * 255).round().to(torch.uint8)


def traced(x, draw):
    """Pictures (N,3,H,W) from 0 to 1 -> the same as if traced with a pen: their outlines, thin or bold, on
    white paper (four in ten) or on their own colours, more or less faded.

    *Why.* One hand fills shapes, another draws lines. An encoder that has seen filled shapes only goes by
    their colours, and knows little of a line drawing.
    """
    around = F.pad(x, (1, 1, 1, 1), mode='replicate')
    across = (around[:, :, 1:-1, 2:] - around[:, :, 1:-1, :-2]).abs()
    down = (around[:, :, 2:, 1:-1] - around[:, :, :-2, 1:-1]).abs()
    edge = (across + down).amax(1, keepdim=True)                                # (N,1,H,W)
    ink = (edge * torch.exp(draw(0.0, 1.6, 1, 1, 1)) - 0.15).clamp(0, 1)
    faded = torch.where(draw(0, 1, 1, 1, 1) < 0.4, 1.0, draw(0, 0.8, 1, 1, 1))
    paper = x + (1 - x) * faded
    return paper * (1 - ink) + ink * draw(0, 0.2, 1, 1, 1)                      # a pen is not always black
