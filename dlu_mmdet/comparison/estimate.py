"""Estimate the time of runs."""

from __future__ import annotations

import tempfile
import time
from itertools import islice

import numpy as np
import torch
from mmengine.config import Config

from ..config import (
    enable_amp,
)
from ..datasets.preflight import check_data
from ..engine import build_runner
from ..engine.hooks import count_validations
from .runs import Run


def estimate(run: Run, amp: bool = False, iterations: int = 5) -> dict[str, float]:
    """Time a few iterations of a run on this machine, with its own data.

    Args:
        run (Run): The run; no file of it is changed.
        amp (bool): Automatic mixed precision. Defaults to False.
        iterations (int): Number of timed training iterations and test batches, after
            two of warm-up.

    Returns:
        dict[str, float]: ``train`` and ``test``: seconds of the whole run, without
        start-up and COCO evaluation.

    Raises:
        FileNotFoundError: If data are missing.
    """
    with tempfile.TemporaryDirectory() as folder:
        cfg = Config(run.cfg.to_dict())
        cfg.update(work_dir=folder, launcher='none', log_level='ERROR')
        # mmengine hands out logger and visualizer by name, folders and all
        cfg.experiment_name = f'estimate-{time.monotonic_ns()}'
        cfg.pop('visualizer', None)
        if amp:
            enable_amp(cfg)
        runner = build_runner(cfg, 'train')
        check_data(cfg, ('test',), hold=False)
        loop, loader = runner.train_loop, runner.train_loop.dataloader
        runner.optim_wrapper = runner.build_optim_wrapper(cfg.optim_wrapper)

        def train(data: dict) -> None:
            # heads and batch augmentations read the message hub, which a hook fills
            runner.call_hook('before_train_iter', batch_idx=0, data_batch=data)
            runner.model.train_step(data, optim_wrapper=runner.optim_wrapper)

        for stage in ('before_run', 'before_train', 'before_train_epoch'):
            runner.call_hook(stage)
        runner.model.train()
        step = _seconds(loader, train, iterations)
        runner.model.eval()
        tested = runner.test_loop.dataloader
        with torch.no_grad():
            batch = _seconds(tested, runner.model.test_step, iterations)
        batches = len(tested)
        if runner.val_loop is not None:
            batches += count_validations(loop) * len(runner.val_loop.dataloader)
        return dict(train=step * loop.max_iters, test=batch * batches)


def _seconds(dataloader, action, iterations: int) -> float:
    """Seconds of one step, loading included; two go before to warm up."""
    times = [time.perf_counter()]
    for data in islice(dataloader, iterations + 2):
        action(data)
        times.append(time.perf_counter())
    steps = np.diff(times)
    return float(np.mean(steps[2:] if len(steps) > 2 else steps))
