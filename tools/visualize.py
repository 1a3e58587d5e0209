"""Picture what detectors do: detections, reassembly kernels, feature maps."""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmdet.registry import DATASETS
from mmengine.dataset import BaseDataset
from mmengine.structures import InstanceData
from mmengine.utils import track_iter_progress

from dlu_mmdet.analysis.matching import disagreement, match_detections
from dlu_mmdet.datasets import check_data
from dlu_mmdet.engine import (
    add_cfg_options,
    add_upsampler,
    check_classes,
    check_writable,
    load_detectors,
    print_anything,
    use_safe_loaders,
)
from dlu_mmdet.visualization import detections, features, kernels
from dlu_mmdet.visualization.detector_score import detect
from dlu_mmdet.visualization.figures import free_path, save_figure, write_page
from dlu_mmdet.visualization.images import image_names, load_image
from dlu_mmdet.visualization.scores import explain_empty


class _PairModels(argparse.Action):
    """Turn CONFIG CHECKPOINT CONFIG CHECKPOINT ... into a list of pairs."""

    def __call__(self, parser, namespace, values, option_string=None):
        if len(values) % 2:
            parser.error(
                f'give a checkpoint after each config, got {len(values)} paths: '
                + ' '.join(values)
            )
        namespace.models = list(zip(values[::2], values[1::2]))


#: Pictures of this many images go into one PNG without --num-images.
NUM_IMAGES = dict(detections=4, kernels=1, features=1)


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
    shared.add_argument(
        '--device', default='cpu', help='e.g. cuda:0 (default: %(default)s)'
    )
    add_cfg_options(shared)
    add_upsampler(shared)

    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True, dest='command', metavar='COMMAND')
    command = commands.add_parser(
        'detections',
        parents=[shared],
        help='hits, false alarms and misses, one column per detector',
    )
    command.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        help='leave out detections with a lower score (default: %(default)s)',
    )
    command.add_argument(
        '--iou-thr',
        type=float,
        default=0.5,
        help='IoU from which an object counts as found (default: %(default)s)',
    )
    command.add_argument(
        '--only-differences',
        action='store_true',
        help='show the images of the whole data set on which two detectors disagree '
        'most: one finds objects that the other misses',
    )
    command.set_defaults(run=show_detections)
    command = commands.add_parser(
        'kernels',
        parents=[shared],
        help='kernels of upsamplers; source kernels and offsets of DLU, and where '
        'DySample samples',
    )
    command.add_argument(
        '--level',
        help='level that is upsampled to, e.g. P3 (default: the finest, mostly P2)',
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
        '--num-positions',
        type=int,
        default=3,
        help='how many, without --positions (default: %(default)s)',
    )
    command.add_argument(
        '--group',
        type=int,
        default=0,
        help='channel group, where the upsampler has several (default: %(default)s)',
    )
    command.set_defaults(run=show_kernels)
    command = commands.add_parser(
        'features',
        parents=[shared],
        help='the maps P2 to P5 of every detector, on one colour scale',
    )
    command.set_defaults(run=show_features)
    args = parser.parse_args()
    args.out = Path(args.out or f'work_dirs/{args.command}.png')
    if args.out.suffix not in ('', '.png') and not args.out.is_dir():
        parser.error(f'--out must be a .png file or a folder, got {args.out}')
    check_writable(args.out if args.out.suffix == '.png' else args.out / 'index.html')
    return args


def _position(text: str) -> tuple[int, int]:
    """Read X,Y."""
    try:
        x, y = map(int, text.split(','))
    except ValueError:
        raise argparse.ArgumentTypeError(f'a position is X,Y, got {text!r}') from None
    return x, y


def pick_images(
    dataset: BaseDataset, num_images: int, image_ids: Sequence[str] | None
) -> list[dict]:
    """Find the images to show: those asked for, or an even spread."""
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    if image_ids is not None:
        return find_images(infos, image_ids)
    infos = [
        info
        for info in infos
        if any(not instance['ignore_flag'] for instance in info.get('instances', ()))
    ]
    if not infos:
        raise ValueError(
            'the data set has no image with objects; check its ann_file and classes'
        )
    spread = np.linspace(0, len(infos) - 1, min(num_images, len(infos)))
    return [infos[index] for index in spread.round().astype(int)]


def find_images(infos: Sequence[dict], image_ids: Sequence[str]) -> list[dict]:
    """Find images by their ids as text, whatever type the data set gives them."""
    by_id = {}
    for info in infos:
        by_id.setdefault(str(info['img_id']), []).append(info)
    # as in COCO's file names
    keys = {
        i: str(int(i)) if i not in by_id and i.isdecimal() else i for i in image_ids
    }
    unknown = [image_id for image_id, key in keys.items() if key not in by_id]
    if unknown:
        near = difflib.get_close_matches(unknown[0], by_id, n=3) or list(by_id)[:3]
        raise ValueError(
            f'--image-ids: the data set has no image [{", ".join(unknown)}]; it has '
            f'{len(infos)}, with ids such as {", ".join(near)}'
        )
    return [info for image_id in image_ids for info in by_id[keys[image_id]]]


