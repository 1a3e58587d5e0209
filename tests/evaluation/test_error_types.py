"""Kinds of error: by hand, and as TIDE finds them on real objects."""

import os
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from dlu_mmdet.datasets.coco_io import COCO
from dlu_mmdet.evaluation import average_precision
from dlu_mmdet.evaluation.error_types import (
    KINDS,
    ErrorEvaluation,
    classify_errors,
    error_counts,
)
from dlu_mmdet.evaluation.instances import Detections, Objects, objects_of


def objects(*boxes):
    """Objects of (x, y, width, height, label, crowd)."""
    rows = np.array(boxes, float).reshape(-1, 6)
    return Objects(
        rows[:, :4], rows[:, 4].astype(int), rows[:, 5] > 0, rows[:, 2] * rows[:, 3]
    )


def detections(*boxes):
    """Detections of (x, y, width, height, label, score), highest score first."""
    rows = np.array(boxes, float).reshape(-1, 6)
    return Detections(rows[:, :4], rows[:, 4].astype(int), rows[:, 5])


def test_each_kind_by_hand():
    truth = objects(
        *[(0, 0, 20, 20, 0, 0), (50, 0, 20, 20, 1, 0), (100, 0, 20, 20, 0, 0)],
        *[(150, 0, 20, 20, 0, 0), (0, 100, 90, 90, 0, 1)],
    )
    found = detections(
        (0, 0, 20, 20, 0, 0.9),  # found
        (1, 0, 20, 20, 0, 0.8),  # again
        (50, 0, 20, 20, 0, 0.7),  # of another class
        (110, 0, 20, 20, 0, 0.6),  # IoU 1/3
        (109, 0, 20, 20, 0, 0.5),  # the same with a lower score: does not mend
        (60, 0, 20, 20, 0, 0.4),  # another class and IoU 1/3
        (200, 0, 20, 20, 0, 0.3),  # nothing there
        (10, 110, 20, 20, 0, 0.2),  # in a crowd: counts neither way
    )
    errors = classify_errors(found, truth)
    expected = [None, 'duplicate', 'classification', 'localization', 'localization']
    expected += ['both', 'background', 'background']
    assert [KINDS[k] if k >= 0 else None for k in errors.kind] == expected
    assert errors.matches.det_ignored.tolist() == [False] * 7 + [True]
    assert errors.mends.tolist() == [False, False, True, True] + [False] * 4
    assert errors.gt[[2, 3, 4]].tolist() == [1, 2, 2]
    assert errors.missed.tolist() == [False, False, False, True, False]
    # localization, classification, both, duplicate, background, missed
    assert error_counts([errors]).tolist() == [2, 1, 1, 1, 1, 1]


def test_images_without_objects_or_detections():
    errors = classify_errors(detections((0, 0, 9, 9, 0, 0.5)), objects())
    assert KINDS[errors.kind[0]] == 'background'
    errors = classify_errors(detections(), objects((0, 0, 9, 9, 0, 0)))
    assert errors.missed.tolist() == [True] and not len(errors.kind)
    found = ErrorEvaluation.of({1: objects((0, 0, 9, 9, 0, 0))}, {}, 2)
    assert found.ap50(np.ones((1, 1), int)).tolist() == [0.0]
    # without its only object there is no class to score
    assert np.isnan(found.gains(np.ones((1, 1), int))[0, KINDS.index('missed')])


def test_mending_on_repeated_images_equals_a_set_that_repeats_them():
    rng = np.random.default_rng(0)
    truth, found = {}, {}
    for i in range(12):
        boxes = np.c_[rng.uniform(0, 80, (4, 2)), np.full((4, 2), 20.0)]
        labels = rng.integers(0, 2, 4)
        truth[i] = objects(*np.c_[boxes, labels, np.zeros(4)])
        moved = boxes + rng.normal(0, 4, boxes.shape) * [1, 1, 0, 0]
        scores = np.sort(rng.random(4))[::-1]
        found[i] = detections(*np.c_[moved, rng.integers(0, 2, 4), scores])
    counts = rng.integers(0, 3, 12)
    copies = [i for i in range(12) for _ in range(counts[i])]
    repeated = ErrorEvaluation.of(
        dict(enumerate(truth[i] for i in copies)),
        dict(enumerate(found[i] for i in copies)),
        2,
    )
    whole = ErrorEvaluation.of(truth, found, 2)
    np.testing.assert_allclose(
        whole.gains(counts[None]),
        repeated.gains(np.ones((1, len(copies)), int)),
        atol=1e-12,
    )


