// CUDA C++ for a host compiler: the parts of the language and of the runtime that
// kernels use, over machine.h. Forced in front of every source of csrc/.
#pragma once

#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <tuple>
#include <type_traits>

#include "machine.h"

// ---- the language --------------------------------------------------------------

#define __host__
#define __device__
#define __global__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __restrict__ __restrict

// const: they do not change while a thread runs, and a read is none of memory
extern const uint3 threadIdx, blockIdx, blockDim, gridDim;
constexpr int warpSize = 32;

#define VECTORS(T, name)                                                           \
  struct name##1 {                                                                 \
    T x;                                                                           \
  };                                                                               \
  struct alignas(2 * sizeof(T)) name##2 {                                          \
    T x, y;                                                                        \
  };                                                                               \
  struct alignas(sizeof(T) < 4 ? 4 * sizeof(T) : 16) name##4 {                     \
    T x, y, z, w;                                                                  \
  };                                                                               \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                       \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
VECTORS(char, char)
VECTORS(unsigned char, uchar)
VECTORS(short, short)
VECTORS(unsigned short, ushort)
VECTORS(int, int)
VECTORS(unsigned, uint)
VECTORS(float, float)
VECTORS(double, double)
VECTORS(long long, longlong)
#undef VECTORS

// by value, and of mixed types, unlike those of std
template <typename A, typename B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  return a < b ? a : b;
}
template <typename A, typename B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  return a > b ? a : b;
}

template <typename T>
inline T __ldg(const T* from) {
  return *from;
}
template <typename T>
inline T __ldcs(const T* from) {
  return *from;
}
template <typename T>
inline void __stcs(T* to, T value) {
  *to = value;
}
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __clz(int v) { return v ? __builtin_clz(v) : 32; }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __trap() { emulation::trap(); }

// ---- barriers and warps --------------------------------------------------------

namespace emulation {

template <typename T>
T shuffle(unsigned mask, T value, int lane, const Place& place) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  bits = exchange(mask, bits, lane, place).value;
  memcpy(&value, &bits, sizeof(T));
  return value;
}

// The lane to read from, or this one where `from` leaves the segment of `width`.
inline int in_segment(int from, int width) {
  return from / width == lane() / width && from >= 0 ? from : lane();
}

}  // namespace emulation

inline void __syncthreads(emulation::Place place = emulation::Place::current()) {
  emulation::wait_for_block(place);
}
inline void __syncwarp(unsigned mask = 0xffffffff,
                       emulation::Place place = emulation::Place::current()) {
  emulation::wait_for_warp(mask, place);
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32,
              emulation::Place place = emulation::Place::current()) {
  const int first = emulation::lane() / width * width;
  return emulation::shuffle(mask, value, first + (from & (width - 1)), place);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 emulation::Place place = emulation::Place::current()) {
  const int from = emulation::lane() - static_cast<int>(delta);
  return emulation::shuffle(mask, value, emulation::in_segment(from, width), place);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   emulation::Place place = emulation::Place::current()) {
  const int from = emulation::lane() + static_cast<int>(delta);
  return emulation::shuffle(mask, value, emulation::in_segment(from, width), place);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32,
                  emulation::Place place = emulation::Place::current()) {
  const int from = emulation::lane() ^ bits;
  return emulation::shuffle(mask, value, emulation::in_segment(from, width), place);
}
inline unsigned __ballot_sync(unsigned mask, int predicate,
                              emulation::Place place = emulation::Place::current()) {
  return emulation::exchange(mask, predicate != 0, emulation::lane(), place).lanes;
}
inline int __any_sync(unsigned mask, int predicate,
                      emulation::Place place = emulation::Place::current()) {
  return __ballot_sync(mask, predicate, place) != 0;
}
inline int __all_sync(unsigned mask, int predicate,
                      emulation::Place place = emulation::Place::current()) {
  return __ballot_sync(mask, !predicate, place) == 0;
}

// ---- asynchronous copies, cuda_pipeline_primitives.h ---------------------------

inline void __pipeline_memcpy_async(void* to, const void* from, size_t bytes,
                                    size_t zeros = 0) {
  emulation::copy_later(to, from, bytes, zeros);
}
inline void __pipeline_commit() { emulation::commit_copies(); }
inline void __pipeline_wait_prior(size_t but) { emulation::wait_for_copies(but); }

// ---- the runtime ---------------------------------------------------------------

inline cudaError_t cudaGetLastError() { return emulation::last_error(true); }
inline cudaError_t cudaPeekAtLastError() { return emulation::last_error(false); }
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid argument";
}
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute what, int value) {
  return emulation::set_attribute(reinterpret_cast<const void*>(kernel), what, value);
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = emulation::device_attribute(attribute);
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel*,
                                                          int threads, size_t bytes) {
  const int memory = emulation::device_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  *blocks = std::min({32, 2048 / threads, static_cast<int>(memory / (bytes + 1024))});
  return cudaSuccess;
}

namespace emulation {

// kernel<<<grid, block, bytes, stream>>>(arguments)
template <typename... P>
auto launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t bytes = 0,
            cudaStream_t stream = nullptr) {
  return [=](std::type_identity_t<P>... arguments) {
    using Held = std::tuple<void (*)(P...), P...>;
    const Held held(kernel, arguments...);
    run({grid, block, bytes, stream, reinterpret_cast<const void*>(kernel),
         [](const void* held) {
           std::apply([](auto kernel, auto... arguments) { kernel(arguments...); },
                      *static_cast<const Held*>(held));
         },
         &held, sizeof held});
  };
}

template <typename... P, size_t... I>
void launch_pointers(void (*kernel)(P...), dim3 grid, dim3 block, void** arguments,
                     size_t bytes, cudaStream_t stream, std::index_sequence<I...>) {
  launch(kernel, grid, block, bytes, stream)(*static_cast<P*>(arguments[I])...);
}

// __shared__ T name; name is a reference to it
template <typename T>
T& shared_variable(const void* key) {
  return *reinterpret_cast<T*>(static_shared_memory(key, sizeof(T), alignof(T)));
}

}  // namespace emulation

template <typename... P>
cudaError_t cudaLaunchKernel(void (*kernel)(P...), dim3 grid, dim3 block,
                             void** arguments, size_t bytes = 0,
                             cudaStream_t stream = nullptr) {
  emulation::launch_pointers(kernel, grid, block, arguments, bytes, stream,
                             std::index_sequence_for<P...>{});
  return cudaSuccess;
}

#define C10_CUDA_CHECK(call)                                                       \
  do {                                                                             \
    const cudaError_t error_ = call;                                               \
    TORCH_CHECK(error_ == cudaSuccess, "CUDA error: ", cudaGetErrorString(error_)); \
  } while (0)
#define C10_CUDA_KERNEL_LAUNCH_CHECK() C10_CUDA_CHECK(cudaGetLastError())

namespace c10::cuda {

struct CUDAGuard {
  explicit CUDAGuard(c10::Device) { ++emulation::guards; }
  CUDAGuard(const CUDAGuard&) = delete;
  ~CUDAGuard() { --emulation::guards; }
};
struct CUDAStream {
  cudaStream_t stream() const { return emulation::current_stream(); }
  operator cudaStream_t() const { return stream(); }
};
inline CUDAStream getCurrentCUDAStream() { return {}; }

}  // namespace c10::cuda

// the tensors lie in the CPU's memory
#undef TORCH_LIBRARY_IMPL
#define TORCH_LIBRARY_IMPL(space, key, m) _TORCH_LIBRARY_IMPL(space, CPU, m, C10_UID)
