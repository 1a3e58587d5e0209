"""Bad input: an error that names it and says what to do."""

import argparse
import copy
import json
import os
import re
import shlex
import shutil
import warnings

import pytest
from conftest import SHAPES_DLU, as_arguments, run
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope

from dlu_mmdet.cli.arguments import add_cfg_options
from dlu_mmdet.comparison import plan
from dlu_mmdet.config import merge_options, read_config
from dlu_mmdet.engine import build_runner, load_checkpoint, load_detector


def annotations(config):
    dataset = config.train_dataloader.dataset
    with open(f'{dataset.data_root}/{dataset.ann_file}') as file:
        return json.load(file)


def test_missing_data_folder(config, tmp_path):
    config.train_dataloader.dataset.data_root = str(tmp_path / 'nowhere')
    with pytest.raises(FileNotFoundError) as info:
        build_runner(config, 'train')
    message = str(info.value)
    assert str(tmp_path / 'nowhere') in message
    command = re.search(r'python -m (\S+) (\S+)', message)
    assert command.group(2) == str(tmp_path / 'nowhere')
    run('-m', command.group(1), '--help')


def test_missing_coco_says_how_to_fetch_it(tmp_path):
    cfg = Config.fromfile('configs/faster_rcnn/faster-rcnn_r50_fpn-dlu_1x_coco.py')
    cfg.train_dataloader.dataset.data_root = str(tmp_path)
    with pytest.raises(FileNotFoundError) as info:
        build_runner(cfg, 'train')
    script = re.search(r'python (\S+)', str(info.value)).group(1)
    assert os.path.exists(script)


def test_annotations_of_other_classes(config, tmp_path):
    data = annotations(config)
    for category in data['categories']:
        category['name'] = f'other {category["name"]}'
    file = tmp_path / 'other.json'
    file.write_text(json.dumps(data))
    config.train_dataloader.dataset.ann_file = str(file)
    with pytest.raises(ValueError, match=r'other\.json.*other .*classes'):
        build_runner(config, 'train')


def test_annotations_that_are_none(config, tmp_path):
    file = tmp_path / 'broken.json'
    file.write_text('{"images": [')
    config.train_dataloader.dataset.ann_file = str(file)
    with pytest.raises(ValueError, match=r'broken\.json is not a COCO'):
        build_runner(config, 'train')


@pytest.mark.parametrize('content', [b'', b'no image'])
def test_unreadable_image(config, tmp_path, content):
    data = annotations(config)
    (tmp_path / 'bad.png').write_bytes(content)
    for image in data['images']:
        image['file_name'] = str(tmp_path / 'bad.png')
    file = tmp_path / 'bad.json'
    file.write_text(json.dumps(data))
    config.train_dataloader.dataset.ann_file = str(file)
    config.work_dir = str(tmp_path)
    with pytest.raises(ValueError, match=r'bad\.png cannot be read.*fetch'):
        build_runner(config, 'train').train()


def test_checkpoint_of_another_architecture(trained, config, tmp_path):
    config.model.neck.upsample_cfg.type = 'carafe'
    config.load_from = str(trained / 'epoch_4.pth')
    config.work_dir = str(tmp_path)
    words = r'another architecture.*content_encoder.*kernel_space_generator'
    with pytest.raises(ValueError, match=words):
        build_runner(config, 'test').test()
    with pytest.raises(ValueError, match=words):
        load_detector(config, trained / 'epoch_4.pth')


def test_checkpoint_of_classes_in_another_order(trained, config, tmp_path):
    """Silent, it would score every object under the name of another."""
    config.load_from = str(trained / 'epoch_4.pth')
    config.work_dir = str(tmp_path)
    classes = ('ring', 'disc', 'square', 'triangle', 'cross', 'star')
    config.test_dataloader.dataset.metainfo = dict(classes=classes)
    with pytest.raises(ValueError, match="class 'ring' in place 1, .* in place 0"):
        build_runner(config, 'test').test()


def test_truncated_checkpoint(trained, tmp_path):
    whole = (trained / 'epoch_4.pth').read_bytes()
    file = tmp_path / 'cut.pth'
    for size in (0, 100, len(whole) // 2, len(whole) - 10):
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r'cut\.pth.*truncated'):
            load_checkpoint(file, 'cpu')


def test_a_training_checkpoint_loads_with_its_history(trained):
    """What mmengine stores besides weights survives the allow-list."""
    loaded = load_checkpoint(trained / 'epoch_4.pth', 'cpu')
    history = loaded['message_hub']['log_scalars']['train/loss']
    assert isinstance(history, HistoryBuffer)
    assert history.mean() > 0 and history.data[0].min() > 0


