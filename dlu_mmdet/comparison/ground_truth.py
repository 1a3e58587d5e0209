"""The test set of a comparison."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..config import use_dataset_folder
from ..datasets.coco_io import COCO
from ..datasets.preflight import iter_datasets
from ..evaluation.instances import Objects, objects_of
from .inputs import content_hash
from .plan import box_evaluator, classes_of
from .runs import Run


@dataclass(frozen=True)
class GroundTruth:
    """The test set of a comparison.

    Attributes:
        coco (COCO): The annotations.
        classes (Sequence[str]): Class names, by label.
        category_ids (Sequence[int]): The category of each label.
        objects (Mapping[object, Objects]): By image id.
        folder (str): Folder of the images.
    """

    coco: COCO
    classes: Sequence[str]
    category_ids: Sequence[int]
    objects: Mapping[object, Objects]
    folder: str

    @property
    def has_masks(self) -> bool:
        """Whether every object has a mask."""
        return all(each.get('segmentation') for each in self.coco.anns.values())

    @classmethod
    def of(
        cls, run: Run, data: str | os.PathLike | Mapping | None = None
    ) -> GroundTruth:
        """The test set of a run's config.

        Args:
            run (Run): A run.
            data (str | PathLike | Mapping, optional): Folder that the data were moved
                to, or arguments of :func:`~dlu_mmdet.config.use_dataset_folder`.

        Raises:
            FileNotFoundError: If the annotations are not there.
            ValueError: If they are not those that the run was tested on.
        """
        cfg = run.cfg.copy()
        classes = classes_of(cfg)
        if data:
            named = data if isinstance(data, Mapping) else dict(root=data)
            use_dataset_folder(cfg, **named)
        file = (box_evaluator(cfg) or {})['ann_file']
        if not os.path.isfile(file):
            raise FileNotFoundError(
                f'{file}, the annotations of the test set, is not there; put it back, '
                f'or give --data FOLDER, the folder it is in now, with --report-only '
                f'or --join'
            )
        then = ' '.join((run.inputs or {}).values())
        if then and content_hash(file) not in then:
            raise ValueError(
                f'{file} is not the annotation file that {run.work_dir} was tested '
                f'on; give --data FOLDER, the folder that has it, with --report-only '
                f'or --join'
            )
        coco = COCO(file)
        category_ids = coco.get_cat_ids(classes)
        dataset = next(iter_datasets(cfg.test_dataloader.dataset, ''))
        folder = dataset.files.get('data_prefix.img', dataset.cfg.get('data_root', ''))
        objects = objects_of(coco, category_ids)
        return cls(coco, classes, category_ids, objects, folder)
