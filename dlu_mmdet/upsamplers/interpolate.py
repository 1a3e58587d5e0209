"""Interpolation without parameters."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.tracing import leaf
from .builder import UPSAMPLERS


class Interpolation(nn.Upsample):
    """What the interpolations share: they go to any size, not to multiples only."""

    any_size = True

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Interpolate (N, C, H, W) to (N, C, s*H, s*W), or to (N, C, *size)."""
        return interpolate(x, size, self.scale_factor, self.mode, self.align_corners)


@leaf
def interpolate(
    x: Tensor,
    size: tuple[int, int] | None,
    scale_factor: int,
    mode: str,
    align_corners: bool | None = None,
) -> Tensor:
    """Interpolate by a ratio, or to a size where there is one; see F.interpolate."""
    ratio = scale_factor if size is None else None
    return F.interpolate(
        x, size, scale_factor=ratio, mode=mode, align_corners=align_corners
    )


@UPSAMPLERS.register_module('nearest')
class Nearest(Interpolation):
    """Nearest-neighbor interpolation.

    Args:
        channels (int): Number of feature channels; any.
        scale_factor (int): Upsampling ratio.
    """

    def __init__(self, channels: int, scale_factor: int = 2) -> None:
        super().__init__(scale_factor=scale_factor, mode='nearest')


@UPSAMPLERS.register_module('bilinear')
class Bilinear(Interpolation):
    """Bilinear interpolation.

    Args:
        channels (int): Number of feature channels; any.
        scale_factor (int): Upsampling ratio.
        align_corners (bool): As in ``torch.nn.functional.interpolate``.
            Defaults to False.
    """

    def __init__(
        self, channels: int, scale_factor: int = 2, align_corners: bool = False
    ) -> None:
        super().__init__(
            scale_factor=scale_factor, mode='bilinear', align_corners=align_corners
        )
