"""A schedule that follows the number of training images."""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Mapping

from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import DefaultScope

# Iterations: the first is enough for 20 images. The second times the root of the
# number of images repeats few of them often, and many of them seldom.
_LEAST, _PER_ROOT = 300, 40
# shares of the training
_WARM_UP, _CHECKPOINT, _VALIDATION = 0.1, 0.25, 0.5
_LOOPS = (None, 'EpochBasedTrainLoop', 'IterBasedTrainLoop')


def fit_schedule(
    cfg: Config, options: Mapping | None = None, processes: int | None = None
) -> str:
    """Set the length of a training by the number of its images.

    Does nothing to a config without ``fit_schedule=True``. What the config or the
    options set is kept: a ``param_scheduler`` that is not None,
    ``train_cfg.val_interval``, and ``train_cfg.max_iters`` or ``train_cfg.max_epochs``,
    of which the warm-up is a share then.

    Args:
        cfg (Config): Changed in place: ``train_cfg``, ``param_scheduler``, the
            training's sampler, the intervals of checkpoints; ``fit_schedule`` is
            removed.
        options (Mapping, optional): ``--cfg-options`` that will be merged afterwards.
        processes (int, optional): Number of processes that share an epoch. Defaults
            to that of torchrun.

    Returns:
        str: The length, in a sentence; empty if nothing was set.

    Raises:
        ValueError: If both ``max_iters`` and ``max_epochs`` are given, or one of them
            is not a whole number above 0.
    """
    if not cfg.get('fit_schedule'):
        return ''
    read = Config({k: v for k, v in cfg.to_dict().items() if k.startswith('train_')})
    own = {k: v for k, v in (options or {}).items() if k.startswith('train_')}
    try:
        read.merge_from_dict(own)
    # merge_options says what is wrong with them
    except (KeyError, TypeError):
        return ''
    given = read.get('train_cfg') or {}
    if not given or given.get('type') not in _LOOPS:
        return ''
    check_lengths(read)
    lengths = {k: given[k] for k in ('max_iters', 'max_epochs') if k in given}
    if len(lengths) > 1:
        raise ValueError(
            f'train_cfg has max_iters={lengths["max_iters"]} and '
            f'max_epochs={lengths["max_epochs"]}; leave out one of them'
        )
    images = _count_images(read)
    batch = read.train_dataloader.get('batch_size') or 1
    processes = processes or int(os.environ.get('WORLD_SIZE', 1))
    epoch = max(1, math.ceil(images / batch / processes))
    root = 10 * math.ceil(_PER_ROOT / 10 * math.sqrt(images))
    fitted = max(_LEAST, root, epoch)
    if 'max_epochs' in lengths:
        length, unit = int(lengths['max_epochs']), 'epochs'
        iterations = length * epoch
        kind = 'EpochBasedTrainLoop'
    else:
        length = iterations = int(lengths.setdefault('max_iters', fitted))
        unit = f'iterations of {batch} images'
        kind = 'IterBasedTrainLoop'
        _count_iterations(cfg, length)
    kept = {k: v for k, v in cfg.train_cfg.items() if k != 'by_epoch'}
    kept.setdefault('val_interval', math.ceil(_VALIDATION * length))
    cfg.train_cfg = {**kept, **lengths, 'type': kind}
    if cfg.get('param_scheduler') is None:
        cfg.param_scheduler = _warm_up_and_cosine(iterations)
    cfg.pop('fit_schedule')
    # build_runner says why
    if not images:
        return ''
    advice = 'set another length'
    if iterations < fitted:
        advice = f'fewer than {fitted} iterations give a low AP; {advice}'
    return (
        f'{images} training images: trains for {length} {unit}; {advice} with '
        f'--cfg-options train_cfg.max_iters=N or train_cfg.max_epochs=N'
    )


def check_lengths(cfg: Config) -> None:
    """Check that a training has a length.

    Args:
        cfg (Config): A complete config.

    Raises:
        ValueError: If a number of epochs or iterations is not a whole one above 0.
    """
    for name in ('max_epochs', 'max_iters', 'val_interval'):
        value = (cfg.get('train_cfg') or {}).get(name, 1)
        if not isinstance(value, (int, float)) or value < 1 or value % 1:
            raise ValueError(
                f'train_cfg.{name}={value!r}: it must be a whole number above 0'
            )


def _count_images(cfg: Config) -> int:
    """The images that the training set keeps, each as often as it repeats it."""
    # pycocotools prints
    quiet = contextlib.redirect_stdout(io.StringIO())
    with quiet, DefaultScope.overwrite_default_scope('mmdet'):
        try:
            return len(DATASETS.build(cfg.train_dataloader.dataset))
        # build_runner checks the data, and says what is wrong with them
        except Exception:
            return 0


def _count_iterations(cfg: Config, length: int) -> None:
    """Let the parts of a config that count epochs count iterations."""
    # with DefaultSampler mmengine sleeps two seconds at the end of each epoch
    sampler = cfg.train_dataloader.get('sampler') or {}
    if sampler.get('type') == 'DefaultSampler':
        sampler['type'] = 'InfiniteSampler'
    cfg.log_processor.by_epoch = False
    checkpoint = cfg.default_hooks.get('checkpoint')
    if checkpoint and checkpoint.get('by_epoch', True):
        interval = math.ceil(_CHECKPOINT * length)
        checkpoint.update(by_epoch=False, interval=interval)


def _warm_up_and_cosine(iterations: int) -> list[dict]:
    warm_up = max(1, round(_WARM_UP * iterations))
    if warm_up >= iterations:
        return []
    # the cosine ends with the training, whatever its length
    return [
        dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=warm_up),
        dict(
            type='CosineAnnealingLR', by_epoch=False, begin=warm_up, eta_min_ratio=0.01
        ),
    ]
