"""Summary of a comparison: accuracy, cost and significant differences."""

from __future__ import annotations

import csv
import inspect
import io
import math
import os
import platform
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from typing import Any

import mmcv
import mmdet
import mmengine
import numpy as np
import torch
from mmdet.datasets import CocoDataset
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from ..config import check_param_groups, read_config
from ..datasets import check_data, check_num_classes
from ..datasets.preflight import iter_datasets
from ..evaluation.average_precision import (
    KINDS_OF_AP,
    METRICS,
    MIN_IMAGES,
    PRIMARY,
    Evaluation,
    MetricDifference,
    differences_to_baseline,
)
from ..evaluation.complexity import detector_complexity, input_channels
from ..necks import upsampler_cfg, upsampler_name
from ..ops import library
from ..upsamplers import split_file, upsampler_class
from ..utils.tables import escape, printable, to_json, to_markdown
from ..utils.timing import interleaved, peak_memory
from .collect import evaluate, matches_of, results
from .details import BOXES, MASKS, Breakdown, Details, details_of
from .ground_truth import GroundTruth
from .inputs import image_names, leaves
from .octaves import INPUT, RELATIVE
from .runs import Divergence, Run, RunResult, write

#: Box AP of R50 FPN 1x on COCO 2017 val, measured by others with these configs' data,
#: backbone and schedule.
PUBLISHED_CONFIGS = dict(
    FasterRCNN='mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    MaskRCNN='mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
)
PUBLISHED = {
    ('FasterRCNN', 'nearest'): (37.5, 'DySample'),
    ('FasterRCNN', 'bilinear'): (37.5, 'DLU'),
    ('FasterRCNN', 'deconv'): (37.3, 'FreqFusion'),
    ('FasterRCNN', 'pixel_shuffle'): (37.5, 'FreqFusion'),
    ('FasterRCNN', 'carafe'): (38.6, 'mmdet, DLU'),
    ('FasterRCNN', 'dlu'): (38.6, 'DLU'),
    ('FasterRCNN', 'dysample'): (38.6, 'DySample'),
    ('FasterRCNN', 'lda_aqu'): (39.2, 'LDA-AQU'),
    ('FasterRCNN', 'fade'): (38.5, 'FreqFusion'),
    ('FasterRCNN', 'sapa'): (37.8, 'SAPA'),
    ('FasterRCNN', 'freqfusion'): (39.4, 'FreqFusion'),
    ('MaskRCNN', 'carafe'): (39.3, 'mmdet'),
}
#: Those necks are the pyramid of these figures.
PUBLISHED_NECKS = ('FPN', 'FPN_CARAFE', 'UpsampleFPN', 'UnifiedFPN', 'UNIFIED_FPN')
PUBLISHED_NOTE = (
    'Published: box AP in percent of this detector and upsampler with R50 FPN 1x on '
    'COCO 2017 val, not measured here; from the repositories of DLU, DySample, '
    'LDA-AQU, SAPA and FreqFusion and the model zoo of mmdet.'
)


@dataclass(frozen=True)
class Spread:
    """A value over training seeds.

    Attributes:
        mean (float, optional): None where no seed has one.
        std (float, optional): Sample standard deviation; None below two seeds.
    """

    mean: float | None
    std: float | None = None

    @classmethod
    def over(cls, values: Sequence[float | None]) -> Spread:
        """Mean and standard deviation of the values that are known."""
        known = [value for value in values if value is not None]
        return cls(
            float(np.mean(known)) if known else None,
            float(np.std(known, ddof=1)) if len(known) > 1 else None,
        )

    def text(self, digits: int) -> str:
        """'mean ± standard deviation', without the latter for one seed."""
        text = _digits(self.mean, digits)
        return text if self.std is None else f'{text} ± {self.std:.{digits}f}'


@dataclass(frozen=True)
class Costs:
    """What a detector and its upsamplers cost.

    Attributes:
        parameters (int): Of the detector.
        flops (int, optional): Of the detector and one image; None where they cannot be
            counted.
        upsampler_parameters (int): Of all upsamplers.
        upsampler_flops (int, optional): Of all upsamplers; None likewise.
        image_size (list[int]): Height and width of the image, in pixels.
        device (str): Where the neck was timed.
        neck_mb (float): Peak of the memory that the neck's forward adds, in 1e6 bytes.
        neck_ms (float): Median latency of the neck, in milliseconds.
    """

    parameters: int
    flops: int | None
    upsampler_parameters: int
    upsampler_flops: int | None
    image_size: list[int]
    device: str
    neck_mb: float
    neck_ms: float


