"""Detectors that left PyTorch: as ONNX, by torch.export and by torch.compile."""

import importlib.util
import json
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import CONFIGS, SHAPES_DLU, load_tool
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.registry import init_default_scope
from torch import nn

from dlu_mmdet.config import read_config, set_upsampler
from dlu_mmdet.export import choose_part, export_onnx, trace
from dlu_mmdet.export import onnx as export
from dlu_mmdet.export.timing import check_sizes, summary
from dlu_mmdet.export.verify import Agreement, OnnxModel, agreement, compare
from dlu_mmdet.necks import UpsampleFPN
from dlu_mmdet.ops import carafe, decomposed, dlu, reference, window_scores
from dlu_mmdet.upsamplers import UPSAMPLERS
from dlu_mmdet.utils.torch_compat import EXPORTS

pytestmark = pytest.mark.skipif(
    not EXPORTS, reason=f'torch {torch.__version__} has no torch.compiler.is_exporting'
)
#: batch, height and width in units of the divisor; traced are 2, 2 and 3
UNTRACED = [(1, 3, 1), (3, 1, 4), (2, 5, 5)]


class Backbone(nn.Module):
    """Two maps, each half the one before."""

    def forward(self, x):
        x = nn.functional.avg_pool2d(x, 4)
        return x, nn.functional.avg_pool2d(x, 2)


class Tiny(nn.Module):
    """As much of a detector as its neck needs."""

    def __init__(self, neck):
        super().__init__()
        self.backbone = Backbone()
        self.neck = neck
        self.data_preprocessor = SimpleNamespace(pad_size_divisor=8)


