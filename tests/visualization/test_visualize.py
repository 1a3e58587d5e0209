"""The pictures of tools/visualize.py, and the detections in them."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import mmcv
import numpy as np
import pytest
import torch
from conftest import load_tool, shapes_config
from matplotlib.colors import to_rgb
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from PIL import Image

import dlu_mmdet  # noqa: F401
from dlu_mmdet.evaluation.matching import match_detections
from dlu_mmdet.visualization import show
from dlu_mmdet.visualization.detections import KEPT_COLORS, STYLES, draw_detections
from dlu_mmdet.visualization.features import Recording, Upsampling
from dlu_mmdet.visualization.figures import new_figure, save_figure
from dlu_mmdet.visualization.images import load_image
from dlu_mmdet.visualization.upsampling import map_colors

ROOT = Path(__file__).parents[2]
CLASSES = ('disc', 'cross')
# per image x y w h, class, crowd; the second image has no objects
OBJECTS = {
    10: [([8, 8, 40, 40], 0, 0), ([60, 60, 30, 20], 1, 0)],
    20: [],
    30: [([16, 24, 24, 32], 1, 0), ([50, 10, 40, 60], 0, 1)],
}


@pytest.fixture(scope='module')
def tool():
    return show


@pytest.fixture(scope='module')
def detectors(tmp_path_factory):
    """A data set of noise, and a config and checkpoint of bilinear and of DLU."""
    folder = tmp_path_factory.mktemp('detectors')
    rng = np.random.default_rng(0)
    annotations = []
    for image, objects in OBJECTS.items():
        noise = rng.integers(0, 255, (96, 112, 3), dtype=np.uint8)
        mmcv.imwrite(noise, str(folder / f'{image}.png'))
        for bbox, label, crowd in objects:
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image,
                    category_id=label + 1,
                    bbox=bbox,
                    area=bbox[2] * bbox[3],
                    iscrowd=crowd,
                )
            )
    content = dict(
        images=[
            dict(id=i, file_name=f'{i}.png', width=112, height=96) for i in OBJECTS
        ],
        categories=[dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)],
        annotations=annotations,
    )
    (folder / 'annotations.json').write_text(json.dumps(content))

    init_default_scope('mmdet')
    paths = {}
    for upsampler in ('bilinear', 'dlu'):
        cfg = Config.fromfile(shapes_config(upsampler))
        cfg.test_dataloader.dataset.merge(
            dict(
                type='CocoDataset',
                data_root=str(folder),
                ann_file='annotations.json',
                data_prefix=dict(img=''),
                metainfo=dict(classes=CLASSES),
            )
        )
        cfg.model.roi_head.bbox_head.num_classes = len(CLASSES)
        config = folder / f'{upsampler}.py'
        cfg.dump(config)
        torch.manual_seed(0)
        model = MODELS.build(cfg.model)
        model.init_weights()
        checkpoint = folder / f'{upsampler}.pth'
        meta = dict(dataset_meta=dict(classes=CLASSES, palette=[(0, 0, 0)] * 2))
        torch.save(dict(state_dict=model.state_dict(), meta=meta), checkpoint)
        paths[upsampler] = [str(config), str(checkpoint)]
    return paths


def call(tool, monkeypatch, *args, command='detections'):
    load_tool('visualize').main([command, *map(str, args)])


def answer(tool, monkeypatch, answers):
    """Let detectors find what is written: x1 y1 x2 y2, class, score.

    By the image, for all detectors, or by the upsampler and the image.
    """

    def infer(model, path):
        upsampler = model.cfg.model.neck.upsample_cfg.type
        of_model = answers.get(upsampler, answers)
        boxes, labels, scores = zip(*of_model[Path(path).stem])
        return None, DetDataSample(
            image=load_image(model, path)['image'],
            pred_instances=InstanceData(
                bboxes=torch.tensor(boxes, dtype=torch.float32),
                labels=torch.tensor(labels),
                scores=torch.tensor(scores),
            ),
        )

    monkeypatch.setattr(tool, 'detect', infer)


def kinds_along(picture, axes, x1, y1, x2, y2):
    """The kinds of box seen along a line given in an image's coordinates."""
    ends = axes.transData.transform([(x1, y1), (x2, y2)])
    x, y = np.linspace(*ends, 200).astype(int).T
    seen = picture[picture.shape[0] - 1 - y, x].astype(int)
    colors = {kind: to_rgb(color) for kind, (color, _) in STYLES.items()}
    colors['nothing'] = (1, 1, 1)
    # the palette of the file may shift a color by a few steps
    return {
        kind
        for kind, color in colors.items()
        if (abs(seen - np.multiply(color, 255)).max(axis=1) <= 6).any()
    }


