// The operators on the CPU: output tensors, threads and instruction set; the loops are
// in kernels_impl.h.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <tuple>

#include "../checks.h"
#include "kernels.h"

namespace dlu_mmdet {
namespace {

// The widest loops that this processor runs; DLU_MMDET_ISA names narrower ones.
const Loops& choose_loops() {
#if defined(DLU_MMDET_X86)
  const char* wish = std::getenv("DLU_MMDET_ISA");
  const auto wanted = [&](const Loops& loops) {
    return !wish || !*wish || std::strcmp(wish, loops.name) == 0;
  };
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 =
      has_avx2 && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl");
  if (has_avx512 && wanted(avx512::loops)) return avx512::loops;
  if (has_avx2 && wanted(avx2::loops)) return avx2::loops;
#endif
  return generic::loops;
}

const Loops& loops() {
  static const Loops& chosen = choose_loops();
  return chosen;
}

Type type_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat: return Type::f32;
    case at::kDouble: return Type::f64;
    case at::kHalf: return Type::f16;
    case at::kBFloat16: return Type::bf16;
    default: TORCH_CHECK_TYPE(false, "float32, float64, float16 or bfloat16 needed, got ",
                              tensor.scalar_type());
  }
}

Map map_of(const at::Tensor& tensor) {
  Map map;
  if (!tensor.defined()) return map;
  // not data_ptr(), which copies a copy-on-write input; outputs are new and nobody's
  map.data = const_cast<void*>(tensor.const_data_ptr());
  map.type = type_of(tensor);
  map.n = tensor.stride(0);
  map.c = tensor.stride(1);
  map.y = tensor.stride(2);
  map.x = tensor.stride(3);
  int64_t last = 0;
  for (int64_t i = 0; i < 4; ++i) last += (tensor.size(i) - 1) * tensor.stride(i);
  map.end = static_cast<char*>(map.data) + (last + 1) * tensor.element_size();
  return map;
}

Problem problem_of(const at::Tensor& features, const at::Tensor& kernels,
                   const at::Tensor& offsets, const at::Tensor& grad, int64_t K,
                   int64_t G, int64_t s) {
  const bool carafe = !offsets.defined();
  check_arguments(features, kernels, offsets, grad, carafe, K, G, s);
  Problem p;
  p.N = features.size(0);
  p.C = features.size(1);
  p.H = features.size(2);
  p.W = features.size(3);
  p.K = K;
  p.G = G;
  p.s = s;
  p.channels_last = layout_of(features) == at::MemoryFormat::ChannelsLast;
  p.carafe = carafe;
  p.features = map_of(features);
  p.kernels = map_of(kernels);
  p.offsets = map_of(offsets);
  p.grad = map_of(grad);
  return p;
}

// f(begin, end, scratch) over [0, items), with `bytes` of scratch for each thread.
template <typename F>
void parallel(int64_t items, int64_t bytes, const F& f) {
  at::parallel_for(0, items, 1, [&](int64_t begin, int64_t end) {
    const at::Tensor scratch = at::empty({bytes + 64}, at::kByte);
    // vectors aligned to a cache line are loaded faster
    const auto address = reinterpret_cast<uintptr_t>(scratch.data_ptr());
    f(begin, end, reinterpret_cast<void*>((address + 63) / 64 * 64));
  });
}

