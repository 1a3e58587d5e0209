import inspect
import io

import mmcv.ops
import mmengine
import onnxruntime
import op_benchmark
import pytest
import torch
from conftest import upsample
from mmcv.cnn import build_upsample_layer
from torch import func, nn

from dlu_mmdet.upsamplers import UPSAMPLERS, build_upsampler, is_guided
from dlu_mmdet.utils.torch_compat import AT_LEAST_24

NAMES = sorted(UPSAMPLERS.module_dict)


def test_the_six_names_of_the_readme_exist():
    assert set(NAMES) >= {
        'nearest',
        'bilinear',
        'deconv',
        'pixel_shuffle',
        'carafe',
        'dlu',
    }


def trained(name, dtype=torch.float32):
    """An upsampler that is no longer at its start, and its inputs."""
    torch.manual_seed(0)
    # two channels in a group of LDA-AQU's offsets, whose norm ignores a single one
    module = build_upsampler(dict(type=name), 16, guide_channels=16).to(dtype)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.1)
    inputs = (
        torch.randn(2, 16, 3, 5, dtype=dtype),
        torch.randn(2, 16, 6, 10).to(dtype),
    )
    return module, inputs if is_guided(module) else inputs[:1]


@pytest.mark.parametrize('name', NAMES)
def test_symbolic_trace(name):
    """By torch.fx, which quantization, pruning and feature extraction start from."""
    module, inputs = trained(name)
    traced = torch.fx.symbolic_trace(module)
    for size in (inputs, [x[:1].transpose(2, 3) for x in inputs]):
        out = traced(*size)
        torch.testing.assert_close(out, module(*size), rtol=0, atol=0)
    if weights := list(module.parameters()):
        assert all(w.abs().sum() > 0 for w in torch.autograd.grad(out.sum(), weights))


@pytest.mark.filterwarnings('ignore:There is a performance drop')
@pytest.mark.parametrize('name', NAMES)
def test_torch_func(name):
    """Forward mode is the transpose of reverse mode; vmap is a loop over images."""
    module, inputs = trained(name, torch.float64)
    weights = dict(module.named_parameters())

    def call(weights, *images):
        images = [x[None] for x in images]
        return func.functional_call(module, weights, tuple(images)).square().sum()

    images = [x[0] for x in inputs]
    gradients = func.grad(call)(weights, *images)
    # vmap of grid_sample's gradient for the grid alone is an error of torch 2.1
    if weights and (AT_LEAST_24 or name not in ('dysample', 'lda_aqu')):  # per sample
        each = func.vmap(func.grad(call), (None, *(0 for _ in inputs)))(
            weights, *inputs
        )
        first = {key: grad[0] for key, grad in each.items()}
        torch.testing.assert_close(first, gradients)
    tangents = tuple(torch.randn_like(x) for x in inputs)
    if name in ('dysample', 'freqfusion', 'lda_aqu'):
        with pytest.raises(NotImplementedError, match='grid_sampler_2d'):  # torch's
            func.jvp(module, inputs, tangents)
        return
    out, tangent = func.jvp(module, inputs, tangents)
    cotangent = torch.randn_like(out)
    back = func.vjp(module, *inputs)[1](cotangent)
    expected = sum((a * b).sum() for a, b in zip(back, tangents))
    torch.testing.assert_close((tangent * cotangent).sum(), expected)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', NAMES)
