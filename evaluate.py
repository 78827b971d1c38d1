"""Does it learn from its prompt? Few-shot tasks, and the numbers that answer.

    python evaluate.py                                         # all tasks of the drawn world
    python evaluate.py --controls=True                         # does it look at the pictures in its prompt?
    python evaluate.py --tasks=caption,question --shots=0,8    # some of it

On your own data (docs/evaluation.md has an example of every form):

    python evaluate.py --episodes=trials.jsonl                 # episodes, one a line
    python evaluate.py --folder=my_classes --ways=5 --shots=1  # new names for the classes of a folder
    python evaluate.py --coco_annotations=captions_val2014.json --images=val2014
    python evaluate.py --vqa_questions=Q.json --vqa_annotations=A.json --images=val2014
    python evaluate.py --classify=my_classes --shots=16        # class names as answers (RICES)
    python evaluate.py --zero_shot=my_classes                  # the CLIP way: class names in templates
    python evaluate.py --probe=my_classes                      # a linear classifier on the frozen features
    python evaluate.py --captions=my_pictures --split=val      # what the model says of pictures
    python evaluate.py --retrieval=my_pictures --split=val     # which caption belongs to which picture?
    python evaluate.py --depths=my_pictures --split=val        # where what it sees is lost on its way

A task gives `kit.episode.Episode`s (kit/tasks). Where an episode has choices, each is scored by
log-likelihood and the best one is the prediction; elsewhere the answer is generated (§2.5). Rows of results
are written to out_dir/evaluate.json.
"""
import json
import os

from kit.cli import check_range, command, configure
from kit.device import pick_device
from kit.files import BadInput, whole_file
from kit.show import canvas, charts
from kit.sources.base import Report
from kit.tasks.asker import CHECKPOINT, find_checkpoint, LEAST_FPS, load, MOST_BEAMS, MOST_FRAMES
from kit.tasks.captions import run_captions
from kit.tasks.classes import run_classes
from kit.tasks.depths import run_depths
from kit.tasks.encoders import run_probe, run_retrieval, run_zero_shot
from kit.tasks.episodes import TASKS
from kit.tasks.files import run_episodes
from kit.tasks.metrics import METRICS
from kit.tasks.naming import naming_ways, run_controls, run_folder
from kit.tasks.official import run_official
from kit.tasks.options import listed, templates
from kit.tasks.questions import QUESTIONS, run_questions
from kit.tasks.suite import cells, run_suite
from kit.tasks.tables import control_text, tables


