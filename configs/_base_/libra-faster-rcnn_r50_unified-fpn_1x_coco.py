_base_ = 'mmdet::libra_rcnn/libra-faster-rcnn_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['dlu_mmdet'])
model = dict(
    # P6 is part of the top-down path: every level must halve without a rest
    data_preprocessor=dict(pad_size_divisor=64),
    # configs do not merge lists: both parts in full
    neck=[
        dict(
            type='UnifiedFPN',
            in_channels=[256, 512, 1024, 2048],
            out_channels=256,
            num_outs=5,
            upsample_cfg=dict(type='dlu'),
        ),
        dict(
            type='BFP',
            in_channels=256,
            num_levels=5,
            refine_level=2,
            refine_type='non_local',
        ),
    ],
)
