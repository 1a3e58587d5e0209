"""Class activation maps of detections, and measures of their quality."""

from __future__ import annotations

import csv
import difflib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.datasets.transforms import LoadAnnotations
from mmdet.registry import DATASETS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_overlaps
from mmengine.utils import track_iter_progress
from torch import nn
from torch.nn.functional import interpolate

from ..datasets import check_data
from ..engine import check_classes, load_detectors
from ..evaluation.matching import match_detections
from ..utils.files import atomic_write, check_writable
from ..utils.tables import to_markdown
from ..visualization.detect import detect
from ..visualization.figures import save_figure
from ..visualization.images import image_names
from ..visualization.scores import explain_empty
from .cam import TITLES, Explanation, LayerScore, collect_evidence, explain, find_layer
from .cam_metrics import (
    area_under,
    blurred,
    box_coverage,
    cubic_shares,
    energy_share,
    mean_color,
    pixel_ranks,
    replacement_curve,
    spread_map,
)
from .curves import KEPT_COLORS as CURVE_COLORS
from .curves import draw_curves
from .heatmaps import KEPT_COLORS, HeatmapRow, draw_heatmaps
from .options import CURVES_OUT, MEASURES, NUM_DETECTIONS, OUT, STEPS, Options
from .targets import default_layer, detection_probability, detection_score

#: Maps that know nothing of the network. Ranks of equal values are random.
CONTROLS = ('uniform, random order', "the detection's box")


def find_detections(model: nn.Module, image: str, score_thr: float):
    """Detect in an image; drop low scores, and keep the best score."""
    inputs, sample = detect(model, image)
    found = sample.pred_instances
    best = float(found.scores.max()) if len(found) else None
    sample.set_metainfo(dict(best_score=best))
    sample.pred_instances = found[found.scores >= score_thr]
    return inputs, sample


def check_target(target: str, classes: Sequence[str]) -> None:
    """Refuse a class of --target that the detectors do not have."""
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
    """Index of the detection that --target names, or None."""
    kind, _, value = target.partition(':')
    labels = sample.pred_instances.labels.tolist()
    if kind == 'det':
        return int(value) if int(value) < len(labels) else None
    label = classes.index(value)
    return labels.index(label) if label in labels else None


def name_target(target: str) -> str:
    """Caption of the detection that --target names."""
    kind, _, value = target.partition(':')
    return value if kind == 'class' else f'detection {value}'


def same_object(sample: DetDataSample, box: torch.Tensor, label: int) -> int | None:
    """Index of another detector's detection of an object, by the highest IoU."""
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
    """Score function of a detection, for LayerScore, and the layer's name."""
    run, level = detection_score(model, inputs, sample, index)
    layer = (layer or default_layer(model, level)).replace('{level}', str(level))
    find_layer(model, layer)  # there is such a layer
    return run, layer


