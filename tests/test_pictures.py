"""What a reader of the pictures would miss: ink where it belongs, none elsewhere, never a crash."""
import json

import numpy as np
import pytest
import torch
from PIL import Image

from data import Document, Given
from kit.files import BadInput
from kit.show import canvas, charts, figures, lettering, sheets, sizes
from kit.show.lettering import BLUE, GREEN, GREY, PALETTE, PURPLE, SHEET_WIDTH, VERMILION
from kit.tasks import explain
from kit.tasks.asker import load, NANO
from kit.world.draw import picture_media
from model import FlamingoConfig
from vision import NFNet

HOSTILE = ['', ' ', '\n\n', '\x00\x1b[31m\x07', '\u202eevil\u202c\u2066', '\ud800', 'x' * 5000,
           'e\u0301' * 300,
           '漢字 עברית العربية', '\U0001F600\u200d\U0001F468', 'a\r\nb\tc\u2028d', '\uffff\U0010ffff',
           '<EOC><image>', 'é½ﬁ…“”', 'word ' * 900]


def ink(image, color, tolerance=40):
    """Which pixels have (about) this colour. (height, width)"""
    color = np.array([int(color[i:i + 2], 16) for i in (1, 3, 5)])
    return np.abs(np.asarray(image.convert('RGB')).astype(int) - color).max(-1) <= tolerance


def height_of_line(image, color, column):
    rows = np.flatnonzero(ink(image, color, 50)[:, column])
    assert len(rows), f'no line in column {column}'
    return rows.mean()


def plain(color, size=(96, 96)):
    return Image.new('RGB', size, color)


# ---------------------------------------------------------------------------------------------
# Charts


def test_a_line_is_where_its_values_are():
    xs = list(range(101))
    chart = charts.line_chart({'': (xs, [x / 100 for x in xs])}, '', y_range=(0, 1))
    low = charts.line_chart({'': (xs, [0] * 101)}, '', y_range=(0, 1))
    high = charts.line_chart({'': (xs, [1] * 101)}, '', y_range=(0, 1))
    columns = np.flatnonzero(ink(low, BLUE, 60).any(0))
    left, right = columns[0], columns[-1]
    bottom, top = height_of_line(low, BLUE, 300), height_of_line(high, BLUE, 300)
    assert bottom - top > 200
    for part in 0.1, 0.25, 0.5, 0.8:
        column = round(left + part * (right - left))
        assert height_of_line(chart, BLUE, column) == pytest.approx(bottom - part * (bottom - top), abs=2)


def test_decades_are_equally_far_apart_on_a_log_axis():
    series = {name: ([0, 1], [value, value]) for name, value in (('a', 0.01), ('b', 1), ('c', 100))}
    chart = charts.line_chart(series, '', log_y=True)
    a, b, c = (height_of_line(chart, color, 250) for color in PALETTE[:3])
    assert a > b > c
    assert a - b == pytest.approx(b - c, abs=1.5)


@pytest.mark.parametrize('hole', [None, float('nan'), float('inf')])
def test_missing_values_leave_no_ink(hole):
    xs = list(range(100))
    chart = charts.line_chart({'': (xs, [hole if 40 < x < 60 else 0.5 for x in xs])}, '', y_range=(0, 1))
    inked = np.flatnonzero(ink(chart, BLUE, 60).any(0))
    steps = np.diff(inked)
    assert (steps > 1).sum() == 1  # one gap, as wide as 20 of 99 steps
    assert steps.max() == pytest.approx(20 / 99 * (inked[-1] - inked[0]), abs=4)


def test_a_line_outside_its_range_does_not_run_over_the_title():
    chart = charts.line_chart({'': ([0, 1, 2], [0.5, 40, 0.5])}, 'a title', y_range=(0, 1))
    assert ink(chart, BLUE, 60).any()
    assert not ink(chart, BLUE, 60)[:38].any()


def test_the_level_of_chance_is_a_broken_line():
    def level(chart):
        return ink(chart, GREY, 30)[100:300, 60:450].sum(1).max()  # the fullest row within the chart
    series = {'': ([0, 10], [0.9, 0.9])}
    assert level(charts.line_chart(series, '', percent=True)) == 0
    assert 150 < level(charts.line_chart(series, '', percent=True, chance=0.5)) < 350  # of 390


