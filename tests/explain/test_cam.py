"""Class activation maps: their weights, their axioms, and what they explain."""

import copy
import csv
import json
import re
from pathlib import Path

import mmcv
import numpy as np
import pytest
import torch
from conftest import CONFIGS, load_tool
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from PIL import Image
from torch import nn

import dlu_mmdet  # noqa: F401
from dlu_mmdet.explain import evaluate
from dlu_mmdet.explain.cam import (
    METHODS,
    Evidence,
    Explanation,
    LayerScore,
    classifier_score,
    collect_evidence,
    explain,
    xgradcam,
)
from dlu_mmdet.explain.heatmaps import HeatmapRow, draw_heatmaps
from dlu_mmdet.explain.targets import (
    _by_prior,
    default_layer,
    detection_probability,
    detection_score,
)
from dlu_mmdet.visualization.detect import detect
from dlu_mmdet.visualization.figures import as_image

CLASSES = ('disc', 'cross', 'ring')
DLU = dict(upsample_cfg=dict(type='dlu'))


def classifier(bias=True):
    """A ReLU network whose layer '1' is the ReLU to explain."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 5, 3, stride=2, bias=bias),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(5 * 3 * 4, 7, bias=bias),
        nn.ReLU(),
        nn.Linear(7, 4, bias=bias),
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model.double().eval(), torch.randn(1, 3, 8, 9, dtype=torch.float64)


def best_class(model, image):
    return int(model(image).argmax())


def test_weights_and_axioms_are_those_of_plain_loops():
    """If it fails, the maps are not those of the papers."""
    model, image = classifier()
    label = best_class(model, image)
    score = LayerScore(model, '1', classifier_score(model, image, label))
    evidence = collect_evidence(score, batch_size=4)

    features = model[:2](image).detach().requires_grad_()
    s = model[2:](features)[0, label]
    s.backward()
    f, g, s = features.detach()[0].tolist(), features.grad[0].tolist(), s.item()
    expected = {method: [] for method in METHODS}
    drops = []
    for k in range(6):
        without = features.detach().clone()
        without[:, k] = 0
        drops.append(s - model[2:](without)[0, label].item())
        pixels = [(y, x) for y in range(8) for x in range(9)]
        total = sum(f[k][y][x] for y, x in pixels)
        weighted = sum(f[k][y][x] * g[k][y][x] for y, x in pixels)
        expected['xgradcam'].append(weighted / total)
        expected['gradcam'].append(sum(g[k][y][x] for y, x in pixels) / 72)
        plus = 0.0
        for y, x in pixels:
            d = g[k][y][x]
            if d > 0:
                plus += d**2 / (2 * d**2 + total * d**3) * d
        expected['gradcam++'].append(plus)
        expected['ablationcam'].append(drops[k] / s)
        expected['ablationcam-slope'].append(drops[k] / total)
    assert s > 0
    for method, weights in expected.items():
        found = explain(evidence, method)
        np.testing.assert_allclose(found.weights, weights, rtol=1e-10)
        heat = [
            [
                max(0, sum(w * f[k][y][x] for k, w in enumerate(weights)))
                for x in range(9)
            ]
            for y in range(8)
        ]
        np.testing.assert_allclose(found.heatmap, heat, atol=1e-10)
        added = [w * sum(map(sum, f[k])) for k, w in enumerate(weights)]
        error = sum(abs(d - a) for d, a in zip(drops, added)) / sum(map(abs, drops))
        assert found.sensitivity == pytest.approx(error, rel=1e-9, abs=1e-12)
        assert found.conservation == pytest.approx(abs(s - sum(added)) / s, rel=1e-9)


def test_xgradcam_conserves_where_there_are_no_biases():
    """If it fails, XGrad-CAM's own axiom does not hold of our XGrad-CAM."""
    model, image = classifier(bias=False)
    run = classifier_score(model, image, best_class(model, image))
    evidence = collect_evidence(LayerScore(model, '1', run))
    assert explain(evidence, 'xgradcam').conservation < 1e-5
    assert explain(evidence, 'gradcam').conservation > 0.1
    assert explain(evidence, 'ablationcam-slope').sensitivity < 1e-5


def bias_term(model, score):
    """sum of b dS/db, the second half of equation 5."""
    biases = {p for name, p in model.named_parameters() if name.endswith('bias')}
    features = score.features.clone().requires_grad_()
    (value,) = score(features)
    gradients = torch.autograd.grad(value, list(biases), allow_unused=True)
    return sum((b * g).sum() for b, g in zip(biases, gradients) if g is not None)


def test_equation_5():
    """If it fails, gradients or features are not those of the layer."""
    model, image = classifier()
    score = LayerScore(model, '1', classifier_score(model, image, 2))
    found = collect_evidence(score)
    bias = bias_term(model, score)
    assert bias.abs() > 0.1
    rest = found.score - (found.features * found.gradients).sum() - bias
    assert rest.abs() < 1e-10


