"""Annotation files as people write them, and what a config makes of them."""

import builtins
import copy
import json
import re
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS, METRICS
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from pycocotools import mask as mask_utils

from dlu_mmdet.datasets import ShapesDataset, check_data, coco_io
from dlu_mmdet.datasets.shapes import CLASSES
from dlu_mmdet.engine import build_runner
from dlu_mmdet.engine.loops import _idle_hooks, _idle_schedules
from dlu_mmdet.evaluation.average_precision import Evaluation


@pytest.fixture
def files(config, tmp_path):
    """Writes changed annotations and names them in the config."""
    init_default_scope('mmdet')
    root = Path(config.train_dataloader.dataset.data_root)

    def change(split, function):
        data = json.loads((root / f'annotations/instances_{split}.json').read_text())
        result = function(data)
        data = result if isinstance(result, list) else data
        file = tmp_path / f'{split}.json'
        file.write_text(json.dumps(data, ensure_ascii=False), encoding='utf-8')
        if split == 'train':
            config.train_dataloader.dataset.ann_file = str(file)
        else:
            config.test_dataloader.dataset.ann_file = str(file)
            config.test_evaluator.ann_file = str(file)
        return file

    return change


def each(key, change):
    """Change every object, or image, or category."""

    def apply(data):
        for number, entry in enumerate(data[key]):
            change(entry, number)

    return apply


def without(key):
    return each('annotations', lambda ann, _: ann.pop(key))


def loaded(config, split='train'):
    """Objects that a data set loads, as (box, class name)."""
    data = DATASETS.build(config[f'{split}_dataloader'].dataset)
    return sorted(
        (tuple(i['bbox']), data.metainfo['classes'][i['bbox_label']])
        for n in range(len(data))
        for i in data.get_data_info(n)['instances']
    )


def perfect_metric(config, **options):
    """Metrics of detections equal to the objects, by the config's evaluator."""
    metric = METRICS.build(dict(config.test_evaluator, **options))
    data = DATASETS.build(config.test_dataloader.dataset)
    metric.dataset_meta = data.metainfo
    for n in range(len(data)):
        info = data.get_data_info(n)
        found = [i for i in info['instances'] if not i['ignore_flag']]
        boxes = torch.tensor([i['bbox'] for i in found]).reshape(-1, 4)
        predicted = dict(
            bboxes=boxes,
            scores=torch.full((len(found),), 0.9),
            labels=torch.tensor([i['bbox_label'] for i in found], dtype=torch.long),
        )
        sample = dict(
            img_id=info['img_id'], ori_shape=(128, 128), pred_instances=predicted
        )
        metric.process({}, [sample])
    return metric.compute_metrics(metric.results)


def sparse(data):
    for category in data['categories']:
        category['id'] *= 10
    for ann in data['annotations']:
        ann['category_id'] *= 10


def renumber(what, key, ids):
    """Give images or categories other ids."""

    def apply(data):
        new = {entry['id']: ids(n) for n, entry in enumerate(data[what])}
        for entry in data[what]:
            entry['id'] = new[entry['id']]
        for ann in data['annotations']:
            ann[key] = new[ann[key]]

    return apply


def hashes(number):
    """Of 64 bits: numpy makes floats of those on both sides of 2**63."""
    return (2**63 if number % 2 else 2**61) + number + 1


SAME = {
    'reversed categories': lambda data: data['categories'].reverse(),
    'sparse category ids': sparse,
    'area 0': each('annotations', lambda ann, _: ann.update(area=0)),
    'no area': without('area'),
    'area below 0': each('annotations', lambda ann, _: ann.update(area=-ann['area'])),
    'area not a number': each(
        'annotations', lambda ann, _: ann.update(area=float('nan'))
    ),
    'area as text': each(
        'annotations', lambda ann, _: ann.update(area=str(ann['area']))
    ),
    'iscrowd null': each('annotations', lambda ann, _: ann.update(iscrowd=None)),
    'no iscrowd': without('iscrowd'),
    'no id': without('id'),
    'no info': lambda data: data.pop('info'),
    'ids from 0': each('annotations', lambda ann, n: ann.update(id=n)),
    'one id': each('annotations', lambda ann, _: ann.update(id=1)),
    'text ids': each('annotations', lambda ann, n: ann.update(id=f'a{n}')),
    'id null': each('annotations', lambda ann, n: ann.update(id=None)),
    'ids of 64 bits': each('annotations', lambda ann, n: ann.update(id=hashes(n))),
    'ids as floats': each('annotations', lambda ann, n: ann.update(id=n / 2)),
    'image ids of 64 bits': renumber('images', 'image_id', hashes),
    'image ids as text': renumber('images', 'image_id', lambda n: f'{2**63 - n}'),
    'category ids of 64 bits': renumber('categories', 'category_id', hashes),
    'category ids as text': renumber('categories', 'category_id', lambda n: f'{9 - n}'),
    'category ids against the order': renumber(
        'categories', 'category_id', lambda n: 1e20 - n * 1e18
    ),
    'a class that the config does not name': lambda data: data['categories'].insert(
        0, {'id': 99, 'name': 'shape'}
    ),
}


@pytest.mark.parametrize('change', SAME.values(), ids=SAME)
def test_what_has_one_meaning_changes_nothing(config, files, change):
    """Every object is loaded under its own name, and a perfect detector has AP 1."""
    whole = loaded(config)
    files('train', change)
    files('val', change)
    check_data(config, ('train', 'test'))
    assert loaded(config) == whole and len(whole) > 50
    assert perfect_metric(config)['bbox_mAP'] == 1


def numbered(names):
    """Names of categories in a file, as a script writes them that counts."""
    return each('categories', lambda category, i: category.update(name=names[i]))


NUMBERS = (7, 2.5, 0, -1, 10, 3)


@pytest.mark.parametrize('own', [True, False], ids=['config', 'data set class'])
def test_class_names_that_are_numbers(config, files, monkeypatch, own):
    """They are text from there on, wherever they are drawn, printed or compared."""
    expected = tuple(map(str, NUMBERS))
    for split, file in (('train', 'train'), ('test', 'val')):
        if own:
            dataset = config[f'{split}_dataloader'].dataset
            dataset.metainfo = dict(classes=NUMBERS)
        files(file, numbered(NUMBERS))
    if not own:
        monkeypatch.setattr(ShapesDataset, 'METAINFO', dict(classes=NUMBERS))
    check_data(config, ('train', 'test'))
    for split in ('train', 'test'):
        data = DATASETS.build(config[f'{split}_dataloader'].dataset)
        assert tuple(data.metainfo['classes']) == expected
    assert {name for _, name in loaded(config)} <= {*expected}
    table = perfect_metric(config, classwise=True)
    assert {f'{name}_precision' for name in expected} <= {*table}
    # a data set that is built without this check finds its categories too
    config.train_dataloader.dataset.metainfo = dict(classes=NUMBERS)
    assert len(DATASETS.build(config.train_dataloader.dataset)) == 16


