"""Check that a config's data exist, match its classes and fit its evaluators."""

from __future__ import annotations

import functools
import inspect
import os
import os.path as osp
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmdet
import numpy as np
from mmcv.transforms import LoadAnnotations as BaseLoadAnnotations
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset, CocoPanopticDataset, LVISV05Dataset
from mmdet.datasets.transforms import PackDetInputs
from mmdet.evaluation.metrics import CocoMetric, LVISMetric, OpenImagesMetric, VOCMetric
from mmdet.models.roi_heads.mask_heads import FusedSemanticHead
from mmdet.registry import DATASETS, METRICS, TRANSFORMS
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.evaluator import BaseMetric, DumpResults, Evaluator
from mmengine.registry import DefaultScope, Registry
from PIL import Image
from torch import nn

from . import coco_io

# images whose sizes are compared with those of the file
_LOOKED_AT = 16
# what CocoMetric takes as metric and as metric_items
_METRICS = ('bbox', 'segm', 'proposal', 'proposal_fast')
_AP = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')
_AR = ('AR@100', 'AR@300', 'AR@1000', 'AR_s@1000', 'AR_m@1000', 'AR_l@1000')
# what a detector's results cannot be brought back to the image without
_NEEDED_META = ('img_id', 'ori_shape', 'img_shape', 'scale_factor')


def resolve(registry: Registry, type_: str | type) -> type | None:
    """The class of a config's ``type``: a name, 'mmdet.Name', a path, or a class.

    The default scope comes first: MMSegmentation and MMDetection both have a
    ``CityscapesDataset``.
    """
    if inspect.isclass(type_):
        return type_
    with registry.switch_scope_and_registry(None) as own:
        return own.get(type_) or registry.get(type_)


def in_scope(function: Callable) -> Callable:
    """Let a function of a config look names up in the scope of that config."""

    @functools.wraps(function)
    def run(cfg: Config, *args: Any, **kwargs: Any) -> Any:
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
            return function(cfg, *args, **kwargs)

    return run


@dataclass(frozen=True)
class Source:
    """One data set of a config.

    Attributes:
        key (str): Where it is in the config.
        cfg (dict): Its own part of the config.
        cls (type): Its class.
        files (dict[str, str]): By key, the paths on this machine that it names.
    """

    key: str
    cfg: dict
    cls: Any
    files: dict[str, str]

    @property
    def ann_file(self) -> str:
        """Path of its annotations; empty if it has none."""
        return self.files.get('ann_file', '')

    @property
    def classes(self) -> Sequence[str]:
        """Class names, in the order of the labels."""
        classes = self._classes
        if isinstance(classes, str):
            if osp.isfile(classes):
                return Path(classes).read_text(encoding='utf-8').split('\n')
            return classes
        where = f'{self.key}.metainfo.classes'
        if not isinstance(classes, (list, tuple)):
            raise ValueError(f'{where} must be a list of names, got {classes!r}')
        return coco_io.class_names(classes, where)

    @property
    def _classes(self) -> Any:
        """As the config or the class has them."""
        metainfo = {**(self.cls.METAINFO or {}), **(self.cfg.get('metainfo') or {})}
        return metainfo.get('classes') or ()

    def name_classes(self) -> None:
        """Let the config name the classes as text, where numbers stand for names."""
        classes = self.classes
        if not isinstance(self._classes, str) and tuple(self._classes) != classes:
            self.cfg['metainfo'] = dict(self.cfg.get('metainfo') or {}, classes=classes)

    @property
    def has_own_classes(self) -> bool:
        """Whether the config names the classes: without, they are those of COCO."""
        return bool((self.cfg.get('metainfo') or {}).get('classes'))

    @property
    def is_coco(self) -> bool:
        """Whether it reads COCO files of objects, through this package."""
        return (
            issubclass(self.cls, CocoDataset)
            # these read their files through another package
            and not issubclass(self.cls, LVISV05Dataset)
            and self.cls.COCOAPI is coco_io.COCO
            and self.ann_file.endswith('.json')
        )


