"""Running a config: runners, hooks, checkpoints and work directories."""

from .. import openmmlab  # noqa: F401
from .apis import check_classes, load_detector, load_detectors
from .checkpoint_guard import CheckpointGuardHook, check_state_dict
from .freeze import FreezeHook, freeze_all_but
from .hooks import Diverged, DivergenceHook, ResumeHook, read_divergence
from .patches import use_safe_loaders
from .resume import latest_checkpoint, resume_latest
from .runner import build_runner, explain_peer_loss, shutdown_process_group
from .safe_loading import check_checkpoint, load_checkpoint
from .upgrade import upgrade
from .work_dirs import check_unoccupied, next_commands

__all__ = [
    'CheckpointGuardHook',
    'Diverged',
    'DivergenceHook',
    'FreezeHook',
    'ResumeHook',
    'build_runner',
    'check_checkpoint',
    'check_classes',
    'check_state_dict',
    'check_unoccupied',
    'freeze_all_but',
    'latest_checkpoint',
    'shutdown_process_group',
    'load_checkpoint',
    'load_detector',
    'load_detectors',
    'explain_peer_loss',
    'next_commands',
    'read_divergence',
    'upgrade',
    'resume_latest',
    'use_safe_loaders',
]
