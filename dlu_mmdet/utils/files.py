"""Files that are whole or not there at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


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
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
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


def read_json(path: str | os.PathLike, keys: Sequence[str], remedy: str) -> dict:
    """Read a JSON object that this package wrote.

    Args:
        path (str | PathLike): The file.
        keys (Sequence[str]): What it must have.
        remedy (str): What to do if it is damaged, for the message.

    Returns:
        dict: Its content.

    Raises:
        FileNotFoundError: If it does not exist.
        ValueError: If it is no JSON object, or a key is missing.
    """
    try:
        content = json.loads(Path(path).read_text(encoding='utf-8'))
        missing = [key for key in keys if key not in content]
        if missing or not isinstance(content, dict):
            raise ValueError(f'it has no {", ".join(missing) or "keys"}')
    except FileNotFoundError:
        raise
    except (ValueError, TypeError, OSError, RecursionError) as error:
        raise ValueError(f'{path} is damaged ({error}); {remedy}') from error
    return content
