_base_ = '../_base_/faster-rcnn_r50_unified-fpn_1x_coco.py'
model = dict(neck=dict(upsample_cfg=dict(type='pixel_shuffle')))