def test_channels_without_a_sum_get_no_weight():
    """If it fails, one dead channel makes the whole map NaN."""
    features = torch.ones(3, 2, 2)
    features[0] = 0
    features[1, 0] = -1
    evidence = Evidence(
        features, torch.randn(3, 2, 2), torch.tensor(2.0), torch.ones(3)
    )
    weights = xgradcam(evidence)
    assert weights[:2].tolist() == [0, 0] and weights[2] != 0
    for method in METHODS:
        assert explain(evidence, method).heatmap.isfinite().all()


class Branches(nn.Module):
    """A shared layer, in-place operations and an output that is no batch."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.stem = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Tanh())
        self.layer = nn.Conv2d(3, 4, 3, padding=1)
        self.late = nn.Conv2d(4, 3, 1)
        self.flip = nn.Identity()

    def forward(self, x):
        x = self.norm(self.shared(x))
        x += 1
        side = self.flip(self.stem(x).transpose(0, 1).contiguous())
        y = self.late(self.layer(x).relu())
        side = side.sum((0, 2, 3)) + x.sum((1, 2, 3))
        return self.shared(y).sum((1, 2, 3)) + side * y.mean((1, 2, 3))


def replaced(model, layer, run, features):
    """The score with a layer's output replaced, running the whole network."""
    hook = model.get_submodule(layer).register_forward_hook(
        lambda *_: features.clone()  # an in-place operation may come next
    )
    try:
        return run(len(features))
    finally:
        hook.remove()


def test_replay_is_a_run_of_the_whole_network():
    """If it fails, what a channel's removal does to the score is wrong."""
    torch.manual_seed(0)
    model = Branches().eval()
    image = torch.randn(1, 3, 6, 6)
    calls = []
    model.stem.register_forward_pre_hook(lambda *_: calls.append('stem'))
    model.stem[0].register_forward_hook(lambda *_: calls.append('stem.0'))

    def run(n):
        return model(image.expand(n, -1, -1, -1))

    score = LayerScore(model, 'layer', run)
    torch.testing.assert_close(score(score.features), run(1))
    for n in (1, 5):
        features = torch.randn(n, *score.features.shape[1:])
        expected = replaced(model, 'layer', run, features)
        calls.clear()
        torch.testing.assert_close(score(features), expected)
        assert 'stem.0' not in calls  # its output was handed out again
    torch.testing.assert_close(run(1), score(score.features))  # nothing is left over


def test_layer_before_an_in_place_operation():
    """If it fails, such a layer cannot be explained, or its output is overwritten."""
    model, image = classifier()
    run = classifier_score(model, image, 2)
    score = LayerScore(model, '0', run)
    with torch.no_grad():
        expected = model[0](image)
        assert expected.min() < 0  # the ReLU changes it
        score(score.features)
    torch.testing.assert_close(score.features, expected)
    evidence = collect_evidence(score)
    behind = LayerScore(model, '1', run)
    found = collect_evidence(behind)
    torch.testing.assert_close(evidence.score, found.score)
    # the gradient of a ReLU
    gradients = found.gradients * (expected[0] > 0)
    torch.testing.assert_close(evidence.gradients, gradients)


