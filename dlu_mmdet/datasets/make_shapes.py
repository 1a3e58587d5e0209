"""Shapes: a synthetic detection data set in COCO's format, made on the spot.

Six tilted shapes, each class of a hue of its own give or take, over noise and
clutter, from a few pixels to most of the image, some partly hidden: enough for
upsamplers to differ on, easy enough to learn within minutes on a CPU::

    python -m dlu_mmdet.datasets.make_shapes data/shapes

    data/shapes/
        annotations/instances_train.json, instances_val.json
        train/000000.png ...
        val/000000.png ...
        shapes.json                 the arguments the set was made with
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import sys
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as mask_utils
from rich.progress import track

from .shapes import CLASSES

# Part of every data set's identity: raise it whenever the pictures change.
_VERSION = 1
# An object is only placed where this share of it and of those below stays visible.
_MIN_VISIBLE = 0.6
_MIN_VISIBLE_PIXELS = 20
# In degrees; the hues of two classes are 60 apart, so color tells most, not all.
_HUE_STD = 15


def _unit_contours(name: str) -> list[np.ndarray]:
    """Outlines of a class, float64 (points, 2), on the unit circle's disc."""

    def ring_of(radii: np.ndarray) -> np.ndarray:
        angles = (np.arange(len(radii)) + 0.5) * (2 * math.pi / len(radii))
        return radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)

    if name == 'disc':
        return [ring_of(np.ones(48))]
    if name == 'ring':
        return [ring_of(np.ones(48)), ring_of(np.full(48, 0.5))]
    if name == 'triangle':
        return [ring_of(np.ones(3))]
    if name == 'square':
        return [ring_of(np.ones(4))]
    if name == 'star':
        return [ring_of(np.tile([1.0, 0.5], 5))]
    arm = 0.35
    tip = math.sqrt(1 - arm * arm)
    quarter = np.array([(tip, -arm), (tip, arm), (arm, arm)])
    turn = np.array([(0.0, 1.0), (-1.0, 0.0)])
    return [
        np.concatenate([quarter @ np.linalg.matrix_power(turn, n) for n in range(4)])
    ]


