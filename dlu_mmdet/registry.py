"""Where mmengine looks for the scope of names like ``dlu_mmdet.YOLOXPAFPN``."""

from .necks.registry import NECKS

__all__ = ['NECKS']
