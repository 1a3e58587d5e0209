// The operators on CUDA. Notation of ../reassembly.h; T is the type of the features,
// A the accumulation type, P the number of sub-pixels handled at once: 4, or 1 for an
// odd s.
//
// A block covers a strip of source pixels of one row and keeps in shared memory the
// sampled kernels of the strip and a patch of as many channels as fit. A warp runs
// along the row, the other threads of a block share the work of a pixel.
#include <ATen/Context.h>
#include <ATen/Dispatch.h>
#include <ATen/Functions.h>
#include <ATen/OpMathType.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <limits>
#include <tuple>
#include <type_traits>

#include "../checks.h"
#include "../reassembly.h"

namespace dlu_mmdet {
namespace {

constexpr int kStrip = 32;  // source pixels of a block
constexpr int kHold = 4;    // channels, or taps, that a thread holds in registers

// Threads that share a pixel; half for double, to halve the shared memory.
template <typename A>
constexpr int kShares = sizeof(A) == 8 ? 4 : 8;
template <typename A>
constexpr int kThreads = kStrip * kShares<A>;
template <typename A>
constexpr int kChannels = kHold * kShares<A>;  // of a patch

// A 4-d tensor: base, element type and strides in elements.
struct Map {
  void* data;
  at::ScalarType type;
  int64_t n, c, y, x;

  __host__ __device__ int64_t at(int64_t in, int64_t ic, int64_t iy, int64_t ix) const {
    return in * n + ic * c + iy * y + ix * x;
  }
};

struct Problem {
  int64_t N;
  int C, H, W, K, G, s;
  bool channels_last, carafe;
  Map features, kernels, offsets, grad, grad_kernels, grad_offsets, out;

