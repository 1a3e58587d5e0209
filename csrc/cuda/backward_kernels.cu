// d k~[t][q] = sum over c of grad[c][q] * x[c][t]; from it the gradients of the offsets
// and, added at the sampled positions, of the kernels; or of the masks.
//
// A task is B taps of one tap row. `together` tasks are worked on at a time, each by
// `slices` warps that share the channels, so that the gradient comes from the
// first-level cache for all tasks but the first:
//
//     warp       0   1   2   3   4     5   6   7   8   9          K = 5, B = 5
//     tap row    0   1   2   3   4     0   1   2   3   4
//     channels   0, 2, 4, 6 ...        1, 3, 5, 7 ...
//
// Shared: dk[task, tap][q][pixel] of the tasks at hand, then the sums of the offsets'
// gradients, uv[axis][q][pixel].
#include <ATen/Context.h>
#include <torch/library.h>

#include <tuple>

#include "launch.cuh"

namespace dlu_mmdet {
namespace {

constexpr int kMostTogether = 8;
constexpr int kLeastWarps = 8, kMostThreads = 32 * 10;
// Values of a tap in dk; four more than there are, so that eight taps of a pixel lie in
// different banks.
constexpr int kTap = kSub * kStrip + 4;

template <typename A>
__device__ void add(const Map& map, int64_t i, A v) {
  if (v == 0) return;  // at the start all corners but one have no weight
  if (map.type == at::kDouble) {
    atomicAdd(static_cast<double*>(map.data) + i, static_cast<double>(v));
  } else {
    atomicAdd(static_cast<float*>(map.data) + i, static_cast<float>(v));
  }
}

// The tasks from `first` on are summed up in dk: to the gradients of their kernels and
// offsets. Eight threads share a sub-pixel of a source pixel, its taps in turn.
template <typename A, int B>
__device__ void scatter(const Problem& p, const Block& b, int first, int tasks,
                        const A* dk, A* uv) {
  const int groups = padded(p.K, B) / B;
  const int lane = threadIdx.x % kShare, threads = blockDim.x / kShare;
  // whole warps, for the sums over eight lanes
  for (int i = threadIdx.x / kShare; i < kSub * kStrip; i += threads) {
    const int q = i / kStrip;
    const Pixel own(p, b, i % kStrip);
    const bool valid = own.valid && b.q0 + q < p.Q();
    A du = 0, dv = 0;
    if (valid && p.carafe) {
      for (int j = lane; j < tasks * B; j += kShare) {
        const int task = first + j / B, tap = task % groups * B + j % B;
        if (tap >= p.K) continue;
        store(p.grad_kernels,
              p.grad_kernels.at(b.n, b.g * p.T() + task / groups * p.K + tap,
                                static_cast<int64_t>(own.y) * p.s + (b.q0 + q) / p.s,
                                static_cast<int64_t>(own.x) * p.s + (b.q0 + q) % p.s),
              dk[j * kTap + i]);
      }
    } else if (valid) {
      const Position<A> at(p, b, b.q0 + q, own.y, own.x);
      const Corners<A> corner = corners(at.u.weight, at.v.weight);
      const Map& to = p.grad_kernels;
      const int64_t target = to.at(b.n, b.g * p.T(), at.v.lower, at.u.lower);
      const int64_t right = at.u.step * to.x, down = at.v.step * to.y;
      visit(p.kernels, [&](const auto* k) {
        k += at.lower;
        for (int j = lane; j < tasks * B; j += kShare) {
          const int task = first + j / B, tap = task % groups * B + j % B;
          if (tap >= p.K) continue;
          const int t = task / groups * p.K + tap;
          const A d = dk[j * kTap + i];
          const auto* from = k + t * p.kernels.c;
          const A k00 = static_cast<A>(from[0]), k01 = static_cast<A>(from[at.right]),
                  k10 = static_cast<A>(from[at.down]),
                  k11 = static_cast<A>(from[at.right + at.down]);
          du += d * slope(k00, k01, k10, k11, at.v.weight);
          dv += d * slope(k00, k10, k01, k11, at.u.weight);
          const int64_t at_tap = target + t * to.c;
          add(to, at_tap, corner.w[0] * d);
          add(to, at_tap + right, corner.w[1] * d);
          add(to, at_tap + down, corner.w[2] * d);
          add(to, at_tap + right + down, corner.w[3] * d);
        }
      });
      if (!at.u.inside) du = 0;
      if (!at.v.inside) dv = 0;
    }
#pragma unroll
    for (int step = 1; step < kShare; step *= 2) {
      du += __shfl_xor_sync(kAllLanes, du, step);
      dv += __shfl_xor_sync(kAllLanes, dv, step);
    }
    if (lane == 0) {
      uv[i] += du;
      uv[kSub * kStrip + i] += dv;
    }
  }
}

// Adds the sums of the slices of each task in turn, so in a fixed order, and calls
// put(true) where there is nothing yet.
template <typename F>
__device__ void in_turn(int slices, int slice, const F& put) {
  for (int turn = 0; turn < slices; ++turn) {
    if (slice == turn) put(turn == 0);
    __syncthreads();
  }
}

template <typename A>
__device__ void begin(A* uv) {
  for (int i = threadIdx.x; i < 2 * kSub * kStrip; i += blockDim.x) uv[i] = 0;
  __syncthreads();
}

// The gradients of the offsets, when all taps are in.
template <typename A>
__device__ void finish(const Problem& p, const Block& b, const A* uv) {
  if (p.carafe) return;
  __syncthreads();
  for (int i = threadIdx.x; i < 2 * kSub * kStrip; i += blockDim.x) {
    const int axis = i / (kSub * kStrip), q = b.q0 + i / kStrip % kSub;
    const Pixel own(p, b, i % kStrip);
    if (q < p.Q() && own.valid) {
      store(p.grad_offsets,
            p.grad_offsets.at(b.n, (b.g * 2 + axis) * p.Q() + q, own.y, own.x), uv[i]);
    }
  }
}

// A lane is a pixel and holds the sums of its task, B taps x 4 sub-pixels.
template <typename T, int B>
__global__ void __launch_bounds__(kMostThreads, 1) backward_kernels_planes(Problem p) {
  using A = at::opmath_type<T>;
  extern __shared__ __align__(16) unsigned char shared[];
  A* dk = reinterpret_cast<A*>(shared);
  A* uv = dk + p.together * B * kTap;
  const Block b = block_of(p, p.chunks());
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int place = warp % p.together, slice = warp / p.together;
  const int r = p.K / 2, groups = padded(p.K, B) / B;
  const Pixel own(p, b, lane);
  const int64_t plane = p.plane();
  const SubPixels sub(p, b.q0, p.W * p.s, 1);
  begin(uv);

  for (int first = 0; first < p.K * groups; first += p.together) {
    const int tasks = min(p.together, p.K * groups - first);
    const int task = first + min(place, tasks - 1);  // a warp without one repeats another
    const int y = own.y + task / groups - r, tap = task % groups * B;
    const int x = own.x + tap - r;
    bool inside[B];
#pragma unroll
    for (int j = 0; j < B; ++j) {
      inside[j] = tap + j < p.K && y >= 0 && y < p.H && x + j >= 0 && x + j < p.W;
    }
    const int64_t c = b.among(p.C, b.c0 + slice);
    A sum[B][kSub] = {};
    const auto run = [&](auto pairs) {
      const T* from = static_cast<const T*>(p.features) + c * plane +
                      static_cast<int64_t>(y) * p.W + x;
      const T* grad = static_cast<const T*>(p.grad) + c * p.Q() * plane +
                      (static_cast<int64_t>(own.y) * p.s * p.W + own.x) * p.s;
      const int64_t step = p.slices * plane, grad_step = step * p.Q();
#pragma unroll 4
      for (int i = b.c0 + slice; i < b.c1; i += p.slices) {
        const auto g = load_sub_pixels<pairs, A>(grad, sub, true);
        A value[B];
#pragma unroll
        for (int j = 0; j < B; ++j) value[j] = inside[j] ? static_cast<A>(from[j]) : A(0);
#pragma unroll
        for (int j = 0; j < B; ++j) {
#pragma unroll
          for (int q = 0; q < kSub; ++q) sum[j][q] += g.v[q] * value[j];
        }
        from += step;
        grad += grad_step;
      }
    };
    p.pairs ? run(std::true_type{}) : run(std::false_type{});
    in_turn(p.slices, slice, [&](bool none) {
      if (place >= tasks) return;
#pragma unroll
      for (int j = 0; j < B; ++j) {
#pragma unroll
        for (int q = 0; q < kSub; ++q) {
          A* to = dk + (place * B + j) * kTap + q * kStrip + lane;
          *to = none ? sum[j][q] : *to + sum[j][q];
        }
      }
    });
    scatter<A, B>(p, b, first, tasks, dk, uv);
    __syncthreads();
  }
  finish(p, b, uv);
}

// Eight lanes share a pixel, a warp takes four pixels at a time and every slice-th four.
template <typename T, int V, int B>
__global__ void __launch_bounds__(kMostThreads, 1) backward_kernels_pixels(Problem p) {
  using A = at::opmath_type<T>;
  constexpr int four = 32 / kShare;
  extern __shared__ __align__(16) unsigned char shared[];
  A* dk = reinterpret_cast<A*>(shared);
  A* uv = dk + p.together * B * kTap;
  const Block b = block_of(p, p.chunks());
  const int lane = threadIdx.x % kShare, warp = threadIdx.x / 32;
  const int place = warp % p.together, slice = warp / p.together;
  const int r = p.K / 2, groups = padded(p.K, B) / B;
  const SubPixels sub(p, b.q0, p.W * p.s * p.C, p.C);
  begin(uv);

  for (int first = 0; first < p.K * groups; first += p.together) {
    const int tasks = min(p.together, p.K * groups - first);
    const int task = first + min(place, tasks - 1);
    const int tap = task % groups * B;
    for (int quad = slice; quad < kStrip / four; quad += p.slices) {
      const int pixel = quad * four + threadIdx.x % 32 / kShare;
      const Pixel own(p, b, pixel);
      const int y = own.y + task / groups - r, x = own.x + tap - r;
      bool inside[B];
#pragma unroll
      for (int j = 0; j < B; ++j) {
        inside[j] = tap + j < p.K && y >= 0 && y < p.H && x + j >= 0 && x + j < p.W;
      }
      const T* from = static_cast<const T*>(p.features) +
                      (b.among(p.H, y) * p.W + x) * p.C;
      const T* grad = static_cast<const T*>(p.grad) +
                      (b.among(p.H, own.y) * p.s * p.W + own.x) * p.s * p.C;
      A sum[B][kSub] = {};
      for (int c = b.c0 + lane * V; c < b.c1; c += kShare * V) {
        Vec<A, V> g[kSub];
#pragma unroll
        for (int q = 0; q < kSub; ++q) {
          g[q] = load_channels<A, V>(grad + sub.at[q] + c, q < sub.count);
        }
#pragma unroll
        for (int j = 0; j < B; ++j) {
          const auto value =
              load_channels<A, V>(from + static_cast<int64_t>(j) * p.C + c, inside[j]);
#pragma unroll
          for (int q = 0; q < kSub; ++q) {
#pragma unroll
            for (int i = 0; i < V; ++i) sum[j][q] += g[q].v[i] * value.v[i];
          }
        }
      }
#pragma unroll
      for (int j = 0; j < B; ++j) {
#pragma unroll
        for (int q = 0; q < kSub; ++q) {
#pragma unroll
          for (int step = 1; step < kShare; step *= 2) {
            sum[j][q] += __shfl_xor_sync(kAllLanes, sum[j][q], step);
          }
          if (lane == 0 && place < tasks) {
            dk[(place * B + j) * kTap + q * kStrip + pixel] = sum[j][q];
          }
        }
      }
    }
    __syncthreads();
    scatter<A, B>(p, b, first, tasks, dk, uv);
    __syncthreads();
  }
  finish(p, b, uv);
}

std::tuple<at::Tensor, at::Tensor> backward_kernels(
    const at::Tensor& grad, const at::Tensor& features, const at::Tensor& kernels,
    const at::Tensor& offsets, int64_t K, int64_t G, int64_t s) {
  Call call(features, kernels, offsets, grad, K, G, s);
  Problem& p = call.p;
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
  const int64_t chunks = p.chunks();
  dispatch(features, [&](auto t) {
    using T = decltype(t);
    dispatch_taps(p.K, [&](auto B) {
      const int tasks = p.K * (padded(p.K, B) / B);
      p.together = std::min(tasks, kMostTogether);
      p.slices = (kLeastWarps + p.together - 1) / p.together;
      const int64_t bytes = sizeof(at::opmath_type<T>) *
                            (p.together * B * kTap + 2 * kSub * kStrip);
      const auto run = [&](auto* kernel) {
        launch(kernel, p, call.blocks(chunks), 32 * p.together * p.slices, bytes);
      };
      if (!call.channels_last) {
        run(backward_kernels_planes<T, B>);
      } else if (call.vectors()) {
        run(backward_kernels_pixels<T, 4, B>);
      } else {
        run(backward_kernels_pixels<T, 1, B>);
      }
    });
  });
  return {grad_kernels.to(kernels.scalar_type()), grad_offsets};
}

at::Tensor carafe_backward_masks(const at::Tensor& grad, const at::Tensor& features,
                                 const at::Tensor& masks, int64_t K, int64_t G,
                                 int64_t s) {
  return std::get<0>(backward_kernels(grad, features, masks, {}, K, G, s));
}

}  // namespace

TORCH_LIBRARY_IMPL(dlu_mmdet, CUDA, m) {
  m.impl("dlu_backward_kernels", &backward_kernels);
  m.impl("carafe_backward_masks", &carafe_backward_masks);
}

}  // namespace dlu_mmdet
