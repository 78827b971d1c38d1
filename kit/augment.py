"""Augmentation: a batch of pictures, each changed a little."""
import numpy as np
import torch


def augment(pixels, rng, flip=False, strength=1.0, colour=True, warp=0.0):
    """A batch of pictures (N,3,H,W) uint8, each turned, scaled, moved and recoloured a little -> the same, uint8.

    Random colour and flips are the paper's augmentation, of the Flamingo stage, too; there, ours has features that were kept, and
    shows pictures as they are, but for the variants on pages made of a folder. Flips are off where left and right, or letters,
    mean something, colour where there is none. Pixels that come into view take the colour of the nearest edge.
    warp: how much each is slanted, stretched and bent besides, as two hands differ that draw the same.
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
    where = torch.nn.functional.affine_grid(torch.cat([theta, shift.unsqueeze(-1)], 2), x.shape, align_corners=False)  # (N,H,W,2)
    if warp > 0:  # 4 x 4 points move, and what is between them goes along
        bend = torch.nn.functional.interpolate(draw(-0.12, 0.12, 2, 4, 4) * warp, size=x.shape[-2:], mode='bicubic', align_corners=True)
        where = where + bend.permute(0, 2, 3, 1)
    x = torch.nn.functional.grid_sample(x, where, padding_mode='border', align_corners=False)
    if colour:
        grey = x.mean(1, keepdim=True)
        fade = torch.where(draw(0, 1, 1, 1, 1) < 0.5 * strength, 0.0, 1 + strength * draw(-0.5, 0.5, 1, 1, 1))
        x = grey + (x - grey) * fade                                            # saturation, now and then none at all
        x = x * (1 + strength * draw(-0.25, 0.25, 3, 1, 1))                     # colour cast
        x = (x - 0.5) * (1 + strength * draw(-0.3, 0.3, 1, 1, 1)) + 0.5 + strength * draw(-0.15, 0.15, 1, 1, 1)
    return (x.clamp(0, 1) * 255).round().to(torch.uint8)
