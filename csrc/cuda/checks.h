// Argument checks of the CUDA operators; ops/checks.py has those of all others.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <limits>

namespace dlu_mmdet {

inline void check_map(const char* name, const at::Tensor& tensor,
                      const at::Tensor& features, at::IntArrayRef shape) {
  TORCH_CHECK_VALUE(tensor.sizes() == shape, name, " must have shape ", shape,
                    ", got ", tensor.sizes());
  TORCH_CHECK_VALUE(tensor.device() == features.device(), name, " must be on ",
                    features.device(), " like features, got ", tensor.device());
  const at::ScalarType type = tensor.scalar_type();
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kDouble || type == at::kHalf ||
                       type == at::kBFloat16,
                   name, " must be a floating-point tensor (float32, float64, float16 or "
                   "bfloat16), got ", type);
}

// The kernels count the sizes of a map in int, and round them up to whole strips.
inline void check_size(const char* name, int64_t size) {
  TORCH_CHECK_VALUE(size < std::numeric_limits<int>::max() - 64, name,
                    " must be less than 2^31 - 65, got ", size);
}

// Checks the sizes and every tensor; undefined tensors are skipped.
inline void check_arguments(const at::Tensor& features, const at::Tensor& kernels,
                            const at::Tensor& offsets, const at::Tensor& grad,
                            bool carafe, int64_t K, int64_t G, int64_t s) {
  TORCH_CHECK_VALUE(features.dim() == 4, "features must be (N, C, H, W), got ",
                    features.sizes());
  const int64_t N = features.size(0), C = features.size(1), H = features.size(2),
                W = features.size(3);
  TORCH_CHECK_VALUE(C > 0 && H > 0 && W > 0,
                    "features must have C, H and W of at least 1, got ",
                    features.sizes());
  TORCH_CHECK_VALUE(K > 0 && K % 2 == 1, "kernel_size must be odd, got ", K);
  TORCH_CHECK_VALUE(G > 0 && C % G == 0, "group_size must divide ", C,
                    " channels, got ", G);
  TORCH_CHECK_VALUE(s > 0, "scale_factor must be at least 1, got ", s);
  // below their square roots the products fit into int64
  for (const int64_t size : {N, C, H, W, K, G, s}) check_size("every size", size);
  check_size("kernel_size squared", K * K);
  check_size("scale_factor squared", 2 * s * s);
  check_size("the number of kernel channels", G * K * K);
  check_size("the number of offset channels", G * 2 * s * s);
  check_size("the output's height", s * H);
  check_size("the output's width", s * W);
  check_map("features", features, features, {N, C, H, W});
  if (carafe) {
    check_map("masks", kernels, features, {N, G * K * K, s * H, s * W});
  } else {
    check_map("kernels", kernels, features, {N, G * K * K, H, W});
    check_map("offsets", offsets, features, {N, G * 2 * s * s, H, W});
  }
  if (!grad.defined()) return;
  check_map("grad", grad, features, {N, C, s * H, s * W});
  TORCH_CHECK_TYPE(grad.scalar_type() == features.scalar_type(),
                   "grad must have the dtype of features, ", features.scalar_type(),
                   ", got ", grad.scalar_type());
}

// The layout that an operator follows: channels last only if it is not NCHW too.
inline at::MemoryFormat layout_of(const at::Tensor& tensor) {
  return !tensor.is_contiguous() &&
                 tensor.is_contiguous(at::MemoryFormat::ChannelsLast)
             ? at::MemoryFormat::ChannelsLast
             : at::MemoryFormat::Contiguous;
}

}  // namespace dlu_mmdet
