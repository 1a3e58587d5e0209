_base_ = '../_base_/faster-rcnn_r18_fpn_nuclei.py'
model = dict(neck=dict(upsample_cfg=dict(type='bilinear')))
