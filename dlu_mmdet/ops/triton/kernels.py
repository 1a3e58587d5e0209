"""The operators as Triton kernels.

    u = clamp(x + dx, 0, W - 1)      v = clamp(y + dy, 0, H - 1)
    k~[t] = bilinear(kernels[t], v, u)                      t = 0 .. K*K - 1
    out[c, y S + i, x S + j] = sum over (a, b) in [-r, r]^2 of
                               k~[(a + r) K + (b + r)] * x[c, y + a, x + b]

A program works on a tile of ``BP`` source pixels of one image and one group of
channels. For CARAFE ``offsets`` is None and the kernels, at output resolution, are read
as they are. Every tensor is (N, C, H, W) and comes with its four strides, in elements.

``A`` is the dtype of sums, ``WIDE`` that of positions and ``I`` that of indices, all
chosen in ``__init__.py``.
"""

# ruff: noqa: E741, N803
from __future__ import annotations

import functools

import triton
import triton.language as tl

# A kernel is compiled again where a number is 1 or divisible by 16. Image sizes vary
# from batch to batch, so only strides that can make neighbors may cause that.
_SIZES = ['H', 'W', 'channels', 'groups', 'tiles', 'parts']
_STRIDES = [f'{name}{axis}' for name in 'xkozd' for axis in 'ny']
_jit = functools.partial(triton.jit, do_not_specialize=[*_SIZES, *_STRIDES])


@triton.jit
def _axis(pixel, offset, size, A: tl.constexpr, WIDE: tl.constexpr, I: tl.constexpr):
    """Where an offset from a pixel falls on an axis of ``size`` pixels.

    Returns the lower neighbor, the step to the upper one (0 at the last pixel), the
    weight of the upper one and whether the position is not clamped.
    """
    position = pixel.to(WIDE) + offset.to(WIDE)
    last = (size - 1).to(WIDE)
    finite = tl.abs(position) < float('inf')
    inside = finite & (position > 0) & (position < last)
    border = tl.where(finite & (position >= last), last, 0.0)
    clamped = tl.where(inside, position, border)
    # float32 rounds the last pixel of an axis longer than 2^24
    lower = tl.minimum(clamped.to(I), (size - 1).to(I))
    step = (lower + 1 < size).to(I)
    weight = tl.where(finite, clamped - lower.to(WIDE), float('nan'))
    return lower, step, weight.to(A), inside


@triton.jit
def _locate(
    offsets, on, oc, oy, ox, n, g, q, y, x, valid, H, W,
    S: tl.constexpr, A: tl.constexpr, WIDE: tl.constexpr, I: tl.constexpr,
):  # fmt: skip
    """Where sub-pixels q of pixels (y, x) sample their kernels, by axis."""
    at = offsets + n * on + (g * (2 * S * S) + q) * oc + y * oy + x * ox
    dx = tl.load(at, mask=valid, other=0)
    dy = tl.load(at + S * S * oc, mask=valid, other=0)
    u, right, wu, inside_u = _axis(x, dx, W, A, WIDE, I)
    v, down, wv, inside_v = _axis(y, dy, H, A, WIDE, I)
    return u, right, wu, inside_u, v, down, wv, inside_v


@triton.jit
def _neighbors(kernels, right, down, valid, A: tl.constexpr):
    """The four values around a position: here, to the right, below, below right."""
    k00 = tl.load(kernels, mask=valid, other=0).to(A)
    k01 = tl.load(kernels + right, mask=valid, other=0).to(A)
    k10 = tl.load(kernels + down, mask=valid, other=0).to(A)
    k11 = tl.load(kernels + down + right, mask=valid, other=0).to(A)
    return k00, k01, k10, k11