def test_each_kind_of_box_has_its_color(tmp_path):
    """If it fails, a reader takes false positives for true ones."""
    image = np.full((100, 120, 3), 255, np.uint8)
    truth = InstanceData(
        bboxes=np.array([[10, 40, 50, 60], [70, 40, 110, 60], [70, 75, 110, 95.0]]),
        labels=np.array([0, 1, 0]),
        crowd=np.array([False, False, True]),
    )
    found = InstanceData(
        bboxes=np.array([[10, 40, 50, 60], [10, 75, 50, 95], [75, 78, 85, 88.0]]),
        labels=np.array([0, 0, 0]),
        scores=np.array([0.9, 0.8, 0.7]),
    )
    match = match_detections(
        found.bboxes,
        found.labels,
        found.scores,
        truth.bboxes,
        truth.labels,
        truth.crowd,
    )
    figure = draw_detections(
        [image], [truth], {'dlu': [found]}, {'dlu': [match]}, CLASSES, ['image 1']
    )
    save_figure(figure, tmp_path / 'folder' / 'picture.png', KEPT_COLORS)
    assert os.listdir(tmp_path / 'folder') == ['picture.png']
    picture = np.array(Image.open(tmp_path / 'folder' / 'picture.png').convert('RGB'))
    truth_axes, axes = figure.axes
    for panel, bottom_edge, expected in [
        (truth_axes, (12, 60, 48, 60), {'ground truth'}),
        (truth_axes, (72, 60, 108, 60), {'ground truth'}),
        (truth_axes, (72, 95, 108, 95), {'crowd, not counted', 'nothing'}),
        (axes, (12, 60, 48, 60), {'true positive'}),
        (axes, (12, 95, 48, 95), {'false positive'}),
        # dashed, so that the image shows through
        (axes, (72, 60, 108, 60), {'false negative', 'nothing'}),
        (axes, (76, 88, 84, 88), {'crowd, not counted', 'nothing'}),
        (axes, (55, 60, 65, 60), {'nothing'}),
    ]:
        assert kinds_along(picture, panel, *bottom_edge) == expected
    assert axes.get_title() == 'dlu'
    assert axes.get_xlabel() == '1 TP, 1 FP, 1 FN'
    assert truth_axes.get_xlabel() == '2 objects'
    legend = {text.get_text() for text in figure.legends[0].get_texts()}
    assert legend == set(STYLES) - {'detection, not judged'}


def test_class_names_do_not_cover_each_other():
    """If it fails, the names in a crowded image cannot be read."""
    rng = np.random.default_rng(0)
    corner = rng.random((40, 2)) * 80
    truth = InstanceData(
        bboxes=np.hstack([corner, corner + 15]),
        labels=np.zeros(40, int),
        crowd=np.zeros(40, bool),
    )
    figure = draw_detections(
        [np.zeros((100, 100, 3), np.uint8)], [truth], {}, {}, CLASSES
    )
    figure.canvas.draw()
    (axes,) = figure.axes
    extents = [text.get_window_extent() for text in axes.texts]
    assert len(axes.patches) == 40 and len(extents) > 5
    for index, extent in enumerate(extents):
        assert not extent.count_overlaps(extents[:index])
        assert axes.bbox.contains(*extent.min) and axes.bbox.contains(*extent.max)


