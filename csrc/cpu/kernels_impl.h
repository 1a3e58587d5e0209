// The CPU loops, compiled once per instruction set: the including file defines
//   DLU_ISA           namespace of this copy
//   DLU_VECTOR_BYTES  width of a vector register
//   DLU_BLOCK         vectors (forward: per sub-pixel) that share a kernel load
//   DLU_BLOCK_LAST    the same, channels last: here it should divide the channels
//   DLU_TAPS          taps whose gradient is accumulated in registers at once
//
// P kernel vectors are loaded once for a block of M feature vectors; layout.h says how
// both lie in scratch.
#include "forward.h"
#include "gradient_features.h"
#include "gradient_kernels.h"

namespace dlu_mmdet {
namespace DLU_ISA {
namespace {

// ---- the table: from the run-time type and layout to the loops -----------------

template <typename F>
DLU_INLINE void with_layout(const Problem& p, F&& f) {
  with_type(p.features.type, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (p.channels_last) {
      f(Pixels<T>{});
    } else {
      f(Planes<T>{});
    }
  });
}

// f(layout), a number.
template <typename F>
DLU_INLINE int64_t count_by_layout(const Problem& p, const F& f) {
  int64_t count = 0;
  with_layout(p, [&](auto layout) { count = f(layout); });
  return count;
}

// Offsets of the taps come first; what follows starts a cache line, as they do.
int64_t tap_bytes(const Problem& p) {
  return parts(p.T() * static_cast<int64_t>(sizeof(int64_t)), 64) * 64;
}

int64_t row_bytes(const Problem& p) {
  return count_by_layout(p, [&](auto layout) {
    using L = decltype(layout);
    return Sizes<L>::row(p) * sizeof(typename L::A);
  });
}

int64_t forward_items(const Problem& p) {
  return count_by_layout(p, [&](auto layout) {
    return Forward<decltype(layout)>::items(p);
  });
}

int64_t forward_scratch_bytes(const Problem& p) {
  return count_by_layout(p, [&](auto layout) {
    using L = decltype(layout);
    return tap_bytes(p) + Forward<L>::scratch(p) * sizeof(typename L::A);
  });
}

int64_t grad_taps_items(const Problem& p, const Pass& pass) {
  return count_by_layout(p, [&](auto layout) {
    return KernelGradient<decltype(layout)>::taps_items(p, pass);
  });
}

int64_t grad_taps_scratch_bytes(const Problem& p) {
  return count_by_layout(p, [&](auto layout) {
    using L = decltype(layout);
    return KernelGradient<L>::taps_scratch(p) * sizeof(typename L::A);
  });
}

int64_t grad_features_items(const Problem& p) {
  return count_by_layout(p, [&](auto layout) {
    return FeatureGradient<decltype(layout)>::items(p);
  });
}

int64_t grad_features_scratch_bytes(const Problem& p) {
  return count_by_layout(p, [&](auto layout) {
    using L = decltype(layout);
    return FeatureGradient<L>::scratch(p) * sizeof(typename L::A);
  });
}

void forward(const Problem& p, int64_t begin, int64_t end, void* scratch) {
  with_layout(p, [&](auto layout) {
    using L = decltype(layout);
    char* first = static_cast<char*>(scratch);
    Forward<L>::run(p, begin, end,
                    reinterpret_cast<typename L::A*>(first + tap_bytes(p)),
                    reinterpret_cast<int64_t*>(first));
  });
}

void grad_taps(const Problem& p, const Pass& pass, int64_t begin, int64_t end,
               void* scratch) {
  with_layout(p, [&](auto layout) {
    using L = decltype(layout);
    KernelGradient<L>::taps(p, pass, begin, end, static_cast<typename L::A*>(scratch));
  });
}

void grad_kernels(const Problem& p, const Pass& pass, int64_t begin, int64_t end) {
  with_layout(p, [&](auto layout) {
    KernelGradient<decltype(layout)>::add_taps(p, pass, begin, end);
  });
}

void grad_features(const Problem& p, int64_t begin, int64_t end, void* scratch) {
  with_layout(p, [&](auto layout) {
    using L = decltype(layout);
    FeatureGradient<L>::run(p, begin, end, static_cast<typename L::A*>(scratch));
  });
}

}  // namespace

#define DLU_STRING_(x) #x
#define DLU_STRING(x) DLU_STRING_(x)

extern const Loops loops = {
    DLU_STRING(DLU_ISA), row_bytes,
    forward_items,       forward_scratch_bytes,       forward,
    grad_taps_items,     grad_taps_scratch_bytes,     grad_taps,
    grad_kernels,
    grad_features_items, grad_features_scratch_bytes, grad_features,
};

}  // namespace DLU_ISA
}  // namespace dlu_mmdet
