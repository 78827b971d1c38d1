"""Clips of different lengths: those of one length go together."""
import torch


def for_each_clip(function, frames, length, empty):
    """The frames of M clips, one clip after the other (frames,S,D), and how many each has (M,) -> (M,R,D)

    function makes (clips,R,D) of clips that have equally many frames (clips,F,S,D); of a clip without any
    comes `empty` (R,D). Padding is left out, not masked: a picture beside a clip of 8 frames would
    otherwise pay for all 8, and time is counted in a clip's own frames.
    """
    of_frame = length.repeat_interleave(length)                       # (frames,) that of its clip
    lengths, results, place = length.unique().tolist(), [], []                 # seldom more than two or three
    if len(lengths) == 1 and lengths[0]:
        return function(frames.unflatten(0, (-1, lengths[0])))
    for n in lengths or [0]:
        place.append((length == n).nonzero().squeeze(1))
        clips = frames[of_frame == n].unflatten(0, (-1, n)) if n else None
        results.append(function(clips) if n else empty.expand(len(place[-1]), *empty.shape))
    order = torch.cat(place).argsort()                                         # back to where each clip stood
    return torch.cat(results).index_select(0, order)
