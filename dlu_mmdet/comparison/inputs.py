"""Hashes of the files that a run reads, to detect runs on different data.

Annotations, class names and initial checkpoints are hashed by content. Images are
hashed by name and size in bytes, since reading them would take as long as an epoch.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import mmap
import os
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from mmengine.config import Config

from ..datasets.preflight import Source, iter_datasets
from ..upsamplers import split_file

if TYPE_CHECKING:
    from .runs import Run

#: Parts of a config that all runs of a comparison must have in common.
DATA = (
    'train_dataloader.dataset',
    'val_dataloader.dataset',
    'test_dataloader.dataset',
    'val_evaluator',
    'test_evaluator',
)
#: The modules that a config imports; files of upsamplers count among them.
CODE = 'custom_imports'
# data, what the model starts from, and code
_PARTS = (*DATA, 'model', 'load_from', CODE)
# annotations that lie in a folder, as those of VOC do; others there are images
_TEXT = ('.xml', '.txt')
_FILE_NAME = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')

# what was made of a file, by its inode, size and time of change
_known: dict[tuple, object] = {}


def fingerprint(
    cfg: Config, parts: Sequence[str] = _PARTS, cache: dict | None = None
) -> dict[str, str]:
    """Hash the files that a config names.

    Args:
        cfg (Config): The complete config.
        parts (Sequence[str]): Dotted keys of the parts to hash. Defaults to all parts
            that name files.
        cache (dict, optional): Listings of folders, shared between calls while no image
            changes.

    Returns:
        dict[str, str]: Path, hash and size by dotted key; missing files are left out.
    """
    cache = {} if cache is None else cache
    found: dict[str, str] = {}
    for part in parts:
        value = _get(cfg, part)
        if part == CODE:
            found.update(_code(value))
            found.update(_upsampler_files(_get(cfg, 'model')))
            continue
        for key, path in _files(value, part):
            hashed = f'{path} ({_once(_content, path)})'
            found[key] = f'{found[key]}, {hashed}' if key in found else hashed
        if part.endswith('.dataset'):
            for source in iter_datasets(value or {}, part):
                found.update(_images(source, cache))
    return found


def _get(cfg: Config, key: str) -> Any:
    """A part of a config by its dotted key; None if it is missing."""
    value = cfg.to_dict()
    for name in key.split('.'):
        value = (value or {}).get(name)
    return value


def data_hashes(found: Mapping[str, str]) -> dict[str, str]:
    """The hashes of data in a :func:`fingerprint`, without the paths."""
    return {k: v.rpartition(' (')[2] for k, v in found.items() if k.startswith(DATA)}


def image_names(ann_file: str | os.PathLike) -> list[str]:
    """The image file names in a COCO annotation file.

    A search of the text: parsing the file of COCO's training set takes 17 seconds and
    gigabytes.

    Args:
        ann_file (str | PathLike): The annotation file.

    Returns:
        list[str]: Sorted names without duplicates.
    """
    return _once(_read_names, ann_file)


def _once(make: Callable[[Any], Any], path: str | os.PathLike) -> Any:
    """Compute a value from a file once, and cache it."""
    stat = os.stat(path)
    key = make, stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
    if key not in _known:
        _known[key] = make(path)
    return _known[key]


def content_hash(path: str | os.PathLike) -> str:
    """The hash and size of a file, as a :func:`fingerprint` has them."""
    return _once(_content, path)


def _content(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
        return f'sha256 {digest.hexdigest()[:32]}, {file.tell():,} bytes'


def _read_names(path: str) -> list[str]:
    with open(path, 'rb') as file:
        if not os.fstat(file.fileno()).st_size:
            return []
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            found = {match.group(1) for match in _FILE_NAME.finditer(text)}
    return sorted(json.loads(name) for name in found)


def _files(value: object, key: str, root: str = '') -> Iterator[tuple[str, str]]:
    """The files that a part of a config names, by dotted key."""
    if isinstance(value, Mapping):
        root = value.get('data_root') or root
        for name, inner in value.items():
            if name != 'type':
                yield from _files(inner, f'{key}.{name}', root)
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from _files(inner, f'{key}.{index}', root)
    elif isinstance(value, (str, os.PathLike)):
        text = os.fspath(value)
        if text.startswith('file://'):
            text = url2pathname(urlsplit(text).path)
        for path in dict.fromkeys((os.path.join(root, text), os.path.expanduser(text))):
            if os.path.isfile(path):
                yield key, path


def _images(source: Source, cache: dict) -> Iterator[tuple[str, str]]:
    """Hashes of the names and sizes of a data set's images and other files."""
    folders = {k: v for k, v in source.files.items() if k.startswith('data_prefix.')}
    if source.is_coco and os.path.isfile(source.ann_file):
        folder = folders.pop('data_prefix.img', source.cfg.get('data_root') or '')
        names = image_names(source.ann_file)
        # the same list is the same object
        listed = folder, id(names)
        if listed not in cache:
            cache[listed] = _listing(folder, names)
        yield f'{source.key} images', f'{folder} ({cache[listed]})'
    for key, folder in folders.items():
        if folder not in cache:
            cache[folder] = _listing(folder, _walk(folder))
        yield f'{source.key}.{key}', f'{folder} ({cache[folder]})'


def _walk(folder: str) -> list[str]:
    """The files of a folder and of those in it."""
    return sorted(
        os.path.relpath(os.path.join(root, name), folder)
        for root, _, names in os.walk(folder)
        for name in names
    )


