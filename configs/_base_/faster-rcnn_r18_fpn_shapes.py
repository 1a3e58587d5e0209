"""Four epochs of 100 iterations on shapes, scored at the end.

python -m dlu_mmdet.datasets.make_shapes data/shapes makes the data set.
"""

_base_ = [
    './faster-rcnn_r18_fpn.py',
    './own-data_detection.py',
    './small-data_4e.py',
]
optim_wrapper = dict(optimizer=dict(lr=1.5e-3))
model = dict(
    roi_head=dict(bbox_head=dict(num_classes=6)),
    train_cfg=dict(rpn_proposal=dict(nms_pre=300, max_per_img=150)),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(192, 192), keep_ratio=True),
    dict(type='RandomFlip', prob=[0.33, 0.33], direction=['horizontal', 'vertical']),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(192, 192), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
data = dict(type='ShapesDataset', data_root='data/shapes/')
train_dataloader = dict(dataset=dict(**data, pipeline=train_pipeline))
val_dataloader = test_dataloader = dict(
    batch_size=8, dataset=dict(**data, pipeline=test_pipeline)
)
val_evaluator = test_evaluator = dict(
    ann_file='data/shapes/annotations/instances_val.json'
)
