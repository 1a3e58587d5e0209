"""A plugin of pytest: Triton's operators, interpreted, are those of the CPU.

Wants TRITON_INTERPRET=1 and DLU_MMDET_NO_EXT=1 from the start of the process.
"""

from dlu_mmdet.ops import library
from dlu_mmdet.ops.triton import Operators

library.implement(Operators(), 'CPU')
library._DEVICE_TYPES = library._device_types()
library._register()
