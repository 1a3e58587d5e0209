"""Figure of class activation maps, one column per method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, Stroke

from ..visualization.figures import map_colors, new_figure
from ..visualization.images import reduced
from .cam import TITLES, Explanation

_COLOR_MAP = 'inferno'
_OPACITY = 0.55
#: The colors as they look on mid-gray, halfway between the darkest and the
#: brightest pixel that a map can lie on.
_SEEN = ListedColormap(
    _OPACITY * colormaps[_COLOR_MAP](np.linspace(0, 1, 256))[:, :3]
    + (1 - _OPACITY) * 0.5
)
#: What a picture must keep, for :func:`dlu_mmdet.visualization.figures.save_figure`.
KEPT_COLORS = map_colors(_SEEN, 32)
# in inches
_PANEL_WIDTH = 1.6
_HEADER, _CAPTION = 0.8, 0.4
_MAX_ASPECT = 1.4


@dataclass(frozen=True)
class HeatmapRow:
    """One row of the figure: a detection and the maps that explain it.

    Attributes:
        name (str): Label of the row.
        image (np.ndarray): (H, W, 3) uint8, RGB.
        caption (str): Text under the image, e.g. class and score.
        box (np.ndarray, optional): (4,) x1 y1 x2 y2 of the detection in pixels of
            the image. None if there is no detection.
        explanations (Mapping[str, Explanation]): For each method its answer;
            empty if there is no detection.
        area (tuple[float, float, float, float]): x1 y1 x2 y2, in pixels of the
            image, of what the maps cover.
    """

    name: str
    image: np.ndarray
    caption: str
    box: np.ndarray | None = None
    explanations: Mapping[str, Explanation] = field(default_factory=dict)
    area: tuple[float, float, float, float] = (0, 0, 1, 1)


def draw_heatmaps(rows: Sequence[HeatmapRow], methods: Sequence[str]) -> Figure:
    """Draw heat maps over images, the detection's box in each.

    The image comes first, then a column per method with the two axiom figures
    under it. Every map is shown from 0 to its own largest value: the methods'
    weights have different units. A row without a detection has the image alone.

    Args:
        rows (Sequence[HeatmapRow]): What to draw.
        methods (Sequence[str]): Which methods, in the order of the columns.

    Returns:
        Figure: Hand it to :func:`dlu_mmdet.visualization.figures.save_figure`,
        with :data:`KEPT_COLORS`.

    Raises:
        ValueError: If there is no row.
    """
    if not rows:
        raise ValueError('rows must hold at least one row, got none')
    if not any(row.explanations for row in rows):
        methods = ()
    aspects = [min(r.image.shape[0] / r.image.shape[1], _MAX_ASPECT) for r in rows]
    columns = len(methods) + 1
    figure = new_figure(
        columns * _PANEL_WIDTH + 0.3,
        sum(a * _PANEL_WIDTH + _CAPTION for a in aspects) + _HEADER,
    )
    figure.set_layout_engine('constrained', w_pad=0.03, h_pad=0.05, hspace=0)
    panels = figure.subplots(
        len(rows), columns, squeeze=False, gridspec_kw=dict(height_ratios=aspects)
    )
    for row, axes in zip(rows, panels):
        _show(axes[0], row, row.image)
        # gray, so that every color is the map's
        gray = reduced(row.image).mean(2, keepdims=True)
        gray = np.repeat(gray, 3, axis=2).astype(np.uint8)
        axes[0].set_ylabel(row.name, fontsize=9, fontweight='bold')
        axes[0].set_xlabel(row.caption, fontsize=7)
        for panel, method in zip(axes[1:], methods):
            if method in row.explanations:
                _show(panel, row, gray)
                _overlay(panel, row, row.explanations[method])
            else:
                panel.set_axis_off()
    for panel, title in zip(panels[0], ['detection', *map(TITLES.get, methods)]):
        panel.set_title(title, fontsize=9, fontweight='bold')
    if not methods:
        return figure
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 1), _SEEN),
        ax=panels,
        location='bottom',
        aspect=60,
        shrink=0.5,
        pad=0.01,
        ticks=[0, 0.5, 1],
    )
    bar.ax.tick_params(labelsize=7)
    bar.set_label(
        "share of each map's largest value, as it looks over mid-gray;\n"
        'of sensitivity and conservation 0 is best',
        fontsize=7,
    )
    return figure


def _show(axes: Axes, row: HeatmapRow, image: np.ndarray) -> None:
    """Show the image and the box; coordinates are those of pixel edges."""
    height, width = row.image.shape[:2]
    axes.imshow(reduced(image), extent=(0, width, height, 0), interpolation='bilinear')
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    if row.box is not None:
        x1, y1, x2, y2 = np.clip(row.box, 0, [width, height] * 2)
        axes.add_patch(
            Rectangle(
                (x1, y1),
                x2 - x1,
                y2 - y1,
                fill=False,
                edgecolor='white',
                linewidth=1.2,
                # on white ground the dark rim shows it
                path_effects=[Stroke(linewidth=2.4, foreground='black'), Normal()],
                zorder=3,
            )
        )


def _overlay(axes: Axes, row: HeatmapRow, explanation: Explanation) -> None:
    """Lay a map over the image and write the axioms under it."""
    heatmap = explanation.heatmap.cpu().numpy()
    x1, y1, x2, y2 = row.area
    limits = axes.get_xlim(), axes.get_ylim()
    axes.imshow(
        heatmap / (heatmap.max() or 1),
        cmap=_COLOR_MAP,
        vmin=0,
        vmax=1,
        alpha=_OPACITY,
        extent=(x1, x2, y2, y1),
        interpolation='bilinear',
    )
    axes.set(xlim=limits[0], ylim=limits[1])
    axes.set_xlabel(
        f'sensitivity {_short(explanation.sensitivity)}\n'
        f'conservation {_short(explanation.conservation)}',
        fontsize=7,
    )


def _short(value: float) -> str:
    """Two decimals, unless the number is large."""
    return f'{value:.2f}' if value < 10 else f'{value:.0f}'
