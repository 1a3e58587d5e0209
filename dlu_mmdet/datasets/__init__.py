"""Data sets, their annotation files and their checks."""

from .. import openmmlab  # noqa: F401
from . import coco_io, transforms
from .preflight import check_data, check_num_classes
from .shapes import ShapesDataset

__all__ = [
    'ShapesDataset',
    'check_data',
    'check_num_classes',
    'coco_io',
    'transforms',
]
