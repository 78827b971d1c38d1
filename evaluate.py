"""Does it learn from its prompt? Few-shot tasks, and the numbers that answer.

    python evaluate.py                                         # the few-shot table of the embedded world
    python evaluate.py --episodes=trials.jsonl                 # your own episodes, one a line
    python evaluate.py --retrieval=my_pictures --split=val     # which caption belongs to which picture?

A task gives `data.Episode`s. Where an episode has choices, each is scored by log-likelihood and the best one is the
prediction; elsewhere the answer is generated (§4, appendix A.2). Rows of results are dicts
{"task", "ways", "shots", "control", "metric", "value", "low", "high", "n"}; low and high bound the 95 % interval.
"""
import math
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from data import Media, collate, encode
from kit import pictures, shapes

# ---------------------------------------------------------------------------------------------
# Asking a model


def blank_frame():
    return [Image.new('RGB', (shapes.SIZE, shapes.SIZE), (128, 128, 128))]


BLANK = Media('blank', blank_frame)


def blank_support(episode):
    """The same episode with nothing to see in its support pictures. What is left is their text."""
    return replace(episode, support=[replace(e, media=e.media and BLANK) for e in episode.support])


class Asker:
    """A trained Flamingo and all that is needed to put questions to it."""

    def __init__(self, model, tokenizer, features, batch_size=16):
        self.model, self.tokenizer, self.features, self.batch_size = model.eval(), tokenizer, features, batch_size

    def prompts(self, episodes):
        """-> keyword arguments of `generate` and `score`. Raises BadInput where a prompt is too long."""
        encoded = [encode(e.document(), self.tokenizer, n_token=self.model.lm.n_context - 1) for e in episodes]
        batch = collate(encoded, self.tokenizer)
        features, frame_mask = self.features(batch.media)
        device = self.features.device
        return dict(tokens=batch.tokens.to(device), length=batch.length.to(device), image_index=batch.image_index.to(device),
                    features=features, frame_mask=frame_mask)

    def choose(self, episodes):
        """-> for each episode a dict {choice: log-probability}"""
        ids = [[self.tokenizer.encode(' ' + c) + [self.tokenizer.eoc] for c in e.choices] for e in episodes]
        scores = self.model.score(candidates=ids, **self.prompts(episodes))
        return [dict(zip(e.choices, s)) for e, s in zip(episodes, scores)]

    def write(self, episodes, max_new_tokens=24, beam_size=3):
        """-> for each episode a pair (text, log-probability)"""
        answers = self.model.generate(max_new_tokens=max_new_tokens, beam_size=beam_size, **self.prompts(episodes))
        return [(self.tokenizer.decode(ids).strip(), log_p) for ids, log_p in answers]

    def answer(self, episodes, progress=None):
        """-> for each episode a dict {"prediction", "answer", "correct", "logprob"}, in order.

        Similar episodes are asked together: those with choices, and prompts of like length, so that little is padding.
        """
        order = sorted(range(len(episodes)), key=lambda i: (episodes[i].choices is None, len(episodes[i].support)))
        out = [None] * len(episodes)
        bar = tqdm(total=len(episodes), desc=progress, disable=progress is None, leave=False)
        while order:
            closed = episodes[order[0]].choices is not None
            part = [i for i in order[:self.batch_size] if (episodes[i].choices is not None) == closed]
            order = order[len(part):]
            asked = [episodes[i] for i in part]
            if closed:
                best = [max(scores.items(), key=lambda item: item[1]) for scores in self.choose(asked)]
            else:
                best = self.write(asked)
            for i, e, (text, log_p) in zip(part, asked, best):
                right = text == e.query.answer if closed else e.is_right(text)
                out[i] = {'prediction': text, 'answer': e.query.answer, 'correct': bool(right), 'logprob': log_p}
            bar.update(len(part))
        bar.close()
        return out


# ---------------------------------------------------------------------------------------------
# Tables


