"""COCO result JSON: as MMDetection writes it, and as pycocotools scores it."""

import json
import pickle

import numpy as np
import pytest
import torch
from mmdet.evaluation import CocoMetric
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dlu_mmdet.datasets.shapes import CLASSES
from dlu_mmdet.evaluation.coco_results import DumpResults, result_files


def samples_of(coco, rng, mask_scores=False):
    """Predictions near the objects, as a test loop hands them to metrics."""
    for image in coco.imgs.values():
        objects = coco.loadAnns(coco.getAnnIds(image['id']))
        boxes = np.array([each['bbox'] for each in objects]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        masks = np.zeros((len(boxes), image['height'], image['width']), bool)
        for mask, box in zip(masks, boxes.astype(int)):
            mask[box[1] : box[3], box[0] : box[2]] = True
        boxes = boxes + rng.normal(0, 3, boxes.shape)
        found = dict(
            bboxes=torch.tensor(boxes, dtype=torch.float32),
            scores=torch.tensor(rng.random(len(boxes)), dtype=torch.float32),
            labels=torch.tensor([each['category_id'] - 1 for each in objects]).long(),
            masks=torch.tensor(masks),
        )
        if mask_scores:
            found['mask_scores'] = found['scores'] / 2
        yield dict(
            img_id=image['id'],
            ori_shape=(image['height'], image['width']),
            pred_instances=found,
        )


@pytest.mark.parametrize('mask_scores', [False, True])
def test_the_files_are_those_of_mmdet_and_score_the_same(
    shapes_root, tmp_path, mask_scores
):
    annotations = str(shapes_root / 'annotations' / 'instances_val.json')
    coco = COCO(annotations)
    samples = [*samples_of(coco, np.random.default_rng(0), mask_scores)]
    theirs = CocoMetric(
        annotations, metric=['bbox', 'segm'], outfile_prefix=str(tmp_path / 'theirs')
    )
    theirs.dataset_meta = dict(classes=CLASSES)
    ours = DumpResults(str(tmp_path / 'ours.pkl'), annotations, CLASSES)
    theirs.process({}, samples)
    scores = theirs.evaluate(len(samples))
    ours.process({}, samples)
    ours.evaluate(len(samples))
    files = result_files(tmp_path / 'ours.pkl')
    for key, file in files.items():
        expected = json.loads((tmp_path / f'theirs.{key}.json').read_text())
        assert json.loads(file.read_text()) == expected
        scored = COCOeval(coco, coco.loadRes(str(file)), key)
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
        assert round(scored.stats[0], 3) == scores[f'coco/{key}_mAP'] > 0.01
    assert len(pickle.loads((tmp_path / 'ours.pkl').read_bytes())) == len(samples)
    # RLEs are whole: the first mask is that of the first prediction
    first = json.loads(files['segm'].read_text())[0]['segmentation']
    assert mask_utils.area(dict(first, counts=first['counts'].encode())) > 0
