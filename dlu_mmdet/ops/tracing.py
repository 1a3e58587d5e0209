"""Functions that torch's tracers do not look into."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

import torch.fx
from torch._compile import _disable_dynamo

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


def untraced(kernel: Callable) -> Callable:
    """Keep ``torch.compile`` out of a kernel of the dispatcher.

    After a graph break it would take the frames of such a kernel for the user's code.
    """

    @_disable_dynamo  # unlike torch.compiler.disable loads the compiler when called
    def disabled(*args):
        return kernel(*args)

    def run(*args):
        return (disabled if 'torch._dynamo' in sys.modules else kernel)(*args)

    return run
