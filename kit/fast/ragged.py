"""Clips of different lengths: those of one length go together."""
import torch


def real_frames(features, frame_mask):
    """What PerceiverResampler.forward takes -> the features of real frames, one after the other
    (frames,S,D_v), and frame_mask (B,N,F), which says whose they are"""
    if frame_mask is None:
        all_real = torch.ones(features.shape[:3], dtype=torch.bool, device=features.device)
        return features.flatten(0, 2), all_real
    return features[frame_mask] if features.ndim == 5 else features, frame_mask


def for_each_clip(function, frames, length, empty):
    """The frames of M clips, one clip after the other (frames,S,D), and how many each has (M,) -> (M,R,D)

    function makes (clips,R,D) of clips that have equally many frames (clips,F,S,D); of a clip without any
    comes `empty` (R,D). Padding is left out, not masked: a picture beside a clip of 8 frames would
    otherwise pay for all 8, and time is counted in a clip's own frames.
    """
    lengths = length.unique().tolist()                                         # seldom more than two or three
    if len(lengths) == 1 and lengths[0]:
        return function(frames.unflatten(0, (-1, lengths[0])))
    of_frame = length.repeat_interleave(length)                                # (frames,) that of its clip
    result = empty.repeat(len(length), 1, 1)                                   # (M,R,D)
    for n in filter(None, lengths):
        result[length == n] = function(frames[of_frame == n].unflatten(0, (-1, n)))
    return result
