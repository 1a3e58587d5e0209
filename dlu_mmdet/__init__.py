"""Dynamic Lightweight Upsampling for MMDetection 3.x.

Importing the package registers its upsamplers, necks, heads, data sets, transforms
and hooks; configs do so with ``custom_imports = dict(imports=['dlu_mmdet'])``. With
torch alone there are :mod:`dlu_mmdet.ops`, :mod:`dlu_mmdet.upsamplers` and
:func:`replace_upsampling`.
"""

from typing import TYPE_CHECKING

from .stacks import DISTRIBUTIONS, check_stack, is_command, suppress_fork_notices

if TYPE_CHECKING:
    from .upsamplers.replace import replace_upsampling

__version__ = '0.1.0'


def register_all_modules() -> None:
    """Import every module of the package that registers something.

    Raises:
        ImportError: If MMDetection is not installed, or mmcv has no operators.
    """
    check_stack()
    with suppress_fork_notices():
        from . import (  # noqa: F401
            datasets,
            engine,
            heads,
            necks,
            ops,
            registry,
            upsamplers,
            visualization,
        )
        from .engine.patches import patch_at_import

        patch_at_import()


def __getattr__(name: str) -> object:
    # commands read their arguments before they import torch
    if name == 'replace_upsampling':
        from .upsamplers.replace import replace_upsampling

        return replace_upsampling
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


# commands read their arguments first, and --help needs nothing else
if not is_command():
    try:
        register_all_modules()
    except ModuleNotFoundError as error:
        # torch alone: the parts that need MMDetection raise this when imported
        if error.name not in DISTRIBUTIONS:
            raise

__all__ = ['register_all_modules', 'replace_upsampling']
