_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['dlu_mmdet'])
model = dict(
    # P6 is part of the top-down path: every level must halve without a rest
    data_preprocessor=dict(pad_size_divisor=64),
    neck=dict(type='UnifiedFPN', upsample_cfg=dict(type='dlu')),
    # deconv is mmdet's own: interpolation would leave a layer fewer to learn
    roi_head=dict(
        mask_head=dict(type='UpsampleMaskHead', upsample_cfg=dict(type='deconv'))
    ),
)