@pytest.mark.parametrize('name', [None, True, ['a'], {}])
def test_class_names_that_are_neither_text_nor_numbers(config, files, name):
    files('train', numbered([name, *NUMBERS[1:]]))
    with pytest.raises(ValueError, match=r'categories\[0\].* name .*text or'):
        check_data(config, ('train',))
    files('train', lambda data: None)
    config.train_dataloader.dataset.metainfo = dict(classes=7)
    with pytest.raises(ValueError, match='classes must be a list of names, got 7'):
        check_data(config, ('train',))
    config.train_dataloader.dataset.metainfo = dict(classes=[name, *NUMBERS[1:]])
    message = r'train_dataloader\.dataset\.metainfo\.classes\[0\] is .*text or a num'
    with pytest.raises(ValueError, match=message):
        check_data(config, ('train',))


def test_a_number_and_its_text_are_one_name(config, files):
    files('train', numbered([7, '7', *CLASSES[2:]]))
    with pytest.raises(ValueError, match="categories has the name '7' more than once"):
        check_data(config, ('train',))


@pytest.mark.parametrize('processes', [False, True])
def test_every_class_has_its_own_ap(config, files, processes):
    """The table of classes, with a file whose categories are in another order: only
    the class whose objects are left out of the detections scores less."""
    files('val', SAME['reversed categories'])
    data = json.loads(Path(config.test_evaluator.ann_file).read_text())
    gone = next(c['id'] for c in data['categories'] if c['name'] == 'ring')
    kept = [a for a in data['annotations'] if a['category_id'] != gone]
    Path(config.test_evaluator.ann_file).write_text(json.dumps(data))
    loader = Path(config.test_evaluator.ann_file).with_name('fewer.json')
    loader.write_text(json.dumps(dict(data, annotations=kept)))
    config.test_dataloader.dataset.ann_file = str(loader)
    found = perfect_metric(config, classwise=True, use_mp_eval=processes)
    of_class = {name: float(found[f'{name}_precision']) for name in CLASSES}
    assert of_class == {name: float(name != 'ring') for name in CLASSES}


@pytest.mark.parametrize(
    'name',
    [
        *('ids from 0', 'one id', 'text ids', 'no area'),
        *('image ids of 64 bits', 'category ids of 64 bits'),
    ],
)
def test_ids_that_pycocotools_takes_for_none_are_matched(files, name):
    from pycocotools.coco import COCO

    coco = COCO(files('val', SAME[name]))
    found = [
        dict(image_id=a['image_id'], category_id=a['category_id'], bbox=a['bbox'])
        for a in coco.dataset['annotations']
    ]
    for detection in found:
        detection['score'] = 0.9
    evaluation = Evaluation.from_coco(coco, found, coco.getCatIds())
    ones = np.ones((1, evaluation.num_images), int)
    assert evaluation.metrics(ones, ['AP'])[0, 0] == 1


@pytest.mark.parametrize('name', ['reversed categories', *list(SAME)[-3:]])
def test_an_evaluation_keeps_the_order_of_classes(files, name):
    """Else the AP of a class is printed under the name of another."""
    coco = coco_io.COCO(str(files('val', SAME[name])))
    ids = coco.get_cat_ids(CLASSES)
    found = [
        {**{k: a[k] for k in ('image_id', 'category_id', 'bbox')}, 'score': 0.9}
        for a in coco.dataset['annotations']
        if a['category_id'] != ids[CLASSES.index('ring')]
    ]
    evaluation = Evaluation.from_coco(coco, found, ids)
    own = {n: evaluation.category(k).score()['AP'] for k, n in enumerate(CLASSES)}
    assert own == {name: float(name != 'ring') for name in CLASSES}


REFUSED = {
    'a class is missing': (
        lambda data: data['categories'].pop(0),
        r"train\.json has no category 'disc'",
    ),
    'a class is spelled otherwise': (
        lambda data: data['categories'][1].update(name='Ring'),
        r"no category 'ring'.*'Ring', which the config does not name",
    ),
    'a class is there twice': (
        lambda data: data['categories'].append({'id': 77, 'name': 'disc'}),
        r"categories has the name 'disc' more than once",
    ),
    'images of one id': (
        each('images', lambda image, _: image.update(id=1)),
        'images has the id 1 more than once',
    ),
    'some ids are text': (
        lambda data: data['images'][0].update(id='1'),
        'text in some places and numbers in others',
    ),
    'image ids are text on one side': (
        each('annotations', lambda ann, _: ann.update(image_id=str(ann['image_id']))),
        r"nothing to learn: 0 of \d+ objects.*whose image_id is text where the images' "
        'ids are numbers',
    ),
    'some category ids are text': (
        lambda data: data['categories'][0].update(id='1'),
        "the categories' ids are text in some places and numbers in others",
    ),
    'category ids are text on one side': (
        each('annotations', lambda a, _: a.update(category_id=str(a['category_id']))),
        r'nothing to learn: 0 of \d+ objects.*whose category_id is text where the '
        "categories' ids are numbers",
    ),
    'category ids are numbers on one side': (
        each('categories', lambda category, n: category.update(id=f'{n + 1}')),
        "whose category_id is numbers where the categories' ids are text",
    ),
    'category ids of nothing': (
        each('annotations', lambda ann, _: ann.update(category_id=99)),
        'left out are .* of categories that the file does not list',
    ),
    'an id that is not a number': (
        lambda data: data['images'][0].update(id=float('nan')),
        r'images\[0\] \(id nan\) has the id nan',
    ),
    'shares of the image': (
        each(
            'annotations',
            lambda ann, _: ann.update(bbox=[v / 128 for v in ann['bbox']]),
        ),
        'less than a pixel wide or high.*shares',
    ),
    'all crowd': (
        each('annotations', lambda ann, _: ann.update(iscrowd=1)),
        r'0 of (\d+) objects can be used; left out are \1 crowds',
    ),
    'no annotations': (lambda data: data.pop('annotations') and None, '0 of 0 objects'),
    'no images': (lambda data: data.update(images=[], annotations=[]), 'no images'),
    'no height': (
        lambda data: data['images'][1].pop('height') and None,
        r"images\[1\] \(id 2\) has no 'height'",
    ),
    'a height that is none': (
        lambda data: data['images'][1].update(height=None),
        r'images\[1\] \(id 2\) has the height None',
    ),
    'no bbox': (
        lambda data: data['annotations'][3].pop('bbox') and None,
        r"annotations\[3\] \(id 4\) has no 'bbox'",
    ),
    'not a number': (
        lambda data: data['annotations'][3].update(bbox=[float('nan'), 1, 2, 3]),
        r'annotations\[3\] \(id 4\) has the bbox \[nan',
    ),
    'three numbers': (
        lambda data: data['annotations'][3].update(bbox=[1, 2, 3]),
        r'annotations\[3\] \(id 4\) has the bbox \[1, 2, 3\].*\[x, y, width, height\]',
    ),
    'iscrowd as text': (
        each('annotations', lambda ann, _: ann.update(iscrowd='0')),
        r"annotations\[0\] \(id 1\) has the iscrowd '0'; it must be 0 or 1",
    ),
    'a category that is a list': (
        lambda data: data['annotations'][3].update(category_id=[1]),
        r'annotations\[3\] \(id 4\) has the category_id \[1\]',
    ),
    'an id null': (
        lambda data: data['images'][1].update(id=None),
        r'images\[1\] \(id None\) has the id None',
    ),
    'a file name null': (
        lambda data: data['images'][1].update(file_name=None),
        r'images\[1\] \(id 2\) has the file_name None',
    ),
    'a list': (lambda data: data['annotations'], 'is not a COCO annotation file'),
    'no categories': (
        lambda data: data.pop('categories') and None,
        "'categories' is missing",
    ),
}