def test_many_small_objects_of_one_class():
    """Else names and lines hide what the picture is to show."""
    corners = np.stack(np.meshgrid(range(0, 200, 10), range(0, 200, 10)), -1)
    boxes = np.concatenate([corners, corners + 6], -1).reshape(-1, 4).astype(float)
    boxes = np.concatenate([boxes, [[20, 20, 180, 180]]])
    truth = InstanceData(
        bboxes=boxes, labels=np.zeros(401, int), crowd=np.zeros(401, bool)
    )
    image = np.zeros((200, 200, 3), np.uint8)
    figure = draw_detections([image], [truth], {}, {}, ['nucleus'])
    (axes,) = figure.axes
    assert not axes.texts and len(axes.patches) == 401
    *small, large = sorted(patch.get_linewidth() for patch in axes.patches)
    assert max(small) < large / 2


@pytest.mark.parametrize('detectors, lines', [(1, 1), (6, 2), (9, 3)])
def test_counts_do_not_cover_each_other(detectors, lines):
    """If it fails, the numbers of several detectors cannot be read."""
    truth = InstanceData(
        bboxes=np.zeros((0, 4)), labels=np.zeros(0, int), crowd=np.zeros(0, bool)
    )
    found = InstanceData(
        bboxes=np.tile([[10, 10, 50, 50.0]], (10, 1)),
        labels=np.zeros(10, int),
        scores=np.ones(10),
    )
    none, match = (
        match_detections(
            boxes.bboxes,
            boxes.labels,
            boxes.scores,
            truth.bboxes,
            truth.labels,
            truth.crowd,
        )
        for boxes in (found[:0], found)
    )
    names = [f'dlu ({i})' for i in range(detectors)]
    figure = draw_detections(
        [np.zeros((60, 100, 3), np.uint8)] * 2,
        [truth] * 2,
        dict.fromkeys(names, [found[:0], found]),
        dict.fromkeys(names, [none, match]),
        CLASSES,
        totals=dict.fromkeys(names, (12345, 23456, 34567)),
        totals_of='these 2 images',
    )
    figure.canvas.draw()
    captions = [axes.xaxis.label for axes in figure.axes]
    totals = [t for axes in figure.axes for t in axes.texts if ' TP' in t.get_text()]
    counts = '12345 TP', '23456 FP', '34567 FN'
    assert len(totals) == detectors
    for text in totals:
        assert text.get_text().count('\n') == lines - 1
        assert re.split(', |\n', text.get_text()) == list(counts)
    panels = [axes.bbox for axes in figure.axes]
    extents = [text.get_window_extent() for text in [*captions, *totals]]
    extents += [figure.legends[0].get_window_extent(), *panels]
    for index, extent in enumerate(extents):
        assert not extent.count_overlaps(extents[:index])


def test_white_stays_white(tmp_path):
    """If it fails, the ground of a picture is tinted."""
    figure = new_figure(2, 2)
    # colors near to white, which become entries of the palette
    near = np.stack(np.meshgrid(*[np.arange(230, 255)] * 2, [248]), axis=-1)[:, :, 0]
    figure.figimage(near.astype(np.uint8))
    save_figure(figure, tmp_path / 'picture.png')
    picture = Image.open(tmp_path / 'picture.png').convert('RGB')
    assert picture.getpixel((299, 0)) == (255, 255, 255)
    assert picture.getpixel((0, 299)) != (255, 255, 255)


def test_failed_write_leaves_the_old_picture(tmp_path, monkeypatch):
    """If it fails, an interrupted run destroys the picture of an earlier one."""
    truth = InstanceData(
        bboxes=np.zeros((0, 4)), labels=np.zeros(0, int), crowd=np.zeros(0, bool)
    )
    figure = draw_detections([np.zeros((8, 8, 3), np.uint8)], [truth], {}, {}, CLASSES)
    path = tmp_path / 'picture.png'
    path.write_bytes(b'earlier')

    def full_disk(self, file, **kwargs):
        Path(file).write_bytes(b'half')
        raise OSError('no space left')

    monkeypatch.setattr(Image.Image, 'save', full_disk)
    with pytest.raises(OSError, match='no space'):
        save_figure(figure, path)
    assert path.read_bytes() == b'earlier'
    assert os.listdir(tmp_path) == ['picture.png']


