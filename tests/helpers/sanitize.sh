#!/usr/bin/env bash
# Run the CPU operators once under AddressSanitizer and UBSan.
# usage: tests/helpers/sanitize.sh [python]
set -eu
cd "$(dirname "$0")/../.."
python=${1:-python}
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT

# one instruction set: the others are the same source and triple the compile time
flags=(-std=c++17 -O1 -g1 -fPIC -fopenmp -fno-omit-frame-pointer -Wno-psabi
       -DDLU_MMDET_GENERIC_ONLY
       -fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=all)
"${CXX:-g++}" -c "${flags[@]}" csrc/cpu/reassembly.cpp -o "$build/reassembly.o" &
"${CXX:-g++}" -c "${flags[@]}" csrc/cpu/kernels_generic.cpp -o "$build/kernels.o"
wait $!
"${CXX:-g++}" -shared "${flags[@]}" "$build"/*.o -o "$build/_C.so"

# The interpreter is not instrumented, so the runtime comes first; its own leaks and
# OpenMP's thread stacks are not our subject.
LD_PRELOAD="$("${CXX:-g++}" -print-file-name=libasan.so) $("${CXX:-g++}" -print-file-name=libubsan.so)" \
ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
DLU_MMDET_NO_EXT=1 "$python" - "$build/_C.so" <<'PY'
import itertools
import sys
import types

import torch

# the operators without mmdet, which takes its time under a sanitizer
package = types.ModuleType('dlu_mmdet')
package.__path__ = ['dlu_mmdet']
sys.modules['dlu_mmdet'] = package
from dlu_mmdet.ops.cpu import Operators

ops = Operators(sys.argv[1])
wild = torch.tensor([1e30, -1e30, torch.nan, torch.inf, -torch.inf, 3e38, 0, -7])
dtypes = torch.float32, torch.float64, torch.float16, torch.bfloat16
layouts = torch.contiguous_format, torch.channels_last
sizes = [(1, 1, 1, 1, 1, 1, 1), (2, 3, 5, 17, 3, 1, 2), (1, 4, 7, 1, 5, 2, 3),
         (0, 2, 3, 3, 5, 1, 2), (1, 19, 9, 40, 5, 1, 2), (1, 6, 3, 16, 7, 2, 4)]
for (n, c, h, w, k, g, s), dtype, layout in itertools.product(sizes, dtypes, layouts):
    x, kernels = torch.randn(n, c, h, w), torch.randn(n, g * k * k, h, w)
    offsets = wild[torch.randint(8, (n, g * 2 * s * s, h, w))]
    masks = torch.randn(n, g * k * k, h * s, w * s)
    grad = torch.randn(n, c, h * s, w * s)
    x, kernels, offsets, masks, grad = (
        t.to(dtype).to(memory_format=layout) for t in (x, kernels, offsets, masks, grad))
    ops.dlu(x, kernels, offsets, k, g, s)
    ops.dlu_backward_features(grad, x, kernels, offsets, k, g, s)
    ops.dlu_backward_kernels(grad, x, kernels, offsets, k, g, s)
    ops.carafe(x, masks, k, g, s)
    ops.carafe_backward_features(grad, x, masks, k, g, s)
    ops.carafe_backward_masks(grad, x, masks, k, g, s)
print('no finding')
PY
