// The CPU loops, compiled once per instruction set: the including file defines
//   DLU_ISA           namespace of this copy
//   DLU_VECTOR_BYTES  width of a vector register
//   DLU_BLOCK         vectors (forward: per sub-pixel) that share a kernel load
//   DLU_BLOCK_LAST    the same, channels last: here it should divide the channels
//   DLU_TAPS          taps whose gradient is accumulated in registers at once
//
// One set of loops serves both layouts. A vector runs over V pixels of a row (NCHW)
// or over V channels of a pixel (channels last, `Last`). A cell is what one kernel
// vector covers: V source pixels, or one. Its kernels lie in scratch as
//   k[chunk of P sub-pixels][t][P][cell],  P = 4, or 1 for the odd one left,
// so that P kernel vectors are loaded once for a block of M feature vectors.
#include <type_traits>

#include "../reassembly.h"
#include "kernels.h"

#define DLU_NOINLINE __attribute__((noinline))

namespace dlu_mmdet {
namespace DLU_ISA {
namespace {

// ---- element types -------------------------------------------------------------

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
  // 2^112 moves the exponent bias from 15 to 127 and normalizes subnormals
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

// ---- vectors -------------------------------------------------------------------

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

// ---- the loops for features of type T ------------------------------------------

template <typename T, bool Last>
struct Reassembly {
  using A = typename accumulate<T>::type;
  using vec = typename Lanes<A>::type;
  static constexpr int V = Lanes<A>::count;
  static constexpr int M = Last ? DLU_BLOCK_LAST : DLU_BLOCK;
  static constexpr int cell = Last ? 1 : V;       // source pixels of a cell
  static constexpr int block = Last ? M * V : M;  // channels of a block

  static int64_t cell_size(const Problem& p) { return p.T() * p.Q() * cell; }
  static int64_t row_cells(const Problem& p) { return parts(p.W, cell); }
  static int64_t row_size(const Problem& p) { return row_cells(p) * cell_size(p); }
  static int64_t blocks(const Problem& p) { return parts(p.Cg(), block); }
  // columns of a padded row of w source pixels, in elements or channel blocks
  static int64_t columns(const Problem& p, int64_t w) {
    const int64_t cols = w + p.K - 1;
    return Last ? cols : parts(cols, V) * V;
  }

  // ---- moving pixels in and out

