"""DLU followed by the convolution of ``resize_conv``, for comparisons.

    dlu_mmdet compare CONFIG --upsamplers dlu resize_conv benchmarks/dlu_conv.py:DLUConv

What DLU gains over interpolation with the same convolution behind both.
"""

from __future__ import annotations

from torch import Tensor, nn

from dlu_mmdet.upsamplers import build_upsampler
from dlu_mmdet.upsamplers.weight_init import xavier_init


class DLUConv(nn.Module):
    """DLU, then a 3 x 3 convolution at output resolution.

    Args:
        channels (int): Number of channels in and out.
        scale_factor (int): Upsampling ratio s.
        **kwargs: Further arguments of DLU.
    """

    def __init__(self, channels: int, scale_factor: int = 2, **kwargs) -> None:
        super().__init__()
        self.dlu = build_upsampler(dict(type='dlu', **kwargs), channels, scale_factor)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.init_weights()

    def init_weights(self) -> None:
        """Start each as it starts alone."""
        self.dlu.init_weights()
        xavier_init(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        """Upsample (N, C, H, W) to (N, C, s*H, s*W)."""
        return self.conv(self.dlu(x))
