// What the loops need to know of their tensors, and the table of loops.
//
// Hardly a header is included here: the loops are compiled once per instruction set,
// and an inline function of a header compiled for AVX-512 could be the copy that the
// linker keeps for everyone.
#pragma once

#include <cstdint>

namespace dlu_mmdet {

enum class Type { f32, f64, f16, bf16 };

// A 4-d tensor: base, element type, strides in elements, and the end of its memory.
struct Map {
  void* data = nullptr;
  Type type = Type::f32;
  int64_t n = 0, c = 0, y = 0, x = 0;
  const void* end = nullptr;
};

// Notation of reassembly.h; Q = s*s sub-pixels, T = K*K taps, Cg = C/G channels.
struct Problem {
  int64_t N, C, H, W, K, G, s;
  bool channels_last;  // vectors run over channels instead of over pixels of a row
  bool carafe;         // kernels are masks at output resolution, no offsets
  Map features, kernels, offsets;
  Map grad, grad_kernels, grad_offsets;
  Map out;  // the output, or the gradient of the features

  int64_t Q() const { return s * s; }
  int64_t T() const { return K * K; }
  int64_t Cg() const { return C / G; }
};

// One pass of the backward to kernels: source rows [y0, y1) of group g, all images.
// `buffer` holds d k~ of these rows, padded to whole vectors; CARAFE needs none.
struct Pass {
  int64_t g, y0, y1;
  void* buffer;
};

// Every loop handles items [begin, end) and may run in any number of threads at once:
// an item owns what it writes. Each thread brings scratch of its own.
struct Loops {
  const char* name;
  int64_t (*row_bytes)(const Problem&);  // of Pass::buffer, per image and source row

  int64_t (*forward_items)(const Problem&);
  int64_t (*forward_scratch)(const Problem&);
  void (*forward)(const Problem&, int64_t begin, int64_t end, void* scratch);

  // d k~ of a pass into its buffer; from it the gradient of offsets, or of masks
  int64_t (*grad_taps_items)(const Problem&, const Pass&);
  int64_t (*grad_taps_scratch)(const Problem&);
  void (*grad_taps)(const Problem&, const Pass&, int64_t, int64_t, void* scratch);
  // d k~ of a pass added to the gradient of the kernels; items are (n, t)
  void (*grad_kernels)(const Problem&, const Pass&, int64_t, int64_t);

  int64_t (*grad_features_items)(const Problem&);
  int64_t (*grad_features_scratch)(const Problem&);
  void (*grad_features)(const Problem&, int64_t, int64_t, void* scratch);
};

namespace generic { extern const Loops loops; }
#if defined(__x86_64__) && !defined(DLU_MMDET_GENERIC_ONLY)
#define DLU_MMDET_X86 1
namespace avx2 { extern const Loops loops; }
namespace avx512 { extern const Loops loops; }
#endif

}  // namespace dlu_mmdet
