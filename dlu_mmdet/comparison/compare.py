"""Train, test and compare, and report progress."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from ..config import config_stem, prepare_data
from ..engine import use_safe_loaders
from ..evaluation import boundaries
from ..evaluation.average_precision import KINDS_OF_AP
from ..utils.tables import printable, to_markdown
from . import jobs as scheduling
from . import plan, report, summary
from . import slurm as cluster
from .collect import reevaluate
from .estimate import estimate
from .inputs import check_inputs, fingerprint
from .processes import FULL, Children
from .runs import Launch, Run


class Stopped(KeyboardInterrupt):
    """A termination signal arrived.

    Args:
        number (int): The signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextlib.contextmanager
def stopped_by_signals(children: Children) -> Iterator[None]:
    """Raise :class:`Stopped` on SIGINT, SIGTERM and SIGHUP.

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


def hours(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def title(run: Run) -> str:
    return f'{printable(run.name)} seed {run.seed}'


def time_runs(planned: list[Run], launch: Launch, number: int) -> None:
    """Print the runs, their estimated time on this machine, and their commands."""
    estimates = {}
    total = 0.0
    for run in planned:
        if run.name not in estimates:
            print(f'timing {run.source} ...', flush=True)
            estimates[run.name] = estimate(run, '--amp' in launch.train_flags)
        took = estimates[run.name]
        if not run.is_over:
            total += sum(took.values())
        print(
            f'{title(run)}: {run.state}, training '
            f'{hours(took["train"])}, testing {hours(took["test"])}'
        )
    print(
        f'\nto do: {hours(total)} of training and testing on this machine, one process '
        f'a run, a half-finished run counted as a whole one; start-up and validations '
        f'come on top'
    )
    # with fewer than two GPUs these are shown only for --launcher pytorch
    if torch.cuda.device_count() > 1 or launch.launcher == 'pytorch':
        example = planned[0]
        one = Launch('pytorch', number, launch.train_flags)
        # the last of several equal options counts
        whole = [a for a in sys.argv[1:] if a != '--dry-run']
        whole += ['--launcher', 'pytorch', '--processes', str(number)]
        print(
            f'\non {number} GPUs, all of it:\n  '
            + shlex.join(['dlu_mmdet', 'compare', *whole])
            + '\nwhich writes the complete config of each run and starts'
        )
        for command in (one.train(example), one.test(example)):
            print(f'  {shlex.join(command)}')


def dry_run_in_slurm(
    planned: list[Run], launch: Launch, given: Mapping, jobs_at_a_time: int
) -> None:
    """Print the jobs that would be submitted."""
    to_do = 0
    for run in planned:
        print(f'{title(run)}: {run.state}')
        if not run.is_over:
            options = cluster.sbatch_options(given, launch.processes, run)
            listed = [f'--{k.replace("_", "-")}={v}' for k, v in options.items()]
            print(f'  {shlex.join(["sbatch", *listed])}')
            to_do += 1
    at_once = min(jobs_at_a_time, to_do)
    print(f'\nto submit: {to_do} jobs, {at_once} in the queue at a time')


def start(
    planned: list[Run],
    launch: Launch,
    launcher: str,
    jobs_at_a_time: int,
    slurm_options: Mapping[str, str],
    children: Children,
) -> Generator[scheduling.Event, None, None]:
    """Check the launcher; the runs start when the iteration starts."""
    if launcher == 'slurm':
        cluster.check_available()
        cluster.sbatch_options(slurm_options, launch.processes, planned[0])
        return cluster.run_in_slurm(planned, launch, jobs_at_a_time, slurm_options)
    slots = scheduling.device_slots(jobs_at_a_time, launch.processes)
    return scheduling.run_here(planned, launch, slots, children)


def eta(line: str) -> float | None:
    """Remaining seconds of a training, from a line of mmengine's log."""
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
    """Estimate the remaining time of all runs.

    Args:
        active (list[tuple]): Seconds since the start and :func:`eta` of each active
            run.
        took (list[float]): Seconds of each finished run.
        waiting (int): Number of runs that have not started.
        at_a_time (int): Number of runs at a time.

    Returns:
        str: The time as text; empty where it is unknown.
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


class ProgressLine:
    """A progress line; on a terminal the next line overwrites it."""

    def __init__(self) -> None:
        self._updates = sys.stdout.isatty()

    def update(self, text: str, in_file: bool = True) -> None:
        """Show a text; ``in_file`` is whether to write it to a file too."""
        if self._updates:
            width = shutil.get_terminal_size().columns - 1
            print(f'\r{text[:width]}\x1b[K', end='', flush=True)
        elif in_file:
            print(text, flush=True)

    def clear(self) -> None:
        """Clear the line, so that another one can be printed."""
        if self._updates:
            print('\r\x1b[K', end='', flush=True)


def run_all(
    planned: list[Run],
    events: Generator[scheduling.Event, None, None],
    at_a_time: int,
) -> list[Run]:
    """Print the progress of the runs; return those that failed."""
    numbers = {run.work_dir: number for number, run in enumerate(planned, 1)}
    waiting = {run.work_dir for run in planned if not run.is_over}
    active: dict[Path, tuple[float, float | None]] = {}
    failed, took = [], []
    progress = ProgressLine()
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
                progress.clear()
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
            progress.update(f'{label}{left} {event.line}')
    progress.clear()
    return failed


def report_all(
    planned: list[Run],
    work_dir: str | Path,
    baseline: str | None,
    image_groups: int,
    figure: str | Path | None = None,
    data: str | Path | Mapping | None = None,
    joined: bool = False,
    metric: str = 'bbox',
) -> bool:
    """Summarize the finished runs, on disk and on the screen.

    Returns:
        bool: Whether any run is finished.
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
    Path(work_dir).mkdir(parents=True, exist_ok=True)
    if baseline and baseline not in finished:
        print(
            f'no run of the baseline {baseline} is finished: the differences are '
            f'to another upsampler',
            file=sys.stderr,
        )
        baseline = None
    print('comparing: timing necks, leaving out test images in turn', flush=True)
    progress = ProgressLine()
    found = summary.summarize(
        planned,
        baseline,
        image_groups,
        progress=lambda done, total: progress.update(
            f'scored {done}/{total}', in_file=False
        ),
        reading=lambda done, total: progress.update(
            f'read predictions {done}/{total}', in_file=False
        ),
        data=data,
        joined=joined,
        metric=metric,
    )
    summary.save(found, work_dir)
    page = report.save(found, work_dir)
    if figure:
        report.save_figure(found, figure)
    best = found.rows[0]
    head, *body = summary.accuracy_table(found)
    progress.clear()
    print(f'\n{to_markdown(head, body)}')
    name = printable(best.name)
    print(f'\nbest {found.label()}: {name}, {best.ap.mean:.3f} (mean over seeds)')
    for sentence in summary.divergences(found):
        print(sentence)
    if found.without:
        print(found.without, file=sys.stderr)
    print(f'costs, differences, pictures: {page} and comparison.md beside it')
    if figure:
        print(f'figure: {figure}')
    return True


