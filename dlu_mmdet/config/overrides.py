"""Overrides of a config that change nothing are refused."""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import mmdet.registry
from mmengine.config import Config, DictAction
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import Registry
from mmengine.runner import (
    EpochBasedTrainLoop,
    IterBasedTrainLoop,
    Runner,
    TestLoop,
    ValLoop,
    set_random_seed,
)
from mmengine.utils.dl_utils import set_multi_processing
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.utils.data import DataLoader

from ..datasets.preflight import data_root_override_hint, in_scope, resolve
from ..upsamplers import resolve_name, upsampler_class
from .param_groups import refuse_unreached


def parse_options(values: Sequence[str]) -> dict[str, object]:
    """Read ``KEY=VALUE`` of a command line.

    Values are read as MMDetection's tools read them. A dict, for keys that have a dot,
    and a list of dicts are written as in Python.

    Args:
        values (Sequence[str]): As ``train_cfg.max_epochs=12`` or ``a.b="[1,2]"``.

    Returns:
        dict[str, object]: The settings by key.

    Raises:
        ValueError: If a text is not ``KEY=VALUE``, or a value cannot be read.
    """
    found = {}
    for text in values:
        key, equals, value = text.partition('=')
        if not (equals and key):
            raise ValueError(
                f'--cfg-options: {text!r} is not KEY=VALUE, as in '
                f'train_cfg.max_epochs=12'
            )
        if 'dict(' in value:
            raise ValueError(
                f"--cfg-options: {text}: write a dict as {{'key': value}}, and put "
                f'the option into quotes'
            )
        try:
            if value.strip().startswith(('{', '[{')):
                found[key] = ast.literal_eval(value.strip())
            else:
                found[key] = DictAction._parse_iterable(value)
        # mmengine asserts that brackets are balanced
        except (ValueError, SyntaxError, AssertionError) as error:
            raise ValueError(
                f'--cfg-options: {text} has no value that can be read ({error})'
            ) from error
    return found


# what Runner.from_cfg and the tools read; other variables of a file are gone into
# these once it is resolved
_READ = {*inspect.signature(Runner.__init__).parameters} - {'self', 'cfg'}
_READ |= {'runner_type', 'tta_model', 'tta_pipeline'}
_READ |= {'model_wrapper_cfg', 'find_unused_parameters', 'sync_bn', 'compile'}
_READ |= {'activation_checkpointing', 'efficient_conv_bn_eval'}
# parts that need no type: whose arguments they are, and what else is read there
_UNTYPED = {
    'train_cfg': ((EpochBasedTrainLoop, IterBasedTrainLoop), ('by_epoch',)),
    'val_cfg': ((ValLoop,), ()),
    'test_cfg': ((TestLoop,), ()),
    'optim_wrapper': ((OptimWrapper,), ('type', 'constructor', 'paramwise_cfg')),
    'randomness': ((set_random_seed,), ()),
    'auto_scale_lr': ((), ('enable', 'base_batch_size')),
    'env_cfg': ((), ('cudnn_benchmark', 'mp_cfg', 'dist_cfg', 'resource_limit')),
    'env_cfg.mp_cfg': ((set_multi_processing,), ()),
    'optim_wrapper.clip_grad': ((clip_grad_norm_, clip_grad_value_), ('type',)),
    **{
        f'{split}_dataloader': (
            (DataLoader,),
            ('dataset', 'batch_sampler', 'num_batch_per_epoch'),
        )
        for split in ('train', 'val', 'test')
    },
}
# the same, by the last part of the key alone
_UNTYPED_ENDS = {
    'filter_cfg': ('filter_empty_gt', 'min_size', 'bbox_min_size'),
    'metainfo': ('classes', 'palette'),
}
# parts that are checked elsewhere, or are handed on as they are
_FREE = ('optim_wrapper.paramwise_cfg', 'env_cfg.dist_cfg')
# mmdet's own: a name such as LoadAnnotations is another class in mmcv's
_REGISTRIES = [
    v
    for v in vars(mmdet.registry).values()
    if isinstance(v, Registry) and v.scope == 'mmdet'
]


@in_scope
def merge_options(cfg: Config, options: Mapping, reach: bool = True) -> None:
    """Merge ``--cfg-options`` into a config, and see that each has an effect.

    A key may be new where the class that its part of the config names has such an
    argument. An upsampler in a file gets its absolute path.

    Args:
        cfg (Config): Complete; changed in place.
        options (Mapping): By dotted key, the values.
        reach (bool): Whether options for groups of parameters must reach one, see
            :func:`~dlu_mmdet.config.param_groups.refuse_unreached`. Defaults to True.

    Raises:
        ValueError: If a key is not in the config and no argument of its part, or is
            a variable of the file that nothing reads any more; the message names
            keys that would work. Or if a key goes where the config has no such part,
            or reaches no parameter.
    """
    before = dict(_nodes(cfg._cfg_dict))
    try:
        cfg.merge_from_dict(dict(options))
    except (KeyError, TypeError) as error:
        reason = error.args[0] if error.args else error
        raise ValueError(
            f'--cfg-options {" ".join(f"{k}={v}" for k, v in options.items())} do not '
            f'fit the config: {reason}'
        ) from error
    for key, part in _nodes(cfg._cfg_dict):
        if key.endswith('.upsample_cfg') and isinstance(part, dict):
            if isinstance(part.get('type'), str):
                part['type'] = resolve_name(part['type'])
    read = _READ
    if cfg.get('runner_type') == 'FlexibleRunner':
        read = _READ | {'strategy'}
    after = dict(_nodes(cfg._cfg_dict))
    for parts, value in _leaves(options):
        key = '.'.join(parts)
        known = key in before
        if parts[0] in read and (known or _is_accepted(parts, before, after)):
            continue
        why = (
            'is a variable of the file, which nothing reads once the file is resolved'
            if known
            else 'is not in the config, and nothing reads it'
        )
        nearest = _nearest(cfg, key, value, before)
        hint = f'; {nearest}' if nearest else ''
        raise ValueError(
            f'--cfg-options {key}={value}: this key {why}, so it would change '
            f'nothing{hint}. What a class of your own reads can be set in a config file'
        )
    if reach:
        refuse_unreached([cfg], options)


