"""Evaluation: prompts as the paper has them, controls that do what they say, people's own files, and numbers that add up."""
import io
import json
import os
import tarfile
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import save_tiny

import evaluate
from data import (
    dialogue_prompt, encode, EndOfChunk, Episode, Example, Given, Media, question_prompt, statement_prompt)
from kit.cli import configure
from kit.features import Pixels
from kit.files import BadInput
from kit.sources.base import FolderSpec, Report
from kit.sources.forms import open_folder
from kit.show import sheets
from kit.tasks import asker as asker_file, encoders
from kit.tasks.asker import find_checkpoint, load, NANO
from kit.tasks.controls import CONTROLS, taught
from kit.tasks.encoders import (
    classify, linear_probe, nearest, nearest_row, ranks, retrieval, run_probe, run_retrieval, run_zero_shot, zero_shot)
from kit.tasks.episodes import can_ask, episodes_of, frozen_episode, TASKS
from kit.tasks.files import read_episodes, run_episodes, usable, usable_or_fail
from kit.tasks.naming import naming_cells, open_classes, run_controls, run_folder, write_episodes
from kit.tasks.official import official_episodes, read_coco, run_official
from kit.tasks.results import control_rows, measure, row, value_of
from kit.tasks.tables import control_text, tables
from kit.weights.small import halve
from kit.world.draw import clip, EVENTS, scene
from kit.world.words import clip_questions, happening, phrase
from rounding import near_log_p

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.fixture(scope='module')
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp('out')
    save_tiny(folder / 'flamingo.pt')
    return folder


@pytest.fixture(scope='module')
def loaded(out):
    torch.set_num_threads(1)
    return load(str(out / 'flamingo.pt'))


@pytest.fixture()
def asker(loaded):
    a = loaded[0]
    a.beam_size, a.max_new_tokens, a.ensemble, a.batch_size = 1, 3, 1, 16
    return a


def config(*argv):
    return configure(evaluate.KEYS, list(argv))


def pictures_in(folder, names):
    folder.mkdir(exist_ok=True, parents=True)
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        Image.new('RGB', (20, 20), (40 * i % 255, 200 - 30 * i % 200, 90)).save(folder / name)
    return folder


# ---------------------------------------------------------------------------------------------
# Prompts


def test_templates_are_the_papers():
    assert question_prompt('What is it?') == 'Question: What is it? Answer:'
    assert statement_prompt('oh no') == 'is an image with written: "oh no" on it. Is it hateful? Answer:'
    assert dialogue_prompt('a dog.', [('is it big?', 'yes')], 'is it old?') == 'a dog. Question: is it big? Answer: yes Question: is it old? Answer:'


def test_zero_shots_are_two_examples_without_pictures_and_tags(asker):
    [episode] = episodes_of('caption', 0, 1, text_examples=2)
    pieces = episode.document().pieces
    assert [type(p) for p in pieces] == [Given, str, EndOfChunk] * 2 + [Media, Given]
    said = encode(episode.document(), asker.tokenizer)
    assert (said.tokens == asker.tokenizer.image).sum() == 1 and (said.tokens == asker.tokenizer.eoc).sum() == 2
    assert (said.image_index[:np.flatnonzero(said.tokens == asker.tokenizer.image)[0]] == 0).all()
    assert [type(p) for p in episodes_of('choice', 0, 1, text_examples=2)[0].document().pieces] == [Media, Given]  # choices say enough
    assert [type(p) for p in episodes_of('caption', 0, 1)[0].document().pieces] == [Media, Given]


def test_frozens_protocol():
    [episode] = episodes_of('naming', 1, 1, ways=2)
    again = frozen_episode(episode, np.random.default_rng(0), repeats=3)
    assert again.choices is None and len(again.support) == 8
    assert again.document().pieces[0] == f'Answer with {episode.choices[0]} or {episode.choices[1]}.' and type(again.document().pieces[0]) is Given
    assert set(Counter((e.media.key, e.answer) for e in again.support).values()) == {4}
    assert not frozen_episode(episode, np.random.default_rng(0), induction=False).induction


# ---------------------------------------------------------------------------------------------
# The embedded world's tasks


def number(media):
    return media.key.split('/')[0], media.key.split('/')[1], int(media.key.split('/')[2])


def truth(media):
    kind, split, i = number(media)
    return scene(split, i) if kind == 'shapes' else clip(split, i)


@pytest.mark.parametrize('task', [t for t in TASKS if t != 'naming'])
def test_tasks_ask_about_new_pairs_after_known_ones(task):
    for shots in (0, 3):
        for e in episodes_of(task, shots, 30, seed=3):
            assert len(e.support) == shots and number(e.query.media)[1] == 'held' and {number(s.media)[1] for s in e.support} <= {'train'}
            assert e.choices is None or (e.query.answer in e.choices and len(set(e.choices)) == len(e.choices))
    one, two = (episodes_of(task, 3, 5, seed=3) for _ in range(2))
    assert [e.document().pieces[-1] for e in one] == [e.document().pieces[-1] for e in two]


def test_reading_is_what_the_sign_says():
    assert all(e.query.answer == truth(e.query.media).glyph != '' for e in episodes_of('reading', 2, 50))


def test_statements_are_true_when_they_say_so():
    episodes = episodes_of('statement', 4, 60)
    assert [e.query.answer for e in episodes[:4]] == ['no', 'yes', 'no', 'yes'] and all(e.choices == ['yes', 'no'] for e in episodes)
    for e in [s for e in episodes for s in [*e.support, e.query]]:
        told = e.prompt.split('"')[1]
        assert (told == phrase(truth(e.media), size=False, fill=False)) == (e.answer == 'yes')


