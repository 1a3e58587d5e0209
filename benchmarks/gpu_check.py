"""A first run on a GPU: python benchmarks/gpu_check.py [--archive FILE].

Compares the operators with the reference, uses them as training does, times them
against what they replace, reads the GPU's counters, trains, and runs the checkers of
memory and races; those in Triton too. Needs torch, pytest and hypothesis; takes nvcc,
ncu, compute-sanitizer, xdist and mmcv where they are installed, and neither mmdet nor a
network.

Each step has a time limit, and all have one together. A step that fails or hangs does
not stop the others. Its result is written to ``--out`` and packed into ``--archive`` at
once, so a run that is killed keeps what it has. report.md has less than 11,800
characters and is printed at the end; full.md has all lines of its tables.

    python benchmarks/gpu_check.py --build-only --arch sm_90  # for a GPU elsewhere
    python benchmarks/gpu_check.py --rehearse                 # on the CPU

The exit status is 1 if a step failed or ran out of time.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import importlib
import importlib.util
import io
import itertools
import json
import os
import platform
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

BEGAN = time.monotonic()  # the first import of torch on a machine takes a while

import torch  # noqa: E402

FILE = Path(__file__).resolve()
ROOT = FILE.parents[1]
OPERATOR_TESTS = ROOT / 'tests' / 'ops'
# what `make gpu-kit` makes: libraries, and wheels of what the tests need
KIT = ROOT / 'build' / 'gpu_kit'
NEEDED = {'pytest': 'pytest', 'xdist': 'pytest-xdist', 'hypothesis': 'hypothesis'}
# the package itself imports mmdet
find_toolkit = runpy.run_path(str(ROOT / 'dlu_mmdet/cuda_toolkit.py'))['find_toolkit']
# the size that docs/cuda.md counts
COUNTED = 'N 8, C 256, 100 x 168, K 5, G 1, s 2'
MULTIPLY_ADDS = 8 * 256 * 100 * 168 * 4 * 25 / 32  # of whole warps
# ncu's name, ours, unit of the column, and what a value is multiplied by
METRICS = (
    ('gpu__time_duration.sum', 'ms', '.3f', 1e-6),
    ('dram__bytes.sum', 'DRAM MB', '.0f', 1e-6),
    ('dram__throughput.avg.pct_of_peak_sustained_elapsed', '% of DRAM', '.0f', 1),
    ('smsp__inst_executed.sum', 'instr. per 100 FMA', '.0f', 100 / MULTIPLY_ADDS),
    ('smsp__issue_active.avg.pct_of_peak_sustained_active', '% issue', '.0f', 1),
    (
        'l1tex__data_pipe_lsu_wavefronts_mem_shared.sum',
        'shared passes per FMA',
        '.2f',
        1 / MULTIPLY_ADDS,
    ),
    ('l1tex__data_bank_conflicts_pipe_lsu.sum', 'bank conflicts', '.0f', 1),
    ('sm__warps_active.avg.pct_of_peak_sustained_active', '% occupancy', '.0f', 1),
)
# a process group, or before Python 3.11 a session, that can be killed as a whole
NEW_GROUP = {'start_new_session': True}
if sys.version_info >= (3, 11):
    NEW_GROUP = {'process_group': 0}


# what a process prints whose library is missing or for other GPUs
NOT_LOADED = 'do not load|are not there|no kernel image'


class CannotRun(Exception):
    """Why a step has nothing to do here, in one sentence."""


class Failed(Exception):
    """What a step found wrong, in one sentence."""


@dataclass
class Step:
    """A step, its limits and its result.

    Attributes:
        name (str): Also that of its log.
        action (Callable): Takes the Check and the Step; returns ``sentence``.
        seconds (float): Limit; then, what it took.
        characters (int): Limit in report.md.
        status (str): 'ok', 'failed', 'out of time' or 'cannot run'.
        sentence (str): The result.
        table (str): Markdown.
    """

    name: str
    action: Callable[[Check, Step], str]
    seconds: float
    characters: int
    status: str = 'ok'
    sentence: str = ''
    table: str = ''
    end: float = 0.0

    def __str__(self) -> str:
        title = f'## {self.name}: {self.status}, {self.seconds:.0f} s'
        table = f'\n{self.table}\n' if self.table else ''
        return f'{title}\n{self.sentence}\n{table}'

    def clipped(self) -> str:
        """The first lines, as many as report.md may have."""
        text, note = str(self), '[... more in full.md]\n'
        if len(text) <= self.characters:
            return text
        kept = text[: self.characters - len(note) - 1]
        return f'{kept.rpartition(chr(10))[0]}\n{note}'


class Check:
    """Runs steps and reports each as it ends.

    Args:
        out (Path): Folder for report.md, full.md and a log of each step.
        seconds (float): Limit of all steps together.
        device (str): 'cuda', or 'cpu' in a rehearsal, which may take longer.
        archive (Path, optional): A .tar.gz of ``out``, written again after each step.
    """

    def __init__(
        self, out: Path, seconds: float, device: str, archive: Path | None = None
    ) -> None:
        self.out, self.device, self.archive = out, device, archive
        self.rehearses = device == 'cpu'
        self.end = time.monotonic() + seconds
        self.stopped = False
        self.loads = True  # the library of the operators
        self.finished: list[Step] = []
        self.running: set[subprocess.Popen] = set()
        self._lock = threading.Lock()
        self._folder = tempfile.TemporaryDirectory(prefix='gpu_check')
        self.alone = Path(self._folder.name)
        out.mkdir(parents=True, exist_ok=True)
        for name in ('report.md', 'full.md'):
            (out / name).write_text('')
        if archive:
            archive.parent.mkdir(parents=True, exist_ok=True)
        self.link_package()

    def link_package(self) -> None:
        """Make a package of the same files that imports no mmdet."""
        package = self.alone / 'dlu_mmdet'
        package.mkdir(exist_ok=True)
        (package / '__init__.py').touch()
        for path in (ROOT / 'dlu_mmdet').iterdir():
            link = package / path.name
            if path.name not in ('__init__.py', '__pycache__') and not link.exists():
                link.symlink_to(path)

    def run(
        self,
        step: Step,
        command: Sequence[object],
        ok: Sequence[int] = (0,),
        cwd: Path | None = None,
        **environment: str,
    ) -> str:
        """Run a command within the limits of the step; returns its output.

        Raises:
            CalledProcessError: If its status is none of ``ok``.
            TimeoutExpired: If it was killed, with all that it started.
        """
        left = min(step.end, self.end) - time.monotonic()
        if self.stopped or left < 1:
            raise subprocess.TimeoutExpired(command, 0)
        paths = filter(None, [str(self.alone), os.environ.get('PYTHONPATH')])
        environment['PYTHONPATH'] = os.pathsep.join(paths)
        environment['PYTHONUNBUFFERED'] = '1'  # what is killed leaves its lines
        if self.rehearses:
            environment['CUDA_VISIBLE_DEVICES'] = ''
        elif not environment.get('DLU_MMDET_BACKEND'):
            # Triton would stand in for a library that does not load
            environment['DLU_MMDET_BACKEND'] = 'cuda'
        log = self.out / f'{step.name}.log'
        with log.open('a') as file:
            file.write(f'$ {" ".join(map(str, command))}\n')
            file.flush()
            before = file.tell()
            process = subprocess.Popen(
                [str(part) for part in command],
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=cwd or self.alone,
                env={**os.environ, **environment},
                **NEW_GROUP,
            )
            self.running.add(process)
            try:
                status = process.wait(0 if self.stopped else left)
            finally:
                self.running.discard(process)
                if process.returncode is None:
                    end_group(process)
                    process.wait()
        if self.stopped:
            raise subprocess.TimeoutExpired(command, left)
        output = log.read_bytes()[before:].decode(errors='replace')
        if status not in ok:
            raise subprocess.CalledProcessError(status, command, output)
        return output

    def step(self, step: Step) -> Step:
        """Run a step and report it, whatever happens in it."""
        began = time.monotonic()
        step.end = began + step.seconds * (10 if self.rehearses else 1)
        (self.out / f'{step.name}.log').unlink(missing_ok=True)
        try:
            step.sentence = step.action(self, step)
        except CannotRun as reason:
            step.status, step.sentence = 'cannot run', str(reason)
        except Failed as reason:
            step.status, step.sentence = 'failed', str(reason)
        except subprocess.TimeoutExpired:
            step.status = 'out of time'
            step.sentence = step.sentence or 'nothing came before its limit'
        except subprocess.CalledProcessError as error:
            step.status = 'failed'
            step.sentence = f'status {error.returncode}: {last_line(error.output)}'
        except Exception as error:
            step.status = 'failed'
            step.sentence = f'{type(error).__name__}: {error}'
        step.seconds = time.monotonic() - began
        with self._lock:
            self.finished.append(step)
            for name, text in (('report.md', step.clipped()), ('full.md', step)):
                with (self.out / name).open('a') as file:
                    file.write(f'{text}\n')
            print(f'{step.name}: {step.status}, {step.seconds:.0f} s', flush=True)
            self._pack()
        return step

    def _pack(self) -> None:
        if not self.archive:
            return
        part = self.archive.with_name(f'{self.archive.name}.part')
        try:
            with tarfile.open(part, 'w:gz') as tar:
                tar.add(self.out, arcname=self.out.name)
            part.replace(self.archive)
        except OSError as error:  # what is printed is worth having alone
            print(f'{self.archive}: {error}', file=sys.stderr)

    def stop(self, *_: object) -> None:
        """Kill what runs, as a signal asks; the step reports what it has."""
        self.stopped = True
        for process in self.running.copy():
            end_group(process)

    def need_operators(self) -> None:
        if not self.loads:
            raise CannotRun('the operators do not load; see the step operators')


def end_group(process: subprocess.Popen) -> None:
    """Kill a command with all that it started.

    ninja starts each compiler in a separate process group and ends it on SIGTERM, but
    cannot on SIGKILL.
    """
    for number, seconds in ((signal.SIGTERM, 2), (signal.SIGKILL, 0)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        end = time.monotonic() + seconds
        while time.monotonic() < end and group_lives(process.pid):
            time.sleep(0.05)


def group_lives(group: int) -> bool:
    """Whether a process group has a process that has not ended."""
    for stat in Path('/proc').glob('[0-9]*/stat'):
        with suppress(OSError):  # it has ended meanwhile
            state, _, of = stat.read_text().rpartition(')')[2].split()[:3]
            if int(of) == group and state not in 'ZX':
                return True
    return False


def find(tool: str) -> str:
    """Path of a program of the CUDA toolkit or of Nsight Compute."""
    places = [os.environ.get('PATH', ''), '/usr/local/cuda/bin']
    try:
        places.append(str(find_toolkit()[0] / 'bin'))
    except FileNotFoundError:
        pass
    places += map(str, Path('/opt/nvidia').glob('nsight-compute/*'))
    found = shutil.which(tool, path=os.pathsep.join(places))
    if not found:
        raise CannotRun(f'{tool} is neither in PATH nor in the CUDA toolkit')
    return found


def is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def last_line(text: str) -> str:
    """Of an output, the line that says most about a failure."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ['']
    errors = [line for line in lines if re.search(r'\w*Error\b|==ERROR==', line)]
    return (errors or lines)[-1][:300]


