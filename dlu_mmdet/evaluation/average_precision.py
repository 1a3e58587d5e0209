"""AP of stored matches, and differences in AP with intervals over seeds and images."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pycocotools.coco import COCO
from scipy import stats

from ..datasets import coco_io
from .boundaries import BoundaryEval
from .matching import MAX_DETECTIONS
from .significance import LEVEL, Difference, holm, seed_difference

#: COCO's metrics: index of the area range, and the IoU thresholds averaged over.
METRICS = dict(
    AP=(0, slice(None)),
    AP50=(0, slice(0, 1)),
    AP75=(0, slice(5, 6)),
    APs=(1, slice(None)),
    APm=(2, slice(None)),
    APl=(3, slice(None)),
)
#: What AP may be of, by the name of the IoU: boxes, masks or the boundaries of masks.
KINDS_OF_AP = dict(bbox='AP', segm='mask AP', boundary='boundary AP')
#: The metric that is tested. The others are exploratory: no correction covers them.
PRIMARY = 'AP'
#: Images with objects below which a metric has no interval: see docs/statistics.md.
MIN_IMAGES = 20
RECALLS = np.linspace(0, 1, 101)
# evaluations scored at once; each needs some 100 MB on COCO
_MAX_THREADS = 8


@dataclass(frozen=True)
class MetricDifference:
    """An upsampler's difference to the baseline in one metric.

    Attributes:
        difference (float): Mean over the seeds that both have, as a fraction.
        low (float, optional): Lower end of the 95 % interval; None without one.
        high (float, optional): Upper end; None likewise.
        p (float, optional): Two-sided p-value; None likewise.
        p_holm (float, optional): The p-value corrected over all upsamplers; None where
            the difference is not tested: of exploratory metrics, with one seed, or
            without an interval.
        significant (bool, optional): Whether that is below 5 %; None likewise.
        seeds (list[float]): The difference of each seed.
        objects (int): Objects that the metric is measured on.
        images (int): Images that have any.
    """

    difference: float
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None
    significant: bool | None
    seeds: list[float]
    objects: int
    images: int


@dataclass(frozen=True)
class Evaluation:
    """Matches of a detector on a data set, as pycocotools' ``evaluate`` finds them.

    Detections are sorted by category, in the order requested, and then by descending
    score. A areas (all, small, medium, large), T IoU thresholds (0.50 to 0.95), K
    categories, I images, D detections.

    Attributes:
        start (np.ndarray): (K + 1,) int64, index of each category's first detection.
        image (np.ndarray): (D,) int32, index of each detection's image.
        hit (np.ndarray): (A, T, D) bool, true positives.
        ignored (np.ndarray): (A, T, D) bool, detections that do not count.
        objects (np.ndarray): (A, K, I) int32, number of ground-truth objects.
    """

    start: np.ndarray
    image: np.ndarray
    hit: np.ndarray
    ignored: np.ndarray
    objects: np.ndarray

    @classmethod
    def from_coco(
        cls,
        coco: COCO,
        detections: list[dict],
        category_ids: Sequence[int],
        iou_type: str = 'bbox',
    ) -> Evaluation:
        """Match detections with pycocotools.

        Args:
            coco (COCO): The annotations; all of their images are evaluated.
            detections (list[dict]): COCO results: ``image_id``, ``category_id``,
                ``score`` and ``bbox`` (x, y, width, height) or ``segmentation``.
            category_ids (Sequence[int]): Categories to evaluate.
            iou_type (str): 'bbox', 'segm' for the overlap of masks, or 'boundary' for
                :class:`~dlu_mmdet.evaluation.boundaries.BoundaryEval`. Defaults to
                'bbox'.

        Returns:
            Evaluation: The matches of all images.
        """
        with contextlib.redirect_stdout(io.StringIO()):
            if not isinstance(coco, coco_io.COCO):
                coco = coco_io.COCO.completed(coco)
            # loadRes cannot take an empty list
            results = coco.loadRes(detections) if detections else COCO()
            if iou_type == 'boundary':
                evaluation = BoundaryEval(coco, results, 'segm')
            else:
                evaluation = coco_io.COCOeval(coco, results, iou_type)
            evaluation.params.catIds = list(category_ids)
            evaluation.params.maxDets = [MAX_DETECTIONS]
            evaluation.evaluate()
        params = evaluation.params
        sizes = (len(params.catIds), len(params.areaRng), len(params.imgIds))
        per_image = np.empty(sizes, dtype=object)
        per_image.reshape(-1)[:] = evaluation.evalImgs
        # pycocotools sorts the categories
        per_image = per_image[[params.catIds.index(i) for i in category_ids]]

        objects = np.zeros((sizes[1], sizes[0], sizes[2]), dtype=np.int32)
        start, image, hit, ignored = [0], [], [], []
        for k in range(sizes[0]):
            for a, i in np.ndindex(sizes[1:]):
                if per_image[k, a, i] is not None:
                    objects[a, k, i] = np.sum(per_image[k, a, i]['gtIgnore'] == 0)
            # an image without objects and detections of a category is None
            kept = [i for i in range(sizes[2]) if per_image[k, 0, i] is not None]
            scores = [per_image[k, 0, i]['dtScores'] for i in kept]
            order = np.argsort(-np.concatenate(scores or [[]]), kind='mergesort')
            image.append(np.repeat(kept, [len(s) for s in scores])[order])
            start.append(start[-1] + len(order))
            empty = np.zeros((sizes[1], len(params.iouThrs), 0))
            matched, left_out = (
                np.concatenate(
                    [empty]
                    + [
                        np.stack([per_image[k, a, i][key] for a in range(sizes[1])])
                        for i in kept
                    ],
                    axis=2,
                )[:, :, order].astype(bool)
                for key in ('dtMatches', 'dtIgnore')
            )
            hit.append(matched & ~left_out)
            ignored.append(left_out)
        return cls(
            start=np.array(start),
            image=np.concatenate(image).astype(np.int32),
            hit=np.concatenate(hit, axis=2),
            ignored=np.concatenate(ignored, axis=2),
            objects=objects,
        )

    def save(self, path: str | Path | BinaryIO) -> None:
        """Write an .npz file, to a path or an open file."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        np.savez_compressed(path, **arrays)

    @classmethod
    def load(cls, path: str | Path) -> Evaluation:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: If the file does not exist.
            ValueError: If it is damaged or of another kind.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                found = cls(**{field.name: arrays[field.name] for field in fields(cls)})
            (areas, categories, _), (_, _, detections) = (
                found.objects.shape,
                found.hit.shape,
            )
            shapes = found.start.shape, found.image.shape, found.ignored.shape
            if shapes != ((categories + 1,), (detections,), found.hit.shape) or (
                len(found.hit) != areas or found.start[-1] != detections
            ):
                raise ValueError('its arrays do not fit together')
        except FileNotFoundError:
            raise
        # whatever a file of something else leads numpy to
        except Exception as error:
            raise ValueError(
                f'{path} is damaged, or is not what a comparison writes ({error}); '
                f'remove it, and dlu_mmdet compare --report-only makes it anew'
            ) from error
        return found

    @property
    def num_images(self) -> int:
        """Number of images."""
        return self.objects.shape[2]

    def counts(
        self, metrics: Mapping[Any, tuple[int, slice]] = METRICS
    ) -> dict[Any, dict[str, int]]:
        """Number of objects and of images with objects, by metric."""
        return {
            name: dict(
                objects=int(self.objects[area].sum()),
                images=int((self.objects[area].sum(axis=0) > 0).sum()),
            )
            for name, (area, _) in metrics.items()
        }

    def category(self, k: int) -> Evaluation:
        """The evaluation of one category.

        Args:
            k (int): Index of the category, below K.

        Returns:
            Evaluation: Of the same images, with K = 1.
        """
        own = slice(*self.start[k : k + 2])
        return Evaluation(
            start=self.start[k : k + 2] - self.start[k],
            image=self.image[own],
            hit=self.hit[..., own],
            ignored=self.ignored[..., own],
            objects=self.objects[:, k : k + 1],
        )

    def score(self) -> dict[str, float | None]:
        """COCO's metrics of the data set.

        Returns:
            dict[str, float | None]: Fractions by :data:`METRICS`; None without an
            object.
        """
        values = self.metrics(np.ones((1, self.num_images), dtype=int))[0]
        return {
            name: None if np.isnan(value) else float(value)
            for name, value in zip(METRICS, values)
        }

    def metrics(
        self,
        weights: np.ndarray,
        names: Sequence = tuple(METRICS),
        metrics: Mapping[Any, tuple[int, slice]] = METRICS,
    ) -> np.ndarray:
        """COCO's metrics of B weighted copies of the data set.

        Equals pycocotools on data sets that repeat or leave out images. Where images
        repeat and detections have equal scores, the result of pycocotools depends on
        the order of the copies; here all copies of a detection come before the next
        detection. Only true positives can raise the interpolated precision, so
        precision and recall are computed at true positives alone.

        Args:
            weights (np.ndarray): (B, I) int, multiplicity of each image.
            names (Sequence): Metrics, keys of ``metrics``.
            metrics (Mapping[Any, tuple[int, slice]]): Index of the area range and IoU
                thresholds of each metric. Defaults to COCO's.

        Returns:
            np.ndarray: (B, len(names)) float64, NaN where there is no object.
        """
        areas = sorted({metrics[name][0] for name in names})
        copies, weights = Copies(weights), weights.astype(float)
        # floats multiply faster, and the numbers of objects are exact
        numbers = [weights @ self.objects[area].T.astype(float) for area in areas]
        total = np.zeros((len(weights), len(areas), self.hit.shape[1]))
        present = np.zeros((len(weights), len(areas), 1))
        for k, (low, high) in enumerate(zip(self.start[:-1], self.start[1:])):
            for a, area in enumerate(areas):
                positives = numbers[a][:, k]
                present[:, a, 0] += positives > 0
                # most detections of another size count at no threshold
                ignored = self.ignored[area, :, low:high]
                kept = np.flatnonzero(~ignored.all(axis=0))
                total[:, a] += average_precision(
                    copies,
                    self.image[low:high][kept],
                    self.hit[area, :, low:high][:, kept],
                    ignored[:, kept],
                    np.maximum(positives, 1),
                )
        precision = total / np.where(present, present, np.nan)
        return np.stack(
            [
                precision[:, areas.index(metrics[n][0]), metrics[n][1]].mean(axis=1)
                for n in names
            ],
            axis=1,
        )


