"""FADE, SAPA and FreqFusion against their formulas; what every guided one has."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import UNGUIDED, needs_later_torch, shapes_config
from helpers import loops
from mmcv.cnn import build_upsample_layer
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.model import BaseModule
from torch import nn

from dlu_mmdet.heads import UpsampleMaskHead
from dlu_mmdet.necks import UnifiedFPN, UpsampleFPN, with_upsampler
from dlu_mmdet.ops import carafe, library, reference, window_scores
from dlu_mmdet.upsamplers import build_upsampler, is_guided, upsample_to
from dlu_mmdet.upsamplers.fade import FADE
from dlu_mmdet.utils.timing import peak_memory
from dlu_mmdet.visualization.kernel_maps import kernel_maps

NEEDS_OPS = pytest.mark.skipif(
    not library.is_available('cpu'), reason='the extension is not built for the CPU'
)
BACKENDS = [reference, *([library] if library.is_available('cpu') else [])]
CFGS = [
    dict(type='fade'),
    dict(type='fade', gating=False),
    dict(type='fade', lite=True),
    dict(type='sapa'),
    dict(type='sapa', form='G'),
    dict(type='freqfusion', groups=2, compressed_channels=8),
]
KINDS = pytest.mark.parametrize(
    'cfg', CFGS, ids=lambda cfg: '-'.join(map(str, cfg.values()))
)
ONE_OF_EACH = pytest.mark.parametrize(
    'cfg', [CFGS[0], CFGS[4], CFGS[5]], ids=lambda cfg: cfg['type']
)
# source map and guide: whole ratios, rounded up and down, any, none at all
SIZES = [
    ((3, 4), (6, 8)),
    ((3, 4), (5, 8)),
    ((3, 4), (7, 9)),
    ((2, 5), (7, 5)),
    ((1, 3), (4, 11)),
    ((1, 1), (3, 2)),
    ((2, 3), (2, 3)),
]


def build(cfg, channels=6, guide_channels=None, scale_factor=2):
    guide_channels = channels if guide_channels is None else guide_channels
    return build_upsampler(cfg, channels, scale_factor, guide_channels)


def as_if_trained(cfg, **kwargs):
    """Kernels that differ, in float64."""
    torch.manual_seed(0)
    module = build(dict(cfg, up_kernel=3), **kwargs).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def maps(source, target, channels=6, guide_channels=6, n=2, dtype=torch.float64):
    torch.manual_seed(1)
    return (
        torch.randn(n, channels, *source, dtype=dtype),
        torch.randn(n, guide_channels, *target, dtype=dtype),
    )


@pytest.mark.parametrize('plain', [False, True], ids=['fused', 'plain'])
@KINDS
@pytest.mark.parametrize('source, target', SIZES)
def test_it_is_the_formula(cfg, source, target, plain, monkeypatch):
    """If it fails, AP of this upsampler says nothing about the paper's."""
    if plain:
        monkeypatch.setattr(library, '_DEVICE_TYPES', frozenset())
    guide_channels = 5 if cfg.get('gating') is False or cfg['type'] == 'sapa' else 6
    module = as_if_trained(cfg, guide_channels=guide_channels)
    x, guide = maps(source, target, guide_channels=guide_channels)
    weights = {k: v.detach().numpy() for k, v in module.state_dict().items()}
    expected = getattr(loops, cfg['type'])(x.numpy(), guide.numpy(), weights, 3)
    torch.testing.assert_close(module(x, guide), torch.from_numpy(expected))


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
@ONE_OF_EACH
def test_traced(cfg):
    """As mmengine's counters trace a detector."""
    module = as_if_trained(cfg).eval()
    x, guide = maps((3, 4), (5, 8))
    traced = torch.jit.trace(module, (x, guide))(x, guide)
    # a trace divides sizes in float32
    torch.testing.assert_close(traced, module(x, guide), rtol=1e-5, atol=1e-5)


@NEEDS_OPS
@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
def test_mmengine_counts_window_scores():
    """A multiply-add as one; what it calls normalization it counts besides."""
    from mmengine.analysis import FlopAnalyzer

    module = build(dict(type='sapa'))
    x, guide = maps((3, 4), (6, 8), n=1, dtype=torch.float32)
    counted = FlopAnalyzer(module, (x, guide))
    # 48 queries of 32 channels to windows of 25, and 6 channels under the kernels
    assert counted.by_operator()['carafe_backward_masks'] == 48 * 25 * 32
    assert counted.by_operator()['carafe'] == 48 * 25 * 6