@pytest.mark.parametrize(('change', 'message'), REFUSED.values(), ids=REFUSED)
def test_refused_before_anything_starts(config, files, change, message):
    files('train', change)
    with pytest.raises(ValueError, match=message):
        check_data(config, ('train',))


@pytest.mark.parametrize(
    'name', ['a class is spelled otherwise', 'shares of the image', 'all crowd']
)
def test_refused_before_a_test(config, files, name):
    change, message = REFUSED[name]
    files('val', change)
    with pytest.raises(ValueError, match=message.replace('learn', 'find')):
        build_runner(config, 'test')


def test_what_is_left_out_is_said(config, files):
    """Sizes that are not the pictures': some objects go, and the size is named."""
    files('train', each('images', lambda image, _: image.update(height=64)))
    with pytest.warns(UserWarning) as told:
        check_data(config, ('train',))
    texts = '\n'.join(str(w.message) for w in told)
    count = re.search(r'(\d+) of (\d+) objects can be used; left out are (\d+)', texts)
    kept, whole, gone = map(int, count.groups())
    assert kept + gone == whole and len(loaded(config)) == kept < whole
    assert '128 x 128 pixels and the file says 128 x 64' in texts


def test_a_sound_set_is_taken_in_silence(config):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        check_data(config, ('train', 'val', 'test'))


def test_masks_are_asked_for_only_where_they_are_loaded(config, files):
    files('train', lambda data: data['annotations'][2].update(segmentation=[]))
    check_data(config, ('train',))
    config.train_dataloader.dataset.pipeline[1].with_mask = True
    with pytest.raises(ValueError, match="annotation 3 has no 'segmentation'"):
        check_data(config, ('train',))


def test_masks_are_asked_for_where_they_are_scored(config, files):
    files('val', without('segmentation'))
    check_data(config, ('test',))
    config.test_evaluator.metric = ['bbox', 'segm']
    with pytest.raises(ValueError, match="has no 'segmentation', and masks are scored"):
        check_data(config, ('test',))


@pytest.mark.parametrize('classes', ['disc', ('disc', 'disc')])
def test_classes_that_are_no_list_of_names(config, classes):
    config.train_dataloader.dataset.metainfo = dict(classes=classes)
    with pytest.raises(ValueError, match=r"metainfo\.classes.*'disc'"):
        check_data(config, ('train',))


def test_classes_as_mmdetection_2_spells_them(config):
    config.train_dataloader.dataset.metainfo = dict(CLASSES=('disc',))
    with pytest.raises(ValueError, match='metainfo.CLASSES .* call it classes'):
        check_data(config, ('train',))


def test_a_name_in_the_place_of_a_list_of_them(config):
    """Else ('disc') is told as five letters, and nobody thinks of a comma."""
    for split in ('train', 'val', 'test'):
        config[f'{split}_dataloader'].dataset.metainfo = dict(classes='disc')
    config.train_dataloader.dataset.metainfo = dict(classes='cross')
    with pytest.raises(ValueError, match=r"needs a comma: \('cross',\)"):
        check_data(config, ('train', 'val'))


def test_classes_that_are_not_named(config):
    """Else the error is a list of COCO's names, which the user never wrote."""
    config.train_dataloader.dataset.type = 'CocoDataset'
    message = (
        r"instances_train\.json has 'disc', .* names no classes.*"
        r"metainfo=dict\(classes=\('disc', .*num_classes=6 in the heads"
    )
    with pytest.raises(ValueError, match=message):
        check_data(config, ('train',))


def test_the_hint_for_a_test_is_of_test_data(config, tmp_path):
    """Else somebody who tests is sent to the training data, and to COCO's."""
    dataset = config.test_dataloader.dataset
    dataset.update(type='CocoDataset', data_root=str(tmp_path))
    dataset.metainfo = dict(classes=CLASSES)
    with pytest.raises(FileNotFoundError, match='test_dataloader') as info:
        check_data(config, ('test',))
    assert 'train_dataloader' not in str(info.value)
    assert 'COCO 2017' not in str(info.value)


def test_an_evaluator_of_other_images(config, files):
    """Other images under the same ids are told apart, and the hint works."""
    own = dict(config.test_evaluator)
    files('val', lambda data: data['images'].pop())
    config.test_evaluator = own
    message = r'test_evaluator\.ann_file.* 8 images and test_dataloader\.dataset\.ann_f'
    with pytest.raises(ValueError, match=message):
        build_runner(config, 'test')
    files('val', each('images', lambda i, n: i.update(file_name=f'other{n}.png')))
    config.test_evaluator = own
    with pytest.raises(ValueError, match=r"id 1 is '000000.png' in .* 'other0.png'"):
        build_runner(config, 'test')


