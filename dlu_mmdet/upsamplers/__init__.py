"""Upsamplers that ``upsample_cfg`` can name; a new one is one file here."""

import importlib
import pkgutil

from .builder import (
    INTERPOLATION_ARGS,
    UPSAMPLERS,
    build_upsampler,
    is_guided,
    registered_name,
    resolve_name,
    resolve_upsampler,
    split_upsample_cfg,
    upsampler_class,
)
from .carafe import CARAFEPack
from .dlu import DLUPack
from .dysample import DySample
from .resize import check_ratio, trial_of, upsample_to
from .start import interpolation_name, resolve_start
from .user_files import classes_from_files, split_file

for _module in pkgutil.iter_modules(__path__, f'{__name__}.'):
    importlib.import_module(_module.name)

__all__ = [
    'CARAFEPack',
    'DLUPack',
    'DySample',
    'INTERPOLATION_ARGS',
    'UPSAMPLERS',
    'build_upsampler',
    'check_ratio',
    'classes_from_files',
    'interpolation_name',
    'is_guided',
    'registered_name',
    'resolve_name',
    'resolve_start',
    'resolve_upsampler',
    'split_file',
    'split_upsample_cfg',
    'trial_of',
    'upsample_to',
    'upsampler_class',
]
