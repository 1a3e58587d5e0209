"""A comparison as pictures and as one page."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from jinja2 import Environment
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..utils.plotting import COLORS, DPI, GRAY, interval_key, legend_below, style
from ..utils.tables import printable
from .runs import write
from .summary import accuracy_table, cost_table, difference_table, notes

_PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<title>{{ title }}</title>
<style>
body { font: 15px/1.5 sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0 }
td, th { padding: .2em .7em; border-bottom: 1px solid #ddd; text-align: right }
td:first-child, th:first-child { text-align: left }
img { max-width: 100% }
.wide { overflow-x: auto }
</style>
<h1>{{ title }}</h1>
<p>Best mean AP: <b>{{ best.name }}</b>, {{ '%.3f' | format(best.AP) }}.</p>
{% for heading, picture, table in parts %}
<h2>{{ heading }}</h2>
{% if picture %}<img alt="{{ heading }}" src="data:image/png;base64,{{ picture }}">
{% endif %}
{% if table %}
<div class="wide"><table>
<tr>{% for cell in table[0] %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for line in table[1:] %}
<tr>{% for cell in line %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
{% endif %}
{% endfor %}
{% for note in notes %}<p>{{ note }}</p>
{% endfor %}
</html>
"""


def new_figure(
    columns: int, height: float = 4.2, width: float = 5.5, sharey: bool = False
) -> tuple[Figure, np.ndarray]:
    """A figure with panels side by side.

    Args:
        columns (int): Number of panels.
        height (float): Of the figure, in inches.
        width (float): Of a panel, in inches.
        sharey (bool): Whether the panels have one vertical axis.

    Returns:
        tuple[Figure, np.ndarray]: The figure and its (columns,) axes.
    """
    figure = Figure((width * columns, height), dpi=DPI, layout='constrained')
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns, squeeze=False, sharey=sharey)[0]


def _colors(summary: dict) -> dict[str, str]:
    """One color for each upsampler, the same in every picture."""
    names = sorted(row['name'] for row in summary['rows'])
    return {name: COLORS[i % len(COLORS)] for i, name in enumerate(names)}


@style()
def plot_accuracy(summary: dict, title: str = '') -> Figure:
    """AP, the upsamplers' parameters and the neck's latency, a row for each upsampler.

    Args:
        summary (dict): What :func:`~dlu_mmdet.comparison.summary.summarize`
            returned.
        title (str): Written above, such as the data set.

    Returns:
        Figure: Bars are one standard deviation over seeds.
    """
    rows = summary['rows'][::-1]
    figure, axes = new_figure(3, 1.4 + 0.3 * len(rows), width=3.4, sharey=True)
    spread = [row['AP_std'] or 0 for row in rows]
    for axis, key, error, label in (
        (axes[0], 'AP', spread, 'AP, mean ± standard deviation over seeds'),
        (axes[1], 'upsampler_parameters', None, 'parameters of the upsamplers'),
        (axes[2], 'neck_ms', None, 'latency of the neck, ms'),
    ):
        values = [row[key] for row in rows]
        axis.errorbar(values, range(len(rows)), xerr=error, fmt='o', capsize=3)
        axis.set_xlabel(label)
    # some upsamplers have no parameters
    axes[1].set_xscale('symlog', linthresh=1e4)
    axes[1].set_xlim(left=-2e3)
    axes[2].set_xlim(left=0)
    axes[0].set_yticks(range(len(rows)), [row['name'] for row in rows])
    figure.suptitle(title)
    return figure


