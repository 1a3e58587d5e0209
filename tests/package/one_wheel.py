"""Run the operators of an unpacked wheel on whatever Python and torch run this.

    python -m zipfile -e dlu_mmdet-*.whl unpacked
    another/python tests/package/one_wheel.py unpacked [cuda]

The folder may be a checkout too. Needs torch alone, not the stack: forward and
gradients of the compiled operators are held to the plain PyTorch ones, in every dtype.
"""

import sys
import types
from pathlib import Path

import torch

TOLERANCES = {
    torch.float32: 1e-5,
    torch.float64: 1e-12,
    torch.float16: 2e-3,
    torch.bfloat16: 2e-2,
}


def main(folder: str, device: str = 'cpu') -> None:
    package = types.ModuleType('dlu_mmdet')
    package.__path__ = [str(Path(folder) / 'dlu_mmdet')]
    sys.modules['dlu_mmdet'] = package
    from dlu_mmdet.ops import carafe, dlu, library, reference

    devices = [name for name in ('cpu', 'cuda') if library.is_available(name)]
    if device not in devices:
        raise SystemExit(f'the compiled operators do not load for {device}')
    torch.manual_seed(0)
    errors = []
    for dtype, tolerance in TOLERANCES.items():

        def make(channels: int, h: int, w: int, dtype: torch.dtype = dtype):
            value = torch.randn(2, channels, h, w)
            return value.to(device, dtype).requires_grad_()

        features = make(8, 9, 13)
        for op, inputs in (
            (dlu, (features, make(50, 9, 13), make(16, 9, 13))),
            (carafe, (features, make(50, 18, 26))),
        ):
            out = op(*inputs, 5, 2, 2)
            expected = getattr(reference, op.__name__)(*inputs, 5, 2, 2)
            grad = torch.randn_like(out)
            pairs = zip(
                (out, *torch.autograd.grad(out, inputs, grad)),
                (expected, *torch.autograd.grad(expected, inputs, grad)),
            )
            for got, wanted in pairs:
                got, wanted = got.detach().double(), wanted.detach().double()
                error = (got - wanted).abs().max() / wanted.abs().max()
                errors.append(error.item() / tolerance)
    worst = torch.tensor(errors).max()  # NaN if one is NaN
    print(
        f'Python {sys.version.split()[0]}, torch {torch.__version__}, operators for '
        f'{" and ".join(devices)}, loops {library.cpu_loops()}: largest error on '
        f'{device} is {worst:.3f} of the tolerance'
    )
    sys.exit(not worst < 1)


if __name__ == '__main__':
    main(*sys.argv[1:])
