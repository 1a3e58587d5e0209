import os
import runpy
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
# what MMDetection's packages carry along in a folder .mim, for names as mmdet::...
CARRIED = ('configs', 'tools', 'model-index.yml')


class BuildWithConfigs(build_py):
    """Put configs and tools into the package; a checkout gets links to them."""

    def run(self):
        super().run()
        package = ROOT if self.editable_mode else Path(self.build_lib)
        mim = package / 'dlu_mmdet' / '.mim'
        shutil.rmtree(mim, ignore_errors=True)
        mim.mkdir(parents=True)
        for name in CARRIED:
            if self.editable_mode:
                (mim / name).symlink_to(Path('..', '..', name))
            elif (ROOT / name).is_dir():
                ignored = shutil.ignore_patterns('__pycache__')
                shutil.copytree(ROOT / name, mim / name, ignore=ignored)
            else:
                shutil.copy(ROOT / name, mim / name)


def sources(*patterns: str) -> list[str]:
    found = [path for pattern in patterns for path in ROOT.glob(pattern)]
    return sorted(str(path.relative_to(ROOT)) for path in found)


def is_set(name: str) -> bool:
    """Whether an environment variable that is 1 or 0 is 1."""
    value = os.environ.get(name, '')
    if value not in ('', '0', '1'):
        raise ValueError(
            f'the environment variable {name} must be 0 or 1, or not set, got {value!r}'
        )
    return value == '1'


def find_cuda(torch, force: bool) -> tuple:
    """The CUDA toolkit for a torch and the folder of its libcudart; None where none is.

    Raises:
        RuntimeError: If there is none and ``force`` insists on it.
    """
    if torch and torch.version.cuda:
        code = runpy.run_path(str(ROOT / 'dlu_mmdet' / 'cuda_toolkit.py'))
        try:
            return code['find_toolkit']()
        except FileNotFoundError as error:
            if force:
                raise RuntimeError(f'FORCE_CUDA=1: {error}') from None
            print(f'dlu_mmdet: operators for the CPU only: {error}', file=sys.stderr)
    elif force:
        raise RuntimeError(
            'FORCE_CUDA=1 needs --no-build-isolation and a CUDA build of torch, got '
            f'torch {torch and torch.__version__}'
        )
    return None, None


def operators() -> dict:
    """Arguments of setup() that build the compiled operators.

    Two libraries. That of the CPU needs a C++ compiler alone and serves every torch and
    Python. That of CUDA is built where torch can be imported (--no-build-isolation), is
    a CUDA build, and a CUDA toolkit is found; FORCE_CUDA=1 insists on it and
    TORCH_CUDA_ARCH_LIST names the GPUs. DLU_MMDET_NO_EXT=1, or no compiler: the package
    runs on its plain PyTorch operators.
    """
    if is_set('DLU_MMDET_NO_EXT'):
        return {}
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError:
        torch = cpp_extension = None

    force_cuda = is_set('FORCE_CUDA')
    toolkit, cudart = find_cuda(torch, force_cuda)
    if toolkit:
        cpp_extension.CUDA_HOME = str(toolkit)

    # torch's compiles several files at once
    class BuildExtension(cpp_extension.BuildExtension if torch else build_ext):
        def build_extensions(self):
            every = self.extensions
            for extension in every:
                # torch refuses all of them where nvcc does not fit
                self.extensions = [extension]
                try:
                    super().build_extensions()
                except Exception as error:
                    if force_cuda:
                        raise
                    reason = ' '.join(str(error).split())
                    print(f'{failures[extension.name]}: {reason}', file=sys.stderr)
                    # nothing asks for what is not there
                    extension.optional = True
            self.extensions = every

    cpu = 'dlu_mmdet._C'
    failures = {
        cpu: 'dlu_mmdet: operators not compiled, the plain PyTorch ones '
        'will be used; for the compiled ones install a C++ compiler'
    }
    flags = ['-O3', '-g0', '-ffp-contract=fast', '-Wno-psabi', '-Wno-unknown-pragmas']
    # the branches that would leave them so are never taken
    flags.append('-Wno-maybe-uninitialized')
    openmp = ['-fopenmp'] if sys.platform.startswith('linux') else []
    # it must not come to lean on torch or Python
    linked = ['-Wl,--no-undefined'] if openmp else []
    headers = sources('csrc/*.h', 'csrc/*/*.h', 'csrc/*/*.cuh')
    extensions = [
        Extension(
            cpu,
            sources('csrc/cpu/*.cpp'),
            depends=headers,
            extra_compile_args=['-std=c++17', *flags, *openmp],
            extra_link_args=openmp + linked,
            language='c++',
            py_limited_api=True,
        )
    ]
    if toolkit:
        # what is built for one torch does not load under another: one file for each
        tag = '_'.join(('torch', *torch.__version__.split('.')[:2]))
        cuda = f'dlu_mmdet._C_cuda_{tag}'
        failures[cuda] = (
            'dlu_mmdet: operators compiled for the CPU only; for CUDA install the '
            f'CUDA toolkit {torch.version.cuda} that torch {torch.__version__} was '
            'built with, let CUDA_HOME name it and TORCH_CUDA_ARCH_LIST your GPU, and '
            'install again (FORCE_CUDA=1 shows the whole error)'
        )
        extensions.append(
            cpp_extension.CUDAExtension(
                cuda,
                sources('csrc/cuda/*.cu'),
                depends=headers,
                library_dirs=[str(cudart)],
                extra_compile_args=dict(cxx=flags, nvcc=['-O3']),
            )
        )
    return dict(
        cmdclass=dict(build_py=BuildWithConfigs, build_ext=BuildExtension),
        ext_modules=extensions,
        # one wheel for every Python
        options=dict(bdist_wheel=dict(py_limited_api='cp39')),
    )


arguments = dict(cmdclass=dict(build_py=BuildWithConfigs))
arguments.update(operators())
setup(**arguments)
