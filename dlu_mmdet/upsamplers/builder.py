"""From an ``upsample_cfg`` to a module, for every registered upsampler."""

from __future__ import annotations

import inspect

from mmdet.registry import MODELS
from mmengine.registry import Registry
from torch import nn

#: Classes that ``upsample_cfg.type`` can name. Each takes ``channels`` (equal
#: in and out) and ``scale_factor`` first, then keyword arguments with
#: defaults, and maps (N, C, H, W) to (N, C, s*H, s*W).
UPSAMPLERS = Registry('upsampler', parent=MODELS, scope='dlu_mmdet')


def build_upsampler(cfg: dict, channels: int, scale_factor: int = 2) -> nn.Module:
    """Build the upsampler that a config names.

    Args:
        cfg (dict): ``type``, a name in :data:`UPSAMPLERS` (or in mmdet's
            ``MODELS``) or a class, and the arguments of that class other than
            ``channels`` and ``scale_factor``.
        channels (int): Number of channels in and out.
        scale_factor (int): Upsampling ratio, at least 1.

    Returns:
        nn.Module: Maps (N, C, H, W) to (N, C, s*H, s*W).

    Raises:
        TypeError: If ``cfg`` is no dict, or holds an argument that the class
            does not accept.
        ValueError: If ``type`` is missing or unknown.
    """
    if not isinstance(cfg, dict):
        raise TypeError(
            f'upsample_cfg must be a dict, got {cfg!r} of type {type(cfg).__name__}'
        )
    kwargs = dict(cfg)
    known = ', '.join(sorted(UPSAMPLERS.module_dict))
    if 'type' not in kwargs:
        raise ValueError(
            f'upsample_cfg needs a "type", got {dict(cfg)}; known types: {known}'
        )
    name = kwargs.pop('type')
    cls = name if inspect.isclass(name) else UPSAMPLERS.get(name)
    if cls is None:
        raise ValueError(
            f'upsample_cfg.type={name!r} is not registered; known types: {known}'
        )

    parameters = inspect.signature(cls).parameters.values()
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        accepted = [
            p.name for p in parameters if p.name not in ('channels', 'scale_factor')
        ]
        for argument in kwargs:
            if argument not in accepted:
                raise TypeError(
                    f'upsample_cfg.{argument}={kwargs[argument]!r} is not an '
                    f'argument of {name!r}; accepted: '
                    f'{", ".join(accepted) or "none"}'
                )
    return cls(channels=channels, scale_factor=scale_factor, **kwargs)
