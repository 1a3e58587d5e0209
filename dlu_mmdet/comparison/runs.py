"""The runs of a comparison: planned, estimated, executed, taken up again."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config

from ..config import (
    SPLIT_FOLDER,
    check_foreign,
    config_stem,
    enable_amp,
    fit_schedule,
    merge_options,
    read_config,
    read_dumped_config,
    refuse_unreached,
    set_data,
    set_upsampler,
    upsampler_label,
)
from ..config.custom_data import say
from ..datasets.coco_io import COCO
from ..datasets.preflight import check_data, coco_evaluators, sources
from ..engine import build_runner, latest_checkpoint, read_divergence
from ..engine.hooks import count_validations
from ..evaluation.jackknife import METRICS, Evaluation
from ..necks import upsampler_cfg, upsampler_name
from ..utils.files import read_json, replacing
from ..utils.tables import to_json
from ..utils.torch_compat import load_pickle
from .inputs import DATA as COMPARED
from .inputs import check_inputs, differing, fingerprint, leaves
from .outputs import check_outputs

#: Package of the commands that train and test a run.
COMMANDS = 'dlu_mmdet.cli'
#: What mmengine logs of training and tests, from where it is in them.
PROGRESS = re.compile(r'(Epoch|Iter)\((train|val|test)\).*')
#: Nothing can be written: the disk is full, or the share of it that a user has.
FULL = (errno.ENOSPC, errno.EDQUOT)
#: The file system has no locks: NFS without lockd, some of clusters.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
#: Seconds that processes have to end before they are killed.
GRACE = 60


@dataclass(frozen=True)
class Run:
    """One config, trained and tested with one seed.

    Args:
        name (str): Of the config within the comparison.
        source (str): The config file or name as it was given.
        stem (str): What its files are called by.
        cfg (Config): Complete, with the seed and every option in it.
        seed (int): Of weights and data order.
        work_dir (Path): Folder of this run alone.
    """

    name: str
    source: str
    stem: str
    cfg: Config
    seed: int
    work_dir: Path

    @property
    def config(self) -> Path:
        """The complete config that is run, beside the work directory.

        Inside, mmengine leaves its own dump under the same file name.
        """
        return self.work_dir.with_suffix('.py')

    @property
    def result_file(self) -> Path:
        """Written last: a run that has it is finished."""
        return self.work_dir / 'result.json'

    @property
    def matches_file(self) -> Path:
        """The :class:`Evaluation` of its detections."""
        return self.work_dir / 'matches.npz'

    @property
    def predictions(self) -> Path:
        """What the test of the last checkpoint found, by ``dlu_mmdet test --out``."""
        return self.work_dir / 'predictions.pkl'

    @property
    def checkpoint(self) -> Path | None:
        """The last whole checkpoint, if there is one."""
        return latest_checkpoint(self.work_dir)

    @property
    def result(self) -> dict | None:
        """What its result file holds, if there is one."""
        if not self.result_file.exists():
            return None
        remedy = (
            'copy it again, or remove it and give the command of its comparison with '
            '--report-only, which makes it from predictions.pkl'
        )
        found = read_json(self.result_file, ('config', 'upsampler', 'seed'), remedy)
        if not divergence(found):
            read_json(self.result_file, ('loss', 'validation', *METRICS), remedy)
        return found

    @property
    def state(self) -> str:
        """'finished', 'diverged', 'half-finished' or 'not started'."""
        if (result := self.result) is not None:
            return 'diverged' if divergence(result) else 'finished'
        return 'half-finished' if self.checkpoint else 'not started'

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do: it is finished, or it diverged."""
        return self.result_file.exists()

    @property
    def inputs(self) -> dict[str, str] | None:
        """What it was trained and tested on, a :func:`fingerprint`.

        None for a run that has nothing to go on from, or is of an earlier version.
        """
        if (result := self.result) is not None:
            return result.get('inputs')
        file = self.work_dir / 'inputs.json'
        begun = self.predictions.exists() or self.checkpoint
        if not (file.exists() and begun):
            return None
        return read_json(file, (), 'remove it, and the data are hashed anew')