@triton.jit
def _weight(
    kernels, kn, kc, ky, kx, offsets, on, oc, oy, ox, n, g, t, q, y, x, valid, H, W,
    K: tl.constexpr, S: tl.constexpr,
    A: tl.constexpr, WIDE: tl.constexpr, I: tl.constexpr,
):  # fmt: skip
    """k~[t] of sub-pixels q of pixels (y, x); 0 where they are not valid."""
    kernels += n * kn + (g * (K * K) + t) * kc
    if offsets is None:
        at = kernels + (y * S + q // S) * ky + (x * S + q % S) * kx
        return tl.load(at, mask=valid, other=0).to(A)
    else:
        u, right, wu, _, v, down, wv, _ = _locate(
            offsets, on, oc, oy, ox, n, g, q, y, x, valid, H, W, S, A, WIDE, I
        )  # fmt: skip
        k00, k01, k10, k11 = _neighbors(
            kernels + v * ky + u * kx, right * kx, down * ky, valid, A
        )
        upper = (1 - wv) * (1 - wu) * k00 + (1 - wv) * wu * k01
        return upper + wv * (1 - wu) * k10 + wv * wu * k11


@triton.jit
def _split(i, count):
    """Digit and rest of a program's number."""
    return i % count, i // count


@_jit
def forward(
    features, xn, xc, xy, xx, kernels, kn, kc, ky, kx, offsets, on, oc, oy, ox,
    out, zn, zc, zy, zx, H, W, channels, groups, tiles, parts,
    K: tl.constexpr, S: tl.constexpr,
    BP: tl.constexpr, BC: tl.constexpr, BQ: tl.constexpr,
    A: tl.constexpr, WIDE: tl.constexpr, I: tl.constexpr,
):  # fmt: skip
    """out, of BC channels and BQ sub-pixels: a feature that is read serves BQ sums."""
    tile, i = _split(tl.program_id(0).to(I), tiles)
    part, i = _split(i, parts)
    chunk, i = _split(i, (S * S + BQ - 1) // BQ)
    g, n = _split(i, groups)
    pixel = tile * BP + tl.arange(0, BP)
    y, x = pixel // W, pixel % W
    c = part * BC + tl.arange(0, BC)
    q = (chunk * BQ + tl.arange(0, BQ))[:, None]
    valid = (q < S * S) & (y < H)[None, :]
    features += n * xn + (g * channels + c)[:, None] * xc
    total = tl.zeros([BQ, BC, BP], A)
    for t in range(K * K):
        weight = _weight(
            kernels, kn, kc, ky, kx, offsets, on, oc, oy, ox, n, g, t, q,
            y[None, :], x[None, :], valid, H, W, K, S, A, WIDE, I,
        )  # fmt: skip
        ya, xb = y + (t // K - K // 2), x + (t % K - K // 2)
        inside = (ya >= 0) & (ya < H) & (xb >= 0) & (xb < W)
        value = tl.load(
            features + (ya * xy + xb * xx)[None, :],
            mask=(c < channels)[:, None] & inside[None, :],
            other=0,
        ).to(A)
        total += weight[:, None, :] * value[None, :, :]
    row, column = y[None, :] * S + q // S, x[None, :] * S + q % S
    to = out + n * zn + (row * zy + column * zx)[:, None, :]
    to += (g * channels + c)[None, :, None] * zc
    stored = valid[:, None, :] & (c < channels)[None, :, None]
    tl.store(to, total.to(out.dtype.element_ty), mask=stored)


@_jit
def backward_features(
    grad, xn, xc, xy, xx, kernels, kn, kc, ky, kx, offsets, on, oc, oy, ox,
    out, zn, zc, zy, zx, H, W, channels, groups, tiles, parts,
    K: tl.constexpr, S: tl.constexpr,
    BP: tl.constexpr, BC: tl.constexpr, BJ: tl.constexpr,
    A: tl.constexpr, WIDE: tl.constexpr, I: tl.constexpr,
):  # fmt: skip
    """The gradient of features, of BC channels.

    A pixel collects what the windows around it gave to its feature. The BJ sub-pixels
    of an output row, which are neighbors in memory, have sums of their own.
    """
    tile, i = _split(tl.program_id(0).to(I), tiles)
    part, i = _split(i, parts)
    g, n = _split(i, groups)
    pixel = tile * BP + tl.arange(0, BP)
    y, x = pixel // W, pixel % W
    c = part * BC + tl.arange(0, BC)
    channel = (c < channels)[:, None, None]
    grad += n * xn + (g * channels + c)[:, None, None] * xc
    total = tl.zeros([BC, BP, BJ], A)
    for t in range(K * K):
        # the pixel whose window has this one as its tap t
        ya, xb = y - (t // K - K // 2), x - (t % K - K // 2)
        inside = (y < H) & (ya >= 0) & (ya < H) & (xb >= 0) & (xb < W)
        ya, xb = ya[:, None], xb[:, None]
        for i in range(S):
            for j0 in range(0, S, BJ):
                j = (j0 + tl.arange(0, BJ).to(I))[None, :]
                valid = inside[:, None] & (j < S)
                weight = _weight(
                    kernels, kn, kc, ky, kx, offsets, on, oc, oy, ox, n, g, t,
                    i * S + j, ya, xb, valid, H, W, K, S, A, WIDE, I,
                )  # fmt: skip
                value = tl.load(
                    grad + ((ya * S + i) * xy + (xb * S + j) * xx)[None, :, :],
                    mask=channel & valid[None, :, :],
                    other=0,
                ).to(A)
                total += weight[None, :, :] * value
    to = out + n * zn + (g * channels + c)[:, None] * zc + (y * zy + x * zx)[None, :]
    stored = (c < channels)[:, None] & (y < H)[None, :]
    tl.store(to, tl.sum(total, 2).to(out.dtype.element_ty), mask=stored)


@_jit
def backward_kernels(
    grad, gn, gc, gy, gx, features, xn, xc, xy, xx,
    kernels, kn, kc, ky, kx, offsets, on, oc, oy, ox,
    of_kernels, zn, zc, zy, zx, of_offsets, dn, dc, dy, dx,
    H, W, channels, groups, tiles,
    K: tl.constexpr, S: tl.constexpr,
    BP: tl.constexpr, BT: tl.constexpr, BQ: tl.constexpr,
    A: tl.constexpr, WIDE: tl.constexpr, I: tl.constexpr,
):  # fmt: skip
    """The gradients of kernels and offsets, of BQ sub-pixels, BT taps at a time.

    The gradient of k~[t] is the sum over channels of gradient times feature. For CARAFE
    it is the result. For DLU it goes to the four kernels that k~[t] was sampled from,
    and its product with the slope of k~[t] to the offsets.
    """
    tile, i = _split(tl.program_id(0).to(I), tiles)
    chunk, i = _split(i, (S * S + BQ - 1) // BQ)
    g, n = _split(i, groups)
    pixel = (tile * BP + tl.arange(0, BP))[None, :]
    y, x = pixel // W, pixel % W
    q = (chunk * BQ + tl.arange(0, BQ))[:, None]
    row, column = y * S + q // S, x * S + q % S
    valid = (q < S * S) & (y < H)
    grad += n * gn + g * channels * gc + row * gy + column * gx
    features += n * xn + g * channels * xc
    of_kernels += n * zn
    if offsets is not None:
        u, right, wu, inside_u, v, down, wv, inside_v = _locate(
            offsets, on, oc, oy, ox, n, g, q, y, x, valid, H, W, S, A, WIDE, I
        )  # fmt: skip
        kernels += n * kn
        of_u = tl.zeros([BQ, BP], A)
        of_v = tl.zeros([BQ, BP], A)
    for t0 in range(0, K * K, BT):
        t = t0 + tl.arange(0, BT).to(I)[:, None]
        ya, xb = y + (t // K - K // 2), x + (t % K - K // 2)
        inside = (ya >= 0) & (ya < H) & (xb >= 0) & (xb < W) & (t < K * K)
        window, of_out = features + ya * xy + xb * xx, grad
        total = tl.zeros([BT, BQ, BP], A)
        for _ in range(channels):
            value = tl.load(window, mask=inside, other=0).to(A)
            upstream = tl.load(of_out, mask=valid, other=0).to(A)
            total += value[:, None, :] * upstream[None, :, :]
            window += xc
            of_out += gc
        tap = (g * (K * K) + t)[:, :, None]
        stored = (t < K * K)[:, :, None] & valid[None, :, :]
        if offsets is None:
            to = of_kernels + tap * zc + (row * zy + column * zx)[None, :, :]
            tl.store(to, total.to(of_kernels.dtype.element_ty), mask=stored)
        else:
            at = kernels + tap * kc + (v * ky + u * kx)[None, :, :]
            k00, k01, k10, k11 = _neighbors(
                at, (right * kx)[None, :, :], (down * ky)[None, :, :], stored, A
            )
            slope_u = (1 - wv)[None, :, :] * (k01 - k00) + wv[None, :, :] * (k11 - k10)
            slope_v = (1 - wu)[None, :, :] * (k10 - k00) + wu[None, :, :] * (k11 - k01)
            of_u += tl.sum(total * slope_u, 0)
            of_v += tl.sum(total * slope_v, 0)
            to = of_kernels + tap * zc + (v * zy + u * zx)[None, :, :]
            to_right = to + (right * zx)[None, :, :]
            below = (down * zy)[None, :, :]
            _add(to, total, (1 - wv) * (1 - wu), stored)
            _add(to_right, total, (1 - wv) * wu, stored)
            _add(to + below, total, wv * (1 - wu), stored)
            _add(to_right + below, total, wv * wu, stored)
    if offsets is not None:
        to = of_offsets + n * dn + (g * (2 * S * S) + q) * dc + y * dy + x * dx
        kind: tl.constexpr = of_offsets.dtype.element_ty
        tl.store(to, tl.where(inside_u, of_u, 0.0).to(kind), mask=valid)
        tl.store(to + S * S * dc, tl.where(inside_v, of_v, 0.0).to(kind), mask=valid)


@triton.jit
def _add(to, total, weight, stored):
    """Add to what other programs add to as well."""
    value = (total * weight[None, :, :]).to(to.dtype.element_ty)
    tl.atomic_add(to, value, mask=stored, sem='relaxed')
