"""The operators in Triton, interpreted on the CPU, and what chooses them.

Triton decides to interpret when it is imported, so the tests need a separate process.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_ops_fused import (
    ALONE,
    LAYOUTS,
    ROOT,
    TOLERANCE,
    assert_close,
    check_values,
    make,
    poisoned_memory,  # noqa: F401
    reference_of,
)

from dlu_mmdet import collect_env, stacks
from dlu_mmdet.ops import backend, library, reference

TESTS = Path(__file__).parents[1]
IS_INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
PROBLEM = stacks.triton_problem()
needs_triton = pytest.mark.skipif(bool(PROBLEM), reason=PROBLEM)
interpreted = pytest.mark.skipif(not IS_INTERPRETED, reason='runs in another process')
# N, C, H, W, K, G, s: few programs and taps, since each takes milliseconds a step
QUICK = [
    (1, 1, 2, 1, 9, 1, 1),
    (2, 4, 3, 2, 1, 4, 3),
    (1, 2, 3, 5, 3, 2, 2),
    (1, 1, 1, 33, 3, 1, 2),
    (1, 1, 2, 3, 1, 1, 8),
]
MAPS = [(1, 1), (3, 1), (2, 5), (1, 33)]
GRID = [
    (1, 2 * g, *MAPS[(k // 2 + s) % (4 if k < 7 else 3)], k, g, s)
    for k in (1, 3, 5, 7, 9)
    for s in range(1, 9)
    for g in [(1, 2, 4)[(k // 2 + s) % 3 if k < 7 else 0]]
]


def check(case, number, op):
    """A dtype and a layout in turn."""
    dtype, layout = list(TOLERANCE)[number % 4], LAYOUTS[number // 2 % 2]
    check_values(op, dtype, *make(*case, dtype, layout=layout, op=op))


@interpreted
@pytest.mark.parametrize('op', ['dlu', 'carafe'])
@pytest.mark.parametrize('number, case', enumerate(QUICK))
def test_same_values(number, case, op):
    check(case, number, op)


@interpreted
@pytest.mark.slow
@pytest.mark.parametrize('op', ['dlu', 'carafe'])
@pytest.mark.parametrize('number, case', enumerate(GRID))
def test_same_values_in_the_grid(number, case, op):
    # eight ratios a kernel size: without the shift each would keep its dtype
    check(case, number + number // 8, op)


@interpreted
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_window_scores(dtype):
    (features, queries), _, sizes = make(2, 4, 3, 5, 3, 2, 2, dtype, op='window_scores')
    expected = reference.window_scores(features.double(), queries.double(), *sizes)
    assert_close(library.window_scores(features, queries, *sizes), expected, dtype)


@interpreted
@pytest.mark.parametrize('last', [False, True])
def test_wild_offsets_and_any_strides(last):
    inputs, grad, sizes = make(1, 2, 3, 5, 3, 1, 2, torch.float64, layout=LAYOUTS[last])
    inf, nan = float('inf'), float('nan')
    wild = [1e300, -1e300, 3e38, 60.0, -60.0, nan, inf, -inf, 0.0, 1.0, -2.0, 0.5]
    offsets = torch.tensor(wild, dtype=torch.float64).repeat(10)
    inputs[2] = offsets.reshape(inputs[2].shape)
    expected, expected_grads = reference_of('dlu', inputs, grad, sizes)
    strided = []
    for tensor in inputs:
        n, c, h, w = tensor.shape
        wide = torch.full((n, c, h + 3, 2 * w), torch.nan, dtype=torch.float64)
        view = wide[:, :, 1:-2, ::2]
        strided.append(view.copy_(tensor.detach()).requires_grad_())
    out = library.dlu(*strided, *sizes)
    assert_close(out, expected, torch.float64)
    grads = torch.autograd.grad(out, strided, grad.mT.contiguous().mT)
    for value, wanted in zip(grads, expected_grads):
        assert_close(value, wanted, torch.float64)


@interpreted
def test_more_elements_than_32_bits_count(monkeypatch):
    """The same values with 64-bit indices, which such tensors get."""
    from dlu_mmdet.ops import triton

    monkeypatch.setattr(triton, '_extent', lambda tensor: 2**31)
    for op in ('dlu', 'carafe'):
        check((1, 2, 2, 3, 3, 1, 2), 1, op)


def interpret(*command, limit=600):
    env = {
        **os.environ,
        'TRITON_INTERPRET': '1',
        'DLU_MMDET_NO_EXT': '1',
        'PYTHONPATH': os.pathsep.join([str(TESTS), os.environ.get('PYTHONPATH', '')]),
    }
    plugins = ['-p', 'no:cacheprovider', '-p', 'helpers.triton_on_cpu', '-n', '0']
    process = subprocess.run(
        [sys.executable, '-m', 'pytest', *plugins, *command],
        cwd=TESTS,
        env=env,
        text=True,
        timeout=limit,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.returncode == 0, process.stdout[-6000:]
    return process.stdout


NAMES = 'same_values or window_scores or wild_offsets_and or 32_bits'
outer = pytest.mark.skipif(IS_INTERPRETED, reason='runs in another process')


@outer
@needs_triton
def test_kernels_are_right():
    """On a GPU without nvcc a wrong value would be a detector that trains worse."""
    output = interpret('-v', 'ops/test_triton.py', '-k', f'({NAMES}) and not grid')
    assert re.search(r'15 passed', output), output[-2000:]


@outer
@needs_triton
@pytest.mark.slow
def test_kernels_are_right_in_the_grid():
    command = ['-v', '-m', 'slow', 'ops/test_triton.py', '-k', 'grid']
    output = interpret(*command, limit=3000)
    assert re.search(r'80 passed', output), output[-2000:]


# ---- launches ----------------------------------------------------------------------


@needs_triton
@pytest.mark.parametrize('operation', [backend.FORWARD, backend.BACKWARD_FEATURES])
def test_launch_of_more_than_2_to_the_31_elements(operation):
    """Programs cover the tensors, and indices are of 64 bits."""
    from dlu_mmdet.ops.triton import Operators

    def tensor(*shape):
        return torch.empty(shape, device='meta')

    n, c, h, w = 16, 256, 512, 512
    features, out = tensor(n, c, h, w), tensor(n, c, 2 * h, 2 * w)
    kernels, offsets = tensor(n, 25, h, w), tensor(n, 8, h, w)
    grad, result = (None, out) if operation == backend.FORWARD else (out, features)
    _, _, options, count = Operators.launch(
        operation, (5, 1, 2), features, kernels, offsets, grad, result
    )
    assert out.numel() > 2**31 and str(options['I']) == 'int64'
    assert count * options['BP'] * options['BC'] == features.numel()
    _, _, options, _ = Operators.launch(
        operation,
        (5, 1, 2),
        *(t[:1] for t in (features, kernels, offsets)),
        None if grad is None else grad[:1],
        result[:1],
    )
    assert str(options['I']) == 'int32'


# ---- which backend runs ------------------------------------------------------------

PRINT = """
from dlu_mmdet.ops import library
print(library.is_available('cuda'), library.gpu_backend())
"""


def choose(**settings):
    env = {**os.environ, **{f'DLU_MMDET_{k}': v for k, v in settings.items()}}
    env.pop('TRITON_INTERPRET', None)
    return subprocess.run(
        [sys.executable, '-c', ALONE + PRINT],
        cwd=ROOT,
        env=env,
        text=True,
        capture_output=True,
    )


@outer
@needs_triton
def test_triton_is_chosen():
    assert choose(BACKEND='triton', NO_EXT='1').stdout == 'True triton\n'
    assert choose(BACKEND='plain').stdout == 'False plain\n'


def fails_to_load(monkeypatch, tmp_path, wish, problem):
    monkeypatch.setattr(library, '_FOLDER', tmp_path)
    monkeypatch.setattr(library, '_NO_EXT', False)
    monkeypatch.setattr(library, '_BACKEND', wish)
    monkeypatch.setattr(library, 'triton_problem', lambda: problem)
    with pytest.raises(ValueError) as error:
        library._load_gpu()
    return str(error.value)


def test_a_backend_that_is_not_there_is_refused(monkeypatch, tmp_path):
    for version, words in {'13.0': 'toolkit 13.0', None: 'not built for CUDA'}.items():
        monkeypatch.setattr(torch.version, 'cuda', version)
        message = fails_to_load(monkeypatch, tmp_path, 'cuda', '')
        assert 'DLU_MMDET_BACKEND asks for the CUDA operators' in message
        assert words in message
    monkeypatch.setattr(stacks, 'installed', lambda names: {})
    problem = stacks.triton_problem()
    message = fails_to_load(monkeypatch, tmp_path, 'triton', problem)
    assert message.endswith('but Triton is not installed; pip install triton')


def test_a_triton_too_old_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(stacks, 'installed', lambda names: {'triton': '2.1.0'})
    monkeypatch.setattr(stacks, 'find_spec', lambda name: True)
    problem = stacks.triton_problem()
    message = fails_to_load(monkeypatch, tmp_path, 'triton', problem)
    assert 'triton 2.1.0 is too old; install 3.4 or later' in message


def test_a_library_and_another_backend_exclude_each_other():
    process = choose(BACKEND='plain', LIBRARY=sys.executable)
    assert process.returncode and 'exclude each other' in process.stderr


@pytest.mark.parametrize(
    'wish, problem, words',
    [
        ('', '', 'triton'),
        ('', 'Triton is not installed', 'plain PyTorch'),
        ('plain', '', 'plain PyTorch'),
        ('triton', 'Triton is not installed', 'none, .* but Triton is not installed'),
        ('cuda', '', 'none, .* not there'),
        ('rocm', '', 'none, .*=rocm is not cuda, triton or plain'),
    ],
)
def test_version_says_what_runs_on_a_gpu(monkeypatch, wish, problem, words):
    monkeypatch.setenv('DLU_MMDET_BACKEND', wish)
    monkeypatch.setenv('DLU_MMDET_NO_EXT', '0')
    monkeypatch.setattr(collect_env, 'triton_problem', lambda: problem)
    assert re.fullmatch(words, collect_env._on_gpu(is_compiled=False))
    if not wish:
        assert collect_env._on_gpu(is_compiled=True) == 'cuda'
