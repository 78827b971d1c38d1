"""One session of a run: which stages are missing, how it ends, and the table at the very end."""
import contextlib
import json
import os
import shlex
import signal
import sys

from kit.device import autocast
from kit.files import BadInput, only_run, whole_file
from kit.run import distributed
from kit.run.keys import SOURCES
from kit.run.loop import OUT_OF_TIME
from kit.run.run import Run, kind_of
from kit.show import canvas
from kit.tasks.tables import first_table, sheet, table
from kit.weights import checkpoint

ALL = ('vision', 'language', 'flamingo')


@contextlib.contextmanager
def session(config, keys):
    """`with session(config, keys) as run:` opens the data and keeps out_dir to this process. Afterwards, if
    a signal or --max_minutes has stopped the run, it prints how to go on and exits with 128 + the signal's
    number, or with 0 when time was up.

    config: namespace of all keys; keys: the table of them
    """
    with only_run(config.out_dir) if distributed.rank() == 0 else contextlib.nullcontext():
        run = Run(config, keys)
        try:
            yield run
        except KeyboardInterrupt:  # at once, without finishing the step
            run.stop = run.stop or signal.SIGINT
    distributed.end()
    if run.stop is None:
        return
    if distributed.rank() == 0:
        given = [a for a in sys.argv[1:] if not a.startswith('--init_from')]
        if config.init_from == 'scratch' and any(a.endswith('.py') for a in given):
            given.append('--init_from=auto')  # a config file may have set scratch
        print(f'stopped and saved; to continue: python train.py {shlex.join(given)}')
    sys.exit(0 if run.stop == OUT_OF_TIME else 128 + run.stop)


def missing_stages(run, stages):
    """-> the names of the stages that are asked for and missing, in order, which is run.missing until
    run.save_stage has saved them; and sets run.progress. Nothing is written before all ranks have been here.
    Raises BadInput."""
    run.missing, run.progress = what_is_missing(run, stages)
    check_batches(run.config, run.missing)
    distributed.barrier()  # until all ranks have seen the same files, none may change them
    signal.signal(signal.SIGINT, run.on_signal)
    signal.signal(signal.SIGTERM, run.on_signal)
    return list(run.missing)


def wanted(run):
    return ALL if run.config.stage == 'all' else (run.config.stage,)


def what_is_missing(run, stages):
    """-> (names of the stages to train, content of training.pt or None). Raises BadInput."""
    scratch = run.config.init_from == 'scratch'
    missing = [name for name in wanted(run) if scratch or not os.path.exists(run.path(name + '.pt'))]
    if not scratch and os.path.exists(run.path('training.pt')):
        progress = run.load_progress(stages)
        # The run that was begun is finished first, whatever stage is asked for; then what else is missing.
        begun = progress['missing']
        return begun + [name for name in missing if name not in begun], progress
    if run.config.init_from == 'resume':
        raise BadInput(f'{run.path("training.pt")}: no such file, nothing to resume')
    run.log = [row for row in run.read_log() if row['stage'] not in missing]  # of stages trained before
    for name in wanted(run):
        if name not in missing:
            path = run.path(name + '.pt')
            run.check_same_keys(checkpoint.load(path, kind_of(name), keys=dict)['keys'], path)
    run.complete = not missing and ('flamingo' not in wanted(run) or os.path.exists(run.path('results.json')))
    return missing, None


def check_batches(config, missing):
    """Raises BadInput, before anything is trained, if a batch cannot be divided evenly among the ranks."""
    for name in missing:
        if name in ('vision', 'language'):
            n_part = 1 if name == 'vision' else config.micro_batches
            distributed.mine(getattr(config, name + '_batch'), name + '_batch', n_part)
            continue
        for source in SOURCES:
            if getattr(config, source):
                distributed.mine(getattr(config, 'batch_' + source), 'batch_' + source, config.micro_batches)


def finish(run, flamingo_stage):
    """If nothing is missing any more: the few-shot table, and what was left out on the way.
    flamingo_stage(run) -> a FlamingoStage, into which flamingo.pt is loaded."""
    if run.missing or run.stop:
        return
    if run.complete:
        if distributed.rank() == 0:
            print(f'{run.config.out_dir} is complete. --init_from=scratch starts over; '
                  'python sample.py shows what it learned.')
        return
    run.training = False
    if 'flamingo' in wanted(run):
        write_table(run, flamingo_stage(run))
    run.reader.share_left_out()
    if distributed.rank() == 0:
        with contextlib.suppress(FileNotFoundError):  # there is none if only results.json was missing
            os.remove(run.path('training.pt'))
        for line in run.report.lines():
            print('left out', line)
        if skipped := sum(bool(row.get('skipped')) for row in run.log):
            print(f'{skipped} steps were skipped, their loss or gradient not being finite; '
                  f'{run.path("log.csv")} says of which source')


def write_table(run, stage):
    """The few-shot table, on screen and in results.json, and samples.png. stage: a new FlamingoStage, into
    which flamingo.pt is loaded."""
    path = run.path('flamingo.pt')
    distributed.load_module(stage.module, run.load_stage('flamingo', 'flamingo')['flamingo'], path)
    stage.module.eval()
    with autocast(run.device, run.dtype):
        # Zero-shot classification needs a text tower that was trained on these captions.
        trained = run.config.vision_iters and (run.config.keep_captions or not run.config.words)
        rows, shown = first_table(stage.asker, stage.contrastive if trained else None, run.config.test_n,
                                  pairs=run.held_out, all_ways=run.ask_ways(), within=run.within(),
                                  report=run.report)
    if distributed.rank() > 0:
        return
    with whole_file(run.path('results.json'), 'w', encoding='utf-8') as f:
        json.dump(rows, f, indent=1)
    canvas.save(sheet(shown), run.path('samples.png'))
    print(table(rows))
    out_dir = '' if run.config.out_dir == 'out' else f' --out_dir={run.config.out_dir}'
    print(f'\n{run.minutes():.1f} minutes. Look at {run.path("samples.png")} and {run.path("curves.png")}; '
          f'then: python sample.py{out_dir}')
