"""Pages as their writers meant them: each format against a Document written out by hand."""
import base64
import io
import json
import time

import numpy as np
import pytest
from PIL import Image

from kit.files import BadInput, BadItem
from kit.sources.base import FolderSpec, Pairs
from kit.sources.forms import open_folder, open_path, open_source
from kit.sources.html import decode_html, PageReader

PIXELS = np.random.default_rng(0)


def picture(path, size=(80, 70)):
    """A picture of noise, which no filter leaves out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PIXELS.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)
    return path


def lines(folder, *pages):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'documents.jsonl').write_bytes(b'\n'.join(page if isinstance(page, bytes)
                                                        else json.dumps(page).encode() for page in pages)
                                                        + b'\n')
    return folder


def seen(document, folder):
    """The pieces, each Media as the picture file it shows."""
    files = {Image.open(path).convert('RGB').tobytes(): str(path.relative_to(folder))
             for path in sorted(folder.rglob('*.*'))
             if path.suffix in ('.png', '.gif')}
    return [piece if isinstance(piece, str) else (files[piece.load()[0].tobytes()],)
            for piece in document.pieces]


def dropped(document):
    return [(bad.kind, bad.where.split('/')[-1]) for bad in document.dropped]


# ---------------------------------------------------------------------------------------------
# documents.jsonl

def test_obelics(tmp_path):
    """Nulls at both ends, several pictures in a row, texts in a row, a picture that is gone and one that is
    far away."""
    for name in ('a', 'b', 'img/c'):
        picture(tmp_path / f'{name}.png')
    lines(tmp_path,
          {'texts': [None, 'One.', None, None, 'Two.', 'Three.', None],
           'images': ['a.png', None, 'img/c.png', 'b.png', None, None, 'a.png']},
          {'texts': [None, ' Kept as it is.\n', '', None], 'images': [None, None, None, 'b.png'], 'url': 'x'},
          {'texts': ['Far', None, 'and gone', None, None],
           'images': [None, 'https://example.org/a.png', None, 'gone.png', 'b.png']})
    pages = open_path(tmp_path)
    assert seen(pages.at(0), tmp_path) == [('a.png',), 'One.', ('img/c.png',), ('b.png',), 'Two.\n\nThree.',
                                           ('a.png',)]
    assert seen(pages.at(1), tmp_path) == [' Kept as it is.\n', ('b.png',)]
    assert seen(pages.at(2), tmp_path) == ['Far\n\nand gone', ('b.png',)]
    assert dropped(pages.at(2)) == [('remote picture', 'a.png'), ('missing', 'documents.jsonl:3: gone.png')]
    assert pages.at(0).kind == 'page' and pages.at(2).where == f'{tmp_path / "documents.jsonl"}:3'
    assert pages.at(2, pictures=False).pieces == ['Far\n\nand gone']
    assert pages.at(2, pictures=False).dropped == []


def test_mmc4(tmp_path):
    """Matches that jump back and forth; two pictures for one sentence keep the order in which they are
    listed."""
    for name in 'abcd':
        picture(tmp_path / 'images' / f'{name}.png')
    match = lambda name, index: {'image_name': f'{name}.png', 'matched_text_index': index, 'matched_sim': 0.3,
                                 'raw_url': 'https://x'}
    lines(tmp_path,
          {'text_list': ['Zero.', 'One.', 'Two.', 'Three.'],
           'image_info': [match('d', 3), match('b', 1), match('c', 3), match('a', 0)]},
          {'text_list': ['Only.', 'Text.'], 'image_info': []})
    pages = open_path(tmp_path, FolderSpec(str(tmp_path / 'images')))
    assert seen(pages.at(0), tmp_path / 'images') == [('a.png',), 'Zero.', ('b.png',), 'One. Two.',
                                                      ('d.png',), ('c.png',), 'Three.']
    assert pages.at(1).pieces == ['Only. Text.']
    numbers = {pages.order(i): i for i in range(2)}
    rng = np.random.default_rng(0)
    assert seen(pages.document(numbers[0], rng), tmp_path / 'images')[1] == 'Zero.'
    with pytest.raises(BadItem, match='page without pictures'):
        pages.document(numbers[1], rng)
    assert pages.text(numbers[1], rng) == 'Only. Text.'
    assert pages.text(numbers[0], rng) == 'Zero.\nOne. Two.\nThree.' .replace('\n', ' ')


BAD_LINES = [
    (b'{"texts": ', 'not JSON'), (b'7', 'not JSON'), (b'[' * 50_000, 'not JSON'),
    (b'{"texts": ["\xff"], "images": [null]}', 'not UTF-8'),
    ({'texts': ['\ud800'], 'images': [None]}, 'not UTF-8'), ({}, 'not a page'),
    ({'texts': ['a'], 'images': []}, 'not a page'),
    ({'texts': 'a', 'images': 'b'}, 'not a page'), ({'texts': ['a'], 'images': ['b']}, 'not a page'),
    ({'texts': [3], 'images': [None]}, 'not a page'),
    ({'text_list': ['a'], 'image_info': [7]}, 'not a page'),
    ({'text_list': ['a'], 'image_info': [{'image_name': 'a.png'}]}, 'not a page'),
    ({'text_list': ['a'], 'image_info': [{'image_name': 'a.png', 'matched_text_index': 1}]}, 'not a page'),
    ({'text_list': ['a'], 'image_info': [{'image_name': 'a.png', 'matched_text_index': -1}]}, 'not a page'),
    ({'text_list': ['a'], 'image_info': [{'image_name': 'a.png', 'matched_text_index': True}]}, 'not a page'),
    ({'text_list': None}, 'not a page'),
    ({'texts': [None] * 1001, 'images': ['a.png'] * 1001}, 'too large')]


def test_bad_lines(tmp_path):
    good = {'texts': ['a'], 'images': [None]}
    lines(tmp_path, *[line for line, _ in BAD_LINES], b'', b'{"texts": ["' + b'x' * (9 << 20) + b'"]}',
          *[good] * len(BAD_LINES))
    pages = open_path(tmp_path)
    assert len(pages) == 2 * len(BAD_LINES)
    assert pages.report.where == {'line too long': [f'{tmp_path / "documents.jsonl"}:{len(BAD_LINES) + 2}']}
    for k, (_, kind) in enumerate(BAD_LINES):
        with pytest.raises(BadItem) as e:
            pages.at(k)
        assert (e.value.kind, e.value.where) == (kind, f'{tmp_path / "documents.jsonl"}:{k + 1}')
    assert pages.at(len(BAD_LINES)).where.endswith(f':{len(BAD_LINES) + 3}')
    lines(tmp_path, *[line for line, _ in BAD_LINES], *[good] * (len(BAD_LINES) - 1))
    with pytest.raises(BadInput, match=f'{len(BAD_LINES)} of the first {2 * len(BAD_LINES) - 1} pages'):
        open_path(tmp_path)
    lines(tmp_path)
    with pytest.raises(BadInput, match='no pages'):
        open_path(tmp_path)


def test_pictures_do_not_lead_out_of_the_folder(tmp_path):
    picture(tmp_path / 'secret.png'), picture(tmp_path / 'data' / 'a.png')
    (tmp_path / 'data' / 'link.png').symlink_to(tmp_path / 'secret.png')
    names = ['../secret.png', str(tmp_path / 'secret.png'), 'link.png', 'file:///etc/passwd', 7, '',
             'a\0.png', 'a.png']
    lines(tmp_path / 'data', {'texts': [None] * len(names), 'images': names})
    document = open_path(tmp_path / 'data').at(0)
    assert seen(document, tmp_path / 'data') == [('a.png',)]
    assert [bad.kind for bad in document.dropped] == [
        *['outside the folder'] * 3, 'missing', *['picture without a name'] * 2, 'missing']


# ---------------------------------------------------------------------------------------------
# HTML

def site(folder, **pages):
    folder.mkdir(parents=True, exist_ok=True)
    for name, html in pages.items():
        (folder / f'{name}.html').write_text(html)
    return folder


PAGE = '''<!DOCTYPE html>
<html><head><title>Not on the page</title><base href="pics/"><meta charset="utf-8">
<style>p { color: red }</style></head>
<body class=x><nav><a href="/">Home</a><img src="a.png"></nav><!-- a comment with <img src="a.png"> and -> -->
<h1>Salt &amp; pepper &#8212; <em>a his</em>tory</h1>
<script>document.write('<img src="a.png">')</script><noscript><img src="a.png"></noscript>
<p>First   para<b>graph</b>,
on two lines<br>and a third.
<p>Then <img alt="ignored" src="a.png"> a picture
<table><tr><td>outer<td><table><tr><td>in</td><td>ner</td></tr><tr><td><img src="../b.png"></table>
<tr><td>last row</table>
<div hidden>hidden <p>still hidden <img src="a.png"></p></div><p style="DISPLAY : none">neither<p>visible
<ul><li>one<li aria-hidden="true">two<li>three</ul></section>
<template><p>no</p></template><dialog>no <img src="a.png"></dialog><dialog open>yes</dialog>
<p>a < b, &lt;image&gt;<img src="sub/c%20d.png?v=1#x">
<img src="https://example.org/a.png"><img><img src="gone.png"></body></html>
trailing &amp'''


def test_html(tmp_path):
    """Nested tables, comments, entities, relative paths, a base tag, tags that close by themselves, and all
    that a reader does not see."""
    for name in ('pics/a.png', 'b.png', 'pics/sub/c d.png'):
        picture(tmp_path / name)
    document = open_path(site(tmp_path, page=PAGE)).at(0)
    assert seen(document, tmp_path) == [
        'Salt & pepper — a history\nFirst paragraph, on two lines\nand a third.\nThen', ('pics/a.png',),
        'a picture\nouter\nin ner', ('b.png',), 'last row\nvisible\none\nthree\nyes\na < b, <image>',
        ('pics/sub/c d.png',), 'trailing &']
    assert dropped(document) == [('remote picture', 'page.html:16:1'),
                                 ('picture without a name', 'page.html:16:38'),
                                 ('missing', 'page.html:16:43')]
    assert document.kind == 'page' and document.where == str(tmp_path / 'page.html')
    texts = open_path(tmp_path).at(0, pictures=False)
    assert len(texts.pieces) == 1 and texts.pieces[0].split('\n')[3:5] == ['Then a picture', 'outer']
    assert texts.dropped == []


def test_the_papers_filters(tmp_path):
    """Side under 64, aspect over 3, one colour: exactly at the bound a picture stays."""
    for name, size in (('ok', (64, 64)), ('wide', (192, 64)), ('small', (63, 200)), ('long', (64, 193))):
        picture(tmp_path / f'{name}.png', size)
    Image.new('RGB', (100, 100), (10, 200, 30)).save(tmp_path / 'plain.png')
    Image.new('RGB', (100, 100), (10, 200, 30)).save(tmp_path / 'plain.jpg', quality=50)
    dotted = Image.new('RGB', (100, 100), (10, 200, 30))
    dotted.paste((255, 255, 255), (40, 40, 60, 60))
    dotted.save(tmp_path / 'dotted.png')
    (tmp_path / 'broken.jpg').write_bytes(b'\x89PNG\r\n\x1a\n and no more')
    names = ['ok.png', 'wide.png', 'small.png', 'long.png', 'plain.png', 'plain.jpg', 'dotted.png',
             'broken.jpg']
    document = open_path(site(tmp_path, a=''.join(f'<p>{name}<img src="{name}">' for name in names))).at(0)
    assert [piece for piece in seen(document, tmp_path)
            if isinstance(piece, tuple)] == [('ok.png',), ('wide.png',), ('dotted.png',)]
    assert [bad.kind for bad in document.dropped][:4] == ['picture under 64 pixels', 'aspect over 3',
                                                          'one colour', 'one colour']
    column = len(''.join(f'<p>{name}<img src="{name}">' for name in names[:-1]) + '<p>broken.jpg') + 1
    assert len(document.dropped) == 5 and document.dropped[4].where == f'{tmp_path}/a.html:1:{column}'


def test_addresses(tmp_path):
    """Of the page's folder, of the site's root, in the page itself; none leads out."""
    picture(tmp_path / 'secret.png')
    for name in ('root.png', 'sub/beside.png', 'sub/50%.png', 'sub/q?v=1.png'):
        picture(tmp_path / 'site' / name)
    inline = (tmp_path / 'site' / 'root.png').read_bytes()
    data = 'data:image/png;base64,' + base64.b64encode(inline).decode()
    site(tmp_path / 'site' / 'sub', a=''.join(f'<img src="{src}">' for src in (
        'beside.png', '../root.png', '/root.png', '/sub/beside.png', '50%.png', '50%25.png', 'q?v=1.png',
        data, data.replace('+', '%2B'))))
    document = open_path(tmp_path / 'site').at(0)
    expected = ['sub/beside.png', 'root.png', 'root.png', 'sub/beside.png', 'sub/50%.png', 'sub/50%.png',
                'sub/q?v=1.png', 'root.png', 'root.png']
    assert seen(document, tmp_path / 'site') == [(name,) for name in expected] and not document.dropped
    assert document.pieces[-1].key == document.pieces[-2].key != document.pieces[1].key
    bad = ['../../secret.png', '//example.org/x.png', 'HTTP://example.org/x.png', 'file:///etc/passwd',
           'http://[bad', 'data:image/png;base64,!!!', 'data:,', '\0']
    site(tmp_path / 'site' / 'sub', a='<p>x' + ''.join(f'<img src="{src}">' for src in bad))
    document = open_path(tmp_path / 'site').at(0)
    assert document.pieces == ['x']
    assert [b.kind for b in document.dropped][:4] == ['outside the folder', 'remote picture',
                                                      'remote picture', 'outside the folder']
    assert len(document.dropped) == len(bad)
    # With a remote base, what the page calls its neighbours is remote as well.
    site(tmp_path / 'site' / 'sub', a='<base href="https://example.org/"><p>x<img src="beside.png">')
    assert [b.kind for b in open_path(tmp_path / 'site').at(0).dropped] == ['remote picture']


def test_encodings():
    for encoded, expected in [('ä'.encode(), 'ä'), (b'\xef\xbb\xbf\xc3\xa4', 'ä'),
                              ('ä'.encode('utf-16'), 'ä'), (b'\x93\xe4\x94', '“ä”'),
                              (b'<meta charset="iso-8859-1">\xe4', 'ä'),
                              (b'<META http-equiv=x content="text/html; charset=shift_jis">\x82\xa0', 'あ'),
                              (b'<meta charset=idna>\xc3\xa4', 'ä'), (b'<meta charset=zlib_codec>x', 'x'),
                              (b'<meta charset=utf-8>\xff', '\ufffd')]:
        assert decode_html(encoded).split('>')[-1] == expected


@pytest.mark.parametrize('html',
                         ['<b>' * 1_000_000, '<!--' * 1_000_000, '<' * 1_000_000, '<a ' * 1_000_000,
                          '</b' * 1_000_000, '<p "' * 1_000_000, '&' * 1_000_000,
                                  '<![CDATA[' * 500_000, '<![x[' * 500_000, '<script>' + '</' * 1_000_000,
                                  '<td><li>' * 500_000, '<img src="gone.png">' * 200_000,
                                  '<li><div>' * 90_000 + '</p>' * 9_000])
def test_hostile_html_takes_little_time(tmp_path, html):
    start = time.process_time()
    pages = open_path(site(tmp_path, a='<p>good', b='<p>good', c=html))
    try:
        pages.at(2)
    except BadItem:
        pass
    assert time.process_time() - start < 10  # seconds; what is quadratic takes hours


def test_reading_goes_on_after_odd_markup():
    def read(html):
        reader = PageReader(None)
        reader.feed(html + '\n')
        return reader.done()
    assert read('a<![if !IE]>b<![endif]>c<?php x ?>d<!x>e</>f') == ['abcdef']
    assert read('<p>before<!-- never closed <p>after') == ['before']
    assert read('<p/>a<br/>b<div/>c') == ['a\nb\nc']
    assert read('') == [] and read(' \n\t ') == []


# ---------------------------------------------------------------------------------------------
# As sources

def test_what_is_read_as_pages(tmp_path):
    lines(tmp_path / 'jsonl', {'texts': ['a'], 'images': [None]})
    site(tmp_path / 'site' / 'deep', a='<p>a')
    for path in ('jsonl', 'jsonl/documents.jsonl', 'site', 'site/deep/a.html'):
        assert open_path(tmp_path / path).at(0).pieces == ['a']
        with pytest.raises(BadInput, match='pairs'):
            open_folder(tmp_path / path)
        with pytest.raises(BadInput, match='m3w or text'):
            open_source('align', str(tmp_path / path))
        assert open_source('text', str(tmp_path / path)).text(0) == 'a'
    picture(tmp_path / 'classes' / 'cat' / 'a.png')
    assert isinstance(open_path(tmp_path / 'classes'), Pairs)
    site(tmp_path / 'site' / '.hidden', b='<p>b'), (tmp_path / 'site' / 'loop').symlink_to(tmp_path / 'site')
    (tmp_path / 'outside.html').write_text('<p>secret')
    (tmp_path / 'site' / 'link.html').symlink_to(tmp_path / 'outside.html')
    pages = open_path(tmp_path / 'site')
    assert len(pages) == 2
    with pytest.raises(BadItem, match='outside the folder'):
        pages.at([file.endswith('link.html') for file in pages.files].index(True))


def test_weights_mix_pages_and_pairs(tmp_path):
    for k in range(2):
        picture(tmp_path / 'pairs' / f'class{k}' / 'a.png')
    lines(tmp_path / 'pages', {'texts': ['a page', None], 'images': [None, 'a.png']})
    picture(tmp_path / 'pages' / 'a.png')
    source = open_source('m3w', f'{tmp_path}/pages:3,{tmp_path}/pairs:1')
    kinds = [source.document(i).kind for i in range(320)]
    assert kinds.count('page') == 240 and kinds.count('examples') == 80


# ---------------------------------------------------------------------------------------------
# Written as each format and read back

def write_pairs(folder, pairs):
    """pairs: [(picture, text), ...] as metadata.jsonl, class folders, a tar and COCO -> [what to open]"""
    import tarfile
    with open((folder / 'meta' / 'metadata.jsonl'), 'w') as meta, tarfile.open(folder / 'a.tar', 'w') as tar:
        for k, (image, text) in enumerate(pairs):
            image.save(folder / 'meta' / f'{k}.png')
            meta.write(json.dumps({'file_name': f'{k}.png', 'text': text}) + '\n')
            (folder / 'classes' / text.replace(' ', '_')).mkdir(parents=True)
            image.save(folder / 'classes' / text.replace(' ', '_') / 'x.png')
            for name, content in ((f'{k:03}.png', (folder / 'meta' / f'{k}.png').read_bytes()),
                                  (f'{k:03}.txt', text.encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    coco = {'annotations': [{'id': 7 + k, 'image_id': f'n{k}', 'caption': text}
                            for k, (_, text) in enumerate(pairs)],
            'images': [{'id': f'n{k}', 'file_name': f'{k}.png'} for k in range(len(pairs))]}
    (folder / 'captions_val.json').write_text(json.dumps(coco))
    return folder / 'meta', folder / 'classes', folder / 'a.tar', folder / 'captions_val.json'


def content(document):
    return [piece if isinstance(piece, str) else piece.load()[0].tobytes() for piece in document.pieces]


def noise(size=(70, 66)):
    return Image.fromarray(PIXELS.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def test_pairs_come_back_as_they_were_written(tmp_path):
    (tmp_path / 'meta').mkdir()
    pairs = sorted(((noise(), text) for text in ('a red fox', 'zwei Äpfel', '三只 猫', 'x')),
                   key=lambda pair: pair[1])
    for path in write_pairs(tmp_path, pairs):
        source = open_path(path, FolderSpec(str(tmp_path / 'meta')))
        found = sorted((content(source.at(k)) for k in range(len(source))), key=lambda pieces: pieces[1])
        assert found == [[image.tobytes(), text] for image, text in pairs], path
        assert all(source.at(k).kind == 'pair' for k in range(len(source)))


def test_pages_come_back_as_they_were_written(tmp_path):
    """Random pages as OBELICS, MMC4 and HTML. A text that follows a text is one with it, so the pages have
    none; MMC4 puts a picture before the sentence that it belongs to, so there none stands at the end."""
    r = np.random.default_rng(1)
    words = ['one', 'Äpfel', 'a < b & c', '<image>', '"quoted"', '猫']
    for n in range(12):
        pieces = []
        for _ in range(int(r.integers(1, 7))):
            text = ' '.join(words[k] for k in r.integers(len(words), size=3))
            pieces.append(noise() if r.random() < 0.6 or pieces and isinstance(pieces[-1], str) else text)
        pieces.append('the end')
        if isinstance(pieces[-2], str):
            del pieces[-2]
        folder = tmp_path / str(n)
        (folder / 'html').mkdir(parents=True)
        for k, piece in enumerate(pieces):
            if not isinstance(piece, str):
                piece.save(folder / f'{k}.png'), piece.save(folder / 'html' / f'{k}.png')
        name = [None if isinstance(piece, str) else f'{k}.png' for k, piece in enumerate(pieces)]
        texts = [piece for piece in pieces if isinstance(piece, str)]
        obelics = {'texts': [piece if isinstance(piece, str) else None for piece in pieces], 'images': name}
        mmc4 = {'text_list': texts,
                'image_info': [{'image_name': name[k],
                                'matched_text_index': sum(isinstance(p, str) for p in pieces[:k])}
                                                   for k in range(len(pieces)) if name[k]]}
        lines(folder, obelics, mmc4)
        from html import escape
        site(folder / 'html',
             a='<body>' + ''.join(f'<p>{escape(piece)}</p>' if isinstance(piece, str)
                                  else f'<img src="{k}.png">'
                                                   for k, piece in enumerate(pieces)))
        expected = [piece if isinstance(piece, str) else piece.tobytes() for piece in pieces]
        for document in (open_path(folder).at(0), open_path(folder).at(1), open_path(folder / 'html').at(0)):
            assert content(document) == expected and not document.dropped
