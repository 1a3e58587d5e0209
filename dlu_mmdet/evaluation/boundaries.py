"""Boundary AP: masks are matched by how well their outlines fit."""

from __future__ import annotations

from itertools import chain

import numpy as np
from pycocotools import mask as mask_utils

from ..datasets.coco_io import COCOeval

#: Width of a boundary, as a fraction of the image's diagonal.
WIDTH = 0.02


def check_available() -> None:
    """Check that boundaries can be computed.

    Raises:
        ValueError: If faster-coco-eval is not installed.
    """
    try:
        from faster_coco_eval.core.mask import rleToBoundary  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f'--metric boundary needs faster-coco-eval ({error}); pip install '
            f"'faster-coco-eval>=1.8'"
        ) from error


class BoundaryEval(COCOeval):
    """COCO's evaluation with Boundary IoU, for ``iouType='segm'``.

    The overlap of two masks is their IoU or that of their boundaries, whichever is
    less. A boundary is what of a mask lies within :data:`WIDTH` of its outline. For
    crowds only the former counts.

    Source: Cheng et al., Boundary IoU, CVPR 2021; boundaries and the rule for crowds
    are those of faster-coco-eval.
    """

    def _prepare(self) -> None:
        """Make the boundaries, once for each mask."""
        from faster_coco_eval.core.mask import rleToBoundary

        super()._prepare()
        for each in chain(*self._gts.values(), *self._dts.values()):
            # objects stay from run to run
            if 'boundary' not in each:
                each['boundary'] = rleToBoundary(each['segmentation'], WIDTH)

    def computeIoU(self, imgId: int, catId: int) -> np.ndarray:
        """(D, G) overlaps of the best detections and the objects of an image."""
        regions = super().computeIoU(imgId, catId)
        if not len(regions):
            return regions
        objects, found = self._gts[imgId, catId], self._dts[imgId, catId]
        order = np.argsort([-each['score'] for each in found], kind='mergesort')
        crowd = np.array([each['iscrowd'] for each in objects], np.uint8)
        edges = mask_utils.iou(
            [found[i]['boundary'] for i in order[: self.params.maxDets[-1]]],
            [each['boundary'] for each in objects],
            crowd,
        )
        return np.where(crowd, regions, np.minimum(regions, edges))
