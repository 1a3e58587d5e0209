"""Figure of deletion and insertion curves, one row per detector."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..utils.plotting import PALETTE, legend_below, style
from ..visualization.figures import new_figure

_PANELS = 'deletion', 'insertion'
_ENDS = (
    ('image', 'mean color', 'low is best'),
    ('blurred', 'image', 'high is best'),
)
_COLORS = PALETTE[:5]
#: The first control's color, and the second's.
_GRAYS = 'black', '#888888'
_TICKS = 0, 0.001, 0.01, 0.05, 0.2, 0.5, 1
#: What a picture must keep, for :func:`dlu_mmdet.visualization.figures.save_figure`.
KEPT_COLORS = [*_COLORS, _GRAYS[1]]
# in inches
_WIDTH, _HEIGHT, _LEGEND = 3.6, 2.7, 0.8


@style()
def draw_curves(
    curves: Mapping[str, Mapping[str, np.ndarray]],
    shares: np.ndarray,
    controls: tuple[str, ...] = (),
) -> Figure:
    """Draw mean curves, each with a band of one standard error to either side.

    The horizontal axis is the cube root of the share: small objects are lost or found
    within a hundredth of the pixels.

    Args:
        curves (Mapping[str, Mapping[str, np.ndarray]]): For each detector's name and
            each method's title (D, 2, T) scores: of D detections, by deletion and by
            insertion, at T shares of the pixels.
        shares (np.ndarray): (T,), from 0 to 1.
        controls (tuple[str, ...]): Which titles are controls, at most 2; they are gray
            and dashed.

    Returns:
        Figure: Hand it to :func:`dlu_mmdet.visualization.figures.save_figure`, with
        :data:`KEPT_COLORS`.

    Raises:
        ValueError: If there is no detector.
    """
    if not curves:
        raise ValueError('curves must hold at least one detector, got none')
    figure = new_figure(2 * _WIDTH, len(curves) * _HEIGHT + _LEGEND)
    figure.set_layout_engine('constrained')
    panels = figure.subplots(len(curves), 2, squeeze=False, sharey=True)
    for row, (name, methods) in zip(panels, curves.items()):
        row[0].set_ylabel(f'{name}\nprobability')
        for side, axes in enumerate(row):
            _draw(axes, methods, side, shares, controls)
            start, end, best = _ENDS[side]
            axes.set_xlabel(f'share of pixels replaced, from {start} to {end}')
            axes.set_title(f'{_PANELS[side]} ({best})')
    legend_below(figure, panels[0, 0].get_legend_handles_labels()[0], columns=3)
    return figure


def _draw(
    axes: Axes,
    methods: Mapping[str, np.ndarray],
    side: int,
    shares: np.ndarray,
    controls: tuple[str, ...],
) -> None:
    """One panel."""
    colors = dict(zip((t for t in methods if t not in controls), _COLORS))
    colors.update(zip(controls, _GRAYS))
    for title, scores in methods.items():
        found = scores[:, side]
        mean = found.mean(0)
        error = found.std(0, ddof=1) / len(found) ** 0.5 if len(found) > 1 else 0
        style = '--' if title in controls else '-'
        axes.plot(shares, mean, style, color=colors[title], label=title)
        axes.fill_between(
            shares, mean - error, mean + error, color=colors[title], alpha=0.15, lw=0
        )
    axes.set_xscale('function', functions=(np.cbrt, lambda x: x**3))
    axes.set_xticks(_TICKS, [f'{100 * tick:g} %' for tick in _TICKS])
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.tick_params(labelsize=7)
