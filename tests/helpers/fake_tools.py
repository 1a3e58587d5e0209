"""A stand-in for the commands train and test that takes no time.

It leaves what a comparison reads: the log, scalars, a checkpoint for each epoch,
predictions. EPOCHS and SECONDS (of an epoch) in the environment say how long it takes;
FAIL names a run that fails, DIVERGE runs that diverge, STUBBORN those that ignore
SIGTERM and have a child that does. What it was started with is in started.jsonl.
"""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

SCRIPT = f'import runpy; runpy.run_path({__file__!r}, run_name="__main__")\n'


def make_tools(monkeypatch, folder: Path) -> str:
    """A package with the two commands, for every Launch from here on; its name."""
    package = folder / 'fake_commands'
    package.mkdir()
    for name in ('__init__', 'train', 'test'):
        (package / f'{name}.py').write_text('' if name == '__init__' else SCRIPT)
    from dlu_mmdet.comparison import runs

    monkeypatch.setenv('PYTHONPATH', str(folder), prepend=os.pathsep)
    monkeypatch.setattr(runs, 'COMMANDS', package.name)
    return package.name


def make_compare(monkeypatch, folder: Path, options: dict):
    """The command compare with these, for a --work-dir in a folder.

    Without checks of detectors, measurements of necks, and pictures. The function
    returns the exit status.
    """
    from conftest import as_arguments, load_tool

    from dlu_mmdet.comparison import report
    from dlu_mmdet.comparison import summary as comparison

    make_tools(monkeypatch, folder)
    cost = comparison.Costs(
        upsampler_parameters=1,
        parameters=2,
        upsampler_flops=3,
        flops=4,
        neck_ms=5.0,
        neck_mb=6.0,
        image_size=[7, 8],
        device='this',
    )
    monkeypatch.setattr(comparison, 'check_before_training', lambda planned: None)
    monkeypatch.setattr(
        comparison,
        'measure_costs',
        lambda planned, **_: {run.name: cost for run in planned},
    )
    monkeypatch.setattr(report, 'save', lambda *_: folder / 'report.html')
    monkeypatch.setenv('SECONDS', '0')

    def compare(*arguments: object) -> int:
        join = '--join' in arguments
        work_dir = folder / ('joined' if join else 'work')
        command = [*arguments, '--work-dir', work_dir, '--resamples', 100]
        command += [] if join else as_arguments(options)
        return load_tool('compare').main([*map(str, command)])

    return compare


def main() -> None:
    work_dir = Path(sys.argv[sys.argv.index('--work-dir') + 1])
    if os.environ.get('STUBBORN', 'none') in str(work_dir):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.Popen(['sleep', '60'])
    kept = {k: os.environ.get(k) for k in ('OMP_NUM_THREADS', 'CUDA_VISIBLE_DEVICES')}
    with (work_dir / 'started.jsonl').open('a') as file:
        kept.update(command=sys.argv, time=time.time(), pid=os.getpid())
        file.write(json.dumps(kept) + '\n')
    if '--out' in sys.argv:
        Path(sys.argv[sys.argv.index('--out') + 1]).write_bytes(pickle.dumps([]))
        return
    if os.environ.get('FAIL', 'none') in str(work_dir):
        sys.exit('this run fails')
    if any(name in str(work_dir) for name in os.environ.get('DIVERGE', '').split()):
        found = dict(iteration=31, reason='the loss is nan')
        (work_dir / 'diverged.json').write_text(json.dumps(found))
        sys.exit('training diverged')
    epochs, seconds = (float(os.environ.get(k, 1)) for k in ('EPOCHS', 'SECONDS'))
    log = work_dir / f'log{time.time_ns()}' / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    done = len([p for p in work_dir.glob('epoch_*.pth') if zipfile.is_zipfile(p)])
    for epoch in range(done + 1, int(epochs) + 1):
        left = int((epochs - epoch) * seconds)
        print(f'Epoch(train) [{epoch}][1/1] eta: 0:00:{left:02d} time: 1', flush=True)
        time.sleep(seconds)
        with log.open('a') as file:
            file.write(
                json.dumps(dict(step=epoch, loss=1 / epoch, time=seconds)) + '\n'
            )
        path = work_dir / f'epoch_{epoch}.pth'
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr('data', 'weights')
        (work_dir / 'last_checkpoint').write_text(str(path))
    with (work_dir / 'started.jsonl').open('a') as file:
        file.write(json.dumps(dict(ended=time.time(), pid=os.getpid())) + '\n')


if __name__ == '__main__':
    main()
