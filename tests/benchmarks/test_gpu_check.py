import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
from pathlib import Path

import pytest
from conftest import ROOT, run

sys.path.insert(0, str(ROOT / 'benchmarks'))
import gpu_check  # noqa: E402

TOOL = ROOT / 'benchmarks' / 'gpu_check.py'


def make_step(action=None):
    return gpu_check.Step('step', action or (lambda check, step: 'done'), 100, 300)


@pytest.fixture
def check(tmp_path):
    return gpu_check.Check(tmp_path / 'out', 300, 'cpu', tmp_path / 'out.tar.gz')


@pytest.fixture
def on_gpu(tmp_path, monkeypatch):
    """A check beside a GPU whose commands answer with ``outputs`` in turn."""
    check = gpu_check.Check(tmp_path / 'out', 300, 'cuda')
    check.commands, check.outputs = [], []

    def answer(step, command, ok=(0,), **kwargs):
        check.commands.append([str(part) for part in command])
        status, output = check.outputs.pop(0)
        if status not in ok:
            raise subprocess.CalledProcessError(status, command, output)
        return output

    monkeypatch.setattr(check, 'run', answer)
    monkeypatch.setattr(gpu_check, 'find', lambda tool: f'/bin/{tool}')
    return check


def test_the_plan_fits_what_comes_back():
    steps = gpu_check.plan('cuda')
    assert sum(step.characters + 1 for step in steps) < 11_800
    kinds = list(dict.fromkeys(step.name.split('-')[0] for step in steps))
    assert kinds == [
        *('facts', 'operators', 'parity', 'use', 'timings', 'triton', 'counters'),
        *('training', 'rebuild', 'memcheck', 'racecheck'),
    ]
    # with a carried library, all but the last checker have their time for certain
    limits = sum(s.seconds for s in steps if s.name not in ('operators', 'rebuild'))
    assert limits - 120 <= 550


def test_without_a_gpu_it_says_so():
    env = {**os.environ, 'CUDA_VISIBLE_DEVICES': ''}
    process = run(TOOL, check=False, env=env)
    assert process.returncode == 1
    assert process.stdout.splitlines()[-1].startswith('torch sees no GPU here')


def test_a_rehearsal_prints_and_packs_every_step(tmp_path):
    names = ['operators', 'timings-float32-channels_last', 'counters-float32']
    names += ['training', 'racecheck', 'rebuild', 'triton-parity']
    archive = tmp_path / 'a.tar.gz'
    output = run(
        *(TOOL, '--rehearse', '--out', tmp_path / 'out', '--archive', archive),
        *('--only', *names),
    ).stdout
    statuses = re.findall(r'^## (\S+): (.+), \d+ s$', output, re.MULTILINE)
    assert {name for name, status in statuses if status == 'ok'} == set(names[:-2])
    assert {dict(statuses)[name] for name in names[-2:]} == {'cannot run'}
    assert '| dlu_mmdet::dlu_backward_kernels |' in output
    assert output.count('\n| dlu, fused f+b |') == 1
    with tarfile.open(archive) as tar:
        packed = {Path(name).name for name in tar.getnames()}
        report = tar.extractfile('out/report.md').read().decode()
    assert {'report.md', 'full.md', 'operators.log', 'racecheck.log'} <= packed
    assert output.endswith(f'\n{report}') and len(report) < 11_800
    # the report, and no other text, ends the output
    assert output.count('## operators: ok') == 1


def test_a_killed_run_keeps_what_it_has(tmp_path):
    """A machine that is taken back would leave nothing, or processes on its GPU."""
    archive = tmp_path / 'a.tar.gz'
    command = [sys.executable, TOOL, '--rehearse', '--out', tmp_path / 'out']
    command += ['--archive', archive, '--only', 'facts', 'parity']
    process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE)
    for line in process.stdout:
        if line.startswith('facts: ok'):
            break
    children = Path(f'/proc/{process.pid}/task/{process.pid}/children')
    while not (found := children.read_text().split()):
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 1 and '## parity: out of time' in printed
    assert not any(Path(f'/proc/{child}').exists() for child in found)
    with tarfile.open(archive) as tar:
        report = tar.extractfile('out/report.md').read().decode()
    assert '## facts: ok' in report and '## parity: out of time' in report


