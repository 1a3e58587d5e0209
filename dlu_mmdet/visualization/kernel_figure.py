"""Figure of the kernels of upsamplers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.patheffects import withStroke

from ..utils.plotting import PALETTE
from .features import Recording
from .figures import map_colors, new_figure
from .kernel_maps import KernelMaps, check_positions, neighbors, visible_size

#: One for each quarter of a source pixel, row by row, which at a ratio of 2 is one
#: for each of its output pixels: those of the palette that are bright on dark images.
SUB_PIXEL_COLORS = tuple(PALETTE[i] for i in (4, 5, 2, 3))

_KERNEL_MAP, _DIFFERENCE_MAP = 'viridis', 'magma'
#: What a picture must keep, for :func:`dlu_mmdet.visualization.figures.save_figure`.
KEPT_COLORS = [
    *SUB_PIXEL_COLORS,
    *map_colors(_KERNEL_MAP),
    *map_colors(_DIFFERENCE_MAP),
]
_TITLE = dict(fontsize=11, fontweight='bold', pad=5)
_SUBTITLE = dict(fontsize=9, pad=4)
# source pixels with arrows along the longer side of the image
_ARROWS = 5
# all in inches
_PANEL, _GAP, _ROW_GAP = 2.1, 0.1, 0.3
_MAP_GAP = 0.22
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.3, 0.1, 0.34, 1.15


def draw_kernels(
    recording: Recording,
    maps: Mapping[str, KernelMaps],
    positions: Sequence[tuple[int, int]],
    level: str = '',
    image_name: str = 'image',
) -> Figure:
    """Draw the kernels of upsamplers at some output positions.

    Above, the whole image: arrows from a source pixel to the points where
    the kernels of its output pixels are sampled (DySample: the map itself), of its
    four corners only where the ratio is above 2, and two maps: how far the
    kernels of a source pixel differ, by which :func:`informative_positions`
    goes, and every kernel's largest value, 1 for nearest. Below, a row for
    each position: the image around it, the source kernels around the sampled
    point, and the kernel that they give. Values of all kernels share one
    color scale, which the map of largest values may exceed.

    Args:
        recording (Recording): Of the image; its pixels are shown.
        maps (Mapping[str, KernelMaps]): Kernels by the detectors' names, all
            of one level and size.
        positions (Sequence[tuple[int, int]]): x and y in output pixels.
        level (str): Name of the level upsampled to, for the titles.
        image_name (str): Title of the image.

    Returns:
        Figure: Hand it to :func:`dlu_mmdet.visualization.figures.save_figure`,
        with :data:`KEPT_COLORS`.

    Raises:
        ValueError: If there is no detector or no position, a position is
            outside the map, or the maps differ in size.
    """
    _check_alike(maps, positions)
    first = next(iter(maps.values()))
    pixels = recording.padded[1] / first.size[1]
    differences = {name: m.sub_pixel_difference() for name, m in maps.items()}
    rows, cells = visible_size(recording, first)
    farthest = max(float(np.nanmax(d[:rows, :cells])) for d in differences.values())
    highest = max(
        float(np.nanmax(kernel))
        for values in maps.values()
        for x, y in positions
        for kernel in [values.kernels[y, x], *neighbors(values, x, y).values()]
    )
    peaks = {name: values.kernels.max(axis=(2, 3)) for name, values in maps.items()}
    figure, top, below = _layout(recording.image.shape[:2], maps, len(positions))

    def draw_map(axes: Axes, values: np.ndarray, title: str, **colors) -> AxesImage:
        axes.set_title(title, **_SUBTITLE)
        extent = (0, values.shape[1] * pixels, values.shape[0] * pixels, 0)
        drawn = axes.imshow(values, extent=extent, interpolation='nearest', **colors)
        _limit(axes, recording.image.shape)
        _number(axes, positions, pixels)
        return drawn

    difference_colors = dict(cmap=_DIFFERENCE_MAP, vmin=0, vmax=max(farthest, 1e-6))
    kernel_colors = dict(cmap=_KERNEL_MAP, vmin=0, vmax=highest)
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
            **difference_colors,
        )
        draw_map(
            peak_axes,
            peaks[name],
            'largest value of kernel',
            **kernel_colors,
        )
        for row, at in enumerate(positions):
            panels, first_of = below[row][name], f'{prefix}kernel'
            kernel = _draw_position(
                panels, recording.image, values, at, pixels, kernel_colors
            )
            x, y = at
            panels[2].set_xlabel(
                f'largest {values.kernels[y, x].max():.2f}, '
                f'difference {differences[name][y, x]:.2f}',
                fontsize=7.5,
            )
            if name == next(iter(maps)):
                panels[0].set_ylabel(f'{row + 1}: position {x},{y}', fontsize=8)
            if row == 0:
                _name_panels(panels, first_of)

    # by more than the eye can tell apart
    exceeded = any(np.nanmax(p[:rows, :cells]) > 1.01 * highest for p in peaks.values())
    _draw_key(figure, kernel, difference, maps, exceeded)
    return figure


def _check_alike(
    maps: Mapping[str, KernelMaps], positions: Sequence[tuple[int, int]]
) -> None:
    """Refuse what cannot be drawn over one image; see :func:`draw_kernels`."""
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


def _draw_position(
    panels: tuple[Axes | None, Axes | None, Axes],
    image: np.ndarray,
    maps: KernelMaps,
    at: tuple[int, int],
    pixels: float,
    colors: Mapping,
) -> AxesImage:
    """Draw a position: the image around it, its source kernels, and its kernel."""
    zoom, mosaic, axes = panels
    x, y = at
    if zoom is not None:
        _draw_zoom(zoom, image, maps, x, y, pixels)
    if mosaic is not None:
        _draw_mosaic(mosaic, maps, x, y, colors)
    return axes.imshow(maps.kernels[y, x], **colors)


def _name_panels(panels: Sequence[Axes | None], kernel: str) -> None:
    """Write over the panels of the first position what they are."""
    titles = ['the image around it', 'source kernels at the arrow', 'sampled kernel']
    if panels[1] is None:
        titles[2] = kernel
    for panel, title in zip(panels, titles):
        if panel is not None:
            panel.set_title(title, **_SUBTITLE)


def _color(x: int, y: int, scale_factor: int) -> str:
    """The color of an output position: that of its quarter of the source pixel."""
    down, right = (2 * (at % scale_factor) // scale_factor for at in (y, x))
    return SUB_PIXEL_COLORS[2 * down + right]


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

    Coordinates are pixels of the image; a source pixel's position is its center.
    """
    s = maps.scale_factor
    start = (np.array([x // s, y // s]) + 0.5) * s * pixels
    end = (maps.sample_point(x, y) + 0.5) * s * pixels
    if not np.isfinite(end).all():
        return
    arrow = FancyArrowPatch(
        start,
        end,
        arrowstyle='-|>',
        color=_color(x, y, s),
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
    if maps.sample_points is not None:
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
    center = (np.array([x // s, y // s]) + 0.5) * cell
    half = (k / 2 + 1) * cell
    # its own arrow comes last and so on top
    others = [at for at in _corner_positions(x // s, y // s, s) if at != (x, y)]
    block = [*others, (x, y)]
    if maps.sample_points is not None:
        ends = np.array([maps.sample_points[row, column] for column, row in block])
        away = np.abs((ends + 0.5) * cell - center).max()
        half = max(half, np.nan_to_num(away) + cell / 2)
    axes.set_facecolor('lightgray')
    axes.imshow(image, extent=(0, w, h, 0), interpolation='bilinear')
    left, top = center - half
    right, bottom = center + half
    lines = dict(colors='white', lw=0.4, alpha=0.7)
    xs, ys = (np.arange(0, size + cell, cell) for size in (w, h))
    axes.vlines(xs[(xs > left) & (xs < right)], 0, h, **lines)
    axes.hlines(ys[(ys > top) & (ys < bottom)], 0, w, **lines)
    axes.add_patch(
        Rectangle(
            center - k * cell / 2, k * cell, k * cell, fill=False, ls='--', ec='white'
        )
    )
    axes.add_patch(
        Rectangle(
            (x * pixels, y * pixels),
            pixels,
            pixels,
            facecolor=_color(x, y, s),
            edgecolor='black',
            lw=0.8,
        )
    )
    if maps.sample_points is not None:
        for other in block:
            _draw_arrow(axes, maps, *other, pixels, 2.2 if other == (x, y) else 1.0)
    axes.set(xlim=(left, right), ylim=(bottom, top))


def _draw_mosaic(
    axes: Axes, maps: KernelMaps, x: int, y: int, colors: Mapping[str, object]
) -> None:
    """The source kernels in use around a sampled point, with their weights."""
    k = maps.kernel_size
    gap = max(1, round(k / 3))  # has room for the weight
    pitch = k + gap
    around = neighbors(maps, x, y)
    if not around:
        axes.text(0.5, 0.5, 'no finite point', ha='center', transform=axes.transAxes)
        return
    left, top = maps.sample_point(x, y).astype(int) - 1
    canvas = np.full((4 * pitch, 4 * pitch), np.nan)
    color = _color(x, y, maps.scale_factor)
    for (column, row), weight in maps.corners(x, y).items():
        a, b = (row - top) * pitch + gap, (column - left) * pitch + gap // 2
        canvas[a : a + k, b : b + k] = around[column, row]
        frame = Rectangle((b - 0.5, a - 0.5), k, k, fill=False, ec=color, lw=1.8)
        axes.add_patch(frame)
        axes.text(
            b + (k - 1) / 2,
            a - 0.5 - gap / 2,
            f'{weight:.0%}',
            ha='center',
            va='center',
            fontsize=7.5,
        )
    axes.imshow(canvas, **colors)
    # the outer ones of 4 x 4 have no weight
    middle = pitch - 0.5, 3 * pitch - 0.5
    axes.set(xlim=middle, ylim=middle[::-1])


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
        name: 1
        + (values.sample_points is not None)
        + (values.source_kernels is not None)
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
    """Color bars, the colors of sub-pixels, and how to read the marks."""
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
    for index, color in enumerate(SUB_PIXEL_COLORS):
        axes.add_patch(Rectangle((index % 2, index // 2), 1, 1, fc=color, ec='white'))
    axes.set(xlim=(0, 2), ylim=(2, 0), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    s = next(iter(maps.values())).scale_factor
    columns = [
        'square: output position in its source pixel\ndashed: what its kernel weighs'
    ]
    if s > 2:
        columns[0] += '\ncolor: its quarter of the source pixel'
    sampled = [values for values in maps.values() if values.sample_points is not None]
    if sampled:
        with_sources = {values.source_kernels is not None for values in sampled}
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
