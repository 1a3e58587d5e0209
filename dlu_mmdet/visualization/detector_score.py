"""The score of one detection, as something that can be differentiated."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import get_box_tensor
from torch import Tensor, nn

from .images import load_image


@torch.no_grad()
def detect(model: nn.Module, image: str | os.PathLike) -> tuple[Tensor, DetDataSample]:
    """Run a detector on an image and keep what it saw.

    Args:
        model (nn.Module): A detector from :func:`dlu_mmdet.engine.load_detector`.
        image (str | PathLike): An image file.

    Returns:
        tuple[Tensor, DetDataSample]: The network's input (1, C, H, W), normalised
        and padded, and the sample with ``image``, (H, W, 3) uint8 RGB, the image
        as the test pipeline loaded it, and ``pred_instances``: ``bboxes`` (D, 4)
        x1 y1 x2 y2 in pixels of that image, ``labels``, ``scores``, best first.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a readable image.
    """
    item = load_image(model, image)
    data = {key: [item[key]] for key in ('inputs', 'data_samples')}
    data = model.data_preprocessor(data, training=False)
    (sample,) = model.predict(data['inputs'], data['data_samples'])
    order = sample.pred_instances.scores.argsort(descending=True, stable=True)
    sample.pred_instances = sample.pred_instances[order]
    sample.image = item['image']
    return data['inputs'], sample


def detection_score(
    model: nn.Module, inputs: Tensor, sample: DetDataSample, index: int
) -> tuple[Callable[[int], Tensor], int]:
    """The logit behind one detection, for :class:`.cam.LayerScore`.

    With a RoI head it is the logit of the detection's class that the head gives to
    the detection's own box, held fixed; the score came from a proposal nearby.
    With a dense head it is the logit at the anchor or point that the box was
    decoded from.

    Args:
        model (nn.Module): A detector with a standard RoI head (Faster R-CNN, Mask
            R-CNN) or a dense head that decodes boxes from priors (RetinaNet,
            FCOS, ATSS).
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

    It is what the head makes of the logits of :func:`detection_score`: their softmax
    or sigmoid, before it is multiplied by a centerness.

    Args:
        model (nn.Module): As for :func:`detection_score`.
        inputs (Tensor): (1, C, H, W), from :func:`detect`.
        sample (DetDataSample): From :func:`detect`.
        index (int): Which of its detections.

    Returns:
        Callable[[Tensor], Tensor]: A function that gives the probabilities (N,) of
        images (N, C, H, W), each in the place of ``inputs``.

    Raises:
        ValueError: If the detector is of another kind.
    """
    logits, label, _ = _class_logits(model, inputs, sample, index)
    if getattr(model, 'roi_head', None) is None:
        activate = torch.sigmoid if model.bbox_head.use_sigmoid_cls else _softmax
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
            'head; Faster R-CNN, Mask R-CNN, RetinaNet, FCOS and ATSS can be explained'
        )
    box = sample.pred_instances.bboxes[index]
    box = get_box_tensor(box) * box.new_tensor(sample.scale_factor).repeat(2)
    label = int(sample.pred_instances.labels[index])
    logits, level = find(model, inputs, sample, index, box, label)
    return logits, label, level


def default_layer(model: nn.Module, level: int) -> str:
    """The stage of the backbone that a level of the pyramid is built on.

    Stages of a ResNet end in a ReLU. A pyramid's own convolutions do not, and
    where a channel's values are negative elsewhere in the image its weight gets
    the wrong sign: maps of the pyramid show the background.

    Args:
        model (nn.Module): A detector with a ResNet and a pyramid.
        level (int): From :func:`detection_score`.

    Returns:
        str: For example 'backbone.layer1'. Levels above the last stage are
        built on that one.

    Raises:
        ValueError: If the backbone is not one of mmdet's ResNets.
    """
    backbone = model.backbone
    if not hasattr(backbone, 'res_layers'):
        raise ValueError(
            f'no default layer is known for a {type(backbone).__name__}; choose one '
            'with --layer, best one that ends in a ReLU'
        )
    level += getattr(getattr(model, 'neck', None), 'start_level', 0)
    stages = backbone.out_indices
    stage = stages[min(level, len(stages) - 1)]
    return f'backbone.{backbone.res_layers[stage]}'


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
        cls_scores, bbox_preds, *_ = head(model.extract_feat(inputs))
    coder = getattr(head, 'bbox_coder', None)
    size = getattr(coder, 'encode_size', None)
    if size is None or any(
        pred.shape[1] != head.num_base_priors * size for pred in bbox_preds
    ):
        raise ValueError(
            f'a {type(head).__name__} does not decode its boxes from priors as '
            'RetinaNet, FCOS and ATSS do; it cannot be explained'
        )

    # the box came out of this very decoding, so its prior gives it back
    priors = head.prior_generator.grid_priors(
        [pred.shape[2:] for pred in bbox_preds], inputs.dtype, inputs.device
    )
    boxes = [
        coder.decode(prior, _by_prior(pred, size)[0], max_shape=sample.img_shape)
        for prior, pred in zip(priors, bbox_preds)
    ]
    distances = (torch.cat([get_box_tensor(b) for b in boxes]) - box).abs().amax(1)
    if distances.min() > 1:
        raise ValueError(
            f'no prior of the {type(head).__name__} decodes to detection {index}, '
            f'the nearest is {distances.min():.1f} px off; it cannot be explained'
        )
    # boxes cut off at the border can agree: the class tells them apart
    logits = torch.cat(
        [_by_prior(cls, head.cls_out_channels)[0, :, label] for cls in cls_scores]
    )
    near = distances <= distances.min() + 1e-2
    prior = int(logits.masked_fill(~near, -torch.inf).argmax())
    level = 0
    while prior >= len(priors[level]):
        prior -= len(priors[level])
        level += 1

    def run(images: Tensor) -> Tensor:
        cls = head(model.extract_feat(images))[0][level]
        return _by_prior(cls, head.cls_out_channels)[:, prior]

    return run, level


def _by_prior(values: Tensor, size: int) -> Tensor:
    """(N, A * size, H, W) to (N, H * W * A, size), the order of the priors."""
    return values.permute(0, 2, 3, 1).reshape(len(values), -1, size)
