// grad x[c][y][x] = sum over a, b, q of k~[a, b][q] * grad[c][q], both of the source
// pixel (y - a, x - b). A block makes `rows` target rows from rows + K - 1 source rows.
#include <torch/library.h>

#include "launch.cuh"

namespace dlu_mmdet {
namespace {

// A lane owns a source pixel and holds its gradient, four sub-pixels of eight channels.
// For each target row that the source row reaches, the sums of B taps travel one lane a
// tap, so that they end at the lane of their target:
//
//     source      l-2     l-1      l          a lane's B taps point to B targets;
//                   \       \      |          the chain shifts the sum by one lane
//     target lane    +-------+---> l          before it adds the next tap
//
// so the last 32 - (B - 1) lanes hold whole targets. More than B taps: a chain for each
// B of them, from source pixels that lie B further.
// Shared: k[tap row][target row][tap, padded to B][lane][q], zeros outside the map.
template <typename T, int B>
__global__ void
__launch_bounds__(kPlaneThreads, kPlaneBlocks<at::opmath_type<T>>)
    backward_features_planes(DLU_ARGUMENT Geometry p, DLU_ARGUMENT Plan plan) {
  using A = at::opmath_type<T>;
  constexpr int M = kHold<A>;
  extern __shared__ __align__(16) unsigned char shared[];
  auto* k = reinterpret_cast<Vec<A, kSub>*>(shared);
  Block b = block_of(p, plan);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int r = p.K / 2, taps = padded(p.K, B);
  const int width = kStrip - (B - 1), strips = (p.W + width - 1) / width;
  const int target = b.tile % strips * width + lane - (B - 1);
  const int top = b.tile / strips * plan.rows, rows = min(plan.rows, p.H - top);
  const int64_t wide = static_cast<int64_t>(p.W) * p.s, plane = p.Q() * p.plane();
  // the source pixel whose sum of taps b0 .. b0 + B - 1 ends at this lane's target
  const auto source = [&](int b0) { return target + r - b0; };

  for (int c0 = b.c0; c0 < b.c1; c0 += kWarps * M) {
    const int c = c0 + warp * M;
    const T* from = static_cast<const T*>(p.grad) +
                    b.among(p.C, min(c, b.c1 - 1)) * plane;
    A sum[kRows][M] = {};
    for (b.q0 = 0; b.q0 < p.Q(); b.q0 += kSub) {
      const SubPixels sub(p, b.q0, p.W * p.s, 1);
      for (int a0 = 0; a0 < p.K; a0 += plan.held) {
        const int a1 = min(a0 + plan.held, p.K), held = a1 - a0;
        if (c0 == b.c0 || plan.held < p.K || p.chunks() > 1) {
          __syncthreads();
          for (int i = warp; i < held * kRows * kSub; i += kWarps) {
            const int row = i / (kRows * kSub), target_row = i / kSub % kRows;
            const int a = a0 + row, q = lane % kSub, from = sampled_lane(i);
            if (target_row >= rows) continue;
            const int y = top + target_row - (a - r);
            Vec<A, kSub>* to = k + (row * rows + target_row) * taps * kStrip + from;
            for (int b0 = 0; b0 < taps; b0 += B) {
              const int end = min(b0 + B, p.K), x = source(b0) + from - lane;
              sample<A>(p, b, b.q0 + q, y, x, a * p.K + b0, a * p.K + end, 1,
                        [&](int t, A v) { to[(t - a * p.K) * kStrip].v[q] = v; });
            }
            for (int t = p.K; t < taps; ++t) to[t * kStrip].v[q] = 0;
          }
          __syncthreads();
        }
        // source row y reaches target row i with the tap row a = i + first - y
        const int first = top + r;
        for (int y = max(first - (a1 - 1), 0); y <= min(first - a0 + rows - 1, p.H - 1);
             ++y) {
          for (int b0 = 0; b0 < taps; b0 += B) {
            const int x = source(b0);
            const bool inside = within(x, p.W);
            const T* at = from + (y * wide + x) * p.s;
            Vec<A, kSub> g[M];
            const auto load = [&](auto pairs) {
#pragma unroll
              for (int m = 0; m < M; ++m) {
                g[m] = load_sub_pixels<pairs, A>(at, sub, inside);
                if (c + m + 1 < b.c1) at += plane;  // else the last channel once more
              }
            };
            p.pairs ? load(std::true_type{}) : load(std::false_type{});
#pragma unroll
            for (int i = 0; i < kRows; ++i) {
              const int a = first + i - y;
              if (i >= rows || a < a0 || a >= a1) continue;  // the same for the block
              const Vec<A, kSub>* weights =
                  k + (((a - a0) * rows + i) * taps + b0) * kStrip + lane;
              A chain[M] = {};
#pragma unroll
              for (int j = B - 1; j >= 0; --j) {
                const Vec<A, kSub> weight = weights[j * kStrip];
#pragma unroll
                for (int m = 0; m < M; ++m) {
                  if (j < B - 1) chain[m] = __shfl_up_sync(kAllLanes, chain[m], 1);
#pragma unroll
                  for (int q = 0; q < kSub; ++q) chain[m] += weight.v[q] * g[m].v[q];
                }
              }
#pragma unroll
              for (int m = 0; m < M; ++m) sum[i][m] += chain[m];
            }
          }
        }
      }
    }
    if (lane < B - 1 || target >= p.W) continue;
    T* to = static_cast<T*>(p.out) + (b.among(p.C, c) * p.H + top) * p.W + target;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int m = 0; m < M; ++m) {
        if (i < rows && c + m < b.c1) {
          to[(static_cast<int64_t>(m) * p.H + i) * p.W] = static_cast<T>(sum[i][m]);
        }
      }
    }
  }
}

