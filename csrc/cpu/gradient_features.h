// The gradient of the features:
//   grad x[c][y + a][x + b] += sum over q of k~[t][q] * grad[c][q][y][x]
#pragma once

#include "packing.h"
#include "sampling.h"

namespace dlu_mmdet {
namespace DLU_ISA {
namespace {

template <typename L>
struct FeatureGradient {
  using A = typename L::A;
  using vec = typename L::vec;
  static constexpr int V = L::V, M = L::M, cell = L::cell, block = L::block;
  using Size = Sizes<L>;
  using Pack = Packing<L>;
  using Sample = Sampling<L>;

  // Rows [a0, a1) of the kernel. Going down before right keeps a store and the load
  // of an overlapping vector apart.
  template <int P>
  static DLU_NOINLINE void spread(const A* k, const A* g, int64_t g_sub, int64_t g_block,
                                A* x, int64_t x_x, int64_t x_y, int64_t x_block,
                                int64_t K, int64_t a0, int64_t a1) {
    vec gq[P][M];
#pragma GCC unroll 16
    for (int q = 0; q < P; ++q) {
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) get<A>(gq[q][m], g + q * g_sub + m * g_block);
    }
    for (int64_t b = 0; b < K; ++b) {
      for (int64_t a = a0; a < a1; ++a) {
        const A* kt = k + (a * K + b) * P * cell;
        A* to = x + a * x_y + b * x_x;
        vec sum[M];
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) get<A>(sum[m], to + m * x_block);
#pragma GCC unroll 16
        for (int q = 0; q < P; ++q) {
          vec kq;
          if constexpr (L::last) {
            kq = kt[q] - vec{};
          } else {
            get<A>(kq, kt + q * cell);
          }
#pragma GCC unroll 16
          for (int m = 0; m < M; ++m) sum[m] += kq * gq[q][m];
        }
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) put<A>(to + m * x_block, sum[m]);
      }
    }
  }

  // Rows of an item. It samples the kernels of r more rows on each side, so few rows
  // cost time and many cost memory.
  static int64_t band(const Problem& p) {
    const int64_t bytes = Size::row(p) * static_cast<int64_t>(sizeof(A));
    const int64_t rows = (768 << 10) / bytes - (p.K - 1);
    return larger(2, smaller(rows, smaller(8, p.H / 6)));
  }

  static int64_t items(const Problem& p) { return p.N * parts(p.H, band(p)); }

  static int64_t scratch(const Problem& p) {
    const int64_t width = Size::row_cells(p) * cell, rows = band(p);
    return (rows + p.K - 1) * Size::row(p) + p.Q() * width * block +
           rows * L::columns(p, width) * block + V;
  }

  static void run(const Problem& p, int64_t begin, int64_t end, A* scratch) {
    const int64_t r = p.K / 2, Q = p.Q(), width = Size::row_cells(p) * cell;
    const int64_t height = band(p), bands = parts(p.H, height);
    const int64_t cols = L::columns(p, width);
    const int64_t x_x = L::pixel_step, x_y = cols * x_x;
    const int64_t x_block = L::vector_step(height * cols);
    const int64_t g_sub = L::sub_step(width), g_block = L::vector_step(Q * width);
    A* kernels = scratch;                                   // [row][cell]
    A* grad = kernels + (height + p.K - 1) * Size::row(p);  // of one row and block
    A* sum = grad + Q * width * block;                      // of one block of channels
    for (int64_t item = begin; item < end; ++item) {
      const int64_t n = item / bands, target0 = item % bands * height;
      const int64_t target1 = smaller(target0 + height, p.H);
      const int64_t y0 = larger(target0 - r, 0), y1 = smaller(target1 + r, p.H);
      for (int64_t g = 0; g < p.G; ++g) {
        A* k = kernels;
        for (int64_t y = y0; y < y1; ++y) {
          for (int64_t x = 0; x < p.W; x += cell, k += Size::cell(p)) {
            Sample::sample_cell(p, n, g, y, x, k);
          }
        }
        for (int64_t b = 0; b < p.Cg(); b += block) {
          const int64_t c = g * p.Cg() + b, channels = smaller(block, p.Cg() - b);
          zero(sum, height * cols * block);
          for (int64_t y = y0; y < y1; ++y) {
            // target row y + a - r lies in [target0, target1)
            const int64_t a0 = larger(0, target0 - y + r);
            const int64_t a1 = smaller(p.K, target1 - y + r);
            Pack::pack_grad(p, n, c, channels, y, 0, Size::row_cells(p), grad);
            for (int64_t i = 0; i < Size::row_cells(p); ++i) {
              Sample::for_chunks(p, [&](auto P, int64_t offset, int64_t q) {
                spread<P>(kernels + (y - y0) * Size::row(p) + i * Size::cell(p) + offset,
                          grad + L::grad_at(p, i, q, width), g_sub, g_block,
                          sum + (y - r - target0) * x_y + i * cell * x_x, x_x, x_y,
                          x_block, p.K, a0, a1);
              });
            }
          }
          for (int64_t y = target0; y < target1; ++y) {
            Pack::unpack_row(p, n, c, channels, y,
                             sum + (y - target0) * x_y + r * x_x, x_block);
          }
        }
      }
    }
  }
};

}  // namespace
}  // namespace DLU_ISA
}  // namespace dlu_mmdet
