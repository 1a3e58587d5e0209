"""From a config to a runner, with everything checked that can be."""

from __future__ import annotations

import torch.distributed
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..datasets.checks import check_data


def build_runner(cfg: Config, mode: str) -> Runner:
    """Check what a config needs and build its runner.

    Args:
        cfg (Config): A complete config.
        mode (str): 'train' or 'test'.

    Returns:
        Runner: Ready for ``train()`` or ``test()``.

    Raises:
        FileNotFoundError: If data are missing.
        ValueError: If annotations share no class with the config.
    """
    check_data(cfg, ('train', 'val') if mode == 'train' else ('test',))
    if mode == 'test' or cfg.get('resume'):
        cfg.custom_hooks = [
            *cfg.get('custom_hooks', []),
            dict(type='CheckpointGuardHook'),
        ]
    if cfg.get('launcher', 'none') == 'pytorch' and get_device() == 'cpu':
        # mmengine's own set-up for this launcher calls CUDA
        torch.distributed.init_process_group('gloo')
        cfg.env_cfg.dist_cfg = dict(backend='gloo')
        cfg.model_wrapper_cfg = dict(
            type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False
        )
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
