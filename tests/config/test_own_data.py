"""--data: a folder of one's own in the place of a config's data."""

import json
import shutil

import pytest
from conftest import CONFIGS, ROOT, run
from mmengine.runner import Runner

from dlu_mmdet.comparison import plan
from dlu_mmdet.config import (
    fit_schedule,
    merge_options,
    read_config,
    use_dataset_folder,
)
from dlu_mmdet.config import schedule as fitting
from dlu_mmdet.datasets import check_data
from dlu_mmdet.datasets.shapes import CLASSES

OWN = CONFIGS / '_base_' / 'faster-rcnn_r18_fpn_own-data.py'


@pytest.mark.parametrize(
    'name',
    [
        str(OWN),
        str(CONFIGS / '_base_' / 'mask-rcnn_r18_fpn_own-data.py'),
        str(CONFIGS / '_base_' / 'rtmdet_tiny_own-data.py'),
        str(CONFIGS / 'nuclei' / 'mask-rcnn_r18_fpn-dlu_nuclei.py'),
        'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
        'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',
        'mmdet::yolox/yolox_s_8xb8-300e_coco.py',
        'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    ],
)
def test_a_folder_takes_the_place_of_the_configs_data(name, shapes_root):
    """Else --data leaves a head with COCO's classes, or scores COCO's images."""
    cfg = read_config(name)
    use_dataset_folder(cfg, shapes_root)
    check_data(cfg, ('train', 'val', 'test'))
    # heads, of which some lie in lists
    numbers = [n for n in str(cfg.model.to_dict()).split("'num_classes': ")[1:]]
    assert numbers and all(n.startswith('6') for n in numbers)
    assert (
        cfg.test_evaluator.ann_file == f'{shapes_root}/annotations/instances_val.json'
    )
    assert 'coco/' not in str(
        [cfg[f'{split}_dataloader'].to_dict() for split in ('train', 'val', 'test')]
    )


def test_classes_are_those_of_the_folder(shapes_root, tmp_path):
    """Else labels are those of other classes."""
    root = tmp_path / 'data'
    shutil.copytree(shapes_root, root)
    for path in root.glob('annotations/*.json'):
        content = json.loads(path.read_text())
        content['categories'].reverse()
        path.write_text(json.dumps(content))
    cfg = read_config(OWN)
    use_dataset_folder(cfg, root)
    for split in ('train', 'val', 'test'):
        assert cfg[f'{split}_dataloader'].dataset.metainfo.classes == CLASSES[::-1]


@pytest.mark.parametrize(
    'train, train_images, val, val_images',
    [
        (
            'train/_annotations.coco.json',
            'train',
            'valid/_annotations.coco.json',
            'valid',
        ),
        ('train.json', 'images', 'val.json', 'images'),
        (
            'annotations/instances_train2017.json',
            'train2017',
            'annotations/instances_val2017.json',
            'val2017',
        ),
        (
            'annotations/train.json',
            'images/train',
            'annotations/val.json',
            'images/val',
        ),
    ],
)
def test_layouts(shapes_root, tmp_path, train, train_images, val, val_images):
    """Else people who exported their data in a usual way must rename it."""
    root = tmp_path / 'my training data'
    for split, file, images in (
        ('train', train, train_images),
        ('val', val, val_images),
    ):
        shutil.copytree(shapes_root / split, root / images, dirs_exist_ok=True)
        (root / file).parent.mkdir(exist_ok=True)
        shutil.copy(shapes_root / f'annotations/instances_{split}.json', root / file)
    (root / 'annotations').mkdir(exist_ok=True)
    (root / 'annotations' / 'captions_val2017.json').write_text('{}')
    if not val.startswith('annotations/instances'):
        (root / 'annotations' / 'captions_val2017.json').unlink()
    cfg = read_config(OWN)
    use_dataset_folder(cfg, root)
    assert cfg.train_dataloader.dataset.data_prefix.img == f'{train_images}/'
    assert cfg.val_dataloader.dataset.data_prefix.img == f'{val_images}/'
    check_data(cfg, ('train', 'val', 'test'))


def test_folders_that_cannot_be_used(shapes_root, tmp_path):
    """Else a wrong folder ends in a traceback of somewhere else."""
    cfg = read_config(OWN)
    with pytest.raises(FileNotFoundError, match='--data .*nowhere is no folder'):
        use_dataset_folder(cfg, tmp_path / 'nowhere')
    (tmp_path / 'labels.json').write_text('{}')
    with pytest.raises(FileNotFoundError, match='word train .* and has labels.json'):
        use_dataset_folder(cfg, tmp_path)
    annotations = tmp_path / 'annotations'
    shutil.copytree(shapes_root / 'annotations', annotations)
    with pytest.raises(FileNotFoundError, match='000000.png, the first image'):
        use_dataset_folder(cfg, tmp_path)
    shutil.copy(
        annotations / 'instances_val.json', annotations / 'instances_val_2.json'
    )
    with pytest.raises(ValueError, match='instances_val.json, .*instances_val_2.json'):
        use_dataset_folder(cfg, tmp_path)


def test_configs_of_several_sets_are_refused(shapes_root):
    """Else one of the sets would go on being the config's own."""
    cfg = read_config('mmdet::pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py')
    with pytest.raises(ValueError, match='VOCDataset, VOCDataset; write a config'):
        use_dataset_folder(cfg, shapes_root)


def test_the_way_of_a_stranger(shapes_root, tmp_path, capsys):
    """No config to write: train, then test and compare, and the run needs no flag."""
    work_dir = tmp_path / 'run'
    quick = ['--cfg-options', 'train_cfg.max_epochs=2', 'train_dataloader.batch_size=8']
    command = [OWN, '--data', shapes_root, '--upsampler', 'dlu']
    told = run('tools/train.py', *command, '--work-dir', work_dir, *quick)
    assert '16 training images: trains for 2 epochs; fewer than 300' in told.stdout
    config, checkpoint = work_dir / OWN.name, work_dir / 'epoch_2.pth'
    told = run('tools/test.py', config, checkpoint, '--work-dir', tmp_path / 'test')
    assert 'coco/bbox_mAP: ' in told.stdout
    capsys.readouterr()
    both = dict(data=dict(root=shapes_root), upsamplers=[None, dict(type='dlu')])
    planned = plan.plan([OWN], [0], tmp_path / 'c', **both)
    assert capsys.readouterr().out.count('16 training images: trains for 300 ') == 1
    assert planned[0].cfg.train_cfg.max_iters == 300
    assert planned[0].cfg.train_dataloader.dataset.data_root == f'{shapes_root}/'


def schedule(cfg, tmp_path):
    """The schedulers of a config as mmengine builds them, and the training's length."""
    cfg.work_dir = str(tmp_path)
    runner = Runner.from_cfg(cfg)
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    schedulers = runner.build_param_scheduler(runner.param_schedulers)
    return [(each.begin, each.end) for each in schedulers], runner.max_iters


@pytest.mark.parametrize(
    'images, iterations, name',
    [
        (20, 300, 'faster-rcnn_r18_fpn'),
        (200, 570, 'faster-rcnn_r18_fpn'),
        (200, 570, 'rtmdet_tiny'),
        (2000, 1790, 'faster-rcnn_r18_fpn'),
        (40000, 10000, 'faster-rcnn_r18_fpn'),
    ],
)
def test_the_training_follows_the_images(monkeypatch, images, iterations, name):
    """Else 20 images train for 16 iterations, of which 50 are warm-up: AP 0.000."""
    monkeypatch.setattr(fitting, '_count_images', lambda _: images)
    cfg = read_config(OWN.with_name(f'{name}_own-data.py'))
    assert f'{images} training images: trains for {iterations}' in fit_schedule(cfg)
    assert cfg.train_cfg.max_iters == iterations
    assert cfg.train_cfg.val_interval == iterations / 2
    assert cfg.param_scheduler[0].end == iterations / 10
    assert iterations / 4 <= cfg.default_hooks.checkpoint.interval < iterations / 2
    # what a run leaves is the same when it is read again
    text = cfg.pretty_text
    assert not fit_schedule(cfg) and cfg.pretty_text == text


@pytest.mark.parametrize('split', ['option', 'config'])
@pytest.mark.parametrize(
    'given, expected',
    [
        (dict(max_iters=50), ([(0, 5), (5, 50)], 50)),
        # four iterations of four images an epoch
        (dict(max_epochs=5), ([(0, 2), (2, 20)], 20)),
        (dict(max_epochs=2, val_interval=2), ([(0, 1), (1, 8)], 8)),
        (dict(max_iters=1), ([], 1)),
    ],
)
def test_a_length_of_ones_own(shapes_root, tmp_path, split, given, expected):
    """Else a training of another length keeps a warm-up of 30, or is overwritten."""
    cfg, options = read_config(OWN), {}
    use_dataset_folder(cfg, shapes_root)
    if split == 'config':
        cfg.train_cfg.update(given)
    else:
        options = {f'train_cfg.{key}': value for key, value in given.items()}
    fit_schedule(cfg, options)
    merge_options(cfg, options)
    assert cfg.train_cfg == {**cfg.train_cfg, **given}
    assert schedule(cfg, tmp_path) == expected


def test_a_schedule_of_ones_own(shapes_root):
    """Else what a config says is overwritten."""
    cfg = read_config(OWN)
    use_dataset_folder(cfg, shapes_root)
    cfg.param_scheduler = [dict(type='MultiStepLR', milestones=[9])]
    options = {'param_scheduler.0.milestones': [7], 'train_cfg.val_interval': 10}
    fit_schedule(cfg, options)
    merge_options(cfg, options)
    assert [one.milestones for one in cfg.param_scheduler] == [[7]]
    assert (cfg.train_cfg.max_iters, cfg.train_cfg.val_interval) == (300, 10)


def test_lengths_that_cannot_be(shapes_root):
    cfg = read_config(OWN)
    use_dataset_folder(cfg, shapes_root)
    both = {'train_cfg.max_iters': 9, 'train_cfg.max_epochs': 2}
    with pytest.raises(ValueError, match='max_iters=9 and max_epochs=2; leave out'):
        fit_schedule(cfg, both)
    with pytest.raises(ValueError, match='max_iters=0: it must be a whole number'):
        fit_schedule(cfg, {'train_cfg.max_iters': 0})
    wrong = {'train_dataloader.dataset.pipeline.9.scale': 9}
    assert not fit_schedule(cfg, wrong)
    with pytest.raises(ValueError, match='pipeline.9.scale=9 do not fit'):
        merge_options(cfg, wrong)
    typing_error = {'train_cfg.max_iter': 9}
    fit_schedule(cfg, typing_error)
    with pytest.raises(ValueError, match='max_iter=9.*nearest: train_cfg.max_iters'):
        merge_options(cfg, typing_error)


def test_published_sets_keep_their_schedules():
    """docs/results.md is of four epochs, of bccd eight."""
    for name in ('bccd', 'deeppcb', 'nuclei'):
        for file in (CONFIGS / name).glob('*.py'):
            cfg = read_config(file)
            assert not fit_schedule(cfg)
            assert cfg.train_cfg.max_epochs == (8 if name == 'bccd' else 4)
            assert cfg.param_scheduler[0].end == 50
            assert cfg.optim_wrapper.optimizer.lr == 1.5e-3


def test_the_template_of_the_docs(shapes_root, tmp_path):
    """Else the eight lines that people copy are not what --data does."""
    text = (ROOT / 'docs' / 'own-data.md').read_text(encoding='utf-8')
    template = text.split('```python\n')[1].split('```')[0]
    assert len(template.splitlines()) <= 8
    template = template.replace("'../_base_/", f"'{CONFIGS}/_base_/")
    template = template.replace('data/mine/', f'{shapes_root}/')
    template = template.replace("('scratch', 'dent')", repr(CLASSES))
    file = tmp_path / 'mine.py'
    file.write_text(template.replace('num_classes=2', 'num_classes=6'))
    written, flagged = read_config(file), read_config(OWN)
    use_dataset_folder(flagged, shapes_root)
    for key in (*plan.COMPARED, 'model'):
        values = []
        for cfg in (written, flagged):
            value = cfg.to_dict()
            for part in key.split('.'):
                value = value[part]
            values.append(value)
        assert values[0] == values[1], key
