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

from .checks import check_arguments


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def is_channels_last(tensor: Tensor) -> bool:
    """Whether the operators follow that layout: where it is not NCHW too."""
    if tensor.is_contiguous():
        return False
    try:
        return tensor.is_contiguous(memory_format=torch.channels_last)
    except RuntimeError:  # vmap does not tell
        return False


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
    if is_channels_last(features):
        out = out.contiguous(memory_format=torch.channels_last)
    return out


def _locate(offset: Tensor, pixel: Tensor, size: int) -> tuple[Tensor, ...]:
    """Where an axis is sampled: u = clamp(pixel + offset, 0, size - 1).

    Returns:
        tuple[Tensor, ...]: The lower and the upper neighbor, the weight of the upper
        one, NaN where the offset is not finite, and whether u is not clamped. Only
        there the weight has a derivative.
    """
    position = pixel + offset
    inside = (position > 0) & (position < size - 1)
    position = torch.where(inside, position, position.detach().clamp(0, size - 1))
    position = torch.where(
        offset.isfinite(), position, torch.full_like(position, float('nan'))
    )
    lower = position.detach().floor()
    weight = position - lower
    lower = lower.nan_to_num(0.0)  # the weight carries the NaN
    # clamped as a float: opset 11 has no Clip of integers
    return lower.long(), (lower + 1).clamp(max=size - 1).long(), weight, inside


class Sampler:
    """Bilinear sampling of source kernels at the place of every output pixel.

    Args:
        offsets (Tensor): (N, G*2*s*s, H, W) in source pixels.
        group_size (int): G.
        scale_factor (int): s.
        dtype (torch.dtype): In which kernels are sampled.
    """

    def __init__(
        self, offsets: Tensor, group_size: int, scale_factor: int, dtype: torch.dtype
    ) -> None:
        n, _, h, w = offsets.shape
        g, s = group_size, scale_factor
        # offsets[g, axis, i, j, y, x], axis 0 = x, 1 = y
        wide = offsets.to(torch.promote_types(dtype, offsets.dtype))
        dx, dy = wide.reshape(n, g, 2, s * s, h, w).unbind(2)
        xs = torch.arange(w, device=offsets.device, dtype=wide.dtype)
        ys = torch.arange(h, device=offsets.device, dtype=wide.dtype)
        x0, x1, wx, inside_x = _locate(dx, xs, w)
        y0, y1, wy, inside_y = _locate(dy, ys[:, None], h)
        #: of the four neighbors, (N, G, s*s*H*W): pixel of the map and weight
        self.corners = [
            ((yi * w + xi).flatten(2), (fy * fx).flatten(2))
            for yi, fy in ((y0, 1 - wy), (y1, wy))
            for xi, fx in ((x0, 1 - wx), (x1, wx))
        ]
        self.weights, self.inside = (wx, wy), (inside_x, inside_y)
        self.dtype = dtype

    def __call__(self, plane: Tensor) -> Tensor:
        """Sample a tap of all kernels, (N, G, H*W) to (N, G, s*s*H*W)."""
        k = sum(plane.gather(2, index) * weight for index, weight in self.corners)
        return k.to(self.dtype)

    def backward(self, planes: Tensor, grads: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of what was sampled and of the offsets.

        It is the derivative that autograd gives, written out so that it can be
        differentiated again in any mode.

        Args:
            planes (Tensor): All taps of the kernels, (N, G, K*K, H*W).
            grads (Tensor): The gradient of what they gave, (N, G, K*K, s*s*H*W).

        Returns:
            tuple[Tensor, Tensor]: (N, G, K*K, H*W) and (N, G, 2, s*s, H, W).
        """
        of_planes, of_weights = [], [0, 0, 0, 0]
        for plane, grad in zip(planes.unbind(2), grads.unbind(2)):
            of_plane = torch.zeros_like(plane)
            for i, (index, weight) in enumerate(self.corners):
                of_plane = of_plane.scatter_add(
                    2, index, (grad * weight).to(self.dtype)
                )
                of_weights[i] = of_weights[i] + grad * plane.gather(2, index)
            of_planes.append(of_plane)
        wx, wy = self.weights
        k00, k01, k10, k11 = (values.reshape(wx.shape) for values in of_weights)
        slopes = (
            (1 - wy) * (k01 - k00) + wy * (k11 - k10),
            (1 - wx) * (k10 - k00) + wx * (k11 - k01),
        )
        of_offsets = [
            torch.where(inside, slope, 0) for inside, slope in zip(self.inside, slopes)
        ]
        return torch.stack(of_planes, dim=2), torch.stack(of_offsets, dim=2)


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
    sizes = (kernel_size, group_size, scale_factor)
    check_arguments(features, sizes, kernels=kernels, offsets=offsets)
    n, _, h, w = features.shape
    g, s = group_size, scale_factor
    dtype = accumulation_dtype(features.dtype)
    sample = Sampler(offsets, g, s, dtype)
    planes = kernels.to(dtype).reshape(n, g, kernel_size**2, h * w)
    taps = (sample(plane).reshape(n, g, s, s, h, w) for plane in planes.unbind(2))
    return _reassemble(features, taps, kernel_size, g, s)


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
    sizes = (kernel_size, group_size, scale_factor)
    check_arguments(features, sizes, masks=masks)
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
    sizes = (kernel_size, group_size, scale_factor)
    check_arguments(features, sizes, queries=queries)
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
