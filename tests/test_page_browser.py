"""The page as a person uses it: headless Chromium, where there is one. `python -m pytest -m browser`"""
import os
import subprocess
import sys
from pathlib import Path

import pytest
from browser import Browser, find_browser
from PIL import Image

from kit.world.draw import HELD_PAIRS, picture_media

ROOT = Path(__file__).resolve().parents[1]
pytestmark = [pytest.mark.browser, pytest.mark.skipif(
    find_browser() is None, reason='no Chromium is installed here; CHROMIUM=PATH names one')]


@pytest.fixture(scope='module')
def url(tmp_path_factory):
    """The command itself, on the model that is shipped."""
    environment = {k: v for k, v in os.environ.items() if k not in ('DISPLAY', 'WAYLAND_DISPLAY')}
    run = subprocess.Popen([sys.executable, 'sample.py', '--page=True', '--port=0',
                            f'--out_dir={tmp_path_factory.mktemp("out")}'], cwd=ROOT, env=environment,
                           stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    yield run.stdout.readline().split()[0]
    run.terminate()
    run.wait(60)


@pytest.fixture(scope='module')
def tab(url, tmp_path_factory):
    tab = Browser(str(tmp_path_factory.mktemp('browser')))
    yield tab
    tab.close()


@pytest.fixture()
def page(tab, url):
    """The page as it opens; afterwards, it has logged no error and asked nobody else."""
    tab.errors.clear(), tab.requests.clear()
    tab.screen(1200, 900)
    tab.go(url)
    tab.until('document.querySelectorAll(".card").length === 5')
    yield tab
    tab.run('0')
    assert tab.errors == []
    assert all(r.startswith((url, f'blob:{url}', 'data:image/png')) for r in tab.requests)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Pictures of three kinds, two of each, as files."""
    folder = tmp_path_factory.mktemp('pictures')
    for kind in range(3):
        for n in range(2):
            media = picture_media('held', kind * 3 + len(HELD_PAIRS) * (n + 2))
            media.load()[0].save(folder / f'{kind}-{n}.png')
    return folder


def asked(page):
    page.run('runs = {}')
    page.click('#ask')
    page.until('!asking && runs.before && runs.before.words !== undefined')
    return page.run('runs.before.answer')


NAMES = 'dax', 'blicket', 'wug'


def prompt_with_names(page, files):
    page.click('#empty')
    page.drop('header', [files / f'{kind}-0.png' for kind in range(3)])
    page.until('cards.filter((c) => c.picture && pictures.get(c.picture).id).length === 3')
    assert page.run('cards.length') == 4
    for k, name in enumerate(NAMES, 1):
        page.type(f'.card:nth-child({k}) textarea', f'Output: {name}')


def test_drop_three_pictures_name_them_ask_and_blank_them(page, files):
    """The right name for each of the three; with the examples blanked, it is the same one each time."""
    prompt_with_names(page, files)
    assert page.run('$("choices").value') == ' | '.join(NAMES)
    right, blanked, shares = 0, [], []
    for kind, name in enumerate(NAMES):
        page.drop('.card.query', [files / f'{kind}-1.png'])
        page.until(f'/^{kind}-1/.test(query().picture) && pictures.get(query().picture).id')
        if kind == 0:
            page.click('[value=blank_support]')
        right += asked(page) == name
        page.until('runs.after && runs.after.words !== undefined')
        blanked.append(page.run('runs.after.answer'))
        shares.append(page.run('document.querySelector(".run tbody th").textContent'))
        assert page.run('document.querySelectorAll(".run").length') == 2
    assert right == 3 and len(set(blanked)) == 1
    assert shares == list(NAMES)  # the first row of the bars


def test_a_word_lights_up_the_one_picture_it_sees(page):
    asked(page)
    assert page.run('document.querySelectorAll(".card.seen").length') == 1
    assert page.run('query().root.classList.contains("seen")')  # the answer sees the last
    page.run('document.querySelector("#words button").focus()')  # the first word
    assert page.run('cards.map((c) => c.root.classList.contains("seen"))') == [True] + 4 * [False]
    circles = '[...document.querySelectorAll("#shown i")].map((i) => i.getBoundingClientRect().width)'
    assert len(page.run(circles)) == 9 and max(page.run(circles)) > 0
    page.key('ArrowRight', 39)
    assert page.run('document.activeElement.getAttribute("aria-pressed")') == 'true'
    assert page.run('[...$("words").querySelectorAll("button")].indexOf(document.activeElement)') == 1
    page.click('#add-text')
    page.run('cards[4].text.value = "so"; move(cards[4], -4)')
    asked(page)
    page.run('document.querySelector("#words button").focus()')
    assert 'it sees nothing' in page.run('$("shown").textContent')
    assert page.run('document.querySelectorAll(".card.seen").length') == 0


def test_what_a_word_would_lose_is_shown_when_asked_for(page):
    asked(page)
    page.click('[value=lost]')
    page.until('document.querySelector("#shown .frames > img") !== null')
    first = page.run('document.querySelector("#shown .frames > img").src')
    page.run('document.querySelector("#words button").focus()')  # of another picture
    page.until(f'(document.querySelector("#shown .frames > img") || {{src: {first!r}}}).src !== {first!r}')
    page.click('[name=map][value=attention]')
    assert page.run('document.querySelectorAll("#shown i").length') == 9


def test_the_keyboard_alone(page):
    """From the top: draw a prompt, move a card, write in it, ask."""
    before = page.run('text()')
    page.run('$("draw").focus()')
    page.key('Enter', 13)
    page.until(f'text() !== {before!r}')
    order = page.run('cards.map((c) => c.picture)')
    page.run('document.querySelector(".card .later").focus()')
    page.key('Enter', 13)
    assert page.run('cards.map((c) => c.picture)') == [order[1], order[0], *order[2:]]
    assert page.run('document.activeElement.className') == 'later'  # it went with its card
    page.key('Tab', 9), page.key('Tab', 9), page.key('Tab', 9)
    assert page.run('document.activeElement.tagName') == 'TEXTAREA'
    page('Input.insertText', text=' more')
    assert ' more<EOC>' in page.run('$("text").value')
    page.run('runs = {}')
    page.key('Enter', 13, modifiers=2)
    page.until('!asking && runs.before && runs.before.answer !== undefined')
    reached = set()
    for _ in range(60):
        page.key('Tab', 9)
        reached.add(page.run('document.activeElement.id || document.activeElement.className'))
    assert {'kind', 'draw', 'add', 'choices', 'ask', 'picture', 'sheet'} <= reached


def test_everything_has_a_name_for_a_screen_reader(page):
    asked(page)
    page.run('document.querySelectorAll("details").forEach((d) => { d.open = true; })')
    nodes = page('Accessibility.getFullAXTree')['nodes']
    controls = {'button', 'textbox', 'checkbox', 'radio', 'combobox', 'spinbutton', 'image'}
    shown = [n for n in nodes if not n['ignored'] and n['role']['value'] in controls]
    assert len(shown) > 30 and [n for n in shown if not n['name'].get('value', '').strip()] == []


@pytest.mark.parametrize('width, scale', [(1200, 1), (600, 2), (360, 2)])
def test_nothing_runs_out_of_the_page(page, width, scale):
    """A laptop, the same at 200 % zoom, a phone."""
    page.screen(width, 700, scale)
    page.click('[value=blank_support]')
    asked(page)
    page.until('runs.after && runs.after.words !== undefined')
    page.run('document.querySelectorAll("details").forEach((d) => { d.open = true; })')
    assert page.run('document.documentElement.scrollWidth') <= width


def test_text_is_text(page, files):
    """In a card, in a file's name, among the choices and in an answer: never a tag, never a script."""
    evil = '<img src=x onerror="window.evil=1"><script>window.evil=1</script>'
    page.type('.card textarea', f'Output: {evil}')
    page.type('#choices', f'{evil} | dax')
    page.run('runs = {}; document.querySelector("[value=choose]").checked = true')
    Image.new('RGB', (30, 30), 'red').save(files / "x' onerror='window.evil=1' y='.png")
    page.drop('.card.query', [files / "x' onerror='window.evil=1' y='.png"])
    page.until('query().picture.startsWith("x") && pictures.get(query().picture).id')
    assert asked(page) in (evil, 'dax')
    assert page.run('document.body.textContent.includes("onerror")') and page.run('window.evil === undefined')
    assert page.run('document.querySelectorAll("script").length') == 1


def test_errors_stand_beside_their_card_and_a_bad_file_spoils_nothing(page, files):
    before = page.run('text()')
    (files / 'bad.png').write_bytes(b'\x89PNG\r\n\x1a\n' + b'rubbish' * 9)
    page.drop('header', [files / 'bad.png'])
    page.until('cards.some((c) => c.error.textContent.includes("bad.png"))')
    assert page.run('text()') == before
    asked(page)
    assert any('400' in e for e in page.errors)
    page.errors.clear()  # the browser's own line about the refusal
    page.type('#choices', 'dax || wug')
    page.click('#ask')
    page.until('$("ask-error").textContent.includes("an answer is empty")')


def test_a_prompt_goes_out_as_text_and_comes_back(page):
    prompt = page.run('text()')
    page.run('document.querySelector("details").open = true')
    names = page.run('cards.map((c) => c.picture)')
    pasted = f'so<EOC><image:some/where/{names[2]}>Output: wug<EOC><image:{names[0]}>Output:'
    page.type('#text', pasted)
    page.click('#use')
    page.until('cards.length === 3')
    assert page.run('text()') == pasted.replace('some/where/', '')
    page.type('#text', prompt)
    page.click('#use')
    page.until(f'text() === {prompt!r}')
    page.type('#text', '<image:nowhere.png>x')
    page.click('#use')
    page.until('$("text-said").textContent.includes("no picture here is called nowhere.png")')
    page.errors.clear()


def test_a_prompt_is_saved_and_loaded(page):
    """The whole way but the dialog of the system: what would be downloaded is given to the page again."""
    page.run('window.got = new Promise((done) => { window.download = (blob, name) => done([blob, name]); });'
             'download = window.download; $("save").click()')
    prompt, name = page.run('text()'), page.run('got.then(([blob, name]) => name)')
    assert name == 'prompt.zip'
    page.click('#empty')
    assert page.run('text()') != prompt
    page.run('got.then(([blob]) => loadPrompt(blob))')
    page.until(f'text() === {prompt!r}')
    asked(page)


def test_a_card_is_dragged_to_another_place(page):
    order = page.run('cards.map((c) => c.picture)')
    x, y = page.middle('.card:nth-child(1)')
    page.run('''(() => {
        const options = {bubbles: true, cancelable: true, dataTransfer: new DataTransfer()};
        document.querySelector('.card .handle').dispatchEvent(new DragEvent('dragstart', options));
        cards[2].root.dispatchEvent(new DragEvent('drop', options));
    })()''')
    assert page.run('cards.map((c) => c.picture)') == [order[1], order[2], order[0], *order[3:]]


def test_an_answer_can_be_stopped(page):
    """Sampling a long answer at a high temperature: it is stopped, and the next is answered."""
    page.run('document.querySelectorAll("details").forEach((d) => { d.open = true; })')
    page.click('[value=write]')
    page.type('[name=temperature]', '50')
    page.type('[name=max_new_tokens]', '400')
    page.run('ask(); new Promise((r) => setTimeout(r, 300)).then(() => $("stop").click())')
    page.until('!asking')
    assert page.run('$("doing").textContent') == 'stopped'
    page.type('[name=temperature]', '0')
    page.type('[name=max_new_tokens]', '4')
    asked(page)