def test_choices_hold_one_truth_and_clip_answers_are_true():
    for e in episodes_of('choice', 0, 50):
        assert len(e.choices) == 4 and happening(truth(e.query.media)) == e.query.answer
    asked = [e.query for e in episodes_of('clip_question', 0, 80)]
    for q in asked:
        assert (q.prompt[len('Question: '):-len(' Answer:')], q.answer) in [(question, a) for _, question, a in clip_questions(truth(q.media))]
    assert len({q.prompt for q in asked}) == 4


def test_actions_come_in_one_order():
    for e in episodes_of('action', 0, 30):
        assert len(e.choices) == 7 and [event in said for event, said in zip(EVENTS, e.choices)] == [True] * 7
        assert e.choices.index(e.query.answer) == list(EVENTS).index(truth(e.query.media).event)


def test_dialogues_rank_the_truth_first():
    for e in episodes_of('dialogue', 1, 50):
        relevance = dict(zip(e.choices, e.relevance))
        assert relevance.pop(e.query.answer) == 1.0 and max(relevance.values()) <= 0.5 and len(relevance) >= 6
        assert e.query.prompt.count('Question:') == e.query.prompt.count('Answer:') >= 2


# ---------------------------------------------------------------------------------------------
# Controls


class Learner:
    """Answers as one who learns from the prompt would: by the support picture that shows the same pair; without one, by luck."""

    def __init__(self):
        self.rng = np.random.default_rng(0)

    def answer(self, episodes):
        out = []
        for e in episodes:
            pair = lambda m: None if m is None or m.key == 'blank' else (truth(m).colour, truth(m).shape)
            known = [s.answer for s in e.support if pair(s.media) is not None and pair(s.media) == pair(e.query.media)]
            said = Counter(known).most_common(1)[0][0] if known else str(self.rng.choice(e.choices))
            out.append({'prediction': said, 'answer': e.query.answer, 'correct': said == e.query.answer, 'logprob': -1.0})
        return out


def test_controls_tell_a_learner_by_its_pictures():
    episodes = episodes_of('naming', 1, 400, ways=4)
    rows = {(r['control'], r['metric']): r for r in control_rows(Learner(), 'naming', episodes, 4, 1)}
    assert {c for c, _ in rows} == {None, *CONTROLS}
    value = {key: r['value'] for key, r in rows.items()}
    assert value[None, 'accuracy'] == value['rename_answers', 'accuracy'] == value['shuffle_answers', 'follows'] == 1.0
    for control in ('blank_support', 'swap_support', 'shuffle_answers', 'blank_query', 'text_only'):
        assert abs(value[control, 'accuracy'] - 0.25) < 0.07, control
    assert all(r['low'] <= r['value'] <= r['high'] and r['n'] == 400 for r in rows.values())


@pytest.mark.parametrize('ways, shots', [(2, 1), (4, 3)])
def test_controls_change_what_they_say_and_nothing_else(ways, shots):
    [e] = episodes_of('naming', shots, 1, ways=ways)
    rng = np.random.default_rng(1)
    changed = {name: change(e, rng) for name, change in CONTROLS.items()}
    media, answers = lambda x: [s.media and s.media.key for s in x.support], lambda x: [s.answer for s in x.support]
    n = ways * shots
    assert media(changed['blank_support']) == ['blank'] * n and answers(changed['blank_support']) == answers(e)
    assert sorted(media(changed['swap_support'])) == sorted(media(e)) and answers(changed['swap_support']) == answers(e)
    assert media(changed['text_only']) == [None] * n and answers(changed['text_only']) == answers(e)
    assert changed['blank_query'].query.media.key == 'blank' and media(changed['blank_query']) == media(e)
    for name in ('shuffle_answers', 'rename_answers'):
        pairs = set(zip(answers(e), answers(changed[name])))
        assert len(pairs) == ways == len({new for _, new in pairs}) and media(changed[name]) == media(e)  # one to one
    assert sorted(answers(changed['shuffle_answers'])) == sorted(answers(e))
    renamed = changed['rename_answers']
    assert not set(answers(renamed)) & set(answers(e)) and set(renamed.choices) == set(answers(renamed))
    assert renamed.query.answer == taught(e, renamed) == renamed.choices[e.choices.index(e.query.answer)]


# ---------------------------------------------------------------------------------------------
# Scoring


def test_an_ensemble_is_the_mean_over_orders(asker):
    episodes = episodes_of('naming', 2, 3, ways=2)
    asker.ensemble = 3
    together = asker.choose(episodes)
    asker.ensemble = 1
    orders = [None] + [np.random.default_rng(k).permutation(4) for k in (1, 2)]
    singles = [asker.choose([Episode([e.support[k] for k in order] if order is not None else e.support, e.query, e.choices) for e in episodes])
               for order in orders]
    assert len({round(s[0][episodes[0].choices[0]], 4) for s in singles}) > 1  # the order does matter to it
    for i, e in enumerate(episodes):
        for c in e.choices:
            assert together[i][c] == near_log_p(np.mean([s[i][c] for s in singles]), n_word=8)


