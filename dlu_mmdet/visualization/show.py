"""Draw detections, reassembly kernels and feature maps of detectors."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmdet.registry import DATASETS
from mmengine.dataset import BaseDataset
from mmengine.structures import InstanceData
from mmengine.utils import track_iter_progress
from torch import nn

from ..datasets import check_data
from ..engine import check_classes, load_detectors
from ..evaluation.matching import disagreement, match_detections
from ..utils.files import check_writable
from . import detections, features, kernel_figure, kernel_maps
from . import upsampling as upsampling_figure
from .detect import detect
from .figures import free_path, save_figure, write_page
from .images import image_names, load_image
from .scores import explain_empty

#: Images of one picture where their number is not given.
NUM_IMAGES = dict(detections=4, kernels=1, features=1, upsampling=1)


@dataclass(frozen=True)
class Options:
    """Images and detectors of a picture.

    Attributes:
        num_images (int, optional): Number of images with objects.
        image_ids (Sequence[str], optional): Ids of images to show instead.
        images (Sequence[str | PathLike], optional): Files to show instead, without
            ground truth.
        device (str): Device of the detectors.
        cfg_options (Mapping, optional): Settings to override in every config.
        upsampler (dict, optional): ``upsample_cfg`` of every neck.
    """

    num_images: int | None = None
    image_ids: Sequence[str] | None = None
    images: Sequence[str | os.PathLike] | None = None
    device: str = 'cpu'
    cfg_options: Mapping | None = None
    upsampler: dict | None = None

    def load(self, models: Sequence[tuple[str, str]]) -> dict[str, nn.Module]:
        """The detectors of these configs and checkpoints, by name."""
        return load_detectors(models, self.device, self.cfg_options, self.upsampler)


def pick_images(
    dataset: BaseDataset, num_images: int, image_ids: Sequence[str] | None
) -> list[dict]:
    """Pick images by id, or evenly spaced ones."""
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
    """Find images by id; ids are compared as text."""
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


def choose_images(
    dataset: BaseDataset | None,
    number: int,
    images: Sequence[str | os.PathLike] | None,
    image_ids: Sequence[str] | None,
) -> list[dict]:
    """The images to show: files, or those of the data set.

    Returns:
        list[dict]: ``img_path``, ``name`` and, from the data set, ``instances``.
    """
    if dataset is None:
        paths = [os.fspath(path) for path in images or ()]
        for path in paths:
            if '://' not in path and not Path(path).is_file():
                raise FileNotFoundError(
                    f'--images: {path} does not exist; check the path, or take '
                    'images of the data set with --image-ids'
                )
        names = image_names(paths, suffix=False)
        return [dict(img_path=path, name=name) for path, name in zip(paths, names)]
    if number < 1:
        raise ValueError(f'--num-images must be at least 1, got {number}')
    infos = pick_images(dataset, number, image_ids)
    return [dict(info, name=f'image {info["img_id"]}') for info in infos]


def load_dataset(models: dict) -> BaseDataset:
    """The test set of the first config."""
    cfg = next(iter(models.values())).cfg
    check_data(cfg, ('test',), scored=False)
    return DATASETS.build(cfg.test_dataloader.dataset)


def ground_truth(info: dict) -> InstanceData:
    """The objects of an image: ``bboxes``, ``labels`` and ``crowd``."""
    instances = info.get('instances', [])
    return InstanceData(
        bboxes=np.array([i['bbox'] for i in instances], dtype=float).reshape(-1, 4),
        labels=np.array([i['bbox_label'] for i in instances], dtype=int),
        crowd=np.array([i['ignore_flag'] for i in instances], dtype=bool),
    )


def write(
    out: Path, command: str, figures: Sequence[tuple], colors: Sequence[str]
) -> None:
    """Write figures, each with its name, images and caption."""
    for figure, name, infos, caption in figures:
        # a data set may list a picture under several ids
        source = '\n'.join(
            f'{os.path.abspath(str(info["img_path"]))} {info["name"]}' for info in infos
        )
        path = out
        if path.suffix != '.png':
            path = free_path(path, f'{command} {name}'.strip(), source)
        title = command.capitalize() + (f', {name}' if name else '')
        save_figure(figure, path, colors, title, caption, source)
        print(f'picture: {path}')
    if out.suffix != '.png':
        print(f'page: {write_page(out)}')


def show_detections(
    models: Sequence[tuple[str, str]],
    out: str | Path = 'work_dirs/detections.png',
    *,
    score_thr: float = 0.3,
    iou_thr: float = 0.5,
    only_differences: bool = False,
    **options: Any,
) -> None:
    """Draw true positives, false positives and false negatives of every detector.

    ``dlu_mmdet visualize detections`` from Python.

    Args:
        models (Sequence[tuple[str, str]]): Config and checkpoint of each detector.
            Images and ground truth are of the first config's test set.
        out (str | Path): A .png file, or a folder.
        score_thr (float): Minimum score of a detection.
        iou_thr (float): IoU from which an object counts as found.
        only_differences (bool): Show the images of the data set on which two detectors
            differ most.
        **options: See :class:`Options`; ``num_images`` defaults to 4.

    Raises:
        FileNotFoundError: If a config, checkpoint or image does not exist.
        ValueError: If arguments contradict each other, or the detectors differ in
            classes.
    """
    given = Options(**options)
    images = given.images
    _check_detections(
        models, images, given.image_ids, score_thr, iou_thr, only_differences
    )
    out = _check_out(out)
    detectors = given.load(models)
    first = next(iter(detectors.values()))
    dataset = None if images else load_dataset(detectors)
    classes = _common_classes(models, detectors, dataset)
    number = NUM_IMAGES['detections'] if given.num_images is None else given.num_images
    if only_differences and dataset is not None:
        infos = [dataset.get_data_info(index) for index in range(len(dataset))]
        infos = [dict(info, name=f'image {info["img_id"]}') for info in infos]
    else:
        infos = choose_images(dataset, number, images, given.image_ids)
    truths = None if dataset is None else [ground_truth(info) for info in infos]
    found = detect_in_all(detectors, infos)
    print()
    reasons = explain_empty_images(found, truths, infos, score_thr)
    for reason in reasons:
        print(reason)
    found = {
        name: [boxes[boxes.scores >= score_thr] for boxes in each]
        for name, each in found.items()
    }
    matches, totals = {}, {}
    if truths is not None:
        matches = {
            name: [match(*pair, iou_thr) for pair in zip(boxes, truths)]
            for name, boxes in found.items()
        }
        totals = {name: sum(m.counts for m in each) for name, each in matches.items()}

    shown, names = list(range(len(infos))), [info['name'] for info in infos]
    note = f'score ≥ {score_thr:g}'
    if matches:
        note += f', TP: same class and IoU ≥ {iou_thr:g}'
    if only_differences:
        shown, extents = pick_differences(matches, number)
        note += f'; of {len(infos)} images those on which two detectors differ most'
        for index, (objects, _) in zip(shown, extents):
            names[index] += f': {objects} found by one only'
    figure = detections.draw_detections(
        [load_image(first, infos[i]['img_path'])['image'] for i in shown],
        None if truths is None else [truths[i] for i in shown],
        {name: [boxes[i] for i in shown] for name, boxes in found.items()},
        {name: [each[i] for i in shown] for name, each in matches.items()},
        classes,
        image_names=[names[i] for i in shown],
        note=note,
        totals=totals if len(infos) > 1 else None,
        totals_of=f'{"all" if only_differences else "these"} {len(infos)} images',
    )
    if totals:
        print(f'over {len(infos)} images, score >= {score_thr:g}:')
        for name, (_, checkpoint) in zip(detectors, models):
            print(f'{name}: {detections.describe_counts(totals[name])}  [{checkpoint}]')
    caption = '. '.join([f'{", ".join(detectors)}; {note}', *reasons, ''])
    shown_infos = [infos[i] for i in shown]
    write(
        out, 'detections', [(figure, '', shown_infos, caption)], detections.KEPT_COLORS
    )


def _common_classes(
    models: Sequence[tuple[str, str]], detectors: Mapping, dataset: BaseDataset | None
) -> Sequence[str]:
    """The class names of all detectors and of the data set, where there is one."""
    configs = [config for config, _ in models]
    if dataset is None:
        classes = next(iter(detectors.values())).dataset_meta['classes']
        source = configs[0]
    else:
        classes = dataset.metainfo['classes']
        source = f'the data set of {configs[0]}'
    check_classes(detectors, configs, classes, source)
    return classes


def explain_empty_images(
    found: Mapping[str, Sequence[InstanceData]],
    truths: Sequence[InstanceData] | None,
    infos: Sequence[dict],
    score_thr: float,
) -> list[str]:
    """Explain, by detector, why images with objects have no detection."""
    reasons = []
    for name, each in found.items():
        empty = {}
        for index, boxes in enumerate(each):
            best = boxes.scores.max(initial=-1)
            nothing_to_find = truths is not None and truths[index].crowd.all()
            if best < score_thr and not nothing_to_find:
                empty[infos[index]['name']] = None if best < 0 else float(best)
        if empty:
            reasons.append(f'{name}: {explain_empty(empty, score_thr, "--score-thr ")}')
    return reasons


def _check_detections(
    models: Sequence,
    images: Sequence[str | os.PathLike] | None,
    image_ids: Sequence[str] | None,
    score_thr: float,
    iou_thr: float,
    only_differences: bool,
) -> None:
    """Refuse thresholds outside of their ranges, and flags that exclude each other."""
    if not 0 <= score_thr <= 1:
        raise ValueError(f'--score-thr must be in [0, 1], got {score_thr}')
    if not 0 < iou_thr <= 1:
        raise ValueError(f'--iou-thr must be in (0, 1], got {iou_thr}')
    if only_differences and len(models) < 2:
        raise ValueError(
            '--only-differences compares detectors, got one; give two or more'
        )
    if only_differences and (images or image_ids):
        raise ValueError(
            '--only-differences searches the whole data set; leave out --images and '
            '--image-ids'
        )


def _check_out(out: str | Path) -> Path:
    """Where pictures go: a file, or a folder with a page."""
    out = Path(out)
    check_writable(out if out.suffix == '.png' else out / 'index.html')
    return out


def detect_in_all(
    detectors: Mapping, infos: Sequence[dict]
) -> dict[str, list[InstanceData]]:
    """Detections of all detectors in all images, at any score.

    Raises:
        ValueError: If two detectors load an image at different sizes.
    """
    found = {name: [] for name in detectors}
    shapes = {}
    jobs = [(name, index) for name in detectors for index in range(len(infos))]
    for name, index in track_iter_progress(jobs):
        path = infos[index]['img_path']
        _, result = detect(detectors[name], path)
        if shapes.setdefault(index, result.image.shape) != result.image.shape:
            raise ValueError(
                f'{name} loads {path} as {result.image.shape[:2]} (height, width), '
                f'{next(iter(detectors))} as {shapes[index][:2]}: their boxes cannot '
                'be drawn over one image; make a picture of each, or load alike'
            )
        found[name].append(result.pred_instances.cpu().numpy())
    return found


def match(boxes: InstanceData, truth: InstanceData, iou_thr: float):
    """Match the detections of an image with its objects."""
    return match_detections(
        boxes.bboxes,
        boxes.labels,
        boxes.scores,
        truth.bboxes,
        truth.labels,
        truth.crowd,
        iou_thr,
    )


def pick_differences(
    matches: dict, number: int
) -> tuple[list[int], list[tuple[int, int]]]:
    """Indices of the images on which two detectors disagree most, and by how much."""
    extents = [disagreement(of_image) for of_image in zip(*matches.values())]
    order = sorted(range(len(extents)), key=lambda i: extents[i], reverse=True)
    order = [index for index in order[:number] if any(extents[index])]
    if not order:
        raise ValueError(
            f'--only-differences: {", ".join(matches)} agree on all {len(extents)} '
            'images; lower --score-thr, or leave it out'
        )
    return order, [extents[index] for index in order]


def record_images(
    models: Sequence[tuple[str, str]], out: Path, options: Options
) -> list[tuple]:
    """Pairs of an image and its recordings by detector."""
    detectors = options.load(models)
    images, number = options.images, options.num_images
    dataset = None if images else load_dataset(detectors)
    number = NUM_IMAGES['kernels'] if number is None else number
    infos = choose_images(dataset, number, images, options.image_ids)
    return _record(detectors, infos, out)


def _record(detectors: Mapping, infos: Sequence[dict], out: Path) -> list[tuple]:
    """See :func:`record_images`."""
    if out.suffix == '.png' and len(infos) > 1:
        raise ValueError(
            f'--out {out} is one picture, but {len(infos)} images are to be '
            'shown; give a folder'
        )
    recorded = []
    for info in track_iter_progress(infos):
        recordings = {}
        for name, model in detectors.items():
            data = load_image(model, info['img_path'])
            recordings[name] = features.record(model, data)
            if not recordings[name].finite:
                raise ValueError(
                    f'{name}: features of {info["img_path"]} are not finite; the '
                    'training has diverged, take an earlier checkpoint'
                )
        recorded.append((dict(info, ori_shape=data['image'].shape[:2]), recordings))
    print()
    return recorded


def _kernels(recordings: Mapping, level: str, group: int) -> tuple[dict, dict]:
    """Kernels by detector, and why others have none."""
    maps, without = {}, {}
    for name, recording in recordings.items():
        try:
            maps[name] = kernel_maps.recorded_kernels(recording, level, group)
        except kernel_maps.NoKernels as error:
            without[name] = error
        except ValueError as error:
            raise ValueError(f'{name}: {error}') from error
    if not maps:
        name, error = next(iter(without.items()))
        raise ValueError(f'{name}: {error}') from error
    return maps, without


def show_kernels(
    models: Sequence[tuple[str, str]],
    out: str | Path = 'work_dirs/kernels.png',
    *,
    level: str | None = None,
    positions: Sequence[tuple[int, int]] | None = None,
    at: tuple[int, int] | None = None,
    num_positions: int = 3,
    group: int = 0,
    **options: Any,
) -> None:
    """Draw the kernels of upsamplers.

    ``dlu_mmdet visualize kernels`` from Python. Detectors whose upsamplers have no
    kernels are left out, if any other has some.

    Args:
        models (Sequence[tuple[str, str]]): See :func:`show_detections`.
        out (str | Path): See :func:`show_detections`.
        level (str, optional): The level that is upsampled to. Defaults to the finest.
        positions (Sequence[tuple[int, int]], optional): Columns and rows of its map.
        at (tuple[int, int], optional): Column and row of a pixel of the image instead.
        num_positions (int): Number of positions, without ``positions``.
        group (int): Channel group, where the upsampler has several.
        **options: See :class:`Options`; ``num_images`` defaults to 1.

    Raises:
        FileNotFoundError: If a config, checkpoint or image does not exist.
        ValueError: If a neck has no such level, no upsampler has kernels, or a position
            is outside.
    """
    out = _check_out(out)
    if at and positions:
        raise ValueError('--at and --positions both say where; give one of them')
    figures, shown, left_out = [], {}, {}
    for info, recordings in record_images(models, out, Options(**options)):
        image = info['name']
        first = next(iter(recordings.values()))
        level = level or min(first.upsamplings, default='P2')
        maps, without = _kernels(recordings, level, group)
        left_out.update(without)
        for name, each in maps.items():
            shown.setdefault(name, []).append(each)
        chosen = next(iter(maps.values()))
        first = recordings[next(iter(maps))]
        size = kernel_maps.visible_size(first, chosen)
        if at:
            positions = [kernel_maps.position_at(at, info['ori_shape'], size)]
        picked = positions or kernel_maps.informative_positions(
            chosen, num_positions, size
        )
        figure = kernel_figure.draw_kernels(first, maps, picked, level, image)
        places = '; '.join(f'{x},{y}' for x, y in picked)
        caption = f'{", ".join(maps)}: kernels of {level} at positions {places}.'
        figures.append((figure, image, [info], caption))
    for name, error in left_out.items():
        print(f'{name} is left out: {error}')
    for name, each in shown.items():
        if text := kernel_maps.describe_offsets(each):
            print(f'{name}, {level}: {text}')
    write(out, 'kernels', figures, kernel_figure.KEPT_COLORS)


def show_features(
    models: Sequence[tuple[str, str]],
    out: str | Path = 'work_dirs/features.png',
    **options: Any,
) -> None:
    """Draw the maps of the pyramids side by side.

    ``dlu_mmdet visualize features`` from Python.

    Args:
        models (Sequence[tuple[str, str]]): See :func:`show_detections`.
        out (str | Path): See :func:`show_detections`.
        **options: See :class:`Options`; ``num_images`` defaults to 1.

    Raises:
        FileNotFoundError: If a config, checkpoint or image does not exist.
        ValueError: If features are not finite.
    """
    out = _check_out(out)
    figures = [
        (
            features.draw_features(recordings, info['name']),
            info['name'],
            [info],
            f'{", ".join(recordings)}: root mean square of the channels, one color '
            'scale.',
        )
        for info, recordings in record_images(models, out, Options(**options))
    ]
    write(out, 'features', figures, features.KEPT_COLORS)


def show_upsampling(
    models: Sequence[tuple[str, str]],
    out: str | Path = 'work_dirs/upsampling.png',
    *,
    level: str | None = None,
    score_thr: float = 0.3,
    iou_thr: float = 0.5,
    **options: Any,
) -> None:
    """Draw what each upsampler makes of a coarse map, and what its detector finds.

    ``dlu_mmdet visualize upsampling`` from Python. ``level`` is the one that is
    upsampled to, by default the finest; the other arguments and errors are those of
    :func:`show_detections`.
    """
    given = Options(**options)
    images = given.images
    _check_detections(models, images, given.image_ids, score_thr, iou_thr, False)
    out = _check_out(out)
    detectors = given.load(models)
    dataset = None if images else load_dataset(detectors)
    _common_classes(models, detectors, dataset)
    number = NUM_IMAGES['upsampling'] if given.num_images is None else given.num_images
    infos = choose_images(dataset, number, images, given.image_ids)
    recorded = _record(detectors, infos, out)
    found = detect_in_all(detectors, infos)
    print()
    figures = []
    for index, (info, recordings) in enumerate(recorded):
        boxes = {
            name: each[index][each[index].scores >= score_thr]
            for name, each in found.items()
        }
        truth = None if dataset is None else ground_truth(info)
        matches = {}
        if truth is not None:
            matches = {
                name: match(each, truth, iou_thr) for name, each in boxes.items()
            }
        first = next(iter(recordings.values()))
        figure = upsampling_figure.draw_upsampling(
            load_image(next(iter(detectors.values())), info['img_path'])['image'],
            recordings,
            level or min(first.upsamplings, default='P2'),
            detections.panel_contents(boxes, truth, matches, lines=2),
        )
        caption = (
            f'{", ".join(detectors)}; score ≥ {score_thr:g}, IoU ≥ {iou_thr:g}. Colors '
            'of a map: the linear fit of its channels to the image.'
        )
        figures.append((figure, info['name'], [info], caption))
    write(out, 'upsampling', figures, detections.KEPT_COLORS)
