"""Refuse checkpoints that do not match the model."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from mmengine.config import Config
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import HOOKS
from torch import nn

from ..datasets.preflight import first_label_mismatch, iter_datasets
from ..necks import upsampler_prefixes


def check_state_dict(
    model: nn.Module,
    state_dict: Mapping,
    checkpoint: Mapping | None = None,
    new_upsamplers: bool = False,
) -> None:
    """Refuse a state_dict that does not match the model.

    Args:
        model (nn.Module): The model to load the weights into.
        state_dict (Mapping): The weights, with or without the prefix ``module.``.
        checkpoint (Mapping, optional): Their checkpoint, for the message.
        new_upsamplers (bool): Whether all weights of a neck's upsamplers may be
            missing. Defaults to False.

    Raises:
        ValueError: If keys are missing, unexpected, or of another shape.
    """
    own = model.state_dict()
    given = own_keys(state_dict)
    new: tuple[str, ...] = ()
    if new_upsamplers:
        # of a trained upsampler no part may be new: it would not fit the others
        prefixes = upsampler_prefixes(model)
        new = tuple(p for p in prefixes if not any(k.startswith(p) for k in given))
    problems = {}
    for title, keys in (
        ('missing', [k for k in own if not (k in given or k.startswith(new))]),
        ('unexpected', [k for k in given if k not in own]),
        (
            'of another shape',
            [
                f'{k} {tuple(given[k].shape)} instead of {tuple(own[k].shape)}'
                for k in own
                if k in given and own[k].shape != given[k].shape
            ],
        ),
    ):
        if keys:
            shown = ', '.join(keys[:5]) + (', ...' if len(keys) > 5 else '')
            problems[title] = f'{len(keys)} {title}: {shown}'
    if problems:
        others = ''
        if new_upsamplers and [*problems] == ['of another shape']:
            others = (
                ', or --cfg-options load_from=CHECKPOINT for one of other classes, '
                'which loads what fits'
            )
        raise ValueError(
            'the checkpoint is of another architecture than the config, use the '
            f'config it was trained with{_trained_with(checkpoint)}{others}; '
            'keys ' + '; '.join(problems.values())
        )


def _trained_with(checkpoint: Mapping | None) -> str:
    """The upsampler that a checkpoint says it was trained with."""
    text = ((checkpoint or {}).get('meta') or {}).get('cfg')
    # the neck's comes first: heads stand behind it
    found = re.search(r"upsample_cfg=dict\([^()]*\btype=\s*'([^']+)'", str(text))
    if not found:
        return ''
    name = found.group(1)
    return (
        f' (its upsampler is {name!r}: the config of that run, or --upsampler {name})'
    )


@HOOKS.register_module()
class CheckpointGuardHook(Hook):
    """Refuse to test or to resume from another architecture's checkpoint.

    mmengine loads what fits and warns about the rest, which gives a low AP
    instead of an error.

    Args:
        new_upsamplers (bool): As in :func:`check_state_dict`. Defaults to False.
    """

    # EMAHook and others load from what this leaves
    priority = 'VERY_HIGH'

    def __init__(self, new_upsamplers: bool = False) -> None:
        self.new_upsamplers = new_upsamplers

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Compare the keys before they are loaded."""
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        weights = read_weights(checkpoint, runner._load_from)
        check_state_dict(model, weights, checkpoint, self.new_upsamplers)
        # EMAHook takes no bare state_dict and no prefix
        if weights.keys() != checkpoint.get('state_dict', {}).keys():
            checkpoint['state_dict'] = weights
        split = 'train' if runner._resume or self.new_upsamplers else 'test'
        _check_class_order(runner.cfg, split, checkpoint.get('meta') or {})
        if runner._resume:
            _check_resumable(runner._load_from, checkpoint)
            _keep_to_own_folder(runner, checkpoint)
            _tell_kept_settings(runner, checkpoint)


