"""COCO, Karpathy's splits, VQAv2, OK-VQA, TextVQA and VizWiz as published."""
import json

import pytest
from asking import ask, asker, config, loaded, out, pictures_in  # noqa: F401 (fixtures)

import evaluate
from kit.features import Pixels
from kit.files import BadInput
from kit.sources.base import Report
from kit.tasks.official import official_episodes, read_captions, read_vqa, run_official

PIXELS = Pixels(48, 8)


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def saying(asker, monkeypatch, *texts):
    """Let the model say these in turn; -> the episodes it was asked, as they come."""
    seen = []

    def answer(episodes, progress=None):
        seen.extend(episodes)
        return [{'prediction': texts[i % len(texts)], 'correct': False} for i, _ in enumerate(episodes)]
    monkeypatch.setattr(asker, 'answer', answer)
    return seen


# ---------------------------------------------------------------------------------------------
# COCO captions


def coco(folder):
    """Of five images 13 has no file and 14 no caption."""
    pictures_in(folder / 'images', ['._COCO_val2014_000000000007.jpg', 'COCO_val2014_000000000007.jpg',
                                    'COCO_val2014_000000000009.jpg', 'COCO_val2014_000000000012.jpg'])
    images = [{'id': n, 'file_name': f'COCO_val2014_{n:012d}.jpg'} for n in (7, 9, 12, 13, 14)]
    said = [{'id': n * 10 + k, 'image_id': n, 'caption': f'a thing of kind {n} seen {k} times.'}
            for n in (7, 9, 12, 13) for k in range(2)]
    write(folder / 'captions.json', {'images': images, 'annotations': said + [{'id': 1, 'image_id': 7}]})
    return [f'--coco_annotations={folder}/captions.json', f'--images={folder}/images']


def test_coco_captions_with_official_results(asker, tmp_path):
    argv, report = [*coco(tmp_path), f'--train_captions={tmp_path}/captions.json'], Report()
    [row] = ask(run_official, asker, *argv, '--shots=1', f'--predictions={tmp_path}/p.json', report=report)
    assert (row['task'], row['metric'], row['shots'], row['n']) == ('caption', 'cider', 1, 3)
    said = json.load(open(tmp_path / 'p.json'))
    assert [set(s) for s in said] == [{'image_id', 'caption'}] * 4
    assert [s['image_id'] for s in said] == [7, 9, 12, 13]
    assert said[3]['caption'] == ''  # asked, but there is no picture: the servers want an entry all the same
    printed = str(report.lines())
    assert 'image 5' in printed and 'annotation 9' in printed and report.count['missing'] == 1
    zero, two = ask(run_official, asker, *argv, '--shots=0,2', '--n=2')
    assert zero['n'] == two['n'] == 2 and two['shots'] == 2


def test_examples_of_official_files_never_show_the_query(tmp_path):
    coco(tmp_path)
    items = [
        i for i in read_captions(str(tmp_path / 'captions.json'), str(tmp_path / 'images'), Report())
        if i.example
    ]
    for e in official_episodes(items, items, 1, 0, PIXELS):
        assert len(e.support) == 1 and PIXELS(e.support[0].media) is not None
        assert e.query.media.key not in [s.media.key for s in e.support] and len(e.people) == 2
    assert all(s.media is None for e in official_episodes(items, items, 0, 0, PIXELS) for s in e.support)
    one, two = (official_episodes(items, items, shots, 0, PIXELS) for shots in (1, 2))
    for short, long in zip(one, two):  # a longer prompt shows the same and more
        assert short.support[0].media.key == long.support[0].media.key and short.query == long.query


def test_more_shots_than_pictures_are_refused(asker, tmp_path):
    with pytest.raises(BadInput, match='8 shots need as many other pictures'):
        ask(run_official, asker, *coco(tmp_path), '--shots=8', f'--train_captions={tmp_path}/captions.json')