// Eight lanes share a target pixel, each holds V channels of its `rows` rows.
// Shared: k[source column][target row, tap][q], zeros outside the map.
template <typename T, int V>
__global__ void
__launch_bounds__(kPixelThreads, kPixelBlocks<at::opmath_type<T>>)
    backward_features_pixels(DLU_ARGUMENT Geometry p, DLU_ARGUMENT Plan plan) {
  using A = at::opmath_type<T>;
  constexpr int pass = V * kShare;
  extern __shared__ __align__(16) unsigned char shared[];
  auto* k = reinterpret_cast<Vec<A, kSub>*>(shared);
  Block b = block_of(p, plan);
  const int lane = threadIdx.x % kShare, pixel = threadIdx.x / kShare;
  const int r = p.K / 2, strips = (p.W + kStrip - 1) / kStrip;
  const int x = b.tile % strips * kStrip + pixel;
  const int top = b.tile / strips * plan.rows, rows = min(plan.rows, p.H - top);

  for (int c0 = b.c0; c0 < b.c1; c0 += pass) {
    const int c = c0 + lane * V;
    const bool active = c < b.c1 && x < p.W;
    A sum[kRows][V] = {};
    for (b.q0 = 0; b.q0 < p.Q(); b.q0 += kSub) {
      const SubPixels sub(p, b.q0, p.W * p.s * p.C, p.C);
      for (int a0 = 0; a0 < p.K; a0 += plan.held) {
        const int a1 = min(a0 + plan.held, p.K), held = a1 - a0;
        const int size = rows * held * p.K + 1;  // of a column
        const int first = top + r;
        if (c0 == b.c0 || plan.held < p.K || p.chunks() > 1) {
          __syncthreads();
          const int columns = kStrip + p.K - 1;
          for (int i = pixel; i < columns * rows; i += kPixelThreads / kShare) {
            // of target row i / columns; each tap row comes from a source row of its own
            Vec<A, kSub>* to = k + i % columns * size + i / columns * held * p.K;
            for (int a = a0; a < a1; ++a, to += p.K) {
              for (int q = 0; q < kSub; ++q) {
                sample<A>(p, b, b.q0 + q, first + i / columns - a, x - pixel - r + i % columns,
                          a * p.K + lane, (a + 1) * p.K, kShare,
                          [&](int t, A v) { to[t - a * p.K].v[q] = v; });
              }
            }
          }
          __syncthreads();
        }
        for (int y = max(first - (a1 - 1), 0); y <= min(first - a0 + rows - 1, p.H - 1);
             ++y) {
          for (int t = 0; t < p.K; ++t) {
            const int column = x + r - t;
            const bool inside = active && within(column, p.W);
            const T* from = static_cast<const T*>(p.grad) +
                            (b.among(p.H, y) * p.s * p.W + column) * p.s * p.C + c;
            Vec<A, V> g[kSub];
#pragma unroll
            for (int q = 0; q < kSub; ++q) {
              g[q] = load_channels<A, V>(from + sub.at[q], inside && q < sub.count);
            }
#pragma unroll
            for (int i = 0; i < kRows; ++i) {
              const int a = first + i - y;
              if (i >= rows || a < a0 || a >= a1) continue;
              const Vec<A, kSub> weight =
                  k[(pixel + 2 * r - t) * size + (i * held + a - a0) * p.K + t];
#pragma unroll
              for (int q = 0; q < kSub; ++q) {
#pragma unroll
                for (int j = 0; j < V; ++j) sum[i][j] += weight.v[q] * g[q].v[j];
              }
            }
          }
        }
      }
    }
    if (!active) continue;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (i >= rows) break;
      Vec<T, V> v;
#pragma unroll
      for (int j = 0; j < V; ++j) v.v[j] = static_cast<T>(sum[i][j]);
      *reinterpret_cast<Vec<T, V>*>(
          static_cast<T*>(p.out) + (b.among(p.H, top + i) * p.W + x) * p.C + c) = v;
    }
  }
}

