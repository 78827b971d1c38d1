"""How long until the page answers? Seconds from the command to its first answer, and of the answers after it,
each to a new prompt of four examples; wall and processor time of the server.

    python tests/time_page.py
"""
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def ask(url, path, request):
    body, kind = json.dumps(request).encode(), {'Content-Type': 'application/json'}
    with urllib.request.urlopen(urllib.request.Request(url + path, body, kind)) as answer:
        return [json.loads(line) for line in answer]


def answer(url, seed, **keys):
    """A prompt is drawn, asked, and all is read that the page shows of it."""
    [drawn] = ask(url, 'draw', {'kind': 'naming', 'seed': seed})
    prompt = '<EOC>'.join(f'<image:{card["picture"]}>{card["text"]}' for card in drawn['cards'])
    pictures = {name: picture['id'] for name, picture in drawn['pictures'].items()}
    told = ask(url, 'ask', {'prompt': prompt, 'pictures': pictures, 'keys': keys})
    assert told[-1] == {'done': True}, told[-1]


def spent(pid):
    """Processor seconds of a process so far."""
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def main():
    environment = {k: v for k, v in os.environ.items() if k not in ('DISPLAY', 'WAYLAND_DISPLAY')}
    with tempfile.TemporaryDirectory() as out:
        start = time.monotonic()
        run = subprocess.Popen([sys.executable, 'sample.py', '--page=True', '--port=0', f'--out_dir={out}'],
                               cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        url = run.stdout.readline().split()[0].decode()
        ready = time.monotonic() - start
        answer(url, 0)
        first, used = time.monotonic() - start, spent(run.pid)
        print(f'listening after {ready:.2f} s; first answer after {first:.2f} s, {used:.2f} s of a processor')
        for name, keys in (('written', {}), ('chosen', {'choices': 'dax | blicket | wug | zup'})):
            times, used = [], spent(run.pid)
            for seed in range(1, 11):
                start = time.monotonic()
                answer(url, seed, **keys)
                times.append(time.monotonic() - start)
            used = (spent(run.pid) - used) / len(times)
            print(f'{name}: {min(times):.2f} to {max(times):.2f} s an answer, {used:.2f} s of a processor')
        run.terminate()
        run.wait()


if __name__ == '__main__':
    main()