def workload(check: Check, name: str, *arguments: str) -> list[object]:
    """A command that runs one of WORKLOADS."""
    return [sys.executable, FILE, '--workload', name, check.device, *arguments]


# ---- steps -------------------------------------------------------------------------


def facts(check: Check, step: Step) -> str:
    """What this machine is."""
    found = {
        'date': f'{datetime.datetime.now():%Y-%m-%d %H:%M}',
        'python': platform.python_version(),
        'torch': torch.__version__,
        'CPU cores': os.cpu_count(),
    }
    try:
        found['CUDA toolkit'], found['libcudart'] = find_toolkit()
    except FileNotFoundError as error:
        found['CUDA toolkit'] = error
    query = 'name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.draw'
    for name, *options in (
        ('nvidia-smi', f'--query-gpu={query}', '--format=csv,noheader'),
        ('nvcc', '--version'),
        ('ncu', '--version'),
        ('compute-sanitizer', '--version'),
    ):
        try:
            output = check.run(step, [find(name), *options])
            versions = re.findall(r'[Vv]ersion \S+|V[\d.]+', output)
            found[name] = versions[-1] if versions else output.strip()[:120]
        except (CannotRun, subprocess.CalledProcessError):
            found[name] = 'absent'
    missing = [name for module, name in NEEDED.items() if not is_installed(module)]
    if missing and (KIT / 'wheels').is_dir():
        found['from the kit'] = install(check, step, missing)
    modules = (*NEEDED, 'triton', 'mmcv', 'mmdet')
    found['modules'] = ', '.join(filter(is_installed, modules))
    step.table = '\n'.join(f'- {name}: {value}' for name, value in found.items())
    if check.rehearses:
        return 'a rehearsal on the CPU'
    properties = torch.cuda.get_device_properties(0)
    return (
        f'{properties.name}, {properties.total_memory / 2**30:.0f} GiB, compute '
        f'capability {properties.major}.{properties.minor}, '
        f'{properties.multi_processor_count} processors'
    )


