"""Pictures of odd images, names and checkpoints: right, or refused with a reason."""

import hashlib
import http.server
import io
import json
import threading
import warnings
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from conftest import load_tool
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset
from mmdet.datasets.transforms import PackDetInputs
from mmdet.registry import DATASETS, HOOKS, MODELS
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from mmengine.fileio import LocalBackend, register_backend
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from PIL import Image
from torch import nn
from torch.utils.checkpoint import checkpoint as imported_checkpoint

from dlu_mmdet.cli import run as run_command
from dlu_mmdet.engine import load_checkpoint, load_detector, safe_loading
from dlu_mmdet.explain import evaluate
from dlu_mmdet.explain.cam import LayerScore, collect_evidence
from dlu_mmdet.utils.files import check_writable
from dlu_mmdet.visualization import fonts, show
from dlu_mmdet.visualization.detect import detect
from dlu_mmdet.visualization.detections import draw_detections
from dlu_mmdet.visualization.features import draw_features, record
from dlu_mmdet.visualization.figures import as_image, free_path, save_figure, write_page
from dlu_mmdet.visualization.images import file_names, image_names, load_image

ROOT = Path(__file__).parents[2]
CLASSES = ('a$_$b', '龙')


def random_detector(channels=3):
    cfg = Config.fromfile(ROOT / 'configs/shapes/faster-rcnn_r18_fpn-dlu_shapes.py')
    cfg.model.roi_head.bbox_head.num_classes = len(CLASSES)
    cfg.model.test_cfg.rcnn.score_thr = 0.0
    cfg.test_dataloader.dataset.metainfo = dict(classes=CLASSES)
    if channels == 1:
        cfg.model.data_preprocessor.update(mean=[114.0], std=[57.0], bgr_to_rgb=False)
        cfg.model.backbone.in_channels = 1
        cfg.test_dataloader.dataset.pipeline[0].color_type = 'grayscale'
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    model.cfg, model.dataset_meta = cfg, dict(classes=CLASSES)
    return model.eval()


@pytest.fixture(scope='module')
def model():
    return random_detector()


@pytest.fixture
def loading(model, monkeypatch):
    """Change how the detector's test pipeline loads images."""

    def change(**flags):
        cfg = deepcopy(model.cfg)
        cfg.test_dataloader.dataset.pipeline[0].update(flags)
        monkeypatch.setattr(model, 'cfg', cfg)
        return model

    return change


@pytest.fixture
def photo(tmp_path):
    """A picture of 64 x 96 stored on its side, red above and blue below."""
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:32, :, 0] = picture[32:, :, 2] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / 'photo.png'
    Image.fromarray(picture).save(path, exif=exif)
    return path


def files_of(model, folder, **checkpoint):
    """The config and a checkpoint of a detector."""
    model.cfg.dump(folder / 'config.py')
    checkpoint = checkpoint or dict(
        state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=CLASSES))
    )
    torch.save(checkpoint, folder / 'checkpoint.pth')
    return [str(folder / 'config.py'), str(folder / 'checkpoint.pth')]


# -------------------------------------------------------------------- images


