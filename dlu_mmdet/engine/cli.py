"""The flags that tools share: mmdet's."""

from __future__ import annotations

import argparse
import ast
import os
from pathlib import Path

from mmengine.config import Config, DictAction

from ..upsamplers import UPSAMPLERS
from .configs import config_stem, parse_upsampler, read_config, set_upsampler
from .options import merge_options
from .own_data import say, set_data, split_data
from .schedule import fit_schedule


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a config that is run: its folder, its data, its settings."""
    parser.add_argument(
        '--work-dir',
        help='folder of logs and checkpoints; '
        'defaults to work_dirs/ and the name of the config',
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
        help="images with COCO-format annotations in the place of the config's data: "
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


def data_arguments(args: argparse.Namespace, work_dir: str | os.PathLike) -> dict:
    """The arguments of :func:`set_data`; ``--val-fraction`` splits the file here.

    Args:
        args (Namespace): What :func:`add_data` added.
        work_dir (str | PathLike): Where the two parts are written.

    Returns:
        dict: Empty without ``--data``.

    Raises:
        FileNotFoundError: If a folder or a file does not exist.
        ValueError: If flags do not go together, or a value is wrong.
    """
    flags = ('train_json', 'val_json', 'val_fraction', 'split_seed')
    given = {key: getattr(args, key) for key in flags if getattr(args, key) is not None}
    names = {key: f'--{key.replace("_", "-")}' for key in given}
    if not args.data:
        if given:
            raise ValueError(
                f'{", ".join(names.values())} must have --data FOLDER, the folder of '
                f'the images'
            )
        return {}
    if 'val_fraction' not in given:
        if 'split_seed' in given:
            raise ValueError('--split-seed must have --val-fraction, as in 0.2')
        return dict(root=args.data, **given)
    if 'val_json' in given:
        raise ValueError(
            f'--val-fraction takes validation images from the training file, and '
            f'--val-json {args.val_json} names others; leave out one of them'
        )
    fraction, seed = given['val_fraction'], given.get('split_seed', 0)
    files = split_data(args.data, args.train_json, fraction, seed, work_dir)
    return dict(root=args.data, **files)


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


class OptionsAction(DictAction):
    """mmengine's action for ``--cfg-options``, which takes a dict as a value too.

    A dict is written as in Python, for keys that have a dot.
    """

    @staticmethod
    def _parse_iterable(val: str) -> object:
        """The value of one option."""
        if not val.strip().startswith('{'):
            return DictAction._parse_iterable(val)
        try:
            return ast.literal_eval(val.strip())
        except (ValueError, SyntaxError) as error:
            raise argparse.ArgumentError(
                None, f'--cfg-options: {val} is not a dict of plain values ({error})'
            ) from None


def add_upsampler(parser: argparse.ArgumentParser) -> None:
    """Add ``--upsampler``."""
    parser.add_argument(
        '--upsampler',
        type=upsampler_argument,
        metavar='NAME[:KEY=VALUE,...]',
        help="the upsampler in the neck of any detector's config, as in "
        'dlu:up_kernel=3; names: ' + ', '.join(sorted(UPSAMPLERS.module_dict)),
    )


def upsampler_argument(text: str) -> dict:
    """An upsampler for argparse, which hides what other errors say."""
    try:
        return parse_upsampler(text)
    except (ValueError, TypeError) as error:
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


def enable_amp(cfg: Config) -> None:
    """What ``--amp`` asks for."""
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.loss_scale = 'dynamic'


def load_config(args: argparse.Namespace, train: bool = False) -> Config:
    """Read the config and merge what the command line says.

    Args:
        args (Namespace): ``config`` and what :func:`add_config_arguments`
            added.
        train (bool): Whether it is trained, so that a schedule that follows the
            number of images is set. Defaults to False.

    Returns:
        Config: With ``launcher`` and ``work_dir`` set.

    Raises:
        FileNotFoundError: If there is no such config, or no data where ``--data`` says.
        ValueError: If an option would change nothing.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = read_config(args.config)
    work_dir = (
        args.work_dir
        or args.cfg_options.get('work_dir')
        or cfg.get('work_dir')
        or str(Path('work_dirs', config_stem(args.config)))
    )
    if data := data_arguments(args, work_dir):
        set_data(cfg, **data)
    if args.upsampler:
        set_upsampler(cfg, args.upsampler)
    if train and (length := fit_schedule(cfg, args.cfg_options)):
        say(length)
    merge_options(cfg, args.cfg_options)
    cfg.launcher = args.launcher
    cfg.work_dir = work_dir
    return cfg
