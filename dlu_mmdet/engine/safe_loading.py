"""Load checkpoints and pickles without running code in them.

Training stores more than tensors (mmengine's message hub), which ``torch.load`` with
``weights_only`` refuses; :mod:`~dlu_mmdet.engine.patches` allows exactly those types.
mmengine's own loaders stay as they are until
:func:`~dlu_mmdet.engine.patches.use_safe_loaders`, which the commands call.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import io
import os
import pickle
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

import numpy as np
import torch
import yaml
from mmdet.datasets import OpenImagesChallengeDataset
from mmdet.structures import DetDataSample
from mmengine.dist import barrier
from mmengine.fileio import (
    PickleHandler,
    YamlHandler,
    get_file_backend,
    get_local_path,
)
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler import OneCycleParamScheduler
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.structures import InstanceData

from ..utils.torch_compat import load_pickle, load_weights

try:
    from numpy._core import multiarray, numeric
except ImportError:  # numpy 1
    from numpy.core import multiarray, numeric


class _OneCycle:
    """Stands for mmengine's class in a checkpoint, so that none can be built."""


def _stored_function(owner: object, name: str) -> object:
    """Stand in for ``getattr``: mmengine stores some functions of its classes."""
    if owner is HistoryBuffer and not name.startswith('_'):
        return getattr(HistoryBuffer, name)
    if owner is _OneCycle and name.startswith('_annealing_'):
        return getattr(OneCycleParamScheduler, name)
    raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r}) is not allowed')


# the names under which a pickle asks for them
_STANDS_FOR = {_stored_function: getattr, _OneCycle: OneCycleParamScheduler}
for _ours, _original in _STANDS_FOR.items():
    for _key in ('__module__', '__name__', '__qualname__'):
        setattr(_ours, _key, getattr(_original, _key))

#: What mmengine's message hub and schedules, and files of proposals, store besides
#: tensors and plain containers.
SAFE_TYPES = [
    HistoryBuffer,
    _stored_function,
    _OneCycle,
    InstanceData,
    DetDataSample,
    Counter,  # of MultiStepLR; torch's own list has it from 2.5 on
    np.ndarray,
    np.dtype,
    multiarray._reconstruct,
    multiarray.scalar,
    *(type(np.dtype(t)) for t in '?bBhHiIlLqQefdUS'),
    # files written under the other major version of numpy
    *(
        (f, f'numpy.{core}.{f.__module__.rpartition(".")[2]}.{f.__name__}')
        for f in (multiarray._reconstruct, multiarray.scalar, numeric._frombuffer)
        for core in ('core', '_core')
    ),
]


def load_from_local(
    filename: str | os.PathLike, map_location: str | torch.device | None = None
) -> dict:
    """Load a local checkpoint without running code in it.

    Args:
        filename (str | PathLike): Path of the checkpoint.
        map_location (str | torch.device, optional): As ``torch.load``.

    Returns:
        dict: The checkpoint.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is truncated, is not a checkpoint, or has objects that
            training does not write.
    """
    path = Path(filename).expanduser()
    if not path.is_file():
        raise FileNotFoundError(_missing(path))
    return _load(path, path, map_location)


def check_checkpoint(name: str | os.PathLike) -> None:
    """Check that a local checkpoint exists.

    Args:
        name (str | PathLike): A path; other addresses are not checked.

    Raises:
        FileNotFoundError: If the file does not exist; the message lists those that do.
    """
    path = Path(name).expanduser()
    if '://' not in str(name) and not path.is_file():
        raise FileNotFoundError(_missing(path))


def _missing(path: Path) -> str:
    """What to say of a checkpoint that is not there: which ones are."""
    folder = path if path.is_dir() else path.parent
    # the folder of a work directory that is named otherwise
    found = _newest(folder.glob('*.pth')) or _newest(Path('work_dirs').glob('*/*.pth'))
    said = 'is a folder' if path.is_dir() else 'does not exist'
    if found:
        return f'checkpoint {path} {said}; there are {", ".join(map(str, found))}'
    return (
        f'checkpoint {path} {said}, and there is none in {folder} or work_dirs; '
        f'dlu_mmdet train CONFIG makes one'
    )


