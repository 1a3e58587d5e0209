"""The mechanism that puts upsamplers into any neck: `dlu_mmdet.` before its name."""

import copy
import io
import os
import pickle
import re
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import mmdet
import mmengine
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, UNGUIDED, needs_later_torch, run
from mmdet.models.necks import PAFPN
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseModule
from mmengine.registry import DefaultScope, Registry
from torch import nn
from torch.utils.checkpoint import checkpoint

from dlu_mmdet.config import set_upsampler
from dlu_mmdet.necks import NECKS, upsampler_name, with_upsampler
from dlu_mmdet.upsamplers import build_upsampler, check_ratio, start
from dlu_mmdet.upsamplers.dlu import DLUPack
from dlu_mmdet.upsamplers.sites import trace_neck

NORM = dict(type='BN')
FPN_ARGS = dict(in_channels=[4, 6, 8], out_channels=8, num_outs=5)
NECK = dict(type='YOLOXPAFPN', in_channels=[8, 16, 32], out_channels=8)


def levels(channels, size, batch=1):
    """Random maps, each half the one before, rounded up."""
    generator = torch.Generator().manual_seed(0)
    maps = []
    for c in channels:
        maps.append(torch.randn(batch, c, *size, generator=generator))
        size = [-(-n // 2) for n in size]
    return maps


def model(*parts):
    return dict(type='M', neck=parts[0] if len(parts) == 1 else list(parts))


def build(neck, name='nearest', **kwargs):
    cfg = with_upsampler(model(neck), dict(type=name, **kwargs))
    return MODELS.build(cfg['neck'])


def shapes(module):
    return {k: v.shape for k, v in module.state_dict().items()}


class Modes(torch.overrides.TorchFunctionMode):
    """Keeps the interpolation that each call of a neck asks for."""

    def __init__(self):
        super().__init__()
        self.cfgs = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.interpolate:
            mode = kwargs.get('mode', 'nearest')
            self.cfgs.append(dict(type=mode))
            if mode == 'bilinear':
                self.cfgs[-1]['align_corners'] = bool(kwargs.get('align_corners'))
        return func(*args, **(kwargs or {}))


def check_equality(part, inputs):
    """A part with its own interpolation must give what mmdet's gives."""
    args = {k: v for k, v in part.items() if k != 'type'}
    theirs = MODELS.build(dict(part)).eval()
    for key, weight in theirs.state_dict().items():
        # mmcv leaves these as the memory was, and too large without a checkpoint
        if key.endswith(('.weight_diff', '.weight_gamma')):
            weight.fill_(0.02)
    with Modes() as modes, torch.no_grad():
        expected = theirs(inputs)
    if isinstance(part['in_channels'], int):
        part = dict(part, num_levels=len(inputs))
    cfg = with_upsampler(model(part), dict(type='nearest'))['neck']
    if part['type'] == 'FPN_CARAFE':
        cfg['upsample_cfg'] = args['upsample_cfg']
    elif part['type'] == 'FPN':
        cfg['upsample_cfg'] = modes.cfgs[0]
    ours = MODELS.build(cfg).eval()
    state = theirs.state_dict()
    if part['type'] not in ('FPN', 'FPN_CARAFE'):
        trial = trace_neck(theirs, [(inputs,)])
        sites = [i for i, site in enumerate(ours.upsample_calls) if site]
        assert len(trial.calls) == len(ours.upsample_calls)
        for k, i in enumerate(sites):
            ours.upsample_modules[k] = build_upsampler(
                modes.cfgs[i], *ours.upsample_calls[i][:2]
            )
    assert shapes(ours) == shapes(theirs)
    ours.load_state_dict(state)
    with torch.no_grad():
        outs = ours(inputs)
    assert len(outs) == len(expected)
    assert all(map(torch.equal, outs, expected)) and outs[0].isfinite().all()
    learned = (
        MODELS.build({**cfg, 'upsample_cfg': dict(cfg['upsample_cfg'], type='dlu')})
        if part['type'] != 'FPN_CARAFE'
        else None
    )
    if learned is not None:
        result = learned.load_state_dict(state, strict=False)
        assert not result.unexpected_keys
        assert all(k.startswith('upsample_modules.') for k in result.missing_keys)
        check_start_at_the_neck(part, state, inputs, expected)
    return len(ours.upsample_modules)


def check_start_at_the_neck(part, state, inputs, expected):
    """With start='neck' a part gives what it gave, before any training.

    'resize_conv' holds either start at any size; DLU holds 'nearest' by what its
    softmax leaves, at sizes that its ratio meets.
    """
    # seven stages of random weights give features of thousands, with which DLU's random
    # weights of 0.001 change the kernels
    huge = max(out.abs().max() for out in expected) > 1000
    # which a ratio of 2 meets only by cropping
    odd = any(side % 2 for each in inputs for side in each.shape[2:])
    tries = [('resize_conv', 0.5, 1e-6), ('dlu', 1 - 1e-6, 2e-3), ('dlu', None, 0.5)]
    for name, share, most in tries[: 1 if odd or huge else 3]:
        try:
            cfg = with_upsampler(model(part), dict(type=name, start='neck'))['neck']
        except ValueError as error:
            assert part['type'] == 'FPN_CARAFE'
            assert 'needs a neck that interpolates' in str(error)
            return
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(start, 'SHARE', share or start.SHARE)
            try:
                neck = MODELS.build(cfg).eval()
            except ValueError as error:
                mode = 'bilinear' + ' with align_corners' * (part['type'] == 'DyHead')
                assert f'start={mode!r} is none of' in str(error)
                assert name == 'dlu' or part['type'] == 'DyHead'
                return
            if part['type'] != 'RFP':  # its backbones would fetch weights
                neck.init_weights()
        neck.load_state_dict(state, strict=False)
        with torch.no_grad():
            outs = neck(inputs)
        for out, wanted in zip(outs, expected):
            error = (out - wanted).square().mean().sqrt()
            assert error <= most * wanted.square().mean().sqrt(), name


SMALL = [
    (NECK, None),
    (dict(NECK, type='CSPNeXtPAFPN'), None),
    (dict(type='PAFPN', **FPN_ARGS), (33, 39)),
    (dict(type='FPN', **FPN_ARGS), (33, 39)),
    (dict(type='HRFPN', in_channels=[4, 6, 8], out_channels=8), None),
    (
        dict(
            type='YOLOV3Neck',
            num_scales=3,
            in_channels=[8, 6, 4],
            out_channels=[16, 8, 4],
        ),
        None,
    ),
    (dict(type='BFP', in_channels=4, num_levels=4), (33, 39)),
    (
        dict(type='NASFCOS_FPN', in_channels=[4, 6, 8, 10], out_channels=8, num_outs=5),
        (33, 39),
    ),
    (
        dict(
            type='NASFPN',
            in_channels=[6, 8, 10],
            out_channels=8,
            num_outs=5,
            stack_times=2,
            norm_cfg=NORM,
        ),
        (33, 39),
    ),
]


@pytest.mark.parametrize(
    'part, odd', SMALL, ids=lambda v: v['type'] if isinstance(v, dict) else ''
)
def test_equal_to_the_neck_with_its_interpolation(part, odd):
    """Else a comparison of upsamplers would compare necks, and checkpoints of
    mmdet's zoo would not load."""
    channels = part['in_channels']
    if isinstance(channels, int):
        channels = [channels] * part['num_levels']
    elif part['type'] == 'YOLOV3Neck':
        channels = channels[::-1]
    for size in [(32, 64), odd]:
        if size:
            assert check_equality(part, levels(channels, size)) >= 2


@MODELS.register_module()
class NeverSeen(BaseModule):
    """F.interpolate in one part, nn.Upsample in another; one ratio not whole."""

    def __init__(self, in_channels, num_outs=2):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(c, 6, 1) for c in in_channels)
        self.norm = nn.BatchNorm2d(6)
        self.up = nn.Upsample(scale_factor=2, mode='bilinear', align_corners=False)

    def forward(self, xs):
        low, high = (conv(x) for conv, x in zip(self.convs, xs))
        low = low + F.interpolate(high, size=low.shape[2:])
        half = F.interpolate(low, scale_factor=1.5)
        pooled = F.interpolate(low.mean((2, 3), keepdim=True), size=low.shape[2:])
        return self.up(self.norm(low + pooled)), half


def test_a_neck_that_the_package_has_never_seen():
    args = dict(type='NeverSeen', in_channels=[4, 8])
    neck = build(args, 'dlu')
    assert [call and call.scale_factor for call in neck.upsample_calls] == [
        2,
        None,
        None,
        2,
    ]
    assert neck.training and neck.norm.num_batches_tracked == 0
    neck.init_weights()
    sum(out.square().sum() for out in neck(levels([4, 8], (9, 7)))).backward()
    for key, weight in neck.named_parameters():
        assert weight.grad is not None, f'{key} takes no part'


def test_copies_and_checkpoints():
    """EMA copies the neck, a runner pickles it."""
    neck, xs = build(NECK, 'dlu').eval(), levels(NECK['in_channels'], (16, 24))
    buffer = io.BytesIO()
    torch.save(neck, buffer)
    buffer.seek(0)
    for other in (
        copy.deepcopy(neck),
        pickle.loads(pickle.dumps(neck)),
        torch.load(buffer, weights_only=False),
    ):
        assert type(other) is type(neck)
        assert all(map(torch.equal, other(xs), neck(xs)))


@MODELS.register_module()
class Recomputed(nn.Module):
    """Most of its interpolations run again in the backward, two of them nested."""

    def __init__(self, in_channels, use_reentrant=None):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(c, 4, 1) for c in in_channels)
        self.use_reentrant = use_reentrant

    def run(self, function, *maps):
        if self.use_reentrant is None:
            return function(*maps)
        return checkpoint(function, *maps, use_reentrant=self.use_reentrant)

    def forward(self, inputs):
        def fuse(fine, coarse):
            return fine.sin() * F.interpolate(coarse, scale_factor=2)

        def both(low, mid, top):
            mid = mid * F.interpolate(top, scale_factor=2)
            return self.run(fuse, self.run(fuse, low, mid), mid)

        low, mid, top = (conv(x) for conv, x in zip(self.convs, inputs))
        low = low + F.interpolate(mid, scale_factor=2)
        return self.run(both, low, mid, top), self.run(fuse, mid, top)


