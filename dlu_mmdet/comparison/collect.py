"""Collect a run's losses, validation scores, detections and matches."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from mmengine.config import Config

from ..datasets.coco_io import COCO
from ..engine import read_divergence
from ..evaluation.average_precision import KINDS_OF_AP, METRICS, Evaluation
from ..evaluation.coco_results import coco_results
from ..necks import upsampler_cfg
from ..utils.files import read_json
from ..utils.tables import to_json
from ..utils.torch_compat import load_pickle
from .ground_truth import GroundTruth
from .inputs import differing, fingerprint
from .plan import box_evaluator, classes_of
from .runs import Run, RunResult, directory_lock, score_name, write


def reevaluate(run: Run) -> bool:
    """Evaluate the predictions of a run whose result or matches are missing.

    Nothing is trained, and no GPU is needed.

    Args:
        run (Run): The run.

    Returns:
        bool: Whether anything was missing.

    Raises:
        RuntimeError: If the predictions are damaged or could run code, the annotations
            have changed, or another process works in the folder.
    """
    whole = run.result_file.exists() and run.matches_file.exists()
    if whole or not run.predictions.exists():
        return False
    with directory_lock(run.work_dir):
        inputs = run.inputs
        now = fingerprint(run.cfg, ['test_evaluator'])
        then = {key: (inputs or {}).get(key, value) for key, value in now.items()}
        if lines := differing(then, now):
            raise RuntimeError(
                f'{run.predictions} was made for other annotations than those of '
                f'today; put the former back. They differ in\n{lines}'
            )
        kept = {} if inputs is None else dict(inputs=inputs)
        write(run.result_file, to_json({**collect_result(run), **kept}))
    return True


def _scalars(run: Run) -> Iterator[dict]:
    """Scalars that mmengine logged, over all starts of the run."""
    for file in sorted(run.work_dir.glob('*/vis_data/scalars.json')):
        text = file.read_text(encoding='utf-8', errors='replace')
        for line in text.splitlines():
            # the line that a killed process was writing is cut off
            with contextlib.suppress(json.JSONDecodeError):
                entry = json.loads(line)
                if isinstance(entry, dict):
                    yield entry


def _mask_metrics(run: Run) -> dict[str, float | None]:
    """Mask metrics of the test, ``mask_AP`` and so on; empty without masks."""
    keys = [f'coco/segm_mAP{end}' for end in ('', '_50', '_75', '_s', '_m', '_l')]
    metrics = {}
    for file in sorted(run.work_dir.glob('*/*.json')):
        tested = read_json(file, (), 'remove it, the file of a test')
        if keys[0] in tested:
            values = [_ap(tested[key]) for key in keys]
            metrics = {score_name('segm', n): v for n, v in zip(METRICS, values)}
    return metrics


def read_predictions(path: Path, num_classes: int) -> list[dict]:
    """Read the output of ``dlu_mmdet test --out`` as data: no code in it runs."""
    try:
        with path.open('rb') as file:
            samples = load_pickle(file)
        if not isinstance(samples, list):
            raise ValueError(f'it holds a {type(samples).__name__}')
        for sample in samples:
            found = sample['pred_instances']
            boxes, scores, labels = (
                found[key].numpy() for key in ('bboxes', 'scores', 'labels')
            )
            if boxes.shape != (len(labels), 4) or scores.shape != labels.shape:
                raise ValueError(f'image {sample["img_id"]} lacks boxes or scores')
            if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
                raise ValueError(f'image {sample["img_id"]} has other classes')
    # whatever a file that mmdet does not write leads its readers to
    except Exception as error:
        raise RuntimeError(
            f'{path} is cut off, or is no list of predictions and could run code '
            f'({error}); remove it, and compare without --report-only tests anew'
        ) from error
    return samples


def predictions_of(run: Run, num_classes: int) -> list[dict]:
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


def have_masks(samples: Sequence[Mapping]) -> bool:
    """Whether predictions are of a detector with masks."""
    return any('masks' in sample['pred_instances'] for sample in samples[:1])


def matches_of(
    run: Run,
    metric: str,
    truth: GroundTruth | None,
    keep: bool = True,
    samples: Sequence[Mapping] | None = None,
) -> Evaluation:
    """The matches of a run in a metric, made from its predictions if need be.

    Args:
        run (Run): A finished run.
        metric (str): Of :data:`~dlu_mmdet.evaluation.average_precision.KINDS_OF_AP`.
        truth (GroundTruth, optional): The test set, unless matches are there.
        keep (bool): Whether to keep new matches, and their scores in ``result.json``.
        samples (Sequence[Mapping], optional): The predictions, if they have been read.

    Raises:
        FileNotFoundError: If the predictions are not there.
        RuntimeError: If they are damaged.
        ValueError: If detector or annotations have no masks.
    """
    file = run.matches_of(metric)
    if truth is None or file.exists():
        return Evaluation.load(file)
    if samples is None:
        samples = predictions_of(run, len(truth.classes))
    if not have_masks(samples):
        raise ValueError(
            f'--metric {metric} is for detectors with masks, and {run.predictions} has '
            f'boxes alone; leave out --metric'
        )
    if not truth.has_masks:
        raise ValueError(
            f'--metric {metric} needs objects with a segmentation, and some of the '
            f'test set have none; leave out --metric, or add them'
        )
    ids = truth.category_ids
    detections = coco_results(samples, ids).get('segm', [])
    found = Evaluation.from_coco(truth.coco, detections, ids, metric)
    if keep:
        with directory_lock(run.work_dir):
            _save(found, file)
            if result := run.result:
                scores = {score_name(metric, k): v for k, v in found.score().items()}
                write(run.result_file, to_json({**result.content, **scores}))
    return found


def _save(evaluation: Evaluation, file: Path) -> None:
    """Write matches, whole or not at all."""
    buffer = io.BytesIO()
    evaluation.save(buffer)
    write(file, buffer.getvalue())


def _ap(value: float) -> float | None:
    """An AP of pycocotools; None for its -1, where there is no object."""
    return value if value >= 0 else None


def collect_result(run: Run) -> dict:
    """Collect the content of a run's ``result.json``."""
    training, validation = {}, {}
    for entry in _scalars(run):
        if 'loss' in entry:
            training[entry['step']] = entry
        elif 'coco/bbox_mAP' in entry:
            validation[entry['step']] = _ap(entry['coco/bbox_mAP'])
    steps = sorted(training)
    times = [training[step]['time'] for step in steps]
    found = dict(
        config=run.source,
        upsampler=run.name,
        upsample_cfg=upsampler_cfg(run.cfg.model.neck),
        seed=run.seed,
        loss=[[step, training[step]['loss']] for step in steps],
        validation=sorted(validation.items()),
        checkpoint=str(run.checkpoint),
    )
    if diverged := read_divergence(run.work_dir):
        return dict(found, diverged=diverged)
    samples = read_predictions(run.predictions, len(classes_of(run.cfg)))
    evaluation = evaluate(run.cfg, samples)
    for metric in KINDS_OF_AP:
        # those of masks are made when they are asked for
        run.matches_of(metric).unlink(missing_ok=True)
    _save(evaluation, run.matches_file)
    return dict(
        found,
        **evaluation.score(),
        counts=evaluation.counts(),
        **_mask_metrics(run),
        classes={
            name: evaluation.category(k).score()
            for k, name in enumerate(classes_of(run.cfg))
        },
        # an entry is the mean since the one before
        training_seconds=float(np.dot(times, np.diff([0, *steps]))) if times else None,
        # the median: the first iterations of a process warm up
        seconds_per_iteration=float(np.median(times)) if times else None,
    )