def _newest(paths: Iterable[Path], number: int = 5) -> list[Path]:
    """The files that were written last, the last one first."""
    return sorted(paths, key=lambda p: p.stat().st_mtime, reverse=True)[:number]


def _load(
    file: Path | io.BytesIO,
    name: str | os.PathLike,
    map_location: str | torch.device | None,
) -> dict:
    """Load a checkpoint that an error calls by ``name``."""
    try:
        loaded: Any = load_weights(file, map_location)
    # a malformed file can raise anything here
    except Exception as error:
        found = re.search(r'WeightsUnpickler error:\s+(.+)', str(error))
        reason = (found.group(1) if found else str(error)).strip()
        # what follows is advice to load it all the same
        reason = re.split(r'\n|\. ', reason)[0]
        asked = re.search(r'GLOBAL ([\w.]+)', str(error))
        if isinstance(error, pickle.UnpicklingError) and (
            asked or re.search('not allowed|unrecognized|[Cc]an only', reason)
        ):
            raise ValueError(
                f'checkpoint {name} is refused, since loading it could run code: it '
                f'holds {asked.group(1) if asked else reason}. If its source is '
                f'trusted, keep only the weights and what they were trained on: '
                f'torch.save(dict(state_dict=..., meta=...), file).'
            ) from error
        size = file.stat().st_size if isinstance(file, Path) else len(file.getvalue())
        raise ValueError(
            f'checkpoint {name} ({size} bytes) cannot be read: it is truncated or no '
            f'checkpoint ({reason}). Use an earlier one or copy it again.'
        ) from error
    if isinstance(loaded, dict) and isinstance(loaded.get('meta'), dict):
        # mmengine, which does not write it, would run this text when it resumes
        loaded['meta'].pop('config', None)
    return loaded


def load_from_file_url(
    filename: str, map_location: str | torch.device | None = None
) -> dict:
    """Load the local checkpoint that a ``file://`` URL names.

    Args:
        filename (str): The URL.
        map_location (str | torch.device, optional): As ``torch.load``.

    Returns:
        dict: The checkpoint.

    Raises:
        FileNotFoundError: As :func:`load_from_local`.
        ValueError: As :func:`load_from_local`.
    """
    return load_from_local(url2pathname(urlsplit(filename).path), map_location)


def load_from_url(
    filename: str, map_location: str | torch.device | None = None
) -> dict:
    """Fetch a checkpoint; load it as a local one, without running code.

    torch.hub's cache goes by the file name alone, so only a name with a hash in it,
    as in MMDetection's model zoo, is kept there, and only a file that has this hash:
    ``epoch_12.pth`` of one URL is not that of another.

    Args:
        filename (str): The URL.
        map_location (str | torch.device, optional): As ``torch.load``.

    Returns:
        dict: The checkpoint.

    Raises:
        FileNotFoundError: If it cannot be fetched.
        ValueError: As :func:`load_from_local`, or if the file has another hash than
            its name.
    """
    name = Path(unquote(urlsplit(filename).path)).name
    if found := _HASH.search(name):
        path = Path(torch.hub.get_dir(), 'checkpoints', name)
        # one process of a machine fetches, and the others find the file
        first = int(os.environ.get('LOCAL_RANK', 0)) == 0
        if not first:
            barrier()
        try:
            _fetch(filename, path, found.group(1))
        finally:
            if first:
                barrier()
        return load_from_local(path, map_location)
    with TemporaryDirectory() as folder:
        path = Path(folder, 'checkpoint.pth')
        _download(filename, path)
        try:
            return load_from_local(path, map_location)
        except ValueError as error:
            # where it lies for a moment tells nobody anything
            raise ValueError(str(error).replace(str(path), filename)) from error


# the SHA-256 in a name, at least its first 8 digits, and not a date
_HASH = re.compile(r'-(?!(?:19|20)\d{6}\.)([0-9a-f]{8,64})\.[\w.]+$')


