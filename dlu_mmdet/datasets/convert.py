"""Convert a YOLO, Pascal VOC or labelme folder to COCO format.

The boxes are read by supervision, an optional package. They stay in pixels of the image
as it is displayed, after its EXIF orientation:

- YOLO: shares of width and height, times the size of the image. Classes are in the
  order of data.yaml. An image without a label file has no objects.
- Pascal VOC: corners are pixel numbers from 1, and the last pixel belongs to the box:
  (xmin, ymin, xmax, ymax) becomes [xmin - 1, ymin - 1, xmax - xmin + 1,
  ymax - ymin + 1]. Objects marked as difficult are kept. Masks are not read.
- labelme: rectangles and polygons; shapes of one label and group are one object.

Polygons of YOLO and labelme are kept as they are. Images are copied.
"""

from __future__ import annotations

import abc
import contextlib
import json
import os
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple
from xml.etree.ElementTree import Element

import numpy as np
from PIL import Image
from pycocotools import mask

from . import formats
from .split import check_split, describe_parts, split_images

_FROM_ZERO = (
    'boxes begin at 0, where Pascal VOC counts from 1: if the files count from 0, all '
    'boxes are one pixel too large at the left and the top'
)
#: The package that reads the formats: requirements/convert.txt.
REQUIREMENT = 'supervision>=0.31.2,<0.32'
# other versions compute the corners of VOC differently
_SERIES = '0.31.'


class Labels(NamedTuple):
    """The objects of one image.

    Attributes:
        names (list[str | int]): Class of each of the N objects.
        boxes (np.ndarray): (N, 4), x1 y1 x2 y2 in pixels.
        outlines (list, optional): For each object its polygons, each an (M, 2) array
            of x and y in pixels.
        size (tuple, optional): Width and height of the image that the file names.
    """

    names: list
    boxes: np.ndarray
    outlines: list[list[np.ndarray]] | None = None
    size: tuple | None = None


def convert(
    root: str | os.PathLike,
    out: str | os.PathLike,
    format: str = 'auto',
    val_fraction: float | None = None,
    split_seed: int = 0,
) -> list[str]:
    """Convert a folder to ``OUT/annotations/instances_SPLIT.json`` and ``OUT/SPLIT/``.

    Args:
        root (str | PathLike): Folder of images and annotations.
        out (str | PathLike): Folder to make: new, or empty.
        format (str): 'yolo', 'voc', 'labelme', or 'auto' to recognize it.
        val_fraction (float, optional): Share of the images to validate on, for a folder
            without a validation set.
        split_seed (int): Seed of that choice. Defaults to 0.

    Returns:
        list[str]: What was done and left out, a line each.

    Raises:
        FileNotFoundError: If the folder or all images are missing.
        ValueError: If an argument is wrong, a file cannot be read, or supervision is
            not installed.
    """
    root, out = Path(root), Path(out)
    if val_fraction is not None:
        check_split(val_fraction, split_seed)
    if not root.is_dir():
        raise FileNotFoundError(
            f'{root} {formats.advice(root) if root.exists() else "does not exist"}'
        )
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f'--out {out} exists and is not empty; name a new folder')
    if format == 'auto':
        found = formats.recognize(root)
        if found is None:
            told = formats.advice(root) or (
                'is not recognized as YOLO, Pascal VOC or labelme; if it is one, name '
                'it with --format; COCO files need no conversion, give them to '
                'dlu_mmdet train --data'
            )
            raise ValueError(f'{root} {told}')
        format = found
    check_installed()
    layout = formats.find_layout(root, format)
    if val_fraction is not None and 'val' in layout.splits:
        raise ValueError(
            f'{root} already has a validation set of {len(layout.splits["val"])} '
            f'images; leave out --val-fraction'
        )
    reader = _READERS[format](root, layout)
    contents, images = {}, {}
    for split, files in layout.splits.items():
        contents[split], images[split] = _convert_split(reader, files)
    _number_classes(reader, contents)
    if val_fraction is not None:
        name = next(iter({*contents} - {'test'}), 'test')
        parts = split_images(contents.pop(name), val_fraction, split_seed)
        sources = images.pop(name)
        for split, part in zip(('train', 'val'), parts):
            contents[split] = part
            images[split] = {i['id']: sources[i['id']] for i in part['images']}
    _write(out, contents, images)
    first = next(iter(contents.values()))
    names = [category['name'] for category in first['categories']]
    return [
        f'{out}: {describe_parts(contents)}; {len(names)} classes: {_listed(names)}',
        *(f'{number} {what}' for what, number in reader.counts.items() if number),
    ]


