"""Dynamic Lightweight Upsampling."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops import dlu
from ..ops.checks import check_geometry
from .builder import UPSAMPLERS
from .start import check_start, start_bias
from .weight_init import constant_init, normal_init, xavier_init

OFFSET_INITS = ('zero', 'subpixel')


@UPSAMPLERS.register_module('dlu')
class DLUPack(nn.Module):
    """DLU: a small kernel space at input resolution, sampled by offsets.

    A compressed map predicts K*K source kernels for every source pixel and,
    for every output pixel, where in that space to sample its kernel. CARAFE
    predicts every output pixel's kernel itself, which takes s*s times as many
    channels.

    Source: `Lighten CARAFE <https://arxiv.org/abs/2410.22139>`_, section 3.
    The attribute names are those of ``custom/ops/dlu.py`` in the authors' repository
    (Fu0511/Dynamic-Lightweight-Upsampling), and so are the state_dict's keys.

    Args:
        channels (int): Number of feature channels C.
        scale_factor (int): Upsampling ratio s, at least 1.
        up_kernel (int): Side K of the reassembly kernel, odd. Defaults to 5.
        up_group (int): Number of channel groups G, each with kernels of its
            own; divides ``channels``. Defaults to 1.
        encoder_kernel (int): Side of the convolutions that predict kernels
            and offsets, odd. Defaults to 3.
        encoder_dilation (int): Their dilation. Defaults to 1.
        compressed_channels (int): Channels Cm that they read. Defaults to 64.
        offset_init (str): Where the sub-pixels of a source pixel sample the kernel
            space at the start. 'zero', as the authors have it: all at the pixel
            itself, so their kernels begin equal. 'subpixel': each at its own
            place, ((j + 0.5) / s - 0.5, (i + 0.5) / s - 0.5) from the pixel, as
            DySample starts (arXiv 2308.15085, section 3.2). Defaults to 'zero'.
        start (str): 'paper', kernels next to even, or 'nearest', kernels next to the
            nearest interpolation; see :mod:`dlu_mmdet.upsamplers.start`. Defaults to
            'paper'.
        offset_range (float, optional): How far from its source pixel a kernel may be
            sampled along each axis, in source pixels, above 0.5: offsets o become
            ``offset_range * tanh(o / offset_range)``. Defaults to None, without
            bounds, as the authors have it.

    Raises:
        TypeError: If a size is not an int.
        ValueError: If a size is out of range, ``offset_init`` is unknown, or it cannot
            hold ``start``.
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
        offset_init: str = 'zero',
        offset_range: float | None = None,
        start: str = 'paper',
    ) -> None:
        super().__init__()
        check_geometry(channels, up_kernel, up_group, scale_factor)
        if offset_init not in OFFSET_INITS:
            raise ValueError(
                f'offset_init must be one of {", ".join(map(repr, OFFSET_INITS))}, got '
                f'{offset_init!r}'
            )
        why = 'all sub-pixels of a source pixel start with one kernel'
        check_start(self, start, ('paper', 'nearest'), why)
        if offset_range is not None and not offset_range > 0.5:
            raise ValueError(
                f'offset_range must be above 0.5 source pixels, which the sub-pixels '
                f'are away, or None, got {offset_range!r}'
            )
        if encoder_kernel < 1 or encoder_kernel % 2 == 0:
            raise ValueError(
                f'encoder_kernel must be odd and positive, got {encoder_kernel}'
            )
        self.channels = channels
        self.scale_factor = scale_factor
        self.up_kernel = up_kernel
        self.up_group = up_group
        self.encoder_kernel = encoder_kernel
        self.encoder_dilation = encoder_dilation
        self.compressed_channels = compressed_channels
        self.offset_init = offset_init
        self.offset_range = offset_range
        self.start = start

        self.channel_compressor = nn.Conv2d(channels, compressed_channels, 1)
        head = dict(
            kernel_size=encoder_kernel,
            dilation=encoder_dilation,
            padding=(encoder_kernel - 1) * encoder_dilation // 2,
        )
        self.kernel_space_generator = nn.Conv2d(
            compressed_channels, up_group * up_kernel**2, **head
        )
        self.conv_offset = nn.Conv2d(
            compressed_channels, up_group * 2 * scale_factor**2, **head
        )
        self.init_weights()

    def init_weights(self) -> None:
        """Kernels by ``start``, even in the paper; offsets by ``offset_init``."""
        xavier_init(self.channel_compressor)
        normal_init(self.kernel_space_generator, std=0.001)
        constant_init(self.conv_offset, val=0)
        if self.start != 'paper':
            bias = start_bias(self.start, self.up_kernel).flatten()
            with torch.no_grad():
                self.kernel_space_generator.bias.copy_(bias.repeat(self.up_group))
        if self.offset_init == 'subpixel':
            s = self.scale_factor
            place = (torch.arange(s) + 0.5) / s - 0.5
            # (axis, i, j): x goes with the column j, y with the row i
            places = torch.stack([place.expand(s, s), place[:, None].expand(s, s)])
            if self.offset_range is not None:
                places = self.offset_range * torch.atanh(places / self.offset_range)
            with torch.no_grad():
                self.conv_offset.bias.copy_(places.flatten().repeat(self.up_group))

    def predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Predict the kernel space and the sampling offsets.

        Args:
            x (Tensor): (N, C, H, W).

        Returns:
            tuple[Tensor, Tensor]: Kernels (N, G*K*K, H, W), each group's
            summing to 1 over K*K, and offsets (N, G*2*s*s, H, W) in source
            pixels.
        """
        compressed = self.channel_compressor(x)
        kernels = self.kernel_space_generator(compressed)
        n, channels, h, w = kernels.shape
        kernels = kernels.reshape(n * self.up_group, self.up_kernel**2, h, w)
        kernels = kernels.softmax(dim=1).reshape(n, channels, h, w)
        offsets = self.conv_offset(compressed)
        if self.offset_range is not None:
            offsets = self.offset_range * torch.tanh(offsets / self.offset_range)
        return kernels, offsets

    def forward(self, x: Tensor) -> Tensor:
        """Upsample (N, C, H, W) to (N, C, s*H, s*W)."""
        kernels, offsets = self.predict(x)
        return dlu(
            x,
            kernels.to(x.dtype),
            offsets,
            self.up_kernel,
            self.up_group,
            self.scale_factor,
        )

    def extra_repr(self) -> str:
        return (
            f'channels={self.channels}, scale_factor={self.scale_factor}, '
            f'up_kernel={self.up_kernel}, up_group={self.up_group}, '
            f'offset_init={self.offset_init!r}, offset_range={self.offset_range}, '
            f'start={self.start!r}'
        )
