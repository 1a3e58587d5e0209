"""Files that are whole or not there at all, and output that is never refused."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def print_anything() -> None:
    """Let characters that the terminal's encoding lacks be printed as escapes.

    Without it, names in another script end a tool under ``LC_ALL=C`` or
    ``PYTHONIOENCODING=ascii``.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'):
            stream.reconfigure(errors='backslashreplace')


def check_writable(path: str | os.PathLike) -> None:
    """Find out before the work whether its result can be written.

    Args:
        path (str | PathLike): Where a file is to go. Missing folders are made.

    Raises:
        ValueError: If it cannot go there.
    """
    try:
        if Path(path).is_dir():
            raise IsADirectoryError('it is a folder')
        partial = _beside(path)
        partial.touch()
        partial.unlink()
    except OSError as error:
        raise ValueError(
            f'{path} cannot be written ({error}); name another place'
        ) from error


def _beside(path: str | os.PathLike) -> Path:
    """Where a file grows until it is whole; its folder is made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f'.{path.name}.{os.getpid()}.partial')


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A path to write to that takes the place of ``path`` once it is whole.

    Args:
        path (str | PathLike): Where the file goes. Missing folders are made.

    Yields:
        Path: Beside it; gone again if writing fails.
    """
    partial = _beside(path)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
