"""Evaluation: prompts as the paper has them, controls that do what they say, and numbers that add up."""
import json
import os
from collections import Counter

import numpy as np
import pytest
import torch
from asking import ask, asker, config, loaded, out, pictures_in  # noqa: F401 (fixtures)
from PIL import Image

import evaluate
from data import encode, EndOfChunk, Example, Given, Media, question_prompt
from tiny_model import save_tiny

from kit import answers as answers_file
from kit.episode import BLANK, dialogue_prompt, Episode, statement_prompt
from kit.files import BadInput
from kit.sources.base import Report
from kit.sources.forms import open_folder
from kit.tasks import asker as asker_file
from kit.tasks.asker import find_checkpoint, load, NANO, trim
from kit.tasks.controls import blank_examples, blank_support, CONTROLS, taught
from kit.tasks.encoders import zero_shot
from kit.tasks.episodes import episodes_of, frozen_episode, TASKS
from kit.tasks.results import control_rows, measure, row, value_of
from kit.tasks.suite import run_suite
from kit.tasks.tables import control_text, tables
from kit.weights.small import halve
from kit.world.draw import clip, EVENTS, scene
from kit.world.names import made_up_names
from kit.world.words import clip_questions, happening, phrase
from rounding import near_log_p


# ---------------------------------------------------------------------------------------------
# Prompts


def test_templates_are_the_papers():
    assert question_prompt('What is it?') == 'Question: What is it? Answer:'
    assert statement_prompt('oh no') == 'is an image with written: "oh no" on it. Is it hateful? Answer:'
    assert dialogue_prompt(
        'a dog.', [('is it big?', 'yes')],
        'is it old?') == 'a dog. Question: is it big? Answer: yes Question: is it old? Answer:'


def test_zero_shots_are_two_examples_without_pictures_and_tags(asker):
    [episode] = episodes_of('caption', 0, 1, text_examples=2)
    pieces = episode.document().pieces
    assert [type(p) for p in pieces] == [Given, str, EndOfChunk] * 2 + [Media, Given]
    said = encode(episode.document(), asker.tokenizer)
    assert (said.tokens == asker.tokenizer.image).sum() == 1 and (said.tokens
                                                                  == asker.tokenizer.eoc).sum() == 2
    assert (said.image_index[:np.flatnonzero(said.tokens == asker.tokenizer.image)[0]] == 0).all()
    assert [type(p) for p in episodes_of('choice', 0, 1, text_examples=2)[0].document().pieces
            ] == [Media, Given]  # choices say enough
    assert [type(p) for p in episodes_of('caption', 0, 1)[0].document().pieces] == [Media, Given]


def test_frozens_protocol():
    [episode] = episodes_of('naming', 1, 1, ways=2)
    again = frozen_episode(episode, np.random.default_rng(0), repeats=3)
    assert again.choices is None and len(again.support) == 8
    assert again.document(
    ).pieces[0] == f'Answer with {episode.choices[0]} or {episode.choices[1]}.' and type(
        again.document().pieces[0]) is Given
    assert set(Counter((e.media.key, e.answer) for e in again.support).values()) == {4}
    assert not frozen_episode(episode, np.random.default_rng(0), induction=False).induction


# ---------------------------------------------------------------------------------------------
# The drawn world's tasks


def number(media):
    return media.key.split('/')[0], media.key.split('/')[1], int(media.key.split('/')[2])


def truth(media):
    kind, split, i = number(media)
    return scene(split, i) if kind == 'shapes' else clip(split, i)


@pytest.mark.parametrize('task', [t for t in TASKS if t != 'naming'])
def test_tasks_ask_about_new_pairs_after_known_ones(task):
    for shots in (0, 3):
        for e in episodes_of(task, shots, 30, seed=3):
            assert len(e.support) == shots and number(
                e.query.media)[1] == 'held' and {number(s.media)[1]
                                                 for s in e.support} <= {'train'}
            assert e.choices is None or (e.query.answer in e.choices
                                         and len(set(e.choices)) == len(e.choices))
    one, two = (episodes_of(task, 3, 5, seed=3) for _ in range(2))
    assert [e.document().pieces[-1] for e in one] == [e.document().pieces[-1] for e in two]


def test_reading_is_what_the_sign_says():
    assert all(e.query.answer == truth(e.query.media).glyph != '' for e in episodes_of('reading', 2, 50))


