"""DySample: upsampling by learned sampling positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.checks import check_geometry, check_number
from ..ops.tracing import leaf
from .builder import UPSAMPLERS
from .pixel_shuffle import pixel_shuffle
from .start import check_start
from .weight_init import constant_init, normal_init

STYLES = ('lp', 'pl')


@leaf
def sample(x: Tensor, offsets: Tensor, unit: tuple[int, int]) -> Tensor:
    """Sample a map bilinearly beside the places of the output's pixels.

    Positions outside of the map are clamped to its border.

    Args:
        x (Tensor): (N, C, H, W).
        offsets (Tensor): (N, 2*g, h, w), for g groups of channels, x of every group
            first, then y.
        unit (tuple[int, int]): Height and width of the map in whose pixels the offsets
            are; it covers the same area.

    Returns:
        Tensor: (N, C, h, w).
    """
    (n, c, h, w), (out_h, out_w), g = x.shape, offsets.shape[2:], offsets.shape[1] // 2
    # half precision cannot tell neighboring pixels of a wide map apart
    dtype = torch.promote_types(x.dtype, torch.float32)
    offsets = offsets.to(dtype).reshape(n, 2, g, out_h, out_w)

    # from -1 to 1 between the outer edges of the map
    grid_x, grid_y = (
        (torch.arange(length, dtype=dtype, device=x.device) * 2 + 1) / length - 1
        for length in (out_w, out_h)
    )
    offsets_x, offsets_y = offsets[:, 0] * (2 / unit[1]), offsets[:, 1] * (2 / unit[0])
    positions = torch.stack([grid_x + offsets_x, grid_y[:, None] + offsets_y], dim=-1)
    out = F.grid_sample(
        x.to(dtype).reshape(n * g, c // g, h, w),
        positions.flatten(0, 1),
        mode='bilinear',
        padding_mode='border',
        align_corners=False,
    )
    return out.reshape(n, c, out_h, out_w).to(x.dtype)


@UPSAMPLERS.register_module('dysample')
class DySample(nn.Module):
    """DySample: every output pixel samples the input bilinearly at S = G + O.

    G is where bilinear interpolation (``align_corners=False``) samples, O a
    learned offset in source pixels, one for each of g groups of channels, and
    X' = grid_sample(X, S), positions outside of the map clamped to its border.
    With a static scope O = 0.25 linear(X), with a dynamic one
    O = 0.5 sigmoid(linear_1(X)) linear_2(X), which starts as the static one.
    'lp' shuffles the linear layers' outputs to s*H x s*W; 'pl' shuffles X
    before them, so that they read C/(s*s) channels.

    Source: `Learning to Upsample by Learning to Sample
    <https://arxiv.org/abs/2308.15085>`_, section 3. What it leaves open is as in
    ``dysample.py`` of tiny-smart/dysample: the order of the offsets' channels
    (axis, group, sub-pixel; x first), a ``scope`` without bias, the start, and
    the same 0.25 and 0.5 at every ratio. ``offset`` and ``scope`` are that
    file's keys; its constant ``init_pos`` is computed here. In the authors' detectors
    (tiny-smart/detection-with-upsamplers) the file of that name has a ``scope.bias``.

    Args:
        channels (int): Number of feature channels C.
        scale_factor (int): Upsampling ratio s, at least 1.
        style (str): 'lp' or 'pl'; 'pl' needs ``channels`` that s*s divides.
            Defaults to 'lp'.
        groups (int): Number of channel groups g; divides ``channels``.
            Defaults to 4.
        dyscope (bool): Whether the scope is dynamic. Defaults to False.
        start (str): 'paper', next to 'bilinear', 'bilinear' itself, or 'nearest', which
            needs the offsets that each sub-pixel has in 'lp'. Defaults to 'paper'.

    Raises:
        TypeError: If a size is not an int.
        ValueError: If a size is out of range, the style is unknown, or it cannot hold
            ``start``.
    """

    def __init__(
        self,
        channels: int,
        scale_factor: int = 2,
        style: str = 'lp',
        groups: int = 4,
        dyscope: bool = False,
        start: str = 'paper',
    ) -> None:
        super().__init__()
        check_geometry(channels, 1, 1, scale_factor)
        check_number('groups', groups, 1)
        if channels % groups:
            raise ValueError(
                f'groups must divide the channels, got groups={groups} for '
                f'{channels} channels'
            )
        if style not in STYLES:
            raise ValueError(
                f'style must be one of {", ".join(map(repr, STYLES))}, got {style!r}'
            )
        if style == 'pl' and channels % scale_factor**2:
            raise ValueError(
                f"style='pl' needs channels that scale_factor squared divides, got "
                f"{channels} channels for a ratio of {scale_factor}; use style='lp'"
            )
        held = ('paper', 'bilinear', 'nearest')[: 3 if style == 'lp' else 2]
        check_start(self, start, held, f'style={style!r}')
        self.channels = channels
        self.scale_factor = scale_factor
        self.style = style
        self.groups = groups
        self.dyscope = dyscope
        self.start = start

        if style == 'lp':
            sizes = channels, 2 * groups * scale_factor**2
        else:
            sizes = channels // scale_factor**2, 2 * groups
        self.offset = nn.Conv2d(*sizes, 1)
        if dyscope:
            self.scope = nn.Conv2d(*sizes, 1, bias=False)
        self.init_weights()

    def init_weights(self) -> None:
        """Offsets of nearly zero, next to bilinear interpolation; or ``start``."""
        if self.start == 'paper':
            normal_init(self.offset, std=0.001)
        else:
            constant_init(self.offset, val=0)
        if self.start == 'nearest':
            # to the pixel's center, under the scope of 0.25
            s = self.scale_factor
            back = -4 * ((torch.arange(s) + 0.5) / s - 0.5)
            places = torch.stack([back.expand(s, s), back[:, None].expand(s, s)])
            with torch.no_grad():
                bias = self.offset.bias.view(2, self.groups, s, s)
                bias.copy_(places[:, None])
        if self.dyscope:
            constant_init(self.scope, val=0)

    def predict(self, x: Tensor) -> Tensor:
        """Predict the offsets O.

        Args:
            x (Tensor): (N, C, H, W).

        Returns:
            Tensor: (N, 2*g, s*H, s*W) in source pixels, x of every group
            first, then y.
        """
        if self.style == 'pl':
            x = pixel_shuffle(x, self.scale_factor)
        scope = 0.5 * self.scope(x).sigmoid() if self.dyscope else 0.25
        offsets = scope * self.offset(x)
        if self.style == 'lp':
            offsets = pixel_shuffle(offsets, self.scale_factor)
        return offsets

    def forward(self, x: Tensor) -> Tensor:
        """Upsample (N, C, H, W) to (N, C, s*H, s*W)."""
        return sample(x, self.predict(x), x.shape[2:])

    def extra_repr(self) -> str:
        return (
            f'channels={self.channels}, scale_factor={self.scale_factor}, '
            f'style={self.style!r}, groups={self.groups}, dyscope={self.dyscope}, '
            f'start={self.start!r}'
        )
