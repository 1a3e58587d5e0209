// d k~[t][q] = sum over c of grad[c][q] * x[c][t]; from it the gradients of the offsets
// and, added at the sampled positions, of the kernels; or of the masks.
//
// A task is a row of features and B of its pixels: B taps of one tap row, and in NCHW,
// where a lane owns two pixels one above the other, also of the tap row above for the
// lower one. `together` tasks are worked on at a time, each by `slices` warps, so that
// the gradient comes from the first-level cache for all tasks but the first. On a small
// map several blocks share the tasks of a strip. All tasks of one:
//
//     warp                  0    1    2    3    4    5      K = 5, B = 5, NCHW
//     row of features      -2   -1    0    1    2    3      from the upper pixel
//     tap rows              0   1,0  2,1  3,2  4,3   4
//
// Shared: dk[pixel][task, tap][q][lane] of the tasks at hand, the sums of the offsets'
// gradients uv[pixel][axis][q][lane].
#include <ATen/Context.h>
#include <torch/library.h>

#include <tuple>

#include "launch.cuh"

namespace dlu_mmdet {
namespace {

constexpr int kMostTogether = 8, kMostThreads = 32 * kMostTogether;
constexpr int kUnit = kSub * kStrip;
// Values of a tap in dk; four more than there are, so that eight taps of a pixel lie in
// different banks.
constexpr int kTap = kUnit + 4;

template <typename A>
__device__ void add(const Map& map, int64_t i, A v) {
  if (v == 0) return;  // at the start all corners but one have no weight
  if (map.type == at::kDouble) {
    atomicAdd(static_cast<double*>(map.data) + i, static_cast<double>(v));
  } else {
    atomicAdd(static_cast<float*>(map.data) + i, static_cast<float>(v));
  }
}

// Number of a tap, a * K + b, of the pixel whose tap row 0 is row `upper` of the tasks,
// for tap j of the tasks from `first` on; -1 if it has none.
template <int B>
__device__ int tap_of(const Geometry& p, int groups, int first, int j, int upper) {
  const int task = first + j / B, a = task / groups - upper;
  const int tap = task % groups * B + j % B;
  return a >= 0 && a < p.K && tap < p.K ? a * p.K + tap : -1;
}

// From dk of a sub-pixel q of source pixel (y, x) to the gradient of its kernels, taps
// start, start + step .. of those at hand, and of its offsets: du and dv.
template <typename A, int B>
__device__ void scatter(const Geometry& p, const Block& b, int q, int y, int x,
                        const A* dk, const int* number, int count, int start, int step,
                        A& du, A& dv) {
  if (p.carafe) {
    for (int j = start; j < count; j += step) {
      if (number[j] < 0) continue;
      store(p.grad_kernels,
            p.grad_kernels.at(b.n, b.g * p.T() + number[j],
                              static_cast<int64_t>(y) * p.s + q / p.s,
                              static_cast<int64_t>(x) * p.s + q % p.s),
            dk[j * kTap]);
    }
    return;
  }
  const Position<A> at(p, b, q, y, x);
  const Corners<A> corner = corners(at.u.weight, at.v.weight);
  const Map& to = p.grad_kernels;
  const int64_t target = to.at(b.n, b.g * p.T(), at.v.lower, at.u.lower);
  const int64_t right = at.u.step * to.x, down = at.v.step * to.y;
  A u = 0, v = 0;
  visit(p.kernels, [&](const auto* k) {
    k += at.lower;
    for (int j = start; j < count; j += step) {
      if (number[j] < 0) continue;
      const A d = dk[j * kTap];
      const auto* from = k + number[j] * p.kernels.c;
      const A k00 = static_cast<A>(from[0]), k01 = static_cast<A>(from[at.right]),
              k10 = static_cast<A>(from[at.down]),
              k11 = static_cast<A>(from[at.right + at.down]);
      u += d * slope(k00, k01, k10, k11, at.v.weight);
      v += d * slope(k00, k10, k01, k11, at.u.weight);
      const int64_t i = target + number[j] * to.c;
      add(to, i, corner.w[0] * d);
      add(to, i + right, corner.w[1] * d);
      add(to, i + down, corner.w[2] * d);
      add(to, i + right + down, corner.w[3] * d);
    }
  });
  du = at.u.inside ? u : A(0);
  dv = at.v.inside ? v : A(0);
}

// The shared memory of a block; rows is the number of pixels of a lane.
template <typename A, int B>
struct Sums {
  A *dk, *uv;
  int *number;

