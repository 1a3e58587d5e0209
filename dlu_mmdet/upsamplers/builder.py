"""From an ``upsample_cfg`` to a module, for every registered upsampler."""

from __future__ import annotations

import difflib
import inspect
import os
from typing import Any

from torch import nn

from .registry import UPSAMPLERS
from .user_files import absolute_name, find_in_file, is_from_file, split_file

#: Arguments of ``torch.nn.functional.interpolate`` that necks of MMDetection hold
#: under a key ``upsample_cfg`` of their own.
INTERPOLATION_ARGS = ('scale_factor', 'mode', 'align_corners')


def upsampler_class(cfg: dict) -> type[nn.Module]:
    """Look up the upsampler that a config names.

    Args:
        cfg (dict): As :func:`build_upsampler`.

    Returns:
        type[nn.Module]: The class.

    Raises:
        FileNotFoundError: If ``type`` names a file that does not exist.
        TypeError: If ``cfg`` is no dict, or ``type`` names no class of modules that
            takes ``channels`` and ``scale_factor``.
        ValueError: If ``type`` is missing or unknown, or its file cannot be loaded.
    """
    if not isinstance(cfg, dict):
        raise TypeError(
            f'upsample_cfg must be a dict, got {cfg!r} of type {type(cfg).__name__}'
        )
    known = ', '.join(sorted(UPSAMPLERS.module_dict))
    if 'type' not in cfg:
        raise ValueError(
            f'upsample_cfg needs a "type", got {dict(cfg)}; known types: {known}'
        )
    name = cfg['type']
    if split_file(name):
        cls: Any = find_in_file(name, UPSAMPLERS)
    else:
        cls = _find_registered(name) if isinstance(name, str) else name
    if cls is None:
        near = difflib.get_close_matches(str(name).lower(), UPSAMPLERS.module_dict, n=1)
        hint = f'; did you mean {near[0]!r}?' if near else ''
        raise ValueError(
            f'upsampler {name!r} is not registered{hint}; known types: {known}; a '
            f'class of your own is named with its file, as in path/to/mine.py:Mine'
        )
    _check_class(name, cls)
    return cls


def _find_registered(name: Any) -> Any:
    """What has a name in :data:`UPSAMPLERS` or above it, or a path; None if nothing."""
    if '.' in name:
        is_path = all(part.isidentifier() for part in name.split('.'))
        return UPSAMPLERS.get(name) if is_path else None
    # mmengine would import a module of that name
    registry = UPSAMPLERS
    while registry is not None and name not in registry.module_dict:
        registry = registry.parent
    return registry and registry.module_dict[name]


def _check_class(name: object, cls: Any) -> None:
    """Refuse what cannot be built as an upsampler."""
    is_module = inspect.isclass(cls) and issubclass(cls, nn.Module)
    if not is_module and not inspect.isfunction(cls):
        raise TypeError(
            f'upsample_cfg.type={name!r} must be a class derived from torch.nn.Module, '
            f'got {cls!r}'
        )
    parameters = inspect.signature(cls).parameters
    # that of torch.nn.Module takes any argument, and refuses it when it is called
    has_init = not is_module or cls.__init__ is not nn.Module.__init__
    if has_init and any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    needed = ('channels', 'scale_factor', *('guide_channels',) * is_guided(cls))
    if missing := [key for key in needed if key not in parameters]:
        raise TypeError(
            f'upsample_cfg.type={name!r} does not take {" and ".join(missing)}; the '
            f'class must be built as {cls.__name__}({", ".join(needed)}), with '
            f'defaults for other arguments'
        )


def resolve_upsampler(cfg: dict) -> dict:
    """Look up an upsampler, and name it so that the name holds in any folder.

    A name that is not registered is searched for in the current folder: ``mine`` in
    ``mine.py`` or ``mine/__init__.py``.

    Args:
        cfg (dict): As :func:`build_upsampler`.

    Returns:
        dict: The same, with the absolute path where ``type`` is in a file.

    Raises:
        FileNotFoundError: As :func:`upsampler_class`.
        TypeError: As :func:`upsampler_class`.
        ValueError: As :func:`upsampler_class`.
    """
    if isinstance(cfg, dict) and isinstance(cfg.get('type'), str):
        cfg = {**cfg, 'type': resolve_name(cfg['type'])}
    upsampler_class(cfg)
    return cfg


def resolve_name(name: str) -> str:
    """The name of :func:`resolve_upsampler`; nothing is loaded."""
    if name.isidentifier():
        found = _find_registered(name)
        files = (f'{name}.py', os.path.join(name, '__init__.py'))
        file = next(filter(os.path.isfile, files), None)
        # such a file may have registered itself in MMDetection's MODELS
        if file and (found is None or is_from_file(found)):
            name = f'{file}:{name}'
    return absolute_name(name)


