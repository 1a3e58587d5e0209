"""The compiled operators of the CPU: C functions that are given addresses.

What they are made of, csrc/cpu, holds nothing of PyTorch: arguments are checked and
results are made here, so one build serves every version of torch and Python.
"""

from __future__ import annotations

import array
import ctypes
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import DTYPES, check_carafe, check_dlu, check_grad, check_sizes
from .reference import is_channels_last

# where torch has it: data_ptr makes the copy that a lazy one stands for
_address = getattr(Tensor, 'const_data_ptr', Tensor.data_ptr)
_CODES = {dtype: code for code, dtype in enumerate(DTYPES)}
_FORWARD, _BACKWARD_FEATURES, _BACKWARD_KERNELS = range(3)  # as in reassembly.cpp


def empty(
    like: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None
) -> Tensor:
    """A new tensor, in the layout and, unless another is given, dtype of one."""
    last = is_channels_last(like)
    return torch.empty(
        shape,
        dtype=dtype or like.dtype,
        device=like.device,
        memory_format=torch.channels_last if last else torch.contiguous_format,
    )


def _described(tensor: Tensor | None) -> tuple[int, ...]:
    """What read_map of reassembly.cpp reads."""
    if tensor is None:
        return (0,) * 10
    code = _CODES[tensor.dtype]
    return (_address(tensor), code, *tensor.stride(), *tensor.shape)


def _dense(grad: Tensor) -> Tensor:
    if grad.is_contiguous() or is_channels_last(grad):
        return grad
    return grad.contiguous()


class Shapes:
    """The operators by their names in ``torch.ops``, without what they compute.

    They check the arguments and make the results, as fake and meta tensors need it.
    They have no derivatives and refuse what the functions would read beyond: shapes
    and sizes that do not fit with ValueError, dtypes with TypeError.
    """

    def _run(
        self,
        operation: int,
        sizes: Sequence[int],
        inputs: Sequence[Tensor | None],
        *others: Tensor | None,
    ) -> None:
        """Compute an operation; the others are grad, out and the gradients."""

    def _check(
        self,
        inputs: Sequence[Tensor | None],
        sizes: Sequence[int],
        grad: Tensor | None = None,
    ) -> None:
        features, kernels, offsets = inputs
        if offsets is None:
            check_carafe(features, kernels, *sizes)
        else:
            check_dlu(features, kernels, offsets, *sizes)
        n, c, h, w = features.shape
        k, g, s = sizes
        # of every tensor, and what is computed from them
        check_sizes((n, c, h, w, g * k * k, g * 2 * s * s, s * h, s * w))
        if grad is not None:
            check_grad(grad, features, s)

    def _forward(self, inputs: Sequence[Tensor | None], sizes: Sequence[int]) -> Tensor:
        self._check(inputs, sizes)
        features, s = inputs[0], sizes[2]
        n, c, h, w = features.shape
        out = empty(features, (n, c, s * h, s * w))
        self._run(_FORWARD, sizes, inputs, None, out)
        return out

    def _backward_features(
        self,
        grad: Tensor,
        inputs: Sequence[Tensor | None],
        sizes: Sequence[int],
    ) -> Tensor:
        self._check(inputs, sizes, grad)
        out = empty(inputs[0], inputs[0].shape)
        self._run(_BACKWARD_FEATURES, sizes, inputs, grad, out)
        return out

    def _backward_kernels(
        self,
        grad: Tensor,
        inputs: Sequence[Tensor | None],
        sizes: Sequence[int],
    ) -> tuple[Tensor, Tensor | None]:
        self._check(inputs, sizes, grad)
        _, kernels, offsets = inputs
        if offsets is None:
            grad_kernels, grad_offsets = empty(kernels, kernels.shape), None
        else:
            # sums over scattered positions are kept in float32 at least
            wide = torch.promote_types(kernels.dtype, torch.float32)
            grad_kernels = empty(kernels, kernels.shape, wide).zero_()
            grad_offsets = empty(offsets, offsets.shape)
        self._run(
            _BACKWARD_KERNELS, sizes, inputs, grad, None, grad_kernels, grad_offsets
        )
        return grad_kernels.to(kernels.dtype), grad_offsets

    def dlu(
        self, features: Tensor, kernels: Tensor, offsets: Tensor, *sizes: int
    ) -> Tensor:
        """See :func:`dlu_mmdet.ops.dlu`."""
        return self._forward((features, kernels, offsets), sizes)

    def dlu_backward_features(
        self,
        grad: Tensor,
        features: Tensor,
        kernels: Tensor,
        offsets: Tensor,
        *sizes: int,
    ) -> Tensor:
        """The gradient of ``features``, in their dtype and layout."""
        return self._backward_features(grad, (features, kernels, offsets), sizes)

    def dlu_backward_kernels(
        self,
        grad: Tensor,
        features: Tensor,
        kernels: Tensor,
        offsets: Tensor,
        *sizes: int,
    ) -> tuple[Tensor, Tensor]:
        """The gradients of ``kernels`` and of ``offsets``."""
        return self._backward_kernels(grad, (features, kernels, offsets), sizes)

    def carafe(self, features: Tensor, masks: Tensor, *sizes: int) -> Tensor:
        """See :func:`dlu_mmdet.ops.carafe`."""
        return self._forward((features, masks, None), sizes)

    def carafe_backward_features(
        self, grad: Tensor, features: Tensor, masks: Tensor, *sizes: int
    ) -> Tensor:
        """The gradient of ``features``, in their dtype and layout."""
        return self._backward_features(grad, (features, masks, None), sizes)

    def carafe_backward_masks(
        self, grad: Tensor, features: Tensor, masks: Tensor, *sizes: int
    ) -> Tensor:
        """The gradient of ``masks``, which tells their shape and dtype alone."""
        return self._backward_kernels(grad, (features, masks, None), sizes)[0]


class Operators(Shapes):
    """The operators of a library of csrc/cpu.

    Args:
        path (str | PathLike): The file of the library.

    Raises:
        OSError: If it cannot be loaded.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        library = ctypes.CDLL(os.fspath(path))
        library.dlu_mmdet_loops.restype = ctypes.c_char_p
        self.loops = library.dlu_mmdet_loops().decode()
        call = (ctypes.c_int, ctypes.c_void_p)
        self._scratch, self._call = library.dlu_mmdet_scratch, library.dlu_mmdet_run
        self._scratch.argtypes, self._scratch.restype = call, ctypes.c_int64
        self._call.argtypes, self._call.restype = (*call, ctypes.c_void_p), None

    def _run(
        self,
        operation: int,
        sizes: Sequence[int],
        inputs: Sequence[Tensor | None],
        grad: Tensor | None,
        *results: Tensor | None,
    ) -> None:
        features, _, offsets = inputs
        if grad is not None:
            grad = _dense(grad)
        values = [*features.shape, *sizes, torch.get_num_threads()]
        values += (is_channels_last(features), offsets is None)
        for tensor in (*inputs, grad, *results, *(None,) * 3)[:7]:
            values += _described(tensor)
        values = array.array('q', values)  # int64
        address, _ = values.buffer_info()
        # torch's own memory begins at a cache line, and its profiler sees it
        count = self._scratch(operation, address)
        if count < 0:
            k, g, s = sizes
            raise ValueError(
                f'kernel_size={k}, group_size={g} and scale_factor={s} on features of '
                f'shape {tuple(features.shape)} need more scratch memory than 64 bits '
                'can count; use smaller ones'
            )
        scratch = torch.empty(count, dtype=torch.uint8, device=features.device)
        self._call(operation, address, scratch.data_ptr())
