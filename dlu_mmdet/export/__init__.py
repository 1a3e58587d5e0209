"""Export of detectors, or parts of them, to ONNX."""

from .. import openmmlab  # noqa: F401
from .onnx import (
    PARTS,
    check_out,
    check_packages,
    choose_part,
    describe,
    export_onnx,
    trace,
)

__all__ = [
    'PARTS',
    'check_out',
    'check_packages',
    'choose_part',
    'describe',
    'export_onnx',
    'trace',
]
