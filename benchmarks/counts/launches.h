// Stands in for c10/cuda where kernels are launched to be recorded: no GPU, and the
// operators take CPU tensors, with features of one type, DLU_COUNTED, alone.
#pragma once

#include <ATen/Dispatch.h>
#include <cuda_runtime_api.h>
#include <torch/library.h>

#undef TORCH_LIBRARY_IMPL
#define TORCH_LIBRARY_IMPL(ns, key, m) _TORCH_LIBRARY_IMPL(ns, CPU, m, C10_UID)
#undef AT_DISPATCH_FLOATING_TYPES_AND2
#define AT_DISPATCH_FLOATING_TYPES_AND2(more, types, type, name, ...) \
  [&] {                                                               \
    TORCH_CHECK(type == c10::CppTypeToScalarType<DLU_COUNTED>::value); \
    using scalar_t = DLU_COUNTED;                                     \
    return __VA_ARGS__();                                             \
  }()
#define C10_CUDA_CHECK(call) TORCH_CHECK((call) == cudaSuccess, #call)
#define C10_CUDA_KERNEL_LAUNCH_CHECK() C10_CUDA_CHECK(cudaGetLastError())

namespace c10::cuda {

struct CUDAGuard {
  explicit CUDAGuard(c10::Device) {}
};

inline cudaStream_t getCurrentCUDAStream() { return nullptr; }

}  // namespace c10::cuda
