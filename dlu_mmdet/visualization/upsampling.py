"""A figure of what upsamplers make of a coarse map, and what detectors then find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mmengine.structures import InstanceData
from torch import Tensor

from .detections import STYLES, Panel
from .features import Recording, Upsampling
from .figures import new_figure
from .images import reduced

# all in inches; the text can be read at half of the figure's size
_PANEL = 2.9
_GAP = 0.1
_TOP, _UNDER_MAPS, _UNDER_BOXES, _LEGEND = 0.46, 0.46, 0.66, 0.4
_MAX_ASPECT = 1.4
# width of the coarse map in its corner, of a panel
_INSET = 0.34
# in points
_TITLE, _TEXT = 21, 16
# of the mean square of a channel, against overfitting to a coarse map of few cells
_RIDGE = 1e-2


def map_colors(
    upsampling: Upsampling, image: np.ndarray, padded: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Show maps of many channels in the colors of the image.

    A linear map from the channels to red, green and blue is fitted to the image on the
    coarse map, by least squares with a small ridge, and applied to both maps. So the
    colors mean the same for every detector, and edges show what the upsampler does.

    Args:
        upsampling (Upsampling): One call of an upsampler.
        image (np.ndarray): (h, w, 3) uint8, RGB: the image as the network takes it.
        padded (tuple[int, int]): Its height and width in pixels after padding.

    Returns:
        tuple[np.ndarray, np.ndarray]: The coarse and the upsampled map, without the
        padding, (H, W, 3) float in [0, 1].
    """
    coarse, fine = (
        _visible(maps[0], image, padded)
        for maps in (upsampling.source, upsampling.output)
    )
    pixels = torch.from_numpy(image.copy()).to(coarse).permute(2, 0, 1)[None] / 255
    target = F.interpolate(pixels, size=coarse.shape[1:], mode='area')[0].flatten(1)
    cells = coarse.flatten(1)
    mean, level = cells.mean(1, keepdim=True), target.mean(1, keepdim=True)
    cells = cells - mean
    square = cells @ cells.T
    ridge = _RIDGE * square.diagonal().mean().clamp(min=1e-12)
    square.diagonal().add_(ridge)
    weights = torch.linalg.solve(square, cells @ (target - level).T).T

    def colors(maps: Tensor) -> np.ndarray:
        values = weights @ (maps.flatten(1) - mean) + level
        values = values.clamp(0, 1).reshape(3, *maps.shape[1:])
        return values.permute(1, 2, 0).cpu().numpy()

    return colors(coarse), colors(fine)


