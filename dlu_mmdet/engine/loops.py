"""Loops of a runner that would do nothing, or would not end."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator

from mmdet.datasets.samplers import MultiSourceSampler
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_world_size
from mmengine.hooks import CheckpointHook
from mmengine.runner import (
    EpochBasedTrainLoop,
    IterBasedTrainLoop,
    Runner,
    TestLoop,
    ValLoop,
)
from mmengine.runner.base_loop import BaseLoop

# samplers that begin again by themselves, and loops that wait for the end of one
_ENDLESS = (InfiniteSampler, MultiSourceSampler)
_ENDING = (EpochBasedTrainLoop, ValLoop, TestLoop)


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
                f'train_cfg.{name}={value!r}: it must be a whole number above 0; '
                f'a val_interval above the length of the training leaves out validation'
            )


def check_loops(runner: Runner, mode: str) -> None:
    """Build a runner's loops, and check that each has something to do.

    Args:
        runner (Runner): Not yet run.
        mode (str): 'train' or 'test'.

    Raises:
        ValueError: If a dataloader gives no batch, leaves out images that are scored,
            or never ends where a loop waits for its end, or if the checkpoint hook has
            an option that saving does not take.
    """
    if mode == 'test':
        _check_loader('test_dataloader', runner.test_loop)
        return
    for split, loop in (('train', runner.train_loop), ('val', runner.val_loop)):
        if loop is not None:
            _check_loader(f'{split}_dataloader', loop)
    for problem in (*_idle_schedules(runner), *_checkpoint_problems(runner)):
        warnings.warn(problem, stacklevel=2)


def _checkpoint_problems(runner: Runner) -> Iterator[str]:
    """Find what a checkpoint hook does otherwise than its options say.

    Raises:
        ValueError: If saving does not take one of them.
    """
    saved = inspect.signature(runner.save_checkpoint).parameters
    for hook in runner.hooks:
        if not isinstance(hook, CheckpointHook):
            continue
        if unknown := {*hook.args} - {*saved}:
            raise ValueError(
                f'default_hooks.checkpoint has the option '
                f'{", ".join(sorted(unknown))}, which CheckpointHook does not have; '
                f'remove it'
            )
        if hook.by_epoch and isinstance(runner.train_loop, IterBasedTrainLoop):
            yield (
                'default_hooks.checkpoint counts epochs, of which an '
                'IterBasedTrainLoop has one, so it saves at the end alone; set '
                'by_epoch=False, and interval to a number of iterations'
            )


def _check_loader(key: str, loop: BaseLoop) -> None:
    """Check that a loop's dataloader gives batches, and all images that are scored."""
    loader = loop.dataloader
    batches = loader.batch_sampler
    sampler = getattr(batches, 'sampler', loader.sampler)
    if not hasattr(loader.dataset, '__len__') or not hasattr(sampler, '__len__'):
        return
    endless = isinstance(sampler, _ENDLESS)
    parts = getattr(loader.dataset, 'datasets', ()) if endless else ()
    images, own = len(loader.dataset), len(sampler)
    if not images or not all(map(len, parts)):
        raise ValueError(
            f'{key}.dataset, or a part of it, has no images, or none that filter_cfg '
            f'and indices leave; change these, or the annotation file'
        )
    if endless:
        if isinstance(loop, _ENDING):
            raise ValueError(
                f'{key}.sampler.type={type(sampler).__name__} never ends, and '
                f"{type(loop).__name__} waits for its end; set it to 'DefaultSampler', "
                f"or for training train_cfg to dict(type='IterBasedTrainLoop', "
                f'max_iters=...)'
            )
        return
    size = getattr(batches, 'batch_size', None) or 1
    lost = own % size if getattr(batches, 'drop_last', False) else 0
    each = f', {own} in each process' if get_world_size() > 1 else ''
    if lost == own:
        raise ValueError(
            f'{key} gives no batch: {images} images{each}, a batch size of {size} and '
            f'drop_last=True; set {key}.batch_size to {own} or less, or drop_last to '
            f'False'
        )
    if lost and not isinstance(loop, (EpochBasedTrainLoop, IterBasedTrainLoop)):
        raise ValueError(
            f'{key} leaves out {lost} of the {images} images{each} that are scored, '
            f'with a batch size of {size} and drop_last=True; set drop_last to False'
        )


def _idle_schedules(runner: Runner) -> Iterator[str]:
    """What is wrong with schedules that change no learning rate."""
    loop = runner.train_loop
    by_iteration = isinstance(loop, IterBasedTrainLoop)
    schedules = runner.cfg.get('param_scheduler') or []
    for index, one in enumerate([schedules] if 'type' in schedules else schedules):
        if not isinstance(one, dict):
            # of several optimizers, by their names
            continue
        key = f'param_scheduler.{index}: {getattr(one.type, "__name__", one.type)}'
        by_epoch = one.get('by_epoch', True)
        if by_epoch and by_iteration:
            yield (
                f'{key} counts epochs, of which an IterBasedTrainLoop has one, so it '
                f'takes no step; set by_epoch=False, with numbers of iterations'
            )
            continue
        end = loop.max_epochs if by_epoch else loop.max_iters
        first = one.get('begin', 0) + min(one.get('milestones') or [0])
        if first >= end:
            yield (
                f'{key} first acts at {"epoch" if by_epoch else "iteration"} {first}, '
                f'and the training ends after {end}, so it changes nothing'
            )
