"""Interpolation and a convolution, against loops and its published form."""

import pytest
import torch
from helpers import loops
from torch import nn

from dlu_mmdet.evaluation.complexity import count_parameters
from dlu_mmdet.upsamplers import build_upsampler, upsample_to


def build(channels=4, scale_factor=2, **kwargs):
    return build_upsampler(dict(type='resize_conv', **kwargs), channels, scale_factor)


@pytest.mark.parametrize('depthwise', [False, True])
@pytest.mark.parametrize('mode', ['nearest', 'bilinear'])
@pytest.mark.parametrize('scale', [1, 2, 3])
def test_it_is_the_formula(mode, depthwise, scale):
    """If it fails, it is no control for "one more convolution"."""
    torch.manual_seed(0)
    module = build(6, scale, mode=mode, depthwise=depthwise).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    weights = {k: v.detach().numpy() for k, v in module.state_dict().items()}
    groups = module.norm.num_groups if depthwise else None
    expected = loops.resize_conv(x.numpy(), weights, mode, scale, groups)
    torch.testing.assert_close(module(x), torch.from_numpy(expected))


def test_it_goes_to_the_size_of_the_level():
    """As interpolation does: the convolution sees no repeated border."""
    module, x = build(), torch.randn(1, 4, 3, 5)
    out = upsample_to(module, x, (5, 9), scale_factor=2)
    expected = module.conv(nn.functional.interpolate(x, (5, 9)))
    torch.testing.assert_close(out, expected)


def test_parameters():
    """The dense form has those of deconv; both start with Xavier's variance."""
    torch.manual_seed(0)
    dense, depthwise = build(256), build(256, depthwise=True)
    deconv = build_upsampler(dict(type='deconv'), 256)
    deconv.init_weights()
    assert count_parameters(dense) == count_parameters(deconv) == 590_080
    assert count_parameters(depthwise) == 9 * 256 + 2 * 256 + 257 * 256
    assert 0.98 < dense.conv.weight.std() / deconv.weight.std() < 1.02
    assert not dense.conv.bias.any()


@pytest.mark.parametrize(
    'cfg, error, words',
    [
        (
            dict(mode='bicubic'),
            ValueError,
            "mode must be one of 'nearest', 'bilinear', got 'bicubic'",
        ),
        (
            dict(depthwise='yes'),
            TypeError,
            "depthwise must be True or False, got 'yes'",
        ),
        (dict(channels=0), ValueError, 'channels must be at least 1, got 0'),
        (dict(scale_factor=2.0), TypeError, 'scale_factor must be an int, got 2.0'),
    ],
    ids=str,
)
def test_wrong_arguments_say_what_to_do(cfg, error, words):
    with pytest.raises(error, match=words):
        build(**cfg)
