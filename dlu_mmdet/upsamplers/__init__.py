"""Upsamplers that ``upsample_cfg`` can name; a new one is one file here."""

import importlib
import pkgutil

from .builder import UPSAMPLERS, build_upsampler

for _module in pkgutil.iter_modules(__path__, f'{__name__}.'):
    importlib.import_module(_module.name)

__all__ = ['UPSAMPLERS', 'build_upsampler']