def _listing(folder: str, names: Iterable[str]) -> str:
    """A hash of the names and sizes of files, with their number and total size."""
    digest, number, total = hashlib.sha256(), 0, 0
    for name in names:
        path = os.path.join(folder, name)
        try:
            size = os.stat(path).st_size
        except OSError:
            continue
        number, total = number + 1, total + size
        held = _once(_content, path) if name.endswith(_TEXT) else size
        digest.update(f'{name}\0{held}\0'.encode(errors='surrogateescape'))
    return f'sha256 {digest.hexdigest()[:32]}, {number:,} files, {total:,} bytes'


def _code(imports: Mapping | None) -> Iterator[tuple[str, str]]:
    """The modules of ``custom_imports`` that are not installed packages."""
    names = (imports or {}).get('imports') or []
    installed = tuple(map(sysconfig.get_path, ('purelib', 'platlib')))
    for name in [names] if isinstance(names, str) else names:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            continue
        file = spec and spec.has_location and spec.origin
        if not file or file.startswith(installed) or name.split('.')[0] == 'dlu_mmdet':
            continue
        yield f'{CODE}.{name}', _hash_module(file)


def _hash_module(file: str) -> str:
    """The hash of a module, or of a package by its ``__init__.py``."""
    path = Path(file)
    files = path.parent.rglob('*.py') if path.name == '__init__.py' else [path]
    digest = hashlib.sha256(''.join(_once(_content, f) for f in sorted(files)).encode())
    return f'sha256 {digest.hexdigest()[:32]}'


def _upsampler_files(model: object) -> Iterator[tuple[str, str]]:
    """The files that define the upsamplers of a model."""
    for key, value in flatten(model).items():
        if key.endswith('upsample_cfg.type') and (found := split_file(value)):
            if os.path.isfile(found[0]):
                yield f'{CODE}.{found[0]}', _hash_module(found[0])


def flatten(value: object, prefix: str = '') -> dict[str, object]:
    """Nested dicts and lists as one dict of dotted keys."""
    if isinstance(value, dict):
        items: Iterable[tuple] = value.items()
    elif isinstance(value, (list, tuple)) and any(
        isinstance(v, (dict, list, tuple)) for v in value
    ):
        items = enumerate(value)
    else:
        return {prefix: value}
    return {
        key: leaf
        for name, inner in items
        for key, leaf in flatten(inner, f'{prefix}.{name}'.lstrip('.')).items()
    }


def leaves(cfg: Config, keys: Iterable[str]) -> dict[str, object]:
    """Settings in some parts of a config, by dotted key."""
    return {k: v for key in keys for k, v in flatten(_get(cfg, key), key).items()}


def differing(first: Mapping, second: Mapping) -> str:
    """The first settings that differ, one per line; empty if none differs."""
    missing = 'not set'
    lines = [
        f'  {key}: {first.get(key, missing)!r} and {second.get(key, missing)!r}'
        for key in dict.fromkeys([*first, *second])
        if first.get(key, missing) != second.get(key, missing)
    ]
    return '\n'.join(lines[:10])


@dataclass(frozen=True)
class _Record:
    """The fingerprint of a config's files.

    Args:
        stem (str): Stem of the config's file names.
        where (str): The run that read them.
        found (Mapping[str, str]): The :func:`fingerprint`.
        is_partial (bool): Whether files may be missing.
    """

    stem: str
    where: str
    found: Mapping[str, str]
    is_partial: bool = False


def check_inputs(
    runs: Sequence[Run], now: Mapping[str, Mapping[str, str]] | None = None
) -> list[str]:
    """Check that runs were trained and tested on the same files.

    Args:
        runs (Sequence[Run]): Runs of a comparison; runs that have not started are
            ignored.
        now (Mapping[str, Mapping[str, str]], optional): Current :func:`fingerprint` by
            stem of the config, for runs to be started or resumed.

    Returns:
        list[str]: Warnings, one sentence each.

    Raises:
        ValueError: If a file has changed; the message names it.
    """
    records = [
        _Record(run.stem, str(run.work_dir), found)
        for run in runs
        if (found := run.inputs) is not None
    ]
    if records:
        here = 'the files that are there now'
        records += [_Record(s, here, found, True) for s, found in (now or {}).items()]
    said: list[str] = []
    firsts: dict[str, _Record] = {}
    for each in records:
        for other in (records[0], firsts.setdefault(each.stem, each)):
            said += _check_same(other, each)
    silent = [run for run in runs if run.state != 'not started' and run.inputs is None]
    if silent:
        said.append(
            f'{len(silent)} of {len(runs)} runs, {silent[0].work_dir} among them, are '
            f'of an earlier version, which kept no hash of their data, so their data '
            f'cannot be verified'
        )
    return list(dict.fromkeys(said))


def _check_same(one: _Record, other: _Record) -> Iterator[str]:
    """Refuse different files; yield a warning where only code differs."""
    pair = [one.found, other.found]
    if one.stem != other.stem:
        # what another config starts from, and a module that it alone has, is its own
        code = {k for k in pair[0].keys() & pair[1].keys() if k.startswith(CODE)}
        pair = [
            {k: v for k, v in p.items() if k.startswith(DATA) or k in code}
            for p in pair
        ]
    if other.is_partial:
        pair[0] = {key: value for key, value in pair[0].items() if key in pair[1]}
    data = [{k: v for k, v in p.items() if not k.startswith(CODE)} for p in pair]
    if lines := differing(*data):
        raise ValueError(
            f'{one.where} and {other.where} were run on different files, so their AP '
            f'cannot be averaged or compared; put the former files back, or name '
            f'another --work-dir. They differ in\n{lines}'
        )
    if lines := differing(*pair):
        yield (
            f'{one.where} and {other.where} were run with different code, which may be '
            f'another model; it differs in\n{lines}'
        )