def test_operators_load_without_mmdet(check, tmp_path, monkeypatch):
    """A machine with a GPU and no mmdet would otherwise test nothing."""
    (tmp_path / 'sitecustomize.py').write_text(
        textwrap.dedent(
            """
            import sys

            class Absent:
                def find_spec(self, name, path=None, target=None):
                    if name.split('.')[0] in ('mmcv', 'mmdet', 'mmengine'):
                        raise ModuleNotFoundError(name=name)

            # an editable install would find what the check's own package lacks
            sys.meta_path = [x for x in sys.meta_path if 'Editable' not in str(x)]
            sys.meta_path.insert(0, Absent())
            """
        )
    )
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    monkeypatch.setattr(gpu_check, 'is_installed', lambda name: name != 'xdist')
    step = check.step(
        make_step(
            lambda check, step: gpu_check.tests(
                check, step, 'test_ops_fused.py', 'test_any_strides and cpu'
            )
        )
    )
    assert (step.status, step.sentence) == ('ok', '1 passed')
    command = (check.out / 'step.log').read_text().splitlines()[0].split()
    assert '-x' not in command
    assert command[command.index('--maxfail') + 1] == '40'


def test_a_library_without_code_for_this_gpu_is_built_again(
    check, tmp_path, monkeypatch
):
    """Not taken for wrong values, with which the other steps would go on."""
    (tmp_path / 'sitecustomize.py').write_text(
        textwrap.dedent(
            """
            import torch

            def refuse(*args):
                raise RuntimeError('CUDA error: no kernel image is available')

            torch.autograd.grad = refuse
            """
        )
    )
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    step = check.step(make_step(gpu_check.operators))
    assert step.status == 'failed' and 'no kernel image is available' in step.sentence
    with pytest.raises(gpu_check.CannotRun):
        check.need_operators()


def test_tests_that_are_killed_are_counted(check, monkeypatch):
    lines = [
        '[gw0] [ 33%] PASSED tests/ops/test_ops_fused.py::test_a[cuda-1]',
        '[gw1] [ 66%] FAILED tests/ops/test_ops_fused.py::test_b[cuda-2]',
        'tests/ops/test_ops_fused.py::test_c[cuda-3] PASSED   [ 99%]',
        'tests/ops/test_ops_fused.py::test_d[cuda-4]',
    ]

    def killed(step, command, **kwargs):
        (check.out / 'step.log').write_text('\n'.join(lines))
        raise subprocess.TimeoutExpired(command, 1)

    monkeypatch.setattr(check, 'run', killed)
    step = check.step(make_step(lambda *args: gpu_check.tests(*args, 'x', 'y')))
    assert (step.status, step.sentence) == ('out of time', '2 passed, 1 failed')
    assert step.table == '- test_b[cuda-2]'


@pytest.mark.parametrize('kind', ['tests', 'timings', 'training'])
def test_no_time_is_left(check, kind):
    check.end = 0
    arguments = dict(tests=('x', 'y'), timings=('float32', 'nchw')).get(kind, ())
    step = check.step(
        make_step(lambda *args: getattr(gpu_check, kind)(*args, *arguments))
    )
    assert step.status == 'out of time' and step.sentence


def test_a_step_that_fails_or_hangs_does_not_end_the_run(check):
    def hang(check, step):
        step.end = 0
        return check.run(step, ['sleep', 60])

    def fail(check, step):
        code = 'raise ValueError("of the step")'
        return check.run(step, [sys.executable, '-c', code])

    def talk(check, step):
        step.table = '\n'.join(100 * ['| a line of a table |'])
        return 'much'

    assert check.step(make_step(hang)).status == 'out of time'
    failed = check.step(make_step(fail))
    assert failed.status == 'failed' and 'ValueError: of the step' in failed.sentence
    before = (check.out / 'report.md').read_text()
    assert check.step(make_step(talk)).status == 'ok'
    report = (check.out / 'report.md').read_text()
    assert len(report) - len(before) <= 301
    assert report.endswith('[... more in full.md]\n\n')
    assert (check.out / 'full.md').read_text().count('a line of a table') == 100
    statuses = [step.status for step in check.finished]
    assert statuses == ['out of time', 'failed', 'ok']


