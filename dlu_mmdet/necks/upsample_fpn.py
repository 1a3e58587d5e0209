"""mmdet's FPN with any upsampler in its top-down path."""

from __future__ import annotations

import torch.nn.functional as F
from mmdet.models.necks import FPN
from mmdet.registry import MODELS
from torch import Tensor

from .top_down import TopDownMixin


@MODELS.register_module()
class UpsampleFPN(TopDownMixin, FPN):
    """FPN whose top-down path takes the upsampler that the config names.

    Laterals from the backbone's levels alone; further levels come from the
    top by pooling or by extra convolutions, and do not feed the top-down
    path. Without an upsampler's own weights its state_dict is that of mmdet's
    ``FPN``, and ``dict(type='nearest')`` gives the same numbers.

    Args:
        in_channels (list[int]): Channels of the backbone's levels.
        out_channels (int): Channels of every output.
        num_outs (int): Number of outputs.
        upsample_cfg (dict): Upsampler between two levels, see
            :func:`dlu_mmdet.upsamplers.build_upsampler`. Defaults to
            ``dict(type='nearest')``.
        top_down (str): 'cascade' doubles level by level, as the papers do;
            'direct' is this project's experiment, which takes the top level
            to each lower one in one step of its whole ratio, see
            :class:`TopDownMixin`. Defaults to 'cascade'.
        **kwargs: As mmdet's ``FPN``.

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
        upsample_cfg: dict = dict(type='nearest'),  # noqa: B006
        top_down: str = 'cascade',
        **kwargs,
    ) -> None:
        super().__init__(in_channels, out_channels, num_outs, *args, **kwargs)
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
        laterals = [
            conv(inputs[i + self.start_level])
            for i, conv in enumerate(self.lateral_convs)
        ]
        self.add_top_down(laterals, whole_ratio=False)
        outs = [conv(lateral) for conv, lateral in zip(self.fpn_convs, laterals)]

        extra = self.num_outs - len(outs)
        if extra and not self.add_extra_convs:
            for _ in range(extra):
                outs.append(F.max_pool2d(outs[-1], 1, stride=2))
        elif extra:
            x = dict(
                on_input=inputs[self.backbone_end_level - 1],
                on_lateral=laterals[-1],
                on_output=outs[-1],
            )[self.add_extra_convs]
            for conv in self.fpn_convs[len(laterals) :]:
                outs.append(conv(x))
                x = outs[-1]
                if self.relu_before_extra_convs:
                    x = F.relu(x)
        return tuple(outs)