def test_few_of_many_pictures_on_disk(asker, tmp_path, monkeypatch):
    """The 12 of 400 that are there are asked about, and give the examples; the others are counted."""
    names = [f'COCO_val2014_{n:012d}.jpg' for n in range(1, 401)]
    pictures_in(tmp_path / 'some', names[::34])
    write(
        tmp_path / 'all.json', {
            'images': [{'id': n, 'file_name': name} for n, name in enumerate(names, 1)],
            'annotations': [{'image_id': n, 'caption': f'circle {n}'} for n in range(1, 401)]
        })
    argv, report = [f'--coco_annotations={tmp_path}/all.json', f'--images={tmp_path}/some'], Report()
    seen = saying(asker, monkeypatch, 'circle')
    rows = ask(run_official,
               asker,
               *argv,
               '--shots=4,8',
               f'--train_captions={tmp_path}/all.json',
               report=report)
    assert [(r['shots'], r['n']) for r in rows] == [(4, 12), (8, 12)] and report.as_dict() == {'missing': 388}
    assert all(PIXELS(s.media) is not None for e in seen for s in e.support)
    assert ask(run_official, asker, *argv, '--n=5', '--shots=0')[0]['n'] == 5  # of those that are there


def test_pictures_are_found_under_their_folders_name(asker, tmp_path, monkeypatch):
    names = [f'val2014/COCO_val2014_{n:012d}.jpg' for n in range(1, 7)]
    pictures_in(tmp_path / 'coco', names)
    for file_name in (lambda name: name, lambda name: name.split('/')[1],
                      lambda name: name.replace('/', '\\')):
        write(
            tmp_path / 'six.json', {
                'images': [{'id': n, 'file_name': file_name(name)} for n, name in enumerate(names)],
                'annotations': [{'image_id': n, 'caption': 'a circle'} for n in range(6)]
            })
        saying(asker, monkeypatch, 'a circle')
        report = Report()
        [row] = ask(run_official,
                    asker,
                    f'--coco_annotations={tmp_path}/six.json',
                    f'--images={tmp_path}/coco',
                    report=report)
        assert row['n'] == 6 and report.total == 0


def test_examples_come_from_the_training_split_or_where_one_says(asker, tmp_path, monkeypatch):
    """Without a training file only the query is shown; with --shots that is refused in one line that says
    what to do."""
    argv = coco(tmp_path)
    pictures_in(tmp_path / 'train', [f'{k}.png' for k in range(5)])
    write(
        tmp_path / 'train.json', {
            'images': [{'id': k, 'file_name': f'{k}.png'}
                       for k in range(6)], 'annotations': [{'image_id': k, 'caption': f'learned {k}'}
                                                           for k in range(6)]
        })
    seen = saying(asker, monkeypatch, 'x')
    [row] = ask(run_official, asker, *argv)
    assert row['shots'] == 0 and all(e.support == [] for e in seen)
    with pytest.raises(BadInput,
                       match=r'--shots=2: --train_captions=FILE .* --train_captions=.*captions.json'):
        ask(run_official, asker, *argv, '--shots=2')
    seen.clear()
    train = [f'--train_captions={tmp_path}/train.json', f'--train_images={tmp_path}/train']
    [row] = ask(run_official, asker, *argv, *train, report=(report := Report()))
    assert row['shots'] == 4 and row['n'] == 3 and report.count['missing'] == 2  # one of each file
    assert all(s.answer.startswith('learned') for e in seen for s in e.support)
    assert [len(e.support) for e in seen] == [4] * 3
    seen.clear()
    ask(run_official, asker, *argv, *train, '--shots=0')
    assert {(s.media, s.answer[:7])
            for e in seen
            for s in e.support} == {(None, 'learned')}  # the paper's two, as text


