"""FADE: kernels from decoder and encoder features together, and a gate."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..ops.checks import check_number
from .builder import UPSAMPLERS
from .guided import ONE_KERNEL, GuidedUpsampler, repeat_to
from .start import SHARE, check_start, start_bias
from .weight_init import constant_init, normal_init, xavier_init


@UPSAMPLERS.register_module('fade')
class FADE(GuidedUpsampler):
    """FADE: the guide takes part in the kernels, and passes where a gate lets it.

    With F_de the features, F_en the guide, at every output pixel p' over source
    pixel p::

        W(p') = softmax( conv(F_en * P_en)(p') + conv(F_de * P_de)(p) )
        F_up  = G F_en + (1 - G) F_de (x) W          G(p') = sigmoid(linear(F_de))(p)

    Semi-shift convolution is the argument of the softmax: 1x1 convolutions P compress
    both maps to d channels, one k_enc x k_enc convolution to K*K channels reads the
    one at output and the other at source resolution, whose result is repeated.
    (x) is CARAFE's reassembly.

    Source: `FADE <https://arxiv.org/abs/2207.10392>`_ and its `extension
    <https://arxiv.org/abs/2407.13500>`_, to which the lite form belongs: its
    convolution is depthwise and d = K*K. Formulas, biases, the gate by default and the
    start, Xavier uniform everywhere, are those of ``FADE_L2H.py`` of poppinace/fade.
    ``FADE_H2L.py`` there takes square maps alone, computes the same, and starts the
    kernels' convolution with Xavier normal.

    The same authors' detectors have no gate: neither FADE config in
    ``configs/dynamic_upsampling`` of tiny-smart/detection-with-upsamplers sets one, and
    ``build_upsampler.py`` there defaults to none. ``gating=False`` gives theirs; an FPN
    adds the encoder's features anyway.

    Args:
        channels (int): Number of feature channels C.
        scale_factor (int): Upsampling ratio s, at least 1; the guide's size decides.
        guide_channels (int): Number of channels of the guide; C if there is a gate.
        up_kernel (int): Side K of the reassembly kernel, odd. Defaults to 5.
        encoder_kernel (int): Side k_enc of the convolution that predicts the kernels,
            odd. Defaults to 3.
        compressed_channels (int, optional): Channels d that it reads. Defaults to
            None, which is 64, or K*K in the lite form, which allows no other.
        gating (bool): Whether there is a gate; False in the authors' detectors.
            Defaults to True.
        lite (bool): Whether it is FADE-Lite. Defaults to False.
        start (str): 'paper', at random, or 'nearest', kernels next to the nearest
            interpolation and a gate next to 0; see :mod:`dlu_mmdet.upsamplers.start`.
            Defaults to 'paper'.

    Raises:
        TypeError: If a size is not an int.
        ValueError: If a size is out of range, the gate or the lite form does not go
            with it, or it cannot hold ``start``.
    """

    def __init__(
        self,
        channels: int,
        scale_factor: int,
        guide_channels: int,
        up_kernel: int = 5,
        encoder_kernel: int = 3,
        compressed_channels: int | None = None,
        gating: bool = True,
        lite: bool = False,
        start: str = 'paper',
    ) -> None:
        super().__init__(channels, scale_factor, guide_channels, up_kernel)
        check_number('encoder_kernel', encoder_kernel, 1)
        if encoder_kernel % 2 == 0:
            raise ValueError(f'encoder_kernel must be odd, got {encoder_kernel}')
        taps = up_kernel**2
        if compressed_channels is None:
            compressed_channels = taps if lite else 64
        check_number('compressed_channels', compressed_channels, 1)
        if lite and compressed_channels != taps:
            raise ValueError(
                f'lite=True compresses to up_kernel squared channels, {taps}, got '
                f'compressed_channels={compressed_channels}; leave it out'
            )
        if gating and guide_channels != channels:
            raise ValueError(
                f'gating=True adds the guide to the output, so guide_channels must be '
                f'the {channels} channels of the features, got {guide_channels}; use '
                'gating=False'
            )
        check_start(self, start, ('paper', 'nearest'), ONE_KERNEL)
        self.encoder_kernel = encoder_kernel
        self.compressed_channels = compressed_channels
        self.gating = gating
        self.lite = lite
        self.start = start

        self.compressor_en = nn.Conv2d(guide_channels, compressed_channels, 1)
        self.compressor_de = nn.Conv2d(channels, compressed_channels, 1, bias=False)
        self.content_encoder = nn.Conv2d(
            compressed_channels,
            taps,
            encoder_kernel,
            padding=encoder_kernel // 2,
            groups=taps if lite else 1,
        )
        if gating:
            self.gate = nn.Conv2d(channels, 1, 1)
        self.init_weights()

    def init_weights(self) -> None:
        """Xavier uniform, zero bias, as the authors start it; or ``start``."""
        for module in self.children():
            xavier_init(module)
        if self.start == 'paper':
            return
        normal_init(self.content_encoder, std=0.001)
        with torch.no_grad():
            # read at both resolutions, whose results are added
            bias = start_bias(self.start, self.up_kernel) / 2
            self.content_encoder.bias.copy_(bias.flatten())
        if self.gating:
            constant_init(self.gate, 0)
            nn.init.constant_(self.gate.bias, math.log(1 / SHARE - 1))

    def predict(self, x: Tensor, guide: Tensor) -> Tensor:
        encoder = self.content_encoder(self.compressor_en(guide))
        decoder = self.content_encoder(self.compressor_de(x))
        return (encoder + repeat_to(decoder, guide)).softmax(dim=1)

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        out = super().forward(x, guide)
        if not self.gating:
            return out
        gate = repeat_to(self.gate(x).sigmoid(), guide)
        return gate * guide + (1 - gate) * out

    def extra_repr(self) -> str:
        return (
            f'{super().extra_repr()}, gating={self.gating}, lite={self.lite}, '
            f'start={self.start!r}'
        )