@pytest.mark.filterwarnings('ignore:None of the inputs')
@pytest.mark.parametrize('use_reentrant', [True, False])
@pytest.mark.parametrize('name', ['dlu', 'bilinear'])
def test_activation_checkpointing(name, use_reentrant):
    """What runs again would interpolate: a gradient that is wrong, and no error."""

    def gradients(run, neck):
        neck.zero_grad()
        for seed in (0, 1):  # twice before the backward, as a siamese detector runs it
            torch.manual_seed(seed)
            maps = [torch.randn(1, 6, n, n, requires_grad=True) for n in (16, 8, 4)]
            sum(out.square().mean() for out in run(*maps)).backward()
        return [weight.grad for weight in neck.parameters()]

    args = dict(type='dlu_mmdet.Recomputed', in_channels=[6] * 3)
    torch.manual_seed(0)
    neck = MODELS.build(dict(args, upsample_cfg=dict(type=name))).train()
    for weight in neck.parameters():
        nn.init.normal_(weight, std=0.3)
    expected = gradients(lambda *maps: neck(maps), neck)
    assert all(grad is not None for grad in expected)
    neck.use_reentrant = use_reentrant
    for other in (neck, copy.deepcopy(neck)):
        actual = gradients(lambda *maps, other=other: other(maps), other)
        torch.testing.assert_close(actual, expected)
    # its detector may recompute the neck as a whole
    actual = gradients(
        lambda *maps: checkpoint(lambda *m: neck(m), *maps, use_reentrant=False), neck
    )
    torch.testing.assert_close(actual, expected)


