#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,fma,prfchw,prefer-vector-width=512")
#endif

#define DLU_ISA avx512
#define DLU_VECTOR_BYTES 64
#define DLU_BLOCK 4
#define DLU_BLOCK_LAST 4
#define DLU_TAPS 5
#include "kernels_impl.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