def _visible(maps: Tensor, image: np.ndarray, padded: tuple[int, int]) -> Tensor:
    """A map (C, H, W) in float64 without the cells that are padding alone."""
    h, w = (
        -(-size * cells // whole)
        for size, cells, whole in zip(image.shape, maps.shape[1:], padded)
    )
    return maps[:, :h, :w].double()


def draw_upsampling(
    image: np.ndarray,
    recordings: Mapping[str, Recording],
    level: str,
    panels: Sequence[Panel],
) -> Figure:
    """Draw what each detector's upsampler makes of a coarse map, and its detections.

    A column is a detector, after one of the image and its objects. The upper row has
    the upsampled maps, with the coarse map that the upsampler takes in a corner; the
    lower row has the detections.

    Args:
        image (np.ndarray): (H, W, 3) uint8, RGB, as it was loaded.
        recordings (Mapping[str, Recording]): From
            :func:`~dlu_mmdet.visualization.features.record`, by detector.
        level (str): The level that is upsampled to, e.g. 'P2'.
        panels (Sequence[Panel]): The lower row, from
            :func:`~dlu_mmdet.visualization.detections.panel_contents`, with captions of
            up to two lines.

    Returns:
        Figure: Hand it to :func:`dlu_mmdet.visualization.figures.save_figure`.

    Raises:
        ValueError: If a neck has no upsampler to this level.
    """
    for name, recording in recordings.items():
        if not recording.upsamplings:
            raise ValueError(
                f'{name}: the neck has no upsampler of this package; train the '
                'detector with --upsampler'
            )
        if level not in recording.upsamplings:
            raise ValueError(
                f'{name}: the neck upsamples to {", ".join(recording.upsamplings)}, '
                f'not to {level}; choose another --level'
            )
    columns = 1 + len(recordings)
    h, w = image.shape[:2]
    height = _PANEL * min(h / w, _MAX_ASPECT)
    width = _GAP + columns * (_PANEL + _GAP)
    rows = (_TOP, _TOP + height + _UNDER_MAPS)
    whole = rows[1] + height + _UNDER_BOXES + _LEGEND
    figure = new_figure(width, whole)

    def panel(row: int, column: int) -> Axes:
        left = _GAP + column * (_PANEL + _GAP)
        axes = figure.add_axes(
            (
                left / width,
                1 - (rows[row] + height) / whole,
                _PANEL / width,
                height / whole,
            ),
            xticks=[],
            yticks=[],
        )
        axes.spines[:].set_visible(False)
        return axes

    axes = panel(0, 0)
    axes.imshow(reduced(image), extent=(0, w, h, 0))
    axes.set_title('image', fontsize=_TITLE, fontweight='bold', pad=7)
    for column, (name, recording) in enumerate(recordings.items(), 1):
        axes = panel(0, column)
        axes.set_title(name, fontsize=_TITLE, fontweight='bold', pad=7)
        _draw_maps(axes, image, recording, recording.upsamplings[level][-1])
    drawn = set()
    for column, (groups, caption) in enumerate(panels):
        axes = panel(1, column)
        axes.imshow(reduced(image), extent=(0, w, h, 0))
        _draw_boxes(axes, groups)
        axes.set_xlabel(caption, fontsize=_TEXT, labelpad=5)
        drawn.update(kind for kind, group in groups if len(group))
    kinds = [kind for kind in STYLES if kind in drawn]
    figure.legend(
        handles=[
            Rectangle((0, 0), 1, 1, fill=False, lw=3, ec=color, ls=line_style)
            for color, line_style in (STYLES[kind] for kind in kinds)
        ],
        labels=kinds,
        loc='lower center',
        ncols=max(1, len(kinds)),
        frameon=False,
        fontsize=_TEXT,
        borderaxespad=0.1,
    )
    return figure


def _draw_maps(
    axes: Axes, image: np.ndarray, recording: Recording, upsampling: Upsampling
) -> None:
    """The upsampled map, the coarse one in a corner, and their sizes."""
    coarse, fine = map_colors(upsampling, recording.image, recording.padded)
    for maps, where in ((fine, axes), (coarse, _inset(axes))):
        # the last cells may reach into the padding
        cell = recording.padded[1] / upsampling.output.shape[3]
        cell *= image.shape[1] / recording.image.shape[1] * fine.shape[1]
        cell /= maps.shape[1]
        where.imshow(
            maps,
            extent=(0, maps.shape[1] * cell, maps.shape[0] * cell, 0),
            interpolation='nearest',
        )
        where.set(xlim=(0, image.shape[1]), ylim=(image.shape[0], 0))
    sizes = [f'{maps.shape[1]} × {maps.shape[0]}' for maps in (coarse, fine)]
    axes.set_xlabel(' → '.join(sizes), fontsize=_TEXT, labelpad=5)


def _inset(axes: Axes) -> Axes:
    """A small panel with a white frame in the lower right corner of another."""
    inset = axes.inset_axes((1 - _INSET, 0, _INSET, _INSET), xticks=[], yticks=[])
    inset.spines[:].set(color='white', linewidth=3)
    return inset


def _draw_boxes(axes: Axes, groups: Sequence[tuple[str, InstanceData]]) -> None:
    """Draw boxes, the first kind on top, small ones with thinner lines."""
    scale = 72 * _PANEL / axes.images[0].get_extent()[1]
    for kind, group in reversed(groups):
        color, style = STYLES[kind]
        for x1, y1, x2, y2 in group.bboxes:
            axes.add_patch(
                Rectangle(
                    (x1, y1),
                    x2 - x1,
                    y2 - y1,
                    fill=False,
                    ec=color,
                    ls=style,
                    lw=min(3, max(1, scale * min(x2 - x1, y2 - y1) / 8)),
                )
            )