@pytest.mark.parametrize(
    ('color_type', 'size', 'turned'),
    [
        ('color', (96, 64), True),
        ('color_ignore_orientation', (64, 96), False),
        ('unchanged', (64, 96), False),
        ('grayscale_ignore_orientation', (64, 96), False),
    ],
)
def test_the_picture_is_the_one_that_was_loaded(
    photo, tmp_path, monkeypatch, color_type, size, turned
):
    """If it fails, boxes and maps of one picture are drawn over another."""
    model = random_detector(1 if color_type.startswith('gray') else 3)
    model.cfg.test_dataloader.dataset.pipeline[0].color_type = color_type
    pair = files_of(model, tmp_path)
    shown = []
    draw = show.detections.draw_detections
    monkeypatch.setattr(
        show.detections,
        'draw_detections',
        lambda images, *args, **kwargs: (
            shown.extend(images) or draw(images, *args, **kwargs)
        ),
    )
    out = ['--out', str(tmp_path / 'out.png')]
    argv = ['detections', *pair, '--images', str(photo), *out]
    load_tool('visualize').main(argv)

    draw_rows = evaluate.draw_heatmaps
    monkeypatch.setattr(
        evaluate,
        'draw_heatmaps',
        lambda rows, methods: (
            shown.extend(row.image for row in rows) or draw_rows(rows, methods)
        ),
    )
    argv = [*pair, str(photo), '--method', 'xgradcam', *out]
    load_tool('explain').main([*argv, '--score-thr', '0'])
    assert len(shown) == 2
    for image in shown:
        assert image.shape == (*size, 3) and image.dtype == np.uint8
        first, last = image[10, 10], image[size[0] - 10, 10]
        same = (first == last).all()
        assert same if turned else not same


@pytest.mark.parametrize(
    ('array', 'flags', 'pixel'),
    [
        (
            np.full((8, 9, 4), (10, 20, 30, 0)),
            dict(color_type='unchanged'),
            (30, 20, 10),
        ),
        (np.full((8, 9), 77), dict(color_type='unchanged'), (77, 77, 77)),
        (
            np.full((8, 9, 3), (10, 20, 30)),
            dict(imdecode_backend='pillow'),
            (30, 20, 10),
        ),
        (np.full((8, 9, 3), (10, 20, 30)), dict(to_float32=True), (30, 20, 10)),
    ],
)
def test_flags_of_the_loader(loading, tmp_path, array, flags, pixel):
    """If it fails, a picture has wrong colors, or there is none."""
    path = tmp_path / 'image.png'
    cv2.imwrite(str(path), array.astype(np.uint8))
    image = load_image(loading(**flags), path)['image']
    assert image.shape == (8, 9, 3) and image.dtype == np.uint8
    assert (image == pixel).all()


@pytest.mark.skipif(
    not hasattr(torch, 'uint16'), reason='torch before 2.3 has no tensors of uint16'
)
def test_sixteen_bits(loading, tmp_path):
    """If it fails, a microscope's image is noise: the low bytes of its values."""
    ramp = np.linspace(0, 4095, 64).astype(np.uint16)
    cv2.imwrite(str(tmp_path / 'image.png'), np.tile(ramp, (8, 1)))
    image = load_image(loading(color_type='unchanged'), tmp_path / 'image.png')['image']
    np.testing.assert_allclose(image[0, :, 0], np.linspace(0, 255, 64), atol=1.1)


@register_backend('shelf', force=True)
class Shelf(LocalBackend):
    """Files whose names are not those of the disk."""

    def get(self, filepath):
        return super().get(str(filepath).replace('shelf', 'photo'))


def test_images_from_another_backend(loading, photo):
    """If it fails, images in an archive cannot be shown."""
    path = str(photo).replace('photo.png', 'shelf.png')
    model = loading(backend_args=dict(backend='shelf'))
    assert load_image(model, path)['image'].shape == (96, 64, 3)


def test_pipeline_that_does_not_resize(model, photo, monkeypatch):
    """If it fails, detectors for images as they are cannot be shown."""
    cfg = deepcopy(model.cfg)
    pipeline = cfg.test_dataloader.dataset.pipeline
    keys = 'img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'
    for steps, meta_keys, factor in (
        ([pipeline[0], pipeline[-1]], keys, (1.0, 1.0)),
        (list(pipeline), ('img_id',), (2.0, 2.0)),
    ):
        steps[-1] = dict(type='PackDetInputs', meta_keys=meta_keys)
        cfg.test_dataloader.dataset.pipeline = steps
        monkeypatch.setattr(model, 'cfg', cfg)
        _, sample = detect(model, photo)
        assert sample.scale_factor == factor
        assert sample.ori_shape == sample.image.shape[:2] == (96, 64)
        x, y = sample.pred_instances.bboxes[:, 2:].max(0).values
        assert 32 < x <= 64 and 48 < y <= 96


