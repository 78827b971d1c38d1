"""GPT-2's tokenizer, in the forms in which it is published beside the weights."""
import hashlib
import os
import tempfile

import tiktoken

from kit.files import BadInput, read_json, read_text
from kit.tokenizer import LARGEST, LIMIT_TOKENIZER, Tokenizer

END = '<|endoftext|>'
# GPT-2's files write each byte as one visible letter: printable ones as themselves, the others from 256 on.
PRINTABLE = [b for b in range(256) if chr(b).isprintable() and chr(b) != ' ']
HIDDEN = [b for b in range(256) if b not in PRINTABLE]
BYTE_OF = {chr(b): b for b in PRINTABLE} | {chr(256 + i): b for i, b in enumerate(HIDDEN)}
# What a tokenizer.json must say for its text to be read as GPT-2 reads it.
LIKE_GPT2 = {'type': ('ByteLevel',), 'add_prefix_space': (False, None), 'use_regex': (True, None)}
PLAIN_BPE = {'type': ('BPE', None), 'continuing_subword_prefix': ('', None), 'end_of_word_suffix': ('', None),
             'byte_fallback': (False, None), 'ignore_merges': (False, None)}


def gpt2_tokenizer(folder=None, n_vocab=None):
    """GPT-2's tokenizer -> Tokenizer. Raises BadInput.

    folder: as published on the Hugging Face hub, with vocab.json and merges.txt, or with a tokenizer.json
        alone, which is what save_pretrained writes today. None: what tiktoken has in its cache; nothing is
        ever fetched from the network.
    n_vocab: rows of the model's table of words, if known. There may be more of them than words (to make the
        number round), or fewer than words and added tokens.
    <|endoftext|> is <BOS> and <PAD>: GPT-2 was trained with it between documents, and padding is neither seen
    nor learned. Other added tokens ([PAD], ...) keep their ids; no text produces them.
    """
    if folder is None:
        ranks = cached()
        added = {END: len(ranks)}
    else:
        ranks, added = read_vocabulary(folder)
    where = folder or 'gpt2'
    if END not in added:
        raise BadInput(f'{where}: its vocabulary lacks {END}')
    bos, rows = added[END], n_vocab or max(*ranks.values(), *added.values()) + 1
    last = max(*ranks.values(), bos)
    if last >= rows:
        raise BadInput(f'{where}: its words have ids up to {last}, its weights only {rows} rows')
    try:
        return Tokenizer(ranks, bos=bos, pad=bos, n_vocab=rows)
    except BadInput as e:
        raise BadInput(f'{where}: {e}') from e


def cached():
    """-> {bytes: id} of the original GPT-2"""
    names = [f'https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/{n}'
             for n in ('vocab.bpe', 'encoder.json')]
    usual = os.path.join(tempfile.gettempdir(), 'data-gym-cache')
    cache = os.environ.get('TIKTOKEN_CACHE_DIR', os.environ.get('DATA_GYM_CACHE_DIR', usual))
    if not all(os.path.exists(os.path.join(cache, hashlib.sha1(n.encode()).hexdigest())) for n in names):
        raise BadInput("--tokenizer=gpt2: not in tiktoken's cache, and nothing is fetched unasked; "
                       'to fetch it: python -c "import tiktoken; tiktoken.get_encoding(\'gpt2\')"')
    return tiktoken.get_encoding('gpt2')._mergeable_ranks


def read_vocabulary(folder):
    """-> ({bytes: id} of what text is made of, {text: id} of what was added: '<|endoftext|>', ...)"""
    vocab, merges, both = (os.path.join(folder, n) for n in ('vocab.json', 'merges.txt', 'tokenizer.json'))
    extra = os.path.join(folder, 'added_tokens.json')
    if os.path.exists(both) and not (os.path.exists(vocab) and os.path.exists(merges)):
        words, pairs, added = read_tokenizer_json(both)
        what = both
    else:
        words, pairs = read_json(vocab, LIMIT_TOKENIZER), read_merges(merges)
        added = read_json(extra, LIMIT_TOKENIZER) if os.path.exists(extra) else {}
        what = f'{folder}: vocab.json and merges.txt'
    try:
        ranks = {bytes([b]): words[letter] for letter, b in BYTE_OF.items()}
        made, latest = set(BYTE_OF), -1
        for a, b in pairs:
            number = words[a + b]
            if not number > latest:  # tiktoken merges by ids: they must be in the order of the merges
                raise ValueError
            latest = number
            ranks[bytes(BYTE_OF[letter] for letter in a + b)] = number
            made.add(a + b)
        added = added | {word: i for word, i in words.items() if word not in made}
        ids = [*ranks.values(), *added.values()]
        if not all(type(i) is int and 0 <= i < LARGEST for i in ids) or len(set(ids)) < len(ids):
            raise ValueError
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        raise BadInput(f"{what} are not GPT-2's, or do not belong together") from e
    return ranks, added


def read_merges(path):
    """-> [('t', 'h'), …], most frequent first"""
    lines = read_text(path, LIMIT_TOKENIZER).splitlines()
    return [line.split(' ') for line in lines if line.strip() and not line.startswith('#version')]


def read_tokenizer_json(path):
    """-> ({word: id}, [(a, b)] merges, {word: id} of the added tokens). Raises BadInput, naming what it has
    that GPT-2's has not."""
    content = read_json(path, LIMIT_TOKENIZER)
    parts = {'model': PLAIN_BPE, 'pre_tokenizer': LIKE_GPT2}
    try:
        if content.get('normalizer') is not None:
            raise BadInput(f'{path}: has a normalizer, which GPT-2 has not')
        for part, allowed in parts.items():
            for name, values in allowed.items():
                value = content[part].get(name)
                if value not in values:
                    raise BadInput(f"{path}: {part} has {name}={value!r}, GPT-2's has {values[0]!r}")
        added, words = {}, content['model']['vocab']
        for token in content['added_tokens']:
            if not token['special']:
                raise BadInput(f"{path}: the added token {token['content']!r} is an ordinary word; only "
                               'special ones, which no text produces, are read')
            added[token['content']] = token['id']
        pairs = [pair.split(' ') if isinstance(pair, str) else pair for pair in content['model']['merges']]
    except (AttributeError, KeyError, TypeError) as e:
        raise BadInput(f'{path}: not a tokenizer.json ({type(e).__name__}: {e})') from e
    return words, pairs, added