def test_batches_that_do_not_fit_are_asked_one_by_one(asker, monkeypatch):
    """A long prompt beside a long answer, or more choices than memory has room for: the same scores; and a choice that is there
    twice counts once."""
    [short] = episodes_of('naming', 1, 1, ways=2)
    long = episodes_of('naming', 10, 1, ways=2)[0]
    wordy = Episode(short.support, short.query, [*short.choices, short.choices[0], 'a ' * 140])
    prompt, answer = (int(asker.prompts([long.document()])['length']), len(asker.tokenizer.encode(' ' + wordy.choices[-1])) + 1)
    assert prompt + answer > 257  # tokens: a context of 256, and one more that is never read
    asker.ensemble = 2
    alone = [asker.choose([e])[0] for e in (long, wordy)]
    sizes, score = [], asker.model.score
    monkeypatch.setattr(asker.model, 'score', lambda tokens, **more: sizes.append(len(tokens)) or score(tokens, **more))
    for a, b in zip(asker.choose([long, wordy]), alone):
        assert a == near_log_p(b, n_word=144)
    assert sizes == [1] * 4 and len(alone[1]) == 3
    asker.ensemble = 1
    assert asker.choose([wordy])[0][short.choices[0]] == near_log_p(asker.choose([short])[0][short.choices[0]], n_word=8)
    sizes.clear()
    monkeypatch.setattr(asker_file, 'MOST_CHOICES', 3)
    asker.choose([short, short])
    assert sizes == [1, 1]
    with pytest.raises(BadInput, match='4 choices are more than 3'):
        asker.choose([wordy])


def asked(answer, choices=None, **more):
    return Episode([], Example(None, 'Output:', answer), choices, **more)


def test_values_of_every_metric_by_hand():
    said = lambda prediction, correct=False, **scores: {'prediction': prediction, 'correct': correct, 'scores': scores}
    assert value_of('accuracy', [asked('a')] * 4, [said('a', True)] * 3 + [said('b')]) == (0.75, None)
    value, (low, high) = value_of('cider', [asked('A b.'), asked('x', people=['A c!'])], [said('a b'), said('a, c')])
    assert value == pytest.approx(5.0) and low <= value <= high  # tokenised first, references from people
    value, _ = value_of('vqa_accuracy', [asked('x', people=['two'] * 10), asked('x', people=['no'] * 10)], [said('2.'), said('yes')])
    assert value == 0.5
    value, _ = value_of('ndcg', [asked('a', ['a', 'b'], relevance=[1.0, 0.0])] * 2, [said('a', a=1.0, b=0.0), said('b', a=0.0, b=1.0)])
    assert value == pytest.approx(0.5)  # one relevant answer: one place counts
    yes_no = [asked('yes', ['yes', 'no']), asked('no', ['yes', 'no']), asked('yes', ['yes', 'no'])]
    scores = [said('', yes=-9.0, no=-11.0), said('', yes=-1.0, no=-2.0), said('', yes=-5.0, no=-4.0)]  # margins 2, 1, -1
    assert value_of('roc_auc', yes_no, scores)[0] == pytest.approx(0.5)
    acts = [asked('p', ['p', 'q']), asked('v', ['u', 'v'])]  # each thing has its own words for the two actions
    scores = [said('', p=-1.0, q=-2.0), said('', u=-50.0, v=-40.0)]
    assert value_of('mean_average_precision', acts, scores)[0] == 1.0
    with pytest.raises(ValueError):
        value_of('roc_auc', yes_no[:1], [said('', yes=-9.0, no=-11.0)])


def test_tables_have_a_row_for_everything():
    rows = [row('caption', 0.5, 10, shots=s) for s in (0, 4)] + [row('caption', 1.138, 10, shots=4, metric='cider', bounds=(1.0, 1.2))]
    rows += [row('naming', 0.9, 10, 4, 1), row('naming', 0.1, 10, 5, 1, metric='written')]
    text = tables(rows)
    assert '113.8 (100–120)' in text and text.count('\n\n') == 2 and '5-way, written' in text
    assert all(set(r) == {'task', 'ways', 'shots', 'control', 'metric', 'value', 'low', 'high', 'n'} for r in rows)
    text = control_text([row('naming', 0.9, 10, 4, 1), row('naming', 0.2, 10, 4, 1, 'swap_support')])
    assert 'swap support' in text and text.splitlines()[-1].split() == ['chance', '25.0%']


def test_the_whole_command_on_a_few_episodes(asker, loaded, out, monkeypatch, capsys):
    argv = [f'--out_dir={out}', '--n=2', '--seeds=1', '--max_new_tokens=2', '--beam_size=1', '--shots=0,2', '--ways=2', '--device=cpu',
            '--tasks=caption,choice,dialogue,statement,action,naming']
    monkeypatch.setattr('sys.argv', ['evaluate.py', *argv])
    monkeypatch.setattr(evaluate, 'load', lambda *_: loaded)
    evaluate.main()
    kinds = {(r['task'], r['ways'], r['shots'], r['metric']) for r in json.load(open(out / 'evaluate.json'))}
    assert {('caption', None, 0, 'cider'), ('caption', None, 2, 'accuracy'), ('choice', None, 2, 'accuracy'), ('dialogue', None, 0, 'ndcg'),
            ('statement', None, 2, 'roc_auc'), ('action', None, 0, 'mean_average_precision'), ('naming', 2, 2, 'accuracy')} <= kinds
    assert Image.open(out / 'evaluate.png').width > 300 and 'choice' in capsys.readouterr().out


def test_what_does_not_fit_the_context_is_left_out_whole(asker, loaded):
    report = Report()
    rows = evaluate.full_table(config('--n=2', '--seeds=1', '--tasks=caption', '--shots=2,60'), asker, loaded[1], report)
    assert {r['shots'] for r in rows} == {2} and report.where == {'longer than the context': ['caption, 60 shots']}