def evaluate(cfg: Config, samples: Sequence[Mapping]) -> Evaluation:
    """Match detections with pycocotools.

    Args:
        cfg (Config): The complete config; its test evaluator names the annotations.
        samples (Sequence[Mapping]): Output of ``dlu_mmdet test --out``: ``img_id`` and
            ``pred_instances`` with ``bboxes`` (D, 4) x1 y1 x2 y2 in pixels, ``scores``
            (D,) and ``labels`` (D,).

    Returns:
        Evaluation: On all images of the annotations.

    Raises:
        ValueError: If no test evaluator scores boxes.
    """
    evaluator = box_evaluator(cfg)
    if evaluator is None:
        raise ValueError(
            'test_evaluator scores no boxes with an ann_file; add a CocoMetric with '
            "metric='bbox'"
        )
    coco = COCO(evaluator['ann_file'])
    category_ids = coco.get_cat_ids(classes_of(cfg))
    detections = coco_results(samples, category_ids)['bbox']
    return Evaluation.from_coco(coco, detections, category_ids)


def results(runs: Sequence[Run]) -> list[RunResult]:
    """Results of the finished runs among these."""
    # what a config is called depends on what it is compared with
    return [
        replace(run.existing_result, name=run.name)
        for run in runs
        if run.state == 'finished'
    ]
