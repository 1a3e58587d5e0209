"""Bad input: an error that names it and says what to do."""

import json
import os
import pickle
import re

import pytest
import torch
from conftest import SHAPES_DLU, run
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from dlu_mmdet.engine import build_runner, load_detector


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


def test_truncated_checkpoint(trained, tmp_path):
    whole = (trained / 'epoch_4.pth').read_bytes()
    file = tmp_path / 'cut.pth'
    for size in (0, 100, len(whole) // 2, len(whole) - 10):
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r'cut\.pth.*truncated'):
            CheckpointLoader.load_checkpoint(str(file), 'cpu')


class Code:
    def __init__(self, call, *args):
        self.reduced = call, args

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize(
    'code',
    [
        Code(os.system, 'touch ran'),
        Code(getattr, Config, 'fromfile'),
        Code(getattr, HistoryBuffer, '__subclasses__'),
        Code(eval, '1'),
    ],
)
@pytest.mark.parametrize('zipped', [True, False])
def test_checkpoint_that_runs_code(tmp_path, monkeypatch, code, zipped):
    monkeypatch.chdir(tmp_path)
    state = dict(state_dict={}, message_hub=code)
    if zipped:
        torch.save(state, 'evil.pth')
    else:
        with open('evil.pth', 'wb') as file:
            pickle.dump(state, file, protocol=2)
    with pytest.raises(ValueError, match=r'evil\.pth'):
        CheckpointLoader.load_checkpoint('evil.pth', 'cpu')
    assert not (tmp_path / 'ran').exists()


def test_a_training_checkpoint_loads_with_its_history(trained):
    """What mmengine stores besides weights survives the allow-list."""
    loaded = CheckpointLoader.load_checkpoint(str(trained / 'epoch_4.pth'), 'cpu')
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