def test_types_as_classes(model, photo, monkeypatch):
    """If it fails, detectors of new-style configs cannot be shown."""
    cfg = deepcopy(model.cfg)
    pipeline = cfg.test_dataloader.dataset.pipeline
    pipeline[0]['type'], pipeline[-1]['type'] = LoadImageFromFile, PackDetInputs
    monkeypatch.setattr(model, 'cfg', cfg)
    assert load_image(model, photo)['image'].shape == (96, 64, 3)
    bad = photo.with_name('bad.png')
    bad.write_bytes(b'')
    with pytest.raises(ValueError, match=r'bad\.png'):
        load_image(model, bad)


def test_an_image_that_a_transform_refuses_is_named(model, tmp_path):
    """If it fails, a user looks for the one bad image among thousands."""
    cv2.imwrite(str(tmp_path / 'thin.png'), np.zeros((2, 3000, 3), np.uint8))
    with pytest.raises(ValueError, match=r'thin\.png: Resize'):
        load_image(model, tmp_path / 'thin.png')


@pytest.mark.parametrize('shape', [(1, 1), (60, 3), (3, 60)])
def test_sizes_at_the_end(model, tmp_path, shape):
    """If it fails, a tiny or narrow image ends in an error or a giant picture."""
    path = tmp_path / 'image.png'
    cv2.imwrite(str(path), np.zeros((*shape, 3), np.uint8))
    data = load_image(model, path)
    figure = draw_features({'dlu': record(model, data)})
    assert max(figure.get_size_inches()) < 20
    as_image(figure)


def test_a_huge_image_is_drawn_from_a_small_one():
    """If it fails, a scan of 200 megapixels takes all the memory."""
    image = np.zeros((10, 9000, 3), np.uint8)
    image[:, 4500:] = 255
    figure = draw_detections([image], [no_objects()], {}, {}, CLASSES)
    (drawn,) = figure.axes[0].images
    assert drawn.get_array().shape[1] < 4000
    assert drawn.get_extent() == [0, 9000, 10, 0]
    assert drawn.get_array()[0, [0, -1], 0].tolist() == [0, 255]


def test_one_channel(photo):
    """If it fails, a detector of gray images cannot be shown."""
    model = random_detector(channels=1)
    recording = record(model, load_image(model, photo))
    assert recording.image.shape[2] == 3
    assert (recording.image == recording.image[..., :1]).all()
    as_image(draw_features({'dlu': recording}))


# --------------------------------------------------------------------- names


def test_names_tell_images_apart():
    """If it fails, two images have one name, or one picture."""
    paths = ['a/img.png', 'b/img.png', 'c/other.png', 'x.png', 'x.jpg']
    assert image_names(paths) == [*paths[:2], 'other.png', *paths[3:]]
    assert image_names(paths, suffix=False)[2:] == ['other', 'x.png', 'x.jpg']
    assert image_names(['a/b/1.png', 'c/b/1.png']) == ['a/b/1.png', 'c/b/1.png']
    assert image_names(['A.png', 'a.png', 'A.png']) == ['A.png', 'a.png', 'A.png']
    assert image_names(['bad\udcff.png']) == ['bad\\udcff.png']
    assert file_names(['A.png', 'a.png', 'a-b.jpg', 'a/b.jpg', 'a.gif', 'scan']) == [
        'A.png', 'a (2).png', 'a-b.jpg', 'a-b (2).jpg', 'a.gif.png', 'scan.png',
    ]  # fmt: skip
    # one picture under two ids; no folder above, no hidden file, no Windows device
    odd = ['1.jpg', '1.jpg', '1.png', '../../1.jpg', '/', 'C:\\x\t?.png']
    assert file_names(odd) == [
        '1.jpg', '1 (2).jpg', '1.png', '1 (3).jpg', 'image.png', 'C-x.png',
    ]  # fmt: skip
    # the same to a file system that composes characters
    assert file_names(['\xe9.png', 'e\u0301.png'])[1] == 'e\u0301 (2).png'
    long = file_names(['龙' * 300 + '.jpg', '龙' * 300 + 'x.jpg', 'y' * 300])
    assert len({*long}) == 3 and all(len(name.encode()) < 256 for name in long)
    assert long[0].endswith('龙.jpg') and long[1].endswith('龙 (2).jpg')


