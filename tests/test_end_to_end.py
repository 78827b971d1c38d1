"""The commands as a user runs them: one tiny training of all stages, then prompting and evaluating it."""
import json
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image

from kit.device import pick_dtype

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TINY = ['--vision_iters=4', '--language_iters=4', '--flamingo_iters=4', '--eval_every=2', '--log_every=1',
        '--eval_n=2', '--test_n=4', '--vision_batch=8',
        '--language_batch=2', '--batch=m3w=2', '--batch=align=2', '--batch=ltip=2', '--batch=vtp=2',
        '--device=cpu']


def run(script, *arguments, code=0):
    """Run a script from the repository root; its stdout. The exit status must be as expected."""
    done = subprocess.run([sys.executable, script, *arguments], cwd=ROOT, capture_output=True, text=True,
                          timeout=300, env=os.environ | {'OMP_NUM_THREADS': '2'})
    assert done.returncode == code, done.stderr[-3000:]
    if code == 2:  # a user's mistake: one clear line, no traceback
        assert done.stderr.strip().splitlines()[-1].startswith('error: ') and 'Traceback' not in done.stderr
        return done.stderr
    return done.stdout


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    out = str(tmp_path_factory.mktemp('run') / 'out')
    return out, run('train.py', f'--out_dir={out}', *TINY)


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pictures')
    for name, colour in (('a', 'red'), ('b', 'blue'), ('q', 'red')):
        Image.new('RGB', (40, 30), colour).save(folder / f'{name}.png')
    with open(folder / 'metadata.jsonl', 'w') as f:
        for name, colour in (('a', 'red'), ('b', 'blue')):
            f.write(json.dumps({'file_name': f'{name}.png', 'text': f'a {colour} thing', 'split': 'val'})
                    + '\n')
    return folder


def test_training_leaves_everything_it_promises(trained):
    out, printed = trained
    assert {'vision.pt', 'language.pt', 'flamingo.pt', 'results.json', 'log.csv', 'curves.png',
            'samples.png'} <= set(os.listdir(out))
    assert 'training.pt' not in os.listdir(out)
    assert 'naming, 4-way' in printed
    rows = json.load(open(f'{out}/results.json'))
    assert all(set(r) == {'task', 'ways', 'shots', 'control', 'metric', 'value', 'low', 'high', 'n'}
               and r['low'] <= r['value'] <= r['high'] for r in rows)
    kinds = {(r['task'], r['ways'], r['shots'], r['control']) for r in rows}
    assert {('zero_shot', None, None, None), ('naming', 4, 1, None), ('naming', 2, 1, 'blank_support'),
            ('caption', None, 0, None),
            ('question', None, 8, None), ('clip_caption', None, 0, None)} <= kinds
    log = open(f'{out}/log.csv').read().splitlines()
    assert [line.split(',')[:2] for line in log[1:]].count(['flamingo', '3']) == 1
    for name in ('curves.png', 'samples.png'):
        assert Image.open(f'{out}/{name}').width > 300


def test_it_trains_in_the_other_precision_too(tmp_path):
    """All stages, their evaluations and the table, in that of float32 and bfloat16 which this machine would
    not choose by itself."""
    other = 'float32' if pick_dtype('auto', 'cpu') is torch.bfloat16 else 'bfloat16'
    assert 'naming, 4-way' in run('train.py', f'--out_dir={tmp_path}/out', *TINY, f'--dtype={other}')
    assert {v.dtype
            for v in torch.load(f'{tmp_path}/out/flamingo.pt',
                                weights_only=True)['flamingo'].values()} == {torch.float32}


def test_a_finished_run_is_left_alone(trained):
    out, _ = trained
    before = {f: os.stat(f'{out}/{f}').st_mtime_ns for f in os.listdir(out) if f.endswith('.pt')}
    assert 'complete' in run('train.py', f'--out_dir={out}', *TINY)
    assert before == {f: os.stat(f'{out}/{f}').st_mtime_ns for f in before}


def test_fine_tuning_goes_on_from_there(trained):
    """It writes finetune.pt beside flamingo.pt, its eyes have changed, and the log keeps what was before."""
    out, _ = trained
    run('train.py', f'--out_dir={out}', *TINY, '--stage=finetune', '--finetune_iters=2')
    a, b = (torch.load(f'{out}/{name}.pt', weights_only=True)['flamingo']
            for name in ('flamingo', 'finetune'))
    changed = {key.split('.')[0] for key in a if not torch.equal(a[key], b[key])}
    assert {'vision', 'resampler', 'gated'} <= changed and 'lm' not in changed
    assert {line.split(',')[0]
            for line in open(f'{out}/log.csv').read().splitlines()[1:]} == {'vision', 'language', 'flamingo',
                                                                            'finetune'}