  __device__ Sums(void* shared, int together, int rows) {
    dk = static_cast<A*>(shared);
    uv = dk + rows * together * B * kTap;
    number = reinterpret_cast<int*>(uv + rows * 2 * kUnit);
    for (int i = threadIdx.x; i < rows * 2 * kUnit; i += blockDim.x) uv[i] = 0;
  }
  static int64_t bytes(int together, int rows) {
    const int taps = together * B;
    return rows * (sizeof(A) * (taps * kTap + 2 * kUnit) + sizeof(int) * taps);
  }
  __device__ void number_taps(const Geometry& p, int together, int groups, int first,
                              int rows) {
    const int taps = together * B;
    for (int i = threadIdx.x; i < rows * taps; i += blockDim.x) {
      number[i] = tap_of<B>(p, groups, first, i % taps, i / taps);
    }
  }
};

// The gradients of the offsets, when all taps of the block are in.
template <int ROWS, typename A>
__device__ void add_to_offsets(const Geometry& p, const Block& b, const A* uv) {
  if (p.carafe) return;
  __syncthreads();
  for (int i = threadIdx.x; i < ROWS * 2 * kUnit; i += blockDim.x) {
    const int axis = i / kUnit % 2, q = b.q0 + i / kStrip % kSub;
    const Pixel<ROWS> own(p, b, i % kStrip);
    const int y = own.y + i / (2 * kUnit);
    if (q < p.Q() && own.valid && y < p.H) {
      add(p.grad_offsets,
          p.grad_offsets.at(b.n, (b.g * 2 + axis) * p.Q() + q, y, own.x), uv[i]);
    }
  }
}

// A lane owns two pixels and holds the sums of its task, of each B taps x 4 sub-pixels.
template <typename T, int B>
__global__ void __launch_bounds__(kMostThreads, kPixelBlocks<at::opmath_type<T>>)
    backward_kernels_planes(DLU_ARGUMENT Geometry p, DLU_ARGUMENT Plan plan) {
  using A = at::opmath_type<T>;
  extern __shared__ __align__(16) unsigned char shared[];
  Sums<A, B> sums(shared, plan.together, kPair);
  const Block b = block_of(p, plan);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int place = warp % plan.together, slice = warp / plan.together;
  const int r = p.K / 2, groups = padded(p.K, B) / B;
  const int begin = b.share * plan.per_share;
  const int end = min(begin + plan.per_share, (p.K + 1) * groups);
  // of the channels, known before the loop over them so that loads of two may overlap
  const int passes = (b.c1 - b.c0 - slice + plan.slices - 1) / plan.slices;
  const Pixel<kPair> own(p, b, lane);
  const int64_t plane = p.plane(), wide = p.Q() * static_cast<int64_t>(p.W);
  const SubPixels sub(p, b.q0, p.W * p.s, 1);

  for (int first = begin; first < end; first += plan.together) {
    const int tasks = min(plan.together, end - first);
    const int task = first + min(place, tasks - 1);  // a warp without one repeats another
    const int row = task / groups, tap = task % groups * B;
    const int y = own.y + row - r, x = own.x + tap - r;
    // the last row of an odd map has no pixel below: its gradient is read twice
    const int64_t below = own.y + 1 < p.H ? wide : 0;
    bool inside[B];
#pragma unroll
    for (int j = 0; j < B; ++j) {
      inside[j] = tap + j < p.K && within(y, p.H) && within(x + j, p.W);
    }
    A sum[kPair][B][kSub] = {};
    // of the pixels [upper, beyond) of a lane
    const auto run = [&](auto pairs, auto upper, auto beyond) {
      const int64_t c = b.among(p.C, b.c0 + slice);
      const T* from = static_cast<const T*>(p.features) + c * plane +
                      static_cast<int64_t>(y) * p.W + x;
      const T* grad = static_cast<const T*>(p.grad) + c * p.Q() * plane +
                      own.y * wide + static_cast<int64_t>(own.x) * p.s;
      const int64_t step = plan.slices * plane, grad_step = step * p.Q();
#pragma unroll 2
      for (int i = 0; i < passes; ++i) {
        Vec<A, kSub> g[kPair];
        A value[B];
#pragma unroll
        for (int u = upper; u < beyond; ++u) {
          g[u] = load_sub_pixels<pairs, A>(grad + u * below, sub, true);
        }
#pragma unroll
        for (int j = 0; j < B; ++j) value[j] = inside[j] ? static_cast<A>(from[j]) : A(0);
#pragma unroll
        for (int u = upper; u < beyond; ++u) {
#pragma unroll
          for (int j = 0; j < B; ++j) {
#pragma unroll
            for (int q = 0; q < kSub; ++q) sum[u][j][q] += g[u].v[q] * value[j];
          }
        }
        from += step;
        grad += grad_step;
      }
    };
    if (!p.pairs) {
      run(std::false_type{}, Index<0>{}, Index<2>{});
    } else if (row == 0) {
      run(std::true_type{}, Index<0>{}, Index<1>{});
    } else if (row == p.K) {
      run(std::true_type{}, Index<1>{}, Index<2>{});
    } else {
      run(std::true_type{}, Index<0>{}, Index<2>{});
    }

    __syncthreads();  // the taps before these are scattered
    sums.number_taps(p, plan.together, groups, first, kPair);
    // the slices of a task add their sums in turn, so in a fixed order
    for (int turn = 0; turn < plan.slices; ++turn) {
      if (slice == turn && place < tasks) {
#pragma unroll
        for (int u = 0; u < kPair; ++u) {
#pragma unroll
          for (int j = 0; j < B; ++j) {
#pragma unroll
            for (int q = 0; q < kSub; ++q) {
              A* to = sums.dk + ((u * plan.together + place) * B + j) * kTap +
                      q * kStrip + lane;
              *to = turn == 0 ? sum[u][j][q] : *to + sum[u][j][q];
            }
          }
        }
      }
      __syncthreads();
    }
    for (int unit = warp; unit < kPair * kSub; unit += blockDim.x / 32) {
      const int u = unit / kSub, q = unit % kSub, taps = plan.together * B;
      if (!own.valid || own.y + u >= p.H || b.q0 + q >= p.Q()) continue;
      A du = 0, dv = 0;
      scatter<A, B>(p, b, b.q0 + q, own.y + u, own.x,
                    sums.dk + u * taps * kTap + q * kStrip + lane,
                    sums.number + u * taps, tasks * B, 0, 1, du, dv);
      A* to = sums.uv + u * 2 * kUnit + q * kStrip + lane;
      to[0] += du;
      to[kUnit] += dv;
    }
  }
  add_to_offsets<kPair>(p, b, sums.uv);
}

// Eight lanes share a pixel, a warp takes four pixels at a time and every slice-th four.
template <typename T, int V, int B>
__global__ void __launch_bounds__(kMostThreads, kPixelBlocks<at::opmath_type<T>>)
    backward_kernels_pixels(DLU_ARGUMENT Geometry p, DLU_ARGUMENT Plan plan) {
  using A = at::opmath_type<T>;
  constexpr int four = 32 / kShare;
  extern __shared__ __align__(16) unsigned char shared[];
  Sums<A, B> sums(shared, plan.together, 1);
  const Block b = block_of(p, plan);
  const int lane = threadIdx.x % kShare, warp = threadIdx.x / 32;
  const int place = warp % plan.together, slice = warp / plan.together;
  const int r = p.K / 2, groups = padded(p.K, B) / B;
  const int begin = b.share * plan.per_share;
  const int end = min(begin + plan.per_share, p.K * groups);
  const SubPixels sub(p, b.q0, p.W * p.s * p.C, p.C);

  for (int first = begin; first < end; first += plan.together) {
    const int tasks = min(plan.together, end - first);
    const int task = first + min(place, tasks - 1);
    const int tap = task % groups * B;
    __syncthreads();
    sums.number_taps(p, plan.together, groups, first, 1);
    for (int quad = slice; quad < kStrip / four; quad += plan.slices) {
      const int pixel = quad * four + threadIdx.x % 32 / kShare;
      const Pixel<1> own(p, b, pixel);
      const int y = own.y + task / groups - r, x = own.x + tap - r;
      bool inside[B];
#pragma unroll
      for (int j = 0; j < B; ++j) {
        inside[j] = tap + j < p.K && within(y, p.H) && within(x + j, p.W);
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
            sums.dk[(place * B + j) * kTap + q * kStrip + pixel] = sum[j][q];
          }
        }
      }
    }
    __syncthreads();
    // eight lanes share a sub-pixel of a pixel; whole warps, for the sums over lanes
    for (int i = threadIdx.x / kShare; i < kUnit; i += blockDim.x / kShare) {
      const int q = b.q0 + i / kStrip;
      const Pixel<1> own(p, b, i % kStrip);
      A du = 0, dv = 0;
      if (own.valid && q < p.Q()) {
        scatter<A, B>(p, b, q, own.y, own.x, sums.dk + i, sums.number, tasks * B, lane,
                      kShare, du, dv);
      }
#pragma unroll
      for (int step = 1; step < kShare; step *= 2) {
        du += __shfl_xor_sync(kAllLanes, du, step);
        dv += __shfl_xor_sync(kAllLanes, dv, step);
      }
      if (lane == 0) {
        sums.uv[i] += du;
        sums.uv[kUnit + i] += dv;
      }
    }
  }
  add_to_offsets<1>(p, b, sums.uv);
}

