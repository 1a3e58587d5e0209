_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['dlu_mmdet'])
# P6 and P7 are convolutions of C5 here, not part of the top-down path
model = dict(neck=dict(type='UpsampleFPN', upsample_cfg=dict(type='dlu')))
