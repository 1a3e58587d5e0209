"""Everything that a first run on a GPU has to tell: python tools/gpu_check.py.

Builds the operators for this machine's torch, holds them to the reference, times them
beside what they replace, reads the GPU's counters and looks for races and stray
accesses. Needs torch, nvcc, pytest and hypothesis; no mmcv, mmdet or network. Steps
have a time limit each and all of them one together; what is known is written at once,
so that a run cut off loses nothing. A step that cannot run here says why, and the
next one starts.

Writes to ``--out``: report.md and report.json, a log of each step, tables as .md and
.json. Status 1 if a step failed or was cut off.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import importlib.util
import io
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / 'tests' / 'test_ops_fused.py'
METRICS = {
    'gpu__time_duration.sum': 'time',
    'dram__bytes.sum': 'DRAM bytes',
    'dram__throughput.avg.pct_of_peak_sustained_elapsed': 'of DRAM peak',
    'smsp__inst_executed.sum': 'warp instructions',
    'smsp__issue_active.avg.pct_of_peak_sustained_active': 'issue slots',
    'l1tex__data_pipe_lsu_wavefronts_mem_shared.sum': 'shared passes',
    'l1tex__data_bank_conflicts_pipe_lsu.sum': 'bank conflicts',
    'sm__warps_active.avg.pct_of_peak_sustained_active': 'occupancy',
}
# once each, at the size that docs/benchmarks.md counts on paper
CALLS = """
import torch
from dlu_mmdet.ops import library
n, c, h, w, k, s = 8, 256, 100, 168, 5, 2
x = torch.randn(n, c, h, w, device='cuda', dtype=torch.{dtype})
kernels = torch.randn(n, k * k, h, w, device='cuda').softmax(1).to(x.dtype)
offsets = torch.randn(n, 2 * s * s, h, w, device='cuda').to(x.dtype)
inputs = [t.requires_grad_() for t in (x, kernels, offsets)]
out = library.dlu(*inputs, k, 1, s)
torch.autograd.grad(out, inputs, torch.randn_like(out))
torch.cuda.synchronize()
"""
# every operator at sizes below and above those of a block, for the sanitizers
SMALL = """
import torch
from dlu_mmdet.ops import library
layouts = torch.contiguous_format, torch.channels_last
calls = 0
for n, c, h, w, k, g, s in (
    (1, 1, 1, 1, 1, 1, 1), (2, 3, 5, 3, 3, 1, 2), (1, 12, 1, 9, 3, 4, 3),
    (1, 70, 12, 37, 5, 1, 2), (1, 6, 4, 17, 7, 2, 4), (1, 3, 9, 33, 9, 1, 2),
):
    for dtype in (torch.float32, torch.bfloat16):
        for layout in layouts:
            def make(*shape):
                value = torch.randn(shape).to(dtype).to(memory_format=layout)
                return value.cuda().requires_grad_()
            x, kernels = make(n, c, h, w), make(n, g * k * k, h, w)
            offsets = make(n, g * 2 * s * s, h, w)
            masks = make(n, g * k * k, h * s, w * s)
            grad = make(n, c, h * s, w * s).detach()
            for op, inputs in (
                (library.dlu, (x, kernels, offsets)), (library.carafe, (x, masks)),
            ):
                torch.autograd.grad(op(*inputs, k, g, s), inputs, grad)
                calls += 1
