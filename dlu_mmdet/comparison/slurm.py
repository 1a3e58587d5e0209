"""Runs of a comparison as Slurm jobs, submitted with submitit."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import time
import zlib
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .jobs import Event
from .processes import PROGRESS, execute, over
from .runs import Launch, Run, directory_lock

COMMANDS = ('sbatch', 'srun', 'squeue', 'scontrol')
#: How a job ends that is no fault of its run: it goes on in another.
INTERRUPTED = ('TIMEOUT', 'PREEMPTED', 'NODE_FAIL', 'BOOT_FAIL')
#: Seconds between two looks at the queue, one for all jobs.
POLL = 10
# looks in a row at which Slurm may not answer
_PATIENCE = 30
# times that a job puts itself back when its time is up
_MAX_TIMEOUTS = 100
# seconds until a signal has reached all processes of a job
_SIGNAL_SECONDS = 5


@dataclass(frozen=True)
class Job:
    """A Slurm job: trains and tests one run, or resumes it.

    submitit pickles it. Before a timeout or preemption submitit calls
    :meth:`checkpoint` and requeues the job.

    Args:
        run (Run): The run.
        launch (Launch): How its processes are started on the node.
    """

    run: Run
    launch: Launch

    def __call__(self) -> None:
        try:
            for line in execute(self.run, self.launch):
                print(line, flush=True)
        except RuntimeError:
            # the training hears Slurm's signal too and may end before submitit's
            # handler is called here
            time.sleep(_SIGNAL_SECONDS)
            raise

    def checkpoint(self):
        """What goes back in the queue: the same, as a run goes on where it is."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def check_available() -> None:
    """Check that jobs can be submitted from this machine.

    Raises:
        ValueError: If a command of Slurm or submitit is missing.
    """
    missing = [command for command in COMMANDS if shutil.which(command) is None]
    if missing:
        raise ValueError(
            f'--launcher slurm: {", ".join(missing)} not found on this machine; give '
            f'the command where jobs are submitted, or leave --launcher out'
        )
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"--launcher slurm needs submitit ({error}); pip install 'submitit>=1.5'"
        ) from error


def sbatch_options(
    given: Mapping[str, str], processes: int, run: Run
) -> dict[str, str]:
    """The sbatch options of a run's job, with underscores for hyphens.

    Args:
        given (Mapping[str, str]): Options of the user; ``time`` in minutes.
        processes (int): Processes of a run; the default of ``gpus_per_node``, which is
            left out where the user gives 0.
        run (Run): The run; names the job.

    Raises:
        ValueError: If there is no time limit in minutes.
    """
    found = dict(nodes='1', gpus_per_node=str(processes))
    found.update((key.replace('-', '_'), value) for key, value in given.items())
    if not found.get('time', '').isdigit():
        raise ValueError(
            f'--slurm time={found.get("time", "")}: the time limit of a job must be '
            f'given, in minutes; a run that takes longer goes on in the same job, '
            f'queued again'
        )
    if found['gpus_per_node'] == '0':
        del found['gpus_per_node']
    return dict(found, job_name=job_name(run))


def job_name(run: Run) -> str:
    """Name of a run's job, from its name, seed and folder."""
    folder = zlib.crc32(str(run.work_dir.resolve()).encode())
    return f'{re.sub("[^A-Za-z0-9_.-]", "-", run.name)}-seed{run.seed}-{folder:08x}'


def _ask(*command: str) -> str:
    """Output of a Slurm command.

    Raises:
        RuntimeError: If the command fails; the message has its output.
    """
    done = subprocess.run(command, text=True, capture_output=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip() or f'{command[0]}: no answer')
    return done.stdout


def queued() -> dict[str, tuple[str, str]]:
    """The user's jobs in the queue: id and state by name.

    Raises:
        RuntimeError: If Slurm does not answer.
    """
    found = {}
    for line in _ask('squeue', '--me', '--noheader', '--format=%i|%j|%T|%r').split(
        '\n'
    ):
        if line.strip():
            number, name, state, reason = line.strip().split('|', 3)
            waits = state == 'PENDING' and reason not in ('None', '')
            found[name] = number, f'{state} ({reason})' if waits else state
    return found


def ended_as(number: str) -> str:
    """Final state of a job, while Slurm keeps its record (MinJobAge)."""
    with contextlib.suppress(RuntimeError):
        shown = _ask('scontrol', '--oneliner', 'show', 'job', number)
        if found := re.search(r'JobState=(\w+)', shown):
            return found.group(1)
    return 'no longer known'


def submit(job: Job, options: Mapping[str, str]) -> str:
    """Submit a job.

    Args:
        job (Job): The job.
        options (Mapping[str, str]): From :func:`sbatch_options`.

    Returns:
        str: The job id.

    Raises:
        ValueError: If Slurm rejects the job; the message has its reason.
    """
    import submitit
    from submitit.core.utils import FailedJobError

    executor = submitit.SlurmExecutor(_folder(job.run), max_num_timeout=_MAX_TIMEOUTS)
    # submitit reads the time itself, to tell its end from a pre-emption
    executor.update_parameters(
        time=int(options['time']),
        stderr_to_stdout=True,
        additional_parameters=dict(options),
    )
    words = io.StringIO()
    try:
        with contextlib.redirect_stderr(words):
            return executor.submit(job).job_id
    except FailedJobError as error:
        reason = ' '.join(str(error).split())
        raise ValueError(
            f'Slurm refuses the job of {job.run.name} seed {job.run.seed}: {reason}; '
            f'see --slurm'
        ) from None


