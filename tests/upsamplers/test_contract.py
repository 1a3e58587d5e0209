"""The contract: what necks and tools ask of every upsampler, and who breaks it."""

import re

import pytest
import torch
import torch.nn.functional as F
from conftest import needs_later_torch
from torch import nn

from dlu_mmdet.necks import UnifiedFPN, UpsampleFPN
from dlu_mmdet.ops import library
from dlu_mmdet.upsamplers import UPSAMPLERS, build_upsampler
from dlu_mmdet.upsamplers.contract import CHECKS, Subject, check_upsampler

# every upsampler, and the forms that are other code
CFGS = [
    *(dict(type=name) for name in sorted(UPSAMPLERS.module_dict)),
    dict(type='dlu', up_group=2),
    dict(type='dlu', offset_init='subpixel'),
    dict(type='carafe', up_group=4),
    dict(type='dysample', dyscope=True),
    dict(type='dysample', style='pl'),
    dict(type='dysample', style='pl', dyscope=True),
    dict(type='fade', gating=False),
    dict(type='fade', lite=True),
    dict(type='sapa', form='G'),
    dict(type='lda_aqu', groups=4, compressed_channels=8),
    dict(type='resize_conv', mode='bilinear'),
    dict(type='resize_conv', depthwise=True),
    dict(type='freqfusion', groups=2, compressed_channels=8),
]
EVERY_FORM = pytest.mark.parametrize(
    'cfg', CFGS, ids=lambda cfg: '-'.join(map(str, cfg.values()))
)


@EVERY_FORM
@pytest.mark.parametrize('title', [title for title, _, _ in CHECKS])
def test_every_upsampler_keeps_the_contract(title, cfg):
    """Necks, tools, checkpoints and exports rely on it, of a user's class too."""
    if title in ('compile', 'export') and 'compressed_channels' in cfg:
        pytest.skip('half a minute, for code that the default form has run')
    # 'pl' of DySample takes multiples of the ratio squared
    subject = Subject(cfg, 144 if cfg.get('style') == 'pl' else 16, 16)
    dict((title, check) for title, check, _ in CHECKS)[title](subject)


@EVERY_FORM
@pytest.mark.parametrize('title', ['sizes', 'gradients', 'gradcheck', 'empty batch'])
def test_without_the_compiled_operators_too(title, cfg, monkeypatch):
    monkeypatch.setattr(library, '_DEVICE_TYPES', frozenset())
    test_every_upsampler_keeps_the_contract(title, cfg)


@pytest.mark.parametrize(
    'cfg',
    [cfg for cfg in CFGS if cfg['type'] not in ('nearest', 'bilinear')],
    ids=lambda cfg: '-'.join(map(str, cfg.values())),
)
def test_autocast_trains_every_parameter(cfg):
    """If it fails, --amp trains a part of an upsampler."""
    subject = Subject(cfg, 144 if cfg.get('style') == 'pl' else 16, 16)
    module = subject.trained()
    with torch.autocast('cpu', torch.bfloat16):
        out = module(*subject.inputs())
    out.float().square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad.dtype == torch.float32 and parameter.grad.any(), name


@EVERY_FORM
@pytest.mark.parametrize('neck_class', [UpsampleFPN, UnifiedFPN])
def test_a_neck_leaves_the_start_alone(neck_class, cfg):
    """Its rule for convolutions is Xavier, which would replace an upsampler's own."""
    torch.manual_seed(0)
    neck = neck_class([8, 16], 64, 2, upsample_cfg=cfg)
    neck.init_weights()
    alone = build_upsampler(cfg, 64, 2, 64)
    if hasattr(alone, 'init_weights'):
        alone.init_weights()
    assert len(neck.upsample_modules)
    for module in neck.upsample_modules:
        for (key, kept), own in zip(module.named_parameters(), alone.parameters()):
            if own.unique().numel() == 1:
                assert torch.equal(kept, own), key
            elif own.numel() >= 64:  # random: its spread
                assert 0.6 < kept.std() / own.std() < 1.6, key


# ---- classes that break it, each in one check --------------------------------------


class Fine(nn.Module):
    def __init__(self, channels, scale_factor=2):
        super().__init__()
        self.scale_factor = scale_factor
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return F.interpolate(self.conv(x), scale_factor=self.scale_factor)


