import copy
import pickle

import numpy as np
import pytest
import torch
from conftest import UNGUIDED
from mmdet.models.dense_heads import rtmdet_ins_head, solov2_head
from mmdet.models.layers import PixelDecoder
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.registry import MODELS
from mmdet.structures.mask import BitmapMasks
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

from dlu_mmdet import replace_upsampling
from dlu_mmdet.heads import UpsampleMaskHead
from dlu_mmdet.upsamplers import DLUPack

ARGS = dict(num_convs=1, in_channels=6, conv_out_channels=8, num_classes=3)


def features():
    return torch.randn(2, 6, 7, 7, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize('scale_factor', [2, 3])
@pytest.mark.parametrize('name', ['nearest', 'bilinear', 'deconv', 'carafe'])
def test_upsample_mask_head_is_mmdets(name, scale_factor):
    """Checkpoints of mmdet's zoo must load and score the same."""
    cfg = dict(type=name, scale_factor=scale_factor)
    theirs = FCNMaskHead(upsample_cfg=cfg, **ARGS)
    ours = UpsampleMaskHead(upsample_cfg=cfg, **ARGS)
    theirs.init_weights()
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(features()), theirs(features()))
    assert cfg == dict(type=name, scale_factor=scale_factor)


def test_defaults_are_mmdets():
    shapes = [
        {k: v.shape for k, v in head(**ARGS).state_dict().items()}
        for head in (FCNMaskHead, UpsampleMaskHead)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize('name', UNGUIDED)
def test_every_upsampler_in_the_mask_head(name):
    head = MODELS.build(
        dict(type='UpsampleMaskHead', upsample_cfg=dict(type=name), **ARGS)
    )
    head.init_weights()
    masks = head(features())
    assert masks.shape == (2, 3, 14, 14)
    masks.square().sum().backward()
    for key, parameter in head.named_parameters():
        assert parameter.grad is not None, f'{key} takes no part'


def masks_of(out):
    """The masks alone: HTC's head returns its features as well."""
    return out[0] if isinstance(out, list) else out


@pytest.mark.parametrize(
    ('name', 'args'),
    [
        ('FCNMaskHead', {}),
        ('HTCMaskHead', dict(with_conv_res=False)),
        ('SCNetMaskHead', dict(conv_to_res=False)),
    ],
)
def test_mask_heads_by_the_prefix(name, args):
    args = dict(ARGS, **args)
    own = dict(type='bilinear', scale_factor=2)
    theirs = MODELS.build(dict(type=name, upsample_cfg=own, **args))
    cfg = dict(type=f'dlu_mmdet.{name}', **args)
    ours = MODELS.build(dict(cfg, upsample_cfg=own))
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(masks_of(ours(features())), masks_of(theirs(features())))
    learned = MODELS.build(dict(cfg, upsample_cfg=dict(type='dlu')))
    assert isinstance(learned, type(theirs)) and isinstance(learned.upsample, DLUPack)
    again = pickle.loads(pickle.dumps(learned))
    assert torch.equal(masks_of(again(features())), masks_of(learned(features())))


def test_a_mask_head_that_initializes_every_weight():
    """QueryInst's, which is given the features of the queries too."""
    cfg = dict(type='dlu_mmdet.DynamicMaskHead', upsample_cfg=dict(type='dlu'))
    conv = dict(type='DynamicConv', in_channels=8, feat_channels=2, input_feat_shape=7)
    head = MODELS.build(dict(cfg, dynamic_conv_cfg=conv, **dict(ARGS, in_channels=8)))
    head.init_weights()
    assert not head.upsample.conv_offset.weight.any()


def test_a_mask_head_that_enlarges_nothing_is_refused():
    cfg = dict(type='dlu_mmdet.CoarseMaskHead', upsample_cfg=dict(type='dlu'), **ARGS)
    with pytest.raises(ValueError, match='CoarseMaskHead enlarges no map'):
        MODELS.build(cfg)


def test_another_ratio_is_refused():
    """Its masks would be pasted at any size."""
    with pytest.raises(ValueError, match=r'OneByOne gave .* must give \(1, 8, 8, 12\)'):
        UpsampleMaskHead(upsample_cfg=dict(type=OneByOne), **ARGS)


class OneByOne(torch.nn.Conv2d):
    def __init__(self, channels, scale_factor):
        super().__init__(channels, channels, 1)


@pytest.mark.parametrize('class_agnostic', [False, True])
@pytest.mark.parametrize('name', UNGUIDED)
def test_a_batch_without_a_positive_roi(name, class_agnostic):
    """An image whose objects no proposal covers: the loss is 0, not an error."""
    head = UpsampleMaskHead(
        upsample_cfg=dict(type=name), class_agnostic=class_agnostic, **ARGS
    )
    head.init_weights()
    roi_features = features()[:0].requires_grad_()
    masks = head(roi_features)
    empty = InstanceData(
        priors=torch.empty(0, 4),
        pos_priors=torch.empty(0, 4),
        pos_gt_labels=torch.empty(0, dtype=torch.long),
        pos_assigned_gt_inds=torch.empty(0, dtype=torch.long),
    )
    image = InstanceData(masks=BitmapMasks(np.zeros((1, 32, 32), np.uint8), 32, 32))
    losses = head.loss_and_target(masks, [empty], [image], ConfigDict(mask_size=14))
    loss = losses['loss_mask']['loss_mask'].sum()
    loss.backward()
    assert loss == 0 and roi_features.grad.shape == (0, 6, 7, 7)
    for key, parameter in head.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), key


