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
from mmdet.datasets.transforms import LoadAnnotations
from mmdet.registry import DATASETS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_overlaps
from mmengine.utils import track_iter_progress
from torch import nn
from torch.nn.functional import interpolate

from dlu_mmdet.analysis.matching import match_detections
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
    use_safe_loaders,
)
from dlu_mmdet.visualization.cam import (
    METHODS,
    TITLES,
    Explanation,
    LayerScore,
    collect_evidence,
    explain,
    find_layer,
)
from dlu_mmdet.visualization.curves import COLOURS as CURVE_COLOURS
from dlu_mmdet.visualization.curves import draw_curves
from dlu_mmdet.visualization.detector_score import (
    default_layer,
    detect,
    detection_probability,
    detection_score,
)
from dlu_mmdet.visualization.figures import save_figure
from dlu_mmdet.visualization.heatmaps import COLOURS, HeatmapRow, draw_heatmaps
from dlu_mmdet.visualization.images import image_names
from dlu_mmdet.visualization.map_measures import (
    area_under,
    blurred,
    box_coverage,
    cubic_shares,
    energy_share,
    mean_colour,
    pixel_ranks,
    replacement_curve,
    spread_map,
)
from dlu_mmdet.visualization.scores import explain_empty

#: The columns of each of --measures.
MEASURES = dict(
    axioms=('sensitivity', 'conservation'),
    pointing=('energy in box', 'energy in mask'),
    curves=('deletion', 'insertion'),
)
#: Maps that know nothing of the network. Ranks of equal values are random.
CONTROLS = ('uniform, random order', "the detection's box")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='path of the config')
    parser.add_argument('checkpoint', help='path of the checkpoint')
    parser.add_argument(
        'images',
        nargs='*',
        metavar='IMAGE',
        help="images to picture; with none, --measures are averaged over the config's "
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
        '--measures',
        nargs='+',
        choices=list(MEASURES),
        help='what to average over the test set: the axioms, the pointing game '
        "(the map's share inside the object) and the deletion and insertion curves, "
        'which take minutes (default: axioms)',
    )
    parser.add_argument(
        '--steps',
        type=int,
        help='how many altered images make a curve, at least 2 (default: 20)',
    )
    parser.add_argument(
        '--curves-out',
        help='the picture of the curves, a .png file (default: work_dirs/curves.png)',
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
        help='channels to remove, or altered images to run, at once '
        '(default: %(default)s)',
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
        for flag, what in {
            'num_detections': 'how many to average over',
            'measures': 'what to average',
            'steps': "the curves'",
            'curves_out': 'the picture of the curves',
        }.items():
            if getattr(args, flag) is not None:
                raise ValueError(
                    f'--{flag.replace("_", "-")} is {what}, which is done without an '
                    'IMAGE; leave one of them out'
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
        args.measures = [m for m in MEASURES if m in (args.measures or ['axioms'])]
        check_curves(args)
    suffixes = ('.png',) if args.images else ('.md', '.csv')
    if args.out and (Path(args.out).suffix not in suffixes or Path(args.out).is_dir()):
        what = 'the picture is' if args.images else 'without an IMAGE the table is'
        raise ValueError(
            f'--out: {what} a {" or ".join(suffixes)} file, got {args.out}'
        )
    if args.out:
        check_writable(args.out)


def check_curves(args: argparse.Namespace) -> None:
    """Fill in the flags of the curves, or refuse them where there are none."""
    for flag in ('steps', 'curves_out'):
        if 'curves' not in args.measures and getattr(args, flag) is not None:
            raise ValueError(
                f'--{flag.replace("_", "-")} {getattr(args, flag)} is of the curves; '
                'add them with --measures curves'
            )
    if 'curves' in args.measures:
        args.steps = 20 if args.steps is None else args.steps
        if args.steps < 2:
            raise ValueError(f'--steps must be at least 2, got {args.steps}')
        args.curves_out = args.curves_out or 'work_dirs/curves.png'
        if Path(args.curves_out).suffix != '.png' or Path(args.curves_out).is_dir():
            raise ValueError(
                f'--curves-out: the picture is a .png file, got {args.curves_out}'
            )
        check_writable(args.curves_out)


def find_detections(model: nn.Module, image: str, score_thr: float):
    """Run a detector; drop what is below the threshold, and note the best score."""
    inputs, sample = detect(model, image)
    found = sample.pred_instances
    best = float(found.scores.max()) if len(found) else None
    sample.set_metainfo(dict(best_score=best))
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
    print_empty(
        args,
        {
            f'{names[each.image]} ({each.name})': each.sample
            for each in subjects
            if not len(each.sample.pred_instances)
        },
    )
    save_figure(
        draw_heatmaps(rows, args.method),
        args.out,
        COLOURS,
        title='Explanations',
        caption='Class activation maps; sensitivity and conservation: 0 is best.',
    )
    print(f'picture: {args.out}')


def print_empty(args: argparse.Namespace, samples: dict[str, DetDataSample]) -> None:
    """Say what would show detections in images, by name, that have none."""
    if samples:
        best = {name: sample.get('best_score') for name, sample in samples.items()}
        print(explain_empty(best, args.score_thr, '--score-thr '))


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
    area = tuple(covered(layer, subject.inputs, subject.sample, box))
    caption = f'{subject.caption}, S = {float(evidence.score):.1f}'
    return HeatmapRow(title, pixels, caption, box, explanations, area)


def covered(
    layer: str, inputs: torch.Tensor, sample: DetDataSample, box: np.ndarray
) -> np.ndarray:
    """x1 y1 x2 y2, in pixels of the image, of what the maps of a layer cover."""
    # a RoI head's maps are of the box, all others of the padded input
    if layer.startswith('roi_head.'):
        return box
    scale = np.array(sample.scale_factor)
    return np.array([0, 0, *(np.array(inputs.shape[:1:-1]) / scale)])


@dataclass
class View:
    """An image of the test set as a detector sees it.

    Attributes:
        number (int): Which image of the test set.
        inputs (torch.Tensor): As the network takes the image.
        sample (DetDataSample): With the detections.
        objects (list[dict, optional]): For each detection the instance of the data
            set that it found, None if it found none.
    """

    number: int
    inputs: torch.Tensor
    sample: DetDataSample
    objects: list[dict | None]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, in the input's pixels, of what is not padding."""
        return tuple(self.sample.img_shape[:2])

    @property
    def scale(self) -> np.ndarray:
        """(4,), from a box in pixels of the image to one in the input's."""
        return np.tile(self.sample.scale_factor, 2)

    def box(self, index: int) -> np.ndarray:
        """(4,) x1 y1 x2 y2 of a detection, in pixels of the image."""
        return self.sample.pred_instances.bboxes[index].cpu().numpy()

    def regions(self, index: int) -> dict[str, torch.Tensor]:
        """What a detection is to point at, as (h, w) shares of pixels.

        Returns:
            dict[str, torch.Tensor]: 'box' and, if the data set has it, 'mask' of the
            object that it found; empty if it found none.
        """
        instance = self.objects[index]
        if instance is None:
            return {}
        truth = LoadAnnotations(with_mask='mask' in instance)(
            dict(instances=[instance], ori_shape=self.sample.ori_shape[:2])
        )
        (box,) = truth['gt_bboxes'].numpy()
        regions = {'box': box_coverage(box * self.scale, self.size)}
        # mmdet makes nothing of a polygon without an area
        if 'gt_masks' in truth and truth['gt_masks'].masks.any():
            mask = torch.from_numpy(truth['gt_masks'].masks).float()[None]
            mask = interpolate(mask, self.size, mode='bilinear', antialias=True)
            regions['mask'] = mask[0, 0]
        return regions


def look(args: argparse.Namespace, model: nn.Module, dataset, number: int) -> View:
    """Detect in an image of the test set, and match what was found if asked to."""
    info = dataset.get_data_info(number)
    inputs, sample = find_detections(model, info['img_path'], args.score_thr)
    found = sample.pred_instances.cpu().numpy()
    objects = [None] * len(found)
    if 'pointing' in args.measures:
        truth = LoadAnnotations()(dict(info))
        matches = match_detections(
            found.bboxes,
            found.labels,
            found.scores,
            truth['gt_bboxes'].numpy(),
            truth['gt_bboxes_labels'],
            truth['gt_ignore_flags'],
        )
        for index in np.flatnonzero(matches.hits):
            objects[index] = info['instances'][matches.det_gt[index]]
    return View(number, inputs, sample, objects)


def measure(
    args: argparse.Namespace,
    model: nn.Module,
    view: View,
    index: int,
    layer: str,
    explanations: dict[str, Explanation],
) -> tuple[list[dict], dict[str, np.ndarray]]:
    """Measure the maps of one detection, and the controls beside them.

    Returns:
        tuple[list[dict], dict[str, np.ndarray]]: A row for each method, and for each
        its curves (2, T), by deletion and by insertion.
    """
    box = view.box(index)
    area = covered(layer, view.inputs, view.sample, box) * view.scale
    maps = {
        TITLES[method]: spread_map(each.heatmap, area, view.size)
        for method, each in explanations.items()
    }
    rows = {title: dict(method=title) for title in maps}
    if 'axioms' in args.measures:
        for method, each in explanations.items():
            rows[TITLES[method]].update(
                sensitivity=each.sensitivity, conservation=each.conservation
            )
    if args.measures == ['axioms']:
        return list(rows.values()), {}
    own = box_coverage(box * view.scale, view.size)
    maps.update(zip(CONTROLS, (torch.ones(view.size), own)))
    rows.update((title, dict(method=title)) for title in CONTROLS)
    if 'pointing' in args.measures:
        regions = view.regions(index)
        for title, heatmap in maps.items():
            for name, region in regions.items():
                rows[title][f'energy in {name}'] = energy_share(heatmap, region)
    curves = {}
    if 'curves' in args.measures:
        score = detection_probability(model, view.inputs, view.sample, index)
        shares = cubic_shares(args.steps)
        changes = (
            (view.inputs, mean_colour(view.inputs, view.size)),
            (blurred(view.inputs, view.size), view.inputs),
        )
        for title, heatmap in maps.items():
            ranks = pixel_ranks(heatmap, seed=view.number).to(view.inputs.device)
            found = [
                replacement_curve(score, *ends, ranks, shares, args.batch_size)
                for ends in changes
            ]
            rows[title].update(
                (name, area_under(curve, shares))
                for name, curve in zip(MEASURES['curves'], found)
            )
            curves[title] = torch.stack(found).numpy()
    return list(rows.values()), curves


def average(args: argparse.Namespace, models: dict[str, nn.Module]) -> None:
    """Print the measures of each method, averaged over the test set."""
    rows, curves = [], {}
    for name, model in models.items():
        check_data(model.cfg, ('test',), scored=False)
        dataset = DATASETS.build(model.cfg.test_dataloader.dataset)
        number = min(args.num_detections, len(dataset))
        spread = np.linspace(0, len(dataset) - 1, number).round().astype(int)
        print(f'{name}: detecting in {number} images')
        views = [
            look(args, model, dataset, index)
            for index in track_iter_progress(spread.tolist())
        ]
        # every image's best detection first, then every second best, ...
        ranked = sorted(
            (rank, number)
            for number, view in enumerate(views)
            for rank in range(len(view.sample.pred_instances))
        )[: args.num_detections]
        if not ranked:
            print()
            infos = [dataset.get_data_info(view.number) for view in views]
            ids = [f'image {info["img_id"]} ({name})' for info in infos]
            print_empty(args, dict(zip(ids, (view.sample for view in views))))
        print(f'\n{name}: explaining {len(ranked)} detections')
        unrelated = 0
        for rank, number in track_iter_progress(ranked):
            view = views[number]
            run, layer = find_score(model, view.inputs, view.sample, rank, args.layer)
            evidence = collect_evidence(LayerScore(model, layer, run), args.batch_size)
            if evidence.is_empty:
                unrelated += 1
                continue
            answers = {method: explain(evidence, method) for method in args.method}
            found, drawn = measure(args, model, view, rank, layer, answers)
            rows += [dict(row, upsampler=name) for row in found]
            for title, pair in drawn.items():
                curves.setdefault(name, {}).setdefault(title, []).append(pair)
        print()
        if unrelated:
            print(f'{name}: {unrelated} detections do not depend on {args.layer}')
    print_table(rows, args.measures, args.out)
    if curves:
        show_curves(args, curves)


def show_curves(
    args: argparse.Namespace, curves: dict[str, dict[str, list[np.ndarray]]]
) -> None:
    """Draw the mean curves; print where they begin and end."""
    stacked = {
        name: {title: np.stack(pairs) for title, pairs in each.items()}
        for name, each in curves.items()
    }
    for name, each in stacked.items():
        # the ends are those of any order
        image, colour, soft = (
            float(each[CONTROLS[0]][:, side, step].mean())
            for side, step in ((0, 0), (0, -1), (1, 0))
        )
        print(
            f'{name}: mean probability {image:.3f}, of the mean colour {colour:.3f}, '
            f'of the blurred image {soft:.3f}'
        )
    save_figure(
        draw_curves(stacked, cubic_shares(args.steps).numpy(), CONTROLS),
        args.curves_out,
        CURVE_COLOURS,
        title='Deletion and insertion',
        caption="A detection's probability while pixels are replaced in the order of "
        'a map; bands: one standard error.',
    )
    print(f'picture: {args.curves_out}')


def cells(values: np.ndarray, second: str, digits: int) -> list[str]:
    """The mean, and the median or the standard error; '–' where there is none."""
    found = [values.mean()] if len(values) else []
    if second == 'median' and len(values):
        found.append(np.median(values))
    elif len(values) > 1:
        found.append(values.std(ddof=1) / len(values) ** 0.5)
    return [f'{value:.{digits}f}' for value in found] + ['–'] * (2 - len(found))


def print_table(rows: Sequence[dict], measures: Sequence[str], out: str | None) -> None:
    """Print averages as a Markdown table; write them where --out says.

    Beside the mean stands the median of what has no upper bound, and the standard
    error of what has.
    """
    if not rows:
        raise ValueError(
            'there is no detection to average over; lower --score-thr, or choose '
            'another --layer'
        )
    head, columns = ['upsampler', 'method', 'detections'], []
    for measure in measures:
        if measure == 'pointing':
            head.append('matched')
        for name in MEASURES[measure]:
            # not every data set has masks
            if name == 'energy in mask' and not any(name in row for row in rows):
                continue
            second = 'median' if measure == 'axioms' else 's.e.'
            head += [name, f'{second} {name}']
            columns.append((name, second))
    body = []
    for key in dict.fromkeys((row['upsampler'], row['method']) for row in rows):
        group = [row for row in rows if (row['upsampler'], row['method']) == key]
        line = [*key, str(len(group))]
        for name, second in columns:
            values = np.array([row[name] for row in group if name in row])
            if name == 'energy in box':
                line.append(str(len(values)))
            # small objects have small shares
            line += cells(values, second, 4 if name.startswith('energy') else 3)
        body.append(line)
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
    use_safe_loaders()
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
