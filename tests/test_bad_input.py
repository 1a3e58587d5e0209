"""Bad input: an error that names it and says what to do."""

import json
import os
import re
import shutil

import pytest
from conftest import SHAPES_DLU, as_arguments, run
from mmengine.config import Config
from mmengine.logging import HistoryBuffer

from dlu_mmdet.engine import (
    build_runner,
    load_checkpoint,
    load_detector,
    merge_options,
)


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
        'try:\n    import dlu_mmdet\n'
        'except ModuleNotFoundError as error:\n    print(error)'
    )
    output = run('-c', code).stdout.strip()
    assert len(output.splitlines()) == 1
    assert 'dlu_mmdet[onedl]' in output and 'dlu_mmdet[openmmlab]' in output


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
    ],
)
def test_an_override_that_would_change_nothing(config, key, value, hint):
    with pytest.raises(ValueError, match=rf'--cfg-options {key}=.*{re.escape(hint)}'):
        merge_options(config, {key: value})


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
        ('optim_wrapper.constructor', 'DefaultOptimWrapperConstructor'),
        ('env_cfg.dist_cfg.timeout', 1800),
        ('env_cfg.resource_limit', 8192),
        ('model_wrapper_cfg.find_unused_parameters', True),
        ('find_unused_parameters', True),
        ('sync_bn', 'torch'),
        ('compile', True),
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
        r'--resume goes on with the optimizer of the checkpoint: lr 0\.0015, not 0\.5'
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
