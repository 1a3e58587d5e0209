"""Reassembly operators; see :mod:`dlu_mmdet.ops.functional`."""

from . import reference
from .functional import carafe, dlu, window_scores

__all__ = ['carafe', 'dlu', 'reference', 'window_scores']