def test_missing_checkpoint_and_config(config, tmp_path):
    with pytest.raises(FileNotFoundError, match='none.pth does not exist'):
        load_detector(config, tmp_path / 'none.pth')
    failed = run('tools/train.py', tmp_path / 'none.py', check=False)
    assert failed.returncode
    assert 'none.py does not exist' in failed.stdout.splitlines()[-1]


def test_importing_without_the_stack(tmp_path):
    """One sentence that says what to install."""
    code = (
        'import sys; sys.modules["mmdet"] = None\n'
        'import dlu_mmdet.ops, dlu_mmdet.upsamplers\n'
        'try:\n    import dlu_mmdet.necks\n'
        'except ModuleNotFoundError as error:\n    print(error)'
    )
    output = run('-c', code).stdout.strip()
    assert len(output.splitlines()) == 1
    assert 'docs/install.md' in output and 'pip install dlu_mmdet' not in output


def test_wrong_upsampler_on_the_command_line(tmp_path):
    failed = run(
        'tools/train.py',
        SHAPES_DLU,
        '--work-dir',
        tmp_path,
        '--cfg-options',
        'model.neck.upsample_cfg.type=dlux',
        'train_dataloader=None',
        'train_cfg=None',
        'optim_wrapper=None',
        'val_dataloader=None',
        'val_cfg=None',
        'val_evaluator=None',
        'param_scheduler=None',
        check=False,
    )
    assert failed.returncode
    assert 'known types: bilinear, carafe, deconv, dlu' in failed.stdout


@pytest.mark.parametrize(
    ('key', 'value', 'hint'),
    [
        ('data_root', '/elsewhere', 'test_evaluator.ann_file=/elsewhere/annotations/'),
        ('max_epochs', 3, 'nearest: train_cfg.max_epochs'),
        ('train_pipeline.2.scale', (9, 9), 'train_dataloader.dataset.pipeline.2.scale'),
        ('lr', 1, 'optim_wrapper.optimizer.lr'),
        ('modle.neck.type', 'FPN', 'model.neck.type'),
        ('train_dataloader.batchsize', 3, 'train_dataloader.batch_size'),
        ('train_cfg.max_epoch', 3, 'train_cfg.max_epochs'),
        ('model.test_cfg.rcnn.score_thresh', 0.1, 'model.test_cfg.rcnn.score_thr'),
        ('model.neck.upsample_cfg.upkernel', 3, 'model.neck.upsample_cfg.up_kernel'),
        ('default_hooks.checkpoint.save_bst', 1, 'default_hooks.checkpoint.save_best'),
        ('default_hooks.checkpont.interval', 1, 'default_hooks.checkpoint.interval'),
        ('train_dataloader.dataset.filter_cfg.minsize', 1, 'filter_cfg'),
    ],
)
def test_an_override_that_would_change_nothing(config, key, value, hint):
    with pytest.raises(ValueError, match=rf'--cfg-options {key}=.*{re.escape(hint)}'):
        merge_options(config, {key: value})


def test_an_override_inside_a_dict_that_would_change_nothing(config):
    """In a part that the config has, and in one that it has not."""
    with pytest.raises(ValueError, match='train_cfg.max_epoch=3.*train_cfg.max_epochs'):
        merge_options(config, {'train_cfg': {'max_epoch': 3}})
    config.train_dataloader.dataset.pop('filter_cfg')
    key = 'train_dataloader.dataset.filter_cfg'
    with pytest.raises(ValueError, match=rf'{key}\.minsize=9: this key is not in'):
        merge_options(config, {f'{key}.minsize': 9})
    merge_options(config, {key: {'min_size': 9}, 'train_cfg': {'max_epochs': 3}})
    assert (config.train_cfg.max_epochs, config.train_cfg.val_interval) == (3, 4)


PARAMWISE = 'optim_wrapper.paramwise_cfg'


def rates(config):
    """Learning rates of the upsamplers and of the rest."""
    init_default_scope('mmdet')
    model = MODELS.build(copy.deepcopy(config.model))
    optimizer = build_optim_wrapper(model, config.optim_wrapper).optimizer
    upsamplers = {id(p) for p in model.neck.upsample_modules.parameters()}
    found = {True: set(), False: set()}
    for group in optimizer.param_groups:
        for parameter in group['params']:
            found[id(parameter) in upsamplers].add(group['lr'])
    return found[True], found[False]


def parsed(*options):
    parser = argparse.ArgumentParser()
    add_cfg_options(parser)
    return parser.parse_args(['--cfg-options', *options]).cfg_options