def test_a_step_that_hangs_leaves_no_compiler(check, tmp_path):
    """As ninja does it: a group for each command, and SIGTERM ends them."""
    code = """
    import os, signal, subprocess, sys, time

    compiler = subprocess.Popen(['sleep', '600'], preexec_fn=os.setpgrp)
    signal.signal(signal.SIGTERM, lambda *_: (compiler.kill(), os._exit(1)))
    open(sys.argv[1], 'w').write(str(compiler.pid))
    time.sleep(600)
    """
    file = tmp_path / 'pid'

    def hang(check, step):
        step.end = check.end = time.monotonic() + 4
        return check.run(step, [sys.executable, '-c', textwrap.dedent(code), file])

    assert check.step(make_step(hang)).status == 'out of time'
    stat = Path(f'/proc/{file.read_text()}/stat')
    assert not stat.exists() or ') Z ' in stat.read_text()


def test_the_time_that_torch_takes_to_load_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, 'BEGAN', time.monotonic() - 1e4)
    monkeypatch.setattr(signal, 'signal', lambda *args: None)
    command = ['--rehearse', '--out', str(tmp_path), '--only', 'operators']
    monkeypatch.setattr(sys, 'argv', ['gpu_check', *command])
    assert gpu_check.main() == 1
    assert '## operators: out of time, 0 s' in (tmp_path / 'report.md').read_text()


def test_wrong_values_do_not_end_the_run_and_no_library_is_built(on_gpu, monkeypatch):
    monkeypatch.setattr('torch.cuda.get_device_capability', lambda device: (9, 0))
    on_gpu.outputs = [(1, 'largest error on cuda is 3.000 of the tolerance')]
    step = on_gpu.step(make_step(gpu_check.operators))
    assert step.status == 'failed' and 'is 3.000 of' in step.sentence
    on_gpu.need_operators()
    missing = (1, 'ValueError: ... asks for the CUDA operators, which are not there')
    on_gpu.outputs = [missing, (0, ''), (0, 'largest error on cuda is 0.100 of it')]
    step = on_gpu.step(make_step(gpu_check.operators))
    assert step.status == 'ok' and 'is 0.100 of' in step.sentence
    assert 'build_ext' in on_gpu.commands[2]
    on_gpu.outputs = [missing, (1, "fatal error: 'cuda.h': No such file")]
    assert on_gpu.step(make_step(gpu_check.operators)).status == 'failed'
    with pytest.raises(gpu_check.CannotRun):
        on_gpu.need_operators()


def test_triton_does_not_stand_in_for_a_library_that_does_not_load(check, monkeypatch):
    """All times of the run would be those of other kernels."""
    code = 'import os; print(os.environ.get("DLU_MMDET_BACKEND"))'
    command = [sys.executable, '-c', code]
    monkeypatch.delenv('DLU_MMDET_BACKEND', raising=False)
    step = make_step()
    check.end = step.end = float('inf')
    assert check.run(step, command) == 'None\n'
    check.rehearses = False
    assert check.run(step, command) == 'cuda\n'
    assert check.run(step, command, DLU_MMDET_BACKEND='triton') == 'triton\n'


# ---- what the tools print ------------------------------------------------------------

# mangled, a file's name comes before that of the kernel
SPACE = '_ZN9dlu_mmdet58_GLOBAL__N__48cb4fd0_19_backward_kernels_cu_0f3cb37c_18785'
KERNELS = {
    # by c++filt, of the library that nvcc 13.0 built for sm_90
    'void dlu_mmdet::(anonymous namespace)::forward_planes<float, 5>'
    '(dlu_mmdet::Geometry, dlu_mmdet::Plan)': 'forward_planes<float, 5>',
    'void dlu_mmdet::(anonymous namespace)::backward_kernels_pixels<c10::BFloat16, 4, '
    '3>(dlu_mmdet::Geometry, dlu_mmdet::Plan)': (
        'backward_kernels_pixels<BFloat16, 4, 3>'
    ),
    f'{SPACE}23backward_kernels_pixelsIfLi1ELi3EEEvNS_8GeometryENS_4PlanE': (
        'backward_kernels_pixels'
    ),
    # as ncu writes them
    'void dlu_mmdet::<unnamed>::backward_features_planes<float, (int)5>'
    '(Geometry, Plan)': 'backward_features_planes<float, 5>',
}


