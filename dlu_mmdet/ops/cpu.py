"""The compiled operators of the CPU: C functions that take addresses.

The library of csrc/cpu links neither libtorch nor libpython, so one build serves every
version of both.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from .backend import BACKWARD_KERNELS, Backend
from .checks import DTYPES
from .reference import is_channels_last

# where torch has it: data_ptr makes the copy that a lazy one stands for
_address = getattr(Tensor, 'const_data_ptr', Tensor.data_ptr)
_CODES = {dtype: code for code, dtype in enumerate(DTYPES)}
_NONE = (0,) * 6
_pack = struct.Struct('=52q').pack  # ten numbers and seven tensors


def _described(tensor: Tensor | None) -> tuple[int, ...]:
    """What read_map of reassembly.cpp reads."""
    if tensor is None:
        return _NONE
    return (_address(tensor), _CODES[tensor.dtype], *tensor.stride())


def _dense(grad: Tensor) -> Tensor:
    if grad.is_contiguous() or is_channels_last(grad):
        return grad
    return grad.contiguous()


class Operators(Backend):
    """The operators of a library of csrc/cpu.

    Args:
        path (str | PathLike): The file of the library.

    Raises:
        OSError: If it cannot be loaded.
        AttributeError: If it is another library, or of another version.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        library = ctypes.CDLL(os.fspath(path))
        library.dlu_mmdet_loops.restype = ctypes.c_char_p
        self.loops = library.dlu_mmdet_loops().decode()
        call = (ctypes.c_int, ctypes.c_char_p)
        self._scratch, self._call = (
            library.dlu_mmdet_scratch_bytes,
            library.dlu_mmdet_compute,
        )
        self._scratch.argtypes, self._scratch.restype = call, ctypes.c_int64
        self._call.argtypes, self._call.restype = (*call, ctypes.c_void_p), None

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
        if grad is not None:
            grad = _dense(grad)
        if operation == BACKWARD_KERNELS:
            results = (None, *results)
        out, of_kernels, of_offsets = (*results, None, None)[:3]
        values = _pack(
            *features.shape,
            *sizes,
            torch.get_num_threads(),
            is_channels_last(features),
            offsets is None,
            *_described(features),
            *_described(kernels),
            *_described(offsets),
            *_described(grad),
            *_described(out),
            *_described(of_kernels),
            *_described(of_offsets),
        )
        # torch's own memory begins at a cache line, and its profiler sees it
        count = self._scratch(operation, values)
        if count < 0:
            k, g, s = sizes
            raise ValueError(
                f'kernel_size={k}, group_size={g} and scale_factor={s} on features of '
                f'shape {tuple(features.shape)} need more scratch memory than 64 bits '
                'can count; use smaller ones'
            )
        scratch = torch.empty(count, dtype=torch.uint8, device=features.device)
        self._call(operation, values, scratch.data_ptr())
