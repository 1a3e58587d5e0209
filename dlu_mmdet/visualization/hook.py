"""A hook that logs pictures of features and kernels during training."""

from __future__ import annotations

from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..necks import upsampler_name


@HOOKS.register_module()
class UpsampleVisualizationHook(Hook):
    """Draw features and kernels of one validation image during training.

    Draws the maps of the pyramid and, for upsamplers with kernels, the most informative
    reassembly kernels. mmengine's visualizer passes them to its backends (files,
    TensorBoard, ...) as images named ``features`` and ``kernels``. Enable it with::

        custom_hooks = [dict(type='UpsampleVisualizationHook', interval=1)]

    Args:
        interval (int): Interval in epochs. Defaults to 1.
        by_epoch (bool): Whether ``interval`` counts epochs; False counts
            iterations. Defaults to True.
        index (int): Index of the image in the validation set. Defaults to 0.
        num_positions (int): Number of positions with kernels. Defaults to 3.

    Raises:
        ValueError: If a number is out of range, or, when training starts, if there is
            no validation set or no image of that index.
    """

    def __init__(
        self,
        interval: int = 1,
        by_epoch: bool = True,
        index: int = 0,
        num_positions: int = 3,
    ) -> None:
        for name, value, least in (
            ('interval', interval, 1),
            ('index', index, 0),
            ('num_positions', num_positions, 1),
        ):
            if value < least:
                raise ValueError(f'{name} must be at least {least}, got {value}')
        self.interval = interval
        self.by_epoch = by_epoch
        self.index = index
        self.num_positions = num_positions

    def before_train(self, runner: Runner) -> None:
        """Check that the image exists, before hours of training."""
        if runner.val_loop is None:
            raise ValueError(
                'UpsampleVisualizationHook draws an image of the validation set: give '
                'the config a val_dataloader, or take the hook out of custom_hooks'
            )
        number = len(runner.val_dataloader.dataset)
        if self.index >= number:
            raise ValueError(
                f'index must be below the number of validation images, {number}, got '
                f'{self.index}'
            )

    def after_train_epoch(self, runner: Runner) -> None:
        """Draw, if the interval counts epochs."""
        if self.by_epoch and self.every_n_epochs(runner, self.interval):
            self._draw(runner, runner.epoch + 1)

    def after_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        """Draw, if the interval counts iterations."""
        if not self.by_epoch and self.every_n_train_iters(runner, self.interval):
            self._draw(runner, runner.iter + 1)

    @master_only
    def _draw(self, runner: Runner, step: int) -> None:
        # every training imports this module, and few draw
        from .features import draw_features, record
        from .figures import as_image
        from .kernel_figure import draw_kernels
        from .kernel_maps import (
            has_kernels,
            informative_positions,
            recorded_kernels,
            visible_size,
        )

        model = runner.model
        model = model.module if is_model_wrapper(model) else model
        training = model.training
        model.eval()
        try:
            recording = record(model, runner.val_dataloader.dataset[self.index])
        finally:
            model.train(training)
        if not recording.finite:
            runner.logger.warning('features are not finite: no picture of them')
            return

        name = upsampler_name(model.neck) or type(model.neck).__name__
        image_name = f'validation image {self.index}'
        figure = draw_features({name: recording}, image_name)
        runner.visualizer.add_image('features', as_image(figure), step)
        level = min(recording.upsamplings, default=None)
        if level is None or not has_kernels(recording.upsamplings[level][-1].module):
            return
        maps = recorded_kernels(recording, level)
        positions = informative_positions(
            maps, self.num_positions, visible_size(recording, maps)
        )
        figure = draw_kernels(recording, {name: maps}, positions, level, image_name)
        runner.visualizer.add_image('kernels', as_image(figure), step)
