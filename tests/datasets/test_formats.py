"""Formats that people have: recognized by --data, split, and converted."""

import argparse
import json
import re
import shlex
import sys
import zipfile
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import CONFIGS, ROOT, load_tool, run
from mmdet.registry import DATASETS
from PIL import Image

from dlu_mmdet.cli.arguments import add_data, config_values, data_values
from dlu_mmdet.config import load_config, prepare_data, read_config, use_dataset_folder
from dlu_mmdet.datasets import check_data, formats
from dlu_mmdet.datasets import convert as converting
from dlu_mmdet.datasets.convert import convert
from dlu_mmdet.datasets.split import split_images

OWN = CONFIGS / '_base_' / 'faster-rcnn_r18_fpn_own-data.py'


@pytest.fixture
def needs_supervision():
    pytest.importorskip(
        'supervision', reason='pip install -r requirements/convert.txt; Python 3.10'
    )


def picture(path, size=(60, 40), turned=False):
    """An image file; ``turned``: stored on its side, with an EXIF orientation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image, exif = Image.new('RGB', size[::-1] if turned else size), Image.Exif()
    if turned:
        exif[0x0112] = 6
    image.save(path, exif=exif)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text))


def coco(names, classes=('a', 'b'), objects=None):
    """A COCO file; object number i is of class ``objects[i]`` in image i."""
    objects = objects or [i % len(classes) for i in range(len(names))]
    return dict(
        images=[
            dict(id=i, file_name=name, width=60, height=40)
            for i, name in enumerate(names)
        ],
        annotations=[
            dict(id=i + 1, image_id=i, category_id=c, bbox=[1, 2, 30, 20])
            for i, c in enumerate(objects)
            if c is not None
        ],
        categories=[dict(id=i, name=name) for i, name in enumerate(classes)],
    )


def one_file(root, file='labels.json', images='data', number=10):
    """A folder with one COCO file, by default FiftyOne's."""
    names = [f'{i}.png' for i in range(number)]
    for name in names:
        picture(root / images / name)
    write(root / file, coco(names))
    return root


# ---- names and splits ---------------------------------------------------------------


def test_a_split_keeps_shares_of_classes_and_is_always_the_same():
    """Else a rare class is all in one part, or a run cannot be repeated."""
    objects = [0] * 60 + [1] * 30 + [2] * 6 + [3] + [None] * 20
    content = coco([f'{i}.png' for i in range(117)], 'abcd', objects)
    train, val = split_images(content, 0.2)
    assert len(val['images']) == 23 and len(train['images']) == 94
    shares = Counter(ann['category_id'] for ann in val['annotations'])
    # the one image of a class is learned; rounding goes to the next class
    assert shares == {0: 12, 1: 6, 2: 1}
    assert len(train['annotations']) + len(val['annotations']) == 97
    ids = [{image['id'] for image in part['images']} for part in (train, val)]
    assert not ids[0] & ids[1] and len(ids[0] | ids[1]) == 117
    assert split_images(content, 0.2) == (train, val)
    assert split_images(content, 0.2, seed=1)[1] != val
    # every object goes with its image
    for part, own in zip((train, val), ids):
        assert {ann['image_id'] for ann in part['annotations']} <= own


@pytest.mark.parametrize('images', range(1, 12))
@pytest.mark.parametrize('fraction', [0.01, 0.1, 0.3, 0.5, 0.9, 0.99])
def test_a_split_has_the_share_or_is_refused(images, fraction):
    """Else a part is empty, or far from what was asked for."""
    content = coco([f'{i}.png' for i in range(images)], 'a')
    try:
        train, val = split_images(content, fraction)
    except ValueError as error:
        assert 'leaves no image' in str(error)
        assert images == 1 or images * fraction < 0.5
        return
    expected = min(int(images * fraction + 0.5), images - 1)
    assert len(val['images']) == expected and train['images']