def iter_datasets(cfg: dict, key: str) -> Iterator[Source]:
    """The data sets inside wrappers such as RepeatDataset, one by one.

    Args:
        cfg (dict): ``dataset`` of a dataloader.
        key (str): Its place in the config.

    Yields:
        Source: Of remote ones without the files.
    """
    if 'dataset' in cfg:
        yield from iter_datasets(cfg['dataset'], f'{key}.dataset')
    elif 'datasets' in cfg:
        for index, inner in enumerate(cfg['datasets']):
            yield from iter_datasets(inner, f'{key}.datasets.{index}')
    elif 'type' in cfg and (cls := resolve(DATASETS, cfg['type'])):
        root = cfg.get('data_root') or ''
        named = [('ann_file', cfg.get('ann_file'))]
        prefixes = cfg.get('data_prefix')
        if isinstance(prefixes, dict):
            named += [(f'data_prefix.{k}', v) for k, v in prefixes.items()]
        files = {k: osp.join(root, v) for k, v in named if v and '://' not in root + v}
        yield Source(key, cfg, cls, files)


def _is_remote(cfg: dict) -> bool:
    return (cfg.get('backend_args') or {}).get('backend', 'local') != 'local'


def _all_sources(cfg: Config, split: str) -> list[Source]:
    dataset = (cfg.get(f'{split}_dataloader') or {}).get('dataset') or {}
    return list(iter_datasets(dataset, f'{split}_dataloader.dataset'))


def _evaluators(cfg: Config, split: str) -> Iterator[tuple[str, dict]]:
    """The evaluators of a split by their keys."""
    key = f'{split}_evaluator'
    evaluators = cfg.get(key) or []
    if isinstance(evaluators, dict) and evaluators.get('type', 'Evaluator') in (
        'Evaluator',
        Evaluator,
    ):
        key, evaluators = f'{key}.metrics', evaluators.get('metrics') or []
    several = isinstance(evaluators, (list, tuple))
    for index, evaluator in enumerate(evaluators if several else [evaluators]):
        yield key + (f'.{index}' if several else ''), evaluator


def coco_evaluators(cfg: Config, split: str) -> Iterator[tuple[str, dict]]:
    """The CocoMetrics of a split by their keys; LVIS scores otherwise."""
    for key, evaluator in _evaluators(cfg, split):
        cls = _metric_class(evaluator)
        if issubclass(cls, CocoMetric) and not issubclass(cls, LVISMetric):
            yield key, evaluator


def _metric_class(evaluator: dict) -> Any:
    """The class of an evaluator; without one that is known, that of all."""
    cls = resolve(METRICS, evaluator['type']) if 'type' in evaluator else None
    return cls if inspect.isclass(cls) else BaseMetric


def data_root_override_hint(
    cfg: Config,
    root: str = 'DIR',
    splits: Sequence[str] = ('train', 'val', 'test'),
) -> str:
    """The ``--cfg-options`` that take a config's data from another folder."""
    options = []
    for split in splits:
        options += [f'{s.key}.data_root={root}' for s in _all_sources(cfg, split)]
        names = [s.cfg.get('ann_file') for s in _all_sources(cfg, split)]
        for key, evaluator in _evaluators(cfg, split):
            file = evaluator.get('ann_file')
            if file:
                # the part that the data set's own key has, where it is the same file
                inside = next((n for n in names if n and file.endswith(n)), file)
                options.append(f'{key}.ann_file={osp.join(root, inside)}')
    return f'--cfg-options {" ".join(options)}'


def _how_to_get(source: Source, options: str, has_flag: bool) -> str:
    """What to do where a data set's files are missing; ``options`` name others.

    ``has_flag`` says whether the command has the flag ``--data``.
    """
    root = source.cfg.get('data_root') or ''
    if hasattr(source.cls, 'how_to_make'):
        return f'make it with: {source.cls.how_to_make(root)}'
    # python -m runs it, which warns of a module that is imported already
    from . import make_real

    if command := make_real.how_to_make(root):
        return f'make it with: {command}'
    others = f'data in another folder DIR are named by {options}'
    if has_flag and source.is_coco:
        others = f'data in another folder DIR are named by --data DIR, or by {options}'
        if not root:
            return f'name the folder of your data: --data DIR, or {options}'
    if source.cls not in (CocoDataset, CocoPanopticDataset) or source.has_own_classes:
        return others
    script = osp.join(mmdet.__path__[0], '.mim', 'tools', 'misc', 'download_dataset.py')
    return (
        f'COCO 2017 is fetched by: python {script} --dataset-name '
        f'coco2017 --save-dir {root or "."} --unzip; {others}'
    )


