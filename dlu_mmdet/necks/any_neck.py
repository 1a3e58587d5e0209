"""Wraps any neck and gives each of its upsampling sites an upsampler module."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..upsamplers import split_upsample_cfg
from ..upsamplers.sites import NeckTrace, SitesMixin, trace_neck, wrap_class
from .upsampler_mixin import UpsamplerMixin


class AnyNeckMixin(UpsamplerMixin, SitesMixin):
    """Mixin that replaces the interpolations of a neck with upsamplers.

    The neck is built as it is and tried on maps of zeros, which shows its
    sites: the calls of ``torch.nn.functional.interpolate`` that enlarge a map.
    In forward the upsamplers take over these calls, in their order.

    Args:
        *args: The neck's own.
        upsample_cfg (dict): Upsampler of every site, see
            :func:`dlu_mmdet.upsamplers.build_upsampler`. Arguments of an
            interpolation beside it go to the neck if it has an
            ``upsample_cfg`` of its own.
        num_levels (int, optional): How many maps the neck is given, where
            its ``in_channels`` is one number. Defaults to None.
        input_maps (Sequence[tuple[int, int]], optional): Channels and stride of every
            map that it is given, where the levels are not halves of each other, as
            those of a dilated backbone. Defaults to None.
        **kwargs: The neck's own.

    Raises:
        TypeError: If ``upsample_cfg`` is no dict or holds an argument that
            the upsampler does not accept.
        ValueError: If the neck enlarges nothing or cannot be tried, or if the
            upsampler is unknown or does not fit a site.
    """

    def __init__(
        self,
        *args,
        upsample_cfg: Any = None,
        num_levels: int | None = None,
        input_maps: Sequence[tuple[int, int]] | None = None,
        **kwargs,
    ) -> None:
        named, own = split_upsample_cfg(upsample_cfg)
        parameter = find_argument(self.wrapped[0], 'upsample_cfg')
        if own and parameter:
            default = parameter.default
            default = {} if default in (None, parameter.empty) else default
            kwargs['upsample_cfg'] = {**default, **own}
        elif own:
            named = upsample_cfg
        if num_levels is not None and find_argument(self.wrapped[0], 'num_levels'):
            kwargs['num_levels'] = num_levels
        super().__init__(*args, **kwargs)

        name = type(self).__name__
        if hasattr(self, 'upsample_modules'):
            raise ValueError(
                f'{name} has upsample_modules of its own; choose them by its own '
                'arguments, under its name without the prefix'
            )
        in_channels = kwargs.get('in_channels', getattr(self, 'in_channels', None))
        if input_maps is not None:
            trial = trace_neck(self, [(maps,) for maps in _maps(self, input_maps)])
        else:
            trial = try_from_channels(self, in_channels, num_levels)
        if not trial.sites:
            hint = ''
            if isinstance(in_channels, int) and num_levels is None:
                hint = (
                    f'; its in_channels={in_channels} is one number: if it is given '
                    'more maps than one, say how many with num_levels'
                )
            raise ValueError(unwrap_neck(name, trial) + hint)
        self.upsample_calls = trial.calls
        self.add_upsample_modules(named, trial.sites)


def wrap_neck(neck_class: Any) -> Any:
    """Make the class of a neck that takes an ``upsample_cfg``.

    Args:
        neck_class (type[nn.Module]): Any neck.

    Returns:
        type[nn.Module]: Its subclass, or itself if it is one of this package
        that takes an ``upsample_cfg``.
    """
    if issubclass(neck_class, UpsamplerMixin):
        return neck_class
    return wrap_class(neck_class, AnyNeckMixin)


def try_from_channels(
    neck: nn.Module, in_channels: int | Sequence[int] | None, num_levels: int | None
) -> NeckTrace:
    """Try a neck on maps made up from its ``in_channels``.

    Args:
        neck (nn.Module): Any neck.
        in_channels (int | Sequence[int], optional): Channels of its inputs.
        num_levels (int, optional): Number of inputs, if ``in_channels`` is one
            number.

    Returns:
        NeckTrace: Its calls and outputs.

    Raises:
        ValueError: If its forward takes none of the inputs tried.
    """
    name = type(neck).__name__
    if isinstance(in_channels, int):
        in_channels = [in_channels] * (num_levels or 1)
    if not in_channels:
        raise ValueError(
            f'{name} has no in_channels, which tell the maps that it can be tried on: '
            'where it enlarges maps cannot be found'
        )
    first_error = None
    for inputs in _inputs(neck, list(in_channels)):
        try:
            return trace_neck(neck, inputs)
        except Exception as error:  # whatever a neck says to inputs not its own
            first_error = first_error or error
    raise ValueError(
        f'{name} cannot be tried on maps with {list(in_channels)} channels, each half '
        f'the size of the one before ({type(first_error).__name__}: {first_error}): '
        'where it enlarges maps cannot be found'
    ) from first_error


def unwrap_neck(name: str, trial: NeckTrace) -> str:
    """Say that a neck has no site, as an error does."""
    if not trial.calls:
        return (
            f'{name} enlarges no map with torch.nn.functional.interpolate or '
            'nn.Upsample: it has no site for an upsampler'
        )
    return (
        f'{name} interpolates {len(trial.calls)} times, but nowhere by a whole ratio '
        'of at least 2 that is the same for every size: it has no site for an '
        'upsampler'
    )


def _inputs(neck: nn.Module, channels: list[int]) -> Iterator[list[tuple]]:
    """What a neck's forward may take, at two sizes: the usual first."""
    weight = next(neck.parameters(), torch.empty(0))
    top = len(channels) - 1
    # levels that the neck adds on top are halves of the last one, too
    extra = getattr(neck, 'num_outs', 0) - top - 1 + getattr(neck, 'start_level', 0)
    least = 2 ** max(2, extra)

    def maps(coarsest: tuple[int, int], channels: Sequence[int]) -> tuple[Tensor, ...]:
        h, w = coarsest
        return tuple(
            weight.new_zeros(1, c, h << (top - i), w << (top - i))
            for i, c in enumerate(channels)
        )

    # large ones for a neck that makes small ones smaller than nothing
    for length in (least, 8 * least):
        sizes = [(length, length), (2 * length, length)]
        yield [(maps(size, channels),) for size in sizes]
        # listed from the coarsest level, as YOLOV3Neck does
        yield [(maps(size, channels[::-1]),) for size in sizes]
        # behind the image, as RFP takes them
        yield [(_with_image(maps(size, channels)),) for size in sizes]
        # before what is known of the image, as pixel decoders do
        yield [_with_meta(maps(size, channels)) for size in sizes]
        if not top:
            yield [maps(size, channels) for size in sizes]


def _maps(
    module: nn.Module, input_maps: Sequence[tuple[int, int]]
) -> list[tuple[Tensor, ...]]:
    """Maps of zeros for images of two sizes."""
    weight = next(module.parameters(), torch.empty(0))
    side = 2 * max(stride for _, stride in input_maps)
    return [
        tuple(weight.new_zeros(1, c, h // s, w // s) for c, s in input_maps)
        for h, w in ((side, side), (2 * side, side))
    ]


def _with_image(maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Maps behind an image of four times the finest one's size."""
    _, _, h, w = maps[0].shape
    return maps[0].new_zeros(1, 3, 4 * h, 4 * w), *maps


def _with_meta(maps: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], list[dict]]:
    """Maps, and the size of an image of four times the finest one's."""
    _, _, h, w = maps[0].shape
    return maps, [dict(img_shape=(4 * h, 4 * w), batch_input_shape=(4 * h, 4 * w))]


def find_argument(cls: Any, name: str) -> inspect.Parameter | None:
    """An argument of a class, also one that it passes on as a keyword."""
    for base in cls.__mro__:
        if '__init__' not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters
        if name in parameters:
            return parameters[name]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return None
    return None
