"""Detections as COCO result JSON, which other tools read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmdet.evaluation import DumpDetResults

from ..datasets.coco_io import COCO
from ..utils.files import atomic_write


def coco_results(
    samples: Sequence[Mapping], category_ids: Sequence[int]
) -> dict[str, list[dict]]:
    """Convert predictions to COCO's result format.

    Args:
        samples (Sequence[Mapping]): Output of ``dlu_mmdet test --out``: ``img_id`` and
            ``pred_instances`` with ``bboxes`` (D, 4) x1 y1 x2 y2 in pixels, ``scores``
            (D,), ``labels`` (D,) and, of masks, ``masks``, D RLEs.
        category_ids (Sequence[int]): The category of each label.

    Returns:
        dict[str, list[dict]]: ``bbox`` and, if there are masks, ``segm``: entries with
        ``image_id``, ``category_id``, ``score`` and ``bbox`` (x, y, width, height) or
        ``segmentation``. With both, pycocotools takes the sizes of masks from boxes.
    """
    results: dict[str, list[dict]] = dict(bbox=[])
    for sample in samples:
        found = sample['pred_instances']
        boxes = found['bboxes'].numpy().astype(float)
        boxes[:, 2:] -= boxes[:, :2]
        columns = found['labels'].tolist(), boxes.tolist(), found['scores'].tolist()
        own = [
            dict(
                image_id=sample['img_id'],
                category_id=category_ids[label],
                bbox=box,
                score=score,
            )
            for label, box, score in zip(*columns)
        ]
        results['bbox'] += own
        if 'masks' in found:
            # Mask Scoring R-CNN scores masks on their own
            scores = found.get('mask_scores', found['scores']).tolist()
            results.setdefault('segm', []).extend(
                dict(
                    image_id=each['image_id'],
                    category_id=each['category_id'],
                    segmentation=_as_text(mask),
                    score=score,
                )
                for each, score, mask in zip(own, scores, found['masks'])
            )
    return results


def _as_text(mask: Mapping) -> dict:
    """An RLE whose counts JSON can hold."""
    counts = mask['counts']
    return dict(mask, counts=counts.decode() if isinstance(counts, bytes) else counts)


def result_files(predictions: str | Path) -> dict[str, Path]:
    """The result files of a predictions file, in the same folder."""
    path = Path(predictions)
    return {key: path.with_suffix(f'.{key}.json') for key in ('bbox', 'segm')}


def save_coco_results(
    samples: Sequence[Mapping], category_ids: Sequence[int], predictions: str | Path
) -> None:
    """Write ``NAME.bbox.json`` and, if there are masks, ``NAME.segm.json``.

    Args:
        samples (Sequence[Mapping]): As :func:`coco_results` takes them.
        category_ids (Sequence[int]): The category of each label.
        predictions (str | Path): ``NAME.pkl``.
    """
    files = result_files(predictions)
    for key, results in coco_results(samples, category_ids).items():
        with atomic_write(files[key]) as partial:
            # one entry a line, for diff and less
            with partial.open('w') as file:
                file.write('[')
                for number, each in enumerate(results):
                    file.write((',\n' if number else '') + json.dumps(each))
                file.write(']\n')


class DumpResults(DumpDetResults):
    """MMDetection's dump of predictions, and the same as COCO result JSON.

    Args:
        out_file_path (str): The .pkl file. The JSON files get its name.
        ann_file (str): COCO annotations that give the category ids.
        classes (Sequence[str]): Class names, by label.
    """

    def __init__(
        self, out_file_path: str, ann_file: str, classes: Sequence[str]
    ) -> None:
        super().__init__(out_file_path)
        self._category_ids = COCO(ann_file).get_cat_ids(classes)

    def compute_metrics(self, results: list) -> dict:
        """Write the files; there is nothing to score."""
        save_coco_results(results, self._category_ids, self.out_file_path)
        return super().compute_metrics(results)
