_base_ = '../_base_/retinanet_r50_upsample-fpn_1x_coco.py'
model = dict(neck=dict(upsample_cfg=dict(type='bilinear')))
