"""What the necks share: upsamplers between the levels of a pyramid."""

from __future__ import annotations

from mmengine.model import ModuleList
from torch import Tensor

from ..upsamplers import build_upsampler


def add_top_down(laterals: list[Tensor], upsamplers: ModuleList) -> None:
    """Add every level, upsampled and cropped, to the one below, in place.

    Args:
        laterals (list[Tensor]): (N, C, H_i, W_i), finest first, each at most
            twice the size of the next.
        upsamplers (ModuleList): ``upsamplers[i]`` doubles level i + 1.
    """
    for i in range(len(laterals) - 1, 0, -1):
        h, w = laterals[i - 1].shape[2:]
        upsampled = upsamplers[i - 1](laterals[i])
        laterals[i - 1] = laterals[i - 1] + upsampled[:, :, :h, :w]


class TopDownMixin:
    """A neck with ``upsample_modules``, one between each two levels."""

    def build_upsample_modules(
        self, upsample_cfg: dict, channels: int, num: int
    ) -> None:
        """Fill ``self.upsample_modules``, the finest level's first."""
        self.upsample_cfg = dict(upsample_cfg)
        self.upsample_modules = ModuleList(
            build_upsampler(upsample_cfg, channels, scale_factor=2) for _ in range(num)
        )

    def init_weights(self) -> None:
        """Initialise the neck; leave upsamplers as they make themselves."""
        own = {k: v.clone() for k, v in self.upsample_modules.state_dict().items()}
        super().init_weights()
        if isinstance(self.init_cfg, dict) and self.init_cfg['type'] == 'Pretrained':
            return
        # the neck's rule for its convolutions reached theirs as well
        self.upsample_modules.load_state_dict(own)
        for module in self.upsample_modules:
            if hasattr(module, 'init_weights'):
                module.init_weights()
