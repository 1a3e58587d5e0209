_base_ = 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py'
model = dict(neck=dict(type='dlu_mmdet.CSPNeXtPAFPN', upsample_cfg=dict(type='dlu')))
