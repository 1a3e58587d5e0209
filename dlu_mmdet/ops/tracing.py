"""Functions that ``torch.fx`` records as one call instead of tracing into them."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch.fx

_LEAVES: dict[str, Callable] = {}


def leaf(function: Callable) -> Callable:
    """Make a function a leaf of ``torch.fx``, whoever calls it.

    Its body may then depend on sizes and types, which a symbolic trace does not know.
    ``torch.fx.wrap`` alone does so for the calls within one module.
    """
    name = f'{function.__module__}.{function.__qualname__}'
    _LEAVES[name] = function

    @functools.wraps(function)
    def call(*args, **kwargs):
        return _call(name, *args, **kwargs)

    return call


@torch.fx.wrap
def _call(name: str, *args, **kwargs):
    return _LEAVES[name](*args, **kwargs)
