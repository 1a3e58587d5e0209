"""Explain detections by class activation maps."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from .. import register_all_modules
from ..explain.options import (
    CURVES_OUT,
    MEASURES,
    METHODS,
    NUM_DETECTIONS,
    OUT,
    STEPS,
    Options,
)
from . import run
from .arguments import add_cfg_options, add_upsampler, new_parser

# as every function has them
DEFAULTS = Options()


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(
        'explain',
        'Explain detections by class activation maps, and measure how far to trust '
        'them.',
    )
    parser.add_argument('config', help='path of the config')
    parser.add_argument('checkpoint', help='path of the checkpoint')
    parser.add_argument(
        'images',
        nargs='*',
        metavar='IMAGE',
        help="images to picture; with none, --measures are averaged over the config's "
        'test set and printed as a table',
    )
    parser.add_argument(
        '--also',
        nargs=2,
        action='append',
        default=[],
        metavar=('CONFIG', 'CHECKPOINT'),
        help='another detector: one more row for the same object',
    )
    parser.add_argument(
        '--method',
        nargs='+',
        choices=METHODS,
        default=DEFAULTS.methods,
        help='one column each',
    )
    parser.add_argument(
        '--layer',
        help='name of the layer to explain, e.g. backbone.layer3; {level} in it stands '
        'for the pyramid level that scored the detection, from 0; defaults to the '
        'stage of the backbone under that level',
    )
    parser.add_argument(
        '--target',
        help='which detection of an IMAGE: det:N, the one with the N-th best score, '
        'from 0, or class:NAME, the best one of a class (default: det:0)',
    )
    parser.add_argument(
        '--score-thr',
        type=float,
        default=DEFAULTS.score_thr,
        help='leave out detections with a lower score',
    )
    parser.add_argument(
        '--num-detections',
        type=int,
        help='how many detections of the test set to average over (default: '
        f'{NUM_DETECTIONS})',
    )
    parser.add_argument(
        '--measures',
        nargs='+',
        choices=MEASURES,
        help='what to average over the test set: the axioms, the pointing game '
        "(the map's share inside the object) and the deletion and insertion curves, "
        'which take minutes (default: axioms)',
    )
    parser.add_argument(
        '--steps',
        type=int,
        help=f'how many altered images make a curve, at least 2 (default: {STEPS})',
    )
    parser.add_argument(
        '--curves-out',
        help=f'the picture of the curves, a .png file (default: {CURVES_OUT})',
    )
    parser.add_argument(
        '--out',
        help=f'the picture, a .png file (default: {OUT}), or without '
        'an IMAGE the table, a .md or .csv file (default: printed only)',
    )
    parser.add_argument(
        '--batch-size',
        type=int,
        default=DEFAULTS.batch_size,
        help='channels to remove, or altered images to run, at once',
    )
    parser.add_argument('--device', default=DEFAULTS.device, help='e.g. cuda:0')
    add_cfg_options(parser)
    add_upsampler(parser)
    # so that an IMAGE may come after an option
    args = parser.parse_intermixed_args(argv)
    if not 0 <= args.score_thr <= 1:
        raise ValueError(f'--score-thr must be in [0, 1], got {args.score_thr}')
    check_choices(args)
    return args


def check_choices(args: argparse.Namespace) -> None:
    """Fill in what depends on whether there are images; refuse the rest."""
    if args.images:
        for flag, what in {
            'num_detections': 'how many to average over',
            'measures': 'what to average',
            'steps': "the curves'",
            'curves_out': 'the picture of the curves',
        }.items():
            if getattr(args, flag) is not None:
                raise ValueError(
                    f'--{flag.replace("_", "-")} is {what}, which is done without an '
                    'IMAGE; leave one of them out'
                )
        args.target = 'det:0' if args.target is None else args.target
        if not re.fullmatch(r'det:\d+|class:.+', args.target):
            raise ValueError(
                f'--target must be det:N or class:NAME, got {args.target!r}'
            )
        args.out = args.out or OUT
    else:
        if args.target is not None:
            raise ValueError(
                f'--target {args.target} chooses a detection of an IMAGE; give one, or '
                'leave it out for the average over the test set'
            )
        if args.num_detections is None:
            args.num_detections = NUM_DETECTIONS
        if args.num_detections < 1:
            raise ValueError(
                f'--num-detections must be at least 1, got {args.num_detections}'
            )
        args.measures = [m for m in MEASURES if m in (args.measures or ['axioms'])]
        check_curves(args)
    suffixes = ('.png',) if args.images else ('.md', '.csv')
    if args.out and (Path(args.out).suffix not in suffixes or Path(args.out).is_dir()):
        what = 'the picture is' if args.images else 'without an IMAGE the table is'
        raise ValueError(
            f'--out: {what} a {" or ".join(suffixes)} file, got {args.out}'
        )


def check_curves(args: argparse.Namespace) -> None:
    """Fill in the flags of the curves, or refuse them where there are none."""
    for flag in ('steps', 'curves_out'):
        if 'curves' not in args.measures and getattr(args, flag) is not None:
            raise ValueError(
                f'--{flag.replace("_", "-")} {getattr(args, flag)} is of the curves; '
                'add them with --measures curves'
            )
    if 'curves' in args.measures:
        args.steps = STEPS if args.steps is None else args.steps
        if args.steps < 2:
            raise ValueError(f'--steps must be at least 2, got {args.steps}')
        args.curves_out = args.curves_out or CURVES_OUT
        if Path(args.curves_out).suffix != '.png' or Path(args.curves_out).is_dir():
            raise ValueError(
                f'--curves-out: the picture is a .png file, got {args.curves_out}'
            )


def main(argv: Sequence[str] | None = None) -> None:
    """Explain as the arguments say."""
    args = parse_args(argv)
    register_all_modules()
    from ..engine import use_safe_loaders
    from ..explain.evaluate import explain_dataset, explain_images

    use_safe_loaders()
    models = [(args.config, args.checkpoint), *args.also]
    shared = dict(methods=args.method)
    for name in ('layer', 'score_thr', 'batch_size', 'device', 'cfg_options'):
        shared[name] = getattr(args, name)
    shared['upsampler'] = args.upsampler
    if args.images:
        explain_images(models, args.images, args.out, target=args.target, **shared)
        return
    if 'curves' in args.measures:
        shared.update(steps=args.steps, curves_out=args.curves_out)
    explain_dataset(
        models,
        args.out,
        measures=args.measures,
        num_detections=args.num_detections,
        **shared,
    )


if __name__ == '__main__':
    run('explain')