def test_val_fraction(tmp_path, capsys):
    """One file without a validation set: two files in the work directory, one line."""
    root, work_dir = one_file(tmp_path / 'my data'), tmp_path / 'run'
    data = prepare_data(work_dir, root, val_fraction=0.2)
    told = capsys.readouterr().out
    assert told.count('\n') == 1
    assert 'train 8 images, 8 objects; val 2 images, 2 objects' in told
    assert str(work_dir / 'split') in told
    cfg = read_config(OWN)
    use_dataset_folder(cfg, **data)
    dataset = cfg.val_dataloader.dataset
    assert dataset.ann_file == str(work_dir / 'split' / 'val.json')
    assert cfg.val_evaluator.ann_file == dataset.ann_file
    for image in json.loads((work_dir / 'split' / 'val.json').read_text())['images']:
        assert (root / dataset.data_prefix.img / image['file_name']).is_file()
    # the same command again, then another split beside the first run
    assert prepare_data(work_dir, root, val_fraction=0.2) == data
    with pytest.raises(ValueError, match='holds another split.*another --work-dir'):
        prepare_data(work_dir, root, val_fraction=0.3)


def test_the_config_of_a_split_needs_no_flags(shapes_root, tmp_path):
    """Else test.py or --resume take other images than the training did."""
    work_dir = tmp_path / 'run'
    command = [OWN, '--data', shapes_root, '--val-fraction', '0.25']
    command += ['--train-json', 'annotations/instances_train.json']
    command += ['--cfg-options', f'work_dir={work_dir}']
    args = load_tool('train').parse_args([*map(str, command)])
    cfg = load_config(args.config, **config_values(args))
    cfg.dump(work_dir / OWN.name)
    cfg = read_config(work_dir / OWN.name)
    check_data(cfg, ('train', 'val', 'test'))
    assert len(DATASETS.build(dict(cfg.val_dataloader.dataset, pipeline=[]))) == 4
    assert cfg.test_evaluator.ann_file == str(work_dir / 'split' / 'val.json')


def test_compare_splits_once_for_all_runs(shapes_root, tmp_path):
    """Else upsamplers are compared on other images, or the folder is refused."""
    from dlu_mmdet.comparison import plan

    flags = ['--data', shapes_root, '--val-fraction', '0.25', '--seeds', '0', '1']
    flags += ['--train-json', 'annotations/instances_train.json']
    command = [OWN, '--work-dir', tmp_path / 'c', *flags]
    args = load_tool('compare').parse_args([*map(str, command)])
    for _ in range(2):
        data = prepare_data(args.work_dir, **data_values(args))
        upsamplers = [dict(type='bilinear'), dict(type='dlu')]
        planned = plan.plan(
            [OWN], [0, 1], args.work_dir, data=data, upsamplers=upsamplers
        )
    files = {run.cfg.test_dataloader.dataset.ann_file for run in planned}
    assert files == {str(tmp_path / 'c' / 'split' / 'val.json')} and len(planned) == 4