def divergence(result: Mapping) -> dict | None:
    """Where a run diverged.

    Args:
        result (Mapping): What its ``result.json`` holds.

    Returns:
        dict | None: ``iteration`` and ``reason``, or None if it did not diverge.
    """
    if 'diverged' in result:
        return result['diverged']
    # earlier versions went on with such a run, to an AP of 0
    step, loss = (result.get('loss') or [(0, 0.0)])[-1]
    if result.get('AP') or (loss is not None and math.isfinite(loss)):
        return None
    return dict(iteration=step, reason='the loss is not finite')


@dataclass(frozen=True)
class Launch:
    """How a run's processes are started on the machine that it is on.

    Args:
        launcher (str): 'none', or 'pytorch' (torchrun on one machine).
        processes (int): Number of processes, one a GPU.
        train_flags (tuple[str, ...]): More flags for the training.
        commands (str, optional): Package of the modules ``train`` and ``test``.
            Defaults to :data:`COMMANDS`.
    """

    launcher: str = 'none'
    processes: int = 1
    train_flags: tuple[str, ...] = ()
    commands: str | None = None

    @property
    def training(self) -> dict[str, object]:
        """What of this changes the numbers: runs that differ in it do not mix."""
        alone = self.launcher == 'none'
        return dict(
            processes=1 if alone else self.processes, flags=list(self.train_flags)
        )

    def command(self, step: str, *arguments: object) -> list[str]:
        """The command line of a step, 'train' or 'test'."""
        start = [sys.executable]
        if self.launcher == 'pytorch':
            start += ['-m', 'torch.distributed.run', '--standalone']
            start += [f'--nproc_per_node={self.processes}']
        end = [] if self.launcher == 'none' else ['--launcher', self.launcher]
        start += ['-m', f'{self.commands or COMMANDS}.{step}']
        return [*start, *map(str, arguments), *end]

    def train(self, run: Run) -> list[str]:
        """The command line that trains a run, from where it is."""
        return self.command(
            'train',
            run.config,
            '--work-dir',
            run.work_dir,
            # from the start a config may name a checkpoint to begin with
            *(['--resume'] if run.checkpoint else []),
            *self.train_flags,
        )

    def test(self, run: Run) -> list[str]:
        """The command line that tests a run's last checkpoint."""
        return self.command(
            'test',
            run.config,
            run.checkpoint or run.work_dir / 'CHECKPOINT',
            '--work-dir',
            run.work_dir,
            '--out',
            run.predictions,
        )


@dataclass(frozen=True)
class Entry:
    """A config of a comparison.

    Args:
        source (str): The config file or name as it was given.
        stem (str): What its files are called by.
        upsampler (str, optional): What its neck upsamples with.
        cfg (Config): Complete.
    """

    source: str
    stem: str
    upsampler: str | None
    cfg: Config


