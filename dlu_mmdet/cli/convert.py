"""Convert a data set of another format to COCO's."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .. import register_all_modules
from . import run
from .arguments import new_parser

# dlu_mmdet.datasets.formats.CONVERTIBLE
CONVERTIBLE = ('yolo', 'voc', 'labelme')


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(
        'convert',
        'Copy a folder of images with annotations of YOLO, Pascal VOC or labelme, with '
        'annotation files in COCO format.',
    )
    parser.add_argument('folder', help='images and annotations')
    parser.add_argument('--out', required=True, help='folder to make, in COCO format')
    parser.add_argument(
        '--format',
        default='auto',
        choices=['auto', *CONVERTIBLE],
        help='of FOLDER (default: %(default)s, by its files)',
    )
    parser.add_argument(
        '--val-fraction',
        type=float,
        metavar='SHARE',
        help='validate on this share of the images, for a FOLDER without a validation '
        'set, as in 0.2',
    )
    parser.add_argument(
        '--split-seed',
        type=int,
        metavar='SEED',
        help='seed of --val-fraction (default: 0)',
    )
    args = parser.parse_args(argv)
    if args.split_seed is not None and args.val_fraction is None:
        parser.error('--split-seed must have --val-fraction, as in 0.2')
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Convert as the arguments say."""
    args = parse_args(argv)
    register_all_modules()
    from ..datasets import formats
    from ..datasets.convert import convert

    lines = convert(
        args.folder, args.out, args.format, args.val_fraction, args.split_seed or 0
    )
    print('\n'.join(lines))
    train = ['dlu_mmdet', 'train', 'dlu_mmdet::_base_/faster-rcnn_r18_fpn_own-data.py']
    train += ['--data', args.out]
    if not Path(args.out, 'annotations', 'instances_val.json').exists():
        train += ['--val-fraction', '0.2']
    print(f'next: {formats.command(*train)}')


if __name__ == '__main__':
    run('convert')