def jittered(coco, rng, categories):
    """Detections that are shifted, doubled, of another class, or of nothing."""
    found = []
    for image in sorted(coco.imgs):
        for each in coco.imgToAnns[image]:
            x, y, w, h = each['bbox']
            for _ in range(rng.integers(0, 4)):
                s = rng.choice([0.03, 0.1, 0.3])
                dx, dy, dw, dh = rng.normal(0, s, 4)
                box = [x + dx * w, y + dy * h, w * np.exp(dw), h * np.exp(dh)]
                same = rng.random() < 0.8
                category = each['category_id'] if same else rng.choice(categories)
                found.append((image, int(category), box, float(rng.random())))
        for _ in range(rng.integers(0, 4)):
            box = [*rng.uniform(0, 200, 2), *rng.uniform(10, 100, 2)]
            category = int(rng.choice(categories))
            found.append((image, category, box, float(rng.random())))
    return found


REAL = [*ROOT.glob('data/*/annotations/instances_val.json')]
if 'COCO_ROOT' in os.environ:
    REAL.append(Path(os.environ['COCO_ROOT'], 'annotations/instances_val2017.json'))


@pytest.mark.skipif(not REAL, reason='COCO_ROOT is not set and data/ has no data set')
@pytest.mark.parametrize('file', REAL, ids=lambda file: file.parts[-3])
def test_errors_of_real_objects_are_those_of_tide(file, monkeypatch):
    """To the last digit, once recall is sampled where TIDE does it.

    TIDE's 0.07 is 7 / 100. pycocotools' 0.07 is a step of linspace, 0.07 + 1e-17.
    """
    tidecv = pytest.importorskip('tidecv', reason='tidecv is not installed')
    recalls = np.arange(101) / 100
    monkeypatch.setattr(average_precision, 'RECALLS', recalls)
    coco = COCO(str(file))
    ids = sorted(coco.cats)
    # TIDE averages over classes that have detections and no object, COCO does not
    used = sorted({a['category_id'] for a in coco.anns.values() if not a['iscrowd']})
    found = jittered(coco, np.random.default_rng(0), used)
    truth, theirs = tidecv.Data('truth'), tidecv.Data('found')
    for image in sorted(coco.imgs):
        truth.add_image(image, str(image))
        for each in coco.imgToAnns[image]:
            add = truth.add_ground_truth
            if each['iscrowd']:
                add = truth.add_ignore_region
            add(image, each['category_id'], each['bbox'])
    for image, category, box, score in found:
        theirs.add_detection(image, category, score, box)
    run = tidecv.TIDE().evaluate(truth, theirs, mode=tidecv.TIDE.BOX)
    found = {
        image: detections(
            *sorted(
                ((*box, ids.index(c), s) for i, c, box, s in found if i == image),
                key=lambda row: -row[-1],
            )
        )
        for image in coco.imgs
    }
    truth = objects_of(coco, ids)
    ours = ErrorEvaluation.of(truth, found, len(ids))
    once = np.ones((1, len(coco.imgs)), int)
    assert 100 * ours.ap50(once)[0] == pytest.approx(run.ap, abs=1e-9)
    names = dict(zip(('Loc', 'Cls', 'Both', 'Dupe', 'Bkg', 'Miss'), range(6)))
    counts = error_counts([classify_errors(found[i], truth[i]) for i in truth])
    gains = 100 * ours.gains(once)[0]
    for error, gain in run.fix_main_errors().items():
        number = names[error.short_name]
        assert gains[number] == pytest.approx(gain, abs=1e-9), error.short_name
    for error, count in run.count_errors().items():
        # TIDE counts what a crowd absorbs as well
        if not any(each.crowd.any() for each in truth.values()):
            assert counts[names[error.short_name]] == count
