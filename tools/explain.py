"""Explain detections: class activation maps, and how far to trust them."""

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path

import mmcv
import numpy as np
import torch
from mmdet.registry import DATASETS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_overlaps
from mmengine.utils import track_iter_progress
from torch import nn

from dlu_mmdet.analysis.tables import to_markdown
from dlu_mmdet.engine import add_cfg_options, load_detectors
from dlu_mmdet.visualization.cam import (
    METHODS,
    TITLES,
    Evidence,
    LayerScore,
    collect_evidence,
    explain,
)
from dlu_mmdet.visualization.detector_score import (
    default_layer,
    detect,
    detection_score,
)
from dlu_mmdet.visualization.figures import save_figure
from dlu_mmdet.visualization.heatmaps import COLOURS, HeatmapRow, draw_heatmaps


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
        default='det:0',
        help='det:N, the detection with the N-th best score, from 0, or class:NAME, '
        'the best one of a class (default: %(default)s)',
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
        default=50,
        help='how many detections of the test set to average over '
        '(default: %(default)s)',
    )
    parser.add_argument(
        '--out',
        default='work_dirs/explain.png',
        help='PNG file to write (default: %(default)s)',
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
    args = parser.parse_args()
    if not 0 <= args.score_thr <= 1:
        raise ValueError(f'--score-thr must be in [0, 1], got {args.score_thr}')
    if args.num_detections < 1:
        raise ValueError(
            f'--num-detections must be at least 1, got {args.num_detections}'
        )
    return args


def find_detections(model: nn.Module, image: str, score_thr: float):
    """Run a detector; drop what is below the threshold."""
    inputs, sample = detect(model, image)
    found = sample.pred_instances
    sample.pred_instances = found[found.scores >= score_thr]
    return inputs, sample


def pick_target(sample: DetDataSample, target: str, classes: Sequence[str]) -> int:
    """Find the detection that --target names."""
    kind, _, value = target.partition(':')
    labels = sample.pred_instances.labels.tolist()
    if kind == 'det' and value.isdecimal():
        if int(value) < len(labels):
            return int(value)
        wanted = f'detection {value}'
    elif kind == 'class':
        if value not in classes:
            nearest = difflib.get_close_matches(value, classes, n=5, cutoff=0.3)
            raise ValueError(
                f'--target: there is no class {value!r}; the nearest are '
                + ', '.join(nearest or list(classes)[:5])
            )
        if classes.index(value) in labels:
            return labels.index(classes.index(value))
        wanted = f'{value!r}'
    else:
        raise ValueError(f'--target must be det:N or class:NAME, got {target!r}')
    counts = {name: labels.count(i) for i, name in enumerate(classes) if i in labels}
    raise ValueError(
        f'--target: {wanted} is not among the {len(labels)} detections of '
        f'{sample.img_path}, numbered from 0: '
        + ', '.join(f'{count} {name}' for name, count in counts.items())
        + '; a lower --score-thr gives more'
    )


def same_object(sample: DetDataSample, box: torch.Tensor, label: int) -> int | None:
    """Find another detector's detection of an object: the highest IoU."""
    found = sample.pred_instances
    ious = bbox_overlaps(box[None], found.bboxes)[0] * (found.labels == label)
    return int(ious.argmax()) if len(ious) and ious.max() >= 0.5 else None


def study(
    model: nn.Module,
    inputs: torch.Tensor,
    sample: DetDataSample,
    index: int,
    args: argparse.Namespace,
    progress: bool,
) -> tuple[Evidence, str]:
    """Collect the evidence on one detection; say which layer it is of."""
    run, level = detection_score(model, inputs, sample, index)
    layer = (args.layer or default_layer(model, level)).replace('{level}', str(level))
    score = LayerScore(model, layer, run)
    return collect_evidence(score, args.batch_size, progress), layer


def show_images(args: argparse.Namespace, models: dict[str, nn.Module]) -> None:
    """Draw a row for each image and detector."""
    rows = []
    classes = list(next(iter(models.values())).dataset_meta['classes'])
    for image in args.images:
        target = None
        for name, model in models.items():
            inputs, sample = find_detections(model, image, args.score_thr)
            pixels = mmcv.imread(image, channel_order='rgb')
            found = sample.pred_instances
            title = f'{name}\n{Path(image).name}' if len(args.images) > 1 else name
            if not len(found):
                index, caption = None, f'no detection of score ≥ {args.score_thr:g}'
            elif target is None:
                index = pick_target(sample, args.target, classes)
                target = found.bboxes[index], int(found.labels[index])
            else:
                index = same_object(sample, *target)
                caption = f'{classes[target[1]]} not found'
            if index is None:
                print(f'\n{image}, {name}: {caption}')
                rows.append(HeatmapRow(title, pixels, caption))
                continue
            rows.append(
                explain_detection(args, model, inputs, sample, index, title, pixels)
            )
    save_figure(
        draw_heatmaps(rows, args.method),
        args.out,
        COLOURS,
        title='Explanations',
        caption='Class activation maps; sensitivity and conservation: 0 is best.',
    )
    print(f'picture: {args.out}')


def explain_detection(
    args: argparse.Namespace,
    model: nn.Module,
    inputs: torch.Tensor,
    sample: DetDataSample,
    index: int,
    title: str,
    pixels: np.ndarray,
) -> HeatmapRow:
    """Explain one detection and print the axioms."""
    found = sample.pred_instances[index]
    box = found.bboxes[0].cpu().numpy()
    what = (
        f'{model.dataset_meta["classes"][int(found.labels)]} {float(found.scores):.2f}'
    )
    print(f'\n{sample.img_path}, {title.split()[0]}: {what}')
    evidence, layer = study(model, inputs, sample, index, args, progress=True)
    if evidence.is_empty:
        raise ValueError(
            f'the score of detection {index} does not depend on layer {layer!r}; '
            'leave --layer out for the level that it comes from'
        )
    explanations = {method: explain(evidence, method) for method in args.method}
    print(f'\nlayer {layer}, S = {float(evidence.score):.3f}')
    for method, found in explanations.items():
        print(
            f'{TITLES[method]:19} sensitivity {found.sensitivity:.3f}  '
            f'conservation {found.conservation:.3f}'
        )
    # a RoI head's maps are of the box, all others of the padded input
    scale = np.array(sample.scale_factor)
    area = (0, 0, *(np.array(inputs.shape[:1:-1]) / scale))
    if layer.startswith('roi_head.'):
        area = tuple(box)
    caption = f'{what}, S = {float(evidence.score):.1f}'
    return HeatmapRow(title, pixels, caption, box, explanations, area)


def average(args: argparse.Namespace, models: dict[str, nn.Module]) -> None:
    """Print the axioms of each method, averaged over the test set."""
    rows = []
    for name, model in models.items():
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
            evidence, _ = study(model, *views[view], rank, args, progress=False)
            if evidence.is_empty:
                unrelated += 1
                continue
            for method in args.method:
                found = explain(evidence, method)
                rows.append((name, method, found.sensitivity, found.conservation))
        print()
        if unrelated:
            print(f'{name}: {unrelated} detections do not depend on {args.layer}')
    print_table(rows)


def print_table(rows: Sequence[tuple[str, str, float, float]]) -> None:
    """Print means and medians as a Markdown table."""
    if not rows:
        raise ValueError(
            'there is no detection to average over; lower --score-thr, or choose '
            'another --layer'
        )
    head = ['upsampler', 'method', 'detections']
    head += ['sensitivity', 'median', 'conservation', 'median']
    body = []
    for name, method in dict.fromkeys(row[:2] for row in rows):
        figures = np.array([row[2:] for row in rows if row[:2] == (name, method)])
        pairs = np.transpose([figures.mean(0), np.median(figures, axis=0)])
        body.append(
            [name, TITLES[method], str(len(figures))]
            + [f'{value:.3f}' for value in pairs.flat]
        )
    print(to_markdown(head, body, texts=2))


def main() -> None:
    args = parse_args()
    pairs = [(args.config, args.checkpoint), *args.also]
    models = load_detectors(pairs, args.device, args.cfg_options)
    if args.images:
        show_images(args, models)
    else:
        average(args, models)


if __name__ == '__main__':
    main()
