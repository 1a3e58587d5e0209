_base_ = '../_base_/faster-rcnn_r18_fpn_deeppcb.py'
model = dict(neck=dict(upsample_cfg=dict(type='bilinear')))