@MODELS.register_module()
class WithoutGradients(nn.Module):
    def __init__(self, in_channels):
        super().__init__()
        self.conv = nn.Conv2d(in_channels[0], 4, 1)

    def forward(self, inputs):
        with torch.no_grad():
            return F.interpolate(self.conv(inputs[0]), scale_factor=2)


def test_an_upsampler_that_would_not_learn_is_refused():
    """Such as within a recomputation that is not torch's."""
    maps = levels([6], (4, 4))
    cfg = dict(type='dlu_mmdet.WithoutGradients', in_channels=[6])
    MODELS.build(dict(cfg, upsample_cfg=dict(type='bilinear')))(maps)
    neck = MODELS.build(dict(cfg, upsample_cfg=dict(type='dlu')))
    with pytest.raises(RuntimeError, match='DLUPack is called without gradients'):
        neck(maps)
    with torch.no_grad():
        neck(maps)


class Same(nn.Module):
    """The mistake of whoever leaves the ratio to the neck."""

    def __init__(self, channels, scale_factor):
        super().__init__()

    def forward(self, x):
        return x


class Fewer(Same):
    def forward(self, x):
        return F.interpolate(x, scale_factor=2)[:, :1]  # broadcast over the channels


class Repeat(Same):
    """One of a user's own, with a norm that trains and with random numbers."""

    def __init__(self, channels, scale_factor):
        super().__init__(channels, scale_factor)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x):
        return self.norm(F.interpolate(x + torch.randn_like(x), scale_factor=2))


