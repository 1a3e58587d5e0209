"""Compare the operators with the reference over a grid of sizes.

    DLU_MMDET_LIBRARY=... python -m cuda_emulation.grid --kernel-sizes 3 5 --scales 1 2

from tests/. Each K and s meets every dtype in both layouts; groups, maps, orders of the
threads, the shared memory of three GPUs and the number of processors take turns. Ends
with status 1 at the first difference or finding.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys

import torch
from ops.test_ops_fused import LAYOUTS, TOLERANCE, assert_close, make, reference_of

from dlu_mmdet.ops import library

# N, C of a group, H, W: below, at and above the vectors and tiles of the kernels
MAPS = [(1, 1, 1, 1), (2, 4, 3, 5), (1, 3, 2, 33), (1, 12, 5, 7), (1, 8, 1, 40)]
ORDERS = [0, 1, 2]
SHARED = [232448, 65536, 101376]  # bytes of an H100, a T4, an RTX 40
PROCESSORS = [132, 1]  # blocks share a small map's channels and taps, or do not


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--kernel-sizes', type=int, nargs='+', required=True)
    parser.add_argument('--scales', type=int, nargs='+', required=True)
    args = parser.parse_args()
    grid = itertools.product(args.kernel_sizes, args.scales, TOLERANCE, LAYOUTS)
    number = 0
    for number, (k, s, dtype, layout) in enumerate(grid, 1):
        n, c, h, w = MAPS[number % len(MAPS)]
        g = 1 + number % 3
        order = ORDERS[number % len(ORDERS)]
        shared = SHARED[number // 3 % len(SHARED)]
        os.environ['CUDA_EMULATION_ORDER'] = str(order)
        os.environ['CUDA_EMULATION_SHARED'] = str(shared)
        processors = PROCESSORS[number // 2 % len(PROCESSORS)]
        os.environ['CUDA_EMULATION_PROCESSORS'] = str(processors)
        for op in ('dlu', 'carafe'):
            case = (n, g * c, h, w, k, g, s)
            inputs, grad, sizes = make(*case, dtype, layout=layout, op=op)
            expected, expected_grads = reference_of(op, inputs, grad, sizes)
            try:
                out = getattr(library, op)(*inputs, *sizes)
                grads = torch.autograd.grad(out, inputs, grad)
                for value, wanted in zip((out, *grads), (expected, *expected_grads)):
                    assert_close(value, wanted, dtype)
            except (AssertionError, RuntimeError) as error:
                print(
                    f'{op} {case} {dtype} {layout} order {order} shared {shared} '
                    f'processors {processors}'
                )
                sys.exit(f'{type(error).__name__}: {error}')
    print(f'{2 * number} calls, no difference')


if __name__ == '__main__':
    main()
