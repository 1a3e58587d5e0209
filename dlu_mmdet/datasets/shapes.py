"""The shapes data set; ``make_shapes`` makes its images."""

from __future__ import annotations

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS

CLASSES = ('disc', 'ring', 'square', 'triangle', 'cross', 'star')


@DATASETS.register_module()
class ShapesDataset(CocoDataset):
    """Synthetic shapes; arguments as :class:`mmdet.datasets.CocoDataset`."""

    METAINFO = {
        'classes': CLASSES,
        'palette': [
            (230, 85, 60),
            (60, 130, 230),
            (80, 180, 90),
            (240, 180, 40),
            (150, 90, 200),
            (40, 190, 190),
        ],
    }

    @staticmethod
    def how_to_make(data_root: str) -> str:
        """The command that makes the data set there."""
        return f'python -m dlu_mmdet.datasets.make_shapes {data_root}'