@in_scope
def check_data(
    cfg: Config, splits: Sequence[str], hold: bool = True, scored: bool = True
) -> None:
    """Check the data of a config before anything is built.

    Args:
        cfg (Config): A complete config; numbers among its class names become text.
        splits (Sequence[str]): Of 'train', 'val' and 'test', those to check.
        hold (bool): Whether what was read is handed to the data sets and evaluators
            that are built next in this process. Defaults to True.
        scored (bool): Whether the splits' evaluators are used, and so checked.
            Defaults to True.

    Raises:
        FileNotFoundError: If an annotation file or an image folder is
            missing.
        ValueError: If an annotation file cannot be used with the config's classes or
            with its evaluator, or leaves nothing to learn or to find.
    """
    found = {split: _all_sources(cfg, split) for split in splits}
    for source in [source for each in found.values() for source in each]:
        source.name_classes()
    if not is_main_process():
        return
    # what is trained will be tested, and a test needs no training data
    of = ('train', 'val', 'test') if 'train' in splits else splits
    options = data_root_override_hint(cfg, splits=of)
    for source in [source for each in found.values() for source in each]:
        _check_files(source, options, scored)
    _check_order([source for each in found.values() for source in each])
    contents: dict[str, dict] = {}

    def read(path: str) -> dict:
        path = osp.realpath(path)
        if path not in contents:
            contents[path] = coco_io.read(path)
        return contents[path]

    checked: set[tuple] = set()
    uses = Counter()
    for split, each in found.items():
        metric = None
        if split != 'train' and scored:
            metric, files = _check_evaluators(cfg, split, each, read, options)
            uses.update(files)
        uses.update(_check_split(split, each, metric, read, checked))
    if hold:
        for path, content in contents.items():
            coco_io.keep(path, content, uses[path])


def _check_split(
    split: str,
    each: Sequence[Source],
    metric: str | None,
    read: Callable[[str], dict],
    checked: set[tuple],
) -> Iterator[str]:
    """Check the data sets of a split; yields the annotation files that they read."""
    for source in each:
        if split != 'train':
            _check_meta_keys(source)
        if not source.is_coco:
            continue
        content = read(source.ann_file)
        yield osp.realpath(source.ann_file)
        # two splits of one file are reported once
        identity = (str(source.files), tuple(source.classes), split == 'train')
        if identity not in checked:
            checked.add(identity)
            _check_source(source, content, split, metric, len(each) > 1)


def _check_files(source: Source, options: str, has_flag: bool) -> None:
    """Check that the files of a data set exist; see :func:`_how_to_get`."""
    if 'CLASSES' in (source.cfg.get('metainfo') or ()):
        raise ValueError(
            f"{source.key}.metainfo.CLASSES is MMDetection 2's spelling, which "
            f'nothing reads; call it classes'
        )
    for key, path in source.files.items():
        if not osp.exists(path):
            raise FileNotFoundError(
                f'{source.key}: {path} ({key}) does not exist; '
                f'{_how_to_get(source, options, has_flag)}'
            )


def first_label_mismatch(
    expected: Sequence[str], classes: Sequence[str]
) -> tuple[str, int, int] | None:
    """The first class with another label in two lists, and both labels."""
    labels = {name: label for label, name in enumerate(classes)}
    for label, name in enumerate(expected):
        if labels.get(name, label) != label:
            return name, label, labels[name]
    return None


def _check_order(each: list[Source]) -> None:
    """Check that a class has the same label in every data set of a config."""
    # a model that is given names reads labels by them
    each = [s for s in each if s.classes and not s.cfg.get('return_classes')]
    # a name instead of a list of names; the error names its file
    each = [s for s in each if not isinstance(s.classes, str)]
    for source in each[1:]:
        if found := first_label_mismatch(each[0].classes, source.classes):
            name, expected, own = found
            raise ValueError(
                f'{source.key} has the class {name!r} in place {own} of its classes '
                f'and {each[0].key} in place {expected}, so its labels would be those '
                f'of other classes; set metainfo.classes of both to the same list'
            )


