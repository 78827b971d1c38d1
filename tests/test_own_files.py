"""Evaluation on people's own files: episodes, class folders, trials."""
import io
import json
import tarfile

import numpy as np
import pytest
from asking import ask, asker, config, loaded, out, pictures_in  # noqa: F401 (fixtures)
from PIL import Image
from test_official import coco

import evaluate
from kit.files import BadInput
from kit.show import sheets
from kit.sources.base import FolderSpec, Report
from kit.sources.forms import open_folder
from kit.tasks.controls import CONTROLS
from kit.tasks.episodes import can_ask, episodes_of
from kit.tasks.files import read_episodes, run_episodes, usable, usable_or_fail
from kit.tasks.naming import open_classes, run_controls, run_folder, write_episodes


def test_bad_episodes_are_named_by_line(asker, tmp_path):
    pictures_in(tmp_path, ['a.png', 'q.png'])
    shown = {'image': 'a.png', 'prompt': 'Output:', 'answer': 'dax'}
    good = {
        'support': [shown], 'query': {'image': 'q.png', 'prompt': 'Output:'}, 'answer': 'dax',
        'choices': ['dax', 'wug']
    }
    lines = [
        good, good | {'query': {'image': 'gone.png', 'prompt': 'Output:'}},
        good | {'query': {'image': 'q.png'}}, good | {'query': {'image': 'q.png', 'prompt': ' '}},
        good | {'choices': ['wug']}, good | {'support': [shown | {'answer': 3}]},
        good | {'choices': ['dax', '']}, good | {'support': [shown] * 200}, ['no', 'object']
    ]
    path = tmp_path / 'e.jsonl'
    path.write_text('\n'.join([*map(json.dumps, lines), '{', '']))
    report = Report()
    episodes = usable_or_fail(asker, read_episodes(str(path), report), report, str(path))
    assert [e is not None for e in episodes] == [True] + [False] * 9
    kinds = {
        'missing': [2], 'no prompt': [4], 'choices lack the answer': [5], 'empty choice': [7],
        'too long': [8], 'not an episode': [3, 6], 'not JSON': [9, 10]
    }
    assert report.as_dict() == {kind: len(lines) for kind, lines in kinds.items()}
    assert all(f'{path}:{line}' in where for kind, lines in kinds.items()
               for line, where in zip(lines, report.where[kind], strict=True))
    assert 'longer than the context of 255' in report.where['too long'][0]


def test_all_bad_is_fatal(asker, tmp_path):
    (tmp_path / 'e.jsonl').write_text('{\n[')
    with pytest.raises(BadInput, match='not JSON: 2'):
        run_episodes(config(f'--episodes={tmp_path}/e.jsonl'), asker, None, Report())


def test_controls_of_your_own_episodes(asker, tmp_path):
    pictures_in(tmp_path, ['a.png', 'b.png', 'q.png'])
    support = [{'image': 'a.png', 'prompt': 'Output:', 'answer': 'dax'},
               {'image': 'b.png', 'prompt': 'Output:', 'answer': 'wug'}]
    line = {
        'support': support, 'query': {'image': 'q.png', 'prompt': 'Output:'}, 'answer': 'dax',
        'choices': ['dax', 'wug']
    }
    (tmp_path / 'e.jsonl').write_text(json.dumps(line))
    rows = run_episodes(config(f'--episodes={tmp_path}/e.jsonl', '--controls=True'), asker, None, Report())
    assert {r['control'] for r in rows} == {None, *CONTROLS} and {r['ways'] for r in rows} == {2}


def test_folders_of_classes(asker, tmp_path):
    folder = pictures_in(tmp_path / 'classes',
                         [f'{c}/{i}.png' for c in ('cat', 'dog', 'fox') for i in range(3)])
    rows = run_folder(
        config(f'--folder={folder}', '--ways=2,3', '--shots=1', '--n=6', '--seeds=2',
               f'--out_dir={tmp_path}'), asker, None, Report())
    assert [(r['task'], r['ways'], r['shots'], r['n'], r['metric']) for r in rows] == [
        ('naming', ways, 1, 12, metric) for ways in (2, 3) for metric in ('accuracy', 'nearest')]
    with pytest.raises(BadInput, match='5-way .* there are 3'):
        run_folder(config(f'--folder={folder}', '--ways=5', '--shots=1'), asker, None, Report())


