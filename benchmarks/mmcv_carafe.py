"""mmcv's CARAFE alone: its one CUDA file with a binding, for a machine without mmcv.

mmcv as a whole compiles for half an hour and needs OpenCV. Its sources come with every
installed mmcv, in the folder ``ops/csrc``.
"""

from __future__ import annotations

import importlib.util
import os
import runpy
import shutil
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / 'build' / 'gpu_kit' / 'mmcv_carafe.so'
FORWARD = 'features masks rfeatures routput rmasks output'.split()
BACKWARD = (
    'grad rfeatures masks rgrad rfeatures_hs rfeatures_grad rmasks_grad features_grad '
    'masks_grad'
).split()


def _binding() -> str:
    """C++ that makes torch operators of mmcv's two launchers."""
    parts = ['#include <torch/library.h>', 'using at::Tensor;']
    for name, tensors in dict(Forward=FORWARD, Backward=BACKWARD).items():
        launcher = f'CARAFE{name}CUDAKernelLauncher'
        declared = ', '.join(['Tensor'] * len(tensors) + ['int'] * 3)
        taken = ', '.join(f'const Tensor& {tensor}' for tensor in tensors)
        parts += [
            f'void {launcher}({declared});',
            f'void {name.lower()}({taken}, int64_t k, int64_t g, int64_t s) {{',
            f'  {launcher}({", ".join(tensors)}, k, g, s);',
            '}',
        ]
    parts += ['TORCH_LIBRARY(mmcv_carafe, m) {']
    parts += [f'  m.def("{name}", &{name});' for name in ('forward', 'backward')]
    return '\n'.join([*parts, '}', ''])


def find_sources(folder: Path | None = None) -> Path:
    """The folder ``ops/csrc`` of mmcv, by default of the installed one.

    Raises:
        FileNotFoundError: If mmcv is not installed, or its sources are not there.
    """
    if folder is None:
        spec = importlib.util.find_spec('mmcv')  # imports nothing
        folder = Path(spec.origin).parent / 'ops' / 'csrc' if spec else Path('mmcv')
    if not (folder / 'pytorch/cuda/carafe_cuda.cu').is_file():
        raise FileNotFoundError(
            f"found no sources of mmcv's CARAFE in {folder}; name the folder ops/csrc "
            'of an installed mmcv'
        )
    return folder


def build(csrc: Path, arch: str) -> Path:
    """Compile it with the CUDA toolkit, for the torch that runs this.

    Args:
        csrc (Path): As :func:`find_sources` returns it.
        arch (str): The GPU's compute capability, as 9.0.

    Returns:
        Path: The library.
    """
    from torch.utils import cpp_extension

    toolkit = runpy.run_path(str(ROOT / 'dlu_mmdet/cuda_toolkit.py'))['find_toolkit']
    home, cudart = toolkit()
    cpp_extension.CUDA_HOME = str(home)
    os.environ['TORCH_CUDA_ARCH_LIST'] = arch
    # headers of the CUDA libraries may be Python packages beside torch
    packages = Path(sysconfig.get_paths()['purelib']) / 'nvidia'
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / 'binding.cpp').write_text(_binding())
        cpp_extension.load(
            'mmcv_carafe',
            [f'{folder}/binding.cpp', str(csrc / 'pytorch/cuda/carafe_cuda.cu')],
            extra_include_paths=[
                *(str(csrc / name) for name in ('common', 'common/cuda')),
                *map(str, packages.glob('*/include')),
            ],
            extra_cflags=['-O2', '-g0'],
            extra_ldflags=[f'-L{cudart}'],
            build_directory=folder,
            is_python_module=False,
        )
        LIBRARY.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(folder) / 'mmcv_carafe.so', LIBRARY)
    return LIBRARY


class _Carafe(torch.autograd.Function):
    """With the buffers that mmcv's own function allocates."""

    @staticmethod
    def forward(ctx, features: Tensor, masks: Tensor, *sizes: int) -> Tensor:
        n, c, h, w = features.shape
        out, copy = (features.new_zeros(n, c, h * sizes[2], w * sizes[2]) for _ in 'ab')
        kept = torch.zeros_like(features)
        ops = torch.ops.mmcv_carafe
        ops.forward(features, masks, kept, copy, torch.zeros_like(masks), out, *sizes)
        ctx.save_for_backward(features, masks, kept)
        ctx.sizes = sizes
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        features, masks, kept = ctx.saved_tensors
        zeros = [
            torch.zeros_like(t) for t in (grad, grad, features, masks, features, masks)
        ]
        ops = torch.ops.mmcv_carafe
        ops.backward(grad.contiguous(), kept, masks, *zeros, *ctx.sizes)
        return (*zeros[-2:], None, None, None)


def load() -> Callable[..., Tensor] | None:
    """The function, with the arguments of mmcv's; None where it is not built."""
    if not LIBRARY.is_file():
        return None
    torch.ops.load_library(LIBRARY)
    return _Carafe.apply