def registered_name(upsampler: str | type[nn.Module]) -> str:
    """One name for one upsampler, however a config says it.

    Args:
        upsampler (str | type[nn.Module]): ``type`` of an ``upsample_cfg``: a name, with
            a scope or without, a class's full path or a class.

    Returns:
        str: The name under which it is registered; that of the class if it is
        registered nowhere or in a file, and the text itself if there is no such class.
    """
    if found := split_file(upsampler):
        return found[1]
    cls = upsampler if inspect.isclass(upsampler) else _find_registered(upsampler)
    if cls is None:
        return str(upsampler)
    registry = UPSAMPLERS
    while registry is not None:
        for name, registered in registry.module_dict.items():
            if registered is cls:
                return name
        registry = registry.parent
    return cls.__name__


def split_upsample_cfg(cfg: Any) -> tuple[dict, dict]:
    """Part an upsampler's arguments from those of the interpolation it replaces.

    A config that inherits ``upsample_cfg=dict(scale_factor=2, mode='nearest')``
    from MMDetection's and adds ``type='dlu'`` holds all three in one dict.

    Args:
        cfg (dict): As :func:`build_upsampler`, with arguments of
            ``torch.nn.functional.interpolate`` among the others.

    Returns:
        tuple[dict, dict]: The upsampler's config, and the interpolation's
        arguments that the upsampler does not take itself.

    Raises:
        TypeError: If ``cfg`` is no dict.
        ValueError: If ``type`` is missing or unknown.
    """
    # the ratio is the neck's: build_upsampler passes it beside the config
    taken = set(_accepted(upsampler_class(cfg)) or ()) - {'scale_factor'}
    theirs = {k: cfg[k] for k in INTERPOLATION_ARGS if k in cfg and k not in taken}
    return {k: v for k, v in cfg.items() if k not in theirs}, theirs


def is_guided(upsampler: nn.Module | type[nn.Module]) -> bool:
    """Whether an upsampler, or its class, reads a guide: ``guided = True``."""
    return getattr(upsampler, 'guided', False)


def build_upsampler(
    cfg: dict,
    channels: int,
    scale_factor: int = 2,
    guide_channels: int | None = None,
) -> nn.Module:
    """Build the upsampler that a config names.

    Args:
        cfg (dict): ``type``, a name in :data:`UPSAMPLERS` (or in mmdet's
            ``MODELS``), ``path/to/mine.py:Mine`` or a class, and the arguments of that
            class other than ``channels``, ``scale_factor`` and ``guide_channels``.
        channels (int): Number of channels in and out.
        scale_factor (int): Upsampling ratio, at least 1.
        guide_channels (int, optional): Channels of the high-resolution features
            of the site, for an upsampler that reads a guide. None for a site
            without a guide. Defaults to None.

    Returns:
        nn.Module: Maps (N, C, H, W) to (N, C, s*H, s*W); a guided one maps it and
        the guide (N, guide_channels, h, w) to (N, C, h, w).

    Raises:
        FileNotFoundError: As :func:`upsampler_class`.
        TypeError: As :func:`upsampler_class`, or if ``cfg`` holds an argument that the
            class does not accept, or lacks one that it needs.
        ValueError: As :func:`upsampler_class`, or if the ratio is below 1, or the
            upsampler reads a guide and there is none.
    """
    cls = upsampler_class(cfg)
    if scale_factor < 1:
        raise ValueError(f'scale_factor must be at least 1, got {scale_factor}')
    kwargs = {k: v for k, v in cfg.items() if k != 'type'}
    accepted = _accepted(cls)
    for argument in kwargs:
        if accepted is not None and argument not in accepted:
            raise TypeError(
                f'upsample_cfg.{argument}={kwargs[argument]!r} is not an '
                f'argument of {cfg["type"]!r}; accepted: '
                f'{", ".join(accepted) or "none"}'
            )
    if is_guided(cls):
        if guide_channels is None:
            raise ValueError(
                f'upsample_cfg.type={cfg["type"]!r} reads high-resolution features as '
                'a guide, and this site has none; use it in UpsampleFPN or '
                'UnifiedFPN, or choose an upsampler without a guide'
            )
        kwargs['guide_channels'] = guide_channels
    kwargs = dict(channels=channels, scale_factor=scale_factor, **kwargs)
    try:
        inspect.signature(cls).bind(**kwargs)
    except TypeError as error:
        raise TypeError(
            f'upsample_cfg.type={cfg["type"]!r}: {error}; give it in upsample_cfg, or '
            f'a default in the class'
        ) from None
    return cls(**kwargs)


def _accepted(cls: type[nn.Module]) -> list[str] | None:
    """Arguments that a config may give to an upsampler; None for any."""
    parameters = inspect.signature(cls).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    given = ('channels', 'scale_factor', 'guide_channels')
    return [p.name for p in parameters if p.name not in given]