@NEEDS_OPS
@KINDS
def test_memory_is_that_of_the_output(cfg):
    """Unfolded, the features alone would be 25 times as much."""
    module = build(dict(cfg, up_kernel=5), channels=64)
    x, guide = maps((24, 32), (48, 64), 64, 64, n=1, dtype=torch.float32)
    with torch.no_grad():
        peak = peak_memory(lambda: module(x, guide), x.device)
    assert peak < 6 * guide.nbytes


def test_window_scores_are_the_formula():
    """Their gradients, of any order, by finite differences."""
    torch.manual_seed(0)
    for groups, scale, kernel_size in ((1, 2, 3), (2, 3, 5), (2, 1, 1)):
        x = torch.randn(2, 4, 2, 3, dtype=torch.float64)
        q = torch.randn(2, 4, 2 * scale, 3 * scale, dtype=torch.float64)
        sizes = kernel_size, groups, scale
        expected = torch.from_numpy(loops.window_scores(x.numpy(), q.numpy(), *sizes))
        for backend in BACKENDS:
            out = backend.window_scores(x, q, *sizes)
            torch.testing.assert_close(out, expected)
            assert backend.window_scores(x.half(), q, *sizes).dtype == torch.float16

            def scores(x, q, backend=backend, sizes=sizes):
                return backend.window_scores(x, q, *sizes)

            inputs = [t.clone().requires_grad_() for t in (x, q)]
            assert torch.autograd.gradcheck(scores, inputs, fast_mode=True)
            assert torch.autograd.gradgradcheck(scores, inputs, fast_mode=True)


@NEEDS_OPS
@needs_later_torch
@pytest.mark.parametrize('name', ['carafe_backward_features', 'carafe_backward_masks'])
def test_opcheck(name):
    """What torch asks of an operator that is differentiated and traced."""
    x = torch.randn(1, 2, 2, 3, requires_grad=True)
    grad = torch.randn(1, 2, 4, 6, requires_grad=True)
    masks = torch.randn(1, 9, 4, 6, requires_grad=True)
    operator = getattr(torch.ops.dlu_mmdet, name).default
    # what it would do beyond these, the compiled modules do
    utils = 'test_schema', 'test_autograd_registration', 'test_faketensor'
    torch.library.opcheck(operator, (grad, x, masks, 3, 1, 2), test_utils=utils)


