"""Train, test and compare: python tools/compare.py CONFIG... [--upsamplers U...]."""

from __future__ import annotations

import argparse
import contextlib
import re
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import torch

from dlu_mmdet.analysis import comparison, jobs, report, runs, slurm
from dlu_mmdet.analysis.inputs import check_inputs, fingerprint
from dlu_mmdet.analysis.tables import printable, to_markdown
from dlu_mmdet.engine import (
    add_cfg_options,
    add_data,
    add_training_arguments,
    data_arguments,
    print_anything,
    upsampler_argument,
    use_safe_loaders,
)

TOOLS = Path(__file__).resolve().parent
# among --upsamplers: what the config has
OWN = 'own'


class Stopped(KeyboardInterrupt):
    """A signal that asks to end.

    Args:
        number (int): Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextlib.contextmanager
def stopped_by_signals(children: runs.Children) -> Iterator[None]:
    """Raise :class:`Stopped` at a signal to end.

    A second signal kills the runs, a third one this process.
    """
    asked = []

    def handle(number: int, _: object) -> None:
        asked.append(number)
        if len(asked) == 1:
            raise Stopped(number)
        children.kill()
        signal.signal(number, signal.SIG_DFL)

    kept = {}
    try:
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # nohup and shells have some ignored
            if signal.getsignal(each) not in (signal.SIG_IGN, None):
                kept[each] = signal.signal(each, handle)
        yield
    finally:
        for each, handler in kept.items():
            signal.signal(each, handler)


def key_and_value(text: str) -> tuple[str, str]:
    """An option of sbatch."""
    key, equals, value = text.partition('=')
    if not (key and equals and value):
        raise argparse.ArgumentTypeError(f'{text!r} is not KEY=VALUE')
    return key.lstrip('-'), value


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Train and test every config with every seed, and say which '
        'upsampler is better, by how much, and at what cost. Interrupted, the same '
        'command goes on; configs, upsamplers and seeds may be added to it.'
    )
    parser.add_argument(
        'configs',
        nargs='*',
        metavar='CONFIG',
        help='a file, or a name such as mmdet::yolox/yolox_s_8xb8-300e_coco.py',
    )
    parser.add_argument(
        '--upsamplers',
        nargs='+',
        type=lambda text: None if text == OWN else upsampler_argument(text),
        default=[None],
        metavar='NAME[:KEY=VALUE,...]',
        help="every CONFIG's neck, whatever the detector, with each of these, also a "
        'class of your own, as in path/to/mine.py:Mine, or mine for ./mine.py; '
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
        help='pytorch: every run with torchrun; slurm: every run as a job of Slurm, on '
        'one node, which this command may be left alone with',
    )
    parser.add_argument(
        '--processes',
        type=int,
        help='of each run with a launcher, one a GPU (default: 8, with slurm 1)',
    )
    parser.add_argument(
        '--jobs',
        type=int,
        help='runs at a time, each with its share of GPUs and threads, or jobs in the '
        'queue of Slurm (default: 1, with slurm all)',
    )
    parser.add_argument(
        '--slurm',
        nargs='+',
        type=key_and_value,
        default=[],
        metavar='KEY=VALUE',
        help='options of sbatch for every job: time, in minutes, must be given; '
        'partition=P account=A mem=32G cpus_per_task=8; gpus_per_node is --processes '
        'where it is not given, and 0 asks for none',
    )
    add_training_arguments(parser)
    parser.add_argument(
        '--resamples',
        type=int,
        default=200,
        help='groups of test images that are left out in turn, at most, for the '
        'intervals (default: %(default)s)',
    )
    parser.add_argument(
        '--report-only',
        action='store_true',
        help='train and test nothing: the report of what is finished, with any '
        'number of GPUs or none; a run whose result.json or matches.npz was removed '
        'is evaluated anew from its predictions.pkl',
    )
    parser.add_argument(
        '--join',
        nargs='+',
        metavar='DIR',
        help='in the place of CONFIG: one report of the finished runs of several '
        'comparisons with equal data and flags, in --work-dir',
    )
    parser.add_argument(
        '--trust',
        action='store_true',
        help='with --join: the configs of DIR are your own and may run, as any config '
        'does; needed where they import modules of yours (default: they are read as '
        'data)',
    )
    parser.add_argument(
        '--dry-run',
        action='store_true',
        help='time a few iterations, print what would run and for how long',
    )
    args = parser.parse_args()
    if bool(args.configs) == bool(args.join):
        parser.error('give CONFIG..., or --join DIR... in its place')
    if args.trust and not args.join:
        parser.error('--trust is for --join; leave it out')
    if args.join:
        # the folders say what they hold
        taken = {'join', 'work_dir', 'baseline', 'resamples', 'report_only', 'trust'}
        unused = [
            f'--{key.replace("_", "-")}'
            for key, value in vars(args).items()
            if key not in taken
            and value != parser.get_default(key)
            and key != 'configs'
        ]
        if unused:
            parser.error(
                f'--join takes runs as they are; leave out {", ".join(unused)}'
            )
    return args


def hours(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def title(run: runs.Run) -> str:
    return f'{printable(run.name)} seed {run.seed}'


def dry_run(planned: list[runs.Run], launch: runs.Launch, number: int) -> None:
    """Print the runs, how long they should take here, and their commands."""
    estimates = {}
    total = 0.0
    for run in planned:
        if run.name not in estimates:
            print(f'timing {run.source} ...', flush=True)
            estimates[run.name] = runs.estimate(run, '--amp' in launch.train_flags)
        took = estimates[run.name]
        if not run.is_over:
            total += sum(took.values())
        print(
            f'{title(run)}: {run.state}, training '
            f'{hours(took["train"])}, testing {hours(took["test"])}'
        )
    print(
        f'\nto do: {hours(total)} on this machine, one process a run, a half-finished '
        f'run counted as a whole one, without start-up and evaluation'
    )
    # where there is no such thing its commands are shown only if it is asked for
    if torch.cuda.device_count() > 1 or launch.launcher == 'pytorch':
        example = planned[0]
        one = runs.Launch('pytorch', number, launch.train_flags)
        # the last of several equal options counts
        whole = [a for a in sys.argv[1:] if a != '--dry-run']
        whole += ['--launcher', 'pytorch', '--processes', str(number)]
        print(
            f'\non {number} GPUs, all of it:\n  '
            + shlex.join(['python', sys.argv[0], *whole])
            + '\nwhich writes the complete config of each run and starts'
        )
        for command in (one.train(example, TOOLS), one.test(example, TOOLS)):
            print(f'  {shlex.join(command)}')


def dry_run_in_slurm(
    planned: list[runs.Run], launch: runs.Launch, args: argparse.Namespace
) -> None:
    """Print the jobs that would be submitted."""
    to_do = 0
    for run in planned:
        print(f'{title(run)}: {run.state}')
        if not run.is_over:
            options = slurm.sbatch_options(dict(args.slurm), launch.processes, run)
            listed = [f'--{k.replace("_", "-")}={v}' for k, v in options.items()]
            print(f'  {shlex.join(["sbatch", *listed])}')
            to_do += 1
    at_once = min(args.jobs, to_do)
    print(f'\nto submit: {to_do} jobs, {at_once} in the queue at a time')


def start(
    planned: list[runs.Run],
    launch: runs.Launch,
    args: argparse.Namespace,
    children: runs.Children,
) -> Iterator[jobs.Event]:
    """Check how the runs are to be run; they start when this is iterated over."""
    if args.launcher == 'slurm':
        slurm.check_available()
        given = dict(args.slurm)
        slurm.sbatch_options(given, launch.processes, planned[0])
        return slurm.run_in_slurm(planned, TOOLS, launch, args.jobs, given)
    places = jobs.places(args.jobs, launch.processes)
    return jobs.run_here(planned, TOOLS, launch, places, children)


def eta(line: str) -> float | None:
    """Seconds that mmengine says a training has left."""
    found = re.search(r'eta: (?:(\d+) days?, )?(\d+):(\d+):(\d+)', line)
    if not found:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return timedelta(days, seconds, 0, 0, minutes, hours).total_seconds()


def time_left(
    active: list[tuple[float, float | None]],
    took: list[float],
    waiting: int,
    at_a_time: int = 1,
) -> str:
    """How long all runs that are left should take, from those that are done.

    Args:
        active (list[tuple]): Of every run at work: seconds since its start, and its
            :func:`eta`.
        took (list[float]): Seconds of those that are done.
        waiting (int): Number of those that have not begun.
        at_a_time (int): Number of runs at a time.
    """
    totals = took or [passed + left for passed, left in active if left is not None]
    if not totals:
        return ''
    mean = sum(totals) / len(totals)
    lefts = [
        max(mean - passed, 0) if took or left is None else left
        for passed, left in active
    ]
    total = max([*lefts, (sum(lefts) + mean * waiting) / at_a_time])
    return f' {hours(total)} left for all:'


def run_all(
    planned: list[runs.Run], events: Iterator[jobs.Event], at_a_time: int
) -> list[runs.Run]:
    """Say what happens to the runs; returns those that failed."""
    numbers = {run.work_dir: number for number, run in enumerate(planned, 1)}
    waiting = {run.work_dir for run in planned if not run.is_over}
    active: dict[Path, tuple[float, float | None]] = {}
    failed, took = [], []
    # left in the middle, it ends what it has started
    with contextlib.closing(events):
        for event in events:
            run, now = event.run, time.monotonic()
            key = run.work_dir
            label = f'[{numbers[key]}/{len(planned)} {title(run)}]'
            if key in waiting:
                waiting.remove(key)
                active[key] = now, None
            if event.over:
                start, _ = active.pop(key, (None, None))
                if event.error is not None:
                    if not isinstance(event.error, (RuntimeError, ValueError)):
                        # a full disk, or a mistake of ours
                        raise event.error
                    failed.append(run)
                    print(label, event.error, file=sys.stderr, flush=True)
                elif start is not None and run.state == 'finished':
                    took.append(now - start)
                    print(f'{label} done in {hours(now - start)}', flush=True)
                continue
            if key in active:
                start, known = active[key]
                found = eta(event.line)
                active[key] = start, known if found is None else found
            left = time_left(
                [(now - start, left) for start, left in active.values()],
                took,
                len(waiting),
                at_a_time,
            )
            print(f'{label}{left}', event.line, flush=True)
    return failed


def report_all(planned: list[runs.Run], args: argparse.Namespace) -> bool:
    """Bring the finished runs together, on disk and on the screen.

    Returns:
        bool: Whether there is one.
    """
    finished = {run.name for run in planned if run.state == 'finished'}
    diverged = [run for run in planned if run.state == 'diverged']
    if not finished:
        if diverged:
            print(
                f'all {len(diverged)} runs that ended have diverged, so there is '
                f'nothing to compare; lower the learning rate in another --work-dir',
                file=sys.stderr,
            )
        return False
    check_inputs(planned)
    Path(args.work_dir).mkdir(parents=True, exist_ok=True)
    baseline = args.baseline if args.baseline in finished else None
    if args.baseline != baseline:
        print(
            f'no run of the baseline {args.baseline} is finished: the differences are '
            f'to another upsampler',
            file=sys.stderr,
        )
    print('comparing: timing necks, leaving out test images in turn', flush=True)
    summary = comparison.summarise(
        planned,
        baseline,
        args.resamples,
        progress=lambda done, total: print(
            f'\rscored {done}/{total}', end='', flush=True
        ),
    )
    comparison.save(summary, args.work_dir)
    page = report.save(summary, args.work_dir)
    best = summary['rows'][0]
    head, *body = comparison.accuracy_table(summary)
    print(f'\n\n{to_markdown(head, body)}')
    name = printable(best['name'])
    print(f'\nbest AP: {name}, {best["AP"]:.3f} (mean over seeds)')
    for sentence in comparison.divergences(summary):
        print(sentence)
    print(f'costs, differences, pictures: {page} and comparison.md beside it')
    return True


def join(args: argparse.Namespace) -> int:
    """One report of several comparisons."""
    if Path(args.work_dir, 'plan.json').exists():
        raise ValueError(
            f'--work-dir {args.work_dir} holds a comparison of its own, whose report '
            f'would be lost; name another folder for that of --join'
        )
    planned = runs.join(args.join, args.trust)
    check_baseline(planned, args.baseline)
    for sentence in check_inputs(planned):
        print(sentence, file=sys.stderr)
    return 0 if report_all(planned, args) else 1


def report_again(planned: list[runs.Run], args: argparse.Namespace) -> int:
    """Evaluate what was tested and not evaluated, and report what is finished."""
    failed = False
    for run in planned:
        try:
            if runs.evaluate_anew(run):
                print(f'[{title(run)}] evaluated anew', flush=True)
        except RuntimeError as error:
            failed = True
            print(f'[{title(run)}]', error, file=sys.stderr, flush=True)
    if not any(run.is_over for run in planned):
        raise ValueError(
            f'--report-only: no run in {args.work_dir} is finished; the same command '
            f'without it trains them'
        )
    return int(not report_all(planned, args) or failed)


def check_baseline(planned: list[runs.Run], baseline: str | None) -> None:
    names = list(dict.fromkeys(run.name for run in planned))
    if baseline and baseline not in names:
        raise ValueError(
            f'--baseline {baseline} is none of the configs given: {", ".join(names)}'
        )


def main() -> int:
    print_anything()
    use_safe_loaders()
    args = parse_args()
    children = runs.Children()
    try:
        with stopped_by_signals(children):
            return work(args, children)
    except KeyboardInterrupt as error:
        number = getattr(error, 'number', signal.SIGINT)
        kept = ', and jobs stay in the queue of Slurm'
        print(
            f'\ninterrupted by {signal.Signals(number).name}; the same command goes on'
            f'{kept if args.launcher == "slurm" else ""}',
            file=sys.stderr,
        )
        return 128 + number
    except OSError as error:
        if error.errno not in runs.FULL:
            raise
        print(
            f'{error}\nno space left on the device; what is finished is kept: free '
            f'some, and the same command goes on',
            file=sys.stderr,
        )
        return 1


def work(args: argparse.Namespace, children: runs.Children) -> int:
    """What the arguments ask for; returns the exit status."""
    in_slurm = args.launcher == 'slurm'
    if args.processes is None:
        args.processes = 1 if in_slurm else 8
    if args.jobs is None:
        args.jobs = sys.maxsize if in_slurm else 1
    for flag, value, least in (
        ('--processes', args.processes, 1),
        ('--jobs', args.jobs, 1),
        ('--resamples', args.resamples, 100),
    ):
        if value < least:
            raise ValueError(f'{flag} must be at least {least}, got {value}')
    if args.slurm and not in_slurm:
        raise ValueError('--slurm is for jobs of --launcher slurm; give both, or none')
    if args.join:
        return join(args)
    given = [('--amp', args.amp), ('--auto-scale-lr', args.auto_scale_lr)]
    flags = tuple(flag for flag, wanted in given if wanted)
    launch = runs.Launch(train_flags=flags)
    if args.launcher == 'pytorch' or (in_slurm and args.processes > 1):
        launch = runs.Launch('pytorch', args.processes, flags)
    planned = runs.plan(
        args.configs,
        args.seeds,
        args.work_dir,
        args.cfg_options,
        launch,
        args.upsamplers,
        data_arguments(args, args.work_dir),
    )
    check_baseline(planned, args.baseline)
    if args.report_only:
        return report_again(planned, args)
    if args.dry_run and in_slurm:
        dry_run_in_slurm(planned, launch, args)
        return 0
    if args.dry_run:
        dry_run(planned, launch, args.processes)
        return 0
    events = start(planned, launch, args, children)
    left = not all(run.is_over for run in planned)
    if left:
        print('checking data, heads and evaluation', flush=True)
    cache: dict = {}
    configs = {run.stem: run.cfg for run in planned}
    now = {stem: fingerprint(cfg, cache=cache) for stem, cfg in configs.items()}
    for sentence in check_inputs(planned, now):
        print(sentence, file=sys.stderr)
    if left:
        comparison.rehearse(planned)
    runs.begin(args.work_dir, planned, launch, args.cfg_options)
    failed = run_all(planned, events, min(args.jobs, len(planned)))
    reported = report_all(planned, args)
    if failed:
        print(f'failed: {", ".join(map(title, failed))}', file=sys.stderr)
    return 0 if reported and not failed else 1


if __name__ == '__main__':
    sys.exit(main())
