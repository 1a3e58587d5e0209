"""COCO annotation files: read once, completed and checked.

:mod:`dlu_mmdet.engine.patches` lets mmdet's ``CocoDataset`` and ``CocoMetric`` use
:class:`COCO` and :class:`COCOeval`. Missing keys that have one meaning are filled in,
values that pycocotools misreads are corrected, and labels follow the class names of the
config, not the order of the file. mmdet's metrics use :func:`eval_recalls`, since their
own fails with numpy 1.24 and later.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from mmdet.datasets import CocoDataset, api_wrappers

with warnings.catch_warnings():
    # the forks tell whoever imports these that an optional metric is not installed
    warnings.simplefilter('ignore', UserWarning)
    from mmdet.evaluation.functional import recall

# files above this size, in bytes, get a progress message
_LARGE = 50e6
# warn if a larger share of the objects than this is dropped
_MANY = 0.01
# boxes are suspicious if this share of them exceeds the image by this margin
_OVER, _EDGE = 0.05, 0.1
_NAMES = (str, int, float)
# pycocotools keeps the ids of objects as float64, which holds integers up to this one
_MAX_OBJECT_ID = 2**53
_COCO = CocoDataset.METAINFO['classes']


def _fail(path: object, what: str, index: int, entry: object, problem: str) -> NoReturn:
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


def normalize_annotations(content: Any, path: object) -> dict:
    """Check a COCO annotation file's content and fill in what is left out.

    Names of categories become text. A missing ``iscrowd`` is 0, an ``area`` that is
    missing or not above 0 the box's, a missing ``info`` empty. pycocotools takes an
    object of id 0 for none and objects of one id for one, so ids that are not different
    whole numbers from 1 to 2**53 are numbered anew.

    Args:
        content (object): The parsed file; completed in place.
        path (object): Its name, for errors.

    Returns:
        dict: ``content``.

    Raises:
        ValueError: If it is no COCO annotation file, or a key without which it has no
            meaning is missing or wrong: the message names file, entry and key.
    """
    _check_lists(content, path)
    # without it pycocotools 2.0.9 and 2.0.10 cannot load results
    content.setdefault('info', {})
    annotations = content.setdefault('annotations', [])
    for what, keys in _ENTRIES.items():
        for index, entry in enumerate(content[what]):
            _check_entry(path, what, index, entry, keys)
        for key in {'id', 'name'} & {*keys}:
            _check_distinct(path, what, key, content[what])
    for what, key in (('images', 'image_id'), ('categories', 'category_id')):
        if len({isinstance(entry['id'], str) for entry in content[what]}) > 1:
            raise ValueError(
                f"{path}: the {what}' ids are text in some places and numbers in "
                f'others; make them all the same, and {key} in the annotations too'
            )
    normalize_objects(annotations, path)
    return content


def _check_lists(content: Any, path: object) -> None:
    """Refuse what is no COCO file at all."""
    lists = ('images', 'annotations', 'categories')
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key, []), list) for key in lists
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


def _check_entry(
    path: object, what: str, index: int, entry: Any, keys: Sequence[str]
) -> None:
    """Check the keys of an image or a category; a name becomes text, in place."""
    for key in keys:
        if not isinstance(entry, dict) or key not in entry:
            _fail(path, what, index, entry, f'has no {key!r}; add it')
        is_right, must = _VALUES[key]
        if not is_right(entry[key]):
            problem = f'has the {key} {entry[key]!r}; it must be {must}'
            _fail(path, what, index, entry, problem)
        if key == 'name':
            entry[key] = class_name(entry[key], f'{path}: {what}[{index}].name')


def _check_distinct(path: object, what: str, key: str, entries: list[dict]) -> None:
    """Refuse two entries of one id or name."""
    values = Counter(entry[key] for entry in entries)
    twice = [value for value, number in values.items() if number > 1]
    if twice:
        shown = ', '.join(map(repr, twice[:5]))
        raise ValueError(
            f'{path}: {what} has the {key} {shown} more than once; give each its own'
        )


def normalize_objects(annotations: list[dict], path: object) -> None:
    """The part of :func:`normalize_annotations` that is about objects, in place."""
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
        area: Any = ann.get('area')
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
    usable = all(type(i) is int and 1 <= i <= _MAX_OBJECT_ID for i in ids)
    if not usable or len(set(ids)) < len(ids):
        for number, ann in enumerate(annotations, 1):
            ann['id'] = number


def _is_name(value: object) -> bool:
    """Whether a value can tell one entry from another: NaN is not even itself."""
    return isinstance(value, _NAMES) and value == value


def _is_positive(value: object) -> bool:
    return isinstance(value, (int, float)) and value > 0


# what each list must have, and what its values must be
_ENTRIES = {
    'categories': ('id', 'name'),
    'images': ('id', 'file_name', 'height', 'width'),
}
_VALUES = {
    'id': (_is_name, 'text or number'),
    'name': (_is_name, 'text or number'),
    'height': (_is_positive, 'in pixels'),
    'width': (_is_positive, 'in pixels'),
    'file_name': (lambda value: isinstance(value, str) and value != '', 'a path'),
}


def _explain_annotation(path: object, index: int, ann: Any) -> NoReturn:
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
        dict: As :func:`normalize_annotations`.

    Raises:
        ValueError: If it is no JSON, or as :func:`normalize_annotations`.
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
    return normalize_annotations(content, path)


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


@contextlib.contextmanager
def _without_notes() -> Iterator[None]:
    """Leave out what pycocotools prints while it makes its tables."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


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
        normalize_objects(objects, 'annotations')
        own.dataset = {'info': {}, **coco.dataset, 'annotations': objects}
        own.createIndex()
        return own

    def createIndex(self) -> None:
        """Index objects by id, image and category."""
        with _without_notes():
            super().createIndex()
        self.img_ann_map = self.imgToAnns
        self.cat_img_map = self.catToImgs

    def loadRes(self, resFile: str | list) -> api_wrappers.COCO:
        """The detections of a result file, or of a list, as a COCO."""
        with _without_notes():
            return super().loadRes(resFile)

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

    def annToRLE(self, ann: dict) -> dict:
        """The mask of an object as RLE, of the polygons that training takes too.

        pycocotools reads a first polygon of two points as a box, and fails at the
        next one.
        """
        mask = ann['segmentation']
        if isinstance(mask, list):
            ann = dict(ann, segmentation=[p for p in mask if _is_polygon(p)])
        return super().annToRLE(ann)


