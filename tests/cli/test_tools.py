"""The tools, run as a user runs them."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CONFIGS, ROOT, SHAPES_DLU, as_arguments, data_options, run
from mmengine.config import Config
from mmengine.runner import CheckpointLoader
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import dlu_mmdet  # noqa: F401  the loader of checkpoints
from dlu_mmdet.engine import latest_checkpoint, resume_latest

METRICS = [
    'bbox_mAP',
    'bbox_mAP_50',
    'bbox_mAP_75',
    'bbox_mAP_s',
    'bbox_mAP_m',
    'bbox_mAP_l',
    'bbox_AR@100',
    'bbox_AR@300',
    'bbox_AR@1000',
    'bbox_AR_s@1000',
    'bbox_AR_m@1000',
    'bbox_AR_l@1000',
]


def last_metrics(work_dir):
    newest = max(Path(work_dir).glob('*/*.json'), key=os.path.getmtime)
    metrics = json.loads(newest.read_text())
    return [metrics[f'coco/{name}'] for name in METRICS]


def losses(work_dir):
    """Loss of each iteration, of all starts of a run; the last one wins."""
    entries = {}
    for file in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        for line in file.read_text().splitlines():
            entry = json.loads(line)
            if 'loss' in entry:
                entries[entry['step']] = entry['loss']
    return entries


def test_map_is_pycocotools_own(trained, small, shapes_root, tmp_path):
    """The twelve numbers, recomputed from the dumped predictions."""
    checkpoint = trained / 'epoch_4.pth'
    # every prediction counts: a young detector has few confident ones
    options = {**small, 'model.test_cfg.rcnn.score_thr': 0.0}
    run(
        'tools/test.py',
        SHAPES_DLU,
        checkpoint,
        '--out',
        tmp_path / 'out.pkl',
        '--work-dir',
        tmp_path,
        *as_arguments(options),
    )
    coco = COCO(shapes_root / 'annotations' / 'instances_val.json')
    categories = coco.getCatIds()
    detections = []
    for sample in pickle.loads((tmp_path / 'out.pkl').read_bytes()):
        pred = sample['pred_instances']
        for box, score, label in zip(
            pred['bboxes'].tolist(), pred['scores'].tolist(), pred['labels'].tolist()
        ):
            x0, y0, x1, y1 = box
            detections.append(
                dict(
                    image_id=sample['img_id'],
                    category_id=categories[label],
                    bbox=[x0, y0, x1 - x0, y1 - y0],
                    score=score,
                )
            )
    evaluation = COCOeval(coco, coco.loadRes(detections), 'bbox')
    evaluation.params.maxDets = [100, 300, 1000]  # mmdet's
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    reported = last_metrics(tmp_path)
    assert len(detections) > 100 and max(reported) > 0
    # mmdet keeps three decimals
    np.testing.assert_allclose(reported, evaluation.stats, atol=5.1e-4)


def test_resume_after_kill(trained, small, tmp_path):
    """Killed without warning in the third epoch, --resume ends where the
    uninterrupted run ended."""
    command = [
        sys.executable,
        'tools/train.py',
        SHAPES_DLU,
        '--work-dir',
        tmp_path,
        '--resume',
        *as_arguments(small),
    ]
    process = subprocess.Popen(
        list(map(str, command)),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    while not (tmp_path / 'epoch_2.pth').exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / 'epoch_4.pth').exists()
    output = run(*command[1:]).stdout
    assert 'resumed epoch' in output
    whole, parts = losses(trained), losses(tmp_path)
    assert sorted(parts) == sorted(whole)
    # same seed, same order: differences are those of arithmetic and loading
    for step, loss in whole.items():
        assert parts[step] == pytest.approx(loss, rel=0.2), step
    saved = CheckpointLoader.load_checkpoint(str(tmp_path / 'epoch_4.pth'))
    assert saved['meta']['epoch'] == 4 and saved['optimizer']['state']


def test_the_latest_checkpoint_is_a_whole_one(tmp_path):
    """What kill -9 can leave: half a checkpoint, an empty last_checkpoint, a folder
    that was moved."""
    assert latest_checkpoint(tmp_path / 'nowhere') is None
    for number in (1, 2, 3):
        path = tmp_path / f'epoch_{number}.pth'
        torch.save(dict(weight=torch.ones(1000)), path)
        os.utime(path, (number, number))
    last = tmp_path / 'last_checkpoint'
    last.write_text(str(tmp_path / 'epoch_2.pth'))
    # killed after the checkpoint, before the file that names it
    assert latest_checkpoint(tmp_path).name == 'epoch_3.pth'
    # left by an earlier training: the file has the word
    os.utime(tmp_path / 'epoch_3.pth', (0, 0))
    assert latest_checkpoint(tmp_path).name == 'epoch_2.pth'
    os.utime(tmp_path / 'epoch_2.pth', (0, 0))
    last.write_text('/was/here/once/epoch_1.pth')
    assert latest_checkpoint(tmp_path) == tmp_path / 'epoch_1.pth'
    # the folder that this one was copied from
    original = tmp_path / 'original'
    original.mkdir()
    shutil.copy(tmp_path / 'epoch_1.pth', original)
    last.write_text(f'{original}/epoch_1.pth\r\n')
    assert latest_checkpoint(tmp_path) == tmp_path / 'epoch_1.pth'
    last.write_text('')
    os.utime(tmp_path / 'epoch_3.pth', (3, 3))
    os.utime(tmp_path / 'epoch_2.pth', (2, 2))
    assert latest_checkpoint(tmp_path).name == 'epoch_3.pth'
    whole = (tmp_path / 'epoch_3.pth').read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        (tmp_path / 'epoch_3.pth').write_bytes(whole[:size])
        assert latest_checkpoint(tmp_path).name == 'epoch_2.pth', size


def test_resume_passes_over_half_a_checkpoint(tmp_path, capsys):
    cfg = Config(dict(work_dir=str(tmp_path), load_from='weights.pth'))
    (tmp_path / 'epoch_2.pth').write_bytes(b'PK: the beginning of a zip')
    (tmp_path / 'last_checkpoint').touch()
    resume_latest(cfg)
    # anew means as the config says, and not silently
    assert (cfg.resume, cfg.load_from) == (False, 'weights.pth')
    assert 'starts anew; truncated and skipped: epoch_2.pth' in capsys.readouterr().out
    torch.save({}, tmp_path / 'epoch_1.pth')
    resume_latest(cfg)
    assert (cfg.resume, cfg.load_from) == (True, str(tmp_path / 'epoch_1.pth'))
    assert 'goes on from' in capsys.readouterr().out
    # zeros in the middle, which torch would load as weights
    torch.save(dict(weight=torch.ones(1000)), tmp_path / 'epoch_3.pth')
    content = bytearray((tmp_path / 'epoch_3.pth').read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    (tmp_path / 'epoch_3.pth').write_bytes(content)
    resume_latest(cfg)
    assert cfg.load_from == str(tmp_path / 'epoch_1.pth')
    assert 'damaged and skipped: epoch_3.pth' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        (b'', 'is damaged'),
        (bytes(40), 'is damaged'),
        (b'epoch_2.pth' + bytes(20), 'is damaged'),
        (b'\xff\xfeepoch', 'is damaged'),
        (None, 'is damaged'),
        (b'epoch_2', 'names epoch_2, which is no whole checkpoint of this folder'),
        (b'/nowhere/epoch_9.pth', 'names /nowhere/epoch_9.pth, which is no whole'),
        (b'/dev/zero', 'names /dev/zero, which is no whole'),
        (b'x' * 5000, 'which is no whole checkpoint'),
        (b'..', 'names .., which is no whole'),
        ('ELSEWHERE', 'epoch_7.pth, which is no whole checkpoint of this folder'),
        (b'epoch_2.pth\r\n', ''),
        ('\ufeffepoch_2.pth'.encode(), ''),
    ],
)
def test_resume_without_a_whole_last_checkpoint(tmp_path, capsys, content, said):
    """After a power cut a file system may leave zeros, and whole checkpoints too."""
    work_dir = tmp_path / 'work'
    work_dir.mkdir()
    for time_, name in enumerate(('epoch_1', 'iter_500', 'epoch_2', 'best_AP_epoch_2')):
        torch.save({}, work_dir / f'{name}.pth')
        os.utime(work_dir / f'{name}.pth', (time_, time_))
    (work_dir / 'epoch_3.pth').write_bytes(bytes(1000))
    if content == 'ELSEWHERE':
        torch.save({}, tmp_path / 'epoch_7.pth')
        content = os.fsencode(tmp_path / 'epoch_7.pth')
    if content is None:
        (work_dir / 'last_checkpoint').mkdir()
    else:
        (work_dir / 'last_checkpoint').write_bytes(content)
    cfg = Config(dict(work_dir=str(work_dir)))
    resume_latest(cfg)
    assert (cfg.resume, cfg.load_from) == (True, str(work_dir / 'epoch_2.pth'))
    (line,) = capsys.readouterr().out.splitlines()
    assert 'epoch_2.pth; truncated and skipped: epoch_3.pth' in line
    assert said in line and (said or 'last_checkpoint' not in line)
    # where training was told to save its checkpoints elsewhere
    for path in work_dir.glob('*.pth'):
        path.unlink()
    found = latest_checkpoint(work_dir)
    assert found == (tmp_path / 'epoch_7.pth' if 'epoch_7' in said else None)


def test_two_processes_on_cpu(small, tmp_path):
    """tools/dist_train.sh and dist_test.sh with gloo."""
    # Python aborts now and then where it ends with threads of gloo still there
    (tmp_path / 'tell.py').write_text(
        """import atexit, os
