"""Is an upgraded detector better than its own continued training?

    python benchmarks/upgrade_study.py CONFIG CHECKPOINT --work-dir D -- --seeds 0 1 2

CHECKPOINT is a detector that was trained to its end with its neck's interpolation. It
is trained on for the same number of epochs: unchanged, with another interpolation, and
with each upsampler, from the paper's start and from the interpolation, all weights or
the upsamplers alone. What follows ``--`` goes to ``dlu_mmdet compare``, which trains,
tests and compares the runs and, interrupted, goes on with the same command.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

from mmengine.config import Config

from dlu_mmdet import register_all_modules
from dlu_mmdet.cli import compare
from dlu_mmdet.config import merge_options, read_config, set_upsampler
from dlu_mmdet.engine import freeze_all_but
from dlu_mmdet.necks import upsampler_name

UPSAMPLERS = ('dlu', 'carafe', 'deconv', 'resize_conv')
TRAINED = ('all', 'alone')
SCHEDULE = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(
        type='CosineAnnealingLR', eta_min=0, by_epoch=True, convert_to_iter_based=True
    ),
]


def own_upsampler(config: str) -> str | None:
    """The upsampler of a config's neck; None for a neck of MMDetection."""
    return upsampler_name(read_config(config).model.neck)


def write_configs(args: argparse.Namespace) -> list[Path]:
    """A config for each way to go on, named after it."""
    folder = Path(args.work_dir, 'configs')
    folder.mkdir(parents=True, exist_ok=True)
    ways = [('unchanged', None, False)]
    # what any change gains
    other = 'nearest' if own_upsampler(args.config) == 'bilinear' else 'bilinear'
    ways.append((other, dict(type=other), False))
    for name, start, trained in product(args.upsamplers, args.starts, args.trained):
        upsampler = dict(type=name, start=start)
        ways.append((f'{name}-{start}-{trained}', upsampler, trained == 'alone'))
    paths = []
    for label, upsampler, alone in ways:
        cfg = Config(read_config(args.config).to_dict())
        if upsampler:
            set_upsampler(cfg, upsampler)
        cfg.load_from = str(Path(args.checkpoint).absolute())
        merge_options(
            cfg,
            {
                'train_cfg.max_epochs': args.epochs,
                'train_cfg.val_interval': args.epochs,
                'optim_wrapper.optimizer.lr': args.lr_alone if alone else args.lr,
            },
        )
        cfg.param_scheduler = SCHEDULE
        if alone:
            freeze_all_but(cfg, 'upsamplers')
        cfg.dump(path := folder / f'{label}.py')
        paths.append(path)
    return paths


def main() -> None:
    """Write the configs and compare them."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('--work-dir', required=True)
    parser.add_argument('--epochs', type=int, default=1)
    parser.add_argument('--lr', type=float, default=2e-4)
    parser.add_argument(
        '--lr-alone', type=float, default=1e-3, help='where only the upsamplers train'
    )
    parser.add_argument('--upsamplers', nargs='*', default=UPSAMPLERS)
    for flag, choices in (('--starts', ('paper', 'neck')), ('--trained', TRAINED)):
        parser.add_argument(flag, nargs='+', choices=choices, default=choices)
    args, others = parser.parse_known_args()
    register_all_modules()
    paths = [str(path) for path in write_configs(args)]
    others = [word for word in others if word != '--']
    runs = str(Path(args.work_dir, 'runs'))
    unchanged = own_upsampler(args.config) or 'unchanged'
    flags = ['--work-dir', runs, '--baseline', unchanged]
    compare.main([*paths, *flags, *others])


if __name__ == '__main__':
    main()
