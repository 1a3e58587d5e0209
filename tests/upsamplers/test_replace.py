"""Upsamplers in models of other frameworks: `dlu_mmdet.replace_upsampling`."""

import copy
import io
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, needs_later_torch
from torch import nn

from dlu_mmdet import replace_upsampling
from dlu_mmdet.upsamplers import DLUPack

SCRIPT = Path(__file__).with_name('other_frameworks.py')
IMAGE = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Pyramid(nn.Module):
    """Interpolates to the size of a finer map, as torchvision's FPN."""

    def __init__(self, mode='nearest'):
        super().__init__()
        self.mode = mode
        self.downs = nn.ModuleList(
            nn.Conv2d(3 if i == 0 else 4, 4, 3, 2, 1) for i in range(3)
        )

    def forward(self, x):
        maps = []
        for down in self.downs:
            x = down(x)
            maps.append(x)
        for y in maps[-2::-1]:
            x = y + F.interpolate(x, size=y.shape[-2:], mode=self.mode)
        return x


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2))


class Nested(nn.Module):
    """A pyramid, an ``nn.Upsample``, a block that runs twice, a direct call."""

    def __init__(self):
        super().__init__()
        self.pyramid = Pyramid()
        self.up = nn.Upsample(scale_factor=2)
        self.up.index = 7
        self.block = Block()

    def forward(self, x):
        x = self.up(self.pyramid(x))
        x = self.block(self.block(x))
        return F.interpolate(F.avg_pool2d(x, 4), scale_factor=2.0)


class Left(nn.Module):
    """One site, and every other kind of call."""

    def __init__(self):
        super().__init__()
        self.ups = nn.ModuleList(
            [
                nn.Upsample(scale_factor=2),
                nn.Upsample(scale_factor=1.5),
                nn.Upsample(scale_factor=(2, 1)),
                nn.Upsample(scale_factor=2),
            ]
        )
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x):
        for up in self.ups[:3]:
            x = up(x)
        pooled = F.interpolate(self.pool(x), size=x.shape[2:])
        F.interpolate(self.pool(x), size=x.shape[3])
        F.interpolate(x[:, :, None], scale_factor=2)
        F.interpolate(x, scale_factor=0.5)
        return x + pooled


def run(model, x=IMAGE):
    with torch.no_grad():
        return model.eval()(x)


def ups(*args, **kwargs):
    """A convolution, then an ``nn.Upsample``."""
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.Upsample(*args, **kwargs))


@pytest.mark.parametrize(
    ('model', 'names'),
    [
        (ups(scale_factor=2), ['1']),
        (Pyramid(), ['upsample_modules.0', 'upsample_modules.1']),
        (
            nn.Sequential(Pyramid(), Block(), Block()),
            ['0.upsample_modules.0', '0.upsample_modules.1']
            + ['1.upsample_modules.0', '2.upsample_modules.0'],
        ),
        (Nested(), ['up', *(f'upsample_modules.{i}' for i in range(5))]),
    ],
)
def test_replaces_and_with_nearest_the_numbers_are_the_models(model, names):
    expected = run(model)
    for name, cls in (('nearest', nn.Upsample), ('dlu', DLUPack)):
        ours = copy.deepcopy(model).train()
        state = torch.get_rng_state()
        report = replace_upsampling(ours, dict(type=name), IMAGE)
        # the trial leaves no trace; DLU draws its weights
        assert name == 'dlu' or torch.equal(state, torch.get_rng_state())
        assert sorted(report.replaced) == sorted(names) and not report.left
        modules = dict(ours.named_modules())
        assert all(modules[k] is v for k, v in report.replaced.items())
        assert all(isinstance(v, cls) for v in report.replaced.values())
        assert all(module.training for module in ours.modules())
        # the model's own weights keep their names
        missing, _ = ours.load_state_dict(model.state_dict(), strict=False)
        assert all(key.startswith(tuple(names)) for key in missing)
        if name == 'nearest':
            assert torch.equal(run(ours), expected)
            odd = torch.randn(2, 3, 23, 31)
            assert torch.equal(run(ours, odd), run(model, odd))
    if hasattr(model, 'up'):
        assert ours.up.index == 7

    # one training step reaches every upsampler
    optimizer = torch.optim.SGD(ours.parameters(), 0.1)
    before = [copy.deepcopy(v.state_dict()) for v in report.replaced.values()]
    ours.train()(IMAGE).square().sum().backward()
    optimizer.step()
    for old, new in zip(before, report.replaced.values()):
        assert any(not torch.equal(v, old[k]) for k, v in new.state_dict().items())

    # copies and files
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    expected = run(ours)
    for same in (copy.deepcopy(ours), torch.load(file, weights_only=False)):
        assert torch.equal(run(same), expected)


