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


def main(folder: str, device: str = 'cpu') -> None:
    package = types.ModuleType('dlu_mmdet')
    package.__path__ = [str(Path(folder) / 'dlu_mmdet')]
    sys.modules['dlu_mmdet'] = package
    from dlu_mmdet.ops import library, self_test

    devices = [name for name in ('cpu', 'cuda') if library.is_available(name)]
    if device not in devices:
        raise SystemExit(f'the compiled operators do not load for {device}')
    results = list(self_test.compare_with_reference(device, quick=True))
    for each in results:
        if each.first:
            print(f'{each.operator}, {each.dtype}, {each.layout}: {each.first}')
    worst = torch.tensor([each.error for each in results]).max()  # NaN if one is NaN
    print(
        f'Python {sys.version.split()[0]}, torch {torch.__version__}, operators for '
        f'{" and ".join(devices)}, loops {library.cpu_loops()}: largest error on '
        f'{device} is {worst:.3f} of the tolerance'
    )
    sys.exit(not worst < 1)


if __name__ == '__main__':
    main(*sys.argv[1:])
