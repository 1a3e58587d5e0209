"""Mask R-CNN on a small data set of one's own; docs/own-data.md says how."""

_base_ = ['./mask-rcnn_r18_fpn.py', './own-data_detection.py']
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(320, 320), keep_ratio=True),
    dict(type='RandomFlip', prob=[0.33, 0.33], direction=['horizontal', 'vertical']),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_evaluator = test_evaluator = dict(metric=['bbox', 'segm'])
optim_wrapper = dict(optimizer=dict(lr=1.5e-3))
