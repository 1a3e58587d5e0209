"""Running: command line, checkpoints and runners."""

from .checkpoint import (
    CheckpointGuardHook,
    check_checkpoint,
    check_classes,
    check_state_dict,
    latest_checkpoint,
    load_checkpoint,
    load_detector,
    load_detectors,
    resume_latest,
    use_safe_loaders,
)
from .configs import (
    check_foreign,
    config_stem,
    default_work_dir,
    enable_amp,
    load_config,
    read_config,
    read_dumped_config,
    set_upsampler,
    upsampler_label,
)
from .export import (
    PARTS,
    check_out,
    check_packages,
    choose_part,
    describe,
    export_onnx,
    trace,
)
from .files import check_writable, read_json, replacing
from .hooks import Diverged, DivergenceHook, ResumeHook, read_divergence
from .options import merge_options, parse_options
from .own_data import SPLIT_FOLDER, prepare_data, set_data
from .param_groups import check_param_groups, refuse_unreached
from .runner import build_runner, leave_together, lost_processes
from .schedule import fit_schedule
from .work_dirs import check_unoccupied, next_commands

__all__ = [
    'PARTS',
    'SPLIT_FOLDER',
    'CheckpointGuardHook',
    'Diverged',
    'DivergenceHook',
    'ResumeHook',
    'build_runner',
    'check_checkpoint',
    'check_classes',
    'check_foreign',
    'check_param_groups',
    'config_stem',
    'check_out',
    'check_packages',
    'check_state_dict',
    'check_unoccupied',
    'check_writable',
    'choose_part',
    'describe',
    'default_work_dir',
    'enable_amp',
    'export_onnx',
    'fit_schedule',
    'latest_checkpoint',
    'leave_together',
    'load_checkpoint',
    'load_config',
    'load_detector',
    'load_detectors',
    'lost_processes',
    'merge_options',
    'next_commands',
    'read_config',
    'read_divergence',
    'read_dumped_config',
    'read_json',
    'refuse_unreached',
    'replacing',
    'resume_latest',
    'parse_options',
    'prepare_data',
    'set_data',
    'set_upsampler',
    'trace',
    'upsampler_label',
    'use_safe_loaders',
]
