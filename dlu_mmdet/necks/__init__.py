"""Feature pyramids whose upsampler a config chooses."""

from .. import openmmlab  # noqa: F401
from .registry import NECKS
from .top_down import upsampler_cfg, upsampler_name, upsampling_part
from .unified_fpn import UnifiedFPN
from .upsample_fpn import UpsampleFPN
from .upsampler_mixin import upsampler_prefixes
from .with_upsampler import with_upsampler

__all__ = [
    'NECKS',
    'UnifiedFPN',
    'UpsampleFPN',
    'upsampler_cfg',
    'upsampler_name',
    'upsampler_prefixes',
    'upsampling_part',
    'with_upsampler',
]