class Copies:
    """B weighted copies of a data set, by what they differ from it in.

    Where a copy leaves out one group of images, this takes the time of one copy for
    all groups together.

    Args:
        weights (np.ndarray): (B, I) int, multiplicity of each image.
    """

    def __init__(self, weights: np.ndarray) -> None:
        images, self._copy = np.nonzero(weights.T != 1)
        self._change = (weights[self._copy, images] - 1).astype(float)
        self._start = np.searchsorted(images, np.arange(weights.shape[1] + 1))
        self.number = len(weights)

    def count(self, image: np.ndarray, part: np.ndarray, parts: int) -> np.ndarray:
        """Count detections in each copy.

        Args:
            image (np.ndarray): (D,) int, index of each detection's image.
            part (np.ndarray): (D,) int, ascending, where each is counted; those from
                P on are left out.
            parts (int): P.

        Returns:
            np.ndarray: (P, B) float64, numbers of detections up to each part.
        """
        image, part = (each[: np.searchsorted(part, parts)] for each in (image, part))
        first, number = self._start[image], np.diff(self._start)[image]
        # the changes of each detection's image, one after the other
        last = np.cumsum(number)
        at = np.arange(number.sum()) + np.repeat(first - (last - number), number)
        where = np.repeat(part, number) * self.number + self._copy[at]
        found = np.bincount(where, self._change[at], parts * self.number)
        plain = np.bincount(part, minlength=parts).astype(float)
        return np.cumsum(found.reshape(parts, -1) + plain[:, None], axis=0)


