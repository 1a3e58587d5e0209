"""The pyramid of the CARAFE and DLU papers, with any upsampler."""

from __future__ import annotations

from mmdet.models.necks import FPN_CARAFE
from mmdet.registry import MODELS
from torch import Tensor

from .top_down import TopDownMixin


@MODELS.register_module(name=['UnifiedFPN', 'UNIFIED_FPN'])
class UnifiedFPN(TopDownMixin, FPN_CARAFE):
    """FPN in which every level, P6 included, is part of the top-down path.

    P6 is a lateral too, a 3x3 convolution of stride 2 on C5, so five outputs
    take four upsamplers. State_dict keys are those of mmdet's ``FPN_CARAFE``
    and, with DLU, of its authors' ``UNIFIED_FPN``; ``FPN_CARAFE`` itself refuses
    any upsampler outside a fixed list.

    Args:
        in_channels (list[int]): Channels of the backbone's levels.
        out_channels (int): Channels of every output.
        num_outs (int): Number of outputs.
        upsample_cfg (dict): Upsampler between two levels, see
            :func:`dlu_mmdet.upsamplers.build_upsampler`. Defaults to
            ``dict(type='carafe')``.
        top_down (str): 'cascade' doubles level by level, as the papers do;
            'direct' is this project's experiment, which takes the top level
            to each lower one in one step of its whole ratio, see
            :class:`TopDownMixin`. Defaults to 'cascade'.
        **kwargs: As mmdet's ``FPN_CARAFE``.

    Raises:
        TypeError: If ``upsample_cfg`` holds an argument that the upsampler
            does not accept.
        ValueError: If ``upsample_cfg.type`` is missing or unknown, or if
            ``top_down`` is neither of the two.
    """

    def __init__(
        self,
        in_channels: list[int],
        out_channels: int,
        num_outs: int,
        *args,
        upsample_cfg: dict = dict(type='carafe'),  # noqa: B006
        top_down: str = 'cascade',
        **kwargs,
    ) -> None:
        # nearest has no weights: it stands in until ours are built
        super().__init__(
            in_channels,
            out_channels,
            num_outs,
            *args,
            upsample_cfg=dict(type='nearest'),
            **kwargs,
        )
        self.build_upsample_modules(
            upsample_cfg, out_channels, len(self.lateral_convs) - 1, top_down
        )

    def forward(self, inputs: tuple[Tensor]) -> tuple[Tensor]:
        """Build the pyramid.

        Args:
            inputs (tuple[Tensor]): (N, in_channels[i], H_i, W_i), finest
                first.

        Returns:
            tuple[Tensor]: ``num_outs`` maps (N, out_channels, H_i, W_i).
        """
        levels = range(self.start_level, self.backbone_end_level)
        sources = [inputs[i] for i in levels]
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, sources)]
        x = sources[-1]
        for conv in self.lateral_convs[len(sources) :]:
            x = conv(x)
            laterals.append(x)
        self.add_top_down(laterals, whole_ratio=True)
        return tuple(conv(lateral) for conv, lateral in zip(self.fpn_convs, laterals))
