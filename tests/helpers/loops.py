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


def window_scores(features, queries, kernel_size, group_size, scale_factor):
    """Arrays in, float64 array out; arguments as ``dlu_mmdet.ops.window_scores``."""
    n, c, h, w = features.shape
    s, r = scale_factor, kernel_size // 2
    out = np.zeros((n, group_size * kernel_size**2, h * s, w * s))
    for b, t, yy, xx in np.ndindex(*out.shape):
        g, tap = divmod(t, kernel_size**2)
        y, x = yy // s + tap // kernel_size - r, xx // s + tap % kernel_size - r
        if 0 <= y < h and 0 <= x < w:
            group = np.s_[g * c // group_size : (g + 1) * c // group_size]
            out[b, t, yy, xx] = queries[b, group, yy, xx] @ features[b, group, y, x]
    return out


def _softmax(x):
    x = np.exp(x - x.max())
    return x / x.sum()


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _convolution(x, weight, bias, y, xx):
    """One pixel of a convolution of x (C, H, W), zeros outside; depthwise too."""
    _, h, w = x.shape
    outputs, inputs, size, _ = weight.shape
    out = np.array(bias, dtype=float)
    for a in range(size):
        for b in range(size):
            v, u = y + a - size // 2, xx + b - size // 2
            if 0 <= v < h and 0 <= u < w:
                column = x[:, v, u]
                if inputs == 1 and len(column) > 1:
                    out += weight[:, 0, a, b] * column
                else:
                    out += weight[:, :, a, b] @ column
    return out


def _over(features, guide):
    """Every output pixel (image, row, column) and the source pixel that it is over."""
    (n, _, h, w), (_, _, long, wide) = features.shape, guide.shape
    for b, yy, xx in np.ndindex(n, long, wide):
        yield b, yy, xx, math.floor(yy * h / long), math.floor(xx * w / wide)


def lda_aqu(features, weights, kernel_size, groups, scale_factor, offset_range):
    """Arrays in, float64 array out; ``weights`` are LDA-AQU's parameters by name."""
    n, c, h, w = features.shape
    long, wide = h * scale_factor, w * scale_factor
    shrink_y, shrink_x = (
        (short - 1) / max(size - 1, 1) for short, size in ((h, long), (w, wide))
    )
    d = len(weights['proj_q.weight'])
    bias = weights['relative_position_bias_table'].reshape(kernel_size**2, d)
    out = np.zeros((n, c, long, wide))

    def norm(name, point):
        point = (point - point.mean()) / np.sqrt(point.var() + 1e-5)
        return weights[f'{name}.norm.weight'] * point + weights[f'{name}.norm.bias']

    def pixelwise(function, maps):
        return np.apply_along_axis(function, 0, maps)

    def gelu(x):
        return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2

    def zero_outside(plane, v, u):
        v, u = v + 1, u + 1
        if not (0 <= v <= h + 1 and 0 <= u <= w + 1):
            return 0
        return _sample(np.pad(plane, 1), v, u)

    for b, x in enumerate(features):
        normed = pixelwise(lambda point: norm('layer_norm', point), x)
        k, q = (
            pixelwise(lambda p, m=weights[f'proj_{n}.weight'][..., 0, 0]: m @ p, normed)
            for n in 'kq'
        )
        queries = np.zeros((d, long, wide))
        for yy, xx in np.ndindex(long, wide):
            queries[:, yy, xx] = [_sample(p, yy * shrink_y, xx * shrink_x) for p in q]
        offsets = []
        for group in np.split(queries, groups):
            first, last = (weights[f'conv_offset.{i}.weight'] for i in (0, 3))
            maps = _everywhere(group, first, np.zeros(len(group)))
            maps = gelu(pixelwise(lambda point: norm('conv_offset.1', point), maps))
            maps = _everywhere(maps, last, weights['conv_offset.3.bias'])
            offsets.append(offset_range * np.tanh(maps))
        for yy, xx in np.ndindex(long, wide):
            sampled = []
            for t in range(kernel_size**2):
                keys, values = [], []
                for g, offset in enumerate(offsets):
                    v = yy + t // kernel_size - kernel_size // 2 + offset[2 * t, yy, xx]
                    u = xx + t % kernel_size - kernel_size // 2
                    u += offset[2 * t + 1, yy, xx]
                    at = v * shrink_y, u * shrink_x
                    for maps, into in ((k, keys), (x, values)):
                        planes = np.split(maps, groups)[g]
                        into += [zero_outside(plane, *at) for plane in planes]
                sampled.append((keys + bias[t], values))
            scores = [queries[:, yy, xx] @ keys for keys, _ in sampled]
            attention = _softmax(np.array(scores) / math.sqrt(d))
            out[b, :, yy, xx] = attention @ [values for _, values in sampled]
    return out


def _up(x, mode, scale_factor):
    """Nearest or bilinear interpolation of x (C, H, W), pixels as areas."""
    c, h, w = x.shape
    out = np.zeros((c, h * scale_factor, w * scale_factor))
    for yy, xx in np.ndindex(*out.shape[1:]):
        if mode == 'nearest':
            out[:, yy, xx] = x[:, yy // scale_factor, xx // scale_factor]
        else:
            v = min(max((yy + 0.5) / scale_factor - 0.5, 0), h - 1)
            u = min(max((xx + 0.5) / scale_factor - 0.5, 0), w - 1)
            out[:, yy, xx] = [_sample(plane, v, u) for plane in x]
    return out


def _everywhere(x, weight, bias):
    """A whole convolution of x (C, H, W)."""
    out = np.zeros((len(weight), *x.shape[1:]))
    for y, xx in np.ndindex(*x.shape[1:]):
        out[:, y, xx] = _convolution(x, weight, bias, y, xx)
    return out


def resize_conv(features, weights, mode, scale_factor, groups):
    """Arrays in, float64 array out; ``weights`` are the parameters by name.

    ``groups`` is the number of groups that the depthwise form normalizes in.
    """
    out = []
    for x in features:
        x = _up(x, mode, scale_factor)
        if 'depthwise_conv.weight' in weights:
            x = _everywhere(x, weights['depthwise_conv.weight'], np.zeros(len(x)))
            grouped = x.reshape(groups, -1)
            mean, var = grouped.mean(1), grouped.var(1)
            grouped = (grouped - mean[:, None]) / np.sqrt(var[:, None] + 1e-5)
            x = grouped.reshape(x.shape) * weights['norm.weight'][:, None, None]
            x = np.maximum(x + weights['norm.bias'][:, None, None], 0)
        out.append(_everywhere(x, weights['conv.weight'], weights['conv.bias']))
    return np.stack(out)


def fade(features, guide, weights, kernel_size):
    """Arrays in, float64 array out; ``weights`` are FADE's parameters by name."""
    c = features.shape[1]
    out = np.zeros((len(features), c, *guide.shape[2:]))
    encoder_1x1 = weights['compressor_en.weight'][:, :, 0, 0]
    decoder_1x1 = weights['compressor_de.weight'][:, :, 0, 0]
    semi_shift = weights['content_encoder.weight'], weights['content_encoder.bias']
    for b, yy, xx, y, x in _over(features, guide):
        encoder = np.einsum('oc,cyx->oyx', encoder_1x1, guide[b])
        encoder = encoder + weights['compressor_en.bias'][:, None, None]
        decoder = np.einsum('oc,cyx->oyx', decoder_1x1, features[b])
        kernel = _softmax(
            _convolution(encoder, *semi_shift, yy, xx)
            + _convolution(decoder, *semi_shift, y, x)
        )
        _, total = _gather(features[b], 0, 1, y, x, kernel, kernel_size)
        if 'gate.weight' in weights:
            gate = weights['gate.weight'][0, :, 0, 0] @ features[b, :, y, x]
            gate = _sigmoid(gate + weights['gate.bias'][0])
            total = gate * guide[b, :, yy, xx] + (1 - gate) * total
        out[b, :, yy, xx] = total
    return out


def sapa(features, guide, weights, kernel_size):
    """Arrays in, float64 array out; ``weights`` are SAPA's parameters by name."""
    n, c, h, w = features.shape
    r = kernel_size // 2
    out = np.zeros((n, c, *guide.shape[2:]))

    def linear(name, point):
        return weights[f'{name}.weight'] @ point + weights[f'{name}.bias']

    def norm(name, point):
        point = (point - point.mean()) / np.sqrt(point.var() + 1e-5)
        return weights[f'{name}.weight'] * point + weights[f'{name}.bias']

    for b, yy, xx, y, x in _over(features, guide):
        q = linear('q', norm('norm_y', guide[b, :, yy, xx]))
        if 'gate.weight' in weights:
            gate = _sigmoid(linear('gate', norm('norm_x', features[b, :, y, x])))
            q = gate * q + (1 - gate) * linear('qx', features[b, :, y, x])
        scores = np.zeros(kernel_size**2)
        for t in range(kernel_size**2):
            v, u = y + t // kernel_size - r, x + t % kernel_size - r
            if 0 <= v < h and 0 <= u < w:
                scores[t] = q @ linear('k', norm('norm_x', features[b, :, v, u]))
        _, total = _gather(features[b], 0, 1, y, x, _softmax(scores), kernel_size)
        out[b, :, yy, xx] = total
    return out


def _kernels_over(maps, kernels, kernel_size, over):
    """``maps`` (N, C, H, W) under a kernel (N, h, w, K*K) for every output pixel."""
    n, h, w, _ = kernels.shape
    out = np.zeros((n, maps.shape[1], h, w))
    for b, yy, xx, y, x in over:
        kernel = kernels[b, yy, xx]
        out[b, :, yy, xx] = _gather(maps[b], 0, 1, y, x, kernel, kernel_size)[1]
    return out


def freqfusion(features, guide, weights, kernel_size):
    """Arrays in, float64 array out; ``weights`` are FreqFusion's parameters by name.

    What two levels fuse to, less the guide. The ratio is that of the weights where it
    is not that of the maps.
    """
    n, _, h, w = features.shape
    long, wide = guide.shape[2:]
    over = list(_over(features, guide))
    own = list(_over(guide, guide))
    side = math.isqrt(len(weights['highpass_encoder.bias']))

    def convolve(name, maps):
        weight, bias = weights[f'{name}.weight'], weights[f'{name}.bias']
        out = np.zeros((n, len(bias), *maps.shape[2:]))
        for b, y, x in np.ndindex(n, *maps.shape[2:]):
            out[b, :, y, x] = _convolution(maps[b], weight, bias, y, x)
        return out

    def normalized(logits, size):
        window = np.outer(np.hamming(size), np.hamming(size)).ravel()
        kernels = np.zeros((n, *logits.shape[2:], size**2))
        for b, y, x in np.ndindex(n, *logits.shape[2:]):
            kernel = _softmax(logits[b, :, y, x]) * window
            kernels[b, y, x] = kernel / kernel.sum()
        return kernels

    def describe(maps, name):
        grouped = maps.reshape(n, -1, 8 * maps.shape[2] * maps.shape[3])
        mean, var = grouped.mean(2, keepdims=True), grouped.var(2, keepdims=True)
        maps = ((grouped - mean) / np.sqrt(var + 1e-5)).reshape(maps.shape)
        maps = maps * weights[f'{name}.weight'][:, None, None]
        maps = maps + weights[f'{name}.bias'][:, None, None]
        similar = np.zeros((n, 8, *maps.shape[2:]))
        for b, y, x in np.ndindex(n, *maps.shape[2:]):
            at = 0
            for a in (-2, 0, 2):
                for c in (-2, 0, 2):
                    if a == c == 0:
                        continue
                    if 0 <= y + a < maps.shape[2] and 0 <= x + c < maps.shape[3]:
                        p, q = maps[b, :, y, x], maps[b, :, y + a, x + c]
                        cosine = p @ q / np.sqrt((p @ p) * (q @ q))
                        similar[b, at, y, x] = cosine
                    at += 1
        return np.concatenate([maps, similar], axis=1)

    hr = convolve('hr_channel_compressor', guide)
    lr = convolve('lr_channel_compressor', features)
    high = convolve('highpass_encoder', hr)
    hr = 2 * hr - _kernels_over(hr, normalized(high, side), side, own)
    low = convolve('lowpass_encoder', hr)
    kernels = normalized(low, kernel_size)
    low = low + _kernels_over(
        convolve('lowpass_encoder', lr), kernels, kernel_size, over
    )
    lowpass = normalized(low, kernel_size)
    high = high + _kernels_over(
        convolve('highpass_encoder', lr), lowpass, kernel_size, over
    )
    out = _kernels_over(features, lowpass, kernel_size, over)
    smooth = _kernels_over(guide, normalized(high, side), side, own)

    hr, lr = describe(hr, 'hr_norm'), describe(lr, 'lr_norm')
    of_hr = {name: convolve(f'hr_{name}', hr) for name in ('offset', 'scope')}
    of_lr = {name: convolve(f'lr_{name}', lr) for name in ('offset', 'scope')}
    groups = of_hr['offset'].shape[1] // 2
    s = math.isqrt(of_lr['offset'].shape[1] // (2 * groups))
    sampled = np.zeros_like(out)
    for b, yy, xx in np.ndindex(n, long, wide):
        (y, i), (x, j) = divmod(yy * s * h // long, s), divmod(xx * s * w // wide, s)
        o, scope = (
            of_lr[name][b, i * s + j :: s * s, y, x] + of_hr[name][b, :, yy, xx]
            for name in ('offset', 'scope')
        )
        o = o * _sigmoid(scope)
        for g in range(groups):
            # in pixels of the output
            u = min(max(xx + o[g] * wide / w, 0), wide - 1)
            v = min(max(yy + o[groups + g] * long / h, 0), long - 1)
            per = out.shape[1] // groups
            for c in range(g * per, (g + 1) * per):
                sampled[b, c, yy, xx] = _sample(out[b, c], v, u)
    return sampled + guide - smooth