_Base: Any = api_wrappers.COCOeval if TYPE_CHECKING else object


class _Evaluation(_Base):
    """What pycocotools' evaluation leaves to its caller.

    Ids are matched as they are: numpy turns those on both sides of 2**63 into floats.
    Thresholds may be a number or any sequence. Categories stay in the order they were
    given in: pycocotools sorts them, and mmdet's table of classes reads them as they
    were.
    """

    def evaluate(self) -> None:
        """Match detections, and remember the order of the categories."""
        params = self.params
        self._order = list(params.catIds)
        params.imgIds = np.array([*params.imgIds], dtype=object)
        params.catIds = np.array([*params.catIds], dtype=object)
        params.iouThrs = np.array(params.iouThrs, dtype=float, ndmin=1)
        super().evaluate()

    def accumulate(self, p: object = None) -> None:
        """Find precision (T, R, K, A, M) and recall (T, K, A, M)."""
        super().accumulate(p)
        if self.params.useCats:
            places = [self.params.catIds.index(i) for i in self._order]
            for key, axis in (('precision', 2), ('scores', 2), ('recall', 1)):
                self.eval[key] = np.take(self.eval[key], places, axis)


class COCOeval(_Evaluation, api_wrappers.COCOeval):
    """pycocotools' evaluation."""


class COCOevalMP(_Evaluation, api_wrappers.COCOevalMP):
    """The same in several processes, ``use_mp_eval`` of ``CocoMetric``."""


