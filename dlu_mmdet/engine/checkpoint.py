"""Checkpoints: loaded without running code, and only where they fit.

Training stores more than tensors (mmengine's message hub), which ``torch.load`` with
``weights_only`` refuses; importing this module allows exactly those types. mmengine's
own loaders stay as they are until :func:`use_safe_loaders`, which the runner calls.
"""

from __future__ import annotations

import builtins
import os
import pickle
import re
import sys
import zipfile
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

import numpy as np
import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseTTAModel, is_model_wrapper, revert_sync_batchnorm
from mmengine.registry import HOOKS, init_default_scope
from mmengine.runner import CheckpointLoader
from torch import nn

from ..datasets.annotations import class_names
from ..datasets.checks import misplaced, sources
from ..necks import upsampler_name
from ..torch_compat import allow_types, load_weights
from .configs import config_stem, read_config, set_upsampler
from .options import merge_options

try:
    from numpy._core import multiarray
except ImportError:  # numpy 1
    from numpy.core import multiarray


def _history_buffer_attribute(owner: object, name: str) -> object:
    """Stand in for ``getattr``: a HistoryBuffer pickles its methods by name."""
    if owner is not HistoryBuffer or name.startswith('_'):
        raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r}) is not allowed')
    return getattr(HistoryBuffer, name)


# the name under which a pickle asks for it
_history_buffer_attribute.__module__ = builtins.__name__
_history_buffer_attribute.__name__ = getattr.__name__
_history_buffer_attribute.__qualname__ = getattr.__qualname__