@pytest.mark.parametrize('argv', [['--tasks=captoin'], ['--shots=a'], ['--shots=-1'], ['--ways=1']])
def test_mistakes_are_named(asker, loaded, argv):
    with pytest.raises(BadInput, match=argv[0][2:].split('=')[0]):
        evaluate.full_table(config('--n=1', '--seeds=1', *argv), asker, loaded[1], Report())


# ---------------------------------------------------------------------------------------------
# People's own files


def test_bad_episodes_are_named_by_line(asker, tmp_path):
    pictures_in(tmp_path, ['a.png', 'q.png'])
    shown = {'image': 'a.png', 'prompt': 'Output:', 'answer': 'dax'}
    good = {'support': [shown], 'query': {'image': 'q.png', 'prompt': 'Output:'}, 'answer': 'dax', 'choices': ['dax', 'wug']}
    lines = [good, good | {'query': {'image': 'gone.png', 'prompt': 'Output:'}}, good | {'query': {'image': 'q.png'}},
             good | {'query': {'image': 'q.png', 'prompt': ' '}}, good | {'choices': ['wug']}, good | {'support': [shown | {'answer': 3}]},
             good | {'choices': ['dax', '']}, good | {'support': [shown] * 200}, ['no', 'object']]
    path = tmp_path / 'e.jsonl'
    path.write_text('\n'.join([*map(json.dumps, lines), '{', '']))
    report = Report()
    episodes = usable_or_fail(asker, read_episodes(str(path), report), report, str(path))
    assert [e is not None for e in episodes] == [True] + [False] * 9
    kinds = {'missing': [2], 'no prompt': [4], 'choices lack the answer': [5], 'empty choice': [7], 'too long': [8], 'not an episode': [3, 6], 'not JSON': [9, 10]}
    assert report.as_dict() == {kind: len(lines) for kind, lines in kinds.items()}
    assert all(f'{path}:{line}' in where for kind, lines in kinds.items() for line, where in zip(lines, report.where[kind], strict=True))
    assert 'longer than the context of 255' in report.where['too long'][0]


def test_all_bad_is_fatal(asker, tmp_path):
    (tmp_path / 'e.jsonl').write_text('{\n[')
    with pytest.raises(BadInput, match='not JSON: 2'):
        run_episodes(config(f'--episodes={tmp_path}/e.jsonl'), asker, None, Report())


def test_controls_of_your_own_episodes(asker, tmp_path):
    pictures_in(tmp_path, ['a.png', 'b.png', 'q.png'])
    support = [{'image': 'a.png', 'prompt': 'Output:', 'answer': 'dax'}, {'image': 'b.png', 'prompt': 'Output:', 'answer': 'wug'}]
    line = {'support': support, 'query': {'image': 'q.png', 'prompt': 'Output:'}, 'answer': 'dax', 'choices': ['dax', 'wug']}
    (tmp_path / 'e.jsonl').write_text(json.dumps(line))
    rows = run_episodes(config(f'--episodes={tmp_path}/e.jsonl', '--controls=True'), asker, None, Report())
    assert {r['control'] for r in rows} == {None, *CONTROLS} and {r['ways'] for r in rows} == {2}


def test_folders_of_classes(asker, tmp_path):
    folder = pictures_in(tmp_path / 'classes', [f'{c}/{i}.png' for c in ('cat', 'dog', 'fox') for i in range(3)])
    rows = run_folder(config(f'--folder={folder}', '--ways=2,3', '--shots=1', '--n=6', '--seeds=2', f'--out_dir={tmp_path}'), asker, None, Report())
    assert [(r['task'], r['ways'], r['shots'], r['n'], r['metric']) for r in rows] == [
        ('naming', ways, 1, 12, metric) for ways in (2, 3) for metric in ('accuracy', 'nearest')]
    with pytest.raises(BadInput, match='5-way .* there are 3'):
        run_folder(config(f'--folder={folder}', '--ways=5', '--shots=1'), asker, None, Report())


def test_a_picture_of_its_mistakes(asker, tmp_path, monkeypatch):
    """Of each: the example of the right name, that of the name it said, and the query; and none where there is no mistake."""
    folder, seen = pictures_in(tmp_path / 'classes', [f'{c}/{i}.png' for c in ('cat', 'dog', 'fox') for i in range(3)]), []
    titles = []
    monkeypatch.setattr(sheets, 'prompt_sheet',
                        lambda prompts, columns, title: seen.extend(prompts) or titles.append(title) or Image.new('RGB', (4, 4)))
    options = config(f'--folder={folder}', '--ways=2,3', '--shots=1', '--n=12', '--seeds=1', f'--out_dir={tmp_path}')
    wrong = lambda episodes, progress=None: [{'prediction': next(c for c in e.choices if c != e.query.answer), 'answer': e.query.answer,
                                              'correct': i % 2 == 1} for i, e in enumerate(episodes)]
    monkeypatch.setattr(asker, 'answer', wrong)
    run_folder(options, asker, None, Report())
    assert len(seen) == 6 and (tmp_path / 'confusions.png').exists()
    assert 'mistakes' in titles[0]
    for prompt in seen:
        assert [piece for piece in prompt['pieces'] if isinstance(piece, str)] == [f'Output: {prompt["truth"]}', f'Output: {prompt["answer"]}', 'Output:']
        assert prompt['truth'] != prompt['answer'] and sum(not isinstance(piece, str) for piece in prompt['pieces']) == 3
    (tmp_path / 'confusions.png').unlink()
    monkeypatch.setattr(asker, 'answer', lambda episodes, progress=None: [{'prediction': e.query.answer, 'answer': e.query.answer, 'correct': True} for e in episodes])
    run_folder(options, asker, None, Report())
    assert not (tmp_path / 'confusions.png').exists()


