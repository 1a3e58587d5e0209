"""Check work directories, and suggest commands after a training."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.runner import Runner

from ..config.read import config_stem, read_settings

# what a run of the same config may have of its own
_FREE = ('work_dir', 'resume', 'load_from', 'launcher')
# packages whose results the commands after test do not draw
_OTHER_RESULTS = ('mmseg', 'mmrotate')
# differences in a message
_LISTED = 3


def check_unoccupied(cfg: Config) -> None:
    """Refuse to train in a folder that has checkpoints of another config.

    A resumed training may continue them.

    Args:
        cfg (Config): The complete config, with ``work_dir``.

    Raises:
        ValueError: If the folder has checkpoints of a different config.
    """
    folder = Path(cfg.work_dir)
    if cfg.get('resume') or not any(folder.glob('*.pth')):
        return
    own = dict(_leaves(read_settings(cfg.pretty_text)))
    others = []
    for path in sorted(folder.glob('*.py')):
        try:
            there = dict(_leaves(read_settings(path.read_text(encoding='utf-8'))))
        except (ValueError, SyntaxError, AttributeError):
            # no config that mmengine wrote
            continue
        keys = [k for k in {**there, **own} if there.get(k) != own.get(k)]
        if not keys:
            return
        others.append((path, there, keys))
    if not others:
        return
    path, there, keys = min(others, key=lambda other: len(other[2]))
    changed = ', '.join(
        f'{key} is {there.get(key)!r} there and {own.get(key)!r} now'
        for key in keys[:_LISTED]
    )
    more = f', and {len(keys) - _LISTED} more' if len(keys) > _LISTED else ''
    raise ValueError(
        f'{folder} has the checkpoints of another config, {path.name} ({changed}{more}'
        f'); name another folder with --work-dir, or remove this one'
    )


def _leaves(settings: Mapping) -> Iterator[tuple[str, object]]:
    """The values of a config by dotted key, but for those of :data:`_FREE`."""

    def walk(value: object, key: str) -> Iterator[tuple[str, object]]:
        if isinstance(value, Mapping) and value:
            for name, inner in value.items():
                yield from walk(inner, f'{key}.{name}')
        else:
            yield key, value

    for name, value in settings.items():
        if name not in _FREE:
            yield from walk(value, name)


def next_commands(runner: Runner) -> str:
    """Commands to run after a training.

    Args:
        runner (Runner): The runner, after training.

    Returns:
        str: One command per line; empty without a checkpoint and in processes other
        than the first.
    """
    folder = _short(runner.work_dir)
    last = folder / 'last_checkpoint'
    if not (is_main_process() and last.is_file()):
        return ''
    checkpoint = _short(last.read_text(encoding='utf-8').strip())
    if not checkpoint.is_file():
        return ''
    dumped = folder / os.path.basename(runner.cfg.filename or '')
    models = [str(dumped), str(checkpoint)]
    image = _first_image(runner)
    images = os.path.dirname(image) or '.'
    picture, onnx = folder / 'detections.png', folder / f'{config_stem(dumped)}.onnx'
    commands = [
        ['test', *models],
        ['visualize', 'detections', *models, '--out', str(picture)],
        ['predict', *models, images, '--out', str(folder / 'predict')],
        ['explain', *models, image, '--out', str(folder / 'cam.png')],
        ['export', *models, '--part', 'boxes', '--out', str(onnx)],
    ]
    if runner.cfg.get('default_scope') in _OTHER_RESULTS:
        commands = commands[:1]
    return '\n'.join(['next:', *(f'  dlu_mmdet {shlex.join(c)}' for c in commands)])


def _first_image(runner: Runner) -> str:
    """The first image of the validation, if there is one."""
    loader = getattr(runner.val_loop, 'dataloader', None)
    dataset: Any = getattr(loader, 'dataset', None)
    if not hasattr(dataset, 'get_data_info') or not len(dataset):
        return 'FOLDER/IMAGE.jpg'
    path = dataset.get_data_info(0).get('img_path')
    return str(_short(path)) if path else 'FOLDER/IMAGE.jpg'


def _short(path: str | os.PathLike) -> Path:
    """A path as it is seen from the current folder, if it is inside."""
    path = Path(os.path.abspath(path))
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
