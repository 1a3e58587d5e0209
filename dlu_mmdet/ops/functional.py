"""The operators that modules and users call."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from ..utils.torch_compat import is_exporting
from . import decomposed, library, reference
from .checks import check_types
from .tracing import leaf


def _backend(*sizes: int, **tensors: Tensor) -> ModuleType:
    """The module whose function of the same name and arguments computes a call.

    An export gets operators that run without this package; the older exporter, of
    TorchScript, gets the reference, which needs no operator later than opset 11. The
    module checks the arguments. Only types are checked here, since torch would refuse
    them in its own words.

    Args:
        *sizes (int): kernel_size, group_size and scale_factor.
        **tensors (Tensor): The features and the others, by name.
    """
    check_types(sizes, **tensors)
    if is_exporting():
        return decomposed
    return library if library.handles(tensors['features']) else reference


@leaf
def dlu(
    features: Tensor,
    kernels: Tensor,
    offsets: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> Tensor:
    r"""Dynamic lightweight upsampling: sample kernels, reassemble features.

    For output pixel (Y, X) = (y s + i, x s + j), with r = K // 2 and all
    positions in source pixels::

        u = clamp(x + dx, 0, W - 1)      dx = offsets[g, 0, i, j, y, x]
        v = clamp(y + dy, 0, H - 1)      dy = offsets[g, 1, i, j, y, x]
        k~[t] = bilinear(kernels[g, t], v, u)          t = 0 .. K*K - 1
        out[c, Y, X] = sum over (a, b) in [-r, r]^2 of
                       k~[(a + r) K + (b + r)] * x[c, y + a, x + b]

    Taps outside the map count 0. Where clamping is active the gradient of the
    offset is 0; at a lattice point, as at offset 0, it is the right-hand derivative.
    The authors' code scales positions to [-1, 1] for ``grid_sample``, which scales them
    back, so rounding decides there from which side its derivative is. A
    non-finite offset makes its own output pixel NaN.

    Source: `Lighten CARAFE <https://arxiv.org/abs/2410.22139>`_, section 3.

    Args:
        features (Tensor): x, (N, C, H, W), any floating dtype.
        kernels (Tensor): Source kernels, (N, G*K*K, H, W), channel
            g*K*K + t, normalized over t by the caller.
        offsets (Tensor): (N, G*2*s*s, H, W) in source pixels, channel
            g*2*s*s + axis*s*s + i*s + j, axis 0 = x and 1 = y. Sampling
            positions are computed in float32, or in float64 where ``features``
            or ``offsets`` are.
        kernel_size (int): K, odd.
        group_size (int): G, the number of channel groups; divides C.
        scale_factor (int): s, at least 1.

    Returns:
        Tensor: (N, C, s*H, s*W), dtype and memory format of ``features``;
        accumulated in float32 at least.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a size, a shape or a device does not fit.
    """
    sizes = (kernel_size, group_size, scale_factor)
    backend = _backend(*sizes, features=features, kernels=kernels, offsets=offsets)
    return backend.dlu(features, kernels, offsets, *sizes)


@leaf
def carafe(
    features: Tensor,
    masks: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> Tensor:
    r"""Content-aware reassembly of features, on any device.

    For output pixel (Y, X) in the s x s block of source pixel (y, x)::

        out[c, Y, X] = sum over (a, b) in [-r, r]^2 of
                       masks[g, (a + r) K + (b + r), Y, X] * x[c, y + a, x + b]

    Source: `CARAFE <https://arxiv.org/abs/1905.02188>`_, equation 4. The
    signature is that of ``mmcv.ops.carafe``.

    Args:
        features (Tensor): x, (N, C, H, W), any floating dtype.
        masks (Tensor): Reassembly kernels, (N, G*K*K, s*H, s*W), channel
            g*K*K + t, normalized over t by the caller.
        kernel_size (int): K, odd.
        group_size (int): G, the number of channel groups; divides C.
        scale_factor (int): s, at least 1.

    Returns:
        Tensor: (N, C, s*H, s*W), dtype and memory format of ``features``;
        accumulated in float32 at least.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a size, a shape or a device does not fit.
    """
    sizes = (kernel_size, group_size, scale_factor)
    backend = _backend(*sizes, features=features, masks=masks)
    return backend.carafe(features, masks, *sizes)


@leaf
def window_scores(
    features: Tensor,
    queries: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> Tensor:
    r"""Compare every output pixel with the window of source pixels around it.

    For output pixel (Y, X) in the s x s block of source pixel (y, x)::

        out[g, (a + r) K + (b + r), Y, X] = sum over channels c of group g of
                                            q[c, Y, X] * x[c, y + a, x + b]

    with (a, b) in [-r, r]^2; taps outside the map score 0. Softmax over the taps makes
    them kernels for :func:`carafe`, of which this is the gradient with regard to
    ``masks``: nothing of the size of unfolded features exists.

    Source: `SAPA <https://arxiv.org/abs/2209.12866>`_, whose similarity of an encoder
    point and the decoder points around it this is.

    Args:
        features (Tensor): x, (N, C, H, W), any floating dtype.
        queries (Tensor): q, (N, C, s*H, s*W).
        kernel_size (int): K, odd.
        group_size (int): G, the number of channel groups; divides C.
        scale_factor (int): s, at least 1.

    Returns:
        Tensor: (N, G*K*K, s*H, s*W), dtype of ``features``; accumulated in float32 at
        least.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a size, a shape or a device does not fit.
    """
    sizes = (kernel_size, group_size, scale_factor)
    backend = _backend(*sizes, features=features, queries=queries)
    return backend.window_scores(features, queries, *sizes)