// Tiles are `width` columns wide, a block takes `pass` channels at a time, and sampled
// kernels of target rows and of `held` tap rows need bytes(rows, held).
template <typename F>
Plan plan_backward_features(const Geometry& p, int width, int pass, int resident,
                            const F& bytes) {
  Plan plan;
  fit(p, kRows, bytes, plan);
  plan.tiles = static_cast<int64_t>((p.H + plan.rows - 1) / plan.rows) *
               ((p.W + width - 1) / width);
  split_channels(p, pass, resident, plan);
  return plan;
}

at::Tensor backward_features(const at::Tensor& grad, const at::Tensor& features,
                             const at::Tensor& kernels, const at::Tensor& offsets,
                             int64_t K, int64_t G, int64_t s) {
  const Inputs inputs(features, kernels, offsets, grad, K, G, s);
  const c10::cuda::CUDAGuard guard(features.device());
  const at::Tensor out =
      at::empty(features.sizes(), features.options(), layout_of(features));
  const Geometry p = inputs.geometry(out);
  dispatch(features, [&](auto t) {
    using T = decltype(t);
    using A = at::opmath_type<T>;
    constexpr int64_t size = sizeof(Vec<A, kSub>);
    if (inputs.channels_last) {
      const auto run = [&](auto V, auto* kernel) {
        const auto bytes = [&](int64_t rows, int64_t held) {
          return size * (kStrip + p.K - 1) * (rows * held * p.K + 1);
        };
        const Plan plan =
            plan_backward_features(p, kStrip, V * kShare, kPixelBlocks<A>, bytes);
        launch(kernel, p, plan, kPixelThreads);
      };
      if (inputs.vectors()) {
        run(4, backward_features_pixels<T, 4>);
      } else {
        run(1, backward_features_pixels<T, 1>);
      }
    } else {
      dispatch_taps(p.K, [&](auto B) {
        constexpr int pass = kWarps * kHold<A>, width = kStrip - (B - 1);
        const auto bytes = [&](int64_t rows, int64_t held) {
          return size * kStrip * rows * held * padded(p.K, B);
        };
        const Plan plan =
            plan_backward_features(p, width, pass, kPlaneBlocks<A>, bytes);
        launch(backward_features_planes<T, B>, p, plan, kPlaneThreads);
      });
    }
  });
  return out;
}

at::Tensor carafe_backward_features(const at::Tensor& grad, const at::Tensor& features,
                                    const at::Tensor& masks, int64_t K, int64_t G,
                                    int64_t s) {
  return backward_features(grad, features, masks, {}, K, G, s);
}

}  // namespace

TORCH_LIBRARY_IMPL(dlu_mmdet, CUDA, m) {
  m.impl("dlu_backward_features", &backward_features);
  m.impl("carafe_backward_features", &carafe_backward_features);
}

}  // namespace dlu_mmdet
