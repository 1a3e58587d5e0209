"""Any detector's config, with the upsampler of one's choice in its neck."""

from __future__ import annotations

import copy
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from ..upsamplers import (
    INTERPOLATION_ARGS,
    interpolation_name,
    registered_name,
    resolve_start,
    trial_of,
    upsampler_class,
)
from ..upsamplers.sites import NeckTrace, trace_neck
from .any_neck import AnyNeckMixin, find_argument, try_from_channels, unwrap_neck
from .registry import NECKS


def with_upsampler(
    model_cfg: dict, upsample_cfg: dict, auxiliary: bool = False
) -> dict:
    """Put an upsampler at every site where a neck or a decode head enlarges a map.

    The parts of the neck are built and run on small maps of zeros, one after
    the other, to see which of them do so. For these the config then names
    their class with the prefix ``dlu_mmdet.``. The decode head of a segmentor of
    MMSegmentation runs on what its backbone and neck give for an image of zeros.

    Args:
        model_cfg (dict): ``model`` of a config, plain or a
            ConfigDict; its neck one part or a list of them. The neck of
            a ``detector`` in it, as trackers and semi-supervised detectors
            have, counts as its own. Names without a scope are those of the default
            scope.
        upsample_cfg (dict): See :func:`dlu_mmdet.upsamplers.build_upsampler`. A
            ``start`` of 'neck' is the interpolation that each site had.
        auxiliary (bool): Whether the auxiliary heads of a segmentor get upsamplers
            too. Defaults to False.

    Returns:
        dict: A new config of the same kind; the one given is left alone.

    Raises:
        TypeError: If an argument is no dict.
        ValueError: If there is neither a neck nor a decode head, if it is unknown or
            cannot be tried, or if it enlarges no map; if the upsampler is unknown, or
            is to start at the interpolation of a neck that has upsamplers.
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
    neck, heads = owner.get('neck'), _decode_heads(owner, auxiliary)
    if not neck and not heads:
        name = _name(owner['type']) if 'type' in owner else 'this config'
        raise ValueError(
            f'{name} has no neck (model.neck), so there is nothing in which to put the '
            f'upsampler {upsample_cfg["type"]!r}'
        )
    # before the neck has upsamplers
    maps = _head_maps(owner) if heads else []
    parts = neck if isinstance(neck, list) else [neck] if neck else []
    refusals = []
    try:
        refusals += _change_neck(parts, upsample_cfg)
    except ValueError as error:
        if not heads:
            raise
        # an entry for each part
        refusals += [str(error)] * len(parts)
    for head in heads:
        refusals += _change_head(head, upsample_cfg, maps)
    if len(refusals) == len(parts) + len(heads):
        raise ValueError('; '.join(dict.fromkeys(refusals)))
    return model_cfg


def _change_neck(parts: list[dict], upsample_cfg: dict) -> list[str]:
    """Change the parts of a neck that enlarge maps; says why not the others."""
    trial, refusals = None, []
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
    return refusals


def _decode_heads(owner: dict, auxiliary: bool) -> list[dict]:
    """The heads of a segmentor; none of a detector."""
    heads = []
    for key in ('decode_head', *('auxiliary_head',) * auxiliary):
        head = owner.get(key) or []
        heads += head if isinstance(head, list) else [head]
    return heads


def _head_maps(owner: dict) -> list[tuple]:
    """What the heads of a segmentor are given, for images of zeros of two sizes."""
    backbone = owner.get('backbone')
    if not backbone:
        raise ValueError(
            f'{_name(owner["type"]) if "type" in owner else "this config"} has no '
            'backbone (model.backbone), so the maps that its decode head is given are '
            'not known'
        )
    parts = [backbone, *([owner['neck']] if owner.get('neck') else [])]
    # some transformers take images of one size alone
    fixed = backbone.get('img_size') or 128
    fixed = tuple(fixed) if isinstance(fixed, (tuple, list)) else (fixed, fixed)
    channels, errors = backbone.get('in_channels'), []
    channels = channels if isinstance(channels, int) else 3
    for sizes in ([(128, 128), (256, 128)], [fixed]):
        try:
            with torch.random.fork_rng(devices=[]):
                modules = [MODELS.build(part) for part in copy.deepcopy(parts)]
            return [(s, _run_on_zeros(modules, channels, *s)) for s in sizes]
        except Exception as error:  # whatever it says to such an image
            errors.append(error)
    first = errors[0]
    raise ValueError(
        f'{_name(backbone["type"])} cannot be tried on an image of 128 x 128 pixels '
        f'({type(first).__name__}: {" ".join(str(first).split())}): the maps that the '
        'decode head is given are not known'
    ) from first


def _run_on_zeros(modules: list[nn.Module], *shape: int) -> Any:
    x: Any = torch.zeros(1, *shape)
    for module in modules:
        with trial_of(module):
            x = module(x)
    return x


def _change_head(part: dict, upsample_cfg: dict, maps: list[tuple]) -> list[str]:
    """Change a decode head if it enlarges maps; says why not."""
    name = _name(part['type'])
    (h, _), given = maps[0]
    if not all(isinstance(each, Tensor) and each.dim() == 4 for each in given):
        return [f'{name} is not given a list of maps (N, C, H, W) by its backbone']
    own = {k: v for k, v in part.items() if k not in ('upsample_cfg', 'input_maps')}
    own['type'] = getattr(NECKS.get(name), 'wrapped', (name,))[0]
    try:
        with torch.random.fork_rng(devices=[]):
            head = MODELS.build(own)
        trial = trace_neck(head, [(each,) for _, each in maps])
    except Exception as error:  # whatever a head says to maps alone
        return [
            f'{name} cannot be tried on the maps of its backbone alone '
            f'({type(error).__name__}: {" ".join(str(error).split())})'
        ]
    if not trial.sites:
        return [unwrap_neck(name, trial)]
    part['type'] = f'{NECKS.scope}.{name}'
    part['upsample_cfg'] = copy.deepcopy(upsample_cfg)
    part['input_maps'] = [(each.shape[1], h // each.shape[2]) for each in given]
    return []


def _name(neck: str | type[nn.Module]) -> str:
    """The name under which :data:`NECKS` finds a ``type``."""
    if isinstance(neck, str):
        name = neck.removeprefix(f'{NECKS.scope}.')
        # MMSegmentation registers another class as FPN
        scope = DefaultScope.get_current_instance()
        is_mmdets = scope is None or scope.scope_name in (MODELS.scope, NECKS.scope)
        if is_mmdets and name.startswith(f'{MODELS.scope}.'):
            # a config in Python is dumped with paths, as mmdet.models.necks.FPN
            return name.rpartition('.')[2]
        return name
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
