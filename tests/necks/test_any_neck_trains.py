"""Detectors of mmdet's zoo train with upsamplers in their necks."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import CONFIGS, ROOT, as_arguments
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


def test_two_processes(small, tmp_path):
    """An upsampler without a gradient would end the second iteration: DDP waits for
    every parameter, as find_unused_parameters is False."""
    config = tmp_path / 'pafpn.py'
    base = CONFIGS / '_base_' / 'faster-rcnn_r18_fpn_shapes.py'
    config.write_text(
        f"_base_ = '{base}'\nmodel = dict(neck=dict(_delete_=True, type='PAFPN', "
        'in_channels=[32, 64, 128, 256], out_channels=64, num_outs=5))'
    )
    options = {
        **small,
        'train_cfg.max_epochs': 1,
        'train_dataloader.batch_size': 4,
        'default_hooks.logger.interval': 1,
    }
    command = [
        'tools/dist_train.sh',
        config,
        2,
        '--upsampler',
        'dlu',
        '--work-dir',
        tmp_path / 'work',
        *as_arguments(options),
    ]
    process = subprocess.run(
        ['bash', *map(str, command)],
        env={
            **os.environ,
            'PYTHON': sys.executable,
            'PORT': str(20000 + (os.getpid() + 1) % 20000),
        },
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.returncode == 0, process.stdout[-4000:]
    assert '[2/2]' in process.stdout
    state = torch.load(tmp_path / 'work' / 'epoch_1.pth', weights_only=False)
    keys = [k for k in state['state_dict'] if k.startswith('neck.upsample_modules.')]
    assert keys and 'find_unused_parameters=True' not in process.stdout
