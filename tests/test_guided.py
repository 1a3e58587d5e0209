"""FADE and SAPA against their formulas, and what every upsampler with a guide has."""

import loops
import pytest
import torch
from torch import nn
from torch.func import functional_call

from dlu_mmdet.ops import library
from dlu_mmdet.upsamplers import build_upsampler

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


@KINDS
@pytest.mark.parametrize(
    'source, target', [((2, 3), (4, 6)), ((2, 2), (3, 5)), ((1, 2), (1, 2))]
)
def test_gradients(cfg, source, target):
    """If it fails, training descends along something else."""
    module = as_if_trained(cfg, channels=2)
    inputs = maps(source, target, 2, 2, n=1)
    names, values = zip(*module.named_parameters())

    def forward(x, guide, *values):
        return functional_call(module, dict(zip(names, values)), (x, guide))

    leaves = [tensor.requires_grad_() for tensor in inputs]
    # of every parameter a few directions only, or it takes minutes
    assert torch.autograd.gradcheck(forward, (*leaves, *values), fast_mode=True)
