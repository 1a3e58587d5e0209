"""Where mmengine looks for what configs of this package name.

Its name is the scope: of names like ``dlu_mmdet.YOLOXPAFPN``, and of all that a config
inherits by ``_base_ = 'dlu_mmdet::...'``, which is mmdet's in all but the necks.
"""

import mmdet.registry
from mmengine.registry import Registry

from .necks.registry import NECKS

__all__ = ['NECKS']

for _registry in list(vars(mmdet.registry).values()):
    mmdets = isinstance(_registry, Registry) and _registry.scope == 'mmdet'
    if mmdets and _registry is not mmdet.registry.MODELS:
        Registry(
            _registry.name,
            parent=_registry,
            scope=NECKS.scope,
            locations=[__package__],
        )
