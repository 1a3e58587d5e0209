import json
import os
import sys
import textwrap

import pytest
import torch
from conftest import ROOT, run

sys.path.insert(0, str(ROOT / 'tools'))
import gpu_check  # noqa: E402


def reported(out):
    return json.loads((out / 'report.json').read_text())


@pytest.fixture
def check(tmp_path):
    return gpu_check.Check(tmp_path / 'out', seconds=300)


def test_without_a_gpu_every_step_says_so(tmp_path):
    """A machine that lacks something gets the rest of the report, not a traceback."""
    out = tmp_path / 'out'
    # no time for the tests of the operators, which are run elsewhere
    process = run(
        *('tools/gpu_check.py', '--out', out, '--seconds', 4),
        check=False,
        env={**os.environ, 'CUDA_VISIBLE_DEVICES': ''},
    )
    steps = {
        step['name']: step for step in json.loads((out / 'report.json').read_text())
    }
    assert steps['environment']['status'] == 'ok'
    assert steps['parity']['status'] == 'cut off'
    assert process.returncode == 1
    others = set(steps) - {'environment', 'parity', 'counts'}
    assert {
        'build',
        'benchmark-float32-nchw',
        'counters-float32',
        'racecheck',
    } <= others
    for name in others:
        assert steps[name]['status'] == 'cannot run'
        assert steps[name]['sentence'] == 'torch sees no GPU'
    report = (out / 'report.md').read_text()
    assert all(f'| {name} |' in report for name in steps)
    assert torch.__version__ in report


def test_operators_load_without_mmdet(check, tmp_path):
    """A machine with a GPU and no mmdet would otherwise test nothing."""
    (tmp_path / 'sitecustomize.py').write_text(
        textwrap.dedent(
            """
            import sys

            class Absent:
                def find_spec(self, name, path=None, target=None):
                    if name.split('.')[0] in ('mmcv', 'mmdet', 'mmengine'):
                        raise ModuleNotFoundError(name=name)

            sys.meta_path.insert(0, Absent())
            """
        )
    )
    step = gpu_check.Step('parity')
    paths = os.pathsep.join([str(tmp_path), check.environment['PYTHONPATH']])
    output = check.run(
        step, 300, check.pytest('test_any_strides and cpu'), PYTHONPATH=paths
    )
    assert '1 passed' in output
    assert step.files == ['parity.log']


def test_a_step_that_fails_or_hangs_does_not_end_the_run(check):
    def sleep(step):
        return check.run(step, 0.5, ['sleep', 60])

    def fail(step):
        return check.run(
            step, 10, check.python('-c', 'raise ValueError("of the step")')
        )

    assert check.step('hangs', sleep).status == 'cut off'
    failed = check.step('fails', fail)
    assert failed.status == 'failed' and 'the step' in failed.sentence
    assert check.step('works', lambda step: 'result').status == 'ok'
    names = [
        step['name'] for step in json.loads((check.out / 'report.json').read_text())
    ]
    assert names == ['hangs', 'fails', 'works']


def test_counters_are_read_from_the_profilers_table():
    """ncu puts a row of units first and thousands into quotes."""
    columns = ['ID', 'Kernel Name', *gpu_check.METRICS]
    values = ['2,000,000', '706000000', '11.7', '1,075,200,000', '61.5', '5', '0', '50']
    kernel = '_ZN9dlu_mmdet3abc14forward_kernelIffLi4EEEvNS0_7ProblemEii'
    lines = [columns, ['', '', 'ns', *['%'] * 7], ['0', kernel, *values]]
    text = '==PROF== Profiling\n' + '\n'.join(
        ','.join(f'"{cell}"' for cell in line) for line in lines
    )
    (row,) = gpu_check.read_counters(text)
    assert row['time'] == 2e6 and row['issue slots'] == 61.5
    table = gpu_check.counter_table([row])
    # 2 ms, 353 GB/s, ten instructions for a multiply-add
    assert '| forward_kernel | 2.000 | 353 | 12 % | 62 % | 1000 |' in table