def as_if_trained(module, std=0.2):
    """Weights that leave no upsampler at its start."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=std, generator=generator)
    return module.eval()


def small_neck(name, num_outs=2):
    neck = UpsampleFPN([3, 3], 8, num_outs, upsample_cfg=dict(type=name))
    return choose_part(Tiny(as_if_trained(neck)).eval(), 'neck', divisor=8)


def differences(part, path):
    model = OnnxModel(path)
    return [agreement(part, model, *size).difference for size in UNTRACED]


#: quick ones that have every operator of an export: sampling, windows and scores
QUICK = ('bilinear', 'dlu', 'sapa')


# in a neck, whose sizes are open: mended in torch 2.13
torch_2_12 = pytest.mark.xfail(
    torch.__version__.startswith('2.12.'),
    reason='torch 2.12 takes strides for unknown: Constraints violated',
)


@torch_2_12
@pytest.mark.parametrize(
    'name',
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
        for name in sorted(UPSAMPLERS.module_dict)
    ],
)
def test_every_upsampler_in_onnxruntime(name, tmp_path):
    """At sizes that were not traced, from operators of the standard alone."""
    part = small_neck(name)
    export_onnx(part, tmp_path / 'neck.onnx')
    assert max(differences(part, tmp_path / 'neck.onnx')) < 1e-4
    proto = onnx.load(tmp_path / 'neck.onnx')
    assert {node.domain for node in proto.graph.node} == {''} and not proto.functions
    assert all(e.domain == '' and e.version >= 17 for e in proto.opset_import)
    assert [p.name for p in tmp_path.iterdir()] == ['neck.onnx']


@torch_2_12
def test_levels_coarser_than_the_divisor(tmp_path):
    """Traced at a map of one pixel, a model takes images of that one height."""
    part = small_neck('nearest', num_outs=4)
    assert part.traced == (2, 8, 12)  # at which the coarsest is 2 x 3
    assert export_onnx(part, tmp_path / 'neck.onnx').close
    assert max(differences(part, tmp_path / 'neck.onnx')) < 1e-4


@pytest.mark.parametrize('size', [(1, 1), (5, 2), (1, 9), (3, 12), (2, 24)])
@pytest.mark.parametrize('group_size', [1, 2])
def test_operators_of_an_export_are_the_reference(size, group_size):
    """At widths that tiles of 1, 2, 4 and 8 divide, with offsets that leave the map."""
    generator = torch.Generator().manual_seed(0)

    def make(*shape):
        return torch.randn(2, *shape, generator=generator, dtype=torch.float64)

    for kernel_size, s in ((1, 2), (3, 1), (5, 2), (3, 3)):
        sizes = (kernel_size, group_size, s)
        (h, w), taps = size, group_size * kernel_size**2
        x, large = make(4, h, w), make(4, h * s, w * s)
        for op, inputs in {
            'dlu': (x, make(taps, h, w), 3 * make(2 * group_size * s * s, h, w)),
            'carafe': (x, make(taps, h * s, w * s)),
            'window_scores': (x, large),
        }.items():
            torch.testing.assert_close(
                getattr(decomposed, op)(*inputs, *sizes),
                getattr(reference, op)(*inputs, *sizes),
            )


def test_export_form_keeps_the_dtype():
    x, masks = torch.randn(1, 4, 3, 5).half(), torch.rand(1, 9, 6, 10)
    out = decomposed.carafe(x, masks, 3, 1, 2)
    assert out.dtype == torch.float16
    torch.testing.assert_close(out, carafe(x, masks, 3, 1, 2))


@pytest.mark.parametrize('op', [dlu, carafe, window_scores])
def test_an_export_has_no_operator_of_this_package(op):
    """And a number of nodes that does not grow with the kernel."""

    class Call(nn.Module):
        def forward(self, *inputs):
            return op(*inputs, 5, 1, 2)

    x = torch.randn(1, 4, 3, 5)
    inputs = {
        dlu: (x, torch.randn(1, 25, 3, 5), torch.randn(1, 8, 3, 5)),
        carafe: (x, torch.randn(1, 25, 6, 10)),
        window_scores: (x, torch.randn(1, 4, 6, 10)),
    }[op]
    program = torch.export.export(Call(), inputs, strict=False)
    called = [str(n.target) for n in program.graph.nodes if n.op == 'call_function']
    assert not [name for name in called if 'dlu_mmdet' in name]
    assert len(called) < 80


def detector(config, upsampler=None, depth=None):
    cfg = read_config(config)
    cfg.model.backbone.init_cfg = None
    if depth:
        cfg.model.backbone.depth = depth
        cfg.model.neck.in_channels = [64, 128, 256, 512]
    if upsampler:
        set_upsampler(cfg, dict(type=upsampler))
    init_default_scope('mmdet')
    model = MODELS.build(cfg.model).eval()
    # every upsampler away from its start, and nothing that overflows
    neck = getattr(model, 'neck', None)
    as_if_trained(getattr(neck, 'upsample_modules', nn.ModuleList()))
    return model


def small_detector(upsampler=None):
    return detector(SHAPES_DLU, upsampler)


@pytest.mark.slow
@pytest.mark.parametrize(
    'config, upsampler',
    [
        (SHAPES_DLU, None),
        (CONFIGS / 'rtmdet/rtmdet_tiny_pafpn-dlu_8xb32-300e_coco.py', None),
        (CONFIGS / 'yolox/yolox_s_pafpn-carafe_8xb8-300e_coco.py', None),
    ],
)
def test_whole_detectors_in_onnxruntime(config, upsampler, tmp_path):
    part = choose_part(detector(config, upsampler), 'detector')
    export_onnx(part, tmp_path / 'model.onnx', dict(classes=['a', 'b']))
    assert max(differences(part, tmp_path / 'model.onnx')) < 1e-4
    model = onnxruntime.InferenceSession(tmp_path / 'model.onnx')
    kept = model.get_modelmeta().custom_metadata_map
    assert json.loads(kept['size_divisor']) == part.divisor
    assert json.loads(kept['classes']) == ['a', 'b']
    assert [value.name for value in model.get_inputs()] == ['image']
    names = [value.name for value in model.get_outputs()]
    assert {'cls_scores.0', 'bbox_preds.0'} <= set(names)
    assert 'image  batch x 3 x' in summary(tmp_path / 'model.onnx')


#: what --part detector has beside the maps of the first head, and what it has not
HEADS = {
    'yolact/yolact_r50_1xb8-55e_coco': (
        {'coeff_preds.0', 'mask_head.protonet.0'},
        ['mask_head.segm_branch'],  # for training alone
    ),
    'panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco': (
        {'pyramid.0', 'semantic_head.seg_preds.0'},
        ['roi_head'],
    ),
    'condinst/condinst_r50_fpn_ms-poly-90k_coco_instance': (
        {'param_preds.0', 'mask_head.mask_feature_head.0'},
        [],
    ),
    'htc/htc_r50_fpn_1x_coco': (
        {'pyramid.0', 'roi_head.semantic_head.0.0'},
        ['roi_head.bbox_head', 'roi_head.mask_head'],
    ),
    'solov2/solov2_r50_fpn_1x_coco': ({'mlvl_kernel_preds.0', 'mask_feats.0'}, []),
    'rtmdet/rtmdet-ins_tiny_8xb32-300e_coco': ({'kernel_preds.0', 'mask_feat.0'}, []),
    'cascade_rpn/cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco': (
        {'pyramid.0', 'rpn_head.stages.0.2.0'},
        ['rpn_head.stages.1', 'roi_head'],
    ),
}


@pytest.mark.parametrize(
    'config',
    [
        pytest.param(config, marks=[] if place < 3 else pytest.mark.slow)
        for place, config in enumerate(HEADS)
    ],
)
def test_every_head_over_the_pyramid_is_there_or_named(config):
    """If it fails, an exported model lacks what masks are made of, without a word."""
    model = detector(f'mmdet::{config}.py')
    part = choose_part(model, 'detector')
    expected, left_out = HEADS[config]
    assert expected <= {*part.outputs} and list(part.left_out) == left_out
    assert len({*part.outputs}) == len(part.outputs)
    (image,) = inputs = part.make(1, 2, 2)
    with torch.no_grad():
        outputs = dict(zip(part.outputs, part.module(inputs)))
        pyramid = model.extract_feat(image)
        if 'yolact' in config:
            prototypes = model.mask_head.protonet(pyramid[0])
            torch.testing.assert_close(outputs['mask_head.protonet.0'], prototypes)
        if 'panoptic' in config:
            found = model.semantic_head(pyramid)['seg_preds']
            torch.testing.assert_close(outputs['semantic_head.seg_preds.0'], found)


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        ('detr/detr_r18_8xb2-500e_coco', 'DETR has no heads that read the maps'),
        ('fast_rcnn/fast-rcnn_r50_fpn_1x_coco', "no attribute 'rpn_head'.*neck"),
        pytest.param(
            'ssd/ssd300_coco',
            'SingleStageDetector cannot be run on an image of 32 x 64 pixels '
            '.*greater than actual input size.*; use --divisor 512$',
            marks=pytest.mark.slow,
        ),
    ],
)
def test_detectors_without_such_a_head_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        choose_part(detector(f'mmdet::{config}.py'), 'detector')


#: detectors of the zoo; what refusals of 'detector' and of 'boxes' say, or nothing
ZOO = {
    'autoassign/autoassign_r50-caffe_fpn_1x_coco': ('', ''),
    'vfnet/vfnet_r50_fpn_1x_coco': ('', ''),
    'yolof/yolof_r50-c5_8xb8-1x_coco': ('', ''),
    'point_rend/point-rend_r50-caffe_fpn_ms-1x_coco': ('', ''),
    'yolo/yolov3_mobilenetv2_8xb24-320-300e_coco': ('', 'YOLOV3Head'),
    'tood/tood_r50_fpn_1x_coco': ('', 'TOODHead'),
    'solov2/solov2_r50_fpn_1x_coco': ('', 'SOLOv2'),
    'crowddet/crowddet-rcnn_r50_fpn_8xb2-30e_crowdhuman': ('', 'MultiInstanceRoIHead'),
    'tridentnet/tridentnet_r50-caffe_1x_coco': ('', 'TridentFasterRCNN'),
    'scnet/scnet_r50_fpn_1x_coco': ('', 'SCNetRoIHead'),
    'sabl/sabl-faster-rcnn_r50_fpn_1x_coco': ('', 'SABLHead'),
    'mask2former/mask2former_r50_8xb2-lsj-50e_coco': ('has no heads', 'Mask2Former'),
}


@pytest.mark.slow
@pytest.mark.parametrize('config', ZOO)
def test_parts_of_the_zoo(config):
    """Each is there, or refused by name with the reason."""
    model = detector(f'mmdet::{config}.py')
    for part, message in zip(('detector', 'boxes'), ZOO[config]):
        if message:
            with pytest.raises(ValueError, match=message):
                choose_part(model, part)
        else:
            assert choose_part(model, part).outputs


@pytest.mark.slow
@pytest.mark.parametrize('config', ['yolact', 'panoptic_fpn', 'solov2'])
def test_all_heads_in_onnxruntime(config, tmp_path):
    config = next(name for name in HEADS if name.startswith(config))
    part = choose_part(detector(f'mmdet::{config}.py', 'dlu', depth=18), 'detector')
    assert export_onnx(part, tmp_path / 'model.onnx').close
    model = onnxruntime.InferenceSession(tmp_path / 'model.onnx')
    assert HEADS[config][0] <= {value.name for value in model.get_outputs()}
    kept = model.get_modelmeta().custom_metadata_map
    assert json.loads(kept['left_out']) == HEADS[config][1]


# ---- boxes ---------------------------------------------------------------------

DETECTORS = {
    'two stages': SHAPES_DLU,
    'a class a prior': CONFIGS / 'yolox/yolox_s_pafpn-carafe_8xb8-300e_coco.py',
    'points': CONFIGS / 'rtmdet/rtmdet_tiny_pafpn-dlu_8xb32-300e_coco.py',
    'anchors': 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py',
    'proposals': 'mmdet::rpn/rpn_r50_fpn_1x_coco.py',
    'centerness': 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
}


def that_detects(config):
    """Untrained, but it finds some hundred boxes of several classes and sizes."""
    torch.manual_seed(0)
    model = detector(config)
    heads = [getattr(model, name, None) for name in ('rpn_head', 'bbox_head')]
    heads.append(getattr(model, 'roi_head', None))
    generator = torch.Generator().manual_seed(1)
    std = 0.05 if heads[2] else 0.03
    for parameter in (p for head in heads if head for p in head.parameters()):
        with torch.no_grad():
            if parameter.dim() > 1:
                parameter.normal_(std=std, generator=generator)
            elif parameter.mean() < -1:  # of a prior probability
                parameter.zero_()
    if heads[2]:
        heads[2].bbox_head.fc_cls.weight.data *= 0.1  # else one class has all
    if hasattr(heads[1], 'rtm_reg'):
        for layer in heads[1].rtm_reg:
            nn.init.constant_(layer.bias, 1.0)  # else most boxes are inside out
    return model


def assert_same_boxes(got, expected):
    """In any order, since scores that are nearly equal may change places."""
    rows = []
    for boxes, scores, labels in (got, expected):
        values = (boxes, 100 * scores[:, None], 1000.0 * labels[:, None])
        rows.append(torch.cat(values, 1).double())
    apart = torch.cdist(*rows)
    assert max(apart.amin(0).max(), apart.amin(1).max()) < 0.01


@pytest.mark.parametrize('name', DETECTORS)
def test_boxes_are_those_of_mmdet(name):
    model = that_detects(DETECTORS[name])
    part = choose_part(model, 'boxes')
    (image,) = part.make(2, 3, 2)
    size = tuple(image.shape[2:])
    info = dict(
        img_shape=size, ori_shape=size, batch_input_shape=size, scale_factor=(1, 1)
    )
    samples = [DetDataSample(metainfo=info) for _ in image]
    with torch.no_grad():
        boxes, scores, labels = part.module((image,))
        expected = model.predict(image, samples, rescale=False)
    for i, sample in enumerate(expected):
        found, n = sample.pred_instances, len(sample.pred_instances)
        assert n > 20 and (len(found.labels.unique()) > 1 or name == 'proposals')
        assert (scores[i] > 0).sum() == min(n, scores.shape[1])
        torch.testing.assert_close(scores[i, :n], found.scores)
        assert_same_boxes(
            (boxes[i, :n], scores[i, :n], labels[i, :n]),
            (found.bboxes, found.scores, found.labels),
        )


@pytest.mark.slow
@pytest.mark.parametrize('name', ['two stages', 'a class a prior', 'points'])
def test_boxes_in_onnxruntime(name, tmp_path):
    part = choose_part(that_detects(DETECTORS[name]), 'boxes')
    export_onnx(part, tmp_path / 'model.onnx')
    model = OnnxModel(tmp_path / 'model.onnx')
    for size in UNTRACED:
        inputs = part.make(*size)
        with torch.no_grad():
            boxes, scores, labels = part.module(inputs)
        got_boxes, got_scores, got_labels = model(inputs)
        assert (scores > 0).sum() > 20
        torch.testing.assert_close(got_scores, scores, atol=1e-4, rtol=1e-4)
        for i, detected in enumerate(scores > 0):
            assert_same_boxes(
                (x[i, detected] for x in (got_boxes, got_scores, got_labels)),
                (x[i, detected] for x in (boxes, scores, labels)),
            )


def test_boxes_of_another_kind_are_refused():
    """Decoded by other rules they would be wrong without a word."""
    for name, other in (
        ('mmdet::gfl/gfl_r50_fpn_1x_coco.py', 'GFLHead'),
        ('mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py', 'CascadeRoIHead'),
        ('mmdet::double_heads/dh-faster-rcnn_r50_fpn_1x_coco.py', 'DoubleHeadRoIHead'),
        ('mmdet::sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py', 'EmbeddingRPNHead'),
    ):
        with pytest.raises(ValueError, match=f'does not know how {other} makes boxes'):
            choose_part(detector(name), 'boxes')
    model = small_detector()
    model.roi_head.test_cfg.nms.type = 'soft_nms'
    with pytest.raises(ValueError, match="the nms of StandardRoIHead's test_cfg"):
        choose_part(model, 'boxes')


@pytest.mark.slow
def test_boxes_behind_a_shared_head():
    """Of a detector without a neck, whose last stage is behind its RoIs."""
    model = that_detects('mmdet::faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco.py')
    model.rpn_head.test_cfg.max_per_img = 20
    model.roi_head.test_cfg.score_thr = 0.001
    part = choose_part(model, 'boxes')  # which compares them
    with torch.no_grad():
        _, scores, _ = part.module(part.make(1, 2, 2))
    assert (scores > 0).sum() > 20


def test_boxes_are_held_against_those_of_mmdet(monkeypatch):
    """A class of one's own may decode otherwise in a method that nobody looks at."""
    from dlu_mmdet.export import boxes as export_boxes

    model = that_detects(SHAPES_DLU)
    read = export_boxes._read
    monkeypatch.setattr(export_boxes, '_read', lambda *args: 2 * read(*args))
    with pytest.raises(ValueError, match='how FasterRCNN makes boxes: its own differ'):
        choose_part(model, 'boxes')