GROUPS = {  # of --help: what they are for, and of each key its default and its meaning
    'the model': {
        'out_dir': ('out', 'folder with the flamingo.pt to evaluate; results go there too'),
        'checkpoint': (CHECKPOINT, 'file in out_dir, or a path: assets/pictures.pt. Without, assets/nano.pt'),
        'device': ('auto', 'auto, cpu, cuda, mps'),
        'n_frame': (0, 'most frames of a clip; 0 for those of training (the paper: 8, then 30)'),
        'fps': (1.0, 'frames a second of animations (the paper: 1 in training, then 3)'),
        'batch_size': (16, 'episodes at a time'),
        'beam_size': (3, 'for generated answers'),
        'max_new_tokens': (24, 'for generated answers'),
        'ensemble': (1, 'of choices: the mean over this many orders of the examples (the paper: 6)'),
    },
    'what is asked': {
        'calibrate': (False, 'rank choices by what the pictures of the examples add (the paper does not)'),
        'seed': (1, 'of the episodes'),
        'seeds': (3, 'this many seeds, from that one on'),
        'n': (100, 'episodes of each kind and seed; of a COCO or VQA file and of captions all, unless said'),
        'shots': ('', 'examples, several with commas; empty for 0,4,8,16,32 (naming: 1,2,4,8 of each name)'),
        'text_examples': (2, "at 0 shots: examples as text alone, the paper's two; 0 for none"),
        'controls': (False, 'spoil prompts on purpose (of the world, a folder or episodes)'),
        'predictions': ('', 'where to write the predictions of episodes, COCO or VQA'),
    },
    'the drawn world': {
        'tasks': ('', f'some of {", ".join(TASKS)}; empty for all'),
        'questions': ('', "the paper's open questions: some of "
                          f'{", ".join(QUESTIONS)}; or all (docs/questions.md)'),
        'ways': ('', 'naming, here and of a folder: how many names, several with commas; empty for 2,4'),
    },
    'episodes in a file': {
        'episodes': ('', 'a .jsonl file of your own episodes, one a line'),
        'metric': ('', f'of episodes: some of {", ".join(METRICS)}; empty for accuracy'),
        'written': (False, 'of episodes or a folder: have the names written, too, rather than chosen'),
    },
    'naming with a folder': {
        'folder': ('', 'class folders, or a folder with captions: new names for its classes'),
        'class_depth': (0, 'how many folder names make a class, as in train.py'),
        'held_groups': ('', "parents of class folders that make its split 'val', as in train.py"),
        'within_group': (False, 'all classes of an episode lie in one parent folder'),
        'trials': (False, "Omniglot's published form: one hand's drawings shown, another's asked about"),
        'write_episodes': ('', 'a .jsonl file to write the episodes to, instead of asking them'),
    },
    'official files': {
        'coco_annotations': ('', "COCO's captions_*.json, or Karpathy's dataset_*.json (--split, or test)"),
        'vqa_questions': ('', 'questions of VQAv2, OK-VQA, TextVQA or VizWiz'),
        'vqa_annotations': ('', 'their answers, where they are in a file of their own'),
        'images': ('', 'the folder of pictures of a COCO or VQA file, wherever one is given'),
        'train_captions': ('', 'captions that examples are taken from; without any, only the query is shown'),
        'train_questions': ('', 'questions that examples are taken from'),
        'train_annotations': ('', 'their answers; empty for those in the file, or in one beside it'),
        'train_images': ('', 'the folder of their pictures; empty for --images'),
    },
    'captions of a folder': {
        'captions': ('', 'a folder with captions: what is said of its pictures, known things and new ones'),
    },
    'classes by name': {
        'classify': ('', 'a folder of class folders: which of its class names is the answer?'),
        'per_class': (5, 'how many pictures of each class examples are taken from'),
        'rices': (True, 'the examples are those that look most like the query; else any'),
    },
    'the contrastive encoders': {
        'zero_shot': ('', 'a folder of class folders: contrastive zero-shot'),
        'templates': ('{}|a {}|a photo of a {}', 'class names are put into each, and the mean is taken'),
        'probe': ('', 'a folder of class folders: linear probe of the frozen encoder'),
        'depths': ('', 'a folder: how well things are told apart after the encoder, the resampler, each '
                       'gated layer'),
        'retrieval': ('', 'a folder with captions: which caption belongs to which picture?'),
        'split': ('', 'the split of a folder to use, wherever one is given; empty for all'),
    },
}
KEYS = {name: entry for group in GROUPS.values() for name, entry in group.items()}
# The keys that say what to ask about, and who asks: (config, Asker, Contrastive, Report) -> rows.
SOURCES = {
    'episodes': run_episodes, 'folder': run_folder,
    'coco_annotations': run_official, 'vqa_questions': run_official, 'classify': run_classes,
    'captions': run_captions, 'questions': run_questions, 'zero_shot': run_zero_shot, 'probe': run_probe,
    'retrieval': run_retrieval, 'depths': run_depths,
}
BELONGS = {  # keys that say nothing without one of these
    'write_episodes': ('folder',), 'trials': ('folder',), 'within_group': ('folder',),
    'metric': ('episodes',),
    'vqa_annotations': ('vqa_questions',), 'train_questions': ('vqa_questions',),
    'train_annotations': ('train_questions',), 'train_captions': ('coco_annotations',),
    'train_images': ('train_captions', 'train_questions'),
}
PREDICTED = 'episodes', 'coco_annotations', 'vqa_questions'
SPOILED = 'episodes', 'folder'  # besides the drawn world: by controls


