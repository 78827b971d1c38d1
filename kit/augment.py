"""Augmentation: each picture of a batch is changed a little."""
import numpy as np
import torch
import torch.nn.functional as F


def augment(pixels, rng, flip=False, strength=1.0, colour=True, warp=0.0):
    """(N,3,H,W) uint8 -> (N,3,H,W) uint8, each picture turned, scaled, moved and recoloured a little.

    flip:     mirror half of the pictures; off if left and right, or letters, mean something
    strength: of the changes of place and colour
    colour:   change colours, too; off for pictures without any
    warp:     how much to slant, stretch and bend as well, as two people's drawings of the same thing differ
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
    return (x.clamp(0, 1) * 255).round().to(torch.uint8)
