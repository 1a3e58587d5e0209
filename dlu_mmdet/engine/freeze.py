"""Train the upsamplers or the neck of a trained detector alone."""

from __future__ import annotations

from collections.abc import Iterable

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from torch import nn

from ..config.read import add_import
from ..necks import upsampler_prefixes

#: What ``--freeze`` leaves to train.
PARTS = ('upsamplers', 'neck')


def freeze_all_but(cfg: Config, part: str) -> None:
    """Let a training change one part of its detector.

    Args:
        cfg (Config): Complete; its ``custom_hooks`` get a :class:`FreezeHook`.
        part (str): One of :data:`PARTS`.

    Raises:
        ValueError: If the part is unknown, or the training begins with new weights.
    """
    hook = dict(type='FreezeHook', all_but=part)
    FreezeHook(part)
    if not cfg.get('load_from'):
        raise ValueError(
            f'--freeze all-but-{part} keeps the weights that a training begins with: '
            f'name those of a trained detector with --load-from CHECKPOINT'
        )
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), hook]
    # for MMDetection's own tools, which read the dumped config
    add_import(cfg, 'dlu_mmdet')
    # frozen weights get no gradient, for which the other processes would wait
    cfg.find_unused_parameters = True
    if cfg.get('model_wrapper_cfg'):
        cfg.model_wrapper_cfg.find_unused_parameters = True


@HOOKS.register_module()
class FreezeHook(Hook):
    """Freeze a detector but for one part: weights, and statistics of batch norms.

    Args:
        all_but (str): The part that is trained: 'upsamplers', those of its necks, or
            'neck'.

    Raises:
        ValueError: If it is neither.
    """

    def __init__(self, all_but: str) -> None:
        if all_but not in PARTS:
            raise ValueError(
                f'all_but must be one of {", ".join(map(repr, PARTS))}, got {all_but!r}'
            )
        self.all_but = all_but
        self._norms: list[nn.Module] = []

    def before_train(self, runner) -> None:
        """Freeze the weights."""
        model = runner.model
        if getattr(model, 'find_unused_parameters', None) is False:
            raise ValueError(
                'FreezeHook in a distributed training needs '
                'find_unused_parameters=True in the config: the other processes would '
                'wait for the gradients of frozen weights'
            )
        if is_model_wrapper(model):
            model = model.module
        prefixes = _prefixes(model, self.all_but)
        trained = total = 0
        for name, weight in model.named_parameters():
            total += weight.numel()
            if name.startswith(prefixes):
                trained += weight.numel() * weight.requires_grad
            else:
                weight.requires_grad_(False)
        if not trained:
            raise ValueError(
                f'all_but={self.all_but!r} leaves nothing to train: '
                f'{type(model).__name__} has no weights there; name an upsampler that '
                f'learns, as with --upsampler dlu'
            )
        self._norms = [*_norms(model, prefixes)]
        runner.logger.info(f'{trained:,} of {total:,} parameters are trained')

    def before_train_iter(
        self, runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        """Freeze the statistics, which loops set to train."""
        for norm in self._norms:
            norm.eval()


def _prefixes(model: nn.Module, part: str) -> tuple[str, ...]:
    """What the names of a part's weights begin with."""
    if part == 'upsamplers':
        return upsampler_prefixes(model)
    names = [name for name, _ in model.named_modules()]
    return tuple(f'{name}.' for name in names if name.split('.')[-1] == 'neck')


def _norms(model: nn.Module, prefixes: tuple[str, ...]) -> Iterable[nn.Module]:
    """Norms with statistics of the batch outside of the trained part."""
    for name, module in model.named_modules():
        # mmcv's SyncBatchNorm derives from none of torch's norms
        has_statistics = getattr(module, 'running_mean', None) is not None
        if has_statistics and not name.startswith(prefixes):
            yield module
