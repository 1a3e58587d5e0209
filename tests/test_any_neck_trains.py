"""Detectors of mmdet's zoo train with upsamplers in their necks."""

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.hub import get_config
from mmengine.registry import init_default_scope

from dlu_mmdet.necks import with_upsampler

DETECTORS = [
    'yolox/yolox_s_8xb8-300e_coco',
    'rtmdet/rtmdet_tiny_8xb32-300e_coco',
    'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco',
    'atss/atss_r50_fpn_1x_coco',
    'cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco',
    'hrnet/faster-rcnn_hrnetv2p-w18-1x_coco',
    'pafpn/faster-rcnn_r50_pafpn_1x_coco',
    'libra_rcnn/libra-faster-rcnn_r50_fpn_1x_coco',
]


@pytest.mark.slow
@pytest.mark.parametrize('amp', [False, True], ids=['float32', 'bfloat16'])
@pytest.mark.parametrize('name', DETECTORS)
def test_one_iteration(name, amp):
    if amp and name not in DETECTORS[:2]:
        pytest.skip('bfloat16 is tried on two')
    init_default_scope('mmdet')
    cfg = with_upsampler(get_config(f'mmdet::{name}.py').model, dict(type='dlu'))
    cfg.backbone.init_cfg = None  # a download
    cfg.data_preprocessor.pop('batch_augments', None)
    model = MODELS.build(cfg).train()
    inputs = demo_mm_inputs(2, [(3, 128, 128)] * 2, num_items=[2, 2], num_classes=6)
    with torch.autocast('cpu', torch.bfloat16, enabled=amp):
        losses = model(**model.data_preprocessor(inputs, True), mode='loss')
        total, logged = model.parse_losses(losses)
    assert total.isfinite(), logged
    total.backward()
    for key, weight in model.neck.named_parameters():
        assert 'upsample_modules' not in key or weight.grad is not None, key