@pytest.mark.parametrize(
    'given, message',
    [
        (dict(val_fraction=0.0), 'must be between 0 and 1, as in 0.2, got 0'),
        (dict(val_fraction=1.0), 'must be between 0 and 1, as in 0.2, got 1'),
        (dict(val_fraction=-0.2), 'must be between 0 and 1, as in 0.2, got -0.2'),
        (dict(val_fraction=float('nan')), 'must be between 0 and 1'),
        (dict(val_fraction=0.01), 'leaves no image for validation'),
        (dict(val_fraction=0.2, split_seed=-1), '--split-seed must be 0 or more'),
        (dict(val_fraction=0.2, val_json='labels.json'), '--val-json labels.json name'),
        (dict(split_seed=1), '--split-seed must have --val-fraction'),
        (dict(data=None, train_json='a.json'), '--train-json must have --data'),
        (dict(data=None, val_fraction=0.2), '--val-fraction must have --data'),
        (dict(train_json='no.json'), 'no.json exists neither here nor in --data'),
        (dict(train_json='labels.json', val_json='no.json'), 'no.json exists neither'),
        (
            dict(train_json='labels.json', val_json='./labels.json'),
            'for training and for validation; add --val-fraction',
        ),
        (dict(train_json='list.json', val_json='labels.json'), 'list.json is a list'),
        (dict(train_json='list.json', val_fraction=0.2), 'list.json is a list'),
        (dict(train_json='labels.json'), 'val or valid .*: --val-fraction 0.2'),
    ],
)
def test_bad_flags(tmp_path, given, message):
    """One sentence that names the flag and what to do."""
    root = one_file(tmp_path / 'data')
    write(root / 'list.json', [])
    with pytest.raises((ValueError, FileNotFoundError), match=message) as info:
        data = prepare_data(tmp_path / 'run', **{'data': root, **given})
        use_dataset_folder(read_config(OWN), **data)
    assert len(str(info.value)) < 600 and '\n' not in str(info.value)
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('value', ['a', '20%', ''])
def test_a_fraction_that_is_no_number(value, capsys):
    parser = argparse.ArgumentParser()
    add_data(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(['--data', '.', '--val-fraction', value])
    assert 'argument --val-fraction: invalid float value' in capsys.readouterr().err


@pytest.mark.parametrize(
    'file, images',
    [
        ('annotations/instances_default.json', 'images/default'),  # CVAT
        ('annotations/instances_default.json', 'images'),
        ('result.json', 'images'),  # Label Studio
        ('labels.json', 'data'),  # FiftyOne
        ('_annotations.coco.json', '.'),
        ('all.json', 'all'),
    ],
)
def test_one_file_is_recognized(tmp_path, file, images):
    """The message of one command names the flags of the next one, which works."""
    root = one_file(tmp_path / 'd', file, images)
    with pytest.raises(FileNotFoundError) as info:
        use_dataset_folder(read_config(OWN), root)
    assert str(info.value).endswith('--val-fraction 0.2')
    data = prepare_data(tmp_path / 'run', root, val_fraction=0.2)
    use_dataset_folder(read_config(OWN), **data)


def test_absolute_names(tmp_path):
    """Else the folder of the images is one that does not exist."""
    root = one_file(tmp_path / 'd')
    write(root / 'labels.json', coco([str(root / f'data/{i}.png') for i in range(10)]))
    cfg = read_config(OWN)
    data = prepare_data(tmp_path / 'run', root, val_fraction=0.2)
    use_dataset_folder(cfg, **data)
    check_data(cfg, ('train', 'val', 'test'))


def test_several_files_for_one_split(tmp_path):
    """COCO's folder with two training files: the message is ready to paste."""
    root = tmp_path / 'my coco'
    for split in ('train', 'val'):
        one_file(root, f'annotations/instances_{split}2017.json', f'{split}2017')
    write(root / 'annotations' / 'captions_train2017.json', '{}')
    use_dataset_folder(read_config(OWN), root)
    for name in ('instances_train2017_8.json', 'person_keypoints_train2017.json'):
        one_file(root, f'annotations/{name}', 'train2017')
    with pytest.raises(ValueError, match='train2017_8.json; name it: ') as info:
        use_dataset_folder(read_config(OWN), root)
    flag, file = shlex.split(str(info.value).split('name it: ')[1])
    assert flag == '--train-json'
    cfg = read_config(OWN)
    # a file of which images are not in the folder of its name
    for name in ('instances_train2017.json', 'instances_train2017_8.json'):
        named = file.replace('instances_train2017.json', name)
        use_dataset_folder(cfg, root, train_json=named)
        assert cfg.train_dataloader.dataset.ann_file == f'annotations/{name}'
        assert cfg.train_dataloader.dataset.data_prefix.img == 'train2017/'
    with pytest.raises(ValueError, match='name the one to split, as in --train-json'):
        prepare_data(tmp_path / 'run', root, val_fraction=0.2)
    # files outside of the folder, which is that of the images
    (root / 'annotations').rename(tmp_path / 'elsewhere')
    named = {f'{s}_json': tmp_path / f'elsewhere/instances_{s}2017.json' for s in SPLIT}
    use_dataset_folder(cfg, root, **named)
    dataset = cfg.val_dataloader.dataset
    assert dataset.ann_file == str(named['val_json'])
    assert dataset.data_prefix.img == 'val2017/'


SPLIT = ('train', 'val')


def test_the_test_set_may_be_named_for_validation(tmp_path):
    """Roboflow's folder without valid/: two ways, both named."""
    for split in ('train', 'test'):
        one_file(tmp_path, f'{split}/_annotations.coco.json', split)
    with pytest.raises(FileNotFoundError) as info:
        use_dataset_folder(read_config(OWN), tmp_path)
    file = tmp_path / 'test' / '_annotations.coco.json'
    assert f'name it: --val-json {file}, or split the file' in str(info.value)
    use_dataset_folder(read_config(OWN), tmp_path, val_json=file)


# ---- other formats ------------------------------------------------------------------


def yolo(root, splits=('images',)):
    """Two images a split; the second has no objects. YOLO's class 1 is 'cat'."""
    for split in splits:
        for name in ('a b.png', 'c.png'):
            picture(root / split / name)
        label = root / split.replace('images', 'labels') / 'a b.txt'
        write(label, '1 0.5 0.5 0.5 0.25\n0 0.25 0.125 0.1 0.2\n')
    write(root / 'data.yaml', 'names: [zebra, cat]\n')


def voc(root, images='JPEGImages', xmls='Annotations', names=('a b', 'c')):
    box = '<xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax>'
    for name in names:
        picture(root / images / f'{name}.jpg')
        thing = '<object><name>cat</name><difficult>0</difficult><bndbox>'
        thing += box.format(1, 11, 20, 40) + '</bndbox></object>'
        other = thing.replace('cat', 'bat').replace('>20<', '>20.5<')
        write(
            root / xmls / f'{name}.xml',
            f'<annotation><filename>{name}.jpg</filename><size><width>60</width>'
            f'<height>40</height></size>{thing + other}</annotation>',
        )


def labelme(root, number=1, image='a b.png'):
    for index in range(number):
        name = image if number == 1 else f'{index}.png'
        if index < 3:
            picture(root / name)
        shapes = [
            dict(label='cat', shape_type='rectangle', points=[[30.5, 5], [10, 20.25]]),
            dict(label='bat', shape_type='polygon', points=[[1, 1], [9, 1], [9, 5.5]]),
            dict(label='cat', shape_type='circle', points=[[5, 5], [6, 6]]),
        ]
        write(
            root / f'{index}.json',
            dict(
                version='5.5.0',
                shapes=shapes,
                imagePath=name,
                imageData='A' * (100_000 if number == 1 else 9),
                imageHeight=40,
                imageWidth=60,
            ),
        )


def zipped(root):
    with zipfile.ZipFile(root / 'mine.zip', 'w') as file:
        file.writestr('a/labels.json', '{}')


@pytest.mark.parametrize(
    'make, message',
    [
        (yolo, 'is in YOLO format; convert it: dlu_mmdet convert .* --val-fraction'),
        (
            lambda root: yolo(root, ['train/images', 'valid/images', 'test/images']),
            "is in YOLO format; convert it: dlu_mmdet convert '.*/my data' --out "
            "'.*/my data-coco'$",
        ),
        (voc, 'is in Pascal VOC format; convert it: .* --val-fraction 0.2$'),
        (labelme, 'is in labelme format; convert it: .* --val-fraction 0.2$'),
        (
            lambda root: labelme(root / 'train', 5000),
            'is in labelme format; convert it: ',
        ),
        (lambda root: picture(root / 'data/a.png'), "FiftyOne's folder data and no la"),
        (
            lambda root: [
                write(root / f'{n}.json', {}) for n in ('metadata', 'samples')
            ],
            "files of FiftyOne's own; export",
        ),
        (
            lambda root: write(root / 'labels.json', dict(classes=['a'], labels={})),
            "labels.json, a file of FiftyOne's own",
        ),
        (
            lambda root: write(
                root / 'annotations.xml',
                '<?xml version="1.0"?><annotations></annotations>',
            ),
            'XML file of CVAT; export the task again as "COCO 1.0"',
        ),
        (lambda root: write(root / 'data/0.parquet', ''), 'Hugging Face dataset'),
        (lambda root: write(root / 'train/metadata.jsonl', ''), 'Hugging Face dataset'),
        (lambda root: write(root / 'a.tfrecord-00000-of-2', ''), 'has TFRecord files'),
        (lambda root: write(root / 'a.record', ''), 'has TFRecord files'),
        (zipped, 'has an archive; unpack it: python -m zipfile -e '),
        (lambda root: picture(root / 'x/a.png'), 'images and no annotations; draw'),
        (
            lambda root: one_file(root / 'x', 'annotations/instances_train.json'),
            "has a COCO file in a folder of it; name that: --data '.*/my data/x'",
        ),
        (lambda root: None, 'is empty'),
        (
            lambda root: write(root / 'a.json', [dict(image_id=1, score=0.5)]),
            'a.json, a list of detections',
        ),
        (
            lambda root: write(root / 'a.json', [dict(id=1, data={}, annotations=[])]),
            'a list of tasks, as Label Studio',
        ),
        (
            lambda root: write(
                root / 'a.json', [dict(image='', x=dict(coordinates=1))]
            ),
            'a.json, a CreateML file',
        ),
        (lambda root: write(root / 'a.json', [1]), 'a.json, a list, not a COCO file'),
        (
            lambda root: write(root / 'via.json', {'_via_img_metadata': {}}),
            'VGG Image Annotator',
        ),
        (
            lambda root: [
                write(
                    root / f'lvis_v1_{s}.json', dict(images=[dict(neg_category_ids=0)])
                )
                for s in SPLIT
            ],
            'lvis_v1_train.json is an LVIS file',
        ),
    ],
)
def test_other_formats_are_named(tmp_path, make, message):
    """Else the message asks for a file that people of that format do not have."""
    root = tmp_path / 'my data'
    root.mkdir()
    make(root)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as info:
        use_dataset_folder(read_config(OWN), root)
    assert len(str(info.value)) < 500 + 3 * len(str(root))


def test_files_in_the_place_of_a_folder(tmp_path):
    one_file(tmp_path / 'd')
    zipped(tmp_path)
    for file, message in (
        ('mine.zip', f'is an archive; .*python -m zipfile -e {tmp_path}/mine.zip'),
        ('d/labels.json', '--data .*/d --train-json .*/d/labels.json'),
        ('d/data/0.png', f'name its folder: --data {tmp_path}/d/data'),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            use_dataset_folder(read_config(OWN), tmp_path / file)


def test_lvis_with_file_names_is_no_coco_file(tmp_path):
    """LVIS 0.5 has COCO's keys, and would be scored without its own rules."""
    one_file(tmp_path, 'train.json')
    content = coco(['0.png'])
    content['images'][0]['not_exhaustive_category_ids'] = []
    write(tmp_path / 'val.json', content)
    with pytest.raises(ValueError, match='val.json is an LVIS file'):
        use_dataset_folder(read_config(OWN), tmp_path)


# ---- conversion ---------------------------------------------------------------------


def objects(out, split):
    """Boxes by image and class, in their order."""
    content = json.loads((out / f'annotations/instances_{split}.json').read_text())
    names = {c['id']: c['name'] for c in content['categories']}
    images = {i['id']: i for i in content['images']}
    for image in images.values():
        assert (out / split / image['file_name']).is_file()
    found = [
        (images[a['image_id']]['file_name'], names[a['category_id']], a['bbox'])
        for a in content['annotations']
    ]
    return content, found


def test_yolo(tmp_path, needs_supervision):
    root, out = tmp_path / 'my yolo', tmp_path / 'out'
    yolo(root, ['images/train', 'images/val'])
    picture(root / 'images' / 'val' / 'sub' / 'turned.jpg', turned=True)
    write(
        root / 'labels' / 'val' / 'sub' / 'turned.txt',
        '0 0.1 0.1 0.3 0.1 0.2 0.4\n1 0.5 0.5 0.2 0.2\n0 0.5 0.5 0.2 0.1 0.9\n',
    )
    load_tool('convert').main([str(root), '--out', str(out)])
    train, found = objects(out, 'train')
    assert [c['name'] for c in train['categories']] == ['zebra', 'cat']
    assert [i['file_name'] for i in train['images']] == ['a b.png', 'c.png']
    assert found == [
        ('a b.png', 'cat', [15, 15, 30, 10]),
        ('a b.png', 'zebra', [12, 1, 6, 8]),
    ]
    val, found = objects(out, 'val')
    # the size as it is displayed, 60 x 40
    assert (val['images'][-1]['width'], val['images'][-1]['height']) == (60, 40)
    assert [(n, c) for n, c, _ in found[2:]] == [
        ('sub/turned.jpg', c) for c in ('zebra', 'cat', 'zebra')
    ]
    boxes = [[6, 4, 12, 12], [24, 16, 12, 8], [24, 18, 12, 4]]
    assert np.allclose([box for _, _, box in found[2:]], boxes, atol=2e-3)
    polygons = [ann['segmentation'] for ann in val['annotations'][2:4]]
    assert np.allclose(polygons[0], [[6, 4, 18, 4, 12, 16]])
    assert np.allclose(polygons[1], [[24, 16, 36, 16, 36, 24, 24, 24]], atol=2e-3)
    use_dataset_folder(read_config(OWN), out)


@pytest.mark.parametrize(
    'yaml, splits',
    [
        # Roboflow's, whose paths do not exist; of another machine; lists of files
        ('train: ../train/images\nval: ../valid/images', ['train', 'valid']),
        ('path: /no\ntrain: /no/train\nval: /no/valid', ['train', 'valid']),
        ('train: one/images\nval: [two/images]', ['one', 'two']),
        ('train: one.txt\nval: two.txt', ['one', 'two']),
    ],
)
def test_splits_of_yolo(tmp_path, yaml, splits, needs_supervision):
    root = tmp_path / 'd'
    yolo(root, [f'{split}/images' for split in splits])
    write(root / 'data.yaml', f'{yaml}\nnames:\n  0: zebra\n  1: cat\n')
    for split in splits:
        write(root / f'{split}.txt', f'./{split}/images/a b.png\n')
    assert "d-coco'" not in formats.advice(root)
    assert '--val-fraction' not in formats.advice(root)
    convert(root, tmp_path / 'out')
    assert {p.stem for p in (tmp_path / 'out/annotations').iterdir()} == {
        'instances_train',
        'instances_val',
    }


def test_yolo_without_yaml(tmp_path, needs_supervision):
    """Label Studio's and Darknet's: names in a text file; labels beside images."""
    root = tmp_path / 'd'
    yolo(root, ['data'])
    (root / 'data.yaml').unlink()
    with pytest.raises(ValueError, match='names no classes; add data.yaml'):
        convert(root, tmp_path / 'out')
    write(root / 'obj.names', 'zebra\ncat\n')
    told = convert(root, tmp_path / 'out', val_fraction=0.5)
    assert any('1 images without a label file' in line for line in told)
    assert {p.name for p in (tmp_path / 'out').iterdir()} == {
        *('annotations', 'train', 'val')
    }


def test_pascal_voc(tmp_path, needs_supervision):
    """Corners count from 1 and are inclusive: 1 to 20 are the 20 pixels 0 to 19."""
    voc(tmp_path / 'VOC2007', names=('a b', 'c', 'd', 'unlisted'))
    for split, names in (('train', 'a b\r\n'), ('val', 'c\nd\n'), ('trainval', 'a b')):
        write(tmp_path / f'VOC2007/ImageSets/Main/{split}.txt', names)
    told = convert(tmp_path / 'VOC2007', tmp_path / 'out')
    assert told[1:] == ['1 XML files that no list of a split has, left out']
    content, found = objects(tmp_path / 'out', 'train')
    assert [c['name'] for c in content['categories']] == ['bat', 'cat']
    assert found == [
        ('a b.jpg', 'cat', [0, 10, 20, 30]),
        ('a b.jpg', 'bat', [0, 10, 20.5, 30]),
    ]
    assert [i['file_name'] for i in objects(tmp_path / 'out', 'val')[0]['images']] == [
        *('c.jpg', 'd.jpg')
    ]


def test_corners_that_count_from_zero_are_told(tmp_path, needs_supervision):
    voc(tmp_path / 'd', 'train', 'train')
    voc(tmp_path / 'd', 'valid', 'valid', names=['e'])
    for file in (tmp_path / 'd').glob('*/*.xml'):
        file.write_text(file.read_text().replace('<xmin>1<', '<xmin>0<'))
    told = convert(tmp_path / 'd', tmp_path / 'out')
    assert any(line.startswith('6 boxes begin at 0') for line in told)
    assert len(objects(tmp_path / 'out', 'val')[1]) == 2


@pytest.mark.parametrize('place', ['a b.png', '/no/such/a b.png', r'C:\x\a b.png'])
def test_labelme(tmp_path, place, needs_supervision):
    root = tmp_path / 'd'
    labelme(root)
    content = json.loads((root / '0.json').read_text())
    content['imagePath'] = place
    two = [[[20, 20], [30, 20], [30, 30]], [[40, 20], [50, 20], [50, 30]]]
    content['shapes'] += [
        dict(label='bat', shape_type='polygon', points=points, group_id=7)
        for points in two
    ]
    write(root / '0.json', content)
    write(root / 'other.json', {})
    told = convert(root, tmp_path / 'out')
    assert "1 shapes of the type 'circle', left out" in told
    assert '1 JSON files that are not of labelme, left out' in told
    content, found = objects(tmp_path / 'out', 'all')
    assert found == [
        ('a b.png', 'cat', [10, 5, 20.5, 15.25]),
        ('a b.png', 'bat', [1, 1, 8, 4.5]),
        ('a b.png', 'bat', [20, 20, 30, 10]),
    ]
    assert content['annotations'][1]['segmentation'] == [[1, 1, 9, 1, 9, 5.5]]
    parts = content['annotations'][2]['segmentation']
    assert parts == [np.ravel(part).tolist() for part in two]
    with pytest.raises(FileNotFoundError, match='--val-fraction 0.2'):
        use_dataset_folder(read_config(OWN), tmp_path / 'out')


def test_bad_conversions(tmp_path, capsys, needs_supervision):
    """One sentence, and nothing half-written."""
    root, out = tmp_path / 'd', tmp_path / 'out'
    with pytest.raises(FileNotFoundError, match='d does not exist'):
        convert(root, out)
    yolo(root, ['train/images', 'val/images'])
    for given, message in (
        (dict(val_fraction=2.0), '--val-fraction must be between'),
        (dict(val_fraction=0.2, split_seed=-1), '--split-seed must be'),
        (dict(val_fraction=0.2), 'already has a validation set of 2 images'),
        (dict(out=root), 'exists and is not empty; name a new folder'),
        (dict(format='voc'), 'has no .xml files'),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            convert(root, **{'out': out, **given})
    label = root / 'val' / 'labels' / 'a b.txt'
    for text, message in (
        ('1 0.5 0.5 0.2\n', 'a b.txt cannot be read as YOLO .*at least 5 tokens'),
        ('2 0.5 0.5 0.2 0.2\n', 'class 2 is not among the 2 names'),
        ('-1 0.5 0.5 0.2 0.2\n', 'class -1 is not among the 2 names'),
    ):
        write(label, text)
        with pytest.raises(ValueError, match=message):
            convert(root, out, format='yolo')
    (root / 'val' / 'images' / 'a b.png').write_text('')
    with pytest.raises(ValueError, match='a b.png is not an image'):
        convert(root, out, format='yolo')
    one_file(tmp_path / 'coco')
    with pytest.raises(ValueError, match='COCO files need no conversion'):
        convert(tmp_path / 'coco', out)
    assert {p.name for p in tmp_path.iterdir()} == {'d', 'coco'}
    with pytest.raises(ValueError, match='--out .* exists and is not empty'):
        load_tool('convert').main([str(root), '--out', str(root)])
    for flags, message in (
        (['--out', str(out), '--split-seed', '1'], 'must have --val-fraction'),
        ([], 'required: --out'),
        (['--out', str(out), '--format', 'coco'], 'invalid choice'),
    ):
        with pytest.raises(SystemExit) as info:
            load_tool('convert').main([str(root), *flags])
        assert info.value.code == 2
        assert re.search(message, capsys.readouterr().err)


def test_without_supervision(tmp_path, monkeypatch):
    """Else people do not learn which package is missing."""
    yolo(tmp_path / 'd')
    monkeypatch.setitem(sys.modules, 'supervision', None)
    with pytest.raises(ValueError, match=f"pip install '{converting.REQUIREMENT}'$"):
        convert(tmp_path / 'd', tmp_path / 'out')
    monkeypatch.setitem(sys.modules, 'supervision', SimpleNamespace(__version__='0.25'))
    with pytest.raises(ValueError, match='has 0.25'):
        convert(tmp_path / 'd', tmp_path / 'out')
    for name in ('convert', 'test'):
        text = (ROOT / 'requirements' / f'{name}.txt').read_text()
        assert converting.REQUIREMENT in text


def test_the_command_of_the_message(tmp_path, needs_supervision):
    """--data names one command, which names the next one."""
    yolo(tmp_path / 'my data', ['images', 'more/images'])
    with pytest.raises(ValueError) as info:
        use_dataset_folder(read_config(OWN), tmp_path / 'my data')
    command = shlex.split(re.search('dlu_mmdet convert .*', str(info.value)).group())
    told = run('-m', *command).stdout
    command = shlex.split(told.split('next: ')[1])
    assert command[:3] == ['dlu_mmdet', 'train', f'dlu_mmdet::_base_/{OWN.name}']
    use_dataset_folder(read_config(command[2]), command[4])
    assert (tmp_path / 'my data-coco').is_dir()


@pytest.mark.parametrize(
    'size, told',
    [
        ('<width>60</width><height>40</height>', False),
        ('<width>60</width>', False),
        ('<width>60</width><height>50</height>', True),
    ],
)
def test_a_size_that_a_voc_file_lacks_is_not_another(
    tmp_path, needs_supervision, size, told
):
    voc(tmp_path / 'data', names=['a'])
    file = tmp_path / 'data/Annotations/a.xml'
    whole = '<width>60</width><height>40</height>'
    file.write_text(file.read_text().replace(whole, size))
    lines = convert(tmp_path / 'data', tmp_path / 'out')
    assert any('name another size' in line for line in lines) == told
