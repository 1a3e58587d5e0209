// The operators on the CPU as C functions: threads, memory and instruction set; the
// loops are in kernels_impl.h. Nothing of PyTorch or Python is in here, so one library
// serves every version of both: dlu_mmdet/ops/backend.py checks the tensors and makes
// those of the results, and cpu.py calls.
#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace dlu_mmdet {
namespace {

// The widest loops that this processor runs; DLU_MMDET_ISA names narrower ones. Where it
// names none of these, the generic ones, and ops/library.py refuses them.
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

// A tensor of these sizes: address, or 0 for none, dtype as in Type and strides.
Map read_map(const int64_t*& v, int64_t n, int64_t c, int64_t y, int64_t x) {
  Map map;
  map.data = reinterpret_cast<void*>(*v++);
  map.type = static_cast<Type>(*v++);
  map.n = *v++;
  map.c = *v++;
  map.y = *v++;
  map.x = *v++;
  const int64_t bytes = map.type == Type::f64 ? 8 : map.type == Type::f32 ? 4 : 2;
  const int64_t last =
      (n - 1) * map.n + (c - 1) * map.c + (y - 1) * map.y + (x - 1) * map.x;
  map.end = static_cast<char*>(map.data) + (last + 1) * bytes;
  return map;
}

enum Operation { kForward, kBackwardFeatures, kBackwardKernels };

// A call: its numbers and then its tensors, as compute() of ops/cpu.py packs them.
struct Call : Problem {
  int64_t threads;

  Call(int operation, const int64_t* v) : Problem{} {
    for (int64_t* number : {&N, &C, &H, &W, &K, &G, &s, &threads}) *number = *v++;
    channels_last = *v++ != 0;
    carafe = *v++ != 0;
    const int64_t taps = G * T(), shifts = 2 * G * Q(), height = s * H, width = s * W;
    const auto read_kernels = [&] {
      return carafe ? read_map(v, N, taps, height, width) : read_map(v, N, taps, H, W);
    };
    features = read_map(v, N, C, H, W);
    kernels = read_kernels();
    offsets = read_map(v, N, shifts, H, W);
    grad = read_map(v, N, C, height, width);
    out = operation == kForward ? read_map(v, N, C, height, width)
                                : read_map(v, N, C, H, W);
    grad_kernels = read_kernels();
    grad_offsets = read_map(v, N, shifts, H, W);
  }
};

// How this thread rounds and what it does with denormal numbers.
#if defined(__x86_64__)
constexpr unsigned kFlushResults = 0x8000, kFlush = 0x8040;  // FTZ; DAZ too
unsigned float_mode() { return _mm_getcsr(); }
void set_float_mode(unsigned mode) { _mm_setcsr(mode); }
#elif defined(__aarch64__)
constexpr uint64_t kFlushResults = 0, kFlush = 1 << 24;  // FZ: results and operands
uint64_t float_mode() {
  uint64_t mode;
  asm volatile("mrs %0, fpcr" : "=r"(mode)::"memory");
  return mode;
}
void set_float_mode(uint64_t mode) { asm volatile("msr fpcr, %0" ::"r"(mode) : "memory"); }
#else
constexpr int kFlushResults = 0, kFlush = 0;
int float_mode() { return 0; }
void set_float_mode(int) {}
#endif

// Denormal numbers count as zero for a thread as long as this lives: arithmetic with
// them takes a hundred times as long. Afterwards the thread has the mode it had before.
// Operands stay as they are in a call with half tensors, whose widening needs them.
class FlushDenormals {
 public:
  explicit FlushDenormals(const Problem& p) {
    bool has_half = false;
    for (const Map* map : {&p.features, &p.kernels, &p.offsets}) {
      has_half |= map->type == Type::f16;
    }
    set_float_mode(before_ | (has_half ? kFlushResults : kFlush));
  }
  ~FlushDenormals() { set_float_mode(before_); }
  FlushDenormals(const FlushDenormals&) = delete;

 private:
  const decltype(float_mode()) before_ = float_mode();
};

// Threads do not share a cache line, at whose beginning vectors are loaded faster.
int64_t lines(int64_t bytes) {
  constexpr int64_t line = 64;
  return (bytes + line - 1) / line * line;
}

// f(begin, end, scratch) over [0, items), with `bytes` of scratch for each thread.
template <typename F>
void parallel(const Call& call, int64_t items, int64_t bytes, char* scratch,
              const F& f) {
  if (items == 0) return;
  const int threads = static_cast<int>(std::min(call.threads, items));
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const FlushDenormals flush(call);
#if defined(_OPENMP)
    // fewer may come than were asked for
    const int64_t team = omp_get_num_threads(), me = omp_get_thread_num();
#else
    const int64_t team = 1, me = 0;
#endif
    f(items * me / team, items * (me + 1) / team, scratch + me * lines(bytes));
  }
}