def check_installed() -> None:
    """Check that the package that reads the formats is installed.

    Raises:
        ValueError: If it is not.
    """
    try:
        import supervision

        found = f'has {supervision.__version__}'
        if supervision.__version__.startswith(_SERIES):
            return
    except ImportError as error:
        found = str(error)
    raise ValueError(
        f'converting needs Python 3.10 or later and supervision {_SERIES}* ({found}); '
        f"install it: {Path(sys.executable).name} -m pip install '{REQUIREMENT}'"
    )


class _Reader(abc.ABC):
    """Reads the annotation files of one folder.

    Attributes:
        classes (list[str], optional): In their order, where the format has one.
        counts (Counter): What is left out or odd, by what it is.
    """

    classes: list[str] | None = None

    def __init__(self, root: Path, layout: formats.Layout) -> None:
        self.root = root
        self.counts: Counter = Counter()
        self._stems: dict[str, list[Path]] = {}
        for path in layout.files:
            if path.suffix.lower() in formats.IMAGES:
                self._stems.setdefault(path.stem, []).append(path)
        self._prepare(layout)

    def _prepare(self, layout: formats.Layout) -> None:  # noqa: B027
        """Read what belongs to all files."""

    def pairs(self, files: Sequence[Path]) -> Iterator[tuple[Path, Path | None]]:
        """Every image with its annotation file."""
        for path in files:
            if image := self.image_of(path):
                yield image, path
            else:
                self.counts['annotation files without an image, left out'] += 1

    def image_of(self, path: Path) -> Path | None:
        """The image of an annotation file."""
        return self._nearest(path.stem, path)

    @abc.abstractmethod
    def read(self, path: Path, size: tuple[int, int]) -> Labels:
        """Read one annotation file; ``size`` is width and height of its image."""

    def _nearest(self, stem: str, path: Path) -> Path | None:
        """The image of that name with the most folders in common with a file."""
        found = self._stems.get(stem, [])
        common = [len(os.path.commonpath([p.parent, path.parent])) for p in found]
        best = [p for p, length in zip(found, common) if length == max(common)]
        if len(best) > 1:
            raise ValueError(
                f'{path} may belong to {best[0]} or to {best[1]}; rename one of them'
            )
        return best[0] if best else None


