"""Configs by path or by name, and with another upsampler in their neck."""

from __future__ import annotations

import ast
import os
import re
import warnings
from pathlib import Path

from mmengine.config import Config
from mmengine.hub import get_config

from ..necks import with_upsampler
from ..upsamplers import registered_name, upsampler_class

# what a config of MMDetection 2 says, and where MMDetection 3 reads it
_OF_VERSION_2 = {
    'data': 'train_dataloader, val_dataloader and test_dataloader',
    'optimizer': 'optim_wrapper.optimizer',
    'optimizer_config': 'optim_wrapper.clip_grad',
    'lr_config': 'param_scheduler',
    'momentum_config': 'param_scheduler',
    'runner': 'train_cfg',
    'total_epochs': 'train_cfg.max_epochs',
    'evaluation': 'val_evaluator and train_cfg.val_interval',
    'checkpoint_config': 'default_hooks.checkpoint',
    'log_config': 'default_hooks.logger',
    'dist_params': 'env_cfg.dist_cfg',
    'img_norm_cfg': 'model.data_preprocessor',
}
# of these, what may be a variable of another config
_MAYBE_VARIABLES = ('data', 'optimizer', 'runner', 'img_norm_cfg')


def read_config(name: str | os.PathLike) -> Config:
    """Read a config.

    Args:
        name (str | PathLike): A file, or one of an installed package as
            ``mmdet::retinanet/retinanet_r50_fpn_1x_coco.py``.

    Returns:
        Config: Complete.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is written for MMDetection 2.
    """
    cfg = _read(name)
    _refuse_version_2(name, cfg)
    return cfg


def _read(name: str | os.PathLike) -> Config:
    """Read a file or a config of an installed package."""
    package, found, path = str(name).partition('::')
    if not found:
        if not Path(name).is_file():
            raise FileNotFoundError(
                f'config {name} does not exist; the configs are in configs/, from any '
                f'folder dlu_mmdet::shapes/faster-rcnn_r18_fpn-dlu_shapes.py, those of '
                f'MMDetection mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
            )
        return Config.fromfile(name)
    try:
        return get_config(f'{package}::{path}')
    except (FileNotFoundError, ImportError, KeyError, AssertionError) as error:
        raise FileNotFoundError(
            f'config {name} is not in the installed package {package} ({error}); its '
            f'names are PACKAGE::FOLDER/FILE.py, as in its folder configs'
        ) from error


def _refuse_version_2(name: str | os.PathLike, cfg: Config) -> None:
    """Refuse a config of MMDetection 2; warn of what is left of one.

    Raises:
        ValueError: If no part of it is of MMDetection 3.
    """
    new = [k for k in cfg if k.endswith('_dataloader') or k == 'optim_wrapper']
    old = [key for key in _OF_VERSION_2 if key in cfg and key not in _MAYBE_VARIABLES]
    data = cfg.get('data')
    if isinstance(data, dict):
        only = ('samples_per_gpu', 'workers_per_gpu')
        only = only if new else (*only, 'train', 'val', 'test')
        old = ['data'] * any(key in data for key in only) + old
    if not new:
        # beside these the others are no variables
        old += [key for key in _MAYBE_VARIABLES[1:] if key in cfg]
    if not old:
        return
    moved = ', '.join(f'{key} is now {_OF_VERSION_2[key]}' for key in old[:4])
    if not new:
        raise ValueError(
            f"config {name} is in MMDetection 2's form ({', '.join(old)}), which "
            f'MMDetection 3 does not read ({moved}); take the config of the same '
            f'detector from MMDetection 3, as in mmdet::retinanet/'
            f'retinanet_r50_fpn_1x_coco.py, or rewrite it by '
            f'https://mmdetection.readthedocs.io/en/latest/migration/'
            f'config_migration.html'
        )
    warnings.warn(
        f"config {name} has keys of MMDetection 2's form, which nothing reads, so "
        f'they change nothing: {moved}',
        stacklevel=3,
    )


def config_stem(name: str | os.PathLike) -> str:
    """A config's file name without folders and ``.py``."""
    return Path(str(name).rpartition('::')[2]).stem


def parse_upsampler(text: str) -> dict:
    """Read the value of ``--upsampler``.

    Args:
        text (str): ``NAME`` or ``NAME:key=value,key=value``.

    Returns:
        dict: ``upsample_cfg``: ``type`` and the arguments, numbers and the like as
        such.

    Raises:
        ValueError: If there is no such upsampler, or an argument is none.
    """
    name, _, arguments = text.partition(':')
    cfg = dict(type=name)
    # commas inside brackets belong to a value
    for argument in re.split(r',(?![^(\[]*[)\]])', arguments) if arguments else ():
        key, found, value = argument.partition('=')
        if not found or not key.isidentifier() or not value:
            raise ValueError(
                f'--upsampler {text}: {argument!r} is no argument; the form is '
                f'NAME:key=value,key=value, as in carafe:up_kernel=3,up_group=2'
            )
        try:
            cfg[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            cfg[key] = value
    upsampler_class(cfg)
    return cfg


def set_upsampler(cfg: Config, upsample_cfg: dict) -> None:
    """Put an upsampler into a config's neck, so that the config is complete.

    Args:
        cfg (Config): Changed in place: ``model``, and ``custom_imports`` where they
            lack this package.
        upsample_cfg (dict): See :func:`dlu_mmdet.upsamplers.build_upsampler`.

    Raises:
        ValueError: If there is no model or no neck, or nothing in it enlarges a map,
            or the upsampler does not fit.
    """
    if not cfg.get('model'):
        raise ValueError(
            f'{cfg.filename or "the config"} has no model, so there is no neck for the '
            f'upsampler {upsample_cfg["type"]!r}'
        )
    cfg.model = with_upsampler(cfg.model, upsample_cfg)
    imports = dict(cfg.get('custom_imports') or {})
    names = imports.get('imports') or []
    names = [names] if isinstance(names, str) else list(names)
    if 'dlu_mmdet' not in names:
        cfg.custom_imports = dict(imports, imports=[*names, 'dlu_mmdet'])


def upsampler_label(upsample_cfg: dict) -> str:
    """An upsampler in a file's name: 'dlu', 'carafe-up_kernel-3'."""
    parts = [registered_name(upsample_cfg['type'])]
    for key, value in upsample_cfg.items():
        if key != 'type':
            parts += [key, re.sub(r'[^\w.]+', '-', str(value)).strip('-')]
    return '-'.join(parts)