torch.cuda.synchronize()
print(calls, 'calls, forward and backward')
"""


class CannotRun(Exception):
    """Why a step has nothing to do on this machine, in one sentence."""


def is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


@dataclass
class Step:
    """What became of a step.

    Attributes:
        name (str): Also that of its log.
        status (str): 'ok', 'failed', 'cut off', or 'cannot run'.
        seconds (float): That it took.
        sentence (str): Its result.
        files (list[str]): What it wrote, in the folder of the report.
        table (str): Markdown, for the report.
    """

    name: str
    status: str = 'ok'
    seconds: float = 0.0
    sentence: str = ''
    files: list[str] = field(default_factory=list)
    table: str = ''


class Check:
    """The steps of a run and what they share.

    Args:
        out (Path): Folder of the report.
        seconds (float): For all steps together.
        rounds (int): Of the timings.
    """

    def __init__(self, out: Path, seconds: float, rounds: int = 10) -> None:
        self.out, self.rounds = out, rounds
        self.end = time.monotonic() + seconds
        self.steps: list[Step] = []
        self._folder = tempfile.TemporaryDirectory(prefix='gpu_check')
        self.alone = Path(self._folder.name)
        out.mkdir(parents=True, exist_ok=True)
        self._isolate()

    def _isolate(self) -> None:
        """A package that holds the operators and imports no mmdet."""
        package = self.alone / 'dlu_mmdet'
        package.mkdir()
        (package / '__init__.py').write_text('"""The operators alone."""\n')
        for name in ('ops', 'analysis', 'torch_compat.py'):
            (package / name).symlink_to(ROOT / 'dlu_mmdet' / name)
        self.link_extension()

    def link_extension(self) -> None:
        """Take what is built; the names say for which torch and Python."""
        for built in (ROOT / 'dlu_mmdet').glob('_C*.so'):
            link = self.alone / 'dlu_mmdet' / built.name
            link.unlink(missing_ok=True)
            link.symlink_to(built)

    @property
    def environment(self) -> dict[str, str]:
        """Of every command; the package of the operators comes first."""
        paths = [str(self.alone), os.environ.get('PYTHONPATH', '')]
        return {**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, paths))}

    def need_gpu(self) -> None:
        if not torch.cuda.is_available():
            raise CannotRun('torch sees no GPU')

    def need_tool(self, name: str) -> str:
        places = os.pathsep.join([os.environ.get('PATH', ''), '/usr/local/cuda/bin'])
        found = shutil.which(name, path=places)
        if not found:
            raise CannotRun(f'{name} is neither in PATH nor in /usr/local/cuda/bin')
        return found

    def run(
        self,
        step: Step,
        limit: float,
        command: list[object],
        folder: Path | None = None,
        **environment: str,
    ) -> str:
        """Run a command, its output into the log of the step; returns the output.

        A command that lasts longer than ``limit`` seconds, or than is left for the
        run, is ended with all that it started.
        """
        log = self.out / f'{step.name}.log'
        if log.name not in step.files:
            step.files.append(log.name)
        left = min(limit, self.end - time.monotonic())
        if left < 5:
            raise subprocess.TimeoutExpired(command, max(left, 0))
        before = len(log.read_text()) if log.exists() else 0
        with log.open('a') as file:
            file.write('$ ' + ' '.join(map(str, command)) + '\n')
            file.flush()
            process = subprocess.Popen(
                [str(part) for part in command],
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=folder or self.alone,
                env={**self.environment, **environment},
                start_new_session=True,
            )
            try:
                status = process.wait(left)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise
        output = log.read_text()[before:]
        if status:
            raise subprocess.CalledProcessError(status, command, output)
        return output

    def step(self, name: str, action: Callable[[Step], str]) -> Step:
        """Run a step; whatever happens in it, the report is written."""
        step = Step(name)
        (self.out / f'{name}.log').unlink(missing_ok=True)
        began = time.monotonic()
        print(f'{name} ...', flush=True)
        try:
            step.sentence = action(step)
        except CannotRun as reason:
            step.status, step.sentence = 'cannot run', str(reason)
        except subprocess.TimeoutExpired as error:
            step.status = 'cut off'
            step.sentence = (
                f'it took longer than it had ({error.timeout:.0f} s at most)'
            )
        except subprocess.CalledProcessError as error:
            lines = [line for line in error.output.splitlines() if line.strip()]
            step.status = 'failed'
            step.sentence = f'status {error.returncode}: {" ".join(lines[-1:])[:300]}'
        except Exception as error:
            step.status = 'failed'
            step.sentence = f'{type(error).__name__}: {error}'[:300]
        step.seconds = round(time.monotonic() - began, 1)
        self.steps.append(step)
        self.write()
        print(
            f'{name}: {step.status}, {step.seconds:.0f} s. {step.sentence}', flush=True
        )
        return step

    def write(self) -> None:
        """report.md and report.json, as far as the run has come."""
        lines = [
            f'# GPU check of {datetime.date.today()}',
            '',
            '| step | status | seconds | result |',
            '|---|---|--:|---|',
        ]
        for step in self.steps:
            sentence = step.sentence.replace('|', '/')
            lines.append(
                f'| {step.name} | {step.status} | {step.seconds:.0f} | {sentence} |'
            )
        for step in self.steps:
            if step.table:
                lines += ['', f'## {step.name}', '', step.table]
        (self.out / 'report.md').write_text('\n'.join(lines) + '\n')
        report = [asdict(step) for step in self.steps]
        (self.out / 'report.json').write_text(json.dumps(report, indent=1))

    def python(self, *arguments: object) -> list[object]:
        return [sys.executable, *arguments]

    def pytest(self, select: str, *arguments: object) -> list[object]:
        """The operators' tests; tests/conftest.py needs mmdet, so it is left out."""
        return self.python(
            *('-m', 'pytest', TESTS, '--noconftest', '-c', ROOT / 'pyproject.toml'),
            *('--rootdir', ROOT, '-p', 'no:cacheprovider', '-k', select, *arguments),
        )


