import pytest
import torch
import torch.nn.functional as F
from mmcv.ops import CARAFEPack
from mmdet.models.necks import FPN, FPN_CARAFE
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import ConfigDict
from mmengine.hub import get_config
from mmengine.registry import init_default_scope

import dlu_mmdet
from dlu_mmdet.necks import UnifiedFPN, UpsampleFPN
from dlu_mmdet.upsamplers import UPSAMPLERS

SIZES = [(19, 27), (10, 14), (5, 7), (3, 4)]
ARGS = dict(in_channels=[4, 6, 8, 10], out_channels=8, num_outs=5)


def inputs():
    torch.manual_seed(0)
    return tuple(
        torch.randn(2, c, h, w) for c, (h, w) in zip(ARGS['in_channels'], SIZES)
    )


def keys(module):
    return {k: tuple(v.shape) for k, v in module.state_dict().items()}


@pytest.mark.parametrize('top_down', ['cascade', 'direct'])
@pytest.mark.parametrize('neck', ['UpsampleFPN', 'UnifiedFPN', 'UNIFIED_FPN'])
@pytest.mark.parametrize('name', sorted(UPSAMPLERS.module_dict))
def test_odd_sizes_with_every_upsampler(neck, name, top_down):
    module = MODELS.build(
        dict(type=neck, upsample_cfg=dict(type=name), top_down=top_down, **ARGS)
    )
    module.init_weights()
    outs = module(inputs())
    assert [tuple(o.shape) for o in outs] == [(2, 8, h, w) for h, w in SIZES + [(2, 2)]]
    sum(o.square().sum() for o in outs).backward()
    for key, parameter in module.named_parameters():
        assert parameter.grad is not None, f'{key} takes no part'


FPN_VARIANTS = [
    dict(),
    dict(num_outs=6, add_extra_convs='on_input', start_level=1),
    dict(
        num_outs=6,
        add_extra_convs='on_output',
        start_level=1,
        relu_before_extra_convs=True,
    ),
    dict(
        num_outs=6,
        add_extra_convs='on_lateral',
        norm_cfg=dict(type='BN'),
        act_cfg=dict(type='ReLU'),
    ),
    dict(num_outs=2, start_level=1, end_level=2),
]


@pytest.mark.parametrize('neck', ['UpsampleFPN', 'UnifiedFPN'])
@pytest.mark.parametrize('name', sorted(UPSAMPLERS.module_dict))
@pytest.mark.parametrize('top_down', ['cascade', 'direct'])
def test_levels_that_the_backbone_rounds_down(neck, name, top_down):
    """Backbones without padding give 25, 12, 6, 3: twice 12 is less than 25."""
    xs = [torch.randn(1, c, n, n) for c, n in zip(ARGS['in_channels'], (25, 12, 6, 3))]
    args = dict(upsample_cfg=dict(type=name), top_down=top_down, **ARGS)
    outs = MODELS.build(dict(type=neck, **args))(xs)
    assert [o.shape[2] for o in outs] == [25, 12, 6, 3, 2]
    if neck == 'UpsampleFPN' and name == 'nearest' and top_down == 'cascade':
        theirs = FPN(**ARGS)
        ours = UpsampleFPN(**args)
        ours.load_state_dict(theirs.state_dict())
        assert all(map(torch.equal, ours(xs), theirs(xs)))


@pytest.mark.parametrize('variant', FPN_VARIANTS)
def test_upsample_fpn_is_mmdets_fpn(variant):
    """Checkpoints of mmdet's zoo must load and score the same."""
    args = {**ARGS, **variant}
    theirs, ours = FPN(**args), UpsampleFPN(**args)
    assert keys(ours) == keys(theirs)
    ours.load_state_dict(theirs.state_dict())
    for a, b in zip(ours(inputs()), theirs(inputs())):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize(
    'variant',
    [
        dict(),
        dict(num_outs=6),
        dict(num_outs=2, start_level=1, end_level=2),
        dict(
            norm_cfg=dict(type='BN'),
            act_cfg=dict(type='ReLU'),
            order=('act', 'conv', 'norm'),
        ),
    ],
)
@pytest.mark.parametrize(
    'upsample_cfg',
    [
        dict(type='nearest'),
        dict(type='bilinear'),
        dict(type='deconv', upsample_kernel=3),
        dict(type='pixel_shuffle', upsample_kernel=3),
        dict(
            type='carafe', up_kernel=5, up_group=1, encoder_kernel=3, encoder_dilation=1
        ),
    ],
)
def test_unified_fpn_is_mmdets_fpn_carafe(variant, upsample_cfg):
    args = {**ARGS, **variant}
    theirs = FPN_CARAFE(upsample_cfg=ConfigDict(upsample_cfg), **args)
    ours = UnifiedFPN(upsample_cfg=upsample_cfg, **args)
    assert keys(ours) == keys(theirs)
    ours.load_state_dict(theirs.state_dict())
    for a, b in zip(ours(inputs()), theirs(inputs())):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize('neck, levels', [(UpsampleFPN, 4), (UnifiedFPN, 5)])