from pathlib import Path

@atexit.register
def tell():
    names = [p.read_text() for p in Path('/proc/self/task').glob('*/comm')]
    Path(__file__).with_name(f'{os.getpid()}.threads').write_text(''.join(names))
"""
    )
    config = tmp_path / 'telling.py'
    config.write_text(
        f'_base_ = {str(SHAPES_DLU)!r}\n'
        "custom_imports = dict(imports=['dlu_mmdet', 'tell'])\n"
    )
    env = {
        **os.environ,
        'PYTHON': sys.executable,
        'PYTHONPATH': str(tmp_path),
        'PORT': str(20000 + os.getpid() % 20000),
    }
    options = {**small, 'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 1}

    def launch(*command):
        process = subprocess.run(
            ['bash', *map(str, command)],
            env=env,
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert process.returncode == 0, process.stdout[-4000:]
        told = list(tmp_path.glob('*.threads'))
        threads = [path.read_text().split() for path in told]
        assert len(threads) == 2, process.stdout[-4000:]
        assert not any('gloo' in name for names in threads for name in names), threads
        for path in told:
            path.unlink()

    launch(
        'tools/dist_train.sh',
        config,
        2,
        '--work-dir',
        tmp_path / 'a',
        *as_arguments(options),
    )
    # 16 images, batches of 8: two processes see one each
    assert max(losses(tmp_path / 'a')) == 1
    launch(
        'tools/dist_test.sh',
        config,
        tmp_path / 'a' / 'epoch_1.pth',
        2,
        '--work-dir',
        tmp_path / 'b',
        *as_arguments(options),
    )
    run(
        'tools/test.py',
        config,
        tmp_path / 'a' / 'epoch_1.pth',
        '--work-dir',
        tmp_path / 'c',
        *as_arguments(options),
        env=env,
    )
    assert last_metrics(tmp_path / 'b') == last_metrics(tmp_path / 'c')


@pytest.mark.slow
def test_coco_config_on_real_photos(coco_root, tmp_path):
    """The COCO config as it is, but for the data, the image size and the ImageNet
    weights, which cannot be assumed here: random ones take their place."""
    resnet = Config.fromfile(
        CONFIGS / 'faster_rcnn' / 'faster-rcnn_r50_fpn-dlu_1x_coco.py'
    )
    from mmdet.models.backbones import ResNet

    backbone = resnet.model.backbone
    backbone.pop('type')
    backbone.init_cfg = None
    torch.save(ResNet(**backbone).state_dict(), tmp_path / 'resnet50.pth')
    options = data_options(
        coco_root,
        'instances_train2017_8.json',
        'instances_train2017_8.json',
        'train2017/',
        'train2017/',
    )
    options['model.backbone.init_cfg.checkpoint'] = tmp_path / 'resnet50.pth'
    for split, index in (('train', 2), ('val', 1), ('test', 1)):
        options[f'{split}_dataloader.dataset.pipeline.{index}.scale'] = '(256,256)'
    output = run(
        'tools/train.py',
        'configs/faster_rcnn/faster-rcnn_r50_fpn-dlu_1x_coco.py',
        '--work-dir',
        tmp_path / 'work',
        *as_arguments({**options, 'train_cfg.max_epochs': 1}),
    ).stdout
    assert losses(tmp_path / 'work')
    assert 'Evaluating bbox' in output
    assert (tmp_path / 'work' / 'epoch_1.pth').exists()