def _check_source(
    source: Source, content: dict, split: str, scored: str | None, among: bool
) -> None:
    """Check one data set's classes, objects, masks and image sizes.

    Args:
        source (Source): The data set.
        content (dict): Its annotations.
        split (str): What they are for.
        scored (str, optional): For val and test: 'bbox' or 'segm' if they are scored.
        among (bool): Whether it is one of several, which may be without objects.
    """
    where = f'{source.key}.ann_file: {source.ann_file}'
    if not source.classes:
        return
    coco_io.check_classes(content['categories'], source.classes, where)
    masks = _loaded_masks(source) if split == 'train' else None
    masks = 'scored' if scored == 'segm' else masks
    survey = coco_io.count_usable(content, source.classes, masks)
    if not content['images']:
        raise ValueError(f'{where} lists no images; use another file')
    if split == 'train' or scored:
        # images without annotations may be the unlabeled part of a set
        if not survey.kept and not (among and not survey.objects):
            what = 'nothing to learn' if split == 'train' else 'nothing to find'
            raise ValueError(f'{where} has {what}: {survey}; mend it, or use another')
        if survey.without_mask:
            reason = (
                'the pipeline loads masks' if split == 'train' else 'masks are scored'
            )
            raise ValueError(
                f'{where}: annotation {survey.without_mask["id"]!r} '
                f'{survey.mask_problem}, and {reason}; mend it, or take a detector of '
                f'boxes'
            )
    if survey.loses_many:
        warnings.warn(f'{where}: {survey}', stacklevel=2)
    if survey.has_corners:
        warnings.warn(
            f'{where}: {survey.over} of {survey.kept} boxes reach far over the edge of '
            f'their image, where they are cut off; a bbox is [x, y, width, height], '
            f'not [x1, y1, x2, y2]',
            stacklevel=2,
        )
    _check_images(source, content, split, where)
    _compare_sizes(source, content, where)


def _loaded_masks(source: Source) -> str | None:
    """How a pipeline loads masks, for :func:`coco_io.count_usable`."""
    for step in source.cfg.get('pipeline') or ():
        if step.get('with_mask'):
            return 'learned' if step.get('poly2mask', True) else 'learned as polygons'
    return None


def _folder(source: Source) -> str:
    return source.files.get('data_prefix.img') or source.files.get(
        'data_prefix.img_path', source.cfg.get('data_root') or ''
    )


def _check_images(source: Source, content: dict, split: str, where: str) -> None:
    """See that the images are on disk, by a list of each folder."""
    loaders = [
        step
        for step in source.cfg.get('pipeline') or ()
        if resolve(TRANSFORMS, step.get('type', '')) is LoadImageFromFile
    ]
    if not loaders or any(s.get('ignore_empty') for s in loaders):
        return
    if any(map(_is_remote, [source.cfg, *loaders])) or '://' in _folder(source):
        return
    images = content['images']
    if split == 'train':
        # those without objects are mostly left out of training
        used = {ann['image_id'] for ann in content['annotations']}
        images = [image for image in images if image['id'] in used]
    folder, names = _folder(source), {}
    missing = []
    for image in images:
        path = osp.join(folder, image['file_name'])
        head, tail = osp.split(path)
        if head not in names:
            names[head] = {*os.listdir(head or '.')} if osp.isdir(head or '.') else ()
        # an ending, say a case, that only the file system knows
        if tail not in names[head] and not osp.exists(path):
            missing.append(path)
    if missing:
        raise FileNotFoundError(
            f'{where}: {len(missing)} of {len(images)} images that it lists do not '
            f'exist, the first is {missing[0]}; fetch them again, remove them from it, '
            f'or mend {source.key}.data_prefix.img and the file names'
        )


def _compare_sizes(source: Source, content: dict, where: str) -> None:
    """Warn where a few images are of another size than the file says."""
    folder, images = _folder(source), content['images']
    spread = np.linspace(0, len(images) - 1, min(_LOOKED_AT, len(images)))
    for image in [images[index] for index in spread.round().astype(int)]:
        try:
            with Image.open(osp.join(folder, image['file_name'])) as picture:
                size, turned = picture.size, picture.getexif().get(0x0112, 1) > 4
        except (OSError, ValueError, Image.DecompressionBombError):
            # loading reports it
            continue
        told = image['width'], image['height']
        if told != size and not (turned and told == size[::-1]):
            warnings.warn(
                f'{where}: image {image["file_name"]} is {size[0]} x {size[1]} pixels '
                f'and the file says {told[0]} x {told[1]}; objects are cut off at the '
                f"file's size, and boxes of another size are in the wrong places",
                stacklevel=2,
            )
            return


