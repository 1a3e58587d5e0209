"""``dlu_mmdet.`` before the name of any neck or head: that, with any upsampler."""

from __future__ import annotations

import difflib
import inspect

import mmengine
from mmdet.models.layers import PixelDecoder
from mmdet.models.necks import FPN, FPN_CARAFE
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.registry import MODELS
from mmengine.registry import DefaultScope, Registry
from mmengine.utils import get_object_from_string
from torch import nn

from ..heads.upsample_mask_head import MaskHeadMixin, UpsampleMaskHead
from ..upsamplers.sites import wrap_class
from .any_neck import wrap_neck
from .unified_fpn import UnifiedFPN
from .upsample_fpn import UpsampleFPN

#: Classes of MMDetection, and those of this package that replace them.
OURS = {FPN: UpsampleFPN, FPN_CARAFE: UnifiedFPN, FCNMaskHead: UpsampleMaskHead}


class NeckRegistry(Registry):
    """Makes the classes that it is asked for, from those registered elsewhere."""

    def get(self, key: str) -> type[nn.Module]:
        """Look up a neck and give it sites for upsamplers.

        Args:
            key (str): A name in mmdet's ``MODELS`` or in that of the default
                scope, with its scope or without, or a class's full path.

        Returns:
            type[nn.Module]: See :func:`dlu_mmdet.necks.any_neck.wrap_neck`.

        Raises:
            ValueError: If there is no such class, or its owner needs the class itself.
        """
        name = key.removeprefix(f'{self.scope}.')
        scope = DefaultScope.get_current_instance()
        if name == key and scope and scope.scope_name == self.scope:
            # part of a config that inherits one of this package, without a prefix
            return MODELS.get(key)
        with MODELS.switch_scope_and_registry(None) as registry:
            registry = MODELS if registry is self else registry
            # the scope may be mmengine's, whose registry has none of mmdet's
            cls = registry.get(name) or MODELS.get(name)
            names = {*registry.module_dict, *MODELS.module_dict}
        if inspect.isclass(cls) and issubclass(cls, nn.Module):
            if cls is PixelDecoder:
                raise ValueError(
                    'PixelDecoder must stay the class itself, for which alone '
                    "MaskFormerHead projects the backbone's last map; build the model, "
                    'and call dlu_mmdet.replace_upsampling on its pixel_decoder'
                )
            cls = OURS.get(cls, cls)
            if issubclass(cls, FCNMaskHead):
                ours = issubclass(cls, MaskHeadMixin)
                return cls if ours else wrap_class(cls, MaskHeadMixin)
            return wrap_neck(cls)
        own = get_object_from_string(f'{self.scope}.{name}')
        if own is not None:  # a path into this package
            return own
        near = difflib.get_close_matches(name, sorted(names), cutoff=0.5)
        raise ValueError(
            f'no neck is registered as {name!r}, which type={self.scope}.{name!r} '
            f'builds on; nearest names: {", ".join(near) or "none"}'
        )


#: Below the root, so that every scope's configs find it by its prefix.
NECKS = NeckRegistry('model', parent=mmengine.MODELS, scope='dlu_mmdet')
