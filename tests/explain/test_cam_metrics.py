"""The pointing game and the curves, where the right value is known."""

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from dlu_mmdet.explain.cam_metrics import (
    area_under,
    blurred,
    box_coverage,
    cubic_shares,
    energy_share,
    mean_color,
    pixel_ranks,
    replacement_curve,
    spread_map,
)
from dlu_mmdet.explain.curves import draw_curves

SIZE = 8, 10
# half pixels: 3 wide, 4.5 high
BOX = 2.5, 1, 5.5, 5.5


def test_a_map_of_the_input_is_interpolated_as_torch_does_it():
    """If it fails, the map is not where the picture shows it."""
    heatmap = torch.rand(3, 4)
    # the map covers 16 x 12 pixels, of which the image is 10 x 8
    expected = interpolate(heatmap[None, None], size=(12, 16), mode='bilinear')
    found = spread_map(heatmap, (0, 0, 16, 12), SIZE)
    torch.testing.assert_close(found, expected[0, 0, :8, :10])


def test_a_map_of_a_box_is_put_there():
    """If it fails, what a RoI head looks at is said to be elsewhere."""
    found = spread_map(torch.full((7, 7), 3.0), BOX, SIZE)
    expected = torch.zeros(SIZE)
    expected[1:6, 2:6] = 3  # every pixel whose center is in the box, edges too
    torch.testing.assert_close(found, expected)


def test_coverage_has_the_area_of_the_box():
    """If it fails, the share of a uniform map is not that of the area."""
    covered = box_coverage(BOX, SIZE)
    assert covered[1, 2] == 0.5 and covered[5, 3] == 0.5 and covered[5, 2] == 0.25
    assert covered.sum() == 3 * 4.5
    assert box_coverage((-5, -5, 2, 1), SIZE).sum() == 2  # cut off at the border
    assert box_coverage((20, 20, 30, 30), SIZE).sum() == 0


def test_energy_share():
    """If it fails, a map that points at the object does not win the game."""
    region = box_coverage(BOX, SIZE)
    inside, outside = torch.zeros(2, *SIZE)
    inside[2:4, 3:5] = torch.rand(2, 2) + 1
    outside[7] = 1
    assert energy_share(inside, region) == 1
    assert energy_share(outside, region) == 0
    assert energy_share(torch.full(SIZE, 7.0), region) == pytest.approx(13.5 / 80)
    # the mean of both, weighed by their energy
    mixed = inside / inside.sum() + 3 * outside / outside.sum()
    assert energy_share(mixed, region) == pytest.approx(0.25)
    assert energy_share(torch.zeros(SIZE), region) == 0


def test_ranks():
    """If it fails, pixels are replaced in another order than that of the map."""
    heatmap = torch.tensor([[0.0, 3.0, 0.0], [2.0, 0.0, 5.0]])
    for seed in range(3):
        ranks = pixel_ranks(heatmap, seed)
        assert [int(ranks[place]) for place in ((1, 2), (0, 1), (1, 0))] == [0, 1, 2]
        assert sorted(ranks.flatten().tolist()) == list(range(6))
    # zeros from top to bottom would favor what is at the top
    zeros = [pixel_ranks(torch.zeros(20, 20), seed) for seed in range(20)]
    assert torch.stack(zeros).double().mean(0).std() < 60  # all alike: 115
    torch.testing.assert_close(pixel_ranks(torch.zeros(20, 20), 3), zeros[3])


def linear(weights):
    """A score of images (N, C, H, W): the weighted sum of the first channel."""
    return lambda images: (images[:, 0] * weights).sum((1, 2))


@pytest.mark.parametrize('batch_size', [1, 3, 100])
def test_area_under_the_curve_of_a_linear_score(batch_size):
    """If it fails, no figure of the curves is to be believed."""
    image, empty = torch.ones(1, 3, 10, 12), torch.zeros(1, 3, 10, 12)
    # only a fifth of the image counts; right and below there is padding
    weights = torch.zeros(10, 12)
    weights[:4, :4] = 1 / 16
    score = linear(weights)
    best = pixel_ranks(weights[:8, :10])
    worst = pixel_ranks(1 - weights[:8, :10])
    shares = torch.arange(11, dtype=torch.float64) / 10
    areas = {
        (order, how): area_under(
            replacement_curve(score, *ends, ranks, shares, batch_size), shares
        )
        for order, ranks in (('best', best), ('worst', worst))
        for how, ends in (('del', (image, empty)), ('ins', (empty, image)))
    }
    # the score falls from 1 to 0 within the first fifth, or within the last
    assert areas == pytest.approx(
        {
            ('best', 'del'): 0.1,
            ('best', 'ins'): 0.9,
            ('worst', 'del'): 0.9,
            ('worst', 'ins'): 0.1,
        }
    )
    # where every pixel counts alike, every order is a straight line
    ranks, shares = pixel_ranks(torch.zeros(10, 12)), cubic_shares(6)
    score = linear(torch.full((10, 12), 1 / 120))
    curve = replacement_curve(score, image, empty, ranks, shares)
    assert area_under(curve, shares) == pytest.approx(0.5, abs=0.01)
    torch.testing.assert_close(curve, 1 - (shares * 120).round() / 120)


