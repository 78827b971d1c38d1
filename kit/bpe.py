"""Train a byte-level BPE tokenizer and write it in tiktoken's format. How assets/tokenizer.tiktoken was made,
of the drawn world's texts as they were then:

    python -m kit.bpe --n_rank=1022 --out=assets/tokenizer.tiktoken
"""
import re
from collections import Counter

import numpy as np

from kit.cli import check_range, command, configure
from kit.tokenizer import Tokenizer
from kit.world.pages import Shapes

# kit.tokenizer.SPLIT, written for Python's own `re`, which has no \p{L}.
WORDS = re.compile(r"""'(?:[sdmt]|ll|ve|re)| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+""")


def train_bpe(texts, n_rank):
    """Iterable of str -> {bytes: rank}: the 256 bytes, then the most frequent pair again and again (Sennrich
    et al. 2016). Ties go to the pair that sorts first: the same text always gives the same tokenizer."""
    words = Counter(w for text in texts for w in WORDS.findall(text))
    split = {w: tuple(bytes([b]) for b in w.encode()) for w in words}
    ranks = {bytes([b]): b for b in range(256)}
    while len(ranks) < n_rank:
        pairs = Counter()
        for w, n in words.items():
            for pair in zip(split[w], split[w][1:]):
                pairs[pair] += n
        if not pairs:
            break
        best = min(pairs, key=lambda p: (-pairs[p], p))
        ranks[best[0] + best[1]] = len(ranks)
        for w, parts in split.items():
            if best[0] in parts:
                split[w] = merge(parts, best)
    return ranks


def merge(parts, pair):
    """('r','i','n','g') with the pair ('i','n') -> ('r','in','g')"""
    out, i = [], 0
    while i < len(parts):
        if parts[i:i + 2] == pair:
            out.append(pair[0] + pair[1])
            i += 2
        else:
            out.append(parts[i])
            i += 1
    return tuple(out)


def main():
    keys = {
        'out': ('assets/tokenizer.tiktoken', 'file to write'),
        'n_rank': (1022, 'size of the vocabulary, without <BOS>, <PAD>, <image> and <EOC>'),
        'n_text': (5000, 'texts of the drawn world to learn from'),
    }
    config = configure(keys, usage=__doc__)
    check_range(config, 256, 1 << 20, 'n_rank')  # every byte is one
    check_range(config, 1, 10_000_000, 'n_text')
    pages, short, long = Shapes('m3w'), Shapes('align'), Shapes('ltip')
    rng = np.random.default_rng(0)
    texts = [pages.text(i, rng) for i in range(config.n_text)]
    texts += [' ' + piece for source in (short, long) for i in range(config.n_text // 4)
              for piece in source.document(i, rng).pieces[1:]]
    tokenizer = Tokenizer(train_bpe(texts, config.n_rank))
    tokenizer.save(config.out)
    print(f'{config.out}: {len(tokenizer.ranks)} ranks')


if __name__ == '__main__':
    command(main)
