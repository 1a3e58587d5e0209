// Element types: how they are widened for arithmetic and rounded to be stored.
#pragma once

#include "../reassembly.h"
#include "kernels.h"

#define DLU_NOINLINE __attribute__((noinline))

namespace dlu_mmdet {
namespace DLU_ISA {
namespace {

struct half {
  uint16_t bits;
};
struct bfloat16 {
  uint16_t bits;
};

template <typename To, typename From>
DLU_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "sizes differ");
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

DLU_INLINE float widen(float v) { return v; }
DLU_INLINE double widen(double v) { return v; }
DLU_INLINE float widen(bfloat16 v) {
  return bit_cast<float>(static_cast<uint32_t>(v.bits) << 16);
}
// By no denormal float on the way: threads take those for zero. A subnormal half, which
// lacks the implicit one, is read with it, and that is taken off again.
DLU_INLINE float widen(half v) {
  constexpr uint32_t one = 1u << 23;  // of the exponent, whose bias is 112 more
  const uint32_t magnitude = static_cast<uint32_t>(v.bits & 0x7fffu) << 13;
  const bool is_subnormal = magnitude < one;
  const uint32_t lifted = magnitude + (is_subnormal ? 113 * one : 112 * one);
  const uint32_t excess = is_subnormal ? 0x38800000u : 0u;  // 2^-14
  const uint32_t infinite = magnitude >= 31 * one ? 112 * one : 0u;
  const float f = bit_cast<float>(lifted) - bit_cast<float>(excess);
  return bit_cast<float>((bit_cast<uint32_t>(f) + infinite) |
                         (v.bits & 0x8000u) << 16);
}

template <typename T>
struct narrow {
  template <typename A>
  static DLU_INLINE T from(A v) { return static_cast<T>(v); }
};
template <>
struct narrow<bfloat16> {
  static DLU_INLINE bfloat16 from(float v) {
    const uint32_t u = bit_cast<uint32_t>(v);
    const uint32_t even = u + 0x7fffu + ((u >> 16) & 1u);  // round to nearest even
    return {static_cast<uint16_t>(v != v ? 0x7fc0u : even >> 16)};
  }
};
template <>
struct narrow<half> {
  static DLU_INLINE half from(float v) {
    const uint32_t sign = bit_cast<uint32_t>(v) & 0x80000000u;
    const uint32_t u = bit_cast<uint32_t>(v) ^ sign;
    // the addition of 0.5 aligns a subnormal's bits and rounds them to even
    const uint32_t small = bit_cast<uint32_t>(bit_cast<float>(u) + 0.5f) - 0x3f000000u;
    const uint32_t normal = (u + 0xc8000fffu + ((u >> 13) & 1u)) >> 13;
    const uint32_t large = u > 0x7f800000u ? 0x7e00u : 0x7c00u;
    const uint32_t h = u >= 0x47800000u ? large : u < 0x38800000u ? small : normal;
    return {static_cast<uint16_t>(h | sign >> 16)};
  }
};

template <typename T>
struct accumulate {
  using type = float;
};
template <>
struct accumulate<double> {
  using type = double;
};

template <typename T>
struct Tag {
  using type = T;
};

template <typename F>
DLU_INLINE void with_type(Type type, F&& f) {
  switch (type) {
    case Type::f32: return f(Tag<float>{});
    case Type::f64: return f(Tag<double>{});
    case Type::f16: return f(Tag<half>{});
    case Type::bf16: return f(Tag<bfloat16>{});
  }
}

template <typename T>
DLU_INLINE T* at(const Map& map, int64_t n, int64_t c, int64_t y, int64_t x) {
  return static_cast<T*>(map.data) + n * map.n + c * map.c + y * map.y + x * map.x;
}

}  // namespace
}  // namespace DLU_ISA
}  // namespace dlu_mmdet