def interval(value, n, z=1.96):
    """Wilson's 95 % interval of a proportion seen n times -> (low, high). Unlike ± it stays within 0 and 1."""
    if n == 0:
        return 0.0, 1.0
    middle = (value + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(value * (1 - value) / n + z * z / (4 * n * n))
    return middle - half, middle + half


def row(task, value, n, ways=None, shots=None, control=None, metric='accuracy'):
    low, high = interval(value, n)
    return {'task': task, 'ways': ways, 'shots': shots, 'control': control, 'metric': metric, 'value': value, 'low': low, 'high': high, 'n': n}


def episodes_of(task, shots, n, ways=None, seed=0):
    """n episodes of a task of the embedded world; the same ones for the same seed."""
    rng = np.random.default_rng([seed, shots, ways or 0, *task.encode()])
    make = {'naming': shapes.naming_episode, 'caption': shapes.caption_episode, 'question': shapes.question_episode, 'clip_caption': shapes.clip_episode}[task]
    return [make(rng, 'held', ways, shots, asked=i % ways) if ways else make(rng, 'held', shots) for i in range(n)]


def measure(asker, task, shots, n, ways=None, control=None, seed=0, progress=None):
    """-> (row, episodes, answers)"""
    episodes = episodes_of(task, shots, n, ways, seed)
    if control == 'blank_support':
        episodes = [blank_support(e) for e in episodes]
    answers = asker.answer(episodes, progress)
    return row(task, sum(a['correct'] for a in answers) / n, n, ways, shots, control), episodes, answers


def zero_shot(contrastive, tokenizer, features, n):
    """Contrastive zero-shot: pictures of held-out pairs, the nearest description among all 64 pairs -> row."""
    media, truth = shapes.zero_shot_pictures('held', n)
    classes = torch.stack([embed_texts(contrastive.text, tokenizer, forms).mean(0) for forms in shapes.zero_shot_classes()])
    right = (embed_media(contrastive.vision, features, media) @ classes.T).argmax(1) == torch.tensor(truth, device=classes.device)
    return row('zero_shot', right.float().mean().item(), n)


@torch.no_grad()
def embed_texts(tower, tokenizer, texts, batch_size=64):
    """list of N str -> (N,E), of length 1"""
    out = []
    for i in range(0, len(texts), batch_size):
        tokens, mask = pad_texts([tokenizer.encode(t) for t in texts[i:i + batch_size]], len(tower.position.weight))
        device = tower.token.weight.device
        out.append(tower.embed(tokens.to(device), mask.to(device)))
    return torch.cat(out)


@torch.no_grad()
def embed_media(vision, features, media, batch_size=64):
    """list of N Media -> (N,E), of length 1; a clip counts as the mean of its frames"""
    out = []
    for i in range(0, len(media), batch_size):
        grid, mask = features([[m] for m in media[i:i + batch_size]])                # (N,1,F,S,D), (N,1,F)
        weight = mask[:, 0, :, None].float()                                         # (N,F,1)
        pooled = (grid[:, 0].mean(2) * weight).sum(1) / weight.sum(1)                # (N,D)
        out.append(torch.nn.functional.normalize(vision.projection(pooled), dim=-1))
    return torch.cat(out)


def pad_texts(ids, longest):
    """lists of token ids -> tokens (N,T), mask (N,T); what is longer than `longest` is cut"""
    ids = [i[:longest] or [0] for i in ids]
    t = max(map(len, ids))
    tokens = torch.tensor([i + [0] * (t - len(i)) for i in ids])
    return tokens, torch.arange(t) < torch.tensor([[len(i)] for i in ids])


def first_table(asker, contrastive, n=400, seed=1):
    """The table that train.py ends with -> (rows, [(title, episode, answer)] to look at)."""
    rows = [zero_shot(contrastive, asker.tokenizer, asker.features, 2 * n)]
    plan = [('naming', ways, shots, None) for ways in (2, 4) for shots in (1, 2, 4)]
    plan += [('naming', ways, 1, 'blank_support') for ways in (2, 4)]
    plan += [(task, None, shots, None) for task in ('caption', 'question', 'clip_caption') for shots in (0, 4, 8)]
    shown = []
    for task, ways, shots, control in tqdm(plan, desc='few-shot table', leave=False):
        result, episodes, answers = measure(asker, task, shots, n, ways, control, seed)
        rows.append(result)
        if control is None and shots <= 4:
            shown.append((f'{task}{f", {ways}-way" if ways else ""}, {shots} shot{"s" if shots != 1 else ""}', episodes[0], answers[0]))
    return rows, shown


def table(rows):
    """Rows of results as text: tasks down, shots across."""
    shots = sorted({r['shots'] for r in rows if r['shots'] is not None})
    lines = {}
    for r in rows:
        name = r['task'] + (f', {r["ways"]}-way' if r['ways'] else '') + (f', {r["control"]}' if r['control'] else '')
        name += '' if r['metric'] == 'accuracy' else f', {r["metric"]}'
        cell = f'{r["value"]:.1%} ({r["low"]:.0%}–{r["high"]:.0%})'
        lines.setdefault(name, {})[r['shots']] = cell
    header = ['task', *(['no prompt'] if any(r['shots'] is None for r in rows) else []), *[f'{s} shot{"s" if s != 1 else ""}' for s in shots]]
    columns = [None, *shots] if 'no prompt' in header else shots
    return pictures.text_table([[name, *[cells.get(s, '') for s in columns]] for name, cells in lines.items()], header)


def sheet(shown):
    """[(title, episode, answer)] -> one picture: prompts with their pictures, and what the model said."""
    prompts = []
    for title, episode, answer in shown:
        pieces = []
        for piece in episode.document().pieces:
            pieces.append((lambda frames: frames[0] if len(frames) == 1 else frames)(piece.load()) if isinstance(piece, Media) else piece)
        joined = [p for p in pieces[:1]]
        for p in pieces[1:]:
            if isinstance(p, str) and isinstance(joined[-1], str):
                joined[-1] += p  # an example's prompt and its answer are one text
            else:
                joined.append(p)
        prompts.append({'title': title, 'pieces': joined, 'answer': answer['prediction'], 'truth': answer['answer']})
    return pictures.prompt_sheet(prompts)
