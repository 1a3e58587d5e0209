"""Counts against the published formulas, torch's counter and each other."""

import csv
import sys
from math import prod

import pytest
import torch
from conftest import load_tool, run, shapes_config
from mmengine.config import Config
from PIL import Image
from torch import nn

from dlu_mmdet.evaluation import complexity
from dlu_mmdet.evaluation.complexity import (
    CLOSED_FORMS,
    count_flops,
    count_parameters,
    detector_complexity,
    find_upsamplers,
    measure,
    neck_sizes,
)
from dlu_mmdet.ops import library
from dlu_mmdet.upsamplers import UPSAMPLERS, build_upsampler, is_guided

NAMES = sorted(UPSAMPLERS.module_dict)
needs_ops = pytest.mark.skipif(
    not library.is_available('cpu'), reason='the extension is not built for the CPU'
)


@pytest.fixture(scope='module')
def rows():
    return {(row.name, row.scale): row for row in measure()}


def fewer(dlu, carafe):
    return round(100 * (1 - dlu / carafe), 1)


@pytest.mark.parametrize(
    'scale, parameters, carafe_flops, dlu_flops, flops',
    [
        (2, 52.1, 199_496, 122_178, 38.8),
        (4, 80.0, 699_296, 303_474, 56.6),
        (8, 88.9, 2_698_496, 1_028_658, 61.9),
        (16, 91.2, 10_695_296, 3_929_394, 63.3),
    ],
)
def test_dlu_beside_carafe(rows, scale, parameters, carafe_flops, dlu_flops, flops):
    dlu, carafe = rows['dlu', scale], rows['carafe', scale]
    assert fewer(dlu.parameters, carafe.parameters) == parameters
    assert carafe.without_sampling == carafe.total == carafe_flops
    assert dlu.without_sampling == dlu_flops
    assert dlu.total == dlu_flops + 8 * scale**2 * 25
    assert fewer(dlu_flops, carafe_flops) == flops


def test_the_papers_claim_with_sampling(rows):
    assert fewer(rows['dlu', 16].total, rows['carafe', 16].total) == 62.8


@needs_ops
@pytest.mark.parametrize('name', sorted(CLOSED_FORMS))
@pytest.mark.parametrize('scale', [2, 4, 8, 16])
def test_torchs_counter_is_the_sum_of_what_it_sees(rows, name, scale):
    row = rows[name, scale]
    assert (
        row.counted
        == row.seen
        == row.total - sum(row.terms[term] for term in complexity.UNSEEN)
    )


@needs_ops
@pytest.mark.parametrize(
    'cfg',
    [
        *(dict(type=name) for name in sorted(CLOSED_FORMS)),
        *(
            dict(
                type=name,
                up_kernel=3,
                up_group=2,
                encoder_kernel=5,
                compressed_channels=6,
            )
            for name in ('carafe', 'dlu')
        ),
        dict(type='fade', up_kernel=3, encoder_kernel=5, compressed_channels=6),
        dict(type='fade', gating=False),
        dict(type='fade', lite=True),
        dict(type='sapa', form='G', up_kernel=3, embedding_channels=6),
        dict(type='freqfusion', highpass_kernel=5, compressed_channels=8, groups=2),
        dict(type='deconv', upsample_kernel=6),
        dict(type='pixel_shuffle', upsample_kernel=5),
        dict(type='lda_aqu', up_kernel=5, encoder_kernel=1, groups=4),
        dict(type='resize_conv', mode='bilinear'),
        dict(type='resize_conv', depthwise=True),
    ],
    ids=str,
)
@pytest.mark.parametrize('size', [(1, 1), (3, 5)])
def test_closed_forms_hold_for_any_arguments_and_map(cfg, size):
    """Of real tensors; the terms of bias are the parameters that they stand for."""
    module = build_upsampler(cfg, channels=8, scale_factor=3, guide_channels=8)
    terms = CLOSED_FORMS[cfg['type']](module, 8)
    bias = terms.pop('bias', 0)
    for term in complexity.UNSEEN:
        terms.pop(term, 0)
    inputs = [torch.randn(2, 8, *size)]
    if is_guided(module):
        inputs.append(torch.randn(2, 8, *(3 * side for side in size)))
    flops = count_flops(module, *inputs)
    assert flops == 2 * prod(size) * sum(terms.values())
    if is_guided(module) or cfg['type'] == 'lda_aqu':
        return  # a bias is added at two resolutions, or in every group
    # 9 outputs share a bias
    shared = 9 if cfg['type'] in ('deconv', 'resize_conv') else 1
    parameters = sum(
        p.numel()
        for name, p in module.named_parameters()
        if name.endswith('bias') and not name.startswith('norm')
    )
    assert bias == 2 * parameters * shared


def test_interpolation():
    (nearest,) = measure([4], 10, ['nearest'])
    (bilinear,) = measure([4], 10, ['bilinear'])
    assert nearest.total == nearest.parameters == bilinear.parameters == 0
    # four products and as many sums for each of 4 x 4 values of 10 channels
    assert bilinear.total == 8 * 16 * 10


class Smooth(nn.Module):
    """A user's own upsampler, of which no closed form exists."""

    def __init__(self, channels, scale_factor=2):
        super().__init__()
        self.scale_factor = scale_factor
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x):
        return self.conv(nn.functional.interpolate(x, scale_factor=self.scale_factor))


@pytest.fixture
def smooth():
    UPSAMPLERS.register_module('smooth', module=Smooth)
    yield
    del UPSAMPLERS.module_dict['smooth']


