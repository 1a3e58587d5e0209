"""What a bug report needs: ``python -m dlu_mmdet.collect_env``."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

from . import __version__
from .stacks import DISTRIBUTIONS, installed, triton_problem


def versions() -> dict[str, str]:
    """What ``dlu_mmdet --version`` prints; imports neither torch nor MMDetection.

    Returns:
        dict[str, str]: In the order in which to print it: this package, Python and
        what is installed beside it, which devices have compiled operators, which
        loops this processor runs, what would run on a GPU, and the environment
        variables that change them.
    """
    names = (
        'torch',
        'torchvision',
        'triton',
        *sum(DISTRIBUTIONS.values(), ()),
        'numpy',
    )
    found = {
        'dlu_mmdet': __version__,
        'Python': platform.python_version(),
        'platform': platform.platform(),
        **installed(names),
    }
    folder = Path(__file__).parent
    library = folder / '_C.abi3.so'
    compiled, loops = [], 'none'
    if library.is_file() and os.environ.get('DLU_MMDET_NO_EXT', '0') in ('', '0'):
        function = ctypes.CDLL(str(library)).dlu_mmdet_loops
        function.restype = ctypes.c_char_p
        compiled, loops = ['cpu'], function().decode()
        # one file for each torch
        tag = '_'.join(found.get('torch', '').split('.')[:2])
        compiled += ['cuda'] * any(folder.glob(f'_C_cuda_torch_{tag}.*'))
    found['compiled operators'] = ', '.join(compiled) or 'none, plain PyTorch runs'
    found['CPU loops'] = loops
    found['operators on a GPU'] = _on_gpu('cuda' in compiled)
    found.update((k, v) for k, v in os.environ.items() if k.startswith('DLU_MMDET_'))
    return found


def _on_gpu(is_compiled: bool) -> str:
    """What runs on a GPU, as dlu_mmdet.ops.library chooses it."""
    wish = os.environ.get('DLU_MMDET_BACKEND', '')
    if wish not in ('', 'cuda', 'triton', 'plain'):
        return f'none, DLU_MMDET_BACKEND={wish} is not cuda, triton or plain'
    if is_compiled and wish in ('', 'cuda'):
        return 'cuda'
    if wish == 'cuda':
        return 'none, DLU_MMDET_BACKEND=cuda asks for operators that are not there'
    no_ext = os.environ.get('DLU_MMDET_NO_EXT', '0') not in ('', '0')
    if wish == 'plain' or (no_ext and not wish):
        return 'plain PyTorch'
    problem = triton_problem()
    if wish and problem:
        return f'none, DLU_MMDET_BACKEND=triton, but {problem}'
    return 'plain PyTorch' if problem else 'triton'


def collect_env() -> dict[str, str]:
    """The same and mmengine's findings about the machine, as its GPUs.

    Returns:
        dict[str, str]: In the order in which to print it.
    """
    from mmengine.utils.dl_utils import collect_env as collect_base_env

    found = {key: str(value) for key, value in collect_base_env().items()}
    # a screenful that says nothing about this package
    del found['PyTorch compiling details']
    return {**found, **versions()}


def main() -> None:
    print('\n'.join(f'{key}: {value}' for key, value in collect_env().items()))


if __name__ == '__main__':
    main()
