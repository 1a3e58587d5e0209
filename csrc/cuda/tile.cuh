// What the CUDA kernels share. Notation of ../reassembly.h; T is the type of features,
// gradient and output, A the accumulation type.
//
// A block works on a strip of 32 pixels and on four of the s*s sub-pixels. Its threads
// take one of two shapes, by the layout of the features:
//
//     NCHW, "planes"                        channels last, "pixels"
//     a lane is a pixel of the strip,       eight lanes share a pixel and
//     a warp a share of the channels        take its channels in turn
//
//           32 pixels                             c, c+V .. c+7V
//     warp 0 ................               pixel 0 ........
//     warp 1 ................               pixel 1 ........
//
// Either way neighboring lanes read neighboring addresses. Features and gradients
// come straight from global memory through the first-level cache; shared memory holds
// the sampled kernels, the four of a tap side by side so that one load brings them.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <c10/core/ScalarType.h>

#include "../reassembly.h"

namespace dlu_mmdet {

constexpr int kStrip = 32;  // pixels of a block, lanes of a warp
constexpr int kSub = 4;     // sub-pixels that a thread handles at once
constexpr int kWarps = 4;   // of a block of planes
constexpr int kShare = 8;   // lanes of a pixel
constexpr int kPlaneThreads = 32 * kWarps, kPixelThreads = kStrip * kShare;
constexpr int kRows = 4;    // target rows of a block, in the backward to the features
constexpr int kPair = 2;    // rows of a strip of planes, in the other two
constexpr unsigned kAllLanes = 0xffffffffu;

// Blocks that a processor shall hold at once, which bounds the registers: few, since a
// thread has many loads under way.
template <typename A>
constexpr int kPlaneBlocks = sizeof(A) == 8 ? 2 : 3;
template <typename A>
constexpr int kPixelBlocks = sizeof(A) == 8 ? 1 : 2;

// Channels that a thread of a plane holds in registers.
template <typename A>
constexpr int kHold = sizeof(A) == 8 ? 4 : 8;

// A multiple of B that K taps of a row fit into.
constexpr __host__ __device__ int padded(int K, int B) { return (K + B - 1) / B * B; }

template <int I>
using Index = std::integral_constant<int, I>;

// Whether 0 <= i < size.
static __device__ bool within(int i, int size) {
  return static_cast<unsigned>(i) < static_cast<unsigned>(size);
}

// V neighbors in memory, loaded and stored at once.
template <typename T, int V>
struct alignas(V * sizeof(T)) Vec {
  T v[V];
};

// A 4-d tensor of any floating type: base and strides in elements.
struct Map {
  void* data;
  at::ScalarType type;
  int64_t n, c, y, x;

  __device__ int64_t at(int64_t in, int64_t ic, int64_t iy, int64_t ix) const {
    return in * n + ic * c + iy * y + ix * x;
  }
};

// What is computed: sizes and tensors of a call.
struct Geometry {
  int64_t N;
  int C, H, W, K, G, s;
  bool carafe;  // kernels are masks at output resolution, no offsets
  bool pairs;   // two sub-pixels of a row are aligned neighbors in NCHW
  const void *features, *grad;
  void* out;
  Map kernels, offsets, grad_kernels, grad_offsets;

  __host__ __device__ int Q() const { return s * s; }
  __host__ __device__ int T() const { return K * K; }
  __host__ __device__ int Cg() const { return C / G; }
  __host__ __device__ int chunks() const { return (Q() + kSub - 1) / kSub; }
  __host__ __device__ int64_t plane() const { return static_cast<int64_t>(H) * W; }
};

// How blocks share the work; each operator has a function that makes one.
struct Plan {
  int64_t tiles = 0;  // blocks that cover the map
  int chunks = 1;     // blocks that share the sub-pixels of a tile
  int parts = 1;      // blocks that share the channels of a tile
  int per_part = 0;   // channels of such a block
  int shares = 1;     // blocks that share the taps of a tile, see backward_kernels.cu
  int per_share = 0;  // tasks of such a block
  int rows = 1;       // target rows of a block, see backward_features.cu
  int held = 0;       // tap rows whose sampled kernels are in shared memory at a time
  int together = 1, slices = 1;  // see backward_kernels.cu
  int64_t bytes = 0;             // of shared memory
};

// Of a kernel: read where it lies, which saves registers and with them spills.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 700
#define DLU_ARGUMENT const __grid_constant__
#else
#define DLU_ARGUMENT const
#endif

// What a block works on: a tile of the map of image n and group g, the sub-pixels from
// q0 on, channels [c0, c1) of the tensor, a share of the taps.
struct Block {
  int n, tile, g, q0, c0, c1, share;

