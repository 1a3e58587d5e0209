"""Draw detections, kernels and feature maps of detectors."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .. import register_all_modules
from . import run
from .arguments import (
    HelpFormatter,
    add_cfg_options,
    add_traceback,
    add_upsampler,
    new_parser,
)


class _PairModels(argparse.Action):
    """Turn CONFIG CHECKPOINT CONFIG CHECKPOINT ... into a list of pairs.

    The folder of a run stands for its config and, as None, its last checkpoint.
    """

    def __call__(self, parser, namespace, values, option_string=None):
        namespace.models, left = [], list(values)
        while left:
            first = left.pop(0)
            if Path(first).is_dir():
                namespace.models.append((str(Path(first).resolve()) + '.py', None))
            elif left:
                namespace.models.append((first, left.pop(0)))
            else:
                parser.error(
                    f'give a checkpoint after each config, got {len(values)} paths: '
                    + ' '.join(values)
                )


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    shared = argparse.ArgumentParser(add_help=False)
    add_traceback(shared)
    shared.add_argument(
        'models',
        nargs='+',
        action=_PairModels,
        metavar='CONFIG CHECKPOINT',
        help='one or more detectors, each a config and its checkpoint, or the folder '
        'of a run of a comparison; images and ground truth are those of the first '
        "config's test_dataloader",
    )
    which = shared.add_mutually_exclusive_group()
    which.add_argument(
        '--num-images',
        type=int,
        help='how many images, spread evenly over those with objects (default: 4 for '
        'detections, else 1)',
    )
    which.add_argument(
        '--image-ids', nargs='+', metavar='ID', help='ids of images to show instead'
    )
    which.add_argument(
        '--images',
        nargs='+',
        metavar='FILE',
        help='image files to show instead; they have no ground truth',
    )
    shared.add_argument(
        '--out',
        metavar='PICTURE.png|FOLDER',
        help='one PNG, or a folder for PNGs and a page index.html that holds all '
        'pictures of the folder (default: work_dirs/COMMAND.png)',
    )
    shared.add_argument('--device', default='cpu', help='e.g. cuda:0')
    add_cfg_options(shared)
    add_upsampler(shared)

    parser = new_parser('visualize', 'Picture what detectors do.')
    commands = parser.add_subparsers(required=True, dest='command', metavar='COMMAND')
    judged = argparse.ArgumentParser(add_help=False)
    judged.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        help='leave out detections with a lower score',
    )
    judged.add_argument(
        '--iou-thr',
        type=float,
        default=0.5,
        help='IoU from which an object counts as found',
    )
    leveled = argparse.ArgumentParser(add_help=False)
    leveled.add_argument(
        '--level',
        help='level that is upsampled to, e.g. P3 (default: the finest, mostly P2)',
    )
    command = commands.add_parser(
        'detections',
        parents=[shared, judged],
        formatter_class=HelpFormatter,
        help='true positives, false positives and false negatives, a column a detector',
    )
    command.add_argument(
        '--only-differences',
        action='store_true',
        help='show the images of the whole data set on which two detectors disagree '
        'most: one finds objects that the other does not',
    )
    command = commands.add_parser(
        'kernels',
        parents=[shared, leveled],
        formatter_class=HelpFormatter,
        help='kernels of upsamplers; source kernels and offsets of DLU, and where '
        'DySample samples',
    )
    command.add_argument(
        '--positions',
        nargs='+',
        type=_position,
        metavar='X,Y',
        help="columns and rows of that level's map (default: where the first "
        "detector's kernels for one source pixel differ most)",
    )
    command.add_argument(
        '--at',
        type=_position,
        metavar='X,Y',
        help='column and row of a pixel of the image instead',
    )
    command.add_argument(
        '--num-positions',
        type=int,
        default=3,
        help='how many, without --positions',
    )
    command.add_argument(
        '--group',
        type=int,
        default=0,
        help='channel group, where the upsampler has several',
    )
    command = commands.add_parser(
        'features',
        parents=[shared],
        formatter_class=HelpFormatter,
        help='the maps P2 to P5 of every detector, on one color scale',
    )
    commands.add_parser(
        'upsampling',
        parents=[shared, judged, leveled],
        formatter_class=HelpFormatter,
        help='what every upsampler makes of a coarse map, and what its detector then '
        'finds',
    )
    args = parser.parse_args(argv)
    args.out = Path(args.out or f'work_dirs/{args.command}.png')
    if args.out.suffix not in ('', '.png') and not args.out.is_dir():
        parser.error(f'--out must be a .png file or a folder, got {args.out}')
    return args


def _position(text: str) -> tuple[int, int]:
    """Read X,Y."""
    try:
        x, y = map(int, text.split(','))
    except ValueError:
        raise argparse.ArgumentTypeError(f'a position is X,Y, got {text!r}') from None
    return x, y


def _last_checkpoint(config: str, checkpoint: str | None) -> tuple[str, str]:
    """A config and its checkpoint, which is the last of its run if it is None."""
    from ..engine import latest_checkpoint

    if checkpoint is None:
        folder = config[: -len('.py')]
        last = latest_checkpoint(Path(folder))
        if last is None or not Path(config).is_file():
            raise FileNotFoundError(
                f'{folder} is not the folder of a run, which has a checkpoint inside '
                f'and {config} beside it; give CONFIG CHECKPOINT instead'
            )
        checkpoint = str(last)
    return config, checkpoint


def main(argv: Sequence[str] | None = None) -> None:
    """Draw what the arguments say."""
    values = vars(parse_args(argv))
    register_all_modules()
    from ..engine import use_safe_loaders
    from ..visualization import show

    use_safe_loaders()
    del values['traceback']
    values['models'] = [_last_checkpoint(*pair) for pair in values['models']]
    getattr(show, f'show_{values.pop("command")}')(**values)


if __name__ == '__main__':
    run('visualize')
