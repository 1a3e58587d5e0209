import os
import sys
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def requirements(name: str) -> list[str]:
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
    return [line for line in lines if line and not line.startswith('#')]


def operators() -> dict:
    """Arguments of setup() that build the compiled operators.

    CUDA kernels are built where torch is a CUDA build and nvcc is there;
    FORCE_CUDA=1 insists on them and TORCH_CUDA_ARCH_LIST names the GPUs.
    DLU_MMDET_NO_EXT=1, no torch or no compiler: the package runs on its plain
    PyTorch operators.
    """
    if os.environ.get('DLU_MMDET_NO_EXT') == '1':
        return {}
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError as error:
        print(
            f'dlu_mmdet: operators not compiled, {error}; install torch and '
            f'use --no-build-isolation',
            file=sys.stderr,
        )
        return {}

    force_cuda = os.environ.get('FORCE_CUDA') == '1'
    has_cuda = torch.version.cuda is not None and cpp_extension.CUDA_HOME is not None
    if force_cuda and not has_cuda:
        raise RuntimeError(
            f'FORCE_CUDA=1 needs a CUDA build of torch, got {torch.__version__}, '
            f'and nvcc, got CUDA_HOME={cpp_extension.CUDA_HOME}'
        )

    class BuildExtension(cpp_extension.BuildExtension):
        def run(self):
            try:
                super().run()
            except Exception as error:
                if force_cuda:
                    raise
                print(
                    f'dlu_mmdet: operators not compiled, the plain PyTorch '
                    f'ones will be used: {error}',
                    file=sys.stderr,
                )

    flags = ['-O3', '-g0', '-ffp-contract=fast', '-Wno-psabi', '-Wno-unknown-pragmas']
    openmp = ['-fopenmp'] if sys.platform.startswith('linux') else []
    sources = [*ROOT.glob('csrc/*.cpp'), *ROOT.glob('csrc/cpu/*.cpp')]
    extension = cpp_extension.CppExtension
    if has_cuda:
        extension = cpp_extension.CUDAExtension
        sources += ROOT.glob('csrc/cuda/*.cu')
    return dict(
        cmdclass=dict(build_ext=BuildExtension),
        ext_modules=[
            extension(
                'dlu_mmdet._C',
                sorted(str(path.relative_to(ROOT)) for path in sources),
                extra_compile_args=dict(cxx=flags + openmp, nvcc=['-O3']),
                extra_link_args=openmp,
                optional=not force_cuda,
            )
        ],
    )


setup(
    name='dlu_mmdet',
    version='0.1.0',
    description='Dynamic Lightweight Upsampling for MMDetection 3.x',
    license='Apache-2.0',
    packages=find_packages(include=['dlu_mmdet', 'dlu_mmdet.*']),
    python_requires='>=3.9',
    # the two stacks overwrite each other's files, so neither is required here
    install_requires=['torch>=2.1'],
    extras_require={
        name: requirements(name) for name in ('onedl', 'openmmlab', 'test')
    },
    **operators(),
)
