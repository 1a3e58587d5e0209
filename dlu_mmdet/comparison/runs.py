"""A run of a comparison: one config, upsampler and seed, with its own folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from ..engine import latest_checkpoint
from ..evaluation.average_precision import KINDS_OF_AP, METRICS
from ..utils.files import atomic_write, read_json

#: Package of the commands that train and test a run.
COMMANDS = 'dlu_mmdet.cli'
#: The file system has no locks: NFS without lockd, some of clusters.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
# for a result.json that is damaged
_REMEDY = (
    'copy it again, or remove it and give the command of its comparison with '
    '--report-only, which makes it from predictions.pkl'
)


def score_name(metric: str, name: str) -> str:
    """The key of a score in ``result.json``: ``AP50``, ``mask_AP50`` and so on."""
    return KINDS_OF_AP[metric].replace(' ', '_').replace('AP', name)


@dataclass(frozen=True)
class Divergence:
    """Where a training diverged.

    Attributes:
        iteration (int): The iteration, from 1.
        reason (str): What was not finite.
    """

    iteration: int
    reason: str


@dataclass(frozen=True)
class RunResult:
    """The ``result.json`` of a run.

    Attributes:
        name (str): What a comparison calls the run.
        upsampler (str): Name of the upsampler.
        seed (int): Seed of the training.
        config (str): The config, as the user named it.
        upsample_cfg (dict): The upsampler's config.
        loss (list): ``[iteration, loss]`` pairs; a loss that is not finite is None.
        validation (list): ``[epoch, AP]`` pairs.
        scores (dict): Metrics by name, fractions; None without an object.
        classes (dict): Scores of each class.
        images (dict): Number of images with objects behind each metric.
        training_seconds (float, optional): Time of the training.
        seconds_per_iteration (float, optional): Median over iterations.
        inputs (dict, optional): What the run read, a
            :func:`~dlu_mmdet.comparison.inputs.fingerprint`.
        diverged (Divergence, optional): None for a finished run.
        content (Mapping): All that the file holds.
    """

    name: str
    upsampler: str
    seed: int
    config: str
    upsample_cfg: dict
    loss: list
    validation: list
    scores: dict[str, float | None]
    classes: dict[str, dict[str, float | None]]
    images: dict[str, int]
    training_seconds: float | None
    seconds_per_iteration: float | None
    inputs: dict[str, str] | None
    diverged: Divergence | None
    content: Mapping

    @classmethod
    def from_json(cls, content: Mapping) -> RunResult:
        """Read the parsed file.

        Raises:
            ValueError: If it is no result of a run.
        """
        try:
            return cls._from_json(content)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f'not the result of a run: {type(error).__name__} {error}'
            ) from error

    @classmethod
    def _from_json(cls, content: Mapping) -> RunResult:
        return cls(
            name=content['upsampler'],
            upsampler=content['upsampler'],
            seed=content['seed'],
            config=content.get('config', ''),
            upsample_cfg=content.get('upsample_cfg', {}),
            loss=content.get('loss', []),
            validation=content.get('validation', []),
            scores={key: content[key] for key in METRICS if key in content},
            classes=content.get('classes', {}),
            images={
                key: count['images']
                for key, count in content.get('counts', {}).items()
                if count
            },
            training_seconds=content.get('training_seconds'),
            seconds_per_iteration=content.get('seconds_per_iteration'),
            inputs=content.get('inputs'),
            diverged=_divergence(content),
            content=content,
        )

    def to_json(self) -> dict:
        """The file's content with the name, as ``comparison.json`` lists it."""
        return dict(self.content, name=self.name)


def _divergence(content: Mapping) -> Divergence | None:
    """Where a run diverged; None if it did not."""
    if 'diverged' in content:
        return Divergence(**content['diverged'])
    # earlier versions went on with such a run, to an AP of 0
    step, loss = (content.get('loss') or [(0, 0.0)])[-1]
    if content.get('AP') or (loss is not None and math.isfinite(loss)):
        return None
    return Divergence(step, 'the loss is not finite')


