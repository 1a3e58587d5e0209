"""Kinds of error, and the AP that a detector would gain without each of them.

Source: Bolya, Foley, Hays and Hoffman, TIDE: A General Toolbox for Identifying Object
Detection Errors, ECCV 2020 (arXiv 2008.08115), section 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .average_precision import Copies, average_precision
from .instances import NO_DETECTIONS, Detections, Objects
from .matching import Matches, box_ious, match_overlaps

#: Kinds of error, by their code in :class:`ImageErrors`. The last is one of objects.
KINDS = (
    'localization',
    'classification',
    'both',
    'duplicate',
    'background',
    'missed',
)
LOCALIZATION, CLASSIFICATION, BOTH, DUPLICATE, BACKGROUND, MISSED = range(6)
#: IoU from which a detection finds an object.
FOREGROUND = 0.5
#: IoU up to which a detection is background.
BACKGROUND_IOU = 0.1


@dataclass(frozen=True)
class ImageErrors:
    """Errors of a detector in one image.

    Attributes:
        matches (Matches): Which detection found which object.
        kind (np.ndarray): (D,) int64, index in :data:`KINDS`; -1 for true positives
            and those beyond the 100 best of a class. Detections that a crowd absorbs
            count neither way, but mending them counts, as in TIDE.
        gt (np.ndarray): (D,) int64, the object that a localization or classification
            error is nearest to; -1 for others.
        mends (np.ndarray): (D,) bool, whether mending the error finds that object: of
            the errors at an object that nothing has found, the one with the highest
            score.
        missed (np.ndarray): (G,) bool, objects that mending no detection would find.
    """

    matches: Matches
    kind: np.ndarray
    gt: np.ndarray
    mends: np.ndarray
    missed: np.ndarray


def classify_errors(found: Detections, truth: Objects) -> ImageErrors:
    """Find the kind of every error in one image.

    A detection that is no true positive is the first of these that holds. Its IoU with
    an object of its class is 0.1 to 0.5: localization. That with one of another class
    is 0.5 or more: classification. That with an object of its class, which a higher
    score has found, is 0.5 or more: duplicate. No IoU is above 0.1: background.
    Otherwise: both classification and localization are wrong. An object that no
    detection has found, nor would by mending the first two, is missed.

    Args:
        found (Detections): Highest score first.
        truth (Objects): The objects.

    Returns:
        ImageErrors: The errors.
    """
    ious = box_ious(found.boxes, truth.boxes, truth.crowd)
    matches = match_overlaps(
        ious, found.labels, found.scores, truth.labels, truth.crowd, FOREGROUND
    )
    at_crowd = (matches.det_gt >= 0) & matches.det_ignored
    wrong = matches.false_positives | at_crowd
    # a column of zeros stands for an image without objects
    ious = np.pad(np.where(truth.crowd, 0, ious), ((0, 0), (0, 1)))
    alike = found.labels[:, None] == np.append(truth.labels, -1)
    used = np.append(matches.gt_matched & ~truth.crowd, False)
    own, other = ious * alike, ious * ~alike
    nearest = own.max(axis=1)
    conditions = [
        (nearest >= BACKGROUND_IOU) & (nearest <= FOREGROUND),
        other.max(axis=1) >= FOREGROUND,
        (own * used).max(axis=1) >= FOREGROUND,
        ious.max(axis=1) <= BACKGROUND_IOU,
    ]
    codes = [LOCALIZATION, CLASSIFICATION, DUPLICATE, BACKGROUND]
    kind = np.where(wrong, np.select(conditions, codes, BOTH), -1)
    gt = np.select(
        [kind == LOCALIZATION, kind == CLASSIFICATION],
        [own.argmax(axis=1), other.argmax(axis=1)],
        -1,
    )
    # the first of the detections that point at an object has the highest score
    mends = np.zeros(len(kind), dtype=bool)
    pointing = np.flatnonzero((gt >= 0) & ~used[gt])
    wanted, first = np.unique(gt[pointing], return_index=True)
    mends[pointing[first]] = True
    missed = matches.false_negatives
    missed[wanted] = False
    return ImageErrors(matches, kind, gt, mends, missed)


@dataclass(frozen=True)
class ErrorEvaluation:
    """Errors of a detector on a data set of I images and K classes, D detections.

    Attributes:
        image (np.ndarray): (D,) int32, index of each detection's image.
        label (np.ndarray): (D,) int64.
        mended_label (np.ndarray): (D,) int64, that of the object it mends, or its own.
        score (np.ndarray): (D,) float64.
        kind (np.ndarray): (D,) int8, as in :class:`ImageErrors`.
        ignored (np.ndarray): (D,) bool, detections that count neither way.
        mends (np.ndarray): (D,) bool, as in :class:`ImageErrors`.
        objects (np.ndarray): (K, I) int32, number of objects.
        missed (np.ndarray): (K, I) int32, number of those that are missed.
    """

    image: np.ndarray
    label: np.ndarray
    mended_label: np.ndarray
    score: np.ndarray
    kind: np.ndarray
    ignored: np.ndarray
    mends: np.ndarray
    objects: np.ndarray
    missed: np.ndarray

    @classmethod
    def of(
        cls,
        objects: Mapping[object, Objects],
        detections: Mapping[object, Detections],
        num_classes: int,
    ) -> ErrorEvaluation:
        """Classify the errors of all images.

        Args:
            objects (Mapping[object, Objects]): By image id.
            detections (Mapping[object, Detections]): By image id.
            num_classes (int): Number of classes K.
        """
        shape = num_classes, len(objects)
        positives, missed = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        columns: dict[str, list[np.ndarray]] = {}
        for i, (image, truth) in enumerate(objects.items()):
            found = detections.get(image, NO_DETECTIONS)
            errors = classify_errors(found, truth)
            np.add.at(positives[:, i], truth.labels[~truth.crowd], 1)
            np.add.at(missed[:, i], truth.labels[errors.missed], 1)
            mended = np.append(truth.labels, -1)[np.where(errors.mends, errors.gt, -1)]
            each = dict(
                image=np.full(len(mended), i, np.int32),
                label=found.labels,
                mended_label=np.where(errors.mends, mended, found.labels),
                score=found.scores,
                kind=errors.kind.astype(np.int8),
                ignored=errors.matches.det_ignored,
                mends=errors.mends,
            )
            for key, values in each.items():
                columns.setdefault(key, []).append(values)
        joined = {key: np.concatenate(values) for key, values in columns.items()}
        return cls(**joined, objects=positives, missed=missed)

    def gains(self, weights: np.ndarray) -> np.ndarray:
        """AP50 that mending each kind of error gives, on weighted copies of the set.

        A localization or classification error becomes a true positive if it ``mends``,
        and is removed otherwise, like the other detections. Missed objects are removed.

        Args:
            weights (np.ndarray): (B, I) int, multiplicity of each image.

        Returns:
            np.ndarray: (B, len(KINDS)) float64.
        """
        weights = np.ascontiguousarray(weights, dtype=np.int32)
        copies = Copies(weights)
        plain = self._ap(weights, copies)
        mended = [self._ap(weights, copies, kind) for kind in range(6)]
        return np.stack(mended, axis=1) - plain[:, None]

    def ap50(self, weights: np.ndarray) -> np.ndarray:
        """(B,) float64, AP50 without any mending."""
        return self._ap(weights.astype(float), Copies(weights))

    def _ap(
        self, weights: np.ndarray, copies: Copies, kind: int | None = None
    ) -> np.ndarray:
        """AP50 with one kind of error mended."""
        affected = self.kind == (-2 if kind is None else kind)
        turned = affected & self.mends
        hit = ((self.kind < 0) | turned) & (turned | ~self.ignored)
        kept = np.flatnonzero(np.where(affected, turned, ~self.ignored))
        label = np.where(turned, self.mended_label, self.label)[kept]
        order = kept[np.lexsort((-self.score[kept], label))]
        starts = np.searchsorted(np.sort(label), np.arange(len(self.objects) + 1))
        positives = self.objects - self.missed if kind == MISSED else self.objects
        numbers = weights @ positives.T.astype(float)
        total, present = np.zeros(len(weights)), np.zeros(len(weights))
        for k, (low, high) in enumerate(zip(starts[:-1], starts[1:])):
            own = order[low:high]
            number = numbers[:, k]
            there = number > 0
            if kind == MISSED and len(own):
                # a class of false positives stays, with an AP of 0
                there |= (weights @ self.objects[k] > 0) & weights[
                    :, np.unique(self.image[own])
                ].any(axis=1)
            present += there
            total += average_precision(
                copies,
                self.image[own],
                hit[None, own],
                np.zeros((1, len(own)), dtype=bool),
                np.maximum(number, 1),
            )[:, 0]
        return total / np.where(present, present, np.nan)


def error_counts(errors: Sequence[ImageErrors]) -> np.ndarray:
    """(len(KINDS),) int64, number of errors of each kind in some images."""
    counts = np.zeros(len(KINDS), dtype=np.int64)
    for each in errors:
        kinds = each.kind[~each.matches.det_ignored & (each.kind >= 0)]
        counts += np.bincount(kinds, minlength=len(KINDS))
        counts[MISSED] += each.missed.sum()
    return counts