class ChangesItsInput(nn.Module):
    """What is read again has been changed in place by a finished module."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.layer = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        y = self.conv(x)
        z = self.relu(y)
        return (self.layer(z) + y).sum((1, 2, 3))


def test_input_changed_in_place_by_a_finished_module():
    """If it fails, maps of such a network are wrong, and nothing says so."""
    torch.manual_seed(0)
    model = ChangesItsInput().eval()
    image = torch.randn(1, 3, 6, 6)

    def run(n):
        return model(image.repeat(n, 1, 1, 1))

    score = LayerScore(model, 'layer', run)
    features = torch.randn(3, *score.features.shape[1:])
    with torch.no_grad():
        torch.testing.assert_close(score(score.features), run(1))
        expected = replaced(model, 'layer', run, features)
        torch.testing.assert_close(score(features), expected)


# ---------------------------------------------------------------- detectors


def small_model(kind):
    """A config with random weights' model of 3 classes, 96 px images."""
    if kind == 'faster':
        cfg = Config.fromfile(CONFIGS / 'shapes/faster-rcnn_r18_fpn-dlu_shapes.py')
        cfg.model.roi_head.bbox_head.num_classes = len(CLASSES)
        cfg.model.test_cfg.rcnn.score_thr = 0.0
    else:
        base = dict(
            mask='mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
            retina='retinanet/retinanet_r50_fpn_1x_coco.py',
        )[kind]
        cfg = get_config(f'mmdet::{base}')
        model = cfg.model
        model.backbone.update(depth=18, base_channels=16, init_cfg=None)
        model.neck.update(
            type='UpsampleFPN', in_channels=[16, 32, 64, 128], out_channels=16, **DLU
        )
        if kind == 'mask':
            model.rpn_head.update(in_channels=16, feat_channels=16)
            for part in ('bbox', 'mask'):
                model.roi_head[f'{part}_roi_extractor'].out_channels = 16
                model.roi_head[f'{part}_head'].update(
                    in_channels=16, num_classes=len(CLASSES)
                )
            model.roi_head.bbox_head.fc_out_channels = 32
            model.roi_head.mask_head.conv_out_channels = 16
            model.test_cfg.rpn.max_per_img = 50
            model.test_cfg.rcnn.score_thr = 0.0
        else:
            model.bbox_head.update(
                in_channels=16, feat_channels=16, num_classes=len(CLASSES)
            )
            model.test_cfg.update(score_thr=0.0, max_per_img=1000)
        cfg.custom_imports = dict(imports=['dlu_mmdet'])
    cfg.test_dataloader.dataset.merge(
        dict(type='CocoDataset', metainfo=dict(classes=CLASSES))
    )
    for transform in cfg.test_dataloader.dataset.pipeline:
        if transform.type == 'Resize':
            transform.scale = (128, 128)
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    for name, parameter in model.named_parameters():
        # scores and boxes that differ, as those of a trained detector do
        if name.endswith('fc_cls.weight'):
            nn.init.normal_(parameter, std=0.3)
        elif name.endswith(('retina_cls.weight', 'retina_reg.weight')):
            nn.init.normal_(parameter, std=0.05)
        elif name.endswith('conv.weight') and name.startswith('bbox_head.'):
            nn.init.kaiming_normal_(parameter)
    model.cfg, model.dataset_meta = cfg, dict(classes=CLASSES)
    return model.eval()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Two images, their annotations, and a config and checkpoint of each kind."""
    folder = tmp_path_factory.mktemp('cam')
    rng = np.random.default_rng(0)
    names = [f'{i}.png' for i in (1, 2)]
    for name in names:
        noise = rng.integers(0, 255, (9, 10, 3), dtype=np.uint8)
        mmcv.imwrite(mmcv.imresize(noise, (112, 96)), str(folder / name))
    content = dict(
        images=[
            dict(id=i, file_name=name, width=112, height=96)
            for i, name in enumerate(names)
        ],
        categories=[dict(id=i, name=name) for i, name in enumerate(CLASSES)],
        annotations=[],
    )
    (folder / 'annotations.json').write_text(json.dumps(content))
    return folder


@pytest.fixture(scope='module')
def models():
    return {kind: small_model(kind) for kind in ('faster', 'mask', 'retina')}


@pytest.fixture(scope='module')
def seen(models, folder):
    return {kind: detect(model, folder / '1.png') for kind, model in models.items()}


@pytest.mark.parametrize('kind', ['faster', 'mask'])
def test_score_of_a_two_stage_detector(models, seen, kind):
    """If it fails, the map explains another box or class than the one shown."""
    model, (inputs, sample) = models[kind], seen[kind]
    found = sample.pred_instances
    for index in (0, len(found) // 2):
        run, level = detection_score(model, inputs, sample, index)
        scale = found.bboxes.new_tensor(sample.scale_factor).repeat(2)
        proposal = InstanceData(bboxes=found.bboxes[index : index + 1] * scale)
        with torch.no_grad():
            levels = model.extract_feat(inputs)
            logits = model.roi_head.forward(levels, [proposal], [sample])[0]
            torch.testing.assert_close(run(3), logits[0, found.labels[index]].repeat(3))
            score = detection_probability(model, inputs, sample, index)
            # of two images each has its own
            scores = score(torch.cat([inputs, -inputs]))
            expected = logits[0].softmax(0)[found.labels[index]]
            torch.testing.assert_close(scores[0], expected)
            torch.testing.assert_close(scores[1:], score(-inputs))
        # only the level that the score names has a say
        layer = LayerScore(model, f'neck.fpn_convs.{level}', run)
        assert not collect_evidence(layer).is_empty
        other = LayerScore(model, f'neck.fpn_convs.{3 - level}', run)
        assert collect_evidence(other).is_empty


def test_equation_5_of_a_detection(models, seen):
    """If it fails, a detection's gradients are not those of its score."""
    model, (inputs, sample) = models['faster'], seen['faster']
    head = model.roi_head.bbox_head
    trained = copy.deepcopy(head.state_dict())
    torch.manual_seed(0)
    try:
        # at initialization all of them are 0, and so would their term be
        for name, parameter in head.named_parameters():
            if name.endswith('bias'):
                nn.init.normal_(parameter)
        run, level = detection_score(model, inputs, sample, 0)
        score = LayerScore(model, f'neck.fpn_convs.{level}', run)
        found = collect_evidence(score)
        bias = bias_term(model, score)
    finally:
        head.load_state_dict(trained)
    assert bias.abs() > 0.1
    sums = (found.features * found.gradients).sum() + bias
    torch.testing.assert_close(found.score, sums, rtol=1e-4, atol=1e-4)


