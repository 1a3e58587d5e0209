"""Pictures of kernels and features must show what the network computes."""

import logging
from types import SimpleNamespace

import mmcv
import numpy as np
import pytest
import torch
from conftest import CONFIGS, shapes_config
from helpers import loops
from matplotlib.colors import to_hex
from matplotlib.patches import FancyArrowPatch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import HOOKS, init_default_scope
from torch import nn

from dlu_mmdet.config import set_upsampler
from dlu_mmdet.engine import build_runner
from dlu_mmdet.evaluation.complexity import detector_complexity, find_upsamplers
from dlu_mmdet.explain.cam import LayerScore, collect_evidence, explain
from dlu_mmdet.ops import library
from dlu_mmdet.upsamplers import build_upsampler
from dlu_mmdet.visualization.features import draw_features, record
from dlu_mmdet.visualization.kernel_figure import SUB_PIXEL_COLORS, draw_kernels
from dlu_mmdet.visualization.kernel_maps import (
    KernelMaps,
    describe_offsets,
    informative_positions,
    kernel_maps,
    recorded_kernels,
)


def perturbed(name, channels=4, scale_factor=2, **kwargs):
    """An upsampler as if trained: uneven kernels, offsets of several pixels."""
    torch.manual_seed(0)
    upsampler = build_upsampler(dict(type=name, **kwargs), channels, scale_factor)
    for parameter in upsampler.parameters():
        nn.init.normal_(parameter, std=0.5)
    return upsampler.eval()


@pytest.mark.parametrize('name', ['dlu', 'carafe'])
@pytest.mark.parametrize('scale_factor, up_kernel, up_group', [(2, 5, 1), (3, 3, 2)])
def test_kernels_give_the_output(name, scale_factor, up_kernel, up_group):
    """If it fails, the kernels in the picture are not those in use."""
    upsampler = perturbed(
        name, scale_factor=scale_factor, up_kernel=up_kernel, up_group=up_group
    )
    x = torch.randn(1, 4, 4, 5)
    maps = [kernel_maps(upsampler, x, group) for group in range(up_group)]
    masks = np.concatenate(
        [m.kernels.reshape(*m.size, -1).transpose(2, 0, 1) for m in maps]
    )
    out = loops.carafe(x.numpy(), masks[None], up_kernel, up_group, scale_factor)
    with torch.no_grad():
        np.testing.assert_allclose(out, upsampler(x), atol=2e-6)


