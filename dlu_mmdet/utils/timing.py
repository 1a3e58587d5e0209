"""Time and memory of actions, beside each other."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence

import torch

from .torch_compat import started_at

SLOW = 5.0  # seconds; what takes longer runs once
BURST = 5e-3  # seconds of calls that a run on a GPU takes together


def _synchronize(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def _seconds(action: Callable[[], object], calls: int, device: torch.device) -> float:
    """Seconds of one call, of ``calls`` in a row."""
    _synchronize(device)
    if device.type == 'cuda':
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            action()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3 / calls
    began = time.perf_counter()
    for _ in range(calls):
        action()
    return (time.perf_counter() - began) / calls


def interleaved(
    actions: Sequence[Callable[[], object]], rounds: int, device: torch.device
) -> list[tuple[float, float]]:
    """Median and least seconds of each action, one run of each a round.

    A round goes before, to warm up. What takes over ``SLOW`` seconds runs once.
    """
    times: list[list[float]] = [[] for _ in actions]
    for _ in range(rounds + 1):
        for action, taken in zip(actions, times):
            if taken and taken[0] > SLOW:
                continue
            calls = 1
            if taken and device.type == 'cuda':
                calls = min(max(int(BURST / taken[-1]), 1), 50)
            taken.append(_seconds(action, calls, device))
    kept = [taken[1:] or taken for taken in times]
    return [(statistics.median(taken), min(taken)) for taken in kept]


def capture(action: Callable[[], object]) -> tuple[torch.cuda.CUDAGraph, object]:
    """Record the launches of an action as a CUDA graph.

    Args:
        action (Callable): Run three times to warm up, and once to record.

    Returns:
        tuple[CUDAGraph, object]: The graph, and the result that a replay fills.

    Raises:
        RuntimeError: If the action does what a graph cannot hold.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            action()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = action()
    return graph, result


def peak_memory(action: Callable[[], object], device: torch.device) -> int:
    """Bytes that an action adds at its peak, what it returns included."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        kept = action()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device) - before
        del kept
        return peak
    # above the level of what it prints about its own beginning and end
    os.environ.setdefault('KINETO_LOG_LEVEL', '6')
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        kept = action()
    events = [
        event
        for event in profile.profiler.kineto_results.events()
        if event.name() == '[memory]'
    ]
    live = peak = 0
    for event in sorted(events, key=started_at):
        live += event.nbytes()
        peak = max(peak, live)
    del kept
    return peak
