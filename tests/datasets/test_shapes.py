"""The shapes data set, and the small configs that train on it."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from pycocotools.coco import COCO

import dlu_mmdet  # noqa: F401  registers the classes that the configs name
from dlu_mmdet.datasets import make_shapes as shapes

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'


@pytest.fixture(scope='module', autouse=True)
def _mmdet_scope():
    init_default_scope('mmdet')


@pytest.fixture(scope='module')
def data_set(tmp_path_factory):
    out = tmp_path_factory.mktemp('shapes') / 'set'
    assert shapes.make_shapes(out, num_train=30, num_val=25, progress=False)
    return out


def _files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob('*')
        if path.is_file()
    }


def test_same_arguments_give_the_same_bytes(tmp_path):
    """Else two people's scores on "the same" data set could not be compared."""
    for name in 'ab':
        shapes.make_shapes(tmp_path / name, 2, 1, image_size=64, progress=False)
    assert _files(tmp_path / 'a') == _files(tmp_path / 'b')
    shapes.make_shapes(tmp_path / 'c', 2, 1, 64, seed=1, progress=False)
    first = str(Path('train', '000000.png'))
    assert _files(tmp_path / 'a')[first] != _files(tmp_path / 'c')[first]


def test_more_images_keep_the_first_ones(tmp_path):
    """Else a larger training set would be a different one, not a larger one."""
    shapes.make_shapes(tmp_path / 'few', 2, 1, image_size=64, progress=False)
    shapes.make_shapes(tmp_path / 'more', 3, 2, image_size=64, progress=False)
    few, more = _files(tmp_path / 'few'), _files(tmp_path / 'more')
    images = [name for name in few if name.endswith('.png')]
    assert len(images) == 3
    assert all(few[name] == more[name] for name in images)
    for split in ('train', 'val'):
        name = str(Path('annotations', f'instances_{split}.json'))
        ours = json.loads(few[name])['annotations']
        assert json.loads(more[name])['annotations'][: len(ours)] == ours


def test_training_and_validation_images_differ(data_set):
    """Else validation would score what was learned by heart."""
    train, val = (
        {p.read_bytes() for p in (data_set / s).iterdir()} for s in ('train', 'val')
    )
    assert len(train) == 30 and len(val) == 25 and not train & val


@pytest.mark.parametrize('split', ['train', 'val'])
def test_annotations_are_valid_coco(data_set, split):
    """Else boxes, areas and masks would disagree and mAP mean nothing."""
    coco = COCO(data_set / 'annotations' / f'instances_{split}.json')
    assert tuple(c['name'] for c in coco.loadCats(coco.getCatIds())) == shapes.CLASSES
    owners = {}
    for annotation in coco.loadAnns(coco.getAnnIds()):
        image = coco.loadImgs(annotation['image_id'])[0]
        mask = coco.annToMask(annotation)
        assert mask.shape == (image['height'], image['width'])
        assert list(cv2.boundingRect(mask)) == annotation['bbox']
        assert mask.sum() == annotation['area'] > 0
        owners[image['id']] = owners.get(image['id'], 0) + mask.astype(int)
    assert all(owner.max() == 1 for owner in owners.values()), 'masks overlap'
    for image in coco.loadImgs(coco.getImgIds()):
        pixels = cv2.imread(str(data_set / split / image['file_name']))
        assert pixels.shape == (image['height'], image['width'], 3)


@pytest.mark.parametrize('split', ['train', 'val'])
def test_every_class_and_size_is_there(data_set, split):
    """Else some of the twelve COCO numbers would be -1, or a class unlearnable."""
    path = data_set / 'annotations' / f'instances_{split}.json'
    annotations = json.loads(path.read_text())['annotations']
    assert {a['category_id'] for a in annotations} == {1, 2, 3, 4, 5, 6}
    areas = np.array([a['area'] for a in annotations])
    counts = np.histogram(areas, [0, 32**2, 96**2, 1e9])[0]
    assert counts.min() > 0, counts


def test_objects_stand_out_where_their_masks_say():
    """Else annotations would be shifted or swapped against the pictures."""
    contrasts = []
    for index in range(10):
        image, objects = shapes.draw_image(0, 0, index)
        for _, mask in objects:
            around = cv2.dilate(mask, np.ones((9, 9))) - cv2.dilate(
                mask, np.ones((3, 3))
            )
            inside = cv2.erode(mask, np.ones((3, 3))) if mask.sum() > 200 else mask
            difference = image[inside > 0].mean(0) - image[around > 0].mean(0)
            contrasts.append(np.linalg.norm(difference))
    assert np.mean(np.array(contrasts) > 25) > 0.9


