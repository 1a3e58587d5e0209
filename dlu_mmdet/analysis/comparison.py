"""What a comparison's runs come to: accuracy, cost, and which differences are real."""

from __future__ import annotations

import csv
import io
import json
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from datetime import datetime, timezone
from pathlib import Path

import mmcv
import mmdet
import mmengine
import numpy as np
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from ..datasets import check_data, check_num_classes
from ..datasets.checks import sources
from ..engine import check_param_groups
from ..necks import upsampler_name
from ..ops import library
from .bootstrap import METRICS, Evaluation, paired_differences
from .complexity import detector_complexity, input_channels
from .op_benchmark import interleaved, peak_memory
from .runs import Run, evaluate, results, write
from .tables import to_markdown

#: Box AP of R50 FPN 1x on COCO 2017 val, measured by others.
PUBLISHED = {
    ('FasterRCNN', 'nearest'): (37.5, 'DySample'),
    ('FasterRCNN', 'bilinear'): (37.5, 'DLU'),
    ('FasterRCNN', 'carafe'): (38.6, 'mmdet, DLU'),
    ('FasterRCNN', 'dlu'): (38.6, 'DLU'),
    ('FasterRCNN', 'dysample'): (38.6, 'DySample'),
    ('FasterRCNN', 'fade'): (38.5, 'FreqFusion'),
    ('FasterRCNN', 'sapa'): (37.8, 'SAPA'),
    ('FasterRCNN', 'freqfusion'): (39.4, 'FreqFusion'),
    ('MaskRCNN', 'carafe'): (39.3, 'mmdet'),
}
#: Those necks are the pyramid of these figures.
PUBLISHED_NECKS = ('FPN', 'FPN_CARAFE', 'UpsampleFPN', 'UnifiedFPN', 'UNIFIED_FPN')
PUBLISHED_NOTE = (
    'Published: box AP in percent of this detector and upsampler with R50 FPN 1x on '
    'COCO 2017 val, not measured here; from the repositories of DLU, DySample, SAPA '
    'and FreqFusion and the model zoo of mmdet.'
)


def image_size(cfg: Config) -> tuple[int, int]:
    """Height and width of a test image of 3:2 or so, padded as the config pads.

    Args:
        cfg (Config): With a ``Resize`` to a scale (long, short) in the test
            pipeline; without one it is taken to be 800 x 1333.

    Returns:
        tuple[int, int]: Pixels, height first.
    """
    found = sources(cfg.test_dataloader.dataset, 'test_dataloader.dataset')
    pipeline = next((s.cfg.get('pipeline') for s in found), None) or []
    scale = next((t['scale'] for t in pipeline if t.get('scale')), (1333, 800))
    divisor = cfg.model.get('data_preprocessor', {}).get('pad_size_divisor', 1)
    return tuple(math.ceil(side / divisor) * divisor for side in sorted(scale))


def neck_name(neck: Mapping) -> str:
    """The class of a neck, without a scope."""
    name = getattr(neck['type'], '__name__', neck['type'])
    return name.rpartition('.')[2]


def published(cfg: Config) -> tuple[float | None, str]:
    """Published AP of a config's detector and upsampler, and by whom."""
    neck = cfg.model.neck
    # several necks in a row are another detector, Libra R-CNN's, and so are others
    if isinstance(neck, (list, tuple)) or neck_name(neck) not in PUBLISHED_NECKS:
        return None, ''
    detector = getattr(cfg.model.type, '__name__', cfg.model.type)
    return PUBLISHED.get((detector, upsampler_name(neck)), (None, ''))


