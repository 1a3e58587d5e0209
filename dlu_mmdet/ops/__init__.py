"""Reassembly operators; see :mod:`dlu_mmdet.ops.functional`."""

from . import reference
from .functional import carafe, dlu

__all__ = ['carafe', 'dlu', 'reference']
