_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['dlu_mmdet'])
model = dict(
    # P6 is part of the top-down path: every level must halve without a rest
    data_preprocessor=dict(pad_size_divisor=64),
    neck=dict(type='UnifiedFPN', upsample_cfg=dict(type='dlu')),
)
