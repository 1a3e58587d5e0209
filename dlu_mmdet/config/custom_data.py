"""Replace a config's data with a custom folder."""

from __future__ import annotations

import itertools
import json
import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmdet.datasets import CocoPanopticDataset
from mmengine.config import Config

from ..datasets import coco_io, formats
from ..datasets.formats import words
from ..datasets.preflight import coco_evaluators, iter_datasets
from ..datasets.split import check_split, describe_parts, split_images
from ..utils.files import atomic_write

#: Words in a file's path that tell its split.
SPLITS = {split: formats.SPLITS[split] for split in ('train', 'val')}
#: Folder in a work directory for the files of ``--val-fraction``.
SPLIT_FOLDER = 'split'
# names of files in a message, and files that are opened to find the usable ones
_LISTED, _OPENED = 6, 50


def use_dataset_folder(
    cfg: Config,
    root: str | os.PathLike,
    train_json: str | os.PathLike | None = None,
    val_json: str | os.PathLike | None = None,
) -> None:
    """Replace the data of a config by those of a folder.

    The folder has an annotation file in COCO's format for training and one for
    validation, which is tested on too: the only .json of the folder, or in one of its
    own folders, whose path has the word train, or val, as in
    ``annotations/instances_train.json`` or ``valid/_annotations.coco.json``. Classes
    are those of the training file in its order.

    Args:
        cfg (Config): Changed in place: data sets, evaluators, and every
            ``num_classes`` of the model that is the number of the config's classes.
        root (str | PathLike): The folder.
        train_json (str | PathLike, optional): The annotation file for training, where
            the folder's names do not tell. Images are looked for in the folder.
        val_json (str | PathLike, optional): The one for validation.

    Raises:
        FileNotFoundError: If the folder, an annotation file or the first image that
            it lists is not there.
        ValueError: If several files may be meant, the two files are one, the folder has
            another format, or the config's own data are not one set in COCO's format.
    """
    root = _folder(root)
    given = {'train': train_json, 'val': val_json}
    named = {split: _named(root, file) for split, file in given.items() if file}
    files = {
        split: named.get(split) or _annotation_file(root, split, named)
        for split in SPLITS
    }
    if os.path.samefile(root / files['train'], root / files['val']):
        raise ValueError(
            f'--data {root}: {files["train"]} is named for training and for '
            f'validation; add --val-fraction 0.2 without --val-json to split it'
        )
    contents = {split: _read(root / files[split]) for split in SPLITS}
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
    found = list(iter_datasets(loader.get('dataset') or {}, key))
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


def split_data(
    root: str | os.PathLike,
    train_json: str | os.PathLike | None,
    fraction: float,
    seed: int,
    work_dir: str | os.PathLike,
) -> dict[str, str]:
    """Split the annotation file of a folder for ``--val-fraction``, and say so.

    Args:
        root (str | PathLike): The folder of the images.
        train_json (str | PathLike, optional): The file; by default the only one.
        fraction (float): The share of the images to validate on.
        seed (int): Seed of the choice.
        work_dir (str | PathLike): Two files are written into its folder ``split``.

    Returns:
        dict[str, str]: ``train_json`` and ``val_json`` of :func:`use_dataset_folder`.

    Raises:
        FileNotFoundError: If the folder, the file or its images are not there.
        ValueError: If the file cannot be split so, or the folder already holds
            another split.
    """
    check_split(fraction, seed)
    root = _folder(root)
    file = _only_file(root) if train_json is None else _named(root, train_json)
    content = _read(root / file)
    images = Path(_image_folder(root, file, content))
    # the new files lie elsewhere, so their names start from the root
    content['images'] = [
        dict(image, file_name=(images / image['file_name']).as_posix())
        for image in content['images']
    ]
    parts = dict(zip(SPLITS, split_images(content, fraction, seed)))
    folder, written = Path(work_dir, SPLIT_FOLDER), {}
    for split, part in parts.items():
        path = Path(os.path.abspath(folder / f'{split}.json'))
        text = json.dumps(part)
        if path.exists() and path.read_text(encoding='utf-8') != text:
            raise ValueError(
                f'{path} holds another split, of other annotations, --val-fraction or '
                f'--split-seed; name another --work-dir, or remove the old run'
            )
        written[f'{split}_json'] = str(path)
        if not path.exists():
            with atomic_write(path) as partial:
                partial.write_text(text, encoding='utf-8')
    say(
        f'split {root / file} by --val-fraction {fraction:g}, --split-seed {seed}: '
        f'{describe_parts(parts)}; written to {folder}'
    )
    return written