// Large outputs are fresh pages from the system, and touching them costs more than the
// arithmetic; huge pages make that a fifth.
at::Tensor empty_output(at::IntArrayRef sizes, const at::Tensor& features) {
  const at::Tensor out = at::empty(sizes, features.options(), layout_of(features));
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr size_t fresh = 32 << 20;  // malloc maps anything from here on anew
  constexpr uintptr_t huge = 2 << 20;
  if (out.nbytes() >= fresh) {
    const auto begin = reinterpret_cast<uintptr_t>(out.data_ptr());
    const uintptr_t first = (begin + huge - 1) / huge * huge;
    const uintptr_t last = (begin + out.nbytes()) / huge * huge;
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
#endif
  return out;
}

at::Tensor forward(const at::Tensor& features, const at::Tensor& kernels,
                   const at::Tensor& offsets, int64_t K, int64_t G, int64_t s) {
  Problem p = problem_of(features, kernels, offsets, {}, K, G, s);
  const at::Tensor out = empty_output({p.N, p.C, s * p.H, s * p.W}, features);
  p.out = map_of(out);
  parallel(loops().forward_items(p), loops().forward_scratch(p),
           [&](int64_t begin, int64_t end, void* scratch) {
             loops().forward(p, begin, end, scratch);
           });
  return out;
}

at::Tensor backward_features(const at::Tensor& grad, const at::Tensor& features,
                             const at::Tensor& kernels, const at::Tensor& offsets,
                             int64_t K, int64_t G, int64_t s) {
  const at::Tensor dense = grad.is_non_overlapping_and_dense() ? grad : grad.contiguous();
  Problem p = problem_of(features, kernels, offsets, dense, K, G, s);
  const at::Tensor out = empty_output(features.sizes(), features);
  p.out = map_of(out);
  parallel(loops().grad_features_items(p), loops().grad_features_scratch(p),
           [&](int64_t begin, int64_t end, void* scratch) {
             loops().grad_features(p, begin, end, scratch);
           });
  return out;
}

// Rows of a pass: as many as fit a buffer of so many bytes.
int64_t rows_of_pass(const Problem& p, int64_t bytes) {
  if (p.carafe) return p.H;
  return std::clamp<int64_t>(bytes / (p.N * loops().row_bytes(p)), 1, p.H);
}

std::tuple<at::Tensor, at::Tensor> backward_kernels(
    const at::Tensor& grad, const at::Tensor& features, const at::Tensor& kernels,
    const at::Tensor& offsets, int64_t K, int64_t G, int64_t s) {
  const at::Tensor dense = grad.is_non_overlapping_and_dense() ? grad : grad.contiguous();
  Problem p = problem_of(features, kernels, offsets, dense, K, G, s);
  const bool is_half = at::isReducedFloatingType(kernels.scalar_type());
  at::Tensor grad_kernels, grad_offsets;
  if (p.carafe) {
    grad_kernels = at::empty_like(kernels, layout_of(kernels));
  } else {
    // sums over scattered positions are kept in float32
    grad_kernels = at::zeros_like(
        kernels, is_half ? kernels.options().dtype(at::kFloat) : kernels.options(),
        layout_of(kernels));
    grad_offsets = at::empty_like(offsets, layout_of(offsets));
  }
  p.grad_kernels = map_of(grad_kernels);
  p.grad_offsets = map_of(grad_offsets);
  if (p.N == 0) return {grad_kernels.to(kernels.scalar_type()), grad_offsets};
  // an eighth of the gradients; half of that beside sums in float32
  const int64_t step = rows_of_pass(
      p, (features.nbytes() + kernels.nbytes()) / (is_half ? 16 : 8));
  const at::Tensor buffer =
      at::empty({p.carafe ? 0 : p.N * step * loops().row_bytes(p)}, at::kByte);
  Pass pass{};
  pass.buffer = buffer.data_ptr();
  for (pass.g = 0; pass.g < G; ++pass.g) {
    for (int64_t y = 0; y < p.H; y += step) {
      pass.y0 = y;
      pass.y1 = std::min(y + step, p.H);
      parallel(loops().grad_taps_items(p, pass), loops().grad_taps_scratch(p),
               [&](int64_t begin, int64_t end, void* scratch) {
                 loops().grad_taps(p, pass, begin, end, scratch);
               });
      if (p.carafe) continue;
      at::parallel_for(0, p.N * p.T(), 1, [&](int64_t begin, int64_t end) {
        loops().grad_kernels(p, pass, begin, end);
      });
    }
  }
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

TORCH_LIBRARY_IMPL(dlu_mmdet, CPU, m) {
  m.impl("dlu", &forward);
  m.impl("dlu_backward_features", &backward_features);
  m.impl("dlu_backward_kernels", &backward_kernels);
  m.impl("carafe", &carafe);
  m.impl("carafe_backward_features", &carafe_backward_features);
  m.impl("carafe_backward_masks", &carafe_backward_masks);
}

TORCH_LIBRARY_FRAGMENT(dlu_mmdet, m) {
  m.def("cpu_loops() -> str", [] { return std::string(loops().name); });
}

}  // namespace dlu_mmdet
