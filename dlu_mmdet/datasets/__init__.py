"""Data sets, their annotation files and their checks."""

from . import coco_io as annotations
from . import transforms
from .preflight import check_data, check_num_classes
from .shapes import ShapesDataset

__all__ = [
    'ShapesDataset',
    'annotations',
    'check_data',
    'check_num_classes',
    'transforms',
]
