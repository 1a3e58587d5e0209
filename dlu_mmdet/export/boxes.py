"""A detector with its box decoding, in output shapes that do not depend on values.

What MMDetection drops on the way to its boxes stays here with a score of 0, so that
shapes do not depend on values. Suppression and RoIAlign are operators of their own,
which an ONNX model has under their standard names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from mmcv.ops import nms, roi_align
from mmdet.models.dense_heads import RPNHead, YOLOXHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.detectors import SingleStageDetector, TwoStageDetector
from mmdet.models.detectors.panoptic_two_stage_segmentor import (
    TwoStagePanopticSegmentor,
)
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import get_box_tensor
from torch import Tensor, nn

from .heads import metas_of

# how images become detections in detectors that are known here
_FLOWS = (
    SingleStageDetector.predict,
    TwoStageDetector.predict,
    TwoStagePanopticSegmentor.predict,
)
#: What an image has where the config's ``test_cfg`` names no ``max_per_img``.
MAX_PER_IMG = 300

_OPERATORS = torch.library.Library('dlu_mmdet_export', 'DEF')
_OPERATORS.define('suppress(Tensor boxes, Tensor scores, float iou) -> Tensor')
_OPERATORS.define(
    'roi_align(Tensor features, Tensor rois, int height, int width, float scale, '
    'int ratio, bool aligned) -> Tensor'
)


def _suppress(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
    kept = torch.zeros_like(scores)
    for image, (own, score) in enumerate(zip(boxes, scores)):
        above = (score > 0).nonzero().squeeze(1)
        if len(above):
            _, chosen = nms(own[above].contiguous(), score[above], iou)
            chosen = above[chosen]
            kept[image, chosen] = score[chosen]
    return kept


def _roi_align(
    features: Tensor,
    rois: Tensor,
    height: int,
    width: int,
    scale: float,
    ratio: int,
    aligned: bool,
) -> Tensor:
    size = (height, width)
    return roi_align(features, rois, size, scale, ratio, 'avg', aligned)


_OPERATORS.impl('suppress', _suppress, 'CompositeExplicitAutograd')
_OPERATORS.impl('roi_align', _roi_align, 'CompositeExplicitAutograd')


@torch.library.register_fake('dlu_mmdet_export::suppress')
def _(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
    return torch.empty_like(scores)


@torch.library.register_fake('dlu_mmdet_export::roi_align')
def _(features: Tensor, rois: Tensor, height: int, width: int, *args) -> Tensor:
    return features.new_empty(rois.shape[0], features.shape[1], height, width)


def translations() -> dict[object, Callable]:
    """The operators in ONNX, the ``custom_translation_table`` of an export."""
    from onnxscript import opset18 as op

    def suppress(boxes, scores, iou: float):
        every = op.Unsqueeze(scores, [1])
        count = op.Shape(scores, start=1)
        chosen = op.NonMaxSuppression(boxes, every, count, [iou], [0.0])
        values = op.GatherND(every, chosen)
        none = op.Expand(op.CastLike(0.0, scores), op.Shape(every))
        return op.Squeeze(op.ScatterND(none, chosen, values), [1])

    def align(
        features, rois, height: int, width: int, scale: float, ratio: int, aligned: bool
    ):
        images = op.Squeeze(op.Slice(rois, [0], [1], [1]), [1])
        return op.RoiAlign(
            features,
            op.Slice(rois, [1], [5], [1]),
            op.Cast(images, to=7),  # int64
            coordinate_transformation_mode=(
                'half_pixel' if aligned else 'output_half_pixel'
            ),
            output_height=height,
            output_width=width,
            sampling_ratio=ratio,
            spatial_scale=scale,
        )

    ops = torch.ops.dlu_mmdet_export
    return {ops.suppress.default: suppress, ops.roi_align.default: align}


def check_boxes(model: nn.Module) -> None:
    """See whether a detector decodes its boxes in a way that is known here.

    Raises:
        ValueError: If not; says what is another.
    """
    head = getattr(model, 'rpn_head', None) or getattr(model, 'bbox_head', None)
    parts = {type(model).__name__: type(model).predict in _FLOWS and head is not None}
    if head is not None:
        known = (
            BaseDenseHead._predict_by_feat_single,
            RPNHead._predict_by_feat_single,
        )
        plain = (
            isinstance(head, BaseDenseHead)
            and type(head).predict is BaseDenseHead.predict
            and type(head).predict_by_feat is BaseDenseHead.predict_by_feat
            and type(head)._predict_by_feat_single in known
            # SSD's has no loss_cls
            and not getattr(
                getattr(head, 'loss_cls', None), 'custom_cls_channels', False
            )
        )
        parts[type(head).__name__] = plain or type(head) is YOLOXHead
        parts[f"the nms of {type(head).__name__}'s test_cfg"] = _is_plain(head)
    if hasattr(model, 'roi_head'):
        roi = model.roi_head
        plain = isinstance(roi, StandardRoIHead) and all(
            getattr(type(roi), name) is getattr(StandardRoIHead, name)
            for name in ('predict', 'predict_bbox', '_bbox_forward')
        )
        parts[type(roi).__name__] = plain
        if plain:
            box, extractor = roi.bbox_head, roi.bbox_roi_extractor
            parts[type(box).__name__] = (
                isinstance(box, BBoxHead)
                and type(box).predict_by_feat is BBoxHead.predict_by_feat
                and type(box)._predict_by_feat_single
                is BBoxHead._predict_by_feat_single
                and box.with_reg
                and not box.custom_cls_channels
            )
            parts[type(extractor).__name__] = type(extractor) is SingleRoIExtractor
            parts[f"the nms of {type(roi).__name__}'s test_cfg"] = _is_plain(roi)
    other = [name for name, known in parts.items() if not known]
    if other:
        raise ValueError(
            f'the part "boxes" does not know how {other[0]} makes boxes; take '
            '"detector" and decode its maps with predict_by_feat of the head'
        )


def _is_plain(head: nn.Module) -> bool:
    """Whether a head's NMS is of the kind that ONNX has."""
    cfg = getattr(head, 'test_cfg', None)
    if cfg is None:
        return False
    nms_cfg = cfg.get('nms')
    known = {'type', 'iou_threshold', 'class_agnostic', 'split_thr'}
    return not nms_cfg or (
        nms_cfg.get('type', 'nms') == 'nms'
        and 'iou_threshold' in nms_cfg
        and set(nms_cfg) <= known
    )


