"""What a source on disk holds, what is left out of it and why, and a sheet of its first pictures.

    python look.py PATH
    python look.py captions_val2014.json --images=val2014 --out=counts.json --picture=sheet.png
"""
import json
import sys

from PIL import Image

from data import Document, encode, load_pixels, Media
from kit.cli import check_range, command, configure
from kit.files import BadInput, BadItem, one_line, whole_file
from kit.show import canvas, sheets
from kit.sources.base import doubts, FolderSpec, Pairs
from kit.sources.forms import open_path
from kit.tokenizer import Tokenizer


KEYS = {
    'out': ('', 'file for the counts: {"documents", "images", "tokens", "dropped": {kind: count}, '
                '"different_texts", "first_texts"}'),
    'picture': ('contact_sheet.png', 'file for a sheet of pictures and the text that sees each, or empty'),
    'images': ('', 'folder of the pictures that a list names, where they are not beside it'),
    'tokenizer': ('assets/tokenizer.tiktoken', 'a tiktoken file'),
    'image_size': (48, 'pixels, height and width, as the model will see them'),
    'n_frame': (8, 'F, most frames of a clip'),
    'fps': (1.0, 'frames a second of animations'),
    'n_token': (192, 'L, most tokens of a page on the sheet'),
    'n_image': (12, 'N, most pictures of a page on the sheet'),
    'show': (24, 'pictures on the sheet'),
}

LIMIT_SIDE = 1024    # pixels of a picture on the sheet
LIMIT_SHEET = 1000   # pictures on it
FIRST = 10           # texts that are told


def check_pictures(document, config, report):
    """-> (the Document, {id of its Media: pixels}). A picture that cannot be read goes into the report and is
    taken out of a page; where there is nothing to take it out of, or none is left, raises BadItem."""
    pixels, pieces = {}, []
    for bad in document.dropped:
        report.add(bad)
    for piece in document.pieces:
        if isinstance(piece, Media):
            try:
                pixels[id(piece)] = load_pixels(piece, config.image_size, config.n_frame)
            except BadItem as e:
                if document.kind != 'page':
                    raise
                report.add(e)
                continue
        pieces.append(piece)
    if not pixels:
        raise BadItem('page without pictures', document.where)
    return Document(pieces, document.kind, document.where), pixels


def text_of(document):
    """What a Document says: a caption, a question with its answer, or the texts of a page, a line each."""
    texts = [piece for piece in document.pieces if isinstance(piece, str)]
    return ''.join(texts).strip() if document.kind != 'page' else '\n'.join(texts)


def cells(document, pixels, tokenizer, config):
    """[(picture, the text that sees it)] of a Document, for the sheet."""
    page = encode(document, tokenizer, config.n_token, config.n_image)
    for number, media in enumerate(page.media, 1):
        frames = [Image.fromarray(frame.transpose(1, 2, 0)) for frame in pixels[id(media)]]
        picture = canvas.grid(frames, columns=-(-len(frames) // 2)) if len(frames) > 1 else frames[0]
        yield picture, tokenizer.decode(page.tokens[page.image_index == number].tolist()).strip()


def look(source, config, tokenizer):
    """-> (counts, cells of the sheet, [(text, path of its picture)] of the first thousand pairs)"""
    report, different, first, shown, said = source.report, set(), [], [], []
    documents = images = tokens = 0
    for k in range(len(source)):
        try:
            document, pixels = check_pictures(source.at(k), config, report)
        except BadItem as e:
            report.add(e)
            continue
        documents, images = documents + 1, images + len(pixels)
        tokens += len(encode(document, tokenizer).tokens)
        text = text_of(document)
        different.add(hash(text))  # the texts of a large source would fill the memory
        first += [text] * (len(first) < FIRST)
        if isinstance(source, Pairs) and len(said) < 1000:
            said.append((text, source.items[k].path))
        if len(shown) < config.show:
            shown += cells(document, pixels, tokenizer, config)
    counts = {'documents': documents, 'images': images, 'tokens': tokens, 'dropped': report.as_dict(),
              'different_texts': len(different), 'first_texts': first}
    return counts, shown[:config.show], said


def tell(path, source, counts, said):
    """Print what was found."""
    splits = ', '.join(f'{split} {n:,}' for split, n in getattr(source, 'splits', {}).items())
    print(f'{path}: {"pairs, " + splits if splits else "pages"}\n{counts["documents"]:,} documents, '
          f'{counts["images"]:,} images, {counts["tokens"]:,} tokens (with <BOS>, <image> and <EOC>)\n'
          f'{counts["different_texts"]:,} different texts, the first:')
    for text in counts['first_texts']:
        print('   ', one_line(text if len(text) < 100 else text[:99] + '…'))
    for line in doubts(said):
        print('warning:', one_line(line))
    for line in source.report.lines():
        print('left out', line)


def main():
    paths = [one for one in sys.argv[1:] if not one.startswith('-') and not one.endswith('.py')]
    config = configure(KEYS, [one for one in sys.argv[1:] if one not in paths], usage=__doc__)
    if len(paths) != 1:
        raise BadInput('write python look.py PATH: a folder, a .tar, a captions_*.json, a documents.jsonl')
    check_range(config, 1, LIMIT_SIDE, 'image_size')  # a sheet of these is in memory at once
    check_range(config, 1, float('inf'), 'n_frame', 'n_token', 'n_image')
    check_range(config, 0.01, 1000, 'fps')
    check_range(config, 0, LIMIT_SHEET, 'show')
    source = open_path(paths[0], FolderSpec(config.images, fps=config.fps), config.n_frame, split=None)
    if not hasattr(source, '__len__'):
        raise BadInput(f'{paths[0]}: the drawn world has no end; samples.png of a run shows it')
    counts, shown, said = look(source, config, Tokenizer.load(config.tokenizer))
    tell(paths[0], source, counts, said)
    if config.out:
        with whole_file(config.out, 'w', encoding='utf-8') as f:
            json.dump(counts, f, indent=1)
    if config.picture:
        canvas.save(sheets.contact_sheet(shown, columns=6, title=paths[0]), config.picture)
        print(one_line(f'the first pictures, each with the text that sees it: {config.picture}'))
    bad = len(source) - counts['documents']
    if 2 * bad > len(source):  # one damaged file is bad luck; most of them are a mistake
        raise BadInput(f'{paths[0]}: {bad} of {len(source)} documents cannot be used')


if __name__ == '__main__':
    command(main)