def install(check: Check, step: Step, names: Sequence[str]) -> str:
    """Install wheels of the kit, without a network, for the steps alone."""
    source = ['--no-index', '--find-links', KIT / 'wheels', '--target', check.alone]
    command = [sys.executable, '-m', 'pip', 'install', '-q', *source, *names]
    try:
        check.run(step, command)
    except subprocess.CalledProcessError as error:
        return last_line(error.output)
    sys.path.append(str(check.alone))  # for is_installed
    importlib.invalidate_caches()
    return ', '.join(names)


def build(check: Check, step: Step, *options: object, arch: str = '') -> str:
    """Compile the operators; options are those of build_ext."""
    arch = arch or '{}.{}'.format(*torch.cuda.get_device_capability(0))
    output = check.run(
        step,
        [sys.executable, 'setup.py', 'build_ext', *options],
        cwd=ROOT,
        FORCE_CUDA='1',
        TORCH_CUDA_ARCH_LIST=arch,
        MAX_JOBS=str(os.cpu_count()),
    )
    check.link_package()
    warnings = len(re.findall(r'\bwarning\b', output))
    return f'built for compute capability {arch}, {warnings} warnings'


def operators(check: Check, step: Step, backend: str = '') -> str:
    """Load what is built and compare calls; build first where it does not load."""
    script = ROOT / 'tests' / 'package' / 'one_wheel.py'
    command = [sys.executable, script, ROOT, check.device]
    try:
        return last_line(check.run(step, command, DLU_MMDET_BACKEND=backend))
    except subprocess.CalledProcessError as error:
        # wrong values do not keep the other steps from running
        check.loads = not re.search(NOT_LOADED, error.output)
        if check.loads or check.rehearses:
            raise
    built = build(check, step, '--inplace')
    check.loads = True
    return f'{built}, since none fit. {last_line(check.run(step, command))}'