def choose_images(args: argparse.Namespace, dataset: BaseDataset | None) -> list[dict]:
    """The images of the command line: files, or those of the data set.

    Returns:
        list[dict]: ``img_path``, ``name`` and, from the data set, ``instances``.
    """
    if dataset is None:
        for path in args.images:
            if '://' not in path and not Path(path).is_file():
                raise FileNotFoundError(
                    f'--images: {path} does not exist; check the path, or take '
                    'images of the data set with --image-ids'
                )
        names = image_names(args.images, suffix=False)
        return [
            dict(img_path=path, name=name) for path, name in zip(args.images, names)
        ]
    number = NUM_IMAGES[args.command] if args.num_images is None else args.num_images
    if number < 1:
        raise ValueError(f'--num-images must be at least 1, got {number}')
    if getattr(args, 'only_differences', False):
        infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    else:
        infos = pick_images(dataset, number, args.image_ids)
    return [dict(info, name=f'image {info["img_id"]}') for info in infos]


def load_dataset(args: argparse.Namespace, models: dict) -> BaseDataset | None:
    """The first config's test set, unless image files are given."""
    if args.images:
        return None
    cfg = next(iter(models.values())).cfg
    check_data(cfg, ('test',), scored=False)
    return DATASETS.build(cfg.test_dataloader.dataset)


def ground_truth(info: dict) -> InstanceData:
    """Gather an image's objects: bboxes, labels and whether each is a crowd."""
    instances = info.get('instances', [])
    return InstanceData(
        bboxes=np.array([i['bbox'] for i in instances], dtype=float).reshape(-1, 4),
        labels=np.array([i['bbox_label'] for i in instances], dtype=int),
        crowd=np.array([i['ignore_flag'] for i in instances], dtype=bool),
    )


def write(
    args: argparse.Namespace, figures: Sequence[tuple], colours: Sequence[str]
) -> None:
    """Write figures, each with its name, images and caption, where --out says."""
    for figure, name, infos, caption in figures:
        # a data set may list a picture under several ids
        source = '\n'.join(
            f'{os.path.abspath(str(info["img_path"]))} {info["name"]}' for info in infos
        )
        path = args.out
        if path.suffix != '.png':
            path = free_path(path, f'{args.command} {name}'.strip(), source)
        title = args.command.capitalize() + (f', {name}' if name else '')
        save_figure(figure, path, colours, title, caption, source)
        print(f'picture: {path}')
    if args.out.suffix != '.png':
        print(f'page: {write_page(args.out)}')


def show_detections(args: argparse.Namespace) -> None:
    """Draw hits, false alarms and misses of every detector."""
    if not 0 <= args.score_thr <= 1:
        raise ValueError(f'--score-thr must be in [0, 1], got {args.score_thr}')
    if not 0 < args.iou_thr <= 1:
        raise ValueError(f'--iou-thr must be in (0, 1], got {args.iou_thr}')
    if args.only_differences:
        if len(args.models) < 2:
            raise ValueError(
                '--only-differences compares detectors, got one; give two or more'
            )
        if args.images or args.image_ids:
            raise ValueError(
                '--only-differences searches the whole data set; leave out --images '
                'and --image-ids'
            )
    models = load_detectors(args.models, args.device, args.cfg_options, args.upsampler)
    configs = [config for config, _ in args.models]
    dataset = load_dataset(args, models)
    if dataset is None:
        classes = next(iter(models.values())).dataset_meta['classes']
        check_classes(models, configs, classes, configs[0])
    else:
        classes = dataset.metainfo['classes']
        check_classes(models, configs, classes, f'the data set of {configs[0]}')
    infos = choose_images(args, dataset)
    truths = None if dataset is None else [ground_truth(info) for info in infos]

    found = {name: [] for name in models}
    shapes = {}
    matches = {name: [] for name in models}
    empty = {name: {} for name in models}
    jobs = [(name, index) for name in models for index in range(len(infos))]
    for name, index in track_iter_progress(jobs):
        path = infos[index]['img_path']
        _, result = detect(models[name], path)
        if shapes.setdefault(index, result.image.shape) != result.image.shape:
            raise ValueError(
                f'{name} loads {path} as {result.image.shape[:2]} (height, width), '
                f'{next(iter(models))} as {shapes[index][:2]}: their boxes cannot be '
                'drawn over one image; make a picture of each, or load alike'
            )
        boxes = result.pred_instances.cpu().numpy()
        best = boxes.scores.max(initial=-1)
        nothing_to_find = truths is not None and truths[index].crowd.all()
        if best < args.score_thr and not nothing_to_find:
            empty[name][infos[index]['name']] = None if best < 0 else float(best)
        boxes = boxes[boxes.scores >= args.score_thr]
        found[name].append(boxes)
        if truths is not None:
            truth = truths[index]
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

    print()
    reasons = [
        f'{name}: {explain_empty(best, args.score_thr, "--score-thr ")}'
        for name, best in empty.items()
        if best
    ]
    for reason in reasons:
        print(reason)
    shown = range(len(infos))
    names = [info['name'] for info in infos]
    note = f'score ≥ {args.score_thr:g}'
    totals = {}
    if truths is not None:
        note += f', hit: same class and IoU ≥ {args.iou_thr:g}'
        totals = {name: sum(match.counts for match in matches[name]) for name in models}
    if args.only_differences:
        shown, extents = pick_differences(
            matches, args.num_images or NUM_IMAGES[args.command]
        )
        note += f'; of {len(infos)} images those on which two detectors differ most'
        for index, (objects, _) in zip(shown, extents):
            names[index] += f': {objects} found by one only'

    first = next(iter(models.values()))
    shown_infos = [infos[i] for i in shown]
    figure = detections.draw_detections(
        [load_image(first, info['img_path'])['image'] for info in shown_infos],
        None if truths is None else [truths[i] for i in shown],
        {name: [boxes[i] for i in shown] for name, boxes in found.items()},
        {name: [match[i] for i in shown] for name, match in matches.items() if match},
        classes,
        image_names=[names[i] for i in shown],
        note=note,
        totals=totals if len(infos) > 1 else None,
        totals_of=f'{"all" if args.only_differences else "these"} {len(infos)} images',
    )
    if totals:
        print(f'over {len(infos)} images, score >= {args.score_thr:g}:')
        for name, (_, checkpoint) in zip(models, args.models):
            print(f'{name}: {detections.describe_counts(totals[name])}  [{checkpoint}]')
    caption = '. '.join([f'{", ".join(models)}; {note}', *reasons, ''])
    write(args, [(figure, '', shown_infos, caption)], detections.COLOURS)


