"""An upsampler's output at the size that its neck asks for."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .builder import is_guided


def upsample_to(
    upsampler: nn.Module,
    x: Tensor,
    size: tuple[int, int],
    guide: Tensor | None = None,
) -> Tensor:
    """Upsample to a given size, which the ratio meets but for rounding.

    A level of a pyramid is half the one below, rounded up or down, so the map
    asked for is rarely the ratio times the map at hand when sizes are odd.

    An interpolation goes to the size itself: its class says so with
    ``any_size = True``, and its forward takes ``size``. An upsampler with a guide,
    ``guided = True``, goes to the guide's. Any other upsampler
    gives s*H x s*W, whose rows and columns lie over those of the map asked
    for: surplus ones at the end are cropped, missing ones repeat the last. Where
    more than rounding is between the two, as under a backbone whose levels do
    not halve, the same rows are other places of the image: then the output is
    resized, bilinearly.

    Args:
        upsampler (nn.Module): Maps (N, C, H, W) to (N, C, s*H, s*W).
        x (Tensor): (N, C, H, W).
        size (tuple[int, int]): Height and width asked for.
        guide (Tensor, optional): (N, guide_channels, h, w), high-resolution features
            for an upsampler that reads them; others do without. Defaults to None.

    Returns:
        Tensor: (N, C, *size), or (N, C, h, w) from a guided upsampler.
    """
    if is_guided(upsampler):
        return upsampler(x, guide)
    if getattr(upsampler, 'any_size', False):
        return upsampler(x, size=size)
    out = upsampler(x)
    missing = [want - have for want, have in zip(size, out.shape[2:])]
    if any(
        abs(lack) * length >= have
        for lack, length, have in zip(missing, x.shape[2:], out.shape[2:])
    ):
        return F.interpolate(out, size=size, mode='bilinear', align_corners=False)
    out = out[:, :, : size[0], : size[1]]
    down, right = (max(lack, 0) for lack in missing)
    if down or right:
        out = F.pad(out, (0, right, 0, down), mode='replicate')
    return out
