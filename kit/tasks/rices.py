"""RICES: the examples of a prompt are those that look most like the query (retrieval-based in-context example
selection; Yang et al. 2021; appendix A.2 and Table 7 of the Flamingo paper).

    python sample.py --prompt='<image:q.png>Output:' --rices=my_pictures --shots=8
"""
import contextlib
import hashlib
import os
import sys

import torch

from data import CAPTION_PROMPT, Document, EndOfChunk, Example, Media
from kit.files import BadInput
from kit.sources.base import readable_pairs, Report
from kit.tasks.encoders import embed_media
from kit.weights import checkpoint


def identity(vision):
    """A short text that differs where any weight of the encoder does."""
    digest = hashlib.sha256()
    for name, value in sorted(vision.state_dict().items()):
        digest.update(name.encode() + value.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def folder_embeddings(pairs, contrastive, features, cache, report):
    """Every picture of a folder in the contrastive space -> (list of N Item, embeddings (N,E), of length 1).

    cache: a file to keep the embeddings in. It serves pictures whose key (path, date, size) is in it, as long
    as the encoder is the same; so it is renewed when the folder or the checkpoint changes.
    """
    pairs = readable_pairs(pairs, features.pixels, report)
    media = [pairs.media(i) for i in range(len(pairs))]
    encoder, known = identity(contrastive.vision), {}
    with contextlib.suppress(BadInput):  # not there, or damaged: then all is embedded
        content = checkpoint.load(cache, 'rices', encoder=str, keys=list, embeddings=torch.Tensor)
        if content['encoder'] == encoder:
            known = dict(zip(content['keys'], content['embeddings']))
    new = [m for m in media if m.key not in known]
    if new:
        known |= dict(zip([m.key for m in new], embed_media(contrastive.vision, features, new).cpu()))
    embeddings = torch.stack([known[m.key] for m in media])
    if new or len(known) > len(media):
        checkpoint.save(cache, 'rices', encoder=encoder, keys=[m.key for m in media], embeddings=embeddings)
    return pairs.items, embeddings


def nearest(query, items, embeddings, contrastive, features, n):
    """The numbers of the n items whose pictures look most like the query (a Media on disk), the nearest last,
    next to the question.

    The query's own picture, if it lies in the folder, is not among them: it would give the answer away. Of a
    picture with several captions the first stands for it.
    """
    similarity = embeddings @ embed_media(contrastive.vision, features, [query])[0].cpu()  # (N,)
    own = os.path.realpath(query.key)
    best = {own: None}
    for k in similarity.argsort(descending=True, stable=True).tolist():
        best.setdefault(os.path.realpath(str(items[k].path)), k)
        if len(best) > n:
            break
    return [k for k in best.values() if k is not None][::-1]


def with_examples(document, config, asker, contrastive):
    """A prompt after the --shots examples of the folder --rices that look most like its last picture ->
    Document.

    Raises BadInput where the prompt shows no picture. What cannot be read is told on stderr.
    """
    shown = document.media
    if not (config.prompt or config.prompt_file) or not shown:
        raise BadInput('--rices: give a --prompt with the picture that is asked about')
    report = Report()
    pairs = asker.pairs(config.rices, report, images=config.images)
    name = hashlib.sha256(os.fsencode(os.path.realpath(config.rices))).hexdigest()[:12]
    cache = os.path.join(config.out_dir, f'rices-{name}.pt')
    items, embeddings = folder_embeddings(pairs, contrastive, asker.features, cache, report)
    pieces = []
    for k in nearest(shown[-1], items, embeddings, contrastive, asker.features, config.shots):
        item = items[k]
        pieces += Example(asker.media(item.path), item.prompt or CAPTION_PROMPT, item.text).pieces()
    if pieces and not isinstance(document.pieces[0], Media):
        pieces.append(EndOfChunk())  # a picture would close the example before it; a text does not
    for line in report.lines():
        print('left out', line, file=sys.stderr)
    return Document(pieces + document.pieces, 'prompt', document.where)
