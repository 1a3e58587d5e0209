"""What every neck with upsamplers of its own shares."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mmengine.model import ModuleList
from torch import nn

from ..upsamplers import upsampler_class
from ..upsamplers.sites import Site, build_at_site

if TYPE_CHECKING:
    from torch.nn import Module as _Neck
else:
    _Neck = object


def upsampler_prefixes(model: nn.Module) -> tuple[str, ...]:
    """What the names of a model's weights begin with in the upsamplers of its necks."""
    return tuple(
        f'{name}.upsample_modules.'.lstrip('.')
        for name, module in model.named_modules()
        if isinstance(module, UpsamplerMixin)
    )


class UpsamplerMixin(_Neck):
    """A neck with ``upsample_modules``, its upsamplers in a ModuleList.

    ``upsampler_cfg`` is what they were built from: ``upsample_cfg`` may be an
    attribute of the neck's own, with the arguments of its interpolation.
    """

    def add_upsample_modules(
        self,
        upsample_cfg: dict,
        sites: Iterable[Site],
        guide_channels: int | None = None,
    ) -> None:
        """Fill ``self.upsample_modules``.

        Args:
            upsample_cfg (dict): As :func:`dlu_mmdet.upsamplers.build_upsampler`. A
                ``start`` of 'neck' is the interpolation of each site.
            sites (Iterable[Site]): Where it upsamples.
            guide_channels (int, optional): Channels of the high-resolution features
                that every site has as a guide. Defaults to None, for no guide.

        Raises:
            TypeError: If ``upsample_cfg`` is no dict, or holds an argument
                that the upsampler does not accept.
            ValueError: If the upsampler is unknown, does not fit a site or has another
                ratio.
        """
        upsampler_class(upsample_cfg)  # checked first, so that the error names no site
        self.upsampler_cfg = dict(upsample_cfg)
        self.upsample_modules = ModuleList()
        for i, site in enumerate(sites):
            name = f'upsample_modules.{i} of {type(self).__name__}'
            upsampler = build_at_site(name, upsample_cfg, site, guide_channels)
            self.upsample_modules.append(upsampler)

    def init_weights(self) -> None:
        """Initialize the neck; leave upsamplers as they make themselves."""
        if not hasattr(super(), 'init_weights'):
            return
        own = {k: v.clone() for k, v in self.upsample_modules.state_dict().items()}
        super().init_weights()
        init_cfg = getattr(self, 'init_cfg', None)
        if isinstance(init_cfg, dict) and init_cfg['type'] == 'Pretrained':
            return
        # the neck's rule for its convolutions reached theirs as well
        self.upsample_modules.load_state_dict(own)
        for module in self.upsample_modules:
            if hasattr(module, 'init_weights'):
                module.init_weights()
