"""The kernels of upsamplers on a real image, and a figure of them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.patheffects import withStroke
from mmcv.ops import CARAFEPack
from torch import Tensor, nn

from dlu_mmdet.ops import dlu
from dlu_mmdet.upsamplers import UPSAMPLERS
from dlu_mmdet.upsamplers.dlu import DLUPack
from dlu_mmdet.upsamplers.dysample import DySample
from dlu_mmdet.upsamplers.guided import Blocks, GuidedUpsampler

from .features import Recording
from .figures import map_colours, new_figure

#: Classes that have kernels.
WITH_KERNELS = (CARAFEPack, DLUPack, DySample, GuidedUpsampler)
# of a sampled map, weights farther than this from the source pixel are not shown
_FARTHEST = 7

#: One for each quarter of a source pixel, row by row, which at a ratio of 2 is one
#: for each of its output pixels: Okabe and Ito's, which stay apart for colour-blind
#: readers.
SUB_PIXEL_COLOURS = ('#e69f00', '#56b4e9', '#009e73', '#cc79a7')

_KERNEL_MAP, _DIFFERENCE_MAP = 'viridis', 'magma'
#: What a picture must keep, for :func:`dlu_mmdet.visualization.figures.save_figure`.
COLOURS = [
    *SUB_PIXEL_COLOURS,
    *map_colours(_KERNEL_MAP),
    *map_colours(_DIFFERENCE_MAP),
]
_TITLE = dict(fontsize=11, fontweight='bold', pad=5)
_SUBTITLE = dict(fontsize=9, pad=4)
# source pixels with arrows along the longer side of the image
_ARROWS = 8
# all in inches
_PANEL, _GAP, _ROW_GAP = 2.1, 0.1, 0.3
_MAP_GAP = 0.22
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.3, 0.1, 0.34, 1.15


@dataclass(frozen=True)
class KernelMaps:
    """The kernels with which an upsampler reassembles one image's features.

    Attributes:
        kernels (np.ndarray): (s*H, s*W, K, K) float32, the kernel of every
            output position; its values sum to 1. Of DySample, the bilinear weights of
            the pixels around the place that it samples, K as large as they need.
        scale_factor (int): Upsampling ratio s.
        source_kernels (np.ndarray, optional): (H, W, K, K) float32, DLU's
            kernel space, from which ``kernels`` are sampled.
        places (np.ndarray, optional): (s*H, s*W, 2) float32, x and y in source
            pixels where DLU samples its kernels and DySample the map, clamped to the
            map.
        offsets (np.ndarray, optional): (s*H, s*W, 2) float32, x and y from the source
            pixel to that place, not clamped.
    """

    kernels: np.ndarray
    scale_factor: int
    source_kernels: np.ndarray | None = None
    places: np.ndarray | None = None
    offsets: np.ndarray | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the output map."""
        return self.kernels.shape[:2]

    @property
    def kernel_size(self) -> int:
        """Side K of a kernel."""
        return self.kernels.shape[2]

    def sub_pixel_difference(self) -> np.ndarray:
        """How far the kernels of one source pixel's output positions differ.

        Returns:
            np.ndarray: (s*H, s*W), the sum of the absolute differences between
            a position's kernel and the mean of the s*s kernels of its source
            pixel: 0 where one kernel for the source pixel would do, as for
            nearest or a box filter, and below 2.
        """
        s, (h, w) = self.scale_factor, self.size
        blocks = self.kernels.reshape(h // s, s, w // s, s, -1)
        mean = blocks.mean(axis=(1, 3), keepdims=True)
        return np.abs(blocks - mean).sum(axis=-1).reshape(h, w)

    def corners(self, x: int, y: int) -> dict[tuple[int, int], float]:
        """The source kernels that make up one sampled kernel.

        Args:
            x (int): Column of the output position.
            y (int): Row of the output position.

        Returns:
            dict[tuple[int, int], float]: Weights, summing to 1, of the up to
            four source positions (x, y) around the sampled place. The sampled
            kernel is the sum of weight times source kernel.
        """
        u, v = map(float, self.places[y, x])
        x0, y0 = int(u), int(v)
        weights = {}
        for row, down in ((y0, 1 - (v - y0)), (y0 + 1, v - y0)):
            for column, right in ((x0, 1 - (u - x0)), (x0 + 1, u - x0)):
                if right * down > 0:
                    weights[column, row] = right * down
        return weights


def has_kernels(upsampler: nn.Module) -> bool:
    """Whether an upsampler weighs source pixels by kernels that it predicts."""
    return isinstance(upsampler, WITH_KERNELS)


def names_with_kernels() -> str:
    """The upsamplers that have kernels, as ``upsample_cfg.type`` names them."""
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

    DLU's kernels are sampled by its operator itself: features of ones under
    1x1 kernels, one channel group for each of the K*K taps, reassemble to the
    taps' sampled values.

    Args:
        upsampler (nn.Module): One with kernels, see :func:`has_kernels`.
        source (Tensor): (1, C, H, W), what it upsamples.
        group (int): Channel group, of the upsampler's, whose kernels are wanted.
            Defaults to 0.
        guide (Tensor, optional): (1, C', h, w), for an upsampler that reads one.

    Returns:
        KernelMaps: On the CPU.

    Raises:
        ValueError: If the upsampler has no kernels, or no such group.
    """
    if not has_kernels(upsampler):
        raise ValueError(
            f'{type(upsampler).__name__} predicts no kernels; upsamplers with kernels '
            f'are {names_with_kernels()}'
        )
    if isinstance(upsampler, DySample):
        _check_group(group, 'groups', upsampler.groups)
        return _bilinear_kernels(upsampler, source, group)
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
    places = (own + shift).clip(0, [w - 1, h - 1]).astype(np.float32)
    return KernelMaps(as_maps(sampled), s, as_maps(space), places, shift)


def _check_group(group: int, argument: str, number: int) -> None:
    if not 0 <= group < number:
        raise ValueError(
            f'group must be from 0 to {number - 1}, got {group}; the upsampler has '
            f'{argument}={number}'
        )


def _bilinear_kernels(upsampler: DySample, source: Tensor, group: int) -> KernelMaps:
    """Where DySample samples, and what the source pixels there weigh."""
    s, (h, w) = upsampler.scale_factor, source.shape[2:]
    offsets = upsampler.predict(source)[0, group :: upsampler.groups]
    offsets = offsets.float().cpu().numpy().transpose(1, 2, 0)
    grid = np.stack(np.meshgrid(np.arange(s * w), np.arange(s * h)), axis=-1)
    own = grid // s
    offsets = ((grid + 0.5) / s - 0.5 + offsets - own).astype(np.float32)
    places = (own + offsets).clip(0, [w - 1, h - 1])
    lower = np.nan_to_num(places).astype(int)
    upper_weight = places - lower
    corners = []
    for shift in ((0, 0), (1, 0), (0, 1), (1, 1)):
        weight = np.where(shift, upper_weight, 1 - upper_weight).prod(axis=-1)
        corners.append((lower + shift - own, weight))
    away = [np.abs(at[weight > 0]).max(initial=1) for at, weight in corners]
    r = min(max(away), _FARTHEST)
    kernels = np.zeros((s * h, s * w, 2 * r + 1, 2 * r + 1), np.float32)
    for at, weight in corners:
        shown = (np.abs(at) <= r).all(axis=-1)
        y, x = np.nonzero(shown)
        column, row = at[shown].T + r
        kernels[y, x, row, column] = weight[shown]
    return KernelMaps(kernels, s, places=places.astype(np.float32), offsets=offsets)


def recorded_kernels(recording: Recording, level: str, group: int = 0) -> KernelMaps:
    """The kernels that made a level of a recorded pyramid.

    Where a neck upsamples to a level several times, those of the last time.

    Args:
        recording (Recording): Of :func:`dlu_mmdet.visualization.features.record`.
        level (str): The level that was upsampled to, e.g. 'P2'.
        group (int): As in :func:`kernel_maps`.

    Returns:
        KernelMaps: On the CPU.

    Raises:
        ValueError: If nothing was upsampled to that level, or not with
            kernels.
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
    """Say how far learned offsets reach, and how many have no gradient.

    Args:
        maps (Sequence[KernelMaps]): Of one upsampler on several images.

    Returns:
        str: Median and 95th percentile of the larger coordinate's size, in source
        pixels, and the share of coordinates outside of the map, where sampling clamps
        them and nothing moves them any more; empty without offsets.
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
    """Rows and columns of an output map whose centres lie in the image."""
    return tuple(
        round(size * cells / whole)
        for size, cells, whole in zip(
            recording.image.shape, maps.size, recording.padded
        )
    )


def informative_positions(
    maps: KernelMaps, number: int, size: tuple[int, int] | None = None
) -> list[tuple[int, int]]:
    """The output positions that need kernels of their own most.

    These are the ones whose kernel differs most from the mean kernel of their
    source pixel, see :meth:`KernelMaps.sub_pixel_difference`. They keep a
    sixth of the map's longer side apart, so that they show different places,
    and K // 2 source pixels off the border, where taps fall outside the map;
    on a map too small for that any position will do.

    Args:
        maps (KernelMaps): The kernels.
        number (int): How many positions, at most.
        size (tuple[int, int], optional): Rows and columns to choose from,
            without the padding of the image. None means the whole map.

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


def draw_kernels(
    recording: Recording,
    maps: Mapping[str, KernelMaps],
    positions: Sequence[tuple[int, int]],
    level: str = '',
    image_name: str = 'image',
) -> Figure:
    """Draw how upsamplers come by their kernels at some output positions.

    Above, the whole image: arrows from a source pixel to the places where
    the kernels of its output pixels are sampled (DySample: the map itself), of its
    four corners only where the ratio is above 2, and two maps: how far the
    kernels of a source pixel differ, by which :func:`informative_positions`
    goes, and every kernel's largest value, 1 for nearest. Below, a row for
    each position: the image around it, the source kernels around the sampled
    place, and the kernel that they give. Values of all kernels share one
    colour scale, which the map of largest values may exceed.

    Args:
        recording (Recording): Of the image; its pixels are shown.
        maps (Mapping[str, KernelMaps]): Kernels by the detectors' names, all
            of one level and size.
        positions (Sequence[tuple[int, int]]): x and y in output pixels.
        level (str): Name of the level upsampled to, for the titles.
        image_name (str): Title of the image.

    Returns:
        Figure: Hand it to :func:`dlu_mmdet.visualization.figures.save_figure`,
        with :data:`COLOURS`.

    Raises:
        ValueError: If there is no detector or no position, a position is
            outside the map, or the maps differ in size.
    """
    if not maps or not positions:
        raise ValueError(
            f'maps and positions must not be empty, got {len(maps)} detectors and '
            f'{len(positions)} positions'
        )
    sizes = {
        name: f'{values.size[1]} x {values.size[0]} at ratio {values.scale_factor}'
        for name, values in maps.items()
    }
    if len(set(sizes.values())) > 1:
        raise ValueError(
            'the maps must have one size and ratio, got '
            + ', '.join(f'{name} {size}' for name, size in sizes.items())
            + '; show together only detectors that resize images alike and whose '
            'necks upsample by the same ratio (top_down)'
        )
    first = next(iter(maps.values()))
    check_positions(positions, first.size)

    pixels = recording.padded[1] / first.size[1]
    differences = {name: m.sub_pixel_difference() for name, m in maps.items()}
    rows, cells = visible_size(recording, first)
    farthest = max(float(np.nanmax(d[:rows, :cells])) for d in differences.values())
    highest = max(
        float(np.nanmax(kernel))
        for values in maps.values()
        for x, y in positions
        for kernel in [values.kernels[y, x], *_neighbours(values, x, y).values()]
    )
    peaks = {name: values.kernels.max(axis=(2, 3)) for name, values in maps.items()}
    figure, top, below = _layout(recording.image.shape[:2], maps, len(positions))

    def draw_map(axes: Axes, values: np.ndarray, title: str, **colours) -> AxesImage:
        axes.set_title(title, **_SUBTITLE)
        extent = (0, values.shape[1] * pixels, values.shape[0] * pixels, 0)
        drawn = axes.imshow(values, extent=extent, interpolation='nearest', **colours)
        _limit(axes, recording.image.shape)
        _number(axes, positions, pixels)
        return drawn

    difference_colours = dict(cmap=_DIFFERENCE_MAP, vmin=0, vmax=max(farthest, 1e-6))
    kernel_colours = dict(cmap=_KERNEL_MAP, vmin=0, vmax=highest)
    for name, values in maps.items():
        overview, difference_axes, peak_axes = top[name]
        if overview is not None:
            _draw_overview(overview, recording.image, values, positions, pixels)
            overview.set_title(f'{name}: {image_name}, {level}', **_TITLE)
        prefix = '' if overview is not None else f'{name}: '
        difference = draw_map(
            difference_axes,
            differences[name],
            f'{prefix}difference of kernels',
            **difference_colours,
        )
        draw_map(
            peak_axes,
            peaks[name],
            'largest value of kernel',
            **kernel_colours,
        )
        for row, (x, y) in enumerate(positions):
            zoom, mosaic, axes = below[row][name]
            if zoom is not None:
                _draw_zoom(zoom, recording.image, values, x, y, pixels)
                zoom.set_ylabel(f'{row + 1}: position {x},{y}', fontsize=8)
            if mosaic is not None:
                _draw_mosaic(mosaic, values, x, y, kernel_colours)
            kernel = axes.imshow(values.kernels[y, x], **kernel_colours)
            axes.set_xlabel(
                f'largest {values.kernels[y, x].max():.2f}, '
                f'difference {differences[name][y, x]:.2f}',
                fontsize=7.5,
            )
            if row == 0:
                for panel, title in (
                    (zoom, 'the image around it'),
                    (mosaic, 'source kernels at the arrow'),
                    (axes, f'{prefix}kernel' if mosaic is None else 'sampled kernel'),
                ):
                    if panel is not None:
                        panel.set_title(title, **_SUBTITLE)

    # by more than the eye can tell apart
    exceeded = any(np.nanmax(p[:rows, :cells]) > 1.01 * highest for p in peaks.values())
    _draw_key(figure, kernel, difference, maps, exceeded)
    return figure


def _neighbours(maps: KernelMaps, x: int, y: int) -> dict[tuple[int, int], np.ndarray]:
    """The 4 x 4 source kernels around a sampled place, by their positions."""
    if maps.source_kernels is None or not np.isfinite(maps.places[y, x]).all():
        return {}
    u, v = maps.places[y, x].astype(int)
    h, w = maps.source_kernels.shape[:2]
    return {
        (column, row): maps.source_kernels[row, column]
        for row in range(max(0, v - 1), min(h, v + 3))
        for column in range(max(0, u - 1), min(w, u + 3))
    }


def _colour(x: int, y: int, scale_factor: int) -> str:
    """The colour of an output position: that of its quarter of the source pixel."""
    down, right = (2 * (at % scale_factor) // scale_factor for at in (y, x))
    return SUB_PIXEL_COLOURS[2 * down + right]


def _corner_positions(x: int, y: int, scale_factor: int) -> list[tuple[int, int]]:
    """The output positions in the corners of a source pixel; at ratio 2 all of it."""
    ends = sorted({0, scale_factor - 1})
    x, y = x * scale_factor, y * scale_factor
    return [(x + right, y + down) for down in ends for right in ends]


def _limit(axes: Axes, shape: tuple[int, ...]) -> None:
    axes.set(xlim=(0, shape[1]), ylim=(shape[0], 0))


def _number(axes: Axes, positions: Sequence[tuple[int, int]], pixels: float) -> None:
    """Mark positions in an image and number them."""
    for number, (x, y) in enumerate(positions, 1):
        axes.text(
            (x + 0.5) * pixels,
            (y + 0.5) * pixels,
            str(number),
            fontsize=8,
            fontweight='bold',
            color='black',
            ha='center',
            va='center',
            bbox=dict(boxstyle='circle,pad=0.15', facecolor='white', alpha=0.85, lw=0),
        )


def _draw_arrow(
    axes: Axes, maps: KernelMaps, x: int, y: int, pixels: float, width: float
) -> None:
    """An arrow from a source pixel to where an output pixel's kernel is sampled.

    Coordinates are pixels of the image; a source pixel's place is its centre.
    """
    s = maps.scale_factor
    start = (np.array([x // s, y // s]) + 0.5) * s * pixels
    end = (maps.places[y, x] + 0.5) * s * pixels
    if not np.isfinite(end).all():
        return
    arrow = FancyArrowPatch(
        start,
        end,
        arrowstyle='-|>',
        color=_colour(x, y, s),
        linewidth=width,
        mutation_scale=4 + 4 * width,
        shrinkA=0,
        shrinkB=0,
        path_effects=[withStroke(linewidth=width + 0.8, foreground='black')],
    )
    axes.add_patch(arrow)


def _draw_overview(
    axes: Axes,
    image: np.ndarray,
    maps: KernelMaps,
    positions: Sequence[tuple[int, int]],
    pixels: float,
) -> None:
    """The whole image, with the arrows of some source pixels."""
    h, w = image.shape[:2]
    axes.imshow(image, extent=(0, w, h, 0))
    if maps.places is not None:
        s = maps.scale_factor
        rows, columns = (int(size / pixels / s) for size in (h, w))
        step = max(1, round(max(rows, columns) / _ARROWS))
        for y in range(step // 2, rows, step):
            for x in range(step // 2, columns, step):
                for corner in _corner_positions(x, y, s):
                    _draw_arrow(axes, maps, *corner, pixels, 0.7)
    _limit(axes, image.shape)
    _number(axes, positions, pixels)


def _draw_zoom(
    axes: Axes, image: np.ndarray, maps: KernelMaps, x: int, y: int, pixels: float
) -> None:
    """The image around a position, its source pixels, and its arrows."""
    h, w = image.shape[:2]
    s, k = maps.scale_factor, maps.kernel_size
    cell = s * pixels
    centre = (np.array([x // s, y // s]) + 0.5) * cell
    half = (k / 2 + 1) * cell
    # its own arrow comes last and so on top
    others = [
        place for place in _corner_positions(x // s, y // s, s) if place != (x, y)
    ]
    block = [*others, (x, y)]
    if maps.places is not None:
        ends = np.array([maps.places[row, column] for column, row in block])
        away = np.abs((ends + 0.5) * cell - centre).max()
        half = max(half, np.nan_to_num(away) + cell / 2)
    axes.set_facecolor('lightgrey')
    axes.imshow(image, extent=(0, w, h, 0), interpolation='bilinear')
    left, top = centre - half
    right, bottom = centre + half
    lines = dict(colors='white', lw=0.4, alpha=0.7)
    xs, ys = (np.arange(0, size + cell, cell) for size in (w, h))
    axes.vlines(xs[(xs > left) & (xs < right)], 0, h, **lines)
    axes.hlines(ys[(ys > top) & (ys < bottom)], 0, w, **lines)
    axes.add_patch(
        Rectangle(
            centre - k * cell / 2, k * cell, k * cell, fill=False, ls='--', ec='white'
        )
    )
    axes.add_patch(
        Rectangle(
            (x * pixels, y * pixels),
            pixels,
            pixels,
            facecolor=_colour(x, y, s),
            edgecolor='black',
            lw=0.8,
        )
    )
    if maps.places is not None:
        for other in block:
            _draw_arrow(axes, maps, *other, pixels, 2.2 if other == (x, y) else 1.0)
    axes.set(xlim=(left, right), ylim=(bottom, top))


def _draw_mosaic(
    axes: Axes, maps: KernelMaps, x: int, y: int, colours: Mapping[str, object]
) -> None:
    """The source kernels around a sampled place; those in use with their weight."""
    k = maps.kernel_size
    gap = max(1, round(k / 3))  # has room for the weight
    pitch = k + gap
    neighbours = _neighbours(maps, x, y)
    if not neighbours:
        axes.text(0.5, 0.5, 'no finite place', ha='center', transform=axes.transAxes)
        return
    left, top = maps.places[y, x].astype(int) - 1
    canvas = np.full((4 * pitch, 4 * pitch), np.nan)
    corners = maps.corners(x, y)
    for (column, row), kernel in neighbours.items():
        a, b = (row - top) * pitch + gap, (column - left) * pitch + gap // 2
        canvas[a : a + k, b : b + k] = kernel
        if (column, row) in corners:
            colour = _colour(x, y, maps.scale_factor)
            frame = Rectangle((b - 0.5, a - 0.5), k, k, fill=False, ec=colour, lw=1.8)
            axes.add_patch(frame)
            axes.text(
                b + (k - 1) / 2,
                a - 0.5 - gap / 2,
                f'{corners[column, row]:.0%}',
                ha='center',
                va='center',
                fontsize=7.5,
            )
    axes.imshow(canvas, **colours)


def _layout(
    shape: tuple[int, int], maps: Mapping[str, KernelMaps], rows: int
) -> tuple[Figure, dict, list[dict]]:
    """Make the figure and its axes.

    Returns:
        tuple: The figure; by name the axes above (image or None, difference,
        largest value); for every row by name the axes (image or None, source
        kernels or None, kernel).
    """
    # the first detector shows the image; DLU its arrows and source kernels too,
    # DySample its arrows
    columns = {
        name: 1 + (values.places is not None) + (values.source_kernels is not None)
        for name, values in maps.items()
    }
    first = next(iter(maps))
    columns[first] = max(columns[first], 2)
    pitch = _PANEL + _GAP
    ratio = min(shape[0] / shape[1], 1.4)
    map_height = _PANEL * ratio
    rows_top = _TOP + 2 * map_height + _MAP_GAP + _ROW_GAP
    width = _LEFT + sum(columns.values()) * pitch + _RIGHT
    height = rows_top + rows * (_PANEL + _ROW_GAP) + _BOTTOM
    figure = new_figure(width, height)

    def panel(left: float, top: float, wide: float, high: float) -> Axes:
        axes = figure.add_axes(
            (left / width, 1 - (top + high) / height, wide / width, high / height),
            xticks=[],
            yticks=[],
            anchor='N',
        )
        axes.spines[:].set_visible(False)
        axes.xaxis.labelpad = axes.yaxis.labelpad = 3
        return axes

    top, below = {}, [{} for _ in range(rows)]
    left = _LEFT
    for name, number in columns.items():
        last = left + (number - 1) * pitch
        wide = (number - 1) * pitch - _GAP
        overview = panel(left, _TOP, wide, wide * ratio) if number > 1 else None
        low = _TOP + map_height + _MAP_GAP
        top[name] = (
            overview,
            panel(last, _TOP, _PANEL, map_height),
            panel(last, low, _PANEL, map_height),
        )
        for row in range(rows):
            at = rows_top + row * (_PANEL + _ROW_GAP)
            zoom = panel(left, at, _PANEL, _PANEL) if number > 1 else None
            mosaic = panel(left + pitch, at, _PANEL, _PANEL) if number > 2 else None
            below[row][name] = zoom, mosaic, panel(last, at, _PANEL, _PANEL)
        left += number * pitch
    return figure, top, below


def _draw_key(
    figure: Figure,
    kernel: AxesImage,
    difference: AxesImage,
    maps: Mapping[str, KernelMaps],
    exceeded: bool,
) -> None:
    """Colour bars, the colours of sub-pixels, and how to read the marks."""
    width, height = figure.get_size_inches()

    def place(left: float, bottom: float, wide: float, high: float) -> Axes:
        return figure.add_axes(
            (left / width, bottom / height, wide / width, high / height)
        )

    for left, mappable, extend, label in (
        (_LEFT, kernel, 'max' if exceeded else 'neither', 'value of a kernel'),
        (
            _LEFT + 2.4,
            difference,
            'neither',
            'difference from the mean\nkernel of the source pixel',
        ),
    ):
        axes = place(left, 0.95, 1.9, 0.11)
        figure.colorbar(mappable, cax=axes, orientation='horizontal', extend=extend)
        axes.tick_params(labelsize=7)
        axes.set_xlabel(label, fontsize=7.5, labelpad=2)
    axes = place(_LEFT, 0.1, 0.36, 0.36)
    for index, colour in enumerate(SUB_PIXEL_COLOURS):
        axes.add_patch(Rectangle((index % 2, index // 2), 1, 1, fc=colour, ec='white'))
    axes.set(xlim=(0, 2), ylim=(2, 0), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    s = next(iter(maps.values())).scale_factor
    columns = [
        'square: output position in its source pixel\ndashed: what its kernel weighs'
    ]
    if s > 2:
        columns[0] += '\ncolour: its quarter of the source pixel'
    placed = [values for values in maps.values() if values.places is not None]
    if placed:
        with_sources = {values.source_kernels is not None for values in placed}
        if with_sources == {False}:  # a narrow figure
            columns.append('arrow: to where\nit samples the map')
        else:
            what = 'its kernel' if len(with_sources) == 1 else 'its kernel or the map'
            columns.append(
                f'arrow: from its source pixel to where {what} is sampled\n'
                'framed: the source kernels that it is made of, and their weights'
            )
        if s > 2:
            columns[-1] += (
                f'\nthin: of the {s} × {s} positions of a source pixel the corners only'
            )
    for index, text in enumerate(columns):
        left = _LEFT + 0.5 + 2.5 * index
        figure.text(left / width, 0.26 / height, text, fontsize=7.5, va='center')
