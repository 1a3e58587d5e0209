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

constexpr int64_t kEnoughBlocks = 512;      // for the processors of a large GPU
constexpr int64_t kTwoBlocks = 100 << 10;   // bytes; two such blocks fit on an H100

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

// A checked call: features and gradient in one of the two layouts, the rest as it is.
struct Call {
  at::Tensor features, grad;
  bool channels_last;
  Problem p{};

  Call(const at::Tensor& features_, const at::Tensor& kernels, const at::Tensor& offsets,
       const at::Tensor& grad_, int64_t K, int64_t G, int64_t s) {
    check_arguments(features_, kernels, offsets, grad_, !offsets.defined(), K, G, s);
    const at::MemoryFormat layout = layout_of(features_);
    channels_last = layout == at::MemoryFormat::ChannelsLast;
    features = features_.contiguous(layout);
    if (grad_.defined()) grad = grad_.contiguous(layout);
    p.N = features.size(0);
    p.C = static_cast<int>(features.size(1));
    p.H = static_cast<int>(features.size(2));
    p.W = static_cast<int>(features.size(3));
    p.K = static_cast<int>(K);
    p.G = static_cast<int>(G);
    p.s = static_cast<int>(s);
    p.carafe = !offsets.defined();
    const int rows = channels_last ? 1 : kPair;
    p.tiles = ((p.H + rows - 1) / rows * static_cast<int64_t>(p.W) + kStrip - 1) / kStrip;
    p.rows = p.parts = p.together = p.slices = 1;
    p.per_part = p.Cg();
    p.held = p.K;
    const int64_t pixels = p.s * static_cast<int64_t>(p.s) * p.W;
    check_size("scale_factor rows of the output", pixels);  // then the product fits too
    if (channels_last) check_size("scale_factor rows of the output", pixels * p.C);
    p.features = features.const_data_ptr();
    p.kernels = map_of(kernels);
    p.offsets = map_of(offsets);
    p.pairs = s % 2 == 0;
    if (grad.defined()) {
      p.grad = grad.const_data_ptr();
      p.pairs = p.pairs && aligned(grad, 2);
    }
  }

  static bool aligned(const at::Tensor& tensor, int count) {
    const auto address = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
    return address % (count * tensor.element_size()) == 0;
  }

  // Whether four channels may be loaded at once.
  bool vectors() const {
    return p.Cg() % 4 == 0 && aligned(features, 4) &&
           (!grad.defined() || aligned(grad, 4));
  }

  // Tiles of `rows` rows and `width` columns.
  void tile_bands(int width) {
    p.tiles = static_cast<int64_t>((p.H + p.rows - 1) / p.rows) *
              ((p.W + width - 1) / width);
  }

  // Blocks without and with several parts; `pass` channels are the least of one.
  int64_t blocks(int64_t chunks) const {
    return p.N * p.G * chunks * p.parts * p.tiles;
  }
  void split_channels(int64_t chunks, int pass) {
    const int most = (p.Cg() + pass - 1) / pass;
    while (p.parts < most && blocks(chunks) < kEnoughBlocks) ++p.parts;
    p.per_part = (most + p.parts - 1) / p.parts * pass;
    p.parts = (p.Cg() + p.per_part - 1) / p.per_part;
  }
};

// Bytes of shared memory that a block may have.
inline int64_t shared_memory_limit() {
  int device = 0, bytes = 0;
  C10_CUDA_CHECK(cudaGetDevice(&device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                                        device));
  return bytes;
}

// Fits the sampled kernels, bytes(rows, held), into shared memory: fewer target rows,
// then fewer tap rows at a time, sampled again for every share of the channels.
template <typename F>
int64_t fit(Problem& p, int rows, const F& bytes) {
  const int64_t limit = shared_memory_limit();
  p.rows = std::min(rows, p.H);
  p.held = p.K;
  while (p.rows > 1 && bytes(p.rows, p.held) > std::min(limit, kTwoBlocks)) --p.rows;
  while (p.held > 1 && bytes(p.rows, p.held) > limit) --p.held;
  const int64_t needed = bytes(p.rows, p.held);
  TORCH_CHECK_VALUE(needed <= limit, "kernel_size ", p.K, " needs ", needed,
                    " bytes of shared memory, and this GPU has ", limit,
                    "; use dlu_mmdet.ops.reference");
  return needed;
}

template <typename Kernel>
void launch(Kernel* kernel, const Problem& p, int64_t blocks, int threads, int64_t bytes) {
  if (blocks == 0) return;
  TORCH_CHECK_VALUE(blocks <= std::numeric_limits<int>::max(),
                    "the tensors are too large for one launch: ", blocks, " blocks");
  if (bytes > (48 << 10)) {
    C10_CUDA_CHECK(cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  }
  kernel<<<static_cast<unsigned>(blocks), threads, bytes,
           c10::cuda::getCurrentCUDAStream()>>>(p);
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