def test_score_of_a_dense_head(models, seen):
    """If it fails, the map explains an anchor that did not make the box."""
    model, (inputs, sample) = models['retina'], seen['retina']
    found = sample.pred_instances
    assert found.scores.max() > 1.2 * found.scores.min()
    levels = set()
    for index in range(0, len(found), len(found) // 12):
        with torch.no_grad():
            run, level = detection_score(model, inputs, sample, index)
            torch.testing.assert_close(
                run(2).sigmoid(), found.scores[index].repeat(2), rtol=1e-4, atol=1e-6
            )
            score = detection_probability(model, inputs, sample, index)
            torch.testing.assert_close(score(inputs), run(1).sigmoid())
        levels.add(level)
    assert len(levels) > 1
    layer = LayerScore(model, f'neck.fpn_convs.{level}', run)
    assert not collect_evidence(layer).is_empty


@pytest.mark.parametrize(
    'config',
    [
        'yolo/yolov3_mobilenetv2_8xb24-320-300e_coco.py',
        'yolox/yolox_tiny_8xb8-300e_coco.py',
    ],
)
def test_score_of_a_yolo_head(folder, config):
    """Its objectness, which the score is multiplied by, is left out."""
    cfg = get_config(f'mmdet::{config}')
    cfg.model.backbone.init_cfg = None
    cfg.model.bbox_head.num_classes = len(CLASSES)
    cfg.model.test_cfg.update(score_thr=0.0, conf_thr=0.0)
    for transform in cfg.test_dataloader.dataset.pipeline:
        if transform.type == 'Resize':
            transform.scale = (128, 128)
        if transform.type == 'Pad':
            transform.update(size=(128, 128), pad_to_square=False)
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).eval()
    for parameter in model.bbox_head.parameters():
        nn.init.normal_(parameter, std=0.02)
    model.cfg = cfg
    inputs, sample = detect(model, folder / '1.png')
    with torch.no_grad():
        out = model.bbox_head(model.extract_feat(inputs))
        if 'yolox' in config:
            maps = [_by_prior(x, len(CLASSES)) for x in out[0]]
            objectness = [_by_prior(x, 1) for x in out[2]]
        else:
            maps = [_by_prior(x, 5 + len(CLASSES)) for x in out[0]]
            objectness = [x[..., 4:5] for x in maps]
            maps = [x[..., 5:] for x in maps]
        logits = torch.cat(maps, 1)[0]
        scores = logits.sigmoid() * torch.cat(objectness, 1)[0].sigmoid()
        found = sample.pred_instances
        for index in range(0, len(found), len(found) // 8):
            label = found.labels[index]
            prior = (scores[:, label] - found.scores[index]).abs().argmin()
            run, _ = detection_score(model, inputs, sample, index)
            torch.testing.assert_close(run(2), logits[prior, label].repeat(2))
            score = detection_probability(model, inputs, sample, index)
            torch.testing.assert_close(score(inputs), run(1).sigmoid())
    # the levels of these pyramids are the stages that the backbone gives
    taken = [model.get_submodule(default_layer(model, level)) for level in range(4)]
    with torch.no_grad():
        maps = []
        handles = [
            stage.register_forward_hook(lambda *args: maps.append(args[2].shape))
            for stage in dict.fromkeys(taken)
        ]
        given = model.backbone(inputs)
    assert maps == [each.shape for each in given] and taken[2] is taken[3]
    for handle in handles:
        handle.remove()
    model.backbone = nn.Identity()
    with pytest.raises(ValueError, match='no default layer is known for a Identity'):
        default_layer(model, 0)


def test_detectors_that_cannot_be_explained(models, folder, monkeypatch):
    """If it fails, they end in a traceback that explains nothing."""
    model, image = models['retina'], folder / '1.png'

    def needs_text(*args):
        raise AttributeError('no\ntext')

    monkeypatch.setattr(model, 'predict', needs_text)
    with pytest.raises(
        ValueError, match=r'RetinaNet does not detect in .*1\.png alone'
    ):
        detect(model, image)
    monkeypatch.setattr(model, 'predict', lambda x, samples: samples)
    with pytest.raises(ValueError, match='gives no boxes with scores'):
        detect(model, image)


#: detectors of the zoo; what a refusal says, or nothing
ZOO = {
    'atss/atss_r50_fpn_1x_coco': '',
    'autoassign/autoassign_r50-caffe_fpn_1x_coco': '',
    'vfnet/vfnet_r50_fpn_1x_coco': '',
    'rtmdet/rtmdet_tiny_8xb32-300e_coco': '',
    'condinst/condinst_r50_fpn_ms-poly-90k_coco_instance': '',
    'gfl/gfl_r50_fpn_1x_coco': 'a GFLHead does not decode',
    'sabl/sabl-retinanet_r50_fpn_1x_coco': 'a SABLRetinaHead does not decode',
    'foveabox/fovea_r50_fpn_4xb4-1x_coco': 'no prior of the FoveaHead decodes',
    'detr/detr_r18_8xb2-500e_coco': 'a DETR has neither',
    'panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco': 'gives no boxes with scores',
    'ssd/ssd300_coco': "SingleStageDetector does not detect in .* 'loss_cls'",
}


@pytest.mark.slow
@pytest.mark.parametrize('config', ZOO)
def test_explanations_of_the_zoo(folder, config):
    """If it fails, a detector ends in a traceback that explains nothing."""
    cfg = get_config(f'mmdet::{config}.py')
    cfg.model.backbone.init_cfg = None
    for transform in cfg.test_dataloader.dataset.pipeline:
        for key in ({'scale', 'size'} & {*transform}) if 'ssd' not in config else ():
            transform[key] = (128, 128)
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).eval()
    head = getattr(model, 'bbox_head', nn.Module())
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.02)
    model.cfg = cfg
    with torch.no_grad():
        if ZOO[config]:
            with pytest.raises(ValueError, match=ZOO[config]):
                detection_score(model, *detect(model, folder / '1.png'), 0)
            return
        inputs, sample = detect(model, folder / '1.png')
        run, _ = detection_score(model, inputs, sample, 0)
        assert run(2).isfinite().all()
        probability = detection_probability(model, inputs, sample, 0)(inputs)
        # of which a factor may be left out
        assert probability >= sample.pred_instances.scores[0] - 1e-4