  __host__ __device__ int Q() const { return s * s; }
  __host__ __device__ int T() const { return K * K; }
  __host__ __device__ int Cg() const { return C / G; }
  __host__ __device__ int strips() const { return (W + kStrip - 1) / kStrip; }
};

// Small tensors come in any floating type; the branch is the same for all threads.
template <typename A>
__device__ A load(const Map& map, int64_t i) {
  switch (map.type) {
    case at::kDouble: return static_cast<A>(static_cast<const double*>(map.data)[i]);
    case at::kHalf: return static_cast<A>(static_cast<const at::Half*>(map.data)[i]);
    case at::kBFloat16:
      return static_cast<A>(static_cast<const at::BFloat16*>(map.data)[i]);
    default: return static_cast<A>(static_cast<const float*>(map.data)[i]);
  }
}

template <typename A>
__device__ void store(const Map& map, int64_t i, A v) {
  switch (map.type) {
    case at::kDouble: static_cast<double*>(map.data)[i] = v; break;
    case at::kHalf: static_cast<at::Half*>(map.data)[i] = static_cast<float>(v); break;
    case at::kBFloat16:
      static_cast<at::BFloat16*>(map.data)[i] = static_cast<float>(v);
      break;
    default: static_cast<float*>(map.data)[i] = static_cast<float>(v);
  }
}

// The gradient of the kernels is kept in float or double.
template <typename A>
__device__ void add(const Map& map, int64_t i, A v) {
  if (map.type == at::kDouble) {
    atomicAdd(static_cast<double*>(map.data) + i, static_cast<double>(v));
  } else {
    atomicAdd(static_cast<float*>(map.data) + i, static_cast<float>(v));
  }
}

// What a block works on: a strip of row y of image n and group g, sub-pixels q0 to
// q0 + P, and the `part`-th share of the channels.
struct Block {
  int64_t n;
  int g, y, x0, q0, part;
};

__device__ Block block_of(const Problem& p, int parts, int chunks, int P) {
  int64_t i = blockIdx.x;
  Block b;
  b.x0 = static_cast<int>(i % p.strips()) * kStrip;
  i /= p.strips();
  b.y = static_cast<int>(i % p.H);
  i /= p.H;
  b.part = static_cast<int>(i % parts);
  i /= parts;
  b.q0 = static_cast<int>(i % chunks) * P;
  i /= chunks;
  b.g = static_cast<int>(i % p.G);
  b.n = i / p.G;
  return b;
}

// Where sub-pixel q of source pixel (y, x) samples its kernel.
template <typename A>
__device__ void position(const Problem& p, const Block& b, int q, int y, int x,
                         Axis<A>& u, Axis<A>& v) {
  const int64_t i = p.offsets.at(b.n, b.g * 2 * p.Q() + q, y, x);
  const int64_t j = i + p.Q() * p.offsets.c;
  if (p.offsets.type == at::kDouble) {
    u = locate<A>(x, load<double>(p.offsets, i), p.W);
    v = locate<A>(y, load<double>(p.offsets, j), p.H);
  } else {
    u = locate<A>(x, load<A>(p.offsets, i), p.W);
    v = locate<A>(y, load<A>(p.offsets, j), p.H);
  }
}

// k~[t0 .. t0 + taps) of sub-pixel q of a source pixel, to[t * step].
template <typename A>
__device__ void sample(const Problem& p, const Block& b, int q, int y, int x, int t0,
                       int taps, A* to, int step) {
  const Map& k = p.kernels;
  if (p.carafe) {
    const int64_t i = k.at(b.n, b.g * p.T() + t0, static_cast<int64_t>(y) * p.s + q / p.s,
                           static_cast<int64_t>(x) * p.s + q % p.s);
    for (int t = 0; t < taps; ++t) to[t * step] = load<A>(k, i + t * k.c);
    return;
  }
  Axis<A> u, v;
  position(p, b, q, y, x, u, v);
  const Corners<A> corner = corners(u.weight, v.weight);
  const int64_t i = k.at(b.n, b.g * p.T() + t0, v.lower, u.lower);
  const int64_t right = u.step * k.x, down = v.step * k.y;
  for (int t = 0; t < taps; ++t) {
    const int64_t j = i + t * k.c;
    to[t * step] = corner.w[0] * load<A>(k, j) + corner.w[1] * load<A>(k, j + right) +
                   corner.w[2] * load<A>(k, j + down) +
                   corner.w[3] * load<A>(k, j + right + down);
  }
}

// Channels [c0, c0 + count) of rows y - r .. y + r and columns x0 - r .. of a strip,
// to[channel][row][col], zeros outside the map. Neighbouring threads read neighbours
// in memory in either layout.
template <typename T, typename A>
__device__ void load_patch(const Problem& p, const Block& b, int c0, int count, A* to) {
  const int r = p.K / 2, cols = kStrip + p.K - 1, size = p.K * cols;
  const int valid = min(count, p.Cg() - c0);
  const T* from = static_cast<const T*>(p.features.data);
  for (int i = threadIdx.x; i < count * size; i += kThreads<A>) {
    const int c = p.channels_last ? i % count : i / size;
    const int pixel = p.channels_last ? i / count : i % size;
    const int y = b.y - r + pixel / cols, x = b.x0 - r + pixel % cols;
    const bool inside = c < valid && y >= 0 && y < p.H && x >= 0 && x < p.W;
    to[c * size + pixel] =
        inside ? static_cast<A>(from[p.features.at(b.n, b.g * p.Cg() + c0 + c, y, x)])
               : A(0);
  }
}

// Channels [c0, c0 + count) of the gradient of the output: sub-pixels q0 .. q0 + P of
// `cols` source pixels of row y from x on, to[channel][q][col], zeros outside.
template <typename T, typename A, int P>
__device__ void load_grad(const Problem& p, const Block& b, int c0, int count, int y,
                          int x0, int cols, A* to) {
  const int valid = min(count, p.Cg() - c0);
  const T* from = static_cast<const T*>(p.grad.data);
  for (int i = threadIdx.x; i < count * P * cols; i += kThreads<A>) {
    const int c = p.channels_last ? i % count : i / (P * cols);
    const int rest = p.channels_last ? i / count : i % (P * cols);
    const int q = b.q0 + rest / cols, x = x0 + rest % cols;
    const bool inside = c < valid && y >= 0 && y < p.H && x >= 0 && x < p.W;
    to[c * P * cols + rest] =
        inside ? static_cast<A>(
                     from[p.grad.at(b.n, b.g * p.Cg() + c0 + c,
                                    static_cast<int64_t>(y) * p.s + q / p.s,
                                    static_cast<int64_t>(x) * p.s + q % p.s)])
               : A(0);
  }
}

// Two outputs of a row, stored at once.
template <typename T>
struct alignas(2 * sizeof(T)) Pair {
  T left, right;
};

// Shared: k[t][q][strip] and patch[channel][row][col] of kChannels channels.
template <typename T, typename A, int P>
__global__ void __launch_bounds__(kThreads<A>)
    forward_kernel(Problem p, int parts, int chunks) {
  extern __shared__ __align__(16) unsigned char shared[];
  const Block b = block_of(p, parts, chunks, P);
  const int lane = threadIdx.x % kStrip, share = threadIdx.x / kStrip;
  const int x = b.x0 + lane, taps = p.T(), cols = kStrip + p.K - 1;
  const int size = p.K * cols;
  A* k = reinterpret_cast<A*>(shared);
  A* patch = k + taps * P * kStrip;

  for (int i = threadIdx.x; i < kStrip * P * p.K; i += kThreads<A>) {
    const int q = i / kStrip % P, t0 = i / (kStrip * P) * p.K;
    if (b.x0 + lane < p.W) {
      sample(p, b, b.q0 + q, b.y, b.x0 + lane, t0, p.K,
             k + (t0 * P + q) * kStrip + lane, P * kStrip);
    }
  }
  const int per_part = (p.Cg() + parts - 1) / parts;
  const int end = min(p.Cg(), (b.part + 1) * per_part);
  for (int c0 = b.part * per_part; c0 < end; c0 += kChannels<A>) {
    __syncthreads();
    load_patch<T>(p, b, c0, kChannels<A>, patch);
    __syncthreads();
    A sum[P][kHold] = {};
    for (int t = 0; t < taps; ++t) {
      const A* f = patch + share * kHold * size + t / p.K * cols + t % p.K + lane;
      A value[kHold];
#pragma unroll
      for (int m = 0; m < kHold; ++m) value[m] = f[m * size];
#pragma unroll
      for (int q = 0; q < P; ++q) {
        const A weight = k[(t * P + q) * kStrip + lane];
#pragma unroll
        for (int m = 0; m < kHold; ++m) sum[q][m] += weight * value[m];
      }
    }
    if (x >= p.W) continue;
    T* out = static_cast<T*>(p.out.data);
#pragma unroll
    for (int m = 0; m < kHold; ++m) {
      const int c = c0 + share * kHold + m;
      if (c >= end) break;
#pragma unroll
      for (int q = 0; q < P; ++q) {
        const int i = (b.q0 + q) / p.s, j = (b.q0 + q) % p.s;
        T* to = out + p.out.at(b.n, b.g * p.Cg() + c, static_cast<int64_t>(b.y) * p.s + i,
                               static_cast<int64_t>(x) * p.s + j);
        if (P == 4 && p.s % 2 == 0 && p.out.x == 1) {
          // columns x s + j and x s + j + 1 belong to this thread
          if (q % 2 == 0) {
            *reinterpret_cast<Pair<T>*>(to) = {static_cast<T>(sum[q][m]),
                                               static_cast<T>(sum[(q + 1) % P][m])};
          }
        } else {
          *to = static_cast<T>(sum[q][m]);
        }
      }
    }
  }
}

// grad x[c][y][x] = sum over a, b, q of k~[t][q] * grad[c][q] at (y - a, x - b).
// Shared: k[b][q][col] of one row of taps and grad[channel][q][col].
template <typename T, typename A, int P>
__global__ void __launch_bounds__(kThreads<A>)
    grad_features_kernel(Problem p, int parts) {
  extern __shared__ __align__(16) unsigned char shared[];
  const Block strip = block_of(p, parts, 1, P);
  const int lane = threadIdx.x % kStrip, share = threadIdx.x / kStrip;
  const int r = p.K / 2, x = strip.x0 + lane, cols = kStrip + p.K - 1;
  A* k = reinterpret_cast<A*>(shared);
  A* grad = k + p.K * P * cols;

  const int c0 = strip.part * kChannels<A>;
  A sum[kHold] = {};
  for (int first = 0; first < p.Q(); first += P) {
    Block b = strip;
    b.q0 = first;
    for (int a = 0; a < p.K; ++a) {
      const int y = b.y - (a - r);
      if (y < 0 || y >= p.H) continue;  // the same for the whole block
      __syncthreads();
      for (int i = threadIdx.x; i < P * cols; i += kThreads<A>) {
        const int source = b.x0 - r + i % cols;
        A* to = k + i;
        if (source >= 0 && source < p.W) {
          sample(p, b, b.q0 + i / cols, y, source, a * p.K, p.K, to, P * cols);
        } else {
          for (int t = 0; t < p.K; ++t) to[t * P * cols] = 0;
        }
      }
      load_grad<T, A, P>(p, b, c0, kChannels<A>, y, b.x0 - r, cols, grad);
      __syncthreads();
      for (int t = 0; t < p.K; ++t) {
        const int col = lane + 2 * r - t;  // of source pixel x - (t - r)
#pragma unroll
        for (int q = 0; q < P; ++q) {
          const A weight = k[(t * P + q) * cols + col];
#pragma unroll
          for (int m = 0; m < kHold; ++m) {
            sum[m] += weight * grad[((share * kHold + m) * P + q) * cols + col];
          }
        }
      }
    }
  }
  if (x >= p.W) return;
  T* out = static_cast<T*>(p.out.data);
#pragma unroll
  for (int m = 0; m < kHold; ++m) {
    const int c = c0 + share * kHold + m;
    if (c < p.Cg()) {
      out[p.out.at(strip.n, strip.g * p.Cg() + c, strip.y, x)] = static_cast<T>(sum[m]);
    }
  }
}

// d k~[t][q] = sum over c of grad[c][q] * x[c][t]; from it the gradients of the offsets
// and, added at the sampled positions, of the kernels; or of the masks.
// Shared: grad[channel][q][strip], patch[channel][row][col], d k~[t][q][strip].
constexpr int kGradChannels = 8;

template <typename T, typename A, int P>
__global__ void __launch_bounds__(kThreads<A>)
    grad_kernels_kernel(Problem p, int chunks) {
  extern __shared__ __align__(16) unsigned char shared[];
  const Block b = block_of(p, 1, chunks, P);
  const int lane = threadIdx.x % kStrip, share = threadIdx.x / kStrip;
  const int x = b.x0 + lane, taps = p.T(), cols = kStrip + p.K - 1;
  const int size = p.K * cols, t_step = kHold * kShares<A>;
  A* grad = reinterpret_cast<A*>(shared);
  A* patch = grad + kGradChannels * P * kStrip;
  A* dk = patch + kGradChannels * size;
  A du = 0, dv = 0;  // of sub-pixel q0 + share, in the first P shares
  for (int t0 = 0; t0 < taps; t0 += t_step) {
    A sum[P][kHold] = {};
    int tap[kHold];
#pragma unroll
    for (int m = 0; m < kHold; ++m) {
      const int t = min(t0 + share * kHold + m, taps - 1);
      tap[m] = t / p.K * cols + t % p.K + lane;
    }
    for (int c0 = 0; c0 < p.Cg(); c0 += kGradChannels) {
      __syncthreads();
      load_grad<T, A, P>(p, b, c0, kGradChannels, b.y, b.x0, kStrip, grad);
      load_patch<T>(p, b, c0, kGradChannels, patch);
      __syncthreads();
      for (int c = 0; c < kGradChannels; ++c) {
#pragma unroll
        for (int m = 0; m < kHold; ++m) {
          const A value = patch[c * size + tap[m]];
#pragma unroll
          for (int q = 0; q < P; ++q) {
            sum[q][m] += grad[(c * P + q) * kStrip + lane] * value;
          }
        }
      }
    }
    // the last loop's barrier also ended the reads of d k~ of the previous taps
#pragma unroll
    for (int m = 0; m < kHold; ++m) {
#pragma unroll
      for (int q = 0; q < P; ++q) {
        dk[((share * kHold + m) * P + q) * kStrip + lane] = sum[q][m];
      }
    }
    __syncthreads();
    if (x >= p.W) continue;
    const int here = min(t_step, taps - t0);
    if (p.carafe) {
      for (int i = share; i < here * P; i += kShares<A>) {
        const int q = b.q0 + i % P;
        store(p.grad_kernels,
              p.grad_kernels.at(b.n, b.g * taps + t0 + i / P,
                                static_cast<int64_t>(b.y) * p.s + q / p.s,
                                static_cast<int64_t>(x) * p.s + q % p.s),
              dk[i * kStrip + lane]);
      }
      continue;
    }
    Axis<A> u, v;
    position(p, b, b.q0 + share % P, b.y, x, u, v);
    const Corners<A> corner = corners(u.weight, v.weight);
    if (share < P) {
      const Map& k = p.kernels;
      const int64_t i = k.at(b.n, b.g * taps + t0, v.lower, u.lower);
      const int64_t right = u.step * k.x, down = v.step * k.y;
      for (int t = 0; t < here; ++t) {
        const int64_t j = i + t * k.c;
        const A k00 = load<A>(k, j), k01 = load<A>(k, j + right),
                k10 = load<A>(k, j + down), k11 = load<A>(k, j + right + down);
        const A d = dk[(t * P + share) * kStrip + lane];
        du += d * slope(k00, k01, k10, k11, v.weight);
        dv += d * slope(k00, k10, k01, k11, u.weight);
      }
    }
    const Map& k = p.grad_kernels;
    const int64_t right = u.step * k.x, down = v.step * k.y;
    for (int t = share / P; t < here; t += kShares<A> / P) {
      const A d = dk[(t * P + share % P) * kStrip + lane];
      const int64_t i = k.at(b.n, b.g * taps + t0 + t, v.lower, u.lower);
      add(k, i, corner.w[0] * d);
      add(k, i + right, corner.w[1] * d);
      add(k, i + down, corner.w[2] * d);
      add(k, i + right + down, corner.w[3] * d);
    }
  }
  if (p.carafe || share >= P || x >= p.W) return;
  Axis<A> u, v;
  position(p, b, b.q0 + share, b.y, x, u, v);
  const int64_t i = p.grad_offsets.at(b.n, b.g * 2 * p.Q() + b.q0 + share, b.y, x);
  store(p.grad_offsets, i, u.inside ? du : A(0));
  store(p.grad_offsets, i + p.Q() * p.grad_offsets.c, v.inside ? dv : A(0));
}

// ---- from tensors to launches --------------------------------------------------

Map map_of(const at::Tensor& tensor) {
  if (!tensor.defined()) return {};
  // not data_ptr(), which copies a copy-on-write input; outputs are new and nobody's
  return {const_cast<void*>(tensor.const_data_ptr()),
          tensor.scalar_type(),
          tensor.stride(0),
          tensor.stride(1),
          tensor.stride(2),
          tensor.stride(3)};
}

Problem problem_of(const at::Tensor& features, const at::Tensor& kernels,
                   const at::Tensor& offsets, const at::Tensor& grad, int64_t K,
                   int64_t G, int64_t s) {
  const bool carafe = !offsets.defined();
  check_arguments(features, kernels, offsets, grad, carafe, K, G, s);
  Problem p{};
  p.N = features.size(0);
  p.C = static_cast<int>(features.size(1));
  p.H = static_cast<int>(features.size(2));
  p.W = static_cast<int>(features.size(3));
  p.K = static_cast<int>(K);
  p.G = static_cast<int>(G);
  p.s = static_cast<int>(s);
  p.channels_last = layout_of(features) == at::MemoryFormat::ChannelsLast;
  p.carafe = carafe;
  p.features = map_of(features);
  p.kernels = map_of(kernels);
  p.offsets = map_of(offsets);
  p.grad = map_of(grad);
  return p;
}

template <typename Kernel, typename... Args>
void launch(Kernel* kernel, int64_t blocks, int threads, int64_t bytes, int64_t K,
            Args... args) {
  if (blocks == 0) return;
  TORCH_CHECK_VALUE(blocks <= std::numeric_limits<int>::max(),
                    "the tensors are too large for one launch: ", blocks, " blocks");
  if (bytes > (48 << 10)) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
    // ours is taken back; an earlier one of somebody else stays
    if (error != cudaSuccess) (void)cudaGetLastError();
    TORCH_CHECK_VALUE(error == cudaSuccess, "kernel_size ", K, " needs ", bytes,
                      " bytes of shared memory, more than this GPU has; use "
                      "dlu_mmdet.ops.reference");
  }
  kernel<<<static_cast<unsigned>(blocks), threads, bytes,
           c10::cuda::getCurrentCUDAStream()>>>(args...);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

// f(T, A, P) for the type of the features and the scale factor.
template <typename F>
void dispatch(const at::Tensor& features, int64_t s, const F& f) {
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, features.scalar_type(), "dlu_mmdet", [&] {
        using A = at::opmath_type<scalar_t>;
        if (s % 2 == 0) {
          f(scalar_t{}, A{}, std::integral_constant<int, 4>{});
        } else {
          f(scalar_t{}, A{}, std::integral_constant<int, 1>{});
        }
      });
}

at::Tensor forward(const at::Tensor& features, const at::Tensor& kernels,
                   const at::Tensor& offsets, int64_t K, int64_t G, int64_t s) {
  Problem p = problem_of(features, kernels, offsets, {}, K, G, s);
  const c10::cuda::CUDAGuard guard(features.device());
  const at::Tensor out = at::empty({p.N, p.C, s * p.H, s * p.W}, features.options(),
                                   layout_of(features));
  p.out = map_of(out);
  dispatch(features, s, [&](auto t, auto a, auto P) {
    using T = decltype(t);
    using A = decltype(a);
    const int chunks = p.Q() / P;
    // all channels of a strip share its sampled kernels, unless blocks are too few
    const int64_t strips = p.N * G * chunks * p.H * p.strips();
    const int most = (p.Cg() + kChannels<A> - 1) / kChannels<A>;
    int parts = 1;
    while (parts * 2 <= most && strips * parts < 1024) parts *= 2;
    const int64_t bytes =
        sizeof(A) * (p.T() * P * kStrip + kChannels<A> * K * (kStrip + K - 1));
    launch(forward_kernel<T, A, P>, strips * parts, kThreads<A>, bytes, K, p, parts,
           chunks);
  });
  return out;
}

at::Tensor backward_features(const at::Tensor& grad, const at::Tensor& features,
                             const at::Tensor& kernels, const at::Tensor& offsets,
                             int64_t K, int64_t G, int64_t s) {
  Problem p = problem_of(features, kernels, offsets, grad, K, G, s);
  const c10::cuda::CUDAGuard guard(features.device());
  const at::Tensor out =
      at::empty(features.sizes(), features.options(), layout_of(features));
  p.out = map_of(out);
  dispatch(features, s, [&](auto t, auto a, auto P) {
    using T = decltype(t);
    using A = decltype(a);
    const int parts = (p.Cg() + kChannels<A> - 1) / kChannels<A>;
    const int64_t bytes =
        sizeof(A) * (K + kChannels<A>) * P * (kStrip + K - 1);
    launch(grad_features_kernel<T, A, P>, p.N * G * parts * p.H * p.strips(),
           kThreads<A>, bytes, K, p, parts);
  });
  return out;
}

std::tuple<at::Tensor, at::Tensor> backward_kernels(
    const at::Tensor& grad, const at::Tensor& features, const at::Tensor& kernels,
    const at::Tensor& offsets, int64_t K, int64_t G, int64_t s) {
  Problem p = problem_of(features, kernels, offsets, grad, K, G, s);
  const c10::cuda::CUDAGuard guard(features.device());
  at::Tensor grad_kernels, grad_offsets;
  if (p.carafe) {
    grad_kernels = at::empty(kernels.sizes(), kernels.options(), layout_of(kernels));
  } else {
    // atomic additions of floats, in no fixed order
    at::globalContext().alertNotDeterministic("dlu_mmdet::dlu_backward_kernels");
    const bool is_half = at::isReducedFloatingType(kernels.scalar_type());
    grad_kernels = at::empty(
        kernels.sizes(),
        is_half ? kernels.options().dtype(at::kFloat) : kernels.options(),
        layout_of(kernels)).zero_();
    grad_offsets = at::empty(offsets.sizes(), offsets.options(), layout_of(offsets));
  }
  p.grad_kernels = map_of(grad_kernels);
  p.grad_offsets = map_of(grad_offsets);
  dispatch(features, s, [&](auto t, auto a, auto P) {
    using T = decltype(t);
    using A = decltype(a);
    const int chunks = p.Q() / P;
    const int64_t bytes =
        sizeof(A) * (kGradChannels * (P * kStrip + K * (kStrip + K - 1)) +
                     kChannels<A> * P * kStrip);
    launch(grad_kernels_kernel<T, A, P>, p.N * G * chunks * p.H * p.strips(),
           kThreads<A>, bytes, K, p, chunks);
  });
  return {grad_kernels.to(kernels.scalar_type()), grad_offsets};
}

at::Tensor carafe(const at::Tensor& features, const at::Tensor& masks, int64_t K,
                  int64_t G, int64_t s) {
  return forward(features, masks, {}, K, G, s);
}

at::Tensor carafe_backward_features(const at::Tensor& grad, const at::Tensor& features,
                                    const at::Tensor& masks, int64_t K, int64_t G,
                                    int64_t s) {
  return backward_features(grad, features, masks, {}, K, G, s);
}

at::Tensor carafe_backward_masks(const at::Tensor& grad, const at::Tensor& features,
                                 const at::Tensor& masks, int64_t K, int64_t G,
                                 int64_t s) {
  return std::get<0>(backward_kernels(grad, features, masks, {}, K, G, s));
}

}  // namespace

TORCH_LIBRARY_IMPL(dlu_mmdet, CUDA, m) {
  m.impl("dlu", &forward);
  m.impl("dlu_backward_features", &backward_features);
  m.impl("dlu_backward_kernels", &backward_kernels);
  m.impl("carafe", &carafe);
  m.impl("carafe_backward_features", &carafe_backward_features);
  m.impl("carafe_backward_masks", &carafe_backward_masks);
}

}  // namespace dlu_mmdet
