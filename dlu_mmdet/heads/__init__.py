"""Heads whose upsampler a config chooses."""

from .. import openmmlab  # noqa: F401
from .upsample_mask_head import UpsampleMaskHead

__all__ = ['UpsampleMaskHead']
