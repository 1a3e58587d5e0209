"""What the kept predictions say beyond AP, by upsampler: which errors it makes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from ..config import use_dataset_folder
from ..datasets.coco_io import COCO
from ..datasets.preflight import iter_datasets
from ..evaluation.average_precision import (
    PRIMARY,
    Evaluation,
    MetricDifference,
    leave_out,
    score_differences,
)
from ..evaluation.coco_results import (
    coco_results,
    result_files,
    save_coco_results,
)
from ..evaluation.error_types import KINDS, ErrorEvaluation
from ..evaluation.instances import Objects, detections_of, objects_of
from ..evaluation.sizes import evaluate_sizes
from .collect import read_predictions
from .gallery import Gallery
from .inputs import content_hash
from .octaves import octaves_of
from .plan import box_evaluator, classes_of
from .runs import Run

# keys of the tables, next to those of the octaves
ERRORS, MASKS = 'error', 'mask metric'


@dataclass(frozen=True)
class Breakdown:
    """Several scores of every upsampler, and their differences to the baseline.

    Attributes:
        counts (dict[str, dict[str, int]]): By score, the number of ``objects`` and
            ``images`` that it is measured on.
        means (dict[str, dict[str, float | None]]): Mean over the seeds, by upsampler
            and score.
        differences (dict[str, dict[str, MetricDifference]]): By upsampler and score;
            the p-values of those that are tested are corrected together.
    """

    counts: dict[str, dict[str, int]]
    means: dict[str, dict[str, float | None]]
    differences: dict[str, dict[str, MetricDifference]]

    @classmethod
    def of(
        cls,
        scores: Mapping[str, Mapping[int, np.ndarray]],
        baseline: str,
        counts: dict[str, dict[str, int]],
        tested: Sequence[str],
    ) -> Breakdown:
        """Summarize (1 + groups, len(counts)) scores by upsampler and seed."""
        means = {
            name: {
                key: None if np.isnan(value) else float(value)
                for key, value in zip(counts, np.mean([s[0] for s in own.values()], 0))
            }
            for name, own in scores.items()
        }
        return cls(counts, means, score_differences(scores, baseline, counts, tested))


@dataclass(frozen=True)
class Details:
    """What the predictions of all finished runs say.

    Attributes:
        errors (Breakdown): AP50 that mending each kind of error would give.
        sizes (dict[str, Breakdown]): AP by octaves of object size, by what size is
            measured in.
        masks (Breakdown): COCO's metrics of masks; empty without masks.
        gallery (Gallery): The images with objects and detections.
        lost (str): Which runs are left out, and why; empty if none is.
    """

    errors: Breakdown
    sizes: dict[str, Breakdown]
    masks: Breakdown
    gallery: Gallery
    lost: str = ''

    def to_json(self) -> dict:
        """A part of ``comparison.json``."""
        sizes = {name: asdict(each) for name, each in self.sizes.items()}
        found = dict(errors=asdict(self.errors), sizes=sizes)
        if self.masks.counts:
            found['masks'] = asdict(self.masks)
        return found


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

    @classmethod
    def of(cls, run: Run, data: str | os.PathLike | None = None) -> GroundTruth:
        """The test set of a run's config.

        Args:
            run (Run): A run.
            data (str | PathLike, optional): Folder that the data were moved to.

        Raises:
            FileNotFoundError: If the annotations are not there.
            ValueError: If they are not those that the run was tested on.
        """
        cfg = run.cfg.copy()
        classes = classes_of(cfg)
        if data:
            use_dataset_folder(cfg, data)
        file = (box_evaluator(cfg) or {})['ann_file']
        if not os.path.isfile(file):
            raise FileNotFoundError(
                f'{file}, the annotations of the test set, is not there; put it back, '
                f'or give --join DIR --data FOLDER, the folder it is in now'
            )
        then = ' '.join((run.inputs or {}).values())
        if then and content_hash(file) not in then:
            raise ValueError(
                f'{file} is not the annotation file that {run.work_dir} was tested '
                f'on; give --join DIR --data FOLDER, the folder that has it'
            )
        coco = COCO(file)
        category_ids = coco.get_cat_ids(classes)
        dataset = next(iter_datasets(cfg.test_dataloader.dataset, ''))
        folder = dataset.files.get('data_prefix.img', dataset.cfg.get('data_root', ''))
        objects = objects_of(coco, category_ids)
        return cls(coco, classes, category_ids, objects, folder)


def details_of(
    runs: Sequence[Run],
    baseline: str,
    groups: int = 200,
    data: str | os.PathLike | None = None,
    add_results: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Details:
    """Read the predictions of finished runs, one run at a time.

    Args:
        runs (Sequence[Run]): The runs, all of one test set.
        baseline (str): Name of the run that others are compared with.
        groups (int): Maximum number of groups of images.
        data (str | PathLike, optional): Folder that the data were moved to.
        add_results (bool): Whether to write the COCO result JSON of runs that lack
            it, in the folder of their predictions.
        progress (Callable): Called with the number of runs done and of all.

    Returns:
        Details: By upsampler. Runs whose predictions are missing or damaged are left
        out, and named.

    Raises:
        FileNotFoundError: If annotations, or all predictions of the baseline, are not
            there.
        RuntimeError: If the latter are damaged.
        ValueError: If the annotations are others.
    """
    truth = GroundTruth.of(runs[0], data)
    num_classes = len(truth.classes)
    weights = leave_out(len(truth.objects), groups)
    weights = np.concatenate([np.ones_like(weights[:1]), weights])
    gallery = Gallery(truth.coco, truth.classes, truth.objects, truth.folder)
    octaves = octaves_of(runs[0].cfg, {i: truth.coco.imgs[i] for i in truth.objects})
    sizes = [(key, name) for key, each in octaves.items() for name in each.names]
    metrics = {size: (a, slice(None)) for a, size in enumerate(sizes)}
    scores: dict[str, dict[int, np.ndarray]] = {}
    lost: list[Exception] = []
    for number, run in enumerate(runs, 1):
        try:
            samples = _read(run, num_classes)
        except (FileNotFoundError, RuntimeError) as error:
            lost.append(error)
            continue
        if add_results and not result_files(run.predictions)['bbox'].exists():
            save_coco_results(samples, truth.category_ids, run.predictions)
        found = detections_of(samples)
        masked = _evaluate_masks(samples, truth)
        del samples
        if run.name not in scores:
            gallery.add(run.name, run.seed, run.work_dir, found)
        errors = ErrorEvaluation.of(truth.objects, found, num_classes)
        sized = evaluate_sizes(truth.objects, found, num_classes, [*octaves.values()])
        parts = [errors.gains(weights), sized.metrics(weights, sizes, metrics)]
        if masked:
            parts.append(masked.metrics(weights))
        scores.setdefault(run.name, {})[run.seed] = np.concatenate(parts, axis=1)
        progress(number, len(runs))
    if baseline not in scores:
        raise lost[0]
    kept = [own.labels[~own.crowd] for own in truth.objects.values()]
    count = dict(objects=sum(map(len, kept)), images=sum(len(own) > 0 for own in kept))
    counts = {(ERRORS, kind): count for kind in KINDS}
    counts.update(sized.counts(metrics))
    if masked and all(
        values.shape[1] > len(counts)
        for own in scores.values()
        for values in own.values()
    ):
        counts.update({(MASKS, key): each for key, each in masked.counts().items()})

    def breakdown(part: str) -> Breakdown:
        chosen = {
            name: (column, each)
            for column, ((group, name), each) in enumerate(counts.items())
            if group == part and each['objects']
        }
        columns = [column for column, _ in chosen.values()]
        own = {
            name: {seed: values[:, columns] for seed, values in seeds.items()}
            for name, seeds in scores.items()
        }
        named = {name: each for name, (_, each) in chosen.items()}
        # the other metrics of masks are exploratory, as those of boxes are
        tested = (PRIMARY,) if part == MASKS else [*named]
        return Breakdown.of(own, baseline, named, tested)

    by_size = {key: breakdown(key) for key in octaves}
    sentence = ''
    if lost:
        sentence = (
            f'{len(lost)} of {len(runs)} runs are left out of errors, sizes and '
            f'images: {lost[0]}.'
        )
    return Details(breakdown(ERRORS), by_size, breakdown(MASKS), gallery, sentence)


def _evaluate_masks(
    samples: Sequence[Mapping], truth: GroundTruth
) -> Evaluation | None:
    """The matches of masks, if detector and annotations have any."""
    found = any('masks' in sample['pred_instances'] for sample in samples[:1])
    if not found or not all(a.get('segmentation') for a in truth.coco.anns.values()):
        return None
    ids = truth.category_ids
    return Evaluation.from_coco(
        truth.coco, coco_results(samples, ids)['segm'], ids, 'segm'
    )


def _read(run: Run, num_classes: int) -> list[dict]:
    """The predictions of a run.

    Raises:
        FileNotFoundError: If they are not there.
        RuntimeError: If they are damaged.
    """
    if not run.predictions.exists():
        raise FileNotFoundError(
            f'{run.predictions} is not there; copy it from where the run was tested, '
            f'or remove the result.json beside it and give the command of the '
            f'comparison, which tests anew'
        )
    return read_predictions(run.predictions, num_classes)
