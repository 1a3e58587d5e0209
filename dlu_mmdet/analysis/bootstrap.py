"""Which differences in AP are real: a paired bootstrap over images."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO

from ..datasets import annotations
from .matching import MAX_DETECTIONS

#: COCO's metrics: index of the area range, and the IoU thresholds averaged over.
METRICS = dict(
    AP=(0, slice(None)),
    AP50=(0, slice(0, 1)),
    AP75=(0, slice(5, 6)),
    APs=(1, slice(None)),
    APm=(2, slice(None)),
    APl=(3, slice(None)),
)
RECALLS = np.linspace(0, 1, 101)
# resamples taken at once: their counts for one category stay in the cache
_CHUNK = 100
# evaluations scored at once; each needs some 100 MB on COCO
_MAX_THREADS = 8


@dataclass(frozen=True)
class Evaluation:
    """What pycocotools' ``evaluate`` found for a detector on a data set.

    Detections come category after category, in the order that was asked for, and by
    falling score in each. A areas (all, small, medium, large), T IoU thresholds (0.50
    to 0.95), K categories, I images, D detections.

    Attributes:
        start (np.ndarray): (K + 1,) int64, where each category begins.
        image (np.ndarray): (D,) int32, index of each detection's image.
        hit (np.ndarray): (A, T, D) bool, true positives.
        ignored (np.ndarray): (A, T, D) bool, detections that do not count.
        objects (np.ndarray): (A, K, I) int32, objects to be found.
    """

    start: np.ndarray
    image: np.ndarray
    hit: np.ndarray
    ignored: np.ndarray
    objects: np.ndarray

    @classmethod
    def from_coco(
        cls, coco: COCO, detections: list[dict], category_ids: Sequence[int]
    ) -> Evaluation:
        """Match detections with pycocotools, each image once.

        Args:
            coco (COCO): The annotations; every image of them counts.
            detections (list[dict]): COCO results: ``image_id``,
                ``category_id``, ``bbox`` (x, y, width, height), ``score``.
            category_ids (Sequence[int]): Categories that count.

        Returns:
            Evaluation: The matches of all images.
        """
        with contextlib.redirect_stdout(io.StringIO()):
            if not isinstance(coco, annotations.COCO):
                coco = annotations.COCO.completed(coco)
            # loadRes cannot take an empty list
            results = coco.loadRes(detections) if detections else COCO()
            evaluation = annotations.COCOeval(coco, results, 'bbox')
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

    def save(self, path: str | Path) -> None:
        """Write it to an .npz file."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        np.savez_compressed(path, **arrays)

    @classmethod
    def load(cls, path: str | Path) -> Evaluation:
        """Read what :meth:`save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            return cls(**{field.name: arrays[field.name] for field in fields(cls)})

    @property
    def num_images(self) -> int:
        """Number of images."""
        return self.objects.shape[2]

    def category(self, k: int) -> Evaluation:
        """The evaluation of one category alone.

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
        """COCO's metrics of the data set itself.

        Returns:
            dict: By name as in :data:`METRICS`; None where there is no object to find.
        """
        values = self.metrics(np.ones((1, self.num_images), dtype=int))[0]
        return {
            name: None if np.isnan(value) else float(value)
            for name, value in zip(METRICS, values)
        }

    def metrics(
        self, weights: np.ndarray, names: Sequence[str] = tuple(METRICS)
    ) -> np.ndarray:
        """COCO's metrics of data sets made of these images.

        Equal to running pycocotools on images repeated as ``weights`` says:
        only a hit can raise the interpolated precision, so precision and
        recall are needed at hits alone.

        Args:
            weights (np.ndarray): (B, I) int, how often each data set has each
                image.
            names (Sequence[str]): Metrics, keys of :data:`METRICS`.

        Returns:
            np.ndarray: (B, len(names)) float64, NaN where there is no object.
        """
        areas = sorted({METRICS[name][0] for name in names})
        weights = np.ascontiguousarray(weights, dtype=np.int32)
        total = np.zeros((len(weights), len(areas), self.hit.shape[1]))
        present = np.zeros((len(weights), len(areas), 1))
        for k, (low, high) in enumerate(zip(self.start[:-1], self.start[1:])):
            for a, area in enumerate(areas):
                positives = weights @ self.objects[area, k]
                present[:, a, 0] += positives > 0
                # most detections of another size count at no threshold
                ignored = self.ignored[area, :, low:high]
                kept = np.flatnonzero(~ignored.all(axis=0))
                total[:, a] += _average_precision(
                    weights,
                    self.image[low:high][kept],
                    self.hit[area, :, low:high][:, kept],
                    ignored[:, kept],
                    np.maximum(positives, 1),
                )
        precision = total / np.where(present, present, np.nan)
        return np.stack(
            [
                precision[:, areas.index(METRICS[n][0]), METRICS[n][1]].mean(axis=1)
                for n in names
            ],
            axis=1,
        )


