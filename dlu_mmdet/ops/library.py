"""The compiled operators as torch sees them.

Declares the operators, loads what is built and registers shapes for tracing,
derivatives and FLOPs. Autocast needs no rule: an operator takes tensors
of different floating dtypes and returns that of ``features``, so float32 kernels
from an autocast softmax meet half-precision features without a cast.

Environment: ``DLU_MMDET_NO_EXT=1`` ignores what is built, ``DLU_MMDET_LIBRARY`` names
a library to load instead, which registers kernels of its own with torch, and
``DLU_MMDET_ISA`` (``avx512``, ``avx2`` or ``generic``) the CPU loops to run. Another
value is a ValueError.
"""

from __future__ import annotations

import os
import sysconfig
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..utils.torch_compat import register_fake, register_flop_formula
from . import autograd
from .cpu import Operators, Shapes

_SIZES = 'int kernel_size, int group_size, int scale_factor'
_DLU = f'Tensor features, Tensor kernels, Tensor offsets, {_SIZES}'
_CARAFE = f'Tensor features, Tensor masks, {_SIZES}'
# features (N, C, H, W)    kernels (N, G*K*K, H, W)    offsets (N, G*2*s*s, H, W)
# masks (N, G*K*K, s*H, s*W)                           out, grad (N, C, s*H, s*W)
_SCHEMAS = dict(
    dlu=f'({_DLU}) -> Tensor',
    dlu_backward_features=f'(Tensor grad, {_DLU}) -> Tensor',
    dlu_backward_kernels=f'(Tensor grad, {_DLU}) -> (Tensor, Tensor)',
    carafe=f'({_CARAFE}) -> Tensor',
    carafe_backward_features=f'(Tensor grad, {_CARAFE}) -> Tensor',
    carafe_backward_masks=f'(Tensor grad, {_CARAFE}) -> Tensor',
)
_OPERATORS = torch.library.Library('dlu_mmdet', 'DEF')
for _name, _schema in _SCHEMAS.items():
    _OPERATORS.define(_name + _schema)


def _setting(name: str, *allowed: str) -> str:
    """An environment variable's value; '' where it is not set.

    Raises:
        ValueError: If it is none of those allowed.
    """
    value = os.environ.get(name, '')
    if value and value not in allowed:
        raise ValueError(
            f'the environment variable {name} must be {" or ".join(allowed)}, or not '
            f'set, got {value!r}'
        )
    return value


_NO_EXT = _setting('DLU_MMDET_NO_EXT', '0', '1') == '1'
_ISA = _setting('DLU_MMDET_ISA', 'avx512', 'avx2', 'generic')
_FOLDER = Path(__file__).parent.parent
_REINSTALL = 'pip install --no-build-isolation --force-reinstall --no-deps'


def _load_cpu() -> Operators | None:
    """The CPU's operators, registered."""
    file = _FOLDER / '_C.abi3.so'
    if not file.is_file():
        reason = 'the extension is not built; reinstall with a C++ compiler present'
        _warn_of_plain('', reason)
        return None
    try:
        operators = Operators(file)
    except (OSError, AttributeError) as error:  # or one of an older state
        _warn_of_plain('', f'{error}; rebuild it with {_REINSTALL}')
        return None
    if _ISA and operators.loops != _ISA:
        raise ValueError(
            f'the environment variable DLU_MMDET_ISA asks for {_ISA}, which this '
            'processor does not run or the extension was built without; leave it out '
            'for the widest that it runs'
        )
    for name in _SCHEMAS:
        _OPERATORS.impl(name, getattr(operators, name), 'CPU')
    return operators


def _load_cuda() -> None:
    """Those of CUDA, which register themselves and serve one release of torch."""
    torch_tag = '_'.join(('torch', *torch.__version__.split('.')[:2]))
    suffix = sysconfig.get_config_var('EXT_SUFFIX')
    file = _FOLDER / f'_C_cuda_{torch_tag}{suffix}'
    others = any(_FOLDER.glob('_C_cuda_*'))
    if file.is_file():
        try:
            torch.ops.load_library(file)
            return
        except OSError:  # undefined symbols, or a library that is missing
            others = True
    if others:
        reason = (
            f'the extension was built for another torch than {torch.__version__}, or '
            f'another Python; rebuild it with {_REINSTALL}'
        )
    else:
        reason = (
            f'the extension was built for the CPU only; install the CUDA toolkit '
            f'{torch.version.cuda}, let CUDA_HOME name it and reinstall with '
            f'{_REINSTALL}'
        )
    if torch.cuda.is_available():
        _warn_of_plain(' on CUDA', reason)


def _device_types() -> frozenset[str]:
    """The device types that the loaded operators have kernels for."""
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return frozenset(
        key.lower() for key in ('CPU', 'CUDA') if has_kernel('dlu_mmdet::dlu', key)
    )


def _warn_of_plain(device: str, reason: str) -> None:
    """Say why the slower operators run, and what to do."""
    warnings.warn(
        f'dlu_mmdet runs on its plain PyTorch operators{device}, which are much '
        f'slower: {reason}',
        stacklevel=3,
    )


_CPU = None
if _named := os.environ.get('DLU_MMDET_LIBRARY'):
    if not os.path.isfile(_named):
        raise FileNotFoundError(
            f'the environment variable DLU_MMDET_LIBRARY names no file: {_named!r}'
        )
    torch.ops.load_library(_named)
elif not _NO_EXT:
    _CPU = _load_cpu()
    _load_cuda()
_DEVICE_TYPES = _device_types()


