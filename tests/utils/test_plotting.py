"""The style that all plots share."""

import pytest
from conftest import ROOT

from dlu_mmdet.comparison.cross_dataset import (
    CrossDatasetResults,
    plot,
    read_results,
)
from dlu_mmdet.comparison.report import plot_accuracy
from dlu_mmdet.comparison.summary import Costs, Row, Spread
from dlu_mmdet.upsamplers import UPSAMPLERS
from dlu_mmdet.utils.plotting import MARKERS, PALETTE


def overlaps(figure):
    """Whether the legend covers a part of any axes."""
    figure.canvas.draw()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    return any(box.overlaps(axes.get_window_extent()) for axes in figure.axes)


def test_every_upsampler_has_a_color_and_a_marker_of_its_own():
    """If it fails, a reader takes one upsampler for another."""
    assert len({*PALETTE}) == len({*MARKERS}) == len(PALETTE) > len(UPSAMPLERS)


@pytest.fixture(scope='module')
def across():
    folder = ROOT / 'docs' / 'results'
    names = ('shapes', 'deeppcb')
    return CrossDatasetResults({n: read_results(folder / n) for n in names}, 'bilinear')


def test_differences_say_what_their_marks_mean(across):
    """If it fails, filled and hollow points are a riddle."""
    figure = plot(across)
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == [
        'significant at 5 %',
        'not significant',
        '95 % interval',
        'one seed',
    ]
    assert not overlaps(figure)


def test_accuracy_has_a_row_for_each_upsampler():
    """If it fails, points of like cost hide each other; one seed has no spread."""
    costs = Costs(10**6, None, 92804, None, [192, 192], 'cpu', 0.1, 8.4)
    rows = [
        Row(name, dict(AP=Spread(ap, std)), costs)
        for name, ap, std in (('dlu', 0.49, 0.02), ('fade', 0.48, None))
    ]
    figure = plot_accuracy(rows, 'shapes')
    accuracy, *costs = figure.axes
    names = [label.get_text() for label in accuracy.get_yticklabels()]
    assert names == ['fade', 'dlu'] and len(costs) == 2
    for axes in figure.axes:
        assert [*axes.lines[0].get_ydata()] == [0, 1]
    assert figure.get_suptitle() == 'shapes'
