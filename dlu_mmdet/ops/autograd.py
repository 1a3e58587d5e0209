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

import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch._functorch.utils import (
    enable_single_level_autograd_function,
    unwrap_dead_wrappers,
)
from torch.autograd import forward_ad

from ..utils.torch_compat import register_vmap
from .reference import Sampler, accumulation_dtype
from .tracing import untraced

_OPS = torch.ops.dlu_mmdet
_forward_mode = forward_ad._set_fwd_grad_enabled
_unpack_dual = torch._C._VariableFunctions._unpack_dual


def register(library: torch.library.Library, name: str) -> None:
    """Register an operator's derivatives, and how vmap batches it.

    Args:
        library (torch.library.Library): What defines it.
        name (str): Its name there.
    """
    op = getattr(_OPS, name).default
    kernel = _autograd_kernel(op, *_RULES[name])
    library.impl(name, untraced(kernel), 'Autograd')
    register_vmap(f'dlu_mmdet::{name}', _batching_rule(op))


def _autograd_kernel(op: Callable, backward: Callable, jvp: Callable) -> Callable:
    """What autograd runs for an operator.

    Args:
        op (Callable): The operator.
        backward (Callable): Takes which tensors need a gradient, the tensors, the sizes
            and the gradients of the results; gives those of the tensors.
        jvp (Callable): Takes the tensors, their tangents, None for none, and the sizes;
            gives the tangents of the results.
    """

    # torch.autograd.Function would start torch.func again, which has called the kernel
    class Derivative(torch.autograd.function._SingleLevelFunction):
        @staticmethod
        def forward(ctx, *args):
            *args, modes = args
            ctx.save_for_backward(*args[:-3])
            ctx.save_for_forward(*args[:-3])
            ctx.sizes = args[-3:]
            ctx.set_materialize_grads(False)
            with torch._C._AutoDispatchBelowAutograd():
                if modes is None:
                    return op(*args)
                # both are off in here, and the outer levels of torch.func come next
                with torch.set_grad_enabled(modes[0]), _forward_mode(modes[1]):
                    return op(*args)

        @staticmethod
        def backward(ctx, *grads):
            if all(grad is None for grad in grads):
                return (None,) * len(ctx.needs_input_grad)
            tensors = ctx.saved_tensors
            grads = backward(ctx.needs_input_grad, tensors, ctx.sizes, *grads)
            return (*grads, None, None, None, None)

        @staticmethod
        def jvp(ctx, *tangents):
            # off in here too, and an outer level may differentiate what is called
            with _forward_mode(True):
                return jvp(ctx.saved_tensors, tangents, ctx.sizes)

    Derivative._backward_cls.__name__ = f'{op.name()}_backward'

    def kernel(*args):
        if not torch._C._are_functorch_transforms_active():
            if _is_differentiated(args[:-3]):
                return Derivative.apply(*args, None)
            with torch._C._AutoDispatchBelowAutograd():
                return op(*args)
        modes = (torch.is_grad_enabled(), torch._C._is_fwd_grad_enabled())
        with enable_single_level_autograd_function():
            return Derivative.apply(*args, modes)

    return kernel


