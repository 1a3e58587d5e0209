"""Refuse loops, schedules and hooks that have no effect or never end."""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Iterable, Iterator, Sequence

from mmdet.datasets.samplers import MultiSourceSampler
from mmdet.engine.hooks import PipelineSwitchHook, YOLOXModeSwitchHook
from mmdet.engine.schedulers.quadratic_warmup import QuadraticWarmupParamScheduler
from mmdet.registry import PARAM_SCHEDULERS
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_world_size
from mmengine.hooks import CheckpointHook, EarlyStoppingHook, EMAHook
from mmengine.optim.scheduler.param_scheduler import (
    ConstantParamScheduler,
    CosineAnnealingParamScheduler,
    LinearParamScheduler,
    OneCycleParamScheduler,
    PolyParamScheduler,
)
from mmengine.runner import (
    EpochBasedTrainLoop,
    IterBasedTrainLoop,
    Runner,
    TestLoop,
    ValLoop,
)
from mmengine.runner.base_loop import BaseLoop

from ..datasets.preflight import reported, resolve

# samplers that begin again by themselves, and loops that wait for the end of one
_ENDLESS = (InfiniteSampler, MultiSourceSampler)
_ENDING = (EpochBasedTrainLoop, ValLoop, TestLoop)
_NO_IMAGES = (
    '{}.dataset, or a part of it, has no images, or none that filter_cfg, indices and '
    'times leave; change these, or the annotation file'
)


