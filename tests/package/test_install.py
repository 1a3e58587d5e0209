"""What users install: old Python and torch, builds, packages, names from any folder."""

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import mmcv.ops
import mmengine
import pytest
import torch
from conftest import ROOT, as_arguments, run
from mmcv.cnn import build_upsample_layer
from mmdet.registry import MODELS
from mmengine.fileio import load
from mmengine.registry import DefaultScope

import dlu_mmdet
from dlu_mmdet.collect_env import collect_env
from dlu_mmdet.config import read_config
from dlu_mmdet.cuda_toolkit import find_toolkit
from dlu_mmdet.ops import library
from dlu_mmdet.stacks import suppress_fork_notices
from dlu_mmdet.upsamplers import UPSAMPLERS, DLUPack

SOURCES = [
    *ROOT.glob('*.py'),
    *(
        f
        for top in ('dlu_mmdet', 'tools', 'benchmarks', 'tests')
        for f in ROOT.glob(f'{top}/**/*.py')
    ),
]


def newer_than_39(tree):
    """Lines that Python 3.9 compiles, and fails on where they run."""
    lazy = any(
        isinstance(n, ast.ImportFrom) and n.module == '__future__' for n in tree.body
    )
    annotations = set()
    for node in ast.walk(tree) if lazy else ():
        for name in ('annotation', 'returns'):
            annotations |= set(ast.walk(getattr(node, name, None) or ast.Pass()))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id == 'zip' and any(k.arg == 'strict' for k in node.keywords):
                yield node.lineno
            if node.func.id in ('isinstance', 'issubclass'):
                if isinstance(node.args[-1], ast.BinOp):
                    yield node.lineno
        elif isinstance(node, ast.BinOp) and node not in annotations:
            sides = (node.left, node.right)
            if isinstance(node.op, ast.BitOr) and any(
                isinstance(side, ast.Constant) and side.value is None for side in sides
            ):
                yield node.lineno


def test_python_39_can_run_the_sources():
    """The package would install under Python 3.9 and fail on import or in a run."""
    found = []
    for file in SOURCES:
        tree = ast.parse(file.read_text(), feature_version=(3, 9))
        found += [f'{file.relative_to(ROOT)}:{line}' for line in newer_than_39(tree)]
    assert not found


@pytest.mark.parametrize(
    'source',
    [
        'zip(a, b, strict=True)',
        'isinstance(a, int | str)',
        'def f(a: int | None): ...',
    ],
)
def test_what_python_39_lacks_is_found(source):
    """The test above would pass whatever the sources hold."""
    assert list(newer_than_39(ast.parse(source)))


# ---- what the build makes of a CUDA toolkit that does not fit ----------------------

BUILD = """
import runpy, sys, torch
torch.version.cuda = '13.0'
sys.argv = ['setup.py', 'build_ext', '--inplace']
runpy.run_path('setup.py', run_name='__main__')
"""
# nvcc --version, then what it says of any source
NVCC = {
    'another release': ('12.1', 'echo should not be asked; exit 1'),
    'compile error': ('13.0', 'echo "x.cu(1): error: expected a declaration"; exit 1'),
    'unknown GPU': ('13.0', 'echo "nvcc fatal: unsupported gpu compute_37"; exit 1'),
}


@pytest.fixture
def sources(tmp_path):
    """A checkout with one short source for each device, and a toolkit."""
    for name in ('setup.py', 'pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / 'requirements', tmp_path / 'requirements')
    for folder in ('csrc/cpu', 'csrc/cuda', 'dlu_mmdet'):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / 'dlu_mmdet' / '__init__.py').write_text("__version__ = '0'\n")
    shutil.copy(ROOT / 'dlu_mmdet' / 'cuda_toolkit.py', tmp_path / 'dlu_mmdet')
    (tmp_path / 'csrc' / 'cpu' / 'x.cpp').write_text('int one() { return 1; }\n')
    (tmp_path / 'csrc' / 'cuda' / 'x.cu').write_text('int two() { return 2; }\n')
    return tmp_path


def write_script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\n{text}\n')
    path.chmod(0o755)
    return path


