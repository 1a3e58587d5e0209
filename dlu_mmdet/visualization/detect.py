"""Run a detector on one image."""

from __future__ import annotations

import os

import torch
from mmdet.structures import DetDataSample
from torch import Tensor, nn

from .images import load_image

# what detectors raise that need more than an image, or a larger one
_FAILURES = (
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
)


@torch.no_grad()
def detect(model: nn.Module, image: str | os.PathLike) -> tuple[Tensor, DetDataSample]:
    """Run a detector on an image file; keep its input.

    Args:
        model (nn.Module): A detector from :func:`dlu_mmdet.engine.load_detector`.
        image (str | PathLike): An image file.

    Returns:
        tuple[Tensor, DetDataSample]: The network's input (1, C, H, W), normalized
        and padded, and the sample with ``image``, (H, W, 3) uint8 RGB, the image
        as the test pipeline loaded it, and ``pred_instances``: ``bboxes`` (D, 4)
        x1 y1 x2 y2 in pixels of that image, ``labels``, ``scores``, best first.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a readable image, or the detector needs more than an
            image, or gives no boxes.
    """
    item = load_image(model, image)
    data = {key: [item[key]] for key in ('inputs', 'data_samples')}
    data = model.data_preprocessor(data, training=False)
    name = type(model).__name__
    try:
        (sample,) = model.predict(data['inputs'], data['data_samples'])
    except _FAILURES as error:
        reason = f'{type(error).__name__}: {" ".join(str(error).split())}'
        raise ValueError(
            f'{name} does not detect in {image} alone, an input of '
            f'{tuple(data["inputs"].shape)} ({reason}); it cannot be pictured or '
            f'explained'
        ) from error
    found = sample.get('pred_instances')
    if found is None or not {'bboxes', 'scores', 'labels'} <= {*found.keys()}:
        raise ValueError(
            f'{name} gives no boxes with scores (but {", ".join(sample.keys())}); it '
            f'cannot be pictured or explained'
        )
    sample.pred_instances = found[found.scores.argsort(descending=True, stable=True)]
    sample.image = item['image']
    return data['inputs'], sample
