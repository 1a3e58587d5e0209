"""The argument checks of every reassembly operator, in one place.

Notation: N images, C channels, H x W source pixels, K kernel_size, G group_size and
s scale_factor.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
#: Shapes of the tensors other than the features, as error messages print them.
LAYOUTS = dict(
    kernels='(N, G*K*K, H, W)',
    offsets='(N, G*2*s*s, H, W)',
    masks='(N, G*K*K, s*H, s*W)',
    queries='(N, C, s*H, s*W)',
    grad='(N, C, s*H, s*W)',
)


def _check_int(name: str, value: int) -> None:
    # a torch.SymInt while torch traces for any size
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(
            f'{name} must be an int, got {value!r} of type {type(value).__name__}'
        )


def check_number(name: str, value: int, least: int) -> None:
    """Check one size.

    Raises:
        TypeError: If it is not an int.
        ValueError: If it is less than ``least``.
    """
    _check_int(name, value)
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


def check_types(sizes: Sequence[int], **tensors: Tensor) -> None:
    """Check what a schema of torch refuses in its own words, or takes for a number.

    Args:
        sizes (Sequence[int]): kernel_size, group_size and scale_factor.
        **tensors (Tensor): All others, by name.

    Raises:
        TypeError: If one is not a tensor, or not an int.
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f'{name} must be a Tensor, got {type(tensor).__name__}')
    for name, size in zip(('kernel_size', 'group_size', 'scale_factor'), sizes):
        _check_int(name, size)


def check_arguments(
    features: Tensor, sizes: Sequence[int], grad: Tensor | None = None, **others: Tensor
) -> None:
    """Check the arguments of any operator.

    Args:
        features (Tensor): (N, C, H, W).
        sizes (Sequence[int]): kernel_size, group_size and scale_factor.
        grad (Tensor, optional): The gradient of the output.
        **others (Tensor): The other tensors, by their names in :data:`LAYOUTS`.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a size, a shape or a device does not fit.
    """
    _check_tensor('features', features, '(N, C, H, W)')
    n, c, h, w = features.shape
    if 0 in (c, h, w):
        raise ValueError(
            f'features must have C, H and W of at least 1, got '
            f'shape {tuple(features.shape)}'
        )
    # torch.jit.trace hands out sizes as tensors
    check_geometry(int(c) if isinstance(c, Tensor) else c, *sizes)
    k, g, s = sizes
    taps, rows, columns = g * k * k, s * h, s * w
    expected = dict(
        kernels=(n, taps, h, w),
        offsets=(n, g * 2 * s * s, h, w),
        masks=(n, taps, rows, columns),
        queries=(n, c, rows, columns),
        grad=(n, c, rows, columns),
    )
    if grad is not None:
        others['grad'] = grad
    for name, tensor in others.items():
        layout, shape = LAYOUTS[name], expected[name]
        _check_tensor(name, tensor, layout)
        if tensor.device != features.device:
            raise ValueError(
                f'{name} must be on the device of features, '
                f'{features.device}, got {tensor.device}'
            )
        if tensor.shape != shape:
            raise ValueError(
                f'{name} must have shape {layout} = {shape}, got {tuple(tensor.shape)}'
            )
    if grad is not None and grad.dtype != features.dtype:
        raise TypeError(
            f'grad must have the dtype of features, {features.dtype}, got {grad.dtype}'
        )


def _check_tensor(name: str, tensor: Tensor, layout: str) -> None:
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


def check_countable(shape: Sequence[int], sizes: Sequence[int]) -> None:
    """Check that every size of the tensors can be counted in 32 bits.

    Args:
        shape (Sequence[int]): Of the features.
        sizes (Sequence[int]): kernel_size, group_size and scale_factor.

    Raises:
        ValueError: If one of them cannot.
    """
    n, c, h, w = shape
    k, g, s = sizes
    every = (n, c, g * k * k, g * 2 * s * s, s * h, s * w)
    # one that is open while torch traces is known when the operator runs
    known = max([size if isinstance(size, int) else 0 for size in every])
    if known >= 2**31:
        raise ValueError(
            f'every size must be less than 2^31, got {known}; split the tensors'
        )