def eval_recalls(
    gts: Sequence[np.ndarray],
    proposals: Sequence[np.ndarray],
    proposal_nums: int | Sequence[int],
    iou_thrs: float | Sequence[float] | None = 0.5,
    logger: object = None,
    use_legacy_coordinate: bool = False,
) -> np.ndarray:
    """mmdet's function of this name, for any version of numpy.

    Its own makes an array of one IoU matrix an image, which numpy refuses since 1.24
    where their shapes differ.

    Args:
        gts (Sequence[np.ndarray]): For each image the objects, (G, 4) x1 y1 x2 y2.
        proposals (Sequence[np.ndarray]): For each image the boxes, (D, 4) with the
            best first, or (D, 5) with scores.
        proposal_nums (int | Sequence[int]): N numbers of boxes an image.
        iou_thrs (float | Sequence[float], optional): T thresholds.
        logger (object, optional): Where the table is printed, see mmengine.
        use_legacy_coordinate (bool): Whether a box ends after its last pixel.

    Returns:
        np.ndarray: (N, T), the share of the objects that are found.
    """
    numbers = np.array(proposal_nums, ndmin=1)
    thresholds = np.array(0.5 if iou_thrs is None else iou_thrs, dtype=float, ndmin=1)
    ious = np.empty(len(gts), dtype=object)
    for index, (objects, boxes) in enumerate(zip(gts, proposals)):
        if boxes.shape[1] == 5:
            boxes = boxes[np.argsort(-boxes[:, 4], kind='stable')]
        ious[index] = recall.bbox_overlaps(
            objects,
            boxes[: numbers.max(), :4],
            use_legacy_coordinate=use_legacy_coordinate,
        )
    found = recall._recalls(ious, numbers, thresholds)
    recall.print_recall_summary(found, numbers, thresholds, logger=logger)
    return found


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
                f'give the folder of the data with --data'
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
    """Counts of usable and dropped objects in a file.

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


def count_usable(
    content: dict, classes: Sequence[str], masks: str | None = None
) -> Survey:
    """Count what mmdet's ``CocoDataset`` keeps of a file's objects, and why.

    Args:
        content (dict): From :func:`read`.
        classes (Sequence[str]): The config's class names.
        masks (str, optional): Where masks are read: 'learned', 'learned as polygons'
            or 'scored'. Training leaves those out that it cannot use; all that are
            scored must be usable.

    Returns:
        Survey: The counts.
    """
    sizes = {i['id']: (i['width'], i['height']) for i in content['images']}
    ids = {c['id'] for c in content['categories']}
    wanted = {c['id'] for c in content['categories'] if c['name'] in classes}
    annotations = content['annotations']
    found = Survey(len(sizes), len(annotations))
    kept, dropped = 0, found.dropped
    for ann in annotations:
        size = sizes.get(ann['image_id'])
        if size is None:
            dropped[_orphan(ann, 'image_id', sizes)] += 1
            continue
        if ann['category_id'] not in wanted:
            dropped[
                'of classes that the config does not name'
                if ann['category_id'] in ids
                else _orphan(ann, 'category_id', ids)
            ] += 1
            continue
        reason = _reason_dropped(ann, size)
        # training loads the masks of crowds too, and a score needs every mask
        if masks and (masks == 'scored' or reason in ('', _CROWD)):
            problem = _mask_problem(ann, size, masks)
            if problem in _LEFT_OUT and masks != 'scored':
                reason = reason or f'whose segmentation {problem}'
            elif problem and not found.without_mask:
                found.without_mask, found.mask_problem = ann, problem
        if reason:
            dropped[reason] += 1
            continue
        kept += 1
        x, y, w, h = ann['bbox']
        found.over += (
            max(-x, x + w - size[0]) > _EDGE * size[0]
            or max(-y, y + h - size[1]) > _EDGE * size[1]
        )
    found.kept = kept
    return found


_CROWD = 'crowds'


def _reason_dropped(ann: dict, size: tuple[int, int]) -> str:
    """Why an object is neither learned nor to be found; empty if it is."""
    if ann.get('ignore'):
        return 'marked to be ignored'
    x, y, w, h = ann['bbox']
    if w < 1 or h < 1:
        return (
            'less than a pixel wide or high (boxes are in pixels, not in shares of '
            'the image)'
        )
    if x >= size[0] or y >= size[1] or x + w <= 0 or y + h <= 0:
        return "outside of their image's width and height in the file"
    return _CROWD if ann['iscrowd'] else ''


_FEW_POINTS = 'has no polygon of three points or more'
_NO_POLYGON = 'is an RLE, which LoadAnnotations leaves out with poly2mask=False'
_LEFT_OUT = (_FEW_POINTS, _NO_POLYGON)


def _is_polygon(points: Sequence[float]) -> bool:
    """Whether mmdet trains on it: x and y of three points or more."""
    return len(points) >= 6 and len(points) % 2 == 0


def _mask_problem(ann: dict, size: tuple[int, int], masks: str) -> str:
    """What keeps an object's mask from being used; empty if nothing."""
    mask = ann.get('segmentation')
    if not mask:
        return "has no 'segmentation'"
    try:
        if isinstance(mask, dict):
            height, width = mask['size']
            if (width, height) != size:
                return f"has a mask of {width} x {height} pixels, not its image's size"
            counts = mask['counts']
            runs = _runs(counts) if isinstance(counts, str) else counts
            if min(runs) < 0 or sum(runs) != width * height:
                return (
                    f'has an RLE of {sum(runs)} pixels, not of the {width} x {height} '
                    f'of its image, so it is cut off or broken'
                )
            return _NO_POLYGON if masks == 'learned as polygons' else ''
        if math.isfinite(sum(map(sum, mask))):
            return '' if any(map(_is_polygon, mask)) else _FEW_POINTS
    except (TypeError, ValueError, KeyError):
        pass
    return (
        'has a segmentation that is neither polygons [[x1, y1, x2, y2, ...], ...] nor '
        'an RLE of size and counts'
    )


def _runs(counts: str) -> list[int]:
    """Decompress the runs of an RLE, which pycocotools takes to be whole.

    It never ends where it scores one that is cut off. Source: rleFrString of maskApi.c
    in cocodataset/cocoapi.
    """
    runs, value, bits = [], 0, 0
    for digit in counts.encode():
        digit -= 48
        value |= (digit & 31) << bits
        bits += 5
        if not digit & 32:
            value -= (digit & 16) << (bits - 4)
            # from the third on, the difference to the run before the last
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = bits = 0
    # a run that does not end is none
    return [*runs, -1] if bits or not runs else runs


def _orphan(ann: dict, key: str, ids: Collection) -> str:
    """Describe a reference to a missing image or category."""
    what = {'image_id': 'images', 'category_id': 'categories'}[key]
    is_text = isinstance(ann[key], str)
    if is_text != isinstance(next(iter(ids), ann[key]), str):
        own, other = ('text', 'numbers') if is_text else ('numbers', 'text')
        return f"whose {key} is {own} where the {what}' ids are {other}"
    return f'of {what} that the file does not list'
