"""The score of one detection as a differentiable function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmdet.models.dense_heads import YOLOV3Head, YOLOXHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import get_box_tensor
from torch import Tensor, nn


def detection_score(
    model: nn.Module, inputs: Tensor, sample: DetDataSample, index: int
) -> tuple[Callable[[int], Tensor], int]:
    """The logit behind one detection, for :class:`.cam.LayerScore`.

    With a RoI head it is the logit of the detection's class for the detection's own
    box, which is held fixed; the detector scored a proposal nearby. With a dense head
    it is the logit at the anchor or point from which the box was decoded.

    Args:
        model (nn.Module): A detector with a standard RoI head (Faster R-CNN, Mask
            R-CNN) or a dense head that decodes boxes from priors (RetinaNet,
            FCOS, ATSS, YOLOX, YOLOv3).
        inputs (Tensor): (1, C, H, W), from :func:`detect`.
        sample (DetDataSample): From :func:`detect`.
        index (int): Which of its detections.

    Returns:
        tuple[Callable[[int], Tensor], int]: A function that gives the logits of n
        copies of the input, (n,), and the pyramid level that the logit is read
        from, 0 the finest.

    Raises:
        ValueError: If the detector is of another kind.
    """
    logits, label, level = _class_logits(model, inputs, sample, index)
    return lambda n: logits(inputs.expand(n, -1, -1, -1))[:, label], level


def detection_probability(
    model: nn.Module, inputs: Tensor, sample: DetDataSample, index: int
) -> Callable[[Tensor], Tensor]:
    """The probability of one detection's class as a function of the image.

    The softmax or sigmoid of the logits of :func:`detection_score`, without a
    centerness factor.

    Args:
        model (nn.Module): As for :func:`detection_score`.
        inputs (Tensor): (1, C, H, W), from :func:`detect`.
        sample (DetDataSample): From :func:`detect`.
        index (int): Which of its detections.

    Returns:
        Callable[[Tensor], Tensor]: A function that gives the probabilities (N,) of
        images (N, C, H, W), each instead of ``inputs``.

    Raises:
        ValueError: If the detector is of another kind.
    """
    logits, label, _ = _class_logits(model, inputs, sample, index)
    if getattr(model, 'roi_head', None) is None:
        # YOLOv3's head does not say so
        sigmoid = getattr(model.bbox_head, 'use_sigmoid_cls', True)
        activate = torch.sigmoid if sigmoid else _softmax
    elif model.roi_head.bbox_head.custom_cls_channels:
        activate = model.roi_head.bbox_head.loss_cls.get_activation
    else:
        activate = _softmax
    return lambda images: activate(logits(images))[:, label]


def _softmax(logits: Tensor) -> Tensor:
    """Probabilities of classes that exclude each other."""
    return logits.softmax(dim=-1)


def _class_logits(
    model: nn.Module, inputs: Tensor, sample: DetDataSample, index: int
) -> tuple[Callable[[Tensor], Tensor], int, int]:
    """All classes' logits (N, classes) of images, the detection's class, its level."""
    if isinstance(getattr(model, 'roi_head', None), StandardRoIHead):
        find = _roi_logits
    elif isinstance(getattr(model, 'bbox_head', None), BaseDenseHead):
        find = _dense_logits
    else:
        raise ValueError(
            f'a {type(model).__name__} has neither a standard RoI head nor a dense '
            'head; Faster R-CNN, Mask R-CNN, RetinaNet, FCOS, ATSS, YOLOX and YOLOv3 '
            'can be explained'
        )
    box = sample.pred_instances.bboxes[index]
    box = get_box_tensor(box) * box.new_tensor(sample.scale_factor).repeat(2)
    label = int(sample.pred_instances.labels[index])
    logits, level = find(model, inputs, sample, index, box, label)
    return logits, label, level


# the lists of their names in mmdet's ResNet, CSPDarknet with CSPNeXt, and Darknet
_STAGES = ('res_layers', 'layers', 'cr_blocks')


def default_layer(model: nn.Module, level: int) -> str:
    """The stage of the backbone below a level of the pyramid.

    Stages of a ResNet end in a ReLU, those of CSPNeXt and Darknet in a SiLU or a leaky
    ReLU, convolutions of a pyramid in neither. Where a channel is negative elsewhere in
    the image, its weight gets the wrong sign, so maps of the pyramid show the
    background.

    Args:
        model (nn.Module): A detector with a backbone of named stages and a pyramid.
        level (int): From :func:`detection_score`.

    Returns:
        str: For example 'backbone.layer1'. Levels above the last stage are
        built on that one.

    Raises:
        ValueError: If the backbone is none of mmdet's ResNets, CSPNeXt and Darknets.
    """
    backbone: Any = model.backbone
    names = next((getattr(backbone, k) for k in _STAGES if hasattr(backbone, k)), None)
    stages = getattr(backbone, 'out_indices', ())
    if not (stages and names and isinstance(names[0], str)):
        raise ValueError(
            f'no default layer is known for a {type(backbone).__name__}; choose one '
            'with --layer, best one that ends in a ReLU'
        )
    level += getattr(getattr(model, 'neck', None), 'start_level', 0)
    return f'backbone.{names[stages[min(level, len(stages) - 1)]]}'


def _roi_logits(model, inputs, sample, index, box, label):
    """What the RoI head says of a box."""
    head = model.roi_head

    def run(images: Tensor) -> Tensor:
        number = len(images)
        indices = torch.arange(number, device=box.device, dtype=box.dtype)
        rois = torch.cat([indices[:, None], box.expand(number, -1)], dim=1)
        return head._bbox_forward(model.extract_feat(images), rois)['cls_score']

    extractor = head.bbox_roi_extractor
    if not hasattr(extractor, 'map_roi_levels'):
        return run, 0  # it pools from every level
    roi = torch.cat([box.new_zeros(1), box])[None]
    return run, int(extractor.map_roi_levels(roi, extractor.num_inputs))


def _dense_logits(model, inputs, sample, index, box, label):
    """What a dense head says where a box came from."""
    head = model.bbox_head
    with torch.no_grad():
        levels = _candidates(head, head(model.extract_feat(inputs)), sample.img_shape)
    # the box came out of this very decoding, so its prior gives it back
    boxes = torch.cat([get_box_tensor(boxes) for boxes, _ in levels])
    # that of boxes that are not finite is not a number
    distances = (boxes - box).abs().amax(1).nan_to_num(torch.inf)
    if distances.min() > 1:
        raise ValueError(
            f'no prior of the {type(head).__name__} decodes to detection {index}, '
            f'the nearest is {distances.min():.3g} px off; it cannot be explained'
        )
    # boxes cut off at the border can agree: the class tells them apart
    logits = torch.cat([logits[0, :, label] for _, logits in levels])
    near = distances <= distances.min() + 1e-2
    prior = int(logits.masked_fill(~near, -torch.inf).argmax())
    level = 0
    while prior >= len(levels[level][0]):
        prior -= len(levels[level][0])
        level += 1

    def run(images: Tensor) -> Tensor:
        return _class_maps(head, head(model.extract_feat(images)))[level][:, prior]

    return run, level


def _class_maps(head: nn.Module, out: Sequence) -> list[Tensor]:
    """Class logits (N, P, classes) at the priors of each level."""
    if isinstance(head, YOLOV3Head):
        return [_by_prior(x, head.num_attrib)[..., 5:] for x in out[0]]
    return [_by_prior(x, head.cls_out_channels) for x in out[0]]


def _candidates(
    head: nn.Module, out: Sequence, size: Sequence[int]
) -> list[tuple[Tensor, Tensor]]:
    """Boxes (P, 4) of one image and class logits (1, P, classes), level by level.

    Raises:
        ValueError: If the head does not decode its boxes from priors.
    """
    coder: Any = getattr(head, 'bbox_coder', None)
    yolox, yolov3 = isinstance(head, YOLOXHead), isinstance(head, YOLOV3Head)
    width: Any = getattr(coder, 'encode_size', None)
    if not (yolox or yolov3) and (
        width is None
        or not all(torch.is_tensor(pred) for pred in out[1])
        or any(pred.shape[1] != head.num_base_priors * width for pred in out[1])
    ):
        raise ValueError(
            f'a {type(head).__name__} does not decode its boxes from priors as '
            'RetinaNet, FCOS and ATSS do; it cannot be explained'
        )
    maps = out[0]
    priors = head.prior_generator.grid_priors(
        [x.shape[2:] for x in maps],
        dtype=maps[0].dtype,
        device=maps[0].device,
        **dict(with_stride=True) if yolox else {},
    )
    boxes = []
    for level, prior in enumerate(priors):
        if yolox:
            found = head._bbox_decode(prior, _by_prior(out[1][level], 4))[0]
        elif yolov3:
            pred = _by_prior(maps[level], head.num_attrib)[0, :, :4].clone()
            pred[:, :2] = pred[:, :2].sigmoid()
            stride = pred.new_full((len(pred), 1), head.featmap_strides[level])
            found = coder.decode(prior, pred, stride)
        else:
            pred = _by_prior(out[1][level], width)[0]
            found = coder.decode(prior, pred, max_shape=size)
        boxes.append(found)
    return list(zip(boxes, _class_maps(head, out)))


def _by_prior(values: Tensor, size: int) -> Tensor:
    """(N, A * size, H, W) to (N, H * W * A, size), the order of the priors."""
    return values.permute(0, 2, 3, 1).reshape(len(values), -1, size)
