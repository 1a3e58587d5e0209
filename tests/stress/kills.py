"""kill -9 at random moments of training and of a comparison; everything goes on.

    python tests/stress/kills.py --work-dir D [--kills 50] [--seed 0] [--seconds 1500]

Half of the kills meet ``tools/train.py CONFIG --resume``, at a random time or while a
checkpoint is being written; the others ``tools/compare.py`` with three runs: the whole
process group, the comparison alone, or its child alone. After every kill the same
command is given again, until it ends; then anew in another folder, until the kills are
used up. The data are 16 made images, so the AP is near 0 and the losses say more.

What must hold, else the script ends with status 1 and the reason: no start fails but
by our kill; no start is behind the last whole checkpoint; a run with a result keeps its
bytes and its checkpoints; in the end the losses and the AP are those of a run
that nobody disturbed, up to what augmentation and sampling, which no checkpoint
holds, change.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from conftest import CONFIGS, ROOT, as_arguments, data_options, shapes_config

from dlu_mmdet.engine import latest_checkpoint

TRAINED = CONFIGS / 'shapes' / 'faster-rcnn_r18_fpn-dlu_shapes.py'
COMPARED = [shapes_config(name) for name in ('nearest', 'bilinear', 'dlu')]
EPOCHS, ITERATIONS = 4, 4
#: Of the last epoch's mean loss, relative, and of the AP, absolute; resumed runs were
#: seen to differ by 0.07 and 0.006.
LOSS_NOISE, AP_NOISE = 0.3, 0.02


class Violation(Exception):
    """Something that must hold does not."""


def require(holds: bool, reason: str) -> None:
    if not holds:
        raise Violation(reason)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--work-dir', type=Path, required=True, help='a new folder')
    parser.add_argument('--kills', type=int, default=50)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--seconds', type=float, default=1500, help='stop after these')
    return parser.parse_args()


class Kills:
    """How many kills are left, and what is said of each."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.random = random.Random(args.seed)
        self.number, self.started = 0, time.monotonic()
        self.end = self.started

    def report(self, what: str, after: float, found: str) -> None:
        self.number += 1
        print(f'kill {self.number}: {what} after {after:.1f} s; {found}', flush=True)

    @property
    def in_time(self) -> bool:
        return time.monotonic() < self.end


# ---- what is on the disk -----------------------------------------------------------


def epoch_of(folder: Path) -> int:
    """Epoch of the checkpoint that a run goes on from, 0 without one."""
    latest = latest_checkpoint(folder)
    return int(re.search(r'epoch_(\d+)', latest.name).group(1)) if latest else 0


def describe(folder: Path) -> str:
    """The state that a kill left."""
    files = [
        path.name + ('' if zipfile.is_zipfile(path) else ' truncated')
        for path in sorted(folder.glob('epoch_*.pth'))
    ]
    named = folder / 'last_checkpoint'
    if not named.exists():
        files.append('no last_checkpoint')
    elif not Path(named.read_text() or '-').is_file():
        files.append('last_checkpoint empty or dangling')
    return f'{", ".join(files)}: goes on from epoch {epoch_of(folder)}'


def losses(folder: Path) -> dict[int, float]:
    """Loss of each iteration over all starts; the last one wins."""
    found = {}
    for file in sorted(folder.glob('*/vis_data/scalars.json')):
        for line in file.read_text().splitlines():
            if line.endswith('}') and 'loss' in (entry := json.loads(line)):
                found[entry['step']] = entry['loss']
    return found


def last_loss(folder: Path) -> float:
    """Mean loss of the last epoch; every iteration must be there."""
    found = losses(folder)
    expected = list(range(1, EPOCHS * ITERATIONS + 1))
    # the log of an iteration is written before the checkpoint that contains it
    require(
        sorted(found) == expected, f'{folder} logged the iterations {sorted(found)}'
    )
    return sum(found[step] for step in expected[-ITERATIONS:]) / ITERATIONS


def check_numbers(what: str, found: tuple, undisturbed: tuple) -> None:
    (loss, ap), (own_loss, own_ap) = found, undisturbed
    print(
        f'{what}: loss {loss:.3f}, undisturbed {own_loss:.3f}; '
        f'AP {ap:.4f}, undisturbed {own_ap:.4f}',
        flush=True,
    )
    require(abs(loss / own_loss - 1) < LOSS_NOISE, f'{what}: another loss')
    require(abs(ap - own_ap) < AP_NOISE, f'{what}: another AP')


# ---- processes ---------------------------------------------------------------------


def start(log: Path, *command: object) -> subprocess.Popen:
    with log.open('w') as file:
        return subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, 'OMP_NUM_THREADS': '1'},
        )


