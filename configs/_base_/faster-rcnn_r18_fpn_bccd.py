"""BCCD: photographs of blood cells, eight epochs, in data/bccd."""

_base_ = [
    './faster-rcnn_r18_fpn.py',
    './own-data_detection.py',
    './small-data_4e.py',
]
optim_wrapper = dict(optimizer=dict(lr=1.5e-3))
data = dict(data_root='data/bccd/', metainfo=dict(classes=('RBC', 'WBC', 'Platelets')))
model = dict(roi_head=dict(bbox_head=dict(num_classes=3)))
train_dataloader = dict(dataset=data)
val_dataloader = test_dataloader = dict(dataset=data)
val_evaluator = test_evaluator = dict(
    ann_file='data/bccd/annotations/instances_val.json'
)
train_cfg = dict(max_epochs=8, val_interval=8)