class NoGuide(Same):
    guided = True

    def __init__(self, channels, scale_factor, guide_channels):
        super().__init__(channels, scale_factor)

    def forward(self, x, guide):
        return x


class OnlySquare(Same):
    """One that takes no map of the trial: it is held to its ratio where it is used."""

    def forward(self, x):
        return x.reshape(*x.shape[:2], x.shape[3], x.shape[3])


@pytest.mark.parametrize(
    'type_, upsampler, given, wanted',
    [
        ('PAFPN', Same, (1, 8, 4, 6), (1, 8, 8, 12)),
        ('PAFPN', Fewer, (1, 1, 8, 12), (1, 8, 8, 12)),
        ('UpsampleFPN', Same, (1, 8, 4, 6), (1, 8, 8, 12)),
        ('UnifiedFPN', NoGuide, (1, 8, 4, 6), (1, 8, 8, 12)),
    ],
)
def test_another_ratio_is_refused(type_, upsampler, given, wanted):
    """The neck would resize it, bilinearly, and show its AP as the upsampler's."""
    with pytest.raises(ValueError) as info:
        build(dict(FPN_ARGS, type=type_), upsampler)
    for words in ('upsample_modules.0', f'{upsampler.__name__} gave {given}', wanted):
        assert str(words) in str(info.value)


@pytest.mark.parametrize('type_', ['PAFPN', 'UpsampleFPN', 'UnifiedFPN'])
def test_another_ratio_is_refused_where_it_shows(type_):
    neck = build(dict(FPN_ARGS, type=type_), OnlySquare)
    with pytest.raises(ValueError, match=r'OnlySquare gave .* must give \(1, 8, '):
        neck(levels(FPN_ARGS['in_channels'], (16, 16)))


@pytest.mark.parametrize('upsampler', ['dlu', 'freqfusion', Repeat])
def test_the_trial_of_a_ratio_leaves_no_trace(upsampler):
    torch.manual_seed(0)
    build_upsampler(dict(type=upsampler), 8, 2, guide_channels=8)
    expected = torch.get_rng_state()
    torch.manual_seed(0)
    module = build_upsampler(dict(type=upsampler), 8, 2, guide_channels=8).train()
    state = copy.deepcopy(module.state_dict())
    check_ratio(module, 8, 2, 8)
    assert torch.equal(torch.get_rng_state(), expected)
    assert all(part.training for part in module.modules())
    torch.testing.assert_close(module.state_dict(), state, rtol=0, atol=0)


@needs_later_torch
def test_compiles_without_a_break():
    neck, xs = build(NECK, 'carafe').eval(), levels(NECK['in_channels'], (16, 24))
    compiled = torch.compile(neck, backend='eager', fullgraph=True)
    assert all(map(torch.equal, compiled(xs), neck(xs)))


@pytest.mark.parametrize('name', UNGUIDED)
def test_autocast(name):
    neck = build(NECK, name)
    with torch.autocast('cpu', torch.bfloat16):
        outs = neck(levels(NECK['in_channels'], (16, 24)))
    sum(out.float().sum() for out in outs).backward()
    assert all(w.grad is not None for w in neck.upsample_modules.parameters())


def test_two_lines_under_an_inherited_config(tmp_path):
    base = tmp_path / 'base.py'
    own = dict(NECK, upsample_cfg=dict(scale_factor=2, mode='nearest'))
    base.write_text(f'model = dict(neck={own!r})')
    config = tmp_path / 'config.py'
    config.write_text(
        "_base_ = 'base.py'\nmodel = dict(neck=dict("
        "type='dlu_mmdet.YOLOXPAFPN', upsample_cfg=dict(type='dlu')))"
    )
    neck = MODELS.build(Config.fromfile(config).model.neck)
    assert len(neck.upsample_modules) == 2