def plan(
    configs: Sequence[str | Path],
    seeds: Sequence[int],
    work_dir: str | Path,
    options: Mapping | None = None,
    launch: Launch = Launch(),
    upsamplers: Sequence[dict | None] = (None,),
    data: Mapping | None = None,
) -> list[Run]:
    """List the runs of a comparison, seed by seed.

    Args:
        configs (Sequence[str | Path]): Config files, or names of MMDetection's, each
            once.
        seeds (Sequence[int]): Seeds, each once.
        work_dir (str | Path): Folder of the comparison. Configs, upsamplers and
            seeds may be added to the comparison that it holds.
        options (Mapping, optional): Settings to override in every config.
        launch (Launch): How they will be run.
        upsamplers (Sequence[dict | None]): What every config's neck upsamples with
            in turn, as ``upsample_cfg``; None leaves a config as it is. Defaults to
            that alone.
        data (Mapping, optional): Arguments of :func:`~dlu_mmdet.config.set_data`, to
            take a folder in the place of every config's data.

    Returns:
        list[Run]: Every config and upsampler with every seed.

    Raises:
        FileNotFoundError: If a config does not exist.
        ValueError: If a config or seed is given twice, a config has no neck, is not
            scored by COCO's box AP or names a place that all runs would write to,
            configs differ in data or evaluators, or ``work_dir`` holds another
            comparison.
    """
    _refuse_repeated(configs, 'config')
    _refuse_repeated(seeds, 'seed')
    _refuse_one_label(upsamplers)
    entries, lengths = [], []
    for config in configs:
        for upsampler in upsamplers:
            cfg = read_config(config)
            if data:
                set_data(cfg, **data)
            if upsampler:
                set_upsampler(cfg, upsampler)
            lengths.append(fit_schedule(cfg, options, launch.processes))
            # an upsampler without parameters may stand beside one that has them
            merge_options(cfg, options or {}, reach=False)
            _check_config(config, cfg)
            check_outputs(config, cfg)
            _skip_last_validation(cfg)
            stem, name = config_stem(config), upsampler_name(cfg.model.get('neck'))
            if upsampler:
                name = upsampler_label(upsampler)
                stem += f'-{name}'
            entries.append(Entry(str(config), stem, name, cfg))
    for length in filter(None, dict.fromkeys(lengths)):
        say(length)
    refuse_unreached([entry.cfg for entry in entries], options or {})
    _refuse_repeated([entry.stem for entry in entries], 'config name')
    _check_comparable(entries)
    _check_work_dir(Path(work_dir), [e.stem for e in entries], seeds, launch)

    names = _names({entry.stem: entry.upsampler for entry in entries})
    runs = []
    for seed in seeds:
        for entry in entries:
            cfg = Config(entry.cfg.to_dict())
            cfg.randomness = dict(cfg.get('randomness', {}), seed=seed)
            run = Run(
                names[entry.stem],
                entry.source,
                entry.stem,
                cfg,
                seed,
                Path(work_dir, entry.stem, f'seed{seed}'),
            )
            written = run.config
            if written.exists() and written.read_bytes() != cfg.pretty_text.encode():
                raise ValueError(
                    f'{run.work_dir} belongs to another version of {entry.source}, or '
                    f'{written} is damaged; remove both, or name another --work-dir'
                )
            runs.append(run)
    return runs


def join(folders: Sequence[str | Path], trust: bool = False) -> list[Run]:
    """List the finished runs of several comparisons, as if they were one.

    Their files are read as data, and nothing in them is run or imported.

    Args:
        folders (Sequence[str | Path]): Of comparisons, from wherever they ran.
        trust (bool): Whether their configs may run, as any config does, for what they
            import. Defaults to False.

    Returns:
        list[Run]: The runs that have a result, also those that diverged, seed by
        seed.

    Raises:
        FileNotFoundError: If a folder holds no comparison or no finished run.
        ValueError: If the comparisons differ in data, evaluators or flags, have the
            same config with other settings, or hold a run twice; if a file is damaged,
            or a config that is not trusted could run code.
    """
    _refuse_repeated(folders, '--join')
    plans = {Path(folder): _read_plan(Path(folder)) for folder in folders}
    (first, noted), *others = plans.items()
    for folder, own in others:
        for key in ('training', 'options'):
            # comparisons of an earlier version did not note their options
            if key in noted and key in own and noted[key] != own[key]:
                raise ValueError(
                    f'{first} and {folder} were run with other flags, {key} '
                    f'{noted[key]} and {own[key]}, so they cannot be joined; join '
                    f'comparisons of the same flags'
                )
    runs: dict[tuple[int, str], Run] = {}
    known: dict[str, Entry] = {}
    for folder, own in plans.items():
        found = list(_read_finished(folder, own, trust))
        if not found:
            raise FileNotFoundError(
                f'{folder} holds no finished run; finish its comparison first'
            )
        for run in found:
            entry = Entry(str(run.config), run.stem, run.name, run.cfg)
            if (run.seed, run.stem) in runs:
                raise ValueError(
                    f'{runs[run.seed, run.stem].work_dir} and {run.work_dir} are one '
                    f'run, so it would count twice; join folders without common runs'
                )
            _check_same(known.setdefault(run.stem, entry), entry)
            runs[run.seed, run.stem] = run
    _check_comparable(list(known.values()))
    names = _names({stem: entry.upsampler for stem, entry in known.items()})
    # sorting keeps the order of equal seeds
    listed = sorted(runs.values(), key=lambda run: run.seed)
    return [replace(run, name=names[run.stem]) for run in listed]


