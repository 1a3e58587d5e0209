"""What runs read: files that change between two runs of a comparison are refused."""

import json
import shutil

import pytest
import torch
from conftest import SHAPES_DLU, data_options, shapes_config
from helpers.fake_tools import make_compare, make_tools
from mmengine.config import Config

from dlu_mmdet.comparison import inputs, plan, processes, runs, slurm

NEAREST = shapes_config('nearest')


@pytest.fixture
def root(shapes_root, tmp_path):
    """A copy of the data, which a test may change."""
    return shutil.copytree(shapes_root, tmp_path / 'data')


@pytest.fixture
def options(root, small):
    names = ('instances_train.json', 'instances_val.json', 'train/', 'val/')
    return {**small, **data_options(root, *names)}


def move_boxes(file):
    """Every box, by 20 pixels: the same counts and the same size of the file."""
    content = json.loads(file.read_text())
    for ann in content['annotations']:
        ann['bbox'][0] += 20
    file.write_text(json.dumps(content))


def swap_link(file):
    """The file is a link, and points to another one now."""
    other = file.with_name(f'other-{file.name}')
    shutil.copy(file, other)
    move_boxes(other)
    kept = file.with_name(f'kept-{file.name}')
    file.rename(kept)
    file.symlink_to(other)


def longer(file):
    file.write_bytes(file.read_bytes() + b'\0')


def fingerprint_after(cfg, change, file):
    """Keys that say so when a file has changed."""
    before = inputs.fingerprint(cfg)
    change(file)
    after = inputs.fingerprint(cfg)
    assert before.keys() == after.keys()
    return {key for key in before if before[key] != after[key]}


@pytest.mark.parametrize(
    'name, change, expected',
    [
        ('annotations/instances_train.json', move_boxes, {'train ann_file'}),
        ('annotations/instances_train.json', swap_link, {'train ann_file'}),
        (
            'annotations/instances_val.json',
            move_boxes,
            {'val ann_file', 'test ann_file', 'val_evaluator', 'test_evaluator'},
        ),
        ('train/000003.png', longer, {'train images'}),
        ('val/000003.png', longer, {'val images', 'test images'}),
        ('weights.pth', longer, {'load_from'}),
        ('resnet.pth', longer, {'model.backbone.init_cfg.checkpoint'}),
        ('classes.txt', longer, {'train metainfo.classes'}),
        # of no use to the run
        ('annotations/notes.json', longer, set()),
    ],
)
def test_a_changed_file_is_told(root, options, name, change, expected):
    cfg = Config.fromfile(SHAPES_DLU)
    cfg.merge_from_dict(options)
    for each in ('weights.pth', 'resnet.pth', 'classes.txt', 'annotations/notes.json'):
        (root / each).write_text('1')
    cfg.load_from = str(root / 'weights.pth')
    checkpoint = f'file://{root}/resnet.pth'
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=checkpoint)
    cfg.train_dataloader.dataset.metainfo = dict(classes=str(root / 'classes.txt'))
    names = sorted(path.name for path in (root / 'train').iterdir())
    if name.endswith('.png'):
        name = f'{name.partition("/")[0]}/{names[3]}'
    changed = fingerprint_after(cfg, change, root / name)
    short = {
        key.replace('_dataloader.dataset', '').replace('.ann_file', ' ann_file')
        for key in changed
    }
    short = {key.replace('_evaluator ann_file', '_evaluator') for key in short}
    short = {key.replace('.metainfo', ' metainfo') for key in short}
    assert short == expected


