// From tensors to launches.
#pragma once

#include <ATen/Functions.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <limits>

#include "checks.h"
#include "tile.cuh"

namespace dlu_mmdet {

constexpr int64_t kTwoBlocks = 100 << 10;  // bytes; two such blocks fit on an H100
constexpr int64_t kReserved = 1 << 10;     // bytes that the system takes of each block's

inline Map map_of(const at::Tensor& tensor) {
  if (!tensor.defined()) return {};
  // not data_ptr(), which copies a copy-on-write input; outputs are new and nobody's
  return {const_cast<void*>(tensor.const_data_ptr()),
          tensor.scalar_type(),
          tensor.stride(0),
          tensor.stride(1),
          tensor.stride(2),
          tensor.stride(3)};
}

// Checked inputs: features and gradient in one of the two layouts, the rest as it is.
class Inputs {
 public:
  const bool channels_last;

  Inputs(const at::Tensor& features, const at::Tensor& kernels, const at::Tensor& offsets,
         const at::Tensor& grad, int64_t K, int64_t G, int64_t s)
      : channels_last(check(features, kernels, offsets, grad, K, G, s)),
        features_(features.contiguous(layout())),
        grad_(grad.defined() ? grad.contiguous(layout()) : grad),
        kernels_(kernels),
        offsets_(offsets),
        K_(static_cast<int>(K)),
        G_(static_cast<int>(G)),
        s_(static_cast<int>(s)) {}

  // What is computed from them into `out`, or into the other two.
  Geometry geometry(const at::Tensor& out, const at::Tensor& grad_kernels = {},
                    const at::Tensor& grad_offsets = {}) const {
    Geometry p{};
    p.N = features_.size(0);
    p.C = static_cast<int>(features_.size(1));
    p.H = static_cast<int>(features_.size(2));
    p.W = static_cast<int>(features_.size(3));
    p.K = K_;
    p.G = G_;
    p.s = s_;
    p.carafe = !offsets_.defined();
    p.pairs = s_ % 2 == 0 && (!grad_.defined() || aligned(grad_, 2));
    p.features = features_.const_data_ptr();
    if (grad_.defined()) p.grad = grad_.const_data_ptr();
    if (out.defined()) p.out = out.mutable_data_ptr();
    p.kernels = map_of(kernels_);
    p.offsets = map_of(offsets_);
    p.grad_kernels = map_of(grad_kernels);
    p.grad_offsets = map_of(grad_offsets);
    return p;
  }

  // Whether four channels may be loaded at once.
  bool vectors() const {
    return features_.size(1) / G_ % 4 == 0 && aligned(features_, 4) &&
           (!grad_.defined() || aligned(grad_, 4));
  }

 private:
  const at::Tensor features_, grad_, kernels_, offsets_;
  const int K_, G_, s_;

  at::MemoryFormat layout() const {
    return channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  }

  // Whether the layout is channels last, of arguments that fit.
  static bool check(const at::Tensor& features, const at::Tensor& kernels,
                    const at::Tensor& offsets, const at::Tensor& grad, int64_t K,
                    int64_t G, int64_t s) {
    check_arguments(features, kernels, offsets, grad, !offsets.defined(), K, G, s);
    const bool last = layout_of(features) == at::MemoryFormat::ChannelsLast;
    const int64_t pixels = s * s * features.size(3);
    check_size("scale_factor rows of the output", pixels);  // then the product fits too
    if (last) check_size("scale_factor rows of the output", pixels * features.size(1));
    return last;
  }