def predicted(model: nn.Module, images: Tensor, number: int) -> tuple[Tensor, ...]:
    """The boxes that MMDetection's own heads predict, as :class:`Boxes` gives them.

    Args:
        model (nn.Module): A detector, see :func:`check_boxes`.
        images (Tensor): (B, 3, H, W).
        number (int): K, slots of an image.

    Returns:
        tuple[Tensor, ...]: Boxes (B, K, 4), scores (B, K) and labels (B, K).
    """
    samples = [DetDataSample(metainfo=metas_of(images)) for _ in images]
    pyramid = model.extract_feat(images)
    if hasattr(model, 'roi_head'):
        proposals = model.rpn_head.predict(pyramid, samples, rescale=False)
        found = model.roi_head.predict(pyramid, proposals, samples, rescale=False)
    else:
        found = model.bbox_head.predict(pyramid, samples, rescale=False)
    sides = []
    for each in found:
        room = number - len(each)
        boxes = F.pad(get_box_tensor(each.bboxes), (0, 0, 0, room))
        sides.append(
            (boxes, F.pad(each.scores, (0, room)), F.pad(each.labels, (0, room)))
        )
    return tuple(map(torch.stack, zip(*sides)))


class Boxes(nn.Module):
    """A batch of images to their boxes.

    Its forward takes a tuple with the images, (B, 3, H, W), and returns boxes
    (B, K, 4) as x1, y1, x2, y2 in pixels of them, scores (B, K), the highest first,
    and labels (B, K), int64. K is ``max_per_img``; what there is no detection for has
    a score of 0.

    Args:
        model (nn.Module): A detector, see :func:`check_boxes`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: tuple[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        image, model = inputs[0], self.model
        size = image.shape[2:]
        pyramid = model.extract_feat(image)
        if hasattr(model, 'roi_head'):
            head = model.rpn_head
            boxes, scores, _ = _choose(
                *_dense(head, head(pyramid), size), head.test_cfg
            )
            return _second_stage(model.roi_head, pyramid, boxes, scores, size)
        head = model.bbox_head
        decode = _yolox if isinstance(head, YOLOXHead) else _dense
        boxes, scores, labels = _choose(
            *decode(head, head(pyramid), size), head.test_cfg
        )
        if isinstance(head, RPNHead):
            # they were levels, which suppression keeps apart
            labels = torch.zeros_like(labels)
        return boxes, scores, labels


def _by_prior(x: Tensor, channels: int) -> Tensor:
    """(B, A * channels, H, W) to (B, H * W * A, channels)."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, channels)


