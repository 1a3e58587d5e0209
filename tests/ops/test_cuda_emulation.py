"""The CUDA operators on a CPU, watched; and whether the watch sees what is wrong."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cuda_emulation
import pytest

from dlu_mmdet.utils.torch_compat import AT_LEAST_24

TESTS = Path(__file__).parents[1]
BUGS = TESTS / 'cuda_emulation' / 'bugs.cu'
pytestmark = pytest.mark.skipif(
    not shutil.which(cuda_emulation.COMPILER),
    reason=f'no compiler {cuda_emulation.COMPILER}',
)

# what test_ops_fused.py asks of a device, in two shares
SHARES = {
    'same_as_reference and layout0 or wild_offsets or beyond_int': 0,
    'same_as_reference and layout1 or layout_of_features or half_features or '
    'any_strides or float64_offsets or another_dtype or eight_bits or lazy_copies or '
    'bad_tensors': 2,
}
LONG = 'gradcheck or opcheck or extra_memory or autocast or any_order or has_tangents'
# findings in bugs.cu that name no line of a kernel
OF_LAUNCHES = {
    'no_guard': 'a launch outside of a device guard',
    'another_stream': 'a launch that is not on the current stream',
    'too_many_threads': 'a block of 1025 threads',
    'too_much_memory': 'CUDA error: invalid argument',
    'memory_not_asked_for': '50176 bytes of dynamic shared memory, .* may have 49152',
    'not_zeroed': 'nan',
}
OF_KERNELS = re.findall(r'^KERNEL\((\w+)\) \{$', BUGS.read_text(), re.MULTILINE)


def start(command, library, order=0):
    env = {
        **os.environ,
        'DLU_MMDET_LIBRARY': str(library),
        'CUDA_EMULATION_ORDER': str(order),
        # few, so that blocks share the channels and taps of some maps, not of all
        'CUDA_EMULATION_PROCESSORS': '2',
    }
    command = [sys.executable, '-m', *command]
    return subprocess.Popen(
        command,
        cwd=TESTS,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def start_parity(library, tests, order):
    command = ['pytest', '-x', '-p', 'no:cacheprovider', 'ops/test_ops_fused.py']
    return start([*command, '-k', tests], library, order)


def assert_passed(process):
    output = process.communicate()[0]
    assert process.returncode == 0, output[-6000:]
    # an older torch cannot take every test
    assert not AT_LEAST_24 or 'skipped' not in output, output[-2000:]
    assert 'xfailed' not in output, output[-2000:]
    return output


@pytest.fixture(scope='module')
def library():
    return cuda_emulation.build()


def test_cuda_operators_are_right_and_touch_only_what_is_theirs(library):
    """A wrong value or a race would be a user's detector that trains worse."""
    running = [start_parity(library, *share) for share in SHARES.items()]
    counts = [re.search(r'(\d+) passed', assert_passed(p))[1] for p in running]
    assert all(int(count) > 90 for count in counts)


@pytest.mark.slow
def test_derivatives_and_schemas_of_cuda_operators(library):
    assert_passed(start_parity(library, LONG, 1))


@pytest.mark.slow
@pytest.mark.parametrize('kernel_sizes', [(1, 5, 9, 13), (3, 7, 11, 15)])
def test_every_size(library, kernel_sizes):
    """Template arguments and what fits into shared memory depend on K and s."""
    sizes = ['--kernel-sizes', *map(str, kernel_sizes), '--scales', *'12345678']
    output = assert_passed(start(['cuda_emulation.grid', *sizes], library))
    assert '512 calls, no difference' in output


@pytest.mark.slow
def test_random_calls(library):
    """Layouts that no other case has: sliced, expanded, off the alignment."""
    command = ['stress.operators', '--isa', 'generic', '--calls', '600']
    output = assert_passed(start([*command, '--seconds', '120'], library, 3))
    assert re.search(r'all: \d+ calls, \d+ comparisons, 0 differences', output)


# ---- whether it can fail -----------------------------------------------------------

REVERSE = """
import json, os, sys, torch
library, *names = sys.argv[1:]
torch.ops.load_library(library)
found, x = {}, torch.arange(64.0)
for order in ('0', '1', '2'):
    os.environ['CUDA_EMULATION_ORDER'] = order
    for name in names:
        for bug in (False, True):
            try:
                out = torch.ops.cuda_emulation.reverse(x, name, bug)
                result = str(torch.equal(out, x.flip(0)) or out.sum().item())
            except RuntimeError as error:
                result = str(error)
            found.setdefault(name, []).append(result)
print(json.dumps(found))
"""


