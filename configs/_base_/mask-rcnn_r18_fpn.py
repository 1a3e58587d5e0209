"""A Mask R-CNN small enough to train from scratch on a CPU in minutes."""

_base_ = './faster-rcnn_r18_fpn.py'
model = dict(
    type='MaskRCNN',
    roi_head=dict(
        mask_roi_extractor=dict(
            type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=1),
            out_channels=64,
            featmap_strides=[4, 8, 16, 32],
            finest_scale=28,
        ),
        # deconv is mmdet's own: interpolation would leave a layer fewer to learn
        mask_head=dict(
            type='UpsampleMaskHead',
            num_convs=2,
            in_channels=64,
            conv_out_channels=64,
            num_classes=80,
            upsample_cfg=dict(type='deconv'),
            loss_mask=dict(type='CrossEntropyLoss', use_mask=True),
        ),
    ),
    train_cfg=dict(rcnn=dict(mask_size=28)),
    test_cfg=dict(rcnn=dict(mask_thr_binary=0.5)),
)
