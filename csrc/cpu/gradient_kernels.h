// The gradients of kernels and offsets, or of masks, in two steps: first
//   d k~[q][t] = sum over c of grad[q][c] * x[t][c]
// of some rows, from which those of offsets and masks follow; then the gradient of the
// kernels, to which d k~ is added where the kernels were sampled.
#pragma once

#include "packing.h"
#include "sampling.h"

namespace dlu_mmdet {
namespace DLU_ISA {
namespace {

template <typename L>
struct KernelGradient {
  using A = typename L::A;
  using vec = typename L::vec;
  static constexpr int V = L::V, M = L::M, cell = L::cell, block = L::block;
  using Size = Sizes<L>;
  using Pack = Packing<L>;
  using Sample = Sampling<L>;

  // Values of the next channel (or channel vector) are g_step and f_step further.
  template <int P, int B>
  static DLU_INLINE void correlate(const A* g, int64_t g_step, int64_t g_sub,
                                   const A* f, int64_t f_step, int64_t f_x,
                                   int64_t count, A* k) {
    vec sum[P][B] = {};
    for (int64_t i = 0; i < count; ++i, g += g_step, f += f_step) {
      vec x[B];
#pragma GCC unroll 16
      for (int b = 0; b < B; ++b) get<A>(x[b], f + b * f_x);
#pragma GCC unroll 16
      for (int q = 0; q < P; ++q) {
        vec gq;
        get<A>(gq, g + q * g_sub);
#pragma GCC unroll 16
        for (int b = 0; b < B; ++b) sum[q][b] += gq * x[b];
      }
    }
#pragma GCC unroll 16
    for (int b = 0; b < B; ++b) {
#pragma GCC unroll 16
      for (int q = 0; q < P; ++q) {
        A* to = k + (b * P + q) * cell;
        if constexpr (L::last) {
          *to += total(sum[q][b]);
        } else {
          vec old;
          get<A>(old, to);
          put<A>(to, old + sum[q][b]);
        }
      }
    }
  }

  static DLU_INLINE A total(const vec& v) {
    A lane[V];
    put<A>(lane, v);
#pragma GCC unroll 16
    for (int half = V / 2; half > 0; half /= 2) {
      for (int l = 0; l < half; ++l) lane[l] += lane[l + half];
    }
    return lane[0];
  }

  static int64_t taps_scratch(const Problem& p) {
    const int64_t pixels = L::taps_cells * cell;
    return L::taps_cells * Size::cell(p) +
           L::taps_blocks * block * (p.Q() * pixels + p.K * L::columns(p, pixels)) + V;
  }

  static int64_t taps_items(const Problem& p, const Pass& pass) {
    return p.N * (pass.y1 - pass.y0) * parts(Size::row_cells(p), L::taps_cells);
  }