@dataclass(frozen=True)
class Row:
    """One config in a comparison.

    Attributes:
        name (str): Its name, mostly that of the upsampler.
        scores (dict[str, Spread]): Metrics as fractions, ``training_seconds`` and
            ``seconds_per_iteration``.
        costs (Costs): Parameters, FLOPs, latency and memory.
        config (str): The config, as the user named it.
        seeds (Sequence[int]): Seeds of the finished runs.
        diverged (int): Number of runs that diverged and are left out.
        published_ap (float, optional): Published box AP in percent.
        published_by (str): Who published it.
    """

    name: str
    scores: dict[str, Spread]
    costs: Costs
    config: str = ''
    seeds: Sequence[int] = ()
    diverged: int = 0
    published_ap: float | None = None
    published_by: str = ''

    @property
    def ap(self) -> Spread:
        """AP over seeds."""
        return self.scores['AP']

    def to_json(self) -> dict:
        """One flat object: a line of ``comparison.csv``."""
        spreads = {}
        for key, each in self.scores.items():
            spreads[key], spreads[f'{key}_std'] = each.mean, each.std
        return dict(
            name=self.name,
            config=self.config,
            seeds=list(self.seeds),
            **spreads,
            diverged=self.diverged,
            **asdict(self.costs),
            published_ap=self.published_ap,
            published_by=self.published_by,
        )


@dataclass(frozen=True)
class Environment:
    """Date, machine and versions of a comparison."""

    date: str
    machine: str
    device: str
    python: str
    torch: str
    mmcv: str
    mmdet: str
    mmengine: str
    fused_operators: bool

    @classmethod
    def here(cls, device: str) -> Environment:
        """This machine; ``device`` is where necks were timed."""
        return cls(
            date=datetime.now(timezone.utc).strftime('%Y-%m-%d'),
            machine=f'{platform.system()} {platform.machine()}',
            device=device,
            python=platform.python_version(),
            torch=torch.__version__,
            mmcv=mmcv.__version__,
            mmdet=mmdet.__version__,
            mmengine=mmengine.__version__,
            fused_operators=library.is_available(
                'cuda' if torch.cuda.is_available() else 'cpu'
            ),
        )


@dataclass(frozen=True)
class Summary:
    """The result of a comparison.

    Attributes:
        baseline (str): Name of the row that others are compared with.
        num_images (int): Number of test images.
        rows (list[Row]): One for each config, highest AP first.
        differences (dict): Differences to the baseline by name and metric, see
            :func:`~dlu_mmdet.evaluation.average_precision.differences_to_baseline`.
        runs (list[RunResult]): Every finished run.
        diverged (list[RunResult]): Every run that diverged.
        environment (Environment): Where it was made.
        details (Details, optional): What the predictions say; None without them.
        without (str): Why there are no details, or not of all runs; or empty.
        metric (str): What AP is of, see
            :data:`~dlu_mmdet.evaluation.average_precision.KINDS_OF_AP`.
    """

    baseline: str
    num_images: int
    rows: list[Row]
    differences: dict[str, dict[str, MetricDifference]]
    runs: list[RunResult]
    diverged: list[RunResult]
    environment: Environment
    details: Details | None = None
    without: str = ''
    metric: str = 'bbox'

    def label(self, name: str = 'AP') -> str:
        """What texts call one of COCO's metrics: AP50, mask AP50, boundary AP50."""
        return KINDS_OF_AP[self.metric].replace('AP', name)

    def to_json(self) -> dict:
        """The content of ``comparison.json``."""
        return dict(
            baseline=self.baseline,
            num_images=self.num_images,
            rows=[row.to_json() for row in self.rows],
            differences={
                name: {metric: asdict(found) for metric, found in column.items()}
                for name, column in self.differences.items()
            },
            runs=[run.to_json() for run in self.runs],
            diverged=[
                dict(name=run.name, seed=run.seed, **asdict(run.diverged))
                for run in self.diverged
                if run.diverged
            ],
            environment=asdict(self.environment),
            **(self.details.to_json() if self.details else {}),
            **({} if self.metric == 'bbox' else dict(metric=self.metric)),
        )