def _check_evaluators(
    cfg: Config,
    split: str,
    each: list[Source],
    read: Callable[[str], dict],
    options: str,
) -> tuple[str | None, list[str]]:
    """Check that a split's evaluators score the images that it has.

    Returns:
        tuple: What they score, 'bbox', 'segm' or None; the files that they read.
    """
    _check_metrics([*_evaluators(cfg, split)], each)
    scored, files = None, []
    for key, evaluator in coco_evaluators(cfg, split):
        metrics = evaluator.get('metric', 'bbox')
        metrics = [metrics] if isinstance(metrics, str) else metrics
        if not evaluator.get('format_only'):
            scored = 'segm' if 'segm' in metrics or scored == 'segm' else 'bbox'
        path = evaluator.get('ann_file')
        if not path or '://' in path or _is_remote(evaluator):
            continue
        where = f'{key}.ann_file: {path}'
        if not osp.exists(path):
            raise FileNotFoundError(
                f'{where} does not exist; it is the path of the file that '
                f'{split}_dataloader.dataset.ann_file names. Data in another folder '
                f'DIR are named by {options}'
            )
        files.append(osp.realpath(path))
        content = read(path)
        for source in each:
            if source.classes:
                coco_io.check_classes(content['categories'], source.classes, where)
            if source.cfg.get('indices') is not None:
                raise ValueError(
                    f'{source.key}.indices={source.cfg["indices"]} takes a part of the '
                    f'images, and {where} is scored over all that it lists; make an '
                    f'annotation file of that part for both'
                )
        if each and all(source.is_coco for source in each):
            _check_same_data(each, where, content, read, options)
    return scored, files


def _check_metrics(evaluators: list[tuple[str, dict]], each: list[Source]) -> None:
    """Check the settings of evaluators, most of which are read after the last image.

    Args:
        evaluators (list[tuple[str, dict]]): Those of a split by their keys.
        each (list[Source]): The data sets of the split.
    """
    owners = {}
    for key, evaluator in evaluators:
        cls = _metric_class(evaluator)
        if cls is BaseMetric or issubclass(cls, DumpResults):
            continue
        # others are taken to report the same names wherever they are
        names = [cls.__name__]
        if cls.compute_metrics is CocoMetric.compute_metrics:
            names = _check_coco_metric(key, evaluator)
        elif issubclass(cls, VOCMetric):
            _check_voc_metric(key, evaluator, each)
        _check_objects_are_loaded(key, evaluator, cls, each)
        prefix = evaluator.get('prefix') or cls.default_prefix
        for name in names:
            other = owners.setdefault((prefix, name), key)
            if other != key or names.count(name) > 1:
                twice = 'twice' if other == key else f'as {other} does'
                raise ValueError(
                    f'{key} reports {prefix}/{name} {twice}; give each metric an '
                    f'evaluator with a prefix of its own: {key}.prefix=NAME'
                )


def reported(cfg: Config, split: str) -> set[str] | None:
    """What a split's evaluators report; None if they are not known to this package."""
    names = set()
    for key, evaluator in _evaluators(cfg, split):
        cls = _metric_class(evaluator)
        if cls.compute_metrics is not CocoMetric.compute_metrics:
            return None
        if evaluator.get('classwise'):
            return None
        prefix = evaluator.get('prefix') or cls.default_prefix
        names |= {f'{prefix}/{name}' for name in _check_coco_metric(key, evaluator)}
    return names or None


