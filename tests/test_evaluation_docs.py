"""docs/evaluation.md: every example runs as written, and asks as much as it says."""
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from asking import loaded, out  # noqa: F401 (fixtures)
from PIL import Image

import evaluate
import sample

SCRIPTS = {'evaluate.py': evaluate, 'sample.py': sample}


@pytest.mark.skipif(os.name == 'nt', reason='its examples are for a shell')
def test_every_example_of_the_documentation_runs_as_written(tmp_path, monkeypatch, loaded):
    """The blocks in order, in an empty folder, with a tiny model; each asks about as many as is said
    there."""
    text = (Path(evaluate.__file__).parent / 'docs' / 'evaluation.md').read_text(encoding='utf-8')
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'out').mkdir()
    for script in SCRIPTS.values():
        monkeypatch.setattr(script, 'load', lambda *_, **__: loaded)
    ran = 0
    for block in re.findall(r'^```sh\n(.*?)^```$', text, re.M | re.S):
        made = ''.join(line for line in block.splitlines(True) if not re.match(r'python \w+\.py', line))
        done = subprocess.run(['bash', '-e'], input=made.replace('python -c', f"'{sys.executable}' -c"),
                              text=True,
                              capture_output=True)
        assert done.returncode == 0, (made, done.stderr)
        for name, arguments in re.findall(r'^python (\w+\.py)(.*)$', block, re.M):
            arguments, _, said = arguments.partition('  #')
            monkeypatch.setattr('sys.argv', [name, *shlex.split(arguments)])
            SCRIPTS[name].main()
            ran += 1
            if asked := re.search(r'(\d+) asked', said):
                assert json.load(open('out/evaluate.json'))[0]['n'] == int(asked[1]), arguments
    assert ran >= 20
    assert [json.loads(line)['answer'] for line in open('my/answers.jsonl')] == ['dax', 'lin']
    assert [e['image_id'] for e in json.load(open('my/captions.json'))] == [0, 1]
    assert [e['image'] for e in json.load(open('my/vizwiz.json'))] == ['4.png', '5.png']
    assert Image.open('my/look.png').width > 100
