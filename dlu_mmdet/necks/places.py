"""Where a neck enlarges its maps, found by running it; and others doing it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..upsamplers import upsample_to


class Place(NamedTuple):
    """One call of ``torch.nn.functional.interpolate`` that enlarges a map.

    Attributes:
        channels (int): Channels of the map.
        scale_factor (int): The ratio of its sides, at least 2.
    """

    channels: int
    scale_factor: int


class Trial(NamedTuple):
    """What a neck did with maps of zeros.

    Attributes:
        calls (list[Place | None]): Every call of ``interpolate``, in order;
            None where no upsampler can take over.
        outputs (list): What the neck returned, for each size tried.
    """

    calls: list[Place | None]
    outputs: list

    @property
    def places(self) -> list[Place]:
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
        self.shapes = []

    def call(self, input: Tensor, *args, **kwargs) -> Tensor:
        out = F.interpolate(input, *args, **kwargs)
        self.shapes.append((input.shape, out.shape))
        return out


class Replacement(_Calls):
    """Hands every call that enlarges a map to an upsampler of its own.

    Args:
        upsamplers (Sequence[nn.Module]): In the order of the places.
        calls (Sequence[Place | None]): As in :class:`Trial`.
    """

    def __init__(
        self, upsamplers: Sequence[nn.Module], calls: Sequence[Place | None]
    ) -> None:
        super().__init__()
        self.upsamplers = upsamplers
        self.calls = calls
        self.used = 0

    def call(self, input: Tensor, size=None, scale_factor=None, *args, **kwargs):
        place = self.calls[self.count - 1] if self.count <= len(self.calls) else None
        if place is None:
            return F.interpolate(input, size, scale_factor, *args, **kwargs)
        upsampler = self.upsamplers[self.used]
        self.used += 1
        height, width = input.shape[2:]
        if size is None:
            s = place.scale_factor
            size = (s * height, s * width)
        elif isinstance(size, int):
            size = (size, size)
        return upsample_to(upsampler, input, tuple(size))


def try_neck(neck: nn.Module, inputs: Sequence[tuple]) -> Trial:
    """Run a neck on maps of zeros and see where it enlarges them.

    It runs in eval mode and without gradients, and its modules' training
    flags are put back: nothing of it changes.

    Args:
        neck (nn.Module): Any neck.
        inputs (Sequence[tuple]): What its forward takes, once for each of
            several sizes. A ratio that differs between them is no place.

    Returns:
        Trial: Calls and outputs.

    Raises:
        ValueError: If the number of calls depends on the size.
    """
    flags = {module: module.training for module in neck.modules()}
    try:
        for module in flags:
            module.training = False  # train() may be overridden, to freeze parts
        shapes, outputs = [], []
        for maps in inputs:
            with torch.no_grad(), _Recorder() as recorder:
                outputs.append(neck(*maps))
            shapes.append(recorder.shapes)
    finally:
        for module, training in flags.items():
            module.training = training
    counts = [len(calls) for calls in shapes]
    if len(set(counts)) > 1:
        raise ValueError(
            f'{type(neck).__name__} interpolates {" or ".join(map(str, counts))} '
            'times, depending on the size of its maps; an upsampler needs a place '
            'that every input has'
        )
    return Trial([_place(*same_call) for same_call in zip(*shapes)], outputs)


def _place(*shapes: tuple[torch.Size, torch.Size]) -> Place | None:
    """The place of a call, given its shapes at several sizes."""
    ratios = set()
    for source, target in shapes:
        if len(source) != 4:
            return None
        for before, after in zip(source[2:], target[2:]):
            ratios.add(after // before if after % before == 0 else None)
    ratio = ratios.pop()
    if ratios or ratio is None or ratio < 2:
        return None
    return Place(shapes[0][0][1], ratio)