# ---- steps ---------------------------------------------------------------------


def environment(check: Check, step: Step) -> str:
    """What this machine is."""
    facts = {
        'date': f'{datetime.datetime.now():%Y-%m-%d %H:%M}',
        'python': platform.python_version(),
        'torch': torch.__version__,
        'CPU cores': str(os.cpu_count()),
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        facts['GPU'] = (
            f'{properties.name}, {properties.total_memory / 2**30:.0f} GiB, compute '
            f'capability {properties.major}.{properties.minor}'
        )
    for name, pattern in (('nvcc', r'V[\d.]+'), ('ncu', r'Version [\d.]+')):
        try:
            text = subprocess.run(
                [check.need_tool(name), '--version'], capture_output=True, text=True
            ).stdout
            facts[name] = (re.findall(pattern, text) or ['?'])[-1]
        except CannotRun:
            facts[name] = 'absent'
    for name in ('mmcv', 'mmdet', 'pytest', 'hypothesis'):
        facts[name] = 'present' if is_installed(name) else 'absent'
    step.table = '\n'.join(f'- {name}: {value}' for name, value in facts.items())
    (check.out / 'environment.json').write_text(json.dumps(facts, indent=1))
    step.files.append('environment.json')
    return facts.get('GPU', 'no GPU')


def build(check: Check, step: Step) -> str:
    """The extension, for this torch and this GPU."""
    check.need_gpu()
    check.need_tool('nvcc')
    major, minor = torch.cuda.get_device_capability(0)
    output = check.run(
        step,
        240,
        check.python('setup.py', 'build_ext', '--inplace'),
        ROOT,
        FORCE_CUDA='1',
        TORCH_CUDA_ARCH_LIST=f'{major}.{minor}',
        MAX_JOBS=str(os.cpu_count()),
    )
    check.link_extension()
    warnings = len(re.findall(r'\bwarning\b', output))
    return f'built for compute capability {major}.{minor}, {warnings} warnings'


def need_tests() -> None:
    for name in ('pytest', 'hypothesis'):
        if not is_installed(name):
            raise CannotRun(f'{name} is not installed')


def need_operators(check: Check, step: Step, device: str) -> None:
    """Whether the extension loads and has kernels for the device."""
    code = f'from dlu_mmdet.ops import library; print(library.is_available({device!r}))'
    if not check.run(step, 60, check.python('-c', code)).rstrip().endswith('True'):
        raise CannotRun(f'the extension is not built for {device}')


def parity(check: Check, step: Step) -> str:
    """Forward and gradients against the reference, in every dtype and layout."""
    need_tests()
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    need_operators(check, step, device)
    select = f'{device} and not sources or wild'
    output = check.run(step, 150, check.pytest(select, '-x', '--durations=0'))
    found = re.findall(r'(\d+ passed.*?) in ', output)
    return f'on {device}: {found[-1] if found else "no test ran"}'


def benchmark(check: Check, step: Step, dtype: str, layout: str) -> str:
    """Times of one dtype and layout, at three sizes and two batches."""
    check.need_gpu()
    need_operators(check, step, 'cuda')
    name = f'{step.name}.json'
    (check.out / name).unlink(missing_ok=True)
    try:
        check.run(
            step,
            60,
            check.python(
                ROOT / 'tools' / 'benchmark.py',
                *('--device', 'cuda', '--dtype', dtype, '--layout', layout),
                *('--batch', 8, 1, '--rounds', check.rounds, '--no-detector'),
                *('--out', '', '--json', check.out / name),
            ),
        )
    finally:
        text = (check.out / f'{step.name}.log').read_text()
        step.table = '\n'.join(
            line for line in text.splitlines() if line.startswith('|')
        )
        if (check.out / name).exists():
            step.files.append(name)
    kept = json.loads((check.out / name).read_text())
    lacks = ''
    if 'mmcv' not in step.table:
        lacks = '; without mmcv, which is not installed or has no CARAFE for this'
    return f'{kept["title"]}; copies at {kept["bandwidth"] * 1e-12:.2f} TB/s{lacks}'


def counters(check: Check, step: Step, dtype: str) -> str:
    """What ncu reads of each kernel at the size counted on paper."""
    check.need_gpu()
    need_operators(check, step, 'cuda')
    ncu = check.need_tool('ncu')
    output = check.run(
        step,
        90,
        [
            *(ncu, '--csv', '--page', 'raw', '--print-units', 'base'),
            *('--kernel-name-base', 'mangled', '--kernel-name', 'regex:dlu_mmdet'),
            *('--metrics', ','.join(METRICS)),
            *check.python('-c', CALLS.format(dtype=dtype)),
        ],
    )
    rows = read_counters(output)
    if not rows:
        reason = re.findall(r'==ERROR== (.*)', output)
        raise CannotRun(f'ncu read nothing: {reason[-1] if reason else "no kernel"}')
    (check.out / f'{step.name}.json').write_text(json.dumps(rows, indent=1))
    step.files.append(f'{step.name}.json')
    step.table = counter_table(rows)
    return f'{len(rows)} kernels, N 8, C 256, 100 x 168, K 5, s 2, {dtype}'


def read_counters(output: str) -> list[dict]:
    """Rows of ncu's CSV: the kernel's name and a number for each metric."""
    lines = [line for line in output.splitlines() if line.startswith('"')]
    rows = []
    for line in csv.DictReader(io.StringIO('\n'.join(lines))):
        values = {}
        for metric, name in METRICS.items():
            try:
                values[name] = float(line[metric].replace(',', ''))
            except (KeyError, ValueError):  # the row of units, or not on this GPU
                continue
        if values:
            rows.append({'kernel': line.get('Kernel Name', '?'), **values})
    return rows


def counter_table(rows: list[dict]) -> str:
    """Markdown; times in ms (ncu gives ns), instructions per 100 multiply-adds."""
    multiply_adds = 8 * 256 * 100 * 168 * 4 * 25 / 32
    lines = [
        '| kernel | ms | DRAM GB/s | of DRAM peak | issue slots | instructions per '
        '100 FMA | shared passes per FMA | bank conflicts | occupancy |',
        '|---|--:|--:|--:|--:|--:|--:|--:|--:|',
    ]
    for row in rows:
        get = row.get
        nanoseconds = get('time', float('nan'))
        found = re.search(r'\d+([a-z_]*_kernel\w*?)(?:I|E)', get('kernel'))
        name = found[1] if found else get('kernel')
        nan = float('nan')
        lines.append(
            f'| {name} | {nanoseconds * 1e-6:.3f} | '
            f'{get("DRAM bytes", nan) / nanoseconds:.0f} | '
            f'{get("of DRAM peak", nan):.0f} % | {get("issue slots", nan):.0f} % | '
            f'{100 * get("warp instructions", nan) / multiply_adds:.0f} | '
            f'{get("shared passes", nan) / multiply_adds:.2f} | '
            f'{get("bank conflicts", nan):.0f} | {get("occupancy", nan):.0f} % |'
        )
    return '\n'.join(lines)


def sanitizer(check: Check, step: Step, tool: str) -> str:
    """memcheck or racecheck over small cases of every operator."""
    check.need_gpu()
    need_operators(check, step, 'cuda')
    program = check.need_tool('compute-sanitizer')
    # torch's allocator keeps what is freed, and hands out more than was asked for
    output = check.run(
        step,
        60,
        [
            *(program, '--tool', tool, '--error-exitcode', 99),
            *('--kernel-name', 'kns=dlu_mmdet'),
            *check.python('-c', SMALL),
        ],
        PYTORCH_NO_CUDA_MEMORY_CACHING='1',
    )
    found = re.findall(r'(?:ERROR|RACECHECK) SUMMARY: .*', output)
    calls = re.findall(r'\d+ calls, forward and backward', output)
    if not found or not calls:
        raise CannotRun('nothing was checked; its log says why')
    return f'{found[-1]}; {calls[-1]}'


def counts(check: Check, step: Step) -> str:
    """What is counted of the compiled kernels, to stand beside what was measured."""
    check.need_tool('nvcc')
    check.need_tool('cuobjdump')
    name = f'{step.name}.json'
    output = check.run(
        step,
        150,
        check.python(
            ROOT / 'tools' / 'cuda_counts.py',
            *('--blocks', 4, '--cache', check.alone / 'counts'),
            *('--json', check.out / name),
        ),
    )
    step.files.append(name)
    lines = output.splitlines()
    step.table = '\n'.join(line for line in lines if line.startswith('|'))
    return next(line for line in lines if line.startswith('N '))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=Path('work_dirs/gpu_check'))
    parser.add_argument(
        '--seconds', type=float, default=570, help='for all steps together'
    )
    parser.add_argument('--rounds', type=int, default=10, help='of the timings')
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    check = Check(args.out.resolve(), args.seconds, args.rounds)
    for name, action in (
        ('environment', environment),
        ('build', build),
        ('parity', parity),
    ):
        check.step(name, lambda step, action=action: action(check, step))
    for dtype, layout in (
        ('float32', 'nchw'),
        ('bfloat16', 'nchw'),
        ('float32', 'channels_last'),
        ('bfloat16', 'channels_last'),
    ):
        check.step(
            f'benchmark-{dtype}-{layout}',
            lambda step, d=dtype, m=layout: benchmark(check, step, d, m),
        )
        if layout == 'nchw':
            check.step(
                f'counters-{dtype}', lambda step, d=dtype: counters(check, step, d)
            )
    for tool in ('memcheck', 'racecheck'):
        check.step(tool, lambda step, tool=tool: sanitizer(check, step, tool))
    check.step('counts', lambda step: counts(check, step))
    print(f'report: {check.out / "report.md"}')
    return int(any(step.status in ('failed', 'cut off') for step in check.steps))


if __name__ == '__main__':
    sys.exit(main())
