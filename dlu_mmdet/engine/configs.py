"""Configs by path or by name, and with another upsampler in their neck."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path

from mmengine.config import Config
from mmengine.hub import get_config

from ..necks import with_upsampler
from ..upsamplers import registered_name, upsampler_class


def read_config(name: str | os.PathLike) -> Config:
    """Read a config.

    Args:
        name (str | PathLike): A file, or one of an installed package as
            ``mmdet::retinanet/retinanet_r50_fpn_1x_coco.py``.

    Returns:
        Config: Complete.

    Raises:
        FileNotFoundError: If there is none.
    """
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