def test_statements_are_true_when_they_say_so():
    episodes = episodes_of('statement', 4, 60)
    assert [e.query.answer
            for e in episodes[:4]] == ['no', 'yes', 'no', 'yes'] and all(e.choices == ['yes', 'no']
                                                                         for e in episodes)
    for e in [s for e in episodes for s in [*e.support, e.query]]:
        told = e.prompt.split('"')[1]
        assert (told == phrase(truth(e.media), size=False, fill=False)) == (e.answer == 'yes')


def test_choices_hold_one_truth_and_clip_answers_are_true():
    for e in episodes_of('choice', 0, 50):
        assert len(e.choices) == 4 and happening(truth(e.query.media)) == e.query.answer
    asked = [e.query for e in episodes_of('clip_question', 0, 80)]
    for q in asked:
        assert (q.prompt[len('Question: '):-len(' Answer:')],
                q.answer) in [(question, a) for _, question, a in clip_questions(truth(q.media))]
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
    """Answers as one who learns from the prompt would: by the support picture that shows the same pair;
    without one, by luck."""

    def __init__(self):
        self.rng = np.random.default_rng(0)

    def answer(self, episodes):
        out = []
        for e in episodes:
            pair = lambda m: None if m is None or m.key == 'blank' else (truth(m).colour, truth(m).shape)
            known = [
                s.answer for s in e.support
                if pair(s.media) is not None and pair(s.media) == pair(e.query.media)
            ]
            said = Counter(known).most_common(1)[0][0] if known else str(self.rng.choice(e.choices))
            out.append({
                'prediction': said, 'answer': e.query.answer, 'correct': said == e.query.answer,
                'logprob': -1.0
            })
        return out


def test_controls_tell_a_learner_by_its_pictures():
    episodes = episodes_of('naming', 1, 400, ways=4)
    rows = {(r['control'], r['metric']): r for r in control_rows(Learner(), 'naming', episodes, 4, 1)}
    assert {c for c, _ in rows} == {None, *CONTROLS}
    value = {key: r['value'] for key, r in rows.items()}
    assert value[None, 'accuracy'] == value['rename_answers', 'accuracy'] == value['shuffle_answers',
                                                                                   'follows'] == 1.0
    for control in ('blank_support', 'swap_support', 'shuffle_answers', 'blank_query', 'text_only'):
        assert abs(value[control, 'accuracy'] - 0.25) < 0.07, control
    assert all(r['low'] <= r['value'] <= r['high'] and r['n'] == 400 for r in rows.values())


@pytest.mark.parametrize('ways, shots', [(2, 1), (4, 3)])
def test_controls_change_what_they_say_and_nothing_else(ways, shots):
    [e] = episodes_of('naming', shots, 1, ways=ways)
    rng = np.random.default_rng(1)
    changed = {name: change(e, rng) for name, change in CONTROLS.items()}
    media, answers = lambda x: [s.media and s.media.key
                                for s in x.support], lambda x: [s.answer for s in x.support]
    n = ways * shots
    assert media(changed['blank_support']) == ['blank'] * n and answers(
        changed['blank_support']) == answers(e)
    assert sorted(media(changed['swap_support'])) == sorted(media(e)) and answers(
        changed['swap_support']) == answers(e)
    assert media(changed['text_only']) == [None] * n and answers(changed['text_only']) == answers(e)
    assert changed['blank_query'].query.media.key == 'blank' and media(changed['blank_query']) == media(e)
    for name in ('shuffle_answers', 'rename_answers'):
        pairs = set(zip(answers(e), answers(changed[name])))
        assert len(pairs) == ways == len({new
                                          for _, new in pairs}) and media(changed[name]) == media(
                                              e)  # one to one
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
    singles = [
        asker.choose([
            Episode([e.support[k] for k in order] if order is not None else e.support, e.query, e.choices)
            for e in episodes
        ]) for order in orders
    ]
    assert len({round(s[0][episodes[0].choices[0]], 4) for s in singles}) > 1  # the order does matter to it
    for i, e in enumerate(episodes):
        for c in e.choices:
            assert together[i][c] == near_log_p(np.mean([s[i][c] for s in singles]), n_word=8)


def test_calibrated_scores_are_what_the_pictures_of_the_examples_add(asker):
    """And the prediction is the choice that they add most to."""
    episodes = episodes_of('naming', 2, 6, ways=3)
    seen, blind = asker.choose(episodes), asker.choose([blank_support(e) for e in episodes])
    asker.calibrate = True
    answers = asker.answer(episodes)
    asker.calibrate = False
    for mine, prior, answer in zip(seen, blind, answers):
        added = {choice: mine[choice] - prior[choice] for choice in mine}
        assert answer['scores'] == pytest.approx(added, abs=1e-4) and max(map(abs, added.values())) > 1e-3
        assert answer['prediction'] == max(added, key=added.get)


