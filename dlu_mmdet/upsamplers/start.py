"""Starts at which a new upsampler reproduces an interpolation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

#: Share of a kernel that starts on its interpolation; the rest is even over its taps.
#: Through a softmax the peak's gradient is p (1 - p). See docs/upgrade.md for the AP of
#: a trained detector at other shares.
SHARE = 0.95


def check_start(
    module: nn.Module, start: object, held: Sequence[str], why: str = ''
) -> None:
    """Refuse a start that an upsampler cannot hold.

    Args:
        module (nn.Module): The upsampler, for the message.
        start (object): What was asked for.
        held (Sequence[str]): The starts that it can hold.
        why (str): Why it holds no other, as a clause. Defaults to none.

    Raises:
        ValueError: If it is none of these.
    """
    if start not in held:
        raise ValueError(
            f'start={start!r} is none of the starts of {type(module).__name__}: '
            f'{", ".join(map(repr, held))}{f" ({why})" if why else ""}'
        )


def interpolation_name(mode: str, align_corners: bool | None = None) -> str:
    """Name what ``torch.nn.functional.interpolate`` does, as ``start`` takes it.

    Args:
        mode (str): As there.
        align_corners (bool, optional): As there.

    Returns:
        str: 'nearest', 'bilinear', or another, which no upsampler starts at.
    """
    if mode == 'nearest-exact':  # differs at ratios that are not whole
        return 'nearest'
    return f'{mode} with align_corners' if align_corners else mode


def resolve_start(upsample_cfg: dict, interpolation: str) -> dict:
    """Replace ``start='neck'`` by the neck's interpolation.

    Args:
        upsample_cfg (dict): As :func:`dlu_mmdet.upsamplers.build_upsampler`.
        interpolation (str): As :func:`interpolation_name`.

    Returns:
        dict: A new one, or the same.
    """
    if upsample_cfg.get('start') != 'neck':
        return upsample_cfg
    return {**upsample_cfg, 'start': interpolation}


def interpolation_weights(mode: str, distance: Tensor) -> Tensor:
    """Weight of a source pixel in an output pixel, along one axis.

    Args:
        mode (str): 'nearest' or 'bilinear', with ``align_corners=False``.
        distance (Tensor): Between their centers, in source pixels.

    Returns:
        Tensor: Of the same shape.
    """
    if mode == 'nearest':
        return (distance.abs() < 0.5).to(distance)
    return (1 - distance.abs()).clamp(min=0)


def interpolation_kernels(mode: str, up_kernel: int, scale_factor: int = 1) -> Tensor:
    """The kernels under which a reassembly interpolates, inside of the map.

    Args:
        mode (str): 'nearest' or 'bilinear'.
        up_kernel (int): Side K of the kernels.
        scale_factor (int): Ratio s. Defaults to 1, for one kernel per source pixel.

    Returns:
        Tensor: (K, K, s, s), the kernel of each sub-pixel, summing to 1.

    Raises:
        ValueError: If the kernel is too small.
    """
    place = (torch.arange(scale_factor) + 0.5) / scale_factor - 0.5
    taps = torch.arange(up_kernel) - up_kernel // 2
    weights = interpolation_weights(mode, taps[:, None] - place)
    if not torch.allclose(weights.sum(0), torch.ones(scale_factor)):
        raise ValueError(
            f'start={mode!r} needs a kernel of at least 3 x 3 at a ratio of '
            f'{scale_factor}, got a side of {up_kernel}'
        )
    return weights[:, None, :, None] * weights[:, None, :]


def start_bias(mode: str, up_kernel: int, scale_factor: int = 1) -> Tensor:
    """Logits whose softmax over the taps is an interpolation by :data:`SHARE`.

    Args:
        mode (str): As :func:`interpolation_kernels`.
        up_kernel (int): Side K of the kernels.
        scale_factor (int): Ratio s. Defaults to 1.

    Returns:
        Tensor: (K*K, s, s), at least 0.

    Raises:
        ValueError: As :func:`interpolation_kernels`.
    """
    kernels = interpolation_kernels(mode, up_kernel, scale_factor)
    logits = (SHARE * kernels + (1 - SHARE) / up_kernel**2).log().flatten(0, 1)
    return logits - logits.min()
