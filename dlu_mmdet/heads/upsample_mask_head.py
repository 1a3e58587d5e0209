"""mmdet's mask heads with any upsampler."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdet.models.roi_heads.mask_heads import DynamicMaskHead, FCNMaskHead
from mmdet.registry import MODELS

from ..upsamplers import build_upsampler, check_ratio

if TYPE_CHECKING:
    from mmdet.models.roi_heads.mask_heads import FCNMaskHead as _MaskHead
else:
    _MaskHead = object


class MaskHeadMixin(_MaskHead):
    """Replaces ``upsample`` of ``FCNMaskHead`` or a subclass of it.

    Arguments and errors as :class:`UpsampleMaskHead`.
    """

    def __init__(
        self,
        *args,
        upsample_cfg: dict = dict(type='deconv'),  # noqa: B006
        **kwargs,
    ) -> None:
        # nearest has no weights: it stands in until ours is built
        nearest = dict(type='nearest', scale_factor=2)
        try:
            super().__init__(*args, upsample_cfg=nearest, **kwargs)
        except TypeError as error:
            if 'multiple values' not in str(error):
                raise
            raise ValueError(
                f'{type(self).__name__} enlarges no map: it has no site for an '
                'upsampler'
            ) from error
        self.upsample_cfg = dict(upsample_cfg)
        self.scale_factor = self.upsample_cfg.pop('scale_factor', 2)
        self.upsample_method = self.upsample_cfg.get('type')
        is_bilinear = self.upsample_cfg.get('start') == 'bilinear'  # needs a larger one
        if self.upsample_method == 'deconv' and not is_bilinear:
            self.upsample_cfg.setdefault('upsample_kernel', self.scale_factor)
        site = (self.conv_logits.in_channels, self.scale_factor)
        self.upsample = build_upsampler(self.upsample_cfg, *site)
        check_ratio(self.upsample, *site)

    def init_weights(self) -> None:
        """As mmdet's; an upsampler with a ``start`` keeps it."""
        super().init_weights()
        # DynamicMaskHead initializes every weight in it
        lost = isinstance(self, DynamicMaskHead) and self.upsample_method != 'deconv'
        if lost or getattr(self.upsample, 'start', 'paper') != 'paper':
            self.upsample.init_weights()


@MODELS.register_module()
class UpsampleMaskHead(MaskHeadMixin, FCNMaskHead):
    """Mask head of Mask R-CNN that takes the upsampler that the config names.

    mmdet's ``FCNMaskHead`` refuses any upsampler outside a fixed list. For those on
    the list the state_dict keys and the results are its own.

    Args:
        *args: As ``FCNMaskHead``, before its ``upsample_cfg``.
        upsample_cfg (dict): Upsampler of the RoI's features, see
            :func:`dlu_mmdet.upsamplers.build_upsampler`, with a
            ``scale_factor``, 2 if it has none. As in ``FCNMaskHead`` the
            kernel of ``deconv`` is as large as its ratio unless
            ``upsample_kernel`` is given or it starts at 'bilinear', and a ReLU follows
            it. Defaults to ``dict(type='deconv')``.
        **kwargs: As ``FCNMaskHead``.

    Raises:
        TypeError: If ``upsample_cfg`` holds an argument that the upsampler
            does not accept.
        ValueError: If ``upsample_cfg.type`` is missing or unknown, the upsampler has
            another ratio, or the head enlarges no map.
    """
