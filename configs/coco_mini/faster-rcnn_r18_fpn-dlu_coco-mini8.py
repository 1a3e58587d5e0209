"""Learns eight COCO images by heart: a check that training works."""

_base_ = './faster-rcnn_r18_fpn-dlu_coco-mini.py'

ann_file = 'annotations/instances_train2017_8.json'
eight = dict(ann_file=ann_file, data_prefix=dict(img='train2017/'))
train_dataloader = dict(dataset=eight)
val_dataloader = dict(dataset=eight)
test_dataloader = dict(dataset=eight)
val_evaluator = dict(ann_file='{{$COCO_ROOT:data/coco}}/' + ann_file)
test_evaluator = val_evaluator

max_epochs = 120
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
# an epoch is two iterations
default_hooks = dict(checkpoint=dict(interval=max_epochs))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        convert_to_iter_based=True,
        begin=10,
        end=max_epochs,
        T_max=max_epochs - 10,
        eta_min_ratio=0.01,
    ),
]