def image_size(cfg: Config) -> tuple[int, int]:
    """Size of a typical test image after resizing and padding.

    Args:
        cfg (Config): The config. Without a ``Resize`` to (long, short) in its test
            pipeline, 800 x 1333 is assumed.

    Returns:
        tuple[int, int]: Height and width in pixels.
    """
    found = iter_datasets(cfg.test_dataloader.dataset, 'test_dataloader.dataset')
    pipeline = next((s.cfg.get('pipeline') for s in found), None) or []
    scale = next((t['scale'] for t in pipeline if t.get('scale')), (1333, 800))
    divisor = cfg.model.get('data_preprocessor', {}).get('pad_size_divisor', 1)
    return tuple(math.ceil(side / divisor) * divisor for side in sorted(scale))


def neck_name(neck: Mapping) -> str:
    """The class of a neck, without a scope."""
    name = getattr(neck['type'], '__name__', neck['type'])
    return name.rpartition('.')[2]


# parts of a config that are those of the publication, or its figure is of another
_PUBLISHED_PARTS = (
    'model.backbone',
    'train_cfg.max_epochs',
    'param_scheduler',
    'optim_wrapper.optimizer',
    'train_dataloader.dataset.pipeline',
    'test_dataloader.dataset.pipeline',
    'load_from',
)
# by split, the annotations and their number of images
_COCO_2017 = dict(
    train=('instances_train2017.json', 118_287), test=('instances_val2017.json', 5_000)
)
# arguments that mmdet's FPN_CARAFE configs write out: its defaults
_PLAIN_NECK = dict(
    start_level=0,
    end_level=-1,
    norm_cfg=None,
    act_cfg=None,
    order=('conv', 'norm', 'act'),
    top_down='cascade',
)
# arguments that are not the defaults here
_PUBLISHED_ARGUMENTS = dict(fade=dict(gating=False))


def published(cfg: Config, num_images: int | None = None) -> tuple[float | None, str]:
    """Published AP of a config's detector and upsampler, and by whom.

    Args:
        cfg (Config): The complete config.
        num_images (int, optional): Number of test images.

    Returns:
        tuple[float | None, str]: Box AP in percent and its source; None and '' unless
        detector, backbone, neck, schedule and data match the publication.
    """
    neck = cfg.model.neck
    none: tuple[float | None, str] = None, ''
    detector = getattr(cfg.model.type, '__name__', cfg.model.type).rpartition('.')[2]
    # several necks in a row are another detector, Libra R-CNN's, and so are others
    if isinstance(neck, (list, tuple)) or neck_name(neck) not in PUBLISHED_NECKS:
        return none
    # a class of the user may have any name
    if split_file(upsampler_cfg(neck).get('type')):
        return none
    name = upsampler_name(neck)
    found = PUBLISHED.get((detector, name or ''))
    if found is None or num_images not in (None, _COCO_2017['test'][1]):
        return none
    reference = _published_config(detector)
    # what a config inherits from another package names its scope
    own, theirs = (
        {k: v for k, v in leaves(c, _PUBLISHED_PARTS).items() if '_scope_' not in k}
        for c in (cfg, reference)
    )
    if own != theirs:
        return none
    given = upsampler_cfg(neck)
    signature = inspect.signature(upsampler_class(given)).parameters
    usual = {key: parameter.default for key, parameter in signature.items()}
    given, usual = {**usual, **given}, {**usual, 'type': given['type']}
    usual.update(_PUBLISHED_ARGUMENTS.get(name or '', {}))
    shape = {**_PLAIN_NECK, **reference.model.neck}
    shape.update(type=neck['type'], upsample_cfg=neck['upsample_cfg'])
    alike = _is_within(given, usual) and _is_within(neck, shape)
    return found if alike and _is_coco_2017(cfg) else none


@lru_cache
def _published_config(detector: str) -> Config:
    return read_config(PUBLISHED_CONFIGS[detector])


def _is_within(given: Mapping, usual: Mapping) -> bool:
    """Whether all given values equal the usual ones."""
    return all(key in usual and usual[key] == value for key, value in given.items())


