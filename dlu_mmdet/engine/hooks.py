"""Hooks of every training: what diverged stops, what is resumed goes on as it was."""

from __future__ import annotations

import json
import math
from bisect import bisect
from collections.abc import Mapping
from pathlib import Path

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook, EarlyStoppingHook, Hook
from mmengine.runner import BaseLoop, IterBasedTrainLoop

from .files import replacing

#: What a training that diverged leaves in its folder: ``iteration`` and ``reason``.
DIVERGED = 'diverged.json'
# iterations without a finite loss after which a training has diverged even if its
# weights are finite: mixed precision leaves out the steps of a few
_PATIENCE = 50


class Diverged(RuntimeError):
    """A training whose loss or weights are not finite any more."""


class DivergenceHook(Hook):
    """Stop a training whose loss or weights are NaN or infinite.

    The loss is looked at in each iteration, where mmengine has brought it to the host
    already; the weights only where it is not finite, and before they are saved. So
    no checkpoint holds such weights, and a single loss that is not finite, whose step
    mixed precision leaves out, does no harm.
    """

    # after the message hub has the loss, before weights are averaged or saved
    priority = 'ABOVE_NORMAL'

    def before_train(self, runner) -> None:
        """Look at the weights to begin with."""
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
        """Look at the loss."""
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
        """Keep what is worth nothing out of a checkpoint."""
        self._check_weights(runner, checkpoint['meta']['iter'])

    def after_train(self, runner) -> None:
        """Look at the weights that nothing saves."""
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
        with replacing(Path(runner.work_dir, DIVERGED)) as partial:
            partial.write_text(json.dumps(dict(iteration=iteration, reason=reason)))
        raise Diverged(
            f'training diverged at iteration {iteration}: {reason}. Lower the learning '
            f'rate (optim_wrapper.optimizer.lr), warm up for longer, or clip gradients '
            f'(optim_wrapper.clip_grad.max_norm)'
        )


def read_divergence(work_dir: Path) -> dict | None:
    """What a training that diverged left in its folder: ``iteration``, ``reason``."""
    file = Path(work_dir, DIVERGED)
    return json.loads(file.read_text()) if file.exists() else None


def count_validations(loop: BaseLoop, step: int | None = None) -> int:
    """How often a training is validated.

    Args:
        loop (BaseLoop): mmengine's loop by epochs or by iterations.
        step (int, optional): Until this epoch or iteration, from the first. Defaults
            to the last.

    Returns:
        int: The number, as the loop decides it.
    """
    by_iter = isinstance(loop, IterBasedTrainLoop)
    last = loop.max_iters if by_iter else loop.max_epochs
    step = last if step is None else step

    def is_due(number: int) -> bool:
        place = bisect(loop.dynamic_milestones, number + 1) - 1
        return not number % loop.dynamic_intervals[place] or number == last

    return sum(map(is_due, range(loop.val_begin, step + 1)))


class ResumeHook(Hook):
    """Bring what depends on validations back when a training is resumed.

    mmengine saves a checkpoint before the validation of its epoch, and of an
    :class:`EarlyStoppingHook` nothing. The message hub, which is saved, has the
    metrics of earlier validations: they are given to these hooks again. A validation
    that came after the checkpoint is repeated where something depends on it: early
    stopping, the best checkpoint, a learning rate that falls on a plateau.
    """

    # after the others are ready
    priority = 'LOWEST'

    def before_train(self, runner) -> None:
        """Bring back what a training would know by now that had not stopped."""
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
            runner.logger.info('repeats the validation that the checkpoint is before')
            runner.val_loop.run()


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