def test_command_pictures_two_detectors(detectors, tmp_path):
    """If it fails, the documented command does not run."""
    out = tmp_path / 'picture.png'
    command = [sys.executable, str(ROOT / 'tools' / 'visualize.py'), 'detections']
    command += [*detectors['bilinear'], *detectors['dlu']]
    command += ['--score-thr', '0.05', '--iou-thr', '0.3', '--out', str(out)]
    command += ['--cfg-options', 'model.test_cfg.rpn.max_per_img=50']
    path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        # threads that wait for each other make a busy machine crawl
        env=dict(os.environ, PYTHONPATH=path, OMP_NUM_THREADS='1'),
    )
    assert result.returncode == 0, result.stderr
    assert f'picture: {out}' in result.stdout
    for name in ('bilinear', 'dlu'):
        pattern = rf'^{name}: (\d+) TP, (\d+) FP, (\d+) FN'
        line = re.search(pattern, result.stdout, re.M)
        tp, fp, fn = map(int, line.groups())
        # three objects, not counting the crowd; random weights fire everywhere
        assert tp + fn == 3
        assert fp > 0
    assert 'over 2 images' in result.stdout
    assert Image.open(out).format == 'PNG'


def test_totals_are_those_of_the_drawn_detections(
    detectors, tool, tmp_path, monkeypatch, capsys
):
    """If it fails, the printed comparison of two detectors is wrong."""
    answers = {
        # one TP, one of too low a score, one of another class
        '10': [([8, 8, 48, 48], 0, 0.9), ([60, 60, 90, 80], 1, 0.2)],
        # one in the crowd, one FP of the wrong class
        '30': [([52, 12, 80, 40], 0, 0.8), ([16, 24, 40, 56], 0, 0.7)],
    }

    answer(tool, monkeypatch, answers)
    out = tmp_path / 'picture.png'
    call(tool, monkeypatch, *detectors['dlu'], *detectors['dlu'], '--out', out)
    printed = capsys.readouterr().out
    # two of the same upsampler stay apart
    assert 'dlu (1): 1 TP, 1 FP, 2 FN' in printed
    assert 'dlu (2): 1 TP, 1 FP, 2 FN' in printed
    call(tool, monkeypatch, *detectors['dlu'], '--out', out, '--image-ids', '10')
    assert 'dlu: 1 TP, 0 FP, 1 FN' in capsys.readouterr().out


@pytest.mark.parametrize(
    'scores, words',
    [
        (
            (0.123, 0.02),
            r'dlu: no detection of score ≥ 0.3 in image 10, image 30; the best score '
            r'is 0.123, so --score-thr 0.1 shows it',
        ),
        ((0.9, 0.0567), r'in image 30; .* is 0.0567, so --score-thr 0.05 shows it'),
        ((None, None), r'no detection of any score in image 10, image 30; train for'),
        ((0.9, 0.3), ''),
    ],
)
def test_images_without_detections(
    detectors, tool, tmp_path, monkeypatch, capsys, scores, words
):
    """Else a detector of a short training gives an empty picture without a word."""
    answers = {
        name: [([8, 8, 48, 48], 0, score or 0.0)]
        for name, score in zip(('10', '30'), scores)
    }
    answer(tool, monkeypatch, answers)
    if scores == (None, None):
        infer = tool.detect

        def nothing(model, path):
            inputs, result = infer(model, path)
            result.pred_instances = result.pred_instances[:0]
            return inputs, result

        monkeypatch.setattr(tool, 'detect', nothing)
    out = tmp_path / 'picture.png'
    call(tool, monkeypatch, *detectors['dlu'], '--out', out)
    printed = capsys.readouterr().out
    assert f'picture: {out}' in printed
    assert re.search(words, printed) if words else 'no detection' not in printed