def _read_plan(folder: Path) -> dict:
    """What :func:`begin` noted."""
    file = folder / 'plan.json'
    if not file.exists():
        raise FileNotFoundError(
            f'{folder} holds no comparison (no plan.json); name a --work-dir of '
            f'dlu_mmdet compare'
        )
    there = [p.with_suffix('') for p in folder.glob('*/seed*.py')]
    seeds = {p.name[4:] for p in there}
    content = dict(
        configs=sorted({p.parent.name for p in there}),
        seeds=sorted(int(seed) for seed in seeds if seed.isdecimal()),
    )
    remedy = f'for what is in the folder write {json.dumps(content)} into it'
    plan = read_json(file, ('configs', 'seeds'), remedy)
    for key, kind in (('configs', str), ('seeds', int)):
        values = plan[key]
        if not isinstance(values, list) or not all(isinstance(v, kind) for v in values):
            raise ValueError(f'{file} is damaged ({key} {values!r}); {remedy}')
    return plan


def _read_finished(folder: Path, plan: Mapping, trust: bool) -> Iterator[Run]:
    """The finished runs of a comparison, from its folder alone."""
    for seed in plan['seeds']:
        for stem in plan['configs']:
            work_dir = folder / stem / f'seed{seed}'
            written = work_dir.with_suffix('.py')
            if (work_dir / 'result.json').exists():
                cfg = read_config(written) if trust else _read_unrun(written)
                run = Run(stem, str(written), stem, cfg, seed, work_dir)
                yield replace(run, name=run.result['upsampler'])


def _read_unrun(written: Path) -> Config:
    """Read a config without running it, of which a report can build the model."""
    try:
        cfg = read_dumped_config(written)
        dataset = cfg.test_dataloader.dataset
        check_foreign(cfg.model, 'model', written)
        check_foreign(dataset, 'test_dataloader.dataset', written, built=False)
    except (AttributeError, ValueError) as error:
        raise ValueError(f'{error}; where it is your own, --trust runs it') from error
    return cfg


def _names(upsamplers: Mapping[str, str | None]) -> dict[str, str]:
    """What configs are called: by their upsampler where no other config has it."""
    names = list(upsamplers.values())
    return {
        stem: name if name is not None and names.count(name) == 1 else stem
        for stem, name in upsamplers.items()
    }


def _refuse_repeated(values: Sequence, what: str) -> None:
    texts = [str(value) for value in values]
    repeated = sorted({text for text in texts if texts.count(text) > 1})
    if repeated:
        raise ValueError(f'{what} {", ".join(repeated)} is given twice; give it once')


def _refuse_one_label(upsamplers: Sequence[dict | None]) -> None:
    """Refuse two upsamplers that a comparison would call the same, as of two files."""
    labels: dict[str, dict] = {}
    for each in filter(None, upsamplers):
        other = labels.setdefault(upsampler_label(each), each)
        if other != each:
            raise ValueError(
                f'the upsamplers {other["type"]} and {each["type"]} would both be '
                f'called {upsampler_label(each)}, by which runs are told apart; rename '
                f'one of the classes'
            )


def _check_config(config: str | Path, cfg: Config) -> None:
    """Refuse before training what could not be compared after it."""
    if not cfg.model.get('neck'):
        raise ValueError(
            f'{config} has no model.neck, so there is no upsampler to compare'
        )
    evaluators = cfg.get('test_evaluator')
    if _box_evaluator(cfg) is None:
        raise ValueError(
            f'{config}: test_evaluator must be a CocoMetric with an ann_file and the '
            f"metric 'bbox', got {evaluators}"
        )
    if not _classes(cfg):
        raise ValueError(
            f'{config}: test_dataloader.dataset must be a data set of this machine '
            f'with classes, got the type {cfg.test_dataloader.dataset.get("type")}'
        )


def _box_evaluator(cfg: Config) -> Mapping | None:
    """The first of a config's test evaluators that scores boxes of a file."""
    for _, evaluator in coco_evaluators(cfg, 'test'):
        metrics = evaluator.get('metric', 'bbox')
        metrics = [metrics] if isinstance(metrics, str) else metrics
        if evaluator.get('ann_file') and 'bbox' in metrics:
            return evaluator
    return None


def _classes(cfg: Config) -> Sequence[str]:
    """Class names of the test set, by label."""
    found = sources(cfg.test_dataloader.dataset, 'test_dataloader.dataset')
    return next((source.classes for source in found), ())


