"""Where is what it sees lost on its way to the answer? The same pictures after the encoder, after the
resampler, and in the stream of words after each gated layer.

    python evaluate.py --depths=my_pictures --split=val

At each place, two questions about things that training never saw. *Nearest*: is the example that looks most
like the query the right one? This is naming from one example, without any language model. *Probe*: does a
linear classifier that has seen all but one picture of each thing know the last one?
"""
import numpy as np
import torch

from data import CAPTION_PROMPT, Example
from kit.episode import Episode
from kit.files import BadInput
from kit.sources.base import readable_pairs
from kit.tasks.encoders import linear_probe, nearest, pool_media
from kit.tasks.naming import naming_episodes, possible_ways
from kit.tasks.results import row


@torch.no_grad()
def at_depths(asker, media, batch_size=64):
    """list of N Media -> {place: (N,D)}. In the stream, the last token of `<image>Output:` counts, from which
    the first word of an answer is told."""
    model, out = asker.model, {}
    for start in range(0, len(media), batch_size):
        part = media[start:start + batch_size]
        prompts = asker.prompts([Episode([], Example(one, CAPTION_PROMPT, '')).document() for one in part])
        visual = model.resample(prompts['features'], prompts['frame_mask'])  # (B,1,R,D)
        found, places = {'encoder': pool_media(asker.features, part), 'resampler': visual.flatten(1)}, []
        hooks = [layer.register_forward_hook(lambda *said: places.append(said[2][:, -1]))
                 for layer in model.gated]
        model.stream(prompts['tokens'], prompts['image_index'], visual)
        for hook in hooks:
            hook.remove()
        found |= {f'gated layer {k + 1}': y for k, y in enumerate(places)}
        for place, x in found.items():
            out.setdefault(place, []).append(x.float().cpu())
    return {place: torch.cat(parts) for place, parts in out.items()}


def last_of_each(labels):
    """[label] -> numbers of the last picture of each thing that has another one"""
    last, several = {}, set()
    for k, label in enumerate(labels):
        if label in last:
            several.add(label)
        last[label] = k
    return [last[label] for label in sorted(several)]


def run_depths(config, asker, contrastive, report):
    """--depths=DIR -> rows"""
    pairs = asker.pairs(config.depths, report, config.split, images=config.images)
    pairs = readable_pairs(pairs, asker.features.pixels, report)
    items, media = pairs.items, [pairs.media(k) for k in range(len(pairs))]
    names = list(dict.fromkeys(item.label for item in items))
    truth = torch.tensor([names.index(item.label) for item in items])
    test = torch.zeros(len(items), dtype=torch.bool)
    test[last_of_each([item.label for item in items])] = True
    if not test.any():
        raise BadInput(f'{config.depths}: no thing has two pictures, one to learn from and one to ask about')
    seen, rows = at_depths(asker, media), []
    place_of = {one.key: k for k, one in enumerate(media)}
    asked = {ways: naming_episodes(config, ways, 1, pairs) for ways in possible_ways(config, pairs, report)}
    for ways, episodes in asked.items():  # a thing with one picture is shown in variants, which are not here
        asked[ways] = [e for e in episodes if all(s.media.key in place_of for s in [*e.support, e.query])]
    for place, x in seen.items():
        for ways, episodes in asked.items():
            said = nearest(lambda part: torch.stack([x[place_of[one.key]] for one in part]), episodes)
            right = [name == e.query.answer for name, e in zip(said, episodes)]
            rows.append(row('depths', float(np.mean(right)), len(right), ways, 1, metric=f'nearest, {place}'))
        guess = linear_probe(x[~test], truth[~test], x[test], len(names))
        value = (guess == truth[test]).float().mean().item()
        rows.append(row('depths', value, int(test.sum()), len(names), metric=f'probe, {place}'))
    return rows
