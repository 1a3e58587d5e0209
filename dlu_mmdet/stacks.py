"""The two stacks that give mmcv, mmengine and mmdet; imports nothing of theirs."""

from __future__ import annotations

import functools
import io
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

#: Distributions that give an import name: upstream's, then the forks'.
DISTRIBUTIONS = dict(
    mmcv=('mmcv', 'mmcv-lite', 'onedl-mmcv'),
    mmengine=('mmengine', 'mmengine-lite', 'onedl-mmengine'),
    mmdet=('mmdet', 'onedl-mmdetection'),
)
# what the forks print for the data sets of their own, which are not installed
_NOTES = ('Could not import OneDL. Skipping OneDL datasets.',)


def installed(names: Iterable[str]) -> dict[str, str]:
    """Versions of those distributions that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


# the oldest that was tried; it comes with torch 2.8
_OLDEST_TRITON = (3, 4)


def triton_problem() -> str:
    """Why the operators in Triton cannot run here; '' if they can. Imports nothing."""
    # as it is called on its own, and in torch for CUDA, for ROCm and on Windows
    names = ('triton', 'pytorch-triton', 'pytorch-triton-rocm', 'triton-rocm')
    found = installed((*names, 'triton-windows'))
    if not found or not find_spec('triton'):
        return 'Triton is not installed; pip install triton'
    name, number = next(iter(found.items()))
    if tuple(int(part) for part in number.split('.')[:2]) < _OLDEST_TRITON:
        oldest = '.'.join(map(str, _OLDEST_TRITON))
        return f'{name} {number} is too old; install {oldest} or later'
    return ''


def warn_of_both() -> None:
    """Warn where several distributions have written over each other's files."""
    for module, names in DISTRIBUTIONS.items():
        found = installed(names)
        if len(found) > 1:
            both = ' and '.join(f'{name} {number}' for name, number in found.items())
            warnings.warn(
                f'{both} are both installed and overwrite each other, so {module} is a '
                f'mixture of them: pip uninstall {" ".join(found)}, then install one '
                f'of the two again (docs/install.md)',
                stacklevel=4,
            )
            return


@functools.cache
def check_stack() -> None:
    """Check that MMDetection is there, with mmcv's compiled operators.

    Raises:
        ModuleNotFoundError: If mmcv, mmengine or mmdet is missing.
        ImportError: If mmcv has no operators, or they are of another torch.
    """
    warn_of_both()
    try:
        with suppress_fork_notices():
            import mmcv
            import mmdet  # noqa: F401
            import mmengine  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'dlu_mmdet needs MMDetection 3.x ({error}): docs/install.md says how to '
            f'install it; in a checkout, make does it',
            name=error.name,
        ) from None
    try:
        import mmcv.ops  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'dlu_mmdet needs mmcv with its compiled operators, and those of mmcv '
            f'{mmcv.__version__} cannot be loaded ({error}): it is mmcv-lite, or was '
            f'built without them or for another torch; install it again with '
            f'MMCV_WITH_OPS=1 pip install --no-build-isolation --no-cache-dir '
            f'--force-reinstall --no-deps',
            name='mmcv.ops',
        ) from None


def is_command() -> bool:
    """Whether this process was started as one of the package's commands.

    That is ``dlu_mmdet ...``, ``python -m dlu_mmdet...`` (from Python 3.10 on) or a
    script of its folder ``tools``.
    """
    program, package = (sys.argv or [''])[0], Path(__file__).resolve().parent
    if program == '-m':
        words = getattr(sys, 'orig_argv', [])
        module = words[words.index('-m') + 1] if '-m' in words[:-1] else ''
        return module == package.name or module.startswith(f'{package.name}.cli')
    # as cli.main names a command afterwards, or as it was started
    if program.startswith(f'{package.name} ') or (
        os.path.splitext(os.path.basename(program))[0] == package.name
    ):
        return True
    folders = (package.parent / 'tools', (package / '.mim' / 'tools').resolve())
    return bool(program) and Path(program).resolve().parent in folders


@contextmanager
def suppress_fork_notices() -> Iterator[None]:
    """Leave out the notes of the forks that mean nothing to anybody else."""
    output = io.StringIO()
    try:
        with redirect_stdout(output):
            yield
    finally:
        for line in output.getvalue().splitlines():
            if line not in _NOTES:
                print(line)
