"""Upsamplers in a file of the user: ``path/to/mine.py:Mine``."""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import sys
import traceback
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from .registry import Registry

# by real path: the module that was loaded here, and what it registered by name
_loaded: dict[str, tuple[ModuleType, Mapping[str, object]]] = {}
# the classes that were looked up
_used: set[type] = set()


def split_file(name: object) -> tuple[str, str] | None:
    """Split ``path/to/mine.py:Mine``.

    Args:
        name (object): ``type`` of an ``upsample_cfg``.

    Returns:
        tuple[str, str] | None: The path and the name in that file, which is empty where
        the file alone is given; None if no file is named.
    """
    found = isinstance(name, str) and re.fullmatch(r'(.*\.py)(?::([^:]*))?', name)
    return (os.path.expanduser(found[1]), found[2] or '') if found else None


def absolute_name(name: str) -> str:
    """Make ``path/to/mine.py:Mine`` independent of the current folder."""
    found = split_file(name)
    return f'{os.path.abspath(found[0])}:{found[1]}' if found else name


def find_in_file(name: str, registry: Registry) -> object:
    """Load a file once and look up a class in it.

    What the file registers stays out of the registry, so that two files may use one
    name.

    Args:
        name (str): ``path/to/mine.py:Mine``, a class or a name that the file registers.
        registry (Registry): Where the file registers its classes.

    Returns:
        object: What has that name.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be loaded, or has nothing of that name.
    """
    file, wanted = split_file(name) or (name, '')
    path = os.path.realpath(file)
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f'upsampler {name}: the file {os.path.abspath(file)} does not exist; name '
            f'the file and its class, as in --upsampler path/to/mine.py:Mine'
        )
    if path in _loaded:
        module, registered = _loaded[path]
    elif imported := _find_module(path):
        module, registered = imported, _registered(imported, registry)
    else:
        module, registered = _loaded[path] = _load(path, registry)
    found = registered.get(wanted, getattr(module, wanted, None))
    if found is None:
        classes = [
            key
            for key, value in vars(module).items()
            if inspect.isclass(value)
            and issubclass(value, nn.Module)
            and value.__module__ == module.__name__
        ]
        there = ', '.join(dict.fromkeys([*registered, *classes])) or 'none'
        raise ValueError(
            f'upsampler {name}: {file} has no class {wanted!r}; name one of it, as in '
            f'{file}:CLASS, where CLASS is one of: {there}'
        )
    if inspect.isclass(found):
        _used.add(found)
    return found


def is_from_file(cls: object) -> bool:
    """Whether a class comes from a file that :func:`find_in_file` loaded."""
    modules = {module.__name__ for module, _ in _loaded.values()}
    return getattr(cls, '__module__', None) in modules


def classes_from_files() -> tuple[type, ...]:
    """The classes that were looked up in files."""
    return tuple(_used)


def _find_module(path: str) -> ModuleType | None:
    """The module that was imported from a file already, as by ``custom_imports``."""
    for module in list(sys.modules.values()):
        file = getattr(module, '__dict__', {}).get('__file__')
        if (
            isinstance(file, str)
            and os.path.basename(file) == os.path.basename(path)
            and os.path.realpath(file) == path
        ):
            return module
    return None


def _registered(module: ModuleType, registry: Registry | None) -> dict[str, object]:
    """The classes of a module that are registered, here or further up, by name."""
    found = {}
    while registry is not None:
        for name, cls in registry.module_dict.items():
            if getattr(cls, '__module__', None) == module.__name__:
                found.setdefault(name, cls)
        registry = registry.parent
    return found


def _load(path: str, registry: Registry) -> tuple[ModuleType, Mapping[str, object]]:
    """Run a file as a module of its own name; modules beside it can be imported."""
    # pickle looks classes up by the name of their module
    name = f'{Path(path).stem}_{zlib.crc32(os.fsencode(path)):08x}'
    spec: Any = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    before = dict(registry.module_dict)
    sys.modules[name] = module
    sys.path.insert(0, folder := os.path.dirname(path))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == path]
        raise ValueError(
            f'upsampler file {path} cannot be loaded: {type(error).__name__}'
            f'{f" in line {lines[-1]}" if lines else ""}: {error}; it must run when '
            f'imported, as by python {path}'
        ) from error
    finally:
        sys.path.remove(folder)
        after = dict(registry.module_dict)
        registry.module_dict.clear()
        registry.module_dict.update(before)
    added = {k: v for k, v in after.items() if before.get(k) is not v}
    return module, {**_registered(module, registry), **added}
