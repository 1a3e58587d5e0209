"""Interpolation followed by a convolution."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.checks import check_geometry
from .builder import UPSAMPLERS
from .interpolate import interpolate
from .weight_init import xavier_init

MODES = ('nearest', 'bilinear')


@UPSAMPLERS.register_module('resize_conv')
class ResizeConv(nn.Module):
    """Interpolation, then a 3 x 3 convolution at output resolution.

    The control of a comparison: what an upsampler gains over it is not gained by one
    more convolution. The dense form has as many parameters as ``deconv`` of kernel 3.

    The depthwise form has a depthwise 3 x 3 convolution, normalization, ReLU and a
    1 x 1 convolution, as the efficient up-convolution block (EUCB) of `EMCAD
    <https://arxiv.org/abs/2405.06880>`_. It normalizes in groups of channels where
    EUCB normalizes over the batch, since detectors train with few images on a device.

    Args:
        channels (int): Number of channels in and out.
        scale_factor (int): Upsampling ratio s.
        mode (str): 'nearest' or 'bilinear'. Defaults to 'nearest'.
        depthwise (bool): Whether to take the depthwise form. Defaults to False.

    Raises:
        TypeError: If a size is not an int, or ``depthwise`` not a bool.
        ValueError: If a size is out of range, or the mode is unknown.
    """

    any_size = True

    def __init__(
        self,
        channels: int,
        scale_factor: int = 2,
        mode: str = 'nearest',
        depthwise: bool = False,
    ) -> None:
        super().__init__()
        check_geometry(channels, 1, 1, scale_factor)
        if mode not in MODES:
            raise ValueError(
                f'mode must be one of {", ".join(map(repr, MODES))}, got {mode!r}'
            )
        if not isinstance(depthwise, bool):
            raise TypeError(f'depthwise must be True or False, got {depthwise!r}')
        self.scale_factor = scale_factor
        self.mode = mode
        self.depthwise = depthwise
        if depthwise:
            self.depthwise_conv = nn.Conv2d(
                channels, channels, 3, padding=1, groups=channels, bias=False
            )
            self.norm = nn.GroupNorm(math.gcd(channels, 32), channels)
            self.conv = nn.Conv2d(channels, channels, 1)
        else:
            self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.init_weights()

    def init_weights(self) -> None:
        """Xavier uniform, as ``deconv``."""
        for module in self.children():
            if isinstance(module, nn.Conv2d):
                xavier_init(module)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Upsample (N, C, H, W) to (N, C, s*H, s*W), or to (N, C, *size)."""
        x = interpolate(x, size, self.scale_factor, self.mode)
        if self.depthwise:
            x = F.relu(self.norm(self.depthwise_conv(x)))
        return self.conv(x)

    def extra_repr(self) -> str:
        return (
            f'scale_factor={self.scale_factor}, mode={self.mode!r}, '
            f'depthwise={self.depthwise}'
        )