def _is_differentiated(tensors: Sequence[Tensor]) -> bool:
    """Whether a result may have a derivative; finding out costs less than a node."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return True
    # a compiled graph enters forward mode without Python's counter of levels
    if forward_ad._current_level < 0 and 'torch._dynamo' not in sys.modules:
        return False
    # a mode would see the question below
    if torch._C._len_torch_dispatch_stack():
        return True
    return any(_unpack_dual(tensor, level=0)[1] is not None for tensor in tensors)


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


def _tangent(out: Tensor) -> Tensor:
    tangent = forward_ad.unpack_dual(out, level=0).tangent
    return torch.zeros_like(out) if tangent is None else tangent


# ---- carafe and its gradients --------------------------------------------------


def _of_product(name: str, *factors: int) -> Callable:
    """The jvp of an operator that is a product of some of its tensors."""

    def jvp(tensors, tangents, sizes):
        op = getattr(_OPS, name)
        primals = [forward_ad.unpack_dual(v, level=0).primal for v in tensors]
        terms = [
            op(*primals[:i], tangents[i], *primals[i + 1 :], *sizes)
            for i in factors
            if tangents[i] is not None
        ]
        # without a term: of the tensor that says a shape alone
        return sum(terms[1:], terms[0]) if terms else _tangent(op(*primals, *sizes))

    return jvp


def _carafe_backward(needs, tensors, sizes, grad):
    args = (grad, *tensors, *sizes)
    return (
        _OPS.carafe_backward_features(*args) if needs[0] else None,
        _OPS.carafe_backward_masks(*args) if needs[1] else None,
    )


def _carafe_features_backward(needs, tensors, sizes, grad):
    grad_out, _, masks = tensors
    args = (grad_out, grad, masks, *sizes)
    return (
        _OPS.carafe(*args[1:]) if needs[0] else None,
        None,
        _OPS.carafe_backward_masks(*args) if needs[2] else None,
    )


def _carafe_masks_backward(needs, tensors, sizes, grad):
    grad_out, features, _ = tensors
    args = (grad_out, features, grad, *sizes)
    return (
        _OPS.carafe(*args[1:]) if needs[0] else None,
        _OPS.carafe_backward_features(*args) if needs[1] else None,
        None,
    )


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


def _of_formula(formula: Callable) -> Callable:
    """The jvp of an operator that a formula of others equals."""

    def jvp(tensors, tangents, sizes):
        out = formula(*tensors, *sizes)
        return _tangent(out) if isinstance(out, Tensor) else tuple(map(_tangent, out))

    return jvp


def _dlu_backward(needs, tensors, sizes, grad):
    args = (grad, *tensors, *sizes)
    grads = [None, None, None]
    if needs[0]:
        grads[0] = _OPS.dlu_backward_features(*args)
    if any(needs[1:3]):
        grads[1:] = _OPS.dlu_backward_kernels(*args)
    return grads


def _dlu_features_backward(needs, tensors, sizes, grad):
    grad_out, _, *sampled = tensors
    grads = [None, None, None, None]
    if needs[0]:
        grads[0] = _OPS.dlu(grad, *sampled, *sizes)
    if any(needs[2:4]):
        grads[2:] = _OPS.dlu_backward_kernels(grad_out, grad, *sampled, *sizes)
    return grads


def _dlu_kernels_backward(needs, tensors, sizes, *grads):
    # of a transform of torch.func that has ended
    tensors, grads = map(unwrap_dead_wrappers, (tensors, grads))
    needed = [i for i in range(len(tensors)) if needs[i]]

    def formula(*some):
        args = list(tensors)
        for i, value in zip(needed, some):
            args[i] = value
        return _dlu_kernels(*args, *sizes)

    outputs, backward = torch.func.vjp(formula, *(tensors[i] for i in needed))
    grads = (
        torch.zeros_like(out) if grad is None else grad
        for out, grad in zip(outputs, grads)
    )
    results = [None] * len(tensors)
    for i, grad in zip(needed, backward(tuple(grads))):
        results[i] = grad
    return results


# of every operator: backward and jvp
_RULES = dict(
    dlu=(_dlu_backward, _of_formula(_dlu)),
    dlu_backward_features=(_dlu_features_backward, _of_formula(_dlu_features)),
    dlu_backward_kernels=(_dlu_kernels_backward, _of_formula(_dlu_kernels)),
    carafe=(_carafe_backward, _of_product('carafe', 0, 1)),
    carafe_backward_features=(
        _carafe_features_backward,
        _of_product('carafe_backward_features', 0, 2),
    ),
    carafe_backward_masks=(
        _carafe_masks_backward,
        _of_product('carafe_backward_masks', 0, 1),
    ),
)
