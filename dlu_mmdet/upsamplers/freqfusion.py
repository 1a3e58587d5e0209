"""FreqFusion: a low-pass on what is upsampled, a high-pass on the guide."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import carafe
from ..ops.checks import check_number
from ..ops.tracing import leaf
from .builder import UPSAMPLERS
from .dysample import sample
from .guided import ONE_KERNEL, GuidedUpsampler, repeat_to
from .pixel_shuffle import pixel_shuffle
from .start import check_start, start_bias
from .weight_init import constant_init, normal_init, xavier_init

OFFSET_INITS = ('normal', 'xavier')

# neighbors that a pixel is compared with, two pixels away
_NEIGHBORS = [(a, b) for a in (0, 2, 4) for b in (0, 2, 4) if (a, b) != (2, 2)]


@UPSAMPLERS.register_module('freqfusion')
class FreqFusion(GuidedUpsampler):
    """FreqFusion without its last sum, which is the neck's.

    It fuses two levels, X and the finer Y, to Y~ + X~. A neck adds Y itself, so what
    is left for an upsampler is X~ + (Y~ - Y). With x and y both compressed by 1x1
    convolutions, E_l and E_h convolutions to kernels, W[V] the softmax of V under a
    Hamming window, (x) CARAFE's reassembly::

        V_h = E_h y                    y' = 2 y - y (x) W[V_h]
        V_l = E_l y' + E_l x (x) W[E_l y']
        X^  = X (x) W[V_l]                             adaptive low-pass filter
        Y~  = 2 Y - Y (x) W[V_h + E_h x (x) W[V_l]]    adaptive high-pass filter
        X~  = X^ sampled at G + D sigmoid(S)           offset generator

    D and S are each a convolution of x, shuffled to the output, plus one of y': of
    the normalized map and of its cosine similarity to the eight pixels two away.
    They are in source pixels, one for each of g groups of channels.

    Source: `Frequency-aware Feature Fusion for Dense Image Prediction
    <https://arxiv.org/abs/2408.12879>`_. The order of the filters, windows and
    normalization are as in ``FreqFusion.py`` of Linwei-Chen/FreqFusion with the
    arguments of ``faster_rcnn_r50_fpn_1x_coco_freqfusion.py`` there, which
    compresses to a quarter of the channels, 64 of 256. That file doubles maps; at other
    ratios the shuffled convolutions are taken at the nearest place.

    The convolutions of D and S have two starts. That file's sampler starts D at a
    standard deviation of 0.001 and S at 0 when it is built, as DySample does, and X^ is
    sampled next to its own pixels: 'normal'. Its ``init_weights`` then overwrites both
    with Xavier uniform, from which the authors train: 'xavier'. On random features of
    256 channels the mean absolute offset is 0.013 source pixels with 'normal' and 0.65
    with 'xavier'. The default is 'normal', with which docs/results.md was measured.

    Args:
        channels (int): Number of feature channels C.
        scale_factor (int): Upsampling ratio s, at least 1; the guide's size decides.
        guide_channels (int): Number of channels of the guide, C.
        up_kernel (int): Side of the low-pass kernels, odd. Defaults to 5.
        highpass_kernel (int): Side of the high-pass kernels, odd. Defaults to 3.
        encoder_kernel (int): Side of the convolutions that predict kernels and
            offsets, odd. Defaults to 3.
        compressed_channels (int): Channels that they read, a multiple of 8.
            Defaults to 64.
        groups (int): g; divides ``channels``. Defaults to 4.
        offset_init (str): How the convolutions of D and S start: 'normal', with offsets
            next to 0, or 'xavier', as the authors train. Defaults to 'normal'.
        start (str): 'paper', kernels even under their windows, or 'nearest', X next to
            its nearest interpolation and Y next to unchanged; see
            :mod:`dlu_mmdet.upsamplers.start`. Defaults to 'paper'.

    Raises:
        TypeError: If a size is not an int.
        ValueError: If a size is out of range, the guide has other channels,
            ``offset_init`` is unknown, or it cannot hold ``start``.
    """

    def __init__(
        self,
        channels: int,
        scale_factor: int,
        guide_channels: int,
        up_kernel: int = 5,
        highpass_kernel: int = 3,
        encoder_kernel: int = 3,
        compressed_channels: int = 64,
        groups: int = 4,
        offset_init: str = 'normal',
        start: str = 'paper',
    ) -> None:
        super().__init__(channels, scale_factor, guide_channels, up_kernel)
        check_number('groups', groups, 1)
        check_number('compressed_channels', compressed_channels, 1)
        for name, size in dict(
            highpass_kernel=highpass_kernel, encoder_kernel=encoder_kernel
        ).items():
            check_number(name, size, 1)
            if size % 2 == 0:
                raise ValueError(f'{name} must be odd, got {size}')
        if guide_channels != channels:
            raise ValueError(
                f'guide_channels must be the {channels} channels of the features, to '
                f'which the filtered guide is added, got {guide_channels}'
            )
        if channels % groups:
            raise ValueError(
                f'groups must divide the channels, got groups={groups} for {channels} '
                'channels'
            )
        if compressed_channels % 8:
            raise ValueError(
                f'compressed_channels must be a multiple of 8, which are normalized '
                f'together, got {compressed_channels}'
            )
        if offset_init not in OFFSET_INITS:
            raise ValueError(
                f'offset_init must be one of {", ".join(map(repr, OFFSET_INITS))}, got '
                f'{offset_init!r}'
            )
        check_start(self, start, ('paper', 'nearest'), ONE_KERNEL)
        if start != 'paper' and offset_init != 'normal':
            raise ValueError(
                f"start={start!r} starts without offsets: use offset_init='normal', "
                f'got {offset_init!r}'
            )
        self.highpass_kernel = highpass_kernel
        self.encoder_kernel = encoder_kernel
        self.compressed_channels = compressed_channels
        self.groups = groups
        self.offset_init = offset_init
        self.start = start

        def encoder(inputs: int, outputs: int) -> nn.Conv2d:
            return nn.Conv2d(
                inputs, outputs, encoder_kernel, padding=encoder_kernel // 2
            )

        self.hr_channel_compressor = nn.Conv2d(channels, compressed_channels, 1)
        self.lr_channel_compressor = nn.Conv2d(channels, compressed_channels, 1)
        self.lowpass_encoder = encoder(compressed_channels, up_kernel**2)
        self.highpass_encoder = encoder(compressed_channels, highpass_kernel**2)
        self.hr_norm = nn.GroupNorm(compressed_channels // 8, compressed_channels)
        self.lr_norm = nn.GroupNorm(compressed_channels // 8, compressed_channels)
        described = compressed_channels + len(_NEIGHBORS)
        self.hr_offset = encoder(described, 2 * groups)
        self.hr_scope = encoder(described, 2 * groups)
        self.lr_offset = encoder(described, 2 * groups * scale_factor**2)
        self.lr_scope = encoder(described, 2 * groups * scale_factor**2)
        self.init_weights()

    def init_weights(self) -> None:
        """Kernels by ``start``, even in the paper; offsets by ``offset_init``."""
        xavier = [self.hr_channel_compressor, self.lr_channel_compressor]
        small = [self.lowpass_encoder, self.highpass_encoder]
        offsets, scopes = (
            [self.hr_offset, self.lr_offset],
            [self.hr_scope, self.lr_scope],
        )
        if self.offset_init == 'xavier':
            xavier += offsets + scopes
        else:
            small += offsets
            for module in scopes:
                constant_init(module, val=0)
        for module in xavier:
            xavier_init(module)
        for module in small:
            normal_init(module, std=0.001)
        for module in (self.hr_norm, self.lr_norm):
            constant_init(module, val=1)
        if self.start == 'paper':
            return
        for module in offsets:
            constant_init(module, val=0)
        for module, size in (
            (self.lowpass_encoder, self.up_kernel),
            (self.highpass_encoder, self.highpass_kernel),
        ):
            # read at both resolutions, whose results are added, under a window
            logits = start_bias(self.start, size).flatten()
            with torch.no_grad():
                module.bias.copy_((logits - _window(size, logits)) / 2)

    def predict(self, x: Tensor, guide: Tensor) -> Tensor:
        return self._filters(x, guide)[0]

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        self.check_guide(x, guide)
        lowpass, highpass, hr, lr = self._filters(x, guide)
        out = self.reassemble(x, lowpass)
        out = sample(out, self._offsets(hr, lr), x.shape[2:])
        return out + guide - self._smooth(guide, highpass)

    def _filters(self, x: Tensor, guide: Tensor) -> tuple[Tensor, ...]:
        """Kernels (N, K*K, h, w), low-pass and high-pass, and the compressed maps."""
        hr, lr = self.hr_channel_compressor(guide), self.lr_channel_compressor(x)
        high = self.highpass_encoder(hr)
        hr = 2 * hr - self._smooth(hr, _kernels(high))

        low = self.lowpass_encoder(hr)
        kernels = _kernels(low)
        low = low + self.reassemble(self.lowpass_encoder(lr), kernels)
        lowpass = _kernels(low)
        high = high + self.reassemble(self.highpass_encoder(lr), lowpass)
        return lowpass, _kernels(high), hr, lr

    def _smooth(self, x: Tensor, kernels: Tensor) -> Tensor:
        return carafe(x, kernels.to(x.dtype), self.highpass_kernel, 1, 1)

    def _offsets(self, hr: Tensor, lr: Tensor) -> Tensor:
        """Offsets (N, 2*g, h, w) in source pixels, x of every group first."""
        hr, lr = _describe(self.hr_norm(hr)), _describe(self.lr_norm(lr))

        def both(of_lr: nn.Module, of_hr: nn.Module) -> Tensor:
            shuffled = pixel_shuffle(of_lr(lr), self.scale_factor)
            return repeat_to(shuffled, hr) + of_hr(hr)

        scope = both(self.lr_scope, self.hr_scope).sigmoid()
        return both(self.lr_offset, self.hr_offset) * scope

    def extra_repr(self) -> str:
        return (
            f'{super().extra_repr()}, highpass_kernel={self.highpass_kernel}, '
            f'compressed_channels={self.compressed_channels}, groups={self.groups}, '
            f'offset_init={self.offset_init!r}, start={self.start!r}'
        )


@leaf
def _kernels(logits: Tensor) -> Tensor:
    """Softmax of (N, K*K, H, W) over K*K under a Hamming window."""
    size = math.isqrt(logits.shape[1])
    # in half precision the sum of 25 values is not 1
    dtype = torch.promote_types(logits.dtype, torch.float32)
    window = _window(size, logits.to(dtype)).reshape(1, -1, 1, 1)
    return (logits + window).softmax(dim=1)


def _window(size: int, like: Tensor) -> Tensor:
    """Logarithm of a Hamming window (K*K)."""
    # the TorchScript exporter of ONNX does not know torch.hamming_window
    place = torch.arange(size, dtype=like.dtype, device=like.device)
    angle = place * (2 * math.pi / max(size - 1, 1))
    window = 0.54 - 0.46 * angle.cos()
    return (window[:, None] * window).log().flatten()


def _describe(x: Tensor) -> Tensor:
    """A map (N, C, H, W) and its pixels' cosine similarity to their neighbors."""
    h, w = x.shape[2:]
    unit = F.normalize(x, dim=1)
    padded = F.pad(unit, (2, 2, 2, 2))
    similar = [
        (unit * padded[:, :, a : a + h, b : b + w]).sum(1, keepdim=True)
        for a, b in _NEIGHBORS
    ]
    return torch.cat([x, *similar], dim=1)
