"""Objects and detections of a data set, image by image, as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..datasets.coco_io import COCO


@dataclass(frozen=True)
class Objects:
    """The ground truth of one image.

    Attributes:
        boxes (np.ndarray): (G, 4) float64, x y width height in pixels.
        labels (np.ndarray): (G,) int64.
        crowd (np.ndarray): (G,) bool, which of them mark a crowd.
        areas (np.ndarray): (G,) float64, as annotated, in square pixels.
    """

    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray


@dataclass(frozen=True)
class Detections:
    """The detections of one image, highest score first.

    Attributes:
        boxes (np.ndarray): (D, 4) float64, x y width height in pixels.
        labels (np.ndarray): (D,) int64.
        scores (np.ndarray): (D,) float64.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray

    def above(self, score_thr: float) -> Detections:
        """Those that score at least ``score_thr``."""
        number = int((self.scores >= score_thr).sum())
        return Detections(
            self.boxes[:number], self.labels[:number], self.scores[:number]
        )


def objects_of(coco: COCO, category_ids: Sequence[int]) -> dict[object, Objects]:
    """The ground truth by image id, in the order of ``Evaluation``.

    Args:
        coco (COCO): The annotations.
        category_ids (Sequence[int]): The category of each label; others are left out.
    """
    labels = {category: label for label, category in enumerate(category_ids)}
    found = {}
    for image in sorted(coco.getImgIds()):
        own = [a for a in coco.imgToAnns[image] if a['category_id'] in labels]
        found[image] = Objects(
            boxes=np.array([a['bbox'] for a in own], float).reshape(-1, 4),
            labels=np.array([labels[a['category_id']] for a in own], dtype=np.int64),
            crowd=np.array([bool(a.get('iscrowd')) for a in own], dtype=bool),
            areas=np.array([a['area'] for a in own], float),
        )
    return found


def detections_of(samples: Sequence[Mapping]) -> dict[object, Detections]:
    """The detections by image id.

    Args:
        samples (Sequence[Mapping]): As
            :func:`~dlu_mmdet.evaluation.coco_results.coco_results` takes them.
    """
    found = {}
    for sample in samples:
        own = sample['pred_instances']
        boxes = own['bboxes'].numpy().astype(float)
        boxes[:, 2:] -= boxes[:, :2]
        scores = own['scores'].numpy().astype(float)
        order = np.argsort(-scores, kind='stable')
        labels = own['labels'].numpy().astype(np.int64)
        found[sample['img_id']] = Detections(boxes[order], labels[order], scores[order])
    return found


#: Of an image that a detector has no detection in.
NO_DETECTIONS = Detections(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0))
