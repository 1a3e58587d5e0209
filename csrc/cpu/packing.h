// Pixels of the tensors, widened, to blocks of channels in scratch and back.
#pragma once

#include "layout.h"

namespace dlu_mmdet {
namespace DLU_ISA {
namespace {

template <typename L>
struct Packing {
  using T = typename L::T;
  using A = typename L::A;
  static constexpr int V = L::V, M = L::M, cell = L::cell, block = L::block;

  // Rows [y, y + rows) and columns [x, x + cols) of `channels` channels, zeros
  // outside the map: to[m][row][col] or, channels last, to[row][col][depth].
  // Planes: writes up to V - 1 elements beyond the last column.
  static void pack(const Problem& p, int64_t n, int64_t c, int64_t channels, int64_t y,
                   int64_t rows, int64_t x, int64_t cols, A* to, int64_t depth = block) {
    const Map& map = p.features;
    const int64_t first = larger(x, 0), left = first - x;
    const int64_t valid = smaller(x + cols, p.W) - first;
    for (int64_t m = 0; m < (L::last ? 1 : M); ++m) {
      for (int64_t row = y; row < y + rows; ++row, to += cols * (L::last ? depth : 1)) {
        const bool inside = row >= 0 && row < p.H && (L::last || m < channels);
        if (!inside) {
          zero(to, cols * (L::last ? depth : 1));
        } else if constexpr (L::last) {
          zero(to, left * depth);
          zero(to + (left + valid) * depth, (cols - left - valid) * depth);
          A* pixel = to + left * depth;
          for (int64_t i = 0; i < valid; ++i, pixel += depth) {
            pack_channels(at<T>(map, n, c, row, first + i), map.c, channels, pixel, depth);
          }
        } else {
          const T* from = at<T>(map, n, c + m, row, first);
          const int64_t vectors = parts(valid, V);
          // the rows of the next block are too far apart for the hardware to foresee
          for (int64_t i = 0; i <= valid; i += 64 / sizeof(T)) {
            __builtin_prefetch(from + M * map.c + i);
          }
          if (map.x == 1 && from + vectors * V <= map.end) {
            // whole vectors, cut off below
            for (int64_t i = 0; i < vectors; ++i) {
              widen_run(from + i * V, 1, V, to + left + i * V);
            }
          } else {
            widen_run(from, map.x, valid, to + left);
          }
          zero(to, left);
          zero(to + left + valid, cols - left - valid);
        }
      }
    }
  }

  static void pack_channels(const T* from, int64_t stride, int64_t channels, A* to,
                            int64_t depth = block) {
    for (; stride == 1 && channels >= block; channels -= block, depth -= block) {
      for (int m = 0; m < M; ++m, from += V, to += V) widen_run(from, 1, V, to);
    }
    widen_run(from, stride, channels, to);
    zero(to + channels, depth - channels);
  }

  // The sub-pixels of cells [0, cells) at (y, x) of the output's gradient, zeros
  // outside: to[m][q][cells * V] or, channels last, to[x][q][block].
  static void pack_grad(const Problem& p, int64_t n, int64_t c, int64_t channels,
                        int64_t y, int64_t x, int64_t cells, A* to) {
    const Map& map = p.grad;
    const int64_t s = p.s, cols = cells * cell, valid = smaller(cols, p.W - x);
    if constexpr (L::last) {
      for (int64_t i = 0; i < valid; ++i) {
        for (int64_t q = 0; q < p.Q(); ++q, to += block) {
          pack_channels(at<T>(map, n, c, y * s + q / s, (x + i) * s + q % s), map.c,
                        channels, to);
        }
      }
      return;
    }
    for (int64_t m = 0; m < M; ++m) {
      for (int64_t q = 0; q < p.Q(); ++q, to += cols) {
        if (m >= channels) {
          zero(to, cols);
          continue;
        }
        const T* from = at<T>(map, n, c + m, y * s + q / s, x * s + q % s);
        const int64_t stride = s * map.x;
        for (int64_t i = 0; i < valid; i += V) {
          widen_run(from + i * stride, stride, smaller(V, valid - i), to + i);
        }
        zero(to + valid, cols - valid);
      }
    }
  }

  // Planes: asks for the lines that unpack will write, while they are being computed.
  static void prefetch(const Problem& p, int64_t n, int64_t c, int64_t channels,
                       int64_t y, int64_t x) {
    for (int64_t i = 0; i < channels * p.s; ++i) {
      const T* to = at<T>(p.out, n, c + i / p.s, y * p.s + i % p.s, x * p.s);
      for (int64_t e = 0; e < V * p.s; e += 64 / sizeof(T)) __builtin_prefetch(to + e, 1);
    }
  }

  // Planes: from[m][q][V] to the output pixels of the cell at (y, x).
  static void unpack(const Problem& p, int64_t n, int64_t c, int64_t channels,
                     int64_t y, int64_t x, const A* from) {
    const int64_t s = p.s, count = smaller(cell, p.W - x);
    for (int64_t m = 0; m < channels; ++m) {
      for (int64_t i = 0; i < s; ++i, from += s * V) {
        T* to = at<T>(p.out, n, c + m, y * s + i, x * s);
        if (count < V) {
          interleave(from, count, s, to);
        } else if (s == 2) {
          interleave<2>(from, to);
        } else if (s == 4) {
          interleave<4>(from, to);
        } else {
          interleave(from, V, s, to);
        }
      }
    }
  }

  static DLU_INLINE void interleave(const A* from, int64_t n, int64_t s, T* to) {
    for (int64_t l = 0; l < n; ++l) {
      for (int64_t j = 0; j < s; ++j) to[l * s + j] = narrow<T>::from(from[j * V + l]);
    }
  }
  template <int S>
  static DLU_INLINE void interleave(const A* __restrict from, T* __restrict to) {
#pragma GCC unroll 1
    for (int l = 0; l < V; ++l) {
      for (int j = 0; j < S; ++j) to[l * S + j] = narrow<T>::from(from[j * V + l]);
    }
  }

  static void unpack_row(const Problem& p, int64_t n, int64_t c, int64_t channels,
                         int64_t y, const A* from, int64_t x_block) {
    if constexpr (L::last) {
      for (int64_t x = 0; x < p.W; ++x, from += block) {
        narrow_run(from, channels, at<T>(p.out, n, c, y, x));
      }
    } else {
      for (int64_t m = 0; m < channels; ++m, from += x_block) {
        narrow_run(from, p.W, at<T>(p.out, n, c + m, y, 0));
      }
    }
  }
};

}  // namespace
}  // namespace DLU_ISA
}  // namespace dlu_mmdet
