"""AP by octaves of size, as pycocotools finds it with these ranges."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.cocoeval import COCOeval

from dlu_mmdet.datasets.coco_io import COCO
from dlu_mmdet.evaluation.instances import Detections, objects_of
from dlu_mmdet.evaluation.sizes import Octaves, evaluate_sizes

EDGES = np.array([20.5, 40.5, 80.5])


def scenes(rng, many=False):
    """Objects of many sizes with crowds, and detections near them."""
    coco, found = COCO(), []
    images = [dict(id=i, file_name=str(i), width=400, height=400) for i in range(20)]
    categories = [dict(id=c, name=str(c)) for c in (1, 2)]
    coco.dataset = dict(info={}, images=images, categories=categories, annotations=[])
    for i in range(20):
        for _ in range(rng.integers(0, 8)):
            w, h = np.exp(rng.uniform(2, 5, 2))
            box = [*rng.uniform(0, 200, 2), w, h]
            category = int(rng.integers(1, 3))
            number = len(coco.dataset['annotations']) + 1
            each = dict(id=number, image_id=i, category_id=category, bbox=box)
            # the mask is smaller than the box
            each.update(area=0.6 * w * h, iscrowd=int(rng.random() < 0.15))
            coco.dataset['annotations'].append(each)
            for _ in range(rng.integers(0, 60 if many else 4)):
                moved = np.array(box) + rng.normal(0, 0.1, 4) * [w, h, w, h]
                moved[2:] = np.maximum(moved[2:], 1)
                found.append((i, category, moved.tolist(), float(rng.random())))
    coco.createIndex()
    return coco, found


@pytest.mark.parametrize(('seed', 'many'), [(0, False), (1, False), (2, True)])
@pytest.mark.parametrize('annotated', [True, False])
def test_ap_of_every_range_is_that_of_pycocotools(seed, many, annotated):
    coco, found = scenes(np.random.default_rng(seed), many)
    detections = {}
    for i in coco.imgs:
        own = sorted((d for d in found if d[0] == i), key=lambda d: -d[3])
        detections[i] = Detections(
            np.array([d[2] for d in own], float).reshape(-1, 4),
            np.array([d[1] - 1 for d in own], dtype=int),
            np.array([d[3] for d in own], float),
        )
    # at half the size, with half the edges
    half = Octaves('abcd', EDGES / 2, dict.fromkeys(coco.imgs, 0.5), annotated)
    one = Octaves('abcd', EDGES, dict.fromkeys(coco.imgs, 1.0), annotated)
    evaluation = evaluate_sizes(objects_of(coco, [1, 2]), detections, 2, [one, half])
    metrics = {a: (a, slice(None)) for a in range(8)}
    ours = evaluation.metrics(np.ones((1, 20), int), range(8), metrics)[0]
    np.testing.assert_array_equal(ours[:4], ours[4:])
    if not annotated:
        for each in coco.dataset['annotations']:
            each['area'] = each['bbox'][2] * each['bbox'][3]
        coco.createIndex()
    results = [
        dict(image_id=i, category_id=c, bbox=box, score=score)
        for i, c, box, score in found
    ]
    bounds = np.array([0, *EDGES, 1e5]) ** 2
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = COCOeval(coco, coco.loadRes(results), 'bbox')
        theirs.params.areaRng = np.stack([bounds[:-1], bounds[1:]], axis=1).tolist()
        theirs.params.areaRngLbl = [*'abcd']
        theirs.params.maxDets = [100]
        theirs.evaluate()
        theirs.accumulate()
    precision = theirs.eval['precision'][..., 0]
    expected = [p[p > -1].mean() for p in np.moveaxis(precision, 3, 0)]
    np.testing.assert_allclose(ours[:4], expected, atol=1e-12)
    counts = evaluation.counts(metrics)
    number = sum(not each['iscrowd'] for each in coco.dataset['annotations'])
    assert sum(counts[a]['objects'] for a in range(4)) == number