def no_objects():
    return InstanceData(
        bboxes=np.zeros((0, 4)), labels=np.zeros(0, int), crowd=np.zeros(0, bool)
    )


def test_pictures_do_not_overwrite_each_other(tmp_path):
    """If it fails, a picture is lost to one of another image, now or a week later."""
    figure = draw_detections(
        [np.zeros((8, 8, 3), np.uint8)], [no_objects()], {}, {}, ''
    )
    Image.new('RGB', (4, 4)).save(tmp_path / 'x.png')
    (tmp_path / 'broken.png').write_bytes(b'')
    for _ in range(2):
        files = []
        for name, source in (
            ('img 1', '/in/img 1.png'), ('img-1', '/in/img-1.png'),
            ('x', '/in/x.png'), ('龙' * 300, '/in/long.png'),
            ('X', '/in/X.png'), ('../img 1', '/in/../img 1.png'),
        ):  # fmt: skip
            path = free_path(tmp_path, name, source)
            save_figure(figure, path, title=name, source=source)
            files.append(path.name)
        # again, the same image has the same file
        assert files[:3] == ['img-1.png', 'img-1-2.png', 'x-2.png']
        # the names are distinct to a file system that ignores case too
        assert files[4:] == ['X-3.png', 'img-1-3.png']
    page = write_page(tmp_path).read_text(encoding='utf-8')
    assert page.count('<img') == 6
    assert b'/in/' not in (tmp_path / 'img-1.png').read_bytes()


