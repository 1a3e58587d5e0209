"""Detect settings that would make runs overwrite each other's files."""

from __future__ import annotations

import os
from pathlib import Path

from mmengine.config import Config

from .inputs import leaves

# parts of a config in which a key may say where to write
_PARTS = (
    *('model', 'default_hooks', 'custom_hooks', 'visualizer', 'log_processor'),
    *(
        f'{split}_{part}'
        for split in ('train', 'val', 'test')
        for part in ('dataloader', 'evaluator', 'cfg')
    ),
)
# words of such a key: that it names a place, and that it is written to
_PLACE = {'dir', 'folder', 'path', 'file', 'outfile'}
_WRITTEN = {'out', 'output', 'outfile', 'save', 'dump', 'export', 'log', 'trace'}
_WRITTEN |= {'result', 'results', 'pred', 'preds', 'predictions', 'collect', 'tmp'}
# hooks and what they log to write files; they hardly read any
_WRITERS = ('default_hooks', 'custom_hooks', 'visualizer', 'log_processor')
_SUFFIXES = {'.csv', '.json', '.jsonl', '.log', '.npy', '.npz', '.pkl', '.png', '.pt'}
_SUFFIXES |= {'.pth', '.txt', '.yaml', '.html', '.md'}
# mmengine and mmdet look for these in the run's own folder
_WITHIN = {'test_out_dir', 'img_save_dir', 'config_save_file', 'scalar_save_file'}
_WITHIN |= {'filename_tmpl'}


def _is_output(key: str, value: object) -> bool:
    """Whether a setting names an output path outside the run's own folder."""
    if not (isinstance(value, (str, os.PathLike)) and os.fspath(value)):
        return False
    name, path = key.split('.')[-1], Path(value)
    if name == 'type' or (name in _WITHIN and not path.is_absolute()):
        return False
    words = {*name.lower().split('_')}
    if words & _WRITTEN and words & {*_PLACE, 'prefix'}:
        return True
    if not key.startswith(_WRITERS) or path.is_file():
        return False
    return bool(words & _PLACE) or path.is_absolute() or path.suffix in _SUFFIXES


def check_outputs(config: str | Path, cfg: Config) -> None:
    """Refuse settings that would make runs overwrite each other's files."""
    for key, value in leaves(cfg, _PARTS).items():
        if _is_output(key, value):
            raise ValueError(
                f'{config}: {key}={value!r} is one place for all runs of a comparison, '
                f'where one would overwrite the files of another; leave it out, or set '
                f'{key}=None: every run writes into its own folder in --work-dir'
            )
    if cfg.get('resume') and cfg.get('load_from'):
        raise ValueError(
            f'{config}: with resume=True every run would go on from '
            f'load_from={cfg.load_from!r}, with the seed of that one; set resume=False '
            f'to begin with its weights'
        )