def test_kernels_are_named_as_in_the_sources():
    sources = ''.join(p.read_text() for p in (ROOT / 'csrc' / 'cuda').glob('*.cu'))
    names = gpu_check.kernel_names()
    assert len(set(names)) == sources.count('__global__') == 6
    for kernel, name in KERNELS.items():
        assert gpu_check.short_name(kernel) == name
    for name in names:
        assert gpu_check.short_name(f'void a::{name}<float>(a::Geometry, a::Plan)') == (
            f'{name}<float>'
        )
    with pytest.raises(ValueError, match='no kernel of csrc/cuda'):
        gpu_check.short_name('void at::native::vectorized_elementwise_kernel<4>(int)')


def counter_csv():
    """What ncu prints: a row of units first, and thousands with commas."""
    columns = ['ID', 'Kernel Name', *(metric for metric, *_ in gpu_check.METRICS)]
    values = ['2,000,000', '706000000', '11.7', '1,075,200,000', '61.5', '5', '0', '50']
    rows = [columns, ['', '', 'ns', *['%'] * 7], ['0', next(iter(KERNELS)), *values]]
    lines = [','.join(f'"{cell}"' for cell in row) for row in rows]
    return '\n'.join(['==PROF== Profiling', *lines])


def test_counters_are_read_and_clocks_left_alone(on_gpu):
    on_gpu.outputs = [(0, counter_csv())]
    step = on_gpu.step(make_step(lambda *args: gpu_check.counters(*args, 'float32')))
    assert step.sentence.startswith('counters by ncu')
    # 2 ms, 706 MB, ten instructions for a multiply-add
    expected = (
        '| forward_planes<float, 5> | 2.000 | 706 | 12 | 1000 | 62 | 0.00 | 0 | 50 |'
    )
    assert step.table.splitlines()[-1] == expected
    (command,) = on_gpu.commands
    assert command[command.index('--clock-control') + 1] == 'none'


@pytest.mark.parametrize(
    'answer',
    [
        (1, '==ERROR== ERR_NVGPUCTRPERM - no permission\n==PROF== Disconnected'),
        (0, '==ERROR== ERR_NVGPUCTRPERM - no permission'),
    ],
)
def test_without_permission_for_counters_there_are_times(on_gpu, answer):
    kernel = {'kernel': next(iter(KERNELS)), gpu_check.METRICS[0][0]: 123000.0}
    on_gpu.outputs = [answer, (0, json.dumps(kernel))]
    step = on_gpu.step(make_step(lambda *args: gpu_check.counters(*args, 'float32')))
    assert step.status == 'ok' and 'ERR_NVGPUCTRPERM' in step.sentence
    assert step.table.splitlines()[-1] == '| forward_planes<float, 5> | 0.123 |'


@pytest.mark.parametrize(
    'answer, status, words',
    [
        (
            (0, '112 calls, forward and backward\n==== ERROR SUMMARY: 0 errors'),
            'ok',
            '',
        ),
        (
            (99, '===== Invalid read\n===== ERROR SUMMARY: 2 errors'),
            'failed',
            '2 errors',
        ),
        ((0, 'Killed\n===== ERROR SUMMARY: 0 errors'), 'failed', '0 errors'),
        ((1, '===== Error: Device not supported'), 'failed', 'Device not supported'),
    ],
)
def test_a_checker_that_checked_nothing_does_not_pass(on_gpu, answer, status, words):
    on_gpu.outputs = [answer]
    step = on_gpu.step(make_step(lambda *args: gpu_check.sanitizer(*args, 'memcheck')))
    assert step.status == status and words in step.sentence


