"""Arguments that commands share; their names are MMDetection's."""

from __future__ import annotations

import argparse
import os
from typing import Any

from .. import register_all_modules

#: The registered upsamplers, for --help, which does not import them.
UPSAMPLERS = (
    'bilinear',
    'carafe',
    'deconv',
    'dlu',
    'dysample',
    'fade',
    'freqfusion',
    'lda_aqu',
    'nearest',
    'pixel_shuffle',
    'resize_conv',
    'sapa',
)


class HelpFormatter(argparse.HelpFormatter):
    """Shows the default of every argument that has one and does not tell it itself."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ''
        empty = action.default in (None, False, argparse.SUPPRESS, [], {}, '')
        if empty or '(default' in text or not action.option_strings:
            return text
        shown = '%(default)s'
        if isinstance(action.default, (list, tuple)):
            shown = ' '.join(map(str, action.default)).replace('%', '%%')
        return f'{text} (default: {shown})'


def new_parser(command: str, description: str, **kwargs) -> argparse.ArgumentParser:
    """A parser of a command, with the flag ``--traceback``.

    Args:
        command (str): Its name, for the line of usage.
        description (str): What it does.
        **kwargs: Arguments of ArgumentParser.
    """
    parser = argparse.ArgumentParser(
        prog=f'dlu_mmdet {command}',
        description=description,
        formatter_class=HelpFormatter,
        **kwargs,
    )
    add_traceback(parser)
    return parser


def add_traceback(parser: argparse.ArgumentParser) -> None:
    """Add ``--traceback``, which :func:`dlu_mmdet.cli.run` reads."""
    parser.add_argument(
        '--traceback',
        action='store_true',
        help='after an error show where in the code it was raised; '
        'DLU_MMDET_TRACEBACK=1 does the same',
    )


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a config that is run: its folder, its data, its settings."""
    parser.add_argument(
        '--work-dir',
        help='folder of logs and checkpoints (default: work_dirs/ and the name of the '
        'config, with those of --upsampler and --data)',
    )
    add_data(parser)
    add_cfg_options(parser)
    add_upsampler(parser)
    parser.add_argument(
        '--launcher',
        default='none',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        help='job launcher',
    )
    # torch.distributed.launch passes it; torchrun sets the variable instead
    parser.add_argument(
        '--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS
    )


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add ``--data`` and the flags that name or split its annotation files."""
    parser.add_argument(
        '--data',
        metavar='FOLDER',
        help='train and test on your own images with COCO-format annotations: '
        'FOLDER/annotations/instances_{train,val}.json and FOLDER/{train,val}/, or '
        'alike; classes are taken from the former',
    )
    for split, what in (('train', 'training'), ('val', 'validation')):
        parser.add_argument(
            f'--{split}-json',
            metavar='FILE',
            help=f'annotation file of --data for {what}, where its name does not tell',
        )
    parser.add_argument(
        '--val-fraction',
        type=float,
        metavar='SHARE',
        help='split one annotation file of --data by image, about the same share of '
        'every class, as in 0.2; the two files are written into the work directory',
    )
    parser.add_argument(
        '--split-seed',
        type=int,
        metavar='SEED',
        help='seed of --val-fraction (default: 0)',
    )


def config_values(args: argparse.Namespace) -> dict[str, Any]:
    """What :func:`add_config_arguments` added, as ``config.load_config`` takes it.

    The rank that torch.distributed.launch passes becomes an environment variable.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    names = ('work_dir', 'cfg_options', 'upsampler', 'launcher')
    return {**{name: getattr(args, name) for name in names}, **data_values(args)}


def data_values(args: argparse.Namespace) -> dict[str, Any]:
    """What :func:`add_data` added, as arguments of :func:`prepare_data`."""
    names = ('data', 'train_json', 'val_json', 'val_fraction', 'split_seed')
    return {name: getattr(args, name) for name in names}


def add_metric(parser: argparse.ArgumentParser, note: str) -> None:
    """Add the metric that AP is of, with a note for --help."""
    parser.add_argument(
        '--metric',
        choices=['bbox', 'segm', 'boundary'],
        default='bbox',
        help=f'AP of boxes, of masks, or of the boundaries of masks; {note}',
    )


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options``."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=OptionsAction,
        default={},
        metavar='KEY=VALUE',
        help='override settings of the config, of every one where there are several, '
        'as in model.neck.upsample_cfg.type=carafe; a list is key="[a,b]", a dict '
        '"key={\'a.b\': 1}"',
    )


class OptionsAction(argparse.Action):
    """Reads ``--cfg-options``; see :func:`dlu_mmdet.config.parse_options`."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Add what was given to what was given before."""
        register_all_modules()
        from ..config.overrides import parse_options

        try:
            found = parse_options(values)
        except ValueError as error:
            parser.error(str(error))
        setattr(namespace, self.dest, {**getattr(namespace, self.dest), **found})


def add_upsampler(parser: argparse.ArgumentParser, required: bool = False) -> None:
    """Add ``--upsampler``."""
    parser.add_argument(
        '--upsampler',
        type=upsampler_argument,
        required=required,
        metavar='NAME[:KEY=VALUE,...]',
        help="the upsampler in the neck of any detector's config, as in "
        'dlu:up_kernel=3, or a class of your own, as in path/to/mine.py:Mine, or mine '
        'for ./mine.py; names: ' + ', '.join(UPSAMPLERS),
    )


def upsampler_argument(text: str) -> dict:
    """An upsampler for argparse, which hides what other errors say."""
    register_all_modules()
    from ..config.read import parse_upsampler

    try:
        return parse_upsampler(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--amp`` and ``--auto-scale-lr``."""
    parser.add_argument(
        '--amp', action='store_true', help='train in automatic mixed precision'
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate with the batch size',
    )


def size(text: str) -> tuple[int, int]:
    """HEIGHTxWIDTH for argparse."""
    try:
        height, width = map(int, text.lower().split('x'))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f'a size is HEIGHTxWIDTH, as 800x1344, got {text!r}'
        ) from None
    return height, width
