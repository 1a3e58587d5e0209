"""A trained detector gets another upsampler: nothing else of it changes."""

import logging
import re
import shutil
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import CONFIGS, as_arguments, load_tool
from mmdet.models.necks import FPN_CARAFE
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.registry import init_default_scope
from mmengine.runner import get_priority
from torch import nn

import dlu_mmdet.engine
from dlu_mmdet.config import load_config
from dlu_mmdet.config.read import parse_upsampler
from dlu_mmdet.datasets import ShapesDataset
from dlu_mmdet.engine import (
    CheckpointGuardHook,
    FreezeHook,
    build_runner,
    check_state_dict,
    freeze_all_but,
    load_detector,
    upgrade,
)
from dlu_mmdet.engine.upgrade import compare_necks, with_new_upsamplers
from dlu_mmdet.necks import UpsampleFPN

BILINEAR = CONFIGS / 'shapes' / 'faster-rcnn_r18_fpn-bilinear_shapes.py'
CLASSES = ShapesDataset.METAINFO['classes']


@pytest.fixture(scope='module')
def plain(small, tmp_path_factory):
    """Config and checkpoint of MMDetection's own Faster R-CNN, in the zoo's form."""
    folder = tmp_path_factory.mktemp('plain')
    cfg = Config.fromfile(BILINEAR)
    cfg.merge_from_dict(small)
    cfg.model.neck = dict(
        type='FPN', in_channels=[32, 64, 128, 256], out_channels=64, num_outs=5
    )
    cfg.dump(folder / 'plain.py')
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    save(model.state_dict(), folder / 'plain.pth')
    return folder / 'plain.py', folder / 'plain.pth'


def save(weights, path):
    meta = dict(dataset_meta=dict(classes=CLASSES), epoch=12, iter=600)
    torch.save(dict(meta=meta, state_dict=weights), path)


def weights_of(path):
    return torch.load(path, weights_only=False)['state_dict']


def test_only_the_upsamplers_are_new(plain, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights, out = weights_of(plain[1]), tmp_path / 'new' / 'upgraded.pth'
    upgrade(*plain, dict(type='dlu'), out)
    found = weights_of(out)
    assert all(torch.equal(found.pop(k), v) for k, v in weights.items())
    assert found and all(k.startswith('neck.upsample_modules.') for k in found)
    shown = capsys.readouterr().out
    assert re.search(r'upgraded\.pth; 69,603 parameters are new', shown), shown
    share = re.search(r'differ by ([\d.]+)% \(RMS\) on 8 images', shown)
    assert 0 < float(share[1]) < 10
    assert 'coco/bbox_mAP: 0.000 before, 0.000 after' in shown
    model = load_detector(out.with_suffix('.py'), out)
    assert model.dataset_meta['classes'] == CLASSES
    assert {m.start for m in model.neck.upsample_modules} == {'nearest'}


@pytest.mark.parametrize('form', ['bare', 'wrapped', 'averages of version 2'])
def test_other_forms_of_a_checkpoint(plain, form, tmp_path):
    weights = weights_of(plain[1])
    given = dict(weights)
    if form == 'wrapped':
        given = {f'module.{k}': v for k, v in weights.items()}
    elif form != 'bare':
        given.update((f'ema_{k.replace(".", "_")}', v) for k, v in weights.items())
    torch.save(given if form == 'bare' else dict(state_dict=given), tmp_path / 'a.pth')
    found = load_detector(plain[0], tmp_path / 'a.pth').state_dict()
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[k], v) for k, v in weights.items())


def test_the_same_detector_each_time(plain):
    """Upsamplers start at random, and MMDetection's rules are for other layers."""
    old = load_detector(*plain)
    cfg = dict(type='deconv', start='paper')
    first, second = (with_new_upsamplers(old, cfg).state_dict() for _ in range(2))
    assert all(torch.equal(second[k], v) for k, v in first.items())
    assert not first['neck.upsample_modules.0.bias'].any()  # as init_weights leaves it