def report_again(
    planned: list[Run],
    work_dir: str | Path,
    baseline: str | None,
    image_groups: int,
    figure: str | Path | None = None,
    data: Mapping | None = None,
    metric: str = 'bbox',
) -> int:
    """Evaluate runs that were only tested, and report the finished ones."""
    failed = False
    for run in planned:
        try:
            if reevaluate(run):
                print(f'[{title(run)}] evaluated anew', flush=True)
        except RuntimeError as error:
            failed = True
            print(f'[{title(run)}]', error, file=sys.stderr, flush=True)
    if not any(run.is_over for run in planned):
        raise ValueError(
            f'--report-only: no run in {work_dir} is finished; the same command '
            f'without it trains them'
        )
    reported = report_all(
        planned, work_dir, baseline, image_groups, figure, data, metric=metric
    )
    return int(not reported or failed)


def check_baseline(planned: list[Run], baseline: str | None) -> str | None:
    """The name of the baseline; 'own' is the run without another upsampler."""
    names = list(dict.fromkeys(run.name for run in planned))
    if baseline == 'own' and 'own' not in names:
        own = {run.name for run in planned if run.stem == config_stem(run.source)}
        if len(own) == 1:
            return own.pop()
    if baseline and baseline not in names:
        raise ValueError(
            f'--baseline {baseline} is none of the configs given: {", ".join(names)}'
        )
    return baseline