// Large outputs are fresh pages from the system, and touching them costs more than the
// arithmetic; huge pages make that a fifth.
void expect_writes(const Map& out) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t fresh = 32 << 20;  // malloc maps anything from here on anew
  constexpr uintptr_t huge = 2 << 20;
  const auto begin = reinterpret_cast<uintptr_t>(out.data);
  const auto end = reinterpret_cast<uintptr_t>(out.end);
  if (end >= begin + fresh) {
    const uintptr_t first = (begin + huge - 1) / huge * huge;
    madvise(reinterpret_cast<void*>(first), end / huge * huge - first, MADV_HUGEPAGE);
  }
#endif
}

int64_t bytes_between(const void* begin, const void* end) {
  return static_cast<const char*>(end) - static_cast<const char*>(begin);
}

// Source rows whose d k~ is held at a time: as many as fit into an eighth of the inputs,
// which their gradients are as large as; half of that beside sums in float32.
int64_t rows_of_pass(const Problem& p) {
  if (p.carafe) return p.H;
  const bool is_half = p.kernels.type == Type::f16 || p.kernels.type == Type::bf16;
  const int64_t inputs = bytes_between(p.features.data, p.features.end) +
                         bytes_between(p.kernels.data, p.kernels.end);
  const int64_t bytes = inputs / (is_half ? 16 : 8);
  return std::clamp<int64_t>(bytes / (p.N * loops().row_bytes(p)), 1, p.H);
}

int64_t pass_bytes(const Problem& p) {
  return p.carafe ? 0 : lines(p.N * rows_of_pass(p) * loops().row_bytes(p));
}

void forward(const Call& p, char* scratch) {
  expect_writes(p.out);
  parallel(p, loops().forward_items(p), loops().forward_scratch(p), scratch,
           [&](int64_t begin, int64_t end, void* own) {
             loops().forward(p, begin, end, own);
           });
}

void backward_features(const Call& p, char* scratch) {
  expect_writes(p.out);
  parallel(p, loops().grad_features_items(p), loops().grad_features_scratch(p), scratch,
           [&](int64_t begin, int64_t end, void* own) {
             loops().grad_features(p, begin, end, own);
           });
}

// The gradient of the kernels is added to what is there, in float32 for half precision,
// since its sums are over scattered positions; that of masks is written.
void backward_kernels(const Call& p, char* scratch) {
  const int64_t step = rows_of_pass(p);
  Pass pass{};
  pass.buffer = scratch;
  scratch += pass_bytes(p);
  for (pass.g = 0; pass.g < p.G; ++pass.g) {
    for (int64_t y = 0; y < p.H; y += step) {
      pass.y0 = y;
      pass.y1 = std::min(y + step, p.H);
      parallel(p, loops().grad_taps_items(p, pass), loops().grad_taps_scratch(p),
               scratch, [&](int64_t begin, int64_t end, void* own) {
                 loops().grad_taps(p, pass, begin, end, own);
               });
      if (p.carafe) continue;
      parallel(p, p.N * p.T(), 0, scratch, [&](int64_t begin, int64_t end, void*) {
        loops().grad_kernels(p, pass, begin, end);
      });
    }
  }
}

// Whether int64 counts the scratch of all threads and of a pass: an estimate from above,
// for cells of up to 16 pixels, blocks of up to 64 channels and items of up to 8 rows.
bool is_countable(const Call& p) {
  const double rows = p.K + 8., kernels = static_cast<double>(p.T()) * p.Q();
  const double channels = p.C + 64. * p.G + 64. * p.Q();
  const double most =
      rows * (p.W + 16.) * kernels + rows * (p.W + p.K + 64.) * channels;
  return (p.N + p.threads) * most * sizeof(double) < 0x1p62;
}

}  // namespace
}  // namespace dlu_mmdet

extern "C" {

// Bytes of scratch that an operation needs, from the beginning of a cache line on; -1 if
// they are too many to be counted.
int64_t dlu_mmdet_scratch_bytes(int operation, const int64_t* values) {
  using namespace dlu_mmdet;
  const Call p(operation, values);
  if (p.N == 0) return 0;
  if (!is_countable(p)) return -1;
  switch (operation) {
    case kForward: return p.threads * lines(loops().forward_scratch(p));
    case kBackwardFeatures: return p.threads * lines(loops().grad_features_scratch(p));
    default: return pass_bytes(p) + p.threads * lines(loops().grad_taps_scratch(p));
  }
}

void dlu_mmdet_compute(int operation, const int64_t* values, void* scratch) {
  using namespace dlu_mmdet;
  const Call p(operation, values);
  if (p.N == 0) return;
  char* const bytes = static_cast<char*>(scratch);
  switch (operation) {
    case kForward: return forward(p, bytes);
    case kBackwardFeatures: return backward_features(p, bytes);
    default: return backward_kernels(p, bytes);
  }
}

const char* dlu_mmdet_loops() { return dlu_mmdet::loops().name; }

}  // extern "C"