def test_parts_of_a_list():
    """BFP and DyHead take what FPN gives: maps that in_channels do not tell."""
    parts = [
        dict(type='mmdet.FPN', **FPN_ARGS),
        dict(type='BFP', in_channels=8, num_levels=5, refine_level=1),
        dict(type='DyHead', in_channels=8, out_channels=32, num_blocks=1),
    ]
    given = ConfigDict(model(*parts))
    cfg = with_upsampler(given, dict(type='carafe'))
    assert given == ConfigDict(model(*parts))
    assert [part['type'] for part in cfg.neck] == [
        'dlu_mmdet.FPN',
        'dlu_mmdet.BFP',
        'dlu_mmdet.DyHead',
    ]
    assert cfg.neck[2].num_levels == 5
    assert Config(dict(model=cfg)).pretty_text
    neck = MODELS.build(cfg.neck)
    # P3, P2 from above; gather from three levels, scatter to one; one block
    assert [len(part.upsample_modules) for part in neck] == [2, 4, 4]
    again = with_upsampler(cfg, dict(type='nearest'))
    assert [part['upsample_cfg'] for part in again.neck] == [dict(type='nearest')] * 3


@pytest.mark.parametrize(
    'cfg, upsample_cfg, words',
    [
        (model(NECK), dict(type='dlux'), ['dlux', 'carafe', 'dlu']),
        (model(NECK), dict(type='dlu', up_group=3), ['upsample_modules.0', '16 chan']),
        (model(dict(NECK, type='YOLOXPFPN')), dict(type='dlu'), ['YOLOXPAFPN']),
        (dict(type='DETR'), dict(type='dlu'), ['DETR', 'no neck']),
        ({}, dict(type='dlu'), ['no neck']),
        (
            model(dict(type='ChannelMapper', in_channels=[4, 6], out_channels=8)),
            dict(type='dlu'),
            ['ChannelMapper enlarges no map'],
        ),
    ],
)
def test_bad_input(cfg, upsample_cfg, words):
    with pytest.raises(ValueError) as info:
        cfg = with_upsampler(cfg, upsample_cfg)
        MODELS.build(cfg['neck'])
    for word in words:
        assert word in str(info.value)
    assert '\n' not in str(info.value)


def test_ratio_below_one():
    with pytest.raises(ValueError, match='scale_factor must be at least 1, got 0'):
        build_upsampler(dict(type='nearest'), 8, 0)


def test_scopes():
    assert NECKS.get('YOLOXPAFPN') is MODELS.get('dlu_mmdet.YOLOXPAFPN')
    assert MODELS.get('dlu_mmdet.mmdet.PAFPN') is MODELS.get('dlu_mmdet.PAFPN')
    assert MODELS.get('dlu_mmdet.necks.UpsampleFPN') is NECKS.get('FPN')


@pytest.fixture
def other_scope():
    """The scope of another package, which registers another class as FPN."""
    registry = Registry('model', parent=mmengine.MODELS, scope='other')

    @registry.register_module(name='FPN')
    class OtherFPN(PAFPN):
        pass

    with DefaultScope.overwrite_default_scope('other'):
        yield registry
    del mmengine.MODELS.children['other']


@pytest.mark.parametrize(
    ('name', 'cls'),
    [
        ('mmdet.FPN', 'UpsampleFPN'),
        ('FPN', 'OtherFPN'),
        ('other.FPN', 'OtherFPN'),
        ('mmdet.PAFPN', 'PAFPN'),
        ('NASFPN', 'NASFPN'),  # of MMDetection alone
    ],
)
def test_necks_in_the_scope_of_another_package(other_scope, name, cls):
    """As MMRotate's and MMSegmentation's configs name them; also by --upsampler."""
    args = dict(stack_times=1) if cls == 'NASFPN' else {}
    neck = dict(type=name, in_channels=[8] * 5, out_channels=8, num_outs=5, **args)
    cfg = Config(dict(model=model(neck), default_scope='other'))
    with DefaultScope.overwrite_default_scope('mmdet'):
        set_upsampler(cfg, dict(type='dlu'))
    assert cfg.model == with_upsampler(model(neck), dict(type='dlu'))
    for registry in (other_scope, mmengine.MODELS, MODELS):
        assert type(registry.build(cfg.model['neck'])).__name__ == cls


