"""Time and memory of the steps of a stress test."""

import resource
import time
from collections.abc import Callable


def stopwatch() -> Callable[[str], None]:
    """A function that prints what the step before it took.

    Returns:
        Callable: Takes the name of the step. Prints wall and processor time since its
        last call, in seconds, and the peak memory of the process in GB.
    """
    begun = time.perf_counter(), time.process_time()

    def say(what: str) -> None:
        nonlocal begun
        now = time.perf_counter(), time.process_time()
        passed = [after - before for after, before in zip(now, begun)]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(
            f'{what}: {passed[0]:.1f} s, processor {passed[1]:.1f} s, {peak:.2f} GB',
            flush=True,
        )
        begun = time.perf_counter(), time.process_time()

    return say