class OneRatio(Fine):
    def forward(self, x):
        return F.interpolate(self.conv(x), scale_factor=2)


class Channels(Fine):
    def forward(self, x):
        return super().forward(x)[:, :3]


class NoGuideSize(Fine):
    guided = True

    def __init__(self, channels, scale_factor, guide_channels):
        super().__init__(channels, scale_factor)

    def forward(self, x, guide):
        return super().forward(x)


class Double(Fine):
    def forward(self, x):
        return super().forward(x).double()


class Dropout(Fine):
    def forward(self, x):
        return F.dropout(super().forward(x), 0.5)


class InPlace(Fine):
    def forward(self, x):
        return super().forward(x if x.requires_grad else x.mul_(0.5))


class OverTheBatch(Fine):
    def forward(self, x):
        return super().forward(x - x.mean(0) if len(x) else x)


class Unused(Fine):
    def __init__(self, channels, scale_factor=2):
        super().__init__(channels, scale_factor)
        self.other = nn.Linear(1, 1)


class Detached(Fine):
    def forward(self, x):
        return super().forward(x.detach())


class Infinite(Fine):
    def forward(self, x):
        return super().forward(x) + (x.mean() * 0).sqrt()


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class WrongDerivative(Fine):
    def forward(self, x):
        return super().forward(Doubled.apply(x))


class Mixed(Fine):
    def forward(self, x):
        y, rows = torch.zeros_like(x), torch.arange(x.shape[2])
        y[:, :, rows] = self.conv(x)
        return F.interpolate(y, scale_factor=self.scale_factor)


class Reshaped(Fine):
    def forward(self, x):
        return super().forward(x.reshape(len(x), -1, *x.shape[2:]))


class Strided(Fine):
    def forward(self, x):
        strides = x.new_empty(x.shape).stride()
        return super().forward(x.as_strided(x.shape, strides))


class Unregistered(Fine):
    def __init__(self, channels, scale_factor=2):
        super().__init__(channels, scale_factor)
        self.weights = [torch.randn(channels, 1, 1)]

    def forward(self, x):
        return super().forward(x * self.weights[0].to(x))


class Lambda(Fine):
    def __init__(self, channels, scale_factor=2):
        super().__init__(channels, scale_factor)
        self.activation = lambda x: x


class ByValue(Fine):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


class BySize(Fine):
    def forward(self, x):
        return super().forward(x if x.shape[2] > 5 else -x)


@pytest.mark.parametrize(
    ('cls', 'title', 'message'),
    [
        (OneRatio, 'sizes', r'ratio of 1, for .*must give \(2, 32, 1, 1\)'),
        (Channels, 'sizes', r'gave \(2, 3, 1, 1\)'),
        (
            NoGuideSize,
            'requested size',
            r'must give \(2, 32, 5, 9\).*size of its guide',
        ),
        (Double, 'dtype', 'gave torch.float64 for torch.float32; make'),
        (Dropout, 'eval', 'a second call differs.*self.training'),
        (InPlace, 'eval', 'changes its input in place'),
        (OverTheBatch, 'eval', 'an image without the others differs'),
        (Unused, 'gradients', 'other.weight got no gradient; use every parameter'),
        (Detached, 'gradients', 'input got no gradient'),
        (Infinite, 'gradients', 'gradient of its input is not finite'),
        (WrongDerivative, 'gradcheck', 'Jacobian mismatch.*derivative of its forward'),
        (Mixed, 'autocast', r'raised RuntimeError: Index put.*\.to\(x\.dtype\)'),
        (Reshaped, 'empty batch', 'cannot reshape tensor of 0.*explicit sizes'),
        (Strided, 'channels_last', 'the output differs.*strides'),
        (Unregistered, 'state_dict', 'the output differs.*nn.Parameter'),
        (Lambda, 'copies', 'lambda.*keep no lambda'),
        pytest.param(
            ByValue, 'compile', 'that torch.compile can trace', marks=needs_later_torch
        ),
        pytest.param(
            BySize,
            'export',
            'no Python if depend on the size',
            marks=needs_later_torch,
        ),
    ],
)
def test_a_broken_class_fails_first_where_it_is_broken(cls, title, message):
    found = check_upsampler(dict(type=cls))
    first, problem = next((t, p) for t, p in found if p)
    assert first == title and re.search(message, problem), problem
