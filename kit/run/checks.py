"""Evaluations while a stage trains: a few numbers for the log and the curves."""
import numpy as np
import torch

from kit.features import FrozenFeatures
from kit.files import BadItem
from kit.run import distributed
from kit.tasks.asker import Asker
from kit.tasks.encoders import nearest_row, retrieval, zero_shot
from kit.tasks.episodes import episodes_of
from kit.tasks.results import measure
from kit.world.names import made_up_names


def encoder(run, contrastive):
    """Contrastive -> {name: value}: zero-shot classification in the drawn world, or retrieval in a
    folder's held-out split. With made-up class names: whether the nearest example is of the right class."""
    features = FrozenFeatures(contrastive.vision, run.reader.pixels, run.device)  # as it is now
    n = run.config.eval_n
    contrastive.eval()
    found = {}
    if run.config.words:
        episodes = {ways: episodes_of('naming', 1, n, ways, pairs=run.held_out, within=run.within())
                    for ways in run.ask_ways()}
        found |= {f'nearest_{ways}way': nearest_row(features, asked)['value']
                  for ways, asked in episodes.items()}
    elif run.held_out is None:
        found |= {'zero_shot': zero_shot(contrastive, run.tokenizer, features, 4 * n)['value']}
    if run.held_out is not None and (run.config.keep_captions or not run.config.words):
        rows = retrieval(run.held_out, contrastive, features, run.tokenizer, run.report, most=2000)
        found |= {row['metric']: row['value'] for row in rows if row['metric'] in ('i2t_R@1', 'i2t_R@5')}
    contrastive.train()
    return found


def copying(run, lm):
    """Accuracy of a GPT on the second half of a random word sequence that is given twice, 0 to 1: the copying
    that Flamingo will need."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(32):
        words = made_up_names(rng, 12, 'held')
        ids = [t for word in words for t in run.tokenizer.encode(' ' + word)][:min(24, lm.n_context // 2)]
        rows.append([run.tokenizer.bos, *ids, *ids])
    n = min(map(len, rows))
    tokens = torch.tensor([row[-n:] for row in rows], device=run.device)
    with torch.no_grad():
        logits, _ = lm(tokens[:, :-1])
    guess = logits.argmax(-1)
    half = n // 2 + 2
    return (guess[:, half:] == tokens[:, 1 + half:]).float().mean().item()


def few_shot(run, model, asker):
    """Flamingo -> {name: value}: naming with one example of each name, captions and clips with none."""
    tasks = [(f'naming_{ways}way', 'naming', ways) for ways in run.ask_ways()]
    tasks += [('caption', 'caption', None)] + [('clip', 'clip_caption', None)] * (run.held_out is None)
    found = {}
    model.eval()
    for name, task, ways in tasks:
        try:
            row, *_ = measure(asker, task, 1 if ways else 0, run.config.eval_n, ways, pairs=run.held_out,
                              within=run.within())
            found[name] = row['value']
        except BadItem as e:  # longer than the context
            run.report.add(e)
    model.train()
    return found


class RankedAsker(Asker):
    """An Asker whose episodes are divided among the ranks. If the model itself is split over the ranks
    (sharded), every answer needs all of them, and all ask the same episodes."""

    def __init__(self, *arguments, sharded):
        super().__init__(*arguments)
        self.model.train()  # an Asker sets it to eval; each evaluation does so for itself
        self.sharded = sharded

    def answer(self, episodes, progress=None):
        if self.sharded:
            return super().answer(episodes, progress)
        mine = super().answer(episodes[distributed.rank()::distributed.world()], progress)
        answers = [None] * len(episodes)
        for r, part in enumerate(distributed.gather(mine)):
            answers[r::distributed.world()] = part
        return answers
