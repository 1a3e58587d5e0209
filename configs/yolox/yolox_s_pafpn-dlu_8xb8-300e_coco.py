_base_ = 'mmdet::yolox/yolox_s_8xb8-300e_coco.py'
model = dict(neck=dict(type='dlu_mmdet.YOLOXPAFPN', upsample_cfg=dict(type='dlu')))