  // Of a channel's plane, or of a channels-last row, among those of all images.
  __device__ int64_t among(int count, int i) const {
    return static_cast<int64_t>(n) * count + i;
  }
};

static __device__ Block block_of(const Geometry& p, const Plan& plan) {
  unsigned i = blockIdx.x;
  Block b;
  b.tile = static_cast<int>(i % plan.tiles);
  i /= plan.tiles;
  const int part = static_cast<int>(i % plan.parts);
  i /= plan.parts;
  b.share = static_cast<int>(i % plan.shares);
  i /= plan.shares;
  b.q0 = static_cast<int>(i % plan.chunks) * kSub;
  i /= plan.chunks;
  b.g = static_cast<int>(i % p.G);
  b.n = static_cast<int>(i / p.G);
  b.c0 = b.g * p.Cg() + part * plan.per_part;
  b.c1 = min(b.c0 + plan.per_part, (b.g + 1) * p.Cg());
  return b;
}

// The i-th pixel of a strip: 32 neighbors in the map, over the ends of its rows. With
// ROWS of 2 a strip is two rows high and this is the upper pixel of two.
template <int ROWS>
struct Pixel {
  bool valid;
  int y, x;

  __device__ Pixel(const Geometry& p, const Block& b, int i) {
    const int64_t count = (p.H + ROWS - 1) / ROWS * static_cast<int64_t>(p.W);
    int64_t at = static_cast<int64_t>(b.tile) * kStrip + i;
    valid = at < count;
    at = valid ? at : count - 1;
    y = static_cast<int>(at / p.W) * ROWS;
    x = static_cast<int>(at % p.W);
  }
};

// Calls f with the data of a map in its type; the branch is the same for all threads.
template <typename F>
__device__ void visit(const Map& map, const F& f) {
  switch (map.type) {
    case at::kDouble: f(static_cast<double*>(map.data)); break;
    case at::kHalf: f(static_cast<at::Half*>(map.data)); break;
    case at::kBFloat16: f(static_cast<at::BFloat16*>(map.data)); break;
    default: f(static_cast<float*>(map.data));
  }
}

template <typename A>
__device__ void store(const Map& map, int64_t i, A v) {
  visit(map, [&](auto* data) {
    using T = std::remove_reference_t<decltype(*data)>;
    data[i] = static_cast<T>(static_cast<at::opmath_type<T>>(v));
  });
}

// Where sub-pixel q of source pixel (y, x) samples its kernel.
template <typename A>
struct Position {
  Axis<A> u, v;
  int64_t lower, right, down;  // in elements of the kernels, for tap 0

