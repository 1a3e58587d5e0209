"""Picture what detectors do: detections beside ground truth."""

import argparse
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import mmcv
import numpy as np
from mmdet.apis import inference_detector
from mmdet.registry import DATASETS
from mmengine.config import DictAction
from mmengine.dataset import BaseDataset
from mmengine.structures import InstanceData
from mmengine.utils import track_iter_progress

from dlu_mmdet.analysis.matching import match_detections
from dlu_mmdet.engine import load_detector
from dlu_mmdet.necks import upsampler_name
from dlu_mmdet.visualization.detections import (
    describe_counts,
    draw_detections,
    save_figure,
)


class _PairModels(argparse.Action):
    """Turn CONFIG CHECKPOINT CONFIG CHECKPOINT ... into a list of pairs."""

    def __call__(self, parser, namespace, values, option_string=None):
        if len(values) % 2:
            parser.error(
                f'give a checkpoint after each config, got {len(values)} paths: '
                + ' '.join(values)
            )
        namespace.models = list(zip(values[::2], values[1::2], strict=True))


def parse_args() -> argparse.Namespace:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        'models',
        nargs='+',
        action=_PairModels,
        metavar='CONFIG CHECKPOINT',
        help='one or more detectors, each a config and its checkpoint; images and '
        "ground truth are those of the first config's test_dataloader",
    )
    shared.add_argument(
        '--num-images',
        type=int,
        default=4,
        help='how many images, spread evenly over those with objects '
        '(default: %(default)s)',
    )
    shared.add_argument(
        '--image-ids', type=int, nargs='+', help='COCO ids of images to show instead'
    )
    shared.add_argument(
        '--device', default='cpu', help='e.g. cuda:0 (default: %(default)s)'
    )
    shared.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override settings of every config',
    )

    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True, metavar='COMMAND')
    detections = commands.add_parser(
        'detections',
        parents=[shared],
        help='hits, false alarms and misses, one column per detector',
    )
    detections.add_argument(
        '--out',
        default='work_dirs/detections.png',
        help='PNG file to write (default: %(default)s)',
    )
    detections.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        help='leave out detections with a lower score (default: %(default)s)',
    )
    detections.add_argument(
        '--iou-thr',
        type=float,
        default=0.5,
        help='IoU from which an object counts as found (default: %(default)s)',
    )
    detections.set_defaults(run=show_detections)
    return parser.parse_args()


def load_models(args: argparse.Namespace) -> dict:
    """Load every detector under its upsampler's name, or else its config's."""
    models = {}
    loaded = []
    for config, checkpoint in args.models:
        print(f'loading {checkpoint}')
        loaded.append(
            load_detector(config, checkpoint, args.device, cfg_options=args.cfg_options)
        )
    names = [
        upsampler_name(model.cfg.model.get('neck')) or Path(config).stem
        for model, (config, _) in zip(loaded, args.models, strict=True)
    ]
    for index, (name, model) in enumerate(zip(names, loaded, strict=True)):
        if names.count(name) > 1:
            name = f'{name} ({names[: index + 1].count(name)})'
        models[name] = model
    return models


def load_dataset(models: dict, configs: Sequence[str]) -> BaseDataset:
    """Build the first config's test set, and see that all models fit it."""
    dataset = DATASETS.build(next(iter(models.values())).cfg.test_dataloader.dataset)
    classes = list(dataset.metainfo['classes'])
    for config, model in zip(configs, models.values(), strict=True):
        own = list(model.dataset_meta['classes'])
        # mmdet writes traffic_light where a checkpoint does not name its classes
        if own != classes and [name.replace('_', ' ') for name in own] != classes:
            pairs = zip_longest(own, classes)
            name, expected = next(pair for pair in pairs if pair[0] != pair[1])
            raise ValueError(
                f'{config} detects {len(own)} classes, the data set of {configs[0]} '
                f'has {len(classes)}, and {name!r} is not {expected!r}; show together '
                'only detectors of the same classes, named in their checkpoints'
            )
    return dataset


def pick_images(
    dataset: BaseDataset, num_images: int, image_ids: Sequence[int] | None
) -> list[dict]:
    """Find the images to show: those asked for, or an even spread."""
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    if image_ids is not None:
        by_id = {info['img_id']: info for info in infos}
        unknown = [image_id for image_id in image_ids if image_id not in by_id]
        if unknown:
            raise ValueError(
                f'--image-ids: the data set has no image {unknown}; '
                f'it has ids such as {list(by_id)[:3]}'
            )
        return [by_id[image_id] for image_id in image_ids]
    if num_images < 1:
        raise ValueError(f'--num-images must be at least 1, got {num_images}')
    infos = [
        info
        for info in infos
        if any(not instance['ignore_flag'] for instance in info['instances'])
    ]
    if not infos:
        raise ValueError(
            'the data set has no image with objects; check its ann_file and classes'
        )
    spread = np.linspace(0, len(infos) - 1, min(num_images, len(infos)))
    return [infos[index] for index in spread.round().astype(int)]


def ground_truth(info: dict) -> InstanceData:
    """Gather an image's objects: bboxes, labels and whether each is a crowd."""
    instances = info['instances']
    return InstanceData(
        bboxes=np.array([i['bbox'] for i in instances], dtype=float).reshape(-1, 4),
        labels=np.array([i['bbox_label'] for i in instances], dtype=int),
        crowd=np.array([i['ignore_flag'] for i in instances], dtype=bool),
    )


def show_detections(args: argparse.Namespace) -> None:
    """Draw hits, false alarms and misses of every detector."""
    if not 0 <= args.score_thr <= 1:
        raise ValueError(f'--score-thr must be in [0, 1], got {args.score_thr}')
    if not 0 < args.iou_thr <= 1:
        raise ValueError(f'--iou-thr must be in (0, 1], got {args.iou_thr}')
    models = load_models(args)
    dataset = load_dataset(models, [config for config, _ in args.models])
    infos = pick_images(dataset, args.num_images, args.image_ids)
    truths = [ground_truth(info) for info in infos]

    found = {name: [] for name in models}
    matches = {name: [] for name in models}
    jobs = [(name, index) for name in models for index in range(len(infos))]
    for name, index in track_iter_progress(jobs):
        result = inference_detector(models[name], infos[index]['img_path'])
        boxes = result.pred_instances.cpu().numpy()
        boxes = boxes[boxes.scores >= args.score_thr]
        truth = truths[index]
        found[name].append(boxes)
        matches[name].append(
            match_detections(
                boxes.bboxes,
                boxes.labels,
                boxes.scores,
                truth.bboxes,
                truth.labels,
                truth.crowd,
                args.iou_thr,
            )
        )

    figure = draw_detections(
        [mmcv.imread(info['img_path'], channel_order='rgb') for info in infos],
        truths,
        found,
        matches,
        dataset.metainfo['classes'],
        image_names=[f'image {info["img_id"]}' for info in infos],
        note=f'score ≥ {args.score_thr:g}, hit: same class and IoU ≥ {args.iou_thr:g}',
    )
    save_figure(figure, args.out)

    print(f'\nover {len(infos)} images, score >= {args.score_thr:g}:')
    for name, (_, checkpoint) in zip(models, args.models, strict=True):
        total = sum(match.counts for match in matches[name])
        print(f'{name}: {describe_counts(total)}  [{checkpoint}]')
    print(f'picture: {args.out}')


def main() -> None:
    args = parse_args()
    args.run(args)


if __name__ == '__main__':
    main()
