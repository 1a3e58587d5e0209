"""Counts of compiled CUDA code are only as good as the interpreter's results."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import run

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'benchmarks'))
import cuda_counts  # noqa: E402
from counts.sass import Counts, Launch, Memory, parse  # noqa: E402

# loops with and without a known end, divisions, shared memory, shuffles, branches that
# lanes take apart and a barrier; n is not a multiple of anything
SOURCE = r"""
extern "C" __global__ void kernel(const float* in, const int* by, float* out, int n) {
  __shared__ float half[64];
  const int thread = blockIdx.x * 64 + threadIdx.x;
  float sum = 0;
  for (int i = threadIdx.x % 7; i < n; i += 3) sum += in[(thread * 5 + i) % n];
  half[63 - threadIdx.x] = sum;
  __syncthreads();
  float value = half[threadIdx.x];
  for (int step = 16; step > 0; step /= 2) {
    value += __shfl_xor_sync(~0u, value, step);
  }
  const int quotient = by[thread] / (thread % 5 - 7);
  const long long wide = static_cast<long long>(by[thread]) * 1000003 % 97;
  if (threadIdx.x % 3 == 0) {
    for (int i = 0; i < threadIdx.x; ++i) value = value * 0.5f + quotient;
  } else if (wide < 0) {
    value -= wide;
  }
  if (thread < n) out[thread] = value;
}
"""


def needs(*names):
    for name in names:
        try:
            cuda_counts.tool(name)
        except FileNotFoundError as error:
            pytest.skip(str(error))


def expected(inputs, by, n, threads):
    """The kernel in numpy, float32 in the same order."""
    sums = np.zeros(threads, np.float32)
    for thread in range(threads):
        for i in range(thread % 64 % 7, n, 3):
            sums[thread] += inputs[(thread * 5 + i) % n]
    value = sums.reshape(-1, 64)[:, ::-1].reshape(-1, 32)
    for step in (16, 8, 4, 2, 1):
        value = value + value[:, np.arange(32) ^ step]
    value = value.ravel()
    for thread in range(threads):
        quotient = np.float32(math.trunc(by[thread] / (thread % 5 - 7)))
        wide = math.fmod(int(by[thread]) * 1000003, 97)
        if thread % 64 % 3 == 0:
            for _ in range(thread % 64):
                value[thread] = value[thread] * np.float32(0.5) + quotient
        elif wide < 0:
            value[thread] -= np.float32(wide)
    return value[:n]


def test_results_are_those_of_the_source(tmp_path):
    """A wrong branch, division or address would make every count of it worthless."""
    needs('nvcc', 'cuobjdump')
    (tmp_path / 'k.cu').write_text(SOURCE)
    nvcc, dump = cuda_counts.tool('nvcc'), cuda_counts.tool('cuobjdump')
    cubin = tmp_path / 'k.cubin'
    subprocess.run(
        [nvcc, '-arch=sm_90', '-cubin', tmp_path / 'k.cu', '-o', cubin], check=True
    )
    listing = subprocess.run(
        [dump, '-sass', cubin], check=True, text=True, stdout=subprocess.PIPE
    ).stdout
    n, blocks = 101, 2
    random = np.random.default_rng(0)
    inputs = random.standard_normal(n, np.float32)
    by = random.integers(-(2**31), 2**31, 64 * blocks).astype(np.int32)
    out = np.full(64 * blocks, np.nan, np.float32)
    places = {0x10000: inputs, 0x20000: by, 0x30000: out}
    memory = Memory({at: array.view(np.uint8) for at, array in places.items()})
    arguments = b''.join(at.to_bytes(8, 'little') for at in places)
    launch = Launch(
        parse(listing)['kernel'],
        (blocks, 1, 1),
        (64, 1, 1),
        256,
        arguments + n.to_bytes(4, 'little'),
        memory,
    )
    counts = Counts()
    for block in range(blocks):
        launch.run_block(block, counts)
    assert memory.stray == counts.stray == 0
    np.testing.assert_allclose(out[:n], expected(inputs, by, n, 64 * blocks), rtol=1e-5)
    assert np.isnan(out[n:]).all()
    # two warps store 32 floats in each block, and lanes beyond n nothing
    assert counts.used['STG'] == 4 * n
    assert counts.opcodes['SHFL.BFLY'] == 5 * 2 * blocks


def test_blocks_to_run_are_spread():
    """All in one strip of the map, they would count its border as the whole."""
    assert cuda_counts.chosen_blocks(8, 5) == list(range(5))
    chosen = cuda_counts.chosen_blocks(6, 4800)
    assert len(chosen) == 6 and chosen[0] < 1600 and chosen[-1] >= 3200
    assert len({block % 6 for block in chosen}) > 2


def test_blocks_of_a_processor():
    """Figures of NVIDIA's occupancy tables for compute capability 9.0."""
    assert cuda_counts.occupancy(32, 256, 0) == 8
    assert cuda_counts.occupancy(64, 256, 0) == 4
    assert cuda_counts.occupancy(255, 256, 0) == 1
    assert cuda_counts.occupancy(32, 256, 100 << 10) == 2
    assert cuda_counts.occupancy(32, 32, 0) == 32


def test_loads_under_way_are_those_of_the_busiest_loop():
    """A kernel that waits for each load looks fast by its instructions alone."""
    names = ['LDG'] * 9 + ['FFMA'] * 2 + ['BRA 0x0']  # a small loop
    first = 16 * len(names)
    names += ['LDG', 'FFMA', 'LDG', 'LDG', 'LDS', 'LDG', 'FFMA', 'FFMA']
    names += [f'@P0 BRA {first:#x}', 'BRA 0x0', 'EXIT']
    lines = [f'        /*{16 * i:04x}*/  {name} ;' for i, name in enumerate(names)]
    (code,) = parse('\n'.join(['  Function : kernel', *lines])).values()
    body = cuda_counts.busiest_loop(code)
    assert body.count('FFMA') == 3 and body[-1] == 'BRA'
    assert cuda_counts.loads_under_way(body) == 3


@pytest.mark.slow
def test_operators_compiled_for_a_gpu_are_the_reference():
    """What nvcc made of the sources, not what they say."""
    needs('nvcc', 'cuobjdump')
    output = run('tests/stress/compiled.py').stdout
    assert re.search(r'\d+ comparisons, 0 differences', output)


@pytest.mark.slow
def test_the_table_has_every_kernel(tmp_path):
    needs('nvcc', 'cuobjdump')
    path = tmp_path / 'counts.json'
    size = '--problem 1 8 6 9 5 1 2 --blocks 2'.split()
    output = run('benchmarks/cuda_counts.py', *size, '--json', path).stdout
    rows = json.loads(path.read_text())
    assert {row['operator'] for row in rows} == set(cuda_counts.OPERATORS)
    for row in rows:
        assert f'`{row["kernel"]}`' in output
        # every product of the result was formed by somebody
        fma = sum(v for name, v in row['opcodes'].items() if name.startswith('FFMA'))
        assert 32 * fma >= 8 * 6 * 9 * 4 * 25
        assert row['stray'] == 0 and row['limits']['DRAM'] == row['dram_floor']
