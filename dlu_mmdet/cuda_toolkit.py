"""Finds the CUDA toolkit. Needs no torch: setup.py runs this file by its path."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

#: Folders of a toolkit that may hold libcudart.so, with which an extension is linked.
LIBRARIES = ('lib64', 'lib', 'targets/*/lib', 'lib/*-linux-gnu')


def find_toolkit() -> tuple[Path, Path]:
    """Find the CUDA toolkit.

    ``CUDA_HOME`` or ``CUDA_PATH`` names it. If neither is set, nvcc is asked: the nvcc
    in PATH may be a script that calls the real one, and torch takes the parent of its
    folder for the toolkit.

    Returns:
        tuple[Path, Path]: The toolkit, and its folder with libcudart.so.

    Raises:
        FileNotFoundError: If there is no toolkit, or it lacks nvcc or libcudart.so.
    """
    named = os.environ.get('CUDA_HOME') or os.environ.get('CUDA_PATH')
    homes = [Path(named)] if named else _ask_nvcc()
    for home in homes:
        found = [
            path for name in LIBRARIES for path in home.glob(f'{name}/libcudart.so')
        ]
        if found and (home / 'bin' / 'nvcc').is_file():
            return home, found[0].parent
    places = ' or '.join(map(str, homes)) or 'PATH or /usr/local/cuda: no nvcc'
    raise FileNotFoundError(
        f'found no CUDA toolkit in {places}; looked for bin/nvcc and for libcudart.so '
        f'in {", ".join(LIBRARIES)}; set CUDA_HOME to the folder that has both, such '
        'as /usr/local/cuda'
    )


def _ask_nvcc() -> list[Path]:
    """Folders that may be the toolkit of the nvcc in PATH, the one it names first."""
    places = os.pathsep.join([os.environ.get('PATH', ''), '/usr/local/cuda/bin'])
    nvcc = shutil.which('nvcc', path=places)
    if not nvcc:
        return []
    command = [nvcc, '--dryrun', '-x', 'cu', os.devnull]
    output = subprocess.run(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ).stdout
    named = re.findall(r'^#\$ TOP=(.+)$', output, re.MULTILINE)
    # distributions and conda split the toolkit over folders that nvcc does not name
    homes = [Path(top.strip()) for top in named] + [Path(nvcc).parents[1]]
    return list(dict.fromkeys(home.resolve() for home in homes))