def test_an_upsampler_of_ones_own(smooth, tmp_path):
    rows = measure([2, 3], 4)
    (row,) = (row for row in rows if (row.name, row.scale) == ('smooth', 3))
    assert row.parameters == 9 * 4 * 4
    if library.is_available('cpu'):
        assert row.counted == 9 * 2 * row.parameters
    assert row.total is row.seen is row.without_sampling is None
    table = complexity.complexity_table(rows)
    cells = [[c.strip() for c in line.split('|')] for line in table.splitlines()]
    (cells,) = (line for line in cells if line[1:3] == ['smooth', '3'])
    assert cells[-5:-1] == ['-'] * 4
    complexity.plot(rows, tmp_path / 'plot.png')
    complexity.write_csv(rows, tmp_path / 'rows.csv')
    with open(tmp_path / 'rows.csv') as file:
        read = {(r['upsampler'], r['scale']): r for r in csv.DictReader(file)}
    assert read['smooth', '3']['bias'] == read['smooth', '3']['flops_total'] == ''
    assert read['dlu', '2']['bias'] == str(2 * (64 + 25 + 8))


def test_without_the_extension(monkeypatch):
    """A counter that cannot see the operators says nothing rather than less."""
    monkeypatch.setattr(library, '_DEVICE_TYPES', frozenset())
    assert count_flops(
        build_upsampler(dict(type='dlu'), 4), torch.ones(1, 4, 2, 2)
    ) is (None)
    rows = measure([2], 4)
    assert {row.counted for row in rows} == {None}
    assert 'the extension is not built' in complexity.report(rows)


def test_size_in_the_neck():
    sizes = neck_sizes()
    assert sizes.keys() >= set(NAMES)
    assert (sizes['carafe'], sizes['dlu']) == (16 * 74_148, 16 * 35_489)
    assert sizes['nearest'] == 0


def test_shared_and_frozen_parameters():
    conv = nn.Conv2d(2, 3, 1).requires_grad_(False)
    assert count_parameters(nn.ModuleList([conv, conv])) == 9


@needs_ops
@pytest.mark.parametrize('name', ['carafe', 'dlu'])
def test_detector(name):
    """The upsamplers' share is what they add to a detector without parameters."""
    cfg = Config.fromfile(shapes_config(name))
    # Libra R-CNN's arrangement: the neck is a list
    cfg.model.neck = [
        cfg.model.neck,
        dict(type='BFP', in_channels=64, num_levels=5, refine_level=2),
    ]
    counted = detector_complexity(cfg, (192, 128))
    cfg.model.neck[0].upsample_cfg = dict(type='nearest')
    bare = detector_complexity(cfg, (192, 128))
    assert bare['upsampler_parameters'] == bare['upsampler_flops'] == 0
    (row,) = measure([2], 64, [name])
    assert counted['upsampler_parameters'] == 4 * row.parameters
    # maps of the levels that are upsampled, strides 8 to 64
    pixels = 24 * 16 + 12 * 8 + 6 * 4 + 3 * 2
    assert counted['upsampler_flops'] == pixels * row.seen
    for quantity in ('parameters', 'flops'):
        share = counted[f'upsampler_{quantity}']
        assert counted[quantity] - bare[quantity] == share


@needs_ops
def test_built_detector_keeps_its_mode_and_pads():
    from mmdet.registry import MODELS

    model = MODELS.build(Config.fromfile(shapes_config('dlu')).model)
    model.train()
    smaller = detector_complexity(model, (90, 128))
    assert model.training and model.neck.training
    model.eval()
    assert detector_complexity(model, (128, 100)) == smaller
    assert not model.training
    assert list(find_upsamplers(model)) == [
        f'neck.upsample_modules.{i}' for i in range(4)
    ]


@pytest.mark.parametrize(
    'call, error, words',
    [
        (lambda: measure([2], 0), ValueError, 'channels must be at least 1, got 0'),
        (lambda: measure([2], -8), ValueError, 'channels must be at least 1, got -8'),
        (lambda: measure([0], 8), ValueError, 'scale_factor must be at least 1, got 0'),
        (lambda: measure([2.5], 8), TypeError, 'scale_factor must be an int, got 2.5'),
        (lambda: measure([2], 8, ['dlux']), ValueError, 'dlux.*known types'),
        (
            lambda: detector_complexity(nn.Module(), (0, 64)),
            ValueError,
            r'image_shape must be .*, got \(0, 64\)',
        ),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_tool(tmp_path):
    out = tmp_path / 'new' / 'folder'
    printed = run('tools/complexity.py', '--out', out).stdout
    text = (out / 'complexity.md').read_text()
    assert text in printed
    text = ' '.join(text.split())
    for words in (
        '| 91.2 % | 91 % |',
        '| 63.3 % | at least 63 % |',
        'sampling of the kernels included | 62.8 % | - |',
        '| carafe | 1.19 MB | 1.2 MB |',
        '| dlu | 0.57 MB | 0.6 MB |',
    ):
        assert words in text
    with open(out / 'complexity.csv') as file:
        read = list(csv.DictReader(file))
    names = {r['upsampler'] for r in read}
    assert names >= set(CLOSED_FORMS) and len(read) == 4 * len(names)
    dlu = {r['scale']: int(r['parameters']) for r in read if r['upsampler'] == 'dlu'}
    assert dlu == {'2': 35_489, '4': 49_337, '8': 104_729, '16': 326_297}
    with Image.open(out / 'complexity.png') as image:
        assert len(image.convert('RGB').getcolors(1 << 20)) > 10


def test_tool_refuses_bad_input(tmp_path, monkeypatch):
    out = tmp_path / 'none'
    monkeypatch.setattr(sys, 'argv', ['', '--channels', '0', '--out', str(out)])
    with pytest.raises(ValueError, match='channels must be at least 1, got 0'):
        load_tool('complexity').main()
    assert not out.exists()
