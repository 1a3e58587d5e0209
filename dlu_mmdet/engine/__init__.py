"""Running: command line, checkpoints and runners."""

from .checkpoint import CheckpointGuardHook, check_state_dict, load_detector
from .cli import add_config_arguments, load_config
from .runner import build_runner

__all__ = [
    'CheckpointGuardHook',
    'add_config_arguments',
    'build_runner',
    'check_state_dict',
    'load_config',
    'load_detector',
]
