"""Join the results of several data sets."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .. import register_all_modules
from . import run
from .arguments import add_metric, new_parser

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..comparison.cross_dataset import CrossDatasetResults
    from ..comparison.summary import Row


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser(
        'summarize',
        'Say on which data an upsampler is better, by how much, and '
        'whether the order is the same on all, from the result.json files of '
        'dlu_mmdet compare.',
    )
    parser.add_argument(
        'folders',
        nargs='+',
        type=Path,
        metavar='FOLDER',
        help='of one data set and detector each, which gives it its name: a --work-dir '
        'of compare, or copies of its result.json files under any names',
    )
    parser.add_argument(
        '--baseline',
        default='bilinear',
        help='the upsampler that others are compared with',
    )
    add_metric(parser, 'compare --metric writes the latter two into result.json')
    parser.add_argument(
        '--out',
        type=Path,
        help='folder for summary.md and summary.png (default: tables on the screen)',
    )
    parser.add_argument(
        '--costs',
        metavar='CONFIG',
        help='also measure parameters, FLOPs, latency and memory of every upsampler in '
        "this config's detector, for the one FOLDER; with --out its costs.png",
    )
    parser.add_argument(
        '--trust',
        action='store_true',
        help='with --costs: the files of upsamplers that results name are your own and '
        'may run',
    )
    return parser.parse_args(argv)


def measure(across: CrossDatasetResults, config: str, trust: bool = False) -> list[Row]:
    """Accuracy and costs on one data set, highest AP first."""
    from ..comparison.runs import Run
    from ..comparison.summary import Row, measure_costs
    from ..config import check_foreign, read_config, set_upsampler

    (name,) = across.sets
    accuracy = across.accuracy(name)
    planned = []
    for upsampler, (_, upsample_cfg) in accuracy.items():
        cfg = read_config(config)
        # what the config imports is registered now, and nothing else may run
        if not trust:
            try:
                source = f'result of {upsampler}'
                check_foreign(upsample_cfg, 'upsample_cfg', source)
            except ValueError as error:
                raise ValueError(
                    f'{error}; where it is your own, --trust runs it'
                ) from error
        set_upsampler(cfg, upsample_cfg)
        planned.append(Run(upsampler, config, upsampler, cfg, 0, Path()))
    costs = measure_costs(planned)
    return [
        Row(upsampler, dict(AP=ap), costs[upsampler])
        for upsampler, (ap, _) in accuracy.items()
    ]


def picture(figure: Figure, path: Path) -> None:
    """Write a figure, whole or not at all."""
    from ..comparison.runs import write

    buffer = io.BytesIO()
    figure.savefig(buffer, format='png')
    write(path, buffer.getvalue())


def main(argv: Sequence[str] | None = None) -> int:
    """Summarize as the arguments say."""
    args = parse_args(argv)
    register_all_modules()
    from ..comparison.cross_dataset import CrossDatasetResults, plot, read_results
    from ..comparison.report import plot_accuracy
    from ..comparison.runs import write
    from ..comparison.summary import cost_table
    from ..engine import use_safe_loaders
    from ..evaluation.average_precision import KINDS_OF_AP
    from ..utils.tables import to_markdown

    use_safe_loaders()
    names = [folder.resolve().name for folder in args.folders]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(
            f'two folders are called {", ".join(repeated)}; the name of a folder is '
            f'that of its data set, rename one'
        )
    sets = {
        name: read_results(folder, args.metric)
        for name, folder in zip(names, args.folders)
    }
    if args.costs and len(sets) > 1:
        raise ValueError(
            f'--costs takes one FOLDER, whose detector CONFIG is, got {len(sets)}; '
            f'give each its own command'
        )
    if args.trust and not args.costs:
        raise ValueError('--trust is for --costs; leave it out')
    ap = KINDS_OF_AP[args.metric]
    across = CrossDatasetResults(sets, args.baseline, ap)
    text = across.markdown()
    measured = measure(across, args.costs, args.trust) if args.costs else None
    if measured:
        head, *body = cost_table(measured)
        text += f'\n\n{to_markdown(head, body)}'
    print(text)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        write(args.out / 'summary.md', text + '\n')
        picture(plot(across), args.out / 'summary.png')
        if measured:
            title = f'{names[0]}: accuracy and cost'
            picture(plot_accuracy(measured, title, ap), args.out / 'costs.png')
        print(f'\nwritten: summary.md and pictures in {args.out}', file=sys.stderr)
    return 0


if __name__ == '__main__':
    run('summarize')