def _fetch(url: str, path: Path, digest: str) -> None:
    """Download a file into torch.hub's cache, unless it is there with its hash."""
    damaged = ''
    if path.is_file():
        found = _sha256(path)
        if found.startswith(digest):
            return
        # a download that was cut off, by whatever program
        damaged = (
            f'{path} is damaged: its SHA-256 begins with {found[: len(digest)]}, not '
            f'with {digest}'
        )
        print(f'{damaged}; it is fetched again', file=sys.stderr, flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    hint = f'or put the file at {path}'
    if damaged:
        hint = f'or replace the file: {damaged}'
    _download(url, path, digest, hint)


def _download(url: str, path: Path, digest: str = '', hint: str = '') -> None:
    """Download a file, whole or not at all.

    Raises:
        FileNotFoundError: If it cannot be fetched.
        ValueError: If its hash does not begin with ``digest``.
    """
    hint = hint or 'or give a local file'
    try:
        # its partial file is beside the path, and is removed if this fails
        torch.hub.download_url_to_file(
            url, str(path), digest or None, progress=sys.stderr.isatty()
        )
    except (OSError, HTTPException) as error:
        raise FileNotFoundError(
            f'checkpoint {url} cannot be fetched ({error}); check the address and the '
            f'connection, {hint}'
        ) from error
    except RuntimeError as error:
        # the only one that it raises
        raise ValueError(
            f'checkpoint {url} arrived damaged or is another file ({error}), so '
            f'nothing is kept of it; try again, {hint}'
        ) from error


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


#: ImageNet weights of ``torchvision://NAME``, for when torchvision is absent.
TORCHVISION_WEIGHTS = dict(
    resnet18='resnet18-f37072fd',
    resnet34='resnet34-b627a593',
    resnet50='resnet50-0676ba61',
    resnet101='resnet101-63fe2227',
    resnet152='resnet152-394f9c45',
)


def _zoo(scheme: str) -> dict[str, str]:
    """Addresses of a model zoo by the names of its models."""
    if scheme == 'mmcls':
        return mmengine_checkpoint.get_mmcls_models()
    if scheme in ('modelzoo', 'torchvision'):
        if importlib.util.find_spec('torchvision'):
            return mmengine_checkpoint.get_torchvision_models()
        at = 'https://download.pytorch.org/models'
        return {k: f'{at}/{v}.pth' for k, v in TORCHVISION_WEIGHTS.items()}
    known = dict(mmengine_checkpoint.get_external_models())
    renamed = mmengine_checkpoint.get_deprecated_model_names()
    known.update({old: known[new] for old, new in renamed.items() if new in known})
    return known


def load_from_zoo(
    filename: str, map_location: str | torch.device | None = None
) -> dict:
    """Load a checkpoint by the name that a model zoo gives it.

    Args:
        filename (str): ``torchvision://NAME`` (without torchvision one of
            :data:`TORCHVISION_WEIGHTS`), ``open-mmlab://NAME`` or ``mmcls://NAME``.
        map_location (str | torch.device, optional): As ``torch.load``.

    Returns:
        dict: The checkpoint; of ``mmcls://`` the backbone alone, as mmengine does.

    Raises:
        ValueError: If there is no such name, or as :func:`load_from_local`.
        FileNotFoundError: If the file cannot be fetched.
    """
    scheme, _, name = filename.partition('://')
    known = _zoo(scheme)
    if name not in known:
        near = difflib.get_close_matches(name, known, cutoff=0.3)
        raise ValueError(
            f'checkpoint {filename}: there is no model of the name {name!r}; nearest '
            f'names: {", ".join(near) or "none"}'
        )
    address = known[name]
    if not address.startswith(('http://', 'https://')):
        home = mmengine_checkpoint._get_mmengine_home()
        return load_from_local(Path(home, address), map_location)
    try:
        loaded = load_from_url(address, map_location)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f'{filename}: {error}; to train from scratch give --cfg-options '
            f'model.backbone.init_cfg=None'
        ) from error
    if scheme == 'mmcls':
        return mmengine_checkpoint._process_mmcls_checkpoint(loaded)
    return loaded


