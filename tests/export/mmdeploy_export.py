r"""Necks and a detector through mmdeploy 1.3.1, held to PyTorch in onnxruntime.

    PYTHONPATH=DIR python tests/export/mmdeploy_export.py

in the environment of ``make test STACK=openmmlab TORCH=2.1.2``. mmdeploy wants packages
older than those of the other tests, so they lie beside it::

    pip install --no-deps --target DIR mmdeploy==1.3.1 onnx==1.15.0 protobuf==3.20.2 \
        onnxruntime==1.16.3 'grpcio<1.60' aenum multiprocess dill prettytable wcwidth \
        terminaltables coloredlogs humanfriendly flatbuffers
"""

import io
import sys
import tempfile
import warnings
from pathlib import Path

import mmcv
import numpy as np
import onnx
import onnxruntime
import torch
from mmdeploy.apis import torch2onnx
from mmdeploy.backend.onnxruntime.init_plugins import get_ops_path
from mmdeploy.core import RewriterContext, patch_model
from mmdeploy.utils import IR
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import dlu_mmdet  # noqa: F401
from dlu_mmdet.upsamplers import UPSAMPLERS

#: mmdeploy's default, and the first that has GridSample
OPSETS = dict.fromkeys(('dysample', 'freqfusion', 'lda_aqu'), 16)
CSP = dict(in_channels=[8, 16, 32], out_channels=8, num_csp_blocks=1)
NECKS = {
    'FPN': dict(in_channels=[8, 16, 32], out_channels=8, num_outs=3),
    'CSPNeXtPAFPN': CSP,
    'YOLOXPAFPN': CSP,
}
#: guided upsamplers need a neck that has the finer level at hand
CASES = [('FPN', name) for name in sorted(UPSAMPLERS.module_dict)] + [
    (neck, name)
    for neck in ('CSPNeXtPAFPN', 'YOLOXPAFPN')
    for name in ('nearest', 'carafe', 'dlu', 'dysample')
]
DEPLOY = Config(
    dict(
        onnx_config=dict(
            type='onnx',
            opset_version=11,
            export_params=True,
            keep_initializers_as_inputs=False,
            save_file='end2end.onnx',
            input_names=['input'],
            output_names=['dets', 'labels'],
            input_shape=None,
            dynamic_axes={
                'input': {0: 'batch', 2: 'height', 3: 'width'},
                'dets': {0: 'batch', 1: 'number'},
                'labels': {0: 'batch', 1: 'number'},
            },
        ),
        codebase_config=dict(
            type='mmdet',
            task='ObjectDetection',
            model_type='end2end',
            post_processing=dict(
                score_threshold=0.05,
                confidence_threshold=0.005,
                iou_threshold=0.5,
                max_output_boxes_per_class=200,
                pre_top_k=5000,
                keep_top_k=100,
                background_label_id=-1,
            ),
        ),
        backend_config=dict(type='onnxruntime'),
    )
)


def disturb(module, run):
    """Kernels and offsets as if trained, and statistics of what they are run on."""
    for name, parameter in module.named_parameters():
        if 'upsample' in name:
            nn.init.normal_(parameter, std=0.1)
    for each in module.modules():
        if isinstance(each, _BatchNorm):
            each.momentum = 1.0
            each.train()
    run()
    module.eval()


def session(model):
    """onnxruntime, and the domains of the operators."""
    options = onnxruntime.SessionOptions()
    domains = {node.domain for node in onnx.load_from_string(model).graph.node}
    if 'mmdeploy' in domains:
        options.register_custom_ops_library(get_ops_path())
    return onnxruntime.InferenceSession(model, options), domains - {''}


