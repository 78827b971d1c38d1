"""What people bring: folders, lists, shards and files as they are downloaded, each with its right captions
and splits."""
import base64
import csv
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, PngImagePlugin

import look
from data import encode, Given, Media
from kit.cli import configure
from kit.files import BadInput, BadItem
from kit.sources import lists
from kit.sources.annotations import read_questions
from kit.sources.base import doubts, FolderSpec, Report, split_of
from kit.sources.decode import read_frames
from kit.sources.fewshot import Pages
from kit.sources.finding import Finder, given_path, split_in
from kit.sources.forms import open_folder, open_path, open_source, split_spec
from kit.tasks.files import read_episodes
from kit.tasks.prompts import parse_prompt
from kit.tokenizer import Tokenizer

COLOURS = ['red', 'blue', 'green', 'gold']
SAID = [f'a {colour} circle' for colour in COLOURS]


def picture(path, colour='red', **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new('RGB', (48, 48), 'white')
    ImageDraw.Draw(image).ellipse((9, 9, 39, 39), fill=colour)
    image.save(path, **options)
    return path


def pictures(folder, *names):
    """One of each colour, called 0.png to 3.png unless names are given."""
    return [picture(folder / name, colour)
            for name, colour in zip(names or [f'{k}.png' for k in range(4)], COLOURS)]


def text(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding='utf-8',
                    newline='')
    return path


def lines(*entries):
    return ''.join(json.dumps(entry) + '\n' for entry in entries)


def check(path, captions=SAID, spec=FolderSpec(), dropped={}):
    """What is at `path` are these captions, each of the picture of its colour."""
    pairs = open_folder(path, spec, split=None)
    assert sorted(item.text for item in pairs.items) == sorted(captions)
    for k, item in enumerate(pairs.items):
        middle = np.array(pairs.media(k).load()[0].getpixel((24, 24)))
        right = Image.new('RGB', (1, 1), next(c for c in COLOURS if c in item.text)).getpixel((0, 0))
        assert abs(middle - right).max() <= 2  # JPEG is not exact
    assert pairs.report.as_dict() == dropped
    return pairs


def splits(path, spec=FolderSpec()):
    """{split: captions in it}"""
    pairs = open_folder(path, spec, split=None)
    return {split: sorted(item.text for item in pairs.split(split).items) for split in pairs.splits}


def refused(path, *words, spec=FolderSpec()):
    with pytest.raises(BadInput) as e:
        open_folder(path, spec, split=None)
    assert '\n' not in str(e.value) and all(word in str(e.value) for word in words), str(e.value)


# ---------------------------------------------------------------------------------------------
# Lists of captions

TABLES = {
    'metadata.csv': 'file_name,text\n' + ''.join(f'images/{k}.png,"{said}, round"\n'
                                                 for k, said in enumerate(SAID)),
    'metadata.tsv': 'file_name\ttext\n' + ''.join(f'images/{k}.png\t{said}, round\n'
                                                  for k, said in enumerate(SAID)),
    'metadata.jsonl': lines(*({'file_name': f'images/{k}.png', 'text': f'{said}, round'}
                              for k, said in enumerate(SAID))),
    'captions.txt': 'image,caption\n' + ''.join(f'{k}.png,"{said}, round"\n' for k, said in enumerate(SAID)),
    'captions.csv': ',Image,Caption\r\n' + ''.join(f'{k},{k}.png,"{said}, round"\r\n'
                                                   for k, said in enumerate(SAID)),
    'results.csv': 'image_name| comment_number| comment\n'
    + ''.join(f'{k}.png| 0| {said}, round\n' for k, said in enumerate(SAID)),
    'Flickr8k.token.txt': ''.join(f'{k}.png#0\t{said}, round\n' for k, said in enumerate(SAID)),
    'results_20130124.token': ''.join(f'{k}.png#{k}\t{said}, round\n' for k, said in enumerate(SAID)),
    'my list.jsonl': lines(*({'image': f'{k}.png', 'captions': [f'{said}, round']}
                             for k, said in enumerate(SAID))),
    'pairs.csv': '\ufefffilename;text\n' + ''.join(f'{k}.png;{said}, round\n' for k, said in enumerate(SAID)),
    'captions_plain.txt': ''.join(f'{k}.png {said}, round\n' for k, said in enumerate(SAID)),
    'captions_commas.txt': 'image,caption\n' + ''.join(f'{k}.png,{said}, round\n'
                                                       for k, said in enumerate(SAID)),
    'captions.json': [{'image': f'{k}.png', 'caption': f'{said}, round'} for k, said in enumerate(SAID)],
    'captions_all.json': {f'images/{k}.png': [f'{said}, round'] for k, said in enumerate(SAID)},
}


@pytest.mark.parametrize('name', TABLES)
def test_lists(tmp_path, name):
    """In a folder, and given by itself. Commas in a caption stay, and pictures may be a folder further
    down."""
    pictures(tmp_path / 'data' / 'images')
    file = text(tmp_path / 'data' / name, TABLES[name])
    said = [f'{caption}, round' for caption in SAID]
    check(tmp_path / 'data', said)
    check(file, said)
    check(text(tmp_path / 'lists' / name, TABLES[name]), said, FolderSpec(str(tmp_path / 'data')))


def test_flickr8k(tmp_path):
    """Five captions a picture; its other lists are no captions, and its lists of names are splits."""
    pictures(tmp_path / 'Images')
    text(tmp_path / 'captions.txt',
         'image,caption\n' + ''.join(f'{k}.png,{said} {n} .\n' for k, said in enumerate(SAID)
                                     for n in range(5)))
    check(tmp_path, [f'{said} {n} .' for said in SAID for n in range(5)])
    text(tmp_path / 'Flickr8k.lemma.token.txt', '0.png#0\ta circle be red\n')
    text(tmp_path / 'Flickr_8k.testImages.txt', '3.png\n')
    text(tmp_path / 'Flickr_8k.devImages.txt', '2.png\n')
    found = open_folder(tmp_path, split=None)
    assert found.splits == {'train': 10, 'val': 5, 'test': 5} and found.report.as_dict() == {'a .txt file': 1}
    assert {item.text[:12] for item in found.split('test').items} == {'a gold circl'}


def test_keys_that_people_use(tmp_path):
    for n, (image, key) in enumerate((('file_name', 'caption'), ('filename', 'captions'), ('image', 'txt'),
                                      ('image_path', 'text'), ('FILE_NAME', 'Text'))):
        pictures(tmp_path / str(n))
        text(tmp_path / str(n) / 'metadata.jsonl',
             lines(*({image: f'{k}.png', key: said} for k, said in enumerate(SAID))))
        check(tmp_path / str(n))
    text(tmp_path / '0' / 'metadata.jsonl',
         lines({'file_name': '0.png', 'caption': ['a red circle', ' ', 'red, round']}))
    check(tmp_path / '0', ['a red circle', 'red, round'], dropped={'a picture that nothing is said about': 3})


def test_a_list_that_cannot_be_read_is_no_folder_of_classes(tmp_path):
    pictures(tmp_path / 'images')
    for name, content, word in (('metadata.csv', 'file_name,label\nimages/0.png,3\n', 'label'),
                                ('metadata.csv', '', 'nothing'),
                                ('captions.txt', 'red\nblue\n', 'red'),
                                ('metadata.jsonl', lines({'file_name': 'images/0.png'}), 'no text'),
                                ('metadata.csv', '\ufefffile_name,text\n'.encode('utf-16'), 'UTF-16'),
                                ('captions.jsonl', '{}\n', 'names a picture')):
        file = tmp_path / name
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        refused(tmp_path, str(file), word)
        file.unlink()
    text(tmp_path / 'deep' / 'metadata.csv', TABLES['metadata.csv'])
    refused(tmp_path, 'further down', str(tmp_path / 'deep'))


def test_parquet_without_a_reader_is_one_line(tmp_path, monkeypatch):
    pictures(tmp_path / 'images')
    (tmp_path / 'metadata.parquet').write_bytes(b'PAR1')
    monkeypatch.setattr(lists.importlib.util, 'find_spec', lambda name: None)
    refused(tmp_path, 'metadata.parquet', 'pip install pyarrow')


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip('pyarrow')
    from pyarrow import parquet
    pictures(tmp_path / 'images')
    parquet.write_table(pyarrow.table({'file_name': [f'images/{k}.png' for k in range(4)], 'text': SAID}),
                        tmp_path / 'metadata.parquet')
    check(tmp_path)


def test_damaged_rows_are_counted(tmp_path):
    """A quote that is never closed takes its own line with it, no more."""
    pictures(tmp_path / 'images')
    rows = [f'images/{k}.png,{said}' for k, said in enumerate(SAID)]
    (tmp_path / 'metadata.csv').write_bytes('\n'.join(['file_name,text', rows[0],
                                                       'images/1.png,"a "blue" one', rows[2],
                                                       'images/9.png,gone', 'images/1.png,']).encode()
                                            + b'\nimages/1.png,\xff\n' + rows[3].encode() + b'\n'
                                            + b'\n'.join(row.encode() for row in rows))
    pairs = open_folder(tmp_path)
    assert pairs.report.as_dict() == {'not a row': 1, 'missing': 1, 'no text': 1, 'not UTF-8': 1}
    assert [item.text for item in pairs.items] == [SAID[0], SAID[2], SAID[3], *SAID]
    assert pairs.items[2].where == f'{tmp_path / "metadata.csv"}:8'


def test_a_long_cell_is_read_and_other_tables_keep_their_limit(tmp_path):
    """csv's limit, 128 KiB a cell unless said otherwise, is one for the whole process."""
    pictures(tmp_path / 'images')
    before, long = csv.field_size_limit(), 'red ' * 50_000
    text(tmp_path / 'metadata.csv', 'file_name,text\n' + f'images/0.png,"{long}"\nimages/1.png,"a ""b"\n')
    assert [item.text for item in open_folder(tmp_path).items] == [long.strip(), 'a "b']
    assert csv.field_size_limit() == before


# ---------------------------------------------------------------------------------------------
# A text beside each picture

def test_sidecars(tmp_path):
    for folder, write in (('10_shape', lambda stem, said: text(stem.with_suffix('.txt'), said)),
                          ('kohya', lambda stem, said: text(stem.with_suffix('.caption'), said + '\r\n')),
                          ('json', lambda stem, said: text(stem.with_suffix('.json'),
                                                           {'caption': said, 'status': 'success'})),
                          ('both', lambda stem, said: (text(stem.with_suffix('.txt'), said),
                                                       text(stem.with_suffix('.json'), {'key': 1})))):
        pictures(tmp_path / folder / '00000')
        for k, said in enumerate(SAID):
            write(tmp_path / folder / '00000' / str(k), said)
        check(tmp_path / folder), check(tmp_path / folder / '00000')
    # several lines are several captions
    text(tmp_path / 'both' / '00000' / '0.txt', 'a red circle\n\nsomething red\n')
    check(tmp_path / 'both', [*SAID, 'something red'])
    text(tmp_path / 'both' / '00000_stats.json', '{}'), picture(tmp_path / 'both' / '00000' / 'mute.png')
    text(tmp_path / 'both' / '00000' / '5.json', {'status': 'failed_to_download'})
    check(tmp_path / 'both', [*SAID, 'something red'], dropped={'a .json file': 2, 'no text': 1})


def test_texts_by_the_whole_name_and_in_a_folder_of_their_own(tmp_path):
    pictures(tmp_path / 'whole')
    pictures(tmp_path / 'birds' / 'images' / '001.Auk'), pictures(tmp_path / 'split' / 'val' / 'images')
    for k, said in enumerate(SAID):
        text(tmp_path / 'whole' / f'{k}.png.txt', said)
        text(tmp_path / 'birds' / 'texts' / '001.Auk' / f'{k}.txt', f'{said}\n{said} too\n')
        text(tmp_path / 'split' / 'val' / 'captions' / f'{k}.txt', said)
    check(tmp_path / 'whole'), check(tmp_path / 'birds', SAID + [f'{said} too' for said in SAID])
    assert splits(tmp_path / 'split') == {'val': sorted(SAID)}
    check(shard(tmp_path / 'a.tar', [member for k, said in enumerate(SAID)
                                     for member in ((f'{k}.png', encoded(COLOURS[k])),
                                                    (f'{k}.png.txt', said))]))


def test_lists_further_down_are_no_class_folders(tmp_path):
    """The rest of the form is told, and where it lies."""
    for n, (name, content) in enumerate((('text/Flickr8k.token.txt', TABLES['Flickr8k.token.txt']),
                                         ('list/train.csv', TABLES['metadata.csv']),
                                         ('pages/a.jsonl', lines(PAGE)),
                                         ('notes/captions_val.json', {'images': [], 'annotations': []}),
                                         ('q/asked.json',
                                          {'questions': [{'question': 'x', 'question_id': 1}]}))):
        pictures(tmp_path / str(n) / 'images')
        text(tmp_path / str(n) / name, content)
        refused(tmp_path / str(n), 'further down', str((tmp_path / str(n) / name).parent))


def test_questions_beside_pictures(tmp_path):
    pictures(tmp_path)
    for k, colour in enumerate(COLOURS):
        text(tmp_path / f'{k}.json', {'question': 'Which colour?', 'answers': [colour, colour, 'none']})
    pairs = check(tmp_path, COLOURS)
    assert {item.prompt for item in pairs.items} == {'Question: Which colour? Answer:'}


def test_what_lies_beside_pictures_may_be_no_caption(tmp_path):
    """Boxes are none: as .txt that is an error, and a .json without a caption belongs to its picture."""
    for name in ('cat', 'dog'):
        picture(tmp_path / 'boxes' / name / '0.png')
        text(tmp_path / 'boxes' / name / '0.txt', '0 0.5 0.5 0.1 0.1\n')
        picture(tmp_path / 'labelme' / name / '0.png')
        text(tmp_path / 'labelme' / name / '0.json', {'shapes': []})
    refused(tmp_path / 'boxes', 'boxes and no text: 2')
    assert sorted(item.text for item in open_folder(tmp_path / 'labelme').items) == ['cat', 'dog']
    assert not open_folder(tmp_path / 'labelme').report.total


# ---------------------------------------------------------------------------------------------
# Splits

def test_names_of_splits():
    for split, names in (('train', 'train Training restval TRAIN'), ('val', 'val valid Validation dev'),
                         ('test', 'test Testing eval TEST')):
        assert {split_of(name) for name in names.split()} == {split}
    assert split_of('trainer') is split_of('cat') is None
    for name, split in (('captions_train2017.json', 'train'), ('Flickr_8k.devImages.txt', 'val'),
                        ('train.csv', 'train'), ('train_val.csv', None),
                        ('seg_test', 'test'), ('constraint.csv', None), ('contest.csv', None)):
        assert split_in(name) == split


@pytest.mark.parametrize('train, test',
                         [('Training', 'Testing'), ('train', 'dev'), ('TRAIN', 'Validation'),
                          ('seg_train', 'seg_test'), ('training_set', 'test_set')])
@pytest.mark.parametrize('above', ['', 'archive'])
def test_class_folders_in_splits(tmp_path, train, test, above):
    for name in ('cat', 'dog'):
        picture(tmp_path / 'data' / above / train / name / '0.png')
        picture(tmp_path / 'data' / above / test / name / '1.png')
    found = splits(tmp_path / 'data')
    assert len(found) == 2 and found['train'] == ['cat', 'dog']
    assert set(map(tuple, found.values())) == {('cat', 'dog')}
    assert [item.path.split('/')[-1] for item in open_folder(tmp_path / 'data').items] == ['0.png'] * 2


def test_folders_that_say_nothing(tmp_path):
    """As Tiny ImageNet comes; and as competitions come, whose pictures have no class at all."""
    for name in ('train/cat/images/0.png', 'train/dog/images/0.png', 'val/images/0.png', 'val/images/1.png'):
        picture(tmp_path / 'tiny' / name)
    assert splits(tmp_path / 'tiny') == {'train': ['cat', 'dog']}
    assert open_folder(tmp_path / 'tiny').report.as_dict() == {'unlabelled': 2}
    picture(tmp_path / 'flat' / 'train_images' / '0.png')
    picture(tmp_path / 'flat' / 'test_images' / '0.png')
    refused(tmp_path / 'flat', 'without captions: 2')


def test_splits_inside_of_classes(tmp_path):
    for name in ('bottle', 'cable'):
        picture(tmp_path / name / 'train' / '0.png'), picture(tmp_path / name / 'test' / '1.png')
    assert splits(tmp_path) == {'train': ['bottle', 'cable'], 'test': ['bottle', 'cable']}


def test_an_unlabelled_test_folder_is_left_out_and_counted(tmp_path):
    for split in ('train', 'val'):
        for name in ('cat', 'dog'):
            picture(tmp_path / split / name / '0.png')
    for k in range(20):  # however many they are
        picture(tmp_path / 'test' / f'{k}.png')
    assert splits(tmp_path) == {'train': ['cat', 'dog'], 'val': ['cat', 'dog']}
    assert open_folder(tmp_path).report.as_dict() == {'unlabelled': 20}
    # Where nothing is labelled, the splits are no classes.
    picture(tmp_path / 'flat' / 'train' / '0.png'), picture(tmp_path / 'flat' / 'test' / '0.png')
    refused(tmp_path / 'flat', 'pictures in no class folder, and without captions: 2')


def test_a_train_is_a_train(tmp_path):
    for name in ('train', 'bus', 'tram'):
        picture(tmp_path / name / '0.png')
    assert splits(tmp_path) == {'train': ['bus', 'train', 'tram']}


def test_splits_of_lists(tmp_path):
    """As a column, as the name of the file, as the folder that the list lies in, as Karpathy has them."""
    pictures(tmp_path / 'column')
    text(tmp_path / 'column' / 'metadata.csv', 'file_name,text,split\n' + ''.join(
        f'{k}.png,{said},{split}\n'
        for k, (said, split) in enumerate(zip(SAID, ('restval', '', 'Dev', 'TEST')))))
    pictures(tmp_path / 'file')
    for split, k in (('train', 0), ('train', 1), ('val', 2), ('test', 3)):
        with open(tmp_path / 'file' / f'{split}.csv', 'a') as f:
            f.write('image,caption\n' * (k != 1) + f'{k}.png,{SAID[k]}\n')
    # would put the test picture into training
    text(tmp_path / 'file' / 'all.csv', 'image,caption\n3.png,a gold circle\n')
    for folder, k in (('Training', 0), ('validation', 2), ('Testing', 3)):
        picture(tmp_path / 'folder' / folder / 'a.png', COLOURS[k])
        text(tmp_path / 'folder' / folder / ('metadata.csv' if k else 'metadata.jsonl'),
             f'file_name,text\na.png,{SAID[k]}\n' if k else
             lines({'file_name': 'a.png', 'text': SAID[0]}, {'file_name': 'a.png', 'text': SAID[0] + ' 2'}))
    pictures(tmp_path / 'karpathy' / 'images')
    text(tmp_path / 'karpathy' / 'dataset_flickr30k.json', {'dataset': 'flickr30k', 'images': [
        {'filename': f'{k}.png', 'split': split, 'sentences': [{'raw': said}]}
        for k, (said, split) in enumerate(zip(SAID, ('train', 'restval', 'val', 'test')))]})
    pictures(tmp_path / 'sidecar', 'train/0.png', 'train/1.png', 'valid/2.png', 'Test/3.png')
    for path, said in zip(sorted(tmp_path.glob('sidecar/*/*.png'), key=lambda path: path.name), SAID):
        text(path.with_suffix('.txt'), said)
    pictures(tmp_path / 'one list', 'train/0.png', 'train/1.png', 'valid/2.png', 'Test/3.png')
    text(tmp_path / 'one list' / 'metadata.jsonl',
         lines(*({'file_name': str(path.relative_to(tmp_path / 'one list')), 'text': SAID[int(path.stem)]}
                                                           for path in tmp_path.glob('one list/*/*.png'))))
    for folder in ('one list', 'column', 'file', 'karpathy', 'sidecar', 'folder'):
        found = splits(tmp_path / folder)
        assert (found['val'], found['test']) == ([SAID[2]], [SAID[3]]), folder
        assert len(found['train']) == 2 and SAID[0] in found['train'], folder
    assert open_folder(tmp_path / 'file').report.as_dict() == {'a list of no split beside others': 1}
    # what is named itself is wanted
    assert open_folder(tmp_path / 'file' / 'test.csv').splits == {'train': 1}
    assert len(open_folder(tmp_path / 'column', split='validation')) == 1  # asked for by any of its names


def test_karpathys_coco_and_its_forms(tmp_path):
    pictures(tmp_path / 'coco' / 'val2014')
    images = [{'filepath': 'val2014', 'filename': f'{k}.png', 'split': 'train',
               'sentences': [{'raw': said}, {'raw': f'One {said[2:]}.'}]} for k, said in enumerate(SAID)]
    file = text(tmp_path / 'dataset_coco.json', {'images': images, 'dataset': 'coco'})
    check(file, SAID + [f'One {said[2:]}.' for said in SAID], FolderSpec(str(tmp_path / 'coco')))


# ---------------------------------------------------------------------------------------------
# Nothing passes unnoticed

def test_every_file_is_read_or_counted(tmp_path):
    for name in ('cat', 'dog'):
        for k in range(4):
            picture(tmp_path / name / f'{k}.png')
            text(tmp_path / name / f'{k}.xml', '<box/>')
        text(tmp_path / name / 'IMG_1.HEIC', 'x')
        text(tmp_path / name / 'scan', 'x')
        text(tmp_path / name / 'film.mp4', 'x')
    text(tmp_path / 'README.md', 'x')
    text(tmp_path / '.gitattributes', 'x')
    text(tmp_path / 'Thumbs.db', 'x')
    pairs = open_folder(tmp_path)
    assert len(pairs) == 8
    assert pairs.report.as_dict() == {'a .heic file': 2, 'a file without extension': 2, 'a video': 2,
                                      'a .md file': 1}
    for k in range(9):
        text(tmp_path / 'dog' / f'more{k}', 'x')
    refused(tmp_path, '16 of 24 items cannot be used', 'a file without extension: 11')


def test_most_of_a_folder_unreadable_is_fatal(tmp_path):
    for name in ('cat', 'dog'):
        picture(tmp_path / name / '0.png')
        for k in range(20):
            text(tmp_path / name / f'IMG_{k}.HEIC', 'x' * 300)
    refused(tmp_path, '40 of 42 items cannot be used', 'a .heic file: 40')


def test_pictures_that_a_list_leaves_out_are_counted(tmp_path):
    pictures(tmp_path)
    text(tmp_path / 'metadata.jsonl', lines({'file_name': '0.png', 'text': 'a red circle'}))
    text(tmp_path / 'notes.docx', 'x')
    check(tmp_path, ['a red circle'], dropped={'a picture that nothing is said about': 3, 'a .docx file': 1})


def looked(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, 'argv', ['look.py', *map(str, arguments), '--picture='])
    look.main()
    return capsys.readouterr().out


def test_looking_tells_the_texts_and_doubts_some(tmp_path, monkeypatch, capsys):
    pictures(tmp_path / 'good')
    text(tmp_path / 'good' / 'captions.txt',
         'image,caption\n' + ''.join(f'{k}.png,{said} {n}\n' for k, said in enumerate(SAID)
                                     for n in range(3)))
    printed = looked(monkeypatch, capsys, tmp_path / 'good', f'--out={tmp_path}/out.json')
    found = json.loads((tmp_path / 'out.json').read_text())
    assert list(found) == ['documents', 'images', 'tokens', 'dropped', 'different_texts', 'first_texts']
    assert found['different_texts'] == 12
    assert found['first_texts'] == [f'{said} {n}' for said in SAID for n in range(3)][:10]
    assert '12 different texts' in printed and '    a red circle 0\n' in printed and 'warning' not in printed
    pictures(tmp_path / 'images' / 'photos')
    assert 'warning: all 4 texts are the same' in looked(monkeypatch, capsys, tmp_path / 'images')
    text(tmp_path / 'good' / 'captions.txt', 'image,caption\n' + ''.join(f'{k}.png,{k}\n' for k in range(4)))
    printed = looked(monkeypatch, capsys, tmp_path / 'good')
    assert 'warning: 4 of 4 texts are the names of their files' in printed
    assert doubts([('cat', 'a/cat/1.png'),
                   ('dog', 'a/dog/2.png')])[0].startswith('2 of 2 texts are the names of folders')
    assert doubts([('a cat', 'a/cat/1.png'), ('dog', 'a/cat/2.png')]) == []


# ---------------------------------------------------------------------------------------------
# Finding pictures

def test_finder(tmp_path):
    root = tmp_path / 'data'
    for name in ('val2014/a.png', 'b.JPG', unicodedata.normalize('NFD', 'é/ü.png'), 'big/c.png',
                 'small/c.png', 'cat/d.png', 'd.png', 'x/Ö y.png', '._e.png'):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'x')
    (tmp_path / 'secret.png').write_bytes(b'x')
    find = Finder(root)
    for name, there in (('a.png', 'val2014/a.png'), ('val2014/a.png', 'val2014/a.png'),
                        ('coco/val2014/a.png', 'val2014/a.png'), ('./val2014//a.png', 'val2014/a.png'),
                        ('val2014\\a.png', 'val2014/a.png'), ('b.jpg', 'b.JPG'), ('train2017/b.jpg', 'b.JPG'),
                        ('big\\c.png', 'big/c.png'), ('ö Y.PNG', 'x/Ö y.png'),
                        (unicodedata.normalize('NFC', 'é/ü.png'), unicodedata.normalize('NFD', 'é/ü.png')),
                        ('ü.png', unicodedata.normalize('NFD', 'é/ü.png')), ('d.png', 'd.png')):
        assert find(name) == str(root / there), name
    for name, kind in (('val2017/a.png', 'missing'), ('cat/b.jpg', 'missing'),
                       ('c.png', 'several of this name'), ('../secret.png', 'outside the folder'),
                       ('secret.png', 'missing'),
                       ('..\\secret.png', 'outside the folder'), (str(root / 'd.png'), 'outside the folder'),
                       ('e.png', 'missing'), ('', 'outside the folder'), ('a\0.png', 'missing')):
        with pytest.raises(BadItem) as e:
            find(name)
        assert e.value.kind == kind, name
    for name, path in (('../secret.png', tmp_path / 'secret.png'),
                       (str(tmp_path / 'secret.png'), tmp_path / 'secret.png'),
                       ('b.jpg', root / 'b.JPG'), ('gone.png', root / 'gone.png')):
        assert find.anywhere(name) == str(path)


