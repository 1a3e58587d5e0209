"""Train, test and compare: python tools/compare.py CONFIG... [--upsamplers U...]."""

import argparse
import re
import shlex
import shutil
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch

from dlu_mmdet.analysis import comparison, report, runs
from dlu_mmdet.analysis.tables import to_markdown
from dlu_mmdet.engine import (
    add_cfg_options,
    add_data,
    add_training_arguments,
    print_anything,
    upsampler_argument,
)

TOOLS = Path(__file__).resolve().parent
# among --upsamplers: what the config has
OWN = 'own'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Train and test every config with every seed, and say which '
        'upsampler is better, by how much, and at what cost. Interrupted, the same '
        'command goes on; configs, upsamplers and seeds may be added to it.'
    )
    parser.add_argument(
        'configs',
        nargs='+',
        metavar='CONFIG',
        help='a file, or a name such as mmdet::yolox/yolox_s_8xb8-300e_coco.py',
    )
    parser.add_argument(
        '--upsamplers',
        nargs='+',
        type=lambda text: None if text == OWN else upsampler_argument(text),
        default=[None],
        metavar='NAME[:KEY=VALUE,...]',
        help="every CONFIG's neck, whatever the detector, with each of these; "
        f'{OWN} stands for the config as it is (default: that alone)',
    )
    parser.add_argument(
        '--seeds',
        nargs='+',
        type=int,
        default=[0],
        help='every config is trained with each (default: 0)',
    )
    parser.add_argument(
        '--work-dir',
        default='work_dirs/comparison',
        help='folder of the runs and of comparison.{json,csv,md} and report.html '
        '(default: %(default)s)',
    )
    parser.add_argument(
        '--baseline',
        help='what others are compared with: an upsampler, or a config file without '
        '.py where two configs have the same (default: bilinear, or the first)',
    )
    add_data(parser)
    add_cfg_options(parser)
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm'],
        default='none',
        help='pytorch: torchrun on this machine; slurm: srun, which takes '
        'GPUS_PER_NODE, CPUS_PER_TASK and SRUN_ARGS from the environment',
    )
    parser.add_argument(
        '--processes',
        type=int,
        default=8,
        help='of each run with a launcher, one a GPU (default: %(default)s)',
    )
    add_training_arguments(parser)
    parser.add_argument(
        '--resamples',
        type=int,
        default=1000,
        help='of the test images, for the intervals (default: %(default)s)',
    )
    parser.add_argument(
        '--dry-run',
        action='store_true',
        help='time a few iterations, print what would run and for how long',
    )
    return parser.parse_args()