def check_parts(neck, size):
    """Compare every part of a zoo's neck on what the part before gives."""
    parts = neck if isinstance(neck, list) else [neck]
    inputs = None
    for part in map(dict, parts):
        if inputs is None:
            channels = part['in_channels']
            if part['type'] == 'YOLOV3Neck':
                channels = channels[::-1]
            inputs = levels(channels, size)
        if part['type'] == 'RFP':  # its backbones take the image as well
            inputs = [*levels([3], [4 * n for n in size]), *inputs]
        if part['type'] == 'FPN_CARAFE':  # mmcv's operator needs CUDA
            part['upsample_cfg'] = dict(type='nearest')
        check_equality(part, inputs)
        with torch.no_grad():
            inputs = MODELS.build(part).eval()(inputs)


def runs(neck, size):
    """Whether mmdet's own neck takes such a size: some add maps twice a size."""
    try:
        check_parts(neck, size)
    except RuntimeError as error:
        assert re.search('size of tensor|Sizes of tensors', str(error)), error
        return False
    return True


@pytest.mark.slow
def test_the_whole_zoo(capsys):
    """Every neck of mmdet's configs that upsamples takes any upsampler, and with the
    interpolation that it had equals mmdet's."""
    root = Path(mmdet.__file__).parent / '.mim' / 'configs'
    necks, covered, total = {}, 0, 0
    for path in sorted(root.glob('**/*.py')):
        try:
            cfg = Config.fromfile(path, import_custom_modules=False).get('model')
        except (OSError, ImportError):  # another package's, or a base that is missing
            continue
        if '_base_' in path.parts or not cfg:
            continue
        total += 1
        if cfg.get('neck'):
            necks.setdefault(str(cfg['neck']), []).append(cfg)
    refused, odd, tried = Counter(), 0, 0
    for cfgs in necks.values():
        try:
            with_upsampler(cfgs[0], dict(type='dlu'))
            covered += len(cfgs)
            check_parts(cfgs[0]['neck'], (32, 64))
            tried += 1
            odd += runs(cfgs[0]['neck'], (33, 39))
        except ValueError as error:
            refused[str(error).split()[0]] += len(cfgs)
        except TypeError as error:  # a config that mmdet cannot build either
            assert 'force_grad_on_level' in str(error)
    upsample = covered + refused['CTResNetNeck']  # by transposed convolutions
    with capsys.disabled():
        print(
            f"{tried} necks equal mmdet's, {odd} of them at odd sizes, too; of "
            f'{total} model configs {upsample} upsample in the neck, {covered} take '
            f'any upsampler; not: {dict(refused)}'
        )
    assert covered >= 640
    assert set(refused) <= {
        'ChannelMapper',
        'SSDNeck',
        'CTResNetNeck',
        'DilatedEncoder',
        'GlobalAveragePooling',
    }


class Unregistered(nn.Module):
    def __init__(self, channels, scale_factor):
        super().__init__()


@pytest.mark.parametrize(
    'name, expected',
    [
        ('dlu', 'dlu'),
        (DLUPack, 'dlu'),
        ('dlu_mmdet.upsamplers.dlu.DLUPack', 'dlu'),
        ('mmdet.carafe', 'carafe'),
        (Unregistered, 'Unregistered'),
    ],
)
def test_one_name_for_one_upsampler(name, expected):
    """Else a comparison would have two columns for one, and a picture none."""
    parts = [
        dict(type='FPN', **FPN_ARGS),
        dict(type='PAFPN', in_channels=[8] * 5, out_channels=8, num_outs=5),
    ]
    for neck in (parts[1], parts):
        cfg = ConfigDict(with_upsampler(model(*copy.deepcopy(parts)), dict(type=name)))
        if not isinstance(neck, list):
            cfg.neck = cfg.neck[1]
        assert upsampler_name(cfg.neck) == expected
        assert upsampler_name(MODELS.build(cfg.neck)) == expected
    # mmdet's own parts interpolate, whatever they call their arguments
    assert upsampler_name(MODELS.build(parts)) is None
    both = [MODELS.build(parts[0]), MODELS.build(cfg.neck[1])]
    assert upsampler_name(both) == expected


def outputs_of(out):
    """The tensors of a head's output, whatever holds them."""
    if isinstance(out, torch.Tensor):
        return [out]
    parts = out.values() if isinstance(out, dict) else out
    return [tensor for part in parts for tensor in outputs_of(part)]