class _Yolo(_Reader):
    def _prepare(self, layout: formats.Layout) -> None:
        found = formats.yolo_yaml(self.root)
        content = found[1] if found else {}
        names = content.get('names') or self._names_file(layout.files)
        items = names.items() if isinstance(names, dict) else enumerate(names)
        self._names = {int(number): str(name) for number, name in items}
        self.classes = [self._names[number] for number in sorted(self._names)]
        twice = [name for name, n in Counter(self.classes).items() if n > 1]
        if twice:
            raise ValueError(f'{self.root} names a class twice: {_listed(twice)}')
        # a pose is a box and points: the box counts
        self._length = 5 if content.get('kpt_shape') else None

    def _names_file(self, files: Sequence[Path]) -> list[str]:
        for path in files:
            if path.name == 'classes.txt' or path.suffix == '.names':
                lines = path.read_text(encoding='utf-8').split('\n')
                return [line.strip() for line in lines if line.strip()]
        raise ValueError(
            f'{self.root} names no classes; add data.yaml with a list names, or '
            f'classes.txt with a name in each line'
        )

    def pairs(self, files: Sequence[Path]) -> Iterator[tuple[Path, Path | None]]:
        for image in files:
            path = formats.label_of(image)
            has_labels = path.is_file()
            self.counts[
                'images without a label file, without objects'
            ] += not has_labels
            yield image, path if has_labels else None

    def read(self, path: Path, size: tuple[int, int]) -> Labels:
        from supervision.dataset.formats.yolo import yolo_annotations_to_detections

        lines = [line.split() for line in path.read_text(encoding='utf-8').split('\n')]
        lines = [line[: self._length] for line in lines if line]
        found = yolo_annotations_to_detections(
            [' '.join(line) for line in lines], size, with_masks=False
        )
        outlines = None
        if any(len(line) > 6 for line in lines):
            outlines = []
            for line, box in zip(lines, found.xyxy):
                # a score may follow
                points = np.array(line[1 : 1 + (len(line) - 1) // 2 * 2], dtype=float)
                is_box = len(line) < 7
                outlines.append(
                    [_corners(box) if is_box else points.reshape(-1, 2) * size]
                )
        names = []
        for number in [] if found.class_id is None else found.class_id.tolist():
            if number not in self._names:
                raise ValueError(
                    f'class {number} is not among the {len(self._names)} names'
                )
            names.append(self._names[number])
        return Labels(names, found.xyxy, outlines)


class _Voc(_Reader):
    def _prepare(self, layout: formats.Layout) -> None:
        number = sum(path.suffix.lower() == '.xml' for path in layout.files)
        listed = sum(map(len, layout.splits.values()))
        self.counts['XML files that no list of a split has, left out'] = number - listed

    def image_of(self, path: Path) -> Path | None:
        found = self._nearest(path.stem, path)
        if found is None:
            name = self._tree(path).findtext('filename') or ''
            found = self._nearest(PureWindowsPath(name).stem, path)
        return found

    def _tree(self, path: Path) -> Element:
        from defusedxml import ElementTree

        return ElementTree.parse(path).getroot()

    def read(self, path: Path, size: tuple[int, int]) -> Labels:
        from supervision.dataset.formats.pascal_voc import detections_from_xml_obj

        tree = self._tree(path)
        # masks are not used, and would take the memory of an image for each object
        for thing in tree.findall('object'):
            for polygon in thing.findall('polygon'):
                thing.remove(polygon)
        found, names = detections_from_xml_obj(tree, [], size)
        begins = found.xyxy[:, :2] if len(found) else np.zeros((0, 2))
        self.counts[_FROM_ZERO] += int((begins < 0).any(axis=1).sum())
        width, height = (tree.findtext(f'size/{key}') for key in ('width', 'height'))
        told = (int(float(width)), int(float(height))) if width and height else None
        return Labels([names[i] for i in found.class_id], found.xyxy, size=told)


class _Labelme(_Reader):
    def pairs(self, files: Sequence[Path]) -> Iterator[tuple[Path, Path | None]]:
        own = [p for p in files if formats.is_labelme(p)]
        other = len(files) - len(own)
        self.counts['JSON files that are not of labelme, left out'] += other
        return super().pairs(own)

    def image_of(self, path: Path) -> Path | None:
        told = str(self._content(path).get('imagePath') or '')
        # on Windows folders end with a backslash
        name = PureWindowsPath(told)
        for place in (path.parent / name.name, path.parent / name.as_posix()):
            if place.is_file():
                return place
        return self._nearest(name.stem, path) or self._nearest(path.stem, path)

    def _content(self, path: Path) -> dict:
        return json.loads(path.read_text(encoding='utf-8-sig'))

    def read(self, path: Path, size: tuple[int, int]) -> Labels:
        from supervision.dataset.formats import labelme

        content = self._content(path)
        shapes = []
        for shape in content['shapes']:
            # files of labelme 3 have polygons alone, and do not say so
            kind = shape.get('shape_type') or 'polygon'
            shape = dict(shape, shape_type=kind, label=str(shape['label']))
            if shape['shape_type'] in labelme.SUPPORTED_SHAPE_TYPES:
                shapes.append(shape)
            else:
                what = f'shapes of the type {shape["shape_type"]!r}, left out'
                self.counts[what] += 1
        names = list(dict.fromkeys(shape['label'] for shape in shapes))
        numbers = {name: number for number, name in enumerate(names)}
        found = labelme.labelme_shapes_to_detections(shapes, numbers, size, False)
        outlines = None
        if any(shape['shape_type'] == 'polygon' for shape in shapes):
            # as the boxes: one object for each group of a label
            groups: dict[object, list] = {}
            for number, shape in enumerate(shapes):
                group, points = shape.get('group_id'), np.array(shape['points'], float)
                if shape['shape_type'] == 'rectangle':
                    points = _corners([*points.min(axis=0), *points.max(axis=0)])
                key = number if group is None else (shape['label'], group)
                groups.setdefault(key, []).append(points)
            outlines = list(groups.values())
        size = content.get('imageWidth'), content.get('imageHeight')
        ids = [] if found.class_id is None else found.class_id
        return Labels(
            [names[i] for i in ids], found.xyxy, outlines, size if all(size) else None
        )


_READERS: dict[str, type[_Reader]] = {
    'yolo': _Yolo,
    'voc': _Voc,
    'labelme': _Labelme,
}


def _corners(box: Sequence[float]) -> np.ndarray:
    x1, y1, x2, y2 = box
    return np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], dtype=float)