@pytest.mark.parametrize('kind', ['faster', 'mask', 'retina'])
def test_every_kind_of_layer_of_a_detector(models, seen, kind):
    """If it fails, removing a channel of some layer does not remove it."""
    model, (inputs, sample) = models[kind], seen[kind]
    run, level = detection_score(model, inputs, sample, 0)
    for layer in (
        default_layer(model, level),
        'backbone.layer1.0.conv1',
        # an in-place operation follows
        'backbone.bn1',
        'backbone.layer1.0.bn2',
        'neck.lateral_convs.1.conv',
        'neck.upsample_modules.0',
    ):
        score = LayerScore(model, layer, run)
        features = score.features.repeat(2, 1, 1, 1)
        features[1, ::2] = 0
        with torch.no_grad():
            expected = replaced(model, layer, run, features)
            torch.testing.assert_close(score(features), expected, rtol=1e-4, atol=1e-4)
            assert score._finished  # not the whole network is run again
            torch.testing.assert_close(
                score(features)[:1], run(1), rtol=1e-4, atol=1e-4
            )
        features = score.features.clone().requires_grad_()
        (gradients,) = torch.autograd.grad(score(features).sum(), features)
        assert gradients.isfinite().all()


def test_layers_that_cannot_be_explained(models, seen):
    """If it fails, a typing error ends in a traceback that explains nothing."""
    model, (inputs, sample) = models['retina'], seen['retina']
    run, _ = detection_score(model, inputs, sample, 0)
    for layer, words in {
        'backbone.layer5': r'does not exist.*backbone\.layer[1-4]',
        '': 'does not exist',
        'neck': r'a tuple of 5, not a feature map.*neck\.fpn_convs\.',
        'bbox_head.cls_convs.0': r'runs 5 times.*parts: bbox_head\.cls_convs\.0\.conv',
        'neck.fpn_convs': r'runs 0 times.*parts: neck\.fpn_convs\.0',
    }.items():
        with pytest.raises(ValueError, match=words):
            LayerScore(model, layer, run)
    inputs, sample = seen['faster']
    run, _ = detection_score(models['faster'], inputs, sample, 0)
    with pytest.raises(ValueError, match=r'a tensor \(1, \d+\), not a feature map'):
        LayerScore(models['faster'], 'roi_head.bbox_head.shared_fcs.0', run)
    with pytest.raises(ValueError, match=r'runs 0 times.*another layer'):
        LayerScore(models['faster'], 'rpn_head.rpn_conv', run)
    with pytest.raises(ValueError, match='training mode'):
        LayerScore(nn.Conv2d(1, 1, 1), '', run)
    evidence = Evidence(*torch.ones(2, 1, 1, 1), torch.ones([]), torch.ones(1))
    with pytest.raises(ValueError, match="'cam' is none of xgradcam"):
        explain(evidence, 'cam')


# --------------------------------------------------------------------- tool


@pytest.fixture(scope='module')
def pairs(folder, models):
    """A config and a checkpoint of two detectors of the same classes."""
    pairs = {}
    for kind in ('faster', 'retina'):
        cfg = models[kind].cfg.copy()
        cfg.test_dataloader.dataset.merge(
            dict(
                data_root=str(folder),
                ann_file='annotations.json',
                data_prefix=dict(img=''),
            )
        )
        pairs[kind] = str(folder / f'{kind}.py'), str(folder / f'{kind}.pth')
        cfg.dump(pairs[kind][0])
        state = dict(
            state_dict=models[kind].state_dict(),
            meta=dict(dataset_meta=dict(classes=CLASSES)),
        )
        torch.save(state, pairs[kind][1])
    return pairs


