"""Explain detections: class activation maps, and how far to trust them."""

from __future__ import annotations

import argparse
import csv
import difflib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mmdet.registry import DATASETS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_overlaps
from mmengine.utils import track_iter_progress
from torch import nn

from dlu_mmdet.analysis.tables import to_markdown
from dlu_mmdet.datasets import check_data
from dlu_mmdet.engine import (
    add_cfg_options,
    add_upsampler,
    check_classes,
    check_writable,
    load_detectors,
    print_anything,
    replacing,
)
from dlu_mmdet.visualization.cam import (
    METHODS,
    TITLES,
    LayerScore,
    collect_evidence,
    explain,
    find_layer,
)
from dlu_mmdet.visualization.detector_score import (
    default_layer,
    detect,
    detection_score,
)
from dlu_mmdet.visualization.figures import save_figure
from dlu_mmdet.visualization.heatmaps import COLOURS, HeatmapRow, draw_heatmaps
from dlu_mmdet.visualization.images import image_names


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='path of the config')
    parser.add_argument('checkpoint', help='path of the checkpoint')
    parser.add_argument(
        'images',
        nargs='*',
        metavar='IMAGE',
        help="images to picture; with none, the axioms are averaged over the config's "
        'test set and printed as a table',
    )
    parser.add_argument(
        '--also',
        nargs=2,
        action='append',
        default=[],
        metavar=('CONFIG', 'CHECKPOINT'),
        help='another detector: one more row for the same object',
    )
    parser.add_argument(
        '--method',
        nargs='+',
        choices=list(METHODS),
        default=['xgradcam', 'gradcam', 'gradcam++', 'ablationcam'],
        help='one column each (default: %(default)s)',
    )
    parser.add_argument(
        '--layer',
        help='name of the layer to explain, e.g. backbone.layer3; {level} in it stands '
        'for the pyramid level that scored the detection, from 0; defaults to the '
        'stage of the backbone under that level',
    )
    parser.add_argument(
        '--target',
        help='which detection of an IMAGE: det:N, the one with the N-th best score, '
        'from 0, or class:NAME, the best one of a class (default: det:0)',
    )
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        help='leave out detections with a lower score (default: %(default)s)',
    )
    parser.add_argument(
        '--num-detections',
        type=int,
        help='how many detections of the test set to average over (default: 50)',
    )
    parser.add_argument(
        '--out',
        help='the picture, a .png file (default: work_dirs/explain.png), or without '
        'an IMAGE the table, a .md or .csv file (default: printed only)',
    )
    parser.add_argument(
        '--batch-size',
        type=int,
        default=32,
        help='channels to remove at once (default: %(default)s)',
    )
    parser.add_argument(
        '--device', default='cpu', help='e.g. cuda:0 (default: %(default)s)'
    )
    add_cfg_options(parser)
    add_upsampler(parser)
    # so that an IMAGE may come after an option
    args = parser.parse_intermixed_args()
    if not 0 <= args.score_thr <= 1:
        raise ValueError(f'--score-thr must be in [0, 1], got {args.score_thr}')
    check_choices(args)
    return args


def check_choices(args: argparse.Namespace) -> None:
    """Fill in what depends on whether there are images; refuse the rest."""
    if args.images:
        if args.num_detections is not None:
            raise ValueError(
                '--num-detections is how many to average over, which is done without '
                'an IMAGE; leave one of them out'
            )
        args.target = 'det:0' if args.target is None else args.target
        if not re.fullmatch(r'det:\d+|class:.+', args.target):
            raise ValueError(
                f'--target must be det:N or class:NAME, got {args.target!r}'
            )
        args.out = args.out or 'work_dirs/explain.png'
        for image in args.images:
            if '://' not in image and not Path(image).is_file():
                raise FileNotFoundError(f'image {image} does not exist; check the path')
    else:
        if args.target is not None:
            raise ValueError(
                f'--target {args.target} chooses a detection of an IMAGE; give one, or '
                'leave it out for the average over the test set'
            )
        args.num_detections = 50 if args.num_detections is None else args.num_detections
        if args.num_detections < 1:
            raise ValueError(
                f'--num-detections must be at least 1, got {args.num_detections}'
            )
    suffixes = ('.png',) if args.images else ('.md', '.csv')
    if args.out and (Path(args.out).suffix not in suffixes or Path(args.out).is_dir()):
        what = 'the picture is' if args.images else 'without an IMAGE the table is'
        raise ValueError(
            f'--out: {what} a {" or ".join(suffixes)} file, got {args.out}'
        )
    if args.out:
        check_writable(args.out)


def find_detections(model: nn.Module, image: str, score_thr: float):
    """Run a detector; drop what is below the threshold."""
    inputs, sample = detect(model, image)
    found = sample.pred_instances
    sample.pred_instances = found[found.scores >= score_thr]
    return inputs, sample