  __device__ Position(const Geometry& p, const Block& b, int q, int y, int x) {
    const int64_t i = p.offsets.at(b.n, b.g * 2 * p.Q() + q, y, x);
    const int64_t j = i + p.Q() * p.offsets.c;
    visit(p.offsets, [&](const auto* data) {
      // double offsets are added in double, all others in A
      using O = std::remove_cv_t<std::remove_reference_t<decltype(*data)>>;
      using Wide = std::conditional_t<std::is_same_v<O, double>, double, A>;
      u = locate<A>(x, static_cast<Wide>(data[i]), p.W);
      v = locate<A>(y, static_cast<Wide>(data[j]), p.H);
    });
    lower = p.kernels.at(b.n, b.g * p.T(), v.lower, u.lower);
    right = u.step * p.kernels.x;
    down = v.step * p.kernels.y;
  }
};

// to(t, k~[t]) for t = first, first + step .. below end, of sub-pixel q of a source
// pixel; zeros where the pixel is outside the map or q is none.
template <typename A, typename F>
__device__ void sample(const Geometry& p, const Block& b, int q, int y, int x, int first,
                       int end, int step, const F& to) {
  if (q >= p.Q() || !within(y, p.H) || !within(x, p.W)) {
    for (int t = first; t < end; t += step) to(t, A(0));
    return;
  }
  const int64_t c = p.kernels.c;
  if (p.carafe) {
    const int64_t i = p.kernels.at(b.n, b.g * p.T(), static_cast<int64_t>(y) * p.s + q / p.s,
                                   static_cast<int64_t>(x) * p.s + q % p.s);
    visit(p.kernels, [&](const auto* k) {
      k += i + first * c;
      for (int t = first; t < end; t += step, k += step * c) to(t, static_cast<A>(*k));
    });
    return;
  }
  const Position<A> at(p, b, q, y, x);
  const Corners<A> corner = corners(at.u.weight, at.v.weight);
  visit(p.kernels, [&](const auto* k) {
    k += at.lower + first * c;
    for (int t = first; t < end; t += step, k += step * c) {
      to(t, corner.w[0] * static_cast<A>(k[0]) +
                corner.w[1] * static_cast<A>(k[at.right]) +
                corner.w[2] * static_cast<A>(k[at.down]) +
                corner.w[3] * static_cast<A>(k[at.right + at.down]));
    }
  });
}

// Of planes a warp samples eight pixels at a time, the four sub-pixels of each side by
// side as they are stored: which lane's pixel this lane samples in the i-th turn.
static __device__ int sampled_lane(int i) {
  return i % kSub * (kStrip / kSub) + threadIdx.x % kStrip / kSub;
}

// Where the four sub-pixels lie from the first one of their source pixel, in elements.
struct SubPixels {
  unsigned at[kSub];
  int count;  // that there are

  __device__ SubPixels(const Geometry& p, int q0, unsigned row, unsigned column) {
    int i = q0 / p.s, j = q0 % p.s;
#pragma unroll
    for (int q = 0; q < kSub; ++q) {
      at[q] = i * row + j * column;
      if (++j == p.s) ++i, j = 0;
    }
    count = min(kSub, p.Q() - q0);
  }
};

// The gradient at four sub-pixels of an NCHW plane; zeros where valid is false.
template <bool PAIRS, typename A, typename T>
__device__ Vec<A, kSub> load_sub_pixels(const T* from, const SubPixels& sub,
                                        bool valid) {
  Vec<A, kSub> g;
  if constexpr (PAIRS) {
#pragma unroll
    for (int q = 0; q < kSub; q += 2) {
      const auto* at = reinterpret_cast<const Vec<T, 2>*>(from + sub.at[q]);
      const Vec<T, 2> pair = valid ? *at : Vec<T, 2>{};
      g.v[q] = static_cast<A>(pair.v[0]);
      g.v[q + 1] = static_cast<A>(pair.v[1]);
    }
  } else {
#pragma unroll
    for (int q = 0; q < kSub; ++q) {
      g.v[q] = valid && q < sub.count ? static_cast<A>(from[sub.at[q]]) : A(0);
    }
  }
  return g;
}

// Four sub-pixels to an NCHW plane.
template <bool PAIRS, typename A, typename T>
__device__ void store_sub_pixels(T* to, const SubPixels& sub, const A (&v)[kSub]) {
  if constexpr (PAIRS) {
#pragma unroll
    for (int q = 0; q < kSub; q += 2) {
      *reinterpret_cast<Vec<T, 2>*>(to + sub.at[q]) = {static_cast<T>(v[q]),
                                                       static_cast<T>(v[q + 1])};
    }
  } else {
#pragma unroll
    for (int q = 0; q < kSub; ++q) {
      if (q < sub.count) to[sub.at[q]] = static_cast<T>(v[q]);
    }
  }
}

// V channels of one pixel; zeros where valid is false.
template <typename A, int V, typename T>
__device__ Vec<A, V> load_channels(const T* from, bool valid) {
  const auto* at = reinterpret_cast<const Vec<T, V>*>(from);
  const Vec<T, V> loaded = valid ? *at : Vec<T, V>{};
  Vec<A, V> to;
#pragma unroll
  for (int i = 0; i < V; ++i) to.v[i] = static_cast<A>(loaded.v[i]);
  return to;
}

}  // namespace dlu_mmdet