def test_mistakes_are_named(detectors, tool, tmp_path, monkeypatch):
    """If it fails, a mix-up ends in a wrong picture instead of a clear message."""
    config, checkpoint = detectors['dlu']
    with pytest.raises(FileNotFoundError, match='nowhere.pth'):
        call(tool, monkeypatch, config, tmp_path / 'nowhere.pth')
    with pytest.raises(FileNotFoundError, match='nowhere.py'):
        call(tool, monkeypatch, tmp_path / 'nowhere.py', checkpoint)
    with pytest.raises(ValueError, match='upsample'):
        call(tool, monkeypatch, config, detectors['bilinear'][1])
    with pytest.raises(ValueError, match=r'\[11\]'):
        call(tool, monkeypatch, config, checkpoint, '--image-ids', 10, 11)
    with pytest.raises(ValueError, match="device 'cuda:99' is not there.* cpu"):
        call(tool, monkeypatch, config, checkpoint, '--device', 'cuda:99')
    with pytest.raises(FileNotFoundError, match='nowhere.jpg'):
        call(tool, monkeypatch, config, checkpoint, '--images', 'nowhere.jpg')
    with pytest.raises(ValueError, match='--num-images must be at least 1, got 0'):
        call(tool, monkeypatch, config, checkpoint, '--num-images', 0)
    with pytest.raises(ValueError, match='--only-differences.*two'):
        call(tool, monkeypatch, config, checkpoint, '--only-differences')
    with pytest.raises(SystemExit):
        call(tool, monkeypatch, config, checkpoint, '--out', 'picture.jpg')
    with pytest.raises(ValueError, match='--score-thr'):
        call(tool, monkeypatch, config, checkpoint, '--score-thr', 30)
    with pytest.raises(SystemExit):
        call(tool, monkeypatch, config)

    other = torch.load(checkpoint, weights_only=True)
    other['meta']['dataset_meta']['classes'] = ('cat', 'dog')
    torch.save(other, tmp_path / 'other.pth')
    copied = tmp_path / 'animals.py'
    copied.write_text(Path(config).read_text())
    with pytest.raises(ValueError, match="animals.py.*'cat' is not 'disc'"):
        call(tool, monkeypatch, config, checkpoint, copied, tmp_path / 'other.pth')


def test_default_images_are_spread_over_those_with_objects(tool):
    """If it fails, the picture shows empty images or only the first few."""

    class DataSet(list):
        get_data_info = list.__getitem__

    data = DataSet(
        dict(img_id=i, instances=[dict(ignore_flag=i % 3)] * (i % 2))
        for i in range(100)
    )
    ids = [info['img_id'] for info in tool.pick_images(data, 4, None)]
    assert ids == [3, 33, 69, 99]
    assert len(tool.pick_images(data, 400, None)) == 17