def _average_precision(
    weights: np.ndarray,
    image: np.ndarray,
    hit: np.ndarray,
    ignored: np.ndarray,
    positives: np.ndarray,
) -> np.ndarray:
    """(B, T): AP of one category in data sets with (B,) objects each."""
    average = np.zeros((len(weights), len(hit)))
    hits_at = [np.flatnonzero(row) for row in hit]
    ignored_at = [np.flatnonzero(row) for row in ignored]
    for low in range(0, len(weights), _CHUNK):
        chunk = slice(low, low + _CHUNK)
        drawn = weights[chunk].take(image, axis=1)
        seen = drawn.cumsum(axis=1, dtype=np.int32)
        for t, (at, left_out) in enumerate(zip(hits_at, ignored_at)):
            if not len(at):
                continue
            hits = drawn.take(at, axis=1).cumsum(axis=1, dtype=np.int32)
            counted = seen.take(at, axis=1)
            before = np.searchsorted(left_out, at)
            if before[-1]:
                skipped = drawn.take(left_out[: before[-1]], axis=1)
                skipped = skipped.cumsum(axis=1, dtype=np.int32)
                skipped = np.pad(skipped, ((0, 0), (1, 0)))
                counted -= skipped.take(before, axis=1)
            precision = hits / np.maximum(counted, 1)
            best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            recall = hits / positives[chunk, None]
            reached = RECALLS.searchsorted(recall, side='right')
            steps = np.diff(reached, axis=1, prepend=0)
            average[chunk, t] = (best * steps).sum(axis=1) / len(RECALLS)
    return average


def resample(num_images: int, resamples: int, seed: int = 0) -> np.ndarray:
    """Draw data sets of the same size, with replacement.

    Args:
        num_images (int): I.
        resamples (int): R.
        seed (int): Of the generator.

    Returns:
        np.ndarray: (R, I) int64, how often each has each image.
    """
    generator = np.random.default_rng(seed)
    return generator.multinomial(
        num_images, np.full(num_images, 1 / num_images), size=resamples
    )


def _is_real(low: float, high: float, seeds: np.ndarray) -> bool | None:
    """Whether neither other images nor another of these seeds turns a sign."""
    if len(seeds) < 2:
        return None
    return bool((low > 0 and (seeds > 0).all()) or (high < 0 and (seeds < 0).all()))


def paired_differences(
    evaluations: Mapping[str, Sequence[Evaluation]],
    baseline: str,
    resamples: int = 1000,
    seed: int = 0,
    names: Sequence[str] = tuple(METRICS),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, dict[str, dict]]:
    """Difference of each detector to the baseline, with a 95 % interval.

    Every resample of the images is scored for all detectors and seeds, and
    their AP is averaged over seeds before the difference is taken: the interval
    (2.5th to 97.5th percentile) is that of the mean over these seeds on
    another draw of images. What another seed would change is beside it.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
    chapter 13.

    Args:
        evaluations (Mapping[str, Sequence[Evaluation]]): For each detector one
            evaluation a seed, all on the same images and with the same seeds in
            the same order.
        baseline (str): Key of the detector that others are compared with.
        resamples (int): Number of resamples.
        seed (int): Of the draw.
        names (Sequence[str]): Metrics, keys of :data:`METRICS`.
        progress (Callable): Called with the evaluations done and their number.

    Returns:
        dict: ``[detector][metric]`` holds ``difference``, ``low``, ``high``,
        ``real`` (whether the interval leaves out 0 and every seed lies on the
        same side of it; None with one seed, which cannot tell) and ``seeds``,
        the difference of each seed. Metrics without an object to find are left
        out.

    Raises:
        ValueError: If the baseline is not there, a detector has none or another
            number of evaluations, or they are not of the same images.
    """
    if baseline not in evaluations:
        raise ValueError(
            f'baseline {baseline!r} is not among the detectors: '
            f'{", ".join(evaluations)}'
        )
    listed = [(name, e) for name, each in evaluations.items() for e in each]
    first = listed[0][1]
    for name, each in evaluations.items():
        if not each:
            raise ValueError(f'{name} has no evaluation to compare')
        if len(each) != len(evaluations[baseline]):
            raise ValueError(
                f'{name} has {len(each)} evaluations and {baseline} '
                f'{len(evaluations[baseline])}; compare the same seeds'
            )
        if any(not np.array_equal(e.objects, first.objects) for e in each):
            raise ValueError(
                f'{name} was evaluated on other images or objects than '
                f'{listed[0][0]}; compare detectors on one data set'
            )
    weights = resample(first.num_images, resamples, seed)
    # the data set itself comes first
    weights = np.concatenate([np.ones((1, first.num_images), dtype=int), weights])

    scores: dict[str, list[np.ndarray]] = {name: [] for name in evaluations}
    # numpy lets go of the interpreter while it works: threads are enough
    with ThreadPoolExecutor(min(os.cpu_count() or 1, _MAX_THREADS)) as pool:
        found = pool.map(lambda each: each[1].metrics(weights, names), listed)
        for number, ((name, _), score) in enumerate(zip(listed, found), 1):
            scores[name].append(score)
            progress(number, len(listed))

    base = np.stack(scores[baseline])
    differences = {}
    for name, each in scores.items():
        if name == baseline:
            continue
        own = np.stack(each)
        pooled = own.mean(axis=0) - base.mean(axis=0)
        with warnings.catch_warnings():
            # a resample without objects of a size says nothing about them
            warnings.simplefilter('ignore', RuntimeWarning)
            low, high = np.nanpercentile(pooled[1:], [2.5, 97.5], axis=0)
        paired = own[:, 0] - base[:, 0]
        differences[name] = {
            metric: dict(
                difference=float(pooled[0, m]),
                low=float(low[m]),
                high=float(high[m]),
                real=_is_real(low[m], high[m], paired[:, m]),
                seeds=paired[:, m].tolist(),
            )
            for m, metric in enumerate(names)
            if np.isfinite(pooled[0, m])
        }
    return differences