def test_a_picture_of_its_mistakes(asker, tmp_path, monkeypatch):
    """Of each: the example of the right name, that of the name it said, and the query; and none where there
    is no mistake."""
    folder, seen = pictures_in(tmp_path / 'classes',
                               [f'{c}/{i}.png' for c in ('cat', 'dog', 'fox') for i in range(3)]), []
    titles = []
    monkeypatch.setattr(
        sheets, 'prompt_sheet',
        lambda prompts, columns, title: seen.extend(prompts) or titles.append(title) or Image.new(
            'RGB', (4, 4)))
    options = config(f'--folder={folder}', '--ways=2,3', '--shots=1', '--n=12', '--seeds=1',
                     f'--out_dir={tmp_path}')
    wrong = lambda episodes, progress=None: [{
        'prediction': next(c for c in e.choices
                           if c != e.query.answer), 'answer': e.query.answer, 'correct': i % 2 == 1
    } for i, e in enumerate(episodes)]
    monkeypatch.setattr(asker, 'answer', wrong)
    run_folder(options, asker, None, Report())
    assert len(seen) == 6 and (tmp_path / 'confusions.png').exists()
    assert 'mistakes' in titles[0]
    for prompt in seen:
        assert [piece for piece in prompt['pieces'] if isinstance(piece, str)
                ] == [f'Output: {prompt["truth"]}', f'Output: {prompt["answer"]}', 'Output:']
        assert prompt['truth'] != prompt['answer'] and sum(not isinstance(piece, str)
                                                           for piece in prompt['pieces']) == 3
    (tmp_path / 'confusions.png').unlink()
    monkeypatch.setattr(asker,
                        'answer',
                        lambda episodes, progress=None:
                        [{'prediction': e.query.answer, 'answer': e.query.answer, 'correct': True}
                         for e in episodes])
    run_folder(options, asker, None, Report())
    assert not (tmp_path / 'confusions.png').exists()


def alphabets(folder, **sizes):
    """group/class/drawing: a class is a colour, every drawing of it another shade."""
    for g, (group, n) in enumerate(sizes.items()):
        for k in range(n):
            for j in range(4):
                (folder / group / f'c{k}').mkdir(parents=True, exist_ok=True)
                Image.new('RGB', (8, 8),
                          (20 * k, 100 * g, 60 * j)).save(folder / group / f'c{k}' / f'{j}.png')
    return folder


def test_trials_in_the_published_form(asker, tmp_path, capsys):
    """One group, one hand shows every class once, another hand's drawing of each is asked about, under new
    names for each trial."""
    folder = alphabets(tmp_path / 'data', big=6, small=5, tiny=2)
    options = [f'--folder={folder}', '--class_depth=2', '--trials=True', '--ways=5', '--n=20', '--seeds=1']
    write_episodes(config(*options, f'--write_episodes={tmp_path}/trials.jsonl'), asker, Report())
    lines = [json.loads(line) for line in open(tmp_path / 'trials.jsonl')]
    assert len(lines) == 20
    for start in range(0, 20, 5):
        trial, classes = lines[start:start + 5], []
        for line in trial:
            shown, asked = [tuple(e['image'].split('/')[-3:])
                            for e in line['support']], tuple(line['query']['image'].split('/')[-3:])
            assert len({group
                        for group, _, _ in [*shown, asked]}) == 1 and len({hand
                                                                           for _, _, hand in shown
                                                                           }) == 1 and asked[2] != shown[0][2]
            name = {c: e['answer'] for (_, c, _), e in zip(shown, line['support'])}
            assert len(name) == 5 and name[asked[1]] == line['answer'] and sorted(name.values()) == sorted(
                line['choices'])
            classes.append(asked[1])
        assert len(set(classes)) == 5 and len({frozenset(line['choices'])
                                               for line in trial}) == 1  # each is asked about once
    assert {line['query']['image'].split('/')[-3] for line in lines} == {'big', 'small'}
    rows = run_episodes(config(f'--episodes={tmp_path}/trials.jsonl', '--written=True'), asker, None,
                        Report())  # and they can be asked
    assert [(r['metric'], r['n']) for r in rows] == [('accuracy', 20), ('nearest', 20), ('written', 20)]
    for ignored in ('--predictions=p.json', '--written=True'):
        with pytest.raises(BadInput, match=ignored.split('=')[0]):
            evaluate.check_values(config(ignored))
    with pytest.raises(BadInput, match='in the largest group'):
        run_folder(config(*options, '--ways=7'), asker, None, Report())


