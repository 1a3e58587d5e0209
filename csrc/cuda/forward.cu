// out[c][q] = sum over t of k~[t][q] * x[c][t], t = (a, b) over K rows of K taps.
#include <torch/library.h>

#include "launch.cuh"

namespace dlu_mmdet {
namespace {

// A lane owns two pixels, one above the other, so that most rows of features serve
// both; a warp takes eight channels (kHold) at a time.
//
//     for each row of features, B of its pixels at once:
//         k~ of both pixels: tap rows a and a - 1, B x 4 each, in registers
//         for each channel:  x, B neighbors of the row
//             sum[pixel][channel][q] += k~[pixel][b][q] * x[b]
//
// Shared: k[pixel][tap row][tap, padded to B][lane][q].
template <typename T, int B>
__global__ void
__launch_bounds__(kPlaneThreads, kPlaneBlocks<at::opmath_type<T>>)
    forward_planes(DLU_ARGUMENT Geometry p, DLU_ARGUMENT Plan plan) {
  using A = at::opmath_type<T>;
  constexpr int M = kHold<A>;
  extern __shared__ __align__(16) unsigned char shared[];
  auto* k = reinterpret_cast<Vec<A, kSub>*>(shared);
  const Block b = block_of(p, plan);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const Pixel<kPair> own(p, b, lane);
  const int r = p.K / 2, taps = padded(p.K, B);

  for (int c0 = b.c0; c0 < b.c1; c0 += kWarps * M) {
    const int c = c0 + warp * M;
    A sum[kPair][M][kSub] = {};
    for (int a0 = 0; a0 < p.K; a0 += plan.held) {
      const int held = min(plan.held, p.K - a0);
      if (c0 == b.c0 || plan.held < p.K) {
        __syncthreads();
        for (int i = warp; i < kPair * kSub; i += kWarps) {
          const int u = i / kSub, from = sampled_lane(i), q = lane % kSub;
          const int y = __shfl_sync(kAllLanes, own.y, from) + u;
          const int x = __shfl_sync(kAllLanes, own.x, from);
          const int gap = taps - p.K, t0 = a0 * p.K;
          Vec<A, kSub>* to = k + u * held * taps * kStrip + from;
          for (int t = 0; gap && t < held * taps; ++t) to[t * kStrip].v[q] = 0;
          sample<A>(p, b, b.q0 + q, y, x, t0, t0 + held * p.K, 1, [&](int t, A v) {
            const int at = t - t0 + (gap ? (t - t0) / p.K * gap : 0);
            to[at * kStrip].v[q] = v;
          });
        }
        __syncthreads();
      }
      int y = own.y + a0 - r;
      const T* from = static_cast<const T*>(p.features) +
                      b.among(p.C, min(c, b.c1 - 1)) * p.plane() +
                      static_cast<int64_t>(y) * p.W + own.x - r;
      // adds tap row i of pixels [first, end); of the lower pixel it is tap row i - 1
      const auto add_row = [&](int i, auto first, auto end) {
        for (int b0 = 0; b0 < taps; b0 += B) {
          const T* at = from + b0;
          Vec<A, kSub> weight[kPair][B];
          bool inside[B];
#pragma unroll
          for (int j = 0; j < B; ++j) {
            const int column = own.x - r + b0 + j;
            inside[j] = b0 + j < p.K && within(y, p.H) && within(column, p.W);
#pragma unroll
            for (int u = first; u < end; ++u) {
              weight[u][j] = k[((u * held + i - u) * taps + b0 + j) * kStrip + lane];
            }
          }
#pragma unroll
          for (int m = 0; m < M; ++m) {
            A value[B];
#pragma unroll
            for (int j = 0; j < B; ++j) {
              value[j] = inside[j] ? static_cast<A>(at[j]) : A(0);
            }
#pragma unroll
            for (int u = first; u < end; ++u) {
#pragma unroll
              for (int j = 0; j < B; ++j) {
#pragma unroll
                for (int q = 0; q < kSub; ++q) {
                  sum[u][m][q] += weight[u][j].v[q] * value[j];
                }
              }
            }
            if (c + m + 1 < b.c1) at += p.plane();  // else the last channel once more
          }
        }
        ++y;
        from += p.W;
      };
      add_row(0, Index<0>{}, Index<1>{});
      for (int i = 1; i < held; ++i) add_row(i, Index<0>{}, Index<2>{});
      add_row(held, Index<1>{}, Index<2>{});
    }
    if (!own.valid) continue;
    const SubPixels sub(p, b.q0, p.W * p.s, 1);
    T* to = static_cast<T*>(p.out) + b.among(p.C, c) * p.Q() * p.plane() +
            (static_cast<int64_t>(own.y) * p.s * p.W + own.x) * p.s;
    T* below = to + p.Q() * static_cast<int64_t>(p.W);
    const bool both = own.y + 1 < p.H;
    const auto store = [&](auto pairs) {
#pragma unroll
      for (int m = 0; m < M; ++m) {
        if (c + m < b.c1) {
          store_sub_pixels<pairs>(to, sub, sum[0][m]);
          if (both) store_sub_pixels<pairs>(below, sub, sum[1][m]);
        }
        to += p.Q() * p.plane();
        below += p.Q() * p.plane();
      }
    };
    p.pairs ? store(std::true_type{}) : store(std::false_type{});
  }
}

// Eight lanes share a source pixel, each holds V channels and their four sub-pixels,
// and loads B taps before it uses the first.
// Shared: k[pixel][tap][q], a tap more a pixel, so that four pixels meet no conflict.
template <typename T, int V, int B>
__global__ void
__launch_bounds__(kPixelThreads, kPixelBlocks<at::opmath_type<T>>)
    forward_pixels(DLU_ARGUMENT Geometry p, DLU_ARGUMENT Plan plan) {
  using A = at::opmath_type<T>;
  constexpr int pass = V * kShare;
  extern __shared__ __align__(16) unsigned char shared[];
  auto* k = reinterpret_cast<Vec<A, kSub>*>(shared);
  const Block b = block_of(p, plan);
  const int lane = threadIdx.x % kShare, pixel = threadIdx.x / kShare;
  const Pixel<1> own(p, b, pixel);
  const int r = p.K / 2;
  const SubPixels sub(p, b.q0, p.W * p.s * p.C, p.C);
  k += pixel * (plan.held * p.K + 1);

  for (int c0 = b.c0; c0 < b.c1; c0 += pass) {
    const int c = c0 + lane * V;
    const bool active = c < b.c1 && own.valid;
    A sum[kSub][V] = {};
    for (int a0 = 0; a0 < p.K; a0 += plan.held) {
      const int a1 = min(a0 + plan.held, p.K);
      if (c0 == b.c0 || plan.held < p.K) {
        __syncthreads();
        for (int q = 0; q < kSub; ++q) {
          sample<A>(p, b, b.q0 + q, own.y, own.x, a0 * p.K + lane, a1 * p.K, kShare,
                    [&](int t, A v) { k[t - a0 * p.K].v[q] = v; });
        }
        __syncthreads();
      }
      for (int a = a0; a < a1; ++a) {
        const int y = own.y + a - r, x = own.x - r;
        const bool row = active && within(y, p.H);
        const T* from =
            static_cast<const T*>(p.features) + (b.among(p.H, y) * p.W + x) * p.C + c;
        for (int b0 = 0; b0 < p.K; b0 += B) {
          Vec<A, V> value[B];
#pragma unroll
          for (int i = 0; i < B; ++i, from += p.C) {
            const bool inside = b0 + i < p.K && within(x + b0 + i, p.W);
            value[i] = load_channels<A, V>(from, row && inside);
          }
#pragma unroll
          for (int i = 0; i < B; ++i) {
            const Vec<A, kSub> weight =
                b0 + i < p.K ? k[(a - a0) * p.K + b0 + i] : Vec<A, kSub>{};
#pragma unroll
            for (int q = 0; q < kSub; ++q) {
#pragma unroll
              for (int j = 0; j < V; ++j) sum[q][j] += weight.v[q] * value[i].v[j];
            }
          }
        }
      }
    }
    if (!active) continue;
    T* to = static_cast<T*>(p.out) +
            (b.among(p.H, own.y) * p.s * p.W + own.x) * p.s * p.C + c;
#pragma unroll
    for (int q = 0; q < kSub; ++q) {
      if (q >= sub.count) break;
      Vec<T, V> v;
#pragma unroll
      for (int j = 0; j < V; ++j) v.v[j] = static_cast<T>(sum[q][j]);
      *reinterpret_cast<Vec<T, V>*>(to + sub.at[q]) = v;
    }
  }
}

// Strips are `rows` rows high, a block takes `pass` channels at a time, and `held` tap
// rows of sampled kernels need bytes(held).
template <typename F>
Plan plan_forward(const Geometry& p, int rows, int pass, int resident, const F& bytes) {
  Plan plan;
  plan.tiles = strips(p, rows);
  plan.chunks = p.chunks();
  fit(p, 1, [&](int64_t, int64_t held) { return bytes(held); }, plan);
  split_channels(p, pass, resident, plan);
  return plan;
}

at::Tensor forward(const at::Tensor& features, const at::Tensor& kernels,
                   const at::Tensor& offsets, int64_t K, int64_t G, int64_t s) {
  const Inputs inputs(features, kernels, offsets, {}, K, G, s);
  const c10::cuda::CUDAGuard guard(features.device());
  const at::Tensor out = at::empty(
      {features.size(0), features.size(1), s * features.size(2), s * features.size(3)},
      features.options(), layout_of(features));
  const Geometry p = inputs.geometry(out);
  dispatch(features, [&](auto t) {
    using T = decltype(t);
    using A = at::opmath_type<T>;
    constexpr int64_t size = sizeof(Vec<A, kSub>);
    dispatch_taps(p.K, [&](auto B) {
      if (inputs.channels_last) {
        const auto run = [&](auto V, auto* kernel) {
          const auto bytes = [&](int64_t held) {
            return size * kStrip * (held * p.K + 1);
          };
          const Plan plan = plan_forward(p, 1, V * kShare, kPixelBlocks<A>, bytes);
          launch(kernel, p, plan, kPixelThreads);
        };
        if (inputs.vectors()) {
          run(4, forward_pixels<T, 4, B>);
        } else {
          run(1, forward_pixels<T, 1, B>);
        }
      } else {
        const auto bytes = [&](int64_t held) {
          return size * kStrip * kPair * held * padded(p.K, B);
        };
        const int pass = kWarps * kHold<A>;
        const Plan plan = plan_forward(p, kPair, pass, kPlaneBlocks<A>, bytes);
        launch(forward_planes<T, B>, p, plan, kPlaneThreads);
      }
    });
  });
  return out;
}

at::Tensor carafe(const at::Tensor& features, const at::Tensor& masks, int64_t K,
                  int64_t G, int64_t s) {
  return forward(features, masks, {}, K, G, s);
}

}  // namespace

TORCH_LIBRARY_IMPL(dlu_mmdet, CUDA, m) {
  m.impl("dlu", &forward);
  m.impl("carafe", &carafe);
}

}  // namespace dlu_mmdet
