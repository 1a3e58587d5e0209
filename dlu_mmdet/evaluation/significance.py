"""Confidence intervals and p-values over training seeds and test images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

#: Probability that an interval misses, and that a comparison without any difference
#: calls one significant.
LEVEL = 0.05


@dataclass(frozen=True)
class Difference:
    """A difference between two means, with its 95 % interval.

    Attributes:
        value (float): The estimate.
        low (float): Lower end of the interval; NaN without an estimate of the error.
        high (float): Upper end; NaN likewise.
        p (float): Two-sided p-value of no difference; NaN likewise.
    """

    value: float
    low: float = np.nan
    high: float = np.nan
    p: float = np.nan

    def __str__(self) -> str:
        if np.isnan(self.low):
            return f'{self.value:+.3f}'
        return f'{self.value:+.3f} ({self.low:+.3f} to {self.high:+.3f})'

    @classmethod
    def from_variances(
        cls, value: float, variances: Sequence[float], freedoms: Sequence[float]
    ) -> Difference:
        """Student's t with the degrees of freedom of a sum of variances.

        Source: Welch, The generalization of Student's problem when several different
        population variances are involved, Biometrika 34, 1947; Satterthwaite,
        Biometrics Bulletin 2, 1946.

        Args:
            value (float): The estimate.
            variances (Sequence[float]): Independent estimates of the terms of its
                variance.
            freedoms (Sequence[float]): Degrees of freedom of each.

        Returns:
            Difference: Without an interval where the variance is 0.
        """
        total = float(sum(variances))
        if not total > 0:
            return cls(value)
        freedom = total**2 / sum(v**2 / f for v, f in zip(variances, freedoms) if v)
        error = total**0.5
        width = stats.t.ppf(1 - LEVEL / 2, freedom) * error
        p = 2 * stats.t.sf(abs(value) / error, freedom)
        return cls(value, float(value - width), float(value + width), float(p))


def seed_difference(
    own: Sequence[float] | np.ndarray,
    base: Sequence[float] | np.ndarray,
    image_variance: float = 0.0,
    image_freedom: float = np.inf,
) -> Difference:
    """Difference of two upsamplers' means over training seeds.

    The variance is the sum of three terms: the variance over seeds of each upsampler
    and the variance over test images. The upsamplers do not share one variance: with a
    pooled one, a noisy upsampler would be called different in 19 % of the comparisons
    without a difference. Runs with the same seed are treated as independent. They share
    the order of the data, but in docs/results their AP does not correlate (-0.13 to
    +0.11 on five sets); a correlation would make the interval too wide, not too narrow.

    Args:
        own (Sequence[float]): (n,) AP of each seed.
        base (Sequence[float]): (n,) AP of the baseline with the same seeds.
        image_variance (float): Of the difference, over draws of the test images with
            these seeds. 0 leaves the images out: the interval is then about other
            seeds on the same images.
        image_freedom (float): Degrees of freedom of that.

    Returns:
        Difference: Without an interval for one seed, or if all seeds are equal.
    """
    own, base = np.asarray(own, float), np.asarray(base, float)
    value, n = float(own.mean() - base.mean()), len(own)
    if n < 2:
        return Difference(value)
    seeds = [own.var(ddof=1) / n, base.var(ddof=1) / n]
    if not sum(seeds):
        return Difference(value)
    return Difference.from_variances(
        value, [*seeds, image_variance], [n - 1, n - 1, image_freedom]
    )


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's correction of p-values for multiple comparisons.

    Source: Holm, A simple sequentially rejective multiple test procedure, Scandinavian
    Journal of Statistics 6, 1979.

    Args:
        p_values (Sequence[float]): (k,) p-values; NaN, for no test, stays.

    Returns:
        np.ndarray: (k,) float64.
    """
    adjusted = np.asarray(p_values, float).copy()
    order = np.argsort(adjusted)[: np.isfinite(adjusted).sum()]
    factors = np.arange(len(order), 0, -1)
    steps = np.maximum.accumulate(adjusted[order] * factors)
    adjusted[order] = np.minimum(steps, 1)
    return adjusted
