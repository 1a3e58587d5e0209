"""What a bug report needs: ``python -m dlu_mmdet.collect_env``."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

from . import __version__
from .stacks import DISTRIBUTIONS, installed


def versions() -> dict[str, str]:
    """What ``dlu_mmdet --version`` prints; imports neither torch nor MMDetection.

    Returns:
        dict[str, str]: In the order in which to print it: this package, Python and
        what is installed beside it, which devices have compiled operators, which
        loops this processor runs, and the environment variables that change them.
    """
    names = ('torch', 'torchvision', *sum(DISTRIBUTIONS.values(), ()), 'numpy')
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
    found.update((k, v) for k, v in os.environ.items() if k.startswith('DLU_MMDET_'))
    return found


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
