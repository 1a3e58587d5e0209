"""CUDA operators as nvcc compiled them, on an interpreter, against the reference.

    python tests/stress/compiled.py [--dtype float32] [--csrc csrc]

Needs nvcc and cuobjdump, no GPU; some minutes. Small cases: about 100,000 warp
instructions a second are run.
"""

import argparse
import math
import os
import sys
import time
from pathlib import Path

os.environ['DLU_MMDET_NO_EXT'] = '1'  # its operators have the names of those compiled
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'benchmarks'))

import cuda_counts  # noqa: E402
import torch  # noqa: E402
from counts.sass import Counts  # noqa: E402

from dlu_mmdet.ops import reference  # noqa: E402

# (N, C, H, W, K, G, s)
CASES = [
    (1, 5, 3, 9, 3, 1, 2),
    (1, 3, 1, 1, 1, 1, 1),
    (1, 4, 3, 5, 3, 1, 3),
    (1, 12, 2, 6, 7, 4, 4),
    (1, 6, 3, 37, 5, 2, 2),
    (1, 40, 2, 33, 5, 1, 2),
]
TOLERANCE = dict(float32=1e-4, float16=4e-3, bfloat16=3e-2)


def results(build, operator, case, dtype, layout):
    """(name, result, expected) of each output, and accesses outside of the tensors."""
    tensors, sizes = cuda_counts.make(operator, case, dtype, layout, 3.0, fill=True)
    launches, outputs = cuda_counts.record(build, operator, [*tensors, *sizes])
    memory, counts = cuda_counts.memory_of([*tensors, *outputs]), Counts()
    for launch in launches:
        prepared = cuda_counts.prepare(build, launch, memory)
        for block in range(math.prod(launch.grid)):
            prepared.run_block(block, counts)
    backward = 'backward' in operator
    inputs = [t.double().requires_grad_() for t in tensors[backward:]]
    out = getattr(reference, operator.split('_')[0])(*inputs, *sizes)
    expected = [out.detach()]
    if backward:
        expected = torch.autograd.grad(out, inputs, tensors[0].double())
        expected = expected[:1] if 'features' in operator else expected[1:]
    return list(zip(outputs, expected)), memory.stray + counts.stray


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--dtype', choices=TOLERANCE, default='float32')
    parser.add_argument('--csrc', type=Path, default=ROOT / 'csrc')
    parser.add_argument('--cases', type=int, default=len(CASES))
    args = parser.parse_args()
    dtype, tolerance = getattr(torch, args.dtype), TOLERANCE[args.dtype]
    build = cuda_counts.Build(args.csrc, ROOT / 'work_dirs' / 'cuda_counts', args.dtype)
    compared = wrong = 0
    for case in CASES[: args.cases]:
        for operator in cuda_counts.OPERATORS + cuda_counts.CARAFE:
            for name, layout in cuda_counts.LAYOUTS.items():
                start = time.time()
                pairs, stray = results(build, operator, case, dtype, layout)
                errors = [
                    float(((a.double() - b).abs() / (1 + b.abs())).max())
                    for a, b in pairs
                    if a.numel()
                ]
                bad = stray or not all(error <= tolerance for error in errors)
                wrong += bool(bad)
                compared += len(pairs)
                print(
                    f'{case} {operator} {name}: largest error {max(errors):.1e}, '
                    f'{stray} stray accesses, {time.time() - start:.1f} s'
                    f'{", WRONG" if bad else ""}',
                    flush=True,
                )
    print(f'{args.dtype}: {compared} comparisons, {wrong} differences')
    return int(wrong > 0)


if __name__ == '__main__':
    sys.exit(main())