def _is_coco_2017(cfg: Config) -> bool:
    """Whether a config's data are COCO 2017; missing files are not checked."""
    for split, (name, number) in _COCO_2017.items():
        key = f'{split}_dataloader.dataset'
        found = list(iter_datasets(cfg[f'{split}_dataloader'].dataset, key))
        # a wrapper would repeat them or mix them
        if len(found) != 1 or found[0].key != key or found[0].cls is not CocoDataset:
            return False
        file = Path(found[0].ann_file)
        if tuple(found[0].classes) != CocoDataset.METAINFO['classes']:
            return False
        if file.name != name or found[0].cfg.get('indices') is not None:
            return False
        if file.exists() and len(image_names(file)) != number:
            return False
    return True


def measure_costs(
    runs: Sequence[Run], device: str | None = None, rounds: int = 10
) -> dict[str, Costs]:
    """Count parameters and FLOPs; measure latency and memory of the necks.

    Latency is the inference time of the neck alone for one image of the config's test
    size. The necks are timed in turns, so that other load affects all alike. The
    detectors have random weights.

    Args:
        runs (Sequence[Run]): Runs of a comparison; each config is measured once.
        device (str, optional): Defaults to the GPU, if any.
        rounds (int): Number of timed runs of each neck.

    Returns:
        dict[str, Costs]: By name of the run.
    """
    where = torch.device(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    counted: dict[str, dict[str, Any]] = {}
    actions = []
    for run in {run.name: run for run in runs}.values():
        size = image_size(run.cfg)
        counted[run.name] = dict(
            detector_complexity(run.cfg, size),
            image_size=list(size),
            device=torch.cuda.get_device_name(where)
            if where.type == 'cuda'
            else f'{platform.machine()}, {torch.get_num_threads()} threads',
        )
        init_default_scope(run.cfg.get('default_scope') or 'mmdet')
        model = MODELS.build(deepcopy(run.cfg.model)).to(where).eval()
        with torch.no_grad():
            image = torch.zeros(1, input_channels(model), *size, device=where)
            inputs = model.backbone(image)
        actions.append(lambda neck=model.neck, inputs=inputs: neck(inputs))
    memory = []
    with torch.no_grad():
        for action in actions:
            action()
            memory.append(peak_memory(action, where) / 1e6)
        times = interleaved(actions, rounds, where)
    return {
        name: Costs(**each, neck_mb=megabytes, neck_ms=median * 1e3)
        for (name, each), megabytes, (median, _) in zip(counted.items(), memory, times)
    }


def check_before_training(runs: Sequence[Run]) -> None:
    """Try the steps after training on untrained detectors, to fail early.

    Checks data, evaluators and heads, evaluates without any detection, and times every
    neck once.

    Args:
        runs (Sequence[Run]): Runs of a comparison; each config is checked once.

    Raises:
        FileNotFoundError: If data are missing.
        ValueError: If data, evaluators and heads do not match, a model cannot run, or
            the test set has no objects.
    """
    each = {run.name: run for run in runs}.values()
    check_data(next(iter(each)).cfg, ('train', 'val', 'test'), hold=False)
    for run in each:
        init_default_scope(run.cfg.get('default_scope') or 'mmdet')
        # building a model writes into its config
        model = MODELS.build(deepcopy(run.cfg.model))
        check_num_classes(model, run.cfg, ('train', 'val', 'test'))
        check_param_groups(model, run.cfg)
        try:
            measure_costs([run], rounds=1)
        except Exception as error:
            reason = ' '.join(str(error).split())
            raise ValueError(
                f'{run.source} cannot be run on an image of the size that it tests at '
                f'({type(error).__name__}: {reason}); mend its model'
            ) from error
    evaluate(next(iter(each)).cfg, [])


def summarize(
    runs: Sequence[Run],
    baseline: str | None = None,
    groups: int = 200,
    rounds: int = 10,
    progress: Callable[[int, int], None] = lambda done, total: None,
    reading: Callable[[int, int], None] = lambda done, total: None,
    data: str | os.PathLike | Mapping | None = None,
    joined: bool = False,
    metric: str = 'bbox',
) -> Summary:
    """Summarize the finished runs of a comparison.

    Args:
        runs (Sequence[Run]): From :func:`~dlu_mmdet.comparison.plan.plan`.
        baseline (str, optional): Name of the run that others are compared with.
            Defaults to 'bilinear', or else the first.
        groups (int): Number of groups of test images, at most; one is left out at a
            time.
        rounds (int): Number of timed runs of each neck.
        progress (Callable): Called with the number of scored evaluations and of all.
        reading (Callable): Called with the number of predictions read and of all.
        data (str | PathLike | Mapping, optional): Folder that the data were moved to,
            or arguments of :func:`~dlu_mmdet.config.use_dataset_folder`.
        joined (bool): Whether the runs belong to other comparisons, which stay as they
            are.
        metric (str): What AP is of: 'bbox', 'segm' or 'boundary'.

    Returns:
        Summary: Accuracy, costs and differences. Runs that diverged are left out and
        listed.

    Raises:
        FileNotFoundError: If the matches of a finished run are missing, or the
            predictions that those of masks are made from.
        ValueError: If no run is finished, none of them is the baseline, or the metric
            is about masks and a detector or the data have none.
    """
    finished = [run for run in runs if run.state == 'finished']
    if not finished:
        raise ValueError('no run is finished; there is nothing to compare')
    for run in finished:
        if not run.matches_file.exists():
            raise FileNotFoundError(
                f'{run.matches_file} is not there, which the intervals need; '
                f'--report-only makes it from {run.predictions}, if that is there'
            )
    names = list(dict.fromkeys(run.name for run in finished))
    if baseline is None:
        baseline = 'bilinear' if 'bilinear' in names else names[0]
    elif baseline not in names:
        raise ValueError(
            f'baseline {baseline!r} is none of the finished: {", ".join(names)}'
        )
    evaluations: dict[str, dict[int, Evaluation]] = {name: {} for name in names}
    # boxes are matched when a run is tested
    made = all(run.matches_of(metric).exists() for run in finished)
    truth = None if made else GroundTruth.of(finished[0], data)
    for run in finished:
        evaluations[run.name][run.seed] = matches_of(run, metric, truth, not joined)
    listed = results(finished)
    diverged = [
        replace(result, name=run.name)
        for run in runs
        if (result := run.result) and result.diverged
    ]
    num_images = evaluations[names[0]][finished[0].seed].num_images
    costs = measure_costs(finished, rounds=rounds)
    rows = []
    for name in names:
        own = [result for result in listed if result.name == name]
        cfg = next(run.cfg for run in finished if run.name == name)
        found = [
            result.scores if metric == 'bbox' else each.score()
            for each, result in zip(evaluations[name].values(), own)
        ]
        scores = {key: Spread.over([each[key] for each in found]) for key in METRICS}
        for key in ('training_seconds', 'seconds_per_iteration'):
            scores[key] = Spread.over([getattr(result, key) for result in own])
        rows.append(
            Row(
                name,
                scores,
                costs[name],
                own[0].config,
                [result.seed for result in own],
                sum(result.name == name for result in diverged),
                *(published(cfg, num_images) if metric == 'bbox' else (None, '')),
            )
        )

    differences = {}
    if len(names) > 1:
        differences = differences_to_baseline(
            evaluations, baseline, groups, progress=progress
        )
    del evaluations
    details, without = _details(
        finished, baseline, groups, data, not joined, reading, metric
    )
    return Summary(
        baseline=baseline,
        num_images=num_images,
        rows=sorted(rows, key=lambda row: -(row.ap.mean or 0)),
        differences=differences,
        runs=listed,
        diverged=diverged,
        environment=Environment.here(next(iter(costs.values())).device),
        details=details,
        without=without,
        metric=metric,
    )


def _details(
    runs: Sequence[Run], baseline: str, groups: int, data: Any, keep: bool, *rest: Any
) -> tuple[Details | None, str]:
    """:func:`details_of`, and why there are none or not of all runs."""
    try:
        details = details_of(runs, baseline, groups, data, keep, *rest)
        return details, details.lost
    except (FileNotFoundError, RuntimeError, ValueError) as error:
        # whoever joins runs and names the folder wants them
        if data and not keep:
            raise
        return None, f'There are no kinds of error and no images: {error}.'


def _digits(value: float | None, digits: int) -> str:
    return '-' if value is None else f'{value:.{digits}f}'


def _giga(flops: int | None) -> str:
    return '-' if flops is None else f'{flops / 1e9:.2f}'


def divergences(summary: Summary) -> list[str]:
    """One sentence for each upsampler with diverged runs, which are left out."""
    found: dict[str, list[tuple[int, Divergence]]] = {}
    for run in summary.diverged:
        if run.diverged:
            found.setdefault(run.name, []).append((run.seed, run.diverged))
    numbers = {row.name: len(row.seeds) for row in summary.rows}
    return [
        f'{printable(name)}: {len(own)} of {len(own) + numbers.get(name, 0)} seeds '
        f'diverged and are left out: '
        + '; '.join(
            f'seed {seed} at iteration {where.iteration}, {where.reason}'
            for seed, where in own
        )
        + '.'
        for name, own in found.items()
    ]


def accuracy_table(summary: Summary) -> list[list[str]]:
    """Header and rows: accuracy, parameters and training time."""
    lost = Counter(run.name for run in summary.diverged)
    known = [row for row in summary.rows if row.published_ap is not None]
    table = [
        ['upsampler', 'seeds', summary.label(), *[*METRICS][1:], 'upsampler params']
        + ['all params', 's/iter', 'training s', *(['published AP'] if known else [])]
    ]
    for row in summary.rows:
        published, number = row.published_ap, len(row.seeds)
        seeds = str(number)
        if diverged := lost.pop(row.name, 0):
            seeds += f' ({diverged} of {number + diverged} diverged)'
        cell = '' if published is None else f'{published:.1f} ({row.published_by})'
        table.append(
            [
                row.name,
                seeds,
                *(row.scores[name].text(3) for name in METRICS),
                f'{row.costs.upsampler_parameters:,}',
                f'{row.costs.parameters:,}',
                _digits(row.scores['seconds_per_iteration'].mean, 2),
                _digits(row.scores['training_seconds'].mean, 0),
                *([cell] if known else []),
            ]
        )
    for name, number in lost.items():
        line = [name, f'0 ({number} of {number} diverged)']
        table.append(line + ['-'] * (len(table[0]) - len(line)))
    return table


def cost_table(rows: Sequence[Row]) -> list[list[str]]:
    """Header and rows: FLOPs, latency and memory."""
    table = [
        ['upsampler', 'upsamplers GFLOPs', 'detector GFLOPs', 'neck ms', 'neck MB']
    ]
    for row in rows:
        table.append(
            [
                row.name,
                _giga(row.costs.upsampler_flops),
                _giga(row.costs.flops),
                f'{row.costs.neck_ms:.1f}',
                f'{row.costs.neck_mb:.1f}',
            ]
        )
    return table


def _listed(items: Sequence[str]) -> str:
    """'a', 'a and b' or 'a, b and c', up to six."""
    if len(items) > 6:
        items = [*items[:5], f'{len(items) - 5} more']
    return ' and '.join(filter(None, [', '.join(items[:-1]), *items[-1:]]))


def accuracy_sentence(summary: Summary) -> str:
    """What the table of accuracy shows."""
    best, *others = summary.rows
    text = f'{best.name} has the highest mean {summary.label()}, '
    text += _digits(best.ap.mean, 3)
    if others:
        text += f', and {others[-1].name} the lowest, {_digits(others[-1].ap.mean, 3)}'
    return f'{text}.'


def cost_sentence(rows: Sequence[Row]) -> str:
    """What the table of costs shows."""
    slow, quick = (pick(rows, key=lambda r: r.costs.neck_ms) for pick in (max, min))
    text = f'The neck takes {quick.costs.neck_ms:.1f} ms with {quick.name}'
    if slow is not quick:
        text += f' and {slow.costs.neck_ms:.1f} ms with {slow.name}'
    return f'{text}.'


def difference_sentence(
    differences: Mapping[str, Mapping[str, MetricDifference]], baseline: str
) -> str:
    """What a table of differences shows: those that are significant, if any."""
    tested = [
        (f'{name} in {metric} ({found.difference:+.3f})', found.significant)
        for name, own in differences.items()
        for metric, found in own.items()
        if found.significant is not None
    ]
    if not tested:
        return (
            f'No difference to {baseline} is tested: that takes two seeds and '
            f'{MIN_IMAGES} images with objects.'
        )
    found = [text for text, significant in tested if significant]
    if not found:
        return (
            f'None of the {len(tested)} tested differences to {baseline} is '
            f'significant.'
        )
    return (
        f'{len(found)} of the {len(tested)} tested differences to {baseline} '
        f'{"is" if len(found) == 1 else "are"} significant: {_listed(found)}.'
    )


def breakdown_sentence(found: Breakdown, heading: str, baseline: str) -> str:
    """What a table of scores shows: where each upsampler differs most."""
    if heading == 'error':
        means = {
            key: np.mean([own[key] or 0 for own in found.means.values()])
            for key in found.counts
        }
        worst = max(means, key=means.__getitem__)
        text = (
            f'The most AP50 is lost to {worst} errors, {means[worst]:.3f} on average.'
        )
        if worst == 'missed':
            text = f'The most AP50 is lost to missed objects, {means[worst]:.3f}.'
    else:
        text = ''
    most = []
    for name, own in found.differences.items():
        known = {
            key: each.difference
            for key, each in own.items()
            if each.images >= MIN_IMAGES and np.isfinite(each.difference)
        }
        if known:
            key = max(known, key=lambda key: abs(known[key]))
            most.append(f'{name} at {key} ({known[key]:+.3f})')
    if most:
        text += f' The largest differences to {baseline}: {_listed(most)}.'
    return text.strip()


def breakdowns(summary: Summary) -> list[tuple[str, Breakdown, str]]:
    """Note, scores and what they are by, of each breakdown."""
    if not summary.details:
        return []
    details = summary.details
    found = [
        (ERROR_NOTE, details.errors, 'error'),
        *((SIZE_NOTES[key], each, key) for key, each in details.sizes.items()),
    ]
    for what, each, key in (
        ('boxes', details.boxes, BOXES),
        ('masks', details.masks, MASKS),
    ):
        if each.counts:
            found.append((OTHER_NOTE.format(what), each, key))
    return found


def breakdown_table(found: Breakdown) -> list[list[str]]:
    """Header and rows: the scores of every upsampler."""
    return [
        ['upsampler', *found.counts],
        *(
            [name, *(_digits(value, 3) for value in means.values())]
            for name, means in found.means.items()
        ),
    ]


def difference_table(
    differences: Mapping[str, Mapping[str, MetricDifference]],
    baseline: str,
    heading: str = 'metric',
) -> list[list[str]]:
    """Header and rows: differences to the baseline with their intervals."""
    table = [
        ['upsampler', heading, f'minus {baseline}', '95 % interval']
        + ['significant at 5 %', 'p (Holm)', 'each seed', 'objects', 'images']
    ]
    for name, metrics in differences.items():
        for metric, found in metrics.items():
            interval = p = '-'
            if found.low is not None:
                interval = f'{found.low:+.3f} to {found.high:+.3f}'
            if found.p_holm is not None:
                p = f'{found.p_holm:.3f}'
            table.append(
                [
                    name,
                    metric,
                    f'{found.difference:+.3f}',
                    interval,
                    _verdict(found),
                    p,
                    ', '.join(f'{value:+.3f}' for value in found.seeds),
                    f'{found.objects:,}',
                    f'{found.images:,}',
                ]
            )
    return table


def _verdict(found: MetricDifference) -> str:
    """'yes', 'no', or why a difference is not tested."""
    if found.significant is not None:
        return 'yes' if found.significant else 'no'
    if found.images < MIN_IMAGES:
        return 'too few images'
    if len(found.seeds) == 1:
        return 'one seed'
    if found.low is None:
        return 'identical seeds'
    return 'exploratory'


def notes(summary: Summary) -> list[str]:
    """Notes on how to read the tables."""
    environment = summary.environment
    height, width = summary.rows[0].costs.image_size
    found = [
        f'{SCORE_NOTES[summary.metric]} as a fraction, mean ± standard deviation over '
        f'the seeds, {summary.num_images} test images.',
        f'FLOPs of one image of {height} x {width}, 2 a multiply-add; neck: inference '
        f'on {environment.device}, batch 1, median, and the most memory that its '
        f'forward holds at once.',
        *divergences(summary),
        f'{environment.date}, {environment.machine}, Python {environment.python}, '
        f'torch {environment.torch}, mmcv {environment.mmcv}, mmdet '
        f'{environment.mmdet}, mmengine {environment.mmengine}.',
    ]
    if summary.without:
        found.insert(2, summary.without)
    if summary.metric != 'bbox':
        found.insert(1, 'Kinds of error, sizes and images are about boxes.')
    if any(row.published_ap for row in summary.rows):
        found.insert(2, PUBLISHED_NOTE)
    if summary.differences:
        found.insert(1, difference_note(summary))
    return found


#: What the table of accuracy has.
SCORE_NOTES = dict(
    bbox='AP of pycocotools',
    segm='Mask AP of pycocotools',
    boundary='Boundary AP (arXiv 2103.16562) with the boundaries of faster-coco-eval',
)


#: What the table of errors shows.
ERROR_NOTE = (
    'AP50 that each upsampler would gain without one kind of error, as a fraction, '
    'mean over the seeds; kinds and thresholds of TIDE (arXiv 2008.08115). A negative '
    'difference to the baseline: this kind of error costs the upsampler less. '
    'Intervals are as above; all differences of this table are corrected together.'
)


#: What the tables of sizes show.
SIZE_NOTES = {
    RELATIVE: (
        "AP by octaves of the square root of an object's area over that of its image, "
        'mean over the seeds. Areas are the annotated ones, as for APs, APm and APl. '
        'All differences of this table are corrected together.'
    ),
    INPUT: (
        "AP by octaves of the square root of a box's area in pixels, after the "
        'resizing of the test pipeline, mean over the seeds. In brackets is the level '
        'of the pyramid that a two-stage detector pools such boxes from. All '
        'differences of this table are corrected together.'
    ),
}


#: What the table of boxes, or of masks, in a comparison of another AP shows.
OTHER_NOTE = (
    'AP of {} as pycocotools finds it, mean over the seeds. The differences in AP '
    'are corrected together and tested; the other metrics are exploratory.'
)


def difference_note(summary: Summary) -> str:
    """Note on how the differences and their intervals are computed."""
    tested = [
        each[PRIMARY]
        for each in summary.differences.values()
        if PRIMARY in each and each[PRIMARY].significant is not None
    ]
    text = (
        'Differences are means over the seeds that both upsamplers have. Intervals are '
        "about other training seeds and other test images: Welch's t over seeds, with "
        'the variance over images (jackknife) added; with one seed about other images '
        f'alone. {summary.label(PRIMARY)} is the primary metric: its {len(tested)} '
        'comparisons are significant where the p-value is below 5 % after correction '
        '(Holm), which an interval, of one comparison alone, does not show. The other '
        'metrics are exploratory and not corrected. Objects and images: how many of '
        'the test set a metric is measured on; with fewer than '
        f'{MIN_IMAGES} images it has no interval.'
    )
    seeds = min((len(each.seeds) for each in tested), default=1)
    if seeds < 5:
        text += (
            f' With {seeds} {"seed" if seeds == 1 else "seeds"} a difference of 0.05 '
            'is mostly missed; use five or more (docs/statistics.md).'
        )
    return text


def tables(summary: Summary) -> Iterator[tuple[str, list[list[str]], int]]:
    """What each table shows, the table, and the number of its columns of text."""
    baseline = summary.baseline

    def differences(found: Mapping, heading: str = 'metric') -> tuple:
        table = difference_table(found, baseline, heading)
        return difference_sentence(found, baseline), table, 2

    yield accuracy_sentence(summary), accuracy_table(summary), 1
    yield cost_sentence(summary.rows), cost_table(summary.rows), 1
    named = {
        name: {summary.label(metric): each for metric, each in own.items()}
        for name, own in summary.differences.items()
    }
    yield differences(named)
    for note, found, heading in breakdowns(summary):
        sentence = breakdown_sentence(found, heading, baseline)
        yield f'{sentence} {note}'.strip(), breakdown_table(found), 1
        yield differences(found.differences, heading)


def save(summary: Summary, work_dir: str | Path) -> None:
    """Write comparison.json, .csv and .md.

    Args:
        summary (Summary): From :func:`summarize`.
        work_dir (str | Path): Existing folder.
    """
    work_dir = Path(work_dir)
    write(work_dir / 'comparison.json', to_json(summary.to_json()))
    rows = [row.to_json() for row in summary.rows]
    if summary.metric != 'bbox':
        rows = [dict(metric=summary.metric, **row) for row in rows]
    columns = [key for key in rows[0] if key != 'image_size']
    lines = io.StringIO(newline='')
    writer = csv.DictWriter(lines, columns, extrasaction='ignore')
    writer.writeheader()
    for row in rows:
        writer.writerow({**row, 'seeds': ' '.join(map(str, row['seeds']))})
    write(work_dir / 'comparison.csv', lines.getvalue())
    parts = []
    for text, table, texts in tables(summary):
        head, *body = table
        if body:
            parts += [escape(text), to_markdown(head, body, texts)]
    write(work_dir / 'comparison.md', '\n\n'.join(parts + notes(summary)) + '\n')
