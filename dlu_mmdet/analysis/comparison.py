"""Train, test and tabulate several configs side by side."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

METRICS = dict(
    AP='bbox_mAP',
    AP50='bbox_mAP_50',
    AP75='bbox_mAP_75',
    APs='bbox_mAP_s',
    APm='bbox_mAP_m',
    APl='bbox_mAP_l',
)


@dataclass(frozen=True)
class Run:
    """One config, trained and tested with one seed.

    Args:
        config (Path): The config file.
        seed (int): Of weights and data order.
        work_dir (Path): Folder of this run alone.
    """

    config: Path
    seed: int
    work_dir: Path

    @property
    def name(self) -> str:
        """What ``upsample_cfg`` names, or the config's own name."""
        neck = Config.fromfile(self.config).model.get('neck') or {}
        return neck.get('upsample_cfg', {}).get('type', self.config.stem)

    @property
    def result_file(self) -> Path:
        return self.work_dir / 'result.json'

    def settings(self) -> str:
        """The complete config as text: what a finished result stands for."""
        return Config.fromfile(self.config).pretty_text


def plan(
    configs: Sequence[str | Path], seeds: Sequence[int], work_dir: str | Path
) -> list[Run]:
    """List the runs of a comparison.

    Args:
        configs (Sequence[str | Path]): Config files, each once.
        seeds (Sequence[int]): Seeds, each once.
        work_dir (str | Path): Folder of the comparison.

    Returns:
        list[Run]: Every config with every seed.

    Raises:
        FileNotFoundError: If a config does not exist.
        ValueError: If one is given twice, or if a finished result in
            ``work_dir`` belongs to another version of a config.
    """
    for values, what in ((configs, 'config'), (seeds, 'seed')):
        repeated = sorted({str(v) for v in values if values.count(v) > 1})
        if repeated:
            raise ValueError(
                f'{what} {", ".join(repeated)} is given twice; give it once'
            )
    runs = []
    for config in map(Path, configs):
        if not config.is_file():
            raise FileNotFoundError(
                f'config {config} does not exist; the configs are in configs/'
            )
        for seed in seeds:
            run = Run(config, seed, Path(work_dir, config.stem, f'seed{seed}'))
            started = run.work_dir / 'settings.py'
            if started.exists() and started.read_text() != run.settings():
                raise ValueError(
                    f'{run.work_dir} belongs to another version of {config}; '
                    f'remove it, or name another --work-dir'
                )
            runs.append(run)
    return runs


def _follow(command: list[str], log: Path) -> Iterator[str]:
    """Run a command, keep its output in a log, yield the lines of progress."""
    with (
        log.open('w') as file,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace',
        ) as process,
    ):
        for line in process.stdout:
            file.write(line)
            file.flush()
            found = re.search(r'((Epoch|Iter)\((train|val|test)\).*)', line)
            if found:
                yield ' '.join(found.group(1).split())
    if process.returncode:
        tail = ''.join(log.read_text().splitlines(keepends=True)[-20:])
        raise RuntimeError(
            f'{" ".join(command)} failed with status '
            f'{process.returncode}; the end of {log}:\n{tail}'
        )


def execute(run: Run, tools: Path) -> Iterator[str]:
    """Train and test one run, in processes of their own.

    A finished run is left as it is, a half-finished one goes on from its last
    checkpoint.

    Args:
        run (Run): The run.
        tools (Path): Folder of train.py and test.py.

    Yields:
        str: Lines of progress.

    Raises:
        RuntimeError: If a process fails; with the end of its log.
    """
    if run.result_file.exists():
        yield f'finished already: {run.result_file}'
        return
    run.work_dir.mkdir(parents=True, exist_ok=True)
    (run.work_dir / 'settings.py').write_text(run.settings())
    common = [
        '--work-dir',
        str(run.work_dir),
        '--cfg-options',
        f'randomness.seed={run.seed}',
    ]
    yield from _follow(
        [sys.executable, str(tools / 'train.py'), str(run.config), '--resume', *common],
        run.work_dir / 'train.log',
    )
    yield from _follow(
        [
            sys.executable,
            str(tools / 'test.py'),
            str(run.config),
            str(checkpoint_of(run)),
            '--out',
            str(run.work_dir / 'predictions.pkl'),
            *common,
        ],
        run.work_dir / 'test.log',
    )
    partial = run.result_file.with_suffix('.partial')
    partial.write_text(json.dumps(_collect(run), indent=2))
    os.replace(partial, run.result_file)


def checkpoint_of(run: Run) -> Path:
    """The last checkpoint of a run."""
    return Path((run.work_dir / 'last_checkpoint').read_text().strip())


def _scalars(run: Run) -> Iterator[dict]:
    """What mmengine logged while training, then while testing."""
    for file in sorted(run.work_dir.glob('*/vis_data/scalars.json')) + sorted(
        run.work_dir.glob('*/*.json')
    ):
        for line in file.read_text().splitlines():
            yield json.loads(line)


def _collect(run: Run) -> dict:
    times, metrics = [], {}
    for entry in _scalars(run):
        if 'loss' in entry:
            times.append(entry['time'])
        metrics.update(
            {
                k.removeprefix('coco/'): v
                for k, v in entry.items()
                if k.startswith('coco/')
            }
        )
    cfg = Config.fromfile(run.config)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    model = MODELS.build(cfg.model)
    upsamplers = getattr(model.neck, 'upsample_modules', [])
    return dict(
        name=run.name,
        config=str(run.config),
        seed=run.seed,
        metrics=metrics,
        # mmdet reports nothing where nothing was detected: an AP of 0
        **{k: metrics.get(v, 0.0) for k, v in METRICS.items()},
        upsampler_parameters=sum(p.numel() for m in upsamplers for p in m.parameters()),
        parameters=sum(p.numel() for p in model.parameters()),
        # the median: the first iterations of a process warm up
        seconds_per_iteration=float(np.median(times)),
        checkpoint=str(checkpoint_of(run)),
    )


def results(runs: Sequence[Run]) -> list[dict]:
    """Results of the finished runs among these."""
    return [
        json.loads(run.result_file.read_text())
        for run in runs
        if run.result_file.exists()
    ]


def to_markdown(rows: Sequence[dict]) -> str:
    """The table of a comparison, best first.

    Args:
        rows (Sequence[dict]): What :func:`results` returns.

    Returns:
        str: A Markdown table; AP as a fraction, parameters of the upsamplers
        and of the whole detector, seconds an iteration of training.
    """
    seeds = len({row['seed'] for row in rows}) > 1
    head = [
        'upsampler',
        *(['seed'] if seeds else []),
        *METRICS,
        'upsampler params',
        'all params',
        's/iter',
    ]
    lines = [head, ['---'] + ['--:'] * (len(head) - 1)]
    for row in sorted(rows, key=lambda r: -r['AP']):
        lines.append(
            [
                row['name'],
                *([str(row['seed'])] if seeds else []),
                *(f'{row[m]:.3f}' for m in METRICS),
                f'{row["upsampler_parameters"]:,}',
                f'{row["parameters"]:,}',
                f'{row["seconds_per_iteration"]:.2f}',
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines)]
    return '\n'.join(
        '| '
        + ' | '.join(
            c.ljust(w) if i == 0 else c.rjust(w)
            for i, (c, w) in enumerate(zip(line, widths))
        )
        + ' |'
        for line in lines
    )
