"""Intervals and p-values: against scipy, by hand, and where there is no difference."""

import numpy as np
import pytest
from scipy import stats
from stress.significance import rates

from dlu_mmdet.evaluation.average_precision import Evaluation, differences_to_baseline
from dlu_mmdet.evaluation.significance import Difference, holm, seed_difference


def test_seeds_alone_give_the_interval_of_welch():
    own, base = [0.47, 0.50, 0.46, 0.49], [0.40, 0.44, 0.43, 0.35]
    found = seed_difference(own, base)
    expected = stats.ttest_ind(own, base, equal_var=False)
    interval = expected.confidence_interval(0.95)
    np.testing.assert_allclose(
        [found.value, found.p, found.low, found.high],
        [np.mean(own) - np.mean(base), expected.pvalue, *interval],
    )


def test_the_variance_over_images_widens_the_interval():
    own, base = [0.47, 0.50, 0.46], [0.40, 0.44, 0.43]
    seeds, both = seed_difference(own, base), seed_difference(own, base, 0.02**2, 99)
    assert both.value == seeds.value
    assert both.high - both.low > seeds.high - seeds.low
    assert both.p > seeds.p
    # as good as exact where it is the larger by far
    much = seed_difference(own, base, 1.0, 99)
    assert much.high - much.low == pytest.approx(2 * stats.t.ppf(0.975, 99), rel=1e-3)


@pytest.mark.parametrize('own', [[0.5], [0.5, 0.5]])
def test_without_a_spread_over_seeds_there_is_no_interval(own):
    """A second run of the same weights says nothing about other seeds."""
    found = seed_difference(own, [0.4] * len(own), 0.01, 99)
    assert found.value == pytest.approx(0.1)
    assert np.isnan([found.low, found.high, found.p]).all()
    assert str(found) == '+0.100'


def test_holm_by_hand():
    np.testing.assert_allclose(
        holm([0.01, 0.04, np.nan, 0.03, 0.005]), [0.03, 0.06, np.nan, 0.06, 0.02]
    )
    assert holm([0.6, 0.7]).tolist() == [1, 1]
    assert holm([]).size == 0


def detector(missed, objects, seed=0):
    """Finds all objects but some, in images of one object of each size or none."""
    rng = np.random.default_rng(seed)
    image = np.flatnonzero(objects[0])
    hit = np.ones((4, 10, len(image)), bool)
    hit[:, :, np.isin(image, missed)] = False
    ignored = np.zeros_like(hit)
    for area in range(1, 4):
        ignored[area] = objects[area, image] == 0
    order = rng.permutation(len(image))
    return Evaluation(
        np.array([0, len(image)]),
        image[order].astype(np.int32),
        (hit & ~ignored)[..., order],
        ignored[..., order],
        objects[:, None].astype(np.int32),
    )


def test_few_objects_have_a_difference_and_no_interval():
    """One large object that one detector misses with every seed."""
    objects = np.zeros((4, 150), int)
    objects[0] = 1
    objects[1], objects[3, 7] = 1 - (np.arange(150) == 7), 1
    base = {seed: detector([7, 30 + seed], objects) for seed in range(3)}
    own = {seed: detector([40 + seed, 60, 61][seed:], objects) for seed in range(3)}
    found = differences_to_baseline(dict(base=base, own=own), 'base')['own']
    large = found['APl']
    assert large.difference == 1 and large.seeds == [1, 1, 1]
    assert (large.objects, large.images) == (1, 1)
    assert large.low is large.high is large.p is large.significant is None
    assert (found['AP'].objects, found['APs'].objects) == (150, 149)
    assert found['AP'].low is not None and found['AP'].significant is not None
    # the other metrics are not tested
    assert found['AP50'].low is not None and found['AP50'].significant is None
    assert 'APm' not in found


def test_only_common_seeds_count():
    objects = np.ones((4, 30), int)
    base = {seed: detector([seed], objects) for seed in (0, 1)}
    other = {seed: detector([seed, seed + 9], objects) for seed in (2, 3, 4)}
    partly = {seed: detector([seed, seed + 9], objects) for seed in (1, 2)}
    found = differences_to_baseline(dict(base=base, other=other, partly=partly), 'base')
    assert 'other' not in found
    expected = partly[1].score()['AP'] - base[1].score()['AP']
    assert found['partly']['AP'].seeds == [pytest.approx(expected)]
    assert found['partly']['AP'].significant is None


def test_the_correction_covers_all_upsamplers():
    rng = np.random.default_rng(3)
    objects = np.ones((4, 200), int)

    def runs(missed):
        return {
            seed: detector(rng.choice(200, missed + 4 * seed, replace=False), objects)
            for seed in range(3)
        }

    evaluations = {'base': runs(60), **{f'{n}': runs(60 - 10 * n) for n in range(4)}}
    found = differences_to_baseline(evaluations, 'base')
    raw = [found[f'{n}']['AP'].p for n in range(4)]
    adjusted = [found[f'{n}']['AP'].p_holm for n in range(4)]
    np.testing.assert_allclose(adjusted, holm(raw))
    assert min(adjusted) > min(raw)
    assert [found[f'{n}']['AP'].significant for n in range(4)] == [
        p < 0.05 for p in adjusted
    ]


def test_a_noisy_upsampler_is_not_called_different():
    """Null: one of seven upsamplers spreads three times as much over seeds."""
    rng = np.random.default_rng(11)
    called = []
    for _ in range(2000):
        noisy = rng.normal(scale=0.06, size=3)
        p = seed_difference(noisy, rng.normal(scale=0.02, size=3)).p
        called.append(p < 0.05)
    # 19 % with one variance for all; 6.5 % is three standard errors above 5 %
    assert np.mean(called) < 0.065


def test_no_difference_without_variance():
    assert str(Difference.from_variances(0.25, [0.0], [3])) == '+0.250'


@pytest.mark.slow
@pytest.mark.parametrize('seeds', [2, 3, 5])
@pytest.mark.parametrize('images', [20, 100, 500])
def test_false_positives_where_nothing_differs(seeds, images):
    """The larger table is in docs/statistics.md."""
    repeats = 80 if images == 500 else 200
    single, family, small, large = rates(seeds, images, repeats, seed=1)
    print(
        f'{images} images, {seeds} seeds: {100 * single:.1f} % of single intervals and '
        f'{100 * family:.1f} % of comparisons of six upsamplers are wrong; gains of '
        f'0.02 and 0.05 are found in {100 * small:.0f} and {100 * large:.0f} %'
    )
    # two standard errors of so many comparisons above 5 %
    bound = 0.05 + 2 * (0.05 * 0.95 / repeats) ** 0.5
    assert single < bound and family < bound
    assert large >= small
    if images == 500 and seeds == 5:
        assert large > 0.25
