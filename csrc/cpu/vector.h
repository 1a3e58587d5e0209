// Vectors of DLU_VECTOR_BYTES, and runs of elements that are widened into them.
#pragma once

#include "element.h"

namespace dlu_mmdet {
namespace DLU_ISA {
namespace {

template <typename A>
struct Lanes {
  static constexpr int count = DLU_VECTOR_BYTES / sizeof(A);
  typedef A type __attribute__((vector_size(DLU_VECTOR_BYTES)));
};

#define DLU_VECTOR(A) typename Lanes<A>::type

template <typename A>
DLU_INLINE void get(DLU_VECTOR(A) & v, const A* p) {
  __builtin_memcpy(&v, p, sizeof(v));
}

template <typename A>
DLU_INLINE void put(A* p, const DLU_VECTOR(A) & v) {
  __builtin_memcpy(p, &v, sizeof(v));
}

// Loops of V iterations keep `unroll 1`: unrolled first, GCC no longer vectorises them.

// dst[i] = src[i * stride]
template <typename T, typename A>
DLU_INLINE void widen_run(const T* __restrict src, int64_t stride, int64_t n,
                          A* __restrict dst) {
  constexpr int V = Lanes<A>::count;
  if (stride == 1 && n == V) {
#pragma GCC unroll 1
    for (int l = 0; l < V; ++l) dst[l] = static_cast<A>(widen(src[l]));
  } else if (stride == 2 && n == V) {
#pragma GCC unroll 1
    for (int l = 0; l < V; ++l) dst[l] = static_cast<A>(widen(src[2 * l]));
  } else {
    for (int64_t i = 0; i < n; ++i) dst[i] = static_cast<A>(widen(src[i * stride]));
  }
}

// dst[i] = src[i]
template <typename T, typename A>
DLU_INLINE void narrow_run(const A* __restrict src, int64_t n, T* __restrict dst) {
  constexpr int V = Lanes<A>::count;
  for (; n >= V; n -= V, src += V, dst += V) {
#pragma GCC unroll 1
    for (int l = 0; l < V; ++l) dst[l] = narrow<T>::from(src[l]);
  }
  for (int64_t i = 0; i < n; ++i) dst[i] = narrow<T>::from(src[i]);
}

template <typename A>
DLU_INLINE void zero(A* dst, int64_t n) {
  for (int64_t i = 0; i < n; ++i) dst[i] = 0;
}

DLU_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
DLU_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
DLU_INLINE int64_t parts(int64_t n, int64_t size) { return (n + size - 1) / size; }

}  // namespace
}  // namespace DLU_ISA
}  // namespace dlu_mmdet