  // Rows [y, y + rows) and columns [x, x + cols) of `channels` channels, zeros
  // outside the map: to[m][row][col] or, channels last, to[row][col][depth].
  // !Last writes up to V - 1 elements beyond the last column.
  static void pack(const Problem& p, int64_t n, int64_t c, int64_t channels, int64_t y,
                   int64_t rows, int64_t x, int64_t cols, A* to, int64_t depth = block) {
    const Map& map = p.features;
    const int64_t first = larger(x, 0), left = first - x;
    const int64_t valid = smaller(x + cols, p.W) - first;
    for (int64_t m = 0; m < (Last ? 1 : M); ++m) {
      for (int64_t row = y; row < y + rows; ++row, to += cols * (Last ? depth : 1)) {
        const bool inside = row >= 0 && row < p.H && (Last || m < channels);
        if (!inside) {
          zero(to, cols * (Last ? depth : 1));
        } else if constexpr (Last) {
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
    if constexpr (Last) {
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

  // !Last: asks for the lines that unpack will write, while they are being computed.
  static void prefetch(const Problem& p, int64_t n, int64_t c, int64_t channels,
                       int64_t y, int64_t x) {
    for (int64_t i = 0; i < channels * p.s; ++i) {
      const T* to = at<T>(p.out, n, c + i / p.s, y * p.s + i % p.s, x * p.s);
      for (int64_t e = 0; e < V * p.s; e += 64 / sizeof(T)) __builtin_prefetch(to + e, 1);
    }
  }

  // !Last: from[m][q][V] to the output pixels of the cell at (y, x).
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

  // ---- the kernels of a cell

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
    if (count < cell) zero(k, cell_size(p));
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

  // ---- forward: out[q][m] = sum over t of k~[t][q] * x[m][t]

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

  // A row at a time, a block of channels of all its pixels, then the next block.
  struct ByRow {
    // Rows of an item: as many as keep their kernels in half a second-level cache, few
    // enough to share out evenly. Whole rows, so that every channel is read and written
    // in long runs.
    static int64_t band(const Problem& p) {
      const int64_t bytes = row_size(p) * static_cast<int64_t>(sizeof(A));
      return larger(smaller((512 << 10) / bytes, smaller(4, p.H / 12)), 1);
    }

    static int64_t items(const Problem& p) { return p.N * parts(p.H, band(p)); }

    static int64_t scratch(const Problem& p) {
      const int64_t rows = band(p), cols = columns(p, row_cells(p) * cell);
      return rows * row_size(p) + p.Q() * M * V + (rows + p.K - 1) * cols * M + V;
    }

    static void run(const Problem& p, int64_t begin, int64_t end, A* scratch,
                    int64_t* tap) {
      const int64_t r = p.K / 2, Q = p.Q(), cells = row_cells(p);
      const int64_t height = band(p), bands = parts(p.H, height);
      const int64_t patch_rows = height + p.K - 1, cols = columns(p, cells * cell);
      A* kernels = scratch;                     // [row][cell]
      A* sum = kernels + height * row_size(p);  // of one cell
      A* patch = sum + Q * M * V;               // of a block of channels
      for (int64_t t = 0; t < p.T(); ++t) tap[t] = t / p.K * cols + t % p.K;

      for (int64_t item = begin; item < end; ++item) {
        const int64_t n = item / bands, y0 = item % bands * height;
        const int64_t rows = smaller(height, p.H - y0);
        for (int64_t g = 0; g < p.G; ++g) {
          for (int64_t i = 0; i < rows * cells; ++i) {
            sample_cell(p, n, g, y0 + i / cells, i % cells * cell,
                        kernels + i * cell_size(p));
          }
          for (int64_t b = 0; b < p.Cg(); b += block) {
            const int64_t c = g * p.Cg() + b, channels = smaller(block, p.Cg() - b);
            pack(p, n, c, channels, y0 - r, patch_rows, -r, cols, patch);
            for (int64_t i = 0; i < rows * cells; ++i) {
              const int64_t y = y0 + i / cells, x = i % cells * cell;
              const A* k = kernels + i * cell_size(p);
              const A* f = patch + (y - y0) * cols + x;
              prefetch(p, n, c, channels, y, x);
              for_chunks(p, [&](auto P, int64_t offset, int64_t q) {
                reassemble<P>(k + offset, f, patch_rows * cols, tap, p.T(), sum + q * V,
                              Q * V);
              });
              unpack(p, n, c, channels, y, x, sum);
            }
          }
        }
      }
    }
  };

  // Channels last: a pixel at a time, all its channels, since they lie together. The
  // last K rows of features stay in a ring, padded with zeros: [y % K][g][col][depth].
  struct ByPixel {
    static int64_t depth(const Problem& p) { return blocks(p) * block; }

    static int64_t items(const Problem& p) { return p.N * p.H; }

    static int64_t scratch(const Problem& p) {
      return p.K * p.G * columns(p, p.W) * depth(p) + cell_size(p);
    }

    static void run(const Problem& p, int64_t begin, int64_t end, A* ring,
                    int64_t* tap) {
      const int64_t r = p.K / 2, cols = columns(p, p.W), f_x = depth(p);
      const int64_t f_g = cols * f_x, f_y = p.G * f_g;
      A* k = ring + p.K * f_y;  // of one pixel
      for (int64_t item = begin; item < end; ++item) {
        const int64_t n = item / p.H, y = item % p.H;
        const bool fresh = item == begin || y == 0;
        for (int64_t row = fresh ? y - r : y + r; row <= y + r; ++row) {
          for (int64_t g = 0; g < p.G; ++g) {
            pack(p, n, g * p.Cg(), p.Cg(), row, 1, -r, cols,
                 ring + (row + p.K) % p.K * f_y + g * f_g, f_x);
          }
        }
        for (int64_t t = 0; t < p.T(); ++t) {
          tap[t] = (y - r + t / p.K + p.K) % p.K * f_y + t % p.K * f_x;
        }
        for (int64_t x = 0; x < p.W; ++x) {
          for (int64_t g = 0; g < p.G; ++g) {
            sample_cell(p, n, g, y, x, k);
            for_chunks(p, [&](auto P, int64_t offset, int64_t q) {
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

  using Forward = std::conditional_t<Last, ByPixel, ByRow>;

  // ---- d k~[q][t] = sum over c of grad[q][c] * x[t][c]

  static constexpr int channel_blocks = Last ? 2 : 32 / M;  // packed at a time
  static constexpr int64_t grad_cells = Last ? 8 : 2;       // of an item

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
        if constexpr (Last) {
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

  static int64_t grad_taps_scratch(const Problem& p) {
    const int64_t pixels = grad_cells * cell;
    return grad_cells * cell_size(p) +
           channel_blocks * block * (p.Q() * pixels + p.K * columns(p, pixels)) + V;
  }

  static int64_t grad_taps_items(const Problem& p, const Pass& pass) {
    return p.N * (pass.y1 - pass.y0) * parts(row_cells(p), grad_cells);
  }

  static void grad_taps(const Problem& p, const Pass& pass, int64_t begin, int64_t end,
                        A* scratch) {
    const int64_t r = p.K / 2, Q = p.Q(), T_ = p.T();
    const int64_t across = parts(row_cells(p), grad_cells), rows = pass.y1 - pass.y0;
    const int64_t cols = columns(p, grad_cells * cell);
    const int64_t f_x = Last ? block : 1, f_y = cols * f_x;
    const int64_t g_size = Q * grad_cells * cell * block, f_size = p.K * cols * block;
    A* grad = scratch + grad_cells * cell_size(p);
    A* patch = grad + channel_blocks * g_size;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t line = item / across, n = line / rows, y = pass.y0 + line % rows;
      const int64_t x0 = item % across * grad_cells * cell;
      const int64_t cells = smaller(grad_cells, parts(p.W - x0, cell));
      // the masks' gradient is complete here; that of kernels is scattered later
      A* k = p.carafe ? scratch
                      : static_cast<A*>(pass.buffer) + line * row_size(p) +
                            x0 / cell * cell_size(p);
      zero(k, cells * cell_size(p));
      for (int64_t b0 = 0; b0 < p.Cg(); b0 += channel_blocks * block) {
        int64_t used = 0;
        for (; used < channel_blocks && b0 + used * block < p.Cg(); ++used) {
          const int64_t b = b0 + used * block, c = pass.g * p.Cg() + b;
          const int64_t channels = smaller(block, p.Cg() - b);
          pack_grad(p, n, c, channels, y, x0, grad_cells, grad + used * g_size);
          pack(p, n, c, channels, y - r, p.K, x0 - r, cols, patch + used * f_size);
        }
        for (int64_t i = 0; i < cells; ++i) {
          for_chunks(p, [&](auto P, int64_t offset, int64_t q) {
            for (int64_t t = 0; t < T_; ++t) {
              const int64_t a = t / p.K, b = t % p.K;
              A* to = k + i * cell_size(p) + offset + t * P * cell;
              const A* f = patch + a * f_y + (i * cell + b) * f_x;
              const int64_t taps = smaller(p.K - b, DLU_TAPS);
              correlate_taps<P>(taps, grad + (Last ? (i * Q + q) * block
                                                   : q * grad_cells * V + i * V),
                                f, g_size, f_size, f_x, used, to);
              t += taps - 1;
            }
          });
        }
      }
      for (int64_t i = 0; i < cells; ++i) {
        finish_cell(p, pass, n, y, x0 + i * cell, k + i * cell_size(p));
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
    if constexpr (Last) {
      for (int64_t i = 0; i < used; ++i, g += g_size, f += f_size) {
        correlate<P, B>(g, V, block, f, V, f_x, M, k);
      }
    } else {
      // channels of all blocks are equally spaced
      correlate<P, B>(g, g_size / M, grad_cells * V, f, f_size / M, f_x, used * M, k);
    }
  }

  // Writes what follows from d k~ of one cell: the gradient of its masks (CARAFE) or
  // of its offsets.
  static void finish_cell(const Problem& p, const Pass& pass, int64_t n, int64_t y,
                          int64_t x0, const A* k) {
    const int64_t count = smaller(cell, p.W - x0);
    for (int64_t q = 0; q < p.Q(); ++q) {
      const int64_t stride = tap_stride(p, q);
      for (int64_t l = 0; l < count; ++l) {
        const A* dk = k + tap_start(p, q, l);
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
    position(p, n, pass.g, q, y, x, u, v);
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
  static void grad_kernels(const Problem& p, const Pass& pass, int64_t begin,
                           int64_t end) {
    const int64_t T_ = p.T();
    with_type(p.grad_kernels.type, [&](auto tag) {
      using TK = typename decltype(tag)::type;
      for (int64_t n = begin / T_; n * T_ < end; ++n) {
        const int64_t t0 = larger(begin - n * T_, 0), t1 = smaller(end - n * T_, T_);
        for (int64_t y = pass.y0; y < pass.y1; ++y) {
          const A* row = static_cast<const A*>(pass.buffer) +
                         (n * (pass.y1 - pass.y0) + y - pass.y0) * row_size(p);
          for (int64_t x = 0; x < p.W; ++x) {
            for (int64_t q = 0; q < p.Q(); ++q) {
              scatter<TK>(p, pass, n, q, y, x, t0, t1,
                          row + x / cell * cell_size(p) + tap_start(p, q, x % cell),
                          tap_stride(p, q));
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
    position(p, n, pass.g, q, y, x, u, v);
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

  // ---- grad x[c][y + a][x + b] += sum over q of k~[t][q] * grad[c][q][y][x]

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
          if constexpr (Last) {
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
  static int64_t grad_band(const Problem& p) {
    const int64_t bytes = row_size(p) * static_cast<int64_t>(sizeof(A));
    const int64_t rows = (768 << 10) / bytes - (p.K - 1);
    return larger(2, smaller(rows, smaller(8, p.H / 6)));
  }

  static int64_t grad_features_items(const Problem& p) {
    return p.N * parts(p.H, grad_band(p));
  }

  static int64_t grad_features_scratch(const Problem& p) {
    const int64_t width = row_cells(p) * cell, rows = grad_band(p);
    return (rows + p.K - 1) * row_size(p) + p.Q() * width * block +
           rows * columns(p, width) * block + V;
  }

  static void grad_features(const Problem& p, int64_t begin, int64_t end, A* scratch) {
    const int64_t r = p.K / 2, Q = p.Q(), width = row_cells(p) * cell;
    const int64_t height = grad_band(p), bands = parts(p.H, height);
    const int64_t cols = columns(p, width);
    const int64_t x_x = Last ? block : 1, x_y = cols * x_x;
    const int64_t x_block = Last ? V : height * cols;
    const int64_t g_sub = Last ? block : width, g_block = Last ? V : Q * width;
    A* kernels = scratch;                                  // [row][cell]
    A* grad = kernels + (height + p.K - 1) * row_size(p);  // of one row and block
    A* sum = grad + Q * width * block;                     // of one block of channels
    for (int64_t item = begin; item < end; ++item) {
      const int64_t n = item / bands, target0 = item % bands * height;
      const int64_t target1 = smaller(target0 + height, p.H);
      const int64_t y0 = larger(target0 - r, 0), y1 = smaller(target1 + r, p.H);
      for (int64_t g = 0; g < p.G; ++g) {
        A* k = kernels;
        for (int64_t y = y0; y < y1; ++y) {
          for (int64_t x = 0; x < p.W; x += cell, k += cell_size(p)) {
            sample_cell(p, n, g, y, x, k);
          }
        }
        for (int64_t b = 0; b < p.Cg(); b += block) {
          const int64_t c = g * p.Cg() + b, channels = smaller(block, p.Cg() - b);
          zero(sum, height * cols * block);
          for (int64_t y = y0; y < y1; ++y) {
            // target row y + a - r lies in [target0, target1)
            const int64_t a0 = larger(0, target0 - y + r);
            const int64_t a1 = smaller(p.K, target1 - y + r);
            pack_grad(p, n, c, channels, y, 0, row_cells(p), grad);
            for (int64_t i = 0; i < row_cells(p); ++i) {
              for_chunks(p, [&](auto P, int64_t offset, int64_t q) {
                spread<P>(kernels + (y - y0) * row_size(p) + i * cell_size(p) + offset,
                          grad + (Last ? (i * Q + q) * block : q * width + i * V),
                          g_sub, g_block, sum + (y - r - target0) * x_y + i * cell * x_x,
                          x_x, x_y, x_block, p.K, a0, a1);
              });
            }
          }
          for (int64_t y = target0; y < target1; ++y) {
            unpack_row(p, n, c, channels, y, sum + (y - target0) * x_y + r * x_x,
                       x_block);
          }
        }
      }
    }
  }

  static void unpack_row(const Problem& p, int64_t n, int64_t c, int64_t channels,
                         int64_t y, const A* from, int64_t x_block) {
    if constexpr (Last) {
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

// ---- the table: from the run-time type and layout to the loops above -----------

template <typename F>
DLU_INLINE void with_loops(const Problem& p, F&& f) {
  with_type(p.features.type, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (p.channels_last) {
      f(Reassembly<T, true>{});
    } else {
      f(Reassembly<T, false>{});
    }
  });
}

// Offsets of the taps come first; what follows starts a cache line, as they do.
int64_t tap_bytes(const Problem& p) {
  return parts(p.T() * static_cast<int64_t>(sizeof(int64_t)), 64) * 64;
}

int64_t forward_scratch_bytes(const Problem& p) {
  int64_t bytes = 0;
  with_loops(p, [&](auto loops) {
    using R = decltype(loops);
    bytes = tap_bytes(p) + R::Forward::scratch(p) * sizeof(typename R::A);
  });
  return bytes;
}

int64_t grad_taps_scratch_bytes(const Problem& p) {
  int64_t bytes = 0;
  with_loops(p, [&](auto loops) {
    using R = decltype(loops);
    bytes = R::grad_taps_scratch(p) * sizeof(typename R::A);
  });
  return bytes;
}

int64_t grad_features_scratch_bytes(const Problem& p) {
  int64_t bytes = 0;
  with_loops(p, [&](auto loops) {
    using R = decltype(loops);
    bytes = R::grad_features_scratch(p) * sizeof(typename R::A);
  });
  return bytes;
}

int64_t row_bytes(const Problem& p) {
  int64_t bytes = 0;
  with_loops(p, [&](auto loops) {
    using R = decltype(loops);
    bytes = R::row_size(p) * sizeof(typename R::A);
  });
  return bytes;
}

int64_t forward_items(const Problem& p) {
  int64_t items = 0;
  with_loops(p, [&](auto loops) { items = decltype(loops)::Forward::items(p); });
  return items;
}

int64_t grad_taps_items(const Problem& p, const Pass& pass) {
  int64_t items = 0;
  with_loops(p, [&](auto loops) { items = decltype(loops)::grad_taps_items(p, pass); });
  return items;
}

int64_t grad_features_items(const Problem& p) {
  int64_t items = 0;
  with_loops(p, [&](auto loops) { items = decltype(loops)::grad_features_items(p); });
  return items;
}

void forward(const Problem& p, int64_t begin, int64_t end, void* scratch) {
  with_loops(p, [&](auto loops) {
    using R = decltype(loops);
    char* first = static_cast<char*>(scratch);
    R::Forward::run(p, begin, end,
                    reinterpret_cast<typename R::A*>(first + tap_bytes(p)),
                    reinterpret_cast<int64_t*>(first));
  });
}

void grad_taps(const Problem& p, const Pass& pass, int64_t begin, int64_t end,
               void* scratch) {
  with_loops(p, [&](auto loops) {
    using R = decltype(loops);
    R::grad_taps(p, pass, begin, end, static_cast<typename R::A*>(scratch));
  });
}

void grad_kernels(const Problem& p, const Pass& pass, int64_t begin, int64_t end) {
  with_loops(p, [&](auto loops) {
    decltype(loops)::grad_kernels(p, pass, begin, end);
  });
}

void grad_features(const Problem& p, int64_t begin, int64_t end, void* scratch) {
  with_loops(p, [&](auto loops) {
    using R = decltype(loops);
    R::grad_features(p, begin, end, static_cast<typename R::A*>(scratch));
  });
}

}  // namespace

#define DLU_STRING_(x) #x
#define DLU_STRING(x) DLU_STRING_(x)

extern const Loops loops = {
    DLU_STRING(DLU_ISA), row_bytes,
    forward_items,       forward_scratch_bytes,       forward,
    grad_taps_items,     grad_taps_scratch_bytes,     grad_taps,
    grad_kernels,
    grad_features_items, grad_features_scratch_bytes, grad_features,
};

}  // namespace DLU_ISA
}  // namespace dlu_mmdet
