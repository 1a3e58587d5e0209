"""Nuclei: crops of microscope images, small objects that touch, in data/nuclei."""

_base_ = [
    './faster-rcnn_r18_fpn.py',
    './own-data_detection.py',
    './small-data_4e.py',
]
optim_wrapper = dict(optimizer=dict(lr=1.5e-3))
data = dict(data_root='data/nuclei/', metainfo=dict(classes=('nucleus',)))
model = dict(roi_head=dict(bbox_head=dict(num_classes=1)))
train_dataloader = dict(dataset=data)
val_dataloader = test_dataloader = dict(dataset=data)
val_evaluator = test_evaluator = dict(
    ann_file='data/nuclei/annotations/instances_val.json'
)
