"""COCO annotation files as people write them, read once and read right.

Importing this module puts :class:`COCO` and :class:`COCOeval` in the place of those
that mmdet's ``CocoDataset`` and ``CocoMetric`` use: what a file leaves out and has one
meaning is filled in, what pycocotools takes amiss is put right, and labels follow the
config's class names, not the order of the file.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from mmdet.datasets import CocoDataset, api_wrappers

with warnings.catch_warnings():
    # the forks tell whoever imports these that an optional metric is not installed
    warnings.simplefilter('ignore', UserWarning)
    from mmdet.evaluation.metrics import LVISMetric, coco_metric  # noqa: F401

# a file that takes longer to read than people wait without being told, in bytes
_LARGE = 50e6
# share of the objects from which on it is said that they are left out
_MANY = 0.01
# share of the boxes over their image's edge, by this share of it, that is no accident
_OVER, _EDGE = 0.05, 0.1
_NAMES = (str, int, float)
_COCO = CocoDataset.METAINFO['classes']


def _fail(path: object, what: str, index: int, entry: object, problem: str) -> None:
    name = f'{what}[{index}]'
    if isinstance(entry, dict) and 'id' in entry:
        name += f' (id {entry["id"]!r})'
    raise ValueError(f'{path}: {name} {problem}')


def class_name(name: object, where: object) -> str:
    """A class name as text, which a number may stand for.

    Args:
        name (object): From an annotation file, a config or a checkpoint.
        where (object): Where it is, for errors.

    Returns:
        str: '7' for 7.

    Raises:
        ValueError: If it is neither.
    """
    if isinstance(name, bool) or not isinstance(name, _NAMES):
        raise ValueError(f'{where} is {name!r}; a class name must be text or a number')
    return str(name)


def class_names(names: Iterable[object], where: object) -> tuple[str, ...]:
    """Class names as text, see :func:`class_name`."""
    return tuple(class_name(name, f'{where}[{i}]') for i, name in enumerate(names))


def complete(content: object, path: object) -> dict:
    """Check a COCO annotation file's content and fill in what is left out.

    Names of categories become text. A missing ``iscrowd`` is 0, an ``area`` that is
    missing or not above 0 the box's, a missing ``info`` empty. pycocotools takes an
    object of id 0 for none and objects of one id for one, so ids that are not different
    whole numbers above 0 are numbered anew.

    Args:
        content (object): The parsed file; completed in place.
        path (object): Its name, for errors.

    Returns:
        dict: ``content``.

    Raises:
        ValueError: If it is no COCO annotation file, or a key without which it has no
            meaning is missing or wrong: the message names file, entry and key.
    """
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key, []), list)
        for key in ('images', 'annotations', 'categories')
    ):
        raise ValueError(
            f'{path} is not a COCO annotation file (a JSON object with the lists '
            f'images, annotations and categories); make or copy it again'
        )
    for key in ('images', 'categories'):
        if key not in content:
            raise ValueError(
                f'{path} is not a COCO annotation file ({key!r} is missing); make or '
                f'copy it again'
            )
    # without it pycocotools 2.0.9 and 2.0.10 cannot load results
    content.setdefault('info', {})
    annotations = content.setdefault('annotations', [])
    for what, keys in (
        ('categories', ('id', 'name')),
        ('images', ('id', 'file_name', 'height', 'width')),
    ):
        for index, entry in enumerate(content[what]):
            for key in keys:
                if not isinstance(entry, dict) or key not in entry:
                    _fail(path, what, index, entry, f'has no {key!r}; add it')
                if key in ('height', 'width') and not _is_positive(entry[key]):
                    problem = f'has the {key} {entry[key]!r}; it must be in pixels'
                    _fail(path, what, index, entry, problem)
                if key in ('id', 'name') and not isinstance(entry[key], _NAMES):
                    problem = f'has the {key} {entry[key]!r}; it must be text or number'
                    _fail(path, what, index, entry, problem)
                if key == 'file_name' and not (
                    isinstance(entry[key], str) and entry[key]
                ):
                    problem = f'has the file_name {entry[key]!r}; it must be a path'
                    _fail(path, what, index, entry, problem)
                if key == 'name':
                    entry[key] = class_name(entry[key], f'{path}: {what}[{index}].name')
        for key in {'id', 'name'} & {*keys}:
            values = Counter(entry[key] for entry in content[what])
            twice = [value for value, number in values.items() if number > 1]
            if twice:
                shown = ', '.join(map(repr, twice[:5]))
                raise ValueError(
                    f'{path}: {what} has the {key} {shown} more than once; give each '
                    f'its own'
                )
    types = {isinstance(image['id'], str) for image in content['images']}
    if len(types) > 1:
        raise ValueError(
            f"{path}: the images' ids are text in some places and numbers in others; "
            f'make them all the same, and image_id in the annotations too'
        )
    complete_objects(annotations, path)
    return content


def complete_objects(annotations: list[dict], path: object) -> None:
    """The part of :func:`complete` that is about objects, in place."""
    ids = []
    for index, ann in enumerate(annotations):
        try:
            x, y, w, h = ann['bbox']
            finite = math.isfinite(x + y + w + h)
            hash((ann['image_id'], ann['category_id']))
        except (TypeError, ValueError, KeyError):
            _explain_annotation(path, index, ann)
        if not finite:
            _explain_annotation(path, index, ann)
        area = ann.get('area')
        # mmdet leaves out objects without an area, pycocotools files them by it
        if type(area) not in (int, float) or not 0 < area < math.inf:
            ann['area'] = w * h
        if ann.get('iscrowd') is None:
            ann['iscrowd'] = 0
        for key in ('iscrowd', 'ignore'):
            if not isinstance(ann.get(key, 0), (int, float, type(None))):
                problem = f'has the {key} {ann[key]!r}; it must be 0 or 1'
                _fail(path, 'annotations', index, ann, problem)
        ids.append(ann.get('id'))
    if any(type(i) is not int or i < 1 for i in ids) or len(set(ids)) < len(ids):
        for number, ann in enumerate(annotations, 1):
            ann['id'] = number


def _is_positive(value: object) -> bool:
    return isinstance(value, (int, float)) and value > 0


def _explain_annotation(path: object, index: int, ann: object) -> None:
    """Say what is wrong with an annotation that cannot be read."""
    for key in ('image_id', 'category_id', 'bbox'):
        if not isinstance(ann, dict) or key not in ann:
            _fail(path, 'annotations', index, ann, f'has no {key!r}; add it')
        if isinstance(ann[key], (list, dict)) and key != 'bbox':
            problem = f'has the {key} {ann[key]!r}; it must be text or number'
            _fail(path, 'annotations', index, ann, problem)
    _fail(
        path,
        'annotations',
        index,
        ann,
        f'has the bbox {ann["bbox"]!r}; it must be [x, y, width, height] in pixels, '
        f'each a finite number',
    )


@dataclass
class _Kept:
    """A file's content for those who will ask for it."""

    signature: tuple
    content: dict
    uses: int


