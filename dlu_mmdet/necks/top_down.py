"""What the necks share: upsamplers between the levels of a pyramid."""

from __future__ import annotations

from mmengine.config import ConfigDict
from torch import Tensor, nn

from ..ops.tracing import leaf
from ..upsamplers import (
    interpolation_name,
    registered_name,
    split_upsample_cfg,
    upsample_to,
)
from ..upsamplers.sites import Site
from .upsampler_mixin import UpsamplerMixin


def upsampling_part(
    neck: ConfigDict | list[ConfigDict] | nn.Module | None,
) -> ConfigDict | nn.Module | None:
    """Find what a neck upsamples with.

    Args:
        neck (ConfigDict | list[ConfigDict] | nn.Module, optional): A
            detector's neck, in its config or built: one part, or several in a
            row, as in Libra R-CNN.

    Returns:
        ConfigDict | nn.Module | None: The first part that names an upsampler;
        built, it has ``upsample_modules`` too if it is one of this package or
        mmdet's ``FPN_CARAFE``. None without such a part.
    """
    parts = neck if isinstance(neck, (list, nn.Sequential)) else [neck]
    return next((part for part in parts if _upsampler_cfg(part).get('type')), None)


def upsampler_name(
    neck: ConfigDict | list[ConfigDict] | nn.Module | None,
) -> str | None:
    """Name a neck's upsampler as the files in configs/ do: 'dlu', 'dlu-direct'.

    Args:
        neck (ConfigDict | list[ConfigDict] | nn.Module, optional): As
            :func:`upsampling_part`.

    Returns:
        str | None: The same for one upsampler, see
        :func:`dlu_mmdet.upsamplers.registered_name`; None if the neck names none.
    """
    part = upsampling_part(neck)
    if part is None:
        return None
    name = registered_name(_upsampler_cfg(part)['type'])
    return f'{name}-direct' if getattr(part, 'top_down', None) == 'direct' else name


def upsampler_cfg(neck: ConfigDict | list[ConfigDict] | nn.Module | None) -> dict:
    """What a neck's upsamplers are built from.

    Args:
        neck (ConfigDict | list[ConfigDict] | nn.Module, optional): As
            :func:`upsampling_part`.

    Returns:
        dict: Its ``upsample_cfg``; empty if the neck names no upsampler.
    """
    part = upsampling_part(neck)
    return {} if part is None else dict(_upsampler_cfg(part))


def _upsampler_cfg(part: ConfigDict | nn.Module | None) -> dict:
    """What a part's upsamplers are built from, in its config or built."""
    own = getattr(part, 'upsampler_cfg', None)  # beside mmdet's own attribute
    return own or getattr(part, 'upsample_cfg', None) or {}


class TopDownMixin(UpsamplerMixin):
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
            upsample_cfg (dict): As :func:`dlu_mmdet.upsamplers.build_upsampler`. A
                ``start`` of 'neck' is the ``mode`` in the same dict, or 'nearest'.
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
        # a config that inherits from FPN's may hold its interpolation as well
        upsample_cfg, theirs = split_upsample_cfg(upsample_cfg)
        theirs = {**upsample_cfg, **theirs}  # mode is resize_conv's, too
        interpolation = interpolation_name(
            theirs.get('mode') or 'nearest', theirs.get('align_corners')
        )
        self.top_down = top_down
        ratios = (2 if top_down == 'cascade' else 2 ** (num - i) for i in range(num))
        self.add_upsample_modules(
            upsample_cfg,
            (Site(channels, s, interpolation) for s in ratios),
            guide_channels=channels,
        )
        self.upsample_cfg = dict(upsample_cfg)

    def add_top_down(self, laterals: list[Tensor], whole_ratio: bool) -> None:
        """Add what comes from above to every level, in place.

        An upsampler that reads a guide gets the level's own lateral.

        Args:
            laterals (list[Tensor]): (N, C, H_i, W_i), finest first.
            whole_ratio (bool): Whether interpolation goes to the ratio times
                the size of the level above, and is cropped, as in mmdet's
                ``FPN_CARAFE``, or to the level's own size, as in ``FPN``.
        """
        for i in reversed(range(len(laterals) - 1)):
            source = i + 1 if self.top_down == 'cascade' else len(laterals) - 1
            s = 2 ** (source - i)
            size = h, w = laterals[i].shape[2:]
            if whole_ratio:
                size = _at_least(size, s, laterals[source])
            upsampled = upsample_to(
                self.upsample_modules[i], laterals[source], size, laterals[i], s
            )
            laterals[i] = laterals[i] + upsampled[:, :, :h, :w]


@leaf
def _at_least(size: tuple[int, int], s: int, source: Tensor) -> list[int]:
    """The ratio times the source; the level's size where a backbone rounds down."""
    return [max(n, s * m) for n, m in zip(size, source.shape[2:])]
