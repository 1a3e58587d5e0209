import importlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from dlu_mmdet.upsamplers import UPSAMPLERS, is_guided
from dlu_mmdet.utils.torch_compat import AT_LEAST_24

# two threads on two busy cores wait for each other longer than they work
os.environ.setdefault('OMP_NUM_THREADS', '1')
torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / 'configs'
#: upsamplers that a site without a guide takes
UNGUIDED = sorted(k for k, v in UPSAMPLERS.module_dict.items() if not is_guided(v))
_WRITTEN = tempfile.TemporaryDirectory()
SHAPES_DLU = CONFIGS / 'shapes' / 'faster-rcnn_r18_fpn-dlu_shapes.py'

needs_later_torch = pytest.mark.skipif(
    not AT_LEAST_24,
    reason=f'torch {torch.__version__} cannot do this, torch 2.4 or later can',
)
# float16 convolutions on a CPU are later than torch 2.1
HALVES = [torch.bfloat16, pytest.param(torch.float16, marks=needs_later_torch)]


def run(*command, check=True, cwd=ROOT, **kwargs):
    """Run a tool with this interpreter; returns output and status."""
    process = subprocess.run(
        [sys.executable, *map(str, command)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=cwd,
        **kwargs,
    )
    assert not check or process.returncode == 0, process.stdout[-4000:]
    return process


def shapes_config(name):
    """Path of a shapes config with an upsampler; 'dlu-direct': with direct top-down."""
    start, end = 'faster-rcnn_r18_fpn-', '_shapes.py'
    if not (path := CONFIGS / 'shapes' / f'{start}{name}{end}').exists():
        upsampler, direct, _ = name.partition('-direct')
        base = CONFIGS / 'shapes' / f'{start}bilinear{direct}{end}'
        path = Path(_WRITTEN.name, path.name)
        cfg = dict(type=upsampler.replace('-', '_'))
        path.write_text(
            f'_base_ = {str(base)!r}\nmodel = dict(neck=dict(upsample_cfg={cfg}))\n'
        )
    return path


def load_tool(name):
    """The module of a command."""
    return importlib.import_module(f'dlu_mmdet.cli.{name}')


def upsample(module, x):
    """Run an upsampler; one with a guide on a random one, ratio times the size of x."""
    if not is_guided(module):
        return module(x)
    s, (n, _, h, w) = module.scale_factor, x.shape
    guide = torch.randn(n, module.guide_channels, s * h, s * w)
    return module(x, guide.to(x))


def data_options(root, train, val, train_images, val_images):
    """Point a config at another data root; as --cfg-options."""
    options = {}
    for split, ann_file, images in (
        ('train', train, train_images),
        ('val', val, val_images),
        ('test', val, val_images),
    ):
        dataset = f'{split}_dataloader.dataset'
        options[f'{dataset}.data_root'] = str(root)
        options[f'{dataset}.ann_file'] = f'annotations/{ann_file}'
        options[f'{dataset}.data_prefix.img'] = images
        if split != 'train':
            options[f'{split}_evaluator.ann_file'] = f'{root}/annotations/{ann_file}'
    return options


def as_arguments(options):
    return ['--cfg-options', *(f'{k}={v}' for k, v in options.items())]


@pytest.fixture(scope='session')
def coco_root():
    root = os.environ.get('COCO_ROOT')
    if not root:
        pytest.skip(
            'COCO_ROOT is not set: it names a folder in the layout of COCO 2017'
        )
    if not Path(root, 'annotations').is_dir():
        pytest.skip(f'COCO_ROOT={root} has no folder annotations')
    return Path(root)


@pytest.fixture(scope='session')
def shapes_root(tmp_path_factory):
    """A shapes data set of 16 training and 8 validation images."""
    root = tmp_path_factory.mktemp('data') / 'shapes'
    run(
        '-m',
        'dlu_mmdet.datasets.make_shapes',
        root,
        '--num-train',
        16,
        '--num-val',
        8,
        '--image-size',
        128,
    )
    return root


@pytest.fixture(scope='session')
def small(shapes_root):
    """Options that make a shapes config a run of 4 epochs of 2 iterations."""
    return {
        **data_options(
            shapes_root, 'instances_train.json', 'instances_val.json', 'train/', 'val/'
        ),
        'train_cfg.max_epochs': 4,
        'train_cfg.val_interval': 4,
        'param_scheduler.0.end': 2,
        'param_scheduler.1.end': 4,
        'train_dataloader.batch_size': 8,
        'train_dataloader.num_workers': 0,
        'train_dataloader.persistent_workers': False,
        'val_dataloader.num_workers': 0,
        'val_dataloader.persistent_workers': False,
        'test_dataloader.num_workers': 0,
        'test_dataloader.persistent_workers': False,
    }


@pytest.fixture(scope='session')
def trained(small, tmp_path_factory):
    """Work directory of a small DLU detector, trained with tools/train.py."""
    work_dir = tmp_path_factory.mktemp('trained')
    run('tools/train.py', SHAPES_DLU, '--work-dir', work_dir, *as_arguments(small))
    return work_dir


@pytest.fixture
def config(small):
    cfg = Config.fromfile(SHAPES_DLU)
    cfg.merge_from_dict(small)
    return cfg
