"""Data sets of real images from copies of their repositories, made small here."""

import dataclasses
import json
import re
import subprocess

import cv2
import numpy as np
import pytest
from conftest import ROOT
from mmengine.config import Config
from pycocotools.coco import COCO

from dlu_mmdet.datasets import check_data, make_real
from dlu_mmdet.datasets.make_real import SETS


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content)
    else:
        cv2.imwrite(str(path), content)


@pytest.fixture
def scans(tmp_path):
    """DeepPCB with boards of one, two and four scans in either list."""
    clone = tmp_path / 'scans'
    for listed, first in (('trainval', 0), ('test', 4)):
        lines = []
        for board, number in (('30000', 4), ('10000', 1), ('20000', 2)):
            for name in [f'{board}{first + i:03}' for i in range(number)]:
                image = f'group{board}/{board}/{name}.jpg'
                labels = f'group{board}/{board}_not/{name}.txt'
                lines.append(f'{image} {labels}')
                write(clone / 'PCBData' / labels, '10 20 40 60 3\n0 0 8 8 6\n')
                scan = np.full((64, 64, 3), 200, np.uint8)
                write(clone / 'PCBData' / image.replace('.jpg', '_test.jpg'), scan)
        write(clone / 'PCBData' / f'{listed}.txt', '\n'.join(lines) + '\n')
    return clone


def counted(monkeypatch, name, **counts):
    made = dataclasses.replace(SETS[name], counts=counts)
    monkeypatch.setitem(SETS, name, made)


def test_boards_take_turns(scans):
    """Else val holds other scans than the published figures are of."""
    val = [p.name[:-4] for p in SETS['deeppcb'].pictures(scans, 'val')]
    # in turn 10000004 20000004 30000004 20000005 30000005 30000006 30000007
    assert val == ['10000004', '30000004', '30000005', '30000007']
    assert len(list(SETS['deeppcb'].pictures(scans, 'train'))) == 7


def test_a_set_is_made_once_and_counted(scans, tmp_path, monkeypatch, capsys):
    """Else a stranger's data/deeppcb is not the one that the configs were tried on."""
    counted(monkeypatch, 'deeppcb', train=(7, 7, 7, 0), val=(4, 4, 4, 0))
    out = tmp_path / 'deeppcb'
    arguments = ['deeppcb', '--clone', str(scans), str(out)]
    make_real.main(arguments)
    assert 'train 7 images, 14 objects: 7 small, 7 medium, 0 large' in (
        capsys.readouterr().out
    )
    coco = COCO(str(out / 'annotations/instances_val.json'))
    first = coco.loadAnns(1)[0]
    assert coco.loadCats(first['category_id'])[0]['name'] == 'mousebite'
    assert first['bbox'] == [10, 20, 30, 40]
    assert (out / 'val/10000004.jpg').is_file()
    make_real.main(arguments)
    assert 'left alone' in capsys.readouterr().out
    (out / 'val/10000004.jpg').unlink()
    with pytest.raises(FileExistsError, match='something else than deeppcb'):
        make_real.make_real('deeppcb', out, scans)
    (out / 'annotations/instances_val.json').write_bytes(bytes(50))
    with pytest.raises(ValueError, match=r'instances_val\.json is damaged'):
        make_real.make_real('deeppcb', out, scans)


def test_other_counts_are_refused(scans, tmp_path, capsys):
    """Else the AP of a set that changed since is taken for that of ours."""
    out = tmp_path / 'made' / 'deeppcb'
    with pytest.raises(SystemExit):
        make_real.main(['deeppcb', str(out), '--clone', str(scans)])
    assert 'the clone must be at 08e98c4' in capsys.readouterr().err
    assert not list(out.parent.iterdir())
    with pytest.raises(ValueError, match='has no folder BCCD'):
        make_real.make_real('bccd', out, scans)


