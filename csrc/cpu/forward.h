// Forward: out[q][m] = sum over t of k~[t][q] * x[m][t].
#pragma once

#include <type_traits>

#include "packing.h"
#include "sampling.h"

namespace dlu_mmdet {
namespace DLU_ISA {
namespace {

// A row at a time, a block of channels of all its pixels, then the next block.
template <typename L>
struct ForwardPlanes {
  using A = typename L::A;
  using vec = typename L::vec;
  static constexpr int V = L::V, M = L::M, cell = L::cell, block = L::block;
  using Size = Sizes<L>;
  using Pack = Packing<L>;
  using Sample = Sampling<L>;

  // Of a cell: feature m of tap t is at f + m * f_block + tap[t]; out[m][q][V].
  template <int P>
  static DLU_NOINLINE void reassemble(const A* k, const A* f, int64_t f_block,
                                      const int64_t* tap, int64_t taps, A* out,
                                      int64_t o_block) {
    vec sum[P][M] = {};
    for (int64_t t = 0; t < taps; ++t, k += P * V) {
      vec x[M];
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) get<A>(x[m], f + m * f_block + tap[t]);
#pragma GCC unroll 16
      for (int q = 0; q < P; ++q) {
        vec kq;
        get<A>(kq, k + q * V);
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) sum[q][m] += kq * x[m];
      }
    }
#pragma GCC unroll 16
    for (int q = 0; q < P; ++q) {
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) put<A>(out + q * V + m * o_block, sum[q][m]);
    }
  }

  // Rows of an item: as many as keep their kernels in half a second-level cache, few
  // enough to share out evenly. Whole rows, so that every channel is read and written
  // in long runs.
  static int64_t band(const Problem& p) {
    const int64_t bytes = Size::row(p) * static_cast<int64_t>(sizeof(A));
    return larger(smaller((512 << 10) / bytes, smaller(4, p.H / 12)), 1);
  }

  static int64_t items(const Problem& p) { return p.N * parts(p.H, band(p)); }

  static int64_t scratch(const Problem& p) {
    const int64_t rows = band(p), cols = L::columns(p, Size::row_cells(p) * cell);
    return rows * Size::row(p) + p.Q() * M * V + (rows + p.K - 1) * cols * M + V;
  }

  static void run(const Problem& p, int64_t begin, int64_t end, A* scratch,
                  int64_t* tap) {
    const int64_t r = p.K / 2, Q = p.Q(), cells = Size::row_cells(p);
    const int64_t height = band(p), bands = parts(p.H, height);
    const int64_t patch_rows = height + p.K - 1, cols = L::columns(p, cells * cell);
    A* kernels = scratch;                      // [row][cell]
    A* sum = kernels + height * Size::row(p);  // of one cell
    A* patch = sum + Q * M * V;                // of a block of channels
    for (int64_t t = 0; t < p.T(); ++t) tap[t] = t / p.K * cols + t % p.K;

    for (int64_t item = begin; item < end; ++item) {
      const int64_t n = item / bands, y0 = item % bands * height;
      const int64_t rows = smaller(height, p.H - y0);
      for (int64_t g = 0; g < p.G; ++g) {
        for (int64_t i = 0; i < rows * cells; ++i) {
          Sample::sample_cell(p, n, g, y0 + i / cells, i % cells * cell,
                              kernels + i * Size::cell(p));
        }
        for (int64_t b = 0; b < p.Cg(); b += block) {
          const int64_t c = g * p.Cg() + b, channels = smaller(block, p.Cg() - b);
          Pack::pack(p, n, c, channels, y0 - r, patch_rows, -r, cols, patch);
          for (int64_t i = 0; i < rows * cells; ++i) {
            const int64_t y = y0 + i / cells, x = i % cells * cell;
            const A* k = kernels + i * Size::cell(p);
            const A* f = patch + (y - y0) * cols + x;
            Pack::prefetch(p, n, c, channels, y, x);
            Sample::for_chunks(p, [&](auto P, int64_t offset, int64_t q) {
              reassemble<P>(k + offset, f, patch_rows * cols, tap, p.T(), sum + q * V,
                            Q * V);
            });
            Pack::unpack(p, n, c, channels, y, x, sum);
          }
        }
      }
    }
  }
};

