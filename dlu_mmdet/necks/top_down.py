"""What the necks share: upsamplers between the levels of a pyramid."""

from __future__ import annotations

from mmengine.model import ModuleList
from torch import Tensor

from ..upsamplers import build_upsampler


class TopDownMixin:
    """A neck whose ``upsample_modules`` carry the top of its pyramid down.

    With ``top_down='cascade'``, the FPN of the papers, every level is doubled
    and added to the one below, which is then doubled in its turn. With
    ``top_down='direct'`` every level takes the top one's lateral map,
    upsampled by its whole ratio (2, 4, 8, 16) in one step. That is an
    experiment of this project about large ratios, where DLU saves most (the
    abstract of `Lighten CARAFE <https://arxiv.org/abs/2410.22139>`_ counts its
    parameters at 16x); the paper has no such neck.
    """

    def build_upsample_modules(
        self, upsample_cfg: dict, channels: int, num: int, top_down: str
    ) -> None:
        """Fill ``self.upsample_modules``, the finest level's first.

        Args:
            upsample_cfg (dict): As :func:`dlu_mmdet.upsamplers.build_upsampler`.
            channels (int): Channels of every level.
            num (int): Number of levels below the top.
            top_down (str): 'cascade' or 'direct'.

        Raises:
            ValueError: If ``top_down`` is another.
        """
        if top_down not in ('cascade', 'direct'):
            raise ValueError(
                f"top_down must be 'cascade' or 'direct', got {top_down!r}"
            )
        self.top_down = top_down
        self.upsample_cfg = dict(upsample_cfg)
        self.upsample_modules = ModuleList(
            build_upsampler(
                upsample_cfg, channels, 2 if top_down == 'cascade' else 2 ** (num - i)
            )
            for i in range(num)
        )

    def add_top_down(self, laterals: list[Tensor]) -> None:
        """Add what comes from above, cropped, to every level, in place.

        Args:
            laterals (list[Tensor]): (N, C, H_i, W_i), finest first, each at
                most twice the size of the next.
        """
        for i in reversed(range(len(laterals) - 1)):
            source = laterals[i + 1 if self.top_down == 'cascade' else -1]
            h, w = laterals[i].shape[2:]
            upsampled = self.upsample_modules[i](source)
            laterals[i] = laterals[i] + upsampled[:, :, :h, :w]

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
