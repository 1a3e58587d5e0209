"""LDA-AQU against its formula as loops, its published count and its start."""

import pytest
import torch
import torch.nn.functional as F
from conftest import HALVES
from helpers import loops
from torch import nn

from dlu_mmdet.evaluation.complexity import count_parameters
from dlu_mmdet.upsamplers import build_upsampler
from dlu_mmdet.utils.timing import peak_memory
from dlu_mmdet.visualization.kernel_maps import kernel_maps


def build(channels=16, scale_factor=2, **kwargs):
    return build_upsampler(dict(type='lda_aqu', **kwargs), channels, scale_factor)


def as_if_trained(*args, **kwargs):
    """Offsets of several pixels, which reach over the border too; in float64."""
    torch.manual_seed(0)
    module = build(*args, **kwargs).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


@pytest.mark.parametrize(
    'scale, size, kind',
    [
        (2, (3, 5), {}),
        (2, (1, 3), {}),
        (3, (4, 1), dict(groups=1, offset_range=2.5)),
        (1, (3, 2), dict(groups=4, encoder_kernel=1)),
        (1, (1, 1), {}),
        (2, (2, 3), dict(up_kernel=5, compressed_channels=6)),
    ],
)
def test_it_is_the_formula(scale, size, kind):
    """If it fails, AP of this upsampler says nothing about LDA-AQU."""
    module = as_if_trained(16, scale, **kind)
    x = torch.randn(2, 16, *size, dtype=torch.float64)
    weights = {k: v.detach().numpy() for k, v in module.state_dict().items()}
    sizes = module.up_kernel, module.groups, scale, module.offset_range
    expected = loops.lda_aqu(x.numpy(), weights, *sizes)
    torch.testing.assert_close(module(x), torch.from_numpy(expected))


def test_it_has_the_keys_and_the_parameters_of_the_authors_file():
    shapes = {k: tuple(v.shape) for k, v in build(256).state_dict().items()}
    assert shapes == {
        'relative_position_bias_table': (9, 64),
        'layer_norm.norm.weight': (256,),
        'layer_norm.norm.bias': (256,),
        'proj_q.weight': (64, 256, 1, 1),
        'proj_k.weight': (64, 256, 1, 1),
        'conv_offset.0.weight': (32, 1, 3, 3),
        'conv_offset.1.norm.weight': (32,),
        'conv_offset.1.norm.bias': (32,),
        'conv_offset.3.weight': (18, 32, 3, 3),
        'conv_offset.3.bias': (18,),
    }
    assert count_parameters(build(256)) == 39_410


def test_it_takes_the_authors_position_bias():
    """Their table has five dimensions, in a neck's checkpoint too."""
    module, key = build(), 'relative_position_bias_table'
    theirs = module.state_dict() | {key: torch.randn(1, 1, 1, 9, 4)}
    nn.Sequential(module).load_state_dict({f'0.{k}': v for k, v in theirs.items()})
    assert torch.equal(module.relative_position_bias_table, theirs[key][0, 0, 0])
    assert theirs[key].dim() == 5


def test_it_starts_at_its_own_window():
    """Without offsets, and with attention that the queries already move."""
    torch.manual_seed(0)
    module, x = build(256), torch.randn(1, 256, 6, 7)
    weights, positions = module.predict(x)
    assert weights.shape == (1, 9, 12, 14) and positions.shape == (2, 9, 12, 14, 2)
    # the last tap is right of and below its pixel
    own = (positions + 1) / 2 * torch.tensor([13, 11])
    torch.testing.assert_close(own[0, 8, 3, 5], torch.tensor([6.0, 4.0]))
    torch.testing.assert_close(weights.sum(1), torch.ones(1, 12, 14))
    assert 0.018 < module.relative_position_bias_table.std() < 0.022
    bound = (6 / (256 + 64)) ** 0.5
    assert 0.99 * bound < module.proj_q.weight.abs().max() <= bound


