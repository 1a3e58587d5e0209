"""Read, override and fit configs to custom data."""

from .. import openmmlab  # noqa: F401
from .custom_data import SPLIT_FOLDER, prepare_data, say, use_dataset_folder
from .overrides import merge_options, parse_options
from .param_groups import check_param_groups, refuse_unreached
from .read import (
    check_foreign,
    config_stem,
    default_work_dir,
    enable_amp,
    load_config,
    read_config,
    read_dumped_config,
    read_settings,
    set_upsampler,
    upsampler_label,
)
from .schedule import check_lengths, fit_schedule

__all__ = [
    'SPLIT_FOLDER',
    'check_foreign',
    'check_lengths',
    'check_param_groups',
    'config_stem',
    'default_work_dir',
    'enable_amp',
    'fit_schedule',
    'load_config',
    'merge_options',
    'parse_options',
    'prepare_data',
    'read_config',
    'read_dumped_config',
    'read_settings',
    'refuse_unreached',
    'say',
    'use_dataset_folder',
    'set_upsampler',
    'upsampler_label',
]
