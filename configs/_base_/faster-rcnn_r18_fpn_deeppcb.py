"""DeepPCB: scans of circuit boards with six kinds of defects, in data/deeppcb."""

_base_ = [
    './faster-rcnn_r18_fpn.py',
    './own-data_detection.py',
    './small-data_4e.py',
]
optim_wrapper = dict(optimizer=dict(lr=1.5e-3))
data = dict(
    data_root='data/deeppcb/',
    metainfo=dict(classes=('open', 'short', 'mousebite', 'spur', 'copper', 'pin-hole')),
)
model = dict(roi_head=dict(bbox_head=dict(num_classes=6)))
train_dataloader = dict(dataset=data)
val_dataloader = test_dataloader = dict(dataset=data)
val_evaluator = test_evaluator = dict(
    ann_file='data/deeppcb/annotations/instances_val.json'
)
