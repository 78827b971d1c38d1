"""The two contrastive encoders at work: pictures and texts in one space, classes from descriptions, retrieval, a linear probe."""
import torch
import torch.nn.functional as F

from kit import metrics


def classify(contrastive, tokenizer, features, media, truth, classes):
    """The CLIP way: a class is the mean of what its descriptions look like, a picture belongs to the nearest. -> accuracy

    classes: for each class a list of descriptions; truth: for each Media the number of its class.
    """
    classes = torch.stack([embed_texts(contrastive.text, tokenizer, forms).mean(0) for forms in classes])
    classes = F.normalize(classes, dim=-1)                                           # (C,E)
    similarity = embed_media(contrastive.vision, features, media) @ classes.T         # (N,C)
    return metrics.top_1(similarity.float().cpu(), truth)


@torch.no_grad()
def embed_texts(tower, tokenizer, texts, batch_size=64):
    """list of N str -> (N,E), of length 1. A text begins with a space, as in training: "red" and " red" are two tokens."""
    out = []
    for i in range(0, len(texts), batch_size):
        tokens, mask = pad_texts([tokenizer.encode(' ' + t) for t in texts[i:i + batch_size]], tower.n_context)
        device = tower.token.weight.device
        out.append(tower.embed(tokens.to(device), mask.to(device)))
    return torch.cat(out)


@torch.no_grad()
def pool_media(features, media, batch_size=64):
    """list of N Media -> (N,D): the mean over places of the frozen encoder's features; a clip counts as the mean of its frames"""
    out = []
    for i in range(0, len(media), batch_size):
        grid, mask = features([[m] for m in media[i:i + batch_size]])                # (M,S,D) of all frames, (N,1,F)
        out += [clip.mean(0) for clip in grid.mean(1).split(mask.sum((1, 2)).tolist())]
    return torch.stack(out)


@torch.no_grad()
def embed_media(vision, features, media):
    """list of N Media -> (N,E), of length 1"""
    return F.normalize(vision.projection(pool_media(features, media)), dim=-1)


def ranks(asked, answers, belong, block=1024):
    """How many wrong answers stand before the first right one, ties against us -> (Q,). asked (Q,E), answers (A,E), of length 1; belong:
    (question, answer) of all that are right. A block of questions at a time: all similarities at once may be too many for the memory."""
    belong, rank = torch.tensor(belong, device=asked.device), []
    for start in range(0, len(asked), block):
        similarity = asked[start:start + block] @ answers.T                            # (questions of the block,A)
        question, answer = belong[(belong[:, 0] >= start) & (belong[:, 0] < start + block)].T
        right = torch.zeros_like(similarity, dtype=torch.bool)
        right[question - start, answer] = True
        best = similarity.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
        rank.append(((similarity >= best) & ~right).sum(1))
    return torch.cat(rank)


def pad_texts(ids, longest):
    """lists of token ids -> tokens (N,T), mask (N,T); what is longer than `longest` is cut"""
    ids = [i[:longest] or [0] for i in ids]
    t = max(map(len, ids))
    tokens = torch.tensor([i + [0] * (t - len(i)) for i in ids])
    return tokens, torch.arange(t) < torch.tensor([[len(i)] for i in ids])


def linear_probe(train, train_truth, test, n_class, decay=1e-3):
    """Logistic regression on frozen features, by L-BFGS: train (N,D), train_truth (N,) int, test (M,D) -> (M,) classes."""
    mean, std = train.mean(0), train.std(0, correction=0).clamp(min=1e-6)
    train, test = (train - mean) / std, (test - mean) / std
    weight = torch.zeros(train.shape[1], n_class, requires_grad=True, device=train.device)
    bias = torch.zeros(n_class, requires_grad=True, device=train.device)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, tolerance_grad=1e-5, tolerance_change=1e-7, line_search_fn='strong_wolfe')

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(train @ weight + bias, train_truth) + decay * weight.square().sum() / 2
        loss.backward()
        return loss
    optimizer.step(closure)
    return (test @ weight + bias).argmax(1)