def test_a_band_shades_what_lies_between_its_edges():
    series, bands = {'': ([0, 10], [0.5, 0.5])}, {'': ([0.3, 0.3], [0.7, 0.7])}
    with_band = np.asarray(charts.line_chart(series, '', y_range=(0, 1), bands=bands)).astype(int)
    without = np.asarray(charts.line_chart(series, '', y_range=(0, 1))).astype(int)
    shaded = np.flatnonzero(np.abs(with_band - without).max(-1)[:, 300] > 5)
    middle = height_of_line(Image.fromarray(without.astype(np.uint8)), BLUE, 300)
    assert middle - shaded[0] == pytest.approx(shaded[-1] - middle, abs=2)
    assert 80 < shaded[-1] - shaded[0] < 200  # 0.4 of the height


def test_names_at_the_line_ends_never_overlap():
    heights = charts.spread_labels([50, 50, 51, 52, 199, 200], 0, 200, 14)
    assert min(np.diff(heights)) >= 14
    assert 0 <= min(heights) and max(heights) <= 200
    assert charts.spread_labels([20, 100], 0, 200, 14) == [20, 100]  # free ones stay where their line ends


@pytest.mark.parametrize('low, high, count, expected', [
    (0, 1, 5, ['0.0', '0.2', '0.4', '0.6', '0.8', '1.0']),
    (-0.3, 0.7, 3, ['0.0', '0.5']),
    (0, 20000, 4, ['0', '5k', '10k', '15k', '20k']),
    (0, 3e12, 3, ['0', '1e12', '2e12', '3e12']),
    (0, 2e-9, 2, ['0', '1e-9', '2e-9']),
    (1e9, 1e9 + 10, 2, ['1e9', '1.000000005e9', '1.00000001e9']),
])
def test_ticks_are_round_and_differ(low, high, count, expected):
    assert charts.tick_labels(charts.round_ticks(low, high, count)) == expected


def test_percent_and_log_ticks():
    assert charts.tick_labels([0, 0.5, 1], percent=True) == ['0%', '50%', '100%']
    assert charts.tick_labels(charts.log_ticks(0.01, 200, 5), log=True) == ['0.01', '0.1', '1', '10', '100']
    assert charts.tick_labels(charts.log_ticks(0.9, 12, 5), log=True) == ['1', '2', '5', '10']


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('ys', [
    [], [3.0], [0.0, 0.0], [7, 7, 7], [1e308, -1e308], [5e-324, 0], [1e9, 1e9 + 1e-3], [None, None],
    [float('nan')] * 3, [-1, -2], [float('inf'), 1, float('-inf')], [1, 1 + 1e-15], list(range(20000)),
    np.float32([0.1, 0.2])])
def test_any_values_can_be_drawn(ys):
    series = {'a': (range(len(ys)), ys)}
    many = {'chance': 0.5, 'bands': {'a': (ys, ys)}, 'y_range': (1, 1)}
    for options in {}, {'log_y': True}, {'percent': True}, many:
        assert charts.line_chart(series, 'title', size=(280, 180), **options).size == (280, 180)


@pytest.mark.filterwarnings('error')
def test_odd_charts_can_be_drawn():
    charts.line_chart({}, '', bands={'a': ([1], [2])})
    charts.line_chart({'a': ([1, 2, 3], [1, 2])}, '')                     # lengths differ
    charts.line_chart({'a': ([2, 2, 2], [1, 2, 3])}, '', size=(1, 1))    # all at one x, on a stamp
    charts.line_chart({f'line {i}': ([0, 1], [0, i]) for i in range(50)}, '', size=(280, 180))
    for text in HOSTILE:
        charts.line_chart({text: ([0, 1], [0, 1])}, text, text, text, size=(280, 180))


def test_grid_keeps_cells_equal():
    sheet = canvas.grid([plain('red', (10, 10)), plain('blue', (20, 30)), plain('lime', (10, 10))], columns=2)
    assert sheet.size == (40, 60)
    assert sheet.getpixel((5, 5)) == (255, 0, 0)
    assert sheet.getpixel((25, 5)) == (0, 0, 255)
    assert sheet.getpixel((5, 35)) == (0, 255, 0)
    assert sheet.getpixel((15, 5)) == sheet.getpixel((35, 55)) == (255, 255, 255)


