"""What the kept predictions say beyond AP, by upsampler: which errors it makes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from ..evaluation.average_precision import (
    METRICS,
    PRIMARY,
    Evaluation,
    MetricDifference,
    leave_out,
    score_differences,
)
from ..evaluation.coco_results import result_files, save_coco_results
from ..evaluation.error_types import KINDS, ErrorEvaluation
from ..evaluation.instances import detections_of
from ..evaluation.sizes import evaluate_sizes
from .collect import have_masks, matches_of, predictions_of
from .gallery import Gallery
from .ground_truth import GroundTruth
from .octaves import octaves_of
from .runs import Run

# keys of the tables, next to those of the octaves
ERRORS, BOXES, MASKS = 'error', 'box metric', 'mask metric'


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
        masks (Breakdown): COCO's metrics of masks; empty without masks, and where the
            comparison is about them.
        gallery (Gallery): The images with objects and detections.
        lost (str): Which runs are left out, and why; empty if none is.
        boxes (Breakdown): COCO's metrics of boxes; empty where the comparison is about
            them.
    """

    errors: Breakdown
    sizes: dict[str, Breakdown]
    masks: Breakdown
    gallery: Gallery
    lost: str = ''
    boxes: Breakdown = Breakdown({}, {}, {})

    def to_json(self) -> dict:
        """A part of ``comparison.json``."""
        sizes = {name: asdict(each) for name, each in self.sizes.items()}
        found = dict(errors=asdict(self.errors), sizes=sizes)
        for key, each in (('boxes', self.boxes), ('masks', self.masks)):
            if each.counts:
                found[key] = asdict(each)
        return found


def details_of(
    runs: Sequence[Run],
    baseline: str,
    groups: int = 200,
    data: str | os.PathLike | Mapping | None = None,
    add_results: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
    metric: str = 'bbox',
) -> Details:
    """Read the predictions of finished runs, one run at a time.

    Args:
        runs (Sequence[Run]): The runs, all of one test set.
        baseline (str): Name of the run that others are compared with.
        groups (int): Maximum number of groups of images.
        data (str | PathLike | Mapping, optional): See :meth:`GroundTruth.of`.
        add_results (bool): Whether to write the COCO result JSON and the matches of
            masks of runs that lack them, in the folder of their predictions.
        progress (Callable): Called with the number of runs done and of all.
        metric (str): What the comparison is about. The AP of boxes and of masks is
            found where it is about another.

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
            samples = predictions_of(run, num_classes)
        except (FileNotFoundError, RuntimeError) as error:
            lost.append(error)
            continue
        if add_results and not result_files(run.predictions)['bbox'].exists():
            save_coco_results(samples, truth.category_ids, run.predictions)
        found = detections_of(samples)
        others = _others(run, samples, truth, metric, add_results)
        del samples
        gallery.add(run.name, run.seed, run.work_dir, found)
        errors = ErrorEvaluation.of(truth.objects, found, num_classes)
        sized = evaluate_sizes(truth.objects, found, num_classes, [*octaves.values()])
        parts = [errors.gains(weights), sized.metrics(weights, sizes, metrics)]
        parts += [each.metrics(weights) for each in others.values()]
        scores.setdefault(run.name, {})[run.seed] = np.concatenate(parts, axis=1)
        progress(number, len(runs))
    if baseline not in scores:
        raise lost[0]
    kept = [own.labels[~own.crowd] for own in truth.objects.values()]
    count = dict(objects=sum(map(len, kept)), images=sum(len(own) > 0 for own in kept))
    counts = {(ERRORS, kind): count for kind in KINDS}
    counts.update(sized.counts(metrics))
    widths = {values.shape[1] for own in scores.values() for values in own.values()}
    for part, each in others.items():
        # not where some runs have no masks
        if min(widths) >= len(counts) + len(METRICS):
            counts.update({(part, key): n for key, n in each.counts().items()})

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
        # the other metrics of boxes and masks are exploratory
        tested = (PRIMARY,) if part in (BOXES, MASKS) else [*named]
        return Breakdown.of(own, baseline, named, tested)

    by_size = {key: breakdown(key) for key in octaves}
    sentence = ''
    if lost:
        sentence = (
            f'{len(lost)} of {len(runs)} runs are left out of errors, sizes and '
            f'images: {lost[0]}.'
        )
    masks, boxes = breakdown(MASKS), breakdown(BOXES)
    return Details(breakdown(ERRORS), by_size, masks, gallery, sentence, boxes)


def _others(
    run: Run, samples: Sequence[Mapping], truth: GroundTruth, metric: str, keep: bool
) -> dict[str, Evaluation]:
    """The matches in boxes and in masks where the comparison is about another AP."""
    found = {}
    if metric != 'bbox':
        found[BOXES] = Evaluation.load(run.matches_file)
    if metric != 'segm' and have_masks(samples) and truth.has_masks:
        found[MASKS] = matches_of(run, 'segm', truth, keep, samples)
    return found
