"""Hooks of every training, on a model of one weight: what diverges, what is resumed."""

import json
import math
import time
import warnings
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import EarlyStoppingHook, Hook
from mmengine.model import BaseModel
from mmengine.optim.scheduler import ReduceOnPlateauLR
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import Dataset

from dlu_mmdet.engine import (
    Diverged,
    DivergenceHook,
    ResumeHook,
    hooks,
    read_divergence,
)
from dlu_mmdet.engine.hooks import count_validations

#: What the validation of each epoch finds: the best is that of the third.
SCORES = (0.1, 0.2, 0.5, 0.3, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1)


class Numbers(Dataset):
    metainfo = dict(classes=('number',))

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return dict(inputs=torch.full((1,), float(index)))


class OneWeight(BaseModel):
    """Its loss in an iteration is what ``losses`` says, about."""

    def __init__(self, losses=lambda iteration: 1.0):
        super().__init__()
        self.linear = nn.Linear(1, 1)
        self.norm = nn.BatchNorm1d(1)
        self.losses, self.iteration = losses, 0

    def forward(self, inputs, mode='tensor'):
        if mode != 'loss':
            return [0]
        self.iteration += 1
        value = self.losses(self.iteration)
        return dict(loss=value * (1 + 1e-3 * self.linear.bias.sum()))


class SkipsSteps(OneWeight):
    """As in mixed precision: no step where the loss is not finite."""

    def train_step(self, data, optim_wrapper):
        loss = self(**data, mode='loss')['loss']
        if torch.isfinite(loss):
            optim_wrapper.update_params(loss)
        return dict(loss=loss.detach())


class Scripted(BaseMetric):
    """The score of an epoch is that of :data:`SCORES`."""

    runner = None

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return dict(score=SCORES[self.runner.epoch - 1])


class Killed(Exception):
    """The end of a process."""


class Kill(Hook):
    """End the training in an epoch, at a stage of it."""

    priority = 'LOWEST'

    def __init__(self, stage, epoch):
        def end(runner, *_, **__):
            # after its training an epoch counts as done
            if runner.epoch == epoch:
                raise Killed

        setattr(self, stage, end)


def build(work_dir, model=None, resume=False, hooks=(), loop=None, **options):
    scalar_logs = dict(type='LoggerHook', interval=100)
    loader = dict(batch_size=2, dataset=Numbers(), num_workers=0)
    options.setdefault('default_hooks', {})
    options['default_hooks'] = dict(logger=scalar_logs, **options['default_hooks'])
    metric = Scripted()
    runner = Runner(
        model or OneWeight(),
        str(work_dir),
        train_dataloader=dict(loader, sampler=dict(type=DefaultSampler, shuffle=False)),
        val_dataloader=dict(loader, sampler=dict(type=DefaultSampler, shuffle=False)),
        train_cfg=loop or dict(by_epoch=True, max_epochs=len(SCORES), val_interval=1),
        val_cfg=dict(),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=1.0)),
        val_evaluator=Evaluator(metric),
        custom_hooks=[*hooks],
        resume=resume,
        log_level='ERROR',
        cfg=Config(dict(model_wrapper_cfg=None)),
        # mmengine hands out loggers and hubs by name
        experiment_name=str(time.monotonic_ns()),
        **options,
    )
    metric.runner = runner
    runner.register_hook(DivergenceHook())
    runner.register_hook(ResumeHook())
    return runner


# ---- what diverges -------------------------------------------------------------------


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite(tmp_path, value):
    """Seen at once; the checkpoint before it is the last."""
    model = OneWeight(lambda iteration: value if iteration == 3 else 1.0)
    with pytest.raises(Diverged, match=r'iteration 3: the loss is .*linear\.bias'):
        build(tmp_path, model).train()
    assert read_divergence(tmp_path)['iteration'] == 3
    assert {p.name for p in tmp_path.glob('*.pth')} == {'epoch_1.pth', 'epoch_2.pth'}
    # trained on it is forgotten
    build(tmp_path, resume=True).train()
    assert read_divergence(tmp_path) is None


def test_a_few_losses_without_a_step_do_no_harm(tmp_path):
    some = SkipsSteps(lambda iteration: math.inf if iteration in (2, 3, 7) else 1.0)
    build(tmp_path / 'some', some).train()
    loop = dict(by_epoch=True, max_epochs=60, val_begin=99)
    with pytest.raises(Diverged, match='iteration 50: .* for 50 iterations'):
        build(tmp_path / 'all', SkipsSteps(lambda _: math.inf), loop=loop).train()


@pytest.mark.parametrize('name', ['linear.weight', 'norm.running_var'])
def test_weights_that_are_not_finite_with_a_finite_loss(tmp_path, name):
    """They are never saved."""
    model = OneWeight()

    def break_weights(iteration):
        if iteration == 4:
            model.state_dict()[name].fill_(math.nan)
        return 1.0

    model.losses = break_weights
    with pytest.raises(Diverged, match=rf'iteration 4: {name} is not finite'):
        build(tmp_path, model).train()
    assert not (tmp_path / 'epoch_4.pth').exists()
    assert json.loads((tmp_path / 'diverged.json').read_text())['iteration'] == 4


