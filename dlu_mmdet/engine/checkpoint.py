"""Checkpoints: loaded without running code, and only where they fit.

Training stores more than tensors (mmengine's message hub), which ``torch.load`` with
``weights_only`` refuses; importing this module allows exactly those types. mmengine's
own loaders stay as they are until :func:`use_safe_loaders`, which the tools call.
"""

from __future__ import annotations

import builtins
import difflib
import hashlib
import importlib.util
import io
import os
import pickle
import re
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from http.client import HTTPException
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

import numpy as np
import torch
import yaml
from mmdet.datasets import OpenImagesChallengeDataset
from mmdet.registry import DATASETS, MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.dist import barrier
from mmengine.fileio import (
    PickleHandler,
    YamlHandler,
    get_file_backend,
    get_local_path,
    register_handler,
)
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseTTAModel, is_model_wrapper, revert_sync_batchnorm
from mmengine.registry import HOOKS, init_default_scope
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.structures import InstanceData
from torch import nn

from ..config.overrides import merge_options
from ..config.read import config_stem, read_config, set_upsampler
from ..datasets.coco_io import class_names
from ..datasets.preflight import misplaced, sources
from ..necks import upsampler_name
from ..utils.torch_compat import allow_types, load_pickle, load_weights

try:
    from numpy._core import multiarray, numeric
except ImportError:  # numpy 1
    from numpy.core import multiarray, numeric


def _history_buffer_attribute(owner: object, name: str) -> object:
    """Stand in for ``getattr``: a HistoryBuffer pickles its methods by name."""
    if owner is not HistoryBuffer or name.startswith('_'):
        raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r}) is not allowed')
    return getattr(HistoryBuffer, name)


# the name under which a pickle asks for it
_history_buffer_attribute.__module__ = builtins.__name__
_history_buffer_attribute.__name__ = getattr.__name__
_history_buffer_attribute.__qualname__ = getattr.__qualname__