def _skip_last_validation(cfg: Config) -> None:
    """Leave out a validation that the test after training repeats."""
    loop = cfg.train_cfg
    last = loop.get('max_epochs') or loop.get('max_iters')
    if last and loop.get('val_interval', 1) >= last:
        loop.val_begin = last + 1


def _check_comparable(entries: Sequence[Entry]) -> None:
    """Refuse configs with different data or evaluators."""
    first = leaves(entries[0].cfg, COMPARED)
    for entry in entries[1:]:
        if lines := differing(first, leaves(entry.cfg, COMPARED)):
            raise ValueError(
                f'{entries[0].source} and {entry.source} differ in data or '
                f'evaluators, so their AP cannot be compared; compare configs of the '
                f'same data. They differ in\n{lines}'
            )


def _check_same(first: Entry, second: Entry) -> None:
    """Refuse two configs of one name that differ in more than the seed."""
    settings = []
    for cfg in (first.cfg, second.cfg):
        settings.append(leaves(cfg, sorted({*first.cfg, *second.cfg})))
        settings[-1].pop('randomness.seed', None)
    if lines := differing(*settings):
        raise ValueError(
            f'{first.source} and {second.source} have one name and other settings; '
            f'join comparisons of the same config. They differ in\n{lines}'
        )


def _check_work_dir(
    work_dir: Path, stems: Sequence[str], seeds: Sequence[int], launch: Launch
) -> None:
    """Refuse a folder of another comparison."""
    file = work_dir / 'plan.json'
    own = dict(configs=list(stems), seeds=list(seeds))
    if file.exists():
        noted = _read_plan(work_dir)
        training = noted.pop('training', launch.training)
        noted.pop('options', None)  # a run that has begun checks its whole config
        if training != launch.training:
            raise ValueError(
                f'{work_dir} holds a comparison trained with {training}, and this one '
                f'has {launch.training}; give the same flags and --processes, or '
                f'another --work-dir'
            )
        for key, values in noted.items():
            left = [str(value) for value in values if value not in own[key]]
            if left:
                raise ValueError(
                    f'{work_dir} holds a comparison with {key} {", ".join(left)} '
                    f'too; name them as well, or another --work-dir'
                )
    elif work_dir.exists() and any(p.name != SPLIT_FOLDER for p in work_dir.iterdir()):
        raise ValueError(
            f'{work_dir} is not empty and holds no comparison; name another --work-dir'
        )


def begin(
    work_dir: str | Path,
    runs: Sequence[Run],
    launch: Launch = Launch(),
    options: Mapping | None = None,
) -> None:
    """Note in its folder which configs and seeds a comparison has, and how it runs.

    Args:
        work_dir (str | Path): Folder of the comparison; made if it is not there.
        runs (Sequence[Run]): What :func:`plan` listed.
        launch (Launch): How they will be run.
        options (Mapping, optional): The settings that were overridden.

    Raises:
        ValueError: If its file system has no locks.
    """
    noted = dict(
        configs=list(dict.fromkeys(run.stem for run in runs)),
        seeds=list(dict.fromkeys(run.seed for run in runs)),
        training=launch.training,
        options={key: str(value) for key, value in (options or {}).items()},
    )
    Path(work_dir).mkdir(parents=True, exist_ok=True)
    with held(Path(work_dir)):
        write(Path(work_dir, 'plan.json'), to_json(noted))


def write(path: Path, content: str | bytes) -> None:
    """Write a file that is whole or not there at all."""
    content = content.encode() if isinstance(content, str) else content
    with replacing(path) as partial:
        partial.write_bytes(content)
        # else a power cut may leave the new name with zeros
        with partial.open('rb') as file:
            os.fsync(file.fileno())


def _started_at(pid: int) -> str:
    """When a process was started, which tells it from a later one of its number."""
    with contextlib.suppress(OSError):
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]
    return ''


def _family(pid: int) -> dict[int, str]:
    """A process and all that it has started, with the time of each."""
    found = [pid]
    for each in found:
        for file in Path(f'/proc/{each}/task').glob('*/children'):
            with contextlib.suppress(OSError):
                found += map(int, file.read_text().split())
    return {each: _started_at(each) for each in found}


