"""Run several trainings of a comparison in parallel on this machine."""

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
    """Progress of a run.

    Args:
        run (Run): The run.
        line (str): A line of progress.
        error (Exception, optional): Why the run failed.
        over (bool): Whether the run has finished or failed.
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
    """Divide GPUs and cores among parallel runs.

    Args:
        jobs (int): Number of runs at a time. With 1 the environment stays as it is.
        processes (int): Processes of each run, one a GPU or, without GPUs, one a core.

    Returns:
        list[dict[str, str]]: Environment variables of each slot: OMP_NUM_THREADS, an
        equal share of the cores or its current value if lower, and, with GPUs,
        CUDA_VISIBLE_DEVICES.

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
    """Train and test runs in parallel, one in each slot.

    A run that fails does not stop the others. Closing the generator, as after ctrl-C
    or SIGTERM, ends the subprocesses of all runs and waits for them.

    Args:
        planned (Sequence[Run]): The runs, started in this order.
        launch (Launch): How the processes of each are started.
        slots (Sequence[Mapping[str, str]]): From :func:`device_slots`.
        children (Children, optional): Keeps the subprocesses of all runs.

    Yields:
        Event: Progress; the last event of each run is ``over``.
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
