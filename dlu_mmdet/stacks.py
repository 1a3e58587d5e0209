"""The two stacks that give mmcv, mmengine and mmdet; imports nothing of theirs."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import PackageNotFoundError, version

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


def warn_of_both() -> None:
    """Warn where several distributions have written over each other's files."""
    for module, names in DISTRIBUTIONS.items():
        found = installed(names)
        if len(found) > 1:
            both = ' and '.join(f'{name} {number}' for name, number in found.items())
            warnings.warn(
                f'{both} are both installed and overwrite each other, so {module} is a '
                f'mixture of them: pip uninstall {" ".join(found)}, then install one '
                f'of the stacks again, dlu_mmdet[onedl] or dlu_mmdet[openmmlab]',
                stacklevel=3,
            )
            return


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out the notes of the forks that mean nothing to anybody else."""
    output = io.StringIO()
    try:
        with redirect_stdout(output):
            yield
    finally:
        for line in output.getvalue().splitlines():
            if line not in _NOTES:
                print(line)