def need(check: Check, backend: str) -> None:
    """Stop a step whose operators are not here."""
    if backend != 'triton':
        check.need_operators()
    elif check.rehearses:
        raise CannotRun('on a CPU tests/ops/test_triton.py interprets its kernels')
    elif not is_installed('triton'):
        raise CannotRun('Triton is not installed')


def tests(
    check: Check, step: Step, file: str, select: str, backend: str = '', jobs: int = 6
) -> str:
    """Run tests of the operators; tests/conftest.py needs mmdet, so it is left out."""
    need(check, backend)
    command = [
        *(
            sys.executable,
            '-m',
            'pytest',
            ROOT / 'tests' / 'ops' / file,
            '--noconftest',
        ),
        *('-c', ROOT / 'pyproject.toml', '--rootdir', ROOT, '-p', 'no:cacheprovider'),
        *('-o', 'addopts=', '-m', 'not slow', '-k', select, '-v', '-rfE', '--tb=short'),
        *('--maxfail', 40, *(('-n', jobs) if is_installed('xdist') else ())),
    ]
    try:
        # 2 where 40 have failed
        check.run(
            step,
            command,
            ok=(0, 1, 2),
            OMP_NUM_THREADS='1',
            DLU_MMDET_BACKEND=backend,
        )
    finally:
        # also of a run that was killed
        log = check.out / f'{step.name}.log'
        lines = log.read_text().splitlines() if log.exists() else []
        ended = [line for line in lines if '%]' in line]
        counts = {
            word.lower(): sum(word in line for line in ended)
            for word in ('PASSED', 'FAILED', 'ERROR', 'SKIPPED')
        }
        step.sentence = ', '.join(f'{n} {word}' for word, n in counts.items() if n)
        failed = [line for line in lines if line.startswith(('FAILED ', 'ERROR '))]
        failed = failed or [x for x in ended if 'FAILED' in x or 'ERROR' in x]
        step.table = '\n'.join(f'- {line.split("::")[-1][:200]}' for line in failed)
    if failed or not counts['passed']:
        raise Failed(step.sentence or last_line('\n'.join(lines)))
    return step.sentence


