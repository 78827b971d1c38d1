"""Figure 2 in miniature: the mean score of several trained models, over the number of examples in the prompt.

    python evaluate.py --out_dir=out-half --tasks=caption,question,clip_caption,clip_question    # and so on
    python -m kit.show.sizes half=out-half nano=out sizes.png    # from the evaluate.json of each
"""
import os
import sys

from kit.cli import command
from kit.files import BadInput, read_json
from kit.show import canvas, charts


def mean_scores(name, folder):
    """-> rows of a chart, one for each number of shots: the mean over the tasks asked. Raises BadInput."""
    path, by_shots = os.path.join(folder, 'evaluate.json'), {}
    if not os.path.exists(path):
        raise BadInput(f'{path}: no such file; python evaluate.py --out_dir={folder} makes it')
    for row in read_json(path, 1 << 24):
        if row['metric'] == 'accuracy' and not row['control']:
            by_shots.setdefault(row['shots'], []).append(row['value'])
    return [{'task': name, 'shots': shots, 'metric': 'accuracy', 'value': sum(values) / len(values)}
            for shots, values in sorted(by_shots.items())]


def main():
    *models, out = sys.argv[1:] or ['']
    if not models or not all('=' in model for model in models) or '=' in out:
        raise BadInput('expected NAME=FOLDER ... PICTURE.png, see the first lines of kit/show/sizes.py')
    rows = [row for model in models for row in mean_scores(*model.split('=', 1))]
    canvas.save(charts.shots_chart(rows, 'Mean of the tasks, by size of model'), out)
    for row in rows:
        print(f'{row["task"]}, {row["shots"]} shots: {row["value"]:.1%}')


if __name__ == '__main__':
    command(main)
