_base_ = '../_base_/mask-rcnn_r18_fpn_nuclei.py'
model = dict(
    neck=dict(upsample_cfg=dict(type='dysample')),
    roi_head=dict(mask_head=dict(upsample_cfg=dict(type='dysample'))),
)
