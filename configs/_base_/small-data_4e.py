"""Four epochs with one of warm-up, scored at the end: for the published small sets."""

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=4, val_interval=4)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    # without an end it lasts for all epochs, however many
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        convert_to_iter_based=True,
        begin=1,
        eta_min_ratio=0.01,
    ),
]