def load_from_ceph(
    filename: str, map_location: str | torch.device | None = None
) -> dict:
    """Load a checkpoint from a store of objects, by mmengine's petrel backend.

    Args:
        filename (str): ``s3://`` or ``petrel://`` and the rest, with or without a
            cluster in front.
        map_location (str | torch.device, optional): As ``torch.load``.

    Returns:
        dict: The checkpoint.

    Raises:
        ValueError: As :func:`load_from_local`.
    """
    backend = get_file_backend(filename, backend_args=dict(backend='petrel'))
    return _load(io.BytesIO(backend.get(filename)), filename, map_location)


def refuse_to_load(
    filename: str, map_location: str | torch.device | None = None
) -> None:
    """Replace a loader that could run code.

    Args:
        filename (str): The address.
        map_location (str | torch.device, optional): Not used.

    Raises:
        ValueError: Always.
    """
    raise ValueError(
        f'checkpoint {filename} is refused, since the loader of this kind of address '
        f'could run code of the file; download it, and give the local file'
    )


#: Loaders that run no code, by mmengine's patterns of addresses.
SAFE_LOADERS = {
    '': load_from_local,
    'file://': load_from_file_url,
    **dict.fromkeys(('http://', 'https://'), load_from_url),
    **dict.fromkeys(
        (
            *('modelzoo://', 'torchvision://'),
            *('open-mmlab://', 'openmmlab://', 'mmcls://'),
        ),
        load_from_zoo,
    ),
    **dict.fromkeys((r'(\S+\:)?s3://', r'(\S+\:)?petrel://'), load_from_ceph),
}

if not importlib.util.find_spec('torchvision'):
    CheckpointLoader.register_scheme(
        prefixes=('modelzoo://', 'torchvision://'), loader=load_from_zoo, force=True
    )


def safe_loader(name: str) -> Callable:
    """The safe loader of an address, or :func:`refuse_to_load`."""
    # as mmengine looks: patterns, the longest first
    known = sorted({*CheckpointLoader._schemes, *SAFE_LOADERS}, reverse=True)
    pattern = next(pattern for pattern in known if re.match(pattern, name))
    return SAFE_LOADERS.get(pattern, refuse_to_load)


class SafePickles(PickleHandler):
    """Reads .pkl files of tensors, arrays and plain values, such as proposals."""

    def load_from_fileobj(self, file: BinaryIO, **kwargs: object) -> object:
        try:
            return load_pickle(file, **kwargs)
        except pickle.UnpicklingError as error:
            raise ValueError(
                f'a pickle that the config names is refused, since loading it could '
                f'run code: {error} It may hold tensors, arrays and plain values'
            ) from error


class SafeYAML(YamlHandler):
    """Reads YAML of plain values and tuples, which mmengine writes."""

    def load_from_fileobj(self, file: BinaryIO, **kwargs: object) -> object:
        return yaml.load(file, Loader=_PlainLoader)


_SafeLoader: Any = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)


class _PlainLoader(_SafeLoader):
    """Knows plain values and tuples."""


_PlainLoader.add_constructor(
    'tag:yaml.org,2002:python/tuple',
    lambda loader, node: tuple(loader.construct_sequence(node, deep=True)),
)


def read_relations(self: OpenImagesChallengeDataset, path: str) -> np.ndarray:
    """(K, K) relation matrix of the classes of OpenImages, from its file."""
    with get_local_path(path, backend_args=self.backend_args) as local:
        return np.load(local)[1:, 1:]


def load_checkpoint(
    name: str | os.PathLike, map_location: str | torch.device | None = None
) -> object:
    """Load one checkpoint without running code; mmengine's loaders stay as they are.

    Args:
        name (str | PathLike): A file, or what else mmengine loads, such as a URL.
        map_location (str | torch.device, optional): As ``torch.load``.

    Returns:
        object: What it holds.

    Raises:
        FileNotFoundError: As :func:`load_from_local` and :func:`load_from_url`.
        ValueError: As :func:`load_from_local`, or if its address is of a kind that
            has no loader here.
    """
    return safe_loader(str(name))(str(name), map_location)