def test_a_name_with_dots_in_an_override(config):
    """Each dot makes a key inside a key, which mmengine passes over. The form that the
    message names works."""
    option = f'{PARAMWISE}.custom_keys.neck.upsample_modules.lr_mult=0.1'
    with pytest.raises(ValueError, match='would change nothing; a dot begins') as info:
        merge_options(copy.deepcopy(config), parsed(option))
    form = shlex.split(re.search('--cfg-options (".*")', str(info.value)).group(1))
    merge_options(config, parsed(*form))
    (own,), (others,) = rates(config)
    assert own == pytest.approx(0.1 * others)
    # as compare.py writes it down for its runs
    text = Config.fromstring(config.pretty_text, '.py')
    assert rates(text) == ({own}, {others})


IDLE = [
    ('custom_keys.nosuch.lr_mult=0.1', "a part of a parameter's name"),
    ('custom_keys.nek.lr_mult=0.1', 'name, as neck'),
    ('custom_keys.neck.lr_mul=0.1', 'nearest: lr_mult'),
    ('custom_keys.neck=0.1', 'custom_keys.neck=0.1: it must be a dict of lr_mult'),
    ('custom_keys.neck.lr_mult=low', "lr_mult='low': it must be a number"),
    ("custom_keys={'neck': {'lr_mult': 2}, 'neck.': {}}", 'a longer key'),
    ('bias_lr_mul=2', 'nearest: bias_lr_mult'),
    ('bypass_duplicat=True', 'nearest: bypass_duplicate'),
    ('dcn_offset_lr_mult=0.1', 'the model has no such parameter'),
    # of another constructor
    ('decay_rate=0.9', 'the constructor does not read it'),
]


@pytest.mark.parametrize(('option', 'message'), IDLE)
def test_a_setting_that_reaches_no_parameter(config, option, message):
    with pytest.raises(ValueError, match=f'{PARAMWISE}.*{message}'):
        merge_options(config, parsed(f'{PARAMWISE}.{option}'))


def test_a_multiplier_of_nothing(config):
    options = {f'{PARAMWISE}.norm_decay_mult': 0.5}
    merge_options(copy.deepcopy(config), options)
    with pytest.raises(
        ValueError, match='norm_decay_mult=0.5.* what it multiplies is 0'
    ):
        merge_options(config, {**options, 'optim_wrapper.optimizer.weight_decay': 0})


@pytest.mark.parametrize(
    ('paramwise', 'refused', 'message'),
    [
        (dict(custom_keys={'nosuch': dict(lr_mult=0.1)}), False, 'nosuch.lr_mult=0.1'),
        (dict(norm_decay_mult=0, dcn_offset_lr_mult=2), False, 'dcn_offset_lr_mult=2'),
        (dict(custom_keys=dict(neck=dict(lr_mul=0.1))), True, 'nearest: lr_mult'),
        (
            dict(custom_keys=dict(neck=dict(upsample_modules=dict(lr_mult=0.1)))),
            True,
            'a dot begins a key',
        ),
        (dict(bias_lr_mul=2), True, 'nearest: bias_lr_mult'),
    ],
)
def test_settings_of_a_file_that_reach_no_parameter(
    config, tmp_path, paramwise, refused, message
):
    """mmdet's schedules name parts of several backbones: a name is only said."""
    config.work_dir = str(tmp_path)
    config.optim_wrapper.paramwise_cfg = paramwise
    if refused:
        with pytest.raises(ValueError, match=message):
            build_runner(config, 'train')
    else:
        with pytest.warns(UserWarning) as told:
            build_runner(config, 'train')
        texts = [str(w.message) for w in told if PARAMWISE in str(w.message)]
        assert len(texts) == 1 and message in texts[0]


def test_a_setting_for_one_upsampler_of_a_comparison(small, tmp_path):
    """Interpolation has no parameters; the others are trained as the option says."""
    options = {**small, f'{PARAMWISE}.custom_keys.upsample_modules.lr_mult': 0.1}
    upsamplers = [dict(type='bilinear'), dict(type='dlu')]
    planned = plan.plan([SHAPES_DLU], [0], tmp_path, options, upsamplers=upsamplers)
    (own,), (others,) = rates(planned[1].cfg)
    assert own == pytest.approx(0.1 * others)
    with pytest.raises(ValueError, match='upsample_modules.lr_mult=0.1'):
        plan.plan([SHAPES_DLU], [0], tmp_path, options, upsamplers=upsamplers[:1])


OLD = """
model = dict(type='RetinaNet', backbone=dict(type='ResNet', depth=18))
data = dict(samples_per_gpu=2, train=dict(type='CocoDataset', ann_file='train.json'))
optimizer = dict(type='SGD', lr=0.02)
lr_config = dict(policy='step', step=[8, 11])
runner = dict(type='EpochBasedRunner', max_epochs=12)
evaluation = dict(interval=1)
"""