def timings(
    check: Check, step: Step, dtype: str, layout: str, backend: str = ''
) -> str:
    """Times of one dtype and layout, at three sizes and two batches."""
    need(check, backend)
    file = check.out / f'{step.name}.json'
    file.unlink(missing_ok=True)
    size = ['--batch', 8, 1, '--rounds', 7]
    if check.rehearses:
        size = ['--batch', 2, 1, '--rounds', 1, '--sizes', '3x4', '4x5']
    if backend:
        size.append('--ours')
    elif layout == 'channels_last':  # the slow ones in one layout
        size.append('--no-composed')
    command = [
        *(sys.executable, ROOT / 'benchmarks' / 'operators.py', '--no-detector', *size),
        *('--device', check.device, '--dtype', dtype, '--layout', layout),
        *('--out', '', '--json', file),
    ]
    try:
        check.run(step, command, DLU_MMDET_BACKEND=backend)
    finally:
        # also of a run that was killed, unless while it wrote
        with suppress(FileNotFoundError, json.JSONDecodeError):
            kept = json.loads(file.read_text())
            step.table = timing_table(kept['rows'])
            step.sentence = (
                f'ms, by replays of a CUDA graph where there is one; f+b is with the '
                f'backward; copies at {kept["bandwidth"] * 1e-9:.0f} GB/s'
            )
    return step.sentence


def timing_table(rows: Sequence[dict]) -> str:
    """A line for each contender and direction, a column for each size."""
    by_line: dict[str, dict[str, dict]] = {}
    for row in sorted(
        rows, key=lambda row: (row['direction'], row['batch'], row['size'])
    ):
        name = row['name'] + ' f+b' * ('backward' in row['direction'])
        place = '{}: {} x {}'.format(row['batch'], *row['size'])
        by_line.setdefault(name, {})[place] = row
    places = list(dict.fromkeys(place for line in by_line.values() for place in line))
    heads = ['batch: H x W', f'call {places[0]}', *places, 'extra memory']
    lines = [f'| {" | ".join(heads)} |', '|---|' + '--:|' * (len(heads) - 1)]
    for name, line in by_line.items():
        times = {p: row['replay'] or row['milliseconds'] for p, row in line.items()}
        called = line.get(places[0], {}).get('milliseconds', float('nan'))
        cells = [
            f'{called:.3g}',
            *(f'{times[p]:.3g}' if p in times else '' for p in places),
        ]
        extra = f'{list(line.values())[-1]["extra"]:.0%}'
        lines.append(f'| {name} | {" | ".join(cells)} | {extra} |')
    return '\n'.join(lines)


def training(check: Check, step: Step, backend: str = '') -> str:
    """Some seconds of training a pyramid with each upsampler, mixed precision."""
    need(check, backend)
    options = ['--upsamplers', 'dlu', '--seconds', 4] if backend else ['--seconds', 6]
    if check.rehearses:
        options += ['--seconds', 0, '--batch', 1, '--size', 64, 64]
        options += ['--upsamplers', 'dlu']
    script = ROOT / 'benchmarks' / 'pyramid_training.py'
    command = [sys.executable, script, '--device', check.device, *options]
    try:
        check.run(step, command, DLU_MMDET_BACKEND=backend)
    finally:
        # also of a run that was killed
        log = check.out / f'{step.name}.log'
        lines = log.read_text().splitlines() if log.exists() else []
        step.table = '\n'.join(line for line in lines if line.startswith('|'))
        step.sentence = next((x for x in lines if x.startswith('ResNet')), '')
    if re.search(r'\| (nan|inf|-inf) \|', step.table) and not check.rehearses:
        raise Failed(f'a loss is not finite; {step.sentence}')
    return step.sentence


def kernel_names() -> list[str]:
    """Of the kernels in csrc/cuda."""
    text = ''.join(path.read_text() for path in (ROOT / 'csrc/cuda').glob('*.cu'))
    return re.findall(r'__global__[^;{]*?\b(\w+)\(DLU_ARGUMENT Geometry\b', text)


def short_name(kernel: str) -> str:
    """The name and template arguments of a kernel, mangled or not.

    Raises:
        ValueError: If it is not one of this package.
    """
    found = re.search(rf'(?<![a-z_])({"|".join(kernel_names())})(?:<(.*?)>\()?', kernel)
    if not found:
        raise ValueError(f'{kernel} is no kernel of csrc/cuda')
    arguments = re.sub(r'c10::|\(\w+\)', '', found[2] or '')
    return f'{found[1]}<{arguments}>' if arguments else found[1]


