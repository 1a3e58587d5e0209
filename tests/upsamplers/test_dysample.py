"""DySample against its formula, its published counts and bilinear interpolation."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import HALVES
from helpers import loops
from torch import nn

from dlu_mmdet.evaluation.complexity import CLOSED_FORMS, count_flops
from dlu_mmdet.ops import library
from dlu_mmdet.upsamplers import build_upsampler
from dlu_mmdet.visualization.kernel_maps import kernel_maps

KINDS = pytest.mark.parametrize(
    'kind',
    [
        dict(style=style, dyscope=dyscope)
        for style in ('lp', 'pl')
        for dyscope in (False, True)
    ],
    ids=lambda kind: kind['style'] + '-dynamic' * kind['dyscope'],
)


def build(channels=8, scale_factor=2, **kwargs):
    return build_upsampler(dict(type='dysample', **kwargs), channels, scale_factor)


def as_if_trained(*args, **kwargs):
    """Offsets of a pixel or so, which reach over the border too; in float64."""
    torch.manual_seed(0)
    module = build(*args, **kwargs).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


def bilinear(x, scale_factor):
    return F.interpolate(x, scale_factor=scale_factor, mode='bilinear')


@KINDS
@pytest.mark.parametrize('scale', [1, 2, 3, 4])
@pytest.mark.parametrize('size', [(3, 5), (1, 4), (5, 1), (1, 1)])
def test_it_is_the_formula(kind, scale, size):
    """If it fails, AP of this upsampler says nothing about DySample."""
    channels, groups = 2 * scale**2, 2
    module = as_if_trained(channels, scale, groups=groups, **kind)
    x = torch.randn(2, channels, *size, dtype=torch.float64)
    weights = {k: v.detach().numpy() for k, v in module.state_dict().items()}
    scope = weights['scope.weight'][..., 0, 0] if kind['dyscope'] else None
    offset = weights['offset.weight'][..., 0, 0], weights['offset.bias']
    expected = loops.dysample(x.numpy(), offset, scope, kind['style'], groups, scale)
    torch.testing.assert_close(module(x), torch.from_numpy(expected))


@KINDS
@pytest.mark.parametrize('scale', [1, 2, 3, 4])
@pytest.mark.parametrize('size', [(7, 5), (1, 4), (1, 1)])
def test_without_offsets_it_is_bilinear_interpolation(kind, scale, size):
    """Borders too; if it fails, training starts from a shifted map."""
    channels = 4 * scale**2
    module = build(channels, scale, **kind).double()
    nn.init.zeros_(module.offset.weight)
    x = torch.randn(2, channels, *size, dtype=torch.float64)
    torch.testing.assert_close(module(x), bilinear(x, scale))


@KINDS
def test_it_starts_next_to_bilinear_interpolation(kind):
    """Not at it: the start is random, and a dynamic scope starts as the static."""
    torch.manual_seed(0)
    module = build(256, **kind)
    assert 0.0009 < module.offset.weight.std() < 0.0011
    assert not module.offset.bias.any()
    x = torch.randn(1, 256, 9, 13)
    out = module(x)
    assert 0 < (out - bilinear(x, 2)).abs().max() < 0.1
    static = build(256, style=kind['style'])
    static.load_state_dict(module.state_dict(), strict=not kind['dyscope'])
    torch.testing.assert_close(out, static(x))


@pytest.mark.parametrize(
    'kind, published',
    [
        (dict(style='lp', groups=4), 32.7),
        (dict(style='lp', groups=4, dyscope=True), 65.5),
        # DySample-S and -S+
        (dict(style='pl', groups=8), 4.1),
        (dict(style='pl', groups=8, dyscope=True), 8.2),
    ],
)
def test_parameters_are_the_papers(kind, published):
    """Thousands in Faster R-CNN's four upsamplers; the paper counts no biases."""
    module = build(256, **kind)
    weights = sum(p.numel() for n, p in module.named_parameters() if 'weight' in n)
    assert abs(4 * weights / 1000 - published) <= 0.1
    outputs = 2 * kind['groups'] * (4 if kind['style'] == 'lp' else 1)
    assert sum(p.numel() for p in module.parameters()) == weights + outputs


