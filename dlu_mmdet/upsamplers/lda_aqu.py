"""LDA-AQU: upsampling by local deformable attention."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.checks import check_geometry, check_number
from ..ops.tracing import leaf
from ..utils.torch_compat import is_exporting
from .builder import UPSAMPLERS
from .start import check_start
from .weight_init import constant_init, xavier_init


class ChannelNorm(nn.Module):
    """Layer normalization over the channels of (N, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@leaf
def at_least_float32(x: Tensor) -> Tensor:
    """Half precision cannot tell neighboring pixels of a wide map apart."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@leaf
def resize_queries(q: Tensor, scale_factor: int) -> Tensor:
    """Interpolate (N, d, H, W) to (N, d, s*H, s*W), corner pixels on corner pixels."""
    size = [scale_factor * length for length in q.shape[2:]]
    return F.interpolate(q, size, mode='bilinear', align_corners=True)


@leaf
def sampling_positions(offsets: Tensor, up_kernel: int) -> Tensor:
    """Where the taps of every window sample.

    Args:
        offsets (Tensor): (M, 2*K*K, h, w), y and x of every tap, in output pixels.
        up_kernel (int): K.

    Returns:
        Tensor: (M, K*K, h, w, 2), x and y from -1 to 1 between the centers of the
        map's corner pixels.
    """
    (m, _, h, w), r = offsets.shape, up_kernel // 2
    like = dict(dtype=offsets.dtype, device=offsets.device)
    taps = torch.arange(-r, r + 1, **like)
    # (K*K, h) and (K*K, w): taps row by row
    y = torch.arange(h, **like) + taps.repeat_interleave(up_kernel)[:, None]
    x = torch.arange(w, **like) + taps.repeat(up_kernel)[:, None]
    offsets = offsets.reshape(m, up_kernel**2, 2, h, w)
    y, x = offsets[:, :, 0] + y[:, :, None], offsets[:, :, 1] + x[:, None]
    # one pixel is its own corner on either side
    return torch.stack([2 * x / max(w - 1, 1) - 1, 2 * y / max(h - 1, 1) - 1], dim=-1)


@leaf
def sample_tap(maps: Tensor, positions: Tensor, groups: int) -> Tensor:
    """Sample (N, C, H, W) bilinearly, each channel group at separate positions.

    Args:
        maps (Tensor): (N, C, H, W); 0 outside.
        positions (Tensor): (N*g, h, w, 2), as of :func:`sampling_positions`.
        groups (int): g.

    Returns:
        Tensor: (N, C, h, w).
    """
    n, c, h, w = maps.shape
    maps = maps.reshape(n * groups, c // groups, h, w)
    out = F.grid_sample(maps, positions, align_corners=True)
    return out.reshape(n, c, *positions.shape[1:3])


@leaf
def weighted_samples(
    maps: Tensor, weights: Tensor, positions: Tensor, groups: int
) -> Tensor:
    """Sum over the taps of weight times :func:`sample_tap`.

    An output pixel is a bag of 4*K*K pixels of the map, whose weights are those of the
    taps times those of the interpolation. So no sample is kept for the gradients. An
    export gets the loop, since no runtime has bags.

    Args:
        maps (Tensor): (N, C, H, W); 0 outside. Of the dtype of the others.
        weights (Tensor): (N, K*K, h, w).
        positions (Tensor): (N*g, K*K, h, w, 2), as of :func:`sampling_positions`.
        groups (int): g.

    Returns:
        Tensor: (N, C, h, w).
    """
    taps = weights.shape[1]
    if is_exporting() or torch.onnx.is_in_onnx_export():
        sampled = (sample_tap(maps, positions[:, t], groups) for t in range(taps))
        return sum(weights[:, t : t + 1] * each for t, each in enumerate(sampled))
    n, c, height, width = maps.shape
    m, _, h, w, _ = positions.shape
    weights = weights.repeat_interleave(groups, dim=0)
    x = (positions[..., 0] + 1) * ((width - 1) / 2)
    y = (positions[..., 1] + 1) * ((height - 1) / 2)
    left, top = x.floor(), y.floor()
    first = torch.arange(m, dtype=torch.int32, device=maps.device) * (height * width)
    first = first.reshape(-1, 1, 1, 1)
    pixels, shares = [], []
    for row, in_row in ((top, top + 1 - y), (top + 1, y - top)):
        for column, in_column in ((left, left + 1 - x), (left + 1, x - left)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            pixel = torch.where(inside, row * width + column, 0).int() + first
            pixels.append(pixel)
            shares.append(weights * in_row * in_column * inside)
    bags = (torch.stack(each, dim=-1) for each in (pixels, shares))
    pixels, shares = (b.transpose(1, 3).reshape(m * h * w, 4 * taps) for b in bags)
    table = maps.reshape(m, c // groups, height * width).transpose(1, 2).flatten(0, 1)
    out = F.embedding_bag(pixels, table, mode='sum', per_sample_weights=shares)
    return out.reshape(m, w, h, c // groups).permute(0, 3, 2, 1).reshape(n, c, h, w)


@UPSAMPLERS.register_module('lda_aqu')
class LDAAQU(nn.Module):
    """LDA-AQU: each output pixel attends to K x K points that it moves itself.

    With q = resize(P_q norm(X)), bilinear with ``align_corners=True``, and
    k = P_k norm(X), at output pixel l' for the taps t of its K x K window::

        p(l', t) = l' + t + R tanh(conv(q))(l', t)       one for each channel group
        W(l', t) = softmax over t of  q(l') . (k(p(l', t)) + b(t)) / sqrt(d)
        X'(l') = sum over t of  W(l', t) X(p(l', t))

    Positions and t are in output pixels. k and X, which is not normalized, are sampled
    bilinearly with ``align_corners=True`` and are 0 outside of the map. conv reads the
    d/g channels of a group: a depthwise 3 x 3 convolution, layer normalization, GELU
    and a convolution. All groups share its weights, and there is one attention W.

    Source: `LDA-AQU <https://arxiv.org/abs/2411.19585>`_. What it leaves open is as in
    ``fpn_lau.py`` of duzw9311/LDA-AQU, the start too; the keys are that file's.

    No tensor has the features of all taps. For the gradients autograd keeps the samples
    of the keys, K*K d/C times as large as the output.

    Args:
        channels (int): Number of feature channels C.
        scale_factor (int): Upsampling ratio s, at least 1.
        up_kernel (int): Side K of the window, odd. Defaults to 3.
        encoder_kernel (int): Side of the convolution that predicts the offsets, odd.
            Defaults to 3.
        groups (int): Number of channel groups g; divides ``channels``. Defaults to 2.
        offset_range (float): R, in output pixels, above 0. Defaults to 11.
        compressed_channels (int, optional): Channels d of queries and keys, which
            ``groups`` divides. Defaults to a quarter of ``channels``, rounded down to
            a multiple of ``groups``, at least ``groups``.
        start (str): 'paper' alone: its windows lie with corner pixels on corner pixels,
            where 'nearest' and 'bilinear' have edges on edges. Defaults to 'paper'.

    Raises:
        TypeError: If a size is not an int, or ``offset_range`` no number.
        ValueError: If a size is out of range, or it cannot hold ``start``.
    """

    def __init__(
        self,
        channels: int,
        scale_factor: int = 2,
        up_kernel: int = 3,
        encoder_kernel: int = 3,
        groups: int = 2,
        offset_range: float = 11,
        compressed_channels: int | None = None,
        start: str = 'paper',
    ) -> None:
        super().__init__()
        check_geometry(channels, up_kernel, 1, scale_factor)
        check_start(self, start, ('paper',), 'it aligns corner pixels')
        check_number('encoder_kernel', encoder_kernel, 1)
        check_number('groups', groups, 1)
        if compressed_channels is None:
            compressed_channels = max(channels // 4 // groups, 1) * groups
        check_number('compressed_channels', compressed_channels, 1)
        if encoder_kernel % 2 == 0:
            raise ValueError(f'encoder_kernel must be odd, got {encoder_kernel}')
        for name, number in (
            ('channels', channels),
            ('compressed_channels', compressed_channels),
        ):
            if number % groups:
                raise ValueError(
                    f'groups must divide {name}, got groups={groups} for '
                    f'{name}={number}'
                )
        if isinstance(offset_range, bool) or not isinstance(offset_range, (int, float)):
            raise TypeError(
                f'offset_range must be a number of output pixels, got {offset_range!r}'
            )
        if not 0 < offset_range < math.inf:
            raise ValueError(
                f'offset_range must be finite and above 0, got {offset_range}'
            )
        self.channels = channels
        self.scale_factor = scale_factor
        self.up_kernel = up_kernel
        self.encoder_kernel = encoder_kernel
        self.groups = groups
        self.offset_range = offset_range
        self.compressed_channels = d = compressed_channels

        self.layer_norm = ChannelNorm(channels)
        self.proj_q = nn.Conv2d(channels, d, 1, bias=False)
        self.proj_k = nn.Conv2d(channels, d, 1, bias=False)
        per, taps = d // groups, up_kernel**2
        self.conv_offset = nn.Sequential(
            nn.Conv2d(per, per, 3, padding=1, groups=per, bias=False),
            ChannelNorm(per),
            nn.GELU(),
            nn.Conv2d(per, 2 * taps, encoder_kernel, padding=encoder_kernel // 2),
        )
        self.relative_position_bias_table = nn.Parameter(torch.zeros(taps, d))
        self.init_weights()

    def init_weights(self) -> None:
        """Start without offsets; projections with Xavier, as the authors' file."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                xavier_init(module)
            elif isinstance(module, nn.LayerNorm):
                constant_init(module, val=1)
        constant_init(self.conv_offset[-1], val=0)
        # theirs is cut off at 2, a hundred standard deviations
        nn.init.normal_(self.relative_position_bias_table, std=0.02)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        # of five dimensions in the authors' checkpoints, which channels_last refuses
        key = f'{prefix}relative_position_bias_table'
        if key in state_dict:
            state_dict[key] = state_dict[key].reshape(-1, state_dict[key].shape[-1])
        super()._load_from_state_dict(state_dict, prefix, *args)

    def predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Predict attention, and where it samples.

        Args:
            x (Tensor): (N, C, H, W).

        Returns:
            tuple[Tensor, Tensor]: Weights (N, K*K, s*H, s*W), whose sum over the taps
            is 1, and positions (N*g, K*K, s*H, s*W, 2), see
            :func:`sampling_positions`, both at least in float32.
        """
        normed = self.layer_norm(x)
        q = resize_queries(self.proj_q(normed), self.scale_factor)
        n, _, h, w = q.shape
        grouped = q.reshape(
            n * self.groups, self.compressed_channels // self.groups, h, w
        )
        offsets = at_least_float32(self.conv_offset(grouped)).tanh()
        positions = sampling_positions(self.offset_range * offsets, self.up_kernel)
        q, k = at_least_float32(q), at_least_float32(self.proj_k(normed))
        bias = self.relative_position_bias_table[:, :, None, None]
        scores = []
        for tap in range(self.up_kernel**2):
            keys = sample_tap(k, positions[:, tap], self.groups)
            scores.append((q * (keys + bias[tap])).sum(dim=1))
        scores = torch.stack(scores, dim=1) * self.compressed_channels**-0.5
        return scores.softmax(dim=1), positions

    def forward(self, x: Tensor) -> Tensor:
        """Upsample (N, C, H, W) to (N, C, s*H, s*W)."""
        weights, positions = self.predict(x)
        values = at_least_float32(x)
        return weighted_samples(values, weights, positions, self.groups).to(x.dtype)

    def extra_repr(self) -> str:
        return (
            f'channels={self.channels}, scale_factor={self.scale_factor}, '
            f'up_kernel={self.up_kernel}, groups={self.groups}, '
            f'offset_range={self.offset_range}'
        )