def test_sampled_kernel_is_made_of_the_framed_source_kernels():
    """If it fails, the frames, the weights or the arrows are wrong."""
    upsampler = perturbed('dlu')
    x = torch.randn(1, 4, 6, 7)
    with torch.no_grad():
        _, offsets = upsampler.predict(x)
    maps = kernel_maps(upsampler, x)
    clamped = 0
    for y in range(12):
        for x_ in range(14):
            corners = maps.corners(x_, y)
            assert sum(corners.values()) == pytest.approx(1)
            sampled = sum(
                weight * maps.source_kernels[row, column]
                for (column, row), weight in corners.items()
            )
            np.testing.assert_allclose(sampled, maps.kernels[y, x_], atol=1e-6)
            # channel axis*s*s + i*s + j, axis 0 = x
            at = y % 2 * 2 + x_ % 2
            dx, dy = offsets[0, [at, 4 + at], y // 2, x_ // 2].tolist()
            place = [min(max(x_ // 2 + dx, 0), 6), min(max(y // 2 + dy, 0), 5)]
            np.testing.assert_allclose(maps.sample_points[y, x_], place, atol=1e-5)
            clamped += place != [x_ // 2 + dx, y // 2 + dy]
    assert 0 < clamped < 12 * 14


def test_most_informative_positions():
    """If it fails, the picture shows places where nothing happens."""
    kernels = np.full((24, 24, 3, 3), 1 / 9)
    nearest = np.zeros((3, 3))
    nearest[1, 1] = 1
    kernels[:, 12:] = nearest  # all alike in a source pixel, so of no interest
    kernels[10, 6], kernels[11, 7], kernels[18, 19] = nearest, nearest, 1 / 9
    kernels[0, 0] = kernels[22, 8] = nearest
    maps = KernelMaps(kernels, 2)
    # two in one place count once, the border not at all
    assert informative_positions(maps, 3)[:2] == [(19, 18), (6, 10)]
    assert informative_positions(maps, 1, (16, 24)) == [(6, 10)]
    difference = maps.sub_pixel_difference()
    # against a mean of three quarters a box filter and a quarter nearest
    assert difference[18, 19] == pytest.approx(0.75 * (1 - 1 / 9) * 2)
    assert difference[2, 2] == pytest.approx(0) == pytest.approx(difference[2, 20])
    tiny = KernelMaps(kernels[:4, :4], 2)
    assert informative_positions(tiny, 1) == [(0, 0)]


def detector(neck='dlu', **options):
    init_default_scope('mmdet')
    cfg = Config.fromfile(shapes_config(neck))
    cfg.merge_from_dict(options)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    for parameter in model.neck.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model.eval()


def item(h, w):
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.integers(0, 255, (3, h, w), dtype=np.uint8))
    sample = DetDataSample(metainfo=dict(img_shape=(h, w), ori_shape=(h, w)))
    return dict(inputs=image, data_samples=sample)


@torch.no_grad()
def test_recording_is_what_the_network_computes():
    """If it fails, the picture is of other features, or of another image."""
    model, data = detector(), item(90, 150)
    recording = record(model, data)
    assert recording.padded == (128, 192)
    # BGR in, RGB out
    shown = torch.from_numpy(recording.image).permute(2, 0, 1)
    assert torch.equal(shown, data['inputs'].flip(0))
    inputs = model.data_preprocessor(
        dict(inputs=[data['inputs']], data_samples=[data['data_samples']])
    )['inputs']
    outputs = model.extract_feat(inputs)
    assert list(recording.levels) == ['P2', 'P3', 'P4', 'P5', 'P6']
    for output, level in zip(outputs, recording.levels.values()):
        assert torch.equal(output, level)
    # 90 of 128 rows are 22.5 of 32 at stride 4
    assert recording.cropped('P2').shape == (64, 23, 38)

    assert sorted(recording.upsamplings) == ['P2', 'P3', 'P4', 'P5']
    (upsampling,) = recording.upsamplings['P2']
    assert upsampling.module is model.neck.upsample_modules[0]
    assert upsampling.output.shape == (1, 64, 32, 48)
    assert torch.equal(upsampling.output, upsampling.module(upsampling.source))
    # nothing stays behind
    assert not upsampling.module._forward_hooks


def test_upsamplers_are_found_inside_a_list_of_necks():
    """If it fails, Libra R-CNN and mmdet's own FPN_CARAFE have no pictures."""
    fpn = dict(in_channels=[32, 64, 128, 256], out_channels=64, num_outs=5)
    neck = [
        dict(type='FPN_CARAFE', upsample_cfg=dict(type='carafe'), **fpn),
        dict(type='BFP', in_channels=64, num_levels=5),
    ]
    init_default_scope('mmdet')
    cfg = Config.fromfile(CONFIGS / 'shapes' / 'faster-rcnn_r18_fpn-dlu_shapes.py')
    cfg.model.neck = neck
    recording = record(MODELS.build(cfg.model).eval(), item(64, 64))
    assert list(recording.levels) == ['P2', 'P3', 'P4', 'P5', 'P6']
    assert recorded_kernels(recording, 'P3').size == (8, 8)


def any_detector(name, **options):
    """A detector of mmdet's, with DLU in its neck."""
    init_default_scope('mmdet')
    cfg = get_config(f'mmdet::{name}.py')
    cfg.merge_from_dict({**options, 'model.backbone.init_cfg': None})
    set_upsampler(cfg, dict(type='dlu'))
    torch.manual_seed(0)
    return MODELS.build(cfg.model).eval(), cfg


LIST = [
    dict(type='FPN', in_channels=[64, 128, 256, 512], out_channels=32, num_outs=5),
    dict(type='BFP', in_channels=32, num_levels=5),
]
ANY = [
    ('yolox/yolox_tiny_8xb8-300e_coco', {}, {'P3': 1, 'P4': 1}),
    ('rtmdet/rtmdet_tiny_8xb32-300e_coco', {}, {'P3': 1, 'P4': 1}),
    # FPN's, then BFP's: to its middle level, and from there to the finer ones
    (
        'retinanet/retinanet_r18_fpn_1x_coco',
        {'model.neck': LIST, 'model.bbox_head.in_channels': 32},
        {'P2': 2, 'P3': 2, 'P4': 3},
    ),
]


@pytest.mark.parametrize(
    'name, options, expected', ANY, ids=['yolox', 'rtmdet', 'list']
)
def test_pictures_of_any_neck(name, options, expected):
    """If it fails, a neck with sites of its own has no pictures, or the wrong."""
    model, cfg = any_detector(name, **options)
    recording = record(model, item(96, 128))
    counts = {level: len(found) for level, found in recording.upsamplings.items()}
    assert counts == expected
    for level, found in recording.upsamplings.items():
        # random weights: a kernel each, of the map that was upsampled to the level
        maps = recorded_kernels(recording, level)
        assert maps.size == found[-1].output.shape[2:]
        draw_kernels(recording, {'dlu': maps}, [(1, 1)], level)
    draw_features({'dlu': recording})
    own = [
        f'neck.{key}'
        for key in model.neck.state_dict()
        if key.endswith('channel_compressor.weight')
    ]
    found = find_upsamplers(model)
    assert [f'{key}.channel_compressor.weight' for key in found] == own
    counted = detector_complexity(model, (96, 128))
    parameters = sum(p.numel() for m in found.values() for p in m.parameters())
    assert counted['upsampler_parameters'] == parameters > 0
    if library.is_available('cpu'):
        cfg = cfg.copy()
        set_upsampler(cfg, dict(type='nearest'))
        bare = detector_complexity(cfg, (96, 128))
        assert counted['flops'] - bare['flops'] == counted['upsampler_flops'] > 0


@pytest.mark.parametrize('layer', ['backbone.stage4', 'neck.out_convs.0'])
def test_heatmaps_of_any_neck(layer):
    """explain.py runs what follows a layer again and again."""
    model, _ = any_detector(ANY[0][0])
    data = item(96, 128)
    batch = model.data_preprocessor(
        dict(inputs=[data['inputs']], data_samples=[data['data_samples']])
    )

    def run(n):
        outs = model.extract_feat(batch['inputs'].expand(n, -1, -1, -1))
        return outs[0].flatten(1)[:, 5]

    evidence = collect_evidence(LayerScore(model, layer, run), batch_size=64)
    assert np.isfinite(explain(evidence, 'ablationcam').heatmap).all()


def test_features_share_one_color_scale():
    """If it fails, colors of two upsamplers cannot be compared."""
    recordings = {
        name: record(detector(name), item(64, 96)) for name in ('dlu', 'nearest')
    }
    recordings['nearest'].levels['P3'].mul_(5)
    recordings['dlu'].levels['P5'].mul_(100)
    figure = draw_features(recordings, 'image 1')
    image, *panels, _ = figure.axes
    assert len(panels) == 8
    ((low, high),) = {panel.images[0].get_clim() for panel in panels}
    assert low == 0
    # no map is all of the brightest color, not even one of few positions
    assert all(np.ma.median(panel.images[0].get_array()) < high for panel in panels)
    assert [panels[i].get_title() for i in (0, 4)] == ['dlu', 'nearest']
    for panel, name, level, h, w in (
        (panels[0], 'dlu', 'P2', 16, 24),
        (panels[5], 'nearest', 'P3', 8, 12),
    ):
        features = recordings[name].levels[level][0, :, :h, :w]
        expected = features.pow(2).mean(0).sqrt()
        np.testing.assert_allclose(panel.images[0].get_array(), expected, rtol=1e-5)
        assert panel.texts[0].get_text().startswith(level)
        # cells lie over the pixels that they stand for
        assert panel.images[0].get_extent() == [0, 96, 64, 0]
    with pytest.raises(ValueError, match='at least one detector'):
        draw_features({})


def test_kernel_picture_shows_kernels_and_places():
    """If it fails, a panel shows another kernel, or an arrow points elsewhere."""
    recording = record(detector(), item(64, 96))
    maps = {name: recorded_kernels(recording, 'P3') for name in ('one', 'two')}
    position = x, y = 5, 6
    figure = draw_kernels(recording, maps, [position], 'P3')
    panels = {panel.get_title(): panel for panel in figure.axes if panel.get_title()}
    kernel = panels['sampled kernel'].images[0]
    values = maps['one']
    np.testing.assert_array_equal(kernel.get_array(), values.kernels[y, x])
    mosaic = panels['source kernels at the arrow'].images[0]
    assert mosaic.get_clim() == kernel.get_clim()
    assert np.nanmax(mosaic.get_array()) <= kernel.get_clim()[1]
    # those with a weight and no others
    assert np.ma.count(mosaic.get_array()) == 25 * len(values.corners(x, y))
    rows = [panel.get_ylabel() for panel in figure.axes if panel.get_ylabel()]
    assert rows == ['1: position 5,6']
    # output pixels are 8 wide here, source pixels 16
    (arrow,) = [
        patch
        for patch in panels['the image around it'].patches
        if isinstance(patch, FancyArrowPatch) and patch.get_linewidth() > 2
    ]
    start, end = arrow._posA_posB
    np.testing.assert_allclose(start, [2.5 * 16, 3.5 * 16])
    np.testing.assert_allclose(end, (values.sample_points[y, x] + 0.5) * 16, rtol=1e-6)

    with pytest.raises(ValueError, match='5,99 is outside'):
        draw_kernels(recording, maps, [(5, 99)], 'P3')
    with pytest.raises(ValueError, match='must not be empty'):
        draw_kernels(recording, maps, [], 'P3')
    maps['two'] = recorded_kernels(recording, 'P4')
    with pytest.raises(ValueError, match='one size and ratio'):
        draw_kernels(recording, maps, [position], 'P3')


def test_color_bar_says_that_larger_values_are_shown():
    """If it fails, a reader takes the largest values for smaller ones."""
    recording = record(detector('carafe'), item(64, 96))
    kernels = recorded_kernels(recording, 'P3').kernels
    kernels[:] = 1 / 25
    for value, extend in ((0.04, 'neither'), (0.5, 'max')):
        kernels[2, 3, 1, 1] = value
        figure = draw_kernels(recording, {'carafe': KernelMaps(kernels, 2)}, [(6, 6)])
        (bar,) = [
            image.colorbar
            for axes in figure.axes
            for image in axes.images
            if image.colorbar and image.colorbar.ax.get_xlabel() == 'value of a kernel'
        ]
        assert (bar.vmin, bar.vmax) == (0, pytest.approx(0.04))
        assert bar.extend == extend


def test_the_picture_of_dysample_shows_where_it_samples():
    """If it fails, the arrows are missing, or explained as those of DLU."""
    recording = record(detector('dysample'), item(64, 96))
    maps = recorded_kernels(recording, 'P3')
    figure = draw_kernels(recording, {'dysample': maps}, [(5, 6)], 'P3')
    panels = {panel.get_title(): panel for panel in figure.axes if panel.get_title()}
    assert 'source kernels at the arrow' not in panels
    kernel = panels['kernel'].images[0].get_array()
    np.testing.assert_array_equal(kernel, maps.kernels[6, 5])
    *_, arrow = panels['the image around it'].patches
    end = (maps.sample_points[6, 5] + 0.5) * 16
    np.testing.assert_allclose(arrow._posA_posB[1], end, rtol=1e-6)
    key = [text.get_text() for text in figure.texts]
    assert key[-1] == 'arrow: to where\nit samples the map'
    figure.canvas.draw()
    assert figure.texts[-1].get_window_extent().x1 < figure.bbox.x1


@pytest.mark.parametrize('name', ['fade', 'sapa', 'freqfusion'])
def test_pictures_of_guided_upsamplers(name):
    """Their kernels depend on the guide, which the recording has to keep."""
    recording = record(detector(name), item(90, 150))
    (upsampling,) = recording.upsamplings['P2']
    assert upsampling.guide.shape == upsampling.output.shape
    maps = recorded_kernels(recording, 'P2')
    with torch.no_grad():
        kernels = upsampling.module.predict(upsampling.source, upsampling.guide)
    shown = maps.kernels.reshape(*maps.size, -1).transpose(2, 0, 1)
    np.testing.assert_array_equal(shown, kernels[0])
    figure = draw_kernels(recording, {name: maps}, informative_positions(maps, 1))
    assert any(panel.get_title() == 'kernel' for panel in figure.axes)


def test_large_ratios_show_corners_and_quarters():
    """If it fails, thousands of arrows take minutes and hide each other."""
    recording = record(detector('dlu-direct'), item(64, 96))
    maps = recorded_kernels(recording, 'P2')
    assert maps.scale_factor == 16 and maps.size == (16, 32)
    figure = draw_kernels(recording, {'dlu': maps}, [(20, 3)], 'P2')
    panels = {panel.get_title(): panel for panel in figure.axes if panel.get_title()}
    arrows = {
        name: [p for p in panels[name].patches if isinstance(p, FancyArrowPatch)]
        for name in ('dlu: image, P2', 'the image around it')
    }
    # of the source pixel in the image, and the position's own besides
    assert len(arrows['dlu: image, P2']) == 4
    *corners, own = arrows['the image around it']
    ends = [arrow._posA_posB[1] for arrow in (*corners, own)]
    places = [(16, 0), (31, 0), (16, 15), (31, 15), (20, 3)]
    expected = [(maps.sample_points[y, x] + 0.5) * 64 for x, y in places]
    np.testing.assert_allclose(ends, expected, rtol=1e-6)
    # the quarters, row by row; 20,3 is in the first
    colors = [to_hex(arrow.get_edgecolor()) for arrow in (*corners, own)]
    assert colors == [*SUB_PIXEL_COLORS, SUB_PIXEL_COLORS[0]]
    key = ' '.join(text.get_text() for text in figure.texts)
    assert 'its quarter of the source pixel' in key and '16 × 16 positions' in key

    cascade = recorded_kernels(record(detector(), item(64, 96)), 'P2')
    with pytest.raises(
        ValueError, match='one 32 x 16 at ratio 16, two 32 x 16 at ratio 2'
    ):
        draw_kernels(recording, {'one': maps, 'two': cascade}, [(20, 3)], 'P2')


def test_hook_shows_pictures_during_training(config, tmp_path):
    """If it fails, TensorBoard shows no pictures, or training ends with an error."""
    config.work_dir = str(tmp_path)
    # mmengine hands out visualizers by name, folder and all
    config.visualizer.name = tmp_path.name
    config.train_cfg.max_epochs = 2
    config.train_cfg.val_begin = 3
    config.train_dataloader.batch_size = 4
    config.train_dataloader.dataset.indices = 4
    config.default_hooks.checkpoint = None
    config.custom_hooks = [dict(type='UpsampleVisualizationHook', interval=2)]
    build_runner(config, 'train').train()
    images = sorted(tmp_path.glob('*/vis_data/vis_image/*.png'))
    assert [image.name for image in images] == ['features_2.png', 'kernels_2.png']
    assert np.ptp(mmcv.imread(str(images[1]))) > 200


def runner_of(model, number=1):
    shown = []
    return SimpleNamespace(
        model=model,
        epoch=0,
        iter=5,
        val_loop=object(),
        val_dataloader=SimpleNamespace(dataset=[item(64, 64)] * number),
        visualizer=SimpleNamespace(add_image=lambda *args: shown.append(args)),
        logger=logging.getLogger('test'),
        shown=shown,
    )


def test_hook_leaves_training_as_it_was(caplog):
    """If it fails, a run with pictures differs from one without, or breaks off."""
    hook = HOOKS.build(
        dict(type='UpsampleVisualizationHook', interval=6, by_epoch=False)
    )
    runner = runner_of(detector('nearest').train())
    before = {k: v.clone() for k, v in runner.model.state_dict().items()}
    random = torch.get_rng_state()
    hook.after_train_epoch(runner)
    assert not runner.shown
    hook.after_train_iter(runner, 0)
    # nearest has no kernels
    ((name, image, step),) = runner.shown
    assert (name, step, image.dtype, image.shape[2]) == ('features', 6, np.uint8, 3)
    assert runner.model.training and runner.model.backbone.bn1.training
    assert torch.equal(random, torch.get_rng_state())
    for key, value in runner.model.state_dict().items():
        assert torch.equal(value, before[key])

    # a loss that diverges is for others to report
    nn.init.constant_(runner.model.neck.lateral_convs[0].conv.weight, float('nan'))
    hook.after_train_iter(runner, 0)
    assert len(runner.shown) == 1 and 'not finite' in caplog.text


def test_hook_refuses_what_it_cannot_draw():
    """If it fails, the mistake shows after an epoch of training."""
    build = dict(type='UpsampleVisualizationHook')
    with pytest.raises(ValueError, match='index must be below .* 3, got 3'):
        HOOKS.build(dict(build, index=3)).before_train(runner_of(None, 3))
    runner = runner_of(None)
    runner.val_loop = None
    with pytest.raises(ValueError, match='val_dataloader'):
        HOOKS.build(build).before_train(runner)
    with pytest.raises(ValueError, match='interval must be at least 1, got 0'):
        HOOKS.build(dict(build, interval=0))


def test_how_far_offsets_reach():
    """4 x 4 output positions of 2 x 2 source pixels; two coordinates leave the map."""
    kernels = np.ones((4, 4, 1, 1), np.float32)
    offsets = np.full((4, 4, 2), 0.0, np.float32)
    offsets[0, :2] = -0.5, 0.25
    text = describe_offsets([KernelMaps(kernels, 2, offsets=offsets)] * 2)
    assert text == (
        'offsets reach 0.00 source pixels in the median, 0.50 in 95 %, 6.2% of their '
        'coordinates outside of the map'
    )
    assert describe_offsets([KernelMaps(kernels, 2)]) == ''