def test_karpathys_splits(asker, tmp_path, monkeypatch):
    """The test split is asked, train and restval give examples; several captions are what people said."""
    splits = ['train', 'restval', 'train', 'val', 'test', 'test']
    pictures_in(tmp_path / 'images', [f'{k}.png' for k in range(6)])
    write(tmp_path / 'dataset_flickr30k.json', {'dataset': 'flickr30k', 'images': [
        {'filename': f'{k}.png', 'imgid': 10 + k, 'split': split,
         'sentences': [{'raw': f'{split} {k}.'}, {'raw': f'One {k}.'}]} for k, split in enumerate(splits)]})
    argv = [f'--coco_annotations={tmp_path}/dataset_flickr30k.json', f'--images={tmp_path}/images']
    seen = saying(asker, monkeypatch, 'test 4', 'One 5.')
    [row] = ask(run_official, asker, *argv, '--shots=3', f'--predictions={tmp_path}/p.json')
    assert row['n'] == 2 and row['value'] > 0.5
    assert json.load(open(tmp_path / 'p.json')) == [{'image_id': 14, 'caption': 'test 4'},
                                                    {'image_id': 15, 'caption': 'One 5.'}]
    for e in seen:
        assert {s.answer for s in e.support} == {'train 0.', 'restval 1.', 'train 2.'} and len(e.people) == 2
    seen.clear()
    [row] = ask(run_official, asker, *argv, '--shots=1', '--split=val')
    assert [e.people for e in seen] == [['val 3.', 'One 3.']]
    with pytest.raises(BadInput, match="no split 'tset'"):
        ask(run_official, asker, *argv, '--split=tset')


@pytest.mark.parametrize('text',
                         ['{', '[]', '{"images": 3, "annotations": []}', '{"images": [], "annotations": 3}'])
def test_annotation_files_that_are_none(tmp_path, text):
    (tmp_path / 'c.json').write_text(text)
    with pytest.raises(BadInput, match='c.json: '):
        read_captions(str(tmp_path / 'c.json'), str(tmp_path), Report())


# ---------------------------------------------------------------------------------------------
# Questions


def test_vqa_with_official_results(asker, tmp_path, monkeypatch):
    """Eleven has no picture, and its second question no answer: whatever has an id gets an entry."""
    pictures_in(tmp_path / 'images', ['COCO_val2014_000000000007.jpg', '9.png'])
    questions = [{'question_id': 100 * n + k, 'image_id': n, 'question': 'what is it?'} for n in (7, 9, 11)
                 for k in (0, 1)]
    answers = [{
        'question_id': q['question_id'], 'answers': [{'answer': 'dog', 'answer_id': k} for k in range(10)]
    } for q in questions[:5]]
    write(tmp_path / 'q.json', {'questions': [*questions, 'odd']})
    write(tmp_path / 'a.json', {'annotations': answers})
    argv = [
        f'--vqa_questions={tmp_path}/q.json', f'--images={tmp_path}/images',
        f'--vqa_annotations={tmp_path}/a.json'
    ]
    seen = saying(asker, monkeypatch, 'cat', 'The dog.')
    more = ['--shots=1', f'--train_questions={tmp_path}/q.json', f'--train_annotations={tmp_path}/a.json']
    report = Report()
    [row] = ask(run_official, asker, *argv, *more, f'--predictions={tmp_path}/p.json', report=report)
    assert (row['metric'], row['value'], row['n']) == ('vqa_accuracy', 0.5, 4)
    assert json.load(open(tmp_path / 'p.json')) == [
        {'question_id': q, 'answer': a}
        for q, a in zip((700, 701, 900, 901, 1100, 1101), ('cat', 'The dog.', 'cat', 'The dog.', '', ''))]
    assert report.count['missing'] == 1 and report.count['not a question'] == 1  # a picture counts once
    for e in seen:
        assert e.support[0].media.key != e.query.media.key and e.support[0].answer == 'dog'
        assert e.query.prompt == 'Question: what is it? Answer:'
    with pytest.raises(BadInput, match='no such folder'):
        ask(run_official, asker, argv[0], argv[2], '--images=nowhere')
    with pytest.raises(BadInput, match='--vqa_annotations=x: of --vqa_questions only'):
        evaluate.check_values(config('--vqa_annotations=x'))