def prepare_data(
    work_dir: str | os.PathLike,
    data: str | os.PathLike | None = None,
    train_json: str | os.PathLike | None = None,
    val_json: str | os.PathLike | None = None,
    val_fraction: float | None = None,
    split_seed: int | None = None,
) -> dict:
    """The arguments of :func:`use_dataset_folder`; ``val_fraction`` splits here.

    Args:
        work_dir (str | PathLike): Where the two parts are written.
        data (str | PathLike, optional): The folder; without it no other is allowed.
        train_json (str | PathLike, optional): See :func:`use_dataset_folder`.
        val_json (str | PathLike, optional): See :func:`use_dataset_folder`.
        val_fraction (float, optional): See :func:`split_data`.
        split_seed (int, optional): See :func:`split_data`. Defaults to 0.

    Returns:
        dict: Empty without ``data``.

    Raises:
        FileNotFoundError: If a folder or a file does not exist.
        ValueError: If flags do not go together, or a value is wrong.
    """
    flags = {
        '--train-json': train_json,
        '--val-json': val_json,
        '--val-fraction': val_fraction,
        '--split-seed': split_seed,
    }
    given = [flag for flag, value in flags.items() if value is not None]
    if not data:
        if given:
            raise ValueError(
                f'{", ".join(given)} must have --data FOLDER, the folder of the images'
            )
        return {}
    if val_fraction is None:
        if split_seed is not None:
            raise ValueError('--split-seed must have --val-fraction, as in 0.2')
        return dict(root=data, train_json=train_json, val_json=val_json)
    if val_json is not None:
        raise ValueError(
            f'--val-fraction takes validation images from the training file, and '
            f'--val-json {val_json} names others; leave out one of them'
        )
    files = split_data(data, train_json, val_fraction, split_seed or 0, work_dir)
    return dict(root=data, **files)


def say(text: str) -> None:
    """Print a line in the first of the processes that torchrun or Slurm started."""
    if os.environ.get('RANK', os.environ.get('SLURM_PROCID', '0')) == '0':
        print(text, flush=True)


def _folder(root: str | os.PathLike) -> Path:
    root = Path(root)
    if root.is_dir():
        return root
    told = formats.advice(root) if root.is_file() else ''
    raise FileNotFoundError(f'--data {root} {told or "is no folder"}')


def _named(root: Path, file: str | os.PathLike) -> str:
    """A named annotation file: inside the folder as a path in it, else a whole one."""
    for path in (Path(file), root / file):
        if path.is_file():
            whole, base = Path(os.path.abspath(path)), Path(os.path.abspath(root))
            if whole.is_relative_to(base):
                return whole.relative_to(base).as_posix()
            return str(whole)
    raise FileNotFoundError(
        f'the annotation file {file} exists neither here nor in --data {root}; '
        f'name another with --train-json or --val-json'
    )


def _read(path: Path) -> dict:
    """A COCO file of objects; the error names another format."""
    kind = formats.json_kind(path)
    try:
        content = coco_io.read(path)
    except ValueError as error:
        if kind:
            raise ValueError(f'{path} is {kind}') from error
        raise
    if 'LVIS' in kind:
        raise ValueError(f'{path} is {kind}')
    return content


def _json_files(root: Path) -> list[Path]:
    """The JSON files of a folder and of its own folders, as paths in it."""
    return sorted(
        p.relative_to(root) for p in (*root.glob('*.json'), *root.glob('*/*.json'))
    )


def _of_split(files: list[Path], split: str) -> list[Path]:
    """The files whose path has the word of a split."""
    found = [path for path in files if words(path) & {*SPLITS[split]}]
    # beside those of objects COCO has captions and keypoints
    return [p for p in found if p.name.startswith('instances')] or found