def pick_differences(
    matches: dict, number: int
) -> tuple[list[int], list[tuple[int, int]]]:
    """The images on which two detectors disagree most, and how far."""
    extents = [disagreement(of_image) for of_image in zip(*matches.values())]
    order = sorted(range(len(extents)), key=lambda i: extents[i], reverse=True)
    order = [index for index in order[:number] if any(extents[index])]
    if not order:
        raise ValueError(
            f'--only-differences: {", ".join(matches)} agree on all {len(extents)} '
            'images; lower --score-thr, or leave it out'
        )
    return order, [extents[index] for index in order]


def record_images(args: argparse.Namespace) -> list[tuple]:
    """Run every detector on every image; the image, then recordings by detector."""
    models = load_detectors(args.models, args.device, args.cfg_options, args.upsampler)
    infos = choose_images(args, load_dataset(args, models))
    if args.out.suffix == '.png' and len(infos) > 1:
        raise ValueError(
            f'--out {args.out} is one picture, but {len(infos)} images are to be '
            'shown; give a folder'
        )
    recorded = []
    for info in track_iter_progress(infos):
        recordings = {}
        for name, model in models.items():
            data = load_image(model, info['img_path'])
            recordings[name] = features.record(model, data)
            if not recordings[name].finite:
                raise ValueError(
                    f'{name}: features of {info["img_path"]} are not finite; the '
                    'training has diverged, take an earlier checkpoint'
                )
        recorded.append((info, recordings))
    print()
    return recorded


def show_kernels(args: argparse.Namespace) -> None:
    """Draw how upsamplers come by their kernels."""
    figures, shown = [], {}
    for info, recordings in record_images(args):
        image = info['name']
        first = next(iter(recordings.values()))
        level = args.level or min(first.upsamplings, default='P2')
        maps = {}
        for name, recording in recordings.items():
            try:
                maps[name] = kernels.recorded_kernels(recording, level, args.group)
            except ValueError as error:
                raise ValueError(f'{name}: {error}') from error
        for name, each in maps.items():
            shown.setdefault(name, []).append(each)
        chosen = next(iter(maps.values()))
        positions = args.positions or kernels.informative_positions(
            chosen, args.num_positions, kernels.visible_size(first, chosen)
        )
        figure = kernels.draw_kernels(first, maps, positions, level, image)
        places = '; '.join(f'{x},{y}' for x, y in positions)
        caption = f'{", ".join(maps)}: kernels of {level} at positions {places}.'
        figures.append((figure, image, [info], caption))
    for name, each in shown.items():
        if text := kernels.describe_offsets(each):
            print(f'{name}, {level}: {text}')
    write(args, figures, kernels.COLOURS)


def show_features(args: argparse.Namespace) -> None:
    """Draw the maps of the pyramids side by side."""
    figures = [
        (
            features.draw_features(recordings, info['name']),
            info['name'],
            [info],
            f'{", ".join(recordings)}: root mean square of the channels, one colour '
            'scale.',
        )
        for info, recordings in record_images(args)
    ]
    write(args, figures, features.COLOURS)


def main() -> None:
    print_anything()
    use_safe_loaders()
    args = parse_args()
    args.run(args)


if __name__ == '__main__':
    main()
