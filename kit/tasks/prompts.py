"""A prompt as one line of text, and back.

    '<image:a.png>Output: a cat.<EOC><image:b.png>Output:'  ◄──►  data.Document

<image:PATH> stands for a picture, an animation or a folder of frames; <EOC> ends an example. Only these marks
mean something: whatever else a text holds stays text.
"""
import os
import re
from functools import partial

from data import Document, EndOfChunk, Example, Given, Media
from kit.episode import Episode
from kit.files import BadInput
from kit.sources.decode import Inside, read_frames
from kit.sources.finding import given_path


def file_media(path, n_frame=8, fps=1.0):
    """A picture, animation or folder of frames on disk, or in a shard (decode.Inside), as Media: of a clip up
    to n_frame frames, of an animation fps a second."""
    path = path if isinstance(path, Inside) else given_path(path)
    return Media(os.path.abspath(str(path)), partial(read_frames, path, n_frame, fps=fps))


def parse_prompt(text, where='prompt', media=file_media):
    """Text -> Document. where: for messages; media: path -> Media. Raises BadInput."""
    pieces, tags, n_picture = [], text.count('<image>'), text.count('<image:')
    if tags:
        raise BadInput(f'{where}: {tags + n_picture} <image> tags and {n_picture} pictures; '
                       'write <image:PATH>')
    for part in re.split(r'(<image:[^>\n]*>|<EOC>)', text.removeprefix('<BOS>')):
        if part == '<EOC>':
            pieces.append(EndOfChunk())
        elif part.startswith('<image:'):
            path = part[len('<image:'):-1]
            if not path:
                raise BadInput(f'{where}: <image:> names no file')
            pieces.append(media(path))
        elif part:
            pieces.append(Given(part))
    if not pieces:
        raise BadInput(f'{where}: is empty')
    return Document(pieces, 'prompt', where)


def as_text(document, name=lambda media: media.key):
    """Document -> text, pictures by name."""
    words = {EndOfChunk: lambda piece: '<EOC>', Given: str, str: str}
    out = ''
    for piece in document.pieces:
        if type(piece) in words:
            out += words[type(piece)](piece)
        else:  # a picture ends what came before it
            out += ('<EOC>' if out and not out.endswith('<EOC>') else '') + f'<image:{name(piece)}>'
    return out


# ---------------------------------------------------------------------------------------------
# A prompt taken apart


ANSWERED = re.compile(r'(.*\b(?:Output|Answer|Caption):)\s+(.*\S)\s*', re.DOTALL)


def examples(document):
    """A prompt -> [(Media or None, text)], the last of them unfinished. Joined by <EOC> they are the prompt
    again."""
    out, closed = [], True
    for piece in document.pieces:
        if isinstance(piece, Media):
            out.append((piece, ''))
        elif isinstance(piece, EndOfChunk):
            out += [(None, '')] if closed else []
        elif closed:
            out.append((None, str(piece)))
        else:
            out[-1] = out[-1][0], out[-1][1] + piece
        closed = isinstance(piece, EndOfChunk)
    return out + [(None, '')] if closed else out


def as_episode(document):
    """A prompt -> Episode, its answers apart from what is asked, the last one unknown. Raises BadInput where
    an example has none."""
    *support, (media, asked) = examples(document)
    parts = [ANSWERED.fullmatch(text) for _, text in support]
    for number, part in enumerate(parts, 1):
        if part is None:
            raise BadInput(f'{document.where}: example {number} has no answer after "Output:" or "Answer:"')
    support = [Example(media, *part.groups()) for (media, _), part in zip(support, parts)]
    return Episode(support, Example(media, asked, ''), where=document.where)