def test_direct_takes_the_top_to_every_level(neck, levels):
    module = neck(upsample_cfg=dict(type='bilinear'), top_down='direct', **ARGS)
    xs = inputs()
    sources = xs + xs[-1:] if levels == 5 else xs  # C5 gives P6's lateral too
    laterals = [conv(x) for conv, x in zip(module.lateral_convs, sources)]
    outs = module(xs)
    top = laterals[-1]
    torch.testing.assert_close(outs[levels - 1], module.fpn_convs[levels - 1](top))
    for i, ratio in enumerate([16, 8, 4, 2][5 - levels :]):
        h, w = SIZES[i]
        # to the level's size, as mmdet's FPN, or by the ratio, as its FPN_CARAFE
        goal = dict(size=(h, w)) if levels == 4 else dict(scale_factor=ratio)
        from_top = F.interpolate(top, **goal, mode='bilinear')
        expected = module.fpn_convs[i](laterals[i] + from_top[:, :, :h, :w])
        torch.testing.assert_close(outs[i], expected)


@pytest.mark.parametrize(
    'name, parameters',
    [
        ('carafe', [3709248, 939648, 247248, 74148]),
        ('dlu', [326297, 104729, 49337, 35489]),
    ],
)
def test_direct_modules_have_the_whole_ratio(name, parameters):
    """Parameters at 256 channels and ratios of 16, 8, 4 and 2."""
    args = dict(ARGS, out_channels=256, upsample_cfg=dict(type=name), top_down='direct')
    for neck, expected in ((UnifiedFPN, parameters), (UpsampleFPN, parameters[1:])):
        counts = [
            sum(p.numel() for p in module.parameters())
            for module in neck(**args).upsample_modules
        ]
        assert counts == expected


def test_dlu_neck_has_the_authors_keys():
    neck = UnifiedFPN(upsample_cfg=dict(type='dlu'), **ARGS)
    expected = {
        f'upsample_modules.{i}.{conv}.{kind}'
        for i in range(4)
        for conv in ('channel_compressor', 'kernel_space_generator', 'conv_offset')
        for kind in ('weight', 'bias')
    }
    assert {k for k in keys(neck) if 'upsample' in k} == expected


@pytest.mark.parametrize('neck', [UpsampleFPN, UnifiedFPN])
def test_initialization_leaves_the_upsamplers_alone(neck):
    """The necks' Xavier rule reaches every convolution; DLU must still start
    as a box filter, and a user's module as its constructor left it."""
    module = neck(upsample_cfg=dict(type='dlu'), **ARGS)
    module.init_weights()
    for upsampler in module.upsample_modules:
        assert not upsampler.conv_offset.weight.any()
        assert 0 < upsampler.kernel_space_generator.weight.std() < 0.002

    class Constant(torch.nn.ConvTranspose2d):
        def __init__(self, channels, scale_factor):
            super().__init__(channels, channels, scale_factor, scale_factor)
            torch.nn.init.constant_(self.weight, 7)

    module = neck(upsample_cfg=dict(type=Constant), **ARGS)
    module.init_weights()
    assert all((m.weight == 7).all() for m in module.upsample_modules)
    assert not (module.lateral_convs[0].conv.weight == 7).any()


@pytest.mark.parametrize('top_down', ['cascade', 'direct'])
@pytest.mark.parametrize('name', ['nearest', 'dlu', 'fade'])
@pytest.mark.parametrize('neck', [UpsampleFPN, UnifiedFPN])
def test_symbolic_trace(neck, name, top_down):
    module = neck(upsample_cfg=dict(type=name), top_down=top_down, **ARGS)
    traced = torch.fx.symbolic_trace(module)
    for size in (32, 39):
        maps = [
            torch.randn(1, c, -(-size // 2**i), -(-size // 2**i))
            for i, c in enumerate(ARGS['in_channels'])
        ]
        torch.testing.assert_close(traced(maps), module(maps), rtol=0, atol=0)


def test_fpn_carafe_of_mmdet_runs_on_cpu():
    assert dlu_mmdet.upsamplers  # what makes it so
    neck = MODELS.build(dict(type='FPN_CARAFE', **ARGS))
    neck.init_weights()
    assert neck(inputs())[0].shape == (2, 8, 19, 27)


@pytest.mark.parametrize(
    'name',
    [
        'carafe/faster-rcnn_r50_fpn-carafe_1x_coco.py',
        'carafe/mask-rcnn_r50_fpn-carafe_1x_coco.py',
    ],
)
def test_carafe_configs_of_mmdet_run_on_cpu(name):
    """Neck and, for Mask R-CNN, mask head: mmcv's operator needs CUDA."""
    cfg = get_config(f'mmdet::{name}')
    init_default_scope('mmdet')
    cfg.model.backbone.init_cfg = None
    model = MODELS.build(cfg.model)
    inputs = demo_mm_inputs(1, [(3, 64, 64)], num_items=[1], with_mask=True)
    losses = model(**model.data_preprocessor(inputs, True), mode='loss')
    total, _ = model.parse_losses(losses)
    total.backward()
    for module in model.modules():
        if isinstance(module, CARAFEPack):
            assert module.content_encoder.weight.grad is not None


@pytest.mark.parametrize('neck', ['UpsampleFPN', 'UnifiedFPN'])
def test_wrong_name_and_argument(neck):
    with pytest.raises(ValueError, match='bicubic.*bilinear.*dlu'):
        MODELS.build(dict(type=neck, upsample_cfg=dict(type='bicubic'), **ARGS))
    with pytest.raises(TypeError, match='scale=3.*up_kernel'):
        MODELS.build(dict(type=neck, upsample_cfg=dict(type='dlu', scale=3), **ARGS))
    with pytest.raises(ValueError, match="top_down.*'cascade'.*'direct'.*'bottom'"):
        MODELS.build(dict(type=neck, top_down='bottom', **ARGS))