def test_times_of_a_killed_run_are_shown(on_gpu):
    row = dict(
        batch=8, size=[25, 42], direction='forward', name='dlu, fused', extra=0.1
    )
    row.update(milliseconds=0.034, replay=0.0123)
    both = dict(row, direction='forward + backward', milliseconds=0.2, replay=None)

    def killed(step, command, **kwargs):
        file = Path(command[-1])
        file.write_text(json.dumps(dict(bandwidth=4.3e12, rows=[row, both])))
        raise subprocess.TimeoutExpired(command, 1)

    on_gpu.run = killed
    action = gpu_check.partial(gpu_check.timings, dtype='float32', layout='nchw')
    step = on_gpu.step(make_step(action))
    assert step.status == 'out of time' and '4300 GB/s' in step.sentence
    assert step.table.splitlines()[-2:] == [
        '| dlu, fused | 0.034 | 0.0123 | 10% |',
        '| dlu, fused f+b | 0.2 | 0.2 | 10% |',
    ]


@pytest.mark.parametrize('mmcv', [None, Path('not/there')])
def test_a_kit_without_mmcv_says_so(check, monkeypatch, mmcv, tmp_path):
    """The operators are worth carrying alone."""
    for name in ('dlu_mmdet/_C_cuda_old.so', 'build/gpu_kit/wheels/pytest.whl'):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    os.utime(tmp_path / 'dlu_mmdet/_C_cuda_old.so', (0, 0))

    def build(*args, **kwargs):
        file = tmp_path / 'dlu_mmdet/_C_cuda_new.so'
        file.touch()
        os.utime(file, (time.time() + 1,) * 2)  # a clock's tick may be coarse
        return 'built'

    monkeypatch.setattr(gpu_check, 'ROOT', tmp_path)
    monkeypatch.setattr(gpu_check, 'KIT', tmp_path / 'build' / 'gpu_kit')
    monkeypatch.setattr(gpu_check, 'build', build)
    monkeypatch.setattr(gpu_check, 'operators', lambda *args: 'cpu and cuda')
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    step = check.step(
        make_step(lambda *args: gpu_check.build_only(*args, arch='9.0', mmcv=mmcv))
    )
    assert step.status == 'ok' and "without mmcv's CARAFE: found no" in step.sentence
    assert 'name the folder ops/csrc' in step.sentence
    with tarfile.open(tmp_path / 'build' / 'gpu_kit.tar.gz') as tar:
        assert tar.getnames() == [
            'dlu_mmdet/_C_cuda_new.so',
            'build/gpu_kit/wheels/pytest.whl',
        ]


@pytest.mark.parametrize(
    'answer, words',
    [
        ((0, ''), 'from the kit: pytest-xdist\n'),
        ((1, 'ERROR: No matching distribution'), 'from the kit: ERROR: No matching'),
    ],
)
def test_what_the_tests_need_comes_from_the_kit(
    on_gpu, monkeypatch, tmp_path, answer, words
):
    (tmp_path / 'wheels').mkdir()
    monkeypatch.setattr(gpu_check, 'KIT', tmp_path)
    monkeypatch.setattr(gpu_check, 'is_installed', lambda name: name != 'xdist')
    monkeypatch.setattr(sys, 'path', sys.path[:])
    on_gpu.rehearses = True
    on_gpu.outputs = [(0, 'version 1.0')] * 4 + [answer]
    step = on_gpu.step(make_step(gpu_check.facts))
    assert step.status == 'ok' and words in step.table
    command = on_gpu.commands[-1]
    assert '--no-index' in command and command[-1] == 'pytest-xdist'


def test_a_training_that_was_killed_shows_what_it_has(on_gpu):
    title = 'ResNet-50, 4 x 800 x 1344, cuda'
    line = '| dlu | 9 | 80.0 | 9.00 | 0.9 | 0.7 | 0 |'

    def killed(step, command, **kwargs):
        (on_gpu.out / 'step.log').write_text(f'{title}\n{line}\n')
        raise subprocess.TimeoutExpired(command, 1)

    on_gpu.run = killed
    step = on_gpu.step(make_step(gpu_check.training))
    assert (step.status, step.sentence) == ('out of time', title)
    assert step.table == line


def test_gpus_are_named_as_torch_does():
    for text, arch in (
        ('sm_90', '9.0'),
        ('90', '9.0'),
        ('12.0', '12.0'),
        ('90a', '9.0a'),
    ):
        assert gpu_check.read_arch(text) == arch
    with pytest.raises(gpu_check.argparse.ArgumentTypeError, match="got 'hopper'"):
        gpu_check.read_arch('hopper')
