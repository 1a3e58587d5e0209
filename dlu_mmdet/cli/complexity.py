"""Count parameters and FLOPs of every upsampler."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .. import register_all_modules
from . import run
from .arguments import new_parser, upsampler_argument


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(
        'complexity',
        'Parameters and FLOPs of every registered upsampler, counted and '
        'by closed form, and the claims of the DLU paper. Prints the tables and writes '
        'complexity.md, complexity.csv and complexity.png.',
    )
    parser.add_argument('--channels', type=int, default=256, help='in and out')
    parser.add_argument(
        '--scales', nargs='+', type=int, default=[2, 4, 8, 16], help='upsampling ratios'
    )
    parser.add_argument(
        '--upsamplers',
        nargs='+',
        type=upsampler_argument,
        default=[],
        metavar='NAME[:KEY=VALUE,...]',
        help='count these as well: with other arguments, as in dlu:up_kernel=3, or a '
        'class of your own, as in path/to/mine.py:Mine, or mine for ./mine.py',
    )
    parser.add_argument(
        '--out', default='work_dirs/complexity', help='folder of the files'
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Count as the arguments say."""
    args = parse_args(argv)
    register_all_modules()
    from ..evaluation import complexity

    rows = complexity.measure(args.scales, args.channels, more=args.upsamplers)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    text = complexity.report(rows)
    (out / 'complexity.md').write_text(text, encoding='utf-8')
    complexity.write_csv(rows, out / 'complexity.csv')
    complexity.plot(rows, out / 'complexity.png')
    print(text)
    print(f'files: {out}/complexity.md, complexity.csv, complexity.png')


if __name__ == '__main__':
    run('complexity')
