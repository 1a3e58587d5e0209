"""Count what the CUDA operators do, without a GPU: python benchmarks/cuda_counts.py.

The sources are compiled for an H100 with nvcc; the operators are called with CPU
tensors, and their launches are recorded, not run. Some blocks of each launch then run
on an interpreter of the compiled code (``counts/sass.py``), which counts instructions,
passes of shared memory and sectors of global memory. From the counts follows how long
each kernel would take if one unit alone bounded it. That is a bound and no time: it
leaves out latency, of which the loads under way in the busiest loop say something.

Needs nvcc and cuobjdump (in the CUDA toolkit, or the package
nvidia-cuda-cuobjdump). Counted is not measured.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from counts.sass import Counts, Instruction, Launch, Memory, parse
from torch import Tensor
from torch.utils.cpp_extension import include_paths, library_paths

ROOT = Path(__file__).resolve().parents[1]
HERE = Path(__file__).resolve().parent / 'counts'
OPERATORS = ('dlu', 'dlu_backward_features', 'dlu_backward_kernels')
CARAFE = ('carafe', 'carafe_backward_features', 'carafe_backward_masks')
DTYPES = dict(float32='float', bfloat16='c10::BFloat16', float16='c10::Half')
LAYOUTS = dict(nchw=torch.contiguous_format, channels_last=torch.channels_last)

# H100 SXM, at the boost clock of the PCIe card; its own is 1.98 GHz
PROCESSORS = 132
CLOCK = 1.755e9  # Hz
SCHEDULERS = 4  # of a processor; each issues a warp instruction a clock
CONVERSIONS = 0.5  # warp instructions a clock and processor of the unit for MUFU, I2F
FMAS = 4.0  # the same for FFMA
FMA = ('FFMA', 'FFMA2', 'DFMA')
SHARED_PASSES = 1.0  # passes of 128 bytes of shared memory and L1, a clock
DRAM = 3.0e12  # bytes a second of a copy, as measured on one
L2 = 5.5e12  # bytes a second
REGISTERS, WARPS, BLOCKS, SHARED = 65536, 64, 32, 228 << 10  # of a processor
CACHE = 256 << 10  # bytes of a processor, for shared memory and L1


def tool(name: str) -> str:
    """Path of a program of the CUDA toolkit.

    Raises:
        FileNotFoundError: If it is neither in PATH nor in /usr/local/cuda.
    """
    places = os.pathsep.join([os.environ.get('PATH', ''), '/usr/local/cuda/bin'])
    found = shutil.which(name, path=places)
    if not found:
        raise FileNotFoundError(
            f'{name} is not in PATH and not in /usr/local/cuda/bin: install the CUDA '
            f'toolkit; cuobjdump is also the package nvidia-cuda-cuobjdump'
        )
    return found


def _run(command: Sequence[object]) -> str:
    """Output of a command; its errors are shown whole."""
    process = subprocess.run(
        [str(part) for part in command],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if process.returncode:
        raise RuntimeError(f'{command[0]} failed:\n{process.stdout[-4000:]}')
    return process.stdout


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel.

    Attributes:
        name (str): Mangled.
        registers (int): Of a thread.
        spills (int): Bytes of registers that a thread stores to memory.
        stack (int): Bytes of local memory of a thread.
        shared (int): Bytes of static shared memory.
        arguments (tuple): (offset, bytes) of each argument.
    """

    name: str
    registers: int
    spills: int
    stack: int
    shared: int
    arguments: tuple[tuple[int, int], ...]