def test_every_wrapped_data_set_is_read(root, options):
    """Repeated, balanced, concatenated; of VOC the files in the folder."""
    cfg = Config.fromfile(SHAPES_DLU)
    cfg.merge_from_dict(options)
    one = cfg.train_dataloader.dataset
    other = {**one, 'ann_file': 'annotations/second.json'}
    (root / 'VOC' / 'Annotations').mkdir(parents=True)
    (root / 'VOC' / 'Annotations' / '1.xml').write_text('<xmin>10</xmin>')
    (root / 'VOC' / 'train.txt').write_text('1')
    shutil.copy(root / one.ann_file, root / 'annotations' / 'second.json')
    voc = dict(
        type='VOCDataset',
        data_root=f'{root}/',
        ann_file='VOC/train.txt',
        data_prefix=dict(sub_data_root='VOC/'),
    )
    balanced = dict(type='ClassBalancedDataset', oversample_thr=0.5, dataset=other)
    cfg.train_dataloader.dataset = dict(
        type='MultiImageMixDataset',
        pipeline=[],
        dataset=dict(
            type='ConcatDataset',
            datasets=[one, dict(type='RepeatDataset', times=2, dataset=balanced), voc],
        ),
    )
    where = 'train_dataloader.dataset.dataset.datasets'
    changed = fingerprint_after(cfg, move_boxes, root / 'annotations' / 'second.json')
    assert changed == {f'{where}.1.dataset.dataset.ann_file'}
    xml = root / 'VOC' / 'Annotations' / '1.xml'
    changed = fingerprint_after(cfg, lambda f: f.write_text('<xmin>30</xmin>'), xml)
    assert changed == {f'{where}.2.data_prefix.sub_data_root'}


def test_names_are_those_of_the_file(tmp_path):
    """Found in the text, as parsing finds them."""
    images = [dict(file_name=n) for n in ('a "b".png', 'ü.png', 'c\\d.png', 'a/é.jpg')]
    for ascii_only in (True, False):
        file = tmp_path / f'{ascii_only}.json'
        text = json.dumps(dict(images=images), ensure_ascii=ascii_only)
        file.write_text(text, encoding='utf-8')
        expected = sorted(image['file_name'] for image in images)
        assert inputs.image_names(file) == expected
    (tmp_path / 'empty.json').touch()
    assert inputs.image_names(tmp_path / 'empty.json') == []


# ---- in a comparison ---------------------------------------------------------------


@pytest.fixture
def compare(tmp_path, options, monkeypatch):
    return make_compare(monkeypatch, tmp_path, options)


def test_other_annotations_are_not_averaged_with_the_former(
    compare, root, tmp_path, capsys
):
    assert compare(SHAPES_DLU, NEAREST) == 0
    file = root / 'annotations' / 'instances_val.json'
    text = file.read_text()
    move_boxes(file)
    with pytest.raises(ValueError, match=r'different files.*\n.*instances_val\.json'):
        compare(SHAPES_DLU, NEAREST, '--seeds', 0, 1)
    # what is finished is reported where the data are not
    assert compare(SHAPES_DLU, NEAREST, '--report-only') == 0
    # but not evaluated anew with other annotations
    next(tmp_path.glob('work/*nearest*/seed0/result.json')).unlink()
    assert compare(SHAPES_DLU, NEAREST, '--report-only') == 1
    assert 'made for other annotations' in capsys.readouterr().err
    file.write_text(text)
    assert compare(SHAPES_DLU, NEAREST, '--seeds', 0, 1) == 0


def test_moved_data_are_reported(compare, root, tmp_path, capsys):
    """The command of the comparison with --report-only and --data."""
    assert compare(SHAPES_DLU, NEAREST) == 0
    before = json.loads((tmp_path / 'work' / 'comparison.json').read_text())
    moved = root.rename(tmp_path / 'moved')
    command = [SHAPES_DLU, NEAREST, '--report-only']
    assert compare(*command) == 0
    told = capsys.readouterr().err
    assert 'is not there; put it back, or give --data FOLDER, the folder it' in told
    assert 'errors' not in (tmp_path / 'work' / 'comparison.json').read_text()
    assert compare(*command, '--data', moved) == 0
    assert not capsys.readouterr().err
    after = json.loads((tmp_path / 'work' / 'comparison.json').read_text())
    assert after['errors'] == before['errors'] and after['rows'] == before['rows']
    # to train with other data is another comparison
    with pytest.raises(ValueError, match='belongs to another version of'):
        compare(*command[:2], '--data', moved)
    # other annotations than those of the test
    move_boxes(moved / 'annotations' / 'instances_val.json')
    assert compare(*command, '--data', moved) == 0
    assert 'is not the annotation file' in capsys.readouterr().err