def test_only_differences_searches_the_whole_set(
    detectors, tool, tmp_path, monkeypatch, capsys
):
    """If it fails, the picture leaves out where two upsamplers differ most."""
    disc, cross, other = (
        ([8, 8, 48, 48], 0, 0.9),
        ([60, 60, 90, 80], 1, 0.9),
        ([16, 24, 40, 56], 1, 0.9),
    )
    wrong = ([90, 2, 110, 20], 1, 0.8)
    answer(
        tool,
        monkeypatch,
        {
            'bilinear': {'10': [disc, wrong], '20': [wrong, wrong], '30': [other]},
            # another object at 10, as many TP; fewer FP at 20
            'dlu': {'10': [cross, wrong], '20': [wrong], '30': [other]},
        },
    )
    drawn = []
    draw = tool.detections.draw_detections
    monkeypatch.setattr(
        tool.detections,
        'draw_detections',
        lambda *args, **kwargs: drawn.append(draw(*args, **kwargs)) or drawn[-1],
    )
    pair = *detectors['bilinear'], *detectors['dlu'], '--only-differences'
    out = tmp_path / 'picture.png'
    call(tool, monkeypatch, *pair, '--out', out, '--num-images', 1)
    printed = capsys.readouterr().out
    # of the whole set, though one image is shown
    assert 'over 3 images' in printed
    assert 'bilinear: 2 TP, 3 FP, 1 FN ' in printed
    axes = drawn[-1].axes
    assert len(axes) == 3
    assert axes[0].get_ylabel() == 'image 10: 2 found by one only'
    below = [panel.texts[-1].get_text() for panel in axes]
    assert below == [
        'all 3 images:',
        '2 TP, 3 FP, 1 FN',
        '2 TP, 2 FP, 1 FN',
    ]
    # the image on which they agree is not shown, however many are asked for
    call(tool, monkeypatch, *pair, '--out', out, '--num-images', 3)
    labels = [panel.get_ylabel() for panel in drawn[-1].axes[::3]]
    assert labels == ['image 10: 2 found by one only', 'image 20: 0 found by one only']

    same = *detectors['dlu'], *detectors['dlu'], '--only-differences'
    with pytest.raises(ValueError, match=r'agree on all 3 images'):
        call(tool, monkeypatch, *same, '--out', out)


def test_image_files_need_no_ground_truth(detectors, tool, tmp_path, monkeypatch):
    """If it fails, detectors cannot be shown on a photo of one's own."""
    answer(tool, monkeypatch, {'mine': [([8, 8, 48, 48], 0, 0.9)]})
    mmcv.imwrite(np.zeros((60, 80, 3), np.uint8), str(tmp_path / 'mine.png'))
    drawn = []
    draw = tool.detections.draw_detections
    monkeypatch.setattr(
        tool.detections,
        'draw_detections',
        lambda *args, **kwargs: drawn.append(draw(*args, **kwargs)) or drawn[-1],
    )
    files = '--images', tmp_path / 'mine.png'
    call(tool, monkeypatch, *detectors['dlu'], *files, '--out', tmp_path / 'out.png')
    image, found = drawn[0].axes
    assert (image.get_title(), len(image.patches)) == ('image', 0)
    assert found.get_xlabel() == '1 detection'
    (legend,) = drawn[0].legends[0].get_texts()[-1:]
    assert legend.get_text() == 'detection, not judged'


def test_a_picture_under_two_ids(detectors, tool, tmp_path, monkeypatch):
    """If it fails, one of its two pictures is written over the other."""
    (config, checkpoint) = detectors['dlu']
    folder = Path(config).parent
    content = json.loads((folder / 'annotations.json').read_text())
    # names of files are made of the ids
    ids = 'a/1', 'a-1', 'A-1'
    content['images'] = [dict(content['images'][0], id=i) for i in ids]
    content['annotations'] = [dict(content['annotations'][0], image_id=i) for i in ids]
    (folder / 'twice.json').write_text(json.dumps(content))
    option = 'test_dataloader.dataset.ann_file=twice.json'
    flags = '--image-ids', *ids, '--out', tmp_path, '--cfg-options', option
    for _ in range(2):
        call(tool, monkeypatch, config, checkpoint, *flags, command='features')
    names = {path.name.casefold() for path in tmp_path.glob('*.png')}
    assert names == {f'features-image-a-1{end}.png' for end in ('', '-2', '-3')}


