"""Classes by their names: the examples, the choices, and what is scored."""
import pytest
from asking import ask, asker, config, loaded, out, pictures_in  # noqa: F401 (fixtures)
from PIL import Image

import evaluate
from kit.files import BadInput
from kit.tasks.classes import run_classes

COLOURS = {'red cup': (250, 10, 10), 'blue_cup': (10, 10, 250), 'green-cup': (10, 250, 10)}


def cups(folder, *splits, n=4):
    """Class folders of plain colours, each picture of a slightly other shade, in these splits."""
    for split in splits or ('',):
        for name, colour in COLOURS.items():
            (folder / split / name).mkdir(parents=True)
            for k in range(n):
                shade = tuple(min(255, c + k + 20 * (split == 'val')) for c in colour)
                Image.new('RGB', (24, 24), shade).save(folder / split / name / f'{k}.png')
    return folder


def seen_by(asker, monkeypatch):
    """The episodes that are asked, answered by the class of the example next to the query."""
    seen = []

    def answer(episodes, progress=None):
        seen.extend(episodes)
        out = []
        for e in episodes:
            scores = {c: float(c == e.support[-1].answer) for c in e.choices}
            best = max(scores, key=scores.get)
            out.append({'prediction': best, 'correct': best == e.query.answer, 'scores': scores})
        return out
    monkeypatch.setattr(asker, 'answer', answer)
    return seen


def test_examples_look_like_the_query_and_all_classes_are_choices(asker, loaded, tmp_path, monkeypatch):
    folder, seen = cups(tmp_path / 'c', 'train', 'val'), seen_by(asker, monkeypatch)
    rows = ask(run_classes,
               asker,
               f'--classify={folder}',
               '--shots=2,4',
               '--per_class=3',
               contrastive=loaded[1])
    assert [(r['task'], r['ways'], r['shots'], r['metric'], r['n']) for r in rows] == [
        ('classification', 3, shots, metric, 12) for shots in (2, 4) for metric in ('accuracy', 'top_5')]
    assert [r['value']
            for r in rows] == [1.0] * 4  # the nearest example, which comes last, is of the same colour
    for e in seen:
        assert sorted(e.choices) == ['blue cup', 'green cup', 'red cup'] and e.query.prompt == 'Output:'
        assert '/val/' in e.query.media.key and all('/train/' in s.media.key for s in e.support)
    first, second = seen[:12], seen[12:]
    for two, four in zip(first, second):  # paired: the same queries, and the nearest two of the four
        assert two.query.media.key == four.query.media.key
        assert [s.media.key for s in two.support] == [s.media.key for s in four.support[2:]]
    pool = {s.media.key for s in sum((e.support for e in seen), [])}
    assert len(pool) <= 9  # three of each class
    seen.clear()
    ask(run_classes, asker, f'--classify={folder}', '--shots=4', '--rices=False', '--n=5')
    assert len(seen) == 5 and len({tuple(s.answer for s in e.support) for e in seen}) > 1


def test_a_folder_without_splits_is_divided_by_class(asker, loaded, tmp_path, monkeypatch):
    folder, seen = cups(tmp_path / 'c'), seen_by(asker, monkeypatch)
    ask(run_classes, asker, f'--classify={folder}', '--shots=3', '--per_class=1', contrastive=loaded[1])
    assert len(seen) == 9 and all({s.answer for s in e.support} == set(e.choices) for e in seen)
    assert not {s.media.key for s in seen[0].support} & {e.query.media.key for e in seen}
    with pytest.raises(BadInput, match='nothing to ask about'):
        ask(run_classes, asker, f'--classify={folder}', '--per_class=4', contrastive=loaded[1])
    with pytest.raises(BadInput, match='--shots=4: there are 3 examples'):
        ask(run_classes, asker, f'--classify={folder}', '--shots=4', '--per_class=1', contrastive=loaded[1])
    with pytest.raises(BadInput, match='only one class'):
        ask(run_classes, asker, f'--classify={pictures_in(tmp_path / "one", ["a/0.png", "a/1.png"])}')


def test_the_paper_ensembles_orders(asker, loaded, tmp_path, monkeypatch):
    """--ensemble=6: each query is scored in six orders of its examples, and the mean counts."""
    folder, asked = cups(tmp_path / 'c', 'train', 'val', n=2), []
    score = asker.score
    monkeypatch.setattr(asker, 'score', lambda episodes: asked.append(
        [tuple(s.media.key for s in e.support) for e in episodes]) or score(episodes))
    asker.ensemble = 6
    rows = ask(run_classes, asker, f'--classify={folder}', '--shots=4', contrastive=loaded[1])
    assert rows[0]['n'] == 6 and len(asked) == 6
    orders = [[batch[i] for batch in asked] for i in range(6)]
    assert all(len({frozenset(o) for o in order}) == 1 and len(set(order)) > 3 for order in orders)


def test_its_keys(tmp_path):
    with pytest.raises(BadInput, match='per_class=0'):
        evaluate.check_values(config('--classify=x', '--per_class=0'))
    with pytest.raises(BadInput, match='give one of the two'):
        evaluate.check_values(config('--classify=x', '--folder=y'))