@dataclass(frozen=True)
class Run:
    """One config, trained and tested with one seed.

    Args:
        name (str): Name of the config in the comparison.
        source (str): The config file or name, as the user gave it.
        stem (str): Stem of its file names.
        cfg (Config): The complete config, with the seed and all options.
        seed (int): Seed of weights and data order.
        work_dir (Path): Folder of this run.
    """

    name: str
    source: str
    stem: str
    cfg: Config
    seed: int
    work_dir: Path

    @property
    def config(self) -> Path:
        """File of the complete config, next to the work directory.

        Inside, mmengine writes its own dump under the same name.
        """
        return self.work_dir.with_suffix('.py')

    @property
    def result_file(self) -> Path:
        """The result; written last, so a run that has it is over."""
        return self.work_dir / 'result.json'

    @property
    def matches_file(self) -> Path:
        """File of the matched detections, see
        :class:`~dlu_mmdet.evaluation.average_precision.Evaluation`."""
        return self.work_dir / 'matches.npz'

    def matches_of(self, metric: str) -> Path:
        """The same in a metric of
        :data:`~dlu_mmdet.evaluation.average_precision.KINDS_OF_AP`."""
        if metric == 'bbox':
            return self.matches_file
        return self.work_dir / f'matches.{metric}.npz'

    @property
    def predictions(self) -> Path:
        """Detections of the last checkpoint, from ``dlu_mmdet test --out``."""
        return self.work_dir / 'predictions.pkl'

    @property
    def checkpoint(self) -> Path | None:
        """The last complete checkpoint, if any."""
        return latest_checkpoint(self.work_dir)

    @property
    def result(self) -> RunResult | None:
        """The content of the result file, if any."""
        if not self.result_file.exists():
            return None
        keys = 'config', 'upsampler', 'seed'
        content = read_json(self.result_file, keys, _REMEDY)
        try:
            found = RunResult.from_json(content)
        except ValueError as error:
            raise ValueError(
                f'{self.result_file} is damaged ({error}); {_REMEDY}'
            ) from error
        if not found.diverged:
            read_json(self.result_file, ('loss', 'validation', *METRICS), _REMEDY)
        return found

    @property
    def existing_result(self) -> RunResult:
        """The content of the result file.

        Raises:
            FileNotFoundError: If the file does not exist.
        """
        if (result := self.result) is None:
            raise FileNotFoundError(
                f'{self.result_file} does not exist; give the command of its '
                f'comparison again, which finishes the run'
            )
        return result

    @property
    def state(self) -> str:
        """'finished', 'diverged', 'half-finished' or 'not started'."""
        if (result := self.result) is not None:
            return 'diverged' if result.diverged else 'finished'
        return 'half-finished' if self.checkpoint else 'not started'

    @property
    def is_over(self) -> bool:
        """Whether the run is finished or has diverged."""
        return self.result_file.exists()

    @property
    def inputs(self) -> dict[str, str] | None:
        """The :func:`fingerprint` of the files it was trained and tested on.

        None for a run without a checkpoint, or of an earlier version.
        """
        if (result := self.result) is not None:
            return result.inputs
        file = self.work_dir / 'inputs.json'
        begun = self.predictions.exists() or self.checkpoint
        if not (file.exists() and begun):
            return None
        return read_json(file, (), 'remove it, and the data are hashed anew')


def trained_models(work_dir: str | os.PathLike) -> list[tuple[str, str]]:
    """The detectors of a comparison, as ``visualize`` and ``explain`` take them.

    Args:
        work_dir (str | PathLike): Folder of the comparison.

    Returns:
        list[tuple[str, str]]: Config and last checkpoint of every run that was trained
        and tested and did not diverge, in the order of their names.

    Raises:
        ValueError: If there is none.
    """
    models = []
    for file in sorted(Path(work_dir).glob('*/seed*/result.json')):
        folder = file.parent
        checkpoint = latest_checkpoint(folder)
        if checkpoint and not _divergence(read_json(file, (), _REMEDY)):
            models.append((str(folder.with_suffix('.py')), str(checkpoint)))
    if not models:
        raise ValueError(f'{work_dir} has no finished run; finish its comparison first')
    return models


@dataclass(frozen=True)
class Launch:
    """How the processes of a run are started.

    Args:
        launcher (str): 'none', or 'pytorch' (torchrun on one machine).
        processes (int): Number of processes, one per GPU.
        train_flags (tuple[str, ...]): Additional flags of the training command.
        commands (str, optional): Package of the modules ``train`` and ``test``.
            Defaults to :data:`COMMANDS`.
    """

    launcher: str = 'none'
    processes: int = 1
    train_flags: tuple[str, ...] = ()
    commands: str | None = None

    @property
    def training(self) -> dict[str, object]:
        """Settings that affect results; runs must agree on them."""
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
        """The command line that trains or resumes a run."""
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


#: A run in one process, without a launcher.
ALONE = Launch()


def write(path: Path, content: str | bytes) -> None:
    """Write a file atomically."""
    content = content.encode() if isinstance(content, str) else content
    with atomic_write(path) as partial:
        partial.write_bytes(content)
        # else a power cut may leave the new name with zeros
        with partial.open('rb') as file:
            os.fsync(file.fileno())


@contextlib.contextmanager
def directory_lock(work_dir: Path) -> Iterator[int]:
    """Lock a folder; yields a file descriptor that child processes inherit.

    A child that outlives its parent, say after a kill -9 of the parent, keeps the lock,
    so no other process trains in the folder at the same time.
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
