"""Replace the upsampling of a torchvision FPN, a U-Net and a YOLO.

    some/python tests/upsamplers/other_frameworks.py

Needs torchvision, segmentation-models-pytorch, ultralytics, onnxscript and onnxruntime,
not MMDetection. Each model keeps its numbers with its own interpolation, learns in a
training step with DLU, and gives the same in ONNX Runtime.
"""

import copy
import io
from collections import OrderedDict

import onnxruntime
import segmentation_models_pytorch as smp
import torch
from torch.utils._pytree import tree_leaves
from torchvision.ops import FeaturePyramidNetwork
from ultralytics import YOLO

from dlu_mmdet import replace_upsampling
from dlu_mmdet.upsamplers import DLUPack


class Pyramid(torch.nn.Module):
    """Convolutions of stride 2 below torchvision's FPN."""

    def __init__(self):
        super().__init__()
        channels = (3, 8, 8, 8)
        self.downs = torch.nn.ModuleList(
            torch.nn.Conv2d(c, 8, 3, 2, 1) for c in channels[:-1]
        )
        self.fpn = FeaturePyramidNetwork([8, 8, 8], 8)

    def forward(self, x):
        maps = OrderedDict()
        for i, down in enumerate(self.downs):
            maps[str(i)] = x = down(x)
        return list(self.fpn(maps).values())


def tensors(model, x):
    out = [each for each in tree_leaves(model(x)) if isinstance(each, torch.Tensor)]
    return [each for each in out if each.is_floating_point()]


def check(name, model, count):
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = tensors(model.eval(), x)
        nearest = copy.deepcopy(model)
        report = replace_upsampling(nearest, dict(type='nearest'), x)
        assert len(report.replaced) == count and not report.left, report
        assert all(map(torch.equal, tensors(nearest, x), expected))

    report = replace_upsampling(model, dict(type='dlu'), x)
    assert all(isinstance(each, DLUPack) for each in report.replaced.values())
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    model.train()
    sum(each.square().mean() for each in tensors(model, x)).backward()
    assert all(
        each.kernel_space_generator.weight.grad.abs().sum() > 0
        for each in report.replaced.values()
    )
    optimizer.step()

    model.eval()
    with torch.no_grad():
        expected = tensors(model, x)
    file = io.BytesIO()
    torch.onnx.export(model, (x,), file, dynamo=False, input_names=['x'])
    session = onnxruntime.InferenceSession(file.getvalue())
    found = session.run(None, {'x': x.numpy()})
    worst = max(
        (torch.from_numpy(ours) - theirs).abs().max() / theirs.abs().max()
        for ours, theirs in zip(found, expected)
    )
    assert worst < 1e-4, worst
    print(f'{name}: {[*report.replaced]}, ONNX Runtime within {worst:.1e}')


torch.manual_seed(0)
check('torchvision FPN', Pyramid(), 2)
check('U-Net', smp.Unet('resnet18', encoder_weights=None), 5)
yolo = YOLO('yolo11n.yaml').model
# its tuple of boxes and maps is what ultralytics exports as well
check('YOLO11n', yolo, 2)
