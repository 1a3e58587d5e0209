"""Advice where no detection reaches the score threshold."""

from __future__ import annotations

import math
from collections.abc import Mapping

# images that a message names
_LISTED = 6


def explain_empty(best: Mapping[str, float | None], threshold: float, flag: str) -> str:
    """Explain why images show no detection.

    Args:
        best (Mapping[str, float | None]): Best score by name of each image without a
            detection above the threshold; None without any detection.
        threshold (float): The score threshold.
        flag (str): The flag that sets it, up to the number: ``'--score-thr '``.

    Returns:
        str: A sentence.
    """
    where = ', '.join(list(best)[:_LISTED])
    if len(best) > _LISTED:
        where += f' and {len(best) - _LISTED} more'
    scores = [score for score in best.values() if score is not None]
    if not scores:
        return (
            f'no detection of any score in {where}; train for longer, or lower '
            f'score_thr in model.test_cfg'
        )
    highest = max(scores)
    # in the first digit that is not 0
    unit = 10.0 ** math.floor(math.log10(highest)) if highest else 1.0
    lower = math.floor(highest / unit) * unit
    return (
        f'no detection of score ≥ {threshold:g} in {where}; the best score is '
        f'{highest:.3g}, so {flag}{lower:.1g} shows it'
    )
