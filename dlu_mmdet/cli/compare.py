"""Train, test and compare upsamplers on a detector."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .. import register_all_modules
from . import run
from .arguments import (
    add_cfg_options,
    add_data,
    add_metric,
    add_training_arguments,
    data_values,
    new_parser,
    upsampler_argument,
)

# among --upsamplers: what the config has
OWN = 'own'


def key_and_value(text: str) -> tuple[str, str]:
    """An option of sbatch."""
    key, equals, value = text.partition('=')
    if not (key and equals and value):
        raise argparse.ArgumentTypeError(f'{text!r} is not KEY=VALUE')
    return key.lstrip('-'), value


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(
        'compare',
        'Train and test every config with every seed, and say which '
        'upsampler is better, by how much, and at what cost. Interrupted, the same '
        'command goes on; configs, upsamplers and seeds may be added to it.',
    )
    parser.add_argument(
        'configs',
        nargs='*',
        metavar='CONFIG',
        help='a file, or a name such as mmdet::yolox/yolox_s_8xb8-300e_coco.py',
    )
    parser.add_argument(
        '--upsamplers',
        nargs='+',
        type=lambda text: None if text == OWN else upsampler_argument(text),
        default=[None],
        metavar='NAME[:KEY=VALUE,...]',
        help="every CONFIG's neck, whatever the detector, with each of these, also a "
        'class of your own, as in path/to/mine.py:Mine, or mine for ./mine.py; '
        f'{OWN} stands for the config as it is (default: that alone)',
    )
    parser.add_argument(
        '--seeds',
        nargs='+',
        type=int,
        default=[0],
        help='every config is trained with each (default: 0)',
    )
    parser.add_argument(
        '--work-dir',
        default='work_dirs/comparison',
        help='folder of the runs and of comparison.{json,csv,md} and report.html',
    )
    parser.add_argument(
        '--baseline',
        help='what others are compared with: an upsampler, or a config file without '
        '.py where two configs have the same (default: bilinear, or the first)',
    )
    add_data(parser)
    add_cfg_options(parser)
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm'],
        default='none',
        help='pytorch: every run with torchrun; slurm: every run as a job of Slurm, on '
        'one node, which this command may be left alone with',
    )
    parser.add_argument(
        '--processes',
        type=int,
        help='of each run with a launcher, one a GPU (default: 8, with slurm 1)',
    )
    parser.add_argument(
        '--jobs',
        type=int,
        help='runs at a time, each with its share of GPUs and threads, or jobs in the '
        'queue of Slurm (default: 1, with slurm all)',
    )
    parser.add_argument(
        '--slurm',
        nargs='+',
        type=key_and_value,
        default=[],
        metavar='KEY=VALUE',
        help='options of sbatch for every job: time, in minutes, must be given; '
        'partition=P account=A mem=32G cpus_per_task=8; gpus_per_node is --processes '
        'where it is not given, and 0 asks for none',
    )
    add_training_arguments(parser)
    parser.add_argument(
        '--image-groups',
        '--resamples',  # the name of earlier versions
        type=int,
        default=200,
        help='number of groups of test images, at most: the intervals leave out one at '
        'a time (default: 200)',
    )
    add_metric(
        parser,
        'the last needs faster-coco-eval; the runs are the same for all three, so '
        '--report-only reports finished ones in another metric',
    )
    parser.add_argument(
        '--figure',
        metavar='FILE.pdf',
        help='the whole comparison in one figure for a column of a paper, or a slide; '
        '.pdf, .svg or .png',
    )
    parser.add_argument(
        '--report-only',
        action='store_true',
        help='train and test nothing: the report of what is finished, with any '
        'number of GPUs or none; a run whose result.json or matches.npz was removed '
        'is evaluated anew from its predictions.pkl; --data says where images and '
        'annotations are now, if they were moved',
    )
    parser.add_argument(
        '--join',
        nargs='+',
        metavar='DIR',
        help='instead of CONFIG: one report of the finished runs of several '
        'comparisons with equal data and flags, in --work-dir; --data says where '
        'their images and annotations are now, if they were moved',
    )
    parser.add_argument(
        '--trust',
        action='store_true',
        help='with --join: the configs of DIR are your own and may run, as any config '
        'does; needed where they import modules of yours (default: they are read as '
        'data)',
    )
    parser.add_argument(
        '--dry-run',
        action='store_true',
        help='time a few iterations, print what would run and for how long',
    )
    args = parser.parse_args(argv)
    if bool(args.configs) == bool(args.join):
        parser.error('give CONFIG..., or --join DIR... in its place')
    if args.trust and not args.join:
        parser.error('--trust is for --join; leave it out')
    if args.join:
        # the folders say what they hold
        taken = {'join', 'work_dir', 'baseline', 'image_groups', 'report_only', 'trust'}
        taken |= {'traceback', 'data', 'figure', 'metric'}
        unused = [
            f'--{key.replace("_", "-")}'
            for key, value in vars(args).items()
            if key not in taken
            and value != parser.get_default(key)
            and key != 'configs'
        ]
        if unused:
            parser.error(
                f'--join takes runs as they are; leave out {", ".join(unused)}'
            )
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Compare as the arguments say."""
    args = parse_args(argv)
    register_all_modules()
    from ..comparison.compare import compare, join

    if args.join:
        keys = ('image_groups', 'trust', 'data', 'figure', 'metric')
        values = {key: getattr(args, key) for key in keys}
        return join(args.join, args.work_dir, args.baseline, **values)
    names = ['configs', 'upsamplers', 'seeds', 'work_dir', 'baseline', 'cfg_options']
    names += ('launcher', 'processes', 'jobs', 'amp', 'auto_scale_lr', 'image_groups')
    names += ('report_only', 'dry_run', 'figure', 'metric')
    return compare(
        **{name: getattr(args, name) for name in names},
        slurm=dict(args.slurm),
        **data_values(args),
    )


if __name__ == '__main__':
    run('compare')