def kill_group(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait(process: subprocess.Popen, seconds: float) -> bool:
    """Whether a process ended within a time."""
    try:
        process.wait(max(seconds, 0))
    except subprocess.TimeoutExpired:
        return False
    return True


def whole_run(log: Path, *command: object) -> str:
    process = start(log, *command)
    process.wait()
    text = log.read_text()
    require(process.returncode == 0, f'{log} ends with an error:\n{text[-3000:]}')
    return text


# ---- training ----------------------------------------------------------------------


def score(folder: Path, options: list[str]) -> tuple[float, float]:
    """Last loss and AP of a finished training."""
    checkpoint = folder / f'epoch_{EPOCHS}.pth'
    command = ['tools/test.py', TRAINED, checkpoint, '--work-dir', folder / 'test']
    text = whole_run(folder / 'test.log', *command, *options)
    return last_loss(folder), float(re.findall(r'coco/bbox_mAP: (-?[\d.]+)', text)[-1])


def wait_for_writing(process, folder: Path, rng: random.Random, seconds: float) -> bool:
    """Wait until a checkpoint or last_checkpoint is being written; False if none is."""
    before = {p: p.stat().st_mtime_ns for p in folder.glob('*') if p.is_file()}
    named, end = rng.random() < 0.3, time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        for path in folder.glob('last_checkpoint' if named else 'epoch_*.pth'):
            if path.stat().st_mtime_ns != before.get(path):
                time.sleep(0 if named else rng.uniform(0, 0.03))
                return True
    return False


def kill_training(kills: Kills, until: int, work_dir: Path, options: list[str]) -> None:
    """Train, killed again and again, until so many kills are used up."""
    begun = time.monotonic()
    plain = ['tools/train.py', TRAINED, '--work-dir']
    work_dir.mkdir(parents=True)
    whole_run(work_dir / 'undisturbed.log', *plain, work_dir / 'undisturbed', *options)
    typical = time.monotonic() - begun
    undisturbed = score(work_dir / 'undisturbed', options)
    attempt = 0
    while kills.number < until and kills.in_time:
        attempt += 1
        folder = work_dir / f'train{attempt}'
        folder.mkdir()
        command = [*plain, folder, '--resume', *options]
        starts = 0
        while True:
            starts += 1
            before, begun = epoch_of(folder), time.monotonic()
            log = work_dir / f'train{attempt}-{starts}.log'
            process = start(log, *command)
            ended, moment = False, 'training'
            if kills.number >= until or not kills.in_time:
                ended = wait(process, 300)
            elif kills.random.random() < 0.5:
                ended = wait(process, kills.random.uniform(0, 1.5 * typical))
            else:
                moment = 'training, writing'
                wait_for_writing(process, folder, kills.random, 300)
                ended = process.poll() is not None
            if not ended:
                kill_group(process)
            text = log.read_text()
            require(
                process.returncode in (0, -signal.SIGKILL),
                f'{log} ends with an error:\n{text[-3000:]}',
            )
            resumed = re.search(r'resumed epoch: (\d+)', text)
            require(
                not resumed or int(resumed.group(1)) == before,
                f'{log}: resumed another epoch than {before}',
            )
            require(not (before and 'starts anew' in text), f'{log} forgot {before}')
            require(epoch_of(folder) >= before, f'{folder} fell back behind {before}')
            if ended:
                break
            kills.report(moment, time.monotonic() - begun, describe(folder))
        what = f'training {attempt}, {starts} starts'
        check_numbers(what, score(folder, options), undisturbed)


# ---- comparison --------------------------------------------------------------------


def finished(work_dir: Path) -> dict[str, tuple]:
    """Bytes of every result, and when its checkpoints were written."""
    return {
        file.parts[-3]: (
            file.read_bytes(),
            {p.name: p.stat().st_mtime_ns for p in file.parent.glob('epoch_*.pth')},
        )
        for file in work_dir.glob('*/*/result.json')
    }


def wait_for_lock(work_dir: Path, seconds: float = 120) -> None:
    """Wait until no process that outlived its comparison works in a run."""
    for lock in work_dir.glob('*/*/lock'):
        end = time.monotonic() + seconds
        with lock.open() as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    require(time.monotonic() < end, f'{lock} is never given back')
                    time.sleep(0.1)


def scores(work_dir: Path) -> dict[str, tuple[float, float]]:
    summary = json.loads((work_dir / 'comparison.json').read_text())
    found = {}
    for file in sorted(work_dir.glob('*/*/result.json')):
        found[file.parts[-3]] = (
            last_loss(file.parent),
            json.loads(file.read_text())['AP'],
        )
    require(len(summary['rows']) == len(found) == len(COMPARED), 'a run is lost')
    return found


def children(pid: int) -> list[int]:
    try:
        return [
            int(p) for p in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()
        ]
    except OSError:
        return []


def kill_comparison(kills: Kills, until: int, work_dir: Path, options: list) -> None:
    """Compare, killed again and again, until so many kills are used up."""
    plain = ['tools/compare.py', *COMPARED, '--resamples', 100, '--work-dir']
    work_dir.mkdir(parents=True)
    begun = time.monotonic()
    whole_run(work_dir / 'undisturbed.log', *plain, work_dir / 'undisturbed', *options)
    typical = (time.monotonic() - begun) / len(COMPARED)
    undisturbed = scores(work_dir / 'undisturbed')
    attempt = 0
    while kills.number < until and kills.in_time:
        attempt += 1
        folder = work_dir / f'compare{attempt}'
        command = [*plain, folder, *options]
        starts, kept, epochs = 0, {}, {}
        status = None
        while status != 0:
            starts += 1
            log = work_dir / f'compare{attempt}-{starts}.log'
            process, begun = start(log, *command), time.monotonic()
            excused = False  # an error that a kill explains
            while process.poll() is None:
                if kills.number >= until or not kills.in_time:
                    wait(process, 300)
                    continue
                if wait(process, kills.random.uniform(0, 1.5 * typical)):
                    continue
                who = kills.random.choice(('group', 'comparison alone', 'child alone'))
                own = children(process.pid)
                if who == 'child alone' and own:
                    os.kill(own[0], signal.SIGKILL)
                    excused = True
                elif who == 'comparison alone':
                    process.kill()
                    process.wait()
                else:
                    kill_group(process)
                runs = sorted(p for p in folder.glob('*/seed0') if p.is_dir())
                half = [p for p in runs if not (p / 'result.json').exists()]
                state = f'{len(runs) - len(half)} finished'
                if half:
                    state += f'; {describe(half[-1])}'
                kills.report(f'comparison, {who}', time.monotonic() - begun, state)
            status = process.returncode
            text = log.read_text()
            excused |= 'another process works in' in text
            require(
                status in (0, -signal.SIGKILL) or (status == 1 and excused),
                f'{log} ends with an error:\n{text[-3000:]}',
            )
            if status != 0 and kills.random.random() < 0.5:
                wait_for_lock(folder)
            now = finished(folder)
            for name, result in kept.items():
                require(now.get(name) == result, f'{folder}: {name} was done again')
            kept = now
            for run in folder.glob('*/seed0'):
                epoch = epoch_of(run)
                require(epoch >= epochs.get(run, 0), f'{run} fell back to {epoch}')
                epochs[run] = epoch
        for name, found in scores(folder).items():
            what = f'comparison {attempt}, {starts} starts, {name}'
            check_numbers(what, found, undisturbed[name])


def main() -> int:
    args = parse_args()
    work_dir = args.work_dir.resolve()
    if work_dir.exists() and any(work_dir.iterdir()):
        raise ValueError(f'{work_dir} is not empty; name a new --work-dir')
    work_dir.mkdir(parents=True, exist_ok=True)
    data = work_dir / 'data'
    shapes = ['-m', 'dlu_mmdet.datasets.make_shapes', data, '--num-train', 16]
    shapes += ['--num-val', 8, '--image-size', 128]
    whole_run(work_dir / 'data.log', *shapes)
    options = data_options(
        data, 'instances_train.json', 'instances_val.json', 'train/', 'val/'
    )
    options.update(
        {
            'train_cfg.max_epochs': EPOCHS,
            'train_cfg.val_interval': EPOCHS,
            'train_dataloader.batch_size': 16 // ITERATIONS,
            'param_scheduler.0.end': ITERATIONS,
            'param_scheduler.1.end': EPOCHS,
            'default_hooks.logger.interval': 1,
        }
    )
    for split in ('train', 'val', 'test'):
        options[f'{split}_dataloader.num_workers'] = 0
        options[f'{split}_dataloader.persistent_workers'] = False
    kills, half = Kills(args), args.kills // 2
    try:
        kills.end = kills.started + args.seconds / 2
        kill_training(kills, half, work_dir / 'training', as_arguments(options))
        kills.end = kills.started + args.seconds
        kill_comparison(
            kills, args.kills, work_dir / 'comparison', as_arguments(options)
        )
    except Violation as error:
        print(f'after {kills.number} kills: {error}')
        return 1
    took = time.monotonic() - kills.started
    print(f'summary: {kills.number} kills, everything went on, {took:.0f} s')
    if kills.number < args.kills:
        print(f'stopped before {args.kills} kills: --seconds {args.seconds:.0f}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