def test_the_older_exporter(name):
    """That of TorchScript, mmdeploy's, at its opset or the first with GridSample."""
    module = build_upsampler(dict(type=name), 8, guide_channels=8).eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    inputs = {'x': torch.randn(1, 8, 6, 8), 'guide': torch.randn(1, 8, 12, 16)}
    if not is_guided(type(module)):
        del inputs['guide']
    kwargs = {}
    if 'dynamo' in inspect.signature(torch.onnx.export).parameters:
        kwargs['dynamo'] = False
    file = io.BytesIO()
    torch.onnx.export(
        module,
        tuple(inputs.values()),
        file,
        opset_version=16 if name in ('dysample', 'freqfusion', 'lda_aqu') else 11,
        input_names=list(inputs),
        dynamic_axes={key: {0: 'n', 2: f'h{key}', 3: f'w{key}'} for key in inputs},
        **kwargs,
    )
    # a size that was not traced
    inputs = {key: torch.randn(2, 8, *x.shape[:1:-1]) for key, x in inputs.items()}
    run = onnxruntime.InferenceSession(
        file.getvalue(), providers=['CPUExecutionProvider']
    )
    (out,) = run.run(None, {key: x.numpy() for key, x in inputs.items()})
    expected = module(*inputs.values()).detach()
    close = dict(rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    torch.testing.assert_close(torch.from_numpy(out), expected, **close)


@pytest.mark.parametrize('shape', [(1, 8, 0, 5), (1, 8, 3, 0)])
@pytest.mark.parametrize('name', NAMES)
def test_a_map_without_pixels_is_refused(name, shape):
    """As F.interpolate refuses it; nothing makes such a map on purpose."""
    with pytest.raises((RuntimeError, ValueError), match='size|shape'):
        module = build_upsampler(dict(type=name), 8, guide_channels=8)
        upsample(module, torch.randn(shape))


@pytest.mark.parametrize(
    'scale, dlu, carafe',
    [
        (2, 35_489, 74_148),
        (4, 49_337, 247_248),
        (8, 104_729, 939_648),
        (16, 326_297, 3_709_248),
    ],
)
def test_parameters_are_the_papers(scale, dlu, carafe):
    def count(name):
        module = build_upsampler(dict(type=name), 256, scale)
        return sum(p.numel() for p in module.parameters())

    assert (count('dlu'), count('carafe')) == (dlu, carafe)


def test_dlu_has_the_keys_of_the_authors_file():
    module = build_upsampler(dict(type='dlu', up_group=2), 16)
    shapes = {k: tuple(v.shape) for k, v in module.state_dict().items()}
    assert shapes == {
        'channel_compressor.weight': (64, 16, 1, 1),
        'channel_compressor.bias': (64,),
        'kernel_space_generator.weight': (50, 64, 3, 3),
        'kernel_space_generator.bias': (50,),
        'conv_offset.weight': (16, 64, 3, 3),
        'conv_offset.bias': (16,),
    }


def test_dlu_starts_as_a_box_filter():
    torch.manual_seed(0)
    x = torch.randn(1, 4, 6, 7)
    kernels, offsets = build_upsampler(dict(type='dlu'), 4).predict(x)
    assert torch.equal(offsets, torch.zeros(1, 8, 6, 7))
    torch.testing.assert_close(
        kernels, torch.full((1, 25, 6, 7), 1 / 25), rtol=0.05, atol=0
    )
    torch.testing.assert_close(kernels.sum(1), torch.ones(1, 6, 7))


def test_dlu_normalizes_each_group():
    module = build_upsampler(dict(type='dlu', up_group=2, up_kernel=3), 4)
    nn.init.normal_(module.kernel_space_generator.weight)
    kernels, _ = module.predict(torch.randn(1, 4, 3, 3))
    torch.testing.assert_close(
        kernels.view(1, 2, 9, 3, 3).sum(2), torch.ones(1, 2, 3, 3)
    )


@pytest.mark.parametrize('group', [1, 2])
def test_carafe_is_mmcvs(group):
    args = dict(channels=8, scale_factor=2, up_group=group)
    theirs = mmcv.ops.CARAFEPack(**args)
    ours = build_upsampler(dict(type='carafe', up_group=group), 8)
    assert ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 8, 4, 5)
    mask = theirs.kernel_normalizer(
        theirs.content_encoder(theirs.channel_compressor(x))
    )
    # mmcv's own naive definition; its fused operator needs a GPU
    k, s = 5, 2
    patches = nn.functional.unfold(x, k, padding=k // 2)
    patches = patches.view(1, group, 8 // group, k * k, 4, 5)
    patches = patches.repeat_interleave(s, -2).repeat_interleave(s, -1)
    expected = (patches * mask.view(1, group, 1, k * k, 8, 10)).sum(3)
    torch.testing.assert_close(ours(x), expected.reshape(1, 8, 8, 10))


def test_mmcvs_own_names_build_ours():
    """Mask heads and necks of mmdet build upsamplers through mmcv."""
    carafe = build_upsample_layer(dict(type='carafe', channels=8, scale_factor=2))
    assert carafe(torch.randn(1, 8, 2, 2)).shape == (1, 8, 4, 4)
    assert isinstance(carafe, mmcv.ops.CARAFEPack)
    dlu = build_upsample_layer(dict(type='dlu', channels=8, scale_factor=2))
    assert dlu(torch.randn(1, 8, 2, 2)).shape == (1, 8, 4, 4)


def test_the_benchmark_lists_every_upsampler():
    table = op_benchmark.measure_upsamplers((2, 3), rounds=1).splitlines()
    assert all(line.count('|') == table[0].count('|') for line in table)
    names = [line.split('|')[1].strip() for line in table[2:]]
    assert names[0] == 'bilinear' and sorted(names) == sorted(UPSAMPLERS.module_dict)


@UPSAMPLERS.register_module()
class Repeat(nn.Module):
    def __init__(self, channels, scale_factor, axis_order='yx'):
        super().__init__()
        self.scale_factor = scale_factor

    def forward(self, x):
        return x.repeat_interleave(self.scale_factor, 2).repeat_interleave(
            self.scale_factor, 3
        )


@mmengine.MODELS.register_module()
class RepeatInModels(Repeat):
    pass


@pytest.mark.parametrize('type_', ['Repeat', 'RepeatInModels', Repeat])
def test_users_own_classes(type_):
    module = build_upsampler(dict(type=type_), 4)
    assert module(torch.randn(1, 4, 2, 2)).shape == (1, 4, 4, 4)


@pytest.mark.parametrize(
    'cfg, error, words',
    [
        (dict(type='dlux'), ValueError, ['dlux', *NAMES]),
        (dict(up_kernel=5), ValueError, ['type', *NAMES]),
        ('dlu', TypeError, ['upsample_cfg', 'dict', "'dlu'"]),
        (
            dict(type='dlu', kernel=5),
            TypeError,
            ['upsample_cfg.kernel=5', 'dlu', 'up_kernel', 'up_group'],
        ),
        (
            dict(type='nearest', up_kernel=5),
            TypeError,
            ['up_kernel', 'nearest', 'none'],
        ),
        (dict(type='dlu', up_kernel=4), ValueError, ['kernel', '4', 'odd']),
        (dict(type='carafe', up_kernel=4), ValueError, ['kernel', '4', 'odd']),
        (dict(type='dlu', encoder_kernel=2), ValueError, ['encoder_kernel', '2']),
        (dict(type='dlu', up_group=3), ValueError, ['group', '3', '8 channels']),
        (
            dict(type='deconv', upsample_kernel=1),
            ValueError,
            ['upsample_kernel', '1', '2'],
        ),
    ],
)
def test_wrong_config_says_what_to_do(cfg, error, words):
    with pytest.raises(error) as info:
        build_upsampler(cfg, channels=8)
    for word in words:
        assert word in str(info.value)


@pytest.mark.parametrize('name', ['dlu', 'carafe'])
def test_scale_below_one(name):
    with pytest.raises(ValueError, match='scale_factor.*0'):
        build_upsampler(dict(type=name), channels=8, scale_factor=0)


def test_dlu_starts_at_the_sub_pixels_places():
    """Offsets by the formula of bilinear interpolation, x first; zero without it."""
    x = torch.randn(1, 4, 2, 3)
    cfg = dict(type='dlu', offset_init='subpixel', up_group=2)
    offsets = build_upsampler(cfg, 4, 3).predict(x)[1].reshape(1, 2, 2, 3, 3, 2, 3)
    for i in range(3):
        for j in range(3):
            for axis, place in enumerate(((j + 0.5) / 3 - 0.5, (i + 0.5) / 3 - 0.5)):
                expected = torch.full((1, 2, 2, 3), place)
                torch.testing.assert_close(offsets[:, :, axis, i, j], expected)
    with pytest.raises(
        ValueError, match="offset_init .* 'zero', 'subpixel', got 'box'"
    ):
        build_upsampler(dict(type='dlu', offset_init='box'), 4)


@pytest.mark.parametrize('start', ['zero', 'subpixel'])
def test_bounded_offsets(start):
    """Small offsets stay as they are, none leaves the range, the start is the same."""
    x = torch.randn(1, 4, 2, 3)
    cfg = dict(type='dlu', offset_init=start)
    free = build_upsampler(cfg, 4)
    bounded = build_upsampler(dict(cfg, offset_range=1.5), 4)
    torch.testing.assert_close(bounded.predict(x)[1], free.predict(x)[1])
    for weight in (1e-3, 100):
        for module in (free, bounded):
            torch.nn.init.constant_(module.conv_offset.weight, weight)
        bounded.load_state_dict(
            dict(free.state_dict(), **{'conv_offset.bias': bounded.conv_offset.bias})
        )
        offsets = bounded.predict(x)[1]
        raw = bounded.conv_offset(bounded.channel_compressor(x))
        torch.testing.assert_close(offsets, 1.5 * torch.tanh(raw / 1.5))
        assert (offsets.abs() <= 1.5).all()
    assert (offsets.abs() > 1.4).any()
    with pytest.raises(ValueError, match='offset_range .* above 0.5.* got 0.25'):
        build_upsampler(dict(type='dlu', offset_range=0.25), 4)
