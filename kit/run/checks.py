"""What a stage says about itself while it trains: a few numbers between steps, for the log and the curves."""
import numpy as np
import torch

from kit.features import FrozenFeatures
from kit.files import BadItem
from kit.run import distributed
from kit.tasks.asker import Asker
from kit.tasks.encoders import nearest_row, retrieval, zero_shot
from kit.tasks.episodes import episodes_of
from kit.tasks.results import measure
from kit.world.words import made_up_names


def encoder(run, contrastive):
    """Contrastive -> {name: value}: zero-shot classes of the embedded world, or retrieval in a folder's
    held-out split; where class names say nothing, whether new things are told apart."""
    features = FrozenFeatures(contrastive.vision, run.reader.pixels, run.device)  # of the encoder as it is now
    n = run.config.eval_n
    contrastive.eval()
    if run.config.words:
        episodes = {ways: episodes_of('naming', 1, n, ways, pairs=run.held_out, within=run.within())
                    for ways in run.ask_ways()}
        found = {f'nearest_{ways}way': nearest_row(features, asked)['value'] for ways, asked in episodes.items()}
    elif run.held_out is None:
        found = {'zero_shot': zero_shot(contrastive, run.tokenizer, features, 4 * n)['value']}
    else:
        rows = retrieval(run.held_out, contrastive, features, run.tokenizer, run.report, most=2000)
        found = {row['metric']: row['value'] for row in rows if row['metric'] in ('i2t_R@1', 'i2t_R@5')}
    contrastive.train()
    return found


def copying(run, lm):
    """How often a GPT is right about a random word sequence the second time it sees it: the copying that
    Flamingo will need. 1.0 = copies perfectly."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(32):
        words = made_up_names(rng, 12, 'held')
        ids = [t for word in words for t in run.tokenizer.encode(' ' + word)][:min(24, lm.n_context // 2)]
        rows.append([run.tokenizer.bos, *ids, *ids])
    n = min(map(len, rows))
    tokens = torch.tensor([row[-n:] for row in rows], device=run.device)
    with torch.no_grad():
        guess = lm(tokens[:, :-1]).argmax(-1)
    half = n // 2 + 2
    return (guess[:, half:] == tokens[:, 1 + half:]).float().mean().item()


def few_shot(run, model, asker):
    """Flamingo -> {name: value}: naming from one example each, captions and clips without any."""
    tasks = [(f'naming_{ways}way', 'naming', ways) for ways in run.ask_ways()] + [('caption', 'caption', None)]
    tasks += [('clip', 'clip_caption', None)] * (run.held_out is None)
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
    """Puts the questions of an evaluation to the model, each rank its share of them. Not where the model
    itself is shared out (sharded): then every answer needs all ranks, and all ask the same."""

    def __init__(self, *arguments, sharded):
        super().__init__(*arguments)
        self.sharded = sharded

    def answer(self, episodes, progress=None):
        if self.sharded:
            return super().answer(episodes, progress)
        mine = super().answer(episodes[distributed.rank()::distributed.world()], progress)
        answers = [None] * len(episodes)
        for r, part in enumerate(distributed.gather(mine)):
            answers[r::distributed.world()] = part
        return answers