@style()
def plot_differences(summary: dict) -> Figure:
    """Differences to the baseline with their 95 % intervals.

    Args:
        summary (dict): As for :func:`plot_accuracy`, with differences.

    Returns:
        Figure: A panel for each of AP, AP50 and AP75. Filled: significant at 5 % after
            correction. Small dots: the seeds.
    """
    height = 1.9 + 0.4 * len(summary['differences'])
    figure, axes = new_figure(3, height, width=4.2)
    color = COLORS[0]
    names = [
        row['name']
        for row in reversed(summary['rows'])
        if row['name'] in summary['differences']
    ]
    for axis, metric in zip(axes, ('AP', 'AP50', 'AP75')):
        for place, name in enumerate(names):
            found = summary['differences'][name].get(metric)
            if found is None:
                continue
            if found['low'] is not None:
                ends = [found['low'], found['high']]
                axis.plot(ends, [place] * 2, color=color)
            face = color if found['significant'] else 'white'
            axis.plot(
                found['difference'],
                place,
                'o',
                color=color,
                markerfacecolor=face,
            )
            axis.plot(
                found['seeds'],
                [place - 0.22] * len(found['seeds']),
                '.',
                markersize=4,
                color=GRAY,
            )
        axis.axvline(0, color='black', linewidth=0.8)
        axis.set_yticks(
            range(len(names)), names if axis is axes[0] else [''] * len(names)
        )
        axis.set_xlabel(f'{metric} minus that of {summary["baseline"]}')
        axis.set_ylim(-0.6, len(names) - 0.4)
        axis.grid(False, axis='y')
        axis.locator_params(axis='x', nbins=5)  # labels that do not touch
    legend_below(figure, interval_key())
    return figure


@style()
def plot_learning(summary: dict) -> Figure:
    """Loss against iterations and, where runs were validated on the way, AP.

    Args:
        summary (dict): As for :func:`plot_accuracy`.

    Returns:
        Figure: Means over seeds; a band of one standard deviation around the loss.
    """
    colors = _colors(summary)
    curves = {row['name']: {'loss': [], 'validation': []} for row in summary['rows']}
    for run in summary['runs']:
        for key in ('loss', 'validation'):
            curves[run['name']][key].append(dict(map(tuple, run[key])))
    validated = any(
        len(curve) > 1 for each in curves.values() for curve in each['validation']
    )
    figure, axes = new_figure(1 + validated)
    for axis, key, label in zip(axes, ('loss', 'validation'), ('training loss', 'AP')):
        for name, each in curves.items():
            steps = sorted(set.intersection(*(set(curve) for curve in each[key])))
            if not steps:
                continue
            # what was not finite is None
            values = np.array(
                [[curve[step] for step in steps] for curve in each[key]], float
            )
            mean, std = values.mean(axis=0), values.std(axis=0)
            axis.plot(steps, mean, color=colors[name], label=name)
            if key == 'loss' and len(values) > 1:
                axis.fill_between(
                    steps, mean - std, mean + std, color=colors[name], alpha=0.12
                )
        axis.set_xlabel('iteration' if key == 'loss' else 'epoch')
        axis.set_ylabel(label)
    legend_below(figure, axes[0].get_legend_handles_labels()[0])
    return figure


def save(summary: dict, work_dir: str | Path) -> Path:
    """Write the pictures and report.html, which holds them all.

    Args:
        summary (dict): As for :func:`plot_accuracy`.
        work_dir (str | Path): Folder, which exists.

    Returns:
        Path: The page.
    """
    work_dir = Path(work_dir)
    parts = [
        ('Accuracy', 'accuracy', plot_accuracy, accuracy_table(summary)),
        ('Cost', None, None, cost_table(summary)),
        ('Learning curves', 'learning', plot_learning, None),
    ]
    if summary['differences']:
        title = f'Differences to {summary["baseline"]}'
        parts.insert(
            1, (title, 'differences', plot_differences, difference_table(summary))
        )
    shown = []
    for heading, name, plot, table in parts:
        picture = None
        if plot:
            buffer = io.BytesIO()
            plot(summary).savefig(buffer, format='png')
            write(work_dir / f'comparison_{name}.png', buffer.getvalue())
            picture = base64.b64encode(buffer.getvalue()).decode()
        cells = table and [[printable(cell) for cell in line] for line in table]
        shown.append((heading, picture, cells))
    page = Environment(autoescape=True).from_string(_PAGE)
    text = page.render(
        title=f'{len(summary["rows"])} detectors compared',
        best=summary['rows'][0],
        parts=shown,
        notes=notes(summary),
    )
    write(work_dir / 'report.html', text)
    return work_dir / 'report.html'
