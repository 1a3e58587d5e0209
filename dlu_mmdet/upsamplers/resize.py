"""An upsampler's output: its size, and the size that its neck asks for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.tracing import leaf
from .builder import is_guided


def upsample_to(
    upsampler: nn.Module,
    x: Tensor,
    size: tuple[int, int],
    guide: Tensor | None = None,
    scale_factor: int | None = None,
) -> Tensor:
    """Upsample to a given size, which the ratio meets but for rounding.

    A level of a pyramid is half the one below, rounded up or down, so the map
    asked for is rarely the ratio times the map at hand when sizes are odd.

    An interpolation goes to the size itself: its class says so with
    ``any_size = True``, and its forward takes ``size``. An upsampler with a guide,
    ``guided = True``, goes to the guide's. Any other upsampler
    gives s*H x s*W, whose rows and columns lie over those of the map asked
    for: surplus ones at the end are cropped, missing ones repeat the last. Where
    more than rounding is between the two, as under a backbone whose levels do
    not halve, the same rows are other places of the image: then the output is
    resized, bilinearly.

    Args:
        upsampler (nn.Module): Maps (N, C, H, W) to (N, C, s*H, s*W).
        x (Tensor): (N, C, H, W).
        size (tuple[int, int]): Height and width asked for.
        guide (Tensor, optional): (N, guide_channels, h, w), high-resolution features
            for an upsampler that reads them; others do without. Defaults to None.
        scale_factor (int, optional): s, to which the output is held. Defaults to None,
            for any.

    Returns:
        Tensor: (N, C, h, w): ``size``, or the size of the guide.

    Raises:
        ValueError: If the upsampler's output has another size than it must have.
    """
    name = type(upsampler).__name__
    if is_guided(upsampler):
        out = upsampler(x, guide)
        _check_shape(name, x, out, size if guide is None else guide.shape[2:])
        return out
    if getattr(upsampler, 'any_size', False):
        out = upsampler(x, size=size)
        _check_shape(name, x, out, size)
        return out
    return _fit(name, x, upsampler(x), size, scale_factor)


@leaf
def _fit(
    name: str, x: Tensor, out: Tensor, size: Sequence[int], scale_factor: int | None
) -> Tensor:
    """Crop, pad or resize an upsampler's output."""
    if scale_factor is not None:
        _check_shape(name, x, out, [scale_factor * length for length in x.shape[2:]])
    missing = [want - have for want, have in zip(size, out.shape[2:])]
    if any(
        abs(lack) * length >= have
        for lack, length, have in zip(missing, x.shape[2:], out.shape[2:])
    ):
        return F.interpolate(out, size=size, mode='bilinear', align_corners=False)
    out = out[:, :, : size[0], : size[1]]
    down, right = (max(lack, 0) for lack in missing)
    if down or right:
        out = F.pad(out, (0, right, 0, down), mode='replicate')
    return out


@leaf
def _check_shape(name: str, x: Tensor, out: Tensor, size: Sequence[int]) -> None:
    """Refuse an output that is not (N, C, *size)."""
    shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
    wanted = (*x.shape[:2], *size)
    # sizes are open while torch exports or traces
    if shape != wanted and all(isinstance(length, int) for length in (*wanted, *shape)):
        raise ValueError(
            f'the upsampler {name} gave {shape} for {tuple(x.shape)}, and must give '
            f'{wanted}: its ratio times the height and width, or the size of its '
            'guide, with the channels that it takes'
        )


def check_ratio(
    upsampler: nn.Module,
    channels: int,
    scale_factor: int,
    guide_channels: int | None = None,
) -> None:
    """Run an upsampler once, on a small map, and refuse it if its ratio is another.

    One that takes none of the maps tried is left to :func:`upsample_to`: it may need a
    larger map, or another device.

    Args:
        upsampler (nn.Module): Maps (N, C, H, W) to (N, C, s*H, s*W); a guided one with
            a guide of that size.
        channels (int): C.
        scale_factor (int): s.
        guide_channels (int, optional): Channels of the guide, for a guided one.

    Raises:
        ValueError: If its output has another size.
    """
    weight = next(upsampler.parameters(), torch.empty(0))
    for h, w in ((4, 6), (32, 48)):
        size = (scale_factor * h, scale_factor * w)
        inputs = [weight.new_zeros(1, channels, h, w)]
        if is_guided(upsampler):
            inputs.append(weight.new_zeros(1, guide_channels, *size))
        try:
            with trial_of(upsampler):
                out = upsampler(*inputs)
        except Exception:  # whatever it says to a map that is not its own
            continue
        return _check_shape(type(upsampler).__name__, inputs[0], out, size)


@contextmanager
def trial_of(module: nn.Module) -> Iterator[None]:
    """Run a module without a trace: in eval mode, without gradients.

    Its modules' training flags and the state of random numbers are put back.
    """
    flags = {part: part.training for part in module.modules()}
    try:
        for part in flags:
            part.training = False  # train() may be overridden, to freeze parts
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for part, training in flags.items():
            part.training = training