def test_a_comparison_of_an_earlier_version_goes_on(compare, tmp_path, capsys):
    """Without hashes, with a sentence that says so."""
    assert compare(SHAPES_DLU) == 0
    assert 'earlier version' not in capsys.readouterr().err
    (file,) = tmp_path.glob('work/*/seed0/result.json')
    result = json.loads(file.read_text())
    del result['inputs']
    file.write_text(json.dumps(result))
    assert compare(SHAPES_DLU, '--seeds', 0, 1) == 0
    assert '1 of 2 runs, ' in (said := capsys.readouterr().err)
    assert 'earlier version, which kept no hash' in said


def test_other_data_are_not_joined(compare, root, tmp_path):
    assert compare(SHAPES_DLU) == 0
    shutil.move(tmp_path / 'work', tmp_path / 'first')
    move_boxes(root / 'annotations' / 'instances_train.json')
    assert compare(NEAREST) == 0
    with pytest.raises(ValueError, match=r'different files.*\n.*instances_train\.json'):
        compare('--join', tmp_path / 'first', tmp_path / 'work')


def test_a_half_finished_run_does_not_go_on_with_other_data(
    options, root, tmp_path, monkeypatch
):
    """Its own process sees it, as on a node of Slurm."""
    planned = plan.plan([SHAPES_DLU], [0], tmp_path / 'work', options)[0]
    monkeypatch.setenv('SECONDS', '0')
    make_tools(monkeypatch, tmp_path)
    list(processes.execute(planned))
    planned.result_file.unlink()
    assert planned.state == 'half-finished'
    file = root / 'annotations' / 'instances_train.json'
    text = file.read_text()
    move_boxes(file)
    monkeypatch.setattr(slurm, '_SIGNAL_SECONDS', 0)
    with pytest.raises(ValueError, match=r'different files.*\n.*instances_train\.json'):
        slurm.Job(planned, runs.Launch())()
    assert not planned.result_file.exists()
    file.write_text(text)
    slurm.Job(planned, runs.Launch())()
    assert planned.state == 'finished'


def test_data_that_change_while_a_run_is_at_work(options, root, tmp_path, monkeypatch):
    """No result; the run cannot go on from checkpoints of both."""
    planned = plan.plan([SHAPES_DLU], [0], tmp_path / 'work', options)[0]
    monkeypatch.setenv('SECONDS', '0')
    make_tools(monkeypatch, tmp_path)
    file = root / 'annotations' / 'instances_val.json'
    text = file.read_text()
    events = processes.execute(planned)
    assert 'Epoch(train)' in next(events)
    move_boxes(file)
    with pytest.raises(ValueError, match='changed while .*seed0(.|\n)*instances_val'):
        list(events)
    assert planned.state == 'half-finished'
    file.write_text(text)
    with pytest.raises(ValueError, match='different files'):
        list(processes.execute(planned))


def test_other_weights_to_start_from(options, root, tmp_path, monkeypatch):
    """Of one config; another config may start from others."""
    torch.save({}, root / 'start.pth')
    for name in ('a', 'b'):
        cfg = Config.fromfile(SHAPES_DLU)
        cfg.load_from = str(root / 'start.pth') if name == 'a' else None
        cfg.dump(tmp_path / f'{name}.py')
    configs = [tmp_path / 'a.py', tmp_path / 'b.py']
    monkeypatch.setenv('SECONDS', '0')
    make_tools(monkeypatch, tmp_path)
    planned = plan.plan(configs, [0, 1], tmp_path / 'work', options)
    for each in planned[:2]:
        list(processes.execute(each))
    longer(root / 'start.pth')
    with pytest.raises(ValueError, match=r'different files.*\n.*load_from.*start\.pth'):
        list(processes.execute(planned[2]))
    list(processes.execute(planned[3]))


def test_other_code_is_said(options, tmp_path, monkeypatch, compare, capsys):
    """A comment changes the hash as well, so it is no reason to refuse."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'own_module.py').write_text('')
    cfg = Config.fromfile(SHAPES_DLU)
    cfg.custom_imports = dict(imports=['dlu_mmdet', 'own_module'])
    cfg.dump(tmp_path / 'own.py')
    assert compare(tmp_path / 'own.py') == 0
    (tmp_path / 'own_module.py').write_text('x = 1')
    assert compare(tmp_path / 'own.py', '--seeds', 0, 1) == 0
    assert (
        'different code' in (said := capsys.readouterr().err) and 'own_module' in said
    )