  static void taps(const Problem& p, const Pass& pass, int64_t begin, int64_t end,
                        A* scratch) {
    const int64_t r = p.K / 2, Q = p.Q(), T_ = p.T();
    const int64_t across = parts(Size::row_cells(p), L::taps_cells);
    const int64_t rows = pass.y1 - pass.y0;
    const int64_t cols = L::columns(p, L::taps_cells * cell);
    const int64_t f_x = L::pixel_step, f_y = cols * f_x;
    const int64_t g_size = Q * L::taps_cells * cell * block;
    const int64_t f_size = p.K * cols * block;
    A* grad = scratch + L::taps_cells * Size::cell(p);
    A* patch = grad + L::taps_blocks * g_size;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t line = item / across, n = line / rows, y = pass.y0 + line % rows;
      const int64_t x0 = item % across * L::taps_cells * cell;
      const int64_t cells = smaller(L::taps_cells, parts(p.W - x0, cell));
      // the masks' gradient is complete here; that of kernels is scattered later
      A* k = p.carafe ? scratch
                      : static_cast<A*>(pass.buffer) + line * Size::row(p) +
                            x0 / cell * Size::cell(p);
      zero(k, cells * Size::cell(p));
      for (int64_t b0 = 0; b0 < p.Cg(); b0 += L::taps_blocks * block) {
        int64_t used = 0;
        for (; used < L::taps_blocks && b0 + used * block < p.Cg(); ++used) {
          const int64_t b = b0 + used * block, c = pass.g * p.Cg() + b;
          const int64_t channels = smaller(block, p.Cg() - b);
          Pack::pack_grad(p, n, c, channels, y, x0, L::taps_cells,
                          grad + used * g_size);
          Pack::pack(p, n, c, channels, y - r, p.K, x0 - r, cols,
                     patch + used * f_size);
        }
        for (int64_t i = 0; i < cells; ++i) {
          Sample::for_chunks(p, [&](auto P, int64_t offset, int64_t q) {
            for (int64_t t = 0; t < T_; ++t) {
              const int64_t a = t / p.K, b = t % p.K;
              A* to = k + i * Size::cell(p) + offset + t * P * cell;
              const A* f = patch + a * f_y + (i * cell + b) * f_x;
              const int64_t taps = smaller(p.K - b, DLU_TAPS);
              correlate_taps<P>(taps, grad + L::grad_at(p, i, q, L::taps_cells * cell), f,
                                g_size, f_size, f_x, used, to);
              t += taps - 1;
            }
          });
        }
      }
      for (int64_t i = 0; i < cells; ++i) {
        finish_cell(p, pass, n, y, x0 + i * cell, k + i * Size::cell(p));
      }
    }
  }

  // Chooses the number of taps at compile time; runs over the packed blocks.
  template <int P>
  static DLU_INLINE void correlate_taps(int64_t taps, const A* g, const A* f,
                                        int64_t g_size, int64_t f_size, int64_t f_x,
                                        int64_t used, A* k) {
    switch (taps) {
      case 1: return correlate_blocks<P, 1>(g, f, g_size, f_size, f_x, used, k);
      case 2: return correlate_blocks<P, 2>(g, f, g_size, f_size, f_x, used, k);
#if DLU_TAPS >= 3
      case 3: return correlate_blocks<P, 3>(g, f, g_size, f_size, f_x, used, k);
#endif
#if DLU_TAPS >= 5
      case 4: return correlate_blocks<P, 4>(g, f, g_size, f_size, f_x, used, k);
      case 5: return correlate_blocks<P, 5>(g, f, g_size, f_size, f_x, used, k);
#endif
    }
  }

  template <int P, int B>
  static DLU_NOINLINE void correlate_blocks(const A* g, const A* f, int64_t g_size,
                                          int64_t f_size, int64_t f_x, int64_t used,
                                          A* k) {
    if constexpr (L::last) {
      for (int64_t i = 0; i < used; ++i, g += g_size, f += f_size) {
        correlate<P, B>(g, V, block, f, V, f_x, M, k);
      }
    } else {
      // channels of all blocks are equally spaced
      correlate<P, B>(g, g_size / M, L::taps_cells * V, f, f_size / M, f_x, used * M,
                      k);
    }
  }

  // Writes what follows from d k~ of one cell: the gradient of its masks (CARAFE) or
  // of its offsets.
  static void finish_cell(const Problem& p, const Pass& pass, int64_t n, int64_t y,
                          int64_t x0, const A* k) {
    const int64_t count = smaller(cell, p.W - x0);
    for (int64_t q = 0; q < p.Q(); ++q) {
      const int64_t stride = Sample::tap_stride(p, q);
      for (int64_t l = 0; l < count; ++l) {
        const A* dk = k + Sample::tap_start(p, q, l);
        const int64_t x = x0 + l;
        if (p.carafe) {
          with_type(p.grad_kernels.type, [&](auto tag) {
            using TK = typename decltype(tag)::type;
            const Map& map = p.grad_kernels;
            TK* to = at<TK>(map, n, pass.g * p.T(), y * p.s + q / p.s,
                            x * p.s + q % p.s);
            for (int64_t t = 0; t < p.T(); ++t, to += map.c) {
              *to = narrow<TK>::from(dk[t * stride]);
            }
          });
        } else {
          grad_offset(p, pass, n, q, y, x, dk, stride);
        }
      }
    }
  }