def test_what_is_left():
    model = Left()
    report = replace_upsampling(model, dict(type='dlu'), IMAGE)
    assert list(report.replaced) == ['ups.0'] and isinstance(model.ups[0], DLUPack)
    reasons = [
        ('ups.1', '32 x 32 to 48 x 48 by scale_factor=1.5 is no whole ratio'),
        ('ups.2', '48 x 48 to 96 x 48 by scale_factor=1.0 is no whole ratio'),
        ('', '1 x 1 to 96 x 48 is no whole ratio'),
        ('', 'its ratio depends on the size of the input'),
        (
            '',
            r'torch.float32 \(1, 3, 1, 96, 48\), not a float \(N, C, H, W\)',
        ),
        ('', '96 x 48 to 48 x 24 by scale_factor=0.5 is no whole ratio'),
        ('ups.3', 'the example does not reach it'),
    ]
    assert [name for name, _ in report.left] == [name for name, _ in reasons]
    for (_, found), (_, expected) in zip(report.left, reasons):
        assert re.search(expected, found)


def test_hooks_dtype_and_shared_modules():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            up = nn.Upsample(scale_factor=2)
            self.parts = nn.Sequential(nn.Conv2d(3, 4, 1), up, up)

        def forward(self, x):
            return self.parts(x)

    seen = []
    model = Twice().double()
    with pytest.raises(ValueError, match='1: only an nn.Sequential calls it'):
        replace_upsampling(model.parts, dict(type='dlu'), IMAGE.double())
    report = replace_upsampling(model, dict(type='dlu'), IMAGE.double())
    # called twice: an upsampler for each call
    assert [*report.replaced] == ['upsample_modules.0', 'upsample_modules.1']
    assert run(model, IMAGE.double()).dtype == torch.float64

    model = ups(scale_factor=2)
    handle = model[1].register_forward_hook(lambda *args: seen.append(1))
    replace_upsampling(model, dict(type='carafe'), IMAGE)
    seen.clear()
    run(model)
    assert seen == [1]
    handle.remove()
    run(model)
    assert seen == [1]


@needs_later_torch
def test_exports_and_scripts(tmp_path):
    for model in (ups(scale_factor=2), Pyramid()):
        replace_upsampling(model.eval(), dict(type='dlu'), IMAGE)
        expected = run(model)
        file = tmp_path / 'model.onnx'
        torch.onnx.export(model, (IMAGE,), file, dynamo=False, input_names=['x'])
        (found,) = onnxruntime.InferenceSession(file).run(None, {'x': IMAGE.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), expected)
    model = ups(scale_factor=2).eval()
    replace_upsampling(model, dict(type='dlu'), IMAGE)
    scripted = torch.jit.script(model)
    for shape in ((1, 3, 16, 16), (2, 3, 5, 7)):
        x = torch.randn(shape)
        torch.testing.assert_close(scripted(x), model(x))


