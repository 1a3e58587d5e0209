"""Feature pyramids whose upsampler a config chooses."""

from .top_down import upsampler_name, upsampling_part
from .unified_fpn import UnifiedFPN
from .upsample_fpn import UpsampleFPN

__all__ = ['UnifiedFPN', 'UpsampleFPN', 'upsampler_name', 'upsampling_part']