def _annotation_file(root: Path, split: str, named: Mapping[str, str]) -> str:
    """The annotation file of a split, as a path in the folder."""
    files = [p for p in _json_files(root) if p.as_posix() not in named.values()]
    found = _of_split(files, split)
    if len(found) == 1:
        return found[0].as_posix()
    (other,) = {*SPLITS} - {split}
    taken = _of_split(files, other)
    usable = _usable(root, found or [p for p in files if p not in taken])
    if found and len(usable) == 1:
        return usable[0].as_posix()
    has_other = bool(taken or named)
    if not (usable or has_other) and (told := formats.advice(root)):
        raise ValueError(f'--data {root} {told}')
    advice = []
    if usable and (found or has_other or len(usable) > 1):
        advice += [f'name it: --{split}-json {shlex.quote(str(root / usable[0]))}']
    if (has_other and split == 'val') or (len(usable) == 1 and not has_other):
        what = 'the file for training' if has_other else 'it'
        advice += [f'split {what}: --val-fraction 0.2']
    remedy = ', or '.join(advice) or 'name it: --train-json FILE, --val-json FILE'
    raise (ValueError if found else FileNotFoundError)(
        f"--data {root} must have one annotation file in COCO's format with the word "
        f'{" or ".join(SPLITS[split])} in its path, in the folder or in a folder of '
        f'it, and has {_names(found or files)}; {remedy}'
    )


def _usable(root: Path, files: list[Path]) -> list[Path]:
    # a file for each image is another format
    return [p for p in files[:_OPENED] if formats.looks_like_coco(root / p)]


def _only_file(root: Path) -> str:
    """The annotation file that ``--val-fraction`` splits."""
    files = _json_files(root)
    train, val = (_of_split(files, split) for split in SPLITS)
    usable = train if train and not val else files
    usable = _usable(root, usable)
    if len(usable) == 1:
        return usable[0].as_posix()
    if not usable and (told := formats.advice(root)):
        raise ValueError(f'--data {root} {told}')
    if usable:
        flag = f'--train-json {shlex.quote(str(root / (train or usable)[0]))}'
        raise ValueError(
            f'--val-fraction splits one annotation file, and --data {root} has '
            f'{_names(usable)}; name the one to split, as in {flag}'
        )
    raise FileNotFoundError(
        f"--data {root} has no annotation file in COCO's format, and has "
        f'{_names(files)}; name it with --train-json'
    )


def _names(files: list[Path]) -> str:
    shown = ', '.join(path.as_posix() for path in files[:_LISTED]) or 'no .json'
    more = len(files) - _LISTED
    return f'{shown} and {more} more' if more > 0 else shown


def _image_folder(root: Path, file: str, content: Mapping) -> str:
    """Where the first image of an annotation file lies, as a path in the folder."""
    if not content['images']:
        raise ValueError(f'{root / file} lists no images; use another file')
    first, path = content['images'][0]['file_name'], Path(file)
    # folders above the data say nothing of the split
    told = words(path.name if path.is_absolute() else path)
    own = [split for split in SPLITS if told & {*SPLITS[split]}]
    names = [path.stem.removeprefix('instances_')]
    names += [name for split in own[:1] for name in SPLITS[split]]
    folders = list(map(Path, names)) + [Path('images', name) for name in names]
    # CVAT's and FiftyOne's
    folders += [Path('images'), Path('data'), Path()]
    if not path.is_absolute():
        inside = [path.parent, path.parent / 'images', path.parent / 'data']
        folders = inside + folders
        if len(path.parts) > 2:
            folders += [path.parents[1] / folder for folder in folders]
    tried = []
    for folder in itertools.chain(folders, _other_folders(root, own)):
        if folder not in tried and (root / folder).is_dir():
            if (root / folder / first).is_file():
                return f'{folder.as_posix()}/'
            tried.append(folder)
    raise FileNotFoundError(
        f'--data {root}: {first}, the first image of {file}, is in none of the folders '
        f'{_names(tried)}; move the images, or write a config, see docs/own-data.md'
    )


def _other_folders(root: Path, own: list[str]) -> Iterator[Path]:
    """Yield all folders except those of another split."""
    others = [split for split in SPLITS if own and split not in own]
    taken = {name for split in others for name in SPLITS[split]}
    for path in (*root.glob('*'), *root.glob('images/*')):
        folder = path.relative_to(root)
        if not words(folder) & taken:
            yield folder


def _counting(part: Any, key: str = '') -> Iterator[Any]:
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
