"""mmdet's mask head with any upsampler."""

from __future__ import annotations

from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.registry import MODELS

from ..upsamplers import build_upsampler, check_ratio


@MODELS.register_module()
class UpsampleMaskHead(FCNMaskHead):
    """Mask head of Mask R-CNN that takes the upsampler that the config names.

    mmdet's ``FCNMaskHead`` refuses any upsampler outside a fixed list. For
    those on the list the state_dict keys and the results are its own.

    Args:
        *args: As mmdet's ``FCNMaskHead``, before its ``upsample_cfg``.
        upsample_cfg (dict): Upsampler of the RoI's features, see
            :func:`dlu_mmdet.upsamplers.build_upsampler`, with a
            ``scale_factor``, 2 if it has none. As in ``FCNMaskHead`` the
            kernel of ``deconv`` is as large as its ratio unless
            ``upsample_kernel`` is given, and a ReLU follows it. Defaults to
            ``dict(type='deconv')``.
        **kwargs: As mmdet's ``FCNMaskHead``.

    Raises:
        TypeError: If ``upsample_cfg`` holds an argument that the upsampler
            does not accept.
        ValueError: If ``upsample_cfg.type`` is missing or unknown, or the upsampler has
            another ratio.
    """

    def __init__(
        self,
        *args,
        upsample_cfg: dict = dict(type='deconv'),  # noqa: B006
        **kwargs,
    ) -> None:
        # nearest has no weights: it stands in until ours is built
        super().__init__(
            *args, upsample_cfg=dict(type='nearest', scale_factor=2), **kwargs
        )
        self.upsample_cfg = dict(upsample_cfg)
        self.scale_factor = self.upsample_cfg.pop('scale_factor', 2)
        self.upsample_method = self.upsample_cfg.get('type')
        if self.upsample_method == 'deconv':
            self.upsample_cfg.setdefault('upsample_kernel', self.scale_factor)
        site = (self.conv_logits.in_channels, self.scale_factor)
        self.upsample = build_upsampler(self.upsample_cfg, *site)
        check_ratio(self.upsample, *site)

    def init_weights(self) -> None:
        """As mmdet's; an upsampler with a ``start`` keeps it."""
        super().init_weights()
        if getattr(self.upsample, 'start', 'paper') != 'paper':
            self.upsample.init_weights()