def _image_size(path: Path) -> tuple[int, int]:
    """Width and height of an image as it is displayed."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(0x0112, 1) > 4
            return image.size[::-1] if turned else image.size
    except (OSError, ValueError) as error:
        raise ValueError(f'{path} is not an image ({error}); remove it') from error


def _convert_split(
    reader: _Reader, files: Sequence[Path]
) -> tuple[dict, dict[int, Path]]:
    """Convert the files of one split; categories are names so far.

    Returns:
        tuple: The COCO content; by image id the image.
    """
    pairs = list(reader.pairs(files))
    if not pairs:
        raise FileNotFoundError(
            f'{reader.root}: none of the images of its {len(files)} annotation files '
            f'is there; put the images beside them'
        )
    base = os.path.commonpath([os.path.abspath(image.parent) for image, _ in pairs])
    images, annotations, sources = [], [], {}
    for number, (image, path) in enumerate(pairs, 1):
        size = _image_size(image)
        name = PurePosixPath(Path(os.path.relpath(image, base)).as_posix())
        images.append(
            dict(id=number, file_name=str(name), width=size[0], height=size[1])
        )
        sources[number] = image
        if path is None:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                labels = reader.read(path, size)
        except (ValueError, KeyError, TypeError, AttributeError, SyntaxError) as error:
            message = ' '.join(str(error).split())
            raise ValueError(
                f'{path} cannot be read as {formats.CONVERTIBLE[_key(reader)]} '
                f'({type(error).__name__}: {message}); mend it, or remove it'
            ) from error
        if labels.size and labels.size != size and all(labels.size):
            reader.counts['files name another size than their image has'] += 1
        nothing: list = [None] * len(labels.names)
        outlines = labels.outlines or nothing
        for label, box, outline in zip(labels.names, labels.boxes.tolist(), outlines):
            x1, y1, x2, y2 = box
            thing = dict(
                id=len(annotations) + 1,
                image_id=number,
                category_id=label,
                # float32 holds no more
                bbox=[round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)],
                area=round((x2 - x1) * (y2 - y1), 3),
                iscrowd=0,
            )
            if outline is not None:
                polygons = [np.round(p, 3).ravel().tolist() for p in outline]
                thing['segmentation'] = polygons
                rle = mask.merge(mask.frPyObjects(polygons, size[1], size[0]))
                thing['area'] = float(mask.area(rle))
            annotations.append(thing)
    return dict(images=images, annotations=annotations), sources


def _key(reader: _Reader) -> str:
    return next(key for key, cls in _READERS.items() if isinstance(reader, cls))


def _number_classes(reader: _Reader, contents: dict[str, dict]) -> None:
    """Give the classes of all splits the same numbers, in place."""
    found = {a['category_id'] for c in contents.values() for a in c['annotations']}
    classes = reader.classes or sorted(found)
    numbers = {name: number for number, name in enumerate(classes, 1)}
    for content in contents.values():
        content['categories'] = [dict(id=i, name=name) for name, i in numbers.items()]
        for ann in content['annotations']:
            ann['category_id'] = numbers[ann['category_id']]


def _write(
    out: Path, contents: dict[str, dict], images: dict[str, dict[int, Path]]
) -> None:
    """Write the COCO folder, whole or not at all."""
    partial = out.with_name(f'.{out.name}.{os.getpid()}.partial')
    try:
        (partial / 'annotations').mkdir(parents=True)
        for split, content in contents.items():
            for image in content['images']:
                target = partial / split / image['file_name']
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(images[split][image['id']], target)
            path = partial / 'annotations' / f'instances_{split}.json'
            path.write_text(json.dumps(content), encoding='utf-8')
        with contextlib.suppress(FileNotFoundError):
            out.rmdir()
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _listed(names: Sequence[str]) -> str:
    more = f' and {len(names) - 10} more' if len(names) > 10 else ''
    return ', '.join(map(str, names[:10])) + more