def join(
    folders: Sequence[str | Path],
    work_dir: str | Path = 'work_dirs/comparison',
    baseline: str | None = None,
    image_groups: int = 200,
    trust: bool = False,
    data: str | Path | None = None,
    figure: str | Path | None = None,
    metric: str = 'bbox',
) -> int:
    """Report the finished runs of several comparisons together.

    Args:
        folders (Sequence[str | Path]): Work directories of comparisons with the same
            data and flags.
        work_dir (str | Path): Folder of the report.
        baseline (str, optional): See :func:`compare`.
        image_groups (int): See :func:`compare`.
        trust (bool): Whether the configs of the folders may execute code. Defaults to
            False: they are read as data.
        data (str | Path, optional): Folder that the data were moved to, as
            :func:`~dlu_mmdet.config.use_dataset_folder` takes it, for kinds of error
            and images. Defaults to where they were.
        figure (str | Path, optional): See :func:`compare`.
        metric (str): See :func:`compare`.

    Returns:
        int: Exit status: 0, or 1 without a finished run.

    Raises:
        ValueError: If the comparisons differ in data or flags, or ``work_dir`` already
            holds a comparison.
    """
    use_safe_loaders()
    _check_least(image_groups=(image_groups, 100))
    check_metric(metric)
    if figure:
        report.check_figure(figure)
    if Path(work_dir, 'plan.json').exists():
        raise ValueError(
            f'--work-dir {work_dir} already holds a comparison, whose report '
            f'would be lost; name another folder for that of --join'
        )
    planned = plan.join(folders, trust)
    baseline = check_baseline(planned, baseline)
    for sentence in check_inputs(planned):
        print(sentence, file=sys.stderr)
    reported = report_all(
        planned, work_dir, baseline, image_groups, figure, data, True, metric
    )
    return 0 if reported else 1


def check_metric(metric: str) -> None:
    """Check before the work that a metric is known and can be computed."""
    if metric not in KINDS_OF_AP:
        raise ValueError(
            f'--metric must be one of {", ".join(KINDS_OF_AP)}, got {metric!r}'
        )
    if metric == 'boundary':
        boundaries.check_available()


def _check_least(**values: tuple[int, int]) -> None:
    """Refuse numbers below their minimum."""
    for name, (value, least) in values.items():
        if value < least:
            flag = name.replace('_', '-')
            raise ValueError(f'--{flag} must be at least {least}, got {value}')