def measure_costs(
    runs: Sequence[Run], device: str | None = None, rounds: int = 10
) -> dict[str, dict]:
    """Parameters, FLOPs, and time and memory of the necks, measured now.

    Latency is that of the neck alone in inference, for one image of the size
    that the config tests at; the necks take turns, so that a busy machine slows all
    alike. Weights play no part: the detectors are new.

    Args:
        runs (Sequence[Run]): Runs of a comparison; each config counts once.
        device (str, optional): Defaults to the GPU if there is one.
        rounds (int): Timed runs of each neck.

    Returns:
        dict[str, dict]: By name of the run: what
        :func:`~dlu_mmdet.analysis.complexity.detector_complexity` counts,
        ``neck_ms`` (median), ``neck_mb`` (peak of what the neck's forward adds,
        outputs included, in 1e6 bytes), ``image_size`` and ``device``.
    """
    where = torch.device(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    costs, actions = {}, []
    for run in {run.name: run for run in runs}.values():
        size = image_size(run.cfg)
        costs[run.name] = dict(
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
    with torch.no_grad():
        for cost, action in zip(costs.values(), actions):
            action()
            cost['neck_mb'] = peak_memory(action, where) / 1e6
        times = interleaved(actions, rounds, where)
    for cost, (median, _) in zip(costs.values(), times):
        cost['neck_ms'] = median * 1e3
    return costs


def rehearse(runs: Sequence[Run]) -> None:
    """Try now, on new detectors, what would else be tried after the training.

    Data, evaluators and heads are checked, nothing is scored against the test set,
    and every neck is timed once.

    Args:
        runs (Sequence[Run]): Runs of a comparison; each config counts once.

    Raises:
        FileNotFoundError: If data are missing.
        ValueError: If data, evaluators and heads do not belong together, or there is
            nothing to find.
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


def summarise(
    runs: Sequence[Run],
    baseline: str | None = None,
    resamples: int = 1000,
    rounds: int = 10,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict:
    """Bring a comparison's finished runs together.

    Args:
        runs (Sequence[Run]): What :func:`~dlu_mmdet.analysis.runs.plan` listed.
        baseline (str, optional): Name of the run that others are compared with.
            Defaults to 'bilinear', or else the first.
        resamples (int): Of the bootstrap.
        rounds (int): Timed runs of each neck.
        progress (Callable): Called with evaluations resampled and their number.

    Returns:
        dict: ``rows``, one for each config, best AP first: ``name``, ``seeds``,
        mean and ``_std`` over seeds (None for one seed) of each metric, and the
        costs; ``differences`` to ``baseline``, see
        :func:`~dlu_mmdet.analysis.bootstrap.paired_differences`; ``runs``, every
        result; ``environment``.

    Raises:
        FileNotFoundError: If the matches of a finished run are gone.
        ValueError: If no run is finished, or the baseline is none of them.
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
    listed = results(finished)
    costs = measure_costs(finished, rounds=rounds)
    rows = []
    for name in names:
        own = [result for result in listed if result['name'] == name]
        cfg = next(run.cfg for run in finished if run.name == name)
        row = dict(
            name=name, config=own[0]['config'], seeds=[result['seed'] for result in own]
        )
        for key in (*METRICS, 'training_seconds', 'seconds_per_iteration'):
            values = [result[key] for result in own if result[key] is not None]
            row[key] = float(np.mean(values)) if values else None
            row[f'{key}_std'] = (
                float(np.std(values, ddof=1)) if len(values) > 1 else None
            )
        row.update(costs[name])
        row['published_ap'], row['published_by'] = published(cfg)
        rows.append(row)

    common = set.intersection(*({*row['seeds']} for row in rows))
    evaluations = {
        name: [
            Evaluation.load(run.matches_file)
            for run in finished
            if run.name == name and run.seed in common
        ]
        for name in names
    }
    differences = {}
    if len(names) > 1 and common:
        differences = paired_differences(
            evaluations, baseline, resamples, progress=progress
        )
    return dict(
        baseline=baseline,
        seeds=sorted(common),
        resamples=resamples,
        num_images=Evaluation.load(finished[0].matches_file).num_images,
        rows=sorted(rows, key=lambda row: -row['AP']),
        differences=differences,
        runs=listed,
        environment=dict(
            date=datetime.now(timezone.utc).strftime('%Y-%m-%d'),
            machine=f'{platform.system()} {platform.machine()}',
            device=next(iter(costs.values()))['device'],
            python=platform.python_version(),
            torch=torch.__version__,
            mmcv=mmcv.__version__,
            mmdet=mmdet.__version__,
            mmengine=mmengine.__version__,
            fused_operators=library.is_available(
                'cuda' if torch.cuda.is_available() else 'cpu'
            ),
        ),
    )


def _spread(row: dict, key: str, digits: int) -> str:
    """'mean ± standard deviation', without the latter for one seed."""
    if row[key] is None:
        return '-'
    text = f'{row[key]:.{digits}f}'
    if row[f'{key}_std'] is not None:
        text += f' ± {row[f"{key}_std"]:.{digits}f}'
    return text


def _giga(flops: int | None) -> str:
    return '-' if flops is None else f'{flops / 1e9:.2f}'


def accuracy_table(summary: dict) -> list[list[str]]:
    """Header and lines: accuracy, size and training time of every upsampler."""
    table = [
        ['upsampler', 'seeds', *METRICS, 'upsampler params', 'all params', 's/iter']
        + ['training s', 'published AP']
    ]
    for row in summary['rows']:
        published = row['published_ap']
        table.append(
            [
                row['name'],
                str(len(row['seeds'])),
                *(_spread(row, name, 3) for name in METRICS),
                f'{row["upsampler_parameters"]:,}',
                f'{row["parameters"]:,}',
                f'{row["seconds_per_iteration"]:.2f}',
                f'{row["training_seconds"]:.0f}',
                '' if published is None else f'{published:.1f} ({row["published_by"]})',
            ]
        )
    return table


def cost_table(summary: dict) -> list[list[str]]:
    """Header and lines: FLOPs, latency and memory of every upsampler."""
    table = [
        ['upsampler', 'upsamplers GFLOPs', 'detector GFLOPs', 'neck ms', 'neck MB']
    ]
    for row in summary['rows']:
        table.append(
            [
                row['name'],
                _giga(row['upsampler_flops']),
                _giga(row['flops']),
                f'{row["neck_ms"]:.1f}',
                f'{row["neck_mb"]:.1f}',
            ]
        )
    return table


def difference_table(summary: dict) -> list[list[str]]:
    """Header and lines: differences to the baseline, with their intervals."""
    table = [
        ['upsampler', 'metric', f'minus {summary["baseline"]}', '95 % interval', 'real']
        + ['each seed']
    ]
    verdicts = {True: 'yes', False: 'no', None: 'one seed'}
    for name, metrics in summary['differences'].items():
        for metric, found in metrics.items():
            table.append(
                [
                    name,
                    metric,
                    f'{found["difference"]:+.3f}',
                    f'{found["low"]:+.3f} to {found["high"]:+.3f}',
                    verdicts[found['real']],
                    ', '.join(f'{value:+.3f}' for value in found['seeds']),
                ]
            )
    return table


def notes(summary: dict) -> list[str]:
    """What a reader of the tables has to know, a sentence or two each."""
    environment, row = summary['environment'], summary['rows'][0]
    height, width = row['image_size']
    found = [
        f'AP of pycocotools as a fraction, mean ± standard deviation over the seeds, '
        f'{summary["num_images"]} test images.',
        f'FLOPs of one image of {height} x {width}, 2 a multiply-add; neck: inference '
        f'on {environment["device"]}, batch 1, median, and the most memory that its '
        f'forward holds at once.',
        PUBLISHED_NOTE,
        f'{environment["date"]}, {environment["machine"]}, Python '
        f'{environment["python"]}, torch {environment["torch"]}, mmcv '
        f'{environment["mmcv"]}, mmdet {environment["mmdet"]}, mmengine '
        f'{environment["mmengine"]}.',
    ]
    if summary['differences']:
        found.insert(
            1,
            f'Differences: mean over seeds '
            f'{", ".join(map(str, summary["seeds"]))}; interval from '
            f'{summary["resamples"]} paired resamples of the test images, which says '
            f'what other images would change; what another seed would change shows in '
            f'the last column. Real: the interval leaves out 0 and every seed lies on '
            f'the same side of it; one seed cannot tell.',
        )
    return found


def save(summary: dict, work_dir: str | Path) -> None:
    """Write comparison.json, .csv and .md.

    Args:
        summary (dict): What :func:`summarise` returned.
        work_dir (str | Path): Folder, which exists.
    """
    work_dir = Path(work_dir)
    write(work_dir / 'comparison.json', json.dumps(summary, indent=2))
    columns = [key for key in summary['rows'][0] if key != 'image_size']
    lines = io.StringIO(newline='')
    writer = csv.DictWriter(lines, columns, extrasaction='ignore')
    writer.writeheader()
    for row in summary['rows']:
        writer.writerow({**row, 'seeds': ' '.join(map(str, row['seeds']))})
    write(work_dir / 'comparison.csv', lines.getvalue())
    parts = []
    for table, texts in (
        (accuracy_table(summary), 1),
        (cost_table(summary), 1),
        (difference_table(summary), 2),
    ):
        head, *body = table
        if body:
            parts.append(to_markdown(head, body, texts))
    write(work_dir / 'comparison.md', '\n\n'.join(parts + notes(summary)) + '\n')