def published(folder, form):
    """Four questions in the form of one of the benchmarks -> (--vqa_questions and so on, ids in its results
    file)."""
    if form in ('vqav2', 'okvqa'):
        pictures_in(folder / 'images', [f'val2014/COCO_val2014_{n:012d}.jpg' for n in range(1, 5)])
        said = [{'answer': 'circle', 'answer_confidence': 'yes', 'answer_id': k, 'raw_answer': 'circles'}
                for k in range(10)]
        ids = [1000 + n for n in range(1, 5)]
        write(folder / 'v2_q_questions.json', {'info': {}, 'data_subtype': 'val2014', 'questions': [
            {'image_id': n, 'question': 'What shape is it?', 'question_id': 1000 + n} for n in range(1, 5)]})
        write(folder / 'v2_a_annotations.json', {'annotations': [
            {'question_type': 'what', 'multiple_choice_answer': 'circle', 'answers': said, 'image_id': n,
             'answer_type': 'other', 'question_id': 1000 + n} for n in range(1, 5)]})
        return [
            f'--vqa_questions={folder}/v2_q_questions.json',
            f'--vqa_annotations={folder}/v2_a_annotations.json'
        ], ids
    if form == 'textvqa':  # ids of pictures are hexadecimal, some of digits only; answers are plain texts
        names = ['003a8ae2ef43b901', '0054c91397f2fe05', '0000000000000042', '00685bc495504d61']
        pictures_in(folder / 'images', [f'train_images/{name}.jpg' for name in names])
        write(
            folder / 'TextVQA_0.5.1_val.json', {
                'dataset_type': 'val', 'data': [{
                    'question': 'what is the brand?', 'image_id': name, 'answers': ['nokia'] * 10,
                    'question_id': 34602 + k, 'question_tokens': ['what'], 'set_name': 'val'
                } for k, name in enumerate(names)]
            })
        return [f'--vqa_questions={folder}/TextVQA_0.5.1_val.json'], [34602 + k for k in range(4)]
    if form == 'textvqa as vqa':  # two files, picture ids as texts, question ids as texts
        names = [f'00{k}ae2ef43b901' for k in range(4)]
        pictures_in(folder / 'images', [f'{name}.jpg' for name in names])
        write(
            folder / 'Q.json', {
                'questions': [{'question_id': f'q{k}', 'image_id': name, 'question': 'What shape?'}
                              for k, name in enumerate(names)]
            })
        write(folder / 'A.json', {
            'annotations': [{'question_id': f'q{k}', 'answers': [{'answer': 'circle'}] * 10}
                            for k in range(4)]
        })
        return [f'--vqa_questions={folder}/Q.json',
                f'--vqa_annotations={folder}/A.json'], [f'q{k}' for k in range(4)]
    names = [f'VizWiz_val_{k:08d}.jpg' for k in range(4)]
    pictures_in(folder / 'images', names)
    said = [{'answer': 'circle', 'answer_confidence': 'yes'}] * 10
    write(
        folder / 'val.json',
        [{'image': name, 'question': 'What is it?', 'answers': said, 'answer_type': 'other', 'answerable': 1}
         for name in names])
    return [f'--vqa_questions={folder}/val.json'], names


@pytest.mark.parametrize('form', ['vqav2', 'okvqa', 'textvqa', 'textvqa as vqa', 'vizwiz'])
def test_questions_as_published(asker, tmp_path, monkeypatch, form):
    argv, ids = published(tmp_path, form)
    argv.append(f'--images={tmp_path}/images')
    train = [a.replace('--vqa_', '--train_') for a in argv[:-1]]
    seen = saying(asker, monkeypatch, 'circle', 'nokia')
    report, file = Report(), tmp_path / 'p.json'
    [row] = ask(run_official, asker, *argv, *train, '--shots=2', f'--predictions={file}', report=report)
    assert (row['value'], row['n'], report.total) == (0.5, 4, 0)
    key = 'image' if form == 'vizwiz' else 'question_id'
    assert json.load(open(file)) == [{key: i, 'answer': a} for i, a in zip(ids, ['circle', 'nokia'] * 2)]
    assert all(
        len(e.people) == 10 and len(e.support) == 2 and PIXELS(e.query.media) is not None for e in seen)
    assert len({e.query.media.key for e in seen}) == 4


