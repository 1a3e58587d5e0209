"""Loops of a runner that would do nothing, or would not end."""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Iterator

from mmdet.datasets.samplers import MultiSourceSampler
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_world_size
from mmengine.hooks import CheckpointHook, EarlyStoppingHook
from mmengine.runner import (
    EpochBasedTrainLoop,
    IterBasedTrainLoop,
    Runner,
    TestLoop,
    ValLoop,
)
from mmengine.runner.base_loop import BaseLoop

from ..datasets.checks import reported

# samplers that begin again by themselves, and loops that wait for the end of one
_ENDLESS = (InfiniteSampler, MultiSourceSampler)
_ENDING = (EpochBasedTrainLoop, ValLoop, TestLoop)
_NO_IMAGES = (
    '{}.dataset, or a part of it, has no images, or none that filter_cfg, indices and '
    'times leave; change these, or the annotation file'
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


def check_loops(runner: Runner, mode: str) -> None:
    """Build a runner's loops, and check that each has something to do.

    Args:
        runner (Runner): Not yet run.
        mode (str): 'train' or 'test'.

    Raises:
        ValueError: If a dataloader gives no batch, leaves out images that are scored,
            or never ends where a loop waits for its end; or if a hook has an option
            that nothing takes, or follows a metric that nothing reports.
    """
    for split in ('train', 'val') if mode == 'train' else ('test',):
        key = f'{split}_dataloader'
        try:
            loop = getattr(runner, f'{split}_loop')
        except ValueError as error:
            # what mmengine's data sets say without an image
            if 'need at least one array' not in str(error):
                raise
            raise ValueError(_NO_IMAGES.format(key)) from error
        if loop is not None:
            _check_loader(key, loop)
    if mode == 'test':
        return
    for problem in (*_idle_schedules(runner), *_hook_problems(runner)):
        warnings.warn(problem, stacklevel=2)


def _hook_problems(runner: Runner) -> Iterator[str]:
    """Find what hooks would do otherwise than their options say.

    Raises:
        ValueError: If saving does not take an option, or a metric is followed that no
            validation reports.
    """
    saved = inspect.signature(runner.save_checkpoint).parameters
    names = reported(runner.cfg, 'val')
    for hook in runner.hooks:
        followed = getattr(hook, 'key_indicators', None) or []
        if isinstance(hook, EarlyStoppingHook):
            followed = [hook.monitor]
        for name in followed:
            if names and name not in (*names, 'auto'):
                near = difflib.get_close_matches(name, names, n=6, cutoff=0)
                raise ValueError(
                    f'{type(hook).__name__} follows {name}, which val_evaluator does '
                    f'not report; set save_best or monitor to one of {", ".join(near)}'
                )
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
        raise ValueError(_NO_IMAGES.format(key))
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
    each = f', {own} in this process' if get_world_size() > 1 else ''
    # a process has no images of its own where there are fewer than processes
    if lost == own:
        raise ValueError(
            f'{key} gives no batch: {images} images{each}, a batch size of {size} and '
            f'drop_last=True; set {key}.batch_size to {max(own, 1)} or less, '
            f'drop_last to False, or start fewer processes'
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
    if not by_iteration and not isinstance(loop, EpochBasedTrainLoop):
        return
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