def test_weights_to_begin_with_that_are_not_finite(tmp_path):
    model = OneWeight()
    nn.init.constant_(model.linear.weight, math.nan)
    with pytest.raises(Diverged, match=r'iteration 0: linear\.weight is not finite'):
        build(tmp_path, model).train()


# ---- what is resumed -----------------------------------------------------------------


def early_stopping():
    return EarlyStoppingHook(monitor='score', rule='greater', patience=3)


def epochs_of(work_dir):
    return len([*work_dir.glob('epoch_*.pth')])


@pytest.mark.parametrize('epoch', [1, 3, 5, 6])
@pytest.mark.parametrize('stage', ['after_train_epoch', 'after_val_epoch'])
def test_early_stopping_counts_on(tmp_path, stage, epoch):
    """Killed before a validation or after it: as many epochs as undisturbed."""
    build(tmp_path / 'whole', hooks=[early_stopping()]).train()
    assert epochs_of(tmp_path / 'whole') == 6  # three after the best
    # in after_train_epoch the epoch is not yet counted
    kill = Kill(stage, epoch - (stage == 'after_train_epoch'))
    with pytest.raises(Killed):
        build(tmp_path / 'killed', hooks=[early_stopping(), kill]).train()
    assert epochs_of(tmp_path / 'killed') == epoch
    build(tmp_path / 'killed', hooks=[early_stopping()], resume=True).train()
    assert epochs_of(tmp_path / 'killed') == 6
    # and again, when it has stopped
    build(tmp_path / 'killed', hooks=[early_stopping()], resume=True).train()
    assert epochs_of(tmp_path / 'killed') == 6


@pytest.mark.parametrize('stage', ['after_train_epoch', 'after_val_epoch'])
def test_what_depends_on_validations_is_as_undisturbed(tmp_path, stage):
    """The best checkpoint, and a learning rate that falls on a plateau."""
    plateau = dict(
        type=ReduceOnPlateauLR, monitor='score', rule='greater', patience=1, factor=0.5
    )
    best = dict(checkpoint=dict(type='CheckpointHook', interval=1, save_best='score'))
    best['checkpoint']['rule'] = 'greater'

    def run(folder, **how):
        runner = build(
            tmp_path / folder, param_scheduler=[plateau], default_hooks=best, **how
        )
        runner.train()
        return runner.optim_wrapper.get_lr()['lr'][0]

    expected = run('whole')
    assert 0 < expected < 1
    # the third epoch is the best
    with pytest.raises(Killed):
        run('killed', hooks=[Kill(stage, 3 - (stage == 'after_train_epoch'))])
    assert run('killed', resume=True) == expected
    for folder in ('whole', 'killed'):
        found = [path.name for path in (tmp_path / folder).glob('best*')]
        assert found == ['best_score_epoch_3.pth']


def test_number_of_validations():
    class Loop:
        max_epochs, val_begin = 20, 3
        dynamic_milestones, dynamic_intervals = [0, 16], [5, 1]

    # 5, 10, 15, then each one
    assert count_validations(Loop()) == 3 + 5
    assert count_validations(Loop(), 10) == 2
    Loop.max_epochs, Loop.dynamic_milestones, Loop.dynamic_intervals = 7, [0], [4]
    assert count_validations(Loop()) == 2  # the last one too


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


# ---- how long it takes ---------------------------------------------------------------


@pytest.mark.parametrize(
    'by_iter, done, words',
    [
        # 4 s an iteration; 10 batches of 3 images to validate, as 15 without gradients
        (True, 10, 'a first result in about 3 minutes, the last one in about 15 min'),
        (False, 10, 'a first result in about 10 minutes, the last one in about 14 min'),
        # of what is left where it is resumed
        (True, 190, 'a first result in about 60 seconds (4 s an iteration, 10 to go)'),
    ],
)
def test_when_a_result_is_due(by_iter, done, words):
    """Else people wait for an hour, or give up after a minute, as nothing says."""
    loader = type('Loader', (SimpleNamespace,), dict(__len__=lambda self: self.n))
    train = loader(n=50, batch_sampler=SimpleNamespace(batch_size=2))
    val = loader(n=10, batch_sampler=SimpleNamespace(batch_size=3))
    kind = IterBasedTrainLoop if by_iter else EpochBasedTrainLoop
    loop = kind.__new__(kind)
    loop.dataloader, loop.val_begin = train, 1
    loop._max_iters, loop._max_epochs = 200, 1 if by_iter else 4
    loop.dynamic_milestones, loop.dynamic_intervals = [0], [40 if by_iter else 3]
    runner = SimpleNamespace(train_loop=loop, val_loop=SimpleNamespace(dataloader=val))
    assert words in hooks._time_left(runner, done, 4.0)


def test_the_time_is_logged_once(tmp_path, monkeypatch):
    """And not where a training is over before."""
    texts = []
    monkeypatch.setattr(hooks, '_time_left', lambda *told: texts.append(told) or '')
    for epochs, number in ((2, 0), (30, 1)):
        runner = build(
            tmp_path, loop=dict(by_epoch=True, max_epochs=epochs, val_begin=99)
        )
        runner.register_hook(hooks.TimeLeftHook())
        runner.train()
        assert len(texts) == number
    (told,) = texts
    assert told[1] == 22 and 0 < told[2] < 1
