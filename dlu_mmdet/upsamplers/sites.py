"""Find a module's interpolations by a trial run, and replace them."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..utils.torch_compat import is_compiling
from .builder import build_upsampler
from .resize import check_ratio, trial_of, upsample_to
from .start import interpolation_name, resolve_start

if TYPE_CHECKING:
    from torch.nn import Module as _Wrapped
else:
    _Wrapped = object


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


class Recorder(_Calls):
    """Records every call, as :func:`find_site` takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[tuple[torch.Size, torch.Size, str]] = []

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


class SitesMixin(_Wrapped):
    """A module in which ``upsample_modules`` replace calls of ``interpolate``.

    Attributes:
        upsample_calls (list[Site | None], optional): As in :class:`NeckTrace`; None
            while the calls are not known.
        upsample_modules (nn.ModuleList): One upsampler for each site, in their order.
    """

    upsample_calls: list[Site | None] | None = None
    upsample_modules: Any

    def forward(self, *args, **kwargs):
        """Forward of the module, with its upsamplers at their sites."""
        if self.upsample_calls is None:  # it is being tried
            return super().forward(*args, **kwargs)
        out, count = run_replaced(
            super().forward, args, kwargs, self.upsample_modules, self.upsample_calls
        )
        if count != len(self.upsample_calls):
            raise RuntimeError(
                f'{type(self).__name__} interpolated {count} times '
                f'and not {len(self.upsample_calls)}, as it did when its sites were '
                'found; upsamplers cannot be told apart where that depends on the '
                'input, where a neck calls itself, or where torch.compile meets '
                'activation checkpointing'
            )
        return out


@functools.cache
def wrap_class(cls: Any, mixin: Any = SitesMixin) -> Any:
    """Make the subclass of a class of modules that has a mixin before it.

    Its ``wrapped`` are both of them.
    """
    members = dict(
        wrapped=(cls, mixin),
        __module__=cls.__module__,
        __doc__=cls.__doc__,
        # pickle and deepcopy look classes up by name; this one is made
        __reduce__=lambda self: (_empty, self.wrapped, self.__dict__),
    )
    return type(cls.__name__, (mixin, cls), members)


def _empty(cls: Any, mixin: Any) -> nn.Module:
    cls = wrap_class(cls, mixin)
    return cls.__new__(cls)


def build_at_site(
    name: str, upsample_cfg: dict, site: Site, guide_channels: int | None = None
) -> nn.Module:
    """Build an upsampler and check its ratio; errors name the site.

    Args:
        name (str): The site, for errors.
        upsample_cfg (dict): As :func:`dlu_mmdet.upsamplers.build_upsampler`. A
            ``start`` of 'neck' is the interpolation of the site.
        site (Site): What it replaces.
        guide_channels (int, optional): Channels of the guide.

    Returns:
        nn.Module: The upsampler.

    Raises:
        TypeError: As :func:`dlu_mmdet.upsamplers.build_upsampler`.
        ValueError: If the upsampler does not fit the site or has another ratio.
    """
    channels, scale_factor, interpolation = site
    try:
        cfg = resolve_start(upsample_cfg, interpolation)
        upsampler = build_upsampler(cfg, channels, scale_factor, guide_channels)
        check_ratio(upsampler, channels, scale_factor, guide_channels)
    except ValueError as error:
        raise ValueError(
            f'{name}, for {channels} channels and a ratio of {scale_factor}: {error}'
        ) from None
    return upsampler


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
        with trial_of(neck), Recorder() as recorder:
            outputs.append(neck(*maps))
        records.append(recorder.records)
    counts = [len(calls) for calls in records]
    if len(set(counts)) > 1:
        raise ValueError(
            f'{type(neck).__name__} interpolates {" or ".join(map(str, counts))} '
            'times, depending on the size of its maps; an upsampler needs a site '
            'that every input has'
        )
    return NeckTrace([find_site(*same_call) for same_call in zip(*records)], outputs)


def find_site(*records: tuple[torch.Size, torch.Size, str]) -> Site | None:
    """The site of a call, given its records at several sizes.

    Args:
        *records (tuple[torch.Size, torch.Size, str]): Shapes of the map before and
            after, and the name of the interpolation.

    Returns:
        Site | None: None where it enlarges by no whole ratio, or by several.
    """
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