# ---------------------------------------------------------------------------------------------
# curves.png


def test_curves_reads_text_and_joins_over_blanks():
    row = {'stage': 'flamingo', 'loss_vtp': '', 'lr': '1e-4'}
    rows = [row | {'iter': str(i), 'loss_m3w': '' if i % 10 else '1.5'}
            for i in range(101)]
    sheet = charts.curves(rows)
    assert sheet.size == (560, 360)  # one chart: what has no data is left out
    inked = np.flatnonzero(ink(sheet, BLUE, 60)[:, :500].any(0))
    assert len(inked) > 400 and np.diff(inked).max() == 1
    assert not ink(sheet, VERMILION).any()  # loss_vtp holds nothing


def test_curves_has_a_chart_for_everything_there_is():
    stages = 'vision', 'language', 'flamingo'
    rows = [{'stage': stage, 'iter': i, 'loss_a': 1.0} for stage in stages for i in (0, 1)]
    assert charts.curves(rows).size == (1120, 720)
    rows += [{'stage': 'flamingo', 'iter': 1, 'gate_x_0': '0.1', 'gate_d_0': '0.2'},
             {'stage': 'flamingo', 'iter': 1, 'eval_naming_2way': '0.5'},
             {'stage': 'vision', 'iter': 1, 'eval_zero_shot': '0.9'}]
    assert charts.curves(rows).size == (1120, 1080)


def test_curves_without_anything_says_so():
    for rows in [], [{}], [{'stage': 'flamingo', 'iter': '', 'loss_m3w': 'nonsense', None: ['extra']}]:
        sheet = np.asarray(charts.curves(rows))
        assert 0 < (sheet < 200).any(-1).sum() < 2000  # a line of text


def test_an_interrupted_run_counts_its_later_rows():
    rows = [{'iter': '10', 'loss_a': '5'}, {'iter': '20', 'loss_a': '6'}, {'iter': '10', 'loss_a': '4'}]
    assert charts.column(rows, 'loss_a') == [[10, 20], [4, 6]]


def test_a_long_run_is_summarised_by_means_within_their_range():
    lines, bands = charts.summarise({'a': (list(range(1000)), [i % 2 for i in range(1000)])}, bins=100)
    assert lines['a'][1] == [0.5] * 100
    assert bands['a'] == ([0] * 100, [1] * 100)


# ---------------------------------------------------------------------------------------------
# evaluate.png


def result(task='naming', ways=2, shots=4, value=0.8, control=None, metric='accuracy'):
    return {'task': task, 'ways': ways, 'shots': shots, 'control': control, 'metric': metric, 'value': value,
            'low': value - 0.05, 'high': value + 0.05, 'n': 100}


def test_shots_are_evenly_spaced_categories():
    chart = charts.shots_chart([result(shots=shots) for shots in (32, 0, 1)], 'few-shot')
    tall = np.flatnonzero(ink(chart, BLUE, 60)[60:340, :590].sum(0) >= 5)  # dots are thicker than the line
    dots = [group.mean() for group in np.split(tall, np.flatnonzero(np.diff(tall) > 1) + 1)]
    assert len(dots) == 3
    assert dots[1] - dots[0] == pytest.approx(dots[2] - dots[1], abs=1.5)


def test_controls_stay_out_of_the_shots_chart():
    rows = [result(shots=shots) for shots in (0, 4)]
    alone = charts.shots_chart(rows, 'title')
    with_controls = charts.shots_chart(rows + [result(control='blank_support', value=0.2)], 'title')
    assert alone.tobytes() == with_controls.tobytes()


def test_many_tasks_get_charts_of_their_own():
    few = charts.shots_chart([result(task) for task in 'abc'], 'title')
    many = charts.shots_chart([result(task, ways) for task in 'abcd' for ways in (2, 4)], 'title')
    assert many.height > few.height
    rows = [result('retrieval', None, 0, metric=f'{way}_R@{k}') for way in ('i2t', 't2i') for k in (1, 5, 10)]
    charts.shots_chart(rows + [result('caption', None, metric='cider', value=1.2)], 'title')
    charts.shots_chart([result(shots=None), {**result(), 'value': None, 'low': None, 'high': None}], 'title')
    charts.shots_chart([], 'title')


# ---------------------------------------------------------------------------------------------
# Sheets