// Strips are `rows` rows high; `together` of the tasks need bytes(together).
template <typename F>
Plan plan_backward_kernels(const Geometry& p, int rows, int tasks, int resident,
                           const F& bytes) {
  Plan plan;
  plan.tiles = strips(p, rows);
  plan.chunks = p.chunks();
  plan.per_part = p.Cg();
  plan.together = std::min(tasks, kMostTogether);
  const int64_t limit = shared_memory_limit();
  while (plan.together > 1 && bytes(plan.together) > limit) --plan.together;
  plan.bytes = bytes(plan.together);
  const int shares = blocks_to_share(p, plan, tasks, resident);
  plan.per_share = (tasks + shares - 1) / shares;
  plan.shares = (tasks + plan.per_share - 1) / plan.per_share;
  plan.together = std::min(plan.together, plan.per_share);
  plan.bytes = bytes(plan.together);
  plan.slices = kMostTogether / plan.together;
  return plan;
}

// A result that blocks add to: zeros, in float32 at least.
at::Tensor sums_of(const at::Tensor& like) {
  const auto type = at::isReducedFloatingType(like.scalar_type()) ? at::kFloat
                                                                  : like.scalar_type();
  return at::empty(like.sizes(), like.options().dtype(type), layout_of(like)).zero_();
}