def alphabets(folder, **sizes):
    """group/class/drawing: a class is a colour, every drawing of it another shade."""
    for g, (group, n) in enumerate(sizes.items()):
        for k in range(n):
            for j in range(4):
                (folder / group / f'c{k}').mkdir(parents=True, exist_ok=True)
                Image.new('RGB', (8, 8), (20 * k, 100 * g, 60 * j)).save(folder / group / f'c{k}' / f'{j}.png')
    return folder


def test_trials_in_the_published_form(asker, tmp_path, capsys):
    """One group, one hand shows every class once, another hand's drawing of each is asked about, under new names for each trial."""
    folder = alphabets(tmp_path / 'data', big=6, small=5, tiny=2)
    options = [f'--folder={folder}', '--class_depth=2', '--trials=True', '--ways=5', '--n=20', '--seeds=1']
    write_episodes(config(*options, f'--write_episodes={tmp_path}/trials.jsonl'), asker, Report())
    lines = [json.loads(line) for line in open(tmp_path / 'trials.jsonl')]
    assert len(lines) == 20
    for start in range(0, 20, 5):
        trial, classes = lines[start:start + 5], []
        for line in trial:
            shown, asked = [tuple(e['image'].split('/')[-3:]) for e in line['support']], tuple(line['query']['image'].split('/')[-3:])
            assert len({group for group, _, _ in [*shown, asked]}) == 1 and len({hand for _, _, hand in shown}) == 1 and asked[2] != shown[0][2]
            name = {c: e['answer'] for (_, c, _), e in zip(shown, line['support'])}
            assert len(name) == 5 and name[asked[1]] == line['answer'] and sorted(name.values()) == sorted(line['choices'])
            classes.append(asked[1])
        assert len(set(classes)) == 5 and len({frozenset(line['choices']) for line in trial}) == 1  # each is asked about once
    assert {line['query']['image'].split('/')[-3] for line in lines} == {'big', 'small'}
    rows = run_episodes(config(f'--episodes={tmp_path}/trials.jsonl', '--written=True'), asker, None, Report())  # and they can be asked
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
            for name, content in ((f'{k}.txt', f'thing {k % 3}'.encode()), (f'{k}.png', (tmp_path / 'one' / 'abc'[k % 3] / '0.png').read_bytes())):
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
    """It is not its own example, nor two things at once; three pictures are enough for two shots, not for three."""
    argv = coco(tmp_path)
    pairs = open_folder(f'{tmp_path}/captions.json', FolderSpec(argv[1].split('=')[1]))
    assert len(pairs) == 6 and [can_ask(pairs, None, shots) for shots in (2, 3)] == [True, False]
    assert [can_ask(pairs, ways, 1) for ways in (3, 4)] == [True, False]
    path = lambda e: e.media.load.args[0]
    for e in episodes_of('caption', 2, 60, pairs=pairs):
        assert len({path(e.query), *map(path, e.support)}) == 3
    for e in episodes_of('naming', 1, 60, 3, pairs=pairs):
        assert len({path(s) for s in e.support}) == 3


def test_cells_that_cannot_be_asked_are_left_out_and_said(asker, tmp_path, capsys):
    """Two classes are enough for 2-way, and 60 examples of each are longer than the context."""
    pictures_in(tmp_path / 'two' / 'a', [f'{k}.png' for k in range(3)]), pictures_in(tmp_path / 'two' / 'b', [f'{k}.png' for k in range(3)])
    options = [f'--folder={tmp_path}/two', '--n=4', '--seeds=1', f'--out_dir={tmp_path}']
    rows = run_folder(config(*options, '--shots=1,60'), asker, None, report := Report())
    assert {(r['ways'], r['shots']) for r in rows} == {(2, 1)}
    assert report.as_dict() == {'too few kinds of things': 1, 'too long': 4}
    assert report.where['too few kinds of things'] == ['4-way']
    assert {(r['ways'], r['shots']) for r in run_controls(config(*options, '--controls=True', '--shots=1,60'), asker, None, Report())} == {(2, 1)}
    with pytest.raises(BadInput, match='no episode can be used'):
        run_folder(config(*options, '--shots=60'), asker, None, Report())
    with pytest.raises(BadInput, match='4-way'):
        run_folder(config(*options, '--ways=4'), asker, None, Report())


def test_more_shots_than_pictures_are_refused(asker, tmp_path):
    with pytest.raises(BadInput, match='8 shots need as many other pictures'):
        run_official(config(*coco(tmp_path), '--shots=8'), asker, None, Report())


def test_pictures_of_coco_are_found_for_retrieval_too(loaded, tmp_path):
    argv = coco(tmp_path)
    rows = run_retrieval(config(f'--retrieval={tmp_path}/captions.json', argv[1]), *loaded, Report())
    assert [(r['metric'], r['n']) for r in rows][:1] == [('i2t_R@1', 3)]


def test_episodes_within_a_group_and_of_one_held_out(asker, tmp_path):
    folder = alphabets(tmp_path, big=6, small=5)
    pairs = open_classes(config(f'--folder={folder}', '--held_groups=small', '--split=val'), asker, Report())
    assert {item.group for item in pairs.items} == {'small'}
    pairs = open_classes(config(f'--folder={folder}'), asker, Report())
    groups = [{e.media.load.args[0].split('/')[-3] for e in [*episode.support, episode.query]}
              for episode in episodes_of('naming', 1, 12, 4, pairs=pairs, within=True)]
    assert groups[:2] in ([{'big'}, {'small'}], [{'small'}, {'big'}]) and groups == groups[:2] * 6
    assert can_ask(pairs, 6, 1, True) and not can_ask(pairs, 7, 1, True) and can_ask(pairs, 11, 1)


