"""Figures and HTML report of a comparison."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import matplotlib
import numpy as np
from jinja2 import Environment
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..evaluation.average_precision import MIN_IMAGES, MetricDifference
from ..utils.files import check_writable
from ..utils.plotting import DPI, GRAY, PALETTE, interval_key, legend_below, style
from ..utils.tables import printable
from .details import BOXES, ERRORS, MASKS, Breakdown
from .gallery import SCORE_THR
from .runs import write
from .summary import (
    Row,
    Summary,
    breakdowns,
    notes,
    tables,
)

_PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{{ title }}</title>
<style>
body { font: 15px/1.5 sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0 }
td, th { padding: .2em .7em; border-bottom: 1px solid #ddd; text-align: right }
td:first-child, th:first-child { text-align: left }
td { white-space: nowrap }
img { max-width: 100% }
.wide { overflow-x: auto }
.wide img { min-width: 600px }
{{ gallery_style | safe }}</style>
<h1>{{ title }}</h1>
<p>Best mean {{ ap }}: <b>{{ best.name }}</b>, {{ '%.3f' | format(best.ap.mean) }}.</p>
{% for heading, text, picture, table in parts %}
{% if heading %}<h2>{{ heading }}</h2>
{% endif %}
{% if text %}<p>{{ text }}</p>
{% endif %}
{% if picture %}
<div class="wide">
<img alt="{{ heading }}" src="data:image/png;base64,{{ picture }}">
</div>
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
{% if gallery %}
<h2>Images</h2>
<p>{{ gallery_text }}</p>
{% if gallery.sentence %}<p><b>{{ gallery.sentence }}</b></p>
{% endif %}
<div id="gallery"></div>
<script{% if gallery.address %} src="{{ gallery.address }}"{% endif %}>
{{- gallery.data | safe }}</script>
<script>{{ gallery_script | safe }}</script>
{% endif %}
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


def _colors(rows: Sequence[Row]) -> dict[str, str]:
    """A color for each upsampler, the same in all figures."""
    names = sorted(row.name for row in rows)
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}


@style()
def plot_accuracy(rows: Sequence[Row], title: str = '', ap: str = 'AP') -> Figure:
    """Plot AP, the upsamplers' parameters and the neck's latency.

    Args:
        rows (Sequence[Row]): One for each upsampler.
        title (str): Title of the figure, such as the data set.
        ap (str): What AP is called.

    Returns:
        Figure: Bars are one standard deviation over seeds.
    """
    rows = rows[::-1]
    figure, axes = new_figure(3, 1.4 + 0.3 * len(rows), width=3.4, sharey=True)
    spread = [row.ap.std or 0 for row in rows]
    for axis, values, error, label in (
        (
            axes[0],
            [row.ap.mean for row in rows],
            spread,
            f'{ap}, mean ± standard deviation over seeds',
        ),
        (
            axes[1],
            [row.costs.upsampler_parameters for row in rows],
            None,
            'parameters of the upsamplers',
        ),
        (axes[2], [row.costs.neck_ms for row in rows], None, 'latency of the neck, ms'),
    ):
        values = np.array(values, float)  # None is not a number
        axis.errorbar(values, range(len(rows)), xerr=error, fmt='o', capsize=3)
        axis.set_xlabel(label)
    # some upsamplers have no parameters
    axes[1].set_xscale('symlog', linthresh=1e4)
    axes[1].set_xlim(left=-2e3)
    axes[2].set_xlim(left=0)
    axes[0].set_yticks(range(len(rows)), [row.name for row in rows])
    figure.suptitle(title)
    return figure


@style()
def plot_differences(summary: Summary) -> Figure:
    """Plot differences to the baseline with 95 % intervals.

    Args:
        summary (Summary): With differences.

    Returns:
        Figure: A panel for each of AP, AP50 and AP75. Filled: significant at 5 % after
            correction. Small dots: the seeds.
    """
    figure, axes = new_figure(3, 1.9 + 0.4 * len(summary.differences), width=4.2)
    color = PALETTE[0]
    names = [
        row.name for row in reversed(summary.rows) if row.name in summary.differences
    ]
    for axis, metric in zip(axes, ('AP', 'AP50', 'AP75')):
        for y, name in enumerate(names):
            found = summary.differences[name].get(metric)
            if found is None:
                continue
            if found.low is not None:
                axis.plot([found.low, found.high], [y] * 2, color=color)
            face = color if found.significant else 'white'
            axis.plot(
                found.difference,
                y,
                'o',
                color=color,
                markerfacecolor=face,
            )
            axis.plot(
                found.seeds,
                [y - 0.22] * len(found.seeds),
                '.',
                markersize=4,
                color=GRAY,
            )
        axis.axvline(0, color='black', linewidth=0.8)
        axis.set_yticks(
            range(len(names)), names if axis is axes[0] else [''] * len(names)
        )
        axis.set_xlabel(f'{summary.label(metric)} minus that of {summary.baseline}')
        axis.set_ylim(-0.6, len(names) - 0.4)
        axis.grid(False, axis='y')
        axis.locator_params(axis='x', nbins=5)  # labels that do not touch
    legend_below(figure, interval_key())
    return figure


@style()
def plot_learning(summary: Summary) -> Figure:
    """Plot the loss and, with several validations, the AP during training.

    Args:
        summary (Summary): The comparison.

    Returns:
        Figure: Means over seeds; a band of one standard deviation around the loss.
    """
    colors = _colors(summary.rows)
    curves: dict[str, dict[str, list[dict]]] = {
        row.name: {'loss': [], 'validation': []} for row in summary.rows
    }
    for run in summary.runs:
        for key in ('loss', 'validation'):
            curves[run.name][key].append(dict(map(tuple, getattr(run, key))))
    validated = any(
        len(curve) > 1 for each in curves.values() for curve in each['validation']
    )
    figure, axes = new_figure(1 + validated)
    ap = 'AP' if summary.metric == 'bbox' else 'AP of boxes'
    for axis, key, label in zip(axes, ('loss', 'validation'), ('training loss', ap)):
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


@style()
def plot_sizes(found: Breakdown, summary: Summary, label: str) -> Figure:
    """Plot AP over octaves of size, and the differences to the baseline.

    Args:
        found (Breakdown): AP by octave.
        summary (Summary): The comparison.
        label (str): What size is measured in.

    Returns:
        Figure: Bars are 95 % intervals. Filled: significant at 5 % after correction.
            Octaves with too few images for an interval are left out.
    """
    colors = _colors(summary.rows)
    names = [row.name for row in summary.rows if row.name in found.means]
    enough = [n for n, c in found.counts.items() if c['images'] >= MIN_IMAGES]
    sizes = enough or [*found.counts]
    figure, axes = new_figure(1 + bool(found.differences), 4.6)
    places = np.arange(len(sizes))
    for name in names:
        values = np.array([found.means[name][size] for size in sizes], float)
        axes[0].plot(places, values, 'o-', color=colors[name], label=name)
    axes[0].set_ylabel('AP')
    others = [name for name in names if name in found.differences]
    for number, name in enumerate(others):
        # side by side, so that bars do not hide each other
        shift = 0.6 * ((number + 0.5) / len(others) - 0.5)
        for place, size in zip(places, sizes):
            each = found.differences[name][size]
            x, color = place + shift, colors[name]
            if each.low is not None:
                axes[1].plot([x, x], [each.low, each.high], color=color)
            face = color if each.significant else 'white'
            axes[1].plot(x, each.difference, 'o', color=color, markerfacecolor=face)
    if others:
        axes[1].axhline(0, color='black', linewidth=0.8)
        axes[1].set_ylabel(f'AP minus that of {summary.baseline}')
    ticks = [f'{size}\n{found.counts[size]["objects"]:,}' for size in sizes]
    for axis in axes:
        axis.set_xticks(places, ticks, rotation=35, ha='right')
        axis.set_xlabel(f'{label}; number of objects')
    legend_below(figure, axes[0].get_legend_handles_labels()[0])
    return figure


#: Width of the figure for a paper: a column of a page of two, in inches.
COLUMN = 3.4
#: File types of the figure for a paper.
FIGURE_TYPES = ('.pdf', '.svg', '.png')


def check_figure(path: str | Path) -> None:
    """Check before the work that the figure for a paper can be written.

    Raises:
        ValueError: If the file type is another one, or the file cannot be written.
    """
    if Path(path).suffix.lower() not in FIGURE_TYPES:
        raise ValueError(
            f'--figure must end with {", ".join(FIGURE_TYPES)}, got {path}; .pdf and '
            f'.svg are vector graphics'
        )
    check_writable(path)


@style()
def plot_overview(summary: Summary) -> Figure:
    """Plot a comparison for a column of a paper, or a slide.

    Args:
        summary (Summary): The comparison.

    Returns:
        Figure: A line for each upsampler: AP, or its difference to the baseline with
            the 95 % interval (filled: significant), the same of what localization
            errors cost, and the neck's latency.
    """
    baseline = summary.baseline
    rows = [row for row in summary.rows[::-1] if row.name != baseline]
    panels: list[tuple[str, list[MetricDifference | float | None]]] = []
    if summary.differences:
        own = [summary.differences.get(row.name, {}).get('AP') for row in rows]
        panels.append((f'{summary.label()}, minus\n{baseline}', [*own]))
        if summary.details:
            errors = summary.details.errors.differences
            lost = [errors.get(row.name, {}).get('localization') for row in rows]
            panels.append(('localization\nerrors, the same', [*lost]))
    else:
        rows = summary.rows[::-1]
        panels.append((summary.label(), [row.ap.mean for row in rows]))
    panels.append(('neck, ms', [row.costs.neck_ms for row in rows]))
    height = 0.75 + 0.2 * len(rows)
    figure, axes = new_figure(len(panels), height, COLUMN / len(panels), sharey=True)
    color = PALETTE[0]
    for axis, (label, values) in zip(axes, panels):
        for y, value in enumerate(values):
            if value is None:
                continue
            if isinstance(value, float):
                axis.plot([0, value], [y, y], color=GRAY, linewidth=3)
                continue
            if value.low is not None:
                axis.plot([value.low, value.high], [y, y], color=color, linewidth=1)
            face = color if value.significant else 'white'
            axis.plot(value.difference, y, 'o', color=color, mfc=face, markersize=3.5)
            axis.axvline(0, color='black', linewidth=0.5)
        axis.set_xlabel(label, fontsize=6.5)
        axis.tick_params(labelsize=6.5)
        axis.locator_params(axis='x', nbins=2)
        axis.grid(False, axis='y')
    axes[0].set_yticks(range(len(rows)), [row.name for row in rows])
    axes[0].set_ylim(-0.6, len(rows) - 0.4)
    return figure


def save_figure(summary: Summary, path: str | Path) -> None:
    """Write :func:`plot_overview` to a file of :data:`FIGURE_TYPES`."""
    # text stays text: fonts are embedded whole, and a program can edit them
    with matplotlib.rc_context({'pdf.fonttype': 42, 'svg.fonttype': 'none'}):
        buffer = io.BytesIO()
        kind = Path(path).suffix[1:].lower()
        plot_overview(summary).savefig(buffer, format=kind, dpi=300)
    write(Path(path), buffer.getvalue())


@dataclass(frozen=True)
class Part:
    """A section of the page; without a heading it goes on with the one before."""

    heading: str
    figure: Figure | None = None
    table: list[list[str]] | None = None
    text: str = ''

    @cached_property
    def png(self) -> bytes:
        """The figure as a file."""
        buffer = io.BytesIO()
        if self.figure:
            self.figure.savefig(buffer, format='png')
        return buffer.getvalue()

    def shown(self) -> tuple[str, str, str, list[list[str]] | None]:
        """Heading, text, figure in base64 and table, for the template."""
        cells = self.table and [[printable(c) for c in line] for line in self.table]
        return (
            self.heading,
            printable(self.text),
            base64.b64encode(self.png).decode(),
            cells,
        )


#: What the images of the page show.
GALLERY_TEXT = (
    f'Detections with a score of at least {SCORE_THR:g}, matched at an IoU of 0.5, of '
    'one seed at a time. Errors are false positives and objects that '
    'were not found. Thumbnails: an object that only the first upsampler found is '
    'green, one that only the second found is red. The address bar '
    'has the image and the filters, so that a view can be shared with the page.'
)


def save(summary: Summary, work_dir: str | Path) -> Path:
    """Write the figures and ``report.html``, which contains them.

    Args:
        summary (Summary): The comparison.
        work_dir (str | Path): Existing folder.

    Returns:
        Path: The HTML page.
    """
    work_dir = Path(work_dir)
    headings = [
        ('Accuracy', plot_accuracy(summary.rows, ap=summary.label())),
        ('Cost', None),
        (f'Differences to {summary.baseline}', None),
    ]
    if summary.differences:
        headings[2] = headings[2][0], plot_differences(summary)
    for _, found, key in breakdowns(summary):
        titles = {ERRORS: 'Kinds of error', BOXES: 'Boxes', MASKS: 'Masks'}
        title, figure = titles.get(key, ''), None
        if not title:
            title, figure = f'AP by {key}', plot_sizes(found, summary, key)
        headings += [(title, figure), ('', None)]
    parts = [
        Part(heading, figure, table, text)
        for (heading, figure), (text, table, _) in zip(headings, tables(summary))
        if table[1:]
    ]
    parts.append(Part('Learning curves', plot_learning(summary)))
    for part in parts:
        if part.figure:
            name = part.heading.lower().replace(' ', '_')
            name = name if name.startswith('ap_by') else name.split('_')[0]
            write(work_dir / f'comparison_{name}.png', part.png)
    gallery = None
    if summary.details:
        gallery = summary.details.gallery.write(work_dir, summary.baseline)
    here = Path(__file__)
    page = Environment(autoescape=True).from_string(_PAGE)
    text = page.render(
        title=f'{len(summary.rows)} detectors compared',
        best=summary.rows[0],
        ap=summary.label(),
        parts=[part.shown() for part in parts],
        notes=notes(summary),
        gallery=gallery,
        gallery_text=GALLERY_TEXT,
        gallery_style=here.with_name('gallery.css').read_text() if gallery else '',
        gallery_script=here.with_name('gallery.js').read_text(),
    )
    write(work_dir / 'report.html', text)
    return work_dir / 'report.html'
