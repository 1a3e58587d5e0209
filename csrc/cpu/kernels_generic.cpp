// The baseline: any x86-64 (SSE2) and aarch64 (NEON).
#define DLU_ISA generic
#define DLU_VECTOR_BYTES 16
#define DLU_BLOCK 2
#define DLU_BLOCK_LAST 2
#define DLU_TAPS 2
#include "kernels_impl.h"
