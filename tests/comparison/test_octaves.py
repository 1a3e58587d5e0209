"""Octaves of size: how a pipeline resizes, and which level pools a box."""

import numpy as np
import pytest

from dlu_mmdet.comparison.octaves import input_octaves, relative_octaves, resize_factor
from dlu_mmdet.config import read_config

FASTER = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
IMAGES = {7: dict(width=640, height=480)}


def test_sizes_relative_to_the_image():
    octaves = relative_octaves(IMAGES)
    # a quarter of the image has half its size
    areas = 640 * 480 / np.array([100**2, 50**2, 9**2, 4.0])
    names = [octaves.names[k] for k in octaves.of(7, areas)]
    assert names == ['below 1/64', '1/64 to 1/32', '1/16 to 1/8', 'from 1/2']


def test_levels_are_those_of_the_pool():
    cfg = read_config(FASTER)
    octaves = input_octaves(cfg, IMAGES)
    assert resize_factor(cfg, IMAGES[7]) == 800 / 480
    assert [*octaves.names[-4:]] == [
        *('56 to 112 (P2)', '112 to 224 (P3)', '224 to 448 (P4)', 'from 448 (P5)')
    ]
    # 100 pixels become 167
    assert octaves.names[octaves.of(7, np.array([100.0**2]))[0]] == '112 to 224 (P3)'
    cfg.model.roi_head.bbox_roi_extractor.finest_scale = 28
    names = input_octaves(cfg, IMAGES).names
    assert [names[0], names[3]] == ['below 7 (P2)', '28 to 56 (P2)']
    cascade = read_config('mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py')
    assert input_octaves(cascade, IMAGES).names[-1] == 'from 448 (P5)'


@pytest.mark.parametrize(
    ('resize', 'factor'),
    [
        (dict(scale=(1280, 320), keep_ratio=True), 320 / 480),
        (dict(scale=(320, 240)), 0.5),
        (dict(scale_factor=2.0), 1.0),
    ],
)
def test_factors_of_other_pipelines(resize, factor):
    cfg = read_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    cfg.test_dataloader.dataset.pipeline = [dict(type='Resize', **resize)]
    assert resize_factor(cfg, IMAGES[7]) == pytest.approx(factor)
    # a one-stage detector has no pool
    assert input_octaves(cfg, IMAGES).names[0] == 'below 14'
