"""A folder of one's own data in the place of a config's."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from mmdet.datasets import CocoPanopticDataset
from mmengine.config import Config

from ..datasets import annotations
from ..datasets.checks import coco_evaluators, sources

#: Words in a file's path that tell its split.
SPLITS = {'train': ('train', 'training'), 'val': ('val', 'valid', 'validation')}


def set_data(cfg: Config, root: str | os.PathLike) -> None:
    """Take a folder's data in the place of a config's, so that the config is complete.

    The folder has an annotation file in COCO's format for training and one for
    validation, which is tested on too: the only .json of the folder, or in one of its
    own folders, whose path has the word train, or val, as in
    ``annotations/instances_train.json`` or ``valid/_annotations.coco.json``. Classes
    are those of the training file in its order.

    Args:
        cfg (Config): Changed in place: data sets, evaluators, and every
            ``num_classes`` of the model that is the number of the config's classes.
        root (str | PathLike): The folder.

    Raises:
        FileNotFoundError: If the folder, an annotation file or the first image that
            it lists is not there.
        ValueError: If several files may be meant, or the config's own data are not
            one set in COCO's format.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f'--data {root} is no folder')
    files = {split: _annotation_file(root, split) for split in SPLITS}
    contents = {split: annotations.read(root / files[split]) for split in SPLITS}
    classes = [category['name'] for category in contents['train']['categories']]
    if not classes:
        raise ValueError(f'{root / files["train"]} has no categories; add them')
    for split in ('train', 'val', 'test'):
        own = 'train' if split == 'train' else 'val'
        source = _only_source(cfg, split)
        if split == 'train':
            former = len(source.classes)
        source.cfg.update(
            type='CocoDataset',
            data_root=f'{root}/',
            ann_file=files[own],
            data_prefix=dict(img=_image_folder(root, files[own], contents[own])),
            metainfo=dict(classes=tuple(classes)),
        )
        for _, evaluator in coco_evaluators(cfg, split):
            evaluator['ann_file'] = str(root / files[own])
    for part in _counting(cfg.model):
        if part['num_classes'] == former:
            part['num_classes'] = len(classes)


def _only_source(cfg: Config, split: str):
    """The data set of a split, which must be one."""
    loader = cfg.get(f'{split}_dataloader') or {}
    key = f'{split}_dataloader.dataset'
    found = list(sources(loader.get('dataset') or {}, key))
    if (
        len(found) != 1
        or not found[0].is_coco
        or issubclass(found[0].cls, CocoPanopticDataset)
    ):
        names = ', '.join(source.cls.__name__ for source in found)
        raise ValueError(
            f'--data needs a config with one CocoDataset in {key}, got '
            f'{names or "none"}; write a config of the data, see docs/own-data.md'
        )
    return found[0]


def _words(path: Path) -> list[str]:
    """A path's words, in small letters."""
    return re.findall('[a-z]+', str(path).lower())


def _annotation_file(root: Path, split: str) -> str:
    """The annotation file of a split, as a path in the folder."""
    files = sorted(
        p.relative_to(root) for p in (*root.glob('*.json'), *root.glob('*/*.json'))
    )
    found = [path for path in files if {*_words(path)} & {*SPLITS[split]}]
    # beside those of objects COCO has captions and keypoints
    found = [p for p in found if p.name.startswith('instances')] or found
    if len(found) == 1:
        return found[0].as_posix()
    names = ', '.join(path.as_posix() for path in found or files) or 'no .json'
    raise (ValueError if found else FileNotFoundError)(
        f"--data {root} must have one annotation file in COCO's format with the word "
        f'{" or ".join(SPLITS[split])} in its path, in the folder or in a folder of '
        f'it, and has {names}; rename it, or write a config, see docs/own-data.md'
    )


def _image_folder(root: Path, file: str, content: Mapping) -> str:
    """Where the first image of an annotation file lies, as a path in the folder."""
    if not content['images']:
        raise ValueError(f'{root / file} lists no images; use another file')
    first, path = content['images'][0]['file_name'], Path(file)
    split = path.stem.removeprefix('instances_')
    names = [
        split,
        *next(words for words in SPLITS.values() if {*_words(path)} & {*words}),
    ]
    folders = [path.parent, *map(Path, names)]
    folders += [Path('images', name) for name in names] + [Path('images'), Path()]
    for folder in folders:
        if (root / folder / first).is_file():
            return f'{folder.as_posix()}/'
    tried = ', '.join(dict.fromkeys(folder.as_posix() for folder in folders))
    raise FileNotFoundError(
        f'--data {root}: {first}, the first image of {file}, is in none of the folders '
        f'{tried}; move the images, or write a config, see docs/own-data.md'
    )


def _counting(part: object, key: str = '') -> Iterator[dict]:
    """The parts of a model that count the classes of the data."""
    if isinstance(part, Mapping):
        # objects and background are all that these tell apart, whatever the data
        if key.startswith(('rpn', 'backbone', 'semantic')):
            return
        if isinstance(part.get('num_classes'), int):
            yield part
        for name, inner in part.items():
            yield from _counting(inner, name)
    elif isinstance(part, (list, tuple)):
        for inner in part:
            yield from _counting(inner, key)
