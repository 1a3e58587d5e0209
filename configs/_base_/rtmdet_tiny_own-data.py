"""RTMDet-tiny for your own small data set, see docs/own-data.md.

It leaves out mosaic and mixup, which need many epochs, as MMDetection does in its last
epochs. The learning rate is scaled down by the square root of the batch size.
"""

_base_ = 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py'

# the length follows the number of images, as in own-data_schedule.py
fit_schedule = True
train_cfg = dict(_delete_=True, by_epoch=False)
param_scheduler = None

train_dataloader = dict(
    batch_size=8, num_workers=2, dataset=dict(pipeline=_base_.train_pipeline_stage2)
)
val_dataloader = dict(num_workers=2)
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=0.0007))
custom_hooks = [_base_.custom_hooks[0]]