def check_loops(runner: Runner, mode: str) -> list[str]:
    """Build and check the loops of a runner.

    Args:
        runner (Runner): The runner, before it runs.
        mode (str): 'train' or 'test'.

    Returns:
        list[str]: Settings of a training that have no effect. They are warnings too.

    Raises:
        ValueError: If a schedule begins after the training, if a dataloader has no
            batch, drops images of an evaluation or is
            infinite in an epoch-based loop, or if a hook has an unknown option or
            monitors a metric that no evaluator reports.
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
        return []
    finders = (_idle_schedules, _idle_hooks, _hook_problems)
    problems = [each for find in finders for each in find(runner)]
    for problem in problems:
        warnings.warn(problem, stacklevel=2)
    return problems


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
    """Find schedules that are longer than the training, or change nothing."""
    loop = runner.train_loop
    by_iteration = isinstance(loop, IterBasedTrainLoop)
    if not by_iteration and not isinstance(loop, EpochBasedTrainLoop):
        return
    for key, one in _schedules(runner.cfg.get('param_scheduler') or []):
        name = getattr(one['type'], '__name__', one['type'])
        key = f'{key}: {name}'
        by_epoch = one.get('by_epoch', True)
        end = loop.max_epochs if by_epoch else loop.max_iters
        if by_epoch and by_iteration:
            if not one.get('convert_to_iter_based'):
                yield (
                    f'{key} counts epochs, of which an IterBasedTrainLoop has one, so '
                    f'it takes no step; set by_epoch=False, with numbers of iterations'
                )
                continue
            end = loop.max_iters / len(loop.dataloader)
            key += f' counts epochs of {len(loop.dataloader)} iterations,'
        unit = 'epoch' if by_epoch else 'iteration'
        begin = one.get('begin') or 0
        if begin >= end and not one.get('end'):
            raise ValueError(
                f'{key} begins at {unit} {begin:g}, and the training ends after '
                f'{end:g}; train for longer, or set an earlier begin in '
                f'param_scheduler'
            )
        first = begin + min(one.get('milestones') or [one.get('step_size') or 0])
        last, warms_up = _last_step(one, begin, end)
        if first >= end:
            yield (
                f'{key} first acts at {unit} {first:g}, and the training ends after '
                f'{end:g}, so it changes nothing'
            )
        elif last > end and warms_up:
            yield (
                f'{key} warms up until {unit} {last:g}, and the training ends after '
                f'{end:g}, so the learning rate never reaches its value; train for '
                f'longer, or set an earlier end in param_scheduler'
            )
        elif last > end:
            yield (
                f'{key} lasts until {unit} {last:g}, and the training ends after '
                f'{end:g}, so the learning rate does not reach its last value; train '
                f'for longer, or set an earlier end in param_scheduler'
            )


def _schedules(
    schedules: dict | Sequence, key: str = 'param_scheduler'
) -> Iterator[tuple[str, dict]]:
    """The schedulers of a config with their keys, also those of several optimizers."""
    if isinstance(schedules, dict):
        if 'type' in schedules:
            yield (f'{key}.0' if key == 'param_scheduler' else key), schedules
            return
        parts: Iterable[tuple] = schedules.items()
    else:
        parts = enumerate(schedules)
    for name, inner in parts:
        if isinstance(inner, (dict, list, tuple)):
            yield from _schedules(inner, f'{key}.{name}')


def _last_step(one: dict, begin: float, end: float) -> tuple[float, bool]:
    """Where a scheduler reaches its last value, and whether it warms up until then."""
    cls = resolve(PARAM_SCHEDULERS, one['type'])
    if not inspect.isclass(cls):
        return 0, False
    last = one.get('end', end)
    if issubclass(cls, LinearParamScheduler):
        start = one.get('start_factor', 1 / 3)
        return last, start < one.get('end_factor', 1.0)
    if issubclass(cls, ConstantParamScheduler):
        return last, one.get('factor', 1 / 3) < 1
    if issubclass(cls, QuadraticWarmupParamScheduler):
        return last, True
    if issubclass(cls, OneCycleParamScheduler):
        steps = one.get('total_steps') or last - begin
        peak = begin + one.get('pct_start', 0.3) * steps
        return (peak, True) if peak > end else (begin + steps, False)
    if issubclass(cls, CosineAnnealingParamScheduler):
        return begin + (one.get('T_max') or last - begin), False
    return (last, False) if issubclass(cls, PolyParamScheduler) else (0, False)


def _idle_hooks(runner: Runner) -> Iterator[str]:
    """Find validations, checkpoints and hooks that a training is too short for.

    Raises:
        ValueError: If weights are averaged from after its end, which mmengine asserts.
    """
    loop = runner.train_loop
    by_iteration = isinstance(loop, IterBasedTrainLoop)
    if not by_iteration and not isinstance(loop, EpochBasedTrainLoop):
        return
    last = loop.max_iters if by_iteration else loop.max_epochs
    unit = 'iteration' if by_iteration else 'epoch'
    # a comparison leaves out a validation that its test repeats
    is_left_out = loop.val_interval >= last and loop.val_begin == last + 1
    if runner.val_loop is not None and loop.val_begin > last and not is_left_out:
        yield (
            f'train_cfg.val_begin={loop.val_begin}, and the training ends after '
            f'{unit} {last}, so it is never validated; set an earlier one'
        )
    # mmengine's first milestone is the beginning
    for milestone in loop.dynamic_milestones[1:]:
        if milestone > last:
            yield (
                f'train_cfg.dynamic_intervals changes the interval of validations at '
                f'{unit} {milestone}, and the training ends after {last}, so that '
                f'interval is not used'
            )
    for hook in runner.hooks:
        for kind, find in _HOOK_PROBLEMS.items():
            if isinstance(hook, kind) and (problem := find(hook, loop)):
                yield problem


def _saves_nothing(hook: CheckpointHook, loop: BaseLoop) -> str:
    ends = loop.max_epochs if hook.by_epoch else loop.max_iters
    first = hook.save_begin or hook.interval
    if hook.save_last or (hook.interval >= 1 and first <= ends):
        return ''
    return (
        f'default_hooks.checkpoint saves no checkpoint: it has '
        f'interval={hook.interval}, save_begin={hook.save_begin} and '
        f'save_last=False, and the training ends after '
        f'{"epoch" if hook.by_epoch else "iteration"} {ends}; set save_last=True'
    )


def _averages_nothing(hook: EMAHook, loop: BaseLoop) -> str:
    for key, ends in (('begin_epoch', loop.max_epochs), ('begin_iter', loop.max_iters)):
        begin = getattr(hook, key)
        if begin > ends:
            raise ValueError(
                f'{type(hook).__name__} has {key}={begin}, and the training ends after '
                f'{ends}, so it averages no weights; set an earlier one'
            )
    return ''


def _never_switches(hook: PipelineSwitchHook, loop: BaseLoop) -> str:
    if hook.switch_epoch < loop.max_epochs:
        return ''
    return (
        f'{type(hook).__name__} has switch_epoch={hook.switch_epoch}, and the training '
        f'ends after epoch {loop.max_epochs}, so the pipeline is never switched; set '
        f'an earlier one'
    )


def _never_mixes(hook: YOLOXModeSwitchHook, loop: BaseLoop) -> str:
    if hook.num_last_epochs + 1 < loop.max_epochs:
        return ''
    return (
        f'{type(hook).__name__} has num_last_epochs={hook.num_last_epochs}, and the '
        f'training ends after epoch {loop.max_epochs}, so mosaic and mixup are off '
        f'from the first epoch; set a smaller number, or train for longer'
    )


# what a hook would not do in a training as short as a loop's; empty if it would
_HOOK_PROBLEMS = {
    CheckpointHook: _saves_nothing,
    EMAHook: _averages_nothing,
    PipelineSwitchHook: _never_switches,
    YOLOXModeSwitchHook: _never_mixes,
}
