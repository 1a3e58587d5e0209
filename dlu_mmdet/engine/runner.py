"""Build a runner from a config and check it."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..config.param_groups import check_param_groups
from ..config.schedule import check_lengths, fit_schedule
from ..datasets import check_data, check_num_classes
from .checkpoint_guard import CheckpointGuardHook
from .hooks import DivergenceHook, ResumeHook, TimeLeftHook
from .loops import check_loops
from .patches import patch_pipeline_errors, use_safe_loaders

# what gloo and NCCL say where the other end of a connection is gone
_LOST = re.compile(
    r'[Cc]onnection (closed|reset|refused|was likely closed)|[Bb]roken pipe'
    r'|ncclRemoteError|ncclSystemError|remote process exited'
)


@contextmanager
def explain_peer_loss() -> Iterator[None]:
    """Explain the errors of gloo and NCCL after a peer process has exited.

    Raises:
        RuntimeError: Instead of theirs.
    """
    try:
        yield
    except RuntimeError as error:
        if not (torch.distributed.is_initialized() and _LOST.search(str(error))):
            raise
        raise RuntimeError(
            'another process of this training has ended, here or on another machine; '
            'its output says why. Where all are started again with --resume they go '
            'on from the last checkpoint'
        ) from error


def shutdown_process_group() -> None:
    """Destroy the process group once all processes have arrived.

    Call it after the runner is deleted: gloo's threads end with the last object that
    holds the group. A thread that frees a tensor while Python exits aborts the process
    (pytorch/pytorch#179291).

    Raises:
        RuntimeError: If a peer process has exited before.
    """
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        # a runner is in cycles; the group goes last, as it lets its threads have the
        # GIL, for which they may wait, while it waits for them
        gc.collect()
        torch.distributed.destroy_process_group()


def _drop_settings_of_workers(cfg: Config) -> None:
    """Remove what torch takes with worker processes only, where there are none."""
    for split in ('train', 'val', 'test'):
        loader = cfg.get(f'{split}_dataloader')
        if loader and loader.get('num_workers') == 0:
            loader.persistent_workers = False
            loader.pop('prefetch_factor', None)


def _keep_config_of_training(cfg: Config) -> None:
    """Let a test write its config under another name than that of a training.

    The runner writes it into the work directory, where it would replace the config that
    a resumed training and other commands read.
    """
    name = os.path.basename(cfg.filename or '')
    if name and os.path.isfile(os.path.join(cfg.work_dir, name)):
        # a Config has no other way to change it
        object.__setattr__(cfg, '_filename', f'test_{name}')


def build_runner(
    cfg: Config, mode: str, checkpoint: str | os.PathLike | None = None
) -> Runner:
    """Check what a config needs and build its runner.

    From here on this process loads checkpoints without running code
    (:func:`~dlu_mmdet.engine.patches.use_safe_loaders`), and errors of data
    pipelines name the image (:func:`~dlu_mmdet.engine.patches.patch_pipeline_errors`).
    A training gets the hooks of :mod:`~dlu_mmdet.engine.hooks`.

    Args:
        cfg (Config): A complete config.
        mode (str): 'train' or 'test'.
        checkpoint (str | PathLike, optional): The one to test; in a training that of
            ``load_from``, if it may lack only the weights of the neck's upsamplers.
            Defaults to that of ``load_from``.

    Returns:
        Runner: Ready for ``train()`` or ``test()``.

    Raises:
        FileNotFoundError: If data are missing.
        ValueError: If the data cannot be used with the config, see
            :func:`~dlu_mmdet.datasets.check_data` and
            :func:`~dlu_mmdet.datasets.check_num_classes`; if a loop would do nothing,
            see :func:`~dlu_mmdet.engine.loops.check_loops`, or a setting, see
            :func:`~dlu_mmdet.config.param_groups.check_param_groups`.
    """
    use_safe_loaders()
    patch_pipeline_errors()
    splits = ('train', 'val') if mode == 'train' else ('test',)
    if mode == 'train':
        fit_schedule(cfg)
        check_lengths(cfg)
    check_data(cfg, splits)
    _drop_settings_of_workers(cfg)
    # a test loads weights alone, even if the config of a resumed run says resume
    resumed = cfg.get('load_from') if mode == 'train' and cfg.get('resume') else None
    if mode == 'test':
        _keep_config_of_training(cfg)
    if mode == 'test' or resumed:
        cfg.resume = False
    if resumed:
        # the dumped config must start from scratch
        cfg.load_from = None
    if cfg.get('launcher', 'none') == 'pytorch' and get_device() == 'cpu':
        # mmengine's own set-up for this launcher calls CUDA
        torch.distributed.init_process_group('gloo')
        cfg.env_cfg.dist_cfg = dict(backend='gloo')
        cfg.model_wrapper_cfg = dict(
            type='MMDistributedDataParallel',
            device_ids=None,
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        )
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    if resumed:
        runner._resume, runner._load_from = True, resumed
    elif mode == 'test' and checkpoint:
        runner._load_from = str(checkpoint)
    check_num_classes(runner.model, cfg, splits)
    # hooks are not in the config, which the run leaves for tools that have none of them
    if mode == 'test' or resumed or checkpoint:
        guard = CheckpointGuardHook(new_upsamplers=mode == 'train' and not resumed)
        runner.register_hook(guard)
    if mode == 'train':
        runner.register_hook(DivergenceHook())
        runner.register_hook(ResumeHook())
        time_left = TimeLeftHook()
        runner.register_hook(time_left)
        check_param_groups(runner.model, cfg)
        time_left.warnings = check_loops(runner, mode)
    else:
        check_loops(runner, mode)
    return runner