@pytest.fixture(scope='module')
def reversals():
    library = cuda_emulation.build({'bugs.cu': BUGS.read_text()})
    command = [sys.executable, '-c', REVERSE, library, *OF_KERNELS, *OF_LAUNCHES]
    process = subprocess.run(command, text=True, stdout=subprocess.PIPE, check=True)
    return json.loads(process.stdout)


@pytest.mark.parametrize('name', [*OF_KERNELS, *OF_LAUNCHES])
def test_a_bug_is_found_and_its_absence_is_not(name, reversals):
    """In every order of the threads, with the line that is to blame."""
    right, wrong = reversals[name][::2], reversals[name][1::2]
    assert right == ['True'] * 3
    if name in OF_LAUNCHES:
        assert all(re.search(OF_LAUNCHES[name], text) for text in wrong), wrong
        return
    source = BUGS.read_text()
    above, _, kernel = source.partition(f'KERNEL({name})')
    first = above.count('\n') + 1
    lines = kernel.split('\n}\n')[0].splitlines()
    marked = {first + i for i, line in enumerate(lines) if line.endswith('// here')}
    for text in wrong:
        places = {int(n) for n in re.findall(r'bugs\.cu:(\d+)', text)}
        assert 'CUDA emulation' in text and places & marked, text


# kind: file in csrc/cuda, pattern and which of its places, text with the bug, finding
SEEDED = {
    'missing barrier': (
        'forward.cu',
        r'__syncthreads\(\);',
        1,
        '',
        'race|uninitialized',
    ),
    'race': (
        'backward_kernels.cu',
        r'__syncthreads\(\);',
        2,
        '',
        'race|uninitialized',
    ),
    'missing atomics': (
        'backward_kernels.cu',
        r'atomicAdd\((.*<float\*>.*), (.*)\);',
        0,
        r'*(\1) += \2;',
        'race in global memory',
    ),
    'divergent barrier': (
        'backward_kernels.cu',
        r'__syncthreads\(\);  // the taps before',
        0,
        'if (own.valid) __syncthreads();  // the taps before',
        'is missed by a thread',
    ),
    'off by one': (
        'forward.cu',
        r'within\(x \+ b0 \+ i, p\.W\)',
        0,
        'x + b0 + i >= 0 && x + b0 + i <= p.W',
        'outside of any tensor|AssertionError',
    ),
    'wrong stride': (
        'forward.cu',
        r'to \+= p\.Q\(\) \* p\.plane\(\)',
        0,
        'to += p.plane()',
        'race in global memory|misaligned access|AssertionError',
    ),
    'wrong tap': (
        'backward_features.cu',
        r'return target \+ r - b0;',
        0,
        'return target + r - b0 + 1;',
        'AssertionError',
    ),
    'missing zeroing': (
        'backward_kernels.cu',
        r'\.zero_\(\)',
        0,
        '',
        'AssertionError',
    ),
    'uninitialized': (
        'backward_kernels.cu',
        r'i \+= blockDim\.x\) (.*)uv\[i\] = 0;',
        0,
        r'i += 2 * blockDim.x) \1uv[i] = 0;',
        'uninitialized shared memory',
    ),
    'too little shared memory': (
        'forward.cu',
        r'(return size \* kStrip \* kPair .*);',
        0,
        r'\1 - 16;',
        'outside of shared memory|across the end of shared memory',
    ),
    'misaligned': (
        'forward.cu',
        r'p\.pairs \? (store\(std::true_type\{\}\)) : .*;',
        0,
        r'\1;',
        'misaligned access',
    ),
    'missing guard': (
        'forward.cu',
        r'const c10::cuda::CUDAGuard .*;',
        0,
        '',
        'outside of a device guard',
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize('kind', SEEDED)
def test_a_bug_in_the_kernels_is_found(kind):
    file, pattern, which, with_bug, message = SEEDED[kind]
    sources = cuda_emulation.read_sources()
    source = sources[f'cuda/{file}']
    places = list(re.finditer(pattern, source))
    assert len(places) > which, f'{file} has changed: seed another bug for {pattern}'
    place = places[which]
    seeded = source[: place.start()] + place.expand(with_bug) + source[place.end() :]
    sources[f'cuda/{file}'] = seeded
    library = cuda_emulation.build(sources)
    sizes = ['--kernel-sizes', '3', '5', '--scales', '2', '3']
    process = start(['cuda_emulation.grid', *sizes], library)
    output = process.communicate()[0]
    assert process.returncode == 1 and re.search(message, output), output[-3000:]
