"""Train and test runs in subprocesses."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shlex
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..engine import read_divergence
from ..utils.tables import to_json
from .collect import collect_result
from .inputs import check_inputs, differing, fingerprint
from .runs import ALONE, Launch, Run, directory_lock, write

#: What mmengine logs of training and tests, from where it is in them.
PROGRESS = re.compile(r'(Epoch|Iter)\((train|val|test)\).*')
#: Nothing can be written: the disk is full, or the share of it that a user has.
FULL = (errno.ENOSPC, errno.EDQUOT)
#: Seconds that processes have to end before they are killed.
GRACE = 60


def _started_at(pid: int) -> str:
    """Start time of a process, which identifies it if its id is reused."""
    with contextlib.suppress(OSError):
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]
    return ''


def _family(pid: int) -> dict[int, str]:
    """A process and all that it has started, with the time of each."""
    found = [pid]
    for each in found:
        for file in Path(f'/proc/{each}/task').glob('*/children'):
            with contextlib.suppress(OSError):
                found += map(int, file.read_text().split())
    return {each: _started_at(each) for each in found}


class Children:
    """The subprocesses of runs, so that another thread can end them.

    Their own children are ended too: those of torchrun and workers of data loaders.
    """

    def __init__(self) -> None:
        # a handler of signals may call these in the middle of them
        self._lock = threading.RLock()
        self._started: list[subprocess.Popen] = []
        self._known: dict[int, str] = {}
        self._ended = False

    def start(self, command: list[str], **how: Any) -> subprocess.Popen:
        """Start a process with the arguments of :class:`subprocess.Popen`.

        Raises:
            RuntimeError: If all were ended before.
        """
        with self._lock:
            if self._ended:
                raise RuntimeError(f'{shlex.join(command)} is not started any more')
            self._started.append(subprocess.Popen(command, **how))
            return self._started[-1]

    def end(self) -> None:
        """Terminate those that still run, and start no more.

        What is still there after :data:`GRACE` seconds is killed.
        """
        self._send(signal.SIGTERM)
        if self._known:
            timer = threading.Timer(GRACE, self.kill)
            timer.daemon = True
            timer.start()

    def kill(self) -> None:
        """Kill those that still run, and start no more."""
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        with self._lock:
            self._ended = True
            for process in self._started:
                if process.poll() is None:
                    self._known.update(_family(process.pid))
            for pid, started in self._known.items():
                if started == _started_at(pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)


def _follow(
    command: list[str],
    log: Path,
    lock: int,
    environment: Mapping[str, str] | None = None,
    children: Children | None = None,
) -> Iterator[str]:
    """Run a command, keep its output in a log, yield the lines of progress."""
    with log.open('w', encoding='utf-8') as file:
        process = (children or Children()).start(
            command,
            env={**os.environ, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding='utf-8',
            errors='replace',
            pass_fds=[lock],
        )
        output: Any = process.stdout  # a pipe
        try:
            for line in output:
                file.write(line)
                file.flush()
                if found := PROGRESS.search(line):
                    yield ' '.join(found.group().split())
            process.wait()
        finally:
            # stopped from outside, or the log cannot be written
            if process.poll() is None:
                for pid in _family(process.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGTERM)
                process.wait()
            output.close()
    if process.returncode:
        tail = ''.join(log.read_text(encoding='utf-8').splitlines(keepends=True)[-20:])
        for number in FULL:
            if os.strerror(number) in tail:
                raise OSError(number, f'the end of {log}:\n{tail}')
        raise RuntimeError(
            f'{shlex.join(command)} failed with status '
            f'{process.returncode}; the end of {log}:\n{tail}'
        )


def execute(
    run: Run,
    launch: Launch = ALONE,
    environment: Mapping[str, str] | None = None,
    children: Children | None = None,
) -> Iterator[str]:
    """Train and test one run in subprocesses.

    A finished or diverged run is left as it is. A half-finished one resumes from its
    last checkpoint.

    Args:
        run (Run): The run.
        launch (Launch): How its processes are started.
        environment (Mapping[str, str], optional): Additional environment variables.
        children (Children, optional): Keeps the subprocesses, so that another thread
            can end them.

    Yields:
        str: Lines of progress.

    Raises:
        OSError: If there is no space left.
        RuntimeError: If a subprocess fails (the message has the end of its log), or
            another process works in the folder.
        ValueError: If the file system has no locks, or files that the run reads have
            changed since the comparison began.
    """
    if run.is_over:
        yield over(run)
        return
    run.work_dir.mkdir(parents=True, exist_ok=True)
    with directory_lock(run.work_dir) as lock:
        write(run.config, run.cfg.pretty_text)
        inputs = _note_inputs(run)
        if run.checkpoint:
            yield f'goes on from {run.checkpoint}'
        for step in ('train', 'test'):
            # of a comparison that was killed before it could say so
            if read_divergence(run.work_dir):
                break
            command = getattr(launch, step)(run)
            log = run.work_dir / f'{step}.log'
            try:
                yield from _follow(command, log, lock, environment, children)
            except RuntimeError:
                if not read_divergence(run.work_dir):
                    raise
        if (now := fingerprint(run.cfg)) != inputs:
            # its checkpoints are of both, so that it cannot go on from them
            write(run.work_dir / 'inputs.json', to_json(now))
            raise ValueError(
                f'files were changed while {run.work_dir} was trained and tested on '
                f'them; remove it, and the same command begins it anew. They differ '
                f'in\n{differing(inputs, now)}'
            )
        write(run.result_file, to_json({**collect_result(run), 'inputs': inputs}))
    if run.state == 'diverged':
        yield over(run)


def over(run: Run) -> str:
    """One sentence on how a run ended."""
    if (result := run.result) and result.diverged:
        return (
            f'diverged at iteration {result.diverged.iteration}, and is left out: '
            f'{result.diverged.reason}; remove {run.work_dir} to train it again'
        )
    return f'finished already: {run.result_file}'


def _note_inputs(run: Run) -> dict[str, str]:
    """Store the fingerprint of a run; refuse one that differs from other runs'."""
    comparison = run.work_dir.parents[1]
    others = [
        replace(run, stem=folder.parent.name, work_dir=folder)
        for folder in sorted(comparison.glob('*/seed*/'))
    ]
    found = fingerprint(run.cfg)
    check_inputs(others, {run.stem: found})
    write(run.work_dir / 'inputs.json', to_json(found))
    return found