@dataclass
class Subject:
    """The detection that a row of the picture explains.

    Attributes:
        name (str): The detector's.
        model (nn.Module): The detector.
        image (str): The image file.
        inputs (torch.Tensor): (1, C, H, W), the network's input.
        sample (DetDataSample): All detections in the image.
        caption (str): Class and score, or why there is no detection.
        index (int, optional): Index of the detection; None if there is none.
        run (Callable, optional): Its score function, for LayerScore.
        layer (str): Name of the layer to explain.
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
    models: dict[str, nn.Module],
    images: Sequence[str],
    target: str,
    layer: str | None,
    score_thr: float,
) -> list[Subject]:
    """Detect in all images; find the same object with every detector.

    Raises:
        ValueError: If --target is not found in a single image.
    """
    classes = list(next(iter(models.values())).dataset_meta['classes'])
    subjects = []
    for image in images:
        known = None  # box and label of the first detector that has it
        for name, model in models.items():
            inputs, sample = find_detections(model, image, score_thr)
            subject = Subject(name, model, image, inputs, sample)
            subjects.append(subject)
            found = sample.pred_instances
            if not len(found):
                subject.caption = f'no detection of score ≥ {score_thr:g}'
                continue
            if known is None:
                index = pick_target(sample, target, classes)
                wanted = name_target(target)
                if index is None and len(images) == 1:
                    labels = [classes[label] for label in found.labels]
                    raise ValueError(
                        f'--target: {wanted} is not among the {len(found)} detections '
                        f'of {name} in {image}, numbered from 0: '
                        + ', '.join(f'{n} {key}' for key, n in Counter(labels).items())
                        + '; a lower --score-thr gives more'
                    )
            else:
                index = same_object(sample, *known)
                wanted = classes[known[1]]
            if index is None:
                subject.caption = f'{wanted} not found'
                continue
            label = int(found.labels[index])
            known = known or (found.bboxes[index], label)
            subject.index = index
            subject.caption = f'{classes[label]} {float(found.scores[index]):.2f}'
            subject.run, subject.layer = find_score(model, inputs, sample, index, layer)
    return subjects


def explain_images(
    models: Sequence[tuple[str, str]],
    images: Sequence[str | os.PathLike],
    out: str | Path = OUT,
    *,
    target: str = 'det:0',
    **options: Any,
) -> None:
    """Draw class activation maps of a detection: a row for each image and detector.

    ``dlu_mmdet explain`` with images, from Python.

    Args:
        models (Sequence[tuple[str, str]]): Config and checkpoint of each detector.
        images (Sequence[str | PathLike]): Image files.
        out (str | Path): A .png file.
        target (str): 'det:N', the detection with the N-th best score, from 0, or
            'class:NAME', the best one of a class.
        **options: See :class:`~dlu_mmdet.explain.options.Options`.

    Raises:
        FileNotFoundError: If a config, checkpoint or image does not exist.
        ValueError: If there is no such class or layer, or a single image has no such
            detection.
    """
    images = [os.fspath(image) for image in images]
    given = Options(**options)
    for image in images:
        if '://' not in image and not Path(image).is_file():
            raise FileNotFoundError(f'image {image} does not exist; check the path')
    check_writable(out)
    detectors = _load(models, given)
    configs = [config for config, _ in models]
    classes = next(iter(detectors.values())).dataset_meta['classes']
    check_classes(detectors, configs, classes, configs[0])
    check_target(target, classes)
    # mistakes show before the first detection is explained, which takes long
    subjects = find_subjects(detectors, images, target, given.layer, given.score_thr)
    several = len(images) > 1
    names = dict(zip(images, image_names(images)))
    rows = []
    for subject in subjects:
        print(f'\n{subject.image}, {subject.name}: {subject.caption}')
        name = subject.name
        title = f'{name}\n{names[subject.image]}' if several else name
        rows.append(
            explain_subject(subject, title, given.methods, given.batch_size, several)
        )
    empty = {
        f'{names[each.image]} ({each.name})': each.sample
        for each in subjects
        if not len(each.sample.pred_instances)
    }
    print_empty(empty, given.score_thr)
    save_figure(
        draw_heatmaps(rows, given.methods),
        out,
        KEPT_COLORS,
        title='Explanations',
        caption='Class activation maps; sensitivity and conservation: 0 is best.',
    )
    print(f'picture: {out}')


def print_empty(samples: dict[str, DetDataSample], score_thr: float) -> None:
    """Print how to see detections in images that have none."""
    if samples:
        best = {name: sample.get('best_score') for name, sample in samples.items()}
        print(explain_empty(best, score_thr, '--score-thr '))


def _load(models: Sequence[tuple[str, str]], options: Options) -> dict[str, nn.Module]:
    """The detectors, each with the layer that is asked for."""
    detectors = load_detectors(
        models, options.device, options.cfg_options, options.upsampler
    )
    if options.layer and '{level}' not in options.layer:
        for model in detectors.values():
            find_layer(model, options.layer)
    return detectors


def explain_subject(
    subject: Subject,
    title: str,
    methods: Sequence[str],
    batch_size: int,
    several: bool,
) -> HeatmapRow:
    """Explain one detection and print the axioms.

    Raises:
        ValueError: If the score does not depend on the layer, with a single image; with
            several the row has a caption about it.
    """
    pixels = subject.sample.image
    if subject.index is None or subject.run is None:
        return HeatmapRow(title, pixels, subject.caption)
    found = subject.sample.pred_instances[subject.index]
    box, layer = found.bboxes[0].cpu().numpy(), subject.layer
    score = LayerScore(subject.model, layer, subject.run)
    evidence = collect_evidence(score, batch_size, progress=True)
    if evidence.is_empty:
        message = f'the score of detection {subject.index} does not depend on layer '
        message += f'{layer!r}; leave --layer out for the level that it comes from'
        if not several:
            raise ValueError(message)
        print(f'\n{message}')
        caption = f'{subject.caption}, does not depend\non {layer}'
        return HeatmapRow(title, pixels, caption, box)
    explanations = {method: explain(evidence, method) for method in methods}
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
    """x1 y1 x2 y2 of the area that a layer's maps cover, in pixels of the image."""
    # a RoI head's maps are of the box, all others of the padded input
    if layer.startswith('roi_head.'):
        return box
    scale = np.array(sample.scale_factor)
    return np.array([0, 0, *(np.array(inputs.shape[:1:-1]) / scale)])


