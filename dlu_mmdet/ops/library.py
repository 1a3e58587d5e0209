"""The compiled operators as torch sees them.

Declares the operators, loads what is built and registers shapes for tracing,
derivatives and FLOPs. Autocast needs no rule: an operator takes tensors
of different floating dtypes and returns that of ``features``, so float32 kernels
from an autocast softmax meet half-precision features without a cast.

Environment: ``DLU_MMDET_NO_EXT=1`` ignores what is built, ``DLU_MMDET_LIBRARY`` names
a library to load instead, which registers kernels of its own with torch, and
``DLU_MMDET_ISA`` (``avx512``, ``avx2`` or ``generic``) the CPU loops to run.
"""

from __future__ import annotations

import os
import sysconfig
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..torch_compat import register_autograd, register_fake, register_flop_formula
from .cpu import Operators, empty

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
    torch.ops.load_library(_named)
elif os.environ.get('DLU_MMDET_NO_EXT') != '1':
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

    Differentiable once. CPU results do not depend on the number of threads; on
    CUDA the gradient of ``kernels`` is a sum in no fixed order.

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

    Differentiable any number of times. CPU results do not depend on the number of
    threads.

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

    Differentiable any number of times. CPU results do not depend on the number of
    threads.

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


# ---- shapes, for fake tensors --------------------------------------------------


def _fake_forward(features: Tensor, *args) -> Tensor:
    n, c, h, w = features.shape
    s = args[-1]
    return empty(features, (n, c, h * s, w * s))


def _fake_features(grad: Tensor, features: Tensor, *args) -> Tensor:
    return empty(features, features.shape)


def _fake_kernels(
    grad: Tensor, features: Tensor, kernels: Tensor, offsets: Tensor, *args
) -> tuple[Tensor, Tensor]:
    return empty(kernels, kernels.shape), empty(offsets, offsets.shape)


def _fake_masks(grad: Tensor, features: Tensor, masks: Tensor, *args) -> Tensor:
    return empty(masks, masks.shape)


# ---- derivatives ---------------------------------------------------------------


def _save(ctx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*(v for v in inputs if isinstance(v, Tensor)))
    ctx.sizes = tuple(v for v in inputs if not isinstance(v, Tensor))


def _dlu_backward(ctx, grad: Tensor) -> tuple:
    args = (grad, *ctx.saved_tensors, *ctx.sizes)
    grads = [None, None, None]
    if ctx.needs_input_grad[0]:
        grads[0] = torch.ops.dlu_mmdet.dlu_backward_features(*args)
    if any(ctx.needs_input_grad[1:3]):
        grads[1:] = torch.ops.dlu_mmdet.dlu_backward_kernels(*args)
    return (*grads, None, None, None)


def _carafe_backward(ctx, grad: Tensor) -> tuple:
    args = (grad, *ctx.saved_tensors, *ctx.sizes)
    grads = [None, None]
    if ctx.needs_input_grad[0]:
        grads[0] = torch.ops.dlu_mmdet.carafe_backward_features(*args)
    if ctx.needs_input_grad[1]:
        grads[1] = torch.ops.dlu_mmdet.carafe_backward_masks(*args)
    return (*grads, None, None, None)


# carafe and its two gradients are sums of one product, grad * features * masks, each
# over what the other two do not have; so the derivatives of each are the other two


def _carafe_features_backward(ctx, grad: Tensor) -> tuple:
    (grad_out, _, masks), sizes = ctx.saved_tensors, ctx.sizes
    grads = [None, None, None]
    if ctx.needs_input_grad[0]:
        grads[0] = torch.ops.dlu_mmdet.carafe(grad, masks, *sizes)
    if ctx.needs_input_grad[2]:
        grads[2] = torch.ops.dlu_mmdet.carafe_backward_masks(
            grad_out, grad, masks, *sizes
        )
    return (*grads, None, None, None)


def _carafe_masks_backward(ctx, grad: Tensor) -> tuple:
    (grad_out, features, _), sizes = ctx.saved_tensors, ctx.sizes
    grads = [None, None, None]
    if ctx.needs_input_grad[0]:
        grads[0] = torch.ops.dlu_mmdet.carafe(features, grad, *sizes)
    if ctx.needs_input_grad[1]:
        grads[1] = torch.ops.dlu_mmdet.carafe_backward_features(
            grad_out, features, grad, *sizes
        )
    return (*grads, None, None, None)


def _no_second_derivative(ctx, *grads: Tensor) -> None:
    raise RuntimeError(
        'dlu_mmdet: the compiled dlu has first derivatives only; for second ones use '
        'dlu_mmdet.ops.reference or set DLU_MMDET_NO_EXT=1'
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
    fakes = dict(
        dlu=_fake_forward,
        dlu_backward_features=_fake_features,
        dlu_backward_kernels=_fake_kernels,
        carafe=_fake_forward,
        carafe_backward_features=_fake_features,
        carafe_backward_masks=_fake_masks,
    )
    derivatives = dict(
        dlu=_dlu_backward,
        dlu_backward_features=_no_second_derivative,
        dlu_backward_kernels=_no_second_derivative,
        carafe=_carafe_backward,
        carafe_backward_features=_carafe_features_backward,
        carafe_backward_masks=_carafe_masks_backward,
    )
    for name, fake in fakes.items():
        op = f'dlu_mmdet::{name}'
        flops = _dlu_flops if name.startswith('dlu') else _carafe_flops
        if 'backward' in name:
            flops = _backward_flops(flops)
        register_fake(op, fake)
        register_autograd(op, derivatives[name], setup_context=_save)
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