def _folder(run: Run) -> Path:
    """Logs and pickles of a run's jobs."""
    return run.work_dir / 'slurm'


def _last_line(run: Run) -> str:
    """The last line of progress in a run's logs."""
    logs = [run.work_dir / f'{step}.log' for step in ('train', 'test')]
    logs = [log for log in logs if log.exists()]
    if not logs:
        return ''
    with max(logs, key=lambda log: log.stat().st_mtime).open('rb') as file:
        file.seek(max(file.seek(0, os.SEEK_END) - 4096, 0))
        text = file.read().decode(errors='replace')
    found = [match.group() for match in PROGRESS.finditer(text)]
    return ' '.join(found[-1].split()) if found else ''


def _end_of_log(run: Run, number: str) -> str:
    log = _folder(run) / f'{number}_0_log.out'
    if not log.exists():
        return f'there is no {log}'
    lines = log.read_text(encoding='utf-8', errors='replace').splitlines()
    return f'the end of {log}:\n' + '\n'.join(lines[-20:])


@dataclass
class _Queued:
    """A job in the queue.

    Args:
        run (Run): Its run.
        number (str): The job id.
        began (Path | None): The run's checkpoint when the job was submitted.
        said (str): The last progress line.
        missed (int): Consecutive polls in which the job was not in the queue.
    """

    run: Run
    number: str
    began: Path | None
    said: str = ''
    missed: int = 0


def run_in_slurm(
    planned: Sequence[Run],
    launch: Launch,
    at_a_time: int,
    given: Mapping[str, str],
) -> Generator[Event, None, None]:
    """Train and test runs as Slurm jobs.

    Jobs of these runs that are already in the queue, from an earlier command, are
    followed. Closing the generator leaves all jobs in the queue.

    Args:
        planned (Sequence[Run]): The runs, submitted in this order.
        launch (Launch): How the processes of each are started on its node.
        at_a_time (int): Maximum number of jobs in the queue.
        given (Mapping[str, str]): As for :func:`sbatch_options`.

    Yields:
        Event: Progress; the last event of each run is ``over``.

    Raises:
        RuntimeError: If Slurm does not answer, or another process follows these runs.
        ValueError: If Slurm refuses a job.
    """
    root = planned[0].work_dir.parents[1]
    active: list[_Queued] = []
    waiting: deque[Run] = deque()
    with directory_lock(root):
        yield from _find_again(planned, active, waiting)
        silent = 0
        while active or waiting:
            while waiting and len(active) < at_a_time:
                run = waiting.popleft()
                job = Job(run, launch)
                number = submit(job, sbatch_options(given, launch.processes, run))
                active.append(_Queued(run, number, run.checkpoint))
                yield Event(run, f'job {number} submitted')
            time.sleep(POLL)
            try:
                listed, silent = queued(), 0
            except RuntimeError:
                # it may be on its way back
                silent += 1
                if silent > _PATIENCE:
                    raise
                continue
            for each in list(active):
                yield from _look(each, listed)
                if not each.run.is_over and each.missed < 2:
                    continue
                active.remove(each)
                events, again = _end(each)
                yield from events
                if again:
                    waiting.appendleft(each.run)


def _find_again(
    planned: Sequence[Run], active: list[_Queued], waiting: deque[Run]
) -> Generator[Event, None, None]:
    """Which runs are over, in the queue or to be submitted."""
    listed = queued()
    for run in planned:
        if run.is_over:
            yield Event(run, over(run))
            yield Event(run, over=True)
        elif job_name(run) in listed:
            active.append(_Queued(run, listed[job_name(run)][0], run.checkpoint))
        else:
            waiting.append(run)


def _end(job: _Queued) -> tuple[list[Event], bool]:
    """Events of a job that has left the queue, and whether it is resubmitted."""
    run = job.run
    if run.is_over:
        said = [Event(run, over(run))] if run.state == 'diverged' else []
        return [*said, Event(run, over=True)], False
    state = ended_as(job.number)
    if state in INTERRUPTED and run.checkpoint != job.began:
        return [Event(run, f'job {job.number} ended as {state}')], True
    error = RuntimeError(
        f'job {job.number} ended as {state}, and the run is {run.state}; the same '
        f'command submits it again; {_end_of_log(run, job.number)}'
    )
    return [Event(run, error=error, over=True)], False


def _look(
    job: _Queued, listed: Mapping[str, tuple[str, str]]
) -> Generator[Event, None, None]:
    """New progress of a job; counts the polls that do not find it."""
    name = job_name(job.run)
    if name not in listed:
        # the files of a node may be seen here later than its end
        job.missed += 1
        return
    job.missed = 0
    job.number, state = listed[name]
    line = f'job {job.number} {state}'
    if state == 'RUNNING':
        line = f'{line}: {_last_line(job.run)}'.rstrip(': ')
    if line != job.said:
        job.said = line
        yield Event(job.run, line)
