"""Every config builds and trains, and differs from its like in the upsampler."""

import pytest
import torch
from conftest import CONFIGS, shapes_config
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config, ConfigDict
from mmengine.hub import get_config
from mmengine.registry import init_default_scope

from dlu_mmdet.config import read_config
from dlu_mmdet.necks import UnifiedFPN, upsampler_name, upsampling_part
from dlu_mmdet.upsamplers import UPSAMPLERS

ALL = [
    *sorted(CONFIGS.glob('[!_]*/*.py')),
    *(shapes_config(name.replace('_', '-')) for name in sorted(UPSAMPLERS.module_dict)),
]


@pytest.fixture(scope='module', autouse=True)
def _mmdet_scope():
    init_default_scope('mmdet')


@pytest.mark.parametrize('path', ALL, ids=lambda path: path.stem)
def test_config_builds_and_trains(path):
    """Else `tools/train.py` on this config would fail, or not train its upsampler."""
    cfg = Config.fromfile(path)
    name = path.stem.split('fpn-')[1].split('_')[0]
    assert upsampler_name(cfg.model.neck).replace('_', '-') == name
    cfg.model.backbone.init_cfg = None  # a download
    # resizes by the number of the iteration, which a runner counts
    cfg.model.data_preprocessor.pop('batch_augments', None)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    model.train()
    inputs = demo_mm_inputs(
        2,
        [(3, 64, 64)] * 2,
        num_items=[2, 2],
        num_classes=6,
        with_mask='mask_head' in cfg.model.get('roi_head', {}),
    )
    for sample in inputs['data_samples']:
        sample.gt_instances.labels.zero_()  # a class that every data set has
    losses = model(**model.data_preprocessor(inputs, True), mode='loss')
    total, logged = model.parse_losses(losses)
    assert total.isfinite(), logged
    total.backward()
    idle = [
        key
        for key, weight in model.named_parameters()
        if weight.requires_grad and weight.grad is None
    ]
    assert not idle


@pytest.mark.parametrize(
    'start',
    ['faster_rcnn/', 'mask_rcnn/', 'nuclei/mask', 'rtmdet/', 'yolox/'],
)
def test_configs_differ_in_the_upsampler_only(start):
    """Else a comparison would compare more than upsamplers, and
    `--cfg-options model.neck.upsample_cfg.type=carafe` would not suffice."""
    configs, names = [], set()
    for path in CONFIGS.glob(f'{start}*.py'):
        assert len(path.read_text().splitlines()) <= 10
        cfg = Config.fromfile(path)
        names.add(upsampler_name(cfg.model.neck))
        part = '.0' if isinstance(cfg.model.neck, list) else ''
        cfg.merge_from_dict({f'model.neck{part}.upsample_cfg.type': 'carafe'})
        if 'mask' in start:
            option = 'model.roi_head.mask_head.upsample_cfg.type'
            cfg.merge_from_dict({option: 'carafe'})
        upsampling_part(cfg.model.neck).pop('top_down', None)
        configs.append(cfg.to_dict())
    assert names >= {'nearest', 'carafe', 'dlu'}
    assert all(config == configs[0] for config in configs)
    neck = upsampling_part(MODELS.build(cfg.model.neck))
    assert {type(m).__name__ for m in neck.upsample_modules} == {'CARAFEPack'}
    if isinstance(neck, UnifiedFPN):
        assert cfg.model.data_preprocessor.pad_size_divisor == 64


@pytest.mark.parametrize(
    'ours, theirs',
    [
        ('faster_rcnn/faster-rcnn_r50_fpn-carafe', 'carafe/faster-rcnn_r50_fpn-carafe'),
        ('mask_rcnn/mask-rcnn_r50_fpn-carafe', 'carafe/mask-rcnn_r50_fpn-carafe'),
    ],
)
def test_zoo_checkpoints_fit(ours, theirs):
    shapes = []
    for cfg in (
        Config.fromfile(CONFIGS / f'{ours}_1x_coco.py'),
        get_config(f'mmdet::{theirs}_1x_coco.py'),
    ):
        with torch.device('meta'):
            model = MODELS.build(cfg.model)
        shapes.append({k: v.shape for k, v in model.state_dict().items()})
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    'name, nearest',
    [
        (
            CONFIGS / 'shapes' / 'faster-rcnn_r18_fpn-dlu_shape.py',
            'shapes/faster-rcnn_r18_fpn-dlu_shapes.py',
        ),
        (
            'mmdet::rtmdet/rtmdet_tiny_8xb32_300e_coco.py',
            'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
        ),
        ('mmdet::retinanet_r50_fpn_1x_coco.py', '::retinanet/retinanet_r50_fpn_1x_co'),
    ],
)
def test_a_misspelled_config_gets_the_nearest_names(name, nearest):
    with pytest.raises(FileNotFoundError, match=f'; the nearest are .*{nearest}'):
        read_config(name)


def test_name_of_the_upsampler():
    dlu = dict(type='UpsampleFPN', upsample_cfg=dict(type='dlu'))
    cases = [
        (dlu, 'dlu'),
        ([dict(type='BFP'), dict(dlu, top_down='direct')], 'dlu-direct'),
        (dict(type='FPN', upsample_cfg=dict(mode='nearest')), None),
        ([dict(type='BFP')], None),
    ]
    for neck, expected in cases:
        assert upsampler_name(ConfigDict(neck=neck).neck) == expected
    assert upsampler_name(None) is None
