"""FLOPs of the compiled operators, for the counters of torch and of mmengine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..utils.torch_compat import register_flop_formula


def _multiply_adds(
    features: Sequence[int], sizes: Sequence[int], is_sampled: bool
) -> int:
    """Multiply-adds of the reassembly and, 4 a value, of sampling its kernels."""
    n, c, h, w = features
    k, g, s = sizes
    values = n * h * w * s * s * k * k
    return values * (c + 4 * g * is_sampled)


def _torch_flops(at: int, is_sampled: bool) -> Callable[..., int]:
    """A formula for torch's counter, which counts a multiply-add as two.

    Args:
        at (int): The position of the features in the operator's arguments.
        is_sampled (bool): Whether kernels are sampled.
    """
    # a gradient repeats the products of the forward once
    return lambda *args, out_shape=None, **kwargs: (
        2 * _multiply_adds(args[at], args[-3:], is_sampled)
    )


def _mmengine_flops(at: int, is_sampled: bool) -> Callable[..., int]:
    """A handle for mmengine's analyzer, which counts a multiply-add as one."""

    def count(inputs: list, outputs: list) -> int:
        sizes = [value.toIValue() for value in inputs[-3:]]
        return _multiply_adds(inputs[at].type().sizes(), sizes, is_sampled)

    return count


def register(name: str) -> None:
    """Register the FLOPs of an operator of ``torch.ops.dlu_mmdet``."""
    at, is_sampled = int('backward' in name), name.startswith('dlu')
    register_flop_formula(getattr(torch.ops.dlu_mmdet, name))(
        _torch_flops(at, is_sampled)
    )
    try:
        from mmengine.analysis import complexity_analysis
    except ImportError:  # the operators work without mmengine
        return
    # the analyzers offer no public way to extend their defaults
    op = f'dlu_mmdet::{name}'
    complexity_analysis._DEFAULT_SUPPORTED_FLOP_OPS[op] = _mmengine_flops(
        at, is_sampled
    )
    complexity_analysis._DEFAULT_SUPPORTED_ACT_OPS[op] = (
        complexity_analysis.generic_activation_jit(name)
    )