@pytest.mark.parametrize(
    'options',
    [
        {'test_dataloader.dataset.data_root': 'nowhere'},
        {'test_dataloader.dataset.metainfo': dict(classes=('a', 'b'))},
        dict(test_dataloader=None, test_cfg=None, test_evaluator=None),
    ],
    ids=['no images', 'other classes', 'no test set'],
)
def test_without_images_it_writes_all_the_same(
    plain, options, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    options = {**options, 'load_from': 'another.pth', 'resume': True}
    upgrade(*plain, dict(type='carafe'), 'a.pth', cfg_options=options)
    assert 'not compared on images: ' in capsys.readouterr().out
    assert Path('a.pth').exists()
    # a training would go on from another detector
    written = Config.fromfile('a.py')
    assert not any(key in written for key in ('load_from', 'resume', 'work_dir'))


def test_the_config_of_a_run_stays(plain, tmp_path):
    """A test with options would change what a resumed training reads."""
    config = Path(shutil.copy(plain[0], tmp_path))
    before = config.read_bytes()
    options = {'test_dataloader.batch_size': 1}
    cfg = load_config(config, cfg_options=options, work_dir=str(tmp_path))
    build_runner(cfg, 'test', plain[1])
    assert config.read_bytes() == before
    written = Config.fromfile(tmp_path / f'test_{config.name}')
    assert written.test_dataloader.batch_size == 1


def test_a_full_disk_leaves_nothing(plain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write_a_part(content, path):
        Path(path).write_bytes(b'a')
        raise OSError('no space left')

    monkeypatch.setattr(torch, 'save', write_a_part)
    with pytest.raises(OSError, match='no space left'):
        upgrade(*plain, dict(type='dlu'), 'a.pth')
    assert not any(tmp_path.iterdir())


def pyramid(**upsampler):
    """A model whose neck has upsamplers."""
    neck = UpsampleFPN([8, 16], 16, 2, upsample_cfg=upsampler)
    return nn.Sequential(OrderedDict(neck=neck))


class Students(nn.Module):
    """As a semi-supervised detector, which tests its teacher."""

    def __init__(self, **upsampler):
        super().__init__()
        self.student, self.teacher = pyramid(**upsampler), pyramid(**upsampler)

    def test_step(self, batch):
        self.teacher.neck(batch['inputs'])


def test_the_neck_that_runs_is_compared():
    maps = [torch.randn(1, 8, 8, 8), torch.randn(1, 16, 4, 4)]
    runner = SimpleNamespace(test_loop=SimpleNamespace(dataloader=[dict(inputs=maps)]))
    old, new = Students(type='nearest'), Students(type='dlu', start='nearest')
    new.load_state_dict(old.state_dict(), strict=False)
    share, _ = compare_necks(old, new, runner, 1)
    assert 0 < share < 0.2


# ---- checkpoints that a training or a test begins with -------------------------------


@pytest.mark.parametrize('form', ['bare', 'wrapped'])
def test_averages_begin_with_the_weights_too(form):
    """EMAHook knows one form, and a test is of its averages."""
    model = pyramid(type='dlu')
    weights = {k: torch.full_like(v, 3) for k, v in model.state_dict().items()}
    given = dict(weights)
    if form == 'wrapped':
        given = dict(state_dict={f'module.{k}': v for k, v in weights.items()})
    averages, guard = EMAHook(), CheckpointGuardHook()
    runner = SimpleNamespace(
        model=model, cfg=Config(), _resume=False, _load_from='a.pth'
    )
    averages.before_run(runner)
    for hook in sorted([averages, guard], key=lambda h: get_priority(h.priority)):
        hook.after_load_checkpoint(runner, given)
    found = averages.ema_model.module.state_dict()
    assert all(torch.equal(found[k], v) for k, v in weights.items())


@pytest.mark.parametrize('content', [[1, 2], dict(state_dict=[1]), {1: 2}], ids=str)
def test_a_file_without_weights(content):
    runner = SimpleNamespace(model=nn.ReLU(), _load_from='a.pth')
    with pytest.raises(ValueError, match='a.pth holds a (list|dict) without weights'):
        CheckpointGuardHook().after_load_checkpoint(runner, content)


@pytest.mark.parametrize(
    'old, new, key',
    [
        (dict(type='sapa'), dict(type='sapa', start='nearest'), 'window_bias'),
        (dict(type='dysample'), dict(type='dysample', dyscope=True), 'scope.weight'),
    ],
    ids=['sapa', 'dysample'],
)
def test_no_part_of_a_trained_upsampler_is_new(old, new, key):
    weights = pyramid(**old).state_dict()
    with pytest.raises(ValueError, match=f'1 missing: neck.upsample_modules.0.{key}'):
        check_state_dict(pyramid(**new), weights, new_upsamplers=True)
    plain = pyramid(type='nearest').state_dict()
    check_state_dict(pyramid(**new), plain, new_upsamplers=True)


def test_a_checkpoint_of_other_classes():
    weights = pyramid(type='nearest').state_dict()
    weights['neck.fpn_convs.0.conv.bias'] = torch.zeros(3)
    with pytest.raises(ValueError, match='load_from=CHECKPOINT for one of other class'):
        check_state_dict(pyramid(type='dlu'), weights, new_upsamplers=True)


def test_load_from_replaces_that_of_the_config(plain, tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    def stop(cfg, mode, checkpoint):
        raise Stop(cfg.load_from, cfg.resume, checkpoint)

    monkeypatch.setattr(dlu_mmdet.engine, 'build_runner', stop)
    arguments = [str(plain[0]), '--work-dir', str(tmp_path), '--load-from', plain[1]]
    arguments += ['--cfg-options', 'load_from=another.pth', 'resume=True']
    with pytest.raises(Stop) as info:
        load_tool('train').main([*map(str, arguments)])
    assert info.value.args == (str(plain[1]), False, str(plain[1]))


def lose(weights):
    del weights['backbone.conv1.weight']


def add_upsampler(weights):
    weights['neck.upsample_modules.0.conv_offset.bias'] = torch.zeros(8)


@pytest.mark.parametrize(
    'change, upsampler, out, words',
    [
        (lose, 'dlu', 'a.pth', '1 missing: backbone.conv1.weight'),
        (add_upsampler, 'dlu', 'a.pth', 'unexpected: neck.upsample_modules.0'),
        (None, 'dlu:start=bilinear', 'a.pth', "'paper', 'nearest'"),
        (None, 'lda_aqu', 'a.pth', "start='nearest' is none of .*: 'paper'"),
        (None, 'dlu', 'a.pt', '--out must end with .pth, got a.pt'),
        (None, 'dlu', 'there.pth', 'there.py exists already'),
        (None, 'dlu', 'there.py/a.pth', 'there.py/a.pth cannot be written'),
    ],
)
def test_what_cannot_be_upgraded(
    plain, change, upsampler, out, words, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    config, checkpoint = plain
    if change:
        weights = weights_of(checkpoint)
        change(weights)
        checkpoint = tmp_path / 'changed.pth'
        save(weights, checkpoint)
    (tmp_path / 'there.py').write_text('')
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=words) as info:
        upgrade(config, checkpoint, parse_upsampler(upsampler), out)
    assert '\n' not in str(info.value)
    assert sorted(tmp_path.iterdir()) == before


def test_a_detector_that_has_upsamplers(plain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {'test_dataloader.dataset.data_root': 'nowhere'}
    upgrade(*plain, dict(type='carafe'), 'a.pth', cfg_options=options)
    with pytest.raises(ValueError, match='the checkpoint holds upsamplers already'):
        upgrade('a.py', 'a.pth', dict(type='dlu'), 'b.pth')


def test_a_neck_of_mmdet_that_has_upsamplers():
    neck = FPN_CARAFE([8, 16], 16, 2)
    with pytest.raises(ValueError, match='the checkpoint holds upsamplers already'):
        with_new_upsamplers(neck, dict(type='dlu', start='paper'))


# ---- training what is new -----------------------------------------------------------


def train(plain, work_dir, *arguments, upsampler='dlu:start=neck'):
    """Two iterations; returns the weights."""
    config, checkpoint = plain
    options = {
        'train_cfg.max_epochs': 1,
        'val_evaluator': None,
        'val_dataloader': None,
        'val_cfg': None,
        'param_scheduler': None,
    }
    load_tool('train').main(
        [
            *(str(config), '--work-dir', str(work_dir), '--upsampler', upsampler),
            *(str(each) for each in arguments),
            *as_arguments(options),
        ]
    )
    return weights_of(work_dir / 'epoch_1.pth')


@pytest.mark.parametrize('part', ['upsamplers', 'neck'])
def test_the_rest_is_frozen(plain, part, tmp_path):
    """The statistics of batch norms, too, which no gradient changes."""
    freeze = ['--load-from', plain[1], '--freeze', f'all-but-{part}']
    weights = train(plain, tmp_path, *freeze)
    before = weights_of(plain[1])
    changed = {k for k, v in before.items() if not torch.equal(weights[k], v)}
    neck = {k for k in before if k.startswith('neck.')}
    assert changed == (neck if part == 'neck' else set())
    moved = weights.keys() - before.keys()
    assert moved and all(k.startswith('neck.upsample_modules.') for k in moved)
    bias = weights['neck.upsample_modules.0.conv_offset.bias']
    assert bias.any()  # they start at 0


def test_without_freezing_all_is_trained(plain, tmp_path):
    weights = train(plain, tmp_path, '--load-from', plain[1])
    before = weights_of(plain[1])
    for key in ('backbone.bn1.running_mean', 'backbone.conv1.weight'):
        assert not torch.equal(weights[key], before[key])


def test_resume_goes_on_from_its_own_checkpoint(plain, tmp_path):
    """As a job that is started again with the same command."""
    both = ['--load-from', plain[1], '--freeze', 'all-but-upsamplers', '--resume']
    first = train(plain, tmp_path, *both)
    again = train(plain, tmp_path, *both)
    assert all(torch.equal(again[k], v) for k, v in first.items())


@pytest.mark.parametrize(
    'change, arguments, upsampler, words',
    [
        (lose, [], 'dlu', '1 missing: backbone.conv1.weight'),
        (add_upsampler, [], 'nearest', '1 unexpected: neck.upsample_modules.0'),
        (None, ['--freeze', 'all-but-upsamplers'], 'nearest', 'nothing to train'),
    ],
)
def test_a_training_that_cannot_begin(
    plain, change, arguments, upsampler, words, tmp_path
):
    config, checkpoint = plain
    if change:
        weights = weights_of(checkpoint)
        change(weights)
        checkpoint = tmp_path / 'changed.pth'
        save(weights, checkpoint)
    with pytest.raises(ValueError, match=words) as info:
        arguments = ['--load-from', checkpoint, *arguments]
        train((config, checkpoint), tmp_path, *arguments, upsampler=upsampler)
    assert '\n' not in str(info.value)
    assert not [*tmp_path.glob('epoch_*')]


def test_freezing_new_weights_is_refused(plain, tmp_path):
    with pytest.raises(ValueError, match='--load-from CHECKPOINT'):
        train(plain, tmp_path, '--freeze', 'all-but-neck')


def test_a_name_of_freeze_that_is_none(capsys):
    with pytest.raises(SystemExit):
        load_tool('train').parse_args(['a.py', '--freeze', 'backbone'])
    assert "invalid choice: 'backbone'" in capsys.readouterr().err
    args = load_tool('train').parse_args(['a.py', '--freeze', 'neck'])
    assert args.freeze == 'all-but-neck'
    with pytest.raises(ValueError, match="'upsamplers', 'neck', got 'backbone'"):
        FreezeHook('backbone')


def test_freezing_completes_the_config():
    """So that MMDetection's tools read the dumped one, on several devices as well."""
    wrapper = dict(type='MMDistributedDataParallel')
    cfg = Config(dict(load_from='a.pth', model_wrapper_cfg=wrapper))
    freeze_all_but(cfg, 'neck')
    assert cfg.custom_imports.imports == ['dlu_mmdet']
    assert cfg.find_unused_parameters and cfg.model_wrapper_cfg.find_unused_parameters


class Norm(nn.Module):
    """As mmcv's SyncBatchNorm, which derives from none of torch's."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))
        self.register_buffer('running_mean', torch.zeros(8))


def test_the_hook_of_a_config():
    model = pyramid(type='nearest')
    model.backbone = Norm()
    runner = SimpleNamespace(model=model, logger=logging.getLogger())
    # a test changes nothing and needs nothing to train
    FreezeHook('upsamplers').before_run(runner)
    hook = FreezeHook('neck')
    hook.before_train(runner)
    hook.before_train_iter(runner, 0)
    assert not (model.backbone.training or model.backbone.weight.requires_grad)
    assert model.neck.training
    runner.model = SimpleNamespace(find_unused_parameters=False)
    with pytest.raises(ValueError, match='needs find_unused_parameters=True in'):
        hook.before_train(runner)


# ---- checkpoints of MMDetection's own classes ---------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    'name',
    [
        'faster-rcnn',
        'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
        'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py',
    ],
)
def test_a_checkpoint_of_mmdet(name, plain, shapes_root, tmp_path, monkeypatch, capsys):
    """As training writes it: averaged weights, the others, and an optimizer's state."""
    monkeypatch.chdir(tmp_path)
    options = {
        'train_cfg.max_epochs': 1,
        'train_cfg.val_interval': 1,
        'val_dataloader': None,
        'val_cfg': None,
        'val_evaluator': None,
        'param_scheduler': None,
    }
    if name == 'faster-rcnn':
        name = plain[0]
        options['custom_hooks'] = [dict(type='EMAHook')]
    else:
        options['model.backbone.init_cfg'] = None  # no download
        options['custom_hooks'] = [dict(type='EMAHook', ema_type='ExpMomentumEMA')]
        for split in ('train', 'test'):
            options[f'{split}_dataloader.num_workers'] = 0
    data = ['--data', str(shapes_root), '--work-dir', 'run']
    load_tool('train').main([str(name), *data, *as_arguments(options)])
    checkpoint = torch.load('run/epoch_1.pth', weights_only=False)
    assert {'ema_state_dict', 'optimizer', 'message_hub'} < checkpoint.keys()
    config = next(Path('run').glob('*.py'))
    upgrade(config, 'run/epoch_1.pth', dict(type='dlu'), 'a.pth')
    weights, before = weights_of('a.pth'), checkpoint['state_dict']
    assert all(torch.equal(weights.pop(k), v) for k, v in before.items())
    assert weights and all(k.startswith('neck.upsample_modules.') for k in weights)
    shown = capsys.readouterr().out
    # maps of a detector that has hardly been trained are rough
    assert float(re.search(r'differ by ([\d.]+)% \(RMS\)', shown)[1]) < 25
    # two iterations from random weights leave YOLOX without a detection
    found_nothing = (
        'yolox' in str(name) and 'metrics: none, the detectors find' in shown
    )
    assert 'bbox_mAP: ' in shown or found_nothing
