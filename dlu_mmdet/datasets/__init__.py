"""Data sets and their checks."""

from .checks import check_data
from .shapes import ShapesDataset
from .transforms import LoadImageFromFile

__all__ = ['LoadImageFromFile', 'ShapesDataset', 'check_data']
