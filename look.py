"""What a source on disk holds, what is left out of it and why, and a sheet of its first pictures.

    python look.py PATH
"""
import json
import sys

from PIL import Image

from data import Document, encode, load_pixels, Media
from kit.cli import check_range, command, configure
from kit.files import BadInput, BadItem, one_line, whole_file
from kit.show import canvas, sheets
from kit.sources.base import FolderSpec
from kit.sources.forms import open_path
from kit.tokenizer import Tokenizer


# ---------------------------------------------------------------------------------------------
# python look.py PATH


KEYS = {
    'out': ('', 'file for the counts: {"documents", "images", "tokens", "dropped": {kind: count}}'),
    'picture': ('contact_sheet.png', 'file for the sheet of pictures, each with the text that sees it; empty for none'),
    'images': ('', 'folder of the pictures that a COCO captions file or a documents.jsonl names, where they are not beside it'),
    'tokenizer': ('assets/tokenizer.tiktoken', 'a tiktoken file'),
    'image_size': (48, 'pixels, height and width, as the model will see them'),
    'n_frame': (8, 'F, most frames of a clip'),
    'n_token': (192, 'L, most tokens of a page on the sheet'),
    'n_image': (12, 'N, most pictures of a page on the sheet'),
    'show': (24, 'pictures on the sheet'),
}

LIMIT_SIDE = 1024    # pixels of a picture on the sheet
LIMIT_SHEET = 1000   # pictures on it


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


def main():
    paths = [argument for argument in sys.argv[1:] if not argument.startswith('-') and not argument.endswith('.py')]
    config = configure(KEYS, [argument for argument in sys.argv[1:] if argument not in paths], usage=__doc__)
    if len(paths) != 1:
        raise BadInput('write python look.py PATH: a folder, a .tar, a captions_*.json, a documents.jsonl')
    check_range(config, 1, LIMIT_SIDE, 'image_size')  # a sheet of these is in memory at once
    check_range(config, 1, float('inf'), 'n_frame', 'n_token', 'n_image')
    check_range(config, 0, LIMIT_SHEET, 'show')
    tokenizer = Tokenizer.load(config.tokenizer)
    source = open_path(paths[0], FolderSpec(config.images), config.n_frame, split=None)
    report, documents, images, tokens, shown = source.report, 0, 0, 0, []
    for k in range(len(source)):
        try:
            document, pixels = check_pictures(source.at(k), config, report)
        except BadItem as e:
            report.add(e)
            continue
        documents, images, tokens = documents + 1, images + len(pixels), tokens + len(encode(document, tokenizer).tokens)
        if len(shown) < config.show:
            page = encode(document, tokenizer, config.n_token, config.n_image)
            for number, media in enumerate(page.media, 1):
                frames = [Image.fromarray(frame.transpose(1, 2, 0)) for frame in pixels[id(media)]]
                text = tokenizer.decode(page.tokens[page.image_index == number].tolist())
                shown.append((canvas.grid(frames, columns=-(-len(frames) // 2)) if len(frames) > 1 else frames[0], text.strip()))

    found = {'documents': documents, 'images': images, 'tokens': tokens, 'dropped': report.as_dict()}
    splits = ', '.join(f'{split} {n:,}' for split, n in getattr(source, 'splits', {}).items())
    print(f'{paths[0]}: {"pairs, " + splits if splits else "pages"}\n{documents:,} documents, {images:,} images, {tokens:,} tokens '
          '(with <BOS>, <image> and <EOC>)')
    for line in report.lines():
        print('left out', line)
    if config.out:
        with whole_file(config.out, 'w', encoding='utf-8') as f:
            json.dump(found, f, indent=1)
    if config.picture:
        canvas.save(sheets.contact_sheet(shown[:config.show], columns=6, title=paths[0]), config.picture)
        print(one_line(f'the first pictures, each with the text that sees it: {config.picture}'))
    if 2 * documents < len(source):  # one damaged file is bad luck; most of them are a mistake
        raise BadInput(f'{paths[0]}: {len(source) - documents} of {len(source)} documents cannot be used')


if __name__ == '__main__':
    command(main)
