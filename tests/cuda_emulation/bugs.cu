// Kernels that reverse 64 numbers, right with BUG = false and each with one bug else.
// The line that a finding has to name ends in "// here".
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_pipeline_primitives.h>
#include <torch/library.h>

#include <map>
#include <string>

namespace {

constexpr int n = 64;
constexpr unsigned all = 0xffffffff;

// Dynamic shared memory holds n floats.
#define KERNEL(name)      \
  template <bool BUG>     \
  __global__ void name(const float* x, float* out)
#define PROLOGUE                        \
  extern __shared__ float shared[];     \
  const int i = threadIdx.x;            \
  const int warp = i / 32, lane = i % 32

KERNEL(missing_barrier) {
  PROLOGUE;
  shared[i] = x[i];
  if (!BUG) __syncthreads();
  out[i] = shared[n - 1 - i];  // here
}

KERNEL(overwritten_while_read) {
  PROLOGUE;
  shared[i] = x[i];
  __syncthreads();
  const float value = shared[n - 1 - i];
  if (!BUG) __syncthreads();
  shared[i] = value;  // here
  out[i] = shared[i];
}

KERNEL(missing_warp_barrier) {
  PROLOGUE;
  shared[i] = x[n - 1 - (warp * 32 + 31 - lane)];
  if (!BUG) __syncwarp();
  out[i] = shared[warp * 32 + 31 - lane];  // here
}

KERNEL(shuffle_for_a_barrier) {
  PROLOGUE;
  shared[i] = x[n - 1 - (warp * 32 + 31 - lane)];
  if (!BUG) __syncwarp();
  __shfl_sync(all, lane, 0);
  out[i] = shared[warp * 32 + 31 - lane];  // here
}

KERNEL(divergent_barrier) {
  PROLOGUE;
  shared[i] = x[i];
  if (!BUG || i < 40) __syncthreads();  // here
  if (i < 40) out[i] = shared[n - 1 - i];
  if (i >= 40) out[i] = x[n - 1 - i];
}

KERNEL(return_before_a_barrier) {
  PROLOGUE;
  if (BUG && i == n - 1) return;
  shared[i] = x[i];
  __syncthreads();  // here
  out[i] = shared[n - 1 - i];
}

KERNEL(divergent_shuffle) {
  PROLOGUE;
  float value = x[n - 1 - i];
  if (!BUG || lane < 16) value = __shfl_xor_sync(all, value, 0);  // here
  out[i] = value;
}

KERNEL(shuffle_from_a_lane_left_out) {
  PROLOGUE;
  const int from = n - 1 - (i ^ 16);
  float value = x[n - 1 - i];
  if (lane < 16) {
    value = __shfl_xor_sync(0xffff, x[from], BUG ? 16 : 0) + value - x[from];  // here
  }
  out[i] = value;
}

KERNEL(one_past_the_tensor) {
  PROLOGUE;
  out[i] = x[n - (BUG ? 0 : 1) - i];  // here
}

KERNEL(one_before_the_tensor) {
  PROLOGUE;
  out[i - (BUG ? 1 : 0)] = x[n - 1 - i];  // here
}

KERNEL(past_dynamic_shared_memory) {
  PROLOGUE;
  shared[i + (BUG ? 1 : 0)] = x[i];  // here
  __syncthreads();
  out[i] = shared[n - 1 - i];
}

KERNEL(past_static_shared_memory) {
  PROLOGUE;
  __shared__ float tile[n];
  float* to = tile;
  to[i + (BUG ? 1 : 0)] = x[i];  // here
  __syncthreads();
  out[i] = tile[n - 1 - i];
}

KERNEL(past_a_row) {
  PROLOGUE;
  __shared__ float tile[2][32];
  tile[warp][lane + (BUG && warp == 0 ? 1 : 0)] = x[i];  // here
  __syncthreads();
  out[i] = tile[1 - warp][31 - lane];
}

KERNEL(past_registers) {
  PROLOGUE;
  float held[4] = {x[n - 1 - i]};
  const int last = static_cast<int>(blockDim.x) / 16;  // 4
  for (int j = 1; j < (BUG ? last + 1 : last); ++j) held[j] = held[j - 1];  // here
  out[i] = held[3];
}

KERNEL(wrong_stride) {
  PROLOGUE;
  const int to = BUG ? warp * 16 + lane : warp * 32 + lane;
  out[to] = x[n - 1 - to];  // here
}

KERNEL(without_atomics) {
  PROLOGUE;
  __shared__ float sum;
  if (i == 0) sum = 0;
  __syncthreads();
  if (BUG) {
    sum += 1;  // here
  } else {
    atomicAdd(&sum, 1.0f);
  }
  __syncthreads();
  out[i] = x[n - 1 - i] + (sum - n);
}

KERNEL(blocks_that_share) {  // of two blocks
  PROLOGUE;
  const int half = BUG ? 0 : blockIdx.x;
  if (i < 32) out[half * 32 + i] = x[n - 1 - half * 32 - i];  // here
}

KERNEL(misaligned) {
  PROLOGUE;
  if (i >= n / 4) return;
  const float4 v = *reinterpret_cast<const float4*>(x + 4 * i + (BUG && i == 3));  // here
  *reinterpret_cast<float4*>(out + n - 4 - 4 * i) = make_float4(v.w, v.z, v.y, v.x);
}

KERNEL(uninitialized) {
  PROLOGUE;
  if (!BUG || i > 0) shared[i] = x[i];
  __syncthreads();
  out[i] = shared[n - 1 - i];  // here
}

KERNEL(copy_not_waited_for) {
  PROLOGUE;
  __pipeline_memcpy_async(shared + i, x + n - 1 - i, 4);
  __pipeline_commit();
  if (!BUG) __pipeline_wait_prior(0);
  out[i] = shared[i];  // here
  __pipeline_wait_prior(0);
}

KERNEL(copy_waited_for_too_little) {
  PROLOGUE;
  __shared__ float other[n];
  __pipeline_memcpy_async(other + i, x + i, 4);
  __pipeline_commit();
  __pipeline_memcpy_async(shared + i, x + n - 1 - i, 4);
  __pipeline_commit();
  __pipeline_wait_prior(BUG ? 1 : 0);
  out[i] = shared[i];  // here
  __pipeline_wait_prior(0);
}

KERNEL(copy_without_a_barrier) {
  PROLOGUE;
  __pipeline_memcpy_async(shared + i, x + i, 4);
  __pipeline_commit();
  __pipeline_wait_prior(0);
  if (!BUG) __syncthreads();
  out[i] = shared[n - 1 - i];  // here
}

KERNEL(copy_left_behind) {
  PROLOGUE;
  out[i] = x[n - 1 - i];
  __pipeline_memcpy_async(shared + i, x + i, 4);  // here
  __pipeline_commit();
  if (!BUG) __pipeline_wait_prior(0);
}

KERNEL(right) { out[threadIdx.x] = x[n - 1 - threadIdx.x]; }

// More shared memory than a block may have, unless it was asked for.
KERNEL(much_memory) { right<BUG>(x, out); }

KERNEL(sums) {  // into what was zeroed
  PROLOGUE;
  atomicAdd(out + i, x[n - 1 - i]);
}

template <typename Kernel>
void launch(Kernel* kernel, const float* x, float* out, int blocks = 1) {
  kernel<<<blocks, n, n * sizeof(float), c10::cuda::getCurrentCUDAStream()>>>(x, out);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

// Reverses x with the kernel of that name.
at::Tensor reverse(const at::Tensor& input, std::string name, bool bug) {
  const at::Tensor tensor = at::empty({n}, input.options());
  const float* x = input.const_data_ptr<float>();
  float* out = tensor.mutable_data_ptr<float>();
  if (name == "no_guard" && bug) {
    launch(right<true>, x, out);
    return tensor;
  }
  const c10::cuda::CUDAGuard guard(input.device());
  const auto stream = c10::cuda::getCurrentCUDAStream();
#define CASE(kernel)                                                    \
  if (name == #kernel) {                                                \
    bug ? launch(kernel<true>, x, out) : launch(kernel<false>, x, out); \
  }
  CASE(missing_barrier)
  CASE(overwritten_while_read)
  CASE(missing_warp_barrier)
  CASE(shuffle_for_a_barrier)
  CASE(divergent_barrier)
  CASE(return_before_a_barrier)
  CASE(divergent_shuffle)
  CASE(shuffle_from_a_lane_left_out)
  CASE(one_past_the_tensor)
  CASE(one_before_the_tensor)
  CASE(past_dynamic_shared_memory)
  CASE(past_static_shared_memory)
  CASE(past_a_row)
  CASE(past_registers)
  CASE(wrong_stride)
  CASE(without_atomics)
  CASE(misaligned)
  CASE(uninitialized)
  CASE(copy_not_waited_for)
  CASE(copy_waited_for_too_little)
  CASE(copy_without_a_barrier)
  CASE(copy_left_behind)
  if (name == "no_guard") launch(right<false>, x, out);
  if (name == "blocks_that_share") {
    bug ? launch(blocks_that_share<true>, x, out, 2)
        : launch(blocks_that_share<false>, x, out, 2);
  }
  if (name == "not_zeroed") {
    if (!bug) tensor.zero_();
    launch(sums<false>, x, out);
  }
  if (name == "another_stream") {
    right<false><<<1, n, 0, bug ? nullptr : stream.stream()>>>(x, out);
  }
  if (name == "too_many_threads") {
    right<false><<<1, bug ? 1025 : n, 0, stream>>>(x, out);
  }
  if (name == "too_much_memory") {
    const int bytes = (bug ? 228 : 227) << 10;
    const cudaError_t error = cudaFuncSetAttribute(
        much_memory<false>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    (void)cudaGetLastError();  // it would stay for the next launch
    C10_CUDA_CHECK(error);
    much_memory<false><<<1, n, bytes, stream>>>(x, out);
  }
  if (name == "memory_not_asked_for") {
    void* arguments[] = {&x, &out};
    C10_CUDA_CHECK(cudaLaunchKernel(much_memory<true>, dim3(1), dim3(n), arguments,
                                    (bug ? 49 : 48) << 10, stream));
  }
  return tensor;
}

}  // namespace

TORCH_LIBRARY(cuda_emulation, m) {
  m.def("reverse(Tensor x, str name, bool bug) -> Tensor");
}
TORCH_LIBRARY_IMPL(cuda_emulation, CUDA, m) { m.impl("reverse", &reverse); }