def is_available(device_type: str) -> bool:
    """Whether the extension has kernels for a device type, as 'cpu' or 'cuda'."""
    return device_type in _DEVICE_TYPES


def cpu_loops() -> str | None:
    """The CPU loops that run here: 'avx512', 'avx2' or 'generic'; None: not built."""
    return _CPU.loops if _CPU else None


def handles(features: Tensor) -> bool:
    """Whether the compiled operators should take this call.

    They do where they were built for the device, except in an export to ONNX, whose
    result has to run without this package.
    """
    return features.device.type in _DEVICE_TYPES and not torch.onnx.is_in_onnx_export()


def dlu(
    features: Tensor,
    kernels: Tensor,
    offsets: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> Tensor:
    """Compiled :func:`dlu_mmdet.ops.dlu`: same arguments, same result.

    Differentiable any number of times, in reverse and in forward mode; what goes beyond
    the first gradients holds kernels at output resolution. CPU results do not depend on
    the number of threads; on CUDA the gradient of ``kernels`` is a sum in no fixed
    order.

    Raises:
        ValueError: If a shape, a size or a device does not fit.
        TypeError: If a dtype is not float32, float64, float16 or bfloat16.
    """
    return torch.ops.dlu_mmdet.dlu(
        features, kernels, offsets, kernel_size, group_size, scale_factor
    )


def carafe(
    features: Tensor,
    masks: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> Tensor:
    """Compiled :func:`dlu_mmdet.ops.carafe`: same arguments, same result.

    Differentiable any number of times, in reverse and in forward mode. CPU results do
    not depend on the number of threads.

    Raises:
        ValueError: If a shape, a size or a device does not fit.
        TypeError: If a dtype is not float32, float64, float16 or bfloat16.
    """
    return torch.ops.dlu_mmdet.carafe(
        features, masks, kernel_size, group_size, scale_factor
    )


def window_scores(
    features: Tensor,
    queries: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> Tensor:
    """Compiled :func:`dlu_mmdet.ops.window_scores`: same arguments, same result.

    Differentiable any number of times, in reverse and in forward mode. CPU results do
    not depend on the number of threads.

    Raises:
        ValueError: If a shape, a size or a device does not fit.
        TypeError: If a dtype is not float32, float64, float16 or bfloat16.
    """
    n, _, h, w = features.shape
    # the operator takes the masks' shape and dtype from them, and no value
    masks = features.new_empty(()).expand(
        n, group_size * kernel_size**2, h * scale_factor, w * scale_factor
    )
    return torch.ops.dlu_mmdet.carafe_backward_masks(
        queries.to(features.dtype),
        features,
        masks,
        kernel_size,
        group_size,
        scale_factor,
    )


# ---- FLOPs ---------------------------------------------------------------------


def _multiply_adds(
    features: Sequence[int],
    kernel_size: int,
    group_size: int,
    scale_factor: int,
    sampling: bool,
) -> tuple[int, int]:
    """Multiply-adds of the reassembly and, 4 a value, of sampling its kernels."""
    n, c, h, w = features
    values = n * h * w * scale_factor**2 * kernel_size**2
    return values * c, 4 * values * group_size if sampling else 0


def _dlu_flops(
    features, kernels, offsets, kernel_size, group_size, scale_factor, *args, **kwargs
) -> int:
    return 2 * sum(
        _multiply_adds(features, kernel_size, group_size, scale_factor, True)
    )


def _carafe_flops(
    features, masks, kernel_size, group_size, scale_factor, *args, **kwargs
) -> int:
    return 2 * sum(
        _multiply_adds(features, kernel_size, group_size, scale_factor, False)
    )


def _backward_flops(forward: Callable[..., int]) -> Callable[..., int]:
    # each gradient repeats the products of the forward once
    return lambda grad, *args, **kwargs: forward(*args, **kwargs)


def _mmengine_flops(sampling: bool, at: int) -> Callable[..., int]:
    """A handle for mmengine's analyzer, which counts a multiply-add as one.

    Args:
        sampling (bool): Whether kernels are sampled.
        at (int): Which argument of the operator the features are.
    """

    def count(inputs: list, outputs: list) -> int:
        kernel_size, group_size, scale_factor = (
            value.toIValue() for value in inputs[-3:]
        )
        features = inputs[at].type().sizes()
        return sum(
            _multiply_adds(features, kernel_size, group_size, scale_factor, sampling)
        )

    return count


def _register() -> None:
    shapes = Shapes()
    for name in _SCHEMAS:
        op = f'dlu_mmdet::{name}'
        flops = _dlu_flops if name.startswith('dlu') else _carafe_flops
        if 'backward' in name:
            flops = _backward_flops(flops)
        register_fake(op, getattr(shapes, name))
        autograd.register(_OPERATORS, name)
        register_flop_formula(getattr(torch.ops.dlu_mmdet, name))(flops)
    try:
        from mmengine.analysis import complexity_analysis
    except ImportError:  # the operators work without mmengine
        return
    # the analyzers offer no public way to extend their defaults
    flops = complexity_analysis._DEFAULT_SUPPORTED_FLOP_OPS
    activations = complexity_analysis._DEFAULT_SUPPORTED_ACT_OPS
    # the last of them is what window_scores runs in its forward
    for name, at in dict(dlu=0, carafe=0, carafe_backward_masks=1).items():
        op = f'dlu_mmdet::{name}'
        flops[op] = _mmengine_flops(name == 'dlu', at)
        activations[op] = complexity_analysis.generic_activation_jit(name)


if _DEVICE_TYPES:
    _register()
