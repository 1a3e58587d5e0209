"""Dynamic Lightweight Upsampling for MMDetection 3.x.

Importing the package registers its upsamplers, necks, heads, data sets, transforms
and hooks; configs do so with ``custom_imports = dict(imports=['dlu_mmdet'])``.
"""

__version__ = '0.1.0'

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

from . import datasets, engine, heads, necks, ops, upsamplers, visualization

__all__ = [
    'datasets',
    'engine',
    'heads',
    'necks',
    'ops',
    'upsamplers',
    'visualization',
]
