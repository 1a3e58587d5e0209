"""Four epochs of 100 iterations on shapes, scored at the end."""

_base_ = ['./faster-rcnn_r18_fpn.py', './shapes_detection.py']
model = dict(
    roi_head=dict(bbox_head=dict(num_classes=6)),
    train_cfg=dict(rpn_proposal=dict(nms_pre=300, max_per_img=150)),
)
optim_wrapper = dict(optimizer=dict(lr=1.5e-3))

max_epochs = 4
train_cfg = dict(
    type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=max_epochs
)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        convert_to_iter_based=True,
        begin=1,
        end=max_epochs,
        T_max=max_epochs - 1,
        eta_min_ratio=0.01,
    ),
]