def test_a_prompt_with_blank_examples_is_that_of_an_episode_with_blank_support():
    [episode] = episodes_of('naming', 2, 1, ways=2)
    assert blank_examples(episode.document()).pieces == blank_support(episode).document().pieces
    assert blank_examples(episode.document()).pieces[0] is BLANK


def test_batches_that_do_not_fit(asker, monkeypatch):
    """A long prompt beside a long answer, which together are longer than the context: the scores of each
    alone. And a choice that is there twice counts once."""
    [short], [long] = episodes_of('naming', 1, 1, ways=2), episodes_of('naming', 10, 1, ways=2)
    wordy = Episode(short.support, short.query, [*short.choices, short.choices[0], 'a ' * 140])
    prompt = int(asker.prompts([long.document()])['length'])
    answer = len(asker.tokenizer.encode(' ' + wordy.choices[-1])) + 1
    assert prompt + answer > 257  # tokens: a context of 256, and one more that is never read
    asker.ensemble = 2
    alone = [asker.choose([e])[0] for e in (long, wordy)]
    for a, b in zip(asker.choose([long, wordy]), alone):
        assert a == near_log_p(b, n_word=144)
    assert len(alone[1]) == 3
    asker.ensemble = 1
    [few], [many] = asker.choose([short]), asker.choose([wordy])
    assert many[short.choices[0]] == near_log_p(few[short.choices[0]], n_word=8)
    monkeypatch.setattr(asker_file, 'MOST_CHOICES', 3)
    with pytest.raises(BadInput, match='4 choices are more than 3'):
        asker.choose([wordy])


def test_choices_are_scored_in_parts(asker, monkeypatch):
    """Whatever their number, what is in memory is bounded; and the scores are those of all at once."""
    [e] = episodes_of('naming', 1, 1, ways=2)
    names = made_up_names(np.random.default_rng(0), 60)
    episodes = [Episode(e.support, e.query, names), Episode([], e.query, names[:7])]
    together, sizes, read = asker.choose(episodes), [], answers_file.read
    monkeypatch.setattr(answers_file, 'read', lambda model, cache, tokens, index:
                        sizes.append(len(tokens)) or read(model, cache, tokens, index))
    monkeypatch.setattr(answers_file, 'AT_ONCE', 1 << 20)
    for a, b in zip(asker.choose(episodes), together):
        assert a == near_log_p(b, n_word=8)
    config, longest = asker.model.config, max(len(asker.tokenizer.encode(' ' + n)) + 1 for n in names)
    length = int(asker.prompts([e.document()])['length'])
    text = 4 * 2 * config.lm_dim * config.lm_layer * (length + longest)         # float32 keys and values
    visual = 4 * 2 * config.xattn_head * config.xattn_head_dim * config.n_latent * 2  # of two gated layers
    each = text + visual + 4 * longest * (config.n_vocab + 2)
    assert max(sizes[1:]) == (1 << 20) // each and sum(sizes[1:]) == 67         # the first reads the prompts


def asked(answer, choices=None, **more):
    return Episode([], Example(None, 'Output:', answer), choices, **more)


def test_values_of_every_metric_by_hand():
    said = lambda prediction, correct=False, **scores: {
        'prediction': prediction, 'correct': correct, 'scores': scores
    }
    assert value_of('accuracy', [asked('a')] * 4, [said('a', True)] * 3 + [said('b')]) == (0.75, None)
    value, (low, high) = value_of('cider', [asked('A b.'), asked('x', people=['A c!'])],
                                  [said('a b'), said('a, c')])
    assert value == pytest.approx(5.0) and low <= value <= high  # tokenised first, references from people
    value, _ = value_of(
        'vqa_accuracy',
        [asked('x', people=['two'] * 10), asked('x', people=['no'] * 10)],
        [said('2.'), said('yes')])
    assert value == 0.5
    value, _ = value_of('ndcg', [asked('a', ['a', 'b'], relevance=[1.0, 0.0])] * 2,
                        [said('a', a=1.0, b=0.0), said('b', a=0.0, b=1.0)])
    assert value == pytest.approx(0.5)  # one relevant answer: one place counts
    yes_no = [asked('yes', ['yes', 'no']), asked('no', ['yes', 'no']), asked('yes', ['yes', 'no'])]
    scores = [said('', yes=-9.0, no=-11.0),
              said('', yes=-1.0, no=-2.0),
              said('', yes=-5.0, no=-4.0)]  # margins 2, 1, -1
    assert value_of('roc_auc', yes_no, scores)[0] == pytest.approx(0.5)
    acts = [asked('p', ['p', 'q']), asked('v',
                                          ['u', 'v'])]  # each thing has its own words for the two actions
    scores = [said('', p=-1.0, q=-2.0), said('', u=-50.0, v=-40.0)]
    assert value_of('mean_average_precision', acts, scores)[0] == 1.0
    with pytest.raises(ValueError):
        value_of('roc_auc', yes_no[:1], [said('', yes=-9.0, no=-11.0)])


