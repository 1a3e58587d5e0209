"""What torch 2.4 and later offer, for torch 2.1 to 2.3 too, under the later names.

The one place that asks which torch this is. Where there is no later name, what is
here does the work with what torch 2.1 has.
"""

from __future__ import annotations

import codecs
import io
import os
import pickle
import sys
import tarfile
import types
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import torch
from torch import nn
from torch.torch_version import TorchVersion
from torch.utils import flop_counter

AT_LEAST_24 = torch.__version__ >= TorchVersion('2.4')
AT_LEAST_26 = torch.__version__ >= TorchVersion('2.6')
# torch.export says that it is at work since torch 2.7
EXPORTS = hasattr(torch.compiler, 'is_exporting')
is_exporting = torch.compiler.is_exporting if EXPORTS else lambda: False
if hasattr(torch.compiler, 'is_compiling'):
    is_compiling = torch.compiler.is_compiling
else:

    def is_compiling() -> bool:
        """Whether torch.compile is at work; before torch 2.3."""
        return 'torch._dynamo' in sys.modules and torch._dynamo.is_compiling()


if AT_LEAST_24:
    from torch.library import register_fake
    from torch.utils.flop_counter import register_flop_formula
else:
    # implementations go with the library object that made them
    _LIBRARIES: dict[str, torch.library.Library] = {}

    def _implement(op: str, function: Callable, key: str) -> None:
        namespace, name = op.split('::')
        if namespace not in _LIBRARIES:
            _LIBRARIES[namespace] = torch.library.Library(namespace, 'IMPL')
        _LIBRARIES[namespace].impl(name, function, key)

    def register_fake(op: str, function: Callable) -> None:
        """Register the shapes that an operator gives; see torch.library."""
        _implement(op, function, 'Meta')

    def register_flop_formula(target: object) -> Callable:
        """Register FLOPs from the shapes of an operator; see torch's counter."""
        return lambda formula: flop_counter.flop_mapping.setdefault(target, formula)

    class _FlopCounter(flop_counter.FlopCounterMode):
        """Finds modules itself: torch 2.1's way takes a list of maps apart."""

        def __init__(self, module: nn.Module) -> None:
            super().__init__(display=False)
            self._module, self._hooks = module, []

        def __enter__(self) -> _FlopCounter:
            top = type(self._module).__name__
            for name, module in self._module.named_modules():
                path = f'{top}.{name}' if name else top

                def enter(*_: object, path: str = path) -> None:
                    self.parents.append(path)

                def leave(*_: object) -> None:
                    self.parents.pop()

                self._hooks.append(module.register_forward_pre_hook(enter))
                self._hooks.append(module.register_forward_hook(leave))
            return super().__enter__()

        def __exit__(self, *args: object) -> None:
            for hook in self._hooks:
                hook.remove()
            self._hooks.clear()
            super().__exit__(*args)


if hasattr(torch.library, 'register_vmap'):
    from torch.library import register_vmap
else:

    def register_vmap(op: str, function: Callable) -> None:
        """Leave the batch to torch, which takes one of it after the other."""


# by the name under which a pickle asks for it
_ALLOWED: dict[str, object] = {}


def count_flops_of(module: nn.Module) -> flop_counter.FlopCounterMode:
    """torch's counter for a module and, by name, for what it is made of."""
    if AT_LEAST_24:
        return flop_counter.FlopCounterMode(display=False)
    return _FlopCounter(module)


def started_at(event: Any) -> int:
    """When an event of torch's profiler began; a number to sort by."""
    return event.start_ns() if hasattr(event, 'start_ns') else event.start_us()


def allow_types(types_: Sequence[object]) -> None:
    """Let checkpoints hold more than tensors and plain containers.

    Args:
        types_ (Sequence[object]): Classes and functions; or pairs of one and the name
            under which a pickle asks for it, which torch 2.4 and 2.5 do not take.
    """
    _ALLOWED.update(map(_named, types_))
    _tell_torch()