def average_precision(
    copies: Copies,
    image: np.ndarray,
    hit: np.ndarray,
    ignored: np.ndarray,
    positives: np.ndarray,
) -> np.ndarray:
    """(B, T): AP of one category in data sets with (B,) objects each."""
    average = np.zeros((copies.number, len(hit)))
    number = np.arange(len(image))
    for t, (found, left_out) in enumerate(zip(hit, ignored)):
        at = np.flatnonzero(found)
        if not len(at):
            continue
        counted = np.flatnonzero(~left_out)
        parts = np.searchsorted(at, number[counted])
        seen = copies.count(image[counted], parts, len(at))
        hits = copies.count(image[at], number[: len(at)], len(at))
        precision = hits / np.maximum(seen, 1, out=seen)
        best = np.maximum.accumulate(precision[::-1])[::-1]
        reached = _reached(np.divide(hits, positives, out=hits))
        average[:, t] = np.einsum('pb,pb->b', best[1:], np.diff(reached, axis=0))
        average[:, t] += best[0] * reached[0]
    return average / len(RECALLS)


def _reached(recall: np.ndarray) -> np.ndarray:
    """How many of COCO's recalls are not above each; searchsorted, but faster."""
    near = (recall * (len(RECALLS) - 1)).astype(np.intp)
    near += recall >= np.append(RECALLS, np.inf)[near + 1]
    return near + (recall >= RECALLS[near])


