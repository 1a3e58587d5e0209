"""Style of the plots: colors, markers, text sizes, legends outside the axes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib
from cycler import cycler
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

#: Dots per inch of every figure.
DPI = 150
#: The palette of Okabe and Ito, which color-blind readers can tell apart, then seven
#: darker and duller colors for figures of more than seven upsamplers.
PALETTE = (
    *('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#000000'),
    *('#882255', '#999933', '#332288', '#8c6d46', '#88ccaa', '#ddcc77', '#aa4499'),
)
#: As many markers, which say the same again.
MARKERS = 'osD^vPX<>p*hdH'
#: Of what stands back: single seeds, controls.
GRAY = '#777777'

_STYLE = {
    'axes.axisbelow': True,
    'axes.grid': True,
    'axes.labelsize': 9,
    'axes.prop_cycle': cycler(color=PALETTE),
    'axes.spines.right': False,
    'axes.spines.top': False,
    'axes.titlesize': 10,
    'figure.titlesize': 11,
    'font.size': 9,
    'grid.alpha': 0.3,
    'legend.fontsize': 8,
    'legend.frameon': False,
    'lines.linewidth': 1.6,
    'xtick.labelsize': 8,
    'ytick.labelsize': 8,
}


@contextmanager
def style() -> Iterator[None]:
    """The style, as a context or a decorator of a function that draws."""
    with matplotlib.rc_context(_STYLE):
        yield


def legend_below(figure: Figure, handles: Sequence[Artist], columns: int = 4) -> None:
    """Put a legend under the axes, where it covers nothing.

    Args:
        figure (Figure): With the layout engine 'constrained'.
        handles (Sequence[Artist]): What to explain; their labels are the texts.
        columns (int): How many stand side by side. Defaults to 4.
    """
    figure.legend(handles=[*handles], loc='outside lower center', ncols=columns)


def interval_key(color: str = PALETTE[0]) -> list[Line2D]:
    """The marks of differences with intervals, for :func:`legend_below`."""
    return [
        Line2D([], [], label='significant at 5 %', color=color, marker='o'),
        Line2D([], [], label='not significant', color=color, marker='o', mfc='white'),
        Line2D([], [], label='95 % interval', color=color),
        Line2D([], [], label='one seed', color=GRAY, marker='.', ms=4, ls='none'),
    ]