def _dense(
    head: BaseDenseHead, maps: Sequence[Sequence[Tensor]], size: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Candidates of a batch, as ``_predict_by_feat_single`` has them before its NMS."""
    cfg, proposes = head.test_cfg, isinstance(head, RPNHead)
    sizes = [x.shape[2:] for x in maps[0]]
    priors = head.prior_generator.grid_priors(sizes, device=maps[0][0].device)
    found = []
    for level, (cls_score, bbox_pred, *factor) in enumerate(zip(*maps)):
        logits = _by_prior(cls_score, head.cls_out_channels)
        if head.use_sigmoid_cls:
            scores = logits.sigmoid()
        else:
            scores = logits.softmax(-1)[..., :-1]
        batch, count, classes = scores.shape
        threshold = 0 if proposes else cfg.get('score_thr', 0)
        scores = scores.where(scores > threshold, 0).reshape(batch, count * classes)
        most = cfg.get('nms_pre', -1)
        if most > 0:
            # no more than there are, which an export leaves open
            most = torch.sym_min(most, count * classes)
            scores, index = scores.topk(most)
        else:
            index = torch.arange(count * classes, device=scores.device)
            index = index.expand(batch, -1)
        prior = index // classes
        labels = torch.full_like(index, level) if proposes else index % classes
        deltas = _take(_by_prior(bbox_pred, head.bbox_coder.encode_size), prior)
        boxes = _decode(head.bbox_coder, priors[level][prior], deltas, size)
        if factor:
            scores = scores * _by_prior(factor[0], 1)[..., 0].sigmoid().gather(1, prior)
        found.append((boxes, scores, labels))
    boxes, scores, labels = (torch.cat(x, 1) for x in zip(*found))
    if cfg.get('min_bbox_size', -1) >= 0:
        large = (boxes[..., 2:] - boxes[..., :2] > cfg.min_bbox_size).all(-1)
        scores = scores.where(large, 0)
    return boxes, scores, labels


def _yolox(
    head: YOLOXHead, maps: Sequence[Sequence[Tensor]], size: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Candidates as ``YOLOXHead.predict_by_feat`` has them: a class for each prior."""
    sizes = [x.shape[2:] for x in maps[0]]
    priors = head.prior_generator.grid_priors(
        sizes, device=maps[0][0].device, with_stride=True
    )
    channels = (head.cls_out_channels, 4, 1)
    cls_scores, deltas, objectness = (
        torch.cat([_by_prior(x, c) for x in levels], 1)
        for levels, c in zip(maps, channels)
    )
    boxes = head._bbox_decode(torch.cat(priors), deltas)
    scores, labels = cls_scores.sigmoid().max(-1)
    scores = scores * objectness[..., 0].sigmoid()
    return boxes, scores.where(scores >= head.test_cfg.score_thr, 0), labels


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Rows of each image: (B, P, D) and (B, K) to (B, K, D)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


def _decode(
    coder: nn.Module, priors: Tensor, deltas: Tensor, size: Sequence[int]
) -> Tensor:
    """(B, K, 2 or 4) and (B, K, D) to boxes (B, K, 4) inside of the images."""
    batch, count, _ = deltas.shape
    boxes = coder.decode(priors.flatten(0, 1), deltas.flatten(0, 1))
    height, width = size
    x = boxes[:, 0::2].clamp(min=0, max=width)
    y = boxes[:, 1::2].clamp(min=0, max=height)
    return torch.stack([x, y], -1).reshape(batch, count, 4)


def _choose(
    boxes: Tensor, scores: Tensor, labels: Tensor, cfg: dict
) -> tuple[Tensor, Tensor, Tensor]:
    """The detections of a batch: the highest of those that none suppresses."""
    nms_cfg = cfg.get('nms') or {}
    if nms_cfg:
        moved = boxes
        if not nms_cfg.get('class_agnostic', False):
            # each class where it meets no other, as mmcv's batched_nms has it
            moved = boxes + (labels * (boxes.amax((1, 2))[:, None] + 1))[..., None]
        iou = float(nms_cfg['iou_threshold'])
        scores = torch.ops.dlu_mmdet_export.suppress(moved, scores, iou)
    most = cfg.get('max_per_img', MAX_PER_IMG)
    # there may be fewer candidates than that
    scores, index = F.pad(scores, (0, most)).topk(most)
    boxes, labels = F.pad(boxes, (0, 0, 0, most)), F.pad(labels, (0, most))
    return _take(boxes, index), scores, labels.gather(1, index)


def _second_stage(
    head: StandardRoIHead,
    pyramid: Sequence[Tensor],
    proposals: Tensor,
    objectness: Tensor,
    size: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Detections from proposals, as ``BBoxHead._predict_by_feat_single`` makes them."""
    batch, count, _ = proposals.shape
    images = torch.arange(batch, device=proposals.device, dtype=proposals.dtype)
    images = images[:, None, None].expand(batch, count, 1)
    rois = torch.cat([images, proposals], -1).flatten(0, 1)
    features = _read(head, pyramid, rois)
    if head.with_shared_head:
        features = head.shared_head(features)
    cls_score, bbox_pred = head.bbox_head(features)
    scores = cls_score.softmax(-1)[:, :-1].reshape(batch, count, -1)
    classes = scores.shape[2]
    # the room of proposals that there are not
    wanted = (scores > head.test_cfg.score_thr) & (objectness > 0)[..., None]
    scores = scores.where(wanted, 0).flatten(1, 2)
    each = proposals[:, :, None].expand(batch, count, classes, 4).flatten(1, 2)
    deltas = bbox_pred.reshape(batch, count, -1, head.bbox_head.bbox_coder.encode_size)
    deltas = deltas.expand(-1, -1, classes, -1).flatten(1, 2)
    boxes = _decode(head.bbox_head.bbox_coder, each, deltas, size)
    labels = torch.arange(classes, device=scores.device).expand(batch, count, classes)
    return _choose(boxes, scores, labels.flatten(1, 2), head.test_cfg)


def _read(head: StandardRoIHead, pyramid: Sequence[Tensor], rois: Tensor) -> Tensor:
    """What ``SingleRoIExtractor`` reads: of every level, and of them each RoI's own."""
    extractor = head.bbox_roi_extractor
    maps = pyramid[: extractor.num_inputs]
    levels = extractor.map_roi_levels(rois, len(maps))[:, None, None, None]
    out = None
    for level, (x, layer) in enumerate(zip(maps, extractor.roi_layers)):
        height, width = layer.output_size
        read = torch.ops.dlu_mmdet_export.roi_align(
            x,
            rois,
            height,
            width,
            float(layer.spatial_scale),
            int(layer.sampling_ratio),
            bool(layer.aligned),
        )
        out = read if out is None else read.where(levels == level, out)
    return out