def test_classes_that_are_numbers(detectors, tool, tmp_path, monkeypatch):
    """If it fails, what a script counted cannot be drawn."""
    config, checkpoint = detectors['dlu']
    folder = Path(config).parent
    content = json.loads((folder / 'annotations.json').read_text())
    for category, number in zip(content['categories'], (7, 2.5)):
        category['name'] = number
    (folder / 'numbers.json').write_text(json.dumps(content))
    answer(tool, monkeypatch, {str(i): [([8, 8, 48, 48], 1, 0.9)] for i in OBJECTS})
    state = torch.load(checkpoint, weights_only=True)
    state['meta']['dataset_meta']['classes'] = (7, 2.5)
    torch.save(state, tmp_path / 'numbers.pth')
    options = (
        'test_dataloader.dataset.ann_file=numbers.json',
        'test_dataloader.dataset.metainfo.classes=[7,2.5]',
    )
    drawn = []
    draw = tool.detections.draw_detections
    monkeypatch.setattr(
        tool.detections,
        'draw_detections',
        lambda *args, **kwargs: drawn.append(draw(*args, **kwargs)) or drawn[-1],
    )
    files = config, tmp_path / 'numbers.pth', '--out', tmp_path / 'out.png'
    call(tool, monkeypatch, *files, '--cfg-options', *options)
    texts = {text.get_text() for axes in drawn[0].axes for text in axes.texts}
    assert {'7', '2.5'} <= texts


def test_one_page_holds_all_pictures(detectors, tool, tmp_path, monkeypatch, capsys):
    """If it fails, the page lacks pictures, or shows none once it is sent."""
    folder = tmp_path / 'pictures'
    folder.mkdir()
    Image.new('RGB', (4, 4)).save(folder / 'another.png')
    for command, *options in (
        ('features', '--image-ids', 30),
        ('kernels', '--image-ids', 10, 30, '--num-positions', 1),
    ):
        options += '--out', folder
        call(tool, monkeypatch, *detectors['dlu'], *options, command=command)
    pictures = ['features-image-30', 'kernels-image-10', 'kernels-image-30']
    names = [*(f'{name}.png' for name in pictures), 'another.png', 'index.html']
    assert sorted(os.listdir(folder)) == sorted(names)
    page = (folder / 'index.html').read_text()
    assert f'page: {folder / "index.html"}' in capsys.readouterr().out
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 3 and 'href' not in page and 'url(' not in page
    for name, source in zip(pictures, sources):
        kind, data = source.split(',')
        assert kind == 'data:image/png;base64'
        assert base64.b64decode(data) == (folder / f'{name}.png').read_bytes()
    assert 'dlu: kernels of P2 at positions ' in page


def test_the_folder_of_a_run_and_a_pixel(
    detectors, tool, tmp_path, monkeypatch, capsys
):
    """As the report of a comparison names them; bilinear has no kernels."""
    config, checkpoint = detectors['dlu']
    run = tmp_path / 'dlu' / 'seed0'
    run.mkdir(parents=True)
    shutil.copy(config, f'{run}.py')
    shutil.copy(checkpoint, run / 'epoch_1.pth')
    (run / 'last_checkpoint').write_text(str(run / 'epoch_1.pth'))
    folder = tmp_path / 'out'
    args = [*detectors['bilinear'], run, '--at', '56,48', '--out', folder]
    call(tool, monkeypatch, *args, command='kernels')
    printed = capsys.readouterr().out
    assert 'bilinear is left out: Bilinear predicts no kernels' in printed
    # the middle of the image
    assert re.search(
        r'kernels of P2 at positions \d+,\d+\.', (folder / 'index.html').read_text()
    )
    (run / 'last_checkpoint').unlink()
    (run / 'epoch_1.pth').unlink()
    with pytest.raises(FileNotFoundError, match='seed0 is not the folder of a run'):
        call(tool, monkeypatch, run, '--out', folder, command='kernels')