def test_an_evaluator_of_other_objects(config, files):
    own = dict(config.test_evaluator)
    files('val', lambda data: data['annotations'].pop())
    config.test_evaluator = own
    with pytest.warns(UserWarning, match='other objects'):
        check_data(config, ('test',))


def test_a_part_of_the_images(config):
    config.test_dataloader.dataset.indices = 3
    with pytest.raises(ValueError, match='indices=3 takes a part of the images'):
        build_runner(config, 'test')


def test_the_hint_for_data_elsewhere_works(config, shapes_root, tmp_path):
    """What the message says to give makes the config run on the copy."""
    moved = tmp_path / 'moved'
    moved.symlink_to(shapes_root)
    for split in ('train', 'val', 'test'):
        config[f'{split}_dataloader'].dataset.type = 'CocoDataset'
        config[f'{split}_dataloader'].dataset.metainfo = dict(classes=CLASSES)
        config[f'{split}_dataloader'].dataset.data_root = str(tmp_path / 'nowhere')
    with pytest.raises(FileNotFoundError) as info:
        build_runner(config, 'train')
    hint = re.search(r'--cfg-options (.*)', str(info.value)).group(1)
    options = dict(o.split('=') for o in hint.replace('DIR', str(moved)).split())
    assert any('evaluator' in key for key in options)
    config.merge_from_dict(options)
    check_data(config, ('train', 'val', 'test'))
    assert str(moved) in config.val_evaluator.ann_file


@pytest.mark.parametrize('head', ['roi_head.bbox_head'])
@pytest.mark.parametrize('number', [3, 5, 80])
def test_heads_of_another_number_of_classes(config, tmp_path, head, number):
    config.work_dir = str(tmp_path)
    config.merge_from_dict({f'model.{head}.num_classes': number})
    message = rf'model\.{head}\.num_classes is {number}, and train_.* has 6 classes'
    with pytest.raises(ValueError, match=message):
        build_runner(config, 'train')
    with pytest.raises(ValueError, match='test_dataloader.dataset has 6 classes'):
        build_runner(config, 'test')


def test_an_annotation_file_is_read_once(config, tmp_path, monkeypatch):
    """Check, data set and evaluator share what was read: COCO's file has 450 MB."""
    reads = []
    own = coco_io.read
    monkeypatch.setattr(
        coco_io, 'read', lambda path: reads.append(Path(path).name) or own(path)
    )
    config.work_dir = str(tmp_path)
    config.train_cfg.max_epochs = config.train_cfg.val_interval = 1
    opened = []
    plain = builtins.open
    monkeypatch.setattr(
        builtins, 'open', lambda f, *a, **k: opened.append(str(f)) or plain(f, *a, **k)
    )
    build_runner(config, 'train').train()
    assert sorted(reads) == ['instances_train.json', 'instances_val.json']
    assert not [name for name in opened if 'instances_' in name]
    assert not any('instances_' in name for name in coco_io._kept)


def test_what_is_shared_is_not_written_into(config):
    """An evaluation marks crowds as ignored in its own copy only."""
    path = config.test_evaluator.ann_file
    content = coco_io.read(path)
    coco_io.keep(path, content, 2)
    first = coco_io.COCO(path)
    first.dataset['annotations'][0]['ignore'] = 1
    assert 'ignore' not in coco_io.COCO(path).dataset['annotations'][0]


def test_a_transform_that_fails_names_the_image(config, files, tmp_path):
    cv2.imwrite(str(tmp_path / 'thin.png'), np.zeros((2, 3000, 3), np.uint8))

    def thin(data):
        data['images'][0].update(
            file_name=str(tmp_path / 'thin.png'), height=2, width=3000
        )

    files('train', thin)
    data = DATASETS.build(config.train_dataloader.dataset)
    with pytest.raises(ValueError, match=r'thin\.png: Resize cannot take it .*3000 x'):
        for index in range(len(data)):
            data[index]


def test_a_test_pipeline_without_resize(trained, config, tmp_path):
    """Images as they are: results are in their pixels."""
    config.load_from = str(trained / 'epoch_4.pth')
    config.work_dir = str(tmp_path)
    pipeline = config.test_dataloader.dataset.pipeline
    config.test_dataloader.dataset.pipeline = [
        step for step in copy.deepcopy(pipeline) if step.type != 'Resize'
    ]
    assert 'coco/bbox_mAP' in build_runner(config, 'test').test()
    config.test_dataloader.dataset.pipeline[-1].meta_keys = ('img_id', 'img_shape')
    with pytest.raises(ValueError, match='must have ori_shape, scale_factor too'):
        build_runner(config, 'test')


def test_without_worker_processes(config, tmp_path):
    config.work_dir = str(tmp_path)
    for split in ('train', 'val', 'test'):
        config[f'{split}_dataloader'].update(num_workers=0, persistent_workers=True)
    runner = build_runner(config, 'train')
    assert isinstance(runner, Runner)
    assert next(iter(runner.build_dataloader(runner._train_dataloader)))


def test_images_that_are_not_there(config, files):
    """Said before the start: a test would fail after all the training."""
    files('val', lambda data: data['images'][2].update(file_name='gone.png'))
    with pytest.raises(FileNotFoundError, match=r'1 of 8 images .* do not .*gone\.png'):
        check_data(config, ('test',))
    files(
        'train', each('images', lambda i, _: i.update(file_name=f'/{i["file_name"]}'))
    )
    with pytest.raises(FileNotFoundError, match=r'16 of 16 images .* /000000\.png'):
        check_data(config, ('train',))


def test_boxes_of_two_corners(config, files):
    def corners(ann, _):
        x, y, w, h = ann['bbox']
        ann['bbox'] = [x, y, x + w, y + h]

    files('train', each('annotations', corners))
    with pytest.warns(UserWarning, match=r'over the edge .*not \[x1, y1, x2, y2\]'):
        check_data(config, ('train',))


