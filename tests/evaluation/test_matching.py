"""True and false positives and negatives must be those that COCO's AP is made of."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dlu_mmdet.evaluation.matching import match_detections


def coco_from(images, categories, annotations):
    coco = COCO()
    coco.dataset = dict(
        images=[{'id': i} for i in images],
        categories=[{'id': c, 'name': str(c)} for c in categories],
        annotations=annotations,
    )
    coco.createIndex()
    return coco


def annotation(ident, image, bbox, label, **extra):
    x1, y1, x2, y2 = bbox.tolist()
    return dict(
        id=ident,
        image_id=int(image),
        category_id=int(label),
        bbox=[x1, y1, x2 - x1, y2 - y1],
        area=(x2 - x1) * (y2 - y1),
        **extra,
    )


def assert_same_as_coco(gts, dets, iou_thr):
    """Compare every image and class with COCOeval's own bookkeeping.

    ``gts`` maps an image to (bboxes, labels, crowd), ``dets`` to (bboxes,
    labels, scores). Ids are 1 + the index within the image, 0 is COCO's 'none'.
    Returns how many detections hit, failed and were ignored.
    """
    step = 100000
    gt_anns = [
        annotation(1 + i + image * step, image, box, label, iscrowd=int(crowd))
        for image, columns in gts.items()
        for i, (box, label, crowd) in enumerate(zip(*columns))
    ]
    det_anns = [
        annotation(1 + i + image * step, image, box, label, score=float(score))
        for image, columns in dets.items()
        for i, (box, label, score) in enumerate(zip(*columns))
    ]
    labels = {a['category_id'] for a in gt_anns + det_anns}
    evaluation = COCOeval(
        coco_from(gts, labels, gt_anns), coco_from(gts, labels, det_anns), 'bbox'
    )
    evaluation.params.iouThrs = np.array([iou_thr])
    evaluation.params.areaRng = evaluation.params.areaRng[:1]
    evaluation.params.areaRngLbl = ['all']
    evaluation.params.maxDets = [100]
    evaluation.evaluate()

    totals = np.zeros(3, dtype=int)
    for image in gts:
        gt_boxes, gt_labels, crowd = gts[image]
        match = match_detections(*dets[image], gt_boxes, gt_labels, crowd, iou_thr)
        totals += [
            match.true_positives.sum(),
            match.false_positives.sum(),
            match.det_ignored.sum(),
        ]
        expected_gt = np.full(len(dets[image][0]), -1)
        # beyond a class's 100 best COCO says nothing
        expected_ignored = np.ones(len(dets[image][0]), dtype=bool)
        expected_found = np.zeros(len(gt_boxes), dtype=bool)
        for entry in evaluation.evalImgs:
            if entry is None or entry['image_id'] != image:
                continue
            which = np.array(entry['dtIds'], dtype=int) - 1 - image * step
            matched = entry['dtMatches'][0].astype(int)
            expected_gt[which] = np.where(matched, matched - 1 - image * step, -1)
            expected_ignored[which] = entry['dtIgnore'][0].astype(bool)
            objects = np.array(entry['gtIds'], dtype=int) - 1 - image * step
            expected_found[objects] = entry['gtMatches'][0] > 0
            np.testing.assert_array_equal(
                match.gt_crowd[objects], np.array(entry['gtIgnore'], dtype=bool)
            )
        np.testing.assert_array_equal(match.det_gt, expected_gt)
        np.testing.assert_array_equal(match.det_ignored, expected_ignored)
        np.testing.assert_array_equal(match.gt_matched, expected_found)
        np.testing.assert_array_equal(match.false_negatives, ~expected_found & ~crowd)
    return totals


def random_boxes(rng, number, unit=4.0):
    # a coarse grid, so that overlaps tie and reach exactly 0.5
    corner = rng.integers(0, 5, (number, 2)) * unit
    return np.hstack([corner, corner + rng.integers(2, 6, (number, 2)) * unit])


# in units of 0.7 equal boxes have an IoU just beside 1
@pytest.mark.parametrize('iou_thr, unit', [(0.5, 4.0), (0.75, 4.0), (1.0, 0.7)])
def test_random_images_match_as_in_cocoeval(iou_thr, unit):
    """If it fails, the drawn boxes are not those behind the AP."""
    rng = np.random.default_rng(0)
    gts, dets = {}, {}
    for image in range(150):
        # every fifth image has no objects, every seventh no detections
        num_gts = 0 if image % 5 == 0 else rng.integers(1, 12)
        num_dets = 0 if image % 7 == 0 else rng.integers(1, 40)
        gts[image] = (
            random_boxes(rng, num_gts, unit),
            rng.integers(0, 3, num_gts),
            rng.random(num_gts) < 0.25,
        )
        # few distinct scores, so that ties are common
        dets[image] = (
            random_boxes(rng, num_dets, unit),
            rng.integers(0, 3, num_dets),
            rng.integers(1, 6, num_dets).astype(np.float32) / 5,
        )
    # enough of each kind for the comparison to mean something
    assert (assert_same_as_coco(gts, dets, iou_thr) > 5).all()


def test_more_than_a_hundred_detections_of_a_class():
    """If it fails, detections that COCO never judges count as false positives."""
    rng = np.random.default_rng(1)
    gts = {0: (random_boxes(rng, 5), np.zeros(5, int), np.zeros(5, bool))}
    dets = {0: (random_boxes(rng, 180), rng.integers(0, 2, 180), rng.random(180))}
    dets[0][1][:120] = 0
    assert_same_as_coco(gts, dets, 0.5)


@pytest.mark.skipif('COCO_ROOT' not in os.environ, reason='COCO_ROOT is not set')
def test_real_objects_match_as_in_cocoeval():
    """If it fails, real data breaks what made-up boxes do not."""
    path = Path(os.environ['COCO_ROOT']) / 'annotations' / 'instances_val2017.json'
    content = json.loads(path.read_text())
    rng = np.random.default_rng(2)
    gts, dets = {}, {}
    for image in [image['id'] for image in content['images']][:200]:
        objects = [a for a in content['annotations'] if a['image_id'] == image]
        boxes = np.array([a['bbox'] for a in objects], dtype=float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = np.array([a['category_id'] for a in objects], dtype=int)
        gts[image] = (boxes, labels, np.array([a['iscrowd'] for a in objects], bool))
        copies = np.repeat(np.arange(len(boxes)), 3)
        size = np.tile((boxes[:, 2:] - boxes[:, :2])[copies], 2)
        jittered = boxes[copies] + rng.normal(0, 0.12, size.shape) * size
        jittered[:, 2:] = np.maximum(jittered[:, 2:], jittered[:, :2] + 1)
        swapped = rng.random(len(copies)) < 0.1
        dets[image] = (
            jittered,
            np.where(swapped, labels[rng.permutation(copies)], labels[copies]),
            rng.random(len(copies)).astype(np.float32).round(1),
        )
    tp, fp, _ = assert_same_as_coco(gts, dets, 0.5)
    assert tp > 50 and fp > 50


def test_counts_of_a_scene_worked_out_by_hand():
    """If it fails, the numbers printed under the panels are wrong."""
    gt_boxes = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 80, 40]], float)
    det_boxes = np.array(
        [[0, 0, 10, 9], [0, 0, 10, 10], [20, 0, 30, 10], [50, 5, 60, 15]], float
    )
    match = match_detections(
        det_boxes,
        np.array([0, 0, 1, 0]),
        np.array([0.9, 0.8, 0.7, 0.6]),
        gt_boxes,
        np.array([0, 0, 0]),
        np.array([False, False, True]),
    )
    # the better box comes second, the third has another class, the last is in a crowd
    assert match.det_gt.tolist() == [0, -1, -1, 2]
    assert match.det_ignored.tolist() == [False, False, False, True]
    assert match.false_negatives.tolist() == [False, True, False]
    assert match.counts.tolist() == [1, 2, 1]


@pytest.mark.parametrize('iou_thr', [0, -0.5, 50])
def test_impossible_threshold_is_refused(iou_thr):
    """If it fails, a threshold given in percent quietly yields no true positives."""
    empty = np.zeros((0, 4)), np.zeros(0, int), np.zeros(0)
    with pytest.raises(ValueError, match='iou_thr'):
        match_detections(*empty, *empty, iou_thr=iou_thr)


def test_arrays_of_different_lengths_are_refused():
    """If it fails, labels shifted against boxes give a plausible wrong picture."""
    with pytest.raises(ValueError, match='det_labels'):
        match_detections(
            np.zeros((2, 4)), np.zeros(1, int), np.zeros(2), np.zeros((0, 4)), []
        )