@dataclass
class View:
    """An image of the test set with its detections.

    Attributes:
        number (int): Index of the image in the test set.
        inputs (torch.Tensor): (1, C, H, W), the network's input.
        sample (DetDataSample): The detections.
        objects (list[dict | None]): The matched instance of each detection; None
            without a match.
    """

    number: int
    inputs: torch.Tensor
    sample: DetDataSample
    objects: list[dict | None]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the input without padding, in pixels."""
        return tuple(self.sample.img_shape[:2])

    @property
    def scale(self) -> np.ndarray:
        """(4,) factors from boxes in the image to boxes in the network's input."""
        return np.tile(self.sample.scale_factor, 2)

    def box(self, index: int) -> np.ndarray:
        """(4,) x1 y1 x2 y2 of a detection, in pixels of the image."""
        return self.sample.pred_instances.bboxes[index].cpu().numpy()

    def regions(self, index: int) -> dict[str, torch.Tensor]:
        """Regions of the object that a detection matches.

        Returns:
            dict[str, torch.Tensor]: (h, w) pixel coverages in [0, 1]: 'box' and, if
            annotated, 'mask'; empty without a match.
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


def look(
    model: nn.Module, dataset, number: int, score_thr: float, matched: bool
) -> View:
    """Detect in an image of the test set; optionally match the detections."""
    info = dataset.get_data_info(number)
    inputs, sample = find_detections(model, info['img_path'], score_thr)
    found = sample.pred_instances.cpu().numpy()
    objects: list[dict | None] = [None] * len(found)
    if matched:
        truth = LoadAnnotations()(dict(info))
        matches = match_detections(
            found.bboxes,
            found.labels,
            found.scores,
            truth['gt_bboxes'].numpy(),
            truth['gt_bboxes_labels'],
            truth['gt_ignore_flags'],
        )
        for index in np.flatnonzero(matches.true_positives):
            objects[index] = info['instances'][matches.det_gt[index]]
    return View(number, inputs, sample, objects)


def measure(
    model: nn.Module,
    view: View,
    index: int,
    layer: str,
    explanations: dict[str, Explanation],
    measures: Sequence[str],
    steps: int,
    batch_size: int,
) -> tuple[list[dict], dict[str, np.ndarray]]:
    """Measure the maps of one detection and of the controls.

    Returns:
        tuple[list[dict], dict[str, np.ndarray]]: A row for each method, and its
        deletion and insertion curves (2, T) by title.
    """
    box = view.box(index)
    area = covered(layer, view.inputs, view.sample, box) * view.scale
    maps = {
        TITLES[method]: spread_map(each.heatmap, area, view.size)
        for method, each in explanations.items()
    }
    rows: dict[str, dict[str, Any]] = {title: dict(method=title) for title in maps}
    if 'axioms' in measures:
        for method, each in explanations.items():
            rows[TITLES[method]].update(
                sensitivity=each.sensitivity, conservation=each.conservation
            )
    if list(measures) == ['axioms']:
        return list(rows.values()), {}
    own = box_coverage(box * view.scale, view.size)
    maps.update(zip(CONTROLS, (torch.ones(view.size), own)))
    rows.update((title, dict(method=title)) for title in CONTROLS)
    if 'pointing' in measures:
        regions = view.regions(index)
        for title, heatmap in maps.items():
            for name, region in regions.items():
                rows[title][f'energy in {name}'] = energy_share(heatmap, region)
    curves = {}
    if 'curves' in measures:
        score = detection_probability(model, view.inputs, view.sample, index)
        shares = cubic_shares(steps)
        changes = (
            (view.inputs, mean_color(view.inputs, view.size)),
            (blurred(view.inputs, view.size), view.inputs),
        )
        for title, heatmap in maps.items():
            ranks = pixel_ranks(heatmap, seed=view.number).to(view.inputs.device)
            found = [
                replacement_curve(score, *ends, ranks, shares, batch_size)
                for ends in changes
            ]
            rows[title].update(
                (name, area_under(curve, shares))
                for name, curve in zip(MEASURES['curves'], found)
            )
            curves[title] = torch.stack(found).numpy()
    return list(rows.values()), curves


def explain_dataset(
    models: Sequence[tuple[str, str]],
    out: str | Path | None = None,
    *,
    measures: Sequence[str] = ('axioms',),
    num_detections: int = NUM_DETECTIONS,
    steps: int = STEPS,
    curves_out: str | Path = CURVES_OUT,
    **options: Any,
) -> None:
    """Print measures of each method, averaged over detections of the test set.

    ``dlu_mmdet explain`` without images, from Python.

    Args:
        models (Sequence[tuple[str, str]]): Config and checkpoint of each detector.
        out (str | Path, optional): A .md or .csv file for the table.
        measures (Sequence[str]): Keys of :data:`~dlu_mmdet.explain.options.MEASURES`.
        num_detections (int): Number of detections to average over.
        steps (int): Altered images of a curve, at least 2.
        curves_out (str | Path): The .png file of the curves.
        **options: See :class:`~dlu_mmdet.explain.options.Options`.

    Raises:
        FileNotFoundError: If a config or checkpoint does not exist.
        ValueError: If there is no such layer, or no detection.
    """
    given = Options(**options)
    if out:
        check_writable(out)
    if 'curves' in measures:
        check_writable(curves_out)
    detectors = _load(models, given)
    measures = [name for name in MEASURES if name in measures]
    rows, curves = [], {}
    for name, model in detectors.items():
        check_data(model.cfg, ('test',), scored=False)
        dataset = DATASETS.build(model.cfg.test_dataloader.dataset)
        number = min(num_detections, len(dataset))
        spread = np.linspace(0, len(dataset) - 1, number).round().astype(int)
        print(f'{name}: detecting in {number} images')
        views = [
            look(model, dataset, index, given.score_thr, 'pointing' in measures)
            for index in track_iter_progress(spread.tolist())
        ]
        # every image's best detection first, then every second best, ...
        ranked = sorted(
            (rank, number)
            for number, view in enumerate(views)
            for rank in range(len(view.sample.pred_instances))
        )[:num_detections]
        if not ranked:
            print()
            infos = [dataset.get_data_info(view.number) for view in views]
            ids = [f'image {info["img_id"]} ({name})' for info in infos]
            samples = dict(zip(ids, (view.sample for view in views)))
            print_empty(samples, given.score_thr)
        print(f'\n{name}: explaining {len(ranked)} detections')
        unrelated = 0
        for rank, number in track_iter_progress(ranked):
            view = views[number]
            run, own = find_score(model, view.inputs, view.sample, rank, given.layer)
            evidence = collect_evidence(LayerScore(model, own, run), given.batch_size)
            if evidence.is_empty:
                unrelated += 1
                continue
            answers = {method: explain(evidence, method) for method in given.methods}
            found, drawn = measure(
                model, view, rank, own, answers, measures, steps, given.batch_size
            )
            rows += [dict(row, upsampler=name) for row in found]
            for title, pair in drawn.items():
                curves.setdefault(name, {}).setdefault(title, []).append(pair)
        print()
        if unrelated:
            print(f'{name}: {unrelated} detections do not depend on {given.layer}')
    print_table(rows, measures, out)
    if curves:
        show_curves(curves, steps, curves_out)


def show_curves(
    curves: dict[str, dict[str, list[np.ndarray]]], steps: int, out: str | Path
) -> None:
    """Draw the mean curves; print their first and last values."""
    stacked = {
        name: {title: np.stack(pairs) for title, pairs in each.items()}
        for name, each in curves.items()
    }
    for name, each in stacked.items():
        # the ends are those of any order
        image, color, soft = (
            float(each[CONTROLS[0]][:, side, step].mean())
            for side, step in ((0, 0), (0, -1), (1, 0))
        )
        print(
            f'{name}: mean probability {image:.3f}, of the mean color {color:.3f}, '
            f'of the blurred image {soft:.3f}'
        )
    save_figure(
        draw_curves(stacked, cubic_shares(steps).numpy(), CONTROLS),
        out,
        CURVE_COLORS,
        title='Deletion and insertion',
        caption="A detection's probability while pixels are replaced in the order of "
        'a map; bands: one standard error.',
    )
    print(f'picture: {out}')


def cells(values: np.ndarray, second: str, digits: int) -> list[str]:
    """Mean, and median or standard error; '–' where there is none."""
    found = [values.mean()] if len(values) else []
    if second == 'median' and len(values):
        found.append(np.median(values))
    elif len(values) > 1:
        found.append(values.std(ddof=1) / len(values) ** 0.5)
    return [f'{value:.{digits}f}' for value in found] + ['–'] * (2 - len(found))


def _average(
    key: tuple[str, str], rows: Sequence[dict], columns: Sequence[tuple[str, str]]
) -> list[str]:
    """The line of an upsampler and a method in the table."""
    group = [row for row in rows if (row['upsampler'], row['method']) == key]
    line = [*key, str(len(group))]
    for name, second in columns:
        values = np.array([row[name] for row in group if name in row])
        if name == 'energy in box':
            line.append(str(len(values)))
        # small objects have small shares
        line += cells(values, second, 4 if name.startswith('energy') else 3)
    return line


def print_table(
    rows: Sequence[dict], measures: Sequence[str], out: str | Path | None
) -> None:
    """Print averages as a Markdown table; write them to --out.

    Prints mean and median of unbounded measures, mean and standard error of the others.
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
    keys = dict.fromkeys((row['upsampler'], row['method']) for row in rows)
    body = [_average(key, rows, columns) for key in keys]
    table = to_markdown(head, body, texts=2)
    print(table)
    if out is None:
        return
    with (
        atomic_write(out) as partial,
        open(partial, 'w', newline='', encoding='utf-8') as file,
    ):
        if Path(out).suffix == '.csv':
            csv.writer(file).writerows([head, *body])
        else:
            file.write(f'{table}\n')
    print(f'table: {out}')
