"""Errors of data pipelines that name the image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn


def _raise_named(error: Exception, results: dict, transform: object) -> NoReturn:
    """Raise an error as one of the image."""
    path = results['img_path']
    reason = ' '.join(str(error).split()) or type(error).__name__
    if 'img' in results:
        height, width = results['img'].shape[:2]
        raise ValueError(
            f'image {path}: {type(transform).__name__} cannot take it ({reason}), '
            f'here {width} x {height} pixels; change the pipeline, or remove it from '
            f'the annotations'
        ) from error
    if isinstance(error, FileNotFoundError):
        raise FileNotFoundError(
            f'image {path} does not exist, though the annotations list it; fetch it '
            f'again, or remove it from them'
        ) from error
    raise ValueError(
        f'image {path} cannot be read ({reason}); fetch it again, or remove it from '
        f'the annotations'
    ) from error


def apply(transform: Callable, results: dict) -> dict | None:
    """Apply one transform; see mmcv.

    Raises:
        FileNotFoundError: If the image is to be loaded and does not exist.
        ValueError: If the transform fails; the message names image and transform.
    """
    try:
        return transform(results)
    except Exception as error:
        named = isinstance(results, dict) and 'img_path' in results
        # an inner pipeline has said it
        if not named or str(error).startswith('image '):
            raise
        _raise_named(error, results, transform)


def apply_all(transforms: Sequence[Callable], results: dict) -> dict | None:
    """Apply transforms one after the other, as both Compose classes do."""
    if isinstance(results, dict) and 'img_path' in results:
        # a pipeline without Resize leaves an image as large as it is
        results.setdefault('scale_factor', (1.0, 1.0))
    for transform in transforms:
        changed = apply(transform, results)
        if changed is None:
            return None
        results = changed
    return results
