"""Text to ids and back: byte-level BPE and four ids that no text can produce."""
import base64
import hashlib
import os
import tempfile
from functools import cached_property

import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks

from kit.files import BadInput, open_file, whole_file


# ---------------------------------------------------------------------------------------------
# Tokenizer

# GPT-2's own pattern: contractions, words with their leading space, numbers, punctuation, spaces.
SPLIT = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
PATTERNS = (SPLIT,)  # that a checkpoint may ask for: a stranger's regular expression can run for ever
LIMIT_TOKENIZER = 64 << 20  # bytes of a tiktoken file
LONGEST = 20_000     # characters given to tiktoken at once: a million spaces in a row would overflow its stack and end the process


class Tokenizer:
    """Byte-level BPE (tiktoken) and four ids that no text can ever produce.

    Ids 0 … V-1 belong to the language model and are frozen with it: the BPE ranks, then <BOS> and <PAD>.
    Ids V and V+1 are <image> and <EOC>, which the language model never met: Flamingo trains their two
    rows itself (§3.2; the paper adds <EOC> only, and writes <image> as plain text).
    """

    def __init__(self, ranks, pattern=SPLIT, bos=None, pad=None):
        n = len(ranks)
        if sorted(ranks.values()) != list(range(n)):
            raise BadInput(f'tokenizer: the ranks must be 0 … {n - 1}, each once')
        if not all(bytes([b]) in ranks for b in range(256)):
            raise BadInput('tokenizer: not all 256 single bytes are in it, so not every text could be encoded')
        self.ranks, self.pattern = ranks, pattern
        self.bos = n if bos is None else bos
        self.pad = n + 1 if pad is None else pad
        self.n_vocab = max(n, self.bos + 1, self.pad + 1)  # V: what the language model knows
        self.image, self.eoc = self.n_vocab, self.n_vocab + 1

    @cached_property
    def _bpe(self):
        # No special tokens are handed to tiktoken at all: "<image>" typed by a person stays seven letters.
        return tiktoken.Encoding('nanoflamingo', pat_str=self.pattern, mergeable_ranks=self.ranks, special_tokens={})

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
        """list of ids -> str; the four special ids are left out."""
        return self._bpe.decode([i for i in ids if i < len(self.ranks)], errors='replace')

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

    @classmethod
    def from_gpt2(cls, folder=None):
        """GPT-2's own: vocab.json and merges.txt of a folder as published on the Hugging Face hub; without a folder, what
        tiktoken has in its cache. Never fetched from the network. <|endoftext|>, its last id, is <BOS> and <PAD>: GPT-2
        was trained with it between documents, and padding is neither seen nor learned. Raises BadInput."""
        if folder is None:
            names = [f'https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/{n}' for n in ('vocab.bpe', 'encoder.json')]
            cache = os.environ.get('TIKTOKEN_CACHE_DIR', os.environ.get('DATA_GYM_CACHE_DIR', os.path.join(tempfile.gettempdir(), 'data-gym-cache')))
            if not all(os.path.exists(os.path.join(cache, hashlib.sha1(n.encode()).hexdigest())) for n in names):
                raise BadInput("--tokenizer=gpt2: not in tiktoken's cache, and nothing is fetched unasked; to fetch it: "
                               'python -c "import tiktoken; tiktoken.get_encoding(\'gpt2\')"')
            ranks = tiktoken.get_encoding('gpt2')._mergeable_ranks
        else:
            merges, vocab = os.path.join(folder, 'merges.txt'), os.path.join(folder, 'vocab.json')
            try:
                # tiktoken keeps copies of files by their names; the hashes make it notice that one has changed.
                hashes = []
                for path in (merges, vocab):
                    with open(path, 'rb') as f:
                        hashes.append(hashlib.sha256(f.read()).hexdigest())
                ranks = data_gym_to_mergeable_bpe_ranks(merges, vocab, *hashes)
            except OSError as e:
                raise BadInput(f'{path}: {e.strerror}') from e
            except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as e:
                raise BadInput(f"{folder}: vocab.json and merges.txt are not GPT-2's, or do not belong together") from e
        return cls(ranks, bos=len(ranks), pad=len(ranks))

    def save(self, path):
        with whole_file(path) as f:
            for token, rank in sorted(self.ranks.items(), key=lambda item: item[1]):
                f.write(base64.b64encode(token) + b' %d\n' % rank)

    def state(self):
        """Plain values for a checkpoint; `from_state` is the way back."""
        tokens = sorted(self.ranks, key=self.ranks.get)
        return {'tokens': [base64.b64encode(t).decode() for t in tokens], 'pattern': self.pattern, 'bos': self.bos, 'pad': self.pad}

    @classmethod
    def from_state(cls, state):
        """Raises BadInput where it is no tokenizer."""
        try:
            ranks = {base64.b64decode(t, validate=True): i for i, t in enumerate(state['tokens'])}
            if state['pattern'] not in PATTERNS or not all(type(state[name]) is int and state[name] >= 0 for name in ('bos', 'pad')):
                raise ValueError
        except (KeyError, TypeError, ValueError) as e:
            raise BadInput('tokenizer: damaged, or of an unknown kind') from e
        return cls(ranks, state['pattern'], state['bos'], state['pad'])