def compare(
    configs: Sequence[str | Path],
    upsamplers: Sequence[dict | None] = (None,),
    seeds: Sequence[int] = (0,),
    work_dir: str | Path = 'work_dirs/comparison',
    baseline: str | None = None,
    *,
    cfg_options: Mapping | None = None,
    launcher: str = 'none',
    processes: int | None = None,
    jobs: int | None = None,
    slurm: Mapping[str, str] | None = None,
    amp: bool = False,
    auto_scale_lr: bool = False,
    image_groups: int = 200,
    figure: str | Path | None = None,
    metric: str = 'bbox',
    report_only: bool = False,
    dry_run: bool = False,
    **data: Any,
) -> int:
    """Train and test every config with every upsampler and seed, and report.

    ``dlu_mmdet compare`` from Python. The same call resumes an interrupted comparison.

    Args:
        configs (Sequence[str | Path]): Files, or names of MMDetection's configs.
        upsamplers (Sequence[dict | None]): An ``upsample_cfg`` for each; None keeps the
            config's own neck. Defaults to (None,).
        seeds (Sequence[int]): Training seeds. Defaults to (0,).
        work_dir (str | Path): Folder of the runs and of the report.
        baseline (str, optional): Name of the run that others are compared with.
            Defaults to 'bilinear', or else the first.
        cfg_options (Mapping, optional): Settings to override in every config.
        launcher (str): 'none', 'pytorch' (torchrun) or 'slurm'.
        processes (int, optional): Processes of each run with a launcher, one a GPU.
            Defaults to 8, with Slurm to 1.
        jobs (int, optional): Number of runs at a time. Defaults to 1, with Slurm to
            all.
        slurm (Mapping[str, str], optional): Options of sbatch.
        amp (bool): Mixed precision.
        auto_scale_lr (bool): Scale the learning rate with the batch size.
        image_groups (int): Number of groups of test images, at most; the intervals
            leave out one group at a time.
        figure (str | Path, optional): A .pdf, .svg or .png file for the comparison in
            one figure of the width of a column.
        metric (str): What AP is of: 'bbox', 'segm' for masks, or 'boundary' for the
            boundaries of masks. Defaults to 'bbox'.
        report_only (bool): Train and test nothing.
        dry_run (bool): Time a few iterations, and print what would run.
        **data: See :func:`~dlu_mmdet.config.custom_data.prepare_data`.

    Returns:
        int: 0, or 1 where a run failed or nothing is finished; 128 and the number of
        the signal that ended it.

    Raises:
        ValueError: If arguments do not go together, or the runs cannot be compared.
        FileNotFoundError: If a config or data do not exist.
    """
    use_safe_loaders()
    in_slurm = launcher == 'slurm'
    number = (1 if in_slurm else 8) if processes is None else processes
    at_a_time = (sys.maxsize if in_slurm else 1) if jobs is None else jobs
    _check_least(
        processes=(number, 1), jobs=(at_a_time, 1), image_groups=(image_groups, 100)
    )
    check_metric(metric)
    if figure:
        report.check_figure(figure)
    if slurm and not in_slurm:
        raise ValueError('--slurm is for jobs of --launcher slurm; give both, or none')
    flags = ['--amp'] * amp + ['--auto-scale-lr'] * auto_scale_lr
    launch = Launch(train_flags=tuple(flags))
    if launcher == 'pytorch' or (in_slurm and number > 1):
        launch = Launch('pytorch', number, tuple(flags))

    def work(children: Children) -> int:
        folder = prepare_data(work_dir, **data)
        planned = plan.plan(
            configs,
            seeds,
            work_dir,
            cfg_options,
            launch,
            upsamplers,
            folder,
            moved=report_only,
        )
        base = check_baseline(planned, baseline)
        if report_only:
            return report_again(
                planned, work_dir, base, image_groups, figure, folder, metric
            )
        for run in planned if metric != 'bbox' else ():
            plan.check_masks(run)
        if dry_run and in_slurm:
            dry_run_in_slurm(planned, launch, slurm or {}, at_a_time)
            return 0
        if dry_run:
            time_runs(planned, launch, number)
            return 0
        events = start(planned, launch, launcher, at_a_time, slurm or {}, children)
        prepare(planned, work_dir, launch, cfg_options)
        failed = run_all(planned, events, min(at_a_time, len(planned)))
        reported = report_all(
            planned, work_dir, base, image_groups, figure, metric=metric
        )
        if failed:
            print(f'failed: {", ".join(map(title, failed))}', file=sys.stderr)
        return 0 if reported and not failed else 1

    return interruptible(work, in_slurm)


def prepare(
    planned: list[Run],
    work_dir: str | Path,
    launch: Launch,
    cfg_options: Mapping | None,
) -> None:
    """Check inputs and post-training steps before training."""
    left = not all(run.is_over for run in planned)
    if left:
        print('checking data, heads and evaluation', flush=True)
    cache: dict = {}
    configs = {run.stem: run.cfg for run in planned}
    now = {stem: fingerprint(cfg, cache=cache) for stem, cfg in configs.items()}
    for sentence in check_inputs(planned, now):
        print(sentence, file=sys.stderr)
    if left:
        summary.check_before_training(planned)
    plan.begin(work_dir, planned, launch, cfg_options)


def interruptible(work: Callable[[Children], int], in_slurm: bool) -> int:
    """Run a comparison; on a signal, print how to resume it.

    Args:
        work (Callable): Takes the :class:`Children` that a signal ends; returns an
            exit status.
        in_slurm (bool): Whether jobs stay in the queue.

    Returns:
        int: That status, 128 plus the number of the signal, or 1 on a full disk.
    """
    children = Children()
    try:
        with stopped_by_signals(children):
            return work(children)
    except KeyboardInterrupt as error:
        number = getattr(error, 'number', signal.SIGINT)
        kept = ', and jobs stay in the queue of Slurm' if in_slurm else ''
        print(
            f'\ninterrupted by {signal.Signals(number).name}; the same command goes on'
            f'{kept}',
            file=sys.stderr,
        )
        return 128 + number
    except OSError as error:
        if error.errno not in FULL:
            raise
        print(
            f'{error}\nno space left on the device; what is finished is kept: free '
            f'some, and the same command goes on',
            file=sys.stderr,
        )
        return 1