@pytest.mark.parametrize('dtype', HALVES)
def test_half_precision_keeps_the_positions(dtype):
    """Pixels of a map 300 wide lie closer than bfloat16 can tell apart."""
    module = build(up_kernel=1)
    x = torch.randn(1, 16, 2, 300)
    # one tap without an offset
    expected = F.interpolate(x, scale_factor=2, mode='bilinear', align_corners=True)
    torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-3)
    half = module.to(dtype)(x.to(dtype))
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), expected, rtol=0.01, atol=0.02)


def test_memory_is_that_of_the_output():
    """Of all taps at once, the samples alone would be 9 times as much."""
    module, x = build(256), torch.randn(1, 256, 24, 32)
    with torch.no_grad():
        peak = peak_memory(lambda: module(x), x.device)
    assert peak < 5 * 4 * x.nbytes
    x.requires_grad_()
    peak = peak_memory(lambda: module(x).sum().backward(), x.device)
    assert peak < 12 * 4 * x.nbytes


def test_the_form_of_exports_is_the_same(monkeypatch):
    """If it fails, an exported model samples other points than the trained one."""
    module = as_if_trained(16, 2)
    x = torch.randn(2, 16, 3, 5, dtype=torch.float64, requires_grad=True)
    inputs = [x, *module.parameters()]
    expected = module(x)
    gradient = torch.randn_like(expected)
    expected = [expected, *torch.autograd.grad(expected, inputs, gradient)]
    monkeypatch.setattr(torch.onnx, 'is_in_onnx_export', lambda: True)
    out = module(x)
    out = [out, *torch.autograd.grad(out, inputs, gradient)]
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize('scale', [1, 2])
def test_the_kernels_of_a_picture_give_the_output(scale):
    """If it fails, the picture shows other points or weights than those in use."""
    module = as_if_trained(scale_factor=scale, offset_range=5).float()
    x = torch.randn(1, 16, 4, 5)
    with torch.no_grad():
        expected = module(x).chunk(2, dim=1)
    for group, (part, wanted) in enumerate(zip(x.chunk(2, dim=1), expected)):
        maps = kernel_maps(module, x, group)
        k = maps.kernel_size
        masks = maps.kernels.reshape(*maps.size, -1).transpose(2, 0, 1)
        out = loops.carafe(part.numpy(), masks[None], k, 1, scale)
        torch.testing.assert_close(torch.from_numpy(out).float(), wanted)
        assert k > 5 and maps.sample_points is maps.offsets is None
    with pytest.raises(ValueError, match='group .* 0 to 1, got 2; .* groups=2'):
        kernel_maps(module, x, 2)


@pytest.mark.parametrize(
    'cfg, error, words',
    [
        (dict(up_kernel=2), ValueError, 'kernel_size must be odd, .*got 2'),
        (dict(encoder_kernel=2), ValueError, 'encoder_kernel must be odd, got 2'),
        (dict(encoder_kernel=3.0), TypeError, 'encoder_kernel must be an int, got 3.0'),
        (dict(groups=3), ValueError, 'groups must divide channels, .*channels=16'),
        (dict(groups=0), ValueError, 'groups must be at least 1, got 0'),
        (
            dict(groups=4, compressed_channels=6),
            ValueError,
            'groups must divide compressed_channels, .*groups=4 .*channels=6',
        ),
        (
            dict(compressed_channels=0),
            ValueError,
            'compressed_channels must be at least 1, got 0',
        ),
        (dict(offset_range=0), ValueError, 'offset_range must be .*above 0, got 0'),
        (
            dict(offset_range=float('nan')),
            ValueError,
            'offset_range must be finite and above 0, got nan',
        ),
        (dict(offset_range='11'), TypeError, "offset_range must be a .*got '11'"),
        (dict(scale_factor=0), ValueError, 'scale_factor must be at least 1, got 0'),
        (dict(channels=True), TypeError, 'channels must be an int, got True'),
    ],
    ids=str,
)
def test_wrong_arguments_say_what_to_do(cfg, error, words):
    with pytest.raises(error, match=words):
        build(**cfg)
