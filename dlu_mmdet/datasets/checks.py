"""Data that a config names: there, and of its classes."""

from __future__ import annotations

import os.path as osp
from collections.abc import Iterator, Sequence

import mmdet
import mmengine
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.dist import is_main_process


def _datasets(cfg: dict) -> Iterator[dict]:
    """The data sets inside wrappers such as RepeatDataset, one by one."""
    if 'dataset' in cfg:
        yield from _datasets(cfg['dataset'])
    elif 'datasets' in cfg:
        for inner in cfg['datasets']:
            yield from _datasets(inner)
    else:
        yield cfg


def _how_to_get(cls: type, root: str) -> str:
    if hasattr(cls, 'how_to_make'):
        return f'make it with: {cls.how_to_make(root)}'
    script = osp.join(mmdet.__path__[0], '.mim', 'tools', 'misc', 'download_dataset.py')
    return (
        f'COCO 2017 is fetched by: python {script} --dataset-name '
        f'coco2017 --save-dir {root or "."} --unzip; data elsewhere are '
        f'named by --cfg-options train_dataloader.dataset.data_root=...'
    )


def check_data(cfg: Config, splits: Sequence[str]) -> None:
    """Check the data sets of a config before anything is built.

    Args:
        cfg (Config): A complete config.
        splits (Sequence[str]): Of 'train', 'val' and 'test', those to check.

    Raises:
        FileNotFoundError: If an annotation file or an image folder is
            missing.
        ValueError: If an annotation file has none of the config's classes;
            mmdet would train on nothing.
    """
    if not is_main_process():
        return
    checked = set()
    for split in splits:
        for dataset in _datasets(cfg.get(f'{split}_dataloader') or {}):
            cls = DATASETS.get(dataset['type']) if 'type' in dataset else None
            if cls is None or dataset.get('backend_args'):
                continue
            root = dataset.get('data_root') or ''
            where = f'{split}_dataloader.dataset'
            for key, name in [('ann_file', dataset.get('ann_file'))] + [
                (f'data_prefix.{k}', v)
                for k, v in dataset.get('data_prefix', {}).items()
            ]:
                if not name or '://' in name:
                    continue
                path = osp.join(root, name)
                if not osp.exists(path):
                    raise FileNotFoundError(
                        f'{where}: {path} ({key}) does not exist; '
                        f'{_how_to_get(cls, root)}'
                    )
            ann_file = osp.join(root, dataset.get('ann_file') or '')
            metainfo = {**(cls.METAINFO or {}), **dataset.get('metainfo', {})}
            if (
                ann_file.endswith('.json')
                and metainfo.get('classes')
                and ann_file not in checked
            ):
                checked.add(ann_file)
                _check_classes(where, ann_file, metainfo['classes'])


def _check_classes(where: str, ann_file: str, classes: Sequence[str]) -> None:
    try:
        annotations = mmengine.load(ann_file)
        found = {c['name'] for c in annotations['categories']}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{where}.ann_file: {ann_file} is not a COCO '
            f'annotation file ({error!r}); make or copy it '
            f'again'
        ) from error
    if found.isdisjoint(classes):
        raise ValueError(
            f'{where}.ann_file: {ann_file} has the classes {sorted(found)}, '
            f'none of which is among those of the config, {list(classes)}; '
            f'set dataset.metainfo.classes, or use another file'
        )
