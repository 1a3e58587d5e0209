r"""CUDA kernels on a CPU, watched: builds csrc/cuda/*.cu with g++ and torch alone.

:func:`build` compiles the sources as they stand against cuda.h and machine.cpp into a
library that registers the operators for CPU tensors. ``DLU_MMDET_LIBRARY`` names it to
``dlu_mmdet.ops.library``, so that any test of the operators runs on it::

    cd tests && library=$(python -m cuda_emulation)
    DLU_MMDET_LIBRARY=$library python -m pytest \
        ops/test_ops_fused.py -k same_as_reference

A finding is a RuntimeError of the operator with file and line. Environment:
``CUDA_EMULATION_ORDER`` runs blocks, warps and lanes as numbered (0), reversed (1) or
shuffled (a seed); ``CUDA_EMULATION_SHARED`` is the shared memory that a block may
have, in bytes: 232448 of an H100 unless set, 65536 of a T4, 101376 of an RTX 40.
``CUDA_EMULATION_PROCESSORS`` is the number of processors, 132 unless set: with one, a
block takes all channels and taps of its tile.

What a kernel may use is in cuda.h. Beyond it:

- Threads switch at ``__syncthreads`` and at warp operations only (``__syncwarp``,
  ``__shfl_*_sync``, ``__ballot_sync``, ``__any_sync``, ``__all_sync``). Lanes named in
  a mask must meet at the same operation, else it is a divergent one. ``__syncwarp`` of
  all live lanes orders their memory; a shuffle or a partial mask orders nothing.
- Asynchronous copies are those of <cuda_pipeline_primitives.h>
  (``__pipeline_memcpy_async``, ``__pipeline_commit``, ``__pipeline_wait_prior``), which
  nvcc takes for every GPU. Their target may not be touched before the wait, and by
  other threads not before a barrier after it.
- Inline PTX cannot run. It belongs into functions of a header of its own, such as
  csrc/cuda/primitives.cuh; a file of the same name beside this one takes its place.
- ``kernel<<<...>>>`` names the kernel with all its template arguments, and a
  ``__shared__`` array is declared in a line of its own.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CACHE = ROOT / 'build' / 'cuda_emulation'
KEPT = 60  # files in the cache
# what cuda.h holds in their place
HEADERS = (
    'c10/cuda/CUDAException.h',
    'c10/cuda/CUDAFunctions.h',
    'c10/cuda/CUDAGuard.h',
    'c10/cuda/CUDAStream.h',
    'cuda_pipeline_primitives.h',
    'cuda_runtime.h',
    'cuda_runtime_api.h',
)
# std::string is another in what was published of torch before 2.6
ABI = f'-D_GLIBCXX_USE_CXX11_ABI={torch.compiled_with_cxx11_abi():d}'
FLAGS = ['-std=c++20', '-fPIC', '-g1', '-Wno-psabi', '-U_FORTIFY_SOURCE', ABI]
KERNEL_FLAGS = [
    '-O1',  # -O2 takes longer to compile than it saves in the tests
    '-xc++',
    '-includecuda.h',
    '-Wno-unknown-pragmas',
    '-fsanitize=thread',
    '--param=tsan-instrument-func-entry-exit=0',
    '-fsanitize=alignment,bounds',
]
MACHINE_FLAGS = ['-O2']
COMPILER = os.environ.get('CXX', 'g++')


def _opening(text: str, end: int) -> int:
    """Where the angle bracket opens that closes before ``end``."""
    depth = 0
    for i in range(end - 1, -1, -1):
        depth += {'>': 1, '<': -1}.get(text[i], 0)
        if depth == 0:
            return i
    raise ValueError(f'no < for the > in {text[end - 40 : end]!r}')


def translate(text: str) -> str:
    """The two things that a C++ compiler cannot parse; lines keep their numbers."""
    while (launch := text.find('<<<')) >= 0:
        end = len(text[:launch].rstrip())
        start = _opening(text, end) if text[end - 1] == '>' else end
        start = re.search(r'[\w:]*$', text[:start]).start()
        close = text.index('>>>', launch)
        text = (
            f'{text[:start]}emulation::launch({text[start:launch]}, '
            f'{text[launch + 3 : close]}){text[close + 3 :]}'
        )
    text = re.sub(
        r'extern\s+__shared__\s+(?:__align__\(\w+\)\s+)?([\w:\s]+?)\s+(\w+)\[\];',
        r'\1* const \2 = reinterpret_cast<\1*>(emulation::dynamic_shared_memory());',
        text,
    )
    return re.sub(
        r'__shared__\s+(?:__align__\(\w+\)\s+)?([^;]+?)\s+(\w+)((?:\[[^;]*\])?);',
        r'auto& \2 = emulation::shared_variable<\1\3>('
        r'[] { static char key; return &key; }());',
        text,
    )


def _run(command: list) -> None:
    process = subprocess.run(
        [str(part) for part in command],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if process.returncode:
        raise RuntimeError(f'{" ".join(process.args)}:\n{process.stdout[-6000:]}')


def _cached(name: str, key: object, make: Callable[[Path], None]) -> Path:
    """The file of that name and key, made by ``make(path)`` if it is not there."""
    digest = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
    path = CACHE / f'{digest}-{name}'
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            make(Path(folder) / name)
            (Path(folder) / name).replace(path)
    path.touch()
    return path


def build(sources: dict[str, str] | None = None) -> Path:
    """Compile sources into a library, or find it in build/cuda_emulation.

    Args:
        sources (dict, optional): Text by path in csrc/, as ``cuda/forward.cu``. Units
            are those in .cu. Defaults to :func:`read_sources`.

    Returns:
        Path: A library for ``torch.ops.load_library``. Load it before a tensor that a
        kernel gets is made: it watches over allocations.

    Raises:
        RuntimeError: If a source does not compile, with the compiler's output.
    """
    sources = read_sources() if sources is None else sources
    texts = {}
    for name, text in sources.items():
        stand_in = HERE / Path(name).name
        if name.startswith('cuda/') and stand_in.exists():
            text = stand_in.read_text()
        texts[name] = f'#line 1 "{name}"\n{translate(text)}'
    headers = {n: t for n, t in texts.items() if n.endswith(('.h', '.cuh'))}
    headers |= dict.fromkeys(HEADERS, '#pragma once\n')
    for name in ('cuda.h', 'machine.h'):
        headers[name] = (HERE / name).read_text()
    machine = dict(headers, **{'machine.cpp': (HERE / 'machine.cpp').read_text()})

    version = subprocess.run([COMPILER, '--version'], stdout=subprocess.PIPE).stdout
    paths = [*include_paths(), sysconfig.get_paths()['include']]
    common = [COMPILER, *FLAGS, *(f'-isystem{path}' for path in paths)]

    def compile_unit(name: str, files: dict[str, str], flags: list[str]) -> Path:
        def make(out: Path) -> None:
            folder = out.parent
            for path, text in files.items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_text(text)
            _run([*common, f'-I{folder}', *flags, '-c', folder / name, '-o', out])

        key = (version, torch.__version__, common, flags, files)
        return _cached(f'{Path(name).stem}.o', key, make)

    CACHE.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as pool:  # the longest first
        jobs = [
            pool.submit(compile_unit, name, {**headers, name: text}, KERNEL_FLAGS)
            for name, text in texts.items()
            if name.endswith('.cu')
        ]
        # its objects are ready before those of others ask for it
        jobs.insert(0, pool.submit(compile_unit, 'machine.cpp', machine, MACHINE_FLAGS))
        objects = [job.result() for job in jobs]

    def link(out: Path) -> None:
        torch_lib = Path(torch.__file__).parent / 'lib'
        command = [COMPILER, '-shared', '-Wl,-Bsymbolic', *objects, f'-L{torch_lib}']
        _run([*command, f'-Wl,-rpath,{torch_lib}', '-ltorch_cpu', '-lc10', '-o', out])

    library = _cached('emulated.so', objects, link)
    for old in sorted(CACHE.glob('*.*o'), key=os.path.getmtime)[:-KEPT]:
        old.unlink()
    return library


def read_sources() -> dict[str, str]:
    """The text of what the CUDA operators are made of, by path in csrc/."""
    csrc = ROOT / 'csrc'
    paths = [*csrc.glob('*.h'), *sorted((csrc / 'cuda').iterdir())]
    return {str(path.relative_to(csrc)): path.read_text() for path in paths}