def counters(check: Check, step: Step, dtype: str) -> str:
    """What ncu reads of each kernel; without it, times by torch's profiler."""
    check.need_operators()
    try:
        if check.rehearses:
            raise CannotRun('a CPU has no counters')
        command = [
            *(find('ncu'), '--csv', '--page', 'raw', '--print-units', 'base'),
            *('--clock-control', 'none', '--profile-from-start', 'off'),
            *('--metrics', ','.join(metric for metric, *_ in METRICS)),
            *workload(check, 'counted', dtype),
        ]
        output = check.run(step, command)
        rows, reason = read_counters(output), last_line(output)
    except CannotRun as error:
        rows, reason = [], str(error)
    except subprocess.CalledProcessError as error:
        rows, reason = [], last_line(error.output)
    source = 'counters by ncu'
    if not rows:
        output = check.run(step, workload(check, 'profiled', dtype))
        rows = [json.loads(x) for x in output.splitlines() if x.startswith('{')]
        source = f"times by torch's profiler; ncu: {reason}"
    (check.out / f'{step.name}.json').write_text(json.dumps(rows, indent=1))
    step.table = counter_table(rows)
    if not rows:
        raise Failed(f'no kernel was seen; {source}')
    return f'{source}; {"tiny" if check.rehearses else COUNTED}, {dtype}'


def read_counters(output: str) -> list[dict]:
    """Rows of ncu's CSV: the kernel's name and a number for each metric."""
    lines = [line for line in output.splitlines() if line.startswith('"')]
    rows = []
    for line in csv.DictReader(io.StringIO('\n'.join(lines))):
        row = {}
        for metric, *_ in METRICS:
            try:
                row[metric] = float(line[metric].replace(',', ''))
            except (KeyError, ValueError):  # the row of units, or not on this GPU
                continue
        if row:
            rows.append(dict(kernel=line['Kernel Name'], **row))
    return rows