SQUARE = np.zeros((128, 128), np.uint8, order='F')
SQUARE[10:60, 10:60] = 1
RLE = mask_utils.encode(SQUARE)['counts'].decode()
MASKS = {
    'one list': ([1, 1, 5, 1, 5, 5], 'neither polygons'),
    'text': ([['1', '1', '5', '1', '5', '5']], 'neither polygons'),
    'not a number': ([[1, 1, float('nan'), 1, 5, 5]], 'neither polygons'),
    'no size': (dict(counts=[0, 100]), 'neither polygons'),
    'another size': (dict(size=[9, 9], counts=[0, 81]), 'has a mask of 9 x 9 pixels'),
    'too few counts': (
        dict(size=[128, 128], counts=[5, 9]),
        'has an RLE of 14 pixels, not of the 128 x 128',
    ),
    'counts below 0': (
        dict(size=[128, 128], counts=[-1, 128 * 128 + 1]),
        'is cut off or broken',
    ),
    'a string cut off': (dict(size=[128, 128], counts=RLE[:9]), 'cut off or broken'),
    'a string cut off in a run': (dict(size=[128, 128], counts=RLE[:1]), 'is cut off'),
    'a string too long': (dict(size=[128, 128], counts=RLE + '5'), 'is cut off or br'),
    'an empty string': (dict(size=[128, 128], counts=''), 'is cut off or broken'),
    'no counts': (dict(size=[128, 128], counts=None), 'neither polygons'),
    'RLEs in a list': ([dict(size=[128, 128], counts=[0, 128 * 128])], 'neither polyg'),
}


@pytest.mark.parametrize(('mask', 'message'), MASKS.values(), ids=MASKS)
def test_masks_that_cannot_be_read(config, files, mask, message):
    files('train', lambda data: data['annotations'][2].update(segmentation=mask))
    config.train_dataloader.dataset.pipeline[1].with_mask = True
    with pytest.raises(ValueError, match=f'annotation 3 .*{message}'):
        check_data(config, ('train',))


def test_masks_that_can_be_read(config, files):
    """RLEs of any shape, compressed or not, are whole."""
    draw = np.random.default_rng(0)

    def masks(ann, number):
        mask = (draw.random((128, 128)) < draw.random()).astype(np.uint8)
        mask[: number % 3] = number % 2
        rle = mask_utils.encode(np.asfortranarray(mask))
        flat = np.r_[0, mask.ravel(order='F'), 1 - mask[-1, -1]]
        runs = np.diff(np.r_[0, np.flatnonzero(np.diff(flat))]).tolist()
        counts = runs if number % 4 == 3 else rle['counts'].decode()
        ann['segmentation'] = dict(size=[128, 128], counts=counts)

    files('train', each('annotations', masks))
    config.train_dataloader.dataset.pipeline[1].with_mask = True
    check_data(config, ('train',))


@pytest.mark.parametrize('mask', [[[]], [[1, 1, 5, 5]], [[1, 1, 5, 5, 7, 7, 8]]])
def test_masks_of_too_few_points(config, files, mask):
    """Training leaves them out, which is said; nothing can score them."""
    files('train', lambda data: data['annotations'][2].update(segmentation=mask))
    config.train_dataloader.dataset.pipeline[1].with_mask = True
    with pytest.warns(UserWarning, match='left out are 1 whose segmentation has no'):
        check_data(config, ('train',))
    files('val', lambda data: data['annotations'][2].update(segmentation=mask))
    config.test_evaluator.metric = ['bbox', 'segm']
    with pytest.raises(ValueError, match='annotation 3 has no polygon of three'):
        check_data(config, ('test',))


def test_the_masks_of_crowds_are_read_too(config, files):
    """mmdet loads them, and pycocotools scores around them."""

    def crowd(data):
        data['annotations'][2].update(iscrowd=1)
        data['annotations'][2].pop('segmentation')

    files('train', crowd)
    config.train_dataloader.dataset.pipeline[1].with_mask = True
    with pytest.raises(ValueError, match="annotation 3 has no 'segmentation'"):
        check_data(config, ('train',))
    files('val', crowd)
    config.test_evaluator.metric = 'segm'
    with pytest.raises(ValueError, match="annotation 3 has no 'segmentation'"):
        check_data(config, ('test',))


def test_masks_that_polygon_pipelines_leave_out(config, files):
    """With poly2mask=False mmdet drops every RLE, and would learn nothing."""
    step = config.train_dataloader.dataset.pipeline[1]
    step.update(with_mask=True, poly2mask=False)
    with pytest.raises(ValueError, match='nothing to learn: 0 of .* poly2mask=False'):
        check_data(config, ('train',))
    square = [[1, 1, 9, 1, 9, 9, 1, 9]]
    whole = each('annotations', lambda ann, _: ann.update(segmentation=square))
    files('train', whole)
    check_data(config, ('train',))


@pytest.mark.parametrize(
    'extra', [[[1, 1, 5, 5]], [[1, 1]], [[]], [[1, 1, 5, 5], [1, 2, 3, 4, 5, 6, 7]]]
)
@pytest.mark.parametrize('first', [True, False])
def test_polygons_of_too_few_points_are_passed_over(files, extra, first):
    """pycocotools takes a first one of four numbers for a box, after all the training;
    mmdet trains without them."""
    square = [[10, 10, 60, 10, 60, 60, 10, 60]]
    mask = [*extra, *square] if first else [*square, *extra]
    coco = coco_io.COCO(
        str(files('val', each('annotations', lambda a, _: a.update(segmentation=mask))))
    )
    found = [
        dict(
            image_id=ann['image_id'],
            category_id=ann['category_id'],
            segmentation=dict(size=[128, 128], counts=RLE),
            score=0.9,
        )
        for ann in coco.dataset['annotations']
    ]
    evaluation = coco_io.COCOeval(coco, coco.loadRes(found), 'segm')
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == 1


def test_a_part_without_objects(config, files):
    """The unlabeled part of a semi-supervised set is not refused."""
    whole = copy.deepcopy(config.train_dataloader.dataset)
    files('train', lambda data: data.pop('annotations') and None)
    part = config.train_dataloader.dataset
    config.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[whole, part])
    check_data(config, ('train',))


def test_lvis_is_left_to_its_own_package(config, files):
    """Its images have no file names, and its score is another."""
    for split in ('train', 'val'):
        files(split, each('images', lambda image, _: image.pop('file_name')))
    for split in ('train', 'test'):
        config[f'{split}_dataloader'].dataset.update(
            type='LVISV1Dataset', metainfo=dict(classes=CLASSES)
        )
    config.test_evaluator.type = 'LVISMetric'
    check_data(config, ('train', 'test'))


def test_classes_in_another_order_in_another_split(config):
    """A detector learns labels, so that its detections would be of other classes."""
    config.val_dataloader.dataset.metainfo = dict(classes=CLASSES[::-1])
    words = rf"val_dataloader\.dataset has the class '{CLASSES[0]}' in place 5 of its"
    with pytest.raises(ValueError, match=words):
        check_data(config, ('train', 'val'))


def test_a_folder_for_a_file(config):
    config.test_evaluator.ann_file = config.test_dataloader.dataset.data_root
    with pytest.raises(ValueError, match='is not a COCO annotation file .*directory'):
        check_data(config, ('test',))


