"""Check an upsampler of your own: dlu_mmdet check mine.py:Mine [--channels 32]."""

from __future__ import annotations

import argparse
import sys


def parse_args() -> argparse.Namespace:
    from dlu_mmdet.engine import upsampler_argument

    parser = argparse.ArgumentParser(
        description='Check what necks and tools ask of an upsampler: sizes, gradients, '
        'mixed precision, empty batches, memory layouts, checkpoints, copies, export. '
        'Each line is ok, or says what is wrong and what to do; the exit status is 1 '
        'if anything is.'
    )
    parser.add_argument(
        'upsampler',
        type=upsampler_argument,
        metavar='NAME[:KEY=VALUE,...]',
        help='a class in a file, as in path/to/mine.py:Mine or mine.py:Mine:key=value, '
        'mine for ./mine.py, or a registered name',
    )
    parser.add_argument(
        '--channels',
        type=int,
        default=32,
        help='of the features (default: %(default)s)',
    )
    parser.add_argument(
        '--guide-channels',
        type=int,
        help='of the guide, for a guided upsampler (default: those of the features)',
    )
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    from dlu_mmdet.engine import print_anything
    from dlu_mmdet.upsamplers import resolve_upsampler
    from dlu_mmdet.upsamplers.contract import check_upsampler

    print_anything()
    for flag, value in (
        ('--channels', args.channels),
        ('--guide-channels', args.guide_channels),
    ):
        if value is not None and value < 1:
            raise ValueError(f'{flag} must be at least 1, got {value}')
    cfg = resolve_upsampler(args.upsampler)
    failed = number = 0
    for title, problem in check_upsampler(cfg, args.channels, args.guide_channels):
        print(f'{title:15}', f'FAILED: {problem}' if problem else 'ok', flush=True)
        number += 1
        failed += problem is not None
    print(f'{cfg["type"]}: {number - failed} of {number} checks passed')
    return int(failed > 0)


if __name__ == '__main__':
    sys.exit(main())
