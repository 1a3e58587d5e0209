"""Import every module of the package with torch alone, and use what works with it.

    some/python tests/package/torch_alone.py [block]

``block`` makes mmcv, mmengine and mmdet unimportable where they are installed.
"""

import importlib
import pkgutil
import sys

import torch

STACK = {'mmcv', 'mmengine', 'mmdet'}
# imported where mmengine is, and where Triton is
ELSEWHERE = {'dlu_mmdet.registry', 'dlu_mmdet.ops.triton.kernels', 'dlu_mmdet._C'}


class Blocked:
    """A finder that finds none of MMDetection's packages, and nobody else may."""

    def find_spec(self, name, path=None, target=None):
        if (top := name.split('.')[0]) in STACK:
            raise ModuleNotFoundError(f'No module named {top!r}', name=top)


if sys.argv[1:] == ['block']:
    sys.meta_path.insert(0, Blocked())

import dlu_mmdet  # noqa: E402
import dlu_mmdet.ops  # noqa: E402
from dlu_mmdet.upsamplers import (  # noqa: E402
    UPSAMPLERS,
    CARAFEPack,
    DLUPack,
    DySample,
    build_upsampler,
)

x = torch.randn(1, 8, 3, 5, requires_grad=True)
for cls in (DLUPack, CARAFEPack, DySample):
    cls(8).forward(x).sum().backward()
for name, cls in UPSAMPLERS.module_dict.items():
    guide_channels = 8 if getattr(cls, 'guided', False) else None
    build_upsampler(dict(type=name), 8, 2, guide_channels)

model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.Upsample(None, 2))
done = dlu_mmdet.replace_upsampling(model, dict(type='dlu'), torch.zeros(1, 3, 4, 4))
assert list(done.replaced) == ['1'] and isinstance(model[1], DLUPack)

refused = set()
for info in pkgutil.walk_packages(dlu_mmdet.__path__, 'dlu_mmdet.', lambda name: None):
    if info.name in ELSEWHERE:
        continue
    try:
        importlib.import_module(info.name)
    except ModuleNotFoundError as error:
        if 'dlu_mmdet needs MMDetection 3.x' not in str(error):
            assert error.name == 'matplotlib', f'{info.name}: {error}'
        refused.add(info.name)
assert {'dlu_mmdet.necks', 'dlu_mmdet.engine', 'dlu_mmdet.comparison'} <= refused
try:
    dlu_mmdet.register_all_modules()
except ModuleNotFoundError as error:
    print(error)
print(f'{len(refused)} modules need MMDetection, the others work with torch alone')
