"""Upsamplers that start at an interpolation: what they give before any training."""

import pytest
import torch
import torch.nn.functional as F
from conftest import UNGUIDED
from mmdet.registry import MODELS

from dlu_mmdet.heads import UpsampleMaskHead
from dlu_mmdet.necks import UnifiedFPN, UpsampleFPN, with_upsampler
from dlu_mmdet.upsamplers import UPSAMPLERS, build_upsampler, is_guided

BOTH = ['nearest', 'bilinear']
# what each holds, and its largest difference from the interpolation of values from
# -1 to 1: a twentieth of a kernel is even over its taps, where there is a softmax
STARTS = [
    (dict(type='dlu'), ['nearest'], 0.1),
    (dict(type='dlu', up_group=2, offset_init='subpixel'), ['nearest'], 0.1),
    (dict(type='dlu', up_kernel=3, offset_range=1), ['nearest'], 0.1),
    (dict(type='carafe'), BOTH, 0.1),
    (dict(type='carafe', up_group=4, up_kernel=3), BOTH, 0.1),
    (dict(type='deconv'), BOTH, 1e-5),
    (dict(type='deconv', upsample_kernel=9), BOTH, 1e-5),
    (dict(type='pixel_shuffle'), BOTH, 1e-5),
    (dict(type='resize_conv'), BOTH, 1e-5),
    (dict(type='dysample'), BOTH, 1e-4),
    (dict(type='dysample', dyscope=True), BOTH, 1e-4),
    (dict(type='dysample', style='pl'), ['bilinear'], 1e-4),
    (dict(type='sapa'), ['nearest'], 0.2),
    (dict(type='sapa', form='G'), ['nearest'], 0.2),
    # the guide passes the gate to a twentieth, too
    (dict(type='fade'), ['nearest'], 0.2),
    (dict(type='fade', gating=False), ['nearest'], 0.1),
    (dict(type='fade', lite=True), ['nearest'], 0.2),
    (dict(type='freqfusion'), ['nearest'], 0.2),
]
HELD = [(cfg, start, most) for cfg, starts, most in STARTS for start in starts]


def name(value):
    return '-'.join(map(str, value.values())) if isinstance(value, dict) else str(value)


def interpolate(x, mode, size):
    corners = dict(align_corners=False) if mode == 'bilinear' else {}
    return F.interpolate(x, size, mode=mode, **corners)