// Channels last: a pixel at a time, all its channels, since they lie together. The
// last K rows of features stay in a ring, padded with zeros: [y % K][g][col][depth].
template <typename L>
struct ForwardPixels {
  using T = typename L::T;
  using A = typename L::A;
  using vec = typename L::vec;
  static constexpr int V = L::V, M = L::M, block = L::block;
  using Size = Sizes<L>;
  using Pack = Packing<L>;
  using Sample = Sampling<L>;

  // Of a pixel, channels last: feature c of tap t is at f + tap[t] + c, and what
  // becomes of it goes to out[q] + c.
  template <int P>
  static DLU_NOINLINE void reassemble_pixel(const A* k, const A* f, const int64_t* tap,
                                            int64_t taps, int64_t channels,
                                            T* const* out) {
    for (int64_t c = 0; c < channels; c += block) {
      vec sum[P][M] = {};
      for (int64_t t = 0; t < taps; ++t) {
        vec x[M];
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) get<A>(x[m], f + tap[t] + c + m * V);
#pragma GCC unroll 16
        for (int q = 0; q < P; ++q) {
          const vec kq = k[t * P + q] - vec{};  // the same value in every lane
#pragma GCC unroll 16
          for (int m = 0; m < M; ++m) sum[q][m] += kq * x[m];
        }
      }
#pragma GCC unroll 16
      for (int q = 0; q < P; ++q) {
        T* to = out[q] + c;
        if (std::is_same<T, A>::value && c + block <= channels) {
#pragma GCC unroll 16
          for (int m = 0; m < M; ++m) __builtin_memcpy(to + m * V, &sum[q][m], sizeof(vec));
        } else {
          A lanes[block];
#pragma GCC unroll 16
          for (int m = 0; m < M; ++m) put<A>(lanes + m * V, sum[q][m]);
          narrow_run(lanes, smaller(block, channels - c), to);
        }
      }
    }
  }

  static int64_t depth(const Problem& p) { return parts(p.Cg(), block) * block; }

  static int64_t items(const Problem& p) { return p.N * p.H; }

  static int64_t scratch(const Problem& p) {
    return p.K * p.G * L::columns(p, p.W) * depth(p) + Size::cell(p);
  }

  static void run(const Problem& p, int64_t begin, int64_t end, A* ring,
                  int64_t* tap) {
    const int64_t r = p.K / 2, cols = L::columns(p, p.W), f_x = depth(p);
    const int64_t f_g = cols * f_x, f_y = p.G * f_g;
    A* k = ring + p.K * f_y;  // of one pixel
    for (int64_t item = begin; item < end; ++item) {
      const int64_t n = item / p.H, y = item % p.H;
      const bool fresh = item == begin || y == 0;
      for (int64_t row = fresh ? y - r : y + r; row <= y + r; ++row) {
        for (int64_t g = 0; g < p.G; ++g) {
          Pack::pack(p, n, g * p.Cg(), p.Cg(), row, 1, -r, cols,
                     ring + (row + p.K) % p.K * f_y + g * f_g, f_x);
        }
      }
      for (int64_t t = 0; t < p.T(); ++t) {
        tap[t] = (y - r + t / p.K + p.K) % p.K * f_y + t % p.K * f_x;
      }
      for (int64_t x = 0; x < p.W; ++x) {
        for (int64_t g = 0; g < p.G; ++g) {
          Sample::sample_cell(p, n, g, y, x, k);
          Sample::for_chunks(p, [&](auto P, int64_t offset, int64_t q) {
            T* out[P];
            for (int64_t i = 0; i < P; ++i) {
              out[i] = at<T>(p.out, n, g * p.Cg(), y * p.s + (q + i) / p.s,
                             x * p.s + (q + i) % p.s);
            }
            reassemble_pixel<P>(k + offset, ring + g * f_g + x * f_x, tap, p.T(),
                                p.Cg(), out);
          });
        }
      }
    }
  }
};

template <typename L>
using Forward = std::conditional_t<L::last, ForwardPixels<L>, ForwardPlanes<L>>;

}  // namespace
}  // namespace DLU_ISA
}  // namespace dlu_mmdet
