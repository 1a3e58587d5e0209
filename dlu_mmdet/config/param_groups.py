"""Settings of ``paramwise_cfg`` that no parameter of a model depends on.

mmengine's constructors of optimizers read the keys that they know and pass over the
others, and a key of ``custom_keys`` that no parameter's name contains has no effect.
"""

from __future__ import annotations

import difflib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

from mmdet.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapperDict, build_optim_wrapper
from mmengine.registry import init_default_scope
from torch import nn

_PART = 'optim_wrapper.paramwise_cfg'
# what mmengine's and mmdet's constructors read, beside custom_keys
_KNOWN = (
    *('bias_lr_mult', 'bias_decay_mult', 'norm_decay_mult', 'flat_decay_mult'),
    *('dwconv_decay_mult', 'dcn_offset_lr_mult', 'bypass_duplicate'),
    *('decay_rate', 'decay_type', 'num_layers'),
)
_MULTIPLIERS = ('lr_mult', 'decay_mult')


@dataclass(frozen=True)
class Unreached:
    """A setting that changes nothing.

    Attributes:
        key (str): Its dotted key in the config.
        misspelt (bool): Whether it changes nothing for any other model either.
        message (str): What is wrong, and what would work.
    """

    key: str
    misspelt: bool
    message: str


def find_unreached(model: nn.Module, optim_wrapper: Mapping) -> list[Unreached]:
    """Find the settings of ``paramwise_cfg`` that no parameter depends on.

    Each number is changed in turn, and the optimizer's parameter groups are compared.

    Args:
        model (nn.Module): The detector.
        optim_wrapper (Mapping): Config of the optimizer wrapper.

    Returns:
        list[Unreached]: Those that could be left out.

    Raises:
        ValueError: If a multiplier is not a number, or a key of ``custom_keys`` has no
            dict of settings.
    """
    settings = [*_settings(optim_wrapper.get('paramwise_cfg') or {})]
    if not settings:
        return []
    model = getattr(model, 'module', model)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    cfg = deepcopy(dict(optim_wrapper))
    if 'optimizer' in cfg:
        # the constructor makes the groups, whatever wraps the optimizer
        cfg = {k: cfg.get(k) for k in ('optimizer', 'constructor', 'paramwise_cfg')}
        cfg['constructor'] = cfg['constructor'] or 'DefaultOptimWrapperConstructor'
    known = _has_known_keys(cfg.get('constructor'))
    logger = MMLogger.get_current_instance()
    level = logger.level
    # they log a line for each parameter
    logger.setLevel(logging.ERROR)
    try:
        groups, options = _groups(model, cfg)
        found = []
        for path, value in settings:
            misspelt = known and _is_misspelt(path, options)
            if misspelt or (_is_number(value) and groups == _changed(model, cfg, path)):
                key = f'{_PART}.{".".join(path)}'
                message = (
                    f'{key}={value}: no trained parameter of the model depends on '
                    f'this, so it would change nothing; '
                    f'{_hint(path, value, names, options)}'
                )
                found.append(Unreached(key, misspelt, message))
    finally:
        logger.setLevel(level)
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _settings(
    part: Mapping, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], object]]:
    """The settings of ``paramwise_cfg`` by their keys."""
    for name, value in part.items():
        own = (*path, str(name))
        if isinstance(value, Mapping):
            yield from _settings(value, own)
        elif path == ('custom_keys',):
            raise ValueError(
                f'{_PART}.{".".join(own)}={value!r}: it must be a dict of lr_mult, '
                f'decay_mult or options of the optimizer'
            )
        elif own[-1].endswith('_mult') and value is not None and not _is_number(value):
            raise ValueError(
                f'{_PART}.{".".join(own)}={value!r}: it must be a number, by which '
                f'the learning rate or the weight decay is multiplied'
            )
        else:
            yield own, value


def _groups(model: nn.Module, cfg: Mapping) -> tuple[dict, set[str]]:
    """What each parameter is trained with, and the names of the optimizer's options."""
    built = build_optim_wrapper(model, dict(cfg))
    wrappers = built.values() if isinstance(built, OptimWrapperDict) else [built]
    groups, options = {}, set()
    for optimizer in (wrapper.optimizer for wrapper in wrappers):
        options |= {*optimizer.defaults}
        for group in optimizer.param_groups:
            own = [repr(group[name]) for name in optimizer.defaults]
            groups.update({id(parameter): own for parameter in group['params']})
    return groups, options