@pytest.mark.parametrize('left', ['data', 'lr_config', 'optimizer', 'evaluation'])
def test_a_config_of_mmdetection_2(tmp_path, left):
    """One sentence, in the place of a registry that does not have its runner."""
    file = tmp_path / 'old.py'
    lines = OLD.strip().splitlines()
    file.write_text('\n'.join([lines[0], *(n for n in lines if n.startswith(left))]))
    words = rf"old\.py is in MMDetection 2's form \({left}\).*{left} is now .*migration"
    with pytest.raises(ValueError, match=words):
        read_config(file)
    with pytest.raises(ValueError, match="MMDetection 2's form"):
        load_detector(file, 'none.pth')


def test_keys_of_mmdetection_2_in_a_config_of_now(tmp_path):
    """They change nothing, so they are said; a variable of such a name is not."""
    file = tmp_path / 'new.py'
    file.write_text(
        f'_base_ = {str(SHAPES_DLU)!r}\n'
        'data = dict(data_root="data")\noptimizer = dict(type="SGD")\n'
    )
    with warnings.catch_warnings():
        warnings.filterwarnings('error', '.* is now ')
        read_config(file)
    file.write_text(
        f'_base_ = {str(SHAPES_DLU)!r}\n'
        'data = dict(samples_per_gpu=2)\ntotal_epochs = 3\n'
    )
    with pytest.warns(
        UserWarning, match='data is now .*, total_epochs is now train_cf'
    ):
        read_config(file)


def test_an_override_of_a_step_that_is_not_there(config):
    key = 'train_dataloader.dataset.pipeline.9.scale'
    with pytest.raises(ValueError, match=rf'{key}=3 do not fit the config: Index 9'):
        merge_options(config, {key: 3})


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('train_cfg.max_epochs', 3),
        ('train_cfg.val_begin', 3),
        ('train_dataloader.pin_memory', True),
        ('train_dataloader.dataset.indices', 3),
        ('train_dataloader.dataset.metainfo.classes', ('a', 'b')),
        ('model.neck.upsample_cfg.up_kernel', 3),
        ('model.neck.top_down', 'direct'),
        ('model.backbone.with_cp', True),
        ('optim_wrapper.accumulative_counts', 2),
        ('optim_wrapper.optimizer.betas', (0.5, 0.9)),
        ('load_from', 'x.pth'),
        ('default_hooks.early_stopping.type', 'EarlyStoppingHook'),
        ('test_evaluator.classwise', True),
        ('train_dataloader.dataset.pipeline.1.with_mask', True),
        ('train_dataloader.dataset.filter_cfg.min_size', 8),
        ('optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult', 0.1),
        ('optim_wrapper.paramwise_cfg.custom_keys.upsample_modules.weight_decay', 0),
        ('optim_wrapper.paramwise_cfg.norm_decay_mult', 0),
        ('optim_wrapper.constructor', 'DefaultOptimWrapperConstructor'),
        ('env_cfg.dist_cfg.timeout', 1800),
        ('env_cfg.resource_limit', 8192),
        ('model_wrapper_cfg.find_unused_parameters', True),
        ('find_unused_parameters', True),
        ('sync_bn', 'torch'),
        ('compile', True),
        ('activation_checkpointing', ['neck']),
        ('visualizer.vis_backends.0.type', 'TensorboardVisBackend'),
    ],
)
def test_an_override_that_something_reads(config, key, value):
    """New keys are fine where the part's class or the runner takes them."""
    merge_options(config, {key: value})
    assert config.get(key.split('.')[0])


def test_resume_says_that_the_learning_rate_stays(trained, small, tmp_path):
    """mmengine takes it from the checkpoint, whatever the config says."""
    shutil.copy(trained / 'epoch_4.pth', tmp_path)
    options = {
        **small,
        'optim_wrapper.optimizer.lr': 0.5,
        'train_cfg.max_epochs': 5,
        'train_cfg.val_interval': 9,
    }
    arguments = ['--work-dir', tmp_path, *as_arguments(options)]
    output = run('tools/train.py', SHAPES_DLU, '--resume', *arguments).stdout
    words = (
        r'keeps the optimizer settings of the checkpoint: lr 0\.0015 instead of 0\.5'
    )
    assert re.search(words, output)
    steps = [
        json.loads(line)
        for file in tmp_path.glob('*/vis_data/scalars.json')
        for line in file.read_text().splitlines()
    ]
    assert all(step.get('lr', 0) < 0.01 for step in steps)


def test_mmcv_without_its_operators():
    """One sentence that says what to install."""
    code = (
        'import sys; sys.modules["mmcv._ext"] = None\n'
        'try:\n    import dlu_mmdet\n'
        'except ImportError as error:\n    print(error)'
    )
    output = run('-c', code).stdout.strip().splitlines()[-1]
    assert 'needs mmcv with its compiled operators' in output
    assert 'MMCV_WITH_OPS=1' in output