def test_every_tested_image_has_its_picture(photo, tmp_path, model, monkeypatch):
    """If it fails, --show-dir loses pictures, or draws boxes over another one."""
    images = ['a/img.png', 'b/img.png', 'c/IMG.png', 'd/scan']
    for name in images:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(photo.read_bytes())
    content = dict(
        images=[
            dict(id=i, file_name=name, width=96, height=64)
            # one of them under two ids
            for i, name in enumerate([*images, images[0]])
        ],
        categories=[dict(id=i, name=name) for i, name in enumerate(CLASSES)],
        annotations=[],
    )
    (tmp_path / 'annotations.json').write_text(json.dumps(content))
    pipeline = deepcopy(model.cfg).test_dataloader.dataset.pipeline
    pipeline[0].color_type = 'color_ignore_orientation'
    dataset = dict(
        type=CocoDataset,
        data_root=str(tmp_path),
        ann_file='annotations.json',
        data_prefix=dict(img=''),
        metainfo=dict(classes=CLASSES),
        test_mode=True,
        pipeline=pipeline,
    )
    wrapped = DATASETS.build(dict(type='ConcatDataset', datasets=[dataset]))
    visualizer = DetLocalVisualizer.get_instance('pictures')
    visualizer.dataset_meta = dict(classes=CLASSES, palette=[(0, 255, 0)] * 2)
    hook = HOOKS.build(
        dict(type='DetVisualizationHook', draw=True, test_out_dir='show', interval=1)
    )
    runner = SimpleNamespace(
        work_dir=str(tmp_path),
        timestamp='now',
        iter=0,
        test_dataloader=SimpleNamespace(dataset=wrapped),
        val_dataloader=SimpleNamespace(dataset=wrapped),
    )
    for item in wrapped:
        sample = item['data_samples']
        sample.gt_instances = InstanceData()
        sample.pred_instances = InstanceData(
            bboxes=torch.tensor([[10.0, 10, 80, 50]]),
            labels=torch.tensor([0]),
            scores=torch.tensor([0.9]),
        )
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # no font has the class name
            hook.after_test_iter(runner, 0, {}, [sample])
    hook.after_test_epoch(runner)
    hook.after_val_iter(runner, 0, {}, [sample])
    sample.pred_instances.scores -= 0.75
    hook.after_val_iter(runner, 0, {}, [sample])
    told = []
    runner.logger = SimpleNamespace(info=told.append)
    hook.after_val_epoch(runner)
    assert told[0].startswith('pictures without detections, 1 of 2: no detection of s')
    assert told[0].endswith('default_hooks.visualization.score_thr=0.1 shows it')
    folder = tmp_path / 'now' / 'show'
    files = ['a-img.png', 'b-img.png', 'IMG.png', 'scan.png', 'a-img (2).png']
    assert sorted(path.name for path in folder.iterdir()) == sorted(files)
    for file in files:
        picture = np.array(Image.open(folder / file).convert('RGB'))
        # stored on its side: the upper half is red from left to right
        height, width = picture.shape[:2]
        assert width > height
        for x in (2, 94):
            assert picture[2, x * width // 192, 0] > 200


# --------------------------------------------------------------------- texts


@pytest.fixture
def font(tmp_path, monkeypatch):
    """A font that has a dragon; matplotlib has not seen it yet."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    pen.lineTo((900, 0))
    pen.lineTo((0, 900))
    pen.closePath()
    empty = TTGlyphPen(None)
    builder = FontBuilder(1000)
    builder.setupGlyphOrder(['.notdef', 'dragon'])
    builder.setupCharacterMap({ord('龙'): 'dragon'})
    builder.setupGlyf({'.notdef': empty.glyph(), 'dragon': pen.glyph()})
    builder.setupHorizontalMetrics({'.notdef': (500, 0), 'dragon': (1000, 0)})
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable(dict(familyName='Dragon Sans', styleName='Regular'))
    builder.setupOS2()
    builder.setupPost()
    path = tmp_path / 'dragon.ttf'
    builder.save(path)
    known = list(font_manager.fontManager.ttflist)
    monkeypatch.setattr(font_manager.fontManager, 'ttflist', known)
    monkeypatch.setattr(font_manager, 'findSystemFonts', lambda *a, **k: [str(path)])
    fonts._fallback_fonts.cache_clear()
    yield path
    fonts._fallback_fonts.cache_clear()


def test_names_in_another_script(font, recwarn):
    """If it fails, class names of half the world are drawn as boxes."""
    truth = InstanceData(
        bboxes=np.array([[10.0, 40, 90, 90], [5, 5, 50, 30]]),
        labels=np.array([1, 0]),
        crowd=np.array([False, False]),
    )
    figure = draw_detections(
        [np.zeros((100, 100, 3), np.uint8)], [truth], {}, {}, CLASSES, ['$龙$']
    )
    as_image(figure)
    named = {text.get_text(): text for text in figure.axes[0].texts}
    assert set(named) == set(CLASSES)
    assert named['龙'].get_fontfamily()[-1] == 'Dragon Sans'
    assert figure.axes[0].yaxis.label.get_fontfamily()[-1] == 'Dragon Sans'
    assert not [w for w in recwarn if 'missing' in str(w.message)]


def test_characters_that_no_font_has(monkeypatch):
    """If it fails, nobody says why there are boxes, or everybody does all the time."""
    monkeypatch.setattr(font_manager, 'findSystemFonts', lambda *a, **k: [])
    fonts._fallback_fonts.cache_clear()
    fonts._warn.cache_clear()
    with pytest.warns(UserWarning, match='no installed font has 𓀀: .*fonts-noto'):
        fonts.fallback_fonts('a𓀀')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        fonts.fallback_fonts('b𓀀')


@pytest.mark.parametrize('name', ['a$_$b', r'$\frac$', 'x_y', '50%', r'\alpha$$', '$5'])
def test_no_name_is_mathematics(name):
    """If it fails, a class name stops the picture, or is drawn as a formula."""
    truth = InstanceData(
        bboxes=np.array([[10.0, 40, 90, 90]]),
        labels=np.array([0]),
        crowd=np.array([False]),
    )
    image = np.zeros((100, 100, 3), np.uint8)
    figure = draw_detections([image], [truth], {}, {}, [name], [name], note=name)
    as_image(figure)
    texts = [*figure.axes[0].texts, figure.axes[0].yaxis.label]
    texts.append(figure.legends[0].get_title())
    for text in texts:
        assert text.get_text() == name and not text.get_parse_math()


def test_output_in_ascii(model, photo, tmp_path, monkeypatch):
    """If it fails, a name in another script ends the tool as it prints it."""
    out = tmp_path / '龙.png'
    argv = ['visualize.py', 'features', *files_of(model, tmp_path)]
    argv += ['--images', str(photo), '--out', str(out)]
    monkeypatch.setattr('sys.argv', argv)
    stream = io.TextIOWrapper(io.BytesIO(), encoding='ascii')
    monkeypatch.setattr('sys.stdout', stream)
    with pytest.raises(SystemExit):
        run_command('visualize')
    stream.flush()
    assert b'\\u9f99.png' in stream.buffer.getvalue()
    assert out.is_file()


@pytest.mark.parametrize('ids', [[1, 2, 30], ['1', '2', 'b'], [1, '2', 'b'], [0.5, 2]])
def test_ids_of_any_type(ids):
    """If it fails, images with ids of text cannot be asked for."""
    infos = [dict(img_id=i, img_path=f'{n}.png') for n, i in enumerate(ids)]
    for info in infos:
        assert show.find_images(infos, [str(info['img_id'])]) == [info]
    assert show.find_images(infos, ['2', str(ids[0])]) == [infos[1], infos[0]]
    assert show.find_images(infos, ['0002']) == [infos[1]]
    with pytest.raises(ValueError, match=r'no image \[22\]; .* such as 2'):
        show.find_images(infos, ['22'])


def test_a_place_that_cannot_be_written_shows_first(
    model, photo, tmp_path, monkeypatch
):
    """If it fails, the picture of an hour's work is lost at the end."""
    (tmp_path / 'file').write_text('')
    (tmp_path / 'folder.png').mkdir()
    argv = ['explain.py', 'nowhere.py', 'nowhere.pth', str(photo), '--out']
    for out in (tmp_path / 'file/x.png', tmp_path / 'folder.png'):
        with pytest.raises(ValueError, match='cannot be written'):
            check_writable(out)
    with pytest.raises(ValueError, match='file/x.png cannot be written'):
        load_tool('explain').main([*argv[1:], str(tmp_path / 'file/x.png')])
    check_writable(tmp_path / 'new' / 'x.png')
    assert not list((tmp_path / 'new').iterdir())


# --------------------------------------------------------------- checkpoints


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server of a folder; yields the folder and its address."""
    folder = tmp_path / 'web'
    folder.mkdir()
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setenv('no_proxy', '127.0.0.1')

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f'http://127.0.0.1:{server.server_port}'
        server.shutdown()
        thread.join()


def test_checkpoints_by_url(model, server):
    """If it fails, a checkpoint of the web is refused, or is another's."""
    folder, address = server
    for number in (1, 2):
        (folder / str(number)).mkdir()
        state = {k: v.clone() for k, v in model.state_dict().items()}
        state['backbone.conv1.weight'].fill_(number)
        meta = dict(dataset_meta=dict(classes=CLASSES))
        content = dict(state_dict=state, meta=meta)
        torch.save(content, folder / f'{number}/epoch 12.pth')
        url = f'{address}/{number}/epoch%2012.pth'
        loaded = load_detector(model.cfg, url)
        assert (loaded.backbone.conv1.weight == number).all()
    loaded = load_detector(model.cfg, (folder / '1/epoch 12.pth').as_uri())
    assert (loaded.backbone.conv1.weight == 1).all()
    with pytest.raises(FileNotFoundError, match=r'/none\.pth cannot be fetched.*404'):
        load_detector(model.cfg, f'{address}/none.pth')
    (folder / 'text.pth').write_text('not one')
    with pytest.raises(ValueError, match=f'{address}/text.pth'):
        load_detector(model.cfg, f'{address}/text.pth')
    with pytest.raises(ValueError, match="no model of the name 'nothing'"):
        load_detector(model.cfg, 'openmmlab://nothing')


def test_hashed_names_are_fetched_once(model, server, tmp_path, monkeypatch, capsys):
    """If it fails, every call downloads the model zoo's checkpoint again, or half of
    one stays in the cache."""
    folder, address = server
    content = io.BytesIO()
    torch.save(model.state_dict(), content)
    content = content.getvalue()
    name = f'model-{hashlib.sha256(content).hexdigest()[:8]}.pth'
    cached = tmp_path / 'torch' / 'hub' / 'checkpoints' / name
    # cut off on the way, at the first try
    (folder / name).write_bytes(content[:-100])
    with pytest.raises(ValueError, match=rf'{name} arrived damaged.*put .* {cached}'):
        load_detector(model.cfg, f'{address}/{name}')
    assert not list(cached.parent.iterdir())
    (folder / name).write_bytes(content)
    load_detector(model.cfg, f'{address}/{name}')
    (folder / name).unlink()
    load_detector(model.cfg, f'{address}/{name}')
    # left by another program
    cached.write_bytes(content[:-100])
    with pytest.raises(FileNotFoundError, match=f'{cached} is damaged: its SHA-256'):
        load_detector(model.cfg, f'{address}/{name}')
    (folder / name).write_bytes(content)
    capsys.readouterr()
    load_detector(model.cfg, f'{address}/{name}')
    assert f'{cached} is damaged' in capsys.readouterr().err
    assert cached.read_bytes() == content
    # a date is no hash, and is another file's next time
    for number in (1, 2):
        torch.save([number], folder / 'model-20240131.pth')
        assert load_checkpoint(f'{address}/model-20240131.pth') == [number]
    assert [path.name for path in cached.parent.iterdir()] == [name]


def test_one_process_of_a_machine_fetches(server, monkeypatch):
    """If it fails, eight processes download one file at a time."""
    folder, address = server
    torch.save([1], folder / 'new.pth')
    digest = hashlib.sha256((folder / 'new.pth').read_bytes()).hexdigest()[:8]
    (folder / 'new.pth').rename(folder / f'new-{digest}.pth')
    order = []
    download = torch.hub.download_url_to_file
    monkeypatch.setattr(safe_loading, 'barrier', lambda: order.append('barrier'))
    monkeypatch.setattr(
        torch.hub,
        'download_url_to_file',
        lambda *args, **kwargs: order.append('fetched') or download(*args, **kwargs),
    )
    for rank, expected in (('0', ['fetched', 'barrier']), ('1', ['barrier'])):
        monkeypatch.setenv('LOCAL_RANK', rank)
        assert load_checkpoint(f'{address}/new-{digest}.pth') == [1]
        assert order == expected
        order.clear()
    # those that wait hear of it and fail alike
    monkeypatch.setenv('LOCAL_RANK', '0')
    with pytest.raises(FileNotFoundError, match='404'):
        load_checkpoint(f'{address}/gone-{digest}.pth')
    assert order == ['fetched', 'barrier']


@pytest.mark.parametrize('wrapped', [False, True])
def test_bare_weights_take_the_names_of_the_config(model, tmp_path, recwarn, wrapped):
    """If it fails, objects are shown under names of COCO, or of nothing."""
    prefix = 'module.' if wrapped else ''
    path = tmp_path / 'bare.pth'
    torch.save({f'{prefix}{k}': v for k, v in model.state_dict().items()}, path)
    assert tuple(load_detector(model.cfg, path).dataset_meta['classes']) == CLASSES
    cfg = deepcopy(model.cfg)
    dataset = cfg.test_dataloader.dataset
    cfg.test_dataloader.dataset = dict(type='ConcatDataset', datasets=[dataset])
    assert tuple(load_detector(cfg, path).dataset_meta['classes']) == CLASSES
    assert not [w for w in recwarn if 'COCO' in str(w.message)]
    # the class of the data set names six
    del dataset['metainfo']
    cfg.test_dataloader.dataset = dataset
    with pytest.raises(ValueError, match='names 6 for a head of num_classes=2'):
        load_detector(cfg, path)
    cfg.model.roi_head.bbox_head.num_classes = 6
    torch.save(MODELS.build(cfg.model).state_dict(), path)
    assert load_detector(cfg, path).dataset_meta['classes'][0] == 'disc'
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match='holds a list'):
        load_detector(cfg, path)


