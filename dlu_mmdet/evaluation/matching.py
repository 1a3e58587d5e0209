"""Match detections to ground truth by the rules of COCO's evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from pycocotools import mask as mask_utils

# COCO judges no more than this many detections of a class in one image
MAX_DETECTIONS = 100


@dataclass(frozen=True)
class Matches:
    """Matches of detections and objects in one image at one IoU threshold.

    Attributes:
        det_gt (np.ndarray): (D,) int64, index of the ground truth that each
            detection was matched to, -1 if to none.
        det_ignored (np.ndarray): (D,) bool, detections that count neither way:
            absorbed by a crowd, or beyond the 100 best of their class.
        gt_matched (np.ndarray): (G,) bool, ground truths that were found.
        gt_crowd (np.ndarray): (G,) bool, ground truths that mark a crowd.
    """

    det_gt: np.ndarray
    det_ignored: np.ndarray
    gt_matched: np.ndarray
    gt_crowd: np.ndarray

    @property
    def true_positives(self) -> np.ndarray:
        """(D,) bool, detections matched to an object."""
        return (self.det_gt >= 0) & ~self.det_ignored

    @property
    def false_positives(self) -> np.ndarray:
        """(D,) bool, detections matched to none."""
        return (self.det_gt < 0) & ~self.det_ignored

    @property
    def false_negatives(self) -> np.ndarray:
        """(G,) bool, objects not found; a crowd does not count."""
        return ~self.gt_matched & ~self.gt_crowd

    @property
    def counts(self) -> np.ndarray:
        """(3,) int64: numbers of TP, FP and FN."""
        kinds = self.true_positives, self.false_positives, self.false_negatives
        return np.array([kind.sum() for kind in kinds], dtype=np.int64)


def match_detections(
    det_bboxes: np.ndarray,
    det_labels: np.ndarray,
    det_scores: np.ndarray,
    gt_bboxes: np.ndarray,
    gt_labels: np.ndarray,
    gt_crowd: np.ndarray | None = None,
    iou_thr: float = 0.5,
) -> Matches:
    """Match the detections of one image to its ground truth.

    Detections choose in order of descending score, equal scores in the order
    given. Each takes the free ground truth of its class that it overlaps most,
    if the IoU reaches ``iou_thr``; failing that, a crowd, which any number of
    detections may share and where the overlap is intersection over the
    detection's own area. These are the rules of ``pycocotools``' ``COCOeval``
    for all areas and 100 detections per class.

    Args:
        det_bboxes (np.ndarray): (D, 4) float, x1 y1 x2 y2 in pixels.
        det_labels (np.ndarray): (D,) int, classes.
        det_scores (np.ndarray): (D,) float, confidences.
        gt_bboxes (np.ndarray): (G, 4) float, x1 y1 x2 y2 in pixels.
        gt_labels (np.ndarray): (G,) int, classes.
        gt_crowd (np.ndarray, optional): (G,) bool, which ground truths mark a
            crowd. None means that none does.
        iou_thr (float): Smallest IoU that counts as found, in (0, 1].

    Returns:
        Matches: What became of each detection and each ground truth.

    Raises:
        ValueError: If ``iou_thr`` is outside (0, 1], or arrays that belong
            together differ in length.
    """
    if not 0 < iou_thr <= 1:
        raise ValueError(
            f'iou_thr must be above 0 and at most 1, got {iou_thr!r}; '
            'COCO uses 0.5 to 0.95'
        )
    if gt_crowd is None:
        gt_crowd = np.zeros(len(gt_bboxes), dtype=bool)
    dets = _xywh('det_bboxes', det_bboxes, det_labels=det_labels, det_scores=det_scores)
    gts = _xywh('gt_bboxes', gt_bboxes, gt_labels=gt_labels, gt_crowd=gt_crowd)
    gt_labels = np.asarray(gt_labels)
    gt_crowd = np.asarray(gt_crowd, dtype=bool)

    return match_overlaps(
        box_ious(dets, gts, gt_crowd),
        np.asarray(det_labels),
        np.asarray(det_scores, dtype=float),
        gt_labels,
        gt_crowd,
        iou_thr,
    )


def box_ious(dets: np.ndarray, gts: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """(D, G) IoU of boxes x y width height; of a crowd over the detection's area."""
    if len(dets) and len(gts):
        return mask_utils.iou(dets, gts, crowd.astype(np.uint8))
    # pycocotools returns an empty list here, which cannot be indexed
    return np.zeros((len(dets), len(gts)))


def match_overlaps(
    ious: np.ndarray,
    det_labels: np.ndarray,
    det_scores: np.ndarray,
    gt_labels: np.ndarray,
    gt_crowd: np.ndarray,
    iou_thr: float,
) -> Matches:
    """:func:`match_detections` with the (D, G) overlaps of :func:`box_ious`."""
    det_gt = np.full(len(det_labels), -1, dtype=np.int64)
    det_ignored = np.zeros(len(det_labels), dtype=bool)
    gt_matched = np.zeros(len(gt_labels), dtype=bool)
    order = np.argsort(-det_scores, kind='stable')
    if len(order) > MAX_DETECTIONS:
        for label in np.unique(det_labels):
            det_ignored[order[det_labels[order] == label][MAX_DETECTIONS:]] = True
    # COCO's own cap, or rounding could keep equal boxes apart at iou_thr 1
    near = (ious >= min(iou_thr, 1 - 1e-10)) & (det_labels[:, None] == gt_labels)
    for det in order[near.any(axis=1)[order] & ~det_ignored[order]]:
        reachable = near[det]
        free = reachable & ~gt_matched & ~gt_crowd
        candidates = np.flatnonzero(free if free.any() else reachable & gt_crowd)
        if len(candidates):
            # of equal overlaps COCO takes the last
            gt = candidates[::-1][np.argmax(ious[det, candidates[::-1]])]
            det_gt[det] = gt
            det_ignored[det] = gt_crowd[gt]
            gt_matched[gt] = True
    return Matches(det_gt, det_ignored, gt_matched, gt_crowd)


def disagreement(matches: Sequence[Matches]) -> tuple[int, int]:
    """How far the two most different detectors disagree on one image.

    Args:
        matches (Sequence[Matches]): Matches of at least two detectors to the
            same ground truth.

    Returns:
        tuple[int, int]: Number of objects that one found and the other did not, then
        the difference of their numbers of false positives. The order of these tuples
        ranks images by disagreement.

    Raises:
        ValueError: If there are fewer than two.
    """
    if len(matches) < 2:
        raise ValueError(
            f'matches must be those of at least two detectors, got {len(matches)}'
        )
    return max(
        (
            int((one.false_negatives != other.false_negatives).sum()),
            int(abs(one.false_positives.sum() - other.false_positives.sum())),
        )
        for one, other in combinations(matches, 2)
    )


def _xywh(name: str, bboxes: np.ndarray, **companions: np.ndarray) -> np.ndarray:
    """Turn x1 y1 x2 y2 into COCO's x y width height, in float64."""
    for other, values in companions.items():
        if len(values) != len(bboxes):
            raise ValueError(
                f'{other} must have one entry per row of {name}, '
                f'got {len(values)} for {len(bboxes)}'
            )
    bboxes = np.array(bboxes, dtype=np.float64).reshape(len(bboxes), 4)
    bboxes[:, 2:] -= bboxes[:, :2]
    return bboxes