@pytest.mark.parametrize('cfg, start, most', HELD, ids=name)
def test_gives_the_interpolation(cfg, start, most):
    torch.manual_seed(0)
    for s in (1, 2, 3, 4):
        module = build_upsampler(dict(cfg, start=start), 144, s, 144)
        module.init_weights()
        for h, w in ((1, 1), (5, 7), (8, 6)):
            x, size = 2 * torch.rand(2, 144, h, w) - 1, (s * h, s * w)
            guide = [2 * torch.rand(2, 144, *size) - 1] if is_guided(module) else []
            with torch.no_grad():
                error = (module(x, *guide) - interpolate(x, start, size)).abs()
            if start == 'bilinear' and cfg['type'] != 'dysample':
                if cfg['type'] != 'resize_conv':
                    # these take zeros from outside of the map
                    error = error[:, :, s // 2 : -(s // 2) or None]
                    error = error[:, :, :, s // 2 : -(s // 2) or None]
            assert error.numel() == 0 or error.max() <= most, (s, h, w)


@pytest.mark.parametrize('cfg, start, most', HELD, ids=name)
def test_learns_from_there(cfg, start, most):
    """A start without gradients would keep the interpolation for good."""
    torch.manual_seed(0)
    module = build_upsampler(dict(cfg, start=start), 144, 2, 144)
    inputs = [torch.randn(1, 144, 6, 8)]
    inputs += [torch.randn(1, 144, 12, 16)] * is_guided(module)
    optimizer = torch.optim.SGD(module.parameters(), 1e-3)
    # a second step reaches what a factor of zero hides from the first
    for _ in range(2):
        optimizer.zero_grad()
        module(*inputs).square().mean().backward()
        optimizer.step()
    for key, weight in module.named_parameters():
        assert weight.grad.any(), key


@pytest.mark.parametrize('type_', sorted(UPSAMPLERS.module_dict))
def test_a_start_that_is_not_held_is_refused(type_):
    """And the message names those that are."""
    if type_ in BOTH:
        with pytest.raises(TypeError, match='start.* is not an argument'):
            build_upsampler(dict(type=type_, start='nearest'), 16, 2)
        return
    held = next((held for cfg, held, _ in STARTS if cfg['type'] == type_), [])
    for start in {'bilinear', 'area', 'neck'} - set(held):
        with pytest.raises(ValueError) as info:
            build_upsampler(dict(type=type_, start=start), 16, 2, 16)
        text = str(info.value)
        assert f'start={start!r}' in text and '\n' not in text
        assert all(repr(other) in text for other in ('paper', *held[:1]))


@pytest.mark.parametrize(
    'cfg, words',
    [
        (dict(type='deconv', upsample_kernel=3), 'upsample_kernel of at least 4'),
        (dict(type='carafe', up_kernel=1), 'at least 3 x 3'),
        (dict(type='resize_conv', mode='nearest'), "mode='nearest'"),
        (dict(type='resize_conv', depthwise=True), 'it normalizes'),
    ],
    ids=name,
)
def test_a_form_that_is_too_small_for_bilinear(cfg, words):
    with pytest.raises(ValueError, match=words):
        build_upsampler(dict(cfg, start='bilinear'), 16, 2)


def test_freqfusion_starts_without_offsets():
    cfg = dict(type='freqfusion', start='nearest', offset_init='xavier')
    with pytest.raises(ValueError, match="use offset_init='normal'"):
        build_upsampler(cfg, 16, 2, 16)


FPN = dict(in_channels=[8, 16, 32], out_channels=16, num_outs=3)
BILINEAR = dict(type='bilinear')


@pytest.mark.parametrize('neck_class', [UpsampleFPN, UnifiedFPN])
@pytest.mark.parametrize('type_', sorted({cfg['type'] for cfg, _, _ in STARTS}))
def test_a_neck_leaves_the_start(neck_class, type_):
    neck = neck_class(**FPN, upsample_cfg=dict(type=type_, start='neck'))
    neck.init_weights()
    module = neck.upsample_modules[0]
    x, guide = torch.rand(1, 16, 4, 6), torch.rand(1, 16, 8, 12)
    with torch.no_grad():
        out = module(x, guide) if is_guided(module) else module(x)
    assert (out - interpolate(x, 'nearest', (8, 12))).abs().max() < 0.2


@pytest.mark.parametrize(
    'neck, expected',
    [
        (dict(type='FPN', **FPN), 'nearest'),
        (dict(type='FPN', **FPN, upsample_cfg=dict(mode='bilinear')), 'bilinear'),
        (
            dict(type='UnifiedFPN', **FPN, upsample_cfg=dict(type='bilinear')),
            'bilinear',
        ),
        (dict(type='dlu_mmdet.PAFPN', **FPN, upsample_cfg=BILINEAR), 'bilinear'),
        (dict(type='HRFPN', in_channels=[8, 16], out_channels=8), 'bilinear'),
        (dict(type='PAFPN', **FPN), 'nearest'),
        # as a config in Python is dumped
        (dict(type='mmdet.models.necks.PAFPN', **FPN), 'nearest'),
        (dict(type='mmdet.models.necks.FPN', **FPN), 'nearest'),
    ],
)
@pytest.mark.parametrize('type_', ['carafe', 'resize_conv'])
def test_the_start_of_the_neck(neck, expected, type_):
    cfg = with_upsampler(dict(neck=neck), dict(type=type_, start='neck'))['neck']
    modules = MODELS.build(cfg).upsample_modules
    assert modules and {module.start for module in modules} == {expected}


def test_a_neck_with_upsamplers_has_no_start():
    for neck in (
        dict(type='UnifiedFPN', **FPN, upsample_cfg=dict(type='carafe')),
        dict(type='FPN_CARAFE', **FPN),  # its default is carafe
    ):
        with pytest.raises(ValueError, match="has the upsampler 'carafe'; choose"):
            with_upsampler(dict(neck=neck), dict(type='dlu', start='neck'))
    corners = dict(type='bilinear', align_corners=True)
    neck = dict(type='UpsampleFPN', **FPN, upsample_cfg=corners)
    cfg = with_upsampler(dict(neck=neck), dict(type='carafe', start='neck'))['neck']
    with pytest.raises(ValueError, match="start='bilinear with align_corners' is none"):
        MODELS.build(cfg)


@pytest.mark.parametrize(
    'type_, start',
    [
        *((t, 'nearest') for t in UNGUIDED if t not in (*BOTH, 'lda_aqu')),
        ('deconv', 'bilinear'),
    ],
)
def test_a_mask_head_leaves_the_start(type_, start):
    """mmdet's rule for its deconvolution would replace it."""
    head = UpsampleMaskHead(
        in_channels=16,
        conv_out_channels=16,
        num_classes=2,
        upsample_cfg=dict(type=type_, start=start),
    )
    head.init_weights()
    x = torch.rand(1, 16, 7, 7)
    with torch.no_grad():
        error = (head.upsample(x) - interpolate(x, start, (14, 14))).abs()
    inside = slice(1, -1) if start == 'bilinear' else slice(None)
    assert error[:, :, inside, inside].max() < 0.1