  static bool aligned(const at::Tensor& tensor, int count) {
    const auto address = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
    return address % (count * tensor.element_size()) == 0;
  }
};

// ---- parts of a plan -----------------------------------------------------------

// Strips of 32 pixels, `rows` rows high, that cover the map.
inline int64_t strips(const Geometry& p, int rows) {
  return ((p.H + rows - 1) / rows * static_cast<int64_t>(p.W) + kStrip - 1) / kStrip;
}

inline int64_t blocks(const Geometry& p, const Plan& plan) {
  return p.N * p.G * plan.chunks * plan.parts * plan.shares * plan.tiles;
}

inline int64_t device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  C10_CUDA_CHECK(cudaGetDevice(&device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

// Bytes of shared memory that a block may have.
inline int64_t shared_memory_limit() {
  return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
}

// How many blocks shall share the `rounds` of work of each block of the plan. The
// processor with most blocks decides when a launch ends; below the number that it holds
// at once, `resident` or what shared memory allows, fewer blocks are not faster. Before
// its rounds each block works for about as long as one of them takes.
inline int blocks_to_share(const Geometry& p, const Plan& plan, int rounds,
                           int resident) {
  const int64_t fit = device_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor) /
                      (plan.bytes + kReserved);
  const int64_t held = std::clamp<int64_t>(fit, 1, resident);
  const int64_t processors = device_attribute(cudaDevAttrMultiProcessorCount);
  int best = 1;
  int64_t least = std::numeric_limits<int64_t>::max();
  for (int parts = 1; parts <= rounds; ++parts) {
    const int64_t most = (blocks(p, plan) * parts + processors - 1) / processors;
    const int64_t time = std::max(most, held) * ((rounds + parts - 1) / parts + 1);
    if (time < least) best = parts, least = time;
  }
  return best;
}

// Shares out the channels, of which a block takes `pass` at a time.
inline void split_channels(const Geometry& p, int pass, int resident, Plan& plan) {
  const int rounds = (p.Cg() + pass - 1) / pass;
  const int parts = blocks_to_share(p, plan, rounds, resident);
  plan.per_part = (rounds + parts - 1) / parts * pass;
  plan.parts = (p.Cg() + plan.per_part - 1) / plan.per_part;
}

// Fits the sampled kernels, bytes(rows, held), into shared memory: fewer target rows,
// then fewer tap rows at a time, sampled again for every share of the channels.
template <typename F>
void fit(const Geometry& p, int rows, const F& bytes, Plan& plan) {
  const int64_t limit = shared_memory_limit();
  plan.rows = std::min(rows, p.H);
  plan.held = p.K;
  const auto needed = [&] { return bytes(plan.rows, plan.held); };
  while (plan.rows > 1 && needed() > std::min(limit, kTwoBlocks)) --plan.rows;
  while (plan.held > 1 && needed() > limit) --plan.held;
  plan.bytes = needed();
  TORCH_CHECK_VALUE(plan.bytes <= limit, "kernel_size ", p.K, " needs ", plan.bytes,
                    " bytes of shared memory, and this GPU has ", limit,
                    "; use dlu_mmdet.ops.reference");
}

// ---- launches ------------------------------------------------------------------

template <typename Kernel>
void launch(Kernel* kernel, const Geometry& p, const Plan& plan, int threads) {
  const int64_t count = blocks(p, plan);
  if (count == 0) return;
  TORCH_CHECK_VALUE(count <= std::numeric_limits<int>::max(),
                    "the tensors are too large for one launch: ", count, " blocks");
  if (plan.bytes > (48 << 10)) {
    C10_CUDA_CHECK(cudaFuncSetAttribute(kernel,
                                        cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(plan.bytes)));
  }
  kernel<<<static_cast<unsigned>(count), threads, plan.bytes,
           c10::cuda::getCurrentCUDAStream()>>>(p, plan);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

// f(type of the features).
template <typename F>
void dispatch(const at::Tensor& features, const F& f) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, features.scalar_type(),
                                  "dlu_mmdet", [&] { f(scalar_t{}); });
}

// f(taps of a row that a thread unrolls): what K is a multiple of, or wastes least of.
template <typename F>
void dispatch_taps(int K, const F& f) {
  if ((K + 4) / 5 * 5 < (K + 2) / 3 * 3 || K % 5 == 0) {
    f(Index<5>{});
  } else {
    f(Index<3>{});
  }
}

}  // namespace dlu_mmdet
