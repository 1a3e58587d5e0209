"""Dynamic Lightweight Upsampling for MMDetection 3.x.

Importing the package registers its upsamplers, necks, heads, data sets, transforms
and hooks; configs do so with ``custom_imports = dict(imports=['dlu_mmdet'])``.
"""

from .stacks import quiet, warn_of_both

__version__ = '0.1.0'

warn_of_both()
try:
    import mmcv  # noqa: F401
    import mmdet  # noqa: F401
    import mmengine  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f'dlu_mmdet needs MMDetection 3.x ({error}): install one of its two '
        'stacks, pip install --no-build-isolation "dlu_mmdet[onedl]" or '
        '"dlu_mmdet[openmmlab]"',
        name=error.name,
    ) from None
try:
    import mmcv.ops  # noqa: F401
except ImportError as error:
    raise ImportError(
        f'dlu_mmdet needs mmcv with its compiled operators, and those of mmcv '
        f'{mmcv.__version__} cannot be loaded ({error}): it is mmcv-lite, or was built '
        f'without them or for another torch; install it again with MMCV_WITH_OPS=1 pip '
        f'install --no-build-isolation --no-cache-dir --force-reinstall --no-deps',
        name='mmcv.ops',
    ) from None

with quiet():
    from . import (
        datasets,
        engine,
        heads,
        necks,
        ops,
        registry,
        upsamplers,
        visualization,
    )

__all__ = [
    'datasets',
    'engine',
    'heads',
    'necks',
    'ops',
    'registry',
    'upsamplers',
    'visualization',
]
