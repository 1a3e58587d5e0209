"""Any detector's config, with the upsampler of one's choice in its neck."""

from __future__ import annotations

import copy

import torch
from mmdet.registry import MODELS
from torch import nn

from ..upsamplers import (
    INTERPOLATION_ARGS,
    interpolation_name,
    registered_name,
    resolve_start,
    upsampler_class,
)
from ..upsamplers.sites import NeckTrace, trace_neck
from .any_neck import AnyNeckMixin, find_argument, try_from_channels, unwrap_neck
from .registry import NECKS


def with_upsampler(model_cfg: dict, upsample_cfg: dict) -> dict:
    """Put an upsampler at every site where a detector's neck enlarges a map.

    The parts of the neck are built and run on small maps of zeros, one after
    the other, to see which of them do so. For these the config then names
    their class with the prefix ``dlu_mmdet.``.

    Args:
        model_cfg (dict): ``model`` of a detector's config, plain or a
            ConfigDict; its neck one part or a list of them. The neck of
            a ``detector`` in it, as trackers and semi-supervised detectors
            have, counts as its own.
        upsample_cfg (dict): See :func:`dlu_mmdet.upsamplers.build_upsampler`. A
            ``start`` of 'neck' is the interpolation that each site had.

    Returns:
        dict: A new config of the same kind; the one given is left alone.

    Raises:
        TypeError: If an argument is no dict.
        ValueError: If there is no neck, if it is unknown or cannot be tried, or
            if it enlarges no map; if the upsampler is unknown, or is to start at the
            interpolation of a neck that has upsamplers.
    """
    upsampler_class(upsample_cfg)
    if not isinstance(model_cfg, dict):
        raise TypeError(
            f'model_cfg must be the dict "model" of a config, got {model_cfg!r} of '
            f'type {type(model_cfg).__name__}'
        )
    model_cfg = copy.deepcopy(model_cfg)
    owner = model_cfg
    if owner.get('neck') is None and isinstance(owner.get('detector'), dict):
        owner = owner['detector']
    neck = owner.get('neck')
    if not neck:
        name = _name(owner['type']) if 'type' in owner else 'this config'
        raise ValueError(
            f'{name} has no neck (model.neck), so there is nothing in which to put the '
            f'upsampler {upsample_cfg["type"]!r}'
        )
    trial, refusals = None, []
    parts = neck if isinstance(neck, list) else [neck]
    for part in parts:
        name = _name(part['type'])
        cls = NECKS.get(name)
        ours = not issubclass(cls, AnyNeckMixin)
        before, trial = trial, _try(part, cls, trial)
        if not trial.sites:
            refusals.append(unwrap_neck(name, trial))
            continue
        new = copy.deepcopy(upsample_cfg)
        if new.get('start') == 'neck':
            new = resolve_start(new, _start(part, cls, name))
        if not (ours and MODELS.get(name) is cls):
            part['type'] = f'{NECKS.scope}.{name}'
        if before and isinstance(part.get('in_channels'), int) and not ours:
            part['num_levels'] = len(before.outputs[0])
        part['upsample_cfg'] = {**_interpolation(part), **new}
    if len(refusals) == len(parts):
        raise ValueError('; '.join(refusals))
    return model_cfg


def _name(neck: str | type[nn.Module]) -> str:
    """The name under which :data:`NECKS` finds a ``type``."""
    if isinstance(neck, str):
        return neck.removeprefix(f'{NECKS.scope}.').removeprefix(f'{MODELS.scope}.')
    if MODELS.get(neck.__name__) is neck:
        return neck.__name__
    return f'{neck.__module__}.{neck.__qualname__}'


def _start(part: dict, cls: type[nn.Module], name: str) -> str:
    """The interpolation of a part; 'neck' where it shows once the part is built."""
    own = part.get('upsample_cfg')
    if own is None and (parameter := find_argument(cls, 'upsample_cfg')):
        own = parameter.default
    if not own or 'type' not in own:
        return 'neck'
    upsampler = registered_name(own['type'])
    if upsampler not in ('nearest', 'bilinear'):
        raise ValueError(
            f"start='neck' needs a neck that interpolates, and {name} has the "
            f"upsampler {upsampler!r}; choose start='paper' or an interpolation"
        )
    return interpolation_name(upsampler, own.get('align_corners'))


def _interpolation(part: dict) -> dict:
    """Arguments of the neck's own interpolation, in its ``upsample_cfg``."""
    own = part.get('upsample_cfg') or {}
    # beside an upsampler's name, align_corners may be that upsampler's
    keys = [k for k in INTERPOLATION_ARGS if 'type' not in own or k != 'align_corners']
    return {key: own[key] for key in keys if key in own}


def _try(part: dict, cls: type[nn.Module], before: NeckTrace | None) -> NeckTrace:
    """Build a part with interpolation and run it on what the part before gives."""
    neck_class = getattr(cls, 'wrapped', (cls,))[0]
    cfg = {**part, 'type': neck_class, 'upsample_cfg': _interpolation(part)}
    if neck_class is cls:
        cfg['upsample_cfg'] = dict(type='nearest')
    elif not cfg['upsample_cfg']:
        del cfg['upsample_cfg']
    num_levels = part.get('num_levels')
    if not find_argument(neck_class, 'num_levels'):
        cfg.pop('num_levels', None)
    with torch.random.fork_rng(devices=[]):  # what follows starts as without it
        neck = MODELS.build(cfg)
    if before:
        return trace_neck(neck, [(outputs,) for outputs in before.outputs])
    in_channels = part.get('in_channels', getattr(neck, 'in_channels', None))
    return try_from_channels(neck, in_channels, num_levels)