def pixel_decoder(name, **attention):
    return dict(
        type=name,
        in_channels=[8, 8, 8, 8],
        feat_channels=32,
        out_channels=32,
        encoder=dict(
            num_layers=1,
            layer_cfg=dict(
                self_attn_cfg=dict(embed_dims=32, num_heads=4, **attention),
                ffn_cfg=dict(embed_dims=32, feedforward_channels=32),
            ),
        ),
        positional_encoding=dict(num_feats=16, normalize=True),
    )


PANOPTIC = dict(
    in_channels=8, inner_channels=32, norm_cfg=dict(type='GN', num_groups=8)
)
HEADS = [
    # a level's map is doubled 0, 1, 2 and 3 times
    (dict(type='PanopticFPNHead', num_levels=4, **PANOPTIC), [8] * 4, [2] * 6),
    (
        dict(
            type='FusedSemanticHead',
            num_levels=5,
            num_ins=5,
            fusion_level=1,
            in_channels=8,
            conv_out_channels=8,
            num_classes=3,
        ),
        [8] * 5,
        [2, 4, 8],
    ),
    (
        pixel_decoder('MSDeformAttnPixelDecoder', num_levels=3),
        [8] * 4,
        [2],
    ),
    (
        pixel_decoder('TransformerEncoderPixelDecoder', batch_first=True),
        [8] * 4,
        [2, 2, 2],
    ),
    # six in its mask features, and the coarsest level to the size of the one before
    (
        dict(
            type='SOLOV2Head',
            num_levels=5,
            num_classes=3,
            in_channels=8,
            feat_channels=8,
            stacked_convs=1,
            strides=[8, 8, 16, 32, 32],
            num_grids=[10, 9, 6, 4, 3],
            norm_cfg=dict(type='GN', num_groups=2),
            mask_feature_head=dict(
                feat_channels=8,
                start_level=0,
                end_level=3,
                out_channels=8,
                norm_cfg=dict(type='GN', num_groups=2),
            ),
            loss_mask=dict(type='DiceLoss', use_sigmoid=True),
            loss_cls=dict(type='FocalLoss', use_sigmoid=True),
        ),
        [8] * 5,
        [2] * 7,
    ),
    # its mask features
    (
        dict(
            type='RTMDetInsSepBNHead',
            num_levels=3,
            num_classes=3,
            in_channels=8,
            feat_channels=8,
            norm_cfg=dict(type='BN'),
            anchor_generator=dict(
                type='MlvlPointGenerator', offset=0, strides=[8, 16, 32]
            ),
            bbox_coder=dict(type='DistancePointBBoxCoder'),
            loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True),
            loss_bbox=dict(type='GIoULoss'),
        ),
        [8] * 3,
        [2, 4],
    ),
]


@pytest.mark.parametrize('head, channels, ratios', HEADS, ids=lambda v: str(v)[:24])
def test_heads_that_take_maps(head, channels, ratios):
    """The docs say that the prefix reaches them."""
    head, inputs = ConfigDict(head), [levels(channels, (32, 48))]
    own = dict(type='bilinear', align_corners=head.type == 'FusedSemanticHead')
    if head.type == 'TransformerEncoderPixelDecoder':
        own, size = dict(type='nearest'), (128, 192)
        inputs.append([dict(img_shape=size, batch_input_shape=size)] * 2)
    prefixed = dict(head, type=f'dlu_mmdet.{head.type}')
    theirs = MODELS.build({k: v for k, v in head.items() if k != 'num_levels'}).eval()
    ours = MODELS.build(dict(prefixed, upsample_cfg=own)).eval()
    ours.load_state_dict(theirs.state_dict())
    assert [site.scale_factor for site in ours.upsample_calls if site] == ratios
    with torch.no_grad():
        expected, found = outputs_of(theirs(*inputs)), outputs_of(ours(*inputs))
    assert all(map(torch.equal, expected, found))
    learned = MODELS.build(dict(prefixed, upsample_cfg=dict(type='dlu')))
    learned.init_weights()
    sum(out.square().sum() for out in outputs_of(learned(*inputs))).backward()
    assert all(w.grad is not None for w in learned.upsample_modules.parameters())


class Backbone(nn.Module):
    """Strides 4, 8 and 8, as a dilated one."""

    def __init__(self, in_channels=3):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, s, 1)
            for a, b, s in ((in_channels, 4, 4), (4, 6, 2), (6, 8, 1))
        )

    def forward(self, x):
        maps = []
        for conv in self.convs:
            x = conv(x)
            maps.append(x)
        return tuple(maps)