@pytest.mark.skipif(
    not library.is_available('cpu'), reason='the extension is not built for the CPU'
)
@KINDS
@pytest.mark.parametrize('scale, groups', [(1, 1), (2, 8), (4, 2)])
def test_flops_are_the_closed_form(kind, scale, groups):
    module = build(32, scale, groups=groups, **kind)
    terms = CLOSED_FORMS['dysample'](module, 32)
    assert terms.pop('interpolation') == 8 * scale**2 * 32
    bias = module.offset.bias.numel()
    assert terms.pop('bias') == 2 * bias * (scale**2 if kind['style'] == 'pl' else 1)
    assert count_flops(module, torch.randn(2, 32, 3, 5)) == 30 * sum(terms.values())


@KINDS
@pytest.mark.parametrize('dtype', HALVES)
def test_half_precision_keeps_the_positions(kind, dtype):
    """Pixels of a map 300 wide lie closer than bfloat16 can tell apart."""
    module = build(scale_factor=2, **kind)
    nn.init.zeros_(module.offset.weight)
    x = torch.randn(1, 8, 2, 300, requires_grad=True)
    expected = bilinear(x, 2)
    with torch.autocast('cpu', dtype):
        out = module(x)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-3)
    out.sum().backward()
    assert x.grad.isfinite().all()
    half = module.to(dtype)(x.detach().to(dtype))
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), expected.detach(), rtol=0.01, atol=0.02)


def test_it_has_the_keys_of_the_authors_file():
    shapes = {k: tuple(v.shape) for k, v in build(dyscope=True).state_dict().items()}
    assert shapes == {
        'offset.weight': (32, 8, 1, 1),
        'offset.bias': (32,),
        'scope.weight': (32, 8, 1, 1),
    }


@KINDS
@pytest.mark.parametrize('scale', [1, 2, 3])
def test_the_kernels_of_a_picture_give_the_output(kind, scale):
    """If it fails, the weights and places in the picture are not those in use."""
    module = as_if_trained(2 * scale**2, scale, groups=2, **kind).float()
    x = torch.randn(1, 2 * scale**2, 4, 5)
    maps = [kernel_maps(module, x, group) for group in range(2)]
    sizes = {m.kernel_size for m in maps}
    with torch.no_grad():
        expected = module(x).chunk(2, dim=1)
    for part, of_group, wanted in zip(x.chunk(2, dim=1), maps, expected):
        masks = of_group.kernels.reshape(*of_group.size, -1).transpose(2, 0, 1)
        k = of_group.kernel_size
        out = loops.carafe(part.numpy(), masks[None], k, 1, scale)
        torch.testing.assert_close(torch.from_numpy(out).float(), wanted)
        assert (
            of_group.sample_points.min() >= 0
            and (of_group.sample_points <= [4, 3]).all()
        )
    assert max(sizes) > 3  # some samples are far away


def test_a_group_that_is_not_there_is_named():
    with pytest.raises(ValueError, match='group .* 0 to 3, got 4; .* groups=4'):
        kernel_maps(build(), torch.zeros(1, 8, 3, 5), 4)


def test_wild_places_make_no_large_picture():
    """A diverged model must not fill the memory of the hook that draws it."""
    module = build(groups=1)
    nn.init.constant_(module.offset.bias, 1e6)
    maps = kernel_maps(module, torch.zeros(1, 8, 3, 40))
    assert maps.kernel_size == 15 and (maps.sample_points == [39, 2]).all()
    assert maps.kernels[:, :64].sum() == 0 and maps.kernels[0, 79].sum() == 1
    nn.init.constant_(module.offset.bias, float('nan'))
    assert np.isnan(kernel_maps(module, torch.zeros(1, 8, 3, 40)).sample_points).all()


@pytest.mark.parametrize(
    'cfg, error, words',
    [
        (dict(groups=3), ValueError, 'groups must divide .*groups=3 for 8 channels'),
        (dict(groups=0), ValueError, 'groups must be at least 1, got 0'),
        (dict(groups=2.0), TypeError, 'groups must be an int, got 2.0'),
        (dict(style='LP'), ValueError, "style must be one of 'lp', 'pl', got 'LP'"),
        (
            dict(style='pl', scale_factor=3),
            ValueError,
            "style='pl' needs .*8 channels for a ratio of 3; use style='lp'",
        ),
        (dict(scale_factor=0), ValueError, 'scale_factor must be at least 1, got 0'),
    ],
    ids=str,
)
def test_wrong_arguments_say_what_to_do(cfg, error, words):
    with pytest.raises(error, match=words):
        build(**cfg)
