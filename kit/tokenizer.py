"""Text to ids and back: byte-level BPE and four ids that no text can produce."""
import base64
from functools import cached_property

import tiktoken

from kit.files import BadInput, open_file, whole_file


# ---------------------------------------------------------------------------------------------
# Tokenizer

# GPT-2's own pattern: contractions, words with their leading space, numbers, punctuation, spaces.
SPLIT = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
PATTERNS = (SPLIT,)  # patterns that a checkpoint may ask for: an arbitrary regular expression could hang
LIMIT_TOKENIZER = 64 << 20  # bytes of a tiktoken file
LARGEST = 1 << 20    # ids that a vocabulary may have
LONGEST = 20_000     # characters given to tiktoken at once: a million spaces would overflow its stack


class Tokenizer:
    """Byte-level BPE (tiktoken) and four ids that no text can ever produce.

    Ids 0 … V-1 belong to the language model and are frozen with it: the BPE ranks, then <BOS> and <PAD>.
    Ids V and V+1 are <image> and <EOC>, which the language model never met: Flamingo trains their two
    rows itself (§2.4; the paper adds <EOC> only, and writes <image> as plain text).

    ranks: {bytes: id}; among two possible merges, the one with the lower id comes first
    n_vocab: V of a published vocabulary, where ids may be missing among the ranks: those of added tokens,
        which no text produces either. Without it, the ranks are 0 … n-1.
    Raises BadInput.
    """

    def __init__(self, ranks, pattern=SPLIT, bos=None, pad=None, n_vocab=None):
        n = len(ranks)
        if n_vocab is None and sorted(ranks.values()) != list(range(n)):
            raise BadInput(f'tokenizer: the ranks must be 0 … {n - 1}, each once')
        if not all(bytes([b]) in ranks for b in range(256)):
            raise BadInput('tokenizer: a single byte is not in it, so not every text could be encoded')
        self.ranks, self.pattern = ranks, pattern
        self.bos = n if bos is None else bos
        self.pad = n + 1 if pad is None else pad
        self.n_vocab = n_vocab or max(n, self.bos + 1, self.pad + 1)  # V: what the language model knows
        if n_vocab is not None:
            used = {*ranks.values(), self.bos, self.pad}
            if len(set(ranks.values())) < n or min(used) < 0 or max(used) >= n_vocab or n_vocab > LARGEST:
                raise BadInput(f'tokenizer: ids must differ, and be at most {min(n_vocab, LARGEST) - 1}, '
                               f'not {max(used)}')
        self.image, self.eoc = self.n_vocab, self.n_vocab + 1

    @cached_property
    def _bpe(self):
        # No special tokens are handed to tiktoken at all: "<image>" typed by a person stays seven letters.
        return tiktoken.Encoding('nanoflamingo', pat_str=self.pattern, mergeable_ranks=self.ranks,
                                 special_tokens={})

    @cached_property
    def text_ids(self):
        """The ids of texts, a set: all but the special ones."""
        return set(self.ranks.values())

    def encode(self, text):
        """str -> list of ids below V; never <BOS>, <PAD>, <image> or <EOC>, whatever the text says."""
        ids, start = [], 0
        while start < len(text):
            stop = start + LONGEST
            if stop < len(text):
                space = text.rfind(' ', start + 1, stop)  # tokens begin there anyway
                stop = space if space > 0 else stop
            ids += self._bpe.encode_ordinary(text[start:stop])
            start = stop
        return ids

    def decode(self, ids):
        """list of ids -> str; ids of no text (the four special ones, added tokens) are left out."""
        return self._bpe.decode([i for i in ids if i in self.text_ids], errors='replace')

    @classmethod
    def load(cls, path):
        """Read a tiktoken file: a base64 token and its rank on each line."""
        ranks = {}
        with open_file(path, LIMIT_TOKENIZER) as f:
            for number, line in enumerate(f, 1):
                try:
                    token, rank = line.split()
                    ranks[base64.b64decode(token, validate=True)] = int(rank)
                except ValueError as e:
                    raise BadInput(f'{path}:{number}: not a "base64-token rank" line') from e
        try:
            return cls(ranks)
        except BadInput as e:
            raise BadInput(f'{path}: {e}') from e

    def save(self, path):
        with whole_file(path) as f:
            for token, rank in sorted(self.ranks.items(), key=lambda item: item[1]):
                f.write(base64.b64encode(token) + b' %d\n' % rank)

    def state(self):
        """Plain values for a checkpoint; `from_state` is the way back."""
        n = len(self.ranks)
        tokens = [None] * (max(self.ranks.values()) + 1)  # None: an added token's id
        for token, i in self.ranks.items():
            tokens[i] = base64.b64encode(token).decode()
        state = {'tokens': tokens, 'pattern': self.pattern, 'bos': self.bos, 'pad': self.pad}
        usual = len(tokens) == n and self.n_vocab == max(n, self.bos + 1, self.pad + 1)
        return state if usual else state | {'n_vocab': self.n_vocab}

    @classmethod
    def from_state(cls, state):
        """Raises BadInput if it is no tokenizer."""
        try:
            tokens = enumerate(state['tokens'])
            ranks = {base64.b64decode(t, validate=True): i for i, t in tokens if t is not None}
            numbers = [state['bos'], state['pad'], *([state['n_vocab']] if 'n_vocab' in state else [])]
            if state['pattern'] not in PATTERNS or not all(type(x) is int and x >= 0 for x in numbers):
                raise ValueError
        except (KeyError, TypeError, ValueError) as e:
            raise BadInput('tokenizer: damaged, or of an unknown kind') from e
        return cls(ranks, state['pattern'], *numbers)
