"""Hooks of every training: stop on divergence, restore on resume, log the time left."""

from __future__ import annotations

import json
import math
from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook, EarlyStoppingHook, Hook
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop

from ..utils.files import atomic_write

#: What a training that diverged leaves in its folder: ``iteration`` and ``reason``.
DIVERGED = 'diverged.json'
# iterations without a finite loss after which a training has diverged even if its
# weights are finite: mixed precision leaves out the steps of a few
_PATIENCE = 50


class Diverged(RuntimeError):
    """The loss or the weights of a training are not finite."""


class DivergenceHook(Hook):
    """Stop a training whose loss or weights are NaN or infinite.

    The loss is checked in each iteration, after mmengine has copied it to the host; the
    weights only if the loss is not finite, and before they are saved. So no checkpoint
    has such weights, and a single non-finite loss, whose step mixed precision skips, is
    harmless.
    """

    # after the message hub has the loss, before weights are averaged or saved
    priority = 'ABOVE_NORMAL'

    def before_train(self, runner) -> None:
        """Check the initial weights."""
        self._in_a_row = 0
        if is_main_process():
            Path(runner.work_dir, DIVERGED).unlink(missing_ok=True)
        self._check_weights(runner, runner.iter)

    def after_train_iter(
        self,
        runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: dict | None = None,
    ) -> None:
        """Check the loss."""
        history = runner.message_hub.log_scalars.get('train/loss')
        if history is None or math.isfinite(loss := history.current()):
            self._in_a_row = 0
            return
        self._in_a_row += 1
        iteration = runner.iter + 1
        self._check_weights(runner, iteration, f'the loss is {loss}, and ')
        if self._in_a_row >= _PATIENCE:
            number = f'{self._in_a_row} iterations'
            self._stop(runner, iteration, f'the loss is {loss}, for {number} now')

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Do not save diverged weights."""
        self._check_weights(runner, checkpoint['meta']['iter'])

    def after_train(self, runner) -> None:
        """Check the final weights, also if they are not saved."""
        self._check_weights(runner, runner.iter)

    def _check_weights(self, runner, iteration: int, said: str = '') -> None:
        for name, value in [
            *runner.model.named_parameters(),
            *(b for b in runner.model.named_buffers() if '.running_' in b[0]),
        ]:
            if not torch.isfinite(value).all():
                own = name.removeprefix('module.')
                self._stop(runner, iteration, f'{said}{own} is not finite')

    def _stop(self, runner, iteration: int, reason: str) -> None:
        # whichever process meets it first
        with atomic_write(Path(runner.work_dir, DIVERGED)) as partial:
            partial.write_text(json.dumps(dict(iteration=iteration, reason=reason)))
        raise Diverged(
            f'training diverged at iteration {iteration}: {reason}. Lower the learning '
            f'rate (optim_wrapper.optimizer.lr), warm up for longer, or clip gradients '
            f'(optim_wrapper.clip_grad.max_norm)'
        )


def read_divergence(work_dir: Path) -> dict | None:
    """``iteration`` and ``reason`` of a diverged training, from its folder."""
    file = Path(work_dir, DIVERGED)
    return json.loads(file.read_text()) if file.exists() else None


def count_validations(loop: BaseLoop, step: int | None = None) -> int:
    """Count the validations of a training.

    Args:
        loop (BaseLoop): mmengine's training loop, by epochs or iterations.
        step (int, optional): Count up to this epoch or iteration. Defaults to the last.

    Returns:
        int: Number of validations.
    """
    step = _last_step(loop) if step is None else step
    return sum(1 for _ in _validations(loop, step))


def _last_step(loop: BaseLoop) -> int:
    """The last epoch or iteration of a training, from 1."""
    by_iter = isinstance(loop, IterBasedTrainLoop)
    return loop.max_iters if by_iter else loop.max_epochs


def _validations(loop: BaseLoop, until: int) -> Iterator[int]:
    """Epochs or iterations that are followed by a validation, as the loop decides."""
    for number in range(loop.val_begin, until + 1):
        place = bisect(loop.dynamic_milestones, number + 1) - 1
        if not number % loop.dynamic_intervals[place] or number == _last_step(loop):
            yield number


class ResumeHook(Hook):
    """Restore the state that depends on validations when a training resumes.

    mmengine saves a checkpoint before the validation of its epoch, and does not save
    the state of an :class:`EarlyStoppingHook`. The message hub, which is saved, has the
    metrics of earlier validations: they are given to these hooks again. A validation
    that came after the checkpoint is repeated where something depends on it: early
    stopping, the best checkpoint, a learning rate that falls on a plateau.
    """

    # after the others are ready
    priority = 'LOWEST'

    def before_train(self, runner) -> None:
        """Restore the state of an uninterrupted training."""
        loop = runner.train_loop
        by_iter = isinstance(loop, IterBasedTrainLoop)
        step, last, unit = (
            (loop.iter, loop.max_iters, 'iterations')
            if by_iter
            else (loop.epoch, loop.max_epochs, 'epochs')
        )
        if not step:
            return
        if step >= last:
            runner.logger.info(
                f'this training is finished: all of its {last} {unit} are done'
            )
        stoppers = [h for h in runner.hooks if isinstance(h, EarlyStoppingHook)]
        scalars = runner.message_hub.log_scalars
        for hook in stoppers:
            history = scalars.get(f'val/{hook.monitor}')
            for score in [] if history is None else history.data[0]:
                hook.after_val_epoch(runner, {hook.monitor: float(score)})
        watched = {hook.monitor for hook in stoppers} | set(_watched(runner))
        if not watched or runner.val_loop is None:
            return
        known = [
            len(history.data[0])
            for key, history in scalars.items()
            # 'auto' is the first metric
            if key.removeprefix('val/') in watched
            or ('auto' in watched and key.startswith('val/') and 'time' not in key)
        ]
        due = count_validations(loop, step)
        if due > count_validations(loop, step - 1) and max(known, default=0) == due - 1:
            runner.logger.info('repeating the validation that follows this checkpoint')
            runner.val_loop.run()


class TimeLeftHook(Hook):
    """Log once the estimated time to the first validation and to the end.

    The first iterations are timed, without two that warm up. A validation is taken to
    need a third of a training iteration for each image, as it has no backward pass.

    Attributes:
        warnings (Sequence[str]): Logged before the first iteration, since hundreds of
            lines come between the set-up of a training and its start.
    """

    priority = 'LOWEST'
    warnings: Sequence[str] = ()

    def before_train(self, runner) -> None:
        """Log the warnings, and start the clock."""
        for each in self.warnings:
            runner.logger.warning(each)
        self._begin = runner.iter + 2
        known = EpochBasedTrainLoop, IterBasedTrainLoop
        self._done = not isinstance(runner.train_loop, known)

    def after_train_iter(
        self,
        runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: dict | None = None,
    ) -> None:
        """Log once enough iterations are timed."""
        timed = runner.iter + 1 - self._begin
        if self._done or timed < _TIMED[0]:
            return
        # mmengine's timer leaves out validations and the start of epochs
        history = runner.message_hub.log_scalars.get('train/time')
        if history is None:
            return
        seconds = history.mean(timed)
        if timed < _TIMED[1] and timed * seconds < _TIMED_SECONDS:
            return
        self._done = True
        if runner.iter + 1 < runner.max_iters:
            runner.logger.info(_time_left(runner, runner.iter + 1, seconds))


# at least so many iterations are timed, and at most so many, or so many seconds
_TIMED, _TIMED_SECONDS = (3, 20), 10


def _time_left(runner, done: int, seconds: float) -> str:
    """When the first result and the end are due.

    Args:
        runner (Runner): At work.
        done (int): Iterations that are done.
        seconds (float): Of one iteration.
    """
    loop, validation = runner.train_loop, 0.0
    by_iter = isinstance(loop, IterBasedTrainLoop)
    # iterations between two steps
    length = 1 if by_iter else len(loop.dataloader)
    due = []
    if runner.val_loop is not None:
        due = [n * length for n in _validations(loop, _last_step(loop))]
        due = [n for n in due if n >= done]
        loaders = runner.val_loop.dataloader, loop.dataloader
        sizes = [_images_of_a_batch(loader) for loader in loaders]
        validation = seconds / 3 * len(loaders[0]) * sizes[0] / sizes[1]
    whole = (loop.max_iters - done) * seconds + len(due) * validation
    first = (due[0] - done) * seconds + validation if due else whole
    text = f'a first result in about {_in_words(first)}'
    if due and due[0] < loop.max_iters:
        text += f', the last one in about {_in_words(whole)}'
    return f'{text} ({seconds:.2g} s an iteration, {loop.max_iters - done} to go)'


def _images_of_a_batch(loader) -> int:
    return getattr(loader.batch_sampler, 'batch_size', None) or loader.batch_size or 1


def _in_words(seconds: float) -> str:
    """A time in words, rounded up."""
    if seconds <= 90:
        return f'{5 * math.ceil(seconds / 5)} seconds'
    minutes = math.ceil(seconds / 60)
    if minutes > 120:
        return f'{seconds / 3600:.1f} hours'
    return f'{minutes} minutes'


def _watched(runner) -> list[str]:
    """Metrics that the best checkpoint or a learning rate depends on."""
    found = []
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook) and hook.save_best:
            found += hook.key_indicators
    schedulers = runner.param_schedulers or []
    if isinstance(schedulers, Mapping):
        schedulers = [each for own in schedulers.values() for each in own]
    found += [each.monitor for each in schedulers if hasattr(each, 'monitor')]
    return found
