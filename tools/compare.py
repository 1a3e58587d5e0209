"""Train, test and compare: python tools/compare.py CONFIG... [--seeds 0]."""

import argparse
import sys
import time
from pathlib import Path

from dlu_mmdet.analysis import comparison


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Train and test several configs, and print one table. '
        'Interrupted, the same command goes on.'
    )
    parser.add_argument('configs', nargs='+', metavar='CONFIG')
    parser.add_argument(
        '--seeds',
        nargs='+',
        type=int,
        default=[0],
        help='every config is trained with each',
    )
    parser.add_argument(
        '--work-dir',
        default='work_dirs/comparison',
        help='folder of the runs and of comparison.md',
    )
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    runs = comparison.plan(args.configs, args.seeds, args.work_dir)
    failed = []
    for number, run in enumerate(runs, 1):
        label = f'[{number}/{len(runs)} {run.name} seed {run.seed}]'
        start = time.monotonic()
        try:
            for line in comparison.execute(run, Path(__file__).parent):
                print(label, line, flush=True)
        except RuntimeError as error:
            failed.append(run)
            print(label, error, file=sys.stderr, flush=True)
        else:
            print(f'{label} done in {time.monotonic() - start:.0f} s', flush=True)

    rows = comparison.results(runs)
    if rows:
        table = comparison.to_markdown(rows)
        best = max(rows, key=lambda row: row['AP'])
        Path(args.work_dir, 'comparison.md').write_text(table + '\n')
        print(f'\n{table}\n\nbest AP: {best["name"]}, {best["AP"]:.3f}')
    if failed:
        print(f'failed: {", ".join(run.name for run in failed)}', file=sys.stderr)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