def test_kernels_that_are_not_there_are_named(detectors, tool, tmp_path, monkeypatch):
    """If it fails, a wrong level, place or upsampler gives a wrong picture."""

    def kernels(upsampler, *options):
        args = *detectors[upsampler], *options, '--out', tmp_path / 'kernels.png'
        call(tool, monkeypatch, *args, command='kernels')

    with pytest.raises(ValueError, match='bilinear: .*no kernels.*carafe, dlu, dys'):
        kernels('bilinear')
    with pytest.raises(ValueError, match='48,0 is outside the output map of 48 x 48'):
        kernels('dlu', '--positions', '3,4', '48,0')
    with pytest.raises(ValueError, match='--at 0,999 is outside the image, which has'):
        kernels('dlu', '--at', '0,999')
    with pytest.raises(ValueError, match='--at and --positions both say where'):
        kernels('dlu', '--at', '0,9', '--positions', '3,4')
    with pytest.raises(ValueError, match='level must be .*P2, P3, P4, P5, got .P7'):
        kernels('dlu', '--level', 'P7')
    with pytest.raises(ValueError, match='group must be from 0 to 0, got 1'):
        kernels('dlu', '--group', 1)
    with pytest.raises(ValueError, match='kernels.png is one picture, but 2 images'):
        kernels('dlu', '--image-ids', 10, 30)
    with pytest.raises(SystemExit):
        kernels('dlu', '--positions', '3')
    assert not os.listdir(tmp_path)


def test_the_map_of_every_upsampler_and_what_its_detector_finds(
    detectors, tool, tmp_path, monkeypatch, capsys
):
    """The picture of the README: two detectors, with and without ground truth."""
    models = *detectors['bilinear'], *detectors['dlu']
    answer(tool, monkeypatch, {'10': [([8, 8, 48, 48], 0, 0.9)]})
    drawn, draw = [], show.upsampling_figure.draw_upsampling

    def keep(*args):
        drawn.append(args[-1])
        return draw(*args)

    monkeypatch.setattr(show.upsampling_figure, 'draw_upsampling', keep)
    out = tmp_path / 'judged.png'
    call(tool, monkeypatch, *models, '--image-ids', 10, '--out', out, '--level', 'P3',
         command='upsampling')  # fmt: skip
    image = tmp_path / '10.png'
    image.write_bytes((Path(detectors['dlu'][0]).parent / '10.png').read_bytes())
    call(tool, monkeypatch, *models, '--images', image, '--out', tmp_path / 'new',
         command='upsampling')  # fmt: skip
    assert f'picture: {out}' in capsys.readouterr().out
    judged, new = (Image.open(p) for p in (out, tmp_path / 'new/upsampling-10.png'))
    assert judged.size == new.size and 'bilinear, dlu' in judged.text['Description']
    texts = [[caption for _, caption in panels] for panels in drawn]
    assert texts[0] == ['2 objects', *['1 TP\n0 FP, 1 FN'] * 2]
    assert texts[1] == ['', '1 detection', '1 detection']
    with pytest.raises(ValueError, match='upsamples to P5, P4, P3, P2, not to P7; ch'):
        call(tool, monkeypatch, *models, '--level', 'P7', '--out', out,
             command='upsampling')  # fmt: skip
    bare = Recording(np.zeros((8, 8, 3), np.uint8), (8, 8))
    with pytest.raises(ValueError, match='mine: the neck has no upsampler of this'):
        draw(bare.image, {'mine': bare}, 'P2', [])


def test_maps_in_the_colors_of_the_image():
    """Channels that hold the colors give the image back, whatever their order."""
    torch.manual_seed(0)
    # 40 x 24 pixels, padded to 64 x 32; a cell is 8 x 8 pixels
    cells = torch.rand(3, 5, 3)
    image = cells.repeat_interleave(8, 1).repeat_interleave(8, 2)
    image = (255 * image).round().byte().permute(1, 2, 0).numpy()
    mix = torch.randn(16, 3)
    source = torch.einsum('kc,chw->khw', mix, cells)
    source = torch.nn.functional.pad(source, (0, 1, 0, 3), value=7.0)[None]
    output = source.repeat_interleave(2, 2).repeat_interleave(2, 3)
    coarse, fine = map_colors(Upsampling(None, source, output), image, (64, 32))
    assert coarse.shape == (5, 3, 3) and fine.shape == (10, 6, 3)
    assert abs(coarse - cells.permute(1, 2, 0).numpy()).max() < 0.1
    assert (fine == coarse.repeat(2, 0).repeat(2, 1)).all()
