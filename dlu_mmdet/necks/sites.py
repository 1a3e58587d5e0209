"""Find a neck's interpolations by a trial run, and replace them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..upsamplers import interpolation_name, trial_of, upsample_to
from ..utils.torch_compat import is_compiling


class Site(NamedTuple):
    """One call of ``torch.nn.functional.interpolate`` that enlarges a map.

    Attributes:
        channels (int): Channels of the map.
        scale_factor (int): The ratio of its sides, at least 2.
        interpolation (str): What it is enlarged by, see
            :func:`dlu_mmdet.upsamplers.interpolation_name`.
    """

    channels: int
    scale_factor: int
    interpolation: str


class NeckTrace(NamedTuple):
    """What a neck did with maps of zeros.

    Attributes:
        calls (list[Site | None]): Every call of ``interpolate``, in order;
            None where no upsampler can take over.
        outputs (list): What the neck returned, for each size tried.
    """

    calls: list[Site | None]
    outputs: list

    @property
    def sites(self) -> list[Site]:
        """The calls that upsamplers can take over, in order."""
        return [call for call in self.calls if call is not None]


class _Calls(TorchFunctionMode):
    """Within it, ``interpolate`` is :meth:`call`, whoever calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is not F.interpolate:
            return func(*args, **kwargs)
        self.count += 1
        return self.call(*args, **kwargs)


class _Recorder(_Calls):
    """Writes down the maps that go in and come out."""

    def __init__(self) -> None:
        super().__init__()
        self.records = []

    def call(
        self,
        input: Tensor,
        size=None,
        scale_factor=None,
        mode='nearest',
        align_corners=None,
        *args,
        **kwargs,
    ) -> Tensor:
        out = F.interpolate(
            input, size, scale_factor, mode, align_corners, *args, **kwargs
        )
        name = interpolation_name(mode, align_corners)
        self.records.append((input.shape, out.shape, name))
        return out


class _Replacement(_Calls):
    """Hands every call that enlarges a map to an upsampler of its own."""

    def __init__(
        self,
        upsamplers: Sequence[nn.Module],
        calls: Sequence[Site | None],
        count: int,
    ) -> None:
        super().__init__()
        self.upsamplers = upsamplers
        self.calls = calls
        self.count = count
        self.with_gradients = torch.is_grad_enabled()
        self.followed = []

    def call(self, input: Tensor, size=None, scale_factor=None, *args, **kwargs):
        site = self.calls[self.count - 1] if self.count <= len(self.calls) else None
        before = sum(call is not None for call in self.calls[: self.count - 1])
        upsampler = None if site is None else self.upsamplers[before]
        if self.with_gradients and not is_compiling():
            self._follow(upsampler)
        if site is None or upsampler is None:
            return F.interpolate(input, size, scale_factor, *args, **kwargs)
        s = site.scale_factor
        if size is None:
            size = (s * input.shape[2], s * input.shape[3])
        elif isinstance(size, int):
            size = (size, size)
        return upsample_to(upsampler, input, tuple(size), scale_factor=s)

    def _follow(self, upsampler: nn.Module | None) -> None:
        """Let what the backward runs again count on from this call, as now."""
        holders = list(_recomputed(self))
        for holder, name in holders:
            if not any(holder is other for other in self.followed):
                self.followed.append(holder)
                setattr(holder, name, self._again(getattr(holder, name)))
        if holders or torch.is_grad_enabled() or upsampler is None:
            return
        if any(weight.requires_grad for weight in upsampler.parameters()):
            raise RuntimeError(
                f'the upsampler {type(upsampler).__name__} is called without gradients '
                'by a neck that has them, and would not learn: recompute with '
                'torch.utils.checkpoint, or the neck as a whole, and do not '
                'interpolate under torch.no_grad'
            )

    def _again(self, function: Callable) -> Callable:
        state = (self.upsamplers, self.calls, self.count - 1)
        return lambda *args, **kwargs: run_replaced(function, args, kwargs, *state)[0]


def run_replaced(
    function: Callable,
    args: tuple,
    kwargs: dict,
    upsamplers: Sequence[nn.Module],
    calls: Sequence[Site | None],
    count: int = 0,
) -> tuple[object, int]:
    """Call a function in which upsamplers enlarge maps instead of ``interpolate``.

    What it recomputes in the backward (``torch.utils.checkpoint``) meets the same ones.

    Args:
        function (Callable): A neck's forward, or a part of it.
        args (tuple): Its arguments.
        kwargs (dict): Its keyword arguments.
        upsamplers (Sequence[nn.Module]): In the order of the sites.
        calls (Sequence[Site | None]): As in :class:`NeckTrace`.
        count (int): How many of these calls come before. Defaults to 0.

    Returns:
        tuple[object, int]: What the function gives, and the count of calls after it.

    Raises:
        RuntimeError: If an upsampler would not learn, since the neck interpolates
            without gradients.
        ValueError: If an upsampler gives another size than it must.
    """
    replacement = _Replacement(upsamplers, calls, count)
    with replacement:
        out = function(*args, **kwargs)
    return out, replacement.count


def _recomputed(replacement: _Replacement) -> Iterator[tuple[object, str]]:
    """Find what the backward will run again: an object that holds it, under which name.

    ``torch.utils.checkpoint`` has no hook for this, hence the look at the functions
    that are running. Other packages keep it as its reentrant form does.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        # the other frames' variables would live on in what f_locals gives
        names = {'replacement', 'ctx', 'gen'}.intersection(frame.f_code.co_varnames)
        variables = frame.f_locals if names else {}
        if (
            frame.f_code is run_replaced.__code__
            and variables.get('replacement') is replacement
        ):
            return
        context, generator = variables.get('ctx'), variables.get('gen')
        if hasattr(context, 'run_function'):
            yield context, 'run_function'
        if running := getattr(generator, 'gi_frame', None):
            checkpoint = running.f_locals.get('new_frame')
            if hasattr(checkpoint, 'recompute_fn'):
                yield checkpoint, 'recompute_fn'
        frame = frame.f_back


def trace_neck(neck: nn.Module, inputs: Sequence[tuple]) -> NeckTrace:
    """Run a neck on maps of zeros and see where it enlarges them.

    It runs in eval mode and without gradients: nothing of it changes.

    Args:
        neck (nn.Module): Any neck.
        inputs (Sequence[tuple]): What its forward takes, once for each of
            several sizes. A ratio that differs between them is no site.

    Returns:
        NeckTrace: Calls and outputs.

    Raises:
        ValueError: If the number of calls depends on the size.
    """
    records, outputs = [], []
    for maps in inputs:
        with trial_of(neck), _Recorder() as recorder:
            outputs.append(neck(*maps))
        records.append(recorder.records)
    counts = [len(calls) for calls in records]
    if len(set(counts)) > 1:
        raise ValueError(
            f'{type(neck).__name__} interpolates {" or ".join(map(str, counts))} '
            'times, depending on the size of its maps; an upsampler needs a site '
            'that every input has'
        )
    return NeckTrace([_site(*same_call) for same_call in zip(*records)], outputs)


def _site(*records: tuple[torch.Size, torch.Size, str]) -> Site | None:
    """The site of a call, given its records at several sizes."""
    ratios = set()
    for source, target, _ in records:
        if len(source) != 4:
            return None
        for before, after in zip(source[2:], target[2:]):
            ratios.add(after // before if after % before == 0 else None)
    ratio = ratios.pop()
    if ratios or ratio is None or ratio < 2:
        return None
    shape, _, interpolation = records[0]
    return Site(shape[1], ratio, interpolation)