def test_carafe_has_second_derivatives():
    """The three operators are each other's derivatives, compiled too."""
    torch.manual_seed(0)
    x = torch.randn(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    masks = torch.randn(1, 9, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(
        lambda *t: carafe(*t, 3, 1, 2), (x, masks), fast_mode=True
    )


@pytest.mark.parametrize(
    'shape, error, words',
    [
        ((2, 4, 6, 9), ValueError, r'queries must have shape .* \(2, 4, 6, 8\), got'),
        ((2, 3, 6, 8), ValueError, r'queries must have shape .* \(2, 4, 6, 8\), got'),
        (None, TypeError, 'queries must be a Tensor, got NoneType'),
    ],
)
def test_wrong_queries_are_named(shape, error, words):
    queries = None if shape is None else torch.zeros(shape)
    with pytest.raises(error, match=words):
        window_scores(torch.zeros(2, 4, 3, 4), queries, 3, 1, 2)


# ---- starts, counts ------------------------------------------------------------


def test_fade_starts_with_xavier():
    """Biases at zero, so that a gate starts around a half."""
    torch.manual_seed(0)
    module = build(dict(type='fade'), 256)
    for conv in module.children():
        fan = conv.weight[0].numel() + conv.weight[:, 0].numel()
        assert conv.weight.abs().max() <= (6 / fan) ** 0.5 < 1.1 * conv.weight.max()
        assert conv.bias is None or not conv.bias.any()


def test_sapa_starts_as_its_file_does():
    torch.manual_seed(0)
    module = build(dict(type='sapa', form='G'), 256)
    for linear in (module.q, module.k, module.qx, module.gate):
        assert 0.017 < linear.weight.std() < 0.023 and not linear.bias.any()


def hamming(size):
    window = torch.hamming_window(size, False, dtype=torch.float64)
    window = window[:, None] * window
    return window / window.sum()


def test_freqfusion_starts_as_smoothing():
    """Kernels next to their windows, samples next to their own places."""
    torch.manual_seed(0)
    module = build(dict(type='freqfusion'), 64).double()
    x, guide = maps((5, 6), (10, 12), 64, 64)
    kernels = module.predict(x, guide)
    expected = hamming(5).reshape(1, 25, 1, 1).expand_as(kernels)
    torch.testing.assert_close(kernels, expected, rtol=0.3, atol=0)
    smooth = F.conv2d(
        guide, hamming(3).expand(64, 1, 3, 3), padding=1, groups=guide.shape[1]
    )
    expected = module.reassemble(x, expected) + guide - smooth
    assert 0 < (module(x, guide) - expected).abs().mean() < 0.05


@pytest.mark.parametrize(
    'offset_init, mean', [('normal', 0.013), ('xavier', 0.65)], ids=['normal', 'xavier']
)
def test_freqfusions_two_starts_reach_as_far_as_the_docs_say(offset_init, mean):
    """Source pixels; the authors' file gave 0.013 and 0.66 before and after Xavier."""
    torch.manual_seed(0)
    module = build(dict(type='freqfusion', offset_init=offset_init), 256)
    x, guide = maps((16, 20), (32, 40), 256, 256, n=1, dtype=torch.float32)
    with torch.no_grad():
        _, _, hr, lr = module._filters(x, guide)
        offsets = module._offsets(hr, lr)
    assert offsets.abs().mean().item() == pytest.approx(mean, rel=0.05)
    # the kernels' start is the same
    for encoder in (module.lowpass_encoder, module.highpass_encoder):
        assert 0.0009 < encoder.weight.std() < 0.0011
    for conv in (module.hr_offset, module.lr_offset, module.hr_scope, module.lr_scope):
        fan = conv.weight[0].numel() + conv.weight[:, 0].numel()
        uniform = 0.99 * (6 / fan) ** 0.5 < conv.weight.max() <= (6 / fan) ** 0.5
        assert uniform == (offset_init == 'xavier') and not conv.bias.any()


def test_the_default_starts_are_not_those_of_the_authors_detectors():
    """The docs say so, and which arguments give theirs."""
    gated, plain = (
        build(dict(type='fade', **args)) for args in ({}, {'gating': False})
    )
    assert hasattr(gated, 'gate') and not hasattr(plain, 'gate')
    assert build(dict(type='freqfusion', groups=2)).offset_init == 'normal'


def test_sapas_parameters_are_named_as_in_its_files():
    """Form B's loads as it is; of form G the query of the guide is qy there."""
    linear = {f'{name}.{kind}' for name in ('q', 'k') for kind in ('weight', 'bias')}
    norms = {f'norm_{level}.{kind}' for level in 'xy' for kind in ('weight', 'bias')}
    gated = {f'{name}.{kind}' for name in ('qx', 'gate') for kind in ('weight', 'bias')}
    assert set(build(dict(type='sapa')).state_dict()) == linear | norms
    assert (
        set(build(dict(type='sapa', form='G')).state_dict()) == linear | norms | gated
    )


@pytest.mark.parametrize('neck_class', [UpsampleFPN, UnifiedFPN])
def test_a_neck_keeps_freqfusions_other_start(neck_class):
    neck = neck_class(
        [8, 16], 64, 2, upsample_cfg=dict(type='freqfusion', offset_init='xavier')
    )
    neck.init_weights()
    assert len(neck.upsample_modules)
    assert all(0.04 < m.lr_offset.weight.std() for m in neck.upsample_modules)
    assert all(m.lowpass_encoder.weight.std() < 0.0012 for m in neck.upsample_modules)


def test_a_rule_for_convolutions_reaches_upsamplers_in_a_plain_list():
    """As in the authors' FPN_UPSAMPLE, whose DySample and SAPA start with Xavier."""

    class Neck(BaseModule):
        def __init__(self):
            super().__init__(
                dict(type='Xavier', layer='Conv2d', distribution='uniform')
            )
            cfgs = dict(type='dysample'), dict(type='carafe')
            self.upsample_modules = nn.ModuleList(build(cfg, 64) for cfg in cfgs)

    neck = Neck()
    dysample, carafe_pack = neck.upsample_modules
    assert dysample.offset.weight.std() < 0.0012
    neck.init_weights()
    assert dysample.offset.weight.std() > 0.05
    assert carafe_pack.content_encoder.weight.std() > 0.02


@pytest.mark.parametrize(
    'cfg, number, published, unit',
    [
        # the README of poppinace/fade, six upsamplers in SegFormer-B1
        (dict(type='fade'), 6, 0.29e6, 0.01e6),
        (dict(type='fade', lite=True), 6, 80e3, 1e3),
        # the README of poppinace/sapa: six in SegFormer-B1, three in Faster R-CNN
        (dict(type='sapa'), 6, 0.1e6, 0.1e6),
        (dict(type='sapa'), 3, 0.05e6, 0.01e6),
        (dict(type='carafe'), 3, 0.22e6, 0.01e6),
        # the README of tiny-smart/sapa: four in Faster R-CNN, so P6 is among them
        (dict(type='sapa'), 4, 0.1e6, 0.1e6),
        (dict(type='fade', gating=False), 4, 0.2e6, 0.1e6),
        (dict(type='carafe'), 4, 0.3e6, 0.1e6),
        # the README of Linwei-Chen/FreqFusion: three in Panoptic FPN
        (dict(type='freqfusion'), 3, 0.3e6, 0.1e6),
    ],
    ids=str,
)
def test_parameters_are_the_published_ones(cfg, number, published, unit):
    """To the digits given; SAPA-G's, given as SAPA-B's, are more by its own file.

    The number of upsamplers tells which pyramid a published AP is of.
    """
    count = sum(p.numel() for p in build(cfg, 256).parameters())
    assert round(number * count / unit) == round(published / unit)


# ---- where a guide is, and where none ------------------------------------------


class ShowsItsGuide(nn.Module):
    """A user's own: what it reads from, so that a test sees what it was given."""

    guided = True

    def __init__(self, channels, scale_factor, guide_channels):
        super().__init__()
        self.guide_channels = guide_channels

    def forward(self, x, guide):
        assert guide.shape[1] == self.guide_channels
        return guide


@pytest.mark.parametrize('top_down', ['cascade', 'direct'])
@pytest.mark.parametrize('neck_class', [UpsampleFPN, UnifiedFPN])
def test_the_guide_is_the_levels_own_lateral(neck_class, top_down):
    """Odd sizes too: a guided upsampler hits the level's size exactly."""
    torch.manual_seed(0)
    cfg = dict(type=ShowsItsGuide)
    neck = neck_class([4, 8, 16], 8, 4, upsample_cfg=cfg, top_down=top_down)
    xs = [torch.randn(1, c, 25 >> i, 37 >> i) for i, c in enumerate((4, 8, 16))]
    outs = neck(xs)
    for i, (x, out) in enumerate(zip(xs[:2], outs)):
        twice = 2 * neck.lateral_convs[i](x)
        torch.testing.assert_close(out, neck.fpn_convs[i](twice))


def test_freqfusions_two_levels_meet_in_the_neck():
    """What the neck adds up is the filtered guide and the upsampled map: Y~ + X~."""
    torch.manual_seed(0)
    neck = UpsampleFPN([4, 8], 8, 2, upsample_cfg=dict(type='freqfusion')).double()
    xs = [torch.randn(1, c, n, n, dtype=torch.float64) for c, n in ((4, 6), (8, 3))]
    fine, coarse = (conv(x) for conv, x in zip(neck.lateral_convs, xs))
    weights = neck.upsample_modules[0].state_dict()
    weights = {k: v.numpy() for k, v in weights.items()}
    args = (t.detach().numpy() for t in (coarse, fine))
    fused = fine + torch.from_numpy(loops.freqfusion(*args, weights, 5))
    torch.testing.assert_close(neck(xs)[0], neck.fpn_convs[0](fused))


GUIDED = pytest.mark.parametrize('name', ['fade', 'sapa', 'freqfusion'])
NO_GUIDE = "type='{}' reads high-resolution features as a guide.*UnifiedFPN"


@GUIDED
def test_a_config_names_it(name):
    neck = MODELS.build(Config.fromfile(shapes_config(name)).model.neck)
    assert all(map(is_guided, neck.upsample_modules))


@GUIDED
def test_places_without_a_guide_say_so(name):
    """A mask head's upsampler, and every neck but the two pyramids."""
    words = NO_GUIDE.format(name)
    with pytest.raises(ValueError, match=words):
        build_upsampler(dict(type=name), 8)
    with pytest.raises(ValueError, match=words):
        UpsampleMaskHead(num_convs=1, upsample_cfg=dict(type=name))
    neck = dict(type='YOLOXPAFPN', in_channels=[8, 16, 32], out_channels=8)
    cfg = with_upsampler(dict(type='YOLOX', neck=neck), dict(type=name))
    with pytest.raises(ValueError, match='of YOLOXPAFPN, .*' + words):
        MODELS.build(cfg['neck'])


def test_mmcvs_build_upsample_layer_says_so():
    with pytest.raises(TypeError, match='guide_channels'):
        build_upsample_layer(dict(type=FADE, channels=8, scale_factor=2))


@pytest.mark.parametrize('name', UNGUIDED)
def test_others_do_without_the_guide(name):
    """Also where a neck has one."""
    module = build_upsampler(dict(type=name), 8, 2, guide_channels=8)
    x, guide = torch.randn(1, 8, 3, 4), torch.randn(1, 8, 6, 8)
    torch.testing.assert_close(upsample_to(module, x, (6, 8), guide), module(x))


# ---- pictures ------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize('target', [(6, 8), (5, 8)])
def test_kernels_in_a_picture_give_the_output(cfg, target):
    """At an odd size in blocks, as other upsamplers' are before a neck crops them."""
    module = as_if_trained(cfg).float().eval()
    x, guide = maps((3, 4), target, n=1, dtype=torch.float32)
    shown = kernel_maps(module, x, guide=guide)
    assert (shown.size, shown.scale_factor) == ((6, 8), 2)
    masks = shown.kernels.reshape(6, 8, -1).transpose(2, 0, 1)[None]
    out = loops.carafe(x.numpy(), masks, 3, 1, 2)[:, :, : target[0]]
    with torch.no_grad():
        expected = module.reassemble(x, module.predict(x, guide))
    np.testing.assert_allclose(out, expected, atol=1e-5)


# ---- bad input -----------------------------------------------------------------


@pytest.mark.parametrize(
    'cfg, error, words',
    [
        (dict(type='sapa', form='H'), ValueError, "form .* 'B', 'G', got 'H'"),
        (
            dict(type='freqfusion', groups=2, offset_init='zero'),
            ValueError,
            "offset_init must be one of 'normal', 'xavier', got 'zero'",
        ),
        (
            dict(type='sapa', embedding_channels=0),
            ValueError,
            'embedding_channels .* 0',
        ),
        (dict(type='sapa', up_kernel=4), ValueError, 'kernel_size must be odd, .* 4'),
        (
            dict(type='fade', encoder_kernel=2),
            ValueError,
            'encoder_kernel .* odd, got 2',
        ),
        (
            dict(type='fade', lite=True, compressed_channels=64),
            ValueError,
            'lite=True compresses to .* 25, got compressed_channels=64; leave it out',
        ),
        (dict(type='freqfusion', groups=4), ValueError, 'groups=4 for 6 channels'),
        (
            dict(type='freqfusion', groups=2, compressed_channels=12),
            ValueError,
            'compressed_channels must be a multiple of 8, .* got 12',
        ),
        (
            dict(type='freqfusion', groups=2, highpass_kernel=4),
            ValueError,
            'highpass_kernel must be odd, got 4',
        ),
        (dict(type='fade', scale_factor=0), ValueError, 'scale_factor .* 1, got 0'),
        (
            dict(type='fade', guide_channels=5),
            ValueError,
            'gating=True .* the 6 channels of the features, got 5; use gating=False',
        ),
        (
            dict(type='freqfusion', groups=2, guide_channels=5),
            ValueError,
            'guide_channels must be the 6 channels of the features, .* got 5',
        ),
        (dict(type='sapa', guide_channels=2.0), TypeError, 'guide_channels .* int'),
        (dict(type='sapa', guide=8), TypeError, 'guide=8 is not .*form, up_kernel'),
    ],
    ids=str,
)
def test_wrong_arguments_say_what_to_do(cfg, error, words):
    cfg = dict(cfg)
    site = dict(scale_factor=2, guide_channels=6)
    site.update({k: cfg.pop(k) for k in site if k in cfg})
    with pytest.raises(error, match=words):
        build_upsampler(cfg, 6, **site)


@KINDS
@pytest.mark.parametrize(
    'shape, error, words',
    [
        ((2, 6, 2, 8), ValueError, r'at least 3, at least 4\), got \(2, 6, 2, 8\)'),
        ((2, 6, 6, 3), ValueError, r'at least 3, at least 4\), got \(2, 6, 6, 3\)'),
        ((2, 5, 6, 8), ValueError, r'= \(2, 6, at .* got \(2, 5, 6, 8\)'),
        ((1, 6, 6, 8), ValueError, r'= \(2, 6, at .* got \(1, 6, 6, 8\)'),
        ((6, 6, 8), ValueError, r'= \(2, 6, at .* got \(6, 6, 8\)'),
        (None, TypeError, 'must be a Tensor .*, got NoneType'),
    ],
    ids=str,
)
def test_a_guide_that_does_not_fit_is_named(cfg, shape, error, words):
    guide = None if shape is None else torch.zeros(shape)
    with pytest.raises(error, match=f'guide of .* {words}'):
        build(cfg)(torch.zeros(2, 6, 3, 4), guide)
