"""Compute the reassembly kernels of upsamplers for an image."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..ops import dlu
from ..upsamplers import UPSAMPLERS, CARAFEPack
from ..upsamplers.dlu import DLUPack
from ..upsamplers.dysample import DySample
from ..upsamplers.guided import Blocks, GuidedUpsampler
from ..upsamplers.lda_aqu import LDAAQU
from .features import Recording

#: Classes that have kernels.
WITH_KERNELS = (CARAFEPack, DLUPack, DySample, GuidedUpsampler, LDAAQU)
# of a sampled map, weights farther than this from the source pixel are not shown
_FARTHEST = 7


@dataclass(frozen=True)
class KernelMaps:
    """The reassembly kernels of an upsampler for one image.

    Attributes:
        kernels (np.ndarray): (s*H, s*W, K, K) float32, the kernel of every
            output position; its values sum to 1. Of DySample, the bilinear weights of
            the pixels around the point that it samples, of LDA-AQU the sum of those of
            its points under its attention, K as large as they need.
        scale_factor (int): Upsampling ratio s.
        source_kernels (np.ndarray, optional): (H, W, K, K) float32, DLU's
            kernel space, from which ``kernels`` are sampled.
        sample_points (np.ndarray, optional): (s*H, s*W, 2) float32, x and y in source
            pixels where DLU samples its kernels and DySample the map, clamped to the
            map.
        offsets (np.ndarray, optional): (s*H, s*W, 2) float32, x and y from the source
            pixel to that point, not clamped.
    """

    kernels: np.ndarray
    scale_factor: int
    source_kernels: np.ndarray | None = None
    sample_points: np.ndarray | None = None
    offsets: np.ndarray | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the output map."""
        return self.kernels.shape[:2]

    @property
    def kernel_size(self) -> int:
        """Side K of a kernel."""
        return self.kernels.shape[2]

    def sample_point(self, x: int, y: int) -> np.ndarray:
        """(2,) x and y in source pixels where an output position is sampled.

        Raises:
            ValueError: If the upsampler has no learned sampling points.
        """
        if self.sample_points is None:
            raise ValueError(
                'these kernels are not sampled: they have no sample_points'
            )
        return self.sample_points[y, x]

    def sub_pixel_difference(self) -> np.ndarray:
        """How much the kernels of the output pixels of one source pixel differ.

        Returns:
            np.ndarray: (s*H, s*W), the sum of absolute differences between a kernel and
            the mean of the s*s kernels of its source pixel: from 0, where they are
            equal, as for nearest, to below 2.
        """
        s, (h, w) = self.scale_factor, self.size
        blocks = self.kernels.reshape(h // s, s, w // s, s, -1)
        mean = blocks.mean(axis=(1, 3), keepdims=True)
        return np.abs(blocks - mean).sum(axis=-1).reshape(h, w)

    def corners(self, x: int, y: int) -> dict[tuple[int, int], float]:
        """The source kernels that are interpolated to one sampled kernel.

        Args:
            x (int): Column of the output position.
            y (int): Row of the output position.

        Returns:
            dict[tuple[int, int], float]: Weights, summing to 1, of the up to
            four source positions (x, y) around the sampled point. The sampled
            kernel is the sum of weight times source kernel.
        """
        u, v = map(float, self.sample_point(x, y))
        x0, y0 = int(u), int(v)
        weights = {}
        for row, down in ((y0, 1 - (v - y0)), (y0 + 1, v - y0)):
            for column, right in ((x0, 1 - (u - x0)), (x0 + 1, u - x0)):
                if right * down > 0:
                    weights[column, row] = right * down
        return weights


def has_kernels(upsampler: nn.Module) -> bool:
    """Whether an upsampler predicts reassembly kernels."""
    return isinstance(upsampler, WITH_KERNELS)


class NoKernels(ValueError):
    """An upsampler has no kernels to show."""


def names_with_kernels() -> str:
    """Registered names of the upsamplers with kernels."""
    return ', '.join(
        name
        for name, cls in sorted(UPSAMPLERS.module_dict.items())
        if inspect.isclass(cls) and issubclass(cls, WITH_KERNELS)
    )


@torch.no_grad()
def kernel_maps(
    upsampler: nn.Module, source: Tensor, group: int = 0, guide: Tensor | None = None
) -> KernelMaps:
    """Predict the kernels of an upsampler for given features.

    DLU's own operator samples its kernels: with features of ones, 1x1 kernels and one
    channel group for each of the K*K taps, its output is the sampled taps.

    Args:
        upsampler (nn.Module): An upsampler with kernels, see :func:`has_kernels`.
        source (Tensor): (1, C, H, W), its input.
        group (int): Index of the channel group. Defaults to 0.
        guide (Tensor, optional): (1, C', h, w), the guide of a guided upsampler.

    Returns:
        KernelMaps: On the CPU.

    Raises:
        NoKernels: If the upsampler has none.
        ValueError: If it has no such group.
    """
    if not has_kernels(upsampler):
        raise NoKernels(
            f'{type(upsampler).__name__} predicts no kernels; upsamplers with kernels '
            f'are {names_with_kernels()}'
        )
    if isinstance(upsampler, DySample):
        _check_group(group, 'groups', upsampler.groups)
        return _dysample_kernels(upsampler, source, group)
    if isinstance(upsampler, LDAAQU):
        _check_group(group, 'groups', upsampler.groups)
        return _lda_aqu_kernels(upsampler, source, group)
    _check_group(group, 'up_group', getattr(upsampler, 'up_group', 1))
    k = upsampler.up_kernel

    def as_maps(taps: Tensor) -> np.ndarray:
        maps = taps[0].float().cpu().numpy().transpose(1, 2, 0)
        return maps.reshape(*maps.shape[:2], k, k)

    if isinstance(upsampler, GuidedUpsampler):
        kernels = upsampler.predict(source, guide)
        blocks = Blocks(source, kernels)
        return KernelMaps(as_maps(blocks.spread(kernels)), blocks.scale)

    s, (h, w) = upsampler.scale_factor, source.shape[2:]

    def of_group(channels: Tensor) -> Tensor:
        return channels.chunk(upsampler.up_group, dim=1)[group].contiguous()

    if isinstance(upsampler, CARAFEPack):
        masks = upsampler.content_encoder(upsampler.channel_compressor(source))
        return KernelMaps(as_maps(of_group(upsampler.kernel_normalizer(masks))), s)

    space, offsets = map(of_group, upsampler.predict(source))
    sampled = dlu(
        torch.ones_like(space), space, offsets.repeat(1, k * k, 1, 1), 1, k * k, s
    )
    # (axis, i, j, y, x) -> (y, i, x, j, axis)
    shift = offsets.float().cpu().reshape(2, s, s, h, w).permute(3, 1, 4, 2, 0)
    shift = shift.reshape(h * s, w * s, 2).numpy()
    own = np.stack(np.meshgrid(np.arange(w), np.arange(h)), axis=-1)
    own = own.repeat(s, axis=0).repeat(s, axis=1)
    points = (own + shift).clip(0, [w - 1, h - 1]).astype(np.float32)
    return KernelMaps(as_maps(sampled), s, as_maps(space), points, shift)


def _check_group(group: int, argument: str, number: int) -> None:
    if not 0 <= group < number:
        raise ValueError(
            f'group must be from 0 to {number - 1}, got {group}; the upsampler has '
            f'{argument}={number}'
        )


def _dysample_kernels(upsampler: DySample, source: Tensor, group: int) -> KernelMaps:
    """Where DySample samples, and what the source pixels there weigh."""
    s, (h, w) = upsampler.scale_factor, source.shape[2:]
    offsets = upsampler.predict(source)[0, group :: upsampler.groups]
    offsets = offsets.float().cpu().numpy().transpose(1, 2, 0)
    grid = np.stack(np.meshgrid(np.arange(s * w), np.arange(s * h)), axis=-1)
    own = grid // s
    offsets = ((grid + 0.5) / s - 0.5 + offsets - own).astype(np.float32)
    points = (own + offsets).clip(0, [w - 1, h - 1])
    return KernelMaps(
        _bilinear_kernels(points[None], np.ones(1), s),
        s,
        sample_points=points.astype(np.float32),
        offsets=offsets,
    )


def _lda_aqu_kernels(upsampler: LDAAQU, source: Tensor, group: int) -> KernelMaps:
    """What the source pixels weigh at all points that LDA-AQU samples."""
    weights, positions = upsampler.predict(source)
    corner = np.array(source.shape[:1:-1]) - 1
    points = (positions[group].double().cpu().numpy() + 1) / 2 * corner
    weights = weights[0].double().cpu().numpy()
    s = upsampler.scale_factor
    return KernelMaps(_bilinear_kernels(points, weights, s), s)


def _bilinear_kernels(points: np.ndarray, weights: np.ndarray, s: int) -> np.ndarray:
    """Kernels (s*H, s*W, K, K) that sampling points bilinearly amounts to.

    Args:
        points (np.ndarray): (T, s*H, s*W, 2), x and y in source pixels.
        weights (np.ndarray): (T, s*H, s*W) or (T), of each point.
        s (int): Upsampling ratio.
    """
    long, wide = points.shape[1:3]
    own = np.stack(np.meshgrid(np.arange(wide), np.arange(long)), axis=-1) // s
    lower = np.floor(np.nan_to_num(points)).astype(int)
    upper_weight = points - lower
    corners = []
    for shift in ((0, 0), (1, 0), (0, 1), (1, 1)):
        weight = np.where(shift, upper_weight, 1 - upper_weight).prod(axis=-1)
        corners.append((lower + shift - own, weight * weights))
    away = [np.abs(at[weight > 0]).max(initial=1) for at, weight in corners]
    r = min(max(away), _FARTHEST)
    kernels = np.zeros((long, wide, 2 * r + 1, 2 * r + 1), np.float32)
    for at, weight in corners:
        shown = (np.abs(at) <= r).all(axis=-1)
        _, y, x = np.nonzero(shown)
        column, row = at[shown].T + r
        np.add.at(kernels, (y, x, row, column), weight[shown])
    return kernels


def recorded_kernels(recording: Recording, level: str, group: int = 0) -> KernelMaps:
    """The kernels behind a level of a recorded pyramid.

    If the neck upsamples to the level several times, those of the last call.

    Args:
        recording (Recording): Of :func:`dlu_mmdet.visualization.features.record`.
        level (str): The level that was upsampled to, e.g. 'P2'.
        group (int): As in :func:`kernel_maps`.

    Returns:
        KernelMaps: On the CPU.

    Raises:
        ValueError: If no upsampler with kernels upsamples to that level.
    """
    if not recording.upsamplings:
        raise ValueError(
            'the neck has no upsamplers (upsample_modules); write dlu_mmdet. before '
            f'its type and give it an upsample_cfg.type of {names_with_kernels()}'
        )
    if level not in recording.upsamplings:
        raise ValueError(
            f'level must be one that is upsampled to, '
            f'{", ".join(sorted(recording.upsamplings))}, got {level!r}'
        )
    upsampling = recording.upsamplings[level][-1]
    return kernel_maps(upsampling.module, upsampling.source, group, upsampling.guide)


def describe_offsets(maps: Sequence[KernelMaps]) -> str:
    """Describe the size of learned offsets and the share without a gradient.

    Args:
        maps (Sequence[KernelMaps]): Kernels of one upsampler on several images.

    Returns:
        str: Median and 95th percentile of the larger absolute coordinate, in source
        pixels, and the share of coordinates outside the map, which sampling clamps so
        that they get no gradient; empty without offsets.
    """
    if any(each.offsets is None for each in maps):
        return ''
    reach = np.concatenate([np.abs(m.offsets).max(axis=-1).ravel() for m in maps])
    outside = []
    for each in maps:
        s, (h, w) = each.scale_factor, each.size
        own = np.stack(np.meshgrid(np.arange(w) // s, np.arange(h) // s), axis=-1)
        at = own + each.offsets
        outside.append(((at < 0) | (at > [w // s - 1, h // s - 1])).ravel())
    median, high = np.percentile(reach, [50, 95])
    return (
        f'offsets reach {median:.2f} source pixels in the median, {high:.2f} in 95 %, '
        f'{np.concatenate(outside).mean():.1%} of their coordinates outside of the map'
    )


def visible_size(recording: Recording, maps: KernelMaps) -> tuple[int, int]:
    """Number of rows and columns of an output map inside the image."""
    return tuple(
        round(size * cells / whole)
        for size, cells, whole in zip(
            recording.image.shape, maps.size, recording.padded
        )
    )


def position_at(
    at: tuple[int, int], image: tuple[int, int], size: tuple[int, int]
) -> tuple[int, int]:
    """The output position at a pixel of the image.

    Args:
        at (tuple[int, int]): Column and row of the pixel.
        image (tuple[int, int]): Height and width of the image.
        size (tuple[int, int]): Rows and columns of the map inside the image, from
            :func:`visible_size`.

    Returns:
        tuple[int, int]: Column and row in the map.

    Raises:
        ValueError: If the pixel is outside the image.
    """
    (x, y), (height, width), (rows, columns) = at, image, size
    if not (0 <= x < width and 0 <= y < height):
        raise ValueError(
            f'--at {x},{y} is outside the image, which has {width} x {height} pixels; '
            f'give a column below {width} and a row below {height}'
        )
    return x * columns // width, y * rows // height


def informative_positions(
    maps: KernelMaps, number: int, size: tuple[int, int] | None = None
) -> list[tuple[int, int]]:
    """The output positions whose kernels differ most from their neighbors'.

    Positions are ranked by :meth:`KernelMaps.sub_pixel_difference`. They are at least a
    sixth of the map's longer side apart and, on maps that are large enough, K // 2
    source pixels away from the border, where taps fall outside the map.

    Args:
        maps (KernelMaps): The kernels.
        number (int): Maximum number of positions.
        size (tuple[int, int], optional): Rows and columns inside the image. None means
            the whole map.

    Returns:
        list[tuple[int, int]]: Positions (x, y) in output pixels, the most
        informative first.

    Raises:
        ValueError: If ``number`` is less than 1.
    """
    if number < 1:
        raise ValueError(f'number of positions must be at least 1, got {number}')
    h, w = size or maps.size
    left = maps.sub_pixel_difference()[:h, :w].copy()
    margin = maps.kernel_size // 2 * maps.scale_factor
    if min(h, w) > 2 * margin:
        inner = np.full_like(left, -np.inf)
        inside = np.s_[margin : h - margin, margin : w - margin]
        inner[inside] = left[inside]
        left = inner
    apart = max(1, max(h, w) // 6)
    positions = []
    while len(positions) < number and np.isfinite(left).any():
        y, x = np.unravel_index(np.nanargmax(left), left.shape)
        positions.append((int(x), int(y)))
        left[
            max(0, y - apart + 1) : y + apart, max(0, x - apart + 1) : x + apart
        ] = -np.inf
    return positions


def check_positions(
    positions: Sequence[tuple[int, int]], size: tuple[int, int]
) -> None:
    """Refuse positions outside a map.

    Args:
        positions (Sequence[tuple[int, int]]): x and y in output pixels.
        size (tuple[int, int]): Rows and columns of the map.

    Raises:
        ValueError: If one is outside.
    """
    h, w = size
    for x, y in positions:
        if not (0 <= x < w and 0 <= y < h):
            raise ValueError(
                f'position {x},{y} is outside the output map of {w} x {h} positions '
                f'(x,y from 0,0 to {w - 1},{h - 1}); one position covers several '
                'pixels of the image'
            )


def neighbors(maps: KernelMaps, x: int, y: int) -> dict[tuple[int, int], np.ndarray]:
    """The 4 x 4 source kernels around a sampled point, by their positions."""
    if maps.source_kernels is None or not np.isfinite(maps.sample_point(x, y)).all():
        return {}
    u, v = maps.sample_point(x, y).astype(int)
    h, w = maps.source_kernels.shape[:2]
    return {
        (column, row): maps.source_kernels[row, column]
        for row in range(max(0, v - 1), min(h, v + 3))
        for column in range(max(0, u - 1), min(w, u + 3))
    }
