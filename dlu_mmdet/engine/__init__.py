"""Running: command line, checkpoints and runners."""

from .checkpoint import (
    CheckpointGuardHook,
    check_classes,
    check_state_dict,
    latest_checkpoint,
    load_detector,
    load_detectors,
    resume_latest,
)
from .cli import (
    add_cfg_options,
    add_config_arguments,
    add_training_arguments,
    enable_amp,
    load_config,
)
from .files import replacing
from .runner import build_runner

__all__ = [
    'CheckpointGuardHook',
    'add_cfg_options',
    'add_config_arguments',
    'add_training_arguments',
    'build_runner',
    'check_classes',
    'check_state_dict',
    'enable_amp',
    'latest_checkpoint',
    'load_config',
    'load_detector',
    'load_detectors',
    'replacing',
    'resume_latest',
]