  static void grad_offset(const Problem& p, const Pass& pass, int64_t n, int64_t q,
                          int64_t y, int64_t x, const A* dk, int64_t stride) {
    Axis<A> u, v;
    Sample::position(p, n, pass.g, q, y, x, u, v);
    A du = 0, dv = 0;
    with_type(p.kernels.type, [&](auto tag) {
      using TK = typename decltype(tag)::type;
      const Map& map = p.kernels;
      const TK* k = at<TK>(map, n, pass.g * p.T(), v.lower, u.lower);
      const int64_t right = u.step * map.x, down = v.step * map.y;
      for (int64_t t = 0; t < p.T(); ++t, k += map.c) {
        const A k00 = widen(k[0]), k01 = widen(k[right]), k10 = widen(k[down]),
                k11 = widen(k[right + down]), d = dk[t * stride];
        du += d * slope(k00, k01, k10, k11, v.weight);
        dv += d * slope(k00, k10, k01, k11, u.weight);
      }
    });
    with_type(p.grad_offsets.type, [&](auto tag) {
      using TO = typename decltype(tag)::type;
      const int64_t c = pass.g * 2 * p.Q() + q;
      *at<TO>(p.grad_offsets, n, c, y, x) = narrow<TO>::from(u.inside ? du : A(0));
      *at<TO>(p.grad_offsets, n, c + p.Q(), y, x) =
          narrow<TO>::from(v.inside ? dv : A(0));
    });
  }

  // Items are (n, t): a thread owns planes, so the order of additions is fixed.
  static void add_taps(const Problem& p, const Pass& pass, int64_t begin,
                           int64_t end) {
    const int64_t T_ = p.T();
    with_type(p.grad_kernels.type, [&](auto tag) {
      using TK = typename decltype(tag)::type;
      for (int64_t n = begin / T_; n * T_ < end; ++n) {
        const int64_t t0 = larger(begin - n * T_, 0), t1 = smaller(end - n * T_, T_);
        for (int64_t y = pass.y0; y < pass.y1; ++y) {
          const A* row = static_cast<const A*>(pass.buffer) +
                         (n * (pass.y1 - pass.y0) + y - pass.y0) * Size::row(p);
          for (int64_t x = 0; x < p.W; ++x) {
            for (int64_t q = 0; q < p.Q(); ++q) {
              const A* dk = row + x / cell * Size::cell(p) +
                            Sample::tap_start(p, q, x % cell);
              scatter<TK>(p, pass, n, q, y, x, t0, t1, dk, Sample::tap_stride(p, q));
            }
          }
        }
      }
    });
  }

  template <typename TK>
  static DLU_INLINE void scatter(const Problem& p, const Pass& pass, int64_t n,
                                 int64_t q, int64_t y, int64_t x, int64_t t0,
                                 int64_t t1, const A* dk, int64_t stride) {
    Axis<A> u, v;
    Sample::position(p, n, pass.g, q, y, x, u, v);
    const Corners<A> corner = corners(u.weight, v.weight);
    const Map& map = p.grad_kernels;
    TK* to = at<TK>(map, n, pass.g * p.T() + t0, v.lower, u.lower);
    const int64_t right = u.step * map.x, down = v.step * map.y;
    for (int64_t t = t0; t < t1; ++t, to += map.c) {
      const A d = dk[t * stride];
      add(to, corner.w[0] * d);
      add(to + right, corner.w[1] * d);
      add(to + down, corner.w[2] * d);
      add(to + right + down, corner.w[3] * d);
    }
  }

  template <typename TK>
  static DLU_INLINE void add(TK* to, A value) {
    *to = narrow<TK>::from(static_cast<A>(widen(*to)) + value);
  }
};

}  // namespace
}  // namespace DLU_ISA
}  // namespace dlu_mmdet