def test_coordinates_of_an_export():
    """With their number open, as SOLO's masks need it."""
    for steps in (1, 2, 7):
        found = export._linspace(-1, 1, steps, device='cpu')
        torch.testing.assert_close(found, torch.linspace(-1, 1, steps))


@pytest.mark.slow
def test_torch_export_round_trip(tmp_path):
    """Saved and loaded, with sizes that were not traced, to the same numbers."""
    part = choose_part(small_detector(), 'detector')
    program = trace(part)
    torch.export.save(program, tmp_path / 'model.pt2')
    loaded = torch.export.load(tmp_path / 'model.pt2').module()
    # an exported program refuses a side of one unit, which ONNX does not
    for size in ((1, 3, 2), (3, 2, 4), (2, 5, 5)):
        inputs = part.make(*size)
        with torch.no_grad():
            assert_same(loaded(inputs), program.module()(inputs), rtol=0, atol=0)
            assert_same(loaded(inputs), part.module(inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('name', ['bilinear', 'dlu', 'sapa'])
def test_neck_compiles_whole(name):
    torch._dynamo.reset()
    part = small_neck(name)
    compiled = torch.compile(part.module, fullgraph=True, backend='aot_eager')
    inputs = part.make(2, 2, 3)
    with torch.no_grad():
        assert_same(compiled(inputs), part.module(inputs))


def assert_same(got, expected, **tolerance):
    assert len(got) == len(expected)
    for x, y in zip(got, expected):
        torch.testing.assert_close(x, y, **tolerance)


# ---- verification --------------------------------------------------------------


BOXES = SimpleNamespace(detects=True, threshold=0.05)
MAPS = SimpleNamespace(detects=False, outputs=['a', 'b'])


def detections(*rows):
    """Outputs of a part 'boxes' with 4 slots from x, score and label of each."""
    found = torch.zeros(4, 3)
    found[: len(rows)] = torch.tensor(rows).reshape(-1, 3)
    x, score, label = found.T
    boxes = torch.stack([x, x, x + 20, x + 30], 1)
    return boxes[None], score[None], label.long()[None]


def test_slots_without_a_detection_do_not_count():
    """And the order does not; all else does."""
    first, second = (10.0, 0.9, 1), (60.0, 0.5, 0)
    expected = detections(first, second)
    empty = detections(second, first)
    empty[0][:, 2:] += 33
    empty[2][:, 2:] += 7
    empty[0][0, 3] = float('nan')
    assert compare(BOXES, expected, empty) == Agreement(0.0, 2)
    for other in (
        [first],
        [first, second, (40.0, 0.6, 0)],
        [(10.5, 0.9, 1), second],
        [(10.0, 0.89, 1), second],
        [(10.0, 0.9, 0), second],
        [(float('nan'), 0.9, 1), second],
    ):
        assert not compare(BOXES, expected, detections(*other)).close
    # a score that rounding puts on either side of a threshold
    last = (80.0, 0.05, 0)
    found = compare(BOXES, detections(first, last), detections(first))
    assert found == Agreement(0.0, 1)
    # or at the end of a full list
    full = [first, second, (30.0, 0.4, 0), last]
    found = compare(BOXES, detections(*full), detections(*full[:3], (90.0, 0.05, 0)))
    assert found == Agreement(0.0, 3)
    # nothing to compare is not taken for agreement
    assert compare(BOXES, detections(), detections()) == Agreement(0.0, 0)


def test_scores_that_tie_get_images_of_more_contrast():
    """Which of them is higher rounding decides; a model that is wrong stays wrong."""
    right, wrong = detections((10.0, 0.9, 1)), detections((10.0, 0.9, 0))
    part = SimpleNamespace(
        detects=True, threshold=0.05, divisor=32, module=lambda inputs: right
    )

    def ties_below(contrast):
        return lambda inputs: wrong if inputs[0].abs().max() < contrast else right

    assert agreement(part, ties_below(100), 1, 1, 1) == Agreement(0.0, 1)
    assert not agreement(part, ties_below(1e9), 1, 1, 1).close
    part.module = lambda inputs: detections()
    assert agreement(part, part.module, 1, 1, 1) == Agreement(0.0, 0)


def test_numbers_that_are_not_finite_do_not_pass():
    """The largest of NaN and 0 is 0 to Python, in one order of the two."""
    ones, nan = torch.ones(2), torch.tensor([1.0, float('nan')])
    for pair, name in (([ones, nan], 'b'), ([nan, ones], 'a')):
        found = compare(MAPS, [ones, ones], pair)
        assert not found.close and found.output == name
    assert not compare(MAPS, [ones], [torch.ones(3)]).close
    assert compare(MAPS, [1e6 * ones], [1e6 * ones + 1]).difference == pytest.approx(
        1e-6
    )


def test_a_model_that_differs_is_not_kept(monkeypatch, tmp_path):
    part, run = small_neck('nearest'), OnnxModel.__call__
    monkeypatch.setattr(
        OnnxModel, '__call__', lambda self, x: [y + 0.1 for y in run(self, x)]
    )
    with pytest.raises(
        ValueError, match=r'pyramid\.[01] of .* differ from .* more than 0\.001'
    ):
        export_onnx(part, tmp_path / 'x.onnx')
    assert not list(tmp_path.iterdir())
    with torch.no_grad():
        next(part.module.parameters())[0] = float('nan')
    with pytest.raises(ValueError, match='not finite; the training has diverged'):
        agreement(part, None, 1, 1, 1)


def test_the_tool_says_what_was_verified():
    tool, part = load_tool('export'), SimpleNamespace(detects=True, divisor=32)
    found = tool.describe_agreement(part, Agreement(1e-6, 7))
    assert '1 x 96 x 32 and 2 x 32 x 128' in found and '7 detections: 1.0e-06' in found
    assert 'NOT VERIFIED' in tool.describe_agreement(part, Agreement(0.0, 0))


# ---- sizes and opsets ----------------------------------------------------------


@pytest.fixture(scope='module')
def nearest(tmp_path_factory):
    """A neck without an upsampler of its own, in the lowest opset."""
    path = tmp_path_factory.mktemp('nearest') / 'neck.onnx'
    part = small_neck('nearest')
    found = export_onnx(part, path, opset=export.LOWEST_OPSET)
    assert found.close and found.detections is None
    return path


def test_onnxruntime_says_which_sizes_a_model_takes(nearest):
    model = onnxruntime.InferenceSession(nearest)
    kept = model.get_modelmeta().custom_metadata_map
    assert json.loads(kept['verified'])['difference'] < 1e-4

    def run(batch, *sizes):
        maps = (np.zeros((batch, 3, *size), np.float32) for size in sizes)
        return model.run(None, {f'features.{i}': x for i, x in enumerate(maps)})

    # a divisor of 8 pixels is 2 x 2 of the finer map and 1 x 1 of the other
    assert run(3, (4, 10), (2, 5))[0].shape == (3, 8, 4, 10)
    name = 'batch_at_least_1_and_sides_multiples_of_8'
    for batch, *sizes in (
        (0, (4, 10), (2, 5)),
        (1, (5, 10), (2, 5)),
        (1, (4, 8), (2, 5)),
        (1, (1, 1), (1, 1)),
    ):
        with pytest.raises(Exception, match=name):
            run(batch, *sizes)


def test_the_tool_says_which_sizes_a_model_takes():
    """And where the test pipeline makes images of a size that is none of them."""
    tool = load_tool('export')
    model = SimpleNamespace(
        cfg=read_config('mmdet::yolact/yolact_r50_1xb8-55e_coco.py')
    )
    found = tool.describe_sizes(SimpleNamespace(divisor=32), model)
    assert 'batch 1 or more, height and width multiples of 32' in found
    assert 'batch_at_least_1_and_sides_multiples_of_32' in found
    assert 'images of 550 x 550, no multiples of 32' in found
    model.cfg.test_dataloader.dataset.pipeline[1].keep_ratio = True
    found = tool.describe_sizes(SimpleNamespace(divisor=32), model)
    assert '550' not in found


def test_opset(nearest, tmp_path):
    (entry,) = onnx.load(nearest).opset_import
    assert entry.version == 18
    for opset in (17, -1, 99):
        with pytest.raises(ValueError, match=f'opset must be from 18 to .*got {opset}'):
            export_onnx(None, tmp_path / 'x.onnx', opset=opset)


# ---- bad input -----------------------------------------------------------------


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', ['export.py', 'x.py', 'x.pth', *arguments])
    load_tool('export').main()


def test_out_must_be_onnx(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=r'--out must end with \.onnx, got .*x\.pt'):
        call(monkeypatch, '--out', str(tmp_path / 'x.pt'))


def test_out_needs_its_folder(monkeypatch, tmp_path):
    with pytest.raises(FileNotFoundError, match='folder .*none does not exist; make'):
        call(monkeypatch, '--out', str(tmp_path / 'none/x.onnx'))


def test_opset_is_checked_first(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match='opset must be from 18'):
        call(monkeypatch, '--out', str(tmp_path / 'x.onnx'), '--opset', '12')


def test_missing_package_is_named(monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, 'find_spec', lambda n: None if n == 'onnxruntime' else find(n)
    )
    with pytest.raises(ValueError, match=r"^onnxruntime must be .*'\.\[export\]'"):
        call(monkeypatch, '--out', str(tmp_path / 'x.onnx'))


class Branching(nn.Module):
    """Goes by the values that it is given."""

    def forward(self, x):
        return x if x.sum() > 0 else -x


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Branching()

    def forward(self, inputs):
        return [self.inner(x) for x in inputs]


def test_what_cannot_be_traced_is_named(tmp_path):
    part = choose_part(Tiny(Odd()).eval(), 'neck', divisor=8)
    with pytest.raises(ValueError, match=r'neck\.inner, a Branching, cannot be traced'):
        export_onnx(part, tmp_path / 'x.onnx')
    assert not list(tmp_path.iterdir())


def test_part_that_is_not_there():
    with pytest.raises(ValueError, match='Tiny has no neck'):
        choose_part(Tiny(None), 'neck')
    with pytest.raises(ValueError, match="Tiny cannot be run .*'extract_feat'"):
        choose_part(Tiny(Odd()), 'detector')
    with pytest.raises(ValueError, match='level 1 of the backbone is 7 x 10 .*divisor'):
        choose_part(Tiny(Odd()), 'neck', divisor=28)


def test_sizes_to_time_are_checked_before_an_export():
    part = SimpleNamespace(divisor=64)
    check_sizes(part, [(64, 192)])
    for size in ((100, 64), (64, 0)):
        name = 'x'.join(map(str, size))
        with pytest.raises(ValueError, match=f'--time {name}: .*multiples of 64'):
            check_sizes(part, [(64, 64), size])


def test_file_is_whole_or_not_there(monkeypatch, tmp_path):
    def save(self, destination, **kwargs):
        destination.write_bytes(b'half')
        raise OSError('disk full')

    monkeypatch.setattr(torch.onnx.ONNXProgram, 'save', save)
    with pytest.raises(OSError, match='disk full'):
        export_onnx(small_neck('nearest'), tmp_path / 'x.onnx')
    assert not list(tmp_path.iterdir())