@pytest.fixture
def tool(monkeypatch, tmp_path):
    """Call the command explain with arguments; it writes into tmp_path."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        load_tool('explain').main([*map(str, arguments)])

    call.module = evaluate
    return call


@pytest.fixture
def drawn(tool, monkeypatch):
    """The figures that the tool draws."""
    figures = []
    draw = tool.module.draw_heatmaps
    monkeypatch.setattr(
        tool.module, 'draw_heatmaps', lambda *a: figures.append(draw(*a)) or figures[-1]
    )
    return figures


def captions(figure):
    """What is written under the image of every row."""
    return [axes.get_xlabel() for axes in figure.axes if axes.get_ylabel()]


def test_picture_of_two_images_and_two_detectors(
    tool, pairs, folder, tmp_path, drawn, capsys
):
    """If it fails, the documented command does not run, or a row is missing."""
    images = folder / '1.png', folder / '2.png'
    # an image may come after an option
    tool(
        '--score-thr', 0, *pairs['faster'], images[0],
        '--also', *pairs['faster'], images[1],
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert printed.count('XGrad-CAM') == printed.count('Ablation-CAM ') == 4
    assert f'{images[1]}, dlu (2): ' in printed
    assert Image.open(tmp_path / 'work_dirs/explain.png').format == 'PNG'
    panels = [axes for axes in drawn[0].axes if axes.images]
    titles = [axes.get_title() for axes in panels[:5]]
    assert titles == [
        'detection',
        'XGrad-CAM',
        'Grad-CAM',
        'Grad-CAM++',
        'Ablation-CAM',
    ]
    assert len(panels) == 4 * 5
    assert panels[5].get_ylabel() == 'dlu (2)\n1.png'
    for axes in panels:
        assert axes.patches  # the box
        assert axes.get_xlim() == (0, 112) and axes.get_ylim() == (96, 0)
    for axes in (panels[1], panels[19]):
        assert axes.get_xlabel().startswith('sensitivity ')
        # the padded input, 128 px of which the image is 128 x 110
        assert axes.images[1].get_extent() == pytest.approx([0, 112, 112, 0], rel=0.01)
    # the same detector twice finds the same object
    np.testing.assert_array_equal(
        panels[1].images[1].get_array(), panels[6].images[1].get_array()
    )


def test_image_without_detections(tool, pairs, folder, tmp_path, drawn, capsys):
    """If it fails, one empty image stops a batch of pictures."""
    out = tmp_path / 'empty.png'
    tool(*pairs['faster'], folder / '1.png', '--score-thr', 1, '--out', out)
    assert captions(drawn[0]) == ['no detection of score ≥ 1']
    panels = [axes for axes in drawn[0].axes if axes.images]
    # no empty panels beside it
    assert len(panels) == len(drawn[0].axes) == 1 and not panels[0].patches
    words = r'no detection of score ≥ 1 in 1.png \(.*best score is 0.*so --score-thr 0'
    assert re.search(words, capsys.readouterr().out)
    assert Image.open(out).format == 'PNG'


def test_one_image_does_not_spoil_the_others(
    tool, pairs, folder, tmp_path, monkeypatch, drawn, capsys
):
    """If it fails, a long run ends without a picture because of its last image."""
    find = tool.module.find_detections

    def rings_then_discs(model, image, score_thr):
        inputs, sample = find(model, image, score_thr)
        sample.pred_instances.labels[:] = 0 if image.endswith('2.png') else 2
        return inputs, sample

    monkeypatch.setattr(tool.module, 'find_detections', rings_then_discs)
    common = '--score-thr', 0, '--method', 'xgradcam', '--out', tmp_path / 'out.png'
    images = folder / '1.png', folder / '2.png'
    tool(*pairs['faster'], *common, *images, '--target', 'class:ring')
    first, second = captions(drawn[0])
    assert first.startswith('ring ') and 'S = ' in first
    assert second == 'ring not found'

    # the second image's score is read from another level than that of the layer
    score = tool.module.detection_score

    def another_level_in_the_second(model, inputs, sample, index):
        run, level = score(model, inputs, sample, index)
        return run, 3 - level if sample.img_path.endswith('2.png') else level

    monkeypatch.setattr(tool.module, 'detection_score', another_level_in_the_second)
    layer = '--layer', 'neck.fpn_convs.{level}'
    tool(*pairs['faster'], *common, *images, *layer)
    first, second = captions(drawn[1])
    assert 'S = ' in first
    assert re.fullmatch(r'disc [\d.]+, does not depend\non neck\.fpn_convs\.\d', second)
    panels = [axes for axes in drawn[1].axes if axes.images]
    assert [len(axes.images) for axes in panels] == [1, 2, 1]
    with pytest.raises(ValueError, match=r'does not depend on layer .neck\.fpn_convs'):
        tool(*pairs['faster'], *common, folder / '2.png', *layer)


def test_mistakes_in_a_later_image_show_first(tool, pairs, folder, monkeypatch):
    """If it fails, a typing error costs the minutes before it."""

    def too_late(*_, **__):
        pytest.fail('a detection was explained first')

    monkeypatch.setattr(tool.module, 'collect_evidence', too_late)
    common = *pairs['faster'], '--score-thr', 0, folder / '1.png'
    with pytest.raises(ValueError, match='annotations.json cannot be read'):
        tool(*common, folder / 'annotations.json')
    with pytest.raises(ValueError, match="no class 'rings'.*ring"):
        tool(
            *pairs['faster'], '--score-thr', 1, folder / '1.png', '--target=class:rings'
        )
    monkeypatch.setattr(tool.module, 'load_detectors', too_late)
    with pytest.raises(FileNotFoundError, match=r'nowhere\.png'):
        tool(*common, folder / 'nowhere.png')
    for options, words in (
        (['--out', folder], '--out: the picture is a .png file'),
        (['--out', 'picture.jpg'], r'--out: .*\.png file, got picture\.jpg'),
        (['--target', 'best'], "det:N or class:NAME, got 'best'"),
        (['--num-detections', 3], '--num-detections is .* without an IMAGE'),
        (['--measures', 'curves'], '--measures is .* without an IMAGE'),
        (['--steps', 5], '--steps is .* without an IMAGE'),
    ):
        with pytest.raises(ValueError, match=words):
            tool(*common, *options)
    for options, words in (
        (['--out', 'table.png'], r'without an IMAGE the table is a \.md or \.csv file'),
        (['--target', 'det:0'], '--target det:0 chooses a detection of an IMAGE'),
        (['--num-detections', 0], '--num-detections must be at least 1, got 0'),
        (['--steps', 5], '--steps 5 is of the curves; add them'),
        (['--measures', 'curves', '--steps', 1], '--steps must be at least 2, got 1'),
        (
            ['--measures', 'curves', '--curves-out', 'x.jpg'],
            r'--curves-out: the picture is a \.png file, got x\.jpg',
        ),
    ):
        with pytest.raises(ValueError, match=words):
            tool(*pairs['faster'], *options)


def test_detectors_of_other_classes(tool, pairs, folder):
    """If it fails, a row explains a class under the name of another."""
    config, checkpoint = pairs['faster']
    other = torch.load(checkpoint, weights_only=True)
    other['meta']['dataset_meta']['classes'] = ('disc', 'ring', 'cross')
    torch.save(other, folder / 'other.pth')
    with pytest.raises(ValueError, match=r"faster\.py detects.*'ring' is not 'cross'"):
        tool(*pairs['faster'], folder / '1.png', '--also', config, folder / 'other.pth')


def test_color_bar_is_what_maps_look_like_over_grey():
    """If it fails, a value read off the color bar is not that of the map."""
    heatmap = torch.tensor([[0.0, 0.25, 0.5, 1.0]])
    answer = Explanation(torch.ones(1), heatmap, 0.0, 0.0)
    gray = np.full((40, 40, 3), 128, np.uint8)
    row = HeatmapRow('', gray, '', None, {'xgradcam': answer}, (0, 0, 40, 40))
    figure = draw_heatmaps([row], ['xgradcam'])
    picture = as_image(figure).astype(int)
    _, panel, bar = figure.axes

    def colors(axes, shares):
        columns, rows = axes.transAxes.transform([(x, 0.5) for x in shares]).T
        return picture[len(picture) - 1 - rows.astype(int), columns.astype(int)]

    # the middle of each of the map's four columns, and its value
    in_map = colors(panel, [0.125, 0.375, 0.625, 0.875])
    in_bar = colors(bar, [0.01, 0.25, 0.51, 0.99])
    assert np.abs(in_map - in_bar).max() <= 6
    assert np.ptp(in_map, axis=0).min() > 50


def test_table_of_the_axioms(tool, pairs, capsys):
    """If it fails, the documented table cannot be made."""
    tool(
        *pairs['retina'], '--num-detections', 5, '--score-thr', 0,
        '--layer', 'neck.fpn_convs.{level}',
        '--method', 'xgradcam', 'ablationcam-slope', '--out', 'table.md',
    )  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert Path('table.md').read_text().splitlines() == lines[-5:-1]
    table = [
        [cell.strip() for cell in line.strip('|').split('|')]
        for line in lines
        if line.startswith('|')
    ]
    assert len(table) == 4
    assert table[2][:3] == ['dlu', 'XGrad-CAM', '5']
    assert table[3][:5] == ['dlu', 'Ablation-CAM, slope', '5', '0.000', '0.000']
    assert all(np.isfinite(float(value)) for value in table[2][3:])

    rows = [
        dict(upsampler='dlu', method='XGrad-CAM', sensitivity=one, conservation=other)
        for one, other in ((0.5, 0.25), (0.25, 0.5), (1.5, 0.75))
    ]
    tool.module.print_table(rows, ['axioms'], 'table.csv')
    with open('table.csv', newline='') as file:
        (line,) = csv.DictReader(file)
    assert line == {
        'upsampler': 'dlu',
        'method': 'XGrad-CAM',
        'detections': '3',
        'sensitivity': '0.750',
        'median sensitivity': '0.500',
        'conservation': '0.500',
        'median conservation': '0.500',
    }


def test_table_of_the_pointing_game_and_the_curves(tool, pairs, seen, folder, capsys):
    """If it fails, maps are held against other objects than the detected ones."""
    found = seen['faster'][1].pred_instances
    x1, y1, x2, y2 = found.bboxes[0].tolist()
    content = json.loads((folder / 'annotations.json').read_text())
    # the first image's best detection is right; of its object the left half is there
    content['annotations'] = [
        dict(
            id=1,
            image_id=0,
            category_id=int(found.labels[0]),
            bbox=[x1, y1, x2 - x1, y2 - y1],
            area=(x2 - x1) * (y2 - y1),
            iscrowd=0,
            segmentation=[[x1, y1, (x1 + x2) / 2, y1, (x1 + x2) / 2, y2, x1, y2]],
        )
    ]
    (folder / 'objects.json').write_text(json.dumps(content))
    tool(
        *pairs['faster'], '--num-detections', 2, '--score-thr', 0,
        '--measures', 'pointing', 'curves', '--method', 'xgradcam', '--steps', 3,
        '--cfg-options', 'test_dataloader.dataset.ann_file=objects.json',
        '--out', 'table.csv',
    )  # fmt: skip
    with open('table.csv', newline='') as file:
        rows = {row['method']: row for row in csv.DictReader(file)}
    uniform, own = tool.module.CONTROLS
    assert list(rows) == ['XGrad-CAM', uniform, own]
    assert {(row['detections'], row['matched']) for row in rows.values()} == {
        ('2', '1')
    }

    def value(method, column):
        return float(rows[method][column])

    area = (x2 - x1) * (y2 - y1) / (112 * 96)
    assert value(uniform, 'energy in box') == pytest.approx(area, rel=0.02)
    assert value(uniform, 'energy in mask') == pytest.approx(area / 2, rel=0.1)
    # pixels at the box's edge count in part
    assert value(own, 'energy in box') == pytest.approx(1, abs=0.03)
    assert value(own, 'energy in mask') == pytest.approx(0.5, abs=0.05)
    for method in rows:
        assert value(method, 'energy in mask') <= value(method, 'energy in box')
        assert rows[method]['s.e. energy in box'] == '–'  # of a single object
        assert 0 < value(method, 'deletion') < 1 and 0 < value(method, 'insertion') < 1
    assert 'sensitivity' not in rows['XGrad-CAM']
    assert Image.open('work_dirs/curves.png').format == 'PNG'
    printed = capsys.readouterr().out
    assert re.search(r'dlu: mean probability 0\.\d+, of the mean color', printed)

    # nothing is there to be found
    tool(
        *pairs['faster'], '--num-detections', 1, '--score-thr', 0,
        '--measures', 'pointing', '--method', 'xgradcam',
    )  # fmt: skip
    (line,) = [x for x in capsys.readouterr().out.splitlines() if 'XGrad-CAM' in x]
    assert [cell.strip() for cell in line.split('|')[3:7]] == ['1', '0', '–', '–']


def test_mistakes_are_named(tool, pairs, folder, capsys):
    """If it fails, a mistake on the command line is not explained."""
    common = *pairs['faster'], folder / '1.png', '--score-thr', 0
    for arguments, error, words in [
        (['--target', 'det:1000'], ValueError, r'1000 is not among the \d+ detections'),
        (['--layer', 'backbone.layer9'], ValueError, r'nearest.*backbone\.layer'),
        (['--layer', 'neck'], ValueError, 'not a feature map'),
        (['--device', 'cuda:99'], ValueError, "'cuda:99' is not there.*cpu"),
        (['--batch-size', 0], ValueError, 'batch_size must be at least 1'),
        (['--score-thr', 2], ValueError, '--score-thr'),
        (['--method', 'cam'], SystemExit, None),
    ]:
        with pytest.raises(error, match=words):
            tool(*common, *arguments)
    with pytest.raises(ValueError, match='no detection to average over'):
        tool(*pairs['faster'], '--score-thr', 1)
    assert 'so --score-thr 0' in capsys.readouterr().out


def test_a_class_that_was_not_detected(tool, pairs, folder, monkeypatch):
    """If it fails, the reader does not learn what was detected instead."""
    find = tool.module.find_detections

    def only_discs(*arguments):
        inputs, sample = find(*arguments)
        sample.pred_instances = sample.pred_instances[:3]
        sample.pred_instances.labels[:] = 0
        return inputs, sample

    monkeypatch.setattr(tool.module, 'find_detections', only_discs)
    common = *pairs['faster'], folder / '1.png', '--score-thr', 0
    with pytest.raises(ValueError, match='ring is not among the 3.*: 3 disc'):
        tool(*common, '--target', 'class:ring')


def test_same_object_of_another_detector(tool):
    """If it fails, the rows of a picture are of different objects."""
    sample = type('Sample', (), {})()
    sample.pred_instances = InstanceData(
        bboxes=torch.tensor([[0, 0, 10, 10], [0, 0, 9, 10], [50, 50, 60, 60.0]]),
        labels=torch.tensor([1, 0, 0]),
    )
    box = torch.tensor([0, 0, 10, 10.0])
    assert tool.module.same_object(sample, box, 0) == 1
    assert tool.module.same_object(sample, box, 2) is None
    sample.pred_instances = sample.pred_instances[:0]
    assert tool.module.same_object(sample, box, 0) is None