def test_what_pixels_are_replaced_by():
    """If it fails, padding is taken for a part of the image."""
    image = torch.zeros(1, 3, 10, 12)
    image[..., :8, :10] = torch.rand(1, 3, 8, 10) + 1
    plain, soft = mean_color(image, SIZE), blurred(image, SIZE)
    torch.testing.assert_close(
        plain[0, :, 7, 9], image[0, :, :8, :10].mean((1, 2)), rtol=1e-5, atol=1e-5
    )
    for changed in (plain, soft):
        assert changed[..., 8:, :].abs().max() == changed[..., 10:].abs().max() == 0
        assert changed[..., :8, :10].min() >= 1
    one_color = mean_color(torch.rand(1, 1, 50, 60), (50, 60))
    torch.testing.assert_close(blurred(one_color, (50, 60)), one_color)
    # a dot is spread by a fortieth of the longer side, and nothing is lost
    dot = torch.zeros(1, 1, 80, 80)
    dot[..., 40, 40] = 1
    spread = blurred(dot, (80, 80))[0, 0]
    assert spread.sum() == pytest.approx(1, rel=1e-4)
    distances = (torch.arange(80.0) - 40) ** 2
    assert (spread.sum(0) * distances).sum() == pytest.approx(2**2, rel=0.05)


def test_mistakes_are_named():
    """If it fails, a wrong argument gives a wrong figure."""
    ones, image = torch.ones(SIZE), torch.ones(1, 3, *SIZE)
    ranks, shares = pixel_ranks(ones), cubic_shares(4)
    score, small = linear(ones), image[..., 1:]
    for call, words in (
        (lambda: energy_share(ones, ones[:3]), r'region.*\(3, 10\) for \(8, 10\)'),
        (lambda: energy_share(-ones, ones), 'heatmap.*-1.*clamp'),
        (lambda: energy_share(ones * np.nan, ones), 'heatmap must be finite'),
        (lambda: cubic_shares(1), 'steps must be at least 2, got 1'),
        (
            lambda: replacement_curve(score, image, image, ranks, shares, 0),
            'batch_size must be at least 1, got 0',
        ),
        (
            lambda: replacement_curve(score, image, image[..., 1:], ranks, shares),
            'end must have the shape of start',
        ),
        (
            lambda: replacement_curve(score, image, image, ranks, shares.flip(0)),
            'shares must rise',
        ),
        (
            lambda: replacement_curve(score, image, image, ranks, 2 * shares),
            'shares must rise',
        ),
        (
            lambda: replacement_curve(score, image, image, ranks[:0], shares),
            'ranks must be',
        ),
        (
            lambda: replacement_curve(score, small, small, ranks, shares),
            'ranks must be',
        ),
        (lambda: draw_curves({}, shares.numpy()), 'at least one detector'),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_figure_shows_the_mean_of_the_curves():
    """If it fails, the picture is of another detector, method or side."""
    shares = cubic_shares(3).numpy()
    scores = np.linspace(0, 1, 2 * 2 * 4).reshape(2, 2, 4)
    curves = {'a': {'one': scores, 'plain': scores / 2}, 'b': {'one': 1 - scores}}
    figure = draw_curves(curves, shares, ('plain',))
    first, second, third, fourth = figure.axes
    for axes, name, side in ((first, 'a', 0), (second, 'a', 1)):
        lines = dict(zip(curves[name], axes.lines))
        for title, line in lines.items():
            np.testing.assert_allclose(line.get_xdata(), shares)
            expected = curves[name][title][:, side].mean(0)
            np.testing.assert_allclose(line.get_ydata(), expected)
        assert lines['plain'].get_linestyle() == '--'
        assert lines['one'].get_linestyle() == '-'
    assert len(third.lines) == len(fourth.lines) == 1
    assert first.get_ylabel().startswith('a') and third.get_ylabel().startswith('b')
    band = first.collections[0].get_paths()[0].vertices[:, 1]
    error = scores[:, 0].std(0, ddof=1) / 2**0.5
    assert band.max() == pytest.approx((scores[:, 0].mean(0) + error).max())