def _changed(model: nn.Module, cfg: Mapping, path: Sequence[str]) -> dict:
    """What each parameter is trained with if one number of the settings is another."""
    cfg = deepcopy(dict(cfg))
    part = cfg['paramwise_cfg']
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] += 1
    return _groups(model, cfg)[0]


def _has_known_keys(constructor: str | type | None) -> bool:
    """Whether a constructor is mmengine's or mmdet's."""
    if isinstance(constructor, str):
        constructor = OPTIM_WRAPPER_CONSTRUCTORS.get(constructor)
    module = getattr(constructor, '__module__', '')
    return module.split('.')[0] in ('mmengine', 'mmdet')


def _is_misspelt(path: tuple[str, ...], options: set[str]) -> bool:
    if path[0] != 'custom_keys':
        return path[0] not in _KNOWN
    return len(path) != 3 or path[-1] not in {*_MULTIPLIERS, *options}


def _hint(
    path: tuple[str, ...], value: object, names: Sequence[str], options: set[str]
) -> str:
    """What would work instead of a setting."""
    setting, name = path[-1], '.'.join(path[1:-1])
    if path[0] != 'custom_keys':
        known = ['custom_keys', *_KNOWN]
    else:
        known = [*_MULTIPLIERS, *options]
    if setting not in known:
        near = difflib.get_close_matches(setting, known, n=2) or known[:5]
        return f'nearest: {", ".join(near)}'
    if path[0] != 'custom_keys':
        return (
            'the model has no such parameter, the constructor does not read it, or '
            'what it multiplies is 0'
        )
    if not any(name in own for own in names):
        parts = {'.'.join(n.split('.')[:i]) for n in names for i in range(1, 5)}
        near = difflib.get_close_matches(name, parts, n=3, cutoff=0.3)
        shown = f', as {", ".join(near)}' if near else ''
        return f"a key of custom_keys is a part of a parameter's name{shown}"
    if len(path) > 3:
        form = {name: {setting: value}}
        return (
            f'a dot begins a key inside the key before it, so a name with a dot is '
            f'given in a dict: --cfg-options "{_PART}.custom_keys={form}"'
        )
    return (
        'a longer key of custom_keys goes before it, the constructor reads none, or '
        'what it multiplies is 0'
    )


def refuse_unreached(configs: Sequence[Config], options: Mapping) -> None:
    """Refuse ``--cfg-options`` of ``paramwise_cfg`` that change nothing.

    Args:
        configs (Sequence[Config]): With the options merged. An option must change
            something in one of them: some upsamplers have no parameters.
        options (Mapping): By dotted key, the values.

    Raises:
        ValueError: If one reaches no parameter; the message has the form that works.
    """
    keys = tuple(
        f'{key}.'
        for key, value in options.items()
        if f'{key}.'.startswith(f'{_PART}.')
        or (f'{_PART}.'.startswith(f'{key}.') and 'paramwise_cfg' in (value or ()))
    )
    found = None
    for cfg in configs:
        if not keys or found == {} or not (cfg.get('model') and cfg.optim_wrapper):
            return
        init_default_scope(cfg.get('default_scope') or 'mmdet')
        model = MODELS.build(deepcopy(cfg.model))
        own = {u.key: u for u in find_unreached(model, cfg.optim_wrapper)}
        found = {k: u for k, u in own.items() if found is None or k in found}
    for unreached in (found or {}).values():
        if f'{unreached.key}.'.startswith(keys):
            raise ValueError(f'--cfg-options {unreached.message}')


def check_param_groups(model: nn.Module, cfg: Config) -> None:
    """Warn of settings of ``paramwise_cfg`` in a config that change nothing.

    A name that no parameter has is not refused: schedules name parts of several
    backbones.

    Args:
        model (nn.Module): The detector.
        cfg (Config): Its config.

    Raises:
        ValueError: If a setting could change nothing in any model.
    """
    for unreached in find_unreached(model, cfg.get('optim_wrapper') or {}):
        if unreached.misspelt:
            raise ValueError(unreached.message)
        warnings.warn(unreached.message, stacklevel=2)
