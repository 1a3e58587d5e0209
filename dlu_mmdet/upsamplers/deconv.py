"""Transposed convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .builder import UPSAMPLERS
from .start import check_start, interpolation_weights
from .weight_init import xavier_init


@UPSAMPLERS.register_module('deconv')
class Deconv(nn.ConvTranspose2d):
    """Transposed convolution of stride s.

    Args:
        channels (int): Number of channels in and out.
        scale_factor (int): Upsampling ratio s.
        upsample_kernel (int, optional): Side of the kernel;
            ``upsample_kernel - s`` is the overlap of neighboring blocks.
            Defaults to 3, or s where that is more, and to ``2 s - s % 2`` with
            ``start='bilinear'``, which needs that much.
        start (str): 'paper', at random, or 'nearest' or 'bilinear', the same for every
            channel; what lies outside of the map is 0. Defaults to 'paper'.

    Raises:
        ValueError: If the kernel is smaller than the ratio, which would leave
            output pixels that nothing reaches, even at a ratio of 1, or too small for
            ``start``.
    """

    def __init__(
        self,
        channels: int,
        scale_factor: int = 2,
        upsample_kernel: int | None = None,
        start: str = 'paper',
    ) -> None:
        check_start(self, start, ('paper', 'nearest', 'bilinear'))
        least = 2 * scale_factor - scale_factor % 2 if start == 'bilinear' else 1
        if upsample_kernel is None:
            upsample_kernel = max(3, scale_factor, least)
        if upsample_kernel < least:
            raise ValueError(
                f'start={start!r} needs an upsample_kernel of at least {least} at a '
                f'ratio of {scale_factor}, got {upsample_kernel}'
            )
        if upsample_kernel < scale_factor:
            raise ValueError(
                f'upsample_kernel must be at least scale_factor, got '
                f'upsample_kernel={upsample_kernel} for a ratio of '
                f'{scale_factor}'
            )
        overlap = upsample_kernel - scale_factor
        if scale_factor == 1 and overlap % 2:
            raise ValueError(
                f'upsample_kernel must be odd at scale_factor 1, got {upsample_kernel}'
            )
        super().__init__(
            channels,
            channels,
            upsample_kernel,
            stride=scale_factor,
            padding=(overlap + 1) // 2,
            output_padding=overlap % 2,
        )
        self.start = start
        if start != 'paper':
            self.init_weights()

    def forward(self, x: Tensor) -> Tensor:
        """Upsample (N, C, H, W) to (N, C, s*H, s*W)."""
        return super().forward(x)

    def init_weights(self) -> None:
        """Xavier uniform, as mmdet's ``FPN_CARAFE`` starts it, or as ``start``."""
        if self.start == 'paper':
            return xavier_init(self)
        (side, _), (s, _), (padding, _) = self.kernel_size, self.stride, self.padding
        distance = (torch.arange(side) - padding + 0.5) / s - 0.5
        weights = interpolation_weights(self.start, distance)
        with torch.no_grad():
            self.bias.zero_()
            self.weight.zero_()
            self.weight.diagonal().copy_((weights[:, None] * weights)[..., None])
