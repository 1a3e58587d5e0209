"""The operators in Triton, for a GPU without the compiled CUDA operators.

Triton comes with torch for CUDA and ROCm and needs no other compiler. A kernel is
compiled when it is first called, once for each dtype, layout and set of sizes K, G and
s; Triton keeps the result on disk.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from ..backend import BACKWARD_FEATURES, BACKWARD_KERNELS, FORWARD, Backend
from ..reference import accumulation_dtype, is_channels_last


def _extent(tensor: Tensor | None) -> int:
    """Elements from the first of a tensor to its last."""
    if tensor is None or tensor.numel() == 0:
        return 0
    return 1 + sum(
        (size - 1) * step for size, step in zip(tensor.shape, tensor.stride())
    )


def _described(*tensors: Tensor | None) -> list[Tensor | int | None]:
    """Each tensor and its strides."""
    values = []
    for tensor in tensors:
        strides = (0,) * 4 if tensor is None else tensor.stride()
        values += [tensor, *strides]
    return values


def _power(size: int, most: int) -> int:
    """The power of two that a size fits into, at most that given."""
    return min(1 << (size - 1).bit_length(), most)


def tiles_of(
    operation: int, channels: int, sizes: Sequence[int], last: bool
) -> dict[str, int]:
    """How much of the work a program takes.

    Args:
        operation (int): ``FORWARD``, ``BACKWARD_FEATURES`` or ``BACKWARD_KERNELS``.
        channels (int): Of a group.
        sizes (Sequence[int]): kernel_size, group_size and scale_factor.
        last (bool): Whether the features are channels last, so that neighbors in
            memory are channels and not pixels.

    Returns:
        dict[str, int]: Powers of two by their names in ``kernels.py``.
    """
    k, _, s = sizes
    if operation == BACKWARD_KERNELS:
        return dict(BP=32, BT=_power(k * k, 32), BQ=_power(s * s, 4))
    pixels = 8 if last else 32
    channels = _power(channels, 128 if last else 64)
    if operation == FORWARD:
        return dict(BP=pixels, BC=channels, BQ=_power(s * s, 4))
    in_row = _power(s, 8)
    # few where channels are neighbors: a thread has the positions of all of them
    pixels = max((8 if last else 64) // in_row, 4)
    return dict(BP=pixels, BC=channels, BJ=in_row)


class Operators(Backend):
    """The operators in Triton."""

    def compute(
        self,
        operation: int,
        sizes: Sequence[int],
        features: Tensor,
        kernels: Tensor,
        offsets: Tensor | None,
        grad: Tensor | None,
        *results: Tensor | None,
    ) -> None:
        """See :meth:`Backend.compute`."""
        kernel, args, options, count = self.launch(
            operation, sizes, features, kernels, offsets, grad, *results
        )
        if count == 0:
            return
        if count >= 2**31:
            raise ValueError(
                f'features of shape {tuple(features.shape)} need {count} programs, '
                'and a launch has less than 2^31; split the batch'
            )
        if operation == BACKWARD_KERNELS and offsets is not None:
            _alert_not_deterministic()
        with torch.cuda.device_of(features):
            kernel[(count,)](*args, **options)

    @staticmethod
    def launch(
        operation: int,
        sizes: Sequence[int],
        features: Tensor,
        kernels: Tensor,
        offsets: Tensor | None,
        grad: Tensor | None,
        *results: Tensor | None,
    ) -> tuple:
        """The kernel of an operation, its arguments and options, and its programs."""
        import triton.language as tl  # takes a second

        from . import kernels as functions

        names = {
            torch.float16: tl.float16,
            torch.bfloat16: tl.bfloat16,
            torch.float32: tl.float32,
            torch.float64: tl.float64,
        }
        last = is_channels_last(features)
        k, g, s = sizes
        n, c, h, w = features.shape
        if operation == BACKWARD_KERNELS and last:
            # its programs read the pixels of one channel after the other
            features, grad = features.contiguous(), grad.contiguous()
            if offsets is not None:
                kernels = kernels.contiguous()
        tensors = (features, kernels, offsets, grad, *results)
        wide = accumulation_dtype(features.dtype)
        position = wide if offsets is None else torch.promote_types(wide, offsets.dtype)
        tiles = tiles_of(operation, c // g, sizes, last)
        counts = [-(-h * w // tiles['BP'])]  # of programs
        if operation == BACKWARD_KERNELS:
            kernel = functions.backward_kernels
            of_kernels, of_offsets = (*results, None)[:2]
            described = (grad, features, kernels, offsets, of_kernels, of_offsets)
        else:
            is_forward = operation == FORWARD
            kernel = functions.forward if is_forward else functions.backward_features
            described = (features if is_forward else grad, kernels, offsets, *results)
            counts.append(-(-c // g // tiles['BC']))
        count = n * g * counts[0] * (counts[1:] or [1])[0]
        if operation != BACKWARD_FEATURES:
            count *= -(-s * s // tiles['BQ'])
        options = dict(
            K=k,
            S=s,
            **tiles,
            A=names[wide],
            WIDE=names[position],
            # tiles reach beyond the tensors, hence half of what 32 bits count
            I=tl.int64 if max(map(_extent, tensors)) >= 2**30 else tl.int32,
            num_warps=4,
        )
        return (
            kernel,
            [*_described(*described), h, w, c // g, g, *counts],
            options,
            count,
        )


def _alert_not_deterministic() -> None:
    """What torch's own operators with atomic additions do."""
    if not torch.are_deterministic_algorithms_enabled():
        return
    message = (
        'dlu_backward_kernels does not have a deterministic implementation in Triton, '
        "but you set 'torch.use_deterministic_algorithms(True)'; leave it out or pass "
        'warn_only=True'
    )
    if not torch.is_deterministic_algorithms_warn_only_enabled():
        raise RuntimeError(message)
    warnings.warn(message, stacklevel=2)
