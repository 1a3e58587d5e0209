"""Interpolation without parameters."""

from torch import nn

from .builder import UPSAMPLERS


@UPSAMPLERS.register_module('nearest')
class Nearest(nn.Upsample):
    """Nearest-neighbour interpolation.

    Args:
        channels (int): Number of feature channels; any.
        scale_factor (int): Upsampling ratio.
    """

    def __init__(self, channels: int, scale_factor: int = 2) -> None:
        super().__init__(scale_factor=scale_factor, mode='nearest')


@UPSAMPLERS.register_module('bilinear')
class Bilinear(nn.Upsample):
    """Bilinear interpolation.

    Args:
        channels (int): Number of feature channels; any.
        scale_factor (int): Upsampling ratio.
        align_corners (bool): As in ``torch.nn.functional.interpolate``.
            Defaults to False.
    """

    def __init__(
        self, channels: int, scale_factor: int = 2, align_corners: bool = False
    ) -> None:
        super().__init__(
            scale_factor=scale_factor, mode='bilinear', align_corners=align_corners
        )
