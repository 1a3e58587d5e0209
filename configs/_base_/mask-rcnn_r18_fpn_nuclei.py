"""Nuclei with their masks, in data/nuclei."""

_base_ = [
    './mask-rcnn_r18_fpn.py',
    './own-data_masks.py',
    './small-data_4e.py',
]
optim_wrapper = dict(optimizer=dict(lr=1.5e-3))
data = dict(data_root='data/nuclei/', metainfo=dict(classes=('nucleus',)))
model = dict(
    roi_head=dict(bbox_head=dict(num_classes=1), mask_head=dict(num_classes=1))
)
train_dataloader = dict(dataset=data)
val_dataloader = test_dataloader = dict(dataset=data)
val_evaluator = test_evaluator = dict(
    ann_file='data/nuclei/annotations/instances_val.json'
)
