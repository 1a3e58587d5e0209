// The arithmetic of one output pixel, shared by the CPU and the CUDA kernels.
//
//   u = clamp(x + dx, 0, W-1)      v = clamp(y + dy, 0, H-1)
//   k~[t] = bilinear(kernels[t], v, u)                      t = 0 .. K*K-1
//   out[c, y s + i, x s + j] = sum over (a, b) in [-r, r]^2 of
//                              k~[(a+r) K + (b+r)] * x[c, y+a, x+b]
//
// A is the accumulation type: double for double features, else float.
#pragma once

#include <cstdint>

// Used with `static`, so that units built for other instruction sets share nothing.
#if defined(__CUDACC__)
#define DLU_INLINE __host__ __device__ __forceinline__
#else
#define DLU_INLINE inline __attribute__((always_inline))
#endif

namespace dlu_mmdet {

// Where one coordinate falls on an axis of `size` pixels.
template <typename A>
struct Axis {
  int64_t lower;  // lower neighbor
  int64_t step;   // to the upper neighbor: 1, or 0 at the last pixel
  A weight;       // of the upper neighbor; NaN for a non-finite position
  bool inside;    // not clamped, so the offset has a gradient
};

template <typename A>
static DLU_INLINE Axis<A> locate(A position, int64_t size) {
  const A last = static_cast<A>(size - 1);
  const A zero_if_finite = position - position;
  const bool finite = zero_if_finite == 0;
  Axis<A> axis;
  axis.inside = finite && position > 0 && position < last;
  // a non-finite position lands on pixel 0 with a weight of NaN
  const A clamped =
      axis.inside ? position : (finite && position >= last ? last : A(0));
  axis.lower = static_cast<int64_t>(clamped);
  axis.step = axis.lower + 1 < size ? 1 : 0;
  axis.weight = finite ? clamped - static_cast<A>(axis.lower) : zero_if_finite;
  return axis;
}

// Where an offset from a pixel falls. Offsets in double are added in double: narrowed
// first, a finite one could become infinite, or one just inside fall on the border.
template <typename A, typename O>
static DLU_INLINE Axis<A> locate(int64_t pixel, O offset, int64_t size) {
  if constexpr (sizeof(O) > sizeof(A)) {
    const Axis<O> axis = locate(static_cast<O>(pixel) + offset, size);
    return {axis.lower, axis.step, static_cast<A>(axis.weight), axis.inside};
  } else {
    return locate(static_cast<A>(pixel) + static_cast<A>(offset), size);
  }
}

// Weights of the four neighbors: w[0] k00 + w[1] k01 + w[2] k10 + w[3] k11, where
// k01 is one step in x and k10 one step in y.
template <typename A>
struct Corners {
  A w[4];
};

template <typename A>
static DLU_INLINE Corners<A> corners(A wu, A wv) {
  return {{(1 - wv) * (1 - wu), (1 - wv) * wu, wv * (1 - wu), wv * wu}};
}

// d k~ / du; with k01 and k10 swapped and w = wu, d k~ / dv.
template <typename A>
static DLU_INLINE A slope(A k00, A k01, A k10, A k11, A w) {
  return (1 - w) * (k01 - k00) + w * (k11 - k10);
}

}  // namespace dlu_mmdet
