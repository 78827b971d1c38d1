"""docs/one_step.md: its code prints what stands below it."""
import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_step_of_the_documentation_prints_what_is_said_there(monkeypatch):
    """Whole numbers and words as they are; losses, which stand with two decimals, to a rounding."""
    monkeypatch.chdir(ROOT)
    text = (ROOT / 'docs' / 'one_step.md').read_text(encoding='utf-8')
    blocks = re.findall(r'^```(python)?\n(.*?)^```$', text, re.M | re.S)
    names, said = {}, []
    for (language, code), (plain, expected) in zip(blocks[::2], blocks[1::2], strict=True):
        assert language and not plain
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(code, 'docs/one_step.md', 'exec'), names)
        said.append((out.getvalue(), expected))
    assert len(said) == 3
    for printed, expected in said:
        decimal = r'\d+\.\d\d\b'
        assert re.sub(decimal, '_', printed) == re.sub(decimal, '_', expected)
        numbers = [[float(x) for x in re.findall(decimal, which)] for which in (printed, expected)]
        assert numbers[0] == pytest.approx(numbers[1], abs=0.011, rel=1e-3)
