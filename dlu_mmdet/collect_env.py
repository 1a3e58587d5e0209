"""What a bug report needs: ``python -m dlu_mmdet.collect_env``."""

from __future__ import annotations

import os

from mmengine.utils.dl_utils import collect_env as collect_base_env

from . import __version__
from .ops import library
from .stacks import DISTRIBUTIONS, installed


def collect_env() -> dict[str, str]:
    """Versions, and what the compiled operators were built for.

    Returns:
        dict[str, str]: In the order in which to print it: mmengine's, both stacks',
        this package's, which devices have compiled operators, which loops this
        processor runs, and the environment variables that change them.
    """
    found = {key: str(value) for key, value in collect_base_env().items()}
    # a screenful that says nothing about this package
    del found['PyTorch compiling details']
    found.update(installed(sum(DISTRIBUTIONS.values(), ('numpy',))))
    found['dlu_mmdet'] = __version__
    devices = [d for d in ('cpu', 'cuda') if library.is_available(d)]
    found['compiled operators'] = ', '.join(devices) or 'none, plain PyTorch runs'
    found['CPU loops'] = library.cpu_loops() or 'none'
    found.update((k, v) for k, v in os.environ.items() if k.startswith('DLU_MMDET_'))
    return found


def report() -> str:
    """The same as text, one line each."""
    return '\n'.join(f'{key}: {value}' for key, value in collect_env().items())


def main() -> None:
    print(report())


if __name__ == '__main__':
    main()