def levels(height, width, generator):
    return [
        torch.randn(2, c, height // s, width // s, generator=generator)
        for c, s in ((8, 1), (16, 2), (32, 4))
    ]


@torch.no_grad()
def neck_case(neck, upsampler):
    """Largest difference, relative to the largest value, at sizes not traced."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    upsample_cfg = dict(type=upsampler)
    module = MODELS.build(
        dict(type=f'dlu_mmdet.{neck}', upsample_cfg=upsample_cfg, **NECKS[neck])
    ).eval()
    disturb(module, lambda: module(levels(16, 24, generator)))
    names = [f'features.{i}' for i in range(3)]
    file = io.BytesIO()
    patched = patch_model(module, cfg=DEPLOY, backend='onnxruntime', ir=IR.ONNX)
    with RewriterContext(DEPLOY, backend='onnxruntime', ir=IR.ONNX):
        torch.onnx.export(
            patched,
            (levels(16, 24, generator),),
            file,
            opset_version=OPSETS.get(upsampler, 11),
            input_names=names,
            dynamic_axes={n: {0: 'n', 2: f'h{n}', 3: f'w{n}'} for n in names},
        )
    run, domains = session(file.getvalue())
    errors = []
    for size in ((24, 8), (32, 16), (8, 40)):
        maps = levels(*size, generator)
        outs = run.run(None, dict(zip(names, (m.numpy() for m in maps))))
        for out, expected in zip(outs, module(maps)):
            error = np.abs(out - expected.numpy()).max()
            errors.append(float(error / max(1, expected.abs().max())))
    # which keeps NaN, as max does not
    return np.max(errors), domains


@torch.no_grad()
def detector_case(folder):
    """RetinaNet R18 with DLU to its boxes: largest differences to MMDetection's."""
    config = folder / 'retinanet.py'
    config.write_text(
        "_base_ = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'\n"
        "custom_imports = dict(imports=['dlu_mmdet'])\n"
        "model = dict(backbone=dict(init_cfg=None), neck=dict(type='dlu_mmdet.FPN', "
        "upsample_cfg=dict(type='dlu')))\n"
    )
    cfg = Config.fromfile(config)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    image = torch.randn(2, 3, 256, 320)
    disturb(model, lambda: model.extract_feat(image))
    heads = model.bbox_head.retina_cls, model.bbox_head.retina_reg
    outs = model(image, mode='tensor')
    # scores that differ, boxes that are not their anchors
    for head, maps, std in zip(heads, outs, (2, 0.3)):
        head.weight.mul_(std / torch.cat([m.flatten() for m in maps]).std())
    torch.save(dict(state_dict=model.state_dict(), meta={}), folder / 'a.pth')
    photo = np.random.RandomState(0).randint(0, 256, (300, 400, 3)).astype('uint8')
    mmcv.imwrite(photo, str(folder / 'a.png'))
    torch2onnx(
        str(folder / 'a.png'),
        str(folder),
        'a.onnx',
        DEPLOY,
        cfg,
        str(folder / 'a.pth'),
        'cpu',
    )
    run, domains = session((folder / 'a.onnx').read_bytes())
    number, scores, boxes = 0, [], []
    for size in ((320, 416), (256, 256), (224, 352)):
        image = torch.randn(1, 3, *size)
        outs = run.run(None, {'input': image.numpy()})
        dets, labels = (torch.from_numpy(out[0]) for out in outs)
        sample = DetDataSample(
            metainfo=dict(img_shape=size, ori_shape=size, batch_input_shape=size)
        )
        found = model.predict(image, [sample], rescale=False)[0].pred_instances
        # which of near-equal ones at the end of the list are in it is left open, and
        # they may change places: each to the nearest of its class
        found = found[found.scores > found.scores[-1] + 1e-4]
        number += len(found)
        distance = (dets[None, :, :4] - found.bboxes[:, None]).abs().amax(-1)
        distance[labels[None] != found.labels[:, None]] = float('inf')
        nearest = distance.min(1)
        boxes.append(nearest.values.max().item())
        scores.append((dets[nearest.indices, 4] - found.scores).abs().max().item())
    return number, max(scores), max(boxes), domains


def main():
    warnings.simplefilter('ignore')
    init_default_scope('mmdet')
    failed = 0
    for neck, upsampler in CASES:
        try:
            worst, domains = neck_case(neck, upsampler)
            failed += not worst <= 1e-4
            print(f'{neck:13} {upsampler:14} {worst:.1e}  {", ".join(domains)}')
        except Exception as error:  # the other cases are wanted all the same
            failed += 1
            print(f'{neck:13} {upsampler:14} {type(error).__name__}: {error}'[:400])
    with tempfile.TemporaryDirectory() as folder:
        number, score, box, domains = detector_case(Path(folder))
    failed += not (number > 0 and score <= 1e-4 and box <= 0.05)
    print(
        f'RetinaNet with dlu: {number} boxes, scores to {score:.1e}, '
        f'boxes to {box:.1e} pixels  {", ".join(domains)}'
    )
    sys.exit(failed)


if __name__ == '__main__':
    main()