def leave_out(num_images: int, groups: int) -> np.ndarray:
    """Image weights that leave out one group of images at a time.

    Args:
        num_images (int): Number of images I.
        groups (int): Maximum number of groups; G = min(groups, I). Image i belongs to
            group i mod G.

    Returns:
        np.ndarray: (G, I) int64, 0 for images that are left out and 1 for the others.
    """
    groups = min(groups, num_images)
    group = np.arange(num_images) % groups
    return (group != np.arange(groups)[:, None]).astype(int)


def differences_to_baseline(
    evaluations: Mapping[str, Mapping[int, Evaluation]],
    baseline: str,
    groups: int = 200,
    names: Sequence[str] = tuple(METRICS),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, dict[str, MetricDifference]]:
    """Difference of each upsampler to the baseline, with a 95 % interval.

    The interval covers other training seeds and other test images: Welch's interval of
    the means over seeds, see
    :func:`~dlu_mmdet.evaluation.significance.seed_difference`, with the variance over
    images as a third term. That is the jackknife's covariance of the differences of two
    seeds, where one group of images is left out of all runs at a time. The interaction
    of seeds and images is part of the variance over seeds. The interval is never
    narrower than the one for other images alone, which is used with one seed.

    Only the p-values of :data:`PRIMARY` are corrected, over all upsamplers, and tested.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 11.

    Args:
        evaluations (Mapping[str, Mapping[int, Evaluation]]): Evaluations by upsampler
            and seed, all on the same images. A difference is taken over the seeds that
            both upsamplers have.
        baseline (str): Key of the upsampler that others are compared with.
        groups (int): Maximum number of groups of images.
        names (Sequence[str]): Metrics, keys of :data:`METRICS`.
        progress (Callable): Called with the number of scored evaluations and of all.

    Returns:
        dict[str, dict[str, MetricDifference]]: By upsampler and metric. There is no
        interval with fewer than :data:`MIN_IMAGES` images that have objects. Metrics
        without an object and upsamplers without a common seed are left out.

    Raises:
        ValueError: If the baseline is missing, an upsampler has no evaluation, or the
            evaluations differ in images or objects.
    """
    if baseline not in evaluations:
        raise ValueError(
            f'baseline {baseline!r} is not among the upsamplers: '
            f'{", ".join(evaluations)}'
        )
    for name, each in evaluations.items():
        if not each:
            raise ValueError(f'{name} has no evaluation to compare')
    listed = [(n, s, e) for n, each in evaluations.items() for s, e in each.items()]
    first, _, reference = listed[0]
    for name, _, evaluation in listed:
        if not np.array_equal(evaluation.objects, reference.objects):
            raise ValueError(
                f'{name} was evaluated on other images or objects than {first}; '
                f'compare upsamplers on one data set'
            )
    weights = leave_out(reference.num_images, groups)
    # the data set itself comes first
    weights = np.concatenate([np.ones_like(weights[:1]), weights])

    scores: dict[str, dict[int, np.ndarray]] = {name: {} for name in evaluations}
    # numpy lets go of the interpreter while it works: threads are enough
    with ThreadPoolExecutor(min(os.cpu_count() or 1, _MAX_THREADS)) as pool:
        found = pool.map(lambda each: each[2].metrics(weights, names), listed)
        for number, ((name, s, _), score) in enumerate(zip(listed, found), 1):
            scores[name][s] = score
            progress(number, len(listed))

    counts = reference.counts()
    return score_differences(
        scores, baseline, {name: counts[name] for name in names}, (PRIMARY,)
    )


