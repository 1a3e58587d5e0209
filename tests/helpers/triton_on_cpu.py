"""A plugin of pytest: Triton's operators, interpreted, are those of the CPU.

Wants TRITON_INTERPRET=1 and DLU_MMDET_NO_EXT=1 from the start of the process.
"""

import dataclasses

from triton.runtime.interpreter import interpreter_builder

from dlu_mmdet.ops import library
from dlu_mmdet.ops.triton import Operators

# it takes half of the time, and indices of these sizes are far from overflow
interpreter_builder.options = dataclasses.replace(
    interpreter_builder.options, sanitize_overflow=False
)
library.implement(Operators(), 'CPU')
library._DEVICE_TYPES = library._device_types()
library._register()