def _nodes(value: object, prefix: str = '') -> Iterator[tuple[str, Any]]:
    """Every part of a config with its dotted key."""
    if isinstance(value, Mapping):
        items: Iterable[tuple] = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        return
    for name, inner in items:
        key = f'{prefix}.{name}' if prefix else str(name)
        yield key, inner
        yield from _nodes(inner, key)


def _leaves(
    options: Mapping, prefix: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], object]]:
    """Options by the parts of their keys, those inside dicts one by one."""
    for key, value in options.items():
        # a name inside a dict may have dots of its own
        parts = (*prefix, key) if prefix else tuple(key.split('.'))
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, parts)
        else:
            yield parts, value


def _is_accepted(parts: Sequence[str], before: Mapping, after: Mapping) -> bool:
    """Whether the parts that a new key is in, and makes, take it."""
    depth = next(i for i in range(len(parts)) if '.'.join(parts[: i + 1]) not in before)
    if not depth or not before['.'.join(parts[:depth])]:
        return True
    inner = [_takes(parts[: i + 1], after) for i in range(depth, len(parts))]
    return bool(inner[0]) and False not in inner


def _takes(parts: Sequence[str], after: Mapping) -> bool | None:
    """Whether a part of a config accepts a key; None if unknown."""
    *inside, name = parts
    where = '.'.join(inside)
    free = tuple(f'{key}.' for key in _FREE)
    if name in ('_delete_', 'type') or f'{where}.'.startswith(free):
        return True
    part = after.get(where)
    if not isinstance(part, Mapping):
        return None
    classes: Sequence
    if 'type' in part:
        classes = [_find(part['type'], inside[-1])]
        others = _UNTYPED.get(where, ((), ()))[1]
        if None in classes:
            # mmengine says of an unknown type that it is unknown
            return True
    elif where == 'default_hooks':
        return isinstance(part[name], Mapping) and 'type' in part[name]
    elif where in _UNTYPED:
        classes, others = _UNTYPED[where]
    elif inside[-1] in _UNTYPED_ENDS:
        classes, others = (), _UNTYPED_ENDS[inside[-1]]
    else:
        return None
    accepted = [_arguments(cls) for cls in classes]
    return name in others or any(known is None or name in known for known in accepted)


def _alike_arguments(parts: Sequence[str], before: Mapping) -> list[str]:
    """Arguments of the part that a new key is in, with a similar name."""
    where, _, name = '.'.join(parts).rpartition('.')
    part = before.get(where)
    cls = _find(part['type'], parts[-2]) if part and 'type' in part else None
    accepted = (_arguments(cls) if cls else None) or ()
    return [f'{where}.{n}' for n in difflib.get_close_matches(name, accepted, n=2)]


def _find(type_: str | type, part: str) -> Any:
    """What a type names, whatever its registry."""
    if part == 'upsample_cfg':
        try:
            return upsampler_class(dict(type=type_))
        except (OSError, TypeError, ValueError):
            return None  # the build of the model says what is wrong
    found = (resolve(registry, type_) for registry in _REGISTRIES)
    return next((cls for cls in found if cls is not None), None)


def _arguments(cls: Any) -> set[str] | None:
    """Names of the arguments, those handed on to base classes too; None: any."""
    names = set()
    owners = [c for c in cls.__mro__ if '__init__' in vars(c)] if _is(cls) else [cls]
    for owner in owners:
        try:
            call = owner.__init__ if _is(owner) else owner
            parameters = inspect.signature(call).parameters.values()
        except (TypeError, ValueError):
            return None
        names |= {p.name for p in parameters}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    # mmengine takes these out of any hook's arguments
    return names | ({'priority'} if _is(cls) and issubclass(cls, Hook) else set())


def _is(cls: object) -> bool:
    return inspect.isclass(cls)


def _nearest(cfg: Config, key: str, value: Any, before: Mapping) -> str:
    """Keys that were probably meant."""
    last = key.split('.')[-1]
    if last == 'data_root':
        hint = data_root_override_hint(cfg, value)
        return f'data in another folder are named by {hint}'
    keys = [k for k in before if k.split('.')[0] in _READ]
    # the same end, as much of it as there is; else a similar name
    parts = key.split('.')
    for start in range(len(parts)):
        end = '.'.join(parts[start:])
        found = [k for k in keys if f'.{k}'.endswith(f'.{end}')]
        if found and not end.isdigit():
            return f'nearest: {", ".join(found[:4])}'
    near = _alike_arguments(parts, before)
    near += difflib.get_close_matches(key, keys, n=2, cutoff=0.75)
    names = {k.split('.')[-1] for k in keys} - {'_scope_'}
    alike = difflib.get_close_matches(last, names, n=1, cutoff=0.6)
    near += [k for k in keys if k.split('.')[-1] in alike][:3]
    return f'nearest: {", ".join(dict.fromkeys(near))}' if near else ''
