#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define DLU_ISA avx2
#define DLU_VECTOR_BYTES 32
#define DLU_BLOCK 3
#define DLU_BLOCK_LAST 2
#define DLU_TAPS 3
#include "kernels_impl.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