def test_a_set_that_is_there_is_left_alone(tmp_path, data_set):
    """Else each `make demo` would draw it again, or swap it under a training."""
    before = {path: path.stat().st_mtime_ns for path in data_set.rglob('*')}
    assert not shapes.make_shapes(data_set, 30, 25, progress=False)
    assert before == {path: path.stat().st_mtime_ns for path in data_set.rglob('*')}
    (tmp_path / 'empty').mkdir()
    assert shapes.make_shapes(tmp_path / 'empty', 1, 1, 64, progress=False)


@pytest.mark.parametrize('damage', ['foreign', 'file', 'arguments', 'incomplete'])
def test_anything_else_is_refused(tmp_path, damage):
    """Else a user's own files, or another data set, would be lost or mixed up."""
    out = tmp_path / 'out'
    if damage == 'foreign':
        out.mkdir()
        (out / 'thesis.tex').write_text('mine')
    elif damage == 'file':
        out.write_text('mine')
    else:
        shapes.make_shapes(out, 2, 2, image_size=64, progress=False)
        if damage == 'incomplete':
            (out / 'val' / '000001.png').unlink()
    before = _files(tmp_path)
    seed = 1 if damage == 'arguments' else 0
    with pytest.raises(FileExistsError, match='out holds'):
        shapes.make_shapes(out, 2, 2, 64, seed=seed, progress=False)
    assert _files(tmp_path) == before


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    """Else half a data set would be trained on as if it were whole."""

    def interrupted(*args, **kwargs):
        if kwargs['index'] == 1:
            raise KeyboardInterrupt
        return draw_image(*args, **kwargs)

    draw_image = shapes.draw_image
    monkeypatch.setattr(shapes, 'draw_image', interrupted)
    with pytest.raises(KeyboardInterrupt):
        shapes.make_shapes(tmp_path / 'out', 2, 2, image_size=64, progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(num_train=0), 'num_train must be at least 1, got 0'),
        (dict(seed=-1), 'seed must be at least 0, got -1'),
        (dict(image_size=16), 'image_size must be at least 32, got 16'),
        (dict(image_size=64, max_size=65), 'max_size .* got 65'),
        (dict(min_size=50, max_size=40), 'max_size .* got 40'),
    ],
)
def test_impossible_arguments_are_named(tmp_path, arguments, message):
    """Else they would end in a traceback from deep inside NumPy."""
    with pytest.raises(ValueError, match=message):
        shapes.make_shapes(tmp_path / 'out', progress=False, **arguments)
    assert not list(tmp_path.iterdir())


def test_command_line(tmp_path, capsys):
    """Else the one command of the README would not do what it says."""
    out = str(tmp_path / 'out')
    command = [out, '--num-train', '1', '--num-val', '1', '--image-size', '64']
    shapes.main(command)
    assert '1 training and 1 val' in capsys.readouterr().out
    shapes.main(command)
    assert 'left alone' in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        shapes.main([*command, '--seed', '1'])
    assert stop.value.code == 2 and out in capsys.readouterr().err


def test_configs_load_the_data_set(data_set):
    """Else training would see other classes, or the evaluator other images."""
    cfg = Config.fromfile(CONFIGS / 'shapes' / 'faster-rcnn_r18_fpn-dlu_shapes.py')
    assert cfg.model.roi_head.bbox_head.num_classes == len(shapes.CLASSES)
    for loader, count in ((cfg.train_dataloader, 30), (cfg.val_dataloader, 25)):
        loader.dataset.data_root = f'{data_set}/'
        dataset = DATASETS.build(loader.dataset)
        assert dataset.metainfo['classes'] == shapes.CLASSES
        assert len(dataset) == count
        sample = dataset[0]
        assert sample['inputs'].shape == (3, 192, 192)
        assert len(sample['data_samples'].gt_instances) > 0


def test_coco_root_comes_from_the_environment(monkeypatch):
    """Else users would have to override five data roots by hand."""
    path = CONFIGS / 'coco_mini' / 'faster-rcnn_r18_fpn-dlu_coco-mini8.py'
    for root in ('data/coco', '/somewhere/else'):
        if root.startswith('/'):
            monkeypatch.setenv('COCO_ROOT', root)
        else:
            monkeypatch.delenv('COCO_ROOT', raising=False)
        cfg = Config.fromfile(path)
        assert cfg.train_dataloader.dataset.data_root == f'{root}/'
        assert cfg.val_evaluator.ann_file == f'{root}/{cfg.ann_file}'
