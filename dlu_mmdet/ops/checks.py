"""The argument checks of every reassembly operator, in one place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def check_number(name: str, value: int, least: int) -> None:
    """Check one size.

    Raises:
        TypeError: If it is not an int.
        ValueError: If it is less than ``least``.
    """
    # a torch.SymInt while torch traces for any size
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(
            f'{name} must be an int, got {value!r} of type {type(value).__name__}'
        )
    if value < least:
        raise ValueError(f'{name} must be at least {least}, got {value}')


def check_geometry(
    channels: int, kernel_size: int, group_size: int, scale_factor: int
) -> None:
    """Check the sizes that define a reassembly, without any tensor.

    Args:
        channels (int): Number of feature channels C.
        kernel_size (int): Side K of the reassembly kernel, odd.
        group_size (int): Number of channel groups G; divides C.
        scale_factor (int): Upsampling ratio s, at least 1.

    Raises:
        TypeError: If a size is not an int.
        ValueError: If a size is out of range.
    """
    check_number('channels', channels, 1)
    check_number('kernel_size', kernel_size, 1)
    check_number('group_size', group_size, 1)
    check_number('scale_factor', scale_factor, 1)
    if kernel_size % 2 == 0:
        raise ValueError(
            f'kernel_size must be odd, so that a kernel has a '
            f'center, got {kernel_size}; use {kernel_size - 1} '
            f'or {kernel_size + 1}'
        )
    if channels % group_size:
        raise ValueError(
            f'group_size must divide the channels, got '
            f'group_size={group_size} for {channels} channels'
        )


def _check_tensor(
    name: str, tensor: Tensor, layout: str, expected: tuple[int, ...] | None
) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f'{name} must be a Tensor, got {type(tensor).__name__}')
    if tensor.dtype not in DTYPES:
        raise TypeError(
            f'{name} must be a floating-point tensor (float32, float64, float16 or '
            f'bfloat16), got {tensor.dtype}; convert it first'
        )
    if tensor.dim() != 4:
        raise ValueError(
            f'{name} must have 4 dimensions {layout}, got shape {tuple(tensor.shape)}'
        )
    if expected is not None and tuple(tensor.shape) != expected:
        raise ValueError(
            f'{name} must have shape {layout} = {expected}, got {tuple(tensor.shape)}'
        )


def _check_common(
    features: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
    **others: Tensor,
) -> tuple[int, int, int, int]:
    """Check features, sizes and the devices of the others; (N, C, H, W)."""
    _check_tensor('features', features, '(N, C, H, W)', None)
    if 0 in features.shape[1:]:
        raise ValueError(
            f'features must have C, H and W of at least 1, got '
            f'shape {tuple(features.shape)}'
        )
    for name, tensor in others.items():
        if isinstance(tensor, Tensor) and tensor.device != features.device:
            raise ValueError(
                f'{name} must be on the device of features, '
                f'{features.device}, got {tensor.device}'
            )
    n, c, h, w = features.shape
    # torch.jit.trace hands out sizes as tensors
    channels = int(c) if isinstance(c, Tensor) else c
    check_geometry(channels, kernel_size, group_size, scale_factor)
    return n, c, h, w


def check_dlu(
    features: Tensor,
    kernels: Tensor,
    offsets: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Check the arguments of :func:`dlu_mmdet.ops.dlu`.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a size, a shape or a device does not fit.
    """
    n, c, h, w = _check_common(
        features,
        kernel_size,
        group_size,
        scale_factor,
        kernels=kernels,
        offsets=offsets,
    )
    _check_tensor(
        'kernels', kernels, '(N, G*K*K, H, W)', (n, group_size * kernel_size**2, h, w)
    )
    _check_tensor(
        'offsets',
        offsets,
        '(N, G*2*s*s, H, W)',
        (n, group_size * 2 * scale_factor**2, h, w),
    )


def check_carafe(
    features: Tensor,
    masks: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Check the arguments of :func:`dlu_mmdet.ops.carafe`.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a size, a shape or a device does not fit.
    """
    n, c, h, w = _check_common(
        features, kernel_size, group_size, scale_factor, masks=masks
    )
    _check_tensor(
        'masks',
        masks,
        '(N, G*K*K, s*H, s*W)',
        (n, group_size * kernel_size**2, h * scale_factor, w * scale_factor),
    )


def check_window_scores(
    features: Tensor,
    queries: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Check the arguments of :func:`dlu_mmdet.ops.window_scores`.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a size, a shape or a device does not fit.
    """
    n, c, h, w = _check_common(
        features, kernel_size, group_size, scale_factor, queries=queries
    )
    _check_tensor(
        'queries',
        queries,
        '(N, C, s*H, s*W)',
        (n, c, h * scale_factor, w * scale_factor),
    )


def check_grad(grad: Tensor, features: Tensor, scale_factor: int) -> None:
    """Check the gradient of an operator's output.

    Raises:
        TypeError: If its dtype is not that of ``features``.
        ValueError: If its shape or its device does not fit.
    """
    n, c, h, w = features.shape
    expected = (n, c, h * scale_factor, w * scale_factor)
    _check_tensor('grad', grad, '(N, C, s*H, s*W)', expected)
    if grad.dtype != features.dtype:
        raise TypeError(
            f'grad must have the dtype of features, {features.dtype}, got {grad.dtype}'
        )
    if grad.device != features.device:
        raise ValueError(
            f'grad must be on the device of features, {features.device}, got '
            f'{grad.device}'
        )


def check_sizes(sizes: Sequence[int]) -> None:
    """Check that sizes can be counted in 32 bits.

    Raises:
        ValueError: If one of them cannot.
    """
    # one that is open while torch traces is known when the operator runs
    known = max(size if isinstance(size, int) else 0 for size in sizes)
    if known >= 2**31:
        raise ValueError(
            f'every size must be less than 2^31, got {known}; split the tensors'
        )
