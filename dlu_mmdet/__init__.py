"""Dynamic Lightweight Upsampling for MMDetection 3.x.

Importing the package registers its upsamplers, necks, heads, data sets, transforms
and hooks; configs do so with ``custom_imports = dict(imports=['dlu_mmdet'])``.
"""

from .stacks import check_stack, is_command, suppress_fork_notices

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


# commands read their arguments first, and --help needs nothing else
if not is_command():
    register_all_modules()

__all__ = ['register_all_modules']
