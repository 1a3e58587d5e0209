"""Sub-pixel convolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.tracing import leaf
from .builder import UPSAMPLERS
from .start import check_start, interpolation_kernels
from .weight_init import xavier_init


@leaf
def pixel_shuffle(x: Tensor, scale_factor: int) -> Tensor:
    """torch's pixel shuffle, with a gradient for an empty batch too.

    Args:
        x (Tensor): (N, C*s*s, H, W).
        scale_factor (int): s.

    Returns:
        Tensor: (N, C, s*H, s*W).
    """
    n, c, h, w = x.shape
    if n == 0:
        # torch (2.13) gives this gradient the shape of the output
        s = scale_factor
        return x.reshape(n, c // s**2, h * s, w * s)
    return F.pixel_shuffle(x, scale_factor)


@UPSAMPLERS.register_module('pixel_shuffle')
class PixelShuffle(nn.Module):
    """A convolution followed by a pixel shuffle.

    Parameters, state_dict and results are those of mmcv's ``PixelShufflePack``.

    Source: `Sub-pixel convolution <https://arxiv.org/abs/1609.05158>`_.

    Args:
        channels (int): Number of channels in and out.
        scale_factor (int): Upsampling ratio.
        upsample_kernel (int): Side of the convolution's kernel, odd. Defaults
            to 3.
        start (str): 'paper', at random, or 'nearest' or 'bilinear', the same for every
            channel; what lies outside of the map is 0. Defaults to 'paper'.

    Raises:
        ValueError: If it cannot hold ``start``.
    """

    def __init__(
        self,
        channels: int,
        scale_factor: int = 2,
        upsample_kernel: int = 3,
        start: str = 'paper',
    ) -> None:
        super().__init__()
        check_start(self, start, ('paper', 'nearest', 'bilinear'))
        self.channels = channels
        self.scale_factor = scale_factor
        self.upsample_kernel = upsample_kernel
        self.start = start
        self.upsample_conv = nn.Conv2d(
            channels,
            channels * scale_factor**2,
            upsample_kernel,
            padding=(upsample_kernel - 1) // 2,
        )
        self.init_weights()

    def init_weights(self) -> None:
        """Xavier uniform, as mmcv's, or as ``start``."""
        conv = self.upsample_conv
        if self.start == 'paper':
            return xavier_init(conv)
        k, s = self.upsample_kernel, self.scale_factor
        kernels = interpolation_kernels(self.start, k, s)
        with torch.no_grad():
            conv.bias.zero_()
            conv.weight.zero_()
            # its output channels are ordered (channel, i, j)
            weight = conv.weight.view(self.channels, s, s, self.channels, k, k)
            weight.diagonal(dim1=0, dim2=3).copy_(
                kernels.permute(2, 3, 0, 1)[..., None]
            )

    def forward(self, x: Tensor) -> Tensor:
        """Upsample (N, C, H, W) to (N, C, s*H, s*W)."""
        return pixel_shuffle(self.upsample_conv(x), self.scale_factor)