class Head(nn.Module):
    """Adds the coarsest map to the finest, and a pooled one, as ASPP heads do."""

    def __init__(self, in_channels, pools=False):
        super().__init__()
        self.pools = pools
        self.conv = nn.Conv2d(in_channels, 4, 1)

    def forward(self, maps):
        x = self.conv(maps[-1])
        pooled = F.interpolate(x.mean((2, 3), keepdim=True), size=x.shape[2:])
        if self.pools:
            return x + pooled
        size = maps[0].shape[2:]
        return maps[0] + F.interpolate(x + pooled, size, mode='bilinear')


class TwoInputs(Head):
    def forward(self, maps, before):
        return super().forward(maps) + before


def segmentor(decode_head, **kwargs):
    backbone = dict(type='Backbone')
    return dict(type='M', backbone=backbone, decode_head=decode_head, **kwargs)


@pytest.fixture
def segmentor_scope(other_scope):
    for cls in (Backbone, Head, TwoInputs):
        other_scope.register_module(module=cls)
    return other_scope


def test_decode_heads(segmentor_scope):
    """The ratio is that of the backbone's levels, which in_channels do not tell."""
    head, aux = dict(type='Head', in_channels=8), dict(type='other.Head', in_channels=8)
    given = ConfigDict(segmentor(head, auxiliary_head=[aux]))
    cfg = with_upsampler(given, dict(type='bilinear'))
    assert cfg.auxiliary_head == [aux] and given.decode_head == head
    assert cfg.decode_head == dict(
        type='dlu_mmdet.Head',
        in_channels=8,
        upsample_cfg=dict(type='bilinear'),
        input_maps=[(4, 4), (6, 8), (8, 8)],
    )
    again = with_upsampler(cfg, dict(type='dlu'), auxiliary=True)
    assert again.auxiliary_head[0].type == 'dlu_mmdet.other.Head'
    assert len(segmentor_scope.build(again.auxiliary_head[0]).upsample_modules) == 1
    assert again.decode_head.upsample_cfg == dict(type='dlu')
    assert Config(dict(model=again)).pretty_text

    ours, theirs = segmentor_scope.build(cfg.decode_head), segmentor_scope.build(head)
    ours.load_state_dict(theirs.state_dict())
    for size in ((16, 24), (17, 25)):
        maps = Backbone()(torch.randn(2, 3, *(4 * n for n in size)))
        assert torch.equal(ours(maps), theirs(maps))
    config = Config(dict(model=segmentor(head), default_scope='other'))
    config.model.backbone.in_channels = 6  # more than a color image's
    set_upsampler(config, dict(type='dlu'))
    ours = segmentor_scope.build(config.model.decode_head)
    assert [(m.channels, m.scale_factor) for m in ours.upsample_modules] == [(4, 2)]


@pytest.mark.parametrize(
    ('cfg', 'words'),
    [
        (
            segmentor(dict(type='Head', in_channels=8, pools=True)),
            'Head interpolates 1 times, but nowhere by a whole ratio',
        ),
        (
            segmentor(dict(type='TwoInputs', in_channels=8)),
            r'TwoInputs cannot be tried on the maps of its backbone alone \(TypeError',
        ),
        (
            dict(type='M', backbone=dict(type='Head'), decode_head=dict(type='Head')),
            'Head cannot be tried on an image of 128 x 128 pixels',
        ),
        (dict(type='M', decode_head=[]), 'M has no neck'),
        (dict(type='M', decode_head=dict(type='Head')), 'M has no backbone'),
    ],
)
def test_decode_heads_that_are_refused(segmentor_scope, cfg, words):
    with pytest.raises(ValueError, match=words) as caught:
        with_upsampler(cfg, dict(type='dlu'))
    assert '\n' not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize('package', ['mmrotate', 'mmseg'])
def test_configs_of_another_package(package):
    """MMROTATE_FOLDER and MMSEG_FOLDER name a folder with the package."""
    folder = os.environ.get(f'{package.upper()}_FOLDER', '')
    if not folder and not find_spec(package):
        pytest.skip(f'{package} is not installed, and {package.upper()}_FOLDER not set')
    paths = os.pathsep.join([str(ROOT), folder])
    run(ROOT / 'tests/necks/reach.py', package, env={**os.environ, 'PYTHONPATH': paths})
