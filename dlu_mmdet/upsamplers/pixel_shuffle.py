"""Sub-pixel convolution."""

from mmcv.cnn.bricks.upsample import PixelShufflePack

from .builder import UPSAMPLERS


@UPSAMPLERS.register_module('pixel_shuffle')
class PixelShuffle(PixelShufflePack):
    """mmcv's convolution followed by a pixel shuffle.

    Source: `Sub-pixel convolution <https://arxiv.org/abs/1609.05158>`_.

    Args:
        channels (int): Number of channels in and out.
        scale_factor (int): Upsampling ratio.
        upsample_kernel (int): Side of the convolution's kernel, odd. Defaults
            to 3.
    """

    def __init__(
        self, channels: int, scale_factor: int = 2, upsample_kernel: int = 3
    ) -> None:
        super().__init__(channels, channels, scale_factor, upsample_kernel)