def test_a_repository_that_cannot_be_fetched(tmp_path, monkeypatch):
    """Else git's traceback is all that a machine without a network says."""
    away = dataclasses.replace(SETS['bccd'], repository=str(tmp_path / 'nowhere'))
    monkeypatch.setitem(SETS, 'bccd', away)
    with pytest.raises(ValueError, match='nowhere cannot be fetched .* --clone'):
        make_real.make_real('bccd', tmp_path / 'made' / 'bccd')
    assert not list((tmp_path / 'made').iterdir())


def test_boxes_without_area_are_left_out(tmp_path):
    """Else CocoMetric counts objects that nobody can find."""

    def cell(name, *corners):
        keys = ('xmin', 'ymin', 'xmax', 'ymax')
        box = ''.join(f'<{k}>{v}</{k}>' for k, v in zip(keys, corners))
        return f'<object><name>{name}</name><bndbox>{box}</bndbox></object>'

    cells = cell('Platelets', 5, 6, 25, 46) + cell('RBC', 0, 0, 0, 0)
    write(tmp_path / 'BCCD/ImageSets/Main/val.txt', 'a\n')
    write(tmp_path / 'BCCD/Annotations/a.xml', f'<annotation>{cells}</annotation>')
    (picture,) = SETS['bccd'].pictures(tmp_path, 'val')
    (thing,) = picture.objects
    assert (thing['category_id'], thing['bbox']) == (3, [5, 6, 20, 40])


def test_nuclei_are_cropped_with_their_masks(tmp_path):
    """Else masks lie beside their nuclei, or slivers at the edge count as misses."""
    names = [f'nucleus{number}' for number in range(20)]
    nucleus = np.zeros((400, 300), np.uint8)
    nucleus[150:170, 100:130] = 255
    for name in names:
        folder = tmp_path / 'stage1_train' / name
        write(folder / 'images' / f'{name}.png', cv2.merge([nucleus] * 3))
        write(folder / 'masks' / 'a.png', nucleus)
        for number in range(2):
            edge = np.zeros_like(nucleus)
            edge[[0, -1][number], :60] = 255
            write(folder / 'masks' / f'edge{number}.png', edge)
    splits = {s: list(SETS['nuclei'].pictures(tmp_path, s)) for s in ('train', 'val')}
    assert {p.name[:-4] for p in splits['val']} < {*names}
    assert len(splits['train']) > len(splits['val']) > 0
    assert len(splits['train']) + len(splits['val']) < 20
    for picture in splits['train'] + splits['val']:
        assert picture.image.shape == (320, 300, 3)
        # a crop of 320 rows of 400 holds one edge at most
        inside, *edges = picture.objects
        assert len(edges) <= 1
        x, y, w, h = inside['bbox']
        assert (w, h, inside['area']) == (30, 20, 600)
        assert picture.image[y : y + h, x : x + w].min() == 255
        assert picture.image[:, :, 0].sum() == 255 * 600
        json.dumps(picture.objects)


def test_the_hint_for_a_set_that_is_not_there(config, tmp_path):
    """Else a config of real images asks for a folder that nobody can make."""
    dataset = config.train_dataloader.dataset
    dataset.update(type='CocoDataset', data_root=str(tmp_path / 'nuclei') + '/')
    with pytest.raises(FileNotFoundError, match='datasets.make_real nuclei /.*nuclei'):
        check_data(config, ('train',))


@pytest.mark.parametrize('name', SETS)
def test_the_demo_on_real_images(name):
    """Else `make demo DATA=...` asks for a config or a module that is not there."""
    command = ['make', '--dry-run', 'demo', f'DATA={name}']
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    assert f'-m dlu_mmdet.datasets.make_real {name}\n' in printed
    config = re.search(r'compare (\S+)', printed).group(1)
    cfg = Config.fromfile(ROOT / config)
    assert cfg.train_dataloader.dataset.data_root == f'data/{name}/'
    assert tuple(cfg.test_dataloader.dataset.metainfo.classes) == SETS[name].classes
