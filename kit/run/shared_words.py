"""A language model that begins with the words of the text tower.

The contrastive stage leaves a vector for each word of the captions, close to those of words that are seen
together. A language model that starts from random vectors has the same words anywhere, and the layers between
the two would have to learn the way from every picture to every word, each by itself. If its table of words
begins with the tower's directions, one linear map leads from what is seen to all words, rare ones too.
"""
import torch
import torch.nn.functional as F

from kit.run import class_words


@torch.no_grad()
def share_words(lm, table, words):
    """Give the rows `words` (n ids) of a fresh GPT's table the directions that they have in `table` (V,D), in
    place -> the same GPT. Their lengths stay, and so do dimensions that are zero (kit/copying.py keeps them
    for positions)."""
    wte = lm.wte.weight
    free = (wte != 0).any(0)                                                         # (lm_dim,)
    x = table[words] - table[words].mean(0)                                          # (n,D)
    axes = torch.linalg.svd(x, full_matrices=False)[2][:int(free.sum())]             # the main axes
    x = x @ axes.T @ torch.nn.init.orthogonal_(torch.empty(len(axes), int(free.sum())))  # none is special
    length = wte[words][:, free].norm(dim=1, keepdim=True)
    rows = wte[words]
    rows[:, free] = F.normalize(x, dim=1) * length
    wte[words] = rows
    return lm


def begin(run, lm):
    """lm as it is, or, where captions are kept beside the encoder's words, with the text tower's words."""
    if not run.config.keep_captions or run.config.gpt2:
        return lm
    table = run.load_stage('vision', 'contrastive')['contrastive']['text.token.weight']
    said = {item.text for item in class_words.items_of(run) if item.split == 'train'}
    words = sorted({token for text in said for token in run.tokenizer.encode(' ' + text)})
    return share_words(lm, table, torch.tensor(words))