@pytest.mark.parametrize(
    ('model', 'cfg', 'inputs', 'error', 'words'),
    [
        (
            nn.Conv2d(3, 4, 1),
            dict(type='dlu'),
            [IMAGE],
            ValueError,
            'Conv2d has no site',
        ),
        (
            ups(scale_factor=1.5),
            dict(type='dlu'),
            [IMAGE],
            ValueError,
            '1: 16 x 16 to 24',
        ),
        (
            ups(scale_factor=2),
            dict(type='dlu'),
            [],
            ValueError,
            'does not run on example',
        ),
        (
            ups(scale_factor=2),
            dict(type='dlu'),
            [torch.zeros(1, 5, 8, 8)],
            ValueError,
            r'Sequential does not run on example_inputs \(\(1, 5, 8, 8\)\): Runtime',
        ),
        (ups(scale_factor=2), dict(type='dlv'), [IMAGE], ValueError, "mean 'dlu'"),
        (ups(scale_factor=2), 'dlu', [IMAGE], TypeError, 'must be a dict'),
        (
            ups(scale_factor=2),
            dict(type='fade'),
            [IMAGE],
            ValueError,
            '1, for 4 channels',
        ),
        (
            nn.Sequential(
                ups(scale_factor=2), nn.Conv2d(4, 3, 1), nn.Upsample(scale_factor=2)
            ),
            dict(type='dlu', up_group=4),
            [IMAGE],
            ValueError,
            '2, for 3 channels and a ratio of 2',
        ),
        ('model', dict(type='dlu'), [IMAGE], TypeError, 'torch.nn.Module, got'),
        ([ups(scale_factor=2)], dict(type='dlu'), [IMAGE], TypeError, 'Module, got'),
        (
            torch.compile(ups(scale_factor=2)),
            dict(type='dlu'),
            [IMAGE],
            ValueError,
            'Sequential is compiled; replace its upsampling first',
        ),
        (
            torch.jit.script(ups(scale_factor=2)),
            dict(type='dlu'),
            [IMAGE],
            ValueError,
            'it calls neither nn.Upsample nor interpolate',
        ),
        (
            ups(size=(32, 32)),
            dict(type='dlu'),
            [IMAGE],
            ValueError,
            '1: its ratio depends on the size of the input',
        ),
    ],
)
def test_bad_input(model, cfg, inputs, error, words):
    before = repr(model)
    with pytest.raises(error, match=words) as caught:
        replace_upsampling(model, cfg, *inputs)
    assert '\n' not in str(caught.value)
    assert repr(model) == before


def test_a_second_call_is_refused():
    model = ups(scale_factor=2)
    replace_upsampling(model, dict(type='dlu'), IMAGE)
    with pytest.raises(ValueError, match='has upsamplers of this package already, as'):
        replace_upsampling(model, dict(type='carafe'), IMAGE)


def test_in_inference_mode_and_with_a_scripted_part():
    model = nn.Sequential(torch.jit.script(nn.Conv2d(3, 3, 1)), ups(scale_factor=2))
    with torch.inference_mode():
        report = replace_upsampling(model, dict(type='dlu'), IMAGE.clone())
    model(IMAGE).sum().backward()
    assert report.replaced['1.1'].conv_offset.weight.grad is not None


@pytest.mark.parametrize('kind', [nn.DataParallel, torch.fx.symbolic_trace])
def test_other_forms_of_a_model(kind):
    for model in (ups(scale_factor=2), Block()):
        x = IMAGE.repeat(1, 2, 1, 1)[:, : 3 if isinstance(model, nn.Sequential) else 4]
        expected = run(model, x)
        model = kind(model)
        assert len(replace_upsampling(model, dict(type='nearest'), x).replaced) == 1
        assert torch.equal(run(model, x), expected)


def test_another_number_of_calls_is_refused():
    class Changing(nn.Module):
        def forward(self, x):
            for _ in range(2 if self.training else 1):
                x = F.interpolate(x, scale_factor=2)
            return x

    model = Changing()
    replace_upsampling(model, dict(type='dlu'), IMAGE)
    with pytest.raises(RuntimeError, match='interpolated 2 times and not 1'):
        model(IMAGE)


@pytest.mark.slow
def test_models_of_other_packages():
    """A torchvision FPN, a U-Net and a YOLO: numbers, a training step, ONNX."""
    needed = ('torchvision', 'segmentation_models_pytorch', 'ultralytics')
    python = os.environ.get('OTHER_FRAMEWORKS_PYTHON')
    if not python and all(map(find_spec, needed)):
        python = sys.executable
    if not python:
        pytest.skip(
            'OTHER_FRAMEWORKS_PYTHON names no Python that has torchvision, '
            'segmentation-models-pytorch, ultralytics, onnxscript and onnxruntime'
        )
    subprocess.run(
        [python, SCRIPT], check=True, env={**os.environ, 'PYTHONPATH': str(ROOT)}
    )
