"""Train a detector: python tools/train.py CONFIG [--resume] ..."""

import argparse

from torch.distributed.elastic.multiprocessing.errors import record

from dlu_mmdet.engine import (
    add_config_arguments,
    add_training_arguments,
    build_runner,
    enable_amp,
    leave_together,
    load_config,
    lost_processes,
    print_anything,
    resume_latest,
    use_safe_loaders,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Train a detector')
    parser.add_argument('config', help='path of the config')
    add_training_arguments(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='go on from this checkpoint or, without a path, '
        'from the last one in the work directory',
    )
    add_config_arguments(parser)
    return parser.parse_args()


# torchrun then ends with the error itself
@record
def main() -> None:
    print_anything()
    use_safe_loaders()
    args = parse_args()
    cfg = load_config(args, train=True)
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
    if args.resume == 'auto' or (cfg.get('resume') and not cfg.get('load_from')):
        resume_latest(cfg)
    elif args.resume:
        cfg.resume = True
        cfg.load_from = args.resume
    with lost_processes():
        build_runner(cfg, 'train').train()
        leave_together()


if __name__ == '__main__':
    main()