#: What mmengine's message hub, and files of proposals, store besides tensors and plain
#: containers.
SAFE_TYPES = [
    HistoryBuffer,
    _history_buffer_attribute,
    InstanceData,
    DetDataSample,
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
allow_types(SAFE_TYPES)


def load_from_local(
    filename: str | os.PathLike, map_location: str | torch.device | None = None
) -> dict:
    """Load a local checkpoint without running code that it may hold.

    Args:
        filename (str | PathLike): Path of the checkpoint.
        map_location (str | torch.device, optional): As ``torch.load``.

    Returns:
        dict: The checkpoint.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated, is no checkpoint, or holds
            objects that training does not write.
    """
    path = Path(filename).expanduser()
    if not path.is_file():
        raise FileNotFoundError(_missing(path))
    return _load(path, path, map_location)


def check_checkpoint(name: str | os.PathLike) -> None:
    """Find out before the work whether a checkpoint is there.

    Args:
        name (str | PathLike): A path; the address of one elsewhere is not looked at.

    Raises:
        FileNotFoundError: If there is no such file; the message has those that are.
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
        loaded = load_weights(file, map_location)
    # whatever a file that is not as torch writes it leads its readers to
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
    """Stand in for a loader that could run code.

    Args:
        filename (str): What was to be loaded.
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


def _safe_loader(name: str) -> Callable:
    """The loader of an address: one of ours, or one that refuses."""
    # as mmengine looks: patterns, the longest first
    known = sorted({*CheckpointLoader._schemes, *SAFE_LOADERS}, reverse=True)
    pattern = next(pattern for pattern in known if re.match(pattern, name))
    return SAFE_LOADERS.get(pattern, refuse_to_load)


class _SafePickles(PickleHandler):
    """Reads .pkl files of tensors, arrays and plain values, such as proposals."""

    def load_from_fileobj(self, file: BinaryIO, **kwargs: object) -> object:
        try:
            return load_pickle(file, **kwargs)
        except pickle.UnpicklingError as error:
            raise ValueError(
                f'a pickle that the config names is refused, since loading it could '
                f'run code: {error} It may hold tensors, arrays and plain values'
            ) from error


class _SafeYAML(YamlHandler):
    """Reads YAML of plain values and tuples, which mmengine writes."""

    def load_from_fileobj(self, file: BinaryIO, **kwargs: object) -> object:
        return yaml.load(file, Loader=_PlainLoader)


class _PlainLoader(getattr(yaml, 'CSafeLoader', yaml.SafeLoader)):
    """Knows plain values and tuples."""


_PlainLoader.add_constructor(
    'tag:yaml.org,2002:python/tuple',
    lambda loader, node: tuple(loader.construct_sequence(node, deep=True)),
)


def _read_relations(self: OpenImagesChallengeDataset, path: str) -> np.ndarray:
    """Which class is which one's parent, (K, K), from a file of OpenImages."""
    with get_local_path(path, backend_args=self.backend_args) as local:
        return np.load(local)[1:, 1:]


def use_safe_loaders() -> None:
    """Let whatever this process loads through mmengine and mmdet run no code.

    That is checkpoints, whatever their address, and the .pkl, .yaml and .np files
    of data sets. An address that only a loader of the user's own knows is refused.
    """
    CheckpointLoader._get_checkpoint_loader = staticmethod(_safe_loader)
    register_handler(['pkl', 'pickle'])(_SafePickles)
    register_handler(['yaml', 'yml'])(_SafeYAML)
    OpenImagesChallengeDataset._get_relation_matrix = _read_relations


def load_checkpoint(
    name: str | os.PathLike, map_location: str | torch.device | None = None
) -> object:
    """Load one checkpoint without running code; leaves mmengine's loaders alone.

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
    return _safe_loader(str(name))(str(name), map_location)


def _checkpoints(work_dir: Path) -> list[Path]:
    """What training saved in a folder, whole or not."""
    return [*work_dir.glob('epoch_*.pth'), *work_dir.glob('iter_*.pth')]


def latest_checkpoint(work_dir: str | os.PathLike) -> Path | None:
    """The checkpoint that training in a folder goes on from.

    A killed process leaves what it was writing: an empty ``last_checkpoint``, one that
    names the checkpoint before, or a truncated ``epoch_N.pth``. A power cut may leave
    files of zeros.

    Args:
        work_dir (str | PathLike): Folder of a training.

    Returns:
        Path | None: What ``last_checkpoint`` names or, where that is not whole, the
        youngest whole ``epoch_*.pth`` or ``iter_*.pth``; or a later one written since.
        A file elsewhere that it names counts where the folder has none.
    """
    return next(iter(_by_preference(Path(work_dir))), None)


def _by_preference(work_dir: Path) -> list[Path]:
    """Whole checkpoints, the one that training goes on from first."""
    whole = filter(_is_whole, _checkpoints(work_dir))
    whole = sorted(whole, key=_age, reverse=True)
    named = _named_checkpoint(work_dir)
    if named is None:
        return whole
    # the folder may have been moved or copied
    own = work_dir / named.name
    if not _is_whole(own):
        return whole or list(filter(_is_whole, [named]))
    # an older training in this folder may have left more epochs
    later = [
        path
        for path in whole
        if path.stat().st_mtime > own.stat().st_mtime
        and (_kind(path) != _kind(own) or _number(path) > _number(own))
    ]
    return list(dict.fromkeys([*later, own, *whole]))


def _named_checkpoint(work_dir: Path) -> Path | None:
    """What ``last_checkpoint`` names, if it is a name."""
    file = work_dir / 'last_checkpoint'
    try:
        name = file.read_bytes().decode('utf-8-sig').strip() if file.is_file() else ''
    except (OSError, UnicodeDecodeError):
        return None
    return Path(name) if name and '\0' not in name else None


def _is_whole(path: Path) -> bool:
    """Whether a file is a whole zip file: the directory of one comes last."""
    return os.path.isfile(path) and zipfile.is_zipfile(path)


def _is_intact(path: Path) -> bool:
    """Whether the content of a whole zip file is what was written, by its checksums.

    torch does not look: it would load the zeros that a power cut may leave.
    """
    if not getattr(torch.serialization, 'get_crc32_options', lambda: True)():
        return True
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error):
        return False


def _age(path: Path) -> tuple[float, int]:
    """By which the youngest checkpoint is the greatest."""
    return path.stat().st_mtime, _number(path)


def _kind(path: Path) -> str:
    """Whether a checkpoint is called by its epoch or by its iteration."""
    return path.stem.partition('_')[0]


def _number(path: Path) -> int:
    """Epoch or iteration in the name of a checkpoint."""
    digits = path.stem.rpartition('_')[2]
    return int(digits) if digits.isdecimal() else -1


def resume_latest(cfg: Config) -> None:
    """Make a config go on from the latest checkpoint of its ``work_dir``.

    Without one the training starts anew, with the config's own ``load_from``. What is
    skipped is said.

    Args:
        cfg (Config): Gets ``resume`` and, with a checkpoint, ``load_from``.
    """
    work_dir = Path(cfg.work_dir)
    truncated = [p.name for p in _checkpoints(work_dir) if not _is_whole(p)]
    damaged, latest = [], None
    for path in _by_preference(work_dir):
        if _is_intact(path):
            latest = path
            break
        damaged.append(path.name)
    said = ''
    for what, names in (('truncated', truncated), ('damaged', damaged)):
        if names:
            said += f'; {what} and skipped: {", ".join(sorted(names))}'
    file, named = work_dir / 'last_checkpoint', _named_checkpoint(work_dir)
    if named is None and file.exists():
        said += f'; {file} is damaged'
    elif named and latest != named and not _is_whole(work_dir / named.name):
        said += f'; {file} names {named}, which is no whole checkpoint of this folder'
    cfg.resume = latest is not None
    if latest:
        cfg.load_from = str(latest)
        said = f'--resume: goes on from {latest}{said}'
    else:
        said = f'--resume: no checkpoint in {cfg.work_dir}, training starts anew{said}'
    print(said, flush=True)


def check_state_dict(
    model: nn.Module, state_dict: Mapping, checkpoint: Mapping | None = None
) -> None:
    """Refuse a state_dict that is not the model's own.

    Args:
        model (nn.Module): The model that is to take the weights.
        state_dict (Mapping): The weights, with or without ``module.`` in front.
        checkpoint (Mapping, optional): What they came from, to say of an error.

    Raises:
        ValueError: If keys are missing, unexpected, or of another shape.
    """
    own = model.state_dict()
    given = _own_keys(state_dict)
    problems = []
    for title, keys in (
        ('missing', [k for k in own if k not in given]),
        ('unexpected', [k for k in given if k not in own]),
        (
            'of another shape',
            [
                f'{k} {tuple(given[k].shape)} instead of {tuple(own[k].shape)}'
                for k in own
                if k in given and own[k].shape != given[k].shape
            ],
        ),
    ):
        if keys:
            shown = ', '.join(keys[:5]) + (', ...' if len(keys) > 5 else '')
            problems.append(f'{len(keys)} {title}: {shown}')
    if problems:
        raise ValueError(
            'the checkpoint is of another architecture than the '
            f'config, use the config it was trained with{_trained_with(checkpoint)}; '
            'keys ' + '; '.join(problems)
        )


def _trained_with(checkpoint: Mapping | None) -> str:
    """The upsampler that a checkpoint says it was trained with."""
    text = ((checkpoint or {}).get('meta') or {}).get('cfg')
    # the neck's comes first: heads stand behind it
    found = re.search(r"upsample_cfg=dict\([^()]*\btype=\s*'([^']+)'", str(text))
    if not found:
        return ''
    name = found.group(1)
    return (
        f' (its upsampler is {name!r}: the config of that run, or --upsampler {name})'
    )


@HOOKS.register_module()
class CheckpointGuardHook(Hook):
    """Refuse to test or to resume from another architecture's checkpoint.

    mmengine loads what fits and warns about the rest, which gives a low AP
    instead of an error.
    """

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Compare the keys before they are loaded."""
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        check_state_dict(model, checkpoint.get('state_dict', checkpoint), checkpoint)
        _check_order(runner.cfg, checkpoint.get('meta') or {})
        if runner.cfg.get('resume'):
            _check_resumable(runner.cfg.load_from, checkpoint)
            _keep_to_own_folder(runner, checkpoint)
            _tell_kept_settings(runner, checkpoint)


def _check_order(cfg: Config, meta: Mapping) -> None:
    """See that the labels a checkpoint was trained with are those of the data."""
    trained = [*map(str, (meta.get('dataset_meta') or {}).get('classes') or ())]
    split = 'train' if cfg.get('resume') else 'test'
    dataset = (cfg.get(f'{split}_dataloader') or {}).get('dataset') or {}
    for source in sources(dataset, f'{split}_dataloader.dataset'):
        if found := misplaced(source.classes, trained):
            name, own, expected = found
            raise ValueError(
                f'the checkpoint was trained with the class {name!r} in place '
                f'{expected}, and {source.key} has it in place {own}, so detections '
                f'would be of other classes; set its metainfo.classes to '
                f'{tuple(trained)}'
            )


def _check_resumable(name: str, checkpoint: Mapping) -> None:
    """Refuse to go on from weights alone."""
    missing = [key for key in ('meta', 'message_hub') if not checkpoint.get(key)]
    if missing:
        raise ValueError(
            f'--resume cannot go on from {name}, which has no {", ".join(missing)}; to '
            f'begin with its weights give --cfg-options load_from={name}, without '
            f'--resume'
        )


def _keep_to_own_folder(runner, checkpoint: Mapping) -> None:
    """Let a resumed training remove no files but its own.

    Where a checkpoint is better than the best before, mmengine removes that one, by a
    path that it reads from the checkpoint: in a copied folder that of the original.
    """
    info = checkpoint['message_hub'].get('runtime_info') or {}
    out_dir = next(
        (h.out_dir for h in runner.hooks if isinstance(h, CheckpointHook)), None
    )
    folder = runner.work_dir
    if out_dir:
        folder = os.path.join(out_dir, os.path.basename(folder.rstrip(os.sep)))
    for key in [key for key in info if key.startswith('best_ckpt')]:
        name = os.path.basename(str(info[key]))
        info[key] = os.path.join(folder, name) if name.startswith('best_') else None
    ids = info.get('keep_ckpt_ids') or []
    if not all(isinstance(number, int) for number in ids):
        del info['keep_ckpt_ids']


def _tell_kept_settings(runner, checkpoint: dict) -> None:
    """Say which settings of the optimizer a resumed run takes from its checkpoint."""
    optimizer = getattr(runner.optim_wrapper, 'optimizer', None)
    saved = checkpoint.get('optimizer') or {}
    if optimizer is None or 'param_groups' not in saved:
        return
    kept = {}
    for own, old in zip(optimizer.param_groups, saved['param_groups']):
        for name in own.keys() & old.keys() - {'params', 'lr'}:
            if own[name] != old[name]:
                # a scheduler starts from initial_lr
                kept[name.replace('initial_lr', 'lr')] = old[name], own[name]
    if kept:
        told = ', '.join(f'{k} {old}, not {own}' for k, (old, own) in kept.items())
        runner.logger.warning(
            f'--resume goes on with the optimizer of the checkpoint: {told}. To train '
            f'on from its weights with new settings leave --resume out and give '
            f'--cfg-options load_from=CHECKPOINT'
        )


def check_device(device: str) -> None:
    """Refuse a device that this machine or this torch does not have.

    Args:
        device (str): As ``torch.device`` takes it.

    Raises:
        ValueError: If nothing can be put there.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        devices = ['cpu', *(f'cuda:{i}' for i in range(torch.cuda.device_count()))]
        raise ValueError(
            f'device {device!r} is not there ({str(error).splitlines()[0]}); here are: '
            + ', '.join(devices)
        ) from error


def load_detector(
    config: str | os.PathLike | Config,
    checkpoint: str | os.PathLike,
    device: str = 'cpu',
    cfg_options: dict | None = None,
    upsampler: dict | None = None,
) -> nn.Module:
    """Load a trained detector for inference.

    From here on this process loads checkpoints without running code, see
    :func:`use_safe_loaders`.

    Args:
        config (str | PathLike | Config): The config it was trained with, as
            :func:`~dlu_mmdet.config.read.read_config` takes it.
        checkpoint (str | PathLike): Its checkpoint: a file, or what else mmengine
            loads, such as a URL.
        device (str): Device to put it on. Defaults to 'cpu'.
        cfg_options (dict, optional): Overrides of the config.
        upsampler (dict, optional): The ``upsample_cfg`` that it was trained with, if
            the config does not say so.

    Returns:
        nn.Module: The detector in eval mode, with ``cfg`` and
        ``dataset_meta``, whose ``classes`` are those of the checkpoint or, if it
        has none, those of the config's test set.

    Raises:
        FileNotFoundError: If the config or the checkpoint does not exist.
        ValueError: If the checkpoint cannot be read or is of another
            architecture, the device is not there, or neither checkpoint nor
            config names the classes.
    """
    check_device(device)
    # the config of a distilled detector names its teacher's checkpoint
    use_safe_loaders()
    if not isinstance(config, Config):
        config = read_config(config)
    config = Config(config.to_dict()) if upsampler else config.copy()
    if upsampler:
        set_upsampler(config, upsampler)
    merge_options(config, cfg_options or {})
    loaded = load_checkpoint(checkpoint, 'cpu')
    if not isinstance(loaded, Mapping):
        raise ValueError(
            f'checkpoint {checkpoint} holds a {type(loaded).__name__}; it must be a '
            'state_dict, or what training writes'
        )
    state_dict = loaded.get('state_dict', loaded)
    scope = config.get('default_scope', 'mmdet')
    if scope is not None:
        init_default_scope(scope)
    model = revert_sync_batchnorm(MODELS.build(config.model))
    check_state_dict(model, state_dict, loaded)
    model.load_state_dict(_own_keys(state_dict))
    model.dataset_meta = _dataset_meta(loaded, config, model)
    model.cfg = config
    return model.to(device).eval()


def _own_keys(state_dict: Mapping) -> dict:
    """The weights without the ``module.`` that a wrapped model puts in front."""
    return {k.removeprefix('module.'): v for k, v in state_dict.items()}


def _dataset_meta(checkpoint: Mapping, config: Config, model: nn.Module) -> dict:
    """The class names of a checkpoint; of one without, those of its config."""
    meta = checkpoint.get('meta') or {}
    # of mmdet 2 the checkpoint says CLASSES
    meta = {**meta, **(meta.get('dataset_meta') or {})}
    meta = {k.lower(): v for k, v in meta.items()}
    if meta.get('classes'):
        classes = meta['classes']
        classes = [classes] if isinstance(classes, str) else classes
        meta['classes'] = class_names(classes, 'the classes of the checkpoint')
        return {k: meta[k] for k in ('classes', 'palette') if k in meta}
    dataset = config.get('test_dataloader', {}).get('dataset', {})
    while 'dataset' in dataset or 'datasets' in dataset:
        dataset = dataset['dataset'] if 'dataset' in dataset else dataset['datasets'][0]
    found = DATASETS.build({**dataset, 'lazy_init': True}).metainfo if dataset else {}
    classes = found.get('classes') or ()
    head = getattr(getattr(model, 'roi_head', model), 'bbox_head', None)
    head = head[-1] if isinstance(head, nn.ModuleList) else head
    number = getattr(head, 'num_classes', len(classes))
    if not classes or len(classes) != number:
        raise ValueError(
            f'the checkpoint does not name its classes, and the config names '
            f'{len(classes)} for a head of num_classes={number}; set '
            'test_dataloader.dataset.metainfo.classes to those of the training'
        )
    return dict(found, classes=class_names(classes, 'metainfo.classes'))


def load_detectors(
    pairs: Sequence[tuple[str, str]],
    device: str = 'cpu',
    cfg_options: dict | None = None,
    upsampler: dict | None = None,
) -> dict[str, nn.Module]:
    """Load several detectors, each under the name of its upsampler.

    Args:
        pairs (Sequence[tuple[str, str]]): Configs and their checkpoints.
        device (str): Device to put them on. Defaults to 'cpu'.
        cfg_options (dict, optional): Overrides of every config.
        upsampler (dict, optional): As :func:`load_detector`, for all.

    Returns:
        dict[str, nn.Module]: In the order given. The name is that of the
        config file where the neck has no upsampler, and numbered, 'dlu (1)',
        where several have the same.

    Raises:
        FileNotFoundError: As :func:`load_detector`.
        ValueError: As :func:`load_detector`.
    """
    loaded = []
    for config, checkpoint in pairs:
        print(f'loading {checkpoint}')
        loaded.append(load_detector(config, checkpoint, device, cfg_options, upsampler))
    names = [
        upsampler_name(model.cfg.model.get('neck')) or config_stem(config)
        for model, (config, _) in zip(loaded, pairs)
    ]
    return {
        f'{name} ({names[: i + 1].count(name)})' if names.count(name) > 1 else name: m
        for i, (name, m) in enumerate(zip(names, loaded))
    }


def check_classes(
    models: Mapping[str, nn.Module],
    configs: Sequence[str],
    classes: Sequence[str],
    owner: str,
) -> None:
    """See that detectors to be shown together name their labels alike.

    Args:
        models (Mapping[str, nn.Module]): From :func:`load_detectors`.
        configs (Sequence[str]): Their configs, for the message.
        classes (Sequence[str]): The class names that all must have.
        owner (str): Whose class names they are, for the message.

    Raises:
        ValueError: If a detector has other classes, or another order.
    """

    # mmdet writes traffic_light where a checkpoint does not name its classes
    def spaced(names: Sequence[str]) -> list[str]:
        return [name.replace('_', ' ') for name in names]

    for config, model in zip(configs, models.values()):
        own = model.dataset_meta['classes']
        if spaced(own) != spaced(classes):
            pairs = zip_longest(spaced(own), spaced(classes))
            name, expected = next(pair for pair in pairs if pair[0] != pair[1])
            raise ValueError(
                f'{config} detects {len(own)} classes, {owner} has {len(classes)}, and '
                f'{name!r} is not {expected!r}; show together only detectors of the '
                'same classes, named in their checkpoints'
            )