def test_metainfo_that_is_none(config):
    """As mmengine's own default."""
    config.train_dataloader.dataset.metainfo = None
    check_data(config, ('train',))


@pytest.mark.parametrize(
    'thresholds', [[0.5, 0.75], (0.75, 0.5), 0.5, np.array([0.5]), [0.5, 1]]
)
@pytest.mark.parametrize('processes', [False, True])
def test_thresholds_of_any_kind(config, thresholds, processes):
    """mmdet's documentation has them; pycocotools fails on a list or a number."""
    config.test_evaluator.iou_thrs = thresholds
    check_data(config, ('test',))
    found = perfect_metric(config, use_mp_eval=processes)
    assert found['bbox_mAP'] == found['bbox_mAP_50'] == 1
    has_75 = 0.75 in np.array(thresholds, ndmin=1)
    assert found['bbox_mAP_75'] == (1 if has_75 else -1)


@pytest.mark.parametrize('thresholds', [None, [0.5, 0.9], 0.5])
def test_recall_of_proposals(config, thresholds):
    """mmdet's own fails with numpy 1.24 and later where images have other numbers."""
    config.test_evaluator.iou_thrs = thresholds
    config.test_evaluator.pop('metric_items', None)
    found = perfect_metric(config, metric='proposal_fast', proposal_nums=(1, 100))
    objects = [len(i) for i in loaded_by_image(config)]
    assert found['AR@100'] == 1
    assert found['AR@1'] == pytest.approx(len(objects) / sum(objects))
    # of half of the boxes each image's first is found
    assert perfect_metric(config, metric='proposal')['AR@100'] == 1


def loaded_by_image(config):
    data = DATASETS.build(config.test_dataloader.dataset)
    return [data.get_data_info(n)['instances'] for n in range(len(data))]


METRIC_SETTINGS = {
    'no metric': (dict(metric=[]), r'metric=\[\]: it must be one'),
    'an unknown metric': (dict(metric='keypoints'), "metric='keypoints': it must be"),
    'a tuple of metrics': (dict(metric=('bbox', 'segm')), 'it must be one, or a list'),
    'an unknown item': (dict(metric_items=['mAP_51']), r"items=\['mAP_51'\]: it must"),
    'thresholds of nothing': (dict(iou_thrs=[]), r'iou_thrs=\[\]: it must be a number'),
    'thresholds in percent': (dict(iou_thrs=50), 'iou_thrs=50: it must be a number'),
    'thresholds as text': (dict(iou_thrs='half'), "iou_thrs='half': it must be"),
    'a table of other thresholds': (
        dict(iou_thrs=[0.5, 0.75], classwise=True),
        'classwise=True has AP at 0.5 and at 0.75 from places 0 and 5',
    ),
    'one number of detections': (dict(proposal_nums=[100]), 'it must be three numbers'),
    'no 100 detections': (
        dict(proposal_nums=[10, 300, 1000]),
        r'proposal_nums=\[10, 300, 1000\]: it must be three numbers or more, one of',
    ),
    'names of other numbers': (
        dict(proposal_nums=[1, 10, 100], metric_items=['AR@100']),
        r'are of \(100, 300, 1000\)',
    ),
    'two recalls': (
        dict(metric=['proposal', 'proposal_fast'], metric_items=None),
        'reports coco/AR@100 twice',
    ),
    'VOC with a tuple': (
        dict(type='VOCMetric', iou_thrs=(0.5,), _delete_=True),
        r'iou_thrs=\(0\.5,\): it must be a float or a list',
    ),
    "VOC's recall": (
        dict(type='VOCMetric', metric='recall', _delete_=True),
        'counts the detections of the first class alone',
    ),
    'Open Images of a CocoDataset': (
        dict(type='OpenImagesMetric', _delete_=True),
        "add 'instances' to the meta_keys",
    ),
    'objects that are not handed on': (
        dict(type='CocoMetric', _delete_=True),
        "add 'instances' to the meta_keys",
    ),
}


@pytest.mark.parametrize(
    ('settings', 'message'), METRIC_SETTINGS.values(), ids=METRIC_SETTINGS
)
@pytest.mark.parametrize('listed', [False, True])
def test_settings_that_an_evaluator_reads_last(config, settings, message, listed):
    """Each fails, or gives -1, only after the training and the last test image."""
    settings = dict(settings)
    own = {} if settings.pop('_delete_', False) else dict(config.val_evaluator)
    evaluator = {**own, **settings}
    config.val_evaluator = dict(metrics=[evaluator]) if listed else evaluator
    with pytest.raises(ValueError, match=message):
        check_data(config, ('train', 'val'))


def test_objects_for_a_voc_metric(config):
    config.val_evaluator = dict(type='VOCMetric')
    check_data(config, ('train', 'val'))
    pipeline = config.val_dataloader.dataset.pipeline
    config.val_dataloader.dataset.pipeline = [
        step for step in pipeline if step.type != 'LoadAnnotations'
    ]
    with pytest.raises(ValueError, match=r"add dict\(type='LoadAnnotations'"):
        check_data(config, ('train', 'val'))


@pytest.mark.parametrize('wrapped', [False, True])
def test_two_evaluators_of_one_name(config, wrapped):
    """mmengine finds that out after the last image."""
    own = dict(config.val_evaluator)

    def evaluators(*others):
        each = [dict(own), *others]
        config.val_evaluator = dict(metrics=each) if wrapped else each
        check_data(config, ('train', 'val'))

    part = 'val_evaluator.metrics.1' if wrapped else 'val_evaluator.1'
    words = (
        rf'{re.escape(part)} reports coco/bbox_mAP.* as {re.escape(part[:-1])}0 does'
    )
    with pytest.raises(ValueError, match=words):
        evaluators(dict(own))
    with pytest.raises(ValueError, match=words):
        evaluators(dict(own, metric_items=['mAP_50']))
    with pytest.raises(ValueError, match='reports pascal_voc/VOCMetric as'):
        evaluators(dict(type='VOCMetric'), dict(type='VOCMetric', iou_thrs=0.7))
    evaluators(dict(own, prefix='other'), dict(own, metric='proposal'))
    evaluators(dict(type='VOCMetric'), dict(type='VOCMetric', prefix='strict'))


@pytest.mark.parametrize('mode', ['train', 'test'])
@pytest.mark.parametrize('metric', ['segm', ['bbox', 'segm']])
def test_masks_of_a_detector_without(config, tmp_path, mode, metric):
    config.work_dir = str(tmp_path)
    config.val_evaluator.metric = config.test_evaluator.metric = metric
    split = 'val' if mode == 'train' else 'test'
    words = rf'{split}_evaluator\.metric=.* scores masks, and the detector has no mask'
    with pytest.raises(ValueError, match=words):
        build_runner(config, mode)


