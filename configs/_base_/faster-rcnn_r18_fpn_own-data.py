"""Faster R-CNN on a small data set of one's own; docs/own-data.md says how."""

_base_ = [
    './faster-rcnn_r18_fpn.py',
    './own-data_detection.py',
    './own-data_schedule.py',
]
optim_wrapper = dict(optimizer=dict(lr=1.5e-3))
