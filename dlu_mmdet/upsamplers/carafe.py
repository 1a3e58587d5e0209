"""CARAFE on every device."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops import carafe
from ..ops.checks import check_geometry
from .builder import UPSAMPLERS
from .pixel_shuffle import pixel_shuffle
from .start import check_start, start_bias
from .weight_init import normal_init, xavier_init


@UPSAMPLERS.register_module('carafe')
class CARAFEPack(nn.Module):
    """CARAFE: kernels for every output pixel, predicted from the features.

    Parameters, state_dict and results are those of mmcv's ``CARAFEPack``, whose
    operator has no CPU version.

    Source: `CARAFE <https://arxiv.org/abs/1905.02188>`_, section 3.

    Args:
        channels (int): Number of feature channels C.
        scale_factor (int): Upsampling ratio s, at least 1.
        up_kernel (int): Side K of the reassembly kernel, odd. Defaults to 5.
        up_group (int): Number of channel groups G; divides ``channels``.
            Defaults to 1.
        encoder_kernel (int): Side of the convolution that predicts the
            kernels. Defaults to 3.
        encoder_dilation (int): Its dilation. Defaults to 1.
        compressed_channels (int): Channels that it reads. Defaults to 64.
        start (str): 'paper', kernels next to even, or 'nearest' or 'bilinear', kernels
            next to that interpolation; see :mod:`dlu_mmdet.upsamplers.start`. What
            lies outside of the map is 0 all the same. Defaults to 'paper'.

    Raises:
        TypeError: If a size is not an int.
        ValueError: If a size is out of range, or it cannot hold ``start``.
    """

    def __init__(
        self,
        channels: int,
        scale_factor: int = 2,
        up_kernel: int = 5,
        up_group: int = 1,
        encoder_kernel: int = 3,
        encoder_dilation: int = 1,
        compressed_channels: int = 64,
        start: str = 'paper',
    ) -> None:
        check_geometry(channels, up_kernel, up_group, scale_factor)
        check_start(self, start, ('paper', 'nearest', 'bilinear'))
        # not super(): the class that mmcv's configs build derives from mmcv's too
        nn.Module.__init__(self)
        self.channels = channels
        self.scale_factor = scale_factor
        self.up_kernel = up_kernel
        self.up_group = up_group
        self.encoder_kernel = encoder_kernel
        self.encoder_dilation = encoder_dilation
        self.compressed_channels = compressed_channels
        self.start = start
        self.channel_compressor = nn.Conv2d(channels, compressed_channels, 1)
        self.content_encoder = nn.Conv2d(
            compressed_channels,
            up_group * up_kernel**2 * scale_factor**2,
            encoder_kernel,
            padding=(encoder_kernel - 1) * encoder_dilation // 2,
            dilation=encoder_dilation,
        )
        self.init_weights()

    def init_weights(self) -> None:
        """Kernels by ``start``, near even in the paper."""
        xavier_init(self.channel_compressor)
        xavier_init(self.content_encoder)
        normal_init(self.content_encoder, std=0.001)
        if self.start != 'paper':
            bias = start_bias(self.start, self.up_kernel, self.scale_factor).flatten()
            with torch.no_grad():
                self.content_encoder.bias.copy_(bias.repeat(self.up_group))

    def kernel_normalizer(self, mask: Tensor) -> Tensor:
        """Kernels (N, G*K*K, s*H, s*W) from (N, G*K*K*s*s, H, W), as mmcv's.

        mmcv leaves G to be inferred, which an empty batch does not allow.
        """
        mask = pixel_shuffle(mask, self.scale_factor)
        n, channels, h, w = mask.shape
        mask = mask.reshape(n * self.up_group, self.up_kernel**2, h, w)
        return mask.softmax(dim=1, dtype=mask.dtype).reshape(n, channels, h, w)

    def feature_reassemble(self, x: Tensor, mask: Tensor) -> Tensor:
        """Reassemble x (N, C, H, W) with masks (N, G*K*K, s*H, s*W)."""
        return carafe(
            x, mask.to(x.dtype), self.up_kernel, self.up_group, self.scale_factor
        )

    def forward(self, x: Tensor) -> Tensor:
        """Upsample (N, C, H, W) to (N, C, s*H, s*W)."""
        mask = self.content_encoder(self.channel_compressor(x))
        return self.feature_reassemble(x, self.kernel_normalizer(mask))
