"""Interpolation followed by a convolution."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.checks import check_geometry
from .builder import UPSAMPLERS
from .interpolate import interpolate
from .start import check_start
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
        mode (str, optional): 'nearest' or 'bilinear'. Defaults to ``start`` where that
            is one of them, else to 'nearest'.
        depthwise (bool): Whether to take the depthwise form. Defaults to False.
        start (str): 'paper', at random, or ``mode``, which the convolution passes on;
            only 'paper' in the depthwise form. Defaults to 'paper'.

    Raises:
        TypeError: If a size is not an int, or ``depthwise`` not a bool.
        ValueError: If a size is out of range, the mode is unknown, or it cannot hold
            ``start``.
    """

    any_size = True

    def __init__(
        self,
        channels: int,
        scale_factor: int = 2,
        mode: str | None = None,
        depthwise: bool = False,
        start: str = 'paper',
    ) -> None:
        super().__init__()
        check_geometry(channels, 1, 1, scale_factor)
        if mode is None:
            mode = start if start in MODES else 'nearest'
        if mode not in MODES:
            raise ValueError(
                f'mode must be one of {", ".join(map(repr, MODES))}, got {mode!r}'
            )
        if not isinstance(depthwise, bool):
            raise TypeError(f'depthwise must be True or False, got {depthwise!r}')
        check_start(
            self,
            start,
            ('paper',) if depthwise else ('paper', mode),
            'it normalizes' if depthwise else f'it interpolates by mode={mode!r}',
        )
        self.scale_factor = scale_factor
        self.mode = mode
        self.depthwise = depthwise
        self.start = start
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
        """Xavier uniform, as ``deconv``, or the identity; see ``start``."""
        for module in self.children():
            if isinstance(module, nn.Conv2d):
                xavier_init(module)
        if self.start != 'paper':
            nn.init.dirac_(self.conv.weight)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Upsample (N, C, H, W) to (N, C, s*H, s*W), or to (N, C, *size)."""
        x = interpolate(x, size, self.scale_factor, self.mode)
        if self.depthwise:
            x = F.relu(self.norm(self.depthwise_conv(x)))
        return self.conv(x)

    def extra_repr(self) -> str:
        return (
            f'scale_factor={self.scale_factor}, mode={self.mode!r}, '
            f'depthwise={self.depthwise}, start={self.start!r}'
        )
