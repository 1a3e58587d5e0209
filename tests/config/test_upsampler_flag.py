"""--upsampler and --upsamplers: any detector, no config to write."""

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import mmengine
import pytest
import torch
from conftest import ROOT, SHAPES_DLU, as_arguments, run
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DefaultScope, Registry, init_default_scope

from dlu_mmdet.cli.test import enable_tta, enable_visualization
from dlu_mmdet.comparison import plan
from dlu_mmdet.comparison import summary as comparison
from dlu_mmdet.config import (
    merge_options,
    read_config,
    set_upsampler,
    upsampler_label,
)
from dlu_mmdet.config.read import parse_upsampler
from dlu_mmdet.datasets.preflight import check_data
from dlu_mmdet.engine import load_detector

RTMDET = 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py'


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('dlu', dict(type='dlu')),
        ('dlu:up_kernel=3', dict(type='dlu', up_kernel=3)),
        ('carafe:up_kernel=3,up_group=2', dict(type='carafe', up_kernel=3, up_group=2)),
        ('bilinear:align_corners=True', dict(type='bilinear', align_corners=True)),
    ],
)
def test_the_form_of_the_flag(text, expected):
    assert parse_upsampler(text) == expected


def test_two_settings_of_one_upsampler_have_names_of_their_own():
    labels = [upsampler_label(parse_upsampler(t)) for t in ('dlu', 'dlu:up_kernel=3')]
    assert labels == ['dlu', 'dlu-up_kernel-3']


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('dlu:up_kernel', "'up_kernel' is no argument; the form is NAME:key=value"),
        ('dlu:up_kernel=', "'up_kernel=' is no argument"),
        ('dlu:3=up', "'3=up' is no argument"),
        ('dlu:up_kernel=3,,', "'' is no argument"),
    ],
)
def test_a_malformed_flag(text, message):
    with pytest.raises(ValueError, match=message):
        parse_upsampler(text)
    if text != 'dlu:up_kernel':
        return
    failed = run('tools/test.py', SHAPES_DLU, 'x.pth', '--upsampler', text, check=False)
    last = failed.stdout.strip().splitlines()[-1]
    assert failed.returncode == 2 and re.search(message, last)


def test_an_unknown_name():
    """Before anything else is read, since only the config may register it."""
    flag = ('--upsampler', 'dlux')
    failed = run('tools/test.py', SHAPES_DLU, 'x.pth', *flag, check=False)
    last = failed.stdout.strip().splitlines()[-1]
    message = (
        "'dlux' is not registered; did you mean 'dlu'.; .*carafe, deconv, dlu.*:Mine"
    )
    assert failed.returncode and re.search(message, last)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('dlu:kernel=3', 'upsample_cfg.kernel=3 is not an argument'),
        ('dlu:up_group=7', r'7.*(divide|divisible)|(divide|divisible).*7'),
    ],
)
def test_arguments_that_do_not_fit(text, message):
    cfg = read_config(RTMDET)
    with pytest.raises((ValueError, TypeError), match=message):
        set_upsampler(cfg, parse_upsampler(text))
        init_default_scope('mmdet')
        MODELS.build(cfg.model.neck)


def test_a_config_without_a_model_or_a_neck():
    with pytest.raises(ValueError, match='no model'):
        set_upsampler(Config(dict(train_cfg=None)), dict(type='dlu'))
    cfg = read_config('mmdet::detr/detr_r50_8xb2-150e_coco.py')
    with pytest.raises(ValueError, match='ChannelMapper'):
        set_upsampler(cfg, dict(type='dlu'))


@pytest.mark.parametrize('name', ['mmdet::rtmdet/none.py', 'nowhere::a/b.py', 'a.py'])
def test_a_config_that_is_not_there(name):
    with pytest.raises(FileNotFoundError, match=f'config {name} '):
        read_config(name)