#: What mmengine's message hub stores besides tensors and plain containers.
SAFE_TYPES = [
    HistoryBuffer,
    _history_buffer_attribute,
    np.ndarray,
    np.dtype,
    multiarray._reconstruct,
    multiarray.scalar,
    *(type(np.dtype(t)) for t in '?bBhHiIlLqQefdUS'),
    # checkpoints written under the other major version of numpy
    *(
        (f, f'numpy.{core}.multiarray.{f.__name__}')
        for f in (multiarray._reconstruct, multiarray.scalar)
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
        raise FileNotFoundError(
            f'checkpoint {path} does not exist; check the '
            f'path, or train one with tools/train.py'
        )
    try:
        return load_weights(path, map_location)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()
        detail = next((line for line in reason if 'GLOBAL' in line), reason[0])
        raise ValueError(
            f'checkpoint {path} is refused, since loading it could run code: '
            f'{detail.strip()} If its source is trusted, keep only the '
            f'weights and what they were trained on: '
            f'torch.save(dict(state_dict=..., meta=...), file).'
        ) from error
    except (RuntimeError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(
            f'checkpoint {path} ({path.stat().st_size} bytes) cannot be read: '
            f'it is truncated or no checkpoint ({error}). Use an earlier one '
            f'or copy it again.'
        ) from error


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
    as in MMDetection's model zoo, is kept there: ``epoch_12.pth`` of one URL is not
    that of another.

    Args:
        filename (str): The URL.
        map_location (str | torch.device, optional): As ``torch.load``.

    Returns:
        dict: The checkpoint.

    Raises:
        FileNotFoundError: If it cannot be fetched.
        ValueError: As :func:`load_from_local`.
    """
    name = Path(unquote(urlsplit(filename).path)).name or 'checkpoint'
    with TemporaryDirectory() as folder:
        path = Path(folder, name)
        if re.search(r'-[0-9a-f]{8,}\.', name):
            path = Path(torch.hub.get_dir(), 'checkpoints', name)
            path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            try:
                torch.hub.download_url_to_file(
                    filename, str(path), progress=sys.stderr.isatty()
                )
            except (OSError, HTTPException) as error:
                raise FileNotFoundError(
                    f'checkpoint {filename} cannot be fetched ({error}); check the '
                    f'address and the connection, or give a local file'
                ) from error
        try:
            return load_from_local(path, map_location)
        except ValueError as error:
            # where it lies for a moment tells nobody anything
            raise ValueError(str(error).replace(str(path), filename)) from error


#: What takes the place of mmengine's loaders, by prefix.
SAFE_LOADERS = {
    '': load_from_local,
    'file://': load_from_file_url,
    'http://': load_from_url,
    'https://': load_from_url,
}


def use_safe_loaders() -> None:
    """Let whatever this process loads through mmengine run no code."""
    for prefix, loader in SAFE_LOADERS.items():
        CheckpointLoader.register_scheme(prefix, loader, force=True)


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
        ValueError: As :func:`load_from_local`.
    """
    name = str(name)
    # as mmengine looks: patterns, the longest first
    known = sorted({*CheckpointLoader._schemes, *SAFE_LOADERS}, reverse=True)
    prefix = next(pattern for pattern in known if re.match(pattern, name))
    loader = SAFE_LOADERS.get(prefix, CheckpointLoader.load_checkpoint)
    return loader(name, map_location)


def _checkpoints(work_dir: Path) -> list[Path]:
    """What training saved in a folder, whole or not."""
    return [*work_dir.glob('epoch_*.pth'), *work_dir.glob('iter_*.pth')]


def latest_checkpoint(work_dir: str | os.PathLike) -> Path | None:
    """The checkpoint that training in a folder goes on from.

    A killed process leaves what it was writing: an empty ``last_checkpoint``, one that
    names the checkpoint before, or a truncated ``epoch_N.pth``.

    Args:
        work_dir (str | PathLike): Folder of a training.

    Returns:
        Path | None: What ``last_checkpoint`` names or, where that is not whole, the
        youngest whole ``epoch_*.pth`` or ``iter_*.pth``; or a later one written since.
    """
    work_dir = Path(work_dir)
    file = work_dir / 'last_checkpoint'
    name = file.read_text(encoding='utf-8').strip() if file.is_file() else ''
    # the directory of a zip file comes last: one that has it is whole
    whole = [path for path in _checkpoints(work_dir) if zipfile.is_zipfile(path)]
    # the second is for a folder that was moved
    for named in (Path(name), work_dir / Path(name).name) if name else ():
        if zipfile.is_zipfile(named):
            # an older training in this folder may have left more epochs
            whole = [path for path in whole if _written(path) > _written(named)]
            whole = [path for path in whole if _number(path) > _number(named)]
            return max(whole, key=_written, default=named)
    return max(whole, key=_written, default=None)


def _written(path: Path) -> float:
    """When a file was written, in seconds."""
    return path.stat().st_mtime


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
    latest = latest_checkpoint(cfg.work_dir)
    files = _checkpoints(Path(cfg.work_dir))
    broken = sorted(path.name for path in files if not zipfile.is_zipfile(path))
    said = f'; truncated and skipped: {", ".join(broken)}' if broken else ''
    cfg.resume = latest is not None
    if latest:
        cfg.load_from = str(latest)
        said = f'--resume: goes on from {latest}{said}'
    else:
        said = f'--resume: no checkpoint in {cfg.work_dir}, training starts anew{said}'
    print(said, flush=True)


#: ImageNet weights of ``torchvision://NAME``, for when torchvision is absent.
TORCHVISION_WEIGHTS = dict(
    resnet18='resnet18-f37072fd',
    resnet34='resnet34-b627a593',
    resnet50='resnet50-0676ba61',
    resnet101='resnet101-63fe2227',
    resnet152='resnet152-394f9c45',
)


def load_from_torchvision(
    filename: str, map_location: str | torch.device | None = None
) -> dict:
    """Load ``torchvision://NAME`` without torchvision.

    Args:
        filename (str): ``torchvision://`` and a name of
            :data:`TORCHVISION_WEIGHTS`.
        map_location (str | torch.device, optional): As ``torch.load``.

    Returns:
        dict: The state_dict.

    Raises:
        ValueError: If the name is not one of them.
        FileNotFoundError: If the file is neither cached nor to be had.
    """
    name = filename.split('://', 1)[1]
    if name not in TORCHVISION_WEIGHTS:
        raise ValueError(
            f'{filename} is not known here, only '
            f'{", ".join(TORCHVISION_WEIGHTS)}; others need '
            f'torchvision'
        )
    file = f'{TORCHVISION_WEIGHTS[name]}.pth'
    cached = Path(torch.hub.get_dir()) / 'checkpoints' / file
    if cached.is_file():
        return load_from_local(cached, map_location)
    url = f'https://download.pytorch.org/models/{file}'
    try:
        return load_from_url(url, map_location)
    except OSError as error:
        raise FileNotFoundError(
            f'{filename} cannot be downloaded ({error}). Put {url} at '
            f'{cached}, or train from scratch with --cfg-options '
            f'model.backbone.init_cfg=None'
        ) from error


try:
    import torchvision  # noqa: F401
except ImportError:
    CheckpointLoader.register_scheme(
        prefixes=('modelzoo://', 'torchvision://'),
        loader=load_from_torchvision,
        force=True,
    )


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
    found = re.search(r"upsample_cfg=dict\([^()]*\btype='([^']+)'", str(text))
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

    Args:
        config (str | PathLike | Config): The config it was trained with, as
            :func:`~dlu_mmdet.engine.configs.read_config` takes it.
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
    if not isinstance(config, Config):
        config = read_config(config)
    config = Config(config.to_dict()) if upsampler else config.copy()
    if upsampler:
        set_upsampler(config, upsampler)
    merge_options(config, cfg_options or {})
    try:
        loaded = load_checkpoint(checkpoint, 'cpu')
    except KeyError as error:
        raise ValueError(
            f'checkpoint {checkpoint}: there is no model of the name {error}'
        ) from error
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