def test_the_nearest_neighbour_by_hand(monkeypatch):
    """Two examples of each name, their mean counts; what all have in common (here 100 in every dimension) tells nothing."""
    points = {'a1': (1, 0), 'a2': (3, 0), 'b1': (0, 1), 'b2': (0, 3), 'q': (0.4, 0.3), 'r': (0, 9)}
    monkeypatch.setattr(encoders, 'pool_media', lambda features, media: torch.tensor([points[m.key] for m in media]) + 100.0)
    support = [Example(Media(k, None), 'Output:', name) for k, name in (('a1', 'dax'), ('b1', 'wug'), ('a2', 'dax'), ('b2', 'wug'))]
    episodes = [Episode(support, Example(Media(k, None), 'Output:', answer), ['dax', 'wug']) for k, answer in (('q', 'dax'), ('r', 'wug'), ('r', 'dax'))]
    assert nearest(None, episodes) == ['dax', 'wug', 'wug']
    assert nearest_row(None, episodes)['value'] == pytest.approx(2 / 3)


def test_retrieval_by_hand(monkeypatch):
    """Picture a has two captions, two pictures the caption "it"; each stands among the answers once, and any of its own is right."""
    pictures = {'a': (1, 0), 'b': (0, 1), 'c': (-1, 0), 'd': (0.8, 0.6)}
    texts = {'one': (1, 0), 'two': (0.9, -0.1), 'it': (0.1, 1), 'far': (-0.6, 0.8)}
    pairs = [('a', 'one'), ('a', 'two'), ('b', 'it'), ('d', 'it'), ('c', 'far')]

    class Found(list):
        items = [SimpleNamespace(text=text) for _, text in pairs]
        media = staticmethod(lambda i: Media(pairs[i][0], None))

    monkeypatch.setattr(encoders, 'readable_pairs', lambda pairs, *_: pairs)
    monkeypatch.setattr(encoders, 'embed_media', lambda vision, features, media: torch.tensor([pictures[m.key] for m in media], dtype=torch.float))
    monkeypatch.setattr(encoders, 'embed_texts', lambda tower, tokenizer, said: torch.tensor([texts[t] for t in said], dtype=torch.float))
    rows = retrieval(Found(pairs), SimpleNamespace(vision=None, text=None), SimpleNamespace(pixels=None), None, None)
    values = {r['metric']: (r['value'], r['n']) for r in rows}
    # Pictures: a's captions are first and second; b's "it" is first; c's "far" is; d is nearer to "one" and "two" than to "it".
    assert values['i2t_R@1'] == (0.75, 4) and values['i2t_R@5'] == (1.0, 4)
    # Texts: "one", "two" find a, "it" finds b (d is right as well), "far" finds b (0.8) before its c (0.6).
    assert values['t2i_R@1'] == (0.75, 4) and values['t2i_R@10'] == (1.0, 4)


def test_ranks_do_not_depend_on_the_size_of_a_block():
    """Against the definition, question by question, in float64."""
    g = np.random.default_rng(0)
    asked, answers = g.normal(size=(23, 4)), g.normal(size=(31, 4))
    belong = [(q, int(g.integers(31))) for q in [*range(23), *g.integers(23, size=20).tolist()]]
    expected = []
    for q in range(23):
        right = {a for other, a in belong if other == q}
        near = asked[q] @ answers.T
        expected.append(sum(near[a] >= max(near[list(right)]) for a in range(31) if a not in right))
    for block in (1, 5, 100):
        assert ranks(torch.tensor(asked), torch.tensor(answers), belong, block).tolist() == expected


def coco(folder):
    pictures_in(folder / 'images', ['._COCO_val2014_000000000007.jpg', 'COCO_val2014_000000000007.jpg', 'COCO_val2014_000000000009.jpg', 'COCO_val2014_000000000012.jpg'])
    images = [{'id': n, 'file_name': f'COCO_val2014_{n:012d}.jpg'} for n in (7, 9, 12, 13, 14)]  # 13 has no file, 14 no caption
    said = [{'id': n * 10 + k, 'image_id': n, 'caption': f'a thing of kind {n} seen {k} times.'} for n in (7, 9, 12, 13) for k in range(2)]
    (folder / 'captions.json').write_text(json.dumps({'images': images, 'annotations': said + [{'id': 1, 'image_id': 7}]}))
    return [f'--coco_annotations={folder}/captions.json', f'--images={folder}/images']


def test_coco_captions_with_official_results(asker, tmp_path, capsys):
    argv = coco(tmp_path)
    [row] = run_official(config(*argv, '--shots=1', f'--predictions={tmp_path}/p.json'), asker, None, report := Report())
    assert (row['task'], row['metric'], row['shots'], row['n']) == ('caption', 'cider', 1, 3)
    said = json.load(open(tmp_path / 'p.json'))
    assert [set(s) for s in said] == [{'image_id', 'caption'}] * 4 and [s['image_id'] for s in said] == [7, 9, 12, 13]
    assert said[3]['caption'] == ''  # asked, but there is no picture: the servers want an entry all the same
    printed = str(report.lines())
    assert 'image 5' in printed and 'annotation 9' in printed and 'missing' in printed
    zero, four = run_official(config(*argv, '--shots=0,2', '--n=2'), asker, None, Report())
    assert zero['n'] <= 2 and four['shots'] == 2