class Children:
    """The processes that runs have started, so that another thread can end them.

    With those that they have started: torchrun's, and workers of data loaders.
    """

    def __init__(self) -> None:
        # a handler of signals may call these in the middle of them
        self._lock = threading.RLock()
        self._started: list[subprocess.Popen] = []
        self._known: dict[int, str] = {}
        self._ended = False

    def start(self, command: list[str], **how: object) -> subprocess.Popen:
        """Start a process, as :class:`subprocess.Popen` does.

        Raises:
            RuntimeError: If all were ended before.
        """
        with self._lock:
            if self._ended:
                raise RuntimeError(f'{shlex.join(command)} is not started any more')
            self._started.append(subprocess.Popen(command, **how))
            return self._started[-1]

    def end(self) -> None:
        """Terminate those that still run, and start no more.

        What is still there after :data:`GRACE` seconds is killed.
        """
        self._send(signal.SIGTERM)
        if self._known:
            timer = threading.Timer(GRACE, self.kill)
            timer.daemon = True
            timer.start()

    def kill(self) -> None:
        """Kill those that still run, and start no more."""
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        with self._lock:
            self._ended = True
            for process in self._started:
                if process.poll() is None:
                    self._known.update(_family(process.pid))
            for pid, started in self._known.items():
                if started == _started_at(pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)