class Checkpointed(nn.Module):
    """Parts that keep no activations, each in one of the ways of calling it."""

    def __init__(self, checkpoint):
        super().__init__()
        self.first, self.layer, self.last = (nn.Conv2d(c, 4, 3) for c in (3, 4, 4))
        self.checkpoint = checkpoint

    def part(self, x):
        return self.last(self.layer(x).relu()).tanh()

    def forward(self, x):
        return self.checkpoint(self.part, self.first(x)).sum((2, 3))


@pytest.mark.parametrize(
    'checkpoint',
    [
        lambda f, x: torch.utils.checkpoint.checkpoint(f, x, use_reentrant=True),
        lambda f, x: torch.utils.checkpoint.checkpoint(f, x, use_reentrant=False),
        lambda f, x: imported_checkpoint(f, x, use_reentrant=True),
    ],
)
@pytest.mark.parametrize('layer', ['first', 'layer'])
def test_explanation_with_gradient_checkpointing(checkpoint, layer):
    """If it fails, a detector trained with with_cp=True cannot be explained."""
    evidence = []
    for call in (lambda f, x: f(x), checkpoint):
        torch.manual_seed(0)
        net = Checkpointed(call).eval()
        image = torch.randn(1, 3, 12, 12)
        score = LayerScore(net, layer, lambda n: net(image.repeat(n, 1, 1, 1))[:, 0])  # noqa: B023
        evidence.append(collect_evidence(score))
    torch.testing.assert_close(evidence[1].gradients, evidence[0].gradients)
    torch.testing.assert_close(evidence[1].drops, evidence[0].drops)
    assert evidence[0].gradients.any()


def test_detectors_that_load_an_image_differently(model, photo, tmp_path, monkeypatch):
    """If it fails, the boxes of one detector are drawn over the other's image."""
    pairs = []
    for folder, color_type in (('a', 'color'), ('b', 'unchanged')):
        (tmp_path / folder).mkdir()
        cfg = deepcopy(model.cfg)
        cfg.test_dataloader.dataset.pipeline[0].color_type = color_type
        monkeypatch.setattr(model, 'cfg', cfg)
        pairs += files_of(model, tmp_path / folder)
    argv = ['detections', *pairs, '--images', str(photo)]
    argv += ['--out', str(tmp_path / 'x.png')]
    with pytest.raises(ValueError, match=r'dlu \(2\) loads .*photo\.png as \(64, 96\)'):
        load_tool('visualize').main(argv)