@pytest.mark.parametrize('answer, truth, color', [
    ('dax', 'dax', GREEN), (' Dax. ', 'dax', GREEN), ('dax', 'DAX.', GREEN), ('straße', 'STRASSE', GREEN),
    ('dax', 'blicket', VERMILION), ('', 'dax', VERMILION), ('dax..', 'dax', VERMILION),
    ('a dax', 'dax', VERMILION),
    ('dax', None, BLUE), ('', None, BLUE)])
def test_the_colour_of_an_answer_tells_whether_it_is_right(answer, truth, color):
    prompt = {'pieces': [plain('black'), 'Output:'], 'answer': answer, 'truth': truth, 'title': 'x'}
    sheet = sheets.prompt_sheet([prompt])
    for other in GREEN, VERMILION, BLUE:
        assert ink(sheet, other).any() == (other == color)


def test_a_wrong_answer_is_followed_by_the_truth():
    def grey(truth):
        prompt = {'pieces': [plain('black'), 'Output:'], 'answer': 'dax', 'truth': truth, 'title': ''}
        return ink(sheets.prompt_sheet([prompt]), GREY, 60).sum()
    assert grey('dax') < grey('blicket') < grey('blicket blicket')


def test_text_stands_under_its_own_picture():
    pieces = [plain('red'), plain('lime'), 'word word', plain('yellow')]
    sheet = sheets.prompt_sheet([{'pieces': pieces, 'answer': 'dax', 'truth': None, 'title': ''}])
    below = np.flatnonzero(ink(sheet, '#ff0000').any(1)).max() + 1
    text, answer = ink(sheet, GREY, 60), ink(sheet, BLUE, 60)
    text[:below + 2] = False  # the frames are grey as well
    for color, has_text, has_answer in (
            ('#ff0000', False, False), ('#00ff00', True, False), ('#ffff00', False, True)):
        columns = np.flatnonzero(ink(sheet, color).any(0))
        assert text[:, columns].any() == has_text
        assert answer[:, columns].any() == has_answer
    assert np.flatnonzero(answer.any(1)).min() > below


def test_a_long_prompt_wraps_and_loses_no_picture():
    pieces = [plain('#00ffff'), 'Output: a thing.'] * 40 + [[plain('#ff00ff')] * 3]
    prompt = {'pieces': pieces, 'answer': 'x', 'truth': None, 'title': ''}
    for columns in 1, 2, 3:
        sheet = sheets.prompt_sheet([prompt] * columns, columns)
        assert sheet.width <= lettering.SHEET_WIDTH
        assert ink(sheet, '#00ffff', 0).sum() == columns * 40 * 96 * 96


def test_a_clip_shows_eight_frames_from_first_to_last():
    colors = [(255, 20 * i, 0) for i in range(12)]
    pieces = [[plain(color) for color in colors], 'Output:']
    sheet = sheets.prompt_sheet([{'pieces': pieces, 'answer': 'x', 'truth': None, 'title': ''}])
    seen = {color for _, color in sheet.getcolors(1 << 20)}
    assert len(seen & set(colors)) == 8
    assert colors[0] in seen and colors[-1] in seen


def test_tiny_pictures_keep_sharp_pixels_and_transparency_is_white():
    checkers = Image.fromarray(np.tile(np.uint8([[0, 255], [255, 0]]), (4, 4))).convert('RGB')
    enlarged = sheets.fitted(checkers, 96, 96)
    assert enlarged.size == (96, 96)
    assert {color for _, color in enlarged.getcolors()} == {(0, 0, 0), (255, 255, 255)}
    clear = Image.new('RGBA', (4, 2), (255, 0, 0, 0))
    assert sheets.fitted(clear, 8, 8).getcolors() == [(32, (255, 255, 255))]
    assert sheets.fitted(plain('red', (3000, 2)), 96, 96).size == (96, 1)


@pytest.mark.parametrize('text', HOSTILE, ids=range(len(HOSTILE)))
def test_any_text_can_be_drawn(text):
    pieces = [text, plain('red', (5, 300)), text, [plain('red')], text]
    prompt = {'pieces': pieces, 'answer': text, 'truth': text + '!', 'title': text}
    assert sheets.prompt_sheet([prompt], title=text).width <= lettering.SHEET_WIDTH
    sheets.prompt_sheet([prompt] * 2, columns=2, cell=700)
    sheets.contact_sheet([(plain('red'), text)], title=text)
    sheets.attention_sheet([{'word': text, 'picture': plain('red'), 'weights': np.ones((2, 2))}], title=text)
    lettering.text_table([[text, 1.0]], ['text', 'number'])