def test_pictures_of_ids(tmp_path):
    for name in ('COCO_val2014_000000000042.jpg', '000000000007.jpg', '003a8ae2ef43b901.jpg',
                 'VizWiz_val_00000003.jpg', 'train/x_5.jpg', 'val/x_5.jpg'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b'x')
    find = Finder(tmp_path)
    for number, name in ((42, 'COCO_val2014_000000000042.jpg'), ('42', 'COCO_val2014_000000000042.jpg'),
                         (7, '000000000007.jpg'), ('003a8ae2ef43b901', '003a8ae2ef43b901.jpg'),
                         ('VizWiz_val_00000003.jpg', 'VizWiz_val_00000003.jpg'),
                         ('VizWiz_val_00000003', 'VizWiz_val_00000003.jpg')):
        assert find.by_id(number) == str(tmp_path / name)
    assert find.by_id(5, hint='val') == str(tmp_path / 'val' / 'x_5.jpg')
    for number in (5, 43, 'x', None):
        with pytest.raises(BadItem, match='several' if number == 5 else 'missing'):
            find.by_id(number)


def test_episodes_and_prompts_find_their_pictures_in_the_same_way(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    pictures(tmp_path / 'data' / 'val2014', '0.JPG', unicodedata.normalize('NFD', 'é.png'))
    picture(tmp_path / 'home' / 'h.png'), picture(tmp_path / 'outside.png')
    names = 'val2014\\0.jpg', 'é.png', '~/h.png', '../outside.png', str(tmp_path / 'outside.png')
    file = text(tmp_path / 'data' / 'e.jsonl', lines(*(
        {'support': [], 'query': {'image': name, 'prompt': 'Output:'}, 'answer': 'x'} for name in names)))
    report = Report()
    for episode in read_episodes(str(file), report):
        assert episode.query.media.load()[0].size == (48, 48)
    assert not report.total
    assert parse_prompt('<image:~/h.png>Output:').pieces[0].load()[0].size == (48, 48)


def test_backslashes_and_letters_of_another_system(tmp_path):
    pictures(tmp_path / 'backslash' / 'i')
    text(tmp_path / 'backslash' / 'metadata.jsonl',
         lines(*({'file_name': f'i\\{k}.png', 'text': said} for k, said in enumerate(SAID))))
    check(tmp_path / 'backslash')
    pictures(tmp_path / 'nfd', *(unicodedata.normalize('NFD', f'é{k}.png') for k in range(4)))
    text(tmp_path / 'nfd' / 'metadata.jsonl',
         lines(*({'file_name': f'é{k}.png', 'text': said} for k, said in enumerate(SAID))))
    check(tmp_path / 'nfd')


def test_home_and_commas_in_paths(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    pictures(tmp_path / 'a, b' / 'images')
    text(tmp_path / 'a, b' / 'metadata.csv', TABLES['metadata.csv'])
    assert len(open_folder('~/a, b')) == 4
    assert len(open_folder('~/a, b/metadata.csv', FolderSpec('~/a, b'))) == 4
    assert split_spec('align', r'~/a\, b:3,c') == [('~/a, b', 3.0), ('c', 1.0)]
    assert isinstance(open_source('align', r'~/a\, b').document(0).pieces[0], Media)
    keys = {'out_dir': ('out', 'a folder'), 'prompt': ('', 'text')}
    config = configure(keys, ['--out_dir=~/x', '--prompt=~ is a tilde'])
    assert config.out_dir == f'{tmp_path}/x' and config.prompt == '~ is a tilde'
    (tmp_path / unicodedata.normalize('NFD', 'bär')).mkdir()
    assert os.path.isdir(given_path(tmp_path / 'bär'))


# ---------------------------------------------------------------------------------------------
# Shards

def shard(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, 'w') as tar:
        for name, content in members:
            if not isinstance(content, bytes):
                content = (content if isinstance(content, str) else json.dumps(content)).encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def encoded(colour):
    file = io.BytesIO()
    image = Image.new('RGB', (70, 70), 'white')
    ImageDraw.Draw(image).ellipse((9, 9, 60, 60), fill=colour)
    image.save(file, 'PNG')
    return file.getvalue()


def test_keys_of_shards_may_have_dots(tmp_path):
    members = [(f'22.{k:02d}{kind}', content) for k, colour in enumerate(COLOURS)
               for kind, content in (('.png', encoded(colour)), ('.txt', f'a {colour} circle'))]
    check(shard(tmp_path / 'dots.tar', [*members, ('plain.png', encoded('red')),
                                        ('plain.txt', 'a red circle')]), [*SAID, SAID[0]])
    long = shard(tmp_path / 'long.tar',
                 [('s0.image.png', encoded('red')), ('s0.caption.txt', 'a red circle'),
                  ('s1.png', encoded('blue')),
                                         ('s1.json', {'caption': ['a blue circle', 'something blue']}),
                                         ('s2.PNG', encoded('green')),
                                         ('s2.txt', 'a green circle\nsomething green\n')])
    check(long, [*SAID[:3], 'something blue', 'something green'])
    # What belongs to a pair is no pair, and no lonely caption is given to another's picture.
    more = shard(tmp_path / 'more.tar',
                 [('a.png', encoded('red')), ('a.txt', 'a red circle'), ('a.seg.png', encoded('blue')),
                  ('a.cls', '3'), ('b.cls', '3'),
                                         ('7.1.png', encoded('gold')), ('7.2.txt', 'a lonely text'),
                                         ('c.png', encoded('blue')), ('c.txt', 'a blue circle'),
                                         ('d.png', encoded('green')), ('d.txt', 'a green circle')])
    check(more, SAID[:3], dropped={'a .cls file': 1, 'no text': 1, 'no picture': 1})


def test_splits_of_shards(tmp_path):
    for split, k in (('train', 0), ('val', 1), ('Test', 2)):
        for path in (tmp_path / 'names' / f'pairs-{split}-000.tar', tmp_path / 'folders' / split / '0.tar'):
            shard(path, [('k.png', encoded(COLOURS[k])), ('k.txt', SAID[k])])
    for folder in ('names', 'folders'):
        assert splits(tmp_path / folder) == {'train': [SAID[0]], 'val': [SAID[1]], 'test': [SAID[2]]}
    assert len(open_folder(tmp_path / 'names' / 'pairs-val-000.tar')) == 1  # what is named itself is wanted
    assert len(open_folder(tmp_path / 'names' / 'pairs-Test-{000..000}.tar')) == 1
    assert splits(tmp_path / 'names' / 'pairs-*.tar') == splits(tmp_path / 'names')
    text(tmp_path / 'names' / 'pairs-train-000_stats.json', '{}')
    text(tmp_path / 'names' / 'pairs-train-000.idx', 'x')
    assert open_folder(tmp_path / 'names').report.as_dict() == {'a .json file': 1}


# ---------------------------------------------------------------------------------------------
# Pages

def base64_of(colour):
    return base64.b64encode(encoded(colour)).decode()


def shown(document):
    """The pieces, each picture as its colour."""
    colours = {Image.new('RGB', (1, 1), colour).getpixel((0, 0)): colour for colour in COLOURS}
    return [piece if isinstance(piece, str) else (colours[piece.load()[0].getpixel((24, 24))],)
            for piece in document.pieces]


PAGE = {'text_list': ['A.', 'B.'],
        'image_info': [{'image_name': '0.png', 'matched_text_index': 0},
                       {'image_name': '1.png', 'matched_text_index': 1}]}


def test_pages_in_any_jsonl(tmp_path):
    """As MMC4 comes: shards of it beside a folder of pictures."""
    pictures(tmp_path / 'images')
    for n in range(2):
        text(tmp_path / f'docs_no_face_shard_{n}_v3.jsonl',
             lines(PAGE, {'texts': [f'page {n}', None], 'images': [None, '2.png']}))
    text(tmp_path / 'notes.docx', 'x')
    pages = open_path(tmp_path)
    assert [shown(pages.at(k)) for k in range(4)] == [[('red',), 'A.', ('blue',), 'B.'],
                                                      ['page 0', ('green',)],
                                                      [('red',), 'A.', ('blue',), 'B.'],
                                                      ['page 1', ('green',)]]
    assert pages.at(3).where == f'{tmp_path}/docs_no_face_shard_1_v3.jsonl:2'
    assert pages.report.as_dict() == {'a .docx file': 1}
    assert len(open_path(tmp_path / 'docs_no_face_shard_1_v3.jsonl')) == 2
    with pytest.raises(BadInput, match='pairs'):
        open_folder(tmp_path)


def test_pages_with_their_pictures_inside(tmp_path):
    mmc4 = {'text_list': ['A.', 'B.'],
            'image_info': [{'image_base64': base64_of('red'), 'matched_text_index': 0, 'image_name': 'x.png'},
                                                     {'image_base64': '!', 'matched_text_index': 1}]}
    obelics = {'texts': ['A.', None, 'B.', None],
               'images': [None, {'bytes': base64_of('blue'), 'path': None}, None,
                          'data:image/png;base64,' + base64_of('gold')]}
    text(tmp_path / 'lines' / 'shard_0.jsonl', lines(mmc4, obelics))
    shard(tmp_path / 'shards' / '0.tar', [('0.json', mmc4)])
    shard(tmp_path / 'shards' / '1.tar', [('1.json', obelics), ('readme.md', 'x')])
    for folder in ('lines', 'shards'):
        pages = open_path(tmp_path / folder)
        assert [shown(pages.at(k)) for k in range(2) if k] == [['A.', ('blue',), 'B.', ('gold',)]]
        with pytest.raises(BadItem):
            pages.at(0).pieces[2].load()
        del pages.at(0).pieces[2]
    assert open_path(tmp_path / 'shards').report.as_dict() == {'a .md file': 1}
    assert open_source('m3w', str(tmp_path / 'shards')).document(0).kind == 'page'


# ---------------------------------------------------------------------------------------------
# Questions

def vqa(folder):
    """Six pictures called by hexadecimal ids, VQA's two files, TextVQA's and VizWiz' one -> the three to
    open"""
    for k in range(6):
        picture(folder / 'pictures' / f'00{k}ae2ef43b901.jpg', COLOURS[k % 4])
    answers = [{'answer': 'circle'}] * 6 + [{'answer': 'a disc', 'answer_confidence': 'yes'}] * 4
    asked = [{'question_id': k, 'image_id': f'00{k}ae2ef43b901', 'question': 'What shape is it?'}
             for k in range(6)]
    text(folder / 'v2_OpenEnded_mscoco_train2014_questions.json',
         {'data_subtype': 'train2014', 'questions': asked})
    text(folder / 'v2_mscoco_train2014_annotations.json', {'annotations': [
        {'question_id': k, 'question_type': 'what', 'multiple_choice_answer': 'circle', 'answers': answers}
        for k in range(6)]})
    text(folder / 'textvqa' / 'TextVQA_0.5.1_train.json',
         {'data': [q | {'answers': ['circle'] * 10} for q in asked]})
    text(folder / 'vizwiz' / 'train.json',
         [{'image': f'00{k}ae2ef43b901.jpg', 'question': 'What shape is it?', 'answers': answers,
           'answerable': 1} for k in range(6)])
    names = 'v2_OpenEnded_mscoco_train2014_questions.json', 'textvqa', 'vizwiz/train.json'
    return [folder / name for name in names]


def test_questions_are_given_and_answers_learned(tmp_path):
    tokenizer = Tokenizer.load('assets/tokenizer.tiktoken')
    for path in vqa(tmp_path):
        pairs = open_folder(path, FolderSpec(str(tmp_path / 'pictures')))
        assert len(pairs) == 6 and not pairs.report.total
        document = pairs.at(0)
        assert document.kind == 'examples'
        assert document.pieces[1:] == ['Question: What shape is it? Answer:', ' circle']
        assert isinstance(document.pieces[1], Given)
        sequence = encode(document, tokenizer)
        assert sequence.tokens[sequence.loss_mask].tolist() == [*tokenizer.encode(' circle'), tokenizer.eoc]
        page = open_source('m3w', str(path), FolderSpec(str(tmp_path / 'pictures'))).document(0)
        assert page.pieces.count('Question: What shape is it? Answer:') >= 6
        assert page.pieces.count(' circle') >= 6
        said = [open_source('text', str(path), FolderSpec(str(tmp_path / 'pictures'))).text(i)
                for i in range(20)]
        assert all('Question: What shape is it? Answer: circle' in one for one in said)


def test_questions_without_answers_and_damaged_ones(tmp_path):
    questions, _, vizwiz = vqa(tmp_path)
    find, report = Finder(tmp_path / 'pictures'), Report()
    found = read_questions(str(questions), None, find, report)
    assert [q.answers for q in found] == [[]] * 6 and found[0].number == 0 and not report.total
    assert read_questions(str(vizwiz), None, find, report)[0].answers == ['circle'] * 6 + ['a disc'] * 4
    (tmp_path / 'v2_mscoco_train2014_annotations.json').unlink()
    refused(questions, 'no answer: 6', spec=FolderSpec(str(tmp_path / 'pictures')))
    entries = json.loads(questions.read_text())['questions']
    odd = text(tmp_path / 'odd.json',
               {'questions': [*entries[:3], 7, {'question': 'x'}, {'question': 3, 'image_id': 1},
                              entries[0] | {'image_id': 'gone'}]})
    assert len(read_questions(str(odd), None, find, report)) == 3
    assert report.as_dict() == {'not a question': 1, 'missing': 2, 'no text': 1}


def test_a_prompt_beside_a_caption_is_given(tmp_path):
    pictures(tmp_path)
    text(tmp_path / 'metadata.jsonl',
         lines({'file_name': '0.png', 'text': 'red', 'prompt': 'Its colour:'},
               {'file_name': '1.png', 'text': 'a blue circle'},
                                            {'file_name': '2.png', 'question': 'Which colour?',
                                             'answer': 'green'},
                                            {'file_name': '3.png', 'question': 'Which?',
                                             'answers': ['gold', 'yellow', 'yellow']}))
    pairs = open_folder(tmp_path)
    assert [pairs.at(k).pieces[1:] for k in range(4)] == [['Its colour:', ' red'], ['a blue circle'],
                                                          ['Question: Which colour? Answer:', ' green'],
                                                          ['Question: Which? Answer:', ' yellow']]
    assert [pairs.at(k).kind for k in range(4)] == ['examples', 'pair', 'examples', 'examples']
    assert Pages(pairs, ['dax', 'wug'], naming=0).text(0, np.random.default_rng(0))
    with pytest.raises(BadInput, match='2 different labels'):  # only captions have names
        Pages(pairs, ['dax', 'wug'], naming=1)


# ---------------------------------------------------------------------------------------------
# COCO, and pictures themselves

def test_coco_as_it_lies_on_disk(tmp_path):
    """Names with their folder or without, on either side; the root of it all, and pictures of which only some
    are there."""
    name = 'COCO_val2014_{:012d}.jpg'.format
    for k in range(4):
        picture(tmp_path / 'coco' / 'val2014' / name(k), COLOURS[k])
        picture(tmp_path / 'flat' / name(k), COLOURS[k])
    for prefix in ('', 'val2014/', 'images\\val2014\\'):
        content = {'images': [{'id': k, 'file_name': prefix + name(k)} for k in range(4)],
                   'annotations': [{'id': k, 'image_id': k, 'caption': said} for k, said in enumerate(SAID)]}
        for file in (text(tmp_path / 'any.json', content), text(tmp_path / 'captions_val2014.json', content)):
            for folder in ('coco', 'flat', 'coco/val2014'):
                check(file, SAID, FolderSpec(str(tmp_path / folder)))
    text(tmp_path / 'coco' / 'annotations' / 'captions_val2014.json', content)
    text(tmp_path / 'coco' / 'annotations' / 'instances_val2014.json', 'no JSON')
    assert splits(tmp_path / 'coco') == {'val': sorted(SAID)}
    for k in range(3):
        (tmp_path / 'flat' / name(k)).unlink()
    refused(tmp_path / 'any.json', '3 of 4 items cannot be used: missing: 3',
            spec=FolderSpec(str(tmp_path / 'flat')))


def test_large_texts_and_profiles_in_pictures(tmp_path):
    note = PngImagePlugin.PngInfo()
    note.add_text('workflow', 'x' * (2 << 20), zip=True)
    note.add_itxt('notes', 'é' * (2 << 20), zip=True)
    for name, options in (('text', {'pnginfo': note}), ('profile', {'icc_profile': bytes(2 << 20)})):
        assert read_frames(picture(tmp_path / f'{name}.png', **options))[0].getpixel((24, 24)) == (255, 0, 0)
    note = PngImagePlugin.PngInfo()
    note.add_text('bomb', 'x' * (80 << 20), zip=True)
    with pytest.raises(BadItem):
        read_frames(picture(tmp_path / 'bomb.png', pnginfo=note))


def test_frames_a_second(tmp_path):
    frames = [Image.new('RGB', (8, 8), (10 * k,) * 3) for k in range(24)]
    frames[0].save(tmp_path / 'a.png', save_all=True, append_images=frames[1:], duration=250)  # six seconds
    shown = lambda **options: [frame.getpixel((4, 4))[0] // 10
                               for frame in read_frames(tmp_path / 'a.png', **options)]
    assert shown() == [0, 4, 8, 12, 16, 20] and shown(fps=2, n_frame=30) == list(range(0, 24, 2))
    assert shown(fps=2, n_frame=4) == [0, 6, 12, 18] and shown(fps=0.5) == [0, 8, 16]
    text(tmp_path / 'metadata.jsonl', lines({'file_name': 'a.png', 'text': 'greyer and greyer'}))
    media = [open_folder(tmp_path, FolderSpec(fps=fps), n_frame=30).media(0) for fps in (1, 3)]
    assert [len(m.load()) for m in media] == [6, 18] and media[0].key != media[1].key


def test_the_table_of_forms_in_the_message(tmp_path):
    pictures(tmp_path)
    refused(tmp_path, 'pictures in no class folder, and without captions: 4', 'metadata.jsonl',
            'captions_*.json', '.tar', 'class folders')
    assert Counter(map(type, (open_path('shapes', role='m3w'),
                              open_path('shapes', role='align')))).total() == 2


# ---------------------------------------------------------------------------------------------
# The documentation

@pytest.mark.skipif(os.name == 'nt', reason='its examples are for a shell')
def test_every_example_of_the_documentation_runs_as_written(tmp_path, monkeypatch, capsys):
    """docs/data.md: its blocks in order, in an empty folder; each look finds as much as is said there."""
    root = Path(look.__file__).parent
    blocks = re.findall(r'^```sh\n(.*?)^```$', (root / 'docs' / 'data.md').read_text(encoding='utf-8'),
                        re.M | re.S)
    monkeypatch.chdir(tmp_path)
    looked_at = 0
    for block in blocks:
        made = ''.join(line for line in block.splitlines(True) if not line.startswith('python look.py'))
        done = subprocess.run(['bash', '-e'], input=made.replace('python -c', f"'{sys.executable}' -c"),
                              text=True, capture_output=True)
        assert done.returncode == 0, (made, done.stderr)
        looks = re.findall(r'^python look.py (.+?)  # (\d+) documents, (\d+) different texts$', block, re.M)
        for arguments, documents, texts in looks:
            printed = looked(monkeypatch, capsys, *shlex.split(arguments),
                             f'--tokenizer={root}/assets/tokenizer.tiktoken')
            assert f'\n{documents} documents' in printed and f'\n{texts} different texts' in printed, printed
            looked_at += 1
        assert block.count('python look.py') == len(looks)
    assert looked_at >= 15