def test_tables_have_a_row_for_everything():
    rows = [row('caption', 0.5, 10, shots=s)
            for s in (0, 4)] + [row('caption', 1.138, 10, shots=4, metric='cider', bounds=(1.0, 1.2))]
    rows += [row('naming', 0.9, 10, 4, 1), row('naming', 0.1, 10, 5, 1, metric='written')]
    text = tables(rows)
    assert '113.8 (100–120)' in text and text.count('\n\n') == 2 and '5-way, written' in text
    assert all(
        set(r) == {'task', 'ways', 'shots', 'control', 'metric', 'value', 'low', 'high', 'n'} for r in rows)
    text = control_text([row('naming', 0.9, 10, 4, 1), row('naming', 0.2, 10, 4, 1, 'swap_support')])
    assert 'swap support' in text and text.splitlines()[-1].split() == ['chance', '25.0%']


def test_the_whole_command_on_a_few_episodes(asker, loaded, out, monkeypatch, capsys):
    argv = [
        f'--out_dir={out}', '--n=2', '--seeds=1', '--max_new_tokens=2', '--beam_size=1', '--shots=0,2',
        '--ways=2', '--device=cpu', '--tasks=caption,choice,dialogue,statement,action,naming'
    ]
    monkeypatch.setattr('sys.argv', ['evaluate.py', *argv])
    monkeypatch.setattr(evaluate, 'load', lambda *_: loaded)
    evaluate.main()
    kinds = {(r['task'], r['ways'], r['shots'], r['metric']) for r in json.load(open(out / 'evaluate.json'))}
    assert {('caption', None, 0, 'cider'), ('caption', None, 2, 'accuracy'), ('choice', None, 2, 'accuracy'),
            ('dialogue', None, 0, 'ndcg'), ('statement', None, 2, 'roc_auc'),
            ('action', None, 0, 'mean_average_precision'), ('naming', 2, 2, 'accuracy')} <= kinds
    assert Image.open(out / 'evaluate.png').width > 300 and 'choice' in capsys.readouterr().out


def test_what_does_not_fit_the_context_is_left_out_whole(asker, loaded):
    report = Report()
    rows = run_suite(config('--n=2', '--seeds=1', '--tasks=caption', '--shots=2,60'), asker,
                     loaded[1], report)
    assert {r['shots']
            for r in rows} == {2} and report.where == {'longer than the context': ['caption, 60 shots']}


@pytest.mark.parametrize('argv', [['--tasks=captoin'], ['--shots=a'], ['--shots=-1'], ['--ways=1']])
def test_mistakes_are_named(asker, loaded, argv):
    with pytest.raises(BadInput, match=argv[0][2:].split('=')[0]):
        run_suite(config('--n=1', '--seeds=1', *argv), asker, loaded[1], Report())


@pytest.mark.parametrize('said, kept', [('a red ring', 'a red ring'),
                                        (' yes Question: what is it? Answer: no', 'yes'),
                                        ('two.\nOutput: x', 'two.'), ('dog Answer: dog', 'dog'),
                                        ('Caption: a', ''),
                                        ('the input/output: fine', 'the input/output: fine'), ('', '')])
def test_written_answers_end_at_the_next_prompt(asker, monkeypatch, said, kept):
    assert trim(said) == kept
    ids = asker.tokenizer.encode(said)
    monkeypatch.setattr(asker_file, 'generate', lambda model, **more: [(ids, -2.5)])
    [answer] = asker.answer([asked(kept or 'x')])
    assert (answer['prediction'], answer['logprob'], answer['correct']) == (kept, -2.5, bool(kept))


