"""Derivatives of the compiled operators: reverse and forward mode, of any order.

They are registered where those of torch's own operators are, so dual tensors and the
transforms of :mod:`torch.func` work with them.

CARAFE and its two gradients are sums of one product, ``grad * features * masks``, each
over what the other two do not have. So the derivatives of each are the other two.

DLU is CARAFE with sampled masks. Its first gradients have kernels of their own; what
goes beyond takes this formula, and only then the masks (N, G*K*K, s*H, s*W) exist::

    dlu(features, kernels, offsets) = carafe(features, masks(kernels, offsets))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch._functorch.utils import (
    enable_single_level_autograd_function,
    unwrap_dead_wrappers,
)
from torch.autograd import forward_ad

from ..torch_compat import register_vmap
from .reference import Sampler, accumulation_dtype

_OPS = torch.ops.dlu_mmdet


def register(library: torch.library.Library, name: str) -> None:
    """Register an operator's derivatives, and how vmap batches it.

    Args:
        library (torch.library.Library): What defines it.
        name (str): Its name there.
    """
    op = getattr(_OPS, name).default
    library.impl(name, _autograd_kernel(op, *_RULES[name]), 'Autograd')
    register_vmap(f'dlu_mmdet::{name}', _batching_rule(op))


def _autograd_kernel(
    op: Callable,
    backward: Callable,
    factors: Sequence[int] = (),
    formula: Callable | None = None,
) -> Callable:
    """What autograd runs for an operator.

    Args:
        op (Callable): The operator.
        backward (Callable): As in ``torch.autograd.Function``, for the tensors alone;
            the context has ``sizes`` beside the saved tensors.
        factors (Sequence[int]): The arguments that it is a product of.
        formula (Callable, optional): For an operator that is no product: what to call
            for arguments with tangents. Defaults to None.
    """

    def below(*args):
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    # torch.autograd.Function would start torch.func again, which has called the kernel
    class Derivative(torch.autograd.function._SingleLevelFunction):
        @staticmethod
        def forward(ctx, *args):
            ctx.save_for_backward(*args[:-3])
            ctx.sizes = args[-3:]
            if forward_ad._current_level >= 0:
                ctx.save_for_forward(*args[:-3])
                ctx.set_materialize_grads(False)
            if not torch._C._are_functorch_transforms_active():
                return below(*args)
            # the outer levels of torch.func differentiate what is called here
            with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
                return below(*args)

        @staticmethod
        def backward(ctx, *grads):
            if all(grad is None for grad in grads):
                return (None,) * len(ctx.needs_input_grad)
            return (*backward(ctx, *grads), None, None, None)

        @staticmethod
        def jvp(ctx, *tangents):
            # forward mode is off here, and an outer level may differentiate this
            with forward_ad._set_fwd_grad_enabled(True):
                primals = [forward_ad.unpack_dual(v).primal for v in ctx.saved_tensors]
                terms = [
                    op(*primals[:i], tangents[i], *primals[i + 1 :], *ctx.sizes)
                    for i in factors
                    if tangents[i] is not None
                ]
                if not terms:  # of an argument that only says a shape
                    return torch.zeros_like(op(*primals, *ctx.sizes))
                return sum(terms[1:], terms[0])

    Derivative._backward_cls.__name__ = f'{op.name()}_backward'

    def kernel(*args):
        tensors = args[:-3]
        has_tangent = forward_ad._current_level >= 0 and any(
            forward_ad.unpack_dual(v).tangent is not None for v in tensors
        )
        if has_tangent and formula is not None:
            return formula(*args)
        has_grad = torch.is_grad_enabled() and any(v.requires_grad for v in tensors)
        if not (has_grad or has_tangent):
            return below(*args)
        if not torch._C._are_functorch_transforms_active():
            return Derivative.apply(*args)
        with enable_single_level_autograd_function():
            return Derivative.apply(*args)

    return kernel


def _batching_rule(op: Callable) -> Callable:
    """What vmap runs for an operator: its batch and the images are one dimension."""

    def rule(info, in_dims, *args):
        def merge(arg, dim):
            if not isinstance(arg, Tensor):
                return arg
            if dim is None:
                arg = arg.expand(info.batch_size, *arg.shape)
            else:
                arg = arg.movedim(dim, 0)
            return arg.flatten(0, 1)

        def split(out):
            return out.reshape(
                info.batch_size, out.shape[0] // info.batch_size, *out.shape[1:]
            )

        out = op(*map(merge, args, in_dims))
        if isinstance(out, Tensor):
            return split(out), 0
        return tuple(map(split, out)), (0,) * len(out)

    return rule


# ---- carafe and its gradients --------------------------------------------------


def _carafe_backward(ctx, grad: Tensor) -> tuple:
    args = (grad, *ctx.saved_tensors, *ctx.sizes)
    grads = [None, None]
    if ctx.needs_input_grad[0]:
        grads[0] = _OPS.carafe_backward_features(*args)
    if ctx.needs_input_grad[1]:
        grads[1] = _OPS.carafe_backward_masks(*args)
    return tuple(grads)


def _carafe_features_backward(ctx, grad: Tensor) -> tuple:
    (grad_out, _, masks), sizes = ctx.saved_tensors, ctx.sizes
    grads = [None, None, None]
    if ctx.needs_input_grad[0]:
        grads[0] = _OPS.carafe(grad, masks, *sizes)
    if ctx.needs_input_grad[2]:
        grads[2] = _OPS.carafe_backward_masks(grad_out, grad, masks, *sizes)
    return tuple(grads)


def _carafe_masks_backward(ctx, grad: Tensor) -> tuple:
    (grad_out, features, _), sizes = ctx.saved_tensors, ctx.sizes
    grads = [None, None, None]
    if ctx.needs_input_grad[0]:
        grads[0] = _OPS.carafe(features, grad, *sizes)
    if ctx.needs_input_grad[1]:
        grads[1] = _OPS.carafe_backward_features(grad_out, features, grad, *sizes)
    return tuple(grads)


# ---- dlu and its gradients, by the formula -------------------------------------


def _masks(
    features: Tensor, kernels: Tensor, offsets: Tensor, k: int, g: int, s: int
) -> Tensor:
    """Kernels (N, G*K*K, H, W) at every output pixel: (N, G*K*K, s*H, s*W)."""
    n, _, h, w = kernels.shape
    dtype = accumulation_dtype(features.dtype)
    sample = Sampler(offsets, g, s, dtype)
    planes = kernels.to(dtype).reshape(n, g, k * k, h * w)
    masks = torch.stack([sample(plane) for plane in planes.unbind(2)], dim=2)
    # (N, G*K*K, i, j, y, x) to (N, G*K*K, y, i, x, j)
    masks = masks.reshape(n, g * k * k, s, s, h, w).permute(0, 1, 4, 2, 5, 3)
    return masks.reshape(n, g * k * k, h * s, w * s)


def _dlu(features: Tensor, *args) -> Tensor:
    return _OPS.carafe(features, _masks(features, *args), *args[2:])


def _dlu_features(grad: Tensor, features: Tensor, *args) -> Tensor:
    masks = _masks(features, *args)
    return _OPS.carafe_backward_features(grad, features, masks, *args[2:])


def _dlu_kernels(
    grad: Tensor,
    features: Tensor,
    kernels: Tensor,
    offsets: Tensor,
    k: int,
    g: int,
    s: int,
) -> tuple[Tensor, Tensor]:
    n, _, h, w = kernels.shape
    dtype = accumulation_dtype(features.dtype)
    # the operator takes the masks' shape and dtype from them, and no value
    masks = features.new_empty((), dtype=dtype).expand(n, g * k * k, h * s, w * s)
    grads = _OPS.carafe_backward_masks(grad, features, masks, k, g, s)
    # (N, G, K*K, y, i, x, j) to (N, G, K*K, i, j, y, x)
    grads = grads.reshape(n, g, k * k, h, s, w, s).permute(0, 1, 2, 4, 6, 3, 5)
    grad_kernels, grad_offsets = Sampler(offsets, g, s, dtype).backward(
        kernels.to(dtype).reshape(n, g, k * k, h * w),
        grads.reshape(n, g, k * k, s * s * h * w),
    )
    return (
        grad_kernels.reshape(kernels.shape).to(kernels.dtype),
        grad_offsets.reshape(offsets.shape).to(offsets.dtype),
    )


def _dlu_backward(ctx, grad: Tensor) -> tuple:
    args = (grad, *ctx.saved_tensors, *ctx.sizes)
    grads = [None, None, None]
    if ctx.needs_input_grad[0]:
        grads[0] = _OPS.dlu_backward_features(*args)
    if any(ctx.needs_input_grad[1:3]):
        grads[1:] = _OPS.dlu_backward_kernels(*args)
    return tuple(grads)


def _dlu_features_backward(ctx, grad: Tensor) -> tuple:
    (grad_out, _, *sampled), sizes = ctx.saved_tensors, ctx.sizes
    grads = [None, None, None, None]
    if ctx.needs_input_grad[0]:
        grads[0] = _OPS.dlu(grad, *sampled, *sizes)
    if any(ctx.needs_input_grad[2:4]):
        grads[2:] = _OPS.dlu_backward_kernels(grad_out, grad, *sampled, *sizes)
    return tuple(grads)


def _dlu_kernels_backward(ctx, *grads: Tensor) -> tuple:
    # of a transform of torch.func that has ended
    inputs = unwrap_dead_wrappers(ctx.saved_tensors)
    needed = [i for i in range(len(inputs)) if ctx.needs_input_grad[i]]

    def formula(*some):
        args = list(inputs)
        for i, value in zip(needed, some):
            args[i] = value
        return _dlu_kernels(*args, *ctx.sizes)

    outputs, backward = torch.func.vjp(formula, *(inputs[i] for i in needed))
    grads = tuple(
        torch.zeros_like(out) if grad is None else grad
        for out, grad in zip(outputs, unwrap_dead_wrappers(grads))
    )
    results = [None] * len(inputs)
    for i, grad in zip(needed, backward(grads)):
        results[i] = grad
    return tuple(results)


# the arguments of _autograd_kernel behind the first
_RULES = dict(
    dlu=(_dlu_backward, (), _dlu),
    dlu_backward_features=(_dlu_features_backward, (), _dlu_features),
    dlu_backward_kernels=(_dlu_kernels_backward, (), _dlu_kernels),
    carafe=(_carafe_backward, (0, 1)),
    carafe_backward_features=(_carafe_features_backward, (0, 2)),
    carafe_backward_masks=(_carafe_masks_backward, (0, 1)),
)
