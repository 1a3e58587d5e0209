"""What the kept predictions of runs say."""

import json
import pickle
import re
import sys

import numpy as np
import pytest
from helpers.predictions import samples_of
from mmengine.config import Config
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dlu_mmdet.comparison import compare, plan, report, summary
from dlu_mmdet.comparison.collect import evaluate, read_predictions
from dlu_mmdet.comparison.details import details_of
from dlu_mmdet.comparison.runs import Run
from dlu_mmdet.datasets.shapes import CLASSES
from dlu_mmdet.evaluation.average_precision import METRICS, Evaluation
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


@pytest.fixture
def finished(runs, monkeypatch):
    """The same with the files of a finished run; necks are not timed."""
    for run in runs:
        evaluation = evaluate(run.cfg, read_predictions(run.predictions, len(CLASSES)))
        evaluation.save(run.matches_file)
        known = dict(config='x', upsampler=run.name, seed=0, loss=[[1, 1.0]])
        known.update(evaluation.score(), validation=[], mask_AP=0.123)
        run.result_file.write_text(json.dumps(known))
    costs = summary.Costs(1, 2, 3, 4, [7, 8], 'this', 5.0, 6.0)
    monkeypatch.setattr(
        summary, 'measure_costs', lambda runs, **_: {run.name: costs for run in runs}
    )
    return runs


def scores_of(run, evaluator=COCOeval, kind='segm', load=COCO):
    """All six numbers of a run's result JSON by another package."""
    truth = load(run.cfg.test_evaluator.ann_file)
    found = truth.loadRes(str(result_files(run.predictions)['segm']))
    scored = evaluator(truth, found, kind)
    scored.evaluate()
    scored.accumulate()
    scored.summarize()
    return {key: v for key, v in zip(METRICS, scored.stats[:6]) if v >= 0}


def test_masks_are_scored_with_differences(runs, finished):
    details = details_of(runs, 'old')
    for run in runs:
        means = details.masks.means[run.name]
        assert means == pytest.approx(scores_of(run), abs=1e-12) and means['AP'] > 0
        # mmdet's log has three digits
        assert run.result.content['mask_AP'] == means['AP']
    found = details.masks.differences['new']['AP']
    means = details.masks.means
    assert found.difference == pytest.approx(means['new']['AP'] - means['old']['AP'])
    assert {'errors', 'sizes', 'masks'} == {*details.to_json()}


@pytest.mark.parametrize('metric', ['segm', 'boundary'])
def test_a_comparison_of_mask_or_boundary_ap(finished, tmp_path, metric):
    expected = {}
    if metric == 'boundary':
        theirs = pytest.importorskip('faster_coco_eval')
        for run in finished:
            parts = theirs.COCOeval_faster, 'boundary', theirs.COCO
            expected[run.name] = scores_of(run, *parts)
    else:
        expected = {run.name: scores_of(run) for run in finished}
    label = dict(segm='mask', boundary='boundary')[metric]
    others = dict(segm=['boxes'], boundary=['boxes', 'masks'])[metric]
    # a joined comparison stays as it is
    before = finished[0].result_file.read_text()
    summary.summarize(finished, 'old', metric=metric, joined=True)
    assert finished[0].result_file.read_text() == before
    assert not finished[0].matches_of(metric).exists()
    found = summary.summarize(finished, 'old', metric=metric)
    by_name = {run.name: run for run in finished}
    for row in found.rows:
        run = by_name[row.name]
        own = {key: row.scores[key].mean for key in METRICS}
        own = {key: value for key, value in own.items() if value is not None}
        assert own == pytest.approx(expected[row.name], abs=1e-12)
        assert run.result.content[f'{label}_AP'] == own['AP'] != run.result.scores['AP']
    gain = expected['new']['AP'] - expected['old']['AP']
    assert found.differences['new']['AP'].difference == pytest.approx(gain)
    assert found.metric == found.to_json()['metric'] == metric
    assert {*others} == {*found.to_json()} & {'boxes', 'masks'}
    boxes = finished[0].result.scores['AP']
    assert found.details.boxes.means['old']['AP'] == pytest.approx(boxes)
    summary.save(found, tmp_path)
    text = (tmp_path / 'comparison.md').read_text()
    assert f'has the highest mean {label} AP, ' in text and f'| {label} AP |' in re.sub(
        ' +', ' ', text
    )
    assert f'{label} AP is the primary metric' in text
    assert 'metric,name,' in (tmp_path / 'comparison.csv').read_text()
    page = report.save(found, tmp_path).read_text()
    assert f'Best mean {label} AP' in page and '<h2>Boxes</h2>' in page
    # the matches are kept: predictions may go
    kept = Evaluation.load(finished[0].matches_of(metric)).score()
    for run in finished:
        run.predictions.unlink()
        run.cfg.test_evaluator.ann_file = 'gone.json'
    again = summary.summarize(finished, 'old', metric=metric)
    assert again.details is None and kept['AP'] == pytest.approx(expected['old']['AP'])


def test_a_metric_of_masks_is_refused_without_them(finished, monkeypatch):
    file = finished[0].cfg.test_evaluator.ann_file
    with open(file) as opened:
        content = json.load(opened)
    bare = finished[0].work_dir / 'val.json'
    for each in content['annotations']:
        del each['segmentation']
    bare.write_text(json.dumps(content))
    finished[0].cfg.test_evaluator.ann_file = str(bare)
    with pytest.raises(ValueError, match='--metric segm needs objects with a segm'):
        summary.summarize(finished, 'old', metric='segm')
    finished[0].cfg.test_evaluator.ann_file = file
    samples = read_predictions(finished[1].predictions, len(CLASSES))
    for sample in samples:
        del sample['pred_instances']['masks']
    finished[1].predictions.write_bytes(pickle.dumps(samples))
    with pytest.raises(
        ValueError, match=r'new/predictions\.pkl has boxes alone; leave'
    ):
        summary.summarize(finished, 'old', metric='segm')
    # before a training, by what will be scored
    with pytest.raises(ValueError, match='x: no test_evaluator scores masks; leave'):
        plan.check_masks(finished[0])
    finished[0].cfg.test_evaluator.metric = ['bbox', 'segm']
    plan.check_masks(finished[0])
    with pytest.raises(ValueError, match="--metric must be one of bbox, .*got 'mask'"):
        compare.check_metric('mask')
    monkeypatch.setitem(sys.modules, 'faster_coco_eval.core.mask', None)
    with pytest.raises(ValueError, match='boundary needs faster-coco-eval .*pip inst'):
        compare.check_metric('boundary')


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