def _check_coco_metric(key: str, evaluator: dict) -> list[str]:
    """Check the settings of a CocoMetric.

    Returns:
        list[str]: Names of what it reports.
    """

    def refuse(name: str, reason: str) -> None:
        raise ValueError(f'{key}.{name}={evaluator.get(name)!r}: {reason}')

    metrics = _metrics_of(evaluator)
    if not metrics:
        refuse('metric', f'it must be one, or a list, of {", ".join(_METRICS)}')
    items = evaluator.get('metric_items')
    if items is not None and not all(item in _AP + _AR for item in items):
        refuse('metric_items', f'it must be a list of {", ".join(_AP + _AR)}')
    numbers = [*evaluator.get('proposal_nums', (100, 300, 1000))]
    for metric in (m for m in metrics if m != 'proposal_fast'):
        own = _reported_items(metric, items)
        # pycocotools reads three numbers, and its AP is of 100 detections an image
        usable = len(numbers) > 2 and 100 in numbers
        if not usable and not evaluator.get('use_mp_eval'):
            refuse('proposal_nums', 'it must be three numbers or more, one of them 100')
        if {*own} & {*_AR} and sorted(numbers) != [100, 300, 1000]:
            refuse(
                'proposal_nums',
                f'{", ".join(_AR)} are of (100, 300, 1000); leave them out of '
                f'metric_items, or take these numbers',
            )
    if reason := _thresholds_problem(evaluator):
        refuse('iou_thrs', reason)
    if evaluator.get('format_only'):
        return []
    return [n for m in metrics for n in _reported_names(m, items, numbers)]


def _reported_names(
    metric: str, items: Sequence[str] | None, numbers: Sequence[int]
) -> list[str]:
    """What a CocoMetric calls what it reports of a metric."""
    if metric == 'proposal_fast':
        return [f'AR@{number}' for number in numbers]
    prefix = '' if metric == 'proposal' else f'{metric}_'
    return [f'{prefix}{name}' for name in _reported_items(metric, items)]


def _metrics_of(evaluator: dict) -> list[str]:
    """The metrics of a CocoMetric; empty if one is unknown."""
    metrics = evaluator.get('metric', 'bbox')
    metrics = [metrics] if isinstance(metrics, str) else metrics
    known = isinstance(metrics, list) and all(m in _METRICS for m in metrics)
    return metrics if known else []


def _reported_items(metric: str, items: Sequence[str] | None) -> Sequence[str]:
    """What a CocoMetric reports of a metric: ``metric_items``, or all there is."""
    if items is not None:
        return items
    return _AR if metric == 'proposal' else _AP


def _thresholds_problem(evaluator: dict) -> str:
    """What is wrong with ``iou_thrs`` of a CocoMetric; empty if nothing."""
    if evaluator.get('iou_thrs') is None:
        return ''
    try:
        thresholds = np.array(evaluator['iou_thrs'], dtype=float, ndmin=1)
    except (TypeError, ValueError):
        thresholds = np.zeros(1)
    if not thresholds.size or ((thresholds <= 0) | (thresholds > 1)).any():
        return 'it must be a number above 0 and up to 1, or a list'
    if evaluator.get('classwise') and thresholds[0:6:5].tolist() != [0.5, 0.75]:
        return (
            'the table of classwise=True has AP at 0.5 and at 0.75 from places 0 '
            'and 5; leave out one of the two settings'
        )
    return ''


def _check_voc_metric(key: str, evaluator: dict, each: list[Source]) -> None:
    """Check the settings of a VOCMetric."""
    thresholds = evaluator.get('iou_thrs', 0.5)
    if not isinstance(thresholds, (float, list)):
        raise ValueError(
            f'{key}.iou_thrs={thresholds!r}: it must be a float or a list of them'
        )
    recall = evaluator.get('metric', 'mAP') in ('recall', ['recall'])
    if recall and any(len(source.classes) > 1 for source in each):
        raise ValueError(
            f'{key}.metric={evaluator["metric"]!r}: mmdet counts the detections of the '
            f"first class alone; take a CocoMetric with metric='proposal'"
        )


def _check_objects_are_loaded(
    key: str, evaluator: dict, cls: type, each: list[Source]
) -> None:
    """Check that a pipeline hands on the objects that an evaluator reads from it."""
    for source in each:
        steps = source.cfg.get('pipeline') or ()
        classes = [resolve(TRANSFORMS, step.get('type', '')) for step in steps]
        loaded = any(_is_subclass(c, BaseLoadAnnotations) for c in classes)
        kept = [key for step in steps for key in step.get('meta_keys', ())]
        if issubclass(cls, VOCMetric) and not loaded:
            missing = "dict(type='LoadAnnotations', with_bbox=True)"
        elif 'instances' not in kept and (
            issubclass(cls, OpenImagesMetric)
            or (cls in (CocoMetric, LVISMetric) and not evaluator.get('ann_file'))
        ):
            missing = "'instances' to the meta_keys of PackDetInputs, or an ann_file"
        else:
            continue
        raise ValueError(
            f'{key}: {cls.__name__} reads the objects that {source.key}.pipeline '
            f'loads; add {missing}'
        )