def _tell_torch() -> None:
    """Hand the types to torch, where it has a place for them."""
    if AT_LEAST_24:
        torch.serialization.add_safe_globals(
            [
                (entry, name) if AT_LEAST_26 else entry
                for name, entry in _ALLOWED.items()
            ]
        )


def _named(entry: Any) -> tuple[str, object]:
    """Name and object, for an object alone or for a pair."""
    if isinstance(entry, tuple):
        return entry[1], entry[0]
    return f'{entry.__module__}.{entry.__qualname__}', entry


def load_weights(
    file: str | os.PathLike | BinaryIO,
    map_location: str | torch.device | None = None,
) -> object:
    """``torch.load`` with ``weights_only``: no code of the file's own runs.

    Before torch 2.4 that takes no types of one's own, hence an unpickler that finds
    torch's and those of :func:`allow_types` and nothing else. Before torch 2.6 it lets
    two kinds of archives past its list (CVE-2025-32434), which are refused here.

    Args:
        file (str | PathLike | BinaryIO): The checkpoint, by path or open.
        map_location (str | torch.device, optional): As ``torch.load``.

    Returns:
        object: What it holds.

    Raises:
        UnpicklingError: If it holds other objects.
        RuntimeError: If it is no checkpoint, or one of TorchScript.
    """
    # a loader of mmengine's takes back what it has allowed, and what others had
    _tell_torch()
    if not AT_LEAST_26:
        _refuse_archives(file)
    if AT_LEAST_24:
        return torch.load(file, map_location=map_location, weights_only=True)
    module = types.SimpleNamespace(
        __name__=__name__,
        Unpickler=_Unpickler,
        load=lambda file, **kwargs: _Unpickler(file, **kwargs).load(),
    )
    return torch.load(
        file, map_location=map_location, pickle_module=module, weights_only=False
    )


def _refuse_archives(file: str | os.PathLike | BinaryIO) -> None:
    """Refuse what ``torch.load`` hands to other readers: TorchScript, and tar files.

    Raises:
        RuntimeError: If the file is one of these.
    """
    with torch.serialization._open_file_like(file, 'rb') as opened:
        start = opened.tell()
        if torch.serialization._is_zipfile(opened):
            # torch's own reader: another could see other records in the same file
            with torch.serialization._open_zipfile_reader(opened) as archive:
                refused = torch.serialization._is_torchscript_zip(archive)
        else:
            opened.seek(start)
            try:
                tarfile.open(fileobj=opened, mode='r:').close()
                refused = True
            except tarfile.TarError:
                refused = False
        opened.seek(start)
    if refused:
        raise RuntimeError('it is a TorchScript or tar archive')


def load_pickle(file: BinaryIO, **kwargs: Any) -> object:
    """``pickle.load`` of tensors, arrays and plain values: runs no code of the file.

    Args:
        file (BinaryIO): Open for reading.
        **kwargs: As ``pickle.load``.

    Returns:
        object: What it holds.

    Raises:
        UnpicklingError: If it holds other objects than a checkpoint may.
    """
    return _Unpickler(file, **kwargs).load()


# what torch's own list has gained since; numpy's scalars are made of encoded text.
# Outside of a checkpoint a tensor is a checkpoint of its own, which torch would load
# without a list
_LATER_KNOWN = {
    '_codecs.encode': codecs.encode,
    'builtins.set': set,
    'torch.storage._load_from_bytes': lambda b: load_weights(io.BytesIO(b)),
    **{str(dtype): dtype for dtype in (torch.bool, torch.uint8, torch.bfloat16)},
}


class _Unpickler(pickle.Unpickler):
    """Finds what is allowed by name, and nothing else."""

    def find_class(self, module: str, name: str) -> object:
        """The class or function of that name.

        Raises:
            UnpicklingError: If it is not allowed.
        """
        # torch writes pickles of protocol 2, which has Python 2's names
        full = f'{"builtins" if module == "__builtin__" else module}.{name}'
        known = torch._weights_only_unpickler._get_allowed_globals()
        for allowed in (known, _LATER_KNOWN, _ALLOWED):
            if full in allowed:
                return allowed[full]
        raise pickle.UnpicklingError(f'GLOBAL {full} is not allowed.')
