// What the emulated language (cuda.h) asks of the machine (machine.cpp).
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};

using cudaStream_t = struct CUstream_st*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributePreferredSharedMemoryCarveout = 9
};
enum cudaDeviceAttr {
  cudaDevAttrMaxThreadsPerBlock = 1,
  cudaDevAttrMaxSharedMemoryPerBlock = 8,
  cudaDevAttrWarpSize = 10,
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};

namespace emulation {

using Place = std::source_location;

struct Launch {
  dim3 grid, block;
  size_t bytes;  // of dynamic shared memory
  cudaStream_t stream;
  const void* kernel;
  void (*call)(const void* arguments);
  const void* arguments;
  size_t arguments_bytes;
};

// Runs every block of a grid; throws a RuntimeError that says what is wrong.
void run(const Launch& launch);

// Called by the threads of a kernel.
void wait_for_block(const Place& place);
struct Votes {
  uint64_t value;  // of the lane asked for
  unsigned lanes;  // whose value is not 0
};
Votes exchange(unsigned mask, uint64_t value, int lane, const Place& place);
void wait_for_warp(unsigned mask, const Place& place);
int lane();
char* dynamic_shared_memory();
char* static_shared_memory(const void* key, size_t bytes, size_t alignment);
void copy_later(void* to, const void* from, size_t bytes, size_t zeros);
void commit_copies();
void wait_for_copies(size_t but);
[[noreturn]] void trap();

// The runtime.
extern int guards;  // of the device, alive
cudaStream_t current_stream();
cudaError_t last_error(bool reset);
cudaError_t set_attribute(const void* kernel, cudaFuncAttribute attribute, int value);
int device_attribute(cudaDeviceAttr attribute);

}  // namespace emulation

float atomicAdd(float* to, float value);
double atomicAdd(double* to, double value);
int atomicAdd(int* to, int value);
unsigned atomicAdd(unsigned* to, unsigned value);
unsigned long long atomicAdd(unsigned long long* to, unsigned long long value);