def counter_table(rows: Sequence[dict]) -> str:
    """Markdown, a line for each kernel and a column for each metric that was read."""
    read = [metric for metric in METRICS if any(metric[0] in row for row in rows)]
    heads = ['kernel', *(head for _, head, *_ in read)]
    lines = [f'| {" | ".join(heads)} |', '|---|' + '--:|' * len(read)]
    for row in rows:
        try:
            name = short_name(row['kernel'])
        except ValueError:
            name = row['kernel'][:60]  # such as torch's, of zeros
        cells = [
            f'{row[metric] * scale:{form}}' if metric in row else ''
            for metric, _, form, scale in read
        ]
        lines.append(f'| {name} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def sanitizer(check: Check, step: Step, tool: str) -> str:
    """memcheck or racecheck over small calls of every operator."""
    check.need_operators()
    command = workload(check, 'small')
    if not check.rehearses:
        command = [
            *(find('compute-sanitizer'), '--tool', tool, '--error-exitcode', 99),
            *('--report-api-errors', 'no', '--print-limit', 20),
            *('--kernel-name', 'kns=dlu_mmdet', *command),
        ]
    # torch's allocator keeps what is freed, and hands out more than was asked for
    output = check.run(step, command, ok=(0, 99), PYTORCH_NO_CUDA_MEMORY_CACHING='1')
    said = re.findall(r'\w+ SUMMARY: .*', output)
    calls = re.findall(r'\d+ calls, forward and backward', output)
    if not calls:
        raise Failed(f'the calls did not end: {last_line(output)}')
    if not check.rehearses and not any('SUMMARY: 0 ' in line for line in said):
        lines = [line for line in output.splitlines() if line.startswith('=====')]
        step.table = '\n'.join(lines)
        raise Failed('; '.join(said + calls))
    return '; '.join(said + calls)


def rebuild(check: Check, step: Step) -> str:
    """Whether the sources build here, apart from what the other steps use."""
    if check.rehearses:
        raise CannotRun('left out of a rehearsal; --build-only builds')
    folder = check.alone / 'build'
    return build(check, step, '--build-lib', folder, '--build-temp', folder / 'temp')


def plan(device: str) -> list[Step]:
    """The steps, the most valuable first: the last get what time is left."""
    select = 'cuda' if device == 'cuda' else ''
    parity = partial(
        tests, file='test_ops_fused.py', select=f'{device} and not sources or wild'
    )
    use = partial(tests, file='test_ops_in_use.py', select=select)
    # its compiler takes a second for each kernel, dtype, layout, K, G and s
    cases = f'test_same_as_reference and {device}'
    triton = dict(backend='triton')
    in_triton = partial(parity, select=cases, jobs=14, **triton)
    time_ = [
        partial(timings, dtype=dtype, layout=layout)
        for layout in ('nchw', 'channels_last')
        for dtype in ('float32', 'bfloat16')
    ]
    count = [partial(counters, dtype=dtype) for dtype in ('float32', 'bfloat16')]
    rows = [
        ('facts', facts, 20, 700),
        ('operators', operators, 240, 400),
        ('parity', parity, 55, 950),
        ('use', use, 55, 950),
        ('timings-float32-nchw', time_[0], 30, 1500),
        ('timings-bfloat16-nchw', time_[1], 30, 1400),
        ('timings-float32-channels_last', time_[2], 25, 1000),
        ('timings-bfloat16-channels_last', time_[3], 25, 1000),
        ('triton-parity', in_triton, 50, 700),
        ('triton-timings-float32-nchw', partial(time_[0], **triton), 30, 450),
        ('counters-float32', count[0], 30, 600),
        ('counters-bfloat16', count[1], 30, 600),
        ('training', training, 30, 400),
        ('triton-training', partial(training, **triton), 15, 300),
        # nothing is timed any more: the compiler may have the CPU
        ('rebuild', rebuild, 240, 200),
        ('memcheck', partial(sanitizer, tool='memcheck'), 120, 300),
        ('racecheck', partial(sanitizer, tool='racecheck'), 120, 300),
    ]
    return [Step(*row) for row in rows]


def run_all(check: Check, steps: Sequence[Step]) -> int:
    """Run the steps; returns the exit status."""
    with ThreadPoolExecutor() as beside:
        for step in steps:
            if check.stopped:
                break
            if step.name == 'rebuild':
                beside.submit(check.step, step)
            else:
                check.step(step)
    print((check.out / 'report.md').read_text(), end='', flush=True)
    bad = any(step.status in ('failed', 'out of time') for step in check.finished)
    return int(bad or check.stopped)


# ---- what the steps start ----------------------------------------------------------


def counted_calls(device: str, dtype: str) -> None:
    """DLU forward and backward in each layout, after a call that loads the code."""
    from op_benchmark import backends, contenders

    batch, size = (8, (100, 168)) if device == 'cuda' else (1, (3, 4))
    names = [f'dlu, {name}' for name in backends(device)]
    for layout in (torch.contiguous_format, torch.channels_last):
        listed = contenders(batch, size, device, getattr(torch, dtype), layout)
        for dlu in (c for c in listed if c.name in names):
            inputs = [tensor.detach().requires_grad_() for tensor in dlu.inputs]
            grad = torch.ones_like(dlu.run(*inputs))
            torch.autograd.grad(dlu.run(*inputs), inputs, grad)
            if device == 'cuda':
                torch.cuda.synchronize()
                torch.cuda.profiler.start()
            torch.autograd.grad(dlu.run(*inputs), inputs, grad)
            if device == 'cuda':
                torch.cuda.synchronize()
                torch.cuda.profiler.stop()


def profiled_calls(device: str, dtype: str) -> None:
    """The same under torch's profiler; prints the time of each kernel."""
    with torch.profiler.profile() as profile:
        counted_calls(device, dtype)
    times: dict[str, list[float]] = {}
    for event in profile.events():
        ours = event.name.startswith('dlu_mmdet::')
        if device == 'cuda':
            on_gpu = event.device_type == torch.autograd.DeviceType.CUDA
            ours = on_gpu and any(name in event.name for name in kernel_names())
        if ours:
            times.setdefault(event.name, []).append(event.time_range.elapsed_us())
    for name, taken in times.items():
        print(json.dumps({'kernel': name, METRICS[0][0]: 1e3 * min(taken)}))


def small_calls(device: str) -> None:
    """Every operator at the sizes of the tests, for the checkers."""
    sys.path.append(str(OPERATOR_TESTS))
    from test_ops_fused import CASES, LAYOUTS, make

    from dlu_mmdet.ops import library

    calls = 0
    for case, layout in itertools.product(CASES, LAYOUTS):
        for dtype, op in itertools.product(('float32', 'bfloat16'), ('dlu', 'carafe')):
            made = make(*case, getattr(torch, dtype), device, layout, op)
            inputs, grad, sizes = made
            out = getattr(library, op)(*inputs, *sizes)
            torch.autograd.grad(out, inputs, grad)
            calls += 1
    if device == 'cuda':
        torch.cuda.synchronize()
    print(calls, 'calls, forward and backward')


WORKLOADS = dict(counted=counted_calls, profiled=profiled_calls, small=small_calls)


# ---- command line ------------------------------------------------------------------


def build_only(check: Check, step: Step, arch: str, mmcv: Path | None) -> str:
    """Build in place for a GPU that may be elsewhere, load, list the files to carry."""
    began = time.time()
    files = []
    try:
        import mmcv_carafe

        files.append(mmcv_carafe.build(mmcv_carafe.find_sources(mmcv), arch))
        theirs = "mmcv's CARAFE built"
    except (OSError, RuntimeError) as error:
        theirs = f"without mmcv's CARAFE: {last_line(str(error))}"
    built = build(check, step, '--inplace', '--force', arch=arch)
    try:
        loaded = operators(check, step, 'cuda')
    except subprocess.CalledProcessError as error:
        raise Failed(
            f'{built}, but the library does not load: {last_line(error.output)}'
        ) from error
    files += sorted(ROOT.glob('dlu_mmdet/_C*.so'))
    files = [path for path in files if path.stat().st_mtime >= began]
    files += sorted((KIT / 'wheels').glob('*.whl'))
    step.table = '\n'.join(
        f'{path.relative_to(ROOT)}  {path.stat().st_size / 2**20:.1f} MiB'
        for path in files
    )
    with tarfile.open(KIT.with_suffix('.tar.gz'), 'w:gz') as tar:
        for path in files:
            tar.add(path, path.relative_to(ROOT))
    size = Path(tar.name).stat().st_size / 2**20
    kit = f'all in build/{KIT.name}.tar.gz, {size:.1f} MiB'
    return f'{built}. {loaded}. {theirs}; {kit}'


def read_arch(text: str) -> str:
    """9.0 for sm_90, 90 or 9.0."""
    found = re.fullmatch(r'(?:sm_)?(\d+)\.?(\d)([af]?)', text)
    if not found:
        raise argparse.ArgumentTypeError(f'a GPU is 9.0 or sm_90, got {text!r}')
    return '{}.{}{}'.format(*found.groups())


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=Path('work_dirs/gpu_check'))
    parser.add_argument('--archive', type=Path, help='file for a .tar.gz of --out')
    parser.add_argument(
        '--seconds', type=float, default=550, help='limit of the whole run'
    )
    names = [step.name for step in plan('cuda')]
    parser.add_argument(
        '--only', nargs='+', choices=names, default=names, help='the steps to run'
    )
    parser.add_argument(
        '--rehearse', action='store_true', help='run the steps on the CPU, tiny'
    )
    parser.add_argument(
        '--build-only', action='store_true', help='build for --arch; needs no GPU'
    )
    parser.add_argument('--arch', type=read_arch, default='9.0', help='such as sm_90')
    parser.add_argument(
        '--mmcv',
        type=Path,
        help="for --build-only: mmcv's folder ops/csrc (default: the installed one's)",
    )
    parser.add_argument('--workload', nargs='+', help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    if args.workload:
        name, *arguments = args.workload
        WORKLOADS[name](*arguments)
        return 0
    on_cpu = args.rehearse or args.build_only
    if not on_cpu and not torch.cuda.is_available():
        sys.exit('torch sees no GPU here; --rehearse runs the same steps on the CPU')
    device = 'cpu' if on_cpu else 'cuda'
    steps = [step for step in plan(device) if step.name in args.only]
    if args.build_only:
        action = partial(build_only, arch=args.arch, mmcv=args.mmcv)
        steps = [Step('build', action, 3600, 2000)]
    archive = args.archive and args.archive.resolve()
    seconds = args.seconds * (10 if on_cpu else 1) - (time.monotonic() - BEGAN)
    check = Check(args.out.resolve(), seconds, device, archive)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, check.stop)
    return run_all(check, steps)


if __name__ == '__main__':
    sys.exit(main())