def test_an_episode_needs_room_for_its_answer(asker):
    """The last word of an answer is not read: a prompt of n tokens and an answer of m need n + m - 1
    places."""
    [e] = episodes_of('caption', 2, 1)
    n_prompt = len(asker.encode(e.document()).tokens)
    asker.max_new_tokens = asker.model.lm.n_context - n_prompt + 1
    asker.check_length(e)
    asker.max_new_tokens += 1
    with pytest.raises(
            BadInput,
            match=f'a prompt of {n_prompt} tokens and an answer of {asker.max_new_tokens} are longer'):
        asker.check_length(e)


# ---------------------------------------------------------------------------------------------
# The small checkpoint that comes with the code


def test_without_a_checkpoint_the_small_one_is_used_and_said(out, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(asker_file, 'NANO', str(out / 'flamingo.pt'))
    path = find_checkpoint(f'{tmp_path}/new')
    assert path == str(out / 'flamingo.pt') and os.path.isdir(tmp_path / 'new') and len(
        capsys.readouterr().err.splitlines()) == 1
    assert find_checkpoint(str(out)) == f'{out}/flamingo.pt'
    assert find_checkpoint(str(tmp_path), 'other.pt') == f'{tmp_path}/other.pt'
    assert find_checkpoint(f'{tmp_path}/third', 'assets/pictures.pt') == 'assets/pictures.pt'
    assert os.path.isdir(f'{tmp_path}/third')  # what is drawn goes there
    assert not capsys.readouterr().err


def test_a_checkpoint_from_before_the_stem_became_thinner(tmp_path):
    """Its sizes say `nano`, and its encoder has the stem of what is nano16 now."""
    save_tiny(tmp_path / 'new.pt', vision='nano16')
    content = torch.load(tmp_path / 'new.pt', weights_only=True)
    content['config']['vision'] = 'nano'
    torch.save(content, tmp_path / 'old.pt')
    new, old = (load(str(tmp_path / name))[0] for name in ('new.pt', 'old.pt'))
    episodes = episodes_of('naming', 1, 2, ways=2)
    assert old.choose(episodes) == new.choose(episodes)


def test_a_halved_checkpoint_answers_nearly_the_same(out, tmp_path, asker):
    (out / 'results.json').write_text(json.dumps([row('naming', 0.9, 10, 4, 1)]))
    halve(str(out / 'flamingo.pt'), str(tmp_path / 'small.pt'))
    assert os.path.getsize(tmp_path / 'small.pt') < 0.55 * os.path.getsize(out / 'flamingo.pt')
    beside = json.load(open(tmp_path / 'small.json'))
    assert beside['made by'] == 'python train.py --n_latent=4' and beside['rows'][0]['value'] == 0.9
    assert str(out).encode() not in (tmp_path / 'small.pt').read_bytes()  # nothing of where it was trained
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
    """assets/nano.pt, fresh from a clone, does what assets/nano.json says it did: the same episodes, half of
    them."""
    assert os.path.getsize(NANO) <= 8_000_000
    told = json.load(open(NANO.replace('.pt', '.json')))
    assert told['made by'].startswith('python train.py')
    nano, contrastive = load(NANO)
    rows = [r for r in told['rows'] if r['task'] == 'naming' and r['shots'] == 1
            ] + [r for r in told['rows'] if r['task'] in ('caption', 'question') and r['shots'] == 0]
    assert {(r['ways'], r['control'])
            for r in rows} >= {(2, None), (4, None), (2, 'blank_support'), (4, 'blank_support')}
    for r in rows:
        found = measure(nano, r['task'], r['shots'], 200, r['ways'], r['control'], seed=1)[0]
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
    for e in episodes_of(task, 8, 20, ways,
                         pairs=pairs):  # and no example shows the picture that is asked about
        assert e.query.media.key not in [s.media.key for s in e.support]
        assert len({s.media.key for s in e.support}) == len(e.support)


def test_who_goes_by_place_is_right_by_chance():
    """The query shows the kind of support picture number i, whichever that is: each place is right in
    1/ways."""
    episodes = episodes_of('naming', 2, 240, 3)
    by_place = np.mean([[s.answer == e.query.answer for s in e.support] for e in episodes], axis=0)
    assert by_place.shape == (
        6, ) and np.abs(by_place - 1 / 3).max() < 0.11  # 3.5 standard errors of 240 episodes
    for e in episodes:
        assert sorted(Counter(s.answer for s in e.support).values()) == [2, 2, 2]
        assert e.query.media.key not in [s.media.key for s in e.support]
        assert len({s.media.key for s in e.support}) == 6