def epochs(**settings):
    return dict(type='EpochBasedTrainLoop', **{'max_epochs': 1, **settings})


def iterations(**settings):
    return dict(type='IterBasedTrainLoop', **{'max_iters': 2, **settings})


# 16 images to train on and 8 to validate on
LENGTHS = {
    'a batch above the images': (
        dict(batch_size=17, drop_last=True, batch_sampler=None),
        epochs(),
        r'train_dataloader gives no batch: 16 images, a batch size of 17 .* 16 or less',
    ),
    'the same by iterations': (
        dict(batch_size=17, drop_last=True, batch_sampler=None),
        iterations(),
        'train_dataloader gives no batch',
    ),
    'the same in a batch sampler': (
        dict(
            batch_size=17,
            batch_sampler=dict(type='AspectRatioBatchSampler', drop_last=True),
        ),
        epochs(),
        'train_dataloader gives no batch',
    ),
    'images that are too small': (
        {'dataset.filter_cfg.min_size': 999},
        epochs(),
        'train_dataloader.dataset.* has no images',
    ),
    'none of the images': (
        {'dataset.indices': 0},
        iterations(),
        'train_dataloader.dataset.* has no images',
    ),
    'repeated no times': (
        {'dataset.times': 0},
        epochs(),
        'train_dataloader.dataset.* has no images',
    ),
    'no epochs': ({}, epochs(max_epochs=0), 'train_cfg.max_epochs=0: it must be'),
    'half an epoch': ({}, epochs(max_epochs=0.5), 'train_cfg.max_epochs=0.5: it must'),
    'no iterations': ({}, iterations(max_iters=0), 'train_cfg.max_iters=0: it must be'),
    'validation at no epoch': (
        {},
        epochs(val_interval=0),
        'val_interval=0: it must be',
    ),
    'an epoch without end': (
        {'sampler.type': 'InfiniteSampler'},
        epochs(),
        'train_dataloader.sampler.type=InfiniteSampler never ends',
    ),
}


@pytest.mark.parametrize(
    ('name', 'wrapped'),
    [(name, name == 'repeated no times') for name in LENGTHS]
    + [(name, True) for name in list(LENGTHS)[:4]],
)
def test_a_training_of_nothing(config, tmp_path, name, wrapped):
    """Else an untrained detector is saved and scored, and all looks well."""
    settings, train_cfg, message = LENGTHS[name]
    loader = config.train_dataloader
    config.work_dir = str(tmp_path)
    config.train_cfg = train_cfg
    inner = 'dataset.dataset.' if wrapped else 'dataset.'
    if wrapped:
        loader.dataset = dict(type='RepeatDataset', times=1, dataset=loader.dataset)
    for key, value in settings.items():
        own = key if key == 'dataset.times' else key.replace('dataset.', inner)
        config.merge_from_dict({f'train_dataloader.{own}': value})
    with pytest.raises(ValueError, match=message):
        build_runner(config, 'train')


@pytest.mark.parametrize('split', ['val', 'test'])
def test_scored_images_that_a_loader_leaves_out(config, tmp_path, split):
    """Their objects count as missed."""
    config.work_dir = str(tmp_path)
    loader = config[f'{split}_dataloader']
    loader.update(batch_size=3, drop_last=True)
    with pytest.raises(
        ValueError, match=rf'{split}_dataloader leaves out 2 of the 8 i'
    ):
        build_runner(config, 'train' if split == 'val' else 'test')
    loader.batch_size = 9
    with pytest.raises(
        ValueError, match=rf'{split}_dataloader gives no batch: 8 images'
    ):
        build_runner(config, 'train' if split == 'val' else 'test')
    loader.sampler = dict(type='InfiniteSampler')
    with pytest.raises(ValueError, match=rf'{split}_dataloader\.sampler.* never ends'):
        build_runner(config, 'train' if split == 'val' else 'test')


def test_the_share_of_a_process(config, tmp_path, monkeypatch):
    """16 images are enough for a batch of 8, and not in each of 4 processes."""
    config.work_dir = str(tmp_path)
    config.train_dataloader.update(drop_last=True, batch_sampler=None)
    build_runner(config, 'train')
    monkeypatch.setattr('mmengine.dataset.sampler.get_dist_info', lambda: (0, 4))
    monkeypatch.setattr('dlu_mmdet.engine.loops.get_world_size', lambda: 4)
    with pytest.raises(ValueError, match='no batch: 16 images, 4 in this process'):
        build_runner(config, 'train')


def test_few_images_for_iterations(config, tmp_path):
    """A sampler that begins again fills any batch."""
    config.work_dir = str(tmp_path)
    config.train_dataloader.update(
        batch_size=17,
        drop_last=True,
        batch_sampler=None,
        sampler=dict(type='InfiniteSampler'),
    )
    config.train_cfg = iterations(val_interval=99)
    config.param_scheduler = []
    config.default_hooks.checkpoint.by_epoch = False
    build_runner(config, 'train')


def test_what_counts_epochs_where_there_are_none(config, tmp_path):
    config.work_dir = str(tmp_path)
    config.train_dataloader.sampler = dict(type='InfiniteSampler')
    config.train_cfg = iterations()
    with pytest.warns(UserWarning) as told:
        build_runner(config, 'train')
    texts = '\n'.join(str(w.message) for w in told)
    assert 'param_scheduler.1: CosineAnnealingLR counts epochs' in texts
    assert 'default_hooks.checkpoint counts epochs' in texts


def test_a_schedule_after_the_end(config, tmp_path):
    config.work_dir = str(tmp_path)
    config.param_scheduler = [
        dict(type='MultiStepLR', milestones=[8, 11]),
        dict(type='LinearLR', begin=99, end=120, by_epoch=False, start_factor=0.1),
        dict(type='MultiStepLR', milestones=[3]),
    ]
    with pytest.warns(UserWarning) as told:
        build_runner(config, 'train')
    texts = [str(w.message) for w in told if 'param_scheduler' in str(w.message)]
    assert len(texts) == 2
    assert 'param_scheduler.0: MultiStepLR first acts at epoch 8' in texts[0]
    assert 'param_scheduler.1: LinearLR first acts at iteration 99' in texts[1]