def test_prompts_without_much_in_them_can_be_drawn():
    empty = {'pieces': [], 'answer': '', 'truth': None, 'title': ''}
    for prompts in [], [empty], [{'pieces': [[]], 'answer': 'x'}]:
        sheets.prompt_sheet(prompts)
    sheets.contact_sheet([])
    sheets.attention_sheet([])


def test_control_characters_and_bidi_marks_are_taken_out():
    assert lettering.printable('a\x00b\u202ec\x1bd\ud800') == 'a\ufffdbc\ufffdd\ufffd'
    assert lettering.drawable('Café “naïve” ½') == 'Cafe “naive” ½'  # the font knows no accents


def test_wrapped_lines_fit_and_lose_nothing():
    text = 'a few short words and ' + 'x' * 200 + ' and more'
    lines = lettering.wrap([(text, GREY, False)], 100)
    assert ''.join(word for line in lines for _, word, _, _ in line) == text.replace(' ', '')
    assert all(line[-1][0] + lettering.text_width(line[-1][1]) <= 100 for line in lines)


def test_heat_is_where_the_attention_is():
    weights = np.zeros((4, 4))
    weights[0, 3] = 0.001  # top right
    picture = plain('#808080')
    sheet = np.asarray(sheets.heat(picture, weights, 96)).astype(int)
    redness = sheet[..., 0] - sheet[..., 2]
    row, column = np.unravel_index(redness.argmax(), redness.shape)
    assert row < 24 and column >= 72
    assert redness[48:, :48].max() == 0
    assert (sheet == np.asarray(sheets.heat(picture, 1e6 * weights, 96))).all()  # any scale


def test_the_picture_stays_visible_under_its_heat():
    """Its own colours where the model looked; elsewhere paler, but dark stays darker than bright."""
    checkers = np.indices((8, 8)).sum(0) % 2 * 200
    picture = Image.fromarray(np.kron(checkers, np.ones((12, 12))).astype(np.uint8))
    weights = np.zeros((8, 8))
    weights[:3, :3] = 1
    original = np.asarray(picture).astype(int)
    sheet = np.asarray(sheets.heat(picture, weights, 96)).astype(int)
    assert (sheet[4:28, 4:28] == original[4:28, 4:28, None]).all()
    far = sheet[48:, 48:].mean(-1)
    bright = original[48:, 48:] > 100
    assert 20 < far[bright].min() - far[~bright].max() < 100 and far[~bright].min() > 100


@pytest.mark.filterwarnings('error')
def test_no_attention_is_no_heat():
    for weights in np.zeros((3, 3)), np.full((3, 3), np.nan), np.full((3, 3), np.inf), -np.ones((3, 3)):
        assert np.ptp(np.asarray(sheets.heat(plain('#808080'), weights, 96))) <= 1  # and no line


def test_contact_sheet_shows_every_item():
    sheet = sheets.contact_sheet([(plain('#00ffff'), f'picture {i}') for i in range(7)], columns=3, cell=64)
    assert ink(sheet, '#00ffff', 10).sum() == 7 * 64 * 64


# ---------------------------------------------------------------------------------------------
# The README's first picture


def test_the_architecture_has_the_sizes_of_the_nano_preset():
    config, n = FlamingoConfig(), figures.NANO
    vision = NFNet(config.vision)
    features = vision(torch.zeros(1, 3, config.image_size, config.image_size))
    assert features.shape == (1, n['places'], n['vision_dim'])
    assert n == dict(
        image_size=config.image_size, places=n['places'], vision_dim=vision.dim, n_latent=config.n_latent,
        resampler_layer=config.resampler_layer, dim=config.lm_dim, head=config.xattn_head,
        head_dim=config.xattn_head_dim, layer=config.lm_layer, n_vocab=config.n_vocab)
    assert config.xattn_every == 1 and config.resampler_dim == config.lm_dim and config.attend == 'last'