_kept: dict[str, _Kept] = {}


def _signature(path: str) -> tuple:
    stat = os.stat(path)
    return stat.st_mtime_ns, stat.st_size


def read(path: str | os.PathLike) -> dict:
    """Read and complete an annotation file.

    Args:
        path (str | PathLike): A JSON file, UTF-8 with or without a byte order mark.

    Returns:
        dict: As :func:`complete`.

    Raises:
        ValueError: If it is no JSON, or as :func:`complete`.
    """
    size = Path(path).stat().st_size
    if size > _LARGE:
        print(f'reading {path} ({size / 1e6:.0f} MB)', flush=True)
    try:
        content = json.loads(Path(path).read_bytes().decode('utf-8-sig'))
    except (ValueError, OSError) as error:
        raise ValueError(
            f'{path} is not a COCO annotation file ({error}); make or copy it again'
        ) from error
    return complete(content, path)


def keep(path: str | os.PathLike, content: dict, uses: int) -> None:
    """Hold what :func:`read` gave, for the next ``uses`` times it is asked for."""
    if uses > 0:
        name = os.path.realpath(path)
        _kept[name] = _Kept(_signature(name), content, uses)


def _take(path: str | os.PathLike) -> dict:
    """What :func:`keep` holds, or the file."""
    name = os.path.realpath(path)
    kept = _kept.get(name)
    if kept is None or kept.signature != _signature(name):
        return read(path)
    kept.uses -= 1
    if not kept.uses:
        return _kept.pop(name).content
    # an evaluation writes into its annotations
    own = [dict(ann) for ann in kept.content['annotations']]
    return {**kept.content, 'annotations': own}