@pytest.mark.parametrize('form', ['vqav2', 'vizwiz'])
def test_questions_without_answers_give_predictions(asker, tmp_path, monkeypatch, form, capsys):
    """As the test splits come: the examples are from elsewhere, and nothing is scored."""
    argv, ids = published(tmp_path, form)
    (tmp_path / 'test').mkdir()
    questions = json.load(open(argv[0].split('=')[1]))
    if form == 'vizwiz':
        questions = [{k: q[k] for k in ('image', 'question')} for q in questions]
    train = [a.replace('--vqa_', '--train_') for a in argv]
    test = [
        f'--vqa_questions={write(tmp_path / "test" / "q.json", questions)}', f'--images={tmp_path}/images'
    ]
    saying(asker, monkeypatch, 'circle')
    assert ask(run_official, asker, *test, *train, '--shots=2', f'--predictions={tmp_path}/p.json') == []
    assert [list(p.values()) for p in json.load(open(tmp_path / 'p.json'))] == [[i, 'circle'] for i in ids]
    with pytest.raises(BadInput, match='no answers to compare with; --predictions=FILE'):
        ask(run_official, asker, *test, *train)
    with pytest.raises(BadInput, match='no question has an answer; --train_annotations'):
        ask(run_official, asker, *test, f'--train_questions={tmp_path}/test/q.json')


def test_answers_beside_the_training_questions_are_found(asker, tmp_path, monkeypatch):
    argv, _ = published(tmp_path, 'vqav2')
    seen = saying(asker, monkeypatch, 'circle')
    ask(run_official, asker, *argv, '--shots=3', f'--images={tmp_path}/images',
        argv[0].replace('--vqa_', '--train_'))
    assert [[s.answer for s in e.support] for e in seen] == [['circle'] * 3] * 4


def test_few_human_answers_are_warned_of(asker, tmp_path, monkeypatch, capsys):
    """Three people, all of one mind: leaving one out leaves two, and the best answer there is gets 2/3."""
    pictures_in(tmp_path, ['1.png', '2.png'])
    write(tmp_path / 'q.json',
          {'questions': [{'question_id': k, 'image_id': k, 'question': 'what?'} for k in (1, 2)]})
    write(tmp_path / 'a.json', {'annotations': [{'question_id': 1, 'answers': [{'answer': 'dog'}] * 3},
                                                {'question_id': 2, 'answers': [{'answer': 'dog'}] * 10}]})
    saying(asker, monkeypatch, 'dog')
    argv = [
        f'--vqa_questions={tmp_path}/q.json', f'--vqa_annotations={tmp_path}/a.json', f'--images={tmp_path}'
    ]
    [row] = ask(run_official, asker, *argv)
    assert row['value'] == pytest.approx((2 / 3 + 1) / 2)
    assert 'warning: 1 of 2 questions have fewer than four human answers' in capsys.readouterr().err


def test_a_questions_example_has_the_usual_answer(tmp_path):
    pictures_in(tmp_path, ['1.png'])
    write(tmp_path / 'q.json', {'questions': [{'question_id': 5, 'image_id': 1, 'question': 'what?'}]})
    write(tmp_path / 'a.json', {'annotations': [{'question_id': 5, 'answers': ['cat', 'dog', 'dog']}]})
    [item] = read_vqa(str(tmp_path / 'q.json'), str(tmp_path / 'a.json'), str(tmp_path), Report())
    assert (item.number, item.example.answer, item.people) == (5, 'dog', ['cat', 'dog', 'dog'])
