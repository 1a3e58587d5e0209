"""A training whose length follows the number of training images.

dlu_mmdet train and dlu_mmdet compare set iterations, warm-up, validation and
checkpoints, see dlu_mmdet/config/schedule.py. A config over this one may set
train_cfg.max_iters or train_cfg.max_epochs, and param_scheduler. MMDetection's own
tools need both.
"""

fit_schedule = True
train_cfg = dict(by_epoch=False)
