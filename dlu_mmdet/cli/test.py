"""Evaluate a checkpoint on the test set."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

from .. import register_all_modules
from . import run
from .arguments import add_config_arguments, config_values, new_parser

if TYPE_CHECKING:
    from mmdet.evaluation import DumpDetResults
    from mmengine.config import Config


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser('test', 'Evaluate a checkpoint on the test set of its config.')
    parser.add_argument('config', help='path of the config, or mmdet::FOLDER/FILE.py')
    parser.add_argument('checkpoint', help='path of the checkpoint')
    parser.add_argument(
        '--out',
        help='.pkl file for the predictions; with COCO annotations also NAME.bbox.json '
        'and, of masks, NAME.segm.json, in the format of COCO results',
    )
    parser.add_argument(
        '--show', action='store_true', help='show the predictions in a window'
    )
    parser.add_argument(
        '--show-dir',
        help="folder, inside the run's own, for images with the predictions",
    )
    parser.add_argument(
        '--wait-time',
        type=float,
        default=2,
        help='seconds for which --show shows an image',
    )
    parser.add_argument(
        '--tta', action='store_true', help='average over test-time augmentation'
    )
    add_config_arguments(parser)
    args = parser.parse_args(argv)
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        parser.error(f'--out must end with .pkl or .pickle, got {args.out}')
    return args


def enable_visualization(cfg: Config, args: argparse.Namespace) -> None:
    """Switch on the hook that draws the predictions."""
    from ..visualization import DetVisualizationHook

    hooks = cfg.get('default_hooks', {})
    if 'visualization' not in hooks:
        raise ValueError(
            f'--show and --show-dir need '
            f'default_hooks.visualization, which {args.config} '
            f"does not set; inherit mmdet's default_runtime.py"
        )
    if cfg.get('default_scope') == 'mmseg':
        # its hook has no out_dir and draws where the visualizer saves
        hooks.visualization.update(draw=True, show=args.show, wait_time=args.wait_time)
        if args.show_dir:
            cfg.visualizer.save_dir = os.path.join(cfg.work_dir, args.show_dir)
        return
    # what a config in Python names: mmdet's own
    if hooks.visualization.type is DetVisualizationHook.__base__:
        hooks.visualization.type = DetVisualizationHook
    hooks.visualization.update(
        draw=True, show=args.show, wait_time=args.wait_time, test_out_dir=args.show_dir
    )


def enable_tta(cfg: Config) -> None:
    """Wrap the model in the config's test-time augmentation, or flips."""
    from mmengine.config import ConfigDict

    from ..datasets.preflight import iter_datasets

    if 'tta_model' not in cfg:
        cfg.tta_model = dict(
            type='DetTTAModel',
            tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
        )
    key = 'test_dataloader.dataset'
    parts = list(iter_datasets(cfg.test_dataloader.dataset, key))
    if 'tta_pipeline' not in cfg:
        cfg.tta_pipeline = deepcopy(parts[0].cfg['pipeline'])
        cfg.tta_pipeline[-1] = dict(
            type='TestTimeAug',
            transforms=[
                [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)],
                [
                    dict(
                        type='PackDetInputs',
                        meta_keys=(
                            'img_id',
                            'img_path',
                            'ori_shape',
                            'img_shape',
                            'scale_factor',
                            'flip',
                            'flip_direction',
                        ),
                    )
                ],
            ],
        )
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    for part in parts:
        part.cfg['pipeline'] = cfg.tta_pipeline
    if cfg.filename:
        # under the same name it would replace the config of the training
        path = Path(cfg.filename)
        vars(cfg)['_filename'] = str(path.with_name(f'{path.stem}_tta.py'))


def dump_predictions(cfg: Config, path: str) -> DumpDetResults:
    """The metric that writes the predictions; of COCO data as JSON too."""
    from mmdet.evaluation import DumpDetResults

    from ..datasets.preflight import coco_evaluators, iter_datasets
    from ..evaluation.coco_results import DumpResults

    files = [each.get('ann_file') for _, each in coco_evaluators(cfg, 'test')]
    if not any(files):
        return DumpDetResults(path)
    data = next(iter_datasets(cfg.test_dataloader.dataset, 'test_dataloader.dataset'))
    return DumpResults(path, next(filter(None, files)), data.classes)


def main(argv: Sequence[str] | None = None) -> None:
    """Test as the arguments say."""
    args = parse_args(argv)
    register_all_modules()
    from torch.distributed.elastic.multiprocessing.errors import record

    # torchrun then ends with the error itself
    record(test)(args)


def test(args: argparse.Namespace) -> None:
    """Test with the arguments of :func:`parse_args`."""
    from ..config import load_config
    from ..engine import (
        build_runner,
        check_checkpoint,
        shutdown_process_group,
        use_safe_loaders,
    )

    use_safe_loaders()
    cfg = load_config(args.config, **config_values(args))
    check_checkpoint(args.checkpoint)
    if args.show or args.show_dir:
        enable_visualization(cfg, args)
    if args.tta:
        enable_tta(cfg)
    runner = build_runner(cfg, 'test', args.checkpoint)
    if args.out:
        runner.test_evaluator.metrics.append(dump_predictions(cfg, args.out))
    runner.test()
    del runner
    shutdown_process_group()


if __name__ == '__main__':
    run('test')
