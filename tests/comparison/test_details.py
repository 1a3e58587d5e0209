"""What the kept predictions of runs say."""

import numpy as np
import pytest
from helpers.predictions import samples_of
from mmengine.config import Config
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dlu_mmdet.comparison.details import details_of
from dlu_mmdet.comparison.runs import Run
from dlu_mmdet.datasets.shapes import CLASSES
from dlu_mmdet.evaluation.average_precision import METRICS
from dlu_mmdet.evaluation.coco_results import DumpResults, result_files


@pytest.fixture
def runs(shapes_root, tmp_path):
    """Two runs of a detector with masks."""
    file = str(shapes_root / 'annotations' / 'instances_val.json')
    dataset = dict(type='CocoDataset', data_root=str(shapes_root), pipeline=[])
    dataset.update(ann_file='annotations/instances_val.json')
    dataset.update(metainfo=dict(classes=CLASSES), data_prefix=dict(img='val/'))
    cfg = Config(
        dict(
            model=dict(type='MaskRCNN'),
            test_dataloader=dict(dataset=dataset),
            test_evaluator=dict(type='CocoMetric', ann_file=file),
        )
    )
    made = []
    for seed, name in enumerate(('old', 'new')):
        run = Run(name, 'x', 'x', cfg, 0, tmp_path / name)
        run.work_dir.mkdir()
        metric = DumpResults(str(run.predictions), file, CLASSES)
        metric.process({}, [*samples_of(COCO(file), np.random.default_rng(seed))])
        metric.evaluate(8)
        made.append(run)
    return made


def test_masks_are_scored_with_differences(runs):
    details = details_of(runs, 'old')
    truth = COCO(runs[0].cfg.test_evaluator.ann_file)
    for run in runs:
        file = str(result_files(run.predictions)['segm'])
        scored = COCOeval(truth, truth.loadRes(file), 'segm')
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
        means = details.masks.means[run.name]
        expected = dict(zip(METRICS, scored.stats[:6]))
        for key, value in means.items():
            assert value == pytest.approx(expected[key], abs=1e-12), key
        assert means['AP'] > 0
    found = details.masks.differences['new']['AP']
    means = details.masks.means
    assert found.difference == pytest.approx(means['new']['AP'] - means['old']['AP'])
    assert {'errors', 'sizes', 'masks'} == {*details.to_json()}


def test_result_json_of_earlier_runs_is_added(runs):
    files = [*result_files(runs[0].predictions).values()]
    contents = [file.read_bytes() for file in files]
    for file in files:
        file.unlink()
    details_of(runs, 'old', add_results=False)
    assert not files[0].exists()
    details_of(runs, 'old')
    assert [file.read_bytes() for file in files] == contents


def test_runs_without_predictions_are_named_and_left_out(runs):
    content = runs[1].predictions.read_bytes()
    for make, reason in (
        (lambda path: path.unlink(), 'is not there; copy it from where'),
        (lambda path: path.write_bytes(content[:-100]), 'is cut off'),
    ):
        make(runs[1].predictions)
        details = details_of(runs, 'old')
        assert [*details.errors.means] == ['old'] and not details.errors.differences
        assert details.lost.startswith('1 of 2 runs are left out of errors, sizes')
        assert reason in details.lost and str(runs[1].predictions) in details.lost
    # there is nothing to compare with
    with pytest.raises(RuntimeError, match='is cut off'):
        details_of(runs, 'new')