def test_a_run_leaves_a_complete_config(small, tmp_path):
    """tools/test.py and --resume take it without the flag, and the checkpoint says
    which upsampler it wants."""
    options = {**small, 'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 9}
    flags = ['--work-dir', tmp_path / 'w', *as_arguments(options)]
    run('tools/train.py', SHAPES_DLU, '--upsampler', 'carafe:up_kernel=3', *flags)
    left = tmp_path / 'w' / SHAPES_DLU.name
    assert Config.fromfile(left).model.neck.upsample_cfg == dict(
        type='carafe', up_kernel=3
    )
    checkpoint = tmp_path / 'w' / 'epoch_1.pth'
    shutil.copy(left, tmp_path / 'alone.py')
    run(
        'tools/test.py', tmp_path / 'alone.py', checkpoint, '--work-dir', tmp_path / 't'
    )
    loaded = load_detector(
        SHAPES_DLU, checkpoint, upsampler=dict(type='carafe', up_kernel=3)
    )
    assert loaded.neck.upsample_modules[0].up_kernel == 3
    with pytest.raises(ValueError, match='--upsampler carafe'):
        load_detector(SHAPES_DLU, checkpoint)
    more = {**options, 'train_cfg.max_epochs': 2}
    run(
        'tools/train.py',
        tmp_path / 'alone.py',
        '--resume',
        '--work-dir',
        tmp_path / 'w',
        *as_arguments(more),
    )
    assert (tmp_path / 'w' / 'epoch_2.pth').exists()


def test_a_zoo_config_survives_a_dump(tmp_path):
    """What a run of RTMDet leaves behind builds the same neck, without the flag."""
    cfg = read_config(RTMDET)
    set_upsampler(cfg, dict(type='dlu'))
    cfg.dump(tmp_path / 'left.py')
    again = Config.fromfile(tmp_path / 'left.py')
    assert 'dlu_mmdet' in again.custom_imports.imports
    init_default_scope('mmdet')
    necks = []
    for each in (cfg, again):
        torch.manual_seed(0)
        necks.append(MODELS.build(each.model.neck).state_dict())
    assert necks[0].keys() == necks[1].keys()
    assert any('upsample_modules.0.conv_offset' in key for key in necks[0])


def test_a_comparison_without_configs_of_ones_own(small, tmp_path):
    """One config, three settings: names, folders, and what is refused."""
    texts = ['nearest', 'dlu', 'dlu:up_kernel=3']
    upsamplers = [None, *map(parse_upsampler, texts)]
    planned = plan.plan(
        [SHAPES_DLU], [0, 1], tmp_path / 'work', small, upsamplers=upsamplers
    )
    stem = SHAPES_DLU.stem
    # the config's own upsampler is DLU too, so both are called by their files
    assert [r.name for r in planned[:4]] == [
        stem,
        'nearest',
        f'{stem}-dlu',
        'dlu-up_kernel-3',
    ]
    assert len({r.work_dir for r in planned}) == 8
    kernels = [r.cfg.model.neck.upsample_cfg.get('up_kernel') for r in planned[:4]]
    assert kernels == [None, None, None, 3]
    with pytest.raises(ValueError, match=f'config name {stem}-dlu is given twice'):
        plan.plan([SHAPES_DLU], [0], tmp_path, small, upsamplers=[dict(type='dlu')] * 2)


@pytest.mark.parametrize(
    'name',
    [
        'mmdet::libra_rcnn/libra-faster-rcnn_r50_fpn_1x_coco.py',
        'mmdet::yolox/yolox_s_8xb8-300e_coco.py',
        RTMDET,
    ],
)
def test_detectors_of_the_zoo_are_planned(tmp_path, name):
    """Also where the neck is a list; their costs are those of the upsamplers."""
    planned = plan.plan(
        [name], [0], tmp_path, upsamplers=[dict(type='nearest'), dict(type='dlu')]
    )
    assert [r.name for r in planned] == ['nearest', 'dlu']
    assert comparison.published(planned[1].cfg) == (None, '')


def test_only_the_pyramid_of_the_papers_has_published_figures():
    cfg = read_config('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py')
    set_upsampler(cfg, dict(type='dlu'))
    assert comparison.published(cfg) == (38.6, 'DLU')
    cfg = read_config('mmdet::pafpn/faster-rcnn_r50_pafpn_1x_coco.py')
    set_upsampler(cfg, dict(type='dlu'))
    assert comparison.published(cfg) == (None, '')


def test_the_apis_of_mmdet_take_what_a_run_left(tmp_path):
    """init_detector and DetInferencer, from a folder without this repository."""
    cfg = read_config(RTMDET)
    set_upsampler(cfg, dict(type='dlu'))
    cfg.model.backbone.init_cfg = None  # a download
    cfg.dump(tmp_path / 'left.py')
    code = (
        'import numpy as np\n'
        'from mmdet.apis import DetInferencer, inference_detector, init_detector\n'
        'image = np.zeros((64, 96, 3), np.uint8)\n'
        'model = init_detector("left.py", None, device="cpu")\n'
        'assert "pred_instances" in inference_detector(model, image)\n'
        'found = DetInferencer("left.py", None, device="cpu")\n'
        'found(image, no_save_vis=True)\n'
        'for neck in (model.neck, found.model.neck):\n'
        '    print(type(neck.upsample_modules[0]).__name__)\n'
    )
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    ended = subprocess.run(
        [sys.executable, '-c', code],
        cwd=tmp_path,
        env=environment,
        text=True,
        capture_output=True,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stdout.split()[-2:] == ['DLUPack', 'DLUPack']


def test_in_mmengines_own_scope():
    """A runner without default_scope leaves it; its registry has none of mmdet's."""
    with DefaultScope.overwrite_default_scope('mmengine'):
        cfg = read_config(SHAPES_DLU)
        set_upsampler(cfg, dict(type='carafe'))
    assert cfg.model.neck.upsample_cfg.type == 'carafe'


def test_a_config_of_another_package():
    """MMSegmentation's CityscapesDataset is not MMDetection's, nor is its hook."""
    registry = Registry('dataset', parent=mmengine.DATASETS, scope='mmseg')

    @registry.register_module()
    class CityscapesDataset(BaseDataset):
        METAINFO = dict(classes=3)

        def __init__(self, *args, only_here=False, **kwargs):
            super().__init__(*args, **kwargs)

    dataset = dict(type='CityscapesDataset', data_prefix=dict(seg_map_path='nowhere'))
    cfg = Config(
        dict(
            default_scope='mmseg',
            train_dataloader=dict(dataset=dataset),
            default_hooks=dict(visualization=dict(type='SegVisualizationHook')),
            visualizer=dict(type='SegLocalVisualizer'),
            work_dir='run',
        )
    )
    try:
        with DefaultScope.overwrite_default_scope('mmdet'):
            merge_options(cfg, {'train_dataloader.dataset.only_here': True})
            with pytest.raises(ValueError, match=r'metainfo.classes must be a list'):
                check_data(cfg, ['train'])
    finally:
        del mmengine.DATASETS.children['mmseg']
    args = argparse.Namespace(show=False, wait_time=1, show_dir='pictures')
    enable_visualization(cfg, args)
    assert cfg.default_hooks.visualization == dict(
        type='SegVisualizationHook', draw=True, show=False, wait_time=1
    )
    assert cfg.visualizer.save_dir == 'run/pictures'


def test_augmentation_leaves_the_config_of_the_training():
    """The run's folder gets a config of another name beside it."""
    cfg = read_config(SHAPES_DLU)
    enable_tta(cfg)
    assert Path(cfg.filename).name == f'{SHAPES_DLU.stem}_tta.py'
    assert cfg.model.type == 'DetTTAModel'
