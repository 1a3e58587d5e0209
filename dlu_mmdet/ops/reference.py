"""Plain PyTorch reassembly operators: the ground truth of the fused ones.

They run on any device, export, and differentiate through autograd. Neither
the unfolded feature map nor the upsampled kernels ever exist: one of the K*K
taps is handled at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_carafe, check_dlu, check_window_scores


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _reassemble(
    features: Tensor,
    taps: Iterator[Tensor],
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> Tensor:
    """out = sum over taps (a, b) of  k~[a, b] * x[y + a, x + b].

    Args:
        features (Tensor): (N, C, H, W).
        taps (Iterator[Tensor]): K*K kernel values for every output pixel,
            each (N, G, s, s, H, W), row by row.

    Returns:
        Tensor: (N, C, s*H, s*W).
    """
    n, c, h, w = features.shape
    s, r = scale_factor, kernel_size // 2
    x = features.to(accumulation_dtype(features.dtype))
    x = F.pad(x, (r, r, r, r)).reshape(
        n, group_size, c // group_size, 1, 1, h + 2 * r, w + 2 * r
    )
    out = 0
    for t, k in enumerate(taps):
        a, b = divmod(t, kernel_size)
        out = out + k.unsqueeze(2) * x[..., a : a + h, b : b + w]
    # (N, G, C/G, i, j, y, x) -> (N, C, y, i, x, j)
    out = out.permute(0, 1, 2, 5, 3, 6, 4).reshape(n, c, h * s, w * s)
    out = out.to(features.dtype)
    if (
        features.is_contiguous(memory_format=torch.channels_last)
        and not features.is_contiguous()
    ):
        out = out.contiguous(memory_format=torch.channels_last)
    return out


def _clamped_position(coordinate: Tensor, offset: Tensor, size: int) -> Tensor:
    """u = clamp(x + dx, 0, size - 1), NaN where dx is not finite.

    The gradient is 0 wherever clamping is active, the borders included.
    """
    position = coordinate + offset
    inside = (position > 0) & (position < size - 1)
    position = torch.where(inside, position, position.detach().clamp(0, size - 1))
    return torch.where(
        offset.isfinite(), position, torch.full_like(position, float('nan'))
    )


def _floor_index(position: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lower neighbour, upper neighbour, and the weight of the upper one."""
    lower = position.detach().floor()
    weight = position - lower
    lower = lower.nan_to_num(0.0)  # the weight carries the NaN
    # clamped as a float: opset 11 has no Clip of integers
    return lower.long(), (lower + 1).clamp(max=size - 1).long(), weight


def dlu(
    features: Tensor,
    kernels: Tensor,
    offsets: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> Tensor:
    """Reassemble features with kernels sampled from a small kernel space.

    Same arguments and results as :func:`dlu_mmdet.ops.dlu`, in plain PyTorch.
    """
    check_dlu(features, kernels, offsets, kernel_size, group_size, scale_factor)
    n, _, h, w = features.shape
    g, s = group_size, scale_factor
    dtype = accumulation_dtype(features.dtype)
    position_dtype = torch.promote_types(dtype, offsets.dtype)

    # offsets[g, axis, i, j, y, x], axis 0 = x, 1 = y, in source pixels
    dx, dy = offsets.to(position_dtype).reshape(n, g, 2, s, s, h, w).unbind(2)
    xs = torch.arange(w, device=offsets.device, dtype=position_dtype)
    ys = torch.arange(h, device=offsets.device, dtype=position_dtype)
    u = _clamped_position(xs, dx, w)
    v = _clamped_position(ys[:, None], dy, h)
    x0, x1, wx = _floor_index(u, w)
    y0, y1, wy = _floor_index(v, h)

    corners = []
    for yi, fy in ((y0, 1 - wy), (y1, wy)):
        for xi, fx in ((x0, 1 - wx), (x1, wx)):
            corners.append(((yi * w + xi).flatten(2), (fy * fx).flatten(2)))
    planes = kernels.to(dtype).reshape(n, g, kernel_size**2, h * w)

    def sampled_taps() -> Iterator[Tensor]:
        for plane in planes.unbind(2):
            k = sum(plane.gather(2, index) * weight for index, weight in corners)
            yield k.to(dtype).reshape(n, g, s, s, h, w)

    return _reassemble(features, sampled_taps(), kernel_size, g, s)


def carafe(
    features: Tensor,
    masks: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> Tensor:
    """Reassemble features with kernels given at output resolution.

    Same arguments and results as :func:`dlu_mmdet.ops.carafe`, in plain
    PyTorch.
    """
    check_carafe(features, masks, kernel_size, group_size, scale_factor)
    n, _, h, w = features.shape
    g, s = group_size, scale_factor
    masks = masks.to(accumulation_dtype(features.dtype))
    # (N, G, K*K, y, i, x, j) -> taps of (N, G, i, j, y, x)
    masks = masks.reshape(n, g, kernel_size**2, h, s, w, s)
    taps = (m.permute(0, 1, 3, 5, 2, 4) for m in masks.unbind(2))
    return _reassemble(features, taps, kernel_size, g, s)


def window_scores(
    features: Tensor,
    queries: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> Tensor:
    """Compare every output pixel with the window of source pixels around it.

    Same arguments and results as :func:`dlu_mmdet.ops.window_scores`, in plain
    PyTorch.
    """
    check_window_scores(features, queries, kernel_size, group_size, scale_factor)
    n, c, h, w = features.shape
    g, s, r = group_size, scale_factor, kernel_size // 2
    dtype = accumulation_dtype(features.dtype)
    x = F.pad(features.to(dtype), (r, r, r, r))
    x = x.reshape(n, g, c // g, h + 2 * r, 1, w + 2 * r, 1)
    # each in the dtype of features, which half precision has to round to first
    q = queries.to(features.dtype).to(dtype).reshape(n, g, c // g, h, s, w, s)
    scores = []
    for t in range(kernel_size**2):
        a, b = divmod(t, kernel_size)
        scores.append((q * x[:, :, :, a : a + h, :, b : b + w]).sum(2))
    out = torch.stack(scores, dim=2).reshape(n, g * kernel_size**2, h * s, w * s)
    return out.to(features.dtype)
