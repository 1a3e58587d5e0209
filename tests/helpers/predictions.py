"""Predictions near the objects of a data set, as a test loop hands them to metrics."""

import numpy as np
import torch


def samples_of(coco, rng, mask_scores=False):
    """One sample of each image, with boxes and masks; labels are category ids - 1."""
    for image in coco.imgs.values():
        objects = coco.loadAnns(coco.getAnnIds(image['id']))
        boxes = np.array([each['bbox'] for each in objects]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        masks = np.zeros((len(boxes), image['height'], image['width']), bool)
        for mask, box in zip(masks, boxes.astype(int)):
            mask[box[1] : box[3], box[0] : box[2]] = True
        boxes = boxes + rng.normal(0, 3, boxes.shape)
        found = dict(
            bboxes=torch.tensor(boxes, dtype=torch.float32),
            scores=torch.tensor(rng.random(len(boxes)), dtype=torch.float32),
            labels=torch.tensor([each['category_id'] - 1 for each in objects]).long(),
            masks=torch.tensor(masks),
        )
        if mask_scores:
            found['mask_scores'] = found['scores'] / 2
        yield dict(
            img_id=image['id'],
            ori_shape=(image['height'], image['width']),
            pred_instances=found,
        )