def make_toolkit(home, release='13.0', answer='exit 1', cudart='lib64/libcudart.so'):
    """A folder with an nvcc that names it, and a libcudart."""
    write_script(
        home / 'bin' / 'nvcc',
        f'[ "$1" = --version ] && echo "release {release}, V{release}" && exit 0\n'
        f'[ "$1" = --dryrun ] && echo "#\\$ TOP={home}/bin/.." && exit 0\n{answer}',
    )
    (home / cudart).parent.mkdir(parents=True, exist_ok=True)
    (home / cudart).touch()


def without_cuda_home():
    return {k: v for k, v in os.environ.items() if k not in ('CUDA_HOME', 'CUDA_PATH')}


def build(sources, release, answer, **environment):
    """Run setup.py beside a toolkit of that release, whose nvcc gives that answer.

    The nvcc in PATH is a script that calls it.
    """
    make_toolkit(sources / 'cuda', release, answer)
    wrapper = write_script(
        sources / 'wrapper' / 'bin' / 'nvcc', f'exec {sources}/cuda/bin/nvcc "$@"'
    )
    environment = {
        'TORCH_CUDA_ARCH_LIST': '9.0',
        'MAX_JOBS': '1',
        'PATH': f'{wrapper.parent}:{os.environ["PATH"]}',
        **environment,
    }
    return subprocess.run(
        [sys.executable, '-c', BUILD],
        cwd=sources,
        env={**without_cuda_home(), **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.mark.parametrize('nvcc', NVCC)
def test_cuda_that_does_not_fit_costs_only_cuda(sources, nvcc):
    """The user would get no compiled operator at all, not even the CPU's."""
    built = build(sources, *NVCC[nvcc])
    assert built.returncode == 0, built.stdout
    assert (sources / 'dlu_mmdet' / '_C.abi3.so').is_file()
    assert not list(sources.glob('dlu_mmdet/_C_cuda_*'))
    assert 'compiled for the CPU only' in built.stdout
    assert 'install the CUDA toolkit 13.0' in built.stdout
    # torch takes the folder of the script in PATH for the toolkit
    assert f'{sources}/wrapper/bin/nvcc' not in built.stdout


@pytest.mark.parametrize('nvcc', ['another release', 'compile error'])
def test_cuda_that_is_insisted_on_fails(sources, nvcc):
    """A cluster's image would be built without its operators."""
    assert build(sources, *NVCC[nvcc], FORCE_CUDA='1').returncode != 0


def test_what_cannot_be_linked_is_not_compiled(sources):
    """The link comes last, minutes after the first file."""
    built = build(sources, '13.0', 'exit 1', CUDA_HOME=f'{sources}/wrapper')
    assert built.returncode == 0 and 'for the CPU only: found no CUDA' in built.stdout
    built = build(
        sources, '13.0', 'exit 1', CUDA_HOME=f'{sources}/wrapper', FORCE_CUDA='1'
    )
    assert built.returncode != 0 and 'nvcc -' not in built.stdout
    message = built.stdout.strip().splitlines()[-1]
    assert f'found no CUDA toolkit in {sources}/wrapper;' in message
    assert 'libcudart.so' in message and 'set CUDA_HOME' in message


@pytest.mark.parametrize(
    'cudart', ['lib64', 'lib', 'targets/x86_64-linux/lib', 'lib/x86_64-linux-gnu']
)
def test_the_toolkit_is_found_in_any_layout(tmp_path, monkeypatch, cudart):
    named, asked, script = (tmp_path / name for name in ('named', 'asked', 'script'))
    make_toolkit(named, cudart=f'{cudart}/libcudart.so')
    make_toolkit(asked, cudart=f'{cudart}/libcudart.so')
    write_script(script / 'bin' / 'nvcc', f'exec {asked}/bin/nvcc "$@"')
    for name in ('CUDA_HOME', 'CUDA_PATH'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('PATH', f'{script}/bin:{os.environ["PATH"]}')
    assert find_toolkit() == (asked, asked / cudart)
    # a distribution's nvcc names a folder without libraries, which lie beside it
    (asked / cudart / 'libcudart.so').rename(script / 'libcudart.so')
    (script / cudart).mkdir(parents=True)
    (script / 'libcudart.so').rename(script / cudart / 'libcudart.so')
    assert find_toolkit() == (script, script / cudart)
    monkeypatch.setenv('CUDA_HOME', str(named))
    assert find_toolkit() == (named, named / cudart)
    monkeypatch.setenv('CUDA_HOME', str(asked))
    with pytest.raises(FileNotFoundError, match=f'in {asked}; .* set CUDA_HOME'):
        find_toolkit()


def test_no_compiler_leaves_a_package_without_operators(sources):
    built = build(sources, '12.1', 'exit 1', CXX='false', CC='false')
    assert built.returncode == 0, built.stdout
    assert 'the plain PyTorch ones will be used' in built.stdout


def test_the_cpu_library_needs_neither_torch_nor_python():
    """A wheel would serve the one release of torch that it was made with."""
    code = """
import ctypes, sys
print(ctypes.CDLL(sys.argv[1]).dlu_mmdet_compute.__name__, 'torch' in sys.modules)
"""
    file = ROOT / 'dlu_mmdet' / '_C.abi3.so'
    if not file.is_file():
        pytest.skip('the extension is not built')
    assert run('-c', code, file).stdout.split() == ['dlu_mmdet_compute', 'False']


@pytest.mark.parametrize('name', ['DLU_MMDET_NO_EXT', 'FORCE_CUDA'])
def test_unknown_settings_of_the_build_are_refused(name):
    """FORCE_CUDA=yes would leave CUDA out in silence."""
    environment = {**os.environ, name: 'yes'}
    output = run('setup.py', '--version', env=environment, check=False).stdout
    assert f"variable {name} must be 0 or 1, or not set, got 'yes'" in output


# ---- importing ---------------------------------------------------------------------


def test_both_stacks_are_told_at_import(tmp_path):
    """Half of mmcv would be another's, and fail wherever it happens to."""
    for name, version in (('mmcv', '2.1.0'), ('onedl_mmcv', '2.3.6')):
        info = tmp_path / f'{name}-{version}.dist-info'
        info.mkdir()
        (info / 'METADATA').write_text(
            f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n'
        )
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    environment = {**os.environ, 'PYTHONPATH': path}
    output = run('-c', 'import dlu_mmdet', env=environment).stdout
    assert 'mmcv 2.1.0 and onedl-mmcv 2.3.6 are both installed' in output
    assert 'pip uninstall mmcv onedl-mmcv' in output


def test_an_import_prints_nothing_and_leaves_drawing_for_later():
    code = 'import sys, dlu_mmdet; print(*(m for m in sys.modules if "dlu_mmdet" in m))'
    (line,) = run('-c', code).stdout.splitlines()
    loaded = set(line.split())
    assert 'dlu_mmdet.visualization.hook' in loaded
    later = ('visualization.kernel_figure', 'explain', 'comparison', 'export')
    assert not loaded & {f'dlu_mmdet.{name}' for name in later}


def test_commands_start_with_what_they_say(tmp_path):
    """Notes of other packages look like failures of this one."""
    for command in (['tools/test.py'], ['-m', 'dlu_mmdet', 'visualize']):
        assert run(*command, '--help').stdout.startswith('usage: '), command


def test_quiet_hides_nothing_else(capsys):
    """A real warning would be lost with the notes."""
    with pytest.raises(ImportError), suppress_fork_notices():
        print('Could not import OneDL. Skipping OneDL datasets.')
        print('the disk is on fire')
        raise ImportError
    assert capsys.readouterr().out == 'the disk is on fire\n'


def test_importing_changes_no_loader_and_no_pipeline(trained):
    """A program that imports the package for one module would load its own files
    otherwise than before; mmengine's own loader takes what training wrote."""
    code = f"""
import mmcv.transforms, mmengine.dataset
from mmengine.runner import CheckpointLoader
def state():
    loaders = {{k: v for k, v in CheckpointLoader._schemes.items() if '//' not in k}}
    return (loaders, mmengine.dataset.Compose.__call__,
            mmcv.transforms.Compose.transform)
before = state()
import dlu_mmdet
assert state() == before
file = {str(trained / 'epoch_4.pth')!r}
loaded = CheckpointLoader.load_checkpoint(file, 'cpu')
dlu_mmdet.engine.load_checkpoint(file)
assert state() == before and loaded['state_dict']
"""
    run('-c', code)


def test_mmcvs_carafe_on_a_gpu_stays_mmcvs(monkeypatch):
    """Users of mmcv's own operator would get another one by an import."""
    module = build_upsample_layer(dict(type='carafe', channels=8, scale_factor=2))
    called = []
    monkeypatch.setattr(
        mmcv.ops.CARAFEPack, 'feature_reassemble', lambda *args: called.append(args)
    )
    x, mask = SimpleNamespace(is_cuda=True), object()
    module.feature_reassemble(x, mask)
    assert called == [(module, x, mask)]


# ---- from any folder ---------------------------------------------------------------


def test_a_bug_report_has_what_it_needs(tmp_path):
    found = collect_env()
    assert found['dlu_mmdet'] == dlu_mmdet.__version__
    assert found['PyTorch'] == torch.__version__
    assert ('cpu' in found['compiled operators']) == library.is_available('cpu')
    if library.is_available('cpu'):
        assert found['CPU loops'] in ('avx512', 'avx2', 'generic')
        code = 'from dlu_mmdet.ops import library; print(library.cpu_loops())'
        environment = {**os.environ, 'DLU_MMDET_ISA': 'generic'}
        # after warnings of MMDetection's docstrings, on Python 3.12
        assert run('-c', code, env=environment).stdout.split()[-1] == 'generic'
    assert 'compiled operators: ' in run('-m', 'dlu_mmdet', '--version').stdout


def test_an_unknown_command_is_refused_with_the_known_ones():
    refused = run('-m', 'dlu_mmdet', 'trian', check=False)
    assert refused.returncode == 1
    assert "no command 'trian'" in refused.stdout and 'train' in refused.stdout


@pytest.mark.skipif(
    not (ROOT / 'dlu_mmdet' / '.mim').is_dir(), reason='the package is not installed'
)
def test_configs_by_name_from_any_folder(tmp_path, monkeypatch):
    """Without a checkout there would be no config to start from."""
    monkeypatch.chdir(tmp_path)
    name = 'dlu_mmdet::shapes/faster-rcnn_r18_fpn-dlu_shapes.py'
    own = read_config(name)
    assert own.model.neck.upsample_cfg.type == 'dlu'
    if not Path(mmengine.utils.get_installed_path('dlu_mmdet'), '.mim').is_dir():
        pytest.skip('mmengine 0.10 does not find the folder of an editable install')
    Path('mine.py').write_text(
        f'_base_ = {name!r}\nmodel = dict(neck=dict(upsample_cfg=dict(up_kernel=3)))\n'
    )
    inherited = read_config('mine.py')
    with DefaultScope.overwrite_default_scope('mmdet'):
        model, expected = (MODELS.build(cfg.model) for cfg in (inherited, own))
    assert model.neck.upsample_modules[0].up_kernel == 3
    # what a scope of its own could turn into something else
    types = [type(module) for _, module in model.named_modules()]
    assert types == [type(module) for _, module in expected.named_modules()]


def test_published_figures_name_their_publisher():
    """They would pass for this package's."""
    index = load(ROOT / 'model-index.yml')
    for file in index['Import']:
        for model in load(ROOT / file)['Models']:
            assert (ROOT / model['Config']).is_file(), model
            for result in model['Results']:
                assert all('published' in name for name in result['Metrics']), model


def test_published_figures_are_those_of_the_docs():
    """docs/coco.md says of which pyramid each is, and where it is from."""
    lines = (ROOT / 'docs/coco.md').read_text().splitlines()
    start = lines.index(
        '| upsampler | published AP | P6 in the top-down path | source |'
    )
    table = {}
    for line in lines[start + 2 : lines.index('', start)]:
        name, *rest = (cell.strip() for cell in line.strip('|').split('|'))
        table[name.lower()] = rest
    for model in load(ROOT / 'configs/faster_rcnn/metafile.yml')['Models']:
        upsampler = model['Name'].split('-')[2].split('_')[0]
        figure, p6, source = table[upsampler]
        ((label, value),) = model['Results'][0]['Metrics'].items()
        assert figure == str(value) and p6.startswith('yes')
        publisher = label.split(', ')[1].split("'")[0].replace('MMDetection', 'mmdet')
        assert publisher in source


@pytest.mark.parametrize(
    'neck, millions', [('UnifiedFPN', 46.84), ('UpsampleFPN', 41.53)]
)
def test_the_two_pyramids_have_the_published_parameters(neck, millions):
    """By which docs/coco.md tells what a published figure is of."""
    cfg = read_config('dlu_mmdet::faster_rcnn/faster-rcnn_r50_fpn-nearest_1x_coco.py')
    cfg.model.neck.type = neck
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert round(trained / 1e6, 2) == millions


@pytest.mark.slow
def test_a_source_distribution_installs_elsewhere(tmp_path, small):
    """What is missing from it is missed by those who have no checkout."""
    source = tmp_path / 'source'
    ignored = shutil.ignore_patterns('.*', '*.so', 'build', 'work_dirs', 'data')
    shutil.copytree(ROOT, source, ignore=ignored)
    run('setup.py', '-q', 'sdist', '-d', tmp_path, cwd=source)
    (sdist,) = tmp_path.glob('*.tar.gz')
    shutil.rmtree(source)
    # a clean environment but for the stack, which it sees and cannot change
    run('-m', 'venv', tmp_path / 'env', cwd=tmp_path)
    python = tmp_path / 'env' / 'bin' / 'python'
    (folder,) = (tmp_path / 'env' / 'lib').glob('python*/site-packages')
    (folder / 'stack.pth').write_text(sysconfig.get_path('purelib'))
    environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}

    def there(*command):
        process = subprocess.run(
            [python, *map(str, command)],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=tmp_path,
            env=environment,
        )
        assert process.returncode == 0, process.stdout[-4000:]
        return process.stdout

    pip = ('-m', 'pip', '--disable-pip-version-check')
    offline = ('--no-deps', '--no-build-isolation', '--no-index')
    there(*pip, 'wheel', *offline, sdist, '-w', tmp_path)
    (wheel,) = tmp_path.glob('*.whl')
    # one for every Python
    assert '-cp39-abi3-' in wheel.name
    there(*pip, 'install', '--force-reinstall', *offline, wheel)
    code = """
import dlu_mmdet
from dlu_mmdet.ops import library
print(dlu_mmdet.__file__, library.is_available('cpu'))
"""
    assert there('-c', code).split() == [str(folder / 'dlu_mmdet/__init__.py'), 'True']
    assert 'compiled operators: cpu' in there('-m', 'dlu_mmdet', '--version')
    there(ROOT / 'tests' / 'package' / 'one_wheel.py', folder)
    config = tmp_path / 'mine.py'
    name = 'dlu_mmdet::shapes/faster-rcnn_r18_fpn-dlu_shapes.py'
    config.write_text(f'_base_ = {name!r}\n')
    work = tmp_path / 'work'
    command = ('-m', 'dlu_mmdet', 'compare', config, '--work-dir', work)
    there(*command, '--resamples', '100', *as_arguments(small))
    assert (work / 'comparison.md').is_file()


def test_torch_alone():
    """The operators, the upsamplers and replace_upsampling need no MMDetection."""
    script = ROOT / 'tests' / 'package' / 'torch_alone.py'
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    lines = run(script, 'block', env=environment).stdout.splitlines()
    assert lines[-2].startswith('dlu_mmdet needs MMDetection 3.x (No module named')
    assert lines[-1].endswith(
        'modules need MMDetection, the others work with torch alone'
    )


def test_registry_of_upsamplers():
    """MMDetection finds them by their scope, and they find what is in its MODELS."""
    assert MODELS.get('dlu_mmdet_upsampler.dlu') is UPSAMPLERS.get('dlu') is DLUPack
    assert mmengine.MODELS.get('dlu') is DLUPack
    assert UPSAMPLERS.parent is MODELS


def test_a_folder_of_the_packages_name_does_not_hide_it(tmp_path):
    """Beside a checkout, whose folder has this name, runs of compare would fail."""
    (tmp_path / 'dlu_mmdet').mkdir()
    environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    shown = subprocess.check_output(
        [sys.executable, '-m', 'dlu_mmdet', '--version'],
        cwd=tmp_path,
        env=environment,
        text=True,
    )
    assert shown.startswith('dlu_mmdet: ')