def test_a_schedule_that_begins_after_the_end(config, tmp_path):
    """As a cosine does after a warm-up of an epoch, where one epoch is asked for."""
    config.work_dir = str(tmp_path)
    config.train_cfg.max_epochs = 1
    config.param_scheduler = [
        WARM_UP,
        dict(type='CosineAnnealingLR', begin=1, **IN_EPOCHS),
    ]
    words = r'param_scheduler.1: CosineAnnealingLR begins at epoch 1, .* ends after 1; '
    with pytest.raises(ValueError, match=words):
        build_runner(config, 'train')


WARM_UP = dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=3)
IN_EPOCHS = dict(convert_to_iter_based=True, by_epoch=True)
# of a training of one epoch, which has two iterations
TOO_LONG = {
    'a warm-up': (WARM_UP, r'\.0: LinearLR warms up until iteration 3, .* after 2, so'),
    'one in epochs': (
        dict(WARM_UP, **IN_EPOCHS),
        r'LinearLR warms up until epoch 3, .* after 1, so',
    ),
    'a constant one': (
        dict(type='ConstantLR', by_epoch=False, begin=1, end=9),
        'ConstantLR warms up until iteration 9',
    ),
    "YOLOX's": (
        dict(type='mmdet.QuadraticWarmupLR', end=5, **IN_EPOCHS),
        'mmdet.QuadraticWarmupLR warms up until epoch 5',
    ),
    'of momentum': (
        dict(type='LinearMomentum', by_epoch=False, end=9),
        'LinearMomentum warms up until iteration 9',
    ),
    'of one cycle': (
        dict(type='OneCycleLR', eta_max=0.1, total_steps=10, by_epoch=False),
        'OneCycleLR warms up until iteration 3',
    ),
    'a fall': (
        dict(type='LinearLR', start_factor=1.0, end_factor=0.1, end=4),
        'LinearLR lasts until epoch 4',
    ),
    'a cosine': (
        dict(type='CosineAnnealingLR', T_max=12, end=12),
        'CosineAnnealingLR lasts until epoch 12',
    ),
    'a polynomial': (dict(type='PolyLR', end=2), 'PolyLR lasts until epoch 2'),
    'a step': (dict(type='StepLR', step_size=3), 'StepLR first acts at epoch 3'),
}


def test_a_schedule_longer_than_the_training(config, tmp_path):
    """Else the learning rate stays near 0, and the AP as well, without a word."""
    config.work_dir = str(tmp_path)
    config.train_cfg = epochs()
    runner = Runner.from_cfg(config)
    for one, message in TOO_LONG.values():
        for given in (one, [one], dict(sgd=[one])):
            runner.cfg.param_scheduler = given
            (told,) = _idle_schedules(runner)
            assert re.search(f'param_scheduler.*{message}', told)


@pytest.mark.parametrize('loop', [epochs(max_epochs=2), iterations(max_iters=4)])
def test_a_schedule_as_long_as_the_training(config, tmp_path, loop):
    """Warnings of what is right are not read."""
    config.work_dir = str(tmp_path)
    config.train_cfg = loop
    config.param_scheduler = [
        dict(WARM_UP, end=4),
        dict(type='LinearLR', start_factor=0.1, end=2, **IN_EPOCHS),
        dict(type='LinearLR', start_factor=1.0, by_epoch=False, end_factor=0.01),
        dict(type='CosineAnnealingLR', begin=3, by_epoch=False),
        dict(type='OneCycleLR', eta_max=0.1, by_epoch=False),
        dict(type='ExponentialLR', gamma=0.9, by_epoch=False),
    ]
    assert not [*_idle_schedules(Runner.from_cfg(config))]


SHORT = {
    'validation': ({'train_cfg.val_begin': 4}, 'val_begin=4, .* epoch 2, so it is nev'),
    'its interval': (
        {'train_cfg.dynamic_intervals': [(9, 1)]},
        'dynamic_intervals changes the interval of validations at epoch 9',
    ),
    'checkpoint': (
        {
            'default_hooks.checkpoint.interval': 3,
            'default_hooks.checkpoint.save_last': False,
        },
        'saves no checkpoint: it has interval=3, .* epoch 2; set save_last=True',
    ),
    'pipeline': (
        {
            'custom_hooks': [
                dict(type='PipelineSwitchHook', switch_epoch=2, switch_pipeline=[])
            ]
        },
        'PipelineSwitchHook has switch_epoch=2, .* epoch 2, so the pipeline is never',
    ),
    'mosaic': (
        {'custom_hooks': [dict(type='YOLOXModeSwitchHook')]},
        'YOLOXModeSwitchHook has num_last_epochs=15, .* epoch 2, so mosaic',
    ),
}


@pytest.mark.parametrize('name', SHORT)
def test_a_training_too_short_for_its_hooks(config, tmp_path, name):
    """Else it is never validated or saved, or trains on other images than it says."""
    config.work_dir = str(tmp_path)
    options, message = SHORT[name]
    config.train_cfg = epochs(max_epochs=2)
    config.merge_from_dict(options)
    (told,) = _idle_hooks(Runner.from_cfg(config))
    assert re.search(message, told)


def test_averages_from_after_the_end(config, tmp_path):
    """mmengine asserts it when all is built."""
    config.work_dir = str(tmp_path)
    config.custom_hooks = [dict(type='EMAHook', begin_iter=99)]
    with pytest.raises(ValueError, match='EMAHook has begin_iter=99, .* earlier one'):
        build_runner(config, 'train')


def test_an_option_that_saving_does_not_take(config, tmp_path):
    """mmengine raises it at the end of the first epoch."""
    config.work_dir = str(tmp_path)
    config.default_hooks.checkpoint.intervall = 2
    with pytest.raises(ValueError, match='has the option intervall, which Checkpoint'):
        build_runner(config, 'train')


def test_a_metric_that_no_validation_reports(config, tmp_path):
    """mmengine raises it after the first validation, or stops nothing."""
    config.work_dir = str(tmp_path)
    config.default_hooks.checkpoint.save_best = 'coco/bbox_mAPP'
    with pytest.raises(
        ValueError, match='follows coco/bbox_mAPP, .* of coco/bbox_mAP,'
    ):
        build_runner(config, 'train')
    config.default_hooks.checkpoint.save_best = 'auto'
    config.custom_hooks = [dict(type='EarlyStoppingHook', monitor='bbox_mAP')]
    with pytest.raises(ValueError, match='EarlyStoppingHook follows bbox_mAP, which'):
        build_runner(config, 'train')
    config.custom_hooks[0].monitor = 'coco/bbox_mAP'
    build_runner(config, 'train')