class Build:
    """The sources of ``csrc/cuda`` compiled to be counted.

    Args:
        csrc (Path): Folder of the sources.
        cache (Path): Where to keep what was compiled.
        dtype (str): Of the features; the others are not compiled, which takes long.
        arch (str): GPU to compile for.
    """

    def __init__(
        self, csrc: Path, cache: Path, dtype: str = 'float32', arch: str = 'sm_90'
    ) -> None:
        self.csrc, self.cache, self.dtype, self.arch = csrc, cache, dtype, arch
        cache.mkdir(parents=True, exist_ok=True)
        headers = cache / 'headers' / 'c10' / 'cuda'
        headers.mkdir(parents=True, exist_ok=True)
        for name in ('CUDAException', 'CUDAGuard', 'CUDAStream', 'CUDAFunctions'):
            (headers / f'{name}.h').write_text('#include "launches.h"\n')
        # with two at once nvcc stays within 4 GB
        with ThreadPoolExecutor(2) as pool:
            compiled = list(pool.map(self._compile, sorted(csrc.glob('cuda/*.cu'))))
        self.objects = [path for path, _ in compiled]
        self.kernels: dict[str, Kernel] = {}
        self._objects: dict[str, Path] = {}
        for path, log in compiled:
            self._read_resources(path, log)
        self.library = self._link()
        self._code: dict[Path, dict] = {}

    def _key(self, *paths: Path) -> str:
        text = b''.join(path.read_bytes() for path in paths)
        text += f'{self.arch} {self.dtype} {torch.__version__}'.encode()
        return hashlib.sha1(text).hexdigest()[:16]

    def _compile(self, source: Path) -> tuple[Path, str]:
        """(object, what ptxas says), kept as long as no source changes."""
        shared = [*self.csrc.rglob('*.h'), *self.csrc.rglob('*.cuh'), *HERE.glob('*.h')]
        path = self.cache / f'{source.stem}-{self._key(source, *sorted(shared))}.o'
        log = path.with_suffix('.txt')
        if not log.exists():
            text = _run(
                [
                    tool('nvcc'),
                    '-std=c++20',
                    '-O3',
                    f'-arch={self.arch}',
                    f'-DDLU_COUNTED={DTYPES[self.dtype]}',
                    '-Xptxas=-v',
                    '-Xcompiler=-fPIC',
                    '--expt-relaxed-constexpr',
                    f'-I{self.cache / "headers"}',
                    f'-I{HERE}',
                    *(f'-I{folder}' for folder in include_paths()),
                    '-c',
                    source,
                    '-o',
                    path,
                ]
            )
            log.write_text(text)
        return path, log.read_text()

    def _read_resources(self, path: Path, log: str) -> None:
        listing = _run([tool('cuobjdump'), '-elf', path])
        arguments: dict[str, dict[int, tuple[int, int]]] = {}
        name = None
        for line in listing.splitlines():
            if found := re.match(r'\.(?:section\s+\.)?nv\.info\.(\S+)', line):
                name = found[1]
            elif line.startswith('.'):
                name = None
            elif name and (
                found := re.search(
                    r'Ordinal : 0x(\w+)\s+Offset\s+: 0x(\w+)\s+Size\s+: 0x(\w+)', line
                )
            ):
                ordinal, offset, size = (int(part, 16) for part in found.groups())
                arguments.setdefault(name, {})[ordinal] = (offset, size)
        for part in log.split('Compiling entry function')[1:]:
            name = re.search(r"'(\S+?)'", part)[1]

            def number(pattern: str, text: str = part) -> int:
                found = re.search(pattern, text)
                return int(found[1]) if found else 0

            listed = arguments.get(name, {})
            self.kernels[name] = Kernel(
                name,
                number(r'Used (\d+) registers'),
                number(r'(\d+) bytes spill stores'),
                number(r'(\d+) bytes stack frame'),
                number(r'(\d+) bytes smem'),
                tuple(listed[key] for key in sorted(listed)),
            )
            self._objects[name] = path

    def _link(self) -> ctypes.CDLL:
        source = HERE / 'launches.cpp'
        path = self.cache / f'launches-{self._key(*self.objects, source)}.so'
        if not path.exists():
            folders = [*include_paths(), sysconfig.get_paths()['include']]
            _run(
                [
                    tool('nvcc'),
                    *('-std=c++20', '-O1', '-shared', '-cudart=none'),
                    '-Xcompiler=-fPIC',
                    *(f'-I{folder}' for folder in folders),
                    *self.objects,
                    source,
                    *(f'-L{folder}' for folder in library_paths()),
                    *('-ltorch_cpu', '-lc10', '-o', path),
                ]
            )
        # the operators are declared there; those of the CPU would be in the way
        os.environ['DLU_MMDET_NO_EXT'] = '1'
        from dlu_mmdet.ops import library  # noqa: F401

        torch.ops.load_library(path)
        return ctypes.CDLL(str(path))

    def code(self, name: str) -> list:
        """Instructions of a kernel."""
        path = self._objects[name]
        if path not in self._code:
            self._code[path] = parse(_run([tool('cuobjdump'), '-sass', path]))
        return self._code[path][name]