def _check_class_order(cfg: Config, split: str, meta: Mapping) -> None:
    """Check that checkpoint and data order their classes alike."""
    trained = [*map(str, (meta.get('dataset_meta') or {}).get('classes') or ())]
    dataset = (cfg.get(f'{split}_dataloader') or {}).get('dataset') or {}
    for source in iter_datasets(dataset, f'{split}_dataloader.dataset'):
        if found := first_label_mismatch(source.classes, trained):
            name, own, expected = found
            raise ValueError(
                f'the checkpoint was trained with the class {name!r} in place '
                f'{expected}, and {source.key} has it in place {own}, so detections '
                f'would be of other classes; set its metainfo.classes to '
                f'{tuple(trained)}'
            )


def _check_resumable(name: str, checkpoint: Mapping) -> None:
    """Refuse to resume from a checkpoint without optimizer state."""
    missing = [key for key in ('meta', 'message_hub') if not checkpoint.get(key)]
    if missing:
        raise ValueError(
            f'--resume cannot go on from {name}, which has no {", ".join(missing)}; to '
            f'begin with its weights give --cfg-options load_from={name}, without '
            f'--resume'
        )


def _keep_to_own_folder(runner, checkpoint: Mapping) -> None:
    """Keep a resumed training from removing files of another folder.

    Where a checkpoint is better than the best before, mmengine removes that one, by a
    path that it reads from the checkpoint: in a copied folder that of the original.
    """
    info = checkpoint['message_hub'].get('runtime_info') or {}
    out_dir = next(
        (h.out_dir for h in runner.hooks if isinstance(h, CheckpointHook)), None
    )
    folder = runner.work_dir
    if out_dir:
        folder = os.path.join(out_dir, os.path.basename(folder.rstrip(os.sep)))
    for key in [key for key in info if key.startswith('best_ckpt')]:
        name = os.path.basename(str(info[key]))
        info[key] = os.path.join(folder, name) if name.startswith('best_') else None
    ids = info.get('keep_ckpt_ids') or []
    if not all(isinstance(number, int) for number in ids):
        del info['keep_ckpt_ids']


def _tell_kept_settings(runner, checkpoint: dict) -> None:
    """Log the optimizer settings that a resumed run takes from its checkpoint."""
    optimizer = getattr(runner.optim_wrapper, 'optimizer', None)
    saved = checkpoint.get('optimizer') or {}
    if optimizer is None or 'param_groups' not in saved:
        return
    kept = {}
    for own, old in zip(optimizer.param_groups, saved['param_groups']):
        for name in own.keys() & old.keys() - {'params', 'lr'}:
            if own[name] != old[name]:
                # a scheduler starts from initial_lr
                kept[name.replace('initial_lr', 'lr')] = old[name], own[name]
    if kept:
        told = ', '.join(
            f'{k} {old} instead of {own}' for k, (old, own) in kept.items()
        )
        runner.logger.warning(
            f'--resume keeps the optimizer settings of the checkpoint: {told}. To '
            f'train from its weights with new settings, leave --resume out and give '
            f'--cfg-options load_from=CHECKPOINT'
        )


def read_weights(checkpoint: object, name: object) -> dict:
    """The weights of a checkpoint, by the keys of :func:`own_keys`.

    Args:
        checkpoint (object): A state_dict, or what training writes.
        name (object): Where it is from, for the message.

    Returns:
        dict: The weights.

    Raises:
        ValueError: If there are none.
    """
    weights = checkpoint
    if isinstance(checkpoint, Mapping):
        weights = checkpoint.get('state_dict', checkpoint)
    if not isinstance(weights, Mapping) or not all(isinstance(k, str) for k in weights):
        raise ValueError(
            f'checkpoint {name} holds a {type(weights).__name__} without weights by '
            'name; it must be a state_dict, or what training writes'
        )
    return own_keys(weights)


def own_keys(state_dict: Mapping) -> dict:
    """The weights without the prefix ``module.`` of a wrapped model.

    The averaged weights of MMDetection 2, named ``ema_...``, are left out too.
    """
    own = {k.removeprefix('module.'): v for k, v in state_dict.items()}
    averages = {f'ema_{key.replace(".", "_")}' for key in own}
    return {k: v for k, v in own.items() if k not in averages}