class COCO(api_wrappers.COCO):
    """mmdet's COCO on what :func:`read` gives.

    Args:
        annotation_file (str, optional): Path of the file.

    Raises:
        ValueError: As :func:`read`.
    """

    def __init__(self, annotation_file: str | None = None) -> None:
        super().__init__()
        if annotation_file is not None:
            self.dataset = _take(annotation_file)
            self._path = annotation_file
            self.createIndex()

    @classmethod
    def completed(cls, coco: api_wrappers.COCO) -> COCO:
        """The same annotations as another COCO's, completed; that one stays."""
        own = cls()
        objects = [dict(ann) for ann in coco.dataset.get('annotations', ())]
        complete_objects(objects, 'annotations')
        own.dataset = {'info': {}, **coco.dataset, 'annotations': objects}
        own.createIndex()
        return own

    def createIndex(self) -> None:
        """Index objects by id, image and category."""
        super().createIndex()
        self.img_ann_map = self.imgToAnns
        self.cat_img_map = self.catToImgs

    def get_cat_ids(
        self,
        cat_names: Sequence[str] = (),
        sup_names: Sequence[str] = (),
        cat_ids: Sequence[int] = (),
    ) -> list[int]:
        """Ids of categories; of ``cat_names`` in the order of these names.

        Raises:
            ValueError: If a name is not in the file: labels would be those of others.
        """
        if not len(cat_names) or len(sup_names) or len(cat_ids):
            return self.getCatIds(cat_names, sup_names, cat_ids)
        categories = self.dataset['categories']
        if not isinstance(cat_names, str):
            cat_names = class_names(cat_names, 'metainfo.classes')
        check_classes(categories, cat_names, getattr(self, '_path', 'annotations'))
        by_name = {category['name']: category['id'] for category in categories}
        return [by_name[name] for name in cat_names]


class _CategoriesInOrder:
    """An evaluation whose categories are in the order they were given in.

    pycocotools sorts them; mmdet's table of classes reads them as they were.
    """

    def evaluate(self) -> None:
        """Match detections, and remember the order of the categories."""
        self._order = list(self.params.catIds)
        super().evaluate()

    def accumulate(self, p: object = None) -> None:
        """Find precision (T, R, K, A, M) and recall (T, K, A, M)."""
        super().accumulate(p)
        if self.params.useCats:
            places = np.searchsorted(self.params.catIds, self._order)
            for key, axis in (('precision', 2), ('scores', 2), ('recall', 1)):
                self.eval[key] = np.take(self.eval[key], places, axis)


class COCOeval(_CategoriesInOrder, api_wrappers.COCOeval):
    """pycocotools' evaluation."""


class COCOevalMP(_CategoriesInOrder, api_wrappers.COCOevalMP):
    """The same in several processes, ``use_mp_eval`` of ``CocoMetric``."""


# data sets of the users' own that derive from mmdet's have them too
CocoDataset.COCOAPI = COCO
coco_metric.COCO = COCO
coco_metric.COCOeval = COCOeval
coco_metric.COCOevalMP = COCOevalMP


def check_classes(
    categories: Sequence[dict], classes: Sequence[str], where: object
) -> None:
    """See that a file has every class of a config.

    Args:
        categories (Sequence[dict]): The file's.
        classes (Sequence[str]): The config's, in the order of its labels.
        where (object): The file, and the key that names it, for errors.

    Raises:
        ValueError: If classes are doubled, are no names, or are not in the file.
    """
    if isinstance(classes, str):
        raise ValueError(
            f'metainfo.classes must be a list of names, got {classes!r}; a tuple of '
            f'one needs a comma: ({classes!r},)'
        )
    doubled = [name for name, number in Counter(classes).items() if number > 1]
    if doubled:
        raise ValueError(
            f'metainfo.classes has {", ".join(map(repr, doubled))} more than once'
        )
    found = [category['name'] for category in categories]
    missing = [name for name in classes if name not in found]
    if missing:
        surplus = [name for name in found if name not in classes]
        if 2 * len(missing) > len(classes) and tuple(classes) == _COCO:
            names = repr(tuple(found))
            raise ValueError(
                f'{where} has {_listed(found)}, and the config names no classes, so '
                f"that COCO's 80 are taken; set dataset.metainfo=dict(classes={names}) "
                f'in every dataloader and num_classes={len(found)} in the heads, or '
                f'give tools/train.py the folder of the data with --data'
            )
        text = f'{where} has no category {_listed(missing)} of the config'
        if surplus:
            text += f', and has {_listed(surplus)}, which the config does not name'
        raise ValueError(
            f'{text}; set dataset.metainfo.classes to the names of the file, or add '
            f"the missing ones to the file's categories (they may have no object)"
        )


def _listed(names: Sequence[object]) -> str:
    shown = ', '.join(map(repr, names[:6]))
    return shown if len(names) <= 6 else f'{shown} and {len(names) - 6} more'