@dataclass(frozen=True)
class Recorded:
    """A launch: kernel, grid, block, dynamic shared memory, arguments."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int
    arguments: bytes


def record(build: Build, operator: str, arguments: Sequence) -> tuple[list, list]:
    """(launches, outputs) of an operator called with CPU tensors."""
    launches: list[Recorded] = []
    sizes = ctypes.POINTER(ctypes.c_uint)

    def on_launch(name, grid, block, shared, values) -> None:
        name = name.decode()
        bank = bytearray()
        for index, (offset, size) in enumerate(build.kernels[name].arguments):
            bank += bytes(offset - len(bank)) + ctypes.string_at(values[index], size)
        launches.append(
            Recorded(name, tuple(grid[:3]), tuple(block[:3]), shared, bytes(bank))
        )

    kind = ctypes.CFUNCTYPE(
        None,
        ctypes.c_char_p,
        sizes,
        sizes,
        ctypes.c_size_t,
        ctypes.POINTER(ctypes.c_void_p),
    )
    callback = kind(on_launch)
    build.library.set_on_launch(callback)
    outputs = getattr(torch.ops.dlu_mmdet, operator)(*arguments)
    if isinstance(outputs, Tensor):
        outputs = (outputs,)
    return launches, list(outputs)


def make(
    operator: str,
    problem: Sequence[int],
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    spread: float = 1.0,
    fill: bool = False,
) -> tuple[list[Tensor], tuple[int, int, int]]:
    """Arguments of an operator, in its order; (N, C, H, W, K, G, s) is the problem.

    What features and gradients hold decides little, only that it is not 0: unless
    ``fill`` they are ones.
    """
    n, c, h, w, k, g, s = problem
    torch.manual_seed(0)

    def lay(tensor: Tensor) -> Tensor:
        return tensor.to(dtype).contiguous(memory_format=memory_format)

    def large(*shape: int) -> Tensor:
        if fill:
            return lay(torch.randn(shape))
        return torch.empty(shape, dtype=dtype, memory_format=memory_format).fill_(1)

    tensors = [large(n, c, h, w)]
    if 'carafe' in operator:
        tensors.append(lay(torch.randn(n, g * k * k, h * s, w * s).softmax(1)))
    else:
        tensors.append(lay(torch.randn(n, g * k * k, h, w).softmax(1)))
        tensors.append(lay(torch.randn(n, g * 2 * s * s, h, w) * spread))
    if 'backward' in operator:
        tensors.insert(0, large(n, c, h * s, w * s))
    return tensors, (k, g, s)


def memory_of(tensors: Sequence[Tensor]) -> Memory:
    """The tensors' own memory, at its own addresses."""
    ranges = {}
    for tensor in tensors:
        if not tensor.numel():
            continue
        start, size = tensor.data_ptr(), tensor.untyped_storage().nbytes()
        ranges[start] = np.ctypeslib.as_array(
            (ctypes.c_uint8 * size).from_address(start)
        )
    return Memory(ranges)


def prepare(build: Build, launch: Recorded, memory: Memory) -> Launch:
    """A recorded launch, ready to run on the interpreter."""
    kernel = build.kernels[launch.kernel]
    shared = launch.shared + kernel.shared
    together = occupancy(kernel.registers, math.prod(launch.block), shared)
    return Launch(
        build.code(launch.kernel),
        launch.grid,
        launch.block,
        shared,
        launch.arguments,
        memory,
        kernel.stack,
        cache_bytes=CACHE // max(together, 1) - shared,
    )


