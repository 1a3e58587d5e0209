"""The mechanism that puts upsamplers into any neck: `dlu_mmdet.` before its name."""

import copy
import io
import pickle
from collections import Counter
from pathlib import Path

import mmdet
import pytest
import torch
import torch.nn.functional as F
from mmdet.models.necks import FPN, FPN_CARAFE
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseModule
from torch import nn

from dlu_mmdet.necks import NECKS, with_upsampler
from dlu_mmdet.necks.places import try_neck
from dlu_mmdet.upsamplers import UPSAMPLERS, build_upsampler

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
        trial = try_neck(theirs, [(inputs,)])
        places = [i for i, place in enumerate(ours.upsample_calls) if place]
        assert len(trial.calls) == len(ours.upsample_calls)
        for k, i in enumerate(places):
            ours.upsample_modules[k] = build_upsampler(
                modes.cfgs[i], *ours.upsample_calls[i]
            )
    assert shapes(ours) == shapes(theirs)
    ours.load_state_dict(state)
    with torch.no_grad():
        outs = ours(inputs)
    assert len(outs) == len(expected)
    assert all(map(torch.equal, outs, expected))
    learned = (
        MODELS.build({**cfg, 'upsample_cfg': dict(cfg['upsample_cfg'], type='dlu')})
        if part['type'] != 'FPN_CARAFE'
        else None
    )
    if learned is not None:
        result = learned.load_state_dict(state, strict=False)
        assert not result.unexpected_keys
        assert all(k.startswith('upsample_modules.') for k in result.missing_keys)
    return len(ours.upsample_modules)


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
