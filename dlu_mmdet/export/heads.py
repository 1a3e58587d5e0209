"""The heads of a detector that read its pyramid and nothing else, for an export."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from mmengine.utils import apply_to
from torch import Tensor, nn

#: What makes the pyramid, by the names that mmdet's detectors have for it
FEATURES = ('data_preprocessor', 'backbone', 'neck')


@dataclass(frozen=True)
class _Map:
    """A map of the pyramid among the arguments of a call, 0 the finest."""

    level: int


@dataclass(frozen=True)
class Call:
    """A call of a module with maps of the pyramid and nothing else.

    Attributes:
        name (str): Of the module, as in ``named_modules()``.
        args (tuple): With :class:`_Map` for each map.
        kwargs (dict): Likewise.
    """

    name: str
    args: tuple
    kwargs: Mapping[str, object]

    def run(self, model: nn.Module, pyramid: Sequence[Tensor]) -> object:
        """Call the module of a detector on a pyramid."""
        args, kwargs = apply_to(
            (self.args, self.kwargs),
            lambda value: isinstance(value, _Map),
            lambda value: pyramid[value.level],
        )
        return model.get_submodule(self.name)(*args, **kwargs)


class _Watch:
    """What a detector runs on its pyramid alone, while it detects in an image.

    Where a module takes detections too, as YOLACT's mask head does, it is the modules
    inside that count: the one that makes the prototypes. Modules without weights, such
    as positional encodings, do not count.

    Attributes:
        pyramid (list[Tensor]): Of the image.
        calls (list[Call]): In their order.
        problem (Exception, optional): What kept the detector from detecting.
        complete (bool): Whether the pyramid and all these calls came to their end.
    """

    def __init__(self, model: nn.Module, divisor: int) -> None:
        self.pyramid: list[Tensor] = []
        self.calls: list[Call] = []
        self.problem: Exception | None = None
        self.complete = False
        self._busy = False  # in a module whose inner calls do not count
        with ExitStack() as stack, torch.no_grad():
            for name, child in model.named_modules():
                if name and name.split('.')[0] not in FEATURES and _weighs(child):
                    forward = self._watched(name, child.forward)
                    stack.enter_context(patch.object(child, 'forward', forward))
            # of one unit, the smallest image that an exported model takes
            image = torch.zeros(1, 3, divisor, 2 * divisor)
            try:
                extract = self._extracted(model.extract_feat)
                stack.enter_context(patch.object(model, 'extract_feat', extract))
                sample = DetDataSample(metainfo=metas_of(image))
                model.predict(image, [sample], rescale=False)
            except Exception as error:  # whatever a detector says to an image alone
                self.problem = error

    def _extracted(self, extract_feat: Callable) -> Callable:
        def extract(image: Tensor) -> Sequence[Tensor]:
            self.pyramid[:] = extract_feat(image)
            self.complete = True
            return tuple(self.pyramid)

        return extract

    def _watched(self, name: str, forward: Callable) -> Callable:
        def call(*args, **kwargs):
            levels = {id(x): level for level, x in enumerate(self.pyramid)}
            tensors = list(flat([args, kwargs]))
            if self._busy or not any(id(x) in levels for x in tensors):
                return forward(*args, **kwargs)
            others = [x for x in tensors if id(x) not in levels]
            others += _objects([args, list(kwargs.values())])
            if others and all(isinstance(each, InstanceData) for each in others):
                return forward(*args, **kwargs)
            self._busy = True
            self.complete = bool(others)
            try:
                out = forward(*args, **kwargs)
            finally:
                self._busy = False
            self.complete = True
            if not others:
                found = apply_to(
                    (args, kwargs), torch.is_tensor, lambda x: _Map(levels[id(x)])
                )
                if Call(name, *found) not in self.calls:
                    self.calls.append(Call(name, *found))
            return out

        return call


def find_calls(model: nn.Module, divisor: int) -> tuple[Sequence[Tensor], list[Call]]:
    """Find what a detector runs on its pyramid alone, by letting it detect.

    Args:
        model (nn.Module): A detector in eval mode.
        divisor (int): Pixels in a side of the smallest image that it is to take.

    Returns:
        tuple[Sequence[Tensor], list[Call]]: The pyramid of an image, and the calls.

    Raises:
        ValueError: If the detector cannot be run, or runs nothing on it alone.
    """
    watch, name = _Watch(model, divisor), type(model).__name__
    problem = watch.problem or LookupError('it does not call extract_feat')
    if not watch.complete:
        raise ValueError(
            f'{name} cannot be run on an image of {divisor} x {2 * divisor} pixels '
            f'({reason_of(problem)}){larger_divisor(model, divisor, problem)}'
        )
    if not watch.calls:
        reason = reason_of(problem) if watch.problem else 'they take more than maps'
        neck = '; take the part "neck"' if getattr(model, 'neck', None) else ''
        raise ValueError(
            f'{name} has no heads that read the maps of its pyramid alone ({reason}), '
            f'so there is no part "detector"{neck}'
        )
    return watch.pyramid, watch.calls


def larger_divisor(model: nn.Module, divisor: int, problem: Exception) -> str:
    """What to do where images are too small for a detector: the end of a sentence."""
    if isinstance(problem, RuntimeError):
        for larger in (2 * divisor, 4 * divisor, 8 * divisor, 16 * divisor):
            if _Watch(model, larger).complete:
                return f'; use --divisor {larger}'
    return ''


def _weighs(module: nn.Module) -> bool:
    """Whether there are weights in a module."""
    return next(module.parameters(), None) is not None


def metas_of(images: Tensor) -> dict[str, object]:
    """What a detector asks of images (B, 3, H, W) that nothing was done to."""
    size = height, width = tuple(images.shape[2:])
    metas = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape'), size)
    border = (0, height, 0, width)
    return dict(
        metas, batch_input_shape=size, scale_factor=(1.0, 1.0), border=border, img_id=0
    )


def _objects(value: object) -> Iterator[object]:
    """What there is in arguments beside tensors, numbers and texts."""
    if isinstance(value, (list, tuple)):
        for inner in value:
            yield from _objects(inner)
    elif not isinstance(value, (Tensor, int, float, str, type(None))):
        yield value


def without(module: nn.Module, held: set[str], name: str = '') -> Iterator[str]:
    """Find the weights that an exported model does not hold.

    Args:
        module (nn.Module): The detector.
        held (set[str]): Names of the modules that it holds.
        name (str): Of ``module``, with a dot behind it; for inner calls.

    Yields:
        str: Names of the outermost modules whose weights it lacks.
    """
    for own, child in module.named_children():
        path = f'{name}{own}'
        if path in held:
            continue
        if any(other.startswith(f'{path}.') for other in held):
            yield from without(child, held, f'{path}.')
        elif _weighs(child):
            yield path


def names_of(
    model: nn.Module, pyramid: Sequence[Tensor], calls: Sequence[Call]
) -> list[str]:
    """Name what heads give: by the arguments of what decodes it, or by the module.

    Args:
        model (nn.Module): The detector.
        pyramid (Sequence[Tensor]): Of any image.
        calls (Sequence[Call]): From :func:`find_calls`.

    Returns:
        list[str]: A name for each tensor, such as ``cls_scores.0``.
    """
    names: list[str] = []
    out: Any
    for number, call in enumerate(calls):
        with torch.no_grad():
            out = call.run(model, pyramid)
        decode = getattr(model, call.name, None)
        decode = getattr(decode, 'predict_by_feat', None)
        known = list(inspect.signature(decode).parameters) if decode else []
        if isinstance(out, Mapping):
            parts = {f'{call.name}.{key}': value for key, value in out.items()}
        elif isinstance(out, Tensor):
            parts = {call.name: out}
        else:
            parts = dict(zip(known, out))
            parts.update(
                (f'{call.name}.{i}', out[i]) for i in range(len(parts), len(out))
            )
        own = [
            f'{name}.{level}'
            for name, value in parts.items()
            for level, _ in enumerate(flat(value))
        ]
        twice = {*own} & {*names}
        names += [f'{call.name}.call{number}.{name}' for name in own] if twice else own
    return names


def flat(value: object) -> Iterator[Tensor]:
    """The tensors in lists, tuples and mappings, in their order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from flat(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from flat(inner)


def reason_of(error: BaseException) -> str:
    """An error in one line."""
    # torch.export says in the second line what it means by the first
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f'{type(error).__name__}: {" ".join(lines[:2])}'
