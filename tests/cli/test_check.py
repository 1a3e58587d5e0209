"""dlu_mmdet check: the operators of an installation against the reference."""

import pytest
import torch

from dlu_mmdet.cli import check
from dlu_mmdet.ops import library, self_test


def run(capsys, *arguments):
    return check.main(list(arguments)), capsys.readouterr().out


def test_every_operator_passes_and_is_timed(capsys):
    status, printed = run(capsys, '--quick')
    assert status == 0 and printed.endswith('\nno differences\n')
    for operator in ('dlu', 'carafe', 'window_scores'):
        for dtype in ('float64', 'float32', 'float16', 'bfloat16'):
            assert f'{operator}, {dtype} ' in printed
    assert 'F.interpolate, bilinear' in printed and 'FAILED' not in printed


@pytest.mark.skipif(not library.is_available('cpu'), reason='one kind of operators')
def test_the_operators_that_are_not_in_use_are_checked_too(capfd, monkeypatch):
    """Those of a machine without a compiler may be wrong where the compiled are not."""
    assert check.check_other_operators('cpu', quick=True) == 0
    printed = capfd.readouterr().out
    assert 'cpu: plain PyTorch' in printed and printed.endswith('\nno differences\n')
    monkeypatch.setenv('DLU_MMDET_BACKEND', 'no such')
    assert check.check_other_operators('cpu') == 1


def test_other_operators_of_a_gpu(monkeypatch):
    monkeypatch.setattr(library, '_DEVICE_TYPES', {'cuda'})
    for name, value in dict(_named=None, _NO_EXT=False, _BACKEND='').items():
        monkeypatch.setattr(library, name, value)
    for active, problem, expected in (
        ('cuda', '', ['triton', 'plain']),
        ('cuda', 'Triton is not installed', ['plain']),
        ('triton', '', ['plain']),
    ):
        monkeypatch.setattr(library, '_GPU', active)
        monkeypatch.setattr(library, 'triton_problem', lambda problem=problem: problem)
        found = library.other_backends('cuda')
        assert found == [dict(DLU_MMDET_BACKEND=name) for name in expected]
    monkeypatch.setattr(library, '_BACKEND', 'cuda')
    assert library.other_backends('cuda') == library.other_backends('cpu') == []


def wrong_values(out):
    return out * 1.001


def not_a_number(out):
    return out * torch.nan


def wrong_dtype(out):
    return out.to(torch.float32)


@pytest.mark.parametrize(
    'fault, dtype, words',
    [
        (wrong_values, 'float32', 'output of features (2, 6, 5, 7), kernel_size=3'),
        (not_a_number, 'bfloat16', 'output of features'),
        (wrong_dtype, 'float64', 'output (torch.float32, (2, 6, 10, 14)) of'),
    ],
)
def test_a_wrong_operator_is_named_with_its_first_call(
    fault, dtype, words, capsys, monkeypatch
):
    """Else a bug report on numbers has nothing to begin with."""
    dlu = self_test._OPERATORS['dlu']
    broken = dict(self_test._OPERATORS, dlu=lambda *args: fault(dlu(*args)))
    monkeypatch.setattr(self_test, '_OPERATORS', broken)
    status, printed = run(capsys, '--quick')
    (line,) = [x for x in printed.splitlines() if f': dlu, {dtype}, NCHW:' in x]
    assert status == 1 and words in line and 'carafe, ' not in line


def test_a_wrong_gradient_is_found(capsys, monkeypatch):
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return 2 * grad

    carafe = self_test._OPERATORS['carafe']
    broken = dict(self_test._OPERATORS, carafe=lambda *a: Doubled.apply(carafe(*a)))
    monkeypatch.setattr(self_test, '_OPERATORS', broken)
    status, printed = run(capsys, '--quick')
    assert status == 1 and 'carafe, float32, NCHW: gradient of features' in printed


def test_a_call_that_raises_is_named_and_the_others_run(capsys, monkeypatch):
    """A GPU that the library has no code for would show a traceback instead."""

    def refused(features, *args):
        if features.dtype == torch.float16:
            raise RuntimeError('no kernel image is available\nfor execution')
        return carafe(features, *args)

    carafe = self_test._OPERATORS['carafe']
    broken = dict(self_test._OPERATORS, carafe=refused)
    monkeypatch.setattr(self_test, '_OPERATORS', broken)
    status, printed = run(capsys, '--quick')
    assert status == 1 and printed.endswith('\n2 differences\n')
    assert (
        'FAILED: carafe, float16, channels_last: features (2, 6, 5, 7), kernel_size=3, '
        'group_size=2, scale_factor=2: RuntimeError: no kernel image is available\n'
    ) in printed
    assert 'window_scores, bfloat16' in printed


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['--device', 'cuda:7'], "--device: 'cuda:7' is not available; available: cpu"),
        (['--device', 'nowhere'], "--device: 'nowhere' is not available"),
        (['--device', 'meta'], "--device: 'meta' is not available"),
        (['--device', ''], "--device: '' is not available"),
        (['--channels', '8'], '--channels is for an upsampler; name one'),
        (['dlu', '--quick'], '--quick is for the operators; leave out the upsampler'),
        (['dlu', '--device', 'cpu'], '--device is for the operators'),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        check.main(arguments)
