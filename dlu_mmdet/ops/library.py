"""The compiled operators as torch sees them.

Declares the operators, loads what is built and registers kernels, shapes for tracing,
derivatives and FLOPs. Autocast needs no rule: an operator takes tensors
of different floating dtypes and returns that of ``features``, so float32 kernels
from an autocast softmax meet half-precision features without a cast.

The operators are differentiable any number of times, in reverse and in forward mode;
what goes beyond the first gradients holds kernels at output resolution. CPU results do
not depend on the number of threads, and denormal numbers count as zero in them. On CUDA
the gradients of DLU's ``kernels`` and ``offsets`` are sums in no fixed order.

Environment: ``DLU_MMDET_NO_EXT=1`` ignores what is built, ``DLU_MMDET_LIBRARY`` names
a library to load instead, which registers its kernels with torch itself,
``DLU_MMDET_ISA`` (``avx512``, ``avx2`` or ``generic``) the CPU loops to run, and
``DLU_MMDET_BACKEND`` (``cuda``, ``triton`` or ``plain``) what runs on a GPU: by default
the compiled operators, without them Triton's, without Triton plain PyTorch. Another
value, or a backend that is not there, is a ValueError.
"""

from __future__ import annotations

import os
import sysconfig
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..stacks import triton_problem
from ..utils.torch_compat import register_fake
from . import autograd, flops, triton
from .backend import Backend
from .checks import check_arguments
from .cpu import Operators
from .tracing import untraced

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
_BACKEND = _setting('DLU_MMDET_BACKEND', 'cuda', 'triton', 'plain')
_FOLDER = Path(__file__).parent.parent
_REINSTALL = 'pip install --no-build-isolation --force-reinstall --no-deps'


def implement(backend: Backend, key: str) -> None:
    """Make a backend the kernels of a dispatch key, as 'CPU' or 'CUDA'."""
    for name in _SCHEMAS:
        _OPERATORS.impl(name, untraced(getattr(backend, name)), key)


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
    implement(operators, 'CPU')
    return operators


def _load_cuda() -> str:
    """Those of CUDA, which register themselves and serve one release of torch.

    Returns:
        str: '' if they are loaded, else why not.
    """
    torch_tag = '_'.join(('torch', *torch.__version__.split('.')[:2]))
    suffix = sysconfig.get_config_var('EXT_SUFFIX')
    file = _FOLDER / f'_C_cuda_{torch_tag}{suffix}'
    if torch.version.cuda is None:
        return (
            f'torch {torch.__version__} is not built for CUDA; install a CUDA build of '
            f'torch and reinstall with {_REINSTALL}'
        )
    others = any(_FOLDER.glob('_C_cuda_*'))
    if file.is_file():
        try:
            torch.ops.load_library(file)
            return ''
        except OSError:  # undefined symbols, or a library that is missing
            others = True
    if others:
        return (
            f'the extension was built for another torch than {torch.__version__}, or '
            f'another Python; rebuild it with {_REINSTALL}'
        )
    return (
        f'the extension was built for the CPU only; install the CUDA toolkit '
        f'{torch.version.cuda}, let CUDA_HOME name it and reinstall with '
        f'{_REINSTALL}'
    )


def _load_gpu() -> str:
    """The operators of a GPU that were asked for, or the fastest that are there.

    Returns:
        str: 'cuda', 'triton' or 'plain'.

    Raises:
        ValueError: If those that were asked for are not there.
    """
    reason = 'DLU_MMDET_NO_EXT=1 ignores them'
    if _BACKEND in ('', 'cuda') and not _NO_EXT:
        if not (reason := _load_cuda()):
            return 'cuda'
    if _BACKEND == 'cuda':
        raise ValueError(
            'the environment variable DLU_MMDET_BACKEND asks for the CUDA operators, '
            f'which are not there: {reason}'
        )
    if _BACKEND == 'plain' or (_NO_EXT and not _BACKEND):
        return 'plain'
    problem = triton_problem()
    if not problem:
        implement(triton.Operators(), 'CUDA')
        return 'triton'
    if _BACKEND:
        raise ValueError(
            f'the environment variable DLU_MMDET_BACKEND asks for Triton, but {problem}'
        )
    if torch.cuda.is_available():
        _warn_of_plain(' on CUDA', reason)
    return 'plain'


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


_CPU, _GPU = None, 'cuda'
if _named := os.environ.get('DLU_MMDET_LIBRARY'):
    if not os.path.isfile(_named):
        raise FileNotFoundError(
            f'the environment variable DLU_MMDET_LIBRARY names no file: {_named!r}'
        )
    if _BACKEND in ('triton', 'plain'):
        raise ValueError(
            'the environment variables DLU_MMDET_LIBRARY and DLU_MMDET_BACKEND='
            f'{_BACKEND} exclude each other; set one of them'
        )
    try:
        torch.ops.load_library(_named)
    except OSError as error:
        raise ValueError(
            'the environment variable DLU_MMDET_LIBRARY names a file that does not '
            f'load as a library of this torch: {error.__cause__ or error}'
        ) from error
else:
    _CPU = None if _NO_EXT else _load_cpu()
    _GPU = _load_gpu()
_DEVICE_TYPES = _device_types()


def other_backends(device_type: str) -> list[dict[str, str]]:
    """Environment variables for the other operators that a device type has here.

    Args:
        device_type (str): As in ``tensor.device.type``.

    Returns:
        list[dict[str, str]]: The fastest first; none where a variable chose already.
    """
    if _named or _NO_EXT or _BACKEND or not is_available(device_type):
        return []
    if device_type != 'cuda':
        return [dict(DLU_MMDET_NO_EXT='1')]
    names = ['plain']
    if _GPU == 'cuda' and not triton_problem():
        names.insert(0, 'triton')
    return [dict(DLU_MMDET_BACKEND=name) for name in names]


def is_available(device_type: str) -> bool:
    """Whether operators are loaded for a device type, as 'cpu' or 'cuda'."""
    return device_type in _DEVICE_TYPES


def gpu_backend() -> str:
    """What runs on a GPU: 'cuda' (compiled), 'triton' or 'plain' (PyTorch)."""
    return _GPU


def cpu_loops() -> str | None:
    """The CPU loops that run here: 'avx512', 'avx2' or 'generic'; None: not built."""
    return _CPU.loops if _CPU else None


def handles(features: Tensor) -> bool:
    """Whether the compiled operators should take this call.

    They do where they were built for the device, except in an export to ONNX, whose
    result has to run without this package.
    """
    return features.device.type in _DEVICE_TYPES and not torch.onnx.is_in_onnx_export()


dlu: Callable[..., Tensor] = torch.ops.dlu_mmdet.dlu
carafe: Callable[..., Tensor] = torch.ops.dlu_mmdet.carafe


def window_scores(features: Tensor, queries: Tensor, *sizes: int) -> Tensor:
    """Compiled :func:`dlu_mmdet.ops.window_scores`: same arguments, same result."""
    check_arguments(features, sizes, queries=queries)
    n, _, h, w = features.shape
    k, g, s = sizes
    # the operator reads the masks' shape and dtype and no value
    masks = features.new_empty(()).expand(n, g * k * k, h * s, w * s)
    queries = queries.to(features.dtype)
    return torch.ops.dlu_mmdet.carafe_backward_masks(queries, features, masks, *sizes)


def _register() -> None:
    """Register what does not depend on the device."""
    shapes = Backend()
    for name in _SCHEMAS:
        register_fake(f'dlu_mmdet::{name}', getattr(shapes, name))
        autograd.register(_OPERATORS, name)
        flops.register(name)


if _DEVICE_TYPES:
    _register()