def test_examples_of_official_files_never_show_the_query(tmp_path):
    coco(tmp_path)
    items = read_coco(str(tmp_path / 'captions.json'), str(tmp_path / 'images'), Report())
    pixels = Pixels(48, 8)
    for number, e in official_episodes(items, 1, 0, 0, pixels):
        assert len(e.support) == 1 and pixels(e.support[0].media) is not None  # never the one that is missing
        assert e.query.media.key not in [s.media.key for s in e.support] and len(e.people) == 2
    assert all(s.media is None for _, e in official_episodes(items, 0, 0, 0, pixels) for s in e.support)


def test_vqa_with_official_results(asker, tmp_path, capsys):
    pictures_in(tmp_path / 'images', ['COCO_val2014_000000000007.jpg', '9.png'])
    questions = [{'question_id': 100 * n + k, 'image_id': n, 'question': 'what is it?'} for n in (7, 9, 11) for k in range(2)] + ['odd']
    answers = [{'question_id': q['question_id'], 'answers': [{'answer': 'dog', 'answer_id': k} for k in range(10)]} for q in questions[:5]]
    (tmp_path / 'q.json').write_text(json.dumps({'questions': questions}))
    (tmp_path / 'a.json').write_text(json.dumps({'annotations': answers}))
    argv = [f'--vqa_questions={tmp_path}/q.json', f'--images={tmp_path}/images']
    monkey = lambda episodes, progress=None: [{'prediction': 'The dog.' if i % 2 else 'cat', 'correct': False} for i, _ in enumerate(episodes)]
    asker.answer, answer = monkey, asker.answer
    try:
        [row] = run_official(config(*argv, f'--vqa_annotations={tmp_path}/a.json', '--shots=1', f'--predictions={tmp_path}/p.json'), asker, None, report := Report())
    finally:
        asker.answer = answer
    assert (row['metric'], row['value'], row['n']) == ('vqa_accuracy', 0.5, 4)
    assert json.load(open(tmp_path / 'p.json')) == [{'question_id': q, 'answer': a} for q, a in
                                                    zip((700, 701, 900, 901), ('cat', 'The dog.', 'cat', 'The dog.'))]
    printed = str(report.lines())
    assert 'question 5' in printed and 'question 7' in printed and 'no answer' in printed
    with pytest.raises(BadInput, match='belong together'):
        evaluate.check_values(config(*argv))
    with pytest.raises(BadInput, match='no such folder'):
        run_official(config(argv[0], f'--vqa_annotations={tmp_path}/a.json', '--images=nowhere'), asker, None, Report())


@pytest.mark.parametrize('text, message', [('{', 'not JSON'), ('[]', 'lacks one of'), ('{"images": 3, "annotations": []}', 'must be lists')])
def test_annotation_files_that_are_none(tmp_path, text, message):
    (tmp_path / 'c.json').write_text(text)
    with pytest.raises(BadInput, match=message):
        read_coco(str(tmp_path / 'c.json'), str(tmp_path), Report())


# ---------------------------------------------------------------------------------------------
# The encoders alone


def test_linear_probe_is_logistic_regression():
    """It separates what can be separated, and where features say nothing it knows what is frequent."""
    torch.manual_seed(0)
    truth = torch.arange(60) % 3
    x = torch.randn(60, 5) + 4 * torch.nn.functional.one_hot(truth, 5)
    assert (linear_probe(x, truth, x, 3) == truth).all()
    assert linear_probe(x[:, :1] * 0, torch.tensor([1] * 40 + [0] * 20), x[:4, :1] * 0, 2).tolist() == [1] * 4  # only the bias can tell
    far = torch.zeros(3, 5).index_put((torch.arange(3), torch.arange(3)), torch.tensor(9.0))
    assert linear_probe(x, truth, far, 3).tolist() == [0, 1, 2]


def test_zero_shot_classes_are_means_over_templates(monkeypatch):
    """A picture goes to the class whose descriptions, on average, lie nearest."""
    vectors = {'p': [1.0, 0.0], 'q': [0.0, 1.0], 'r': [-1.0, 0.0]}
    monkeypatch.setattr(encoders, 'embed_texts', lambda tower, tokenizer, texts: torch.tensor([vectors[t] for t in texts]))
    monkeypatch.setattr(encoders, 'embed_media', lambda vision, features, media: torch.tensor(media))
    value = classify(SimpleNamespace(text=None, vision=None), None, None, [[0.8, 0.6], [-0.6, 0.8], [-1.0, 0.1]], [0, 1, 0], [['p', 'q'], ['r', 'q']])
    assert value == pytest.approx(2 / 3)


def test_zero_shot_and_probe_on_a_folder(asker, loaded, tmp_path):
    folder = pictures_in(tmp_path / 'c', [f'{c}/{i}.png' for c in ('cat', 'dog') for i in range(6)])
    (folder / 'cat' / 'broken.png').write_bytes(b'no picture')
    [row] = run_zero_shot(config(f'--zero_shot={folder}'), asker, loaded[1], Report())
    assert (row['task'], row['ways'], row['n']) == ('zero_shot', 2, 12)
    [row] = run_probe(config(f'--probe={folder}'), asker, loaded[1], Report())
    assert (row['task'], row['n']) == ('linear_probe', 2)
    with pytest.raises(BadInput, match='templates'):
        run_zero_shot(config(f'--zero_shot={folder}', '--templates=a photo'), asker, loaded[1], Report())


# ---------------------------------------------------------------------------------------------
# The small checkpoint that comes with the code


