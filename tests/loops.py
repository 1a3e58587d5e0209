"""The operators as loops over pixels in float64, written from the formula."""

import math

import numpy as np


def _sample(plane: np.ndarray, v: float, u: float) -> float:
    h, w = plane.shape
    y0, x0 = math.floor(v), math.floor(u)
    y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
    fy, fx = v - y0, u - x0
    return (1 - fy) * ((1 - fx) * plane[y0, x0] + fx * plane[y0, x1]) + fy * (
        (1 - fx) * plane[y1, x0] + fx * plane[y1, x1]
    )


def _gather(x, g, group_size, yy, xx, kernel, kernel_size):
    c, h, w = x.shape
    r = kernel_size // 2
    channels = range(g * c // group_size, (g + 1) * c // group_size)
    total = np.zeros(len(channels))
    for a in range(-r, r + 1):
        for b in range(-r, r + 1):
            if 0 <= yy + a < h and 0 <= xx + b < w:
                t = (a + r) * kernel_size + b + r
                total += kernel[t] * x[channels, yy + a, xx + b]
    return channels, total


def dlu(features, kernels, offsets, kernel_size, group_size, scale_factor):
    """Arrays in, float64 array out; arguments as ``dlu_mmdet.ops.dlu``."""
    n, c, h, w = features.shape
    s, taps = scale_factor, kernel_size**2
    out = np.zeros((n, c, h * s, w * s))
    for b in range(n):
        for g in range(group_size):
            for y in range(h):
                for x in range(w):
                    for i in range(s):
                        for j in range(s):
                            at = g * 2 * s * s + i * s + j
                            dx = offsets[b, at, y, x]
                            dy = offsets[b, at + s * s, y, x]
                            if np.isfinite(dx) and np.isfinite(dy):
                                u = min(max(x + dx, 0), w - 1)
                                v = min(max(y + dy, 0), h - 1)
                                k = [
                                    _sample(kernels[b, g * taps + t], v, u)
                                    for t in range(taps)
                                ]
                            else:
                                k = [np.nan] * taps
                            channels, total = _gather(
                                features[b], g, group_size, y, x, k, kernel_size
                            )
                            out[b, channels, y * s + i, x * s + j] = total
    return out


def carafe(features, masks, kernel_size, group_size, scale_factor):
    """Arrays in, float64 array out; arguments as ``dlu_mmdet.ops.carafe``."""
    n, c, h, w = features.shape
    s, taps = scale_factor, kernel_size**2
    out = np.zeros((n, c, h * s, w * s))
    for b in range(n):
        for g in range(group_size):
            for yy in range(h * s):
                for xx in range(w * s):
                    k = masks[b, g * taps : (g + 1) * taps, yy, xx]
                    channels, total = _gather(
                        features[b], g, group_size, yy // s, xx // s, k, kernel_size
                    )
                    out[b, channels, yy, xx] = total
    return out


def dysample(features, offset, scope, style, groups, scale_factor):
    """Arrays in, float64 array out.

    ``offset`` is the weight (out, in) and the bias (out,) of DySample's linear layer,
    ``scope`` the weight (out, in) of its second one, or None for a static scope.
    """
    n, c, h, w = features.shape
    s, (weight, bias) = scale_factor, offset
    out = np.zeros((n, c, h * s, w * s))
    for b in range(n):
        for yy in range(h * s):
            for xx in range(w * s):
                (y, i), (x, j) = divmod(yy, s), divmod(xx, s)
                read = features[b, :, y, x]
                if style == 'pl':
                    read = read[i * s + j :: s * s]
                o = weight @ read + bias
                if scope is None:
                    o = 0.25 * o
                else:
                    o = 0.5 / (1 + np.exp(-scope @ read)) * o
                if style == 'lp':
                    o = o[i * s + j :: s * s]
                for g in range(groups):
                    u = x + (j + 0.5) / s - 0.5 + o[g]
                    v = y + (i + 0.5) / s - 0.5 + o[groups + g]
                    u, v = min(max(u, 0), w - 1), min(max(v, 0), h - 1)
                    for k in range(g * c // groups, (g + 1) * c // groups):
                        out[b, k, yy, xx] = _sample(features[b, k], v, u)
    return out
