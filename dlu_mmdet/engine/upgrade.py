"""Give a trained detector another upsampler, as it detects today."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

import mmengine
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.model import revert_sync_batchnorm
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from ..config.read import load_config, set_upsampler
from ..necks import upsampler_prefixes
from ..upsamplers import resolve_upsampler, upsampler_class
from ..utils.files import atomic_write, check_writable
from .apis import load_detector
from .checkpoint_guard import check_state_dict
from .runner import build_runner


def upgrade(
    config: str | os.PathLike,
    checkpoint: str | os.PathLike,
    upsampler: dict,
    out: str | os.PathLike,
    cfg_options: Mapping | None = None,
    num_images: int = 8,
    average_precision: bool = True,
    **data: Any,
) -> None:
    """Write a trained detector with another upsampler, and compare the two.

    An upsampler that takes ``start`` begins with ``start='neck'``, next to the
    interpolation that it replaces, unless ``upsampler`` says otherwise. The difference
    of the necks' outputs on images of the test set is printed, then the metrics of both
    detectors; neither where the test set is missing or does not fit the detector.

    Args:
        config (str | PathLike): Of the trained detector, see
            :func:`~dlu_mmdet.config.read.read_config`.
        checkpoint (str | PathLike): Its checkpoint.
        upsampler (dict): See :func:`dlu_mmdet.upsamplers.build_upsampler`.
        out (str | PathLike): The checkpoint to write, ``.pth``, without the state of an
            optimizer. The config is written beside it as ``.py``.
        cfg_options (Mapping, optional): Settings to override in the config.
        num_images (int): Images on which outputs are compared. Defaults to 8.
        average_precision (bool): Whether both are tested. Defaults to True.
        **data: See :func:`~dlu_mmdet.config.custom_data.prepare_data`.

    Raises:
        FileNotFoundError: If the config or the checkpoint does not exist.
        TypeError: If the upsampler is no class of modules.
        ValueError: If the checkpoint is of another architecture or has upsamplers, if
            the upsampler cannot hold its start, or if a file to write exists.
    """
    out = Path(out)
    files = config_file, _ = out.with_suffix('.py'), out
    if out.suffix != '.pth':
        raise ValueError(f'--out must end with .pth, got {out}')
    for file in files:
        if file.exists():
            raise ValueError(f'--out: {file} exists already; name another file')
    check_writable(out)
    if num_images < 1:
        raise ValueError(f'--num-images must be at least 1, got {num_images}')
    upsampler = resolve_upsampler(upsampler)
    if 'start' in signature(upsampler_class(upsampler)).parameters:
        upsampler = {'start': 'neck', **upsampler}
    cfg = load_config(config, cfg_options=cfg_options, **data)
    old = load_detector(cfg, checkpoint, get_device())
    new = with_new_upsamplers(old, upsampler)
    new_cfg = new.cfg.copy()
    for key in ('work_dir', 'launcher', 'load_from', 'resume'):  # of another run
        new_cfg.pop(key, None)
    meta = dict(
        cfg=new_cfg.pretty_text,
        dataset_meta=old.dataset_meta,
        mmengine_version=mmengine.__version__,
        epoch=0,
        iter=0,
    )
    # both or none
    with atomic_write(config_file) as new_config, atomic_write(out) as new_checkpoint:
        new_config.write_text(new_cfg.pretty_text, encoding='utf-8')
        torch.save(dict(meta=meta, state_dict=new.state_dict()), new_checkpoint)
    prefixes = upsampler_prefixes(new)
    added = sum(p.numel() for k, p in new.named_parameters() if k.startswith(prefixes))
    print(f'written: {config_file} and {out}; {added:,} parameters are new')
    if not cfg.get('test_dataloader'):
        print('not compared on images: the config has no test_dataloader')
        return
    try:
        runner = build_runner(cfg, 'test', checkpoint)
    except (FileNotFoundError, ValueError) as error:
        print(f'not compared on images: {error}')
        return
    runner._has_loaded = True
    share, count = compare_necks(old, new, runner, num_images)
    print(f"the necks' outputs differ by {share:.2%} (RMS) on {count} images")
    if average_precision:
        _print_metrics(runner, old, new)


def with_new_upsamplers(detector: nn.Module, upsampler: dict) -> nn.Module:
    """Copy a detector into one with another upsampler.

    Args:
        detector (nn.Module): From :func:`~dlu_mmdet.engine.load_detector`.
        upsampler (dict): See :func:`dlu_mmdet.upsamplers.build_upsampler`.

    Returns:
        nn.Module: In eval mode on the same device, with ``cfg`` and ``dataset_meta``.
        The weights of its upsamplers are new, the same in every call.

    Raises:
        TypeError: As :func:`~dlu_mmdet.config.read.set_upsampler`.
        ValueError: As :func:`~dlu_mmdet.config.read.set_upsampler`, or if the detector
            has upsamplers that learned.
    """
    weights = detector.state_dict()
    # those of mmdet's FPN_CARAFE, too
    if any('upsample_modules.' in key for key in weights):
        raise ValueError(
            'the checkpoint holds upsamplers already, whose weights would be lost: '
            'name the config and the checkpoint of a detector whose neck interpolates'
        )
    cfg = Config(detector.cfg.to_dict())
    set_upsampler(cfg, upsampler)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        new = revert_sync_batchnorm(MODELS.build(cfg.model))
        # each of upsample_modules, as its neck starts it
        for prefix in upsampler_prefixes(new):
            for module in new.get_submodule(prefix.rstrip('.')).children():
                if hasattr(module, 'init_weights'):
                    module.init_weights()
    check_state_dict(new, weights, new_upsamplers=True)
    new.load_state_dict(weights, strict=False)
    new.cfg, new.dataset_meta = cfg, detector.dataset_meta
    return new.to(next(detector.parameters()).device).eval()


def compare_necks(
    old: nn.Module, new: nn.Module, runner: Runner, num_images: int
) -> tuple[float, int]:
    """Compare what two detectors' necks give on images of the test set.

    Args:
        old (nn.Module): A detector.
        new (nn.Module): One with the same necks, which have upsamplers.
        runner (Runner): With the test set.
        num_images (int): At least so many, if there are.

    Returns:
        tuple[float, int]: Root of the mean square difference, relative to the old
        outputs' root mean square, and the number of images.
    """
    necks = [p[: -len('.upsample_modules.')] for p in upsampler_prefixes(new)]
    errors, squares, count = [], [], 0
    for batch in runner.test_loop.dataloader:
        outputs = []
        for model in (old, new):
            with torch.no_grad(), _outputs(model, necks) as found:
                model.test_step(batch)
            outputs.append(found)
        for before, after in zip(*outputs):
            errors.append((before - after).double().square().sum().item())
            squares.append(before.double().square().sum().item())
        count += len(batch['inputs'])
        if count >= num_images:
            break
    return (sum(errors) / max(sum(squares), 1e-12)) ** 0.5, count


@contextmanager
def _outputs(model: nn.Module, names: Sequence[str]) -> Iterator[list[Tensor]]:
    """The maps that these modules of a model give meanwhile."""
    found: list[Tensor] = []

    def keep(module: nn.Module, args: object, out: Any) -> None:
        found.extend(each for each in tree_flatten(out)[0] if isinstance(each, Tensor))

    handles = [model.get_submodule(n).register_forward_hook(keep) for n in names]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _print_metrics(runner: Runner, old: nn.Module, new: nn.Module) -> None:
    """Test both, and print the metrics of both in a line each."""
    results = []
    for model in (old, new):
        runner.model = model
        results.append(runner.test())
    # without any detection mmdet gives no metric
    shown = [
        {k: f'{v:.3f}' for k, v in each.items() if _is_number(v)} for each in results
    ]
    if not any(shown):
        print(
            'metrics: none, the detectors find nothing on the test set, or its '
            'evaluator only writes results'
        )
    for key in {**shown[0], **shown[1]}:
        before, after = (each.get(key, 'none') for each in shown)
        print(f'{key}: {before} before, {after} after')


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float))
