"""COCO result JSON: as MMDetection writes it, and as pycocotools scores it."""

import json
import pickle

import numpy as np
import pytest
from helpers.predictions import samples_of
from mmdet.evaluation import CocoMetric
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dlu_mmdet.datasets.shapes import CLASSES
from dlu_mmdet.evaluation.coco_results import DumpResults, result_files


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
        if key == 'segm':
            # mmdet too leaves out boxes when it scores masks
            expected = [{k: v for k, v in e.items() if k != 'bbox'} for e in expected]
        assert json.loads(file.read_text()) == expected
        scored = COCOeval(coco, coco.loadRes(str(file)), key)
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
        assert round(scored.stats[0], 3) == scores[f'coco/{key}_mAP'] > 0.01
        for index, end in ((3, 's'), (4, 'm')):
            assert round(scored.stats[index], 3) == scores[f'coco/{key}_mAP_{end}']
    assert len(pickle.loads((tmp_path / 'ours.pkl').read_bytes())) == len(samples)
    # RLEs are whole: the first mask is that of the first prediction
    first = json.loads(files['segm'].read_text())[0]['segmentation']
    assert mask_utils.area(dict(first, counts=first['counts'].encode())) > 0
