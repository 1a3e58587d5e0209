"""Running: command line, checkpoints and runners."""

from .checkpoint import (
    CheckpointGuardHook,
    check_classes,
    check_state_dict,
    latest_checkpoint,
    load_checkpoint,
    load_detector,
    load_detectors,
    resume_latest,
    use_safe_loaders,
)
from .cli import (
    add_cfg_options,
    add_config_arguments,
    add_data,
    add_training_arguments,
    add_upsampler,
    data_arguments,
    enable_amp,
    load_config,
    upsampler_argument,
)
from .configs import (
    check_foreign,
    config_stem,
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
from .files import check_writable, print_anything, read_json, replacing
from .hooks import Diverged, DivergenceHook, ResumeHook, read_divergence
from .options import merge_options
from .own_data import SPLIT_FOLDER, set_data
from .param_groups import check_param_groups, refuse_unreached
from .runner import build_runner, leave_together, lost_processes
from .schedule import fit_schedule

__all__ = [
    'PARTS',
    'SPLIT_FOLDER',
    'CheckpointGuardHook',
    'Diverged',
    'DivergenceHook',
    'ResumeHook',
    'add_cfg_options',
    'add_config_arguments',
    'add_data',
    'add_training_arguments',
    'add_upsampler',
    'build_runner',
    'check_classes',
    'check_foreign',
    'check_param_groups',
    'config_stem',
    'check_out',
    'check_packages',
    'check_state_dict',
    'check_writable',
    'choose_part',
    'data_arguments',
    'describe',
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
    'print_anything',
    'read_config',
    'read_divergence',
    'read_dumped_config',
    'read_json',
    'refuse_unreached',
    'replacing',
    'resume_latest',
    'set_data',
    'set_upsampler',
    'trace',
    'upsampler_argument',
    'upsampler_label',
    'use_safe_loaders',
]
