"""Transposed convolution."""

from __future__ import annotations

from torch import Tensor, nn

from .builder import UPSAMPLERS
from .weight_init import xavier_init


@UPSAMPLERS.register_module('deconv')
class Deconv(nn.ConvTranspose2d):
    """Transposed convolution of stride s.

    Args:
        channels (int): Number of channels in and out.
        scale_factor (int): Upsampling ratio s.
        upsample_kernel (int, optional): Side of the kernel;
            ``upsample_kernel - s`` is the overlap of neighboring blocks.
            Defaults to 3, or s where that is more.

    Raises:
        ValueError: If the kernel is smaller than the ratio, which would leave
            output pixels that nothing reaches, or even at a ratio of 1.
    """

    def __init__(
        self, channels: int, scale_factor: int = 2, upsample_kernel: int | None = None
    ) -> None:
        if upsample_kernel is None:
            upsample_kernel = max(3, scale_factor)
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

    def forward(self, x: Tensor) -> Tensor:
        """Upsample (N, C, H, W) to (N, C, s*H, s*W)."""
        return super().forward(x)

    def init_weights(self) -> None:
        """Xavier uniform, as mmdet's ``FPN_CARAFE`` starts it."""
        xavier_init(self)
