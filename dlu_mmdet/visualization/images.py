"""Load images with a detector's test pipeline, and name them."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePath

import numpy as np
from mmcv.transforms import LoadAnnotations
from mmdet.registry import TRANSFORMS
from mmdet.utils import get_test_pipeline_cfg
from mmengine.dataset import Compose
from PIL import Image
from torch import nn

from ..datasets.preflight import resolve
from ..datasets.transforms import apply


def load_image(model: nn.Module, path: str | os.PathLike | Sequence[str]) -> dict:
    """Run a detector's test pipeline on an image file.

    Args:
        model (nn.Module): With ``cfg``, as
            :func:`dlu_mmdet.engine.load_detector` returns it.
        path (str | PathLike | Sequence[str]): The image, as the pipeline's
            loader takes it.

    Returns:
        dict: ``inputs`` and ``data_samples``, as an item of a data set, and
        ``image``: (H, W, 3) uint8, RGB, the image as it was loaded, in whose
        pixels detections are. The sample has ``scale_factor`` and the shapes
        even if the pipeline does not resize or does not hand them on.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a readable image, or a transform fails.
    """
    steps = get_test_pipeline_cfg(model.cfg.copy())
    # an image has no annotations, and loaders of them may need packages of their own
    steps = [step for step in steps if not _loads_annotations(step)]
    pipeline = Compose(steps)
    image, metas = None, {}
    for results in _steps(pipeline.transforms, path):
        if 'img' in results:
            image = as_rgb(results['img']) if image is None else image
            metas.update(
                (key, results[key])
                for key in ('img_path', 'ori_shape', 'img_shape', 'scale_factor')
                if key in results
            )
    if image is None or 'data_samples' not in results:
        raise ValueError(
            f'the test pipeline does not make {path} an input of a detector; it has '
            'to load the image first and to end with PackDetInputs'
        )
    metas.setdefault('ori_shape', image.shape[:2])
    metas.setdefault('img_shape', tuple(results['inputs'].shape[-2:]))
    metas.setdefault('scale_factor', (1.0, 1.0))
    sample = results['data_samples']
    sample.set_metainfo({k: v for k, v in metas.items() if k not in sample})
    return dict(results, image=image)


def _loads_annotations(step: dict) -> bool:
    cls = resolve(TRANSFORMS, step.get('type', ''))
    return isinstance(cls, type) and issubclass(cls, LoadAnnotations)


def loaded_pixels(
    transforms: Sequence[Callable], path: str | os.PathLike | Sequence[str]
) -> np.ndarray:
    """Load an image with the loading transforms of a pipeline.

    Args:
        transforms (Sequence[Callable]): The pipeline's, built.
        path (str | PathLike | Sequence[str]): The image.

    Returns:
        np.ndarray: (H, W, 3) uint8, RGB.

    Raises:
        FileNotFoundError: As :func:`load_image`.
        ValueError: As :func:`load_image`.
    """
    for results in _steps(transforms, path):
        if 'img' in results:
            return as_rgb(results['img'])
    raise ValueError(f'the test pipeline does not load {path}')


def _steps(
    transforms: Sequence[Callable], path: str | os.PathLike | Sequence[str]
) -> Iterator[dict]:
    """What every transform in turn makes of an image; errors name the image."""
    path = str(path) if isinstance(path, os.PathLike) else path
    results: dict = dict(img_path=path, img_id=0)
    for transform in transforms:
        changed = apply(transform, results)
        if changed is None:
            raise ValueError(
                f'image {path}: {type(transform).__name__} of the test pipeline gives '
                'nothing; check that the file is there and is an image'
            )
        results = changed
        yield results


def as_rgb(image: np.ndarray) -> np.ndarray:
    """Convert a loaded image to 8-bit RGB.

    Values above 255, as in 16-bit images, are scaled to a maximum of 255; floats up to
    1 are multiplied by 255.

    Args:
        image (np.ndarray): (H, W) or (H, W, C) of any dtype. With one or two channels
            the first is gray; with more the first three are blue, green and red.

    Returns:
        np.ndarray: (H, W, 3) uint8, RGB; a copy.
    """
    image = image[..., None] if image.ndim == 2 else image
    image = image[..., [0, 0, 0] if image.shape[2] < 3 else [2, 1, 0]]
    if image.dtype == np.uint8:
        return image
    image = np.nan_to_num(image.astype(np.float32)).clip(0)
    top = image.max(initial=0)
    if top > 255 or (0 < top <= 1):
        image *= 255 / top if top > 255 else 255
    return image.astype(np.uint8)


def reduced(image: np.ndarray) -> np.ndarray:
    """Downsample an image (H, W, 3) that is much larger than a figure needs."""
    factor = max(image.shape) // 2000
    return np.asarray(Image.fromarray(image).reduce(factor)) if factor > 1 else image


def printable(text: str | os.PathLike) -> str:
    """A path as printable text, whatever its bytes."""
    return str(text).encode('utf-8', 'backslashreplace').decode('utf-8')


def image_names(
    paths: Sequence[str | os.PathLike | Sequence[str]], suffix: bool = True
) -> list[str]:
    """Short, distinct names of images.

    Args:
        paths (Sequence[str | PathLike | Sequence[str]]): The images; the first file of
            an image in several files is used.
        suffix (bool): Whether names keep their suffix where they are distinct without
            it. Defaults to True.

    Returns:
        list[str]: File names, with as many parent folders as needed to make them
        distinct.
    """
    paths = [printable(p if isinstance(p, (str, os.PathLike)) else p[0]) for p in paths]
    parts = {path: PurePath(path).parts for path in paths}
    names = {}
    longest = max(map(len, parts.values()), default=0)
    for length in range(1 if suffix else 0, longest + 1):
        tails = {
            path: '/'.join(parts[path][-length:]) if length else PurePath(path).stem
            for path in parts
        }
        counts = Counter(tails.values())
        for path, tail in tails.items():
            if counts[tail] == 1:
                names.setdefault(path, tail)
    return [names.get(path, path) for path in paths]


def file_names(names: Sequence[str]) -> list[str]:
    """Distinct file names for pictures of images, on any file system.

    Args:
        names (Sequence[str]): From :func:`image_names`, one per picture.

    Returns:
        list[str]: Names from :func:`file_name` with the suffix of an image format;
        equal names are numbered.
    """
    taken, files = set(), []
    for name in names:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff'):
            stem, suffix = name, '.png'
        stem = file_name(stem)
        file, number = f'{stem}{suffix}', 1
        while folded(file) in taken:
            number += 1
            file = f'{stem} ({number}){suffix}'
        taken.add(folded(file))
        files.append(file)
    return files


def file_name(name: str) -> str:
    """A file name, without folder and suffix, that is valid on every file system.

    Args:
        name (str): Any text.

    Returns:
        str: The text with hyphens for separators and reserved characters, without a
        leading dot, at most 200 bytes, so that a number and a suffix can follow.
    """
    name = re.sub(r'[\x00-\x1f/\\:*?"<>|]+', '-', printable(name)).lstrip('.-')
    # file systems end at 255 bytes
    name = name.encode()[:200].decode(errors='ignore').rstrip('-')
    return name or 'image'


def folded(file: str) -> str:
    """A key that is equal for names that are equal on some file system."""
    return unicodedata.normalize('NFC', file).casefold()
