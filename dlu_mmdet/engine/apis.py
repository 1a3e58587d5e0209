"""Load trained detectors for inference."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from torch import nn

from ..config.overrides import merge_options
from ..config.read import config_stem, read_config, set_upsampler
from ..datasets.coco_io import class_names
from ..necks import upsampler_name
from .checkpoint_guard import check_state_dict, read_weights
from .patches import use_safe_loaders
from .safe_loading import load_checkpoint


def check_device(device: str) -> None:
    """Check that a device is available.

    Args:
        device (str): As ``torch.device`` takes it.

    Raises:
        ValueError: If no tensor can be allocated there.
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
    cfg_options: Mapping | None = None,
    upsampler: dict | None = None,
) -> nn.Module:
    """Load a trained detector for inference.

    From then on this process loads checkpoints without running code, see
    :func:`use_safe_loaders`.

    Args:
        config (str | PathLike | Config): The config it was trained with, as
            :func:`~dlu_mmdet.config.read.read_config` takes it.
        checkpoint (str | PathLike): Its checkpoint: a file, a URL or another address
            that mmengine loads.
        device (str): Device of the detector. Defaults to 'cpu'.
        cfg_options (Mapping, optional): Settings to override in the config.
        upsampler (dict, optional): The ``upsample_cfg`` that it was trained with, if
            the config has another one.

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
    loaded: Any = load_checkpoint(checkpoint, 'cpu')
    weights = read_weights(loaded, checkpoint)
    scope = config.get('default_scope', 'mmdet')
    if scope is not None:
        init_default_scope(scope)
    model = revert_sync_batchnorm(MODELS.build(config.model))
    check_state_dict(model, weights, loaded)
    model.load_state_dict(weights)
    model.dataset_meta = _dataset_meta(loaded, config, model)
    model.cfg = config
    return model.to(device).eval()


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
    cfg_options: Mapping | None = None,
    upsampler: dict | None = None,
) -> dict[str, nn.Module]:
    """Load several detectors, named by their upsamplers.

    Args:
        pairs (Sequence[tuple[str, str]]): Configs and their checkpoints.
        device (str): Device of the detectors. Defaults to 'cpu'.
        cfg_options (Mapping, optional): Settings to override in every config.
        upsampler (dict, optional): As in :func:`load_detector`, for all detectors.

    Returns:
        dict[str, nn.Module]: Detectors in the order given. A detector without an
        upsampler has the name of its config file; equal names are numbered, 'dlu (1)'.

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
    """Check that detectors have the same class names.

    Args:
        models (Mapping[str, nn.Module]): From :func:`load_detectors`.
        configs (Sequence[str]): Their configs, for the message.
        classes (Sequence[str]): The expected class names.
        owner (str): Where the class names come from, for the message.

    Raises:
        ValueError: If class names or their order differ.
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