def test_without_a_checkpoint_the_small_one_is_used_and_said(out, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(asker_file, 'NANO', str(out / 'flamingo.pt'))
    path = find_checkpoint(f'{tmp_path}/new')
    assert path == str(out / 'flamingo.pt') and os.path.isdir(tmp_path / 'new') and len(capsys.readouterr().err.splitlines()) == 1
    assert find_checkpoint(str(out)) == f'{out}/flamingo.pt'
    assert find_checkpoint(str(tmp_path), 'other.pt') == f'{tmp_path}/other.pt'
    assert not capsys.readouterr().err


def test_a_halved_checkpoint_answers_nearly_the_same(out, tmp_path, asker):
    (out / 'results.json').write_text(json.dumps([row('naming', 0.9, 10, 4, 1)]))
    halve(str(out / 'flamingo.pt'), str(tmp_path / 'small.pt'))
    assert os.path.getsize(tmp_path / 'small.pt') < 0.55 * os.path.getsize(out / 'flamingo.pt')
    beside = json.load(open(tmp_path / 'small.json'))
    assert beside['made by'] == 'python train.py --n_latent=4' and beside['rows'][0]['value'] == 0.9
    small, _ = load(str(tmp_path / 'small.pt'))
    assert all(p.dtype == torch.float32 for p in small.model.parameters())
    episodes = episodes_of('naming', 1, 4, ways=2)
    for a, b in zip(asker.choose(episodes), small.choose(episodes)):
        # float16, ε = 2⁻¹⁰: some ten roundings of logits of about 8.
        assert list(a.values()) == pytest.approx(list(b.values()), abs=0.1)
    with pytest.raises(BadInput, match='must end in .pt'):
        halve(str(out / 'flamingo.pt'), str(tmp_path / 'small'))
    with pytest.raises(BadInput, match='results.json'):
        halve(str(tmp_path / 'small.pt'), str(tmp_path / 'x' / 'y.pt'))


def test_the_small_checkpoint_keeps_to_its_table():
    """assets/nano.pt, fresh from a clone, does what assets/nano.json says it did: the same episodes, fewer of them."""
    assert os.path.getsize(NANO) <= 8_000_000
    told = json.load(open(NANO.replace('.pt', '.json')))
    assert told['made by'].startswith('python train.py')
    nano, contrastive = load(NANO)
    rows = [r for r in told['rows'] if r['task'] == 'naming' and r['shots'] == 1] + [r for r in told['rows'] if r['task'] in ('caption', 'question') and r['shots'] == 0]
    assert {(r['ways'], r['control']) for r in rows} >= {(2, None), (4, None), (2, 'blank_support'), (4, 'blank_support')}
    for r in rows:
        found = measure(nano, r['task'], r['shots'], 100, r['ways'], r['control'], seed=1)[0]
        assert found['low'] <= r['high'] and r['low'] <= found['high'], (r, found)
    [seen] = [r for r in told['rows'] if r['task'] == 'zero_shot']
    found = zero_shot(contrastive, nano.tokenizer, nano.features, 200)
    assert found['low'] <= seen['high'] and seen['low'] <= found['high']


# ---------------------------------------------------------------------------------------------
# A curve over shots


def asked_by(episode):
    """What an episode asks: picture and words."""
    return episode.query.media.key, episode.query.prompt, episode.query.answer, episode.choices


@pytest.mark.parametrize('task', [t for t in TASKS if t != 'action'])
def test_the_columns_of_a_curve_ask_the_same(task):
    """Episode i asks the same after 0, 1, 4 and 8 examples; other seeds ask something else."""
    ways = 3 if task == 'naming' else None
    columns = [[asked_by(e) for e in episodes_of(task, shots, 20, ways, seed=2, text_examples=2)]
               for shots in ((1, 4, 8) if ways else (0, 1, 4, 8))]
    assert all(column == columns[0] for column in columns) and len({a[0] for a in columns[0]}) > 10
    assert columns[0] != [asked_by(e) for e in episodes_of(task, 1, 20, ways, seed=3)]


@pytest.mark.parametrize('task', ['caption', 'naming'])
def test_the_columns_of_a_folders_curve_ask_the_same(task, tmp_path):
    folder = pictures_in(tmp_path / 'c', [f'{c}/{i}.png' for c in ('cat', 'dog', 'fox') for i in range(9)])
    pairs = open_folder(str(folder))
    ways = 3 if task == 'naming' else None
    columns = [[asked_by(e) for e in episodes_of(task, shots, 20, ways, pairs=pairs)] for shots in (1, 4, 8)]
    assert columns[0] == columns[1] == columns[2]
    for e in episodes_of(task, 8, 20, ways, pairs=pairs):  # and no example shows the picture that is asked about
        assert e.query.media.key not in [s.media.key for s in e.support]
        assert len({s.media.key for s in e.support}) == len(e.support)


def test_who_goes_by_place_is_right_by_chance():
    """The query shows the kind of support picture number i, whichever that is: each place is right in 1/ways."""
    episodes = episodes_of('naming', 2, 240, 3)
    by_place = np.mean([[s.answer == e.query.answer for s in e.support] for e in episodes], axis=0)
    assert by_place.shape == (6,) and np.abs(by_place - 1 / 3).max() < 0.11  # 3.5 standard errors of 240 episodes
    for e in episodes:
        assert sorted(Counter(s.answer for s in e.support).values()) == [2, 2, 2]
        assert e.query.media.key not in [s.media.key for s in e.support]
        assert len({s.media.key for s in e.support}) == 6