@contextlib.contextmanager
def held(work_dir: Path) -> Iterator[int]:
    """Keep others off a folder; yields what passes the hold on to a child.

    A child that outlives its parent, say after a kill -9 of the latter alone,
    still holds the folder: nobody trains into it at the same time.
    """
    with (work_dir / 'lock').open('w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(
                f'another process works in {work_dir}; wait for it or end it, then '
                f'give the same command'
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            raise ValueError(
                f'{work_dir} is on a file system without locks ({error.strerror}), so '
                f'that two commands could train into one folder; name a --work-dir on '
                f'another, or mount it with locks'
            ) from error
        yield lock.fileno()


def _follow(
    command: list[str],
    log: Path,
    lock: int,
    environment: Mapping[str, str] | None = None,
    children: Children | None = None,
) -> Iterator[str]:
    """Run a command, keep its output in a log, yield the lines of progress."""
    with log.open('w', encoding='utf-8') as file:
        process = (children or Children()).start(
            command,
            env={**os.environ, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding='utf-8',
            errors='replace',
            pass_fds=[lock],
        )
        try:
            for line in process.stdout:
                file.write(line)
                file.flush()
                if found := PROGRESS.search(line):
                    yield ' '.join(found.group().split())
            process.wait()
        finally:
            # stopped from outside, or the log cannot be written
            if process.poll() is None:
                for pid in _family(process.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGTERM)
                process.wait()
            process.stdout.close()
    if process.returncode:
        tail = ''.join(log.read_text(encoding='utf-8').splitlines(keepends=True)[-20:])
        for number in FULL:
            if os.strerror(number) in tail:
                raise OSError(number, f'the end of {log}:\n{tail}')
        raise RuntimeError(
            f'{shlex.join(command)} failed with status '
            f'{process.returncode}; the end of {log}:\n{tail}'
        )


def execute(
    run: Run,
    launch: Launch = Launch(),
    environment: Mapping[str, str] | None = None,
    children: Children | None = None,
) -> Iterator[str]:
    """Train and test one run, in processes of their own.

    A finished run, or one that diverged, is left as it is, a half-finished one goes on
    from its last checkpoint.

    Args:
        run (Run): The run.
        launch (Launch): How its processes are started.
        environment (Mapping[str, str], optional): What their environment has in
            addition to this process's.
        children (Children, optional): Where they can be ended from another thread.

    Yields:
        str: Lines of progress.

    Raises:
        OSError: If there is no space left.
        RuntimeError: If a process fails, with the end of its log, or another one
            works in the folder.
        ValueError: If the file system of the folder has no locks, or files to train
            or test on have changed since this run or another one began.
    """
    if run.is_over:
        yield over(run)
        return
    run.work_dir.mkdir(parents=True, exist_ok=True)
    with held(run.work_dir) as lock:
        write(run.config, run.cfg.pretty_text)
        inputs = _note_inputs(run)
        if run.checkpoint:
            yield f'goes on from {run.checkpoint}'
        for step in ('train', 'test'):
            # of a comparison that was killed before it could say so
            if read_divergence(run.work_dir):
                break
            command = getattr(launch, step)(run)
            log = run.work_dir / f'{step}.log'
            try:
                yield from _follow(command, log, lock, environment, children)
            except RuntimeError:
                if not read_divergence(run.work_dir):
                    raise
        if (now := fingerprint(run.cfg)) != inputs:
            # its checkpoints are of both, so that it cannot go on from them
            write(run.work_dir / 'inputs.json', to_json(now))
            raise ValueError(
                f'files were changed while {run.work_dir} was trained and tested on '
                f'them; remove it, and the same command begins it anew. They differ '
                f'in\n{differing(inputs, now)}'
            )
        write(run.result_file, to_json({**_collect(run), 'inputs': inputs}))
    if run.state == 'diverged':
        yield over(run)


def over(run: Run) -> str:
    """How a run ended that is over, in a sentence."""
    if found := divergence(run.result):
        return (
            f'diverged at iteration {found["iteration"]}, and is left out: '
            f'{found["reason"]}; remove {run.work_dir} to train it again'
        )
    return f'finished already: {run.result_file}'


def _note_inputs(run: Run) -> dict[str, str]:
    """Keep what a run is going to read, unless others of its comparison read else."""
    comparison = run.work_dir.parents[1]
    others = [
        replace(run, stem=folder.parent.name, work_dir=folder)
        for folder in sorted(comparison.glob('*/seed*/'))
    ]
    found = fingerprint(run.cfg)
    check_inputs(others, {run.stem: found})
    write(run.work_dir / 'inputs.json', to_json(found))
    return found


def evaluate_anew(run: Run) -> bool:
    """Evaluate a run that was tested and lacks its result or its matches.

    Args:
        run (Run): The run; nothing is trained, and no GPU is needed.

    Returns:
        bool: Whether there was anything to do.

    Raises:
        RuntimeError: If the predictions are damaged or could run code, the annotations
            have changed, or another process works in the folder.
    """
    whole = run.result_file.exists() and run.matches_file.exists()
    if whole or not run.predictions.exists():
        return False
    with held(run.work_dir):
        inputs = run.inputs
        now = fingerprint(run.cfg, ['test_evaluator'])
        then = {key: (inputs or {}).get(key, value) for key, value in now.items()}
        if lines := differing(then, now):
            raise RuntimeError(
                f'{run.predictions} was made for other annotations than those of '
                f'today; put the former back. They differ in\n{lines}'
            )
        kept = {} if inputs is None else dict(inputs=inputs)
        write(run.result_file, to_json({**_collect(run), **kept}))
    return True


def _scalars(run: Run) -> Iterator[dict]:
    """What mmengine logged while training and validating, over all starts."""
    for file in sorted(run.work_dir.glob('*/vis_data/scalars.json')):
        text = file.read_text(encoding='utf-8', errors='replace')
        for line in text.splitlines():
            # the line that a killed process was writing is cut off
            with contextlib.suppress(json.JSONDecodeError):
                entry = json.loads(line)
                if isinstance(entry, dict):
                    yield entry


def _mask_metrics(run: Run) -> dict[str, float | None]:
    """What the test found for masks: ``mask_AP`` and so on; empty without masks."""
    keys = [f'coco/segm_mAP{end}' for end in ('', '_50', '_75', '_s', '_m', '_l')]
    metrics = {}
    for file in sorted(run.work_dir.glob('*/*.json')):
        tested = read_json(file, (), 'remove it, the file of a test')
        if keys[0] in tested:
            values = [_ap(tested[key]) for key in keys]
            metrics = {f'mask_{n}': v for n, v in zip(METRICS, values)}
    return metrics


def _read_predictions(path: Path, num_classes: int) -> list[dict]:
    """What ``dlu_mmdet test --out`` wrote, as data: no code of the file runs."""
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


def _ap(value: float) -> float | None:
    """An AP of pycocotools, which is -1 where there is no object to find."""
    return value if value >= 0 else None


def _collect(run: Run) -> dict:
    """Gather what a run's processes left behind."""
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
    samples = _read_predictions(run.predictions, len(_classes(run.cfg)))
    evaluation = evaluate(run.cfg, samples)
    buffer = io.BytesIO()
    evaluation.save(buffer)
    write(run.matches_file, buffer.getvalue())
    return dict(
        found,
        **evaluation.score(),
        counts=evaluation.counts(),
        **_mask_metrics(run),
        classes={
            name: evaluation.category(k).score()
            for k, name in enumerate(_classes(run.cfg))
        },
        # an entry is the mean since the one before
        training_seconds=float(np.dot(times, np.diff([0, *steps]))) if times else None,
        # the median: the first iterations of a process warm up
        seconds_per_iteration=float(np.median(times)) if times else None,
    )


def evaluate(cfg: Config, samples: Sequence[Mapping]) -> Evaluation:
    """Match detections with pycocotools.

    Args:
        cfg (Config): Complete; its test evaluator names the annotations.
        samples (Sequence[Mapping]): What ``dlu_mmdet test --out`` writes: ``img_id``
            and ``pred_instances`` with ``bboxes`` (D, 4) x1 y1 x2 y2 in pixels,
            ``scores`` (D,) and ``labels`` (D,).

    Returns:
        Evaluation: On all images of the annotations.
    """
    coco = COCO(_box_evaluator(cfg)['ann_file'])
    category_ids = coco.get_cat_ids(_classes(cfg))
    detections = []
    for sample in samples:
        found = sample['pred_instances']
        boxes = found['bboxes'].numpy().astype(float)
        boxes[:, 2:] -= boxes[:, :2]
        detections += [
            dict(
                image_id=sample['img_id'],
                category_id=category_ids[label],
                bbox=box,
                score=score,
            )
            for box, score, label in zip(
                boxes.tolist(), found['scores'].tolist(), found['labels'].tolist()
            )
        ]
    return Evaluation.from_coco(coco, detections, category_ids)


def estimate(run: Run, amp: bool = False, iterations: int = 5) -> dict[str, float]:
    """Time a few iterations of a run on this machine, with its own data.

    Args:
        run (Run): The run; nothing of it is kept.
        amp (bool): Train in automatic mixed precision. Defaults to False.
        iterations (int): Timed iterations of training and batches of testing,
            each after two that warm up.

    Returns:
        dict: ``train`` and ``test``, seconds of the whole run, without
        start-up and without COCO's evaluation.

    Raises:
        FileNotFoundError: If data are missing.
    """
    with tempfile.TemporaryDirectory() as folder:
        cfg = Config(run.cfg.to_dict())
        cfg.update(work_dir=folder, launcher='none', log_level='ERROR')
        # mmengine hands out logger and visualizer by name, folders and all
        cfg.experiment_name = f'estimate-{time.monotonic_ns()}'
        cfg.pop('visualizer', None)
        if amp:
            enable_amp(cfg)
        runner = build_runner(cfg, 'train')
        check_data(cfg, ('test',), hold=False)
        loop, loader = runner.train_loop, runner.train_loop.dataloader
        runner.optim_wrapper = runner.build_optim_wrapper(cfg.optim_wrapper)

        def train(data: dict) -> None:
            # heads and batch augmentations read the message hub, which a hook fills
            runner.call_hook('before_train_iter', batch_idx=0, data_batch=data)
            runner.model.train_step(data, optim_wrapper=runner.optim_wrapper)

        for stage in ('before_run', 'before_train', 'before_train_epoch'):
            runner.call_hook(stage)
        runner.model.train()
        step = _seconds(loader, train, iterations)
        runner.model.eval()
        tested = runner.test_loop.dataloader
        with torch.no_grad():
            batch = _seconds(tested, runner.model.test_step, iterations)
        batches = len(tested)
        if runner.val_loop is not None:
            batches += count_validations(loop) * len(runner.val_loop.dataloader)
        return dict(train=step * loop.max_iters, test=batch * batches)


def _seconds(dataloader, action, iterations: int) -> float:
    """Seconds of one step, loading included; two go before to warm up."""
    times = [time.perf_counter()]
    for data in islice(dataloader, iterations + 2):
        action(data)
        times.append(time.perf_counter())
    steps = np.diff(times)
    return float(np.mean(steps[2:] if len(steps) > 2 else steps))


def results(runs: Sequence[Run]) -> list[dict]:
    """Results of the finished runs among these."""
    # what a config is called depends on what it is compared with
    return [dict(run.result, name=run.name) for run in runs if run.state == 'finished']
