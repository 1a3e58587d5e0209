_base_ = '../_base_/mask-rcnn_r50_unified-fpn_1x_coco.py'
model = dict(
    neck=dict(upsample_cfg=dict(type='dlu')),
    roi_head=dict(mask_head=dict(upsample_cfg=dict(type='dlu'))),
)