def asked_about(config):
    """-> which of SOURCES is given, or None: the drawn world. Raises BadInput where it is more than
    one."""
    asked = [key for key in SOURCES if getattr(config, key)]
    if len(asked) > 1:
        raise BadInput(f'--{asked[0]} and --{asked[1]}: give one of the two')
    return asked[0] if asked else None


def check_values(config):
    """Values of the right type that make no sense. Raises BadInput."""
    check_range(config, 1, 100_000, 'n')
    check_range(config, 1, 100, 'seeds', 'ensemble')
    check_range(config, 0, 100, 'text_examples', 'class_depth')
    check_range(config, 1, 10_000, 'batch_size')
    check_range(config, 1, MOST_BEAMS, 'beam_size')
    check_range(config, 1, 1 << 40, 'max_new_tokens')
    check_range(config, 0, 2 ** 63 - 1, 'seed')
    check_range(config, 1, 1_000_000, 'per_class')
    check_range(config, 0, MOST_FRAMES, 'n_frame')
    check_range(config, LEAST_FPS, MOST_FRAMES, 'fps')
    cells(config), naming_ways(config), templates(config), listed(config, 'metric', METRICS)
    listed(config, 'questions', [*QUESTIONS, 'all'])
    asked = asked_about(config)
    for key, whose in BELONGS.items():
        if getattr(config, key) and not any(getattr(config, name) for name in whose):
            raise BadInput(f'--{key}={getattr(config, key)}: of --{" or --".join(whose)} only')
    if config.predictions and (config.controls or asked not in PREDICTED):
        raise BadInput(f'--predictions={config.predictions}: of --episodes, COCO and VQA only, '
                       'and not of --controls')
    if config.written and asked not in SPOILED:
        raise BadInput('--written=True: of a --folder or --episodes only')
    if config.trials and config.shots not in ('', '1'):
        raise BadInput(f'--trials=True: one example of each name, not --shots={config.shots}')
    if config.controls and asked not in (None, *SPOILED):
        raise BadInput(f'--controls=True: of the drawn world, a --folder or --episodes, not of --{asked}')


def ask_all(config, asker, contrastive, report):
    """What the keys ask for -> rows"""
    asked = asked_about(config)
    if config.controls and asked != 'episodes':
        return run_controls(config, asker, contrastive, report)
    return SOURCES.get(asked, run_suite)(config, asker, contrastive, report)


def main():
    config = configure(KEYS, usage=__doc__, groups=GROUPS)
    check_values(config)
    path, device = find_checkpoint(config.out_dir, config.checkpoint), pick_device(config.device, meta=False)
    asker, contrastive = load(path, device, config.batch_size, config.n_frame, config.fps)
    asker.beam_size, asker.max_new_tokens = config.beam_size, config.max_new_tokens
    asker.ensemble, asker.calibrate = config.ensemble, config.calibrate
    report = Report()
    rows = ask_all(config, asker, contrastive, report)
    for line in report.lines():
        print('left out', line)
    if not rows:  # files were written instead
        return
    # In the picture one metric a task.
    drawn = [r for r in rows if r['metric'] == TASKS.get(r['task'], ('', (r['metric'],)))[1][0]]
    plain = [name for name, metric in METRICS.items() if not metric.percent]
    picture = charts.shots_chart(drawn or rows, 'Few-shot learning', plain)
    canvas.save(picture, os.path.join(config.out_dir, 'evaluate.png'))
    with whole_file(os.path.join(config.out_dir, 'evaluate.json'), 'w', encoding='utf-8') as f:
        json.dump(rows, f, indent=1)
    print(control_text(rows) if config.controls else tables(rows))


if __name__ == '__main__':
    command(main)
