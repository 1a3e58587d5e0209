"""Several runs of a comparison at a time, on this machine."""

from __future__ import annotations

import os
import queue
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from .processes import Children, execute
from .runs import Launch, Run


@dataclass(frozen=True)
class Event:
    """Something that happened to a run.

    Args:
        run (Run): The run.
        line (str): Of progress.
        error (Exception, optional): Why it failed.
        over (bool): Whether it is finished or failed.
    """

    run: Run
    line: str = ''
    error: Exception | None = None
    over: bool = False


def visible_gpus() -> list[str]:
    """The GPUs of this machine as CUDA_VISIBLE_DEVICES names them."""
    number = torch.cuda.device_count()
    named = os.environ.get('CUDA_VISIBLE_DEVICES')
    return named.split(',')[:number] if named else [str(i) for i in range(number)]


def device_slots(jobs: int, processes: int) -> list[dict[str, str]]:
    """Divide this machine among runs.

    Args:
        jobs (int): Runs at a time. One alone keeps the environment as it is.
        processes (int): Of each run: GPUs or, where there is none, cores.

    Returns:
        list[dict[str, str]]: What the environment of each has in addition:
        OMP_NUM_THREADS, an equal share of the cores or less if it is set so, and
        CUDA_VISIBLE_DEVICES where there are GPUs.

    Raises:
        ValueError: If the machine has too few.
    """
    if jobs == 1:
        return [{}]
    gpus, cores = visible_gpus(), len(os.sched_getaffinity(0))
    have, unit = (len(gpus), 'GPUs') if gpus else (cores, 'cores')
    if jobs * processes > have:
        raise ValueError(
            f'--jobs {jobs} with {processes} to a run takes {jobs * processes} {unit}, '
            f'and this machine has {have}; give fewer'
        )
    threads = max(cores // (jobs * processes), 1)
    given = os.environ.get('OMP_NUM_THREADS', '')
    if given.isdigit():
        threads = min(threads, int(given))
    found = [dict(OMP_NUM_THREADS=str(threads)) for _ in range(jobs)]
    for number, slot in enumerate(found if gpus else []):
        own = gpus[number * processes : (number + 1) * processes]
        slot['CUDA_VISIBLE_DEVICES'] = ','.join(own)
    return found


def run_here(
    planned: Sequence[Run],
    launch: Launch,
    slots: Sequence[Mapping[str, str]] = ({},),
    children: Children | None = None,
) -> Generator[Event, None, None]:
    """Train and test runs, as many at a time as there are slots.

    A run that fails does not stop the others. Closed in the middle, as by ctrl-C or
    SIGTERM, it ends the processes of all runs and waits for them.

    Args:
        planned (Sequence[Run]): The runs, started in this order.
        launch (Launch): How the processes of each are started.
        slots (Sequence[Mapping[str, str]]): What :func:`device_slots` found.
        children (Children, optional): Where all of their processes can be killed.

    Yields:
        Event: As it happens; the last of each run is ``over``.
    """
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    free: queue.SimpleQueue[Mapping[str, str]] = queue.SimpleQueue()
    for slot in slots:
        free.put(slot)
    children = children or Children()

    def work(run: Run) -> None:
        slot = free.get()
        try:
            for line in execute(run, launch, slot, children):
                events.put(Event(run, line))
            events.put(Event(run, over=True))
        except Exception as error:
            events.put(Event(run, error=error, over=True))
        finally:
            free.put(slot)

    with ThreadPoolExecutor(len(slots)) as pool:
        for run in planned:
            pool.submit(work, run)
        left = len(planned)
        try:
            while left:
                event = events.get()
                left -= event.over
                yield event
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            children.end()