def check_target(target: str, classes: Sequence[str]) -> None:
    """Refuse a class that --target names and nobody detects."""
    kind, _, value = target.partition(':')
    if kind == 'class' and value not in classes:
        nearest = difflib.get_close_matches(value, classes, n=5, cutoff=0.3)
        raise ValueError(
            f'--target: there is no class {value!r}; the nearest are '
            + ', '.join(nearest or list(classes)[:5])
        )


def pick_target(
    sample: DetDataSample, target: str, classes: Sequence[str]
) -> int | None:
    """Find the detection that --target names, if it is there."""
    kind, _, value = target.partition(':')
    labels = sample.pred_instances.labels.tolist()
    if kind == 'det':
        return int(value) if int(value) < len(labels) else None
    label = classes.index(value)
    return labels.index(label) if label in labels else None


def name_target(target: str) -> str:
    """How a caption calls what --target names."""
    kind, _, value = target.partition(':')
    return value if kind == 'class' else f'detection {value}'


def same_object(sample: DetDataSample, box: torch.Tensor, label: int) -> int | None:
    """Find another detector's detection of an object: the highest IoU."""
    found = sample.pred_instances
    ious = bbox_overlaps(box[None], found.bboxes)[0] * (found.labels == label)
    return int(ious.argmax()) if len(ious) and ious.max() >= 0.5 else None


def find_score(
    model: nn.Module,
    inputs: torch.Tensor,
    sample: DetDataSample,
    index: int,
    layer: str | None,
) -> tuple[Callable[[int], torch.Tensor], str]:
    """A detection's score, for LayerScore, and the name of the layer to explain."""
    run, level = detection_score(model, inputs, sample, index)
    layer = (layer or default_layer(model, level)).replace('{level}', str(level))
    find_layer(model, layer)  # there is such a layer
    return run, layer


@dataclass
class Subject:
    """What a row of the picture is to explain.

    Attributes:
        name (str): The detector's.
        model (nn.Module): The detector.
        image (str): The image file.
        inputs (torch.Tensor): As the network takes the image.
        sample (DetDataSample): With all detections.
        caption (str): Class and score, or why there is no detection.
        index (int, optional): Which detection; None if there is none.
        run (Callable, optional): Its score, for LayerScore.
        layer (str): Name of the layer.
    """

    name: str
    model: nn.Module
    image: str
    inputs: torch.Tensor
    sample: DetDataSample
    caption: str = ''
    index: int | None = None
    run: Callable[[int], torch.Tensor] | None = None
    layer: str = ''


def find_subjects(
    args: argparse.Namespace, models: dict[str, nn.Module]
) -> list[Subject]:
    """Detect in all images, and find the same object in those of one image.

    Raises:
        ValueError: If there is a single image and --target is not in it.
    """
    classes = list(next(iter(models.values())).dataset_meta['classes'])
    subjects = []
    for image in args.images:
        target = None  # box and label of the first detector that has it
        for name, model in models.items():
            inputs, sample = find_detections(model, image, args.score_thr)
            subject = Subject(name, model, image, inputs, sample)
            subjects.append(subject)
            found = sample.pred_instances
            if not len(found):
                subject.caption = f'no detection of score ≥ {args.score_thr:g}'
                continue
            if target is None:
                index = pick_target(sample, args.target, classes)
                wanted = name_target(args.target)
                if index is None and len(args.images) == 1:
                    labels = [classes[label] for label in found.labels]
                    raise ValueError(
                        f'--target: {wanted} is not among the {len(found)} detections '
                        f'of {name} in {image}, numbered from 0: '
                        + ', '.join(f'{n} {key}' for key, n in Counter(labels).items())
                        + '; a lower --score-thr gives more'
                    )
            else:
                index = same_object(sample, *target)
                wanted = classes[target[1]]
            if index is None:
                subject.caption = f'{wanted} not found'
                continue
            label = int(found.labels[index])
            target = target or (found.bboxes[index], label)
            subject.index = index
            subject.caption = f'{classes[label]} {float(found.scores[index]):.2f}'
            subject.run, subject.layer = find_score(
                model, inputs, sample, index, args.layer
            )
    return subjects


def show_images(args: argparse.Namespace, models: dict[str, nn.Module]) -> None:
    """Draw a row for each image and detector."""
    # mistakes show before the first detection is explained, which takes long
    subjects = find_subjects(args, models)
    several = len(args.images) > 1
    names = dict(zip(args.images, image_names(args.images)))
    rows = []
    for subject in subjects:
        print(f'\n{subject.image}, {subject.name}: {subject.caption}')
        name = subject.name
        title = f'{name}\n{names[subject.image]}' if several else name
        rows.append(explain_subject(args, subject, title, several))
    save_figure(
        draw_heatmaps(rows, args.method),
        args.out,
        COLOURS,
        title='Explanations',
        caption='Class activation maps; sensitivity and conservation: 0 is best.',
    )
    print(f'picture: {args.out}')