std::tuple<at::Tensor, at::Tensor> backward_kernels(
    const at::Tensor& grad, const at::Tensor& features, const at::Tensor& kernels,
    const at::Tensor& offsets, int64_t K, int64_t G, int64_t s) {
  const Inputs inputs(features, kernels, offsets, grad, K, G, s);
  const c10::cuda::CUDAGuard guard(features.device());
  at::Tensor grad_kernels, grad_offsets;
  if (!offsets.defined()) {
    grad_kernels = at::empty(kernels.sizes(), kernels.options(), layout_of(kernels));
  } else {
    // atomic additions of floats, in no fixed order
    at::globalContext().alertNotDeterministic("dlu_mmdet::dlu_backward_kernels");
    grad_kernels = sums_of(kernels);
    grad_offsets = sums_of(offsets);
  }
  const Geometry p = inputs.geometry({}, grad_kernels, grad_offsets);
  dispatch(features, [&](auto t) {
    using T = decltype(t);
    using A = at::opmath_type<T>;
    dispatch_taps(p.K, [&](auto B) {
      const int rows = inputs.channels_last ? 1 : kPair;
      const int tasks = (p.K + rows - 1) * (padded(p.K, B) / B);
      const auto bytes = [&](int together) { return Sums<A, B>::bytes(together, rows); };
      const Plan plan = plan_backward_kernels(p, rows, tasks, kPixelBlocks<A>, bytes);
      const auto run = [&](auto* kernel) {
        launch(kernel, p, plan, 32 * plan.together * plan.slices);
      };
      if (!inputs.channels_last) {
        run(backward_kernels_planes<T, B>);
      } else if (inputs.vectors()) {
        run(backward_kernels_pixels<T, 4, B>);
      } else {
        run(backward_kernels_pixels<T, 1, B>);
      }
    });
  });
  if (grad_offsets.defined()) grad_offsets = grad_offsets.to(offsets.scalar_type());
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