@dataclass
class Survey:
    """What of a file's objects reaches a detector.

    Attributes:
        images (int): Images.
        objects (int): Objects.
        kept (int): Those that mmdet trains on, or that can be found.
        dropped (dict[str, int]): Number of the others by reason.
        over (int): Of those kept, boxes that reach far over their image's edge.
        without_mask (dict, optional): The first kept object whose mask cannot be
            read, where masks are asked for.
        mask_problem (str): What is wrong with it.
    """

    images: int
    objects: int
    kept: int = 0
    dropped: Counter = field(default_factory=Counter)
    over: int = 0
    without_mask: dict | None = None
    mask_problem: str = ''

    def __str__(self) -> str:
        reasons = [f'{n} {reason}' for reason, n in self.dropped.most_common()]
        return f'{self.kept} of {self.objects} objects can be used' + (
            f'; left out are {", ".join(reasons)}' if reasons else ''
        )

    @property
    def loses_many(self) -> bool:
        """Whether so much is left out that it should be said."""
        return sum(self.dropped.values()) >= max(1, _MANY * self.objects)

    @property
    def has_corners(self) -> bool:
        """Whether boxes are probably x1, y1, x2, y2."""
        return self.over > _OVER * self.kept


def survey(content: dict, classes: Sequence[str], masks: str | None = None) -> Survey:
    """Count what mmdet's ``CocoDataset`` keeps of a file's objects, and why.

    Args:
        content (dict): From :func:`read`.
        classes (Sequence[str]): The config's class names.
        masks (str, optional): 'learned' or 'scored' where masks are. Those of fewer
            than three points are left out of training, and cannot be scored.

    Returns:
        Survey: The counts.
    """
    sizes = {i['id']: (i['width'], i['height']) for i in content['images']}
    wanted = {c['id'] for c in content['categories'] if c['name'] in classes}
    annotations = content['annotations']
    found = Survey(len(sizes), len(annotations))
    kept, dropped = 0, found.dropped
    for ann in annotations:
        size = sizes.get(ann['image_id'])
        if size is None:
            dropped[_orphan(ann['image_id'], sizes)] += 1
        elif ann['category_id'] not in wanted:
            dropped['of classes that the config does not name'] += 1
        elif ann['iscrowd'] or ann.get('ignore'):
            dropped['crowds or marked to be ignored'] += 1
        else:
            x, y, w, h = ann['bbox']
            if w < 1 or h < 1:
                dropped[
                    'less than a pixel wide or high (boxes are in pixels, not in '
                    'shares of the image)'
                ] += 1
            elif x >= size[0] or y >= size[1] or x + w <= 0 or y + h <= 0:
                dropped["outside of their image's width and height in the file"] += 1
            else:
                problem = _mask_problem(ann, size) if masks else ''
                if problem == _FEW_POINTS and masks == 'learned':
                    dropped[f'whose segmentation {problem}'] += 1
                    continue
                kept += 1
                found.over += (
                    max(-x, x + w - size[0]) > _EDGE * size[0]
                    or max(-y, y + h - size[1]) > _EDGE * size[1]
                )
                if problem and not found.without_mask:
                    found.without_mask, found.mask_problem = ann, problem
    found.kept = kept
    return found


_FEW_POINTS = 'has no polygon of three points or more'


def _mask_problem(ann: dict, size: tuple[int, int]) -> str:
    """What keeps an object's mask from being read; empty if nothing."""
    mask = ann.get('segmentation')
    if not mask:
        return "has no 'segmentation'"
    try:
        if isinstance(mask, dict):
            height, width = mask['size']
            if mask['counts'] and (width, height) == size:
                return ''
            return f"has a mask of {width} x {height} pixels, not its image's size"
        if math.isfinite(sum(map(sum, mask))):
            usable = any(len(p) >= 6 and len(p) % 2 == 0 for p in mask)
            return '' if usable else _FEW_POINTS
    except (TypeError, ValueError, KeyError):
        pass
    return (
        'has a segmentation that is neither polygons [[x1, y1, x2, y2, ...], ...] nor '
        'an RLE of size and counts'
    )


def _orphan(image_id: object, sizes: dict) -> str:
    """Why an object has no image."""
    is_text = isinstance(image_id, str)
    if is_text != isinstance(next(iter(sizes), image_id), str):
        own, other = ('text', 'numbers') if is_text else ('numbers', 'text')
        return f"whose image_id is {own} where the images' ids are {other}"
    return 'of images that the file does not list'