def test_initialization_leaves_dlu_a_box_filter():
    head = UpsampleMaskHead(upsample_cfg=dict(type='dlu'), **ARGS)
    head.init_weights()
    assert not head.upsample.conv_offset.weight.any()
    assert 0 < head.upsample.kernel_space_generator.weight.std() < 0.002


def test_wrong_name_and_argument():
    with pytest.raises(ValueError, match='bicubic.*bilinear.*dlu'):
        UpsampleMaskHead(upsample_cfg=dict(type='bicubic'), **ARGS)
    with pytest.raises(ValueError, match='needs a "type"'):
        UpsampleMaskHead(upsample_cfg=dict(scale_factor=2), **ARGS)
    with pytest.raises(TypeError, match='scale=3.*up_kernel'):
        UpsampleMaskHead(upsample_cfg=dict(type='dlu', scale=3), **ARGS)


@pytest.mark.parametrize(
    ('module', 'args', 'count'),
    [
        (solov2_head, dict(start_level=0, end_level=2, out_channels=4), 3),
        (rtmdet_ins_head, dict(), 2),
    ],
)
def test_mask_features(module, args, count):
    """SOLOv2's and RTMDet-Ins', which no config names, by replace_upsampling."""
    features = module.MaskFeatModule(in_channels=4, feat_channels=4, **args)
    maps = tuple(torch.randn(1, 4, 16 >> i, 24 >> i) for i in range(3))
    expected = features.eval()(maps)
    ours = copy.deepcopy(features)
    replace_upsampling(ours, dict(type='bilinear'), maps)
    assert torch.equal(ours(maps), expected)
    report = replace_upsampling(features, dict(type='dlu'), maps)
    assert len(report.replaced) == count and not report.left
    features.train()(maps).sum().backward()
    assert all(m.conv_offset.weight.grad is not None for m in report.replaced.values())


def test_the_pixel_decoder_of_maskformer():
    args = dict(in_channels=[8] * 3, feat_channels=32, out_channels=4)
    with pytest.raises(ValueError, match='PixelDecoder must stay the class itself'):
        MODELS.build(
            dict(type='dlu_mmdet.PixelDecoder', upsample_cfg=dict(type='dlu'), **args)
        )
    decoder = PixelDecoder(**args).eval()
    maps, metas = [torch.randn(1, 8, 16 >> i, 24 >> i) for i in range(3)], [{}]
    expected = decoder(maps, metas)
    ours = copy.deepcopy(decoder)
    report = replace_upsampling(ours, dict(type='nearest'), maps, metas)
    assert len(report.replaced) == 2
    assert all(map(torch.equal, ours(maps, metas), expected))
