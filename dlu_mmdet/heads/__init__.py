"""Heads whose upsampler a config chooses."""

from .upsample_mask_head import UpsampleMaskHead

__all__ = ['UpsampleMaskHead']