def explain_subject(
    args: argparse.Namespace, subject: Subject, title: str, several: bool
) -> HeatmapRow:
    """Explain one detection and print the axioms.

    Raises:
        ValueError: If the score does not depend on the layer; with several images
            the row says so.
    """
    pixels = subject.sample.image
    if subject.index is None:
        return HeatmapRow(title, pixels, subject.caption)
    found = subject.sample.pred_instances[subject.index]
    box, layer = found.bboxes[0].cpu().numpy(), subject.layer
    score = LayerScore(subject.model, layer, subject.run)
    evidence = collect_evidence(score, args.batch_size, progress=True)
    if evidence.is_empty:
        message = f'the score of detection {subject.index} does not depend on layer '
        message += f'{layer!r}; leave --layer out for the level that it comes from'
        if not several:
            raise ValueError(message)
        print(f'\n{message}')
        caption = f'{subject.caption}, does not depend\non {layer}'
        return HeatmapRow(title, pixels, caption, box)
    explanations = {method: explain(evidence, method) for method in args.method}
    print(f'\nlayer {layer}, S = {float(evidence.score):.3f}')
    for method, found in explanations.items():
        print(
            f'{TITLES[method]:19} sensitivity {found.sensitivity:.3f}  '
            f'conservation {found.conservation:.3f}'
        )
    # a RoI head's maps are of the box, all others of the padded input
    scale = np.array(subject.sample.scale_factor)
    area = (0, 0, *(np.array(subject.inputs.shape[:1:-1]) / scale))
    if layer.startswith('roi_head.'):
        area = tuple(box)
    caption = f'{subject.caption}, S = {float(evidence.score):.1f}'
    return HeatmapRow(title, pixels, caption, box, explanations, area)


def average(args: argparse.Namespace, models: dict[str, nn.Module]) -> None:
    """Print the axioms of each method, averaged over the test set."""
    rows = []
    for name, model in models.items():
        check_data(model.cfg, ('test',), scored=False)
        dataset = DATASETS.build(model.cfg.test_dataloader.dataset)
        number = min(args.num_detections, len(dataset))
        spread = np.linspace(0, len(dataset) - 1, number).round().astype(int)
        paths = [dataset.get_data_info(index)['img_path'] for index in spread]
        print(f'{name}: detecting in {len(paths)} images')
        views = [
            find_detections(model, path, args.score_thr)
            for path in track_iter_progress(paths)
        ]
        # every image's best detection first, then every second best, ...
        ranked = sorted(
            (rank, view)
            for view, (_, sample) in enumerate(views)
            for rank in range(len(sample.pred_instances))
        )[: args.num_detections]
        print(f'\n{name}: explaining {len(ranked)} detections')
        unrelated = 0
        for rank, view in track_iter_progress(ranked):
            run, layer = find_score(model, *views[view], rank, args.layer)
            evidence = collect_evidence(LayerScore(model, layer, run), args.batch_size)
            if evidence.is_empty:
                unrelated += 1
                continue
            for method in args.method:
                found = explain(evidence, method)
                rows.append((name, method, found.sensitivity, found.conservation))
        print()
        if unrelated:
            print(f'{name}: {unrelated} detections do not depend on {args.layer}')
    print_table(rows, args.out)


def print_table(rows: Sequence[tuple[str, str, float, float]], out: str | None) -> None:
    """Print means and medians as a Markdown table; write them where --out says."""
    if not rows:
        raise ValueError(
            'there is no detection to average over; lower --score-thr, or choose '
            'another --layer'
        )
    head = ['upsampler', 'method', 'detections']
    head += ['sensitivity', 'median sensitivity']
    head += ['conservation', 'median conservation']
    body = []
    for name, method in dict.fromkeys(row[:2] for row in rows):
        figures = np.array([row[2:] for row in rows if row[:2] == (name, method)])
        pairs = np.transpose([figures.mean(0), np.median(figures, axis=0)])
        body.append(
            [name, TITLES[method], str(len(figures))]
            + [f'{value:.3f}' for value in pairs.flat]
        )
    table = to_markdown(head, body, texts=2)
    print(table)
    if out is None:
        return
    with (
        replacing(out) as partial,
        open(partial, 'w', newline='', encoding='utf-8') as file,
    ):
        if Path(out).suffix == '.csv':
            csv.writer(file).writerows([head, *body])
        else:
            file.write(f'{table}\n')
    print(f'table: {out}')


def main() -> None:
    print_anything()
    args = parse_args()
    pairs = [(args.config, args.checkpoint), *args.also]
    models = load_detectors(pairs, args.device, args.cfg_options, args.upsampler)
    if args.layer and '{level}' not in args.layer:
        for model in models.values():
            find_layer(model, args.layer)
    if args.images:
        classes = next(iter(models.values())).dataset_meta['classes']
        check_classes(models, [config for config, _ in pairs], classes, args.config)
        check_target(args.target, classes)
        show_images(args, models)
    else:
        average(args, models)


if __name__ == '__main__':
    main()
