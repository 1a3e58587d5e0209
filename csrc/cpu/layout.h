// The two layouts of features. Each owns the strides of what is packed for the loops,
// which are written once for both.
#pragma once

#include "vector.h"

namespace dlu_mmdet {
namespace DLU_ISA {
namespace {

// What both layouts share: the arithmetic of features of type T.
template <typename T_>
struct Layout {
  using T = T_;
  using A = typename accumulate<T>::type;
  using vec = typename Lanes<A>::type;
  static constexpr int V = Lanes<A>::count;
};

// NCHW: a vector runs over V pixels of a row, so a cell is V pixels wide. A block is
// packed plane by plane: features as [channel][row][column], a gradient as
// [channel][sub-pixel][column].
template <typename T>
struct Planes : Layout<T> {
  using Layout<T>::V;
  static constexpr bool last = false;
  static constexpr int M = DLU_BLOCK;       // vectors that share a kernel load
  static constexpr int cell = V;            // source pixels of a cell
  static constexpr int block = M;           // channels of a block
  static constexpr int pixel_step = 1;      // to the next pixel of packed features
  static constexpr int taps_blocks = 32 / M;  // blocks that grad_taps packs at a time
  static constexpr int taps_cells = 2;        // cells of its items

  // Columns of a packed row for `width` source pixels.
  static int64_t columns(const Problem& p, int64_t width) {
    return parts(width + p.K - 1, V) * V;
  }
  // To the next of the M vectors of a block, whose planes have `plane` elements.
  static DLU_INLINE int64_t vector_step(int64_t plane) { return plane; }
  // Of a packed gradient of `width` columns: to the next sub-pixel, and where that of
  // cell i and sub-pixel q begins.
  static DLU_INLINE int64_t sub_step(int64_t width) { return width; }
  static DLU_INLINE int64_t grad_at(const Problem&, int64_t i, int64_t q,
                                    int64_t width) {
    return q * width + i * V;
  }
};

// Channels last: a vector runs over V channels of a pixel, so a cell is a pixel. A block
// is packed pixel by pixel: features as [row][column][channel], a gradient as
// [column][sub-pixel][channel].
template <typename T>
struct Pixels : Layout<T> {
  using Layout<T>::V;
  static constexpr bool last = true;
  static constexpr int M = DLU_BLOCK_LAST;
  static constexpr int cell = 1;
  static constexpr int block = M * V;
  static constexpr int pixel_step = block;
  static constexpr int taps_blocks = 2;
  static constexpr int taps_cells = 8;

  static int64_t columns(const Problem& p, int64_t width) { return width + p.K - 1; }
  static DLU_INLINE int64_t vector_step(int64_t) { return V; }
  static DLU_INLINE int64_t sub_step(int64_t) { return block; }
  static DLU_INLINE int64_t grad_at(const Problem& p, int64_t i, int64_t q, int64_t) {
    return (i * p.Q() + q) * block;
  }
};

// Sizes in elements of A of what lies in scratch for a layout L. The kernels of a cell
// are k[chunk of P sub-pixels][t][P][cell], P = 4, or 1 for the odd one left.
template <typename L>
struct Sizes {
  static int64_t cell(const Problem& p) { return p.T() * p.Q() * L::cell; }
  static int64_t row_cells(const Problem& p) { return parts(p.W, L::cell); }
  static int64_t row(const Problem& p) { return row_cells(p) * cell(p); }
};

}  // namespace
}  // namespace DLU_ISA
}  // namespace dlu_mmdet