def test_a_file_of_episodes_shows_pictures_as_they_are_or_is_refused(asker, tmp_path):
    """A class of one picture would be asked about by the picture that is shown."""
    for name in ('a', 'b', 'c'):
        pictures_in(tmp_path / 'one' / name, ['0.png'])
    options = [f'--write_episodes={tmp_path}/e.jsonl', '--ways=2', '--n=4', '--seeds=1']
    with pytest.raises(BadInput, match='0.png twice, in variants'):
        write_episodes(config(f'--folder={tmp_path}/one', *options), asker, Report())
    with tarfile.open(tmp_path / 'pairs.tar', 'w') as tar:
        for k in range(6):
            for name, content in ((f'{k}.txt', f'thing {k % 3}'.encode()),
                                  (f'{k}.png', (tmp_path / 'one' / 'abc'[k % 3] / '0.png').read_bytes())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    with pytest.raises(BadInput, match='pairs.tar: .* unpack it'):
        write_episodes(config(f'--folder={tmp_path}/pairs.tar', *options), asker, Report())
    assert not (tmp_path / 'e.jsonl').exists()


def test_every_episode_that_is_left_out_is_counted(asker, tmp_path):
    report, long = Report(), [e for seed in (0, 1) for e in episodes_of('naming', 40, 5, 4, seed)]
    assert usable(long, asker.check, report) == [None] * 10 and report.as_dict() == {'too long': 10}


def test_a_picture_with_several_captions_is_one_thing(tmp_path):
    """It is not its own example, nor two things at once; three pictures are enough for two shots, not for
    three."""
    argv = coco(tmp_path)
    pairs = open_folder(f'{tmp_path}/captions.json', FolderSpec(images=argv[1].split('=')[1]))
    assert len(pairs) == 6 and [can_ask(pairs, None, shots) for shots in (2, 3)] == [True, False]
    assert [can_ask(pairs, ways, 1) for ways in (3, 4)] == [True, False]
    path = lambda e: e.media.load.args[0]
    for e in episodes_of('caption', 2, 60, pairs=pairs):
        assert len({path(e.query), *map(path, e.support)}) == 3
    for e in episodes_of('naming', 1, 60, 3, pairs=pairs):
        assert len({path(s) for s in e.support}) == 3


def test_cells_that_cannot_be_asked_are_left_out_and_said(asker, tmp_path, capsys):
    """Two classes are enough for 2-way, and 60 examples of each are longer than the context."""
    pictures_in(tmp_path / 'two' / 'a',
                [f'{k}.png' for k in range(3)]), pictures_in(tmp_path / 'two' / 'b',
                                                             [f'{k}.png' for k in range(3)])
    options = [f'--folder={tmp_path}/two', '--n=4', '--seeds=1', f'--out_dir={tmp_path}']
    rows = run_folder(config(*options, '--shots=1,60'), asker, None, report := Report())
    assert {(r['ways'], r['shots']) for r in rows} == {(2, 1)}
    assert report.as_dict() == {'too few kinds of things': 1, 'too long': 4}
    assert report.where['too few kinds of things'] == ['4-way']
    assert {(r['ways'], r['shots'])
            for r in run_controls(config(*options, '--controls=True', '--shots=1,60'), asker, None, Report())
            } == {(2, 1)}
    with pytest.raises(BadInput, match='no episode can be used'):
        run_folder(config(*options, '--shots=60'), asker, None, Report())
    with pytest.raises(BadInput, match='4-way'):
        run_folder(config(*options, '--ways=4'), asker, None, Report())


def test_episodes_within_a_group_and_of_one_held_out(asker, tmp_path):
    folder = alphabets(tmp_path, big=6, small=5)
    pairs = open_classes(config(f'--folder={folder}', '--held_groups=small', '--split=val'), asker, Report())
    assert {item.group for item in pairs.items} == {'small'}
    pairs = open_classes(config(f'--folder={folder}'), asker, Report())
    groups = [{e.media.load.args[0].split('/')[-3] for e in [*episode.support, episode.query]}
              for episode in episodes_of('naming', 1, 12, 4, pairs=pairs, within=True)]
    assert groups[:2] in ([{'big'}, {'small'}], [{'small'}, {'big'}]) and groups == groups[:2] * 6
    assert can_ask(pairs, 6, 1, True) and not can_ask(pairs, 7, 1, True) and can_ask(pairs, 11, 1)


# ---------------------------------------------------------------------------------------------
# Several answers, and the metrics that want them


def line(**more):
    shown = {'image': 'a.png', 'prompt': 'Output: ', 'answer': 'dax'}
    return {'support': [shown], 'query': {'image': 'q.png', 'prompt': 'Output: \r\n'}} | more


def test_episodes_with_people_and_relevance(asker, tmp_path, monkeypatch):
    """CIDEr and VQA accuracy against all that people said, NDCG of the ranked choices; the answer may be left
    out."""
    pictures_in(tmp_path, ['a.png', 'q.png'])
    path = tmp_path / 'e.jsonl'
    path.write_text('\n'.join(
        json.dumps(x) for x in (line(people=['a dog', 'dog', 'dog', *['hound'] * 2, *['dog'] * 5]),
                                line(people=['no'] * 10, answer='none'))))
    first, second = read_episodes(str(path), Report())
    assert first.query.answer == 'dog' and second.query.answer == 'none' and second.people == ['no'] * 10
    said = iter([['The dog.', 'yes'], ['dog', 'no']])
    monkeypatch.setattr(asker, 'write', lambda episodes: [(text, -1.0) for text in next(said)])
    rows = run_episodes(config(f'--episodes={path}', '--metric=vqa_accuracy,accuracy'), asker, None, Report())
    assert [(r['metric'], r['value']) for r in rows[:2]] == [('vqa_accuracy', 0.5), ('accuracy', 0.0)]
    [row, _] = run_episodes(config(f'--episodes={path}', '--metric=cider'), asker, None, Report())
    assert row['metric'] == 'cider' and row['value'] > 1  # "dog" and "no" are what most said
    path.write_text('\n'.join(
        json.dumps(x) for x in (line(choices=['a', 'b', 'c'], relevance=[0.0, 0.5, 1]),
                                line(choices=['a', 'b'], relevance=[1, 0], answer='a'))))
    assert [e.query.answer for e in read_episodes(str(path), Report())] == ['c', 'a']
    monkeypatch.setattr(asker, 'score', lambda episodes: [[-1.0, -2.0, -3.0], [-1.0, -2.0]])
    [row, _] = run_episodes(config(f'--episodes={path}', '--metric=ndcg'), asker, None, Report())
    ideal = 1 + 0.5 / np.log2(3)
    assert row['value'] == pytest.approx(
        (0.5 / np.log2(3) / ideal + 1) / 2)  # two places count: 0 and 0.5 of 1 and 0.5


@pytest.mark.parametrize('metric, lacks', [('vqa_accuracy', 'people'), ('ndcg', 'relevance'),
                                           ('roc_auc', 'choices')])
def test_what_a_metric_needs_is_named(asker, tmp_path, metric, lacks):
    pictures_in(tmp_path, ['a.png', 'q.png'])
    (tmp_path / 'e.jsonl').write_text(
        json.dumps(line(answer='dax') | ({'choices': ['dax', 'b']} if lacks != 'choices' else {})))
    with pytest.raises(BadInput, match=f"e.jsonl:1: lacks '{lacks}', which --metric={metric} needs"):
        run_episodes(config(f'--episodes={tmp_path}/e.jsonl', f'--metric={metric}'), asker, None, Report())
    with pytest.raises(BadInput, match="'cidre' is none of"):
        evaluate.check_values(config('--episodes=x', '--metric=cidre'))


@pytest.mark.parametrize(
    'wrong', [{'people': []}, {'people': 'dog'}, {'people': [1]}, {'relevance': [1]}, {'choices': 'ab'},
              {'choices': ['a', 'b'], 'relevance': [1]}, {'choices': ['a', 'b'], 'relevance': [1, -1]},
              {'choices': ['a', 'b'], 'relevance': [True, False]}, {'choices': ['a'], 'relevance': [1e999]}])
def test_lists_that_are_none(tmp_path, wrong):
    (tmp_path / 'e.jsonl').write_text(json.dumps(line(answer='a') | wrong))
    assert read_episodes(str(tmp_path / 'e.jsonl'), report := Report()) == [None]
    assert report.as_dict() == {'not an episode': 1}


def test_the_end_of_an_episodes_prompts_is_trimmed(asker, tmp_path):
    """`Output: ` in a file means `Output:`, of the examples and of the query."""
    pictures_in(tmp_path, ['a.png', 'q.png'])
    plain = line(answer='dax')
    plain['support'][0]['prompt'] = plain['query']['prompt'] = 'Output:'
    for name, x in (('spaces', line(answer='dax')), ('plain', plain)):
        (tmp_path / f'{name}.jsonl').write_text(json.dumps(x))
    one, two = (asker.prompts([read_episodes(str(tmp_path / f'{name}.jsonl'), Report())[0].document()])
                for name in ('spaces', 'plain'))
    assert one['tokens'].tolist() == two['tokens'].tolist()
