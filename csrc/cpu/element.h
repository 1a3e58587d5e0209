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
DLU_INLINE float widen(half v) {
  const uint32_t magnitude = static_cast<uint32_t>(v.bits & 0x7fffu) << 13;
  // 2^112 moves the exponent bias from 15 to 127 and normalizes subnormals, which are
  // denormal floats until then: FlushDenormals of reassembly.cpp spares them
  float f = bit_cast<float>(magnitude) * 0x1p112f;
  f = f >= 65536.f ? bit_cast<float>(bit_cast<uint32_t>(f) | 0x7f800000u) : f;
  return bit_cast<float>(bit_cast<uint32_t>(f) | (v.bits & 0x8000u) << 16);
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
