"""Check an upsampler of your own."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .. import register_all_modules
from . import run
from .arguments import new_parser, upsampler_argument


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(
        'check',
        'Check what necks and tools ask of an upsampler: sizes, gradients, '
        'mixed precision, empty batches, memory layouts, checkpoints, copies, export. '
        'Each line is ok, or says what is wrong and what to do; the exit status is 1 '
        'if anything is.',
    )
    parser.add_argument(
        'upsampler',
        type=upsampler_argument,
        metavar='NAME[:KEY=VALUE,...]',
        help='a class in a file, as in path/to/mine.py:Mine or mine.py:Mine:key=value, '
        'mine for ./mine.py, or a registered name',
    )
    parser.add_argument('--channels', type=int, default=32, help='of the features')
    parser.add_argument(
        '--guide-channels',
        type=int,
        help='of the guide, for a guided upsampler (default: those of the features)',
    )
    args = parser.parse_args(argv)
    for flag, value in (
        ('--channels', args.channels),
        ('--guide-channels', args.guide_channels),
    ):
        if value is not None and value < 1:
            raise ValueError(f'{flag} must be at least 1, got {value}')
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Check as the arguments say."""
    args = parse_args(argv)
    register_all_modules()
    from ..upsamplers import resolve_upsampler
    from ..upsamplers.contract import check_upsampler

    cfg = resolve_upsampler(args.upsampler)
    failed = number = 0
    for title, problem in check_upsampler(cfg, args.channels, args.guide_channels):
        print(f'{title:15}', f'FAILED: {problem}' if problem else 'ok', flush=True)
        number += 1
        failed += problem is not None
    print(f'{cfg["type"]}: {number - failed} of {number} checks passed')
    return int(failed > 0)


if __name__ == '__main__':
    run('check')
