"""Compile the Triton kernels for GPUs that are not here: registers, spills, memory.

    python benchmarks/triton_registers.py [--targets 75 90 gfx942] [--dtypes float32]

With ``--loops``, for NVIDIA GPUs: instructions for 100 multiply-adds, and global loads
under way, in the busiest loop of each kernel.
Needs torch and Triton and no GPU. Prints a table in Markdown. Registers and spills are
those that ptxas reports for NVIDIA GPUs and the code object's metadata for AMD's.
"""

from __future__ import annotations

import argparse
import inspect
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import cuda_counts
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from dlu_mmdet.ops.backend import BACKWARD_FEATURES, BACKWARD_KERNELS, FORWARD
from dlu_mmdet.ops.triton import Operators

TARGETS = ('75', '80', '86', '89', '90', '100', '120', 'gfx942')
NAMES = {
    torch.float16: 'fp16',
    torch.bfloat16: 'bf16',
    torch.float32: 'fp32',
    torch.float64: 'fp64',
}
LAYOUTS = dict(nchw=torch.contiguous_format, channels_last=torch.channels_last)


def target_of(name: str) -> GPUTarget:
    if name.startswith('gfx'):
        return GPUTarget('hip', name, 64)
    return GPUTarget('cuda', int(name), 32)


def launch(operation: int, carafe: bool, dtype: torch.dtype, layout: str, shape: tuple):
    """What an operator would launch for a problem; its tensors hold no memory."""
    n, c, h, w, k, g, s = shape

    def tensor(*sizes: int, kind: torch.dtype = dtype) -> torch.Tensor:
        empty = torch.empty(sizes, dtype=kind, device='meta')
        return empty.to(memory_format=LAYOUTS[layout])

    features, out = tensor(n, c, h, w), tensor(n, c, s * h, s * w)
    kernels = tensor(n, g * k * k, *((s * h, s * w) if carafe else (h, w)))
    offsets = None if carafe else tensor(n, g * 2 * s * s, h, w)
    grad = None if operation == FORWARD else out
    results = [{FORWARD: out, BACKWARD_FEATURES: features}.get(operation, kernels)]
    if operation == BACKWARD_KERNELS and not carafe:
        results = [tensor(*kernels.shape, kind=torch.float32), offsets]
    sizes = (k, g, s)
    return Operators.launch(
        operation, sizes, features, kernels, offsets, grad, *results
    )


def compiled(kernel, args: list, options: dict, target: GPUTarget):
    """Specialized as the launcher does: strides of 1 and 16-byte alignment."""
    names = list(inspect.signature(kernel.fn).parameters)
    values = dict(zip(names, args))
    num_warps = options['num_warps']
    constants = {k: v for k, v in options.items() if k != 'num_warps'}
    fixed = {p.name for p in kernel.params if p.do_not_specialize}
    signature, attributes = {}, {}
    for i, name in enumerate(names):
        value = values.get(name)
        if isinstance(value, torch.Tensor):
            signature[name] = f'*{NAMES[value.dtype]}'
        elif name in constants or value is None or (value == 1 and name not in fixed):
            constants.setdefault(name, value)
            signature[name] = 'constexpr'
            continue
        else:
            signature[name] = 'i32' if value < 2**31 else 'i64'
            if value % 16 or name in fixed:
                continue
        attributes[(i,)] = [['tt.divisibility', 16]]
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=target, options=dict(num_warps=num_warps))


def counts(binary, target: GPUTarget) -> tuple[int, int, int]:
    """Registers of a thread, spilled bytes of one, shared memory of a block."""
    shared = binary.metadata.shared
    if target.backend == 'hip':
        text = binary.asm['amdgcn']
        registers = int(re.search(r'\.vgpr_count:\s+(\d+)', text)[1])
        spills = int(re.search(r'\.private_segment_fixed_size:\s+(\d+)', text)[1])
        return registers, spills, shared
    text = dump(binary, '--dump-resource-usage')
    found = {k: int(v) for k, v in re.findall(r'(REG|STACK|LOCAL):(\d+)', text)}
    return found['REG'], found['STACK'] + found['LOCAL'], shared


def dump(binary, what: str) -> str:
    """What cuobjdump prints of a compiled kernel."""
    tool = Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin' / 'cuobjdump'
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(binary.asm['cubin'])
        file.flush()
        command = [tool, what, file.name]
        return subprocess.run(
            command, check=True, text=True, stdout=subprocess.PIPE
        ).stdout


def loop_of(binary, target: GPUTarget) -> tuple[str, int]:
    """Instructions for 100 multiply-adds in the busiest loop, and its loads."""
    if target.backend == 'hip':
        return '', 0
    ((_, code),) = cuda_counts.parse(dump(binary, '-sass')).items()
    body = cuda_counts.busiest_loop(code)
    multiply_adds = sum(map(body.count, cuda_counts.FMA))
    per_100 = f'{100 * len(body) / multiply_adds:.0f}' if multiply_adds else ''
    return per_100, cuda_counts.loads_under_way(body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--targets', nargs='+', default=TARGETS)
    parser.add_argument('--dtypes', nargs='+', default=['float32', 'bfloat16'])
    parser.add_argument('--layouts', nargs='+', choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument(
        '--problem',
        nargs=7,
        type=int,
        default=(8, 256, 100, 168, 5, 1, 2),
        metavar=tuple('NCHWKGs'),
    )
    parser.add_argument('--loops', action='store_true', help='the busiest loop instead')
    args = parser.parse_args()
    figures = 'registers / spilled bytes / shared bytes'
    if args.loops:
        figures = 'instructions for 100 multiply-adds / loads under way'
    print(f'Triton {triton.__version__}: {figures}\n')
    print('| operator | ' + ' | '.join(args.targets) + ' |')
    print('|---|' + '--:|' * len(args.targets))
    for dtype in args.dtypes:
        for layout in args.layouts:
            for carafe in (False, True):
                for operation in (FORWARD, BACKWARD_FEATURES, BACKWARD_KERNELS):
                    kernel, values, options, _ = launch(
                        operation, carafe, getattr(torch, dtype), layout, args.problem
                    )
                    cells = []
                    for name in args.targets:
                        target = target_of(name)
                        binary = compiled(kernel, values, options, target)
                        found = (loop_of if args.loops else counts)(binary, target)
                        cells.append(' / '.join(map(str, found)))
                    title = f'{"carafe" if carafe else "dlu"} {kernel.fn.__name__}'
                    row = [f'{title}, {dtype}, {layout}', *cells]
                    print('| ' + ' | '.join(row) + ' |', flush=True)


if __name__ == '__main__':
    main()
