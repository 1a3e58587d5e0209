_base_ = '../_base_/libra-faster-rcnn_r50_unified-fpn_1x_coco.py'
model = dict(
    neck=[
        dict(_base_.model.neck[0], upsample_cfg=dict(type='dlu')),
        _base_.model.neck[1],
    ]
)
