"""The reassembly operators as an export takes them: a few standard operators.

The reference has a node for every tap, thousands in a pyramid, which takes an exporter
minutes. Here one gather lays out windows and a matrix product sums them under the
kernels. A window is that of T neighbors in a row together, so that they are
``K (T + K - 1) / T`` times the features and not K*K times; a kernel is 0 where the
window is not its own pixel's. The sampling of DLU is one ``grid_sample``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_arguments
from .reference import accumulation_dtype


def _tile(width: int) -> int:
    """T for maps of a width, which may be open in an export: what surely divides it."""
    # late: it brings sympy
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return next((t for t in (8, 4, 2) if statically_known_true(width % t == 0)), 1)


def _windows(features: Tensor, kernel_size: int, group_size: int, t: int) -> Tensor:
    """(N, C, H, W) to (N*G, H, W/T, K * (T+K-1), C/G), 0 outside the map."""
    n, c, h, w = features.shape
    r, span = kernel_size // 2, t + kernel_size - 1
    groups, d, wide = n * group_size, c // group_size, w + 2 * r
    padded = F.pad(features, (r, r, r, r)).reshape(groups, d, (h + 2 * r) * wide)

    def count(length: int) -> Tensor:
        return torch.arange(length, device=features.device)

    rows = count(h)[:, None, None, None] + count(kernel_size)[:, None]
    columns = t * count(w // t)[:, None, None] + count(span)
    index = (rows * wide + columns).flatten()
    windows = padded.transpose(1, 2).index_select(1, index)
    return windows.reshape(groups, h, w // t, kernel_size * span, d)


def _by_tile(y: Tensor, group_size: int, t: int, s: int) -> Tensor:
    """(N, G*D, s*H, s*W) to (N*G, D, H, s, W/T, T, s)."""
    n, channels, h, w = y.shape
    return y.reshape(
        n * group_size, channels // group_size, h // s, s, w // (t * s), t, s
    )


def _as_map(y: Tensor, group_size: int) -> Tensor:
    """(N*G, D, H, s, W/T, T, s) to (N, G*D, s*H, s*W)."""
    groups, d, h, s, tiles, t, _ = y.shape
    return y.reshape(groups // group_size, group_size * d, h * s, tiles * t * s)


def _shift(kernels: Tensor) -> Tensor:
    """(..., T, K) to (..., T, T+K-1): row x moved by x, 0 beside it."""
    *leading, t, k = kernels.shape
    rows = F.pad(kernels, (0, t)).reshape(*leading, t * (t + k))
    return rows[..., : t * (t + k - 1)].reshape(*leading, t, t + k - 1)


def _shift_back(scores: Tensor) -> Tensor:
    """(..., T, T+K-1) to (..., T, K): row x from x on."""
    *leading, t, span = scores.shape
    rows = F.pad(scores.reshape(*leading, t * span), (0, t))
    return rows.reshape(*leading, t, span + 1)[..., : span + 1 - t]


def _sample(kernels: Tensor, offsets: Tensor, group_size: int, s: int) -> Tensor:
    """Kernels (N, G*K*K, H, W) at every output pixel: (N, G*K*K, s*H, s*W)."""
    n, channels, h, w = kernels.shape
    # (N*G, axis, i, j, y, x) to (axis, N*G, y, i, x, j)
    offsets = offsets.reshape(n * group_size, 2, s, s, h, w)
    dx, dy = offsets.permute(1, 0, 4, 2, 5, 3).unbind(0)
    xs = torch.arange(w, device=kernels.device)[:, None]
    ys = torch.arange(h, device=kernels.device)[:, None, None, None]
    # from -1 to 1 between the outer edges of the map, where W = 1 is no special case
    grid = torch.stack(
        [(2 * (xs + dx) + 1) / w - 1, (2 * (ys + dy) + 1) / h - 1], dim=-1
    )
    sampled = F.grid_sample(
        kernels.reshape(n * group_size, channels // group_size, h, w),
        grid.reshape(n * group_size, h * s, w * s, 2),
        mode='bilinear',
        padding_mode='border',
        align_corners=False,
    )
    return sampled.reshape(n, channels, h * s, w * s)


def dlu(
    features: Tensor,
    kernels: Tensor,
    offsets: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> Tensor:
    """Reassemble features with kernels sampled from a small kernel space.

    Same arguments and results as :func:`dlu_mmdet.ops.dlu`, but that a non-finite
    offset does not make NaN.
    """
    sizes = (kernel_size, group_size, scale_factor)
    check_arguments(features, sizes, kernels=kernels, offsets=offsets)
    dtype = torch.promote_types(accumulation_dtype(features.dtype), offsets.dtype)
    masks = _sample(kernels.to(dtype), offsets.to(dtype), group_size, scale_factor)
    return carafe(features, masks, kernel_size, group_size, scale_factor)


def carafe(
    features: Tensor,
    masks: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> Tensor:
    """Reassemble features with kernels given at output resolution.

    Same arguments and results as :func:`dlu_mmdet.ops.carafe`.
    """
    sizes = (kernel_size, group_size, scale_factor)
    check_arguments(features, sizes, masks=masks)
    dtype = accumulation_dtype(features.dtype)
    k, s, t = kernel_size, scale_factor, _tile(features.shape[3])
    windows = _windows(features.to(dtype), k, group_size, t)
    groups, h, tiles, _, d = windows.shape
    # (N*G, a, b, H, i, W/T, x, j) to (N*G, H, W/T, i, j, a, x, b)
    masks = _by_tile(masks.to(dtype), group_size, t, s)
    masks = masks.reshape(groups, k, k, h, s, tiles, t, s)
    masks = _shift(masks.permute(0, 3, 5, 4, 7, 1, 6, 2))
    # x + b in the place of b, which goes with a, as do x with i and j
    masks = masks.permute(0, 1, 2, 5, 7, 3, 6, 4)
    masks = masks.reshape(groups, h, tiles, k * (t + k - 1), s * t * s)
    out = (windows.transpose(3, 4) @ masks).reshape(groups, h, tiles, d, s, t, s)
    out = _as_map(out.permute(0, 3, 1, 4, 2, 5, 6), group_size)
    return out.to(features.dtype)


def window_scores(
    features: Tensor,
    queries: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> Tensor:
    """Compare every output pixel with the window of source pixels around it.

    Same arguments and results as :func:`dlu_mmdet.ops.window_scores`.
    """
    sizes = (kernel_size, group_size, scale_factor)
    check_arguments(features, sizes, queries=queries)
    dtype = accumulation_dtype(features.dtype)
    # each in the dtype of features, which half precision has to round to first
    queries = queries.to(features.dtype).to(dtype)
    k, s, t = kernel_size, scale_factor, _tile(features.shape[3])
    windows = _windows(features.to(dtype), k, group_size, t)
    groups, h, tiles, _, d = windows.shape
    queries = _by_tile(queries, group_size, t, s).permute(0, 2, 4, 1, 3, 5, 6)
    scores = windows @ queries.reshape(groups, h, tiles, d, s * t * s)
    # (N*G, H, W/T, a, x + b, i, x, j) to (N*G, H, W/T, i, j, a, x, b)
    scores = scores.reshape(groups, h, tiles, k, t + k - 1, s, t, s)
    scores = _shift_back(scores.permute(0, 1, 2, 5, 7, 3, 6, 4))
    scores = scores.permute(0, 5, 7, 1, 3, 2, 6, 4)
    scores = scores.reshape(groups, k * k, h, s, tiles, t, s)
    return _as_map(scores, group_size).to(features.dtype)