def score_differences(
    scores: Mapping[str, Mapping[int, np.ndarray]],
    baseline: str,
    counts: Mapping[str, Mapping[str, int]],
    tested: Sequence[str],
) -> dict[str, dict[str, MetricDifference]]:
    """The differences of :func:`differences_to_baseline` from given scores.

    Args:
        scores (Mapping[str, Mapping[int, np.ndarray]]): By upsampler and seed,
            (1 + groups, len(counts)) scores: of all images, then without each group.
        baseline (str): Key of the upsampler that others are compared with.
        counts (Mapping[str, Mapping[str, int]]): By metric, in the order of the
            scores, the number of ``objects`` and ``images`` that it is measured on.
        tested (Sequence[str]): Metrics whose p-values are corrected together, over
            all upsamplers, and tested.

    Returns:
        dict[str, dict[str, MetricDifference]]: By upsampler and metric.
    """
    base, differences = scores[baseline], {}
    for name, own in scores.items():
        common = [s for s in own if s in base]
        if name == baseline or not common:
            continue
        both = [np.stack([each[s] for s in common]) for each in (own, base)]
        differences[name] = {
            metric: _difference(both[0][..., m], both[1][..., m], **count)
            for m, (metric, count) in enumerate(counts.items())
            if count['objects']
        }
    _correct([*differences.values()], tested)
    return differences


def _correct(
    columns: Sequence[dict[str, MetricDifference]], metrics: Sequence[str]
) -> None:
    """Correct the p-values of some metrics together over upsamplers, in place."""
    # one seed is no test
    tested = [
        (column, metric, found.p)
        for column in columns
        for metric in metrics
        if (found := column.get(metric)) and found.p is not None
        if len(found.seeds) > 1
    ]
    for (column, metric, _), p in zip(tested, holm([p for *_, p in tested])):
        column[metric] = replace(
            column[metric], p_holm=float(p), significant=bool(p < LEVEL)
        )


def _difference(
    own: np.ndarray, base: np.ndarray, objects: int, images: int
) -> MetricDifference:
    """One metric's difference, from (seeds, 1 + groups) values."""
    each = own - base
    found = Difference(float(each[:, 0].mean()))
    if images >= MIN_IMAGES:
        variance, shared, freedom = _jackknife(each[:, 1:])
        found = seed_difference(own[:, 0], base[:, 0], shared, freedom)
        alone = Difference.from_variances(found.value, [variance], [freedom])
        if len(each) == 1 or alone.high - alone.low > found.high - found.low:
            found = alone
    low, high, p = (
        None if np.isnan(v) else v for v in (found.low, found.high, found.p)
    )
    return MetricDifference(
        difference=found.value,
        low=low,
        high=high,
        p=p,
        p_holm=None,
        significant=None,
        seeds=each[:, 0].tolist(),
        objects=objects,
        images=images,
    )


def _jackknife(values: np.ndarray) -> tuple[float, float, float]:
    """Variance over images, from (seeds, groups) values.

    Returns:
        tuple[float, float, float]: Variance of the mean over seeds; covariance of two
        seeds; degrees of freedom. Where a few images hold most of the objects, they
        decide the variance: the heavier the tails, the fewer degrees of freedom.
    """
    seeds, groups = values.shape
    moved = values - values.mean(axis=1, keepdims=True)
    covariance = (groups - 1) / groups * moved @ moved.T
    shared = covariance.sum() - np.trace(covariance)
    shared = max(shared / (seeds * (seeds - 1)), 0) if seeds > 1 else covariance[0, 0]
    mean = moved.mean(axis=0)
    excess = max(stats.kurtosis(mean), 0) if mean.any() else 0
    freedom = 2 / (2 / (groups - 1) + excess / groups)
    return float(covariance.mean()), float(shared), float(freedom)