def hours(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def dry_run(planned: list[runs.Run], launch: runs.Launch) -> None:
    """Print the runs, how long they should take here, and their commands."""
    estimates = {}
    total = 0.0
    for run in planned:
        if run.name not in estimates:
            print(f'timing {run.source} ...', flush=True)
            estimates[run.name] = runs.estimate(run, '--amp' in launch.train_flags)
        took = estimates[run.name]
        if run.state != 'finished':
            total += sum(took.values())
        print(
            f'{run.name} seed {run.seed}: {run.state}, training '
            f'{hours(took["train"])}, testing {hours(took["test"])}'
        )
    print(
        f'\nto do: {hours(total)} on this machine, one process a run, a half-finished '
        f'run counted as a whole one, without start-up and evaluation'
    )
    number, example = launch.processes, planned[0]
    # where there is no such thing its commands are shown only if it is asked for
    offered = dict(pytorch=torch.cuda.device_count() > 1, slurm=shutil.which('srun'))
    for title, launcher in (('on', 'pytorch'), ('on a Slurm cluster with', 'slurm')):
        if not offered[launcher] and launch.launcher != launcher:
            continue
        one = runs.Launch(launcher, number, launch.train_flags)
        # the last of several equal options counts
        whole = [a for a in sys.argv[1:] if a != '--dry-run']
        whole += ['--launcher', launcher, '--processes', str(number)]
        print(
            f'\n{title} {number} GPUs, all of it:\n  '
            + shlex.join(['python', sys.argv[0], *whole])
            + '\nwhich writes the complete config of each run and starts'
        )
        for command in (one.train(example, TOOLS), one.test(example, TOOLS)):
            print(f'  {shlex.join(command)}')


def time_left(line: str, passed: float, took: list[float], to_do: int) -> str:
    """How long all runs that are left should take, from those that are done."""
    if took:
        mean = sum(took) / len(took)
        left = max(mean - passed, 0) + mean * to_do
    elif found := re.search(r'eta: (?:(\d+) days?, )?(\d+):(\d+):(\d+)', line):
        days, *clock = (int(part or 0) for part in found.groups())
        eta = timedelta(days, hours=clock[0], minutes=clock[1], seconds=clock[2])
        left = eta.total_seconds() + (passed + eta.total_seconds()) * to_do
    else:
        return ''
    return f' {hours(left)} left for all:'


def run_all(planned: list[runs.Run], launch: runs.Launch) -> list[runs.Run]:
    """Train and test what is not finished, with progress; returns what failed."""
    failed, took = [], []
    for number, run in enumerate(planned, 1):
        label = f'[{number}/{len(planned)} {run.name} seed {run.seed}]'
        start = time.monotonic()
        to_do = sum(later.state != 'finished' for later in planned[number:])
        was_finished = run.state == 'finished'
        try:
            for line in runs.execute(run, TOOLS, launch):
                left = time_left(line, time.monotonic() - start, took, to_do)
                print(f'{label}{left}', line, flush=True)
        except RuntimeError as error:
            failed.append(run)
            print(label, error, file=sys.stderr, flush=True)
            continue
        passed = time.monotonic() - start
        if not was_finished:
            took.append(passed)
        print(f'{label} done in {hours(passed)}', flush=True)
    return failed


def report_all(planned: list[runs.Run], args: argparse.Namespace) -> None:
    """Bring the finished runs together, on disk and on the screen."""
    finished = {run.name for run in planned if run.state == 'finished'}
    if not finished:
        return
    baseline = args.baseline if args.baseline in finished else None
    if args.baseline != baseline:
        print(
            f'no run of the baseline {args.baseline} is finished: the differences are '
            f'to another upsampler',
            file=sys.stderr,
        )
    print('comparing: necks timed, test images resampled', flush=True)
    summary = comparison.summarise(
        planned,
        baseline,
        args.resamples,
        progress=lambda done, total: print(
            f'\rresampled {done}/{total}', end='', flush=True
        ),
    )
    comparison.save(summary, args.work_dir)
    page = report.save(summary, args.work_dir)
    best = summary['rows'][0]
    head, *body = comparison.accuracy_table(summary)
    print(f'\n\n{to_markdown(head, body)}')
    print(f'\nbest AP: {best["name"]}, {best["AP"]:.3f}')
    print(f'costs, differences, pictures: {page} and comparison.md beside it')


def main() -> int:
    print_anything()
    args = parse_args()
    if args.processes < 1 or args.resamples < 100:
        raise ValueError(
            f'--processes must be at least 1 and --resamples at least 100, got '
            f'{args.processes} and {args.resamples}'
        )
    given = [('--amp', args.amp), ('--auto-scale-lr', args.auto_scale_lr)]
    flags = tuple(flag for flag, wanted in given if wanted)
    launch = runs.Launch(args.launcher, args.processes, flags)
    planned = runs.plan(
        args.configs,
        args.seeds,
        args.work_dir,
        args.cfg_options,
        launch,
        args.upsamplers,
        args.data,
    )
    names = list(dict.fromkeys(run.name for run in planned))
    if args.baseline and args.baseline not in names:
        raise ValueError(
            f'--baseline {args.baseline} is none of the configs given: '
            f'{", ".join(names)}'
        )
    if args.dry_run:
        dry_run(planned, launch)
        return 0
    try:
        if any(run.state != 'finished' for run in planned):
            print('checking data, heads and evaluation', flush=True)
            comparison.rehearse(planned)
        runs.begin(args.work_dir, planned, launch)
        failed = run_all(planned, launch)
        report_all(planned, args)
    except KeyboardInterrupt:
        print('\ninterrupted; the same command goes on', file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno not in runs.FULL:
            raise
        print(
            f'{error}\nno space left on the device; what is finished is kept: free '
            f'some, and the same command goes on',
            file=sys.stderr,
        )
        return 1
    if failed:
        print(
            f'failed: {", ".join(f"{run.name} seed {run.seed}" for run in failed)}',
            file=sys.stderr,
        )
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