def _is_subclass(cls: object, base: type) -> bool:
    return inspect.isclass(cls) and issubclass(cls, base)


def _check_same_data(
    each: list[Source],
    where: str,
    content: dict,
    read: Callable[[str], dict],
    options: str,
) -> None:
    """Check that an evaluator's file is of the images that the data sets load."""
    own = [read(source.ann_file) for source in each]
    # the same file is read once
    if all(c is content for c in own):
        return
    names = ' and '.join(f'{s.key}.ann_file: {s.ann_file}' for s in each)
    loaded = {i['id']: osp.basename(i['file_name']) for c in own for i in c['images']}
    scored = {i['id']: osp.basename(i['file_name']) for i in content['images']}
    if loaded != scored:
        differing = [
            i for i in [*scored, *loaded] if scored.get(i, '-') != loaded.get(i, '-')
        ]
        first = differing[0]
        raise ValueError(
            f'{where} lists {len(scored)} images and {names} {len(loaded)}, and they '
            f'are not the same: id {first!r} is {scored.get(first, "not there")!r} in '
            f'the former and {loaded.get(first, "not there")!r} in the latter. Name '
            f'the same file for both; data in another folder DIR are named by '
            f'{options}'
        )

    def objects(contents: list[dict]) -> Counter:
        return Counter(
            (a['image_id'], *a['bbox']) for c in contents for a in c['annotations']
        )

    if any(c['annotations'] for c in own) and objects(own) != objects([content]):
        warnings.warn(
            f'{where} has other objects than {names} has for the same images; the '
            f'former are scored',
            stacklevel=2,
        )


def _check_meta_keys(source: Source) -> None:
    """Check that a test pipeline keeps what results are brought back with."""
    for step in source.cfg.get('pipeline') or ():
        if resolve(TRANSFORMS, step.get('type', '')) is PackDetInputs:
            kept = step.get('meta_keys', _NEEDED_META)
            missing = [key for key in _NEEDED_META if key not in kept]
            if missing:
                raise ValueError(
                    f'{source.key}.pipeline: meta_keys of PackDetInputs must have '
                    f'{", ".join(missing)} too, got {tuple(kept)}'
                )


def check_num_classes(model: nn.Module, cfg: Config, splits: Sequence[str]) -> None:
    """Check that every head has as many classes as the data, and gives what is scored.

    Args:
        model (nn.Module): The detector.
        cfg (Config): Its config.
        splits (Sequence[str]): Of 'train', 'val' and 'test', those to check.

    Raises:
        ValueError: If a head has another number, with both and the key; or if masks
            are scored and the detector has nothing that makes masks.
    """
    for split in splits:
        _check_masks(model, cfg, split)
    for source in (source for split in splits for source in _all_sources(cfg, split)):
        number = len(source.classes)
        # other heads count otherwise: things and stuff, or words of a text
        if (
            not issubclass(source.cls, CocoDataset)
            or issubclass(source.cls, CocoPanopticDataset)
            or source.cfg.get('return_classes')
            or not number
        ):
            continue
        for name, module in model.named_modules():
            own = getattr(module, 'num_classes', None)
            if (
                isinstance(own, int)
                and own != number
                and not name.startswith(('backbone', 'semantic_head'))
                and not name.split('.')[-1].startswith('rpn')
                and not isinstance(module, FusedSemanticHead)
            ):
                raise ValueError(
                    f'model.{name}.num_classes is {own}, and {source.key} has {number} '
                    f'classes; set both to the same number: --cfg-options '
                    f'model.{name}.num_classes={number}'
                )


def _check_masks(model: nn.Module, cfg: Config, split: str) -> None:
    """Check that a detector makes masks where they are scored."""
    named = (f'{n} {type(m).__name__}'.lower() for n, m in model.named_modules())
    if split == 'train' or any('mask' in name for name in named):
        return
    for key, evaluator in _evaluators(cfg, split):
        metrics = evaluator.get('metric', ())
        if issubclass(_metric_class(evaluator), CocoMetric) and 'segm' in metrics:
            raise ValueError(
                f'{key}.metric={metrics!r} scores masks, and the detector has no mask '
                f"head; set it to 'bbox', or take a detector of masks"
            )
