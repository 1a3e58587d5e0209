"""The registry of upsamplers, with and without MMDetection."""

from __future__ import annotations

import pydoc
from collections.abc import Callable
from typing import Any

try:
    from mmdet.registry import MODELS
    from mmengine.registry import Registry
except ModuleNotFoundError:

    class Registry:  # type: ignore[no-redef]
        """What this package uses of mmengine's Registry, for torch alone."""

        scope = ''
        parent = None

        def __init__(self, name: str, **kwargs: object) -> None:
            self.name = name
            self.module_dict: dict[str, Any] = {}

        def get(self, key: str) -> Any:
            """What has a name, or a full path; None if nothing has."""
            return self.module_dict.get(key) or pydoc.locate(key)

        def register_module(
            self,
            name: str | None = None,
            force: bool = False,
            module: Callable | None = None,
        ) -> Callable:
            """Register a class, as a decorator or by ``module``.

            Raises:
                KeyError: If the name is taken and ``force`` is not set.
            """
            if module is None:
                return lambda cls: self.register_module(name, force, cls)
            key = name or module.__name__
            if not force and key in self.module_dict:
                raise KeyError(f'{key} is already registered in {self.name}')
            self.module_dict[key] = module
            return module

    MODELS = None


#: Classes that ``upsample_cfg.type`` can name. Each takes ``channels`` (equal
#: in and out) and ``scale_factor`` first, then keyword arguments with
#: defaults, and maps (N, C, H, W) to (N, C, s*H, s*W). One with ``guided = True`` takes
#: ``guide_channels`` as well, and its forward the features and a guide
#: (N, guide_channels, h, w) of the size that it is to give. A class in a file of the
#: user's is named by both, ``path/to/mine.py:Mine``. With MMDetection it is a child of
#: MMDetection's ``MODELS``, without it a stand-in with the same methods.
UPSAMPLERS = Registry('upsampler', parent=MODELS, scope='dlu_mmdet_upsampler')
