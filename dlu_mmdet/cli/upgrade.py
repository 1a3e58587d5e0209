"""Put an upsampler into a trained detector that detects as before."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .. import register_all_modules
from . import run
from .arguments import (
    add_cfg_options,
    add_data,
    add_upsampler,
    data_values,
    new_parser,
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(
        'upgrade',
        'Write a trained detector with another upsampler, which starts at the '
        'interpolation that it replaces, and compare the two.',
    )
    parser.add_argument('config', help='path of the config, or mmdet::FOLDER/FILE.py')
    parser.add_argument('checkpoint', help='path of the checkpoint')
    parser.add_argument(
        '--out',
        required=True,
        metavar='FILE.pth',
        help='the checkpoint to write; its config is written beside it as FILE.py',
    )
    parser.add_argument(
        '--num-images',
        type=int,
        default=8,
        help='images of the test set on which the outputs are compared',
    )
    parser.add_argument(
        '--no-ap',
        action='store_true',
        help='do not test the two detectors, which takes long on a large set',
    )
    add_data(parser)
    add_cfg_options(parser)
    add_upsampler(parser, required=True)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Upgrade as the arguments say."""
    args = parse_args(argv)
    register_all_modules()
    from ..engine import upgrade, use_safe_loaders

    use_safe_loaders()
    upgrade(
        args.config,
        args.checkpoint,
        args.upsampler,
        args.out,
        cfg_options=args.cfg_options,
        num_images=args.num_images,
        average_precision=not args.no_ap,
        **data_values(args),
    )


if __name__ == '__main__':
    run('upgrade')
