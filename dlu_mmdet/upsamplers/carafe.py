"""CARAFE on every device."""

from __future__ import annotations

import torch
from mmcv.ops import CARAFEPack as _CARAFEPack
from torch import Tensor

from ..ops import carafe
from ..ops.checks import check_geometry
from .builder import UPSAMPLERS
from .pixel_shuffle import pixel_shuffle
from .start import check_start, start_bias


@UPSAMPLERS.register_module('carafe')
class CARAFEPack(_CARAFEPack):
    """mmcv's CARAFEPack over this package's operator.

    Parameters, state_dict and results are mmcv's; mmcv's own operator has no CPU
    version.

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

    start = 'paper'  # while mmcv's __init__ runs

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
        super().__init__(
            channels,
            scale_factor,
            up_kernel,
            up_group,
            encoder_kernel,
            encoder_dilation,
            compressed_channels,
        )
        self.start = start
        if start != 'paper':
            self.init_weights()

    def init_weights(self) -> None:
        """As mmcv's, the kernels by ``start``."""
        super().init_weights()
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


class AnyDeviceCARAFEPack(CARAFEPack):
    """mmcv's own operator on CUDA, this package's elsewhere."""

    def feature_reassemble(self, x: Tensor, mask: Tensor) -> Tensor:
        """Reassemble x (N, C, H, W) with masks (N, G*K*K, s*H, s*W)."""
        if x.is_cuda:
            return _CARAFEPack.feature_reassemble(self, x, mask)
        return super().feature_reassemble(x, mask)