def test_the_architecture_shows_the_tokens_and_shapes_of_a_real_prompt():
    asker, _ = load(NANO)
    pieces = [picture_media('held', 1), Given('Output:'), ' dro', picture_media('held', 2), Given('Output:')]
    explained = explain.explain(asker, Document(pieces, 'prompt'), 'dro')
    prompt = explained.tokens[:explained.n_prompt]
    assert [(explain.visible(t.text), t.image_index) for t in prompt] == list(figures.TOKENS)
    assert explain.visible(explained.tokens[explained.n_prompt].text) == figures.ANSWER
    shown = figures.shapes(figures.NANO)
    made = {name: line.shapes[-1] for name, line in explain.stations(explained.lines).items()}
    t = len(figures.TOKENS)  # the answer's first word was read, too
    assert made['pixels'] == shown['pixels'] and made['visual tokens'] == shown['visual tokens']
    assert made['keys and values'] == '2 × ' + shown['keys, values']
    assert made['stream'] == shown['stream'].replace(f'(1,{t},', f'(1,{t + 1},')
    assert made['logits'] == shown['logits'].replace(f'(1,{t},', f'(1,{t + 1},')
    assert made['features'][-7:] == shown['features'][-7:] == '9,384)'.rjust(7, ',')


def test_the_architecture_can_be_read_at_the_width_of_a_readme():
    figure = figures.architecture()
    assert figure.size == (2 * figures.WIDTH, 2 * figures.HEIGHT) and figures.WIDTH == SHEET_WIDTH
    for color in figures.FROZEN, figures.TRAINED, GREEN, PURPLE:
        assert ink(figure, color, 4).mean() > 0.001
    edges = ~ink(figure, '#FFFFFF', 4)
    assert not edges[:8].any() and not edges[-8:].any() and not edges[:, :8].any() and not edges[:, -8:].any()


# ---------------------------------------------------------------------------------------------
# Text and files


def test_text_table_is_aligned():
    rows = [['naming', 2, 0.5, '61.2% ± 3.0'], ['caption', None, 12.25, '8%'], ['a\nb', 16, float('nan'), '']]
    assert lettering.text_table(rows, ['task', 'shots', 'value', 'accuracy']) == '\n'.join([
        'task     shots   value     accuracy',
        '-------  -----  ------  -----------',
        'naming       2   0.500  61.2% ± 3.0',
        'caption         12.250           8%',
        'a b         16     nan'])
    assert lettering.text_table([], ['a', 'bc']) == 'a  bc\n-  --'


def test_save_leaves_one_whole_png(tmp_path):
    path = tmp_path / 'chart.png'
    chart = charts.line_chart({'a': ([0, 1], [0, 1])}, 'title')
    canvas.save(chart, path)
    canvas.save(chart, str(path))
    assert [file.name for file in tmp_path.iterdir()] == ['chart.png']
    with Image.open(path) as image:
        assert image.format == 'PNG' and image.tobytes() == chart.tobytes()


# ---------------------------------------------------------------------------------------------
# Figure 2 in miniature


def test_the_score_of_a_size_is_the_mean_over_tasks(tmp_path, monkeypatch, capsys):
    """By hand: at 4 shots (0.5 + 1.0) / 2. Controls and other metrics do not count."""
    row = dict(metric='accuracy', control=None)
    rows = [row | dict(task='caption', shots=4, value=0.5), row | dict(task='question', shots=4, value=1.0),
            row | dict(task='caption', shots=0, value=0.25), row | dict(task='question', shots=0, value=0.25),
            row | dict(task='caption', shots=4, value=0.0, metric='cider'),
            row | dict(task='caption', shots=4, value=0.0, control='blank_support')]
    (tmp_path / 'evaluate.json').write_text(json.dumps(rows))
    out = str(tmp_path / 'sizes.png')
    monkeypatch.setattr('sys.argv', ['sizes', f'half={tmp_path}', f'nano={tmp_path}', out])
    sizes.main()
    assert capsys.readouterr().out.splitlines() == [
        f'{name}, {shots} shots: {score}'
        for name in ('half', 'nano') for shots, score in ((0, '25.0%'), (4, '75.0%'))]
    assert Image.open(out).size[0] > 300
    monkeypatch.setattr('sys.argv', ['sizes', f'half={tmp_path / "none"}', out])
    with pytest.raises(BadInput, match='evaluate.py --out_dir='):
        sizes.main()
