"""Eight epochs on a small sample of COCO, from scratch.

Takes COCO's layout from the folder named by the environment variable COCO_ROOT,
'data/coco' without it.
"""

_base_ = [
    './faster-rcnn_r18_fpn.py',
    './own-data_detection.py',
    './small-data_4e.py',
]

data_root = '{{$COCO_ROOT:data/coco}}/'
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(384, 384), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(384, 384), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017/'),
        pipeline=train_pipeline,
    )
)
val_dataloader = test_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017/'),
        pipeline=test_pipeline,
    )
)
val_evaluator = test_evaluator = dict(
    ann_file=data_root + 'annotations/instances_val2017.json'
)

train_cfg = dict(max_epochs=8, val_interval=8)
param_scheduler = [
    # one epoch
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=32),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        convert_to_iter_based=True,
        begin=1,
        eta_min_ratio=0.01,
    ),
]
