"""AP by octaves of object size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .average_precision import Evaluation
from .instances import NO_DETECTIONS, Detections, Objects
from .matching import MAX_DETECTIONS, box_ious

THRESHOLDS = np.linspace(0.5, 0.95, 10)


@dataclass(frozen=True)
class Octaves:
    """Ranges of size that double, and how size is measured.

    Attributes:
        names (Sequence[str]): A names, smallest first.
        edges (np.ndarray): (A - 1,) float64, where each range but the first begins.
        scales (Mapping[object, float]): By image id, what the square root of an area
            in pixels is multiplied by.
        annotated (bool): Whether the area of an object is the annotated one, as for
            COCO's APs, or that of its box.
    """

    names: Sequence[str]
    edges: np.ndarray
    scales: Mapping[object, float]
    annotated: bool

    def of(self, image: object, areas: np.ndarray) -> np.ndarray:
        """The index of the range of each area in an image."""
        return np.searchsorted(self.edges, areas**0.5 * self.scales[image], 'right')


def evaluate_sizes(
    objects: Mapping[object, Objects],
    detections: Mapping[object, Detections],
    num_classes: int,
    octaves: Sequence[Octaves],
) -> Evaluation:
    """Match detections as pycocotools does, for other ranges of size than its own.

    Objects of another range are ignored, like a crowd that is matched once, and so are
    detections of another range that match no object.

    Args:
        objects (Mapping[object, Objects]): By image id.
        detections (Mapping[object, Detections]): By image id.
        num_classes (int): Number of classes.
        octaves (Sequence[Octaves]): Each divides the objects in its own way.

    Returns:
        Evaluation: With an area for every range, one division after the other.
    """
    total = sum(len(each.names) for each in octaves)
    positives = np.zeros((total, num_classes, len(objects)), np.int32)
    columns: dict[str, list[np.ndarray]] = {}
    for i, (image, truth) in enumerate(objects.items()):
        found = detections.get(image, NO_DETECTIONS)
        boxes = truth.boxes[:, 2] * truth.boxes[:, 3]
        areas = found.boxes[:, 2] * found.boxes[:, 3]
        counted = np.concatenate(
            [
                _members(each, image, truth.areas if each.annotated else boxes)
                for each in octaves
            ]
        )
        counted &= ~truth.crowd
        seen = np.concatenate([_members(each, image, areas) for each in octaves])
        ranges, members = np.nonzero(counted)
        np.add.at(positives, (ranges, truth.labels[members], i), 1)
        hit, ignored, kept = _match(found, truth, counted, seen)
        each = dict(
            image=np.full(len(kept), i, np.int32),
            label=found.labels[kept],
            score=found.scores[kept],
            hit=hit,
            ignored=ignored,
        )
        for key, values in each.items():
            columns.setdefault(key, []).append(values)
    joined = {key: np.concatenate(values, axis=-1) for key, values in columns.items()}
    order = np.lexsort((-joined['score'], joined['label']))
    label = joined['label'][order]
    return Evaluation(
        start=np.searchsorted(label, np.arange(num_classes + 1)),
        image=joined['image'][order],
        hit=joined['hit'][..., order],
        ignored=joined['ignored'][..., order],
        objects=positives,
    )


def _members(octaves: Octaves, image: object, areas: np.ndarray) -> np.ndarray:
    """(A, N) bool, which area is in which range."""
    return octaves.of(image, areas) == np.arange(len(octaves.names))[:, None]


def _match(
    found: Detections, truth: Objects, counted: np.ndarray, seen: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Match one image.

    Args:
        found (Detections): Highest score first.
        truth (Objects): The objects.
        counted (np.ndarray): (A, G) bool, objects that count in each range.
        seen (np.ndarray): (A, D) bool, detections in each range.

    Returns:
        tuple[np.ndarray, np.ndarray, np.ndarray]: (A, T, D') bool, true positives and
        ignored detections; (D',) int64, the detections that are among the 100 best of
        their class.
    """
    kept = np.arange(len(found.labels))
    if len(kept) > MAX_DETECTIONS:
        best = [kept[found.labels == k][:MAX_DETECTIONS] for k in set(found.labels)]
        kept = np.sort(np.concatenate(best))
    shape = len(counted), len(THRESHOLDS), len(kept)
    hit = np.zeros(shape, bool)
    ignored = np.broadcast_to(~seen[:, None, kept], shape).copy()
    ious = box_ious(found.boxes[kept], truth.boxes, truth.crowd)
    ious = np.where(found.labels[kept, None] == truth.labels, ious, 0)
    free = np.ones((*shape[:2], len(truth.labels)), bool)
    for d in np.flatnonzero((ious >= THRESHOLDS[0]).any(axis=1)):
        near = np.flatnonzero(ious[d] >= THRESHOLDS[0])
        # of equal overlaps COCO takes the last
        near = near[::-1][np.argsort(-ious[d, near[::-1]], kind='stable')]
        reached = (ious[d, near] >= THRESHOLDS[:, None]) & (
            free[..., near] | truth.crowd[near]
        )
        first = reached & counted[:, None, near]
        chosen = first.any(axis=2)
        # an object that does not count only where no other is free
        reached = np.where(chosen[..., None], first, reached)
        matched = reached.any(axis=2)
        hit[..., d] = chosen
        ignored[..., d] = np.where(matched, ~chosen, ignored[..., d])
        a, t = np.nonzero(matched)
        free[a, t, near[reached.argmax(axis=2)[a, t]]] = False
    return hit, ignored, kept