def occupancy(registers: int, threads: int, shared: int) -> int:
    """Blocks that a processor holds at a time."""
    warps = math.ceil(threads / 32)
    # registers go to warps in units of 256, shared memory in units of 128 bytes
    each = math.ceil(registers * 32 / 256) * 256
    by_registers = REGISTERS // each // warps
    by_shared = SHARED // (math.ceil((shared + 1024) / 128) * 128)
    return min(by_registers, by_shared, WARPS // warps, BLOCKS)


@dataclass
class Row:
    """One kernel of the table; times in milliseconds, sizes in bytes."""

    operator: str
    kernel: str
    blocks: int
    threads: int
    once: int
    dram_floor: float
    fma_floor: float
    per_100_fma: float
    shared_per_fma: float
    passes_per_fma: float
    fma_useful: float
    conflicts: float
    useful: float
    hits: float
    registers: int
    spills: int
    shared: int
    per_processor: int
    under_way: int
    limits: dict[str, float]
    opcodes: dict[str, float]
    stray: int


def short_name(mangled: str) -> str:
    """Readable name of a kernel, by c++filt where there is one."""
    if not shutil.which('c++filt'):
        return mangled
    name = _run(['c++filt', mangled]).strip()
    name = re.sub(r'\(anonymous namespace\)::|^void |dlu_mmdet::|c10::', '', name)
    depth, end = 0, len(name)
    for index, letter in enumerate(name):
        depth += (letter == '<') - (letter == '>')
        if letter == '(' and depth == 0:
            end = index
            break
    return name[:end]


def chosen_blocks(count: int, of: int) -> list[int]:
    """Blocks spread over a grid, in no step that a loop over it may share."""
    if count >= of:
        return list(range(of))
    golden = (5**0.5 - 1) / 2
    return sorted({int((index + 0.5) * golden % 1 * of) for index in range(count)})


def count(
    build: Build,
    operator: str,
    problem: Sequence[int],
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    blocks: int,
    spread: float,
) -> list[Row]:
    """Count every kernel that an operator launches."""
    tensors, sizes = make(operator, problem, dtype, memory_format, spread)
    launches, outputs = record(build, operator, [*tensors, *sizes])
    memory = memory_of([*tensors, *outputs])
    n, c, h, w, k, g, s = problem
    multiply_adds = n * c * h * w * s * s * k * k / 32  # of whole warps
    rows = []
    for launch in launches:
        kernel = build.kernels[launch.kernel]
        prepared = prepare(build, launch, memory)
        grid = math.prod(launch.grid)
        counts = Counts()
        memory.touched.clear()
        chosen = chosen_blocks(blocks, grid)
        for index in chosen:
            prepared.run_block(index, counts)
        scale = grid / len(chosen)
        once = sum(
            t.nbytes for t in [*tensors, *outputs] if t.data_ptr() in memory.touched
        )
        opcodes = {name: value * scale for name, value in counts.opcodes.items()}
        rows.append(
            _row(operator, launch, kernel, counts, opcodes, scale, once, multiply_adds)
        )
        rows[-1].stray = counts.stray + memory.stray
        rows[-1].under_way = loads_under_way(busiest_loop(build.code(launch.kernel)))
        rows[-1].limits = _limits(opcodes, counts, scale, once)
    return rows


def _sum(opcodes: dict[str, float], *names: str) -> float:
    return sum(v for name, v in opcodes.items() if name.split('.')[0] in names)


def _row(operator, launch, kernel, counts, opcodes, scale, once, multiply_adds) -> Row:
    shared = kernel.shared + launch.shared
    threads = math.prod(launch.block)
    return Row(
        operator=operator,
        kernel=short_name(launch.kernel),
        blocks=math.prod(launch.grid),
        threads=threads,
        once=once,
        dram_floor=once / DRAM * 1e3,
        fma_floor=multiply_adds / (PROCESSORS * FMAS * CLOCK) * 1e3,
        per_100_fma=100 * sum(opcodes.values()) / multiply_adds,
        shared_per_fma=_sum(opcodes, 'LDS', 'LDSM') / multiply_adds,
        passes_per_fma=counts.wavefronts * scale / multiply_adds,
        fma_useful=multiply_adds / max(_sum(opcodes, 'FFMA', 'DFMA'), 1),
        conflicts=counts.conflicts / max(counts.wavefronts, 1),
        useful=sum(counts.used.values()) / max(32 * sum(counts.sectors.values()), 1),
        hits=counts.hits / max(counts.sectors['LDG'], 1),
        registers=kernel.registers,
        spills=kernel.spills,
        shared=shared,
        per_processor=occupancy(kernel.registers, threads, shared),
        under_way=0,
        limits={},
        opcodes=dict(sorted(opcodes.items(), key=lambda item: -item[1])),
        stray=0,
    )


def _limits(
    opcodes: dict[str, float], counts: Counts, scale: float, once: int
) -> dict[str, float]:
    """Milliseconds of each unit alone."""
    a_second = PROCESSORS * CLOCK
    seconds = dict(
        issue=sum(opcodes.values()) / (a_second * SCHEDULERS),
        shared=counts.wavefronts * scale / (a_second * SHARED_PASSES),
        conversions=_sum(opcodes, 'MUFU', 'I2F', 'F2I', 'F2F')
        / (a_second * CONVERSIONS),
        L2=(sum(counts.sectors.values()) - counts.hits) * scale * 32 / L2,
        DRAM=once / DRAM,
    )
    return {name: value * 1e3 for name, value in seconds.items()}


def busiest_loop(code: Sequence[Instruction]) -> list[str]:
    """Opcodes of the loop with most multiply-adds that has no loop inside."""
    loops = []
    for line in code:
        if line.opcode == 'BRA' and (found := re.search(r'0x(\w+)', line.operands[-1])):
            loops.append((int(found[1], 16), line.address))
    loops = [(first, last) for first, last in loops if first < last]
    inner = [
        (first, last)
        for first, last in loops
        if not any(first <= a and b < last for a, b in loops)
    ]
    bodies = [[x.opcode for x in code if a <= x.address <= b] for a, b in inner]
    return max(bodies, key=lambda body: sum(map(body.count, FMA)), default=[])


def loads_under_way(opcodes: Iterable[str]) -> int:
    """Global loads that a warp has under way: the most without an FMA between them."""
    longest = run = 0
    for opcode in opcodes:
        run = 0 if opcode in FMA else run + (opcode == 'LDG')
        longest = max(longest, run)
    return longest


HEADER = (
    '| kernel | blocks x threads | once (MB) | floor, FMA floor (ms) | instructions '
    'per 100 FMA | FMAs useful | shared loads, passes per FMA | conflicts | '
    'sectors used, hits in L1 | loads under way | '
    'registers, spills | shared (KB) | blocks per SM | alone (ms): {units} |\n'
    '|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|'
)
UNITS = ('issue', 'shared', 'conversions', 'L2', 'DRAM')


def to_markdown(rows: Sequence[Row]) -> str:
    """The table."""
    lines = [HEADER.format(units=', '.join(UNITS))]
    for row in rows:
        alone = ', '.join(f'{row.limits[name]:.2f}' for name in UNITS)
        lines.append(
            f'| `{row.kernel}` | {row.blocks} x {row.threads} | {row.once / 1e6:.0f} | '
            f'{row.dram_floor:.3f}, {row.fma_floor:.3f} | {row.per_100_fma:.0f} | '
            f'{row.fma_useful:.0%} | '
            f'{row.shared_per_fma:.2f}, {row.passes_per_fma:.2f} | '
            f'{row.conflicts:.0%} | {row.useful:.0%}, {row.hits:.0%} | '
            f'{row.under_way} | '
            f'{row.registers}, {row.spills} | '
            f'{row.shared / 1024:.0f} | {row.per_processor} | {alone} |'
        )
    return '\n'.join(lines)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Count instructions, shared memory and sectors of the CUDA '
        'operators, compiled for an H100, without a GPU. Counted, not measured.'
    )
    parser.add_argument(
        '--problem',
        nargs=7,
        type=int,
        default=[8, 256, 100, 168, 5, 1, 2],
        metavar=('N', 'C', 'H', 'W', 'K', 'G', 's'),
    )
    parser.add_argument(
        '--operators', nargs='+', choices=OPERATORS + CARAFE, default=OPERATORS
    )
    parser.add_argument('--dtype', choices=DTYPES, default='float32')
    parser.add_argument('--layout', choices=LAYOUTS, default='nchw')
    parser.add_argument(
        '--blocks', type=int, default=6, help='blocks of each launch to run'
    )
    parser.add_argument(
        '--spread',
        type=float,
        default=1.0,
        help='standard deviation of the offsets, each drawn by itself, in source '
        'pixels; 0 as at the start of a training',
    )
    parser.add_argument('--csrc', type=Path, default=ROOT / 'csrc')
    parser.add_argument('--cache', type=Path, default=ROOT / 'work_dirs/cuda_counts')
    parser.add_argument('--opcodes', type=int, default=0, help='list so many opcodes')
    parser.add_argument('--json', type=Path, help='file for all figures')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    build = Build(args.csrc, args.cache, args.dtype)
    rows = []
    for operator in args.operators:
        rows += count(
            build,
            operator,
            args.problem,
            getattr(torch, args.dtype),
            LAYOUTS[args.layout],
            args.blocks,
            args.spread,
        )
        print(f'{operator} counted', file=sys.stderr, flush=True)
    names = 'N {} C {} {} x {} K {} G {} s {}'.format(*args.problem)
    print(f'{names}, {args.dtype}, {args.layout}, sm_90, {args.blocks} blocks run')
    print(to_markdown(rows))
    for row in rows:
        if row.stray:
            print(f'{row.kernel}: {row.stray} accesses outside of the tensors')
        total = sum(row.opcodes.values())
        for name, value in list(row.opcodes.items())[: args.opcodes]:
            print(f'  {name:40} {value:14.0f} {value / total:6.1%}')
    if args.json:
        args.json.write_text(
            json.dumps([asdict(row) for row in rows], indent=1, allow_nan=False)
        )


if __name__ == '__main__':
    main()
