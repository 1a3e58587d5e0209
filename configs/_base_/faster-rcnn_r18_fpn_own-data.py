"""Faster R-CNN for your own small data set, see docs/own-data.md."""

_base_ = [
    './faster-rcnn_r18_fpn.py',
    './own-data_detection.py',
    './own-data_schedule.py',
]
optim_wrapper = dict(optimizer=dict(lr=1.5e-3))
