"""The octaves of size that a comparison scores, from its config."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from mmengine.config import Config

from ..datasets.preflight import iter_datasets
from ..evaluation.sizes import Octaves

#: What sizes are measured in.
RELATIVE = 'size relative to the image'
INPUT = 'size in the input of the network'


def relative_octaves(images: Mapping[object, Mapping]) -> Octaves:
    """Octaves of the square root of an object's area over that of its image.

    Args:
        images (Mapping[object, Mapping]): ``width`` and ``height`` by image id.
    """
    steps = [64, 32, 16, 8, 4, 2]
    names = [f'1/{low} to 1/{high}' for low, high in zip(steps, steps[1:])]
    return Octaves(
        names=['below 1/64', *names, 'from 1/2'],
        edges=np.array([1 / step for step in steps]),
        scales={i: (m['width'] * m['height']) ** -0.5 for i, m in images.items()},
        annotated=True,
    )


def input_octaves(cfg: Config, images: Mapping[object, Mapping]) -> Octaves:
    """Octaves of the square root of a box's area in pixels, after resizing.

    The names have the pyramid level that a two-stage detector pools such a box from:
    P2 below 112 pixels by default (Lin et al., Feature Pyramid Networks for Object
    Detection, 2017, equation 1, with the constants of MMDetection).

    Args:
        cfg (Config): The complete config.
        images (Mapping[object, Mapping]): ``width`` and ``height`` by image id.
    """
    head = cfg.model.get('roi_head') or {}
    pool = head.get('bbox_roi_extractor') or {}
    pool = pool[0] if isinstance(pool, (list, tuple)) else pool
    strides = pool.get('featmap_strides') or []
    finest = pool.get('finest_scale', 56)
    edges = [finest * 2.0**k for k in range(-2, 4)]
    names = [f'{low:g} to {high:g}' for low, high in zip(edges, edges[1:])]
    names = [f'below {edges[0]:g}', *names, f'from {edges[-1]:g}']
    if strides:
        # the first level takes what is below twice the finest scale
        level = np.clip(np.arange(len(names)) - 3, 0, len(strides) - 1)
        names = [f'{n} (P{strides[k].bit_length() - 1})' for n, k in zip(names, level)]
    scales = {i: resize_factor(cfg, m) for i, m in images.items()}
    return Octaves(names, np.array(edges), scales, annotated=False)


def resize_factor(cfg: Config, image: Mapping) -> float:
    """By how much the test pipeline enlarges an image, in both directions on average.

    Args:
        cfg (Config): The complete config.
        image (Mapping): ``width`` and ``height`` in pixels.
    """
    found = iter_datasets(cfg.test_dataloader.dataset, '')
    pipeline = next((source.cfg.get('pipeline') for source in found), None) or []
    sides = sorted((image['width'], image['height']))
    for transform in pipeline:
        scale = transform.get('scale')
        if not isinstance(scale, (list, tuple)):
            continue
        if transform.get('keep_ratio'):
            return min(new / old for new, old in zip(sorted(scale), sides))
        return float((scale[0] * scale[1] / (sides[0] * sides[1])) ** 0.5)
    return 1.0


def octaves_of(cfg: Config, images: Mapping[object, Mapping]) -> dict[str, Octaves]:
    """Both divisions of the objects, by what size is measured in.

    Args:
        cfg (Config): The complete config.
        images (Mapping[object, Mapping]): ``width`` and ``height`` by image id.
    """
    return {RELATIVE: relative_octaves(images), INPUT: input_octaves(cfg, images)}
