"""Feature pyramids whose upsampler a config chooses."""

from .unified_fpn import UnifiedFPN
from .upsample_fpn import UpsampleFPN

__all__ = ['UnifiedFPN', 'UpsampleFPN']
