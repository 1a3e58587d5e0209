"""Train a detector."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .. import register_all_modules
from . import run
from .arguments import (
    add_config_arguments,
    add_training_arguments,
    config_values,
    new_parser,
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser('train', 'Train a detector and test it on the validation set.')
    parser.add_argument('config', help='path of the config, or mmdet::FOLDER/FILE.py')
    add_training_arguments(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='go on from this checkpoint or, without a path, '
        'from the last one in the work directory',
    )
    parser.add_argument(
        '--load-from',
        metavar='CHECKPOINT',
        help='begin with these weights; only those of the upsamplers may be missing',
    )
    parser.add_argument(
        '--freeze',
        type=lambda text: 'all-but-neck' if text == 'neck' else text,
        choices=['all-but-upsamplers', 'all-but-neck', 'none'],
        default='none',
        help='what to keep of the weights of --load-from, with the statistics of batch '
        'norms; neck is short for all-but-neck',
    )
    add_config_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Train as the arguments say."""
    args = parse_args(argv)
    register_all_modules()
    from torch.distributed.elastic.multiprocessing.errors import record

    # torchrun then ends with the error itself
    record(train)(args)


def train(args: argparse.Namespace) -> None:
    """Train with the arguments of :func:`parse_args`."""
    from ..config import enable_amp, load_config
    from ..engine import (
        build_runner,
        check_checkpoint,
        check_unoccupied,
        explain_peer_loss,
        freeze_all_but,
        next_commands,
        resume_latest,
        shutdown_process_group,
        use_safe_loaders,
    )

    use_safe_loaders()
    cfg = load_config(args.config, train=True, **config_values(args))
    if args.amp:
        enable_amp(cfg)
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise ValueError(
                f'--auto-scale-lr needs '
                f'auto_scale_lr.base_batch_size, which '
                f'{args.config} does not set'
            )
        cfg.auto_scale_lr.enable = True
    if args.load_from and cfg.get('load_from') and not args.resume:
        # the config may resume from another one
        cfg.resume = False
    if args.resume == 'auto' or (cfg.get('resume') and not cfg.get('load_from')):
        resume_latest(cfg)
    elif args.resume:
        check_checkpoint(args.resume)
        cfg.resume = True
        cfg.load_from = args.resume
    start = None if cfg.get('resume') else args.load_from
    if start:
        check_checkpoint(start)
        cfg.load_from = start
    if args.freeze != 'none':
        freeze_all_but(cfg, args.freeze.removeprefix('all-but-'))
    check_unoccupied(cfg)
    with explain_peer_loss():
        runner = build_runner(cfg, 'train', start)
        runner.train()
        text = next_commands(runner)
        del runner
        shutdown_process_group()
    if text:
        print(text, flush=True)


if __name__ == '__main__':
    run('train')