def _noise(
    rng: np.random.Generator, size: int, scales: tuple[int, ...], std: float
) -> np.ndarray:
    """Smooth noise, float32 (size, size, 3), mean 0, mostly gray; std in levels."""
    total = np.zeros((size, size, 3), np.float32)
    for scale in scales:
        cells = max(2, math.ceil(size / scale))
        grid = rng.normal(0, std, (cells, cells, 1))
        grid = grid + rng.normal(0, std / 3, (cells, cells, 3))
        total += cv2.resize(
            grid.astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC
        )
    return total / math.sqrt(len(scales))


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Noise on several scales with lines and arcs across, float32 (size, size, 3)."""
    base = rng.uniform(50, 100) + rng.uniform(-15, 15, 3)
    canvas = np.clip(base + _noise(rng, size, (96, 32, 12, 4), 15), 0, 255)
    # OpenCV antialiases 8-bit images only.
    canvas = canvas.astype(np.uint8)
    for number in range(int(rng.integers(3, 7))):
        color = [int(c) for c in rng.uniform(30, 200, 3)]
        first, last = rng.integers(0, size, (2, 2)).tolist()
        thickness = int(rng.integers(1, 3))
        if number % 2:
            axes = [int(a) for a in rng.integers(size // 16 + 1, size // 3 + 2, 2)]
            start = float(rng.uniform(0, 360))
            sweep = float(rng.uniform(60, 200))
            cv2.ellipse(
                canvas,
                first,
                axes,
                0,
                start,
                start + sweep,
                color,
                thickness,
                cv2.LINE_AA,
            )
        else:
            cv2.line(canvas, first, last, color, thickness, cv2.LINE_AA)
    return canvas.astype(np.float32)


def _coverage(
    rng: np.random.Generator, name: str, object_size: float, image_size: int
) -> np.ndarray:
    """One shape at a random place and angle: coverage, uint8, the image's shape."""
    # Any angle at all would take longer to learn than these pictures are for.
    angle = rng.uniform(-math.pi / 8, math.pi / 8)
    squeeze = rng.uniform(0.85, 1.0)
    turn = np.array(
        [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
    )
    contours = [c * (1, squeeze) @ turn for c in _unit_contours(name)]
    areas = [cv2.contourArea(c.astype(np.float32)) for c in contours]
    # Outer outline first, then the hole; a thin shape may not fit at its full area.
    radius = min(object_size / math.sqrt(areas[0] - sum(areas[1:])), 0.48 * image_size)
    center = rng.uniform(radius, image_size - radius, 2)
    # OpenCV takes points as integers with `shift` fractional bits.
    shift = 4
    points = [
        np.rint((c * radius + center) * 2**shift).astype(np.int32) for c in contours
    ]
    coverage = np.zeros((image_size, image_size), np.uint8)
    cv2.fillPoly(coverage, points, 255, cv2.LINE_AA, shift)
    return coverage


def _color(rng: np.random.Generator, label: int) -> np.ndarray:
    """A color of the class's hue, give or take: BGR float32 (3,), 0 to 255."""
    hue = (label / len(CLASSES) * 360 + rng.normal(0, _HUE_STD)) % 360
    hsv = np.array([[[hue, rng.uniform(0.35, 0.9), rng.uniform(0.45, 0.95)]]])
    return cv2.cvtColor(hsv.astype(np.float32), cv2.COLOR_HSV2BGR)[0, 0] * 255


def draw_image(
    seed: int,
    split: int,
    index: int,
    image_size: int = 192,
    min_size: float = 12,
    max_size: float = 120,
) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """Draw one image; its content depends on these arguments alone.

    Args:
        seed (int): Seed of the data set, not negative.
        split (int): Number of the split: 0 for train, 1 for val.
        index (int): Number of the image within its split.
        image_size (int): Height and width in pixels. Defaults to 192.
        min_size (float): Smallest object in pixels, as the square root of its area.
            Defaults to 12.
        max_size (float): Largest object in pixels, likewise. Defaults to 120.

    Returns:
        tuple: The image, BGR uint8 of shape (image_size, image_size, 3), and a list
        of (class index, visible mask), the masks uint8 0/1 of shape (image_size,
        image_size).
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, split, index]))
    canvas = _background(rng, image_size)
    texture = _noise(rng, image_size, (24, 6), 8)
    count = int(rng.integers(4, 9))
    labels = np.resize(rng.permutation(len(CLASSES)), count)
    # One large object an image: more would leave no room, fewer no score for "large".
    middle = max(min_size, max_size / 2)
    sizes = np.exp(rng.uniform(math.log(min_size), math.log(middle), count))
    sizes[0] = math.exp(rng.uniform(math.log(middle), math.log(max_size)))
    visible: list[tuple[int, np.ndarray]] = []
    full: list[int] = []
    # Large ones first: small ones then lie on top and stay visible.
    for item in np.argsort(-sizes, kind='stable'):
        label = int(labels[item])
        for _ in range(20):
            coverage = _coverage(rng, CLASSES[label], sizes[item], image_size)
            mask = (coverage > 127).astype(np.uint8)
            left = [below & (1 - mask) for _, below in visible]
            if mask.sum() >= _MIN_VISIBLE_PIXELS and all(
                rest.sum() >= max(_MIN_VISIBLE * area, _MIN_VISIBLE_PIXELS)
                for rest, area in zip(left, full)
            ):
                break
        else:
            continue
        visible = [(below, rest) for (below, _), rest in zip(visible, left)]
        visible.append((label, mask))
        full.append(int(mask.sum()))
        color = _color(rng, label)
        x, y, w, h = cv2.boundingRect(coverage)
        patch = canvas[y : y + h, x : x + w]
        alpha = coverage[y : y + h, x : x + w, None].astype(np.float32) / 255
        patch += (color + texture[y : y + h, x : x + w] - patch) * alpha
    canvas += rng.normal(0, 6, canvas.shape).astype(np.float32)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8), visible


def _write_split(
    folder: Path, split: int, name: str, count: int, progress: bool, options: dict
) -> None:
    """Write one split's images and its COCO annotation file below ``folder``."""
    (folder / name).mkdir()
    images, annotations = [], []
    numbers = track(
        range(count), f'shapes: drawing {name}', disable=not progress, transient=True
    )
    for index in numbers:
        image, objects = draw_image(split=split, index=index, **options)
        file_name = f'{index:06d}.png'
        if not cv2.imwrite(str(folder / name / file_name), image):
            raise OSError(f'OpenCV could not write {folder / name / file_name}')
        height, width = image.shape[:2]
        images.append(
            {'id': index + 1, 'file_name': file_name, 'height': height, 'width': width}
        )
        for label, mask in objects:
            rle = mask_utils.encode(np.asfortranarray(mask))
            annotations.append(
                {
                    'id': len(annotations) + 1,
                    'image_id': index + 1,
                    'category_id': label + 1,
                    'bbox': mask_utils.toBbox(rle).tolist(),
                    'area': int(mask_utils.area(rle)),
                    'iscrowd': 0,
                    'segmentation': {
                        'size': rle['size'],
                        'counts': rle['counts'].decode('ascii'),
                    },
                }
            )
    content = {
        'info': {'description': f'shapes, {name}'},
        'images': images,
        'annotations': annotations,
        'categories': [
            {'id': number, 'name': shape} for number, shape in enumerate(CLASSES, 1)
        ],
    }
    (folder / 'annotations').mkdir(exist_ok=True)
    target = folder / 'annotations' / f'instances_{name}.json'
    target.write_text(json.dumps(content, allow_nan=False), encoding='utf-8')


def _is_complete(out: Path, manifest: dict) -> bool:
    """Whether ``out`` holds the data set of ``manifest``, with every file there."""
    try:
        found = json.loads((out / 'shapes.json').read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return False
    return found == manifest and all(
        (out / 'annotations' / f'instances_{name}.json').is_file()
        and len(list((out / name).glob('*.png'))) == manifest[f'num_{name}']
        for name in ('train', 'val')
    )


def make_shapes(
    out: str | os.PathLike = 'data/shapes',
    num_train: int = 400,
    num_val: int = 150,
    image_size: int = 192,
    min_size: float = 12,
    max_size: float | None = None,
    seed: int = 0,
    progress: bool = True,
) -> bool:
    """Make the shapes data set, or leave it alone if it is there already.

    The same arguments give the same bytes (with the same NumPy and OpenCV), and
    larger ``num_train`` or ``num_val`` keep the first images as they were. The set
    is built in a hidden folder beside ``out`` and renamed when complete.

    Args:
        out (str | os.PathLike): Folder to make. Defaults to 'data/shapes'.
        num_train (int): Number of training images. Defaults to 400.
        num_val (int): Number of validation images. Defaults to 150.
        image_size (int): Height and width of the images in pixels, at least 32.
            Defaults to 192.
        min_size (float): Smallest object in pixels, as the square root of its area
            before others hide part of it, at least 6. Defaults to 12.
        max_size (float, optional): Largest object in pixels, likewise; thin shapes
            end where they fill the image. Defaults to None, 5 / 8 of
            ``image_size``: 120 for 192.
        seed (int): Seed, not negative. Defaults to 0.
        progress (bool): Whether to show a progress bar. Defaults to True.

    Returns:
        bool: True if the set was made, False if it was there already.

    Raises:
        ValueError: If an argument is out of range.
        FileExistsError: If ``out`` holds anything but this very data set.
    """
    max_size = round(image_size * 5 / 8, 2) if max_size is None else max_size
    for name, value, least in (
        ('num_train', num_train, 1),
        ('num_val', num_val, 1),
        ('image_size', image_size, 32),
        ('min_size', min_size, 6),
        ('seed', seed, 0),
    ):
        if value < least:
            raise ValueError(f'{name} must be at least {least}, got {value}')
    if not min_size <= max_size <= image_size:
        raise ValueError(
            f'max_size must lie between min_size ({min_size}) and image_size '
            f'({image_size}), got {max_size}'
        )
    options = {
        'seed': seed,
        'image_size': image_size,
        'min_size': float(min_size),
        'max_size': float(max_size),
    }
    manifest = {
        'version': _VERSION,
        'num_train': num_train,
        'num_val': num_val,
        **options,
    }
    out = Path(out).resolve()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        if _is_complete(out, manifest):
            return False
        raise FileExistsError(
            f'{out} holds something else than the shapes data set with these '
            'arguments: remove it or choose another folder'
        )
    building = out.with_name(f'.{out.name}.{os.getpid()}.partial')
    building.mkdir(parents=True)
    try:
        _write_split(building, 0, 'train', num_train, progress, options)
        _write_split(building, 1, 'val', num_val, progress, options)
        text = json.dumps(manifest, indent=2, allow_nan=False) + '\n'
        (building / 'shapes.json').write_text(text, encoding='utf-8')
        if out.exists():
            out.rmdir()
        building.rename(out)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return True


def main(argv: list[str] | None = None) -> None:
    """Command line: ``python -m dlu_mmdet.datasets.make_shapes [OUT] [options]``."""
    parser = argparse.ArgumentParser(
        prog='python -m dlu_mmdet.datasets.make_shapes',
        description='Make the synthetic shapes data set in COCO format.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('out', nargs='?', default='data/shapes', help='folder to make')
    parser.add_argument('--num-train', type=int, default=400, help='training images')
    parser.add_argument('--num-val', type=int, default=150, help='validation images')
    parser.add_argument(
        '--image-size', type=int, default=192, help='height and width in pixels'
    )
    parser.add_argument(
        '--min-size',
        type=float,
        default=12,
        help='smallest object in pixels, as the square root of its area',
    )
    parser.add_argument(
        '--max-size',
        type=float,
        help='largest object, likewise; 5/8 of the image size if left out',
    )
    parser.add_argument('--seed', type=int, default=0, help='seed, not negative')
    args = parser.parse_args(argv)
    try:
        made = make_shapes(**vars(args))
    except (ValueError, OSError) as error:
        parser.exit(2, f'{parser.prog}: error: {error}\n')
    if made:
        print(f'{args.out}: {args.num_train} training and {args.num_val} val images')
    else:
        print(f'{args.out}: already there, made with the same arguments; left alone')


if __name__ == '__main__':
    # A plain kill would skip the clean-up that Ctrl-C gets.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