def test_other_keys_are_refused_by_name(trained):
    out, _ = trained
    said = run('train.py', f'--out_dir={out}', *TINY, '--flamingo_lr=0.5', code=2)
    assert 'flamingo_lr' in said and 'scratch' in said


def test_interrupted_and_resumed_is_the_same_to_the_bit(trained, tmp_path):
    """max_minutes stops after the first step that is over time: once in each stage at the least."""
    out, _ = trained
    other = str(tmp_path / 'other')
    for _ in range(20):
        run('train.py', f'--out_dir={other}', *TINY, '--max_minutes=1e-9')
        if not os.path.exists(f'{other}/training.pt'):
            break
    for name, key in (('vision', 'contrastive'), ('language', 'lm'), ('flamingo', 'flamingo')):
        a, b = (torch.load(f'{folder}/{name}.pt', weights_only=True)[key] for folder in (out, other))
        assert all(torch.equal(a[k], b[k]) for k in a), name
    steps = [[line.split(',')[:2] for line in open(f'{folder}/log.csv').read().splitlines()
              if not line.startswith('finetune')] for folder in (out, other)]
    assert steps[0] == steps[1]


def test_sample_answers_and_saves_a_picture(trained):
    out, _ = trained
    said = json.loads(run('sample.py', f'--out_dir={out}', '--json=True', '--max_new_tokens=4'))
    assert set(said) == {'prompt', 'completion', 'logprob'} and said['logprob'] < 0
    assert Image.open(f'{out}/sample.png').width > 100


def test_sample_takes_your_own_pictures_and_choices(trained, pictures):
    out, _ = trained
    prompt = (f'<image:{pictures}/a.png>Output: dax<EOC><image:{pictures}/b.png>Output: wug<EOC>'
              f'<image:{pictures}/q.png>Output:')
    said = json.loads(run('sample.py', f'--out_dir={out}', f'--prompt={prompt}', '--choices=dax|wug',
                          '--json=True'))
    assert set(said['choices']) == {'dax', 'wug'} and all(v < 0 for v in said['choices'].values())
    assert 'nowhere.png' in run('sample.py', f'--out_dir={out}', '--prompt=<image:nowhere.png>Output:',
                                code=2)
    assert 'context' in run('sample.py', f'--out_dir={out}', '--prompt=' + 'word ' * 2000, code=2)


def test_evaluate_takes_your_own_episodes(trained, pictures):
    out, _ = trained
    example = {'image': 'a.png', 'prompt': 'Output:', 'answer': 'dax'}
    good = {'support': [example, example | {'image': 'b.png', 'answer': 'wug'}],
            'query': {'image': 'q.png', 'prompt': 'Output:'}, 'answer': 'dax'}
    lines = [good | {'choices': ['dax', 'wug']}, good,
             good | {'query': {'image': 'none.png', 'prompt': 'Output:'}}, good | {'choices': ['wug']}]
    (pictures / 'e.jsonl').write_text('\n'.join([*map(json.dumps, lines), 'no json']))
    printed = run('evaluate.py', f'--out_dir={out}', f'--episodes={pictures}/e.jsonl',
                  f'--predictions={pictures}/p.jsonl')
    answers = [json.loads(line) for line in open(pictures / 'p.jsonl')]
    assert len(answers) == 5 and answers[0]['prediction'] in ('dax', 'wug')
    assert answers[2]['prediction'] is None
    assert answers[0]['correct'] == (answers[0]['prediction'] == 'dax')
    assert printed.count('left out') == 3
    asked, nearest = json.load(open(f'{out}/evaluate.json'))
    assert asked['metric'] == 'accuracy' and nearest['metric'] == 'nearest'
    assert asked['n'] == nearest['n'] == 2


def test_evaluate_retrieves_captions(trained, pictures):
    out, _ = trained
    run('evaluate.py', f'--out_dir={out}', f'--retrieval={pictures}', '--split=val')
    rows = {r['metric']: r['value'] for r in json.load(open(f'{out}/evaluate.json'))}
    assert rows['i2t_R@5'] == 1.0
    assert set(rows) == {f'{way}_R@{k}' for way in ('i2t', 't2i') for k in (1, 5, 10)}


@pytest.mark.parametrize('script', ['train.py', 'sample.py', 'evaluate.py'])
def test_mistakes_get_one_line(script, tmp_path):
    assert 'out_dir' in run(script, '--out_dri=x', code=2)
    assert 'seed' in run(script, '--seed=three', code=2)
    if script != 'train.py':
        assert 'other.pt' in run(script, f'--out_dir={tmp_path}/nothing', '--checkpoint=other.pt', code=2)
    assert '--out_dir=out' in run(script, '--help')


def test_training_on_a_folder_that_is_missing_says_so(tmp_path):
    assert 'nowhere' in run('train.py', f'--out_dir={tmp_path}/out', '--align=nowhere', code=2)
