"""What upsamplers share that read a guide and reassemble windows, at any ratio."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from ..ops import carafe, window_scores
from ..ops.checks import check_geometry, check_number
from ..ops.tracing import leaf

#: Why a guided upsampler starts at no bilinear interpolation.
ONE_KERNEL = 'without a guide all output pixels of a source pixel have one kernel'


class GuidedUpsampler(nn.Module, ABC):
    """Gives features at the size of a guide, whatever the ratio.

    Output row Y lies over source row floor(Y H / h), as in nearest interpolation, and
    columns likewise; windows are those around it.

    Args:
        channels (int): Number of feature channels C.
        scale_factor (int): Upsampling ratio s, at least 1; the guide's size decides.
        guide_channels (int): Number of channels of the guide.
        up_kernel (int): Side K of the window, odd.

    Raises:
        TypeError: If a size is not an int.
        ValueError: If a size is out of range.
    """

    guided = True

    def __init__(
        self, channels: int, scale_factor: int, guide_channels: int, up_kernel: int
    ) -> None:
        super().__init__()
        check_geometry(channels, up_kernel, 1, scale_factor)
        check_number('guide_channels', guide_channels, 1)
        self.channels = channels
        self.scale_factor = scale_factor
        self.guide_channels = guide_channels
        self.up_kernel = up_kernel

    @abstractmethod
    def predict(self, x: Tensor, guide: Tensor) -> Tensor:
        """Predict a kernel for every output pixel.

        Args:
            x (Tensor): (N, C, H, W).
            guide (Tensor): (N, guide_channels, h, w).

        Returns:
            Tensor: (N, K*K, h, w), each kernel's values summing to 1.
        """

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """Upsample (N, C, H, W) to (N, C, h, w), the size of the guide.

        Raises:
            TypeError: If the guide is no tensor.
            ValueError: If the guide does not fit the features.
        """
        self.check_guide(x, guide)
        return self.reassemble(x, self.predict(x, guide))

    def check_guide(self, x: Tensor, guide: Tensor) -> None:
        """Refuse a guide that does not fit the features."""
        _check_guide(type(self).__name__, self.guide_channels, x, guide)

    def reassemble(self, x: Tensor, kernels: Tensor) -> Tensor:
        """Sum every window of x (N, C, H, W) under its kernel (N, K*K, h, w)."""
        return _reassemble(x, kernels, self.up_kernel)

    def extra_repr(self) -> str:
        return (
            f'channels={self.channels}, scale_factor={self.scale_factor}, '
            f'guide_channels={self.guide_channels}, up_kernel={self.up_kernel}'
        )


class Blocks:
    """How the pixels of a large map lie over those of a small one.

    The operators take whole blocks of s x s output pixels over each source pixel. At
    any other ratio a source pixel has up to s rows and columns: the first places of a
    block of the least s that holds them, the others of no use.

    Args:
        small (Tensor): (..., H, W).
        large (Tensor): (..., h, w), each side at least as long.

    Attributes:
        scale (int): s, the side of a block.
    """

    def __init__(self, small: Tensor, large: Tensor) -> None:
        self.device = small.device
        # torch.jit.trace hands out sizes as tensors
        sizes = (
            [
                int(side) if isinstance(side, Tensor) else side
                for side in maps.shape[-2:]
            ]
            for maps in (small, large)
        )
        # (H, h) and (W, w)
        self.sides = tuple(zip(*sizes))
        # in an export with open sizes a number all the same
        self.scale = int(max(-(-long // short) for short, long in self.sides))
        self.whole = all(long == self.scale * short for short, long in self.sides)

    def spread(self, y: Tensor) -> Tensor:
        """Put the pixels of (N, C, h, w) into the blocks of (N, C, s*H, s*W)."""
        if self.whole:
            return y
        for dim, (short, long) in zip((2, 3), self.sides):
            place = torch.arange(self.scale * short, device=self.device)
            source = place // self.scale
            first = -(-source * long // short)
            index = (first + place % self.scale).clamp(max=long - 1)
            y = y.index_select(dim, index)
        return y

    def gather(self, y: Tensor) -> Tensor:
        """Take the pixels of (N, C, h, w) out of the blocks of (N, C, s*H, s*W)."""
        if self.whole:
            return y
        for dim, (short, long) in zip((2, 3), self.sides):
            row = torch.arange(long, device=self.device)
            source = row * short // long
            first = -(-source * long // short)
            y = y.index_select(dim, source * self.scale + row - first)
        return y

    def nearest(self, x: Tensor) -> Tensor:
        """Repeat the pixels of (N, C, H, W) to (N, C, h, w)."""
        n, c, h, w = x.shape
        s = self.scale
        x = x[:, :, :, None, :, None].expand(n, c, h, s, w, s)
        return self.gather(x.reshape(n, c, h * s, w * s))


@leaf
def _check_guide(name: str, guide_channels: int, x: Tensor, guide: Tensor) -> None:
    if not isinstance(guide, Tensor):
        raise TypeError(
            f'guide of {name} must be a Tensor (N, {guide_channels}, h, w), got '
            f'{type(guide).__name__}'
        )
    n, _, h, w = x.shape
    if 0 in (h, w):
        raise ValueError(
            f'features of {name} must have H and W of at least 1, got shape '
            f'{tuple(x.shape)}'
        )
    fits = guide.dim() == 4 and guide.shape[:2] == (n, guide_channels)
    if not fits or guide.shape[2] < h or guide.shape[3] < w:
        raise ValueError(
            f'guide of {name} must have shape (N, C, h, w) = ({n}, {guide_channels}, '
            f'at least {h}, at least {w}), got {tuple(guide.shape)}'
        )


@leaf
def _reassemble(x: Tensor, kernels: Tensor, up_kernel: int) -> Tensor:
    blocks = Blocks(x, kernels)
    masks = blocks.spread(kernels).to(x.dtype)
    return blocks.gather(carafe(x, masks, up_kernel, 1, blocks.scale))


@leaf
def score_windows(keys: Tensor, queries: Tensor, up_kernel: int) -> Tensor:
    """Compare queries (N, C, h, w) and windows of keys (N, C, H, W): (N, K*K, h, w)."""
    blocks = Blocks(keys, queries)
    queries = blocks.spread(queries)
    return blocks.gather(window_scores(keys, queries, up_kernel, 1, blocks.scale))


@leaf
def repeat_to(x: Tensor, large: Tensor) -> Tensor:
    """Repeat the pixels of (N, C, H, W) to the size of a larger map."""
    return Blocks(x, large).nearest(x)
