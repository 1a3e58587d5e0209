// Stands in for c10/cuda where kernels are launched to be recorded: no GPU, and the
// operators take CPU tensors.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/library.h>

#undef TORCH_LIBRARY_IMPL
#define TORCH_LIBRARY_IMPL(ns, key, m) _TORCH_LIBRARY_IMPL(ns, CPU, m, C10_UID)
#define C10_CUDA_CHECK(call) TORCH_CHECK((call) == cudaSuccess, #call)
#define C10_CUDA_KERNEL_LAUNCH_CHECK() C10_CUDA_CHECK(cudaGetLastError())

namespace c10::cuda {

struct CUDAGuard {
  explicit CUDAGuard(c10::Device) {}
};

inline cudaStream_t getCurrentCUDAStream() { return nullptr; }

}  // namespace c10::cuda
