// The kernels of a cell: sampled from the kernel space (DLU), or masks copied (CARAFE).
#pragma once

#include <type_traits>

#include "layout.h"

namespace dlu_mmdet {
namespace DLU_ISA {
namespace {

template <typename L>
struct Sampling {
  using A = typename L::A;
  static constexpr int cell = L::cell;
  using Size = Sizes<L>;

  // Calls f(P, offset of its kernels, first sub-pixel) for every chunk of sub-pixels.
  template <typename F>
  static DLU_INLINE void for_chunks(const Problem& p, F&& f) {
    const int64_t Q = p.Q();
    for (int64_t q = 0; q + 4 <= Q; q += 4) {
      f(std::integral_constant<int, 4>{}, q * p.T() * cell, q);
    }
    if (Q % 4) f(std::integral_constant<int, 1>{}, (Q - 1) * p.T() * cell, Q - 1);
  }

  // Kernel value t of sub-pixel q and pixel l is k[tap_start + t * tap_stride].
  static DLU_INLINE int64_t tap_stride(const Problem& p, int64_t q) {
    return (q / 4 * 4 + 4 <= p.Q() ? 4 : 1) * cell;
  }
  static DLU_INLINE int64_t tap_start(const Problem& p, int64_t q, int64_t l) {
    return (q / 4 * 4 * p.T() + q % 4) * cell + l;
  }

  static DLU_INLINE void position(const Problem& p, int64_t n, int64_t g, int64_t q,
                                  int64_t y, int64_t x, Axis<A>& u, Axis<A>& v) {
    const int64_t c = g * 2 * p.Q() + q;
    with_type(p.offsets.type, [&](auto tag) {
      using TO = typename decltype(tag)::type;
      u = locate<A>(x, widen(*at<TO>(p.offsets, n, c, y, x)), p.W);
      v = locate<A>(y, widen(*at<TO>(p.offsets, n, c + p.Q(), y, x)), p.H);
    });
  }

  // k~ of the cell at (y, x), zeros beyond the last pixel of the row.
  static void sample_cell(const Problem& p, int64_t n, int64_t g, int64_t y, int64_t x,
                          A* k) {
    const int64_t count = smaller(cell, p.W - x);
    if (count < cell) zero(k, Size::cell(p));
    with_type(p.kernels.type, [&](auto tag) {
      using TK = typename decltype(tag)::type;
      for (int64_t q = 0; q < p.Q(); ++q) {
        if (p.carafe) {
          copy_masks<TK>(p, n, g, q, y, x, count, k + tap_start(p, q, 0));
        } else {
          for (int64_t l = 0; l < count; ++l) {
            sample_pixel<TK>(p, n, g, q, y, x + l, k + tap_start(p, q, l));
          }
        }
      }
    });
  }

  template <typename TK>
  static void copy_masks(const Problem& p, int64_t n, int64_t g, int64_t q, int64_t y,
                         int64_t x, int64_t count, A* k) {
    const Map& map = p.kernels;
    const TK* from = at<TK>(map, n, g * p.T(), y * p.s + q / p.s, x * p.s + q % p.s);
    const int64_t stride = tap_stride(p, q);
    for (int64_t t = 0; t < p.T(); ++t, from += map.c, k += stride) {
      widen_run(from, p.s * map.x, count, k);
    }
  }

  template <typename TK>
  static DLU_INLINE void sample_pixel(const Problem& p, int64_t n, int64_t g, int64_t q,
                                      int64_t y, int64_t x, A* k) {
    const Map& map = p.kernels;
    Axis<A> u, v;
    position(p, n, g, q, y, x, u, v);
    const Corners<A> corner = corners(u.weight, v.weight);
    const A* w = corner.w;
    const TK* k00 = at<TK>(map, n, g * p.T(), v.lower, u.lower);
    const TK* k01 = k00 + u.step * map.x;
    const TK* k10 = k00 + v.step * map.y;
    const TK* k11 = k10 + u.step * map.x;
    const int64_t stride = tap_stride(p, q), T_ = p.T();
    for (int64_t t = 0, i = 0; t < T_; ++t, i += map.c) {
      k[t * stride] = w[0] * static_cast<A>(widen(k00[i])) +
                      w[1] * static_cast<A>(widen(k01[i])) +
                      w[2] * static_cast<A>(widen(k10[i])) +
                      w[3] * static_cast<A>(widen(k11[i]));
    }
  }
};

}  // namespace
}  // namespace DLU_ISA
}  // namespace dlu_mmdet
