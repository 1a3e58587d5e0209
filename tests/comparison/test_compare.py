"""Comparisons: what runs, what is refused, and which differences count."""

import csv
import errno
import json
import math
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import mmengine
import numpy as np
import pytest
import torch
from conftest import (
    CONFIGS,
    ROOT,
    SHAPES_DLU,
    as_arguments,
    load_tool,
    run,
    shapes_config,
)
from helpers.fake_tools import make_compare
from mmengine.config import Config
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dlu_mmdet.comparison import collect, estimate, plan, processes, runs
from dlu_mmdet.comparison import compare as execute
from dlu_mmdet.comparison import summary as comparison
from dlu_mmdet.comparison.details import details_of
from dlu_mmdet.config import read_config
from dlu_mmdet.datasets.shapes import CLASSES
from dlu_mmdet.engine import build_runner
from dlu_mmdet.evaluation.average_precision import (
    METRICS,
    Evaluation,
    differences_to_baseline,
    leave_out,
)
from dlu_mmdet.evaluation.error_types import KINDS

NEAREST = shapes_config('nearest')


# ---- evaluations and their differences ---------------------------------------------


def coco_of(images, objects):
    """A COCO of (image, category, x, y, w, h, iscrowd) objects."""
    coco = COCO()
    coco.dataset = dict(
        info={},
        images=[dict(id=i, width=400, height=400) for i in images],
        categories=[dict(id=c, name=str(c)) for c in (1, 2, 3)],
        annotations=[
            dict(
                id=number,
                image_id=o[0],
                category_id=o[1],
                bbox=list(o[2:6]),
                area=o[4] * o[5],
                iscrowd=o[6],
            )
            for number, o in enumerate(objects, 1)
        ],
    )
    coco.createIndex()
    return coco


def made_up(generator, num_images=30, skill=0.7):
    """Objects of three sizes and a detector that finds a part of them."""
    objects, detections = [], []
    for image in range(num_images):
        for _ in range(generator.integers(0, 6)):
            side = float(generator.choice([20, 50, 120]))
            x, y = generator.uniform(0, 400 - side, 2)
            category = int(generator.integers(1, 4))
            crowd = int(generator.random() < 0.1)
            objects.append((image, category, x, y, side, side, crowd))
            if generator.random() < skill:
                dx, dy = generator.normal(0, 0.08 * side, 2)
                detections.append(
                    (image, category, x + dx, y + dy, side, side, generator.random())
                )
        for _ in range(generator.integers(0, 4)):
            x, y = generator.uniform(0, 300, 2)
            side = float(generator.choice([20, 50, 120]))
            category = int(generator.integers(1, 4))
            detections.append((image, category, x, y, side, side, generator.random()))
    return objects, detections


def as_results(detections):
    return [
        dict(image_id=d[0], category_id=d[1], bbox=list(d[2:6]), score=d[6])
        for d in detections
    ]


def by_pycocotools(coco, results):
    evaluation = COCOeval(coco, coco.loadRes(results), 'bbox')
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats[:6]


def test_metrics_equal_pycocotools():
    """On the whole set: all six numbers, crowds and sizes included."""
    for seed in range(3):
        objects, detections = made_up(np.random.default_rng(seed))
        coco = coco_of(range(30), objects)
        results = as_results(detections)
        evaluation = Evaluation.from_coco(coco, results, [1, 2, 3])
        ones = np.ones((1, 30), dtype=int)
        np.testing.assert_allclose(
            evaluation.metrics(ones)[0], by_pycocotools(coco, results), atol=1e-12
        )


def test_metrics_of_repeated_images_equal_pycocotools():
    """Weights are scored as a data set with those images copied."""
    objects, detections = made_up(np.random.default_rng(3))
    evaluation = Evaluation.from_coco(
        coco_of(range(30), objects), as_results(detections), [1, 2, 3]
    )
    weights = np.random.default_rng(1).multinomial(30, [1 / 30] * 30, size=4)
    assert weights.max() > 1 and (weights.sum(axis=1) == 30).all()
    for draw, found in zip(weights, evaluation.metrics(weights)):
        copies = [
            (image, image + 1000 * c)
            for image, count in enumerate(draw)
            for c in range(count)
        ]
        coco = coco_of(
            [new for _, new in copies],
            [(new, *o[1:]) for old, new in copies for o in objects if o[0] == old],
        )
        results = as_results(
            [(new, *d[1:]) for old, new in copies for d in detections if d[0] == old]
        )
        np.testing.assert_allclose(found, by_pycocotools(coco, results), atol=1e-12)


def test_images_left_out_with_equal_scores_equal_pycocotools():
    """Detectors of few bits give many detections of one image the same score."""
    objects, detections = made_up(np.random.default_rng(8))
    detections = [(*d[:6], round(d[6], 1)) for d in detections]
    whole = coco_of(range(30), objects), as_results(detections)
    evaluation = Evaluation.from_coco(*whole, [1, 2, 3])
    weights = leave_out(30, 4)
    assert weights.shape == (4, 30) and (weights.sum(axis=0) == 3).all()
    for kept, found in zip(weights, evaluation.metrics(weights)):
        coco = coco_of(
            np.flatnonzero(kept).tolist(), [o for o in objects if kept[o[0]]]
        )
        results = as_results([d for d in detections if kept[d[0]]])
        np.testing.assert_allclose(found, by_pycocotools(coco, results), atol=1e-12)


def test_a_category_alone_equals_pycocotools():
    objects, detections = made_up(np.random.default_rng(6))
    coco, results = coco_of(range(30), objects), as_results(detections)
    evaluation = Evaluation.from_coco(coco, results, [1, 2, 3])
    for k, category in enumerate((1, 2, 3)):
        alone = COCOeval(coco, coco.loadRes(results), 'bbox')
        alone.params.catIds = [category]
        alone.evaluate()
        alone.accumulate()
        alone.summarize()
        found = evaluation.category(k).score()
        np.testing.assert_allclose(list(found.values()), alone.stats[:6], atol=1e-12)


def test_evaluations_are_kept_on_disk(tmp_path):
    objects, detections = made_up(np.random.default_rng(4))
    whole = Evaluation.from_coco(
        coco_of(range(30), objects), as_results(detections), [1, 2, 3]
    )
    whole.save(tmp_path / 'matches.npz')
    weights = leave_out(30, 3)
    np.testing.assert_array_equal(
        Evaluation.load(tmp_path / 'matches.npz').metrics(weights),
        whole.metrics(weights),
    )


def test_a_detector_without_detections_scores_zero():
    coco = coco_of(range(2), [(0, 1, 10, 10, 50, 50, 0)])
    found = Evaluation.from_coco(coco, [], [1, 2, 3]).metrics(np.ones((1, 2), int))[0]
    assert dict(zip(METRICS, found))['AP'] == 0
    assert np.isnan(dict(zip(METRICS, found))['APl'])


def test_known_differences():
    """100 images with one object each. One detector finds all; another misses
    in 20; a third is the second with other images missed."""
    generator = np.random.default_rng(5)
    objects = [(image, 1, 100.0, 100.0, 50.0, 50.0, 0) for image in range(100)]
    coco = coco_of(range(100), objects)
    scores = generator.random(100)

    def detector(missed):
        found = [(*o[:6], scores[o[0]]) for o in objects if o[0] not in missed]
        return {0: Evaluation.from_coco(coco, as_results(found), [1])}

    differences = differences_to_baseline(
        dict(
            base=detector(range(20)),
            better=detector([]),
            other=detector(range(50, 70)),
            same=detector(range(20)),
        ),
        'base',
    )
    better, other, same = (differences[n]['AP'] for n in ('better', 'other', 'same'))
    # 81 of 101 recall thresholds are reached with 80 of 100 objects
    assert better.difference == pytest.approx(20 / 101)
    assert better.low < 20 / 101 < better.high
    # the missed of other images are binomial: n 100, p 0.2
    assert better.high - better.low == pytest.approx(2 * 1.98 * 0.04, rel=0.2)
    assert other.difference == 0
    assert other.low < 0 < other.high
    # paired: the same detections differ on no images
    assert same.difference == 0 and same.low is same.high is None
    # one seed cannot tell
    assert better.significant is other.significant is same.significant is None
    assert better.seeds == [better.difference]


def test_seeds_are_averaged():
    objects, first = made_up(np.random.default_rng(6))
    _, second = made_up(np.random.default_rng(6), skill=0.4)
    coco = coco_of(range(30), objects)
    a, b = (
        Evaluation.from_coco(coco, as_results(d), [1, 2, 3]) for d in (first, second)
    )
    found = differences_to_baseline(dict(base={0: a, 1: a}, two={1: a, 0: b}), 'base')
    found = found['two']['AP']
    assert found.seeds[0] == 0 and found.seeds[1] != 0
    assert found.difference == pytest.approx(np.mean(found.seeds))
    # two seeds, one of which differs
    assert found.low < 0 < found.high and not found.significant


def test_evaluations_of_other_images_are_refused():
    few = Evaluation.from_coco(coco_of(range(2), []), [], [1])
    more = Evaluation.from_coco(coco_of(range(3), []), [], [1])
    with pytest.raises(ValueError, match='other images'):
        differences_to_baseline(dict(a={0: few}, b={0: more}), 'a')
    with pytest.raises(ValueError, match='b has no evaluation'):
        differences_to_baseline(dict(a={0: few}, b={}), 'a')
    with pytest.raises(ValueError, match="baseline 'c'.*a, b"):
        differences_to_baseline(dict(a={0: few}, b={0: few}), 'c')


# ---- what runs ---------------------------------------------------------------------


def test_order_names_and_folders(tmp_path):
    direct = shapes_config('dlu-direct')
    planned = plan.plan([SHAPES_DLU, direct], [4, 7], tmp_path)
    # a seed is done before the next: an early table compares like with like
    assert [(r.name, r.seed) for r in planned] == [
        ('dlu', 4),
        ('dlu-direct', 4),
        ('dlu', 7),
        ('dlu-direct', 7),
    ]
    assert [r.cfg.randomness.seed for r in planned] == [4, 4, 7, 7]
    assert planned[0].work_dir == tmp_path / SHAPES_DLU.stem / 'seed4'
    assert all(r.state == 'not started' for r in planned)
    # two detectors with one upsampler go by their files
    yolox = CONFIGS / 'yolox' / 'yolox_s_pafpn-dlu_8xb8-300e_coco.py'
    rtmdet = CONFIGS / 'rtmdet' / 'rtmdet_tiny_pafpn-dlu_8xb32-300e_coco.py'
    assert plan.plan([yolox], [0], tmp_path / 'x')[0].name == 'dlu'
    with pytest.raises(ValueError, match='differ in data or evaluators'):
        plan.plan([yolox, rtmdet], [0], tmp_path / 'y')
    Config.fromfile(yolox).dump(tmp_path / 'same-dlu.py')
    both = plan.plan([yolox, tmp_path / 'same-dlu.py'], [0], tmp_path / 'z')
    assert [r.name for r in both] == [yolox.stem, 'same-dlu']


def test_commands_of_the_launchers(tmp_path):
    """With torchrun or without it."""
    (planned,) = plan.plan([SHAPES_DLU], [0], tmp_path)
    plain = runs.Launch().train(planned)
    assert plain[1:4] == ['-m', 'dlu_mmdet.cli.train', str(planned.config)]
    assert '--launcher' not in plain
    # only what has begun is resumed: a config may name a checkpoint to start from
    assert '--resume' not in plain
    planned.work_dir.mkdir(parents=True)
    (planned.work_dir / 'last_checkpoint').write_text('')
    assert planned.state == 'not started'
    (planned.work_dir / 'epoch_1.pth').write_bytes(b'PK: the beginning of a zip')
    assert planned.state == 'not started'
    torch.save({}, planned.work_dir / 'epoch_1.pth')
    (planned.work_dir / 'last_checkpoint').write_text(
        str(planned.work_dir / 'epoch_1.pth')
    )
    assert planned.state == 'half-finished'
    assert '--resume' in runs.Launch().train(planned)
    torchrun = runs.Launch('pytorch', 8, ('--amp',)).train(planned)
    assert 'torch.distributed.run' in torchrun and '--nproc_per_node=8' in torchrun
    assert torchrun[-2:] == ['--launcher', 'pytorch'] and '--amp' in torchrun
    tested = runs.Launch('pytorch', 8).test(planned)
    assert tested[tested.index('--out') + 1].endswith('predictions.pkl')


@pytest.fixture(scope='module')
def options(small):
    """As --cfg-options: two epochs, and everything detected counts."""
    return {
        **small,
        'train_cfg.max_epochs': 2,
        'train_cfg.val_interval': 1,
        'param_scheduler.1.end': 2,
        'model.test_cfg.rcnn.score_thr': 0.0,
    }


def compare(*arguments):
    """The command in this process; returns its exit status."""
    return load_tool('compare').main([*map(str, arguments)])


def test_time_left():
    """From mmengine's estimate at first, then from the runs that are done."""
    time_left = execute.time_left
    line = 'Epoch(train) [1][50/50] lr: 1e-3 eta: 1 day, 0:01:00 time: 0.5'
    # this run takes a minute that passed, a day and a minute; so do two others
    left = execute.eta(line)
    assert left == 24 * 3600 + 60 and execute.eta('Epoch(test) [19/19]') is None
    assert time_left([(60, left)], [], 2) == ' 3 days, 0:05:00 left for all:'
    assert time_left([(60, None)], [], 2) == ''
    assert time_left([(40, left)], [100, 140], 2) == ' 0:05:20 left for all:'
    # two at a time; the second has not said anything yet
    assert time_left([(40, 60), (10, None)], [], 3, 2) == ' 0:03:45 left for all:'
    # none waits: all are done when the last one is
    assert time_left([(110, 1), (20, 1)], [120], 0, 2) == ' 0:01:40 left for all:'


@pytest.fixture(scope='module')
def compared(options, tmp_path_factory):
    """Folder and command of a comparison of two upsamplers, which has run."""
    folder = tmp_path_factory.mktemp('compared') / 'work'
    command = [SHAPES_DLU, NEAREST, '--work-dir', folder, '--resamples', 100]
    command += ['--baseline', 'nearest', *as_arguments(options)]
    assert compare(*command) == 0
    return folder, command


def test_one_command_gives_tables_pictures_and_a_page(compared):
    folder, _ = compared
    text = (folder / 'comparison.md').read_text()
    summary = json.loads((folder / 'comparison.json').read_text())
    assert {row['name'] for row in summary['rows']} == {'dlu', 'nearest'}
    runs_of = {r['name']: r for r in summary['runs']}
    for row in summary['rows']:
        own = runs_of[row['name']]
        assert (row['AP'], row['AP_std'], row['seeds']) == (own['AP'], None, [0])
        assert (row['upsampler_parameters'] > 0) == (row['name'] == 'dlu')
        assert row['neck_ms'] > 0 and row['neck_mb'] > 0
        assert row['training_seconds'] > 0
        # two epochs of two iterations, and an AP for each epoch
        assert own['loss'][-1][0] == 4
        assert [epoch for epoch, _ in own['validation']] == [1, 2]
        # mmdet keeps three decimals of pycocotools' AP
        assert own['validation'][-1][1] == pytest.approx(own['AP'], abs=5.1e-4)
    found = summary['differences']['dlu']['AP']
    expected = runs_of['dlu']['AP'] - runs_of['nearest']['AP']
    assert found['difference'] == pytest.approx(expected, abs=1e-9)
    # of few images, so without an interval
    assert found['images'] < 20 and found['low'] is found['high'] is None
    with (folder / 'comparison.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert [row['name'] for row in rows] == [r['name'] for r in summary['rows']]
    # scripts of users read these
    assert [*rows[0]] == [key for key in summary['rows'][0] if key != 'image_size']
    metrics = ('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl')
    spreads = (*metrics, 'training_seconds', 'seconds_per_iteration')
    assert [*summary['rows'][0]] == [
        *('name', 'config', 'seeds'),
        *(key + end for key in spreads for end in ('', '_std')),
        *('diverged', 'parameters', 'flops', 'upsampler_parameters'),
        *('upsampler_flops', 'image_size', 'device', 'neck_mb', 'neck_ms'),
        *('published_ap', 'published_by'),
    ]
    assert ' '.join(summary) == (
        'baseline num_images rows differences runs diverged environment errors sizes'
    )
    assert ' '.join(found) == (
        'difference low high p p_holm significant seeds objects images'
    )
    assert ' '.join(summary['environment']) == (
        'date machine device python torch mmcv mmdet mmengine fused_operators'
    )
    written = json.loads(next(folder.glob('*/*/result.json')).read_text())
    assert {**written, 'name': written['upsampler']} in summary['runs']
    page = (folder / 'report.html').read_text()
    assert page.count('data:image/png;base64,') == 5
    for found in summary['sizes'].values():
        objects = sum(count['objects'] for count in found['counts'].values())
        assert objects == summary['errors']['counts']['missed']['objects'] > 0
    assert 'src="http' not in page and 'href=' not in page  # nothing is fetched
    # one picture of each test image, and the kinds of error of both
    assert page.count('data:image/jpeg;base64,') == 8
    assert {*summary['errors']['means']} == {'dlu', 'nearest'}
    assert [*summary['errors']['differences']['dlu']] == [*KINDS]
    assert f'| {" | ".join(KINDS)} |' in re.sub(' +', ' ', text)
    for name in ('accuracy', 'differences', 'learning'):
        assert (folder / f'comparison_{name}.png').read_bytes()[:4] == b'\x89PNG'
    # these data and this backbone are those of no publication
    assert 'published' not in (text + page).lower()


def test_the_result_json_of_every_run_scores_the_same(compared, shapes_root):
    coco = COCO(str(shapes_root / 'annotations' / 'instances_val.json'))
    for file in compared[0].glob('*/seed0/result.json'):
        detections = json.loads((file.parent / 'predictions.bbox.json').read_text())
        scores = by_pycocotools(coco, detections)
        kept = json.loads(file.read_text())
        expected = [np.nan if kept[key] is None else kept[key] for key in METRICS]
        np.testing.assert_allclose(np.where(scores < 0, np.nan, scores), expected)


def test_mean_and_spread_over_seeds(compared, options, tmp_path):
    """A second seed that scored 0.1 and 0.3 more than the first."""
    work_dir = tmp_path / 'work'
    planned = plan.plan([SHAPES_DLU, NEAREST], [0, 1], work_dir, options)
    gains = dict(dlu=0.1, nearest=0.3)
    for planned_run in planned:
        first = compared[0] / planned_run.stem / 'seed0'
        shutil.copytree(first, planned_run.work_dir)
        result = json.loads(planned_run.result_file.read_text())
        result['AP'] = 0.5 + gains[planned_run.name] * planned_run.seed
        result['seed'] = planned_run.seed
        planned_run.result_file.write_text(json.dumps(result))
    summary = comparison.summarize(planned, 'nearest', rounds=1)
    assert [row.name for row in summary.rows] == ['nearest', 'dlu']
    for row in summary.rows:
        gain = gains[row.name]
        assert row.seeds == [0, 1]
        assert row.ap.mean == pytest.approx(0.5 + gain / 2)
        assert row.ap.std == pytest.approx(gain / 2**0.5)
    assert comparison.accuracy_table(summary)[1][1:3] == ['2', '0.650 ± 0.212']
    assert len(summary.differences['dlu']['AP'].seeds) == 2


def test_the_same_seed_gives_the_same_data_order(options, tmp_path):
    """Else seeds would add noise to differences instead of taking it away."""
    orders = []
    for number, planned in enumerate(
        plan.plan([SHAPES_DLU, NEAREST], [0, 1], tmp_path, options)
    ):
        planned.cfg.work_dir = str(tmp_path / str(number))
        planned.cfg.experiment_name = f'{tmp_path.name}-{number}'
        loader = build_runner(planned.cfg, 'train').train_loop.dataloader
        orders.append([s.img_id for batch in loader for s in batch['data_samples']])
    assert orders[0] == orders[1] and orders[2] == orders[3]
    assert orders[0] != orders[2]


def test_finished_runs_are_not_repeated(compared, capsys):
    folder, command = compared
    before = {path: path.stat().st_mtime_ns for path in folder.glob('*/*/epoch_2.pth')}
    assert len(before) == 2
    assert compare(*command) == 0
    output = capsys.readouterr().out
    assert output.count('finished already') == 2
    sentence, table = (folder / 'comparison.md').read_text().split('\n\n')[:2]
    assert table in output and 'the highest mean AP' in sentence
    assert 'best AP: ' in output
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason='two cores are needed')
def test_two_at_a_time_find_the_same(compared, tmp_path):
    """File by file, apart from times, as one after the other with one thread."""
    folder = tmp_path / 'work'
    command = [folder if c == compared[0] else c for c in compared[1]]
    assert compare(*command, '--jobs', 2) == 0
    found = sorted(p.relative_to(folder) for p in folder.glob('*/*/*.*'))
    assert found == sorted(
        p.relative_to(compared[0]) for p in compared[0].glob('*/*/*.*')
    )
    for stem in (SHAPES_DLU.stem, NEAREST.stem):
        results, weights, matches = [], [], []
        for each in (folder, compared[0]):
            own = each / stem / 'seed0'
            result = json.loads((own / 'result.json').read_text())
            # the loss of each iteration and the AP to the last digit
            timed = ('training_seconds', 'seconds_per_iteration', 'checkpoint')
            results.append({k: v for k, v in result.items() if k not in timed})
            weights.append(torch.load(own / 'epoch_2.pth', weights_only=False))
            matches.append(Evaluation.load(own / 'matches.npz'))
        assert results[0] == results[1]
        for key, value in weights[0]['state_dict'].items():
            assert torch.equal(value, weights[1]['state_dict'][key]), key
        np.testing.assert_array_equal(matches[0].hit, matches[1].hit)


@pytest.mark.slow
def test_killed_it_goes_on_where_it_was(options, tmp_path, capsys):
    """kill -9 in the second epoch: the same command ends the run, from there."""
    command = ['tools/compare.py', SHAPES_DLU, '--work-dir', tmp_path / 'work']
    command += ['--resamples', 100]
    command += as_arguments({**options, 'train_cfg.max_epochs': 3})
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    folder = tmp_path / 'work' / SHAPES_DLU.stem / 'seed0'
    deadline = time.monotonic() + 300
    while not (folder / 'last_checkpoint').exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / 'result.json').exists()
    assert compare(*command[1:]) == 0
    assert re.search(r'goes on from .*epoch_\d', capsys.readouterr().out)
    assert 'resumed epoch' in (folder / 'train.log').read_text()
    result = json.loads((folder / 'result.json').read_text())
    # the checkpoint comes before the validation of its epoch
    assert [epoch for epoch, _ in result['validation']][-2:] == [2, 3]
    assert result['loss'][-1][0] == 6
    assert result['upsampler'] == 'dlu' and result['upsample_cfg']['type'] == 'dlu'
    assert tuple(result['classes']) == CLASSES
    means = [found['AP'] for found in result['classes'].values()]
    found = [ap for ap in means if ap is not None]
    assert result['AP'] == pytest.approx(np.mean(found))


@pytest.mark.slow
def test_two_kills(tmp_path):
    """A short run of the script, so that it stays able to run."""
    command = ['tests/stress/kills.py', '--work-dir', tmp_path / 'kills', '--kills', 2]
    assert 'summary: 2 kills, everything went on' in run(*command).stdout


def test_a_failing_run_is_reported_and_the_others_go_on(
    options, compared, tmp_path, capsys
):
    """The first config has an optimizer that is none; its log's end is shown."""
    broken = Config.fromfile(NEAREST)
    broken.model.neck.upsample_cfg.type = 'bilinear'
    broken.optim_wrapper.optimizer = dict(type='SGD', lr=-1)
    broken.dump(tmp_path / 'broken.py')
    work_dir = tmp_path / 'work'
    shutil.copytree(compared[0], work_dir)
    held = dict(configs=[SHAPES_DLU.stem], seeds=[0])
    (work_dir / 'plan.json').write_text(json.dumps(held))
    command = [tmp_path / 'broken.py', SHAPES_DLU, '--work-dir', work_dir]
    command += ['--baseline', 'bilinear']
    assert compare(*command, '--resamples', 100, *as_arguments(options)) == 1
    errors = capsys.readouterr().err
    assert 'Invalid learning rate: -1' in errors and 'train.log' in errors
    assert 'failed: bilinear seed 0' in errors
    assert 'no run of the baseline bilinear is finished' in errors
    assert '| dlu ' in (work_dir / 'comparison.md').read_text()


def test_a_detector_that_cannot_run_is_refused_before_training(options, tmp_path):
    """Its head has a layer that does not fit: said at once, with the config."""
    broken = Config.fromfile(NEAREST)
    broken.model.roi_head.bbox_head.in_channels = 65
    broken.dump(tmp_path / 'broken.py')
    command = [SHAPES_DLU, tmp_path / 'broken.py', '--work-dir', tmp_path / 'work']
    with pytest.raises(ValueError, match=r'broken\.py cannot be run .*mat1 and mat2'):
        compare(*command, *as_arguments(options))
    assert not (tmp_path / 'work').exists()


def test_the_score_of_masks_is_kept(tmp_path):
    """Else a Mask R-CNN's run leaves its mask AP in a log alone."""
    ends = ('', '_50', '_75', '_s', '_m', '_l')
    tested = {f'coco/segm_mAP{end}': 0.1 * i for i, end in enumerate(ends, 1)}
    tested['coco/segm_mAP_l'] = -1.0
    (tmp_path / '20260101_000000').mkdir()
    (tmp_path / '20260101_000000' / 'test.json').write_text(json.dumps(tested))
    kept = collect._mask_metrics(SimpleNamespace(work_dir=tmp_path))
    assert kept['mask_AP'] == 0.1 and kept['mask_AP75'] == pytest.approx(0.3)
    assert kept['mask_APl'] is None and len(kept) == 6


def test_dry_run_prints_and_leaves_nothing(options, tmp_path, capsys):
    command = [SHAPES_DLU, '--seeds', 0, 1, '--work-dir', tmp_path / 'work']
    command += ['--launcher', 'pytorch', '--dry-run', *as_arguments(options)]
    assert compare(*command) == 0
    output = capsys.readouterr().out
    assert output.count('dlu seed') == 2 and 'not started' in output
    assert len(re.findall(r'training \d+:\d\d:\d\d', output)) == 2
    assert '--nproc_per_node=8' in output
    assert '--launcher pytorch --processes 8' in output
    assert not (tmp_path / 'work').exists()


def test_dry_run_offers_what_the_machine_has(options, tmp_path, capsys, monkeypatch):
    """Else somebody on two cores is told of eight GPUs."""
    monkeypatch.setattr(execute, 'estimate', lambda *_: dict(train=60.0, test=1.0))
    command = [SHAPES_DLU, '--work-dir', tmp_path / 'work', '--dry-run']
    for gpus in (0, 2):
        monkeypatch.setattr(torch.cuda, 'device_count', lambda gpus=gpus: gpus)
        compare(*command, *as_arguments(options))
        output = capsys.readouterr().out
        assert 'to do: 0:01:01' in output
        assert ('--nproc_per_node=8' in output) == (gpus > 1)


@pytest.mark.parametrize('validated', [True, False])
def test_dry_run_of_what_reads_the_message_hub(options, tmp_path, validated):
    """A batch augmentation as YOLOX's; without validation one test is left."""
    resize = dict(type='BatchSyncRandomResize', random_size_range=(64, 128), interval=1)
    own = {'model.data_preprocessor.batch_augments': [resize]}
    if not validated:
        own.update(val_dataloader=None, val_evaluator=None, val_cfg=None)
    cfg = Config.fromfile(SHAPES_DLU)
    cfg.merge_from_dict({**options, **own})
    cfg.dump(tmp_path / 'own.py')
    (planned,) = plan.plan([tmp_path / 'own.py'], [0], tmp_path / 'work')
    found = estimate.estimate(planned, iterations=1)
    assert found['train'] > 0 and found['test'] > 0


# ---- runs that diverge -------------------------------------------------------------


def strict(text):
    """JSON as other programs read it."""

    def refuse(name):
        raise ValueError(f'{name} is not JSON')

    return json.loads(text, parse_constant=refuse)


def test_a_run_that_diverged_is_left_out(small, tmp_path, monkeypatch, capsys):
    """Said where the others are; not trained again; joined as such."""
    compare = make_compare(monkeypatch, tmp_path, small)
    monkeypatch.setenv('DIVERGE', f'{SHAPES_DLU.stem}/seed1 {NEAREST.stem}')
    bilinear = CONFIGS / 'shapes' / 'faster-rcnn_r18_fpn-bilinear_shapes.py'
    command = [SHAPES_DLU, NEAREST, bilinear, '--seeds', 0, 1]
    assert compare(*command) == 0
    shown = capsys.readouterr()
    assert shown.out.count('diverged at iteration 31, and is left out') == 3
    assert 'best AP: nearest' not in shown.out and not shown.err
    work_dir = tmp_path / 'work'
    table = (work_dir / 'comparison.md').read_text()
    assert re.search(r'\| dlu +\| +1 \(1 of 2 diverged\) \| +0', table)
    assert re.search(r'\| nearest +\| +0 \(2 of 2 diverged\) \| +- \|', table)
    assert 'dlu: 1 of 2 seeds diverged and are left out: seed 1 at iteration' in table
    summary = strict((work_dir / 'comparison.json').read_text())
    assert {(r['name'], r['seed']) for r in summary['diverged']} == {
        ('dlu', 1),
        ('nearest', 0),
        ('nearest', 1),
    }
    assert {row['name']: row['seeds'] for row in summary['rows']} == {
        'dlu': [0],
        'bilinear': [0, 1],
    }
    for file in work_dir.glob('*/*/result.json'):
        strict(file.read_text())
    # nothing is trained again, whatever it would come to now
    monkeypatch.delenv('DIVERGE')
    trained = [*work_dir.glob('*/*/started.jsonl')]
    before = [file.read_text() for file in trained]
    assert compare(*command) == 0 and compare(*command, '--report-only') == 0
    assert before == [file.read_text() for file in trained]
    capsys.readouterr()
    assert compare('--join', work_dir) == 0
    assert 'nearest: 2 of 2 seeds diverged' in capsys.readouterr().out


def test_where_all_diverged_there_is_no_best(small, tmp_path, monkeypatch, capsys):
    compare = make_compare(monkeypatch, tmp_path, small)
    monkeypatch.setenv('DIVERGE', 'seed')
    assert compare(SHAPES_DLU, NEAREST) == 1
    shown = capsys.readouterr()
    assert 'all 2 runs that ended have diverged' in shown.err
    assert 'best AP' not in shown.out


def test_a_divergence_is_seen_by_who_comes_later(small, tmp_path, monkeypatch):
    """The comparison was killed before it could note what its training had left."""
    monkeypatch.setenv('DIVERGE', 'seed')
    (planned,) = plan.plan([SHAPES_DLU], [0], tmp_path / 'work', small)
    planned.work_dir.mkdir(parents=True)
    found = dict(iteration=3, reason='the loss is nan')
    (planned.work_dir / 'diverged.json').write_text(json.dumps(found))
    (line,) = processes.execute(planned)
    assert 'diverged at iteration 3' in line and planned.state == 'diverged'


def test_results_of_an_earlier_version_that_diverged(tmp_path):
    """They hold an AP of 0 and NaN, which is not JSON."""
    (planned,) = plan.plan([SHAPES_DLU], [0], tmp_path)
    planned.work_dir.mkdir(parents=True)
    for losses, ap, state in (
        ([[10, 2.0], [20, math.nan]], 0.0, 'diverged'),
        ([[10, math.nan], [20, 2.0]], 0.0, 'finished'),
        ([[10, 2.0], [20, math.nan]], 0.3, 'finished'),
    ):
        found = dict(config='', upsampler='dlu', seed=0, validation=[], loss=losses)
        found.update(dict.fromkeys(METRICS, ap))
        planned.result_file.write_text(json.dumps(found))
        assert planned.state == state


@pytest.mark.slow
def test_a_training_that_diverges(options, tmp_path, capsys):
    """With a learning rate of 1e8: stopped, and tools/train.py says so."""
    command = [SHAPES_DLU, '--work-dir', tmp_path / 'work', '--resamples', 100]
    command += as_arguments({**options, 'optim_wrapper.optimizer.lr': 1e8})
    assert compare(*command) == 1
    assert 'diverged at iteration 2' in capsys.readouterr().out
    (log,) = tmp_path.glob('work/*/*/train.log')
    assert 'training diverged at iteration 2: the loss is' in log.read_text()
    strict((log.parent / 'result.json').read_text())


# ---- bad input ---------------------------------------------------------------------


@pytest.mark.parametrize(
    'key, value',
    [
        ('train_dataloader.dataset.ann_file', 'annotations/other.json'),
        ('test_dataloader.dataset.data_root', 'elsewhere/'),
        ('test_evaluator.metric', ['bbox', 'proposal']),
    ],
)
def test_configs_of_other_data_or_evaluators_are_refused(tmp_path, key, value):
    cfg = Config.fromfile(SHAPES_DLU)
    before = cfg.to_dict()
    for part in key.split('.'):
        before = before[part]
    cfg.merge_from_dict({key: value})
    cfg.dump(tmp_path / 'other.py')
    with pytest.raises(ValueError) as info:
        plan.plan([NEAREST, tmp_path / 'other.py'], [0], tmp_path / 'work')
    message = str(info.value)
    assert key in message and repr(value) in message and repr(before) in message


def test_what_cannot_be_compared_is_refused_before_training(tmp_path):
    for options, message in (
        ({'test_evaluator.ann_file': None}, 'test_evaluator must be a CocoMetric'),
        ({'test_evaluator.metric': 'segm'}, "metric 'bbox'.*'segm'"),
        ({'model.neck': None}, 'has no model.neck'),
    ):
        with pytest.raises(ValueError, match=message):
            plan.plan([SHAPES_DLU], [0], tmp_path, options)


R50_DLU = CONFIGS / 'faster_rcnn' / 'faster-rcnn_r50_fpn-dlu_1x_coco.py'


def test_published_figures_are_of_the_same_detector():
    def of(name):
        return comparison.published(Config.fromfile(CONFIGS / f'{name}.py'))[0]

    assert of('faster_rcnn/faster-rcnn_r50_fpn-dlu_1x_coco') == 38.6
    assert of('mask_rcnn/mask-rcnn_r50_fpn-carafe_1x_coco') == 39.3
    assert of('yolox/yolox_s_pafpn-dlu_8xb8-300e_coco') is None
    assert of('shapes/faster-rcnn_r18_fpn-dlu_shapes') is None
    # mmdet writes every argument out
    carafe = read_config('mmdet::carafe/faster-rcnn_r50_fpn-carafe_1x_coco.py')
    assert comparison.published(carafe) == (38.6, 'mmdet, DLU')


def test_no_figure_is_published_of_another_setting():
    settings = Config.fromfile(R50_DLU).to_dict()
    for key, value in {
        'model.backbone.depth': 18,
        'model.backbone.norm_cfg.type': 'GN',
        'model.backbone.init_cfg': None,
        'model.neck.out_channels': 128,
        'model.neck.upsample_cfg.up_kernel': 3,
        'train_cfg.max_epochs': 24,
        'optim_wrapper.optimizer.lr': 0.01,
        'train_dataloader.dataset.pipeline.2.scale': (640, 400),
        'train_dataloader.dataset.metainfo': dict(classes=('person',)),
        'test_dataloader.dataset.ann_file': 'annotations/instances_minival.json',
        'load_from': 'trained.pth',
    }.items():
        cfg = Config(deepcopy(settings))
        assert comparison.published(cfg)[0] == 38.6
        cfg.merge_from_dict({key: value})
        assert comparison.published(cfg) == (None, ''), key


def test_a_part_of_coco_is_not_coco(tmp_path):
    """Under its names, with a few images."""
    cfg = Config.fromfile(R50_DLU)
    assert comparison.published(cfg, 5000)[0] == 38.6
    assert comparison.published(cfg, 8)[0] is None
    (tmp_path / 'annotations').mkdir()
    file = tmp_path / 'annotations' / 'instances_train2017.json'
    file.write_text(json.dumps(dict(images=[dict(file_name='1.jpg')])))
    cfg.train_dataloader.dataset.data_root = str(tmp_path)
    assert comparison.published(cfg, 5000)[0] is None


@pytest.mark.parametrize(
    'key, value',
    [
        ('default_hooks.checkpoint.out_dir', 'checkpoints'),
        ('default_hooks.logger.out_dir', '/tmp/logs'),
        ('default_hooks.visualization.test_out_dir', '/tmp/pictures'),
        ('visualizer.save_dir', 'visualized'),
        ('visualizer.vis_backends', [dict(type='LocalVisBackend', save_dir='logs')]),
        ('test_evaluator.outfile_prefix', './work_dirs/test'),
        ('val_evaluator.collect_dir', '/tmp/parts'),
        (
            'test_evaluator',
            [
                dict(type='CocoMetric', ann_file='val.json', metric='bbox'),
                dict(type='DumpDetResults', out_file_path='results.pkl'),
            ],
        ),
        ('custom_hooks', [dict(type='ProfilerHook', json_trace_path='trace.json')]),
        (
            'custom_hooks',
            [
                dict(
                    type='ProfilerHook',
                    on_trace_ready=dict(type='tb_trace', dir_name='traces'),
                )
            ],
        ),
        ('custom_hooks', [dict(type='OwnHook', target='scores.csv')]),
    ],
)
def test_a_place_that_all_runs_would_write_to_is_refused(tmp_path, key, value):
    cfg = Config.fromfile(SHAPES_DLU)
    cfg.merge_from_dict({key: value})
    cfg.dump(tmp_path / 'own.py')
    with pytest.raises(ValueError, match=rf'own\.py: {key}.* one place for all runs'):
        plan.plan([tmp_path / 'own.py'], [0], tmp_path / 'work')


def test_places_within_the_runs_own_folder_are_taken(tmp_path):
    options = {
        'default_hooks.checkpoint.save_best': 'coco/bbox_mAP',
        'default_hooks.checkpoint.filename_tmpl': 'checkpoint_{}.pth',
        'default_hooks.visualization.test_out_dir': 'pictures',
        'test_evaluator.outfile_prefix': None,
        'load_from': 'weights.pth',
    }
    cfg = Config.fromfile(SHAPES_DLU)
    cfg.merge_from_dict(options)
    cfg.dump(tmp_path / 'own.py')
    assert plan.plan([tmp_path / 'own.py'], [0, 1], tmp_path / 'work')
    with pytest.raises(ValueError, match='resume=True every run .*weights.pth.*seed'):
        plan.plan([tmp_path / 'own.py'], [0], tmp_path / 'work', dict(resume=True))


def test_repetitions_are_refused(tmp_path):
    with pytest.raises(ValueError, match='seed 3 is given twice'):
        plan.plan([SHAPES_DLU], [3, 4, 3], tmp_path)
    with pytest.raises(ValueError, match='config .*dlu.* is given twice'):
        plan.plan([SHAPES_DLU, SHAPES_DLU], [0], tmp_path)
    with pytest.raises(FileNotFoundError, match=r'nothing\.py'):
        plan.plan([tmp_path / 'nothing.py'], [0], tmp_path)


def test_folder_of_another_comparison_is_refused(tmp_path):
    work_dir = tmp_path / 'work'
    planned = plan.plan([SHAPES_DLU, NEAREST], [0, 1], work_dir)
    plan.begin(work_dir, planned)
    with pytest.raises(ValueError, match='configs .*nearest_shapes too'):
        plan.plan([SHAPES_DLU], [0, 1], work_dir)
    with pytest.raises(ValueError, match='seeds 1 too'):
        plan.plan([SHAPES_DLU, NEAREST], [0], work_dir)
    # numbers of other flags or batch sizes do not mix
    with pytest.raises(ValueError, match=r"trained with .*'flags': \[\].*--amp"):
        amp = runs.Launch(train_flags=('--amp',))
        plan.plan([SHAPES_DLU, NEAREST], [0, 1], work_dir, launch=amp)
    with pytest.raises(ValueError, match="'processes': 1.*'processes': 8"):
        eight = runs.Launch('pytorch', 8)
        plan.plan([SHAPES_DLU, NEAREST], [0, 1], work_dir, launch=eight)
    # more of the same is not another comparison
    assert len(plan.plan([SHAPES_DLU, NEAREST], [0, 1, 2], work_dir)) == 6
    planned[0].work_dir.mkdir(parents=True)
    planned[0].config.write_text('another version')
    with pytest.raises(ValueError, match='another version of'):
        plan.plan([SHAPES_DLU, NEAREST], [0, 1], work_dir)
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'photos' / 'cat.jpg').touch()
    with pytest.raises(ValueError, match='holds no comparison'):
        plan.plan([SHAPES_DLU], [0], tmp_path / 'photos')


def test_an_unknown_baseline_is_refused_before_anything_runs(tmp_path):
    planned = plan.plan(
        [SHAPES_DLU], [0], tmp_path / 'own', upsamplers=[None, dict(type='nearest')]
    )
    assert execute.check_baseline(planned, 'own') == 'dlu'
    with pytest.raises(ValueError, match='--baseline carafe .*: dlu'):
        compare(SHAPES_DLU, '--baseline', 'carafe', '--work-dir', tmp_path / 'work')
    assert not (tmp_path / 'work').exists()


def test_a_run_in_use_is_left_alone(tmp_path):
    """A training that outlived a killed comparison still holds its folder."""
    (planned,) = plan.plan([SHAPES_DLU], [0], tmp_path)
    planned.work_dir.mkdir(parents=True)
    with runs.directory_lock(planned.work_dir) as lock:
        child = subprocess.Popen(['sleep', '60'], pass_fds=[lock])
    try:
        with pytest.raises(RuntimeError, match='another process works in .*seed0'):
            list(processes.execute(planned))
    finally:
        child.kill()
        child.wait()
    with runs.directory_lock(planned.work_dir):
        pass


def test_no_space_left(tmp_path):
    """A log on a full device: the run stops at once, without a result."""
    (planned,) = plan.plan([SHAPES_DLU], [0], tmp_path)
    planned.work_dir.mkdir(parents=True)
    (planned.work_dir / 'train.log').symlink_to('/dev/full')
    with pytest.raises(OSError) as info:
        list(processes.execute(planned))
    assert info.value.errno == errno.ENOSPC
    assert planned.state == 'not started'
    # a process of the run meets it: where, its log says
    log = tmp_path / 'test.log'
    command = [sys.executable, '-c', 'raise OSError(28, "No space left on device")']
    with (tmp_path / 'lock').open('w') as lock, pytest.raises(OSError) as info:
        list(processes._follow(command, log, lock.fileno()))
    assert info.value.errno == errno.ENOSPC
    assert str(log) in str(info.value) and 'Traceback' in str(info.value)


def test_no_space_left_keeps_what_is_finished(compared, tmp_path, capsys):
    """The second of two runs meets a full device: the first stays finished."""
    work_dir = tmp_path / 'work'
    shutil.copytree(compared[0], work_dir)
    half = work_dir / NEAREST.stem / 'seed0'
    (half / 'result.json').unlink()
    (half / 'train.log').unlink()
    (half / 'train.log').symlink_to('/dev/full')
    assert compare(*[work_dir if c == compared[0] else c for c in compared[1]]) == 1
    assert 'no space left on the device' in capsys.readouterr().err
    assert [p.parts[-3] for p in work_dir.glob('*/*/result.json')] == [SHAPES_DLU.stem]


def test_a_full_device_leaves_no_half_written_file(tmp_path, monkeypatch):
    (tmp_path / 'comparison.md').write_text('the last comparison')

    def full(*_):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(Path, 'write_bytes', full)
    with pytest.raises(OSError, match='No space'):
        runs.write(tmp_path / 'comparison.md', 'new')
    assert [p.name for p in tmp_path.iterdir()] == ['comparison.md']
    assert (tmp_path / 'comparison.md').read_text() == 'the last comparison'


# ---- reports of runs that are there --------------------------------------------------


@pytest.fixture
def elsewhere(compared, tmp_path):
    """A copy of the comparison's folder, and the command that belongs to it."""
    folder = tmp_path / 'copied'
    shutil.copytree(compared[0], folder)
    for file in folder.glob('comparison*'):
        file.unlink()
    return folder, [folder if c == compared[0] else c for c in compared[1]]


def test_report_only(compared, elsewhere, capsys, monkeypatch):
    """From a copied folder; what was removed of a run is made from its predictions."""
    folder, command = elsewhere
    monkeypatch.setattr(processes, '_follow', None)  # no process is started
    for name in ('result.json', 'matches.npz'):
        next(folder.glob(f'*nearest*/seed0/{name}')).unlink()
    assert compare(*command, '--report-only') == 0
    assert capsys.readouterr().out.count('evaluated anew') == 1
    rows = [
        {r['name']: (r['AP'], r['seeds'], r['training_seconds']) for r in found['rows']}
        for found in (
            json.loads((each / 'comparison.json').read_text())
            for each in (folder, compared[0])
        )
    ]
    assert rows[0] == rows[1] and set(rows[0]) == {'dlu', 'nearest'}
    assert (folder / 'report.html').exists()


def test_report_only_without_what_it_needs(elsewhere, tmp_path, capsys):
    folder, command = elsewhere
    half = next(folder.glob('*nearest*/seed0'))
    (half / 'result.json').unlink()
    predictions = half / 'predictions.pkl'
    predictions.write_bytes(predictions.read_bytes()[:-100])
    # the other one is reported all the same
    assert compare(*command, '--report-only') == 1
    errors = capsys.readouterr().err
    assert 'predictions.pkl is cut off' in errors and 'nearest seed 0' in errors
    assert '| dlu ' in (folder / 'comparison.md').read_text()
    next(folder.glob('*dlu*/seed0/matches.npz')).unlink()
    next(folder.glob('*dlu*/seed0/predictions.pkl')).unlink()
    with pytest.raises(FileNotFoundError, match=r'matches\.npz is not there'):
        compare(*command, '--report-only')
    command[command.index(folder)] = tmp_path / 'new'
    with pytest.raises(ValueError, match='--report-only: no run in .*new is finished'):
        compare(*command, '--report-only')
    assert not (tmp_path / 'new').exists()


def split(folder, tmp_path, *stems):
    """The comparison's configs, each as a comparison of its own."""
    parts = []
    for stem in stems:
        part = tmp_path / f'part{len(parts)}'
        shutil.copytree(folder / stem, part / stem)
        noted = json.loads((folder / 'plan.json').read_text())
        (part / 'plan.json').write_text(json.dumps({**noted, 'configs': [stem]}))
        parts.append(part)
    return parts


def test_join(compared, tmp_path):
    """Two parts make the report of the whole."""
    whole = json.loads((compared[0] / 'comparison.json').read_text())
    parts = split(compared[0], tmp_path, SHAPES_DLU.stem, NEAREST.stem)
    out = tmp_path / 'joined'
    command = ['--join', *parts, '--resamples', 100, '--baseline', 'nearest']
    assert compare(*command, '--work-dir', out) == 0
    joined = json.loads((out / 'comparison.json').read_text())
    assert joined['differences'] == whole['differences']
    keys = ('name', 'seeds', *METRICS, 'parameters')
    assert [[row[k] for k in keys] for row in joined['rows']] == [
        [row[k] for k in keys] for row in whole['rows']
    ]
    assert (out / 'report.html').exists() and not (out / 'plan.json').exists()
    # another seed of the same config is another seed, not another config
    other = tmp_path / 'other'
    shutil.copytree(parts[0], other)
    stem = other / SHAPES_DLU.stem
    text = (stem / 'seed0.py').read_text()
    (stem / 'seed1.py').write_text(text.replace('seed=0', 'seed=1'))
    result = json.loads((stem / 'seed0' / 'result.json').read_text())
    (stem / 'seed0' / 'result.json').write_text(json.dumps({**result, 'seed': 1}))
    (stem / 'seed0').rename(stem / 'seed1')
    noted = json.loads((other / 'plan.json').read_text())
    (other / 'plan.json').write_text(json.dumps({**noted, 'seeds': [1]}))
    names = [(r.name, r.seed) for r in plan.join([*parts, other])]
    assert names == [('dlu', 0), ('nearest', 0), ('dlu', 1)]
    # the same settings, else the two are not one
    (stem / 'seed1.py').write_text(
        (stem / 'seed1.py').read_text().replace('max_epochs=2', 'max_epochs=3')
    )
    with pytest.raises(ValueError, match='other settings(.|\n)*max_epochs: 2 and 3'):
        plan.join([*parts, other])


def test_join_without_predictions_or_with_moved_data(
    compared, tmp_path, shapes_root, capsys
):
    copy, out, moved = tmp_path / 'copy', tmp_path / 'out', tmp_path / 'moved'
    shutil.copytree(compared[0], copy)
    shutil.copytree(shapes_root, moved)
    # the configs name another folder, which is gone
    for file in copy.glob('*/seed0.py'):
        file.write_text(file.read_text().replace(str(shapes_root), str(tmp_path / 'x')))
    command = ['--join', copy, '--resamples', 100, '--work-dir', out]
    assert compare(*command) == 0
    error = capsys.readouterr().err
    assert 'instances_val.json, the annotations of the test set, is not there' in error
    assert 'the annotations of the test set' in (out / 'report.html').read_text()
    assert compare(*command, '--data', moved) == 0
    capsys.readouterr()
    page = (out / 'report.html').read_text()
    assert page.count('data:image/jpeg;base64,') == 8
    # other annotations
    planned = plan.join([copy])
    file = moved / 'annotations' / 'instances_val.json'
    file.write_text(file.read_text() + ' ')
    with pytest.raises(ValueError, match='is not the annotation file that .* tested'):
        details_of(planned, 'nearest', data=moved)


def test_a_comparison_of_others_runs_no_code(
    compared, elsewhere, tmp_path, monkeypatch, capsys
):
    """Else whoever sends a folder runs what they like on this machine."""
    monkeypatch.chdir(tmp_path)
    folder, command = elsewhere
    stem = next(folder.glob('*nearest*'))
    (stem / 'seed0' / 'matches.npz').unlink()

    class Code:
        def __reduce__(self):
            return os.mkdir, ('ran',)

    predictions = stem / 'seed0' / 'predictions.pkl'
    kept = predictions.read_bytes()
    predictions.write_bytes(pickle.dumps([Code()]))
    command[command.index(folder)] = folder
    monkeypatch.chdir(ROOT)
    with pytest.raises(FileNotFoundError, match=r'matches\.npz is not there'):
        compare(*command, '--report-only')
    assert 'could run code' in capsys.readouterr().err
    # labels of other classes, and no tensors
    for content in ([dict(img_id=1, pred_instances={})], {}, [[1]], None):
        predictions.write_bytes(pickle.dumps(content))
        with pytest.raises(RuntimeError, match=r'predictions\.pkl is cut off, or'):
            collect.read_predictions(predictions, 6)
    found = dict(bboxes=torch.zeros(1, 4), scores=torch.ones(1))
    found['labels'] = torch.tensor([5])
    predictions.write_bytes(pickle.dumps([dict(img_id=1, pred_instances=found)]))
    assert collect.read_predictions(predictions, 6)
    with pytest.raises(RuntimeError, match='other classes'):
        collect.read_predictions(predictions, 5)
    predictions.write_bytes(kept)
    assert len(collect.read_predictions(predictions, 6)) == 8

    config = stem / 'seed0.py'
    text = config.read_text()
    for added in (
        'import os\nos.mkdir("ran")\n',
        "custom_imports = dict(imports=['antigravity'])\nmodel.update(type='X')\n",
        'model = dict(type="os.mkdir", path="ran")\n',
        'model = dict(type="A", test_cfg=dict(type="nms", x="__import__(1)"))\n',
        "test_dataloader = dict(dataset=dict(type='antigravity.X'))\n",
    ):
        config.write_text(text + added)
        refused = 'code.*--trust|no plain word.*--trust'
        if added.startswith('import') and mmengine.__version__ == '0.10.7':
            refused = 'LazyAttr'  # it takes a config with an import for a lazy one
        with pytest.raises(ValueError, match=refused):
            compare('--join', folder, '--work-dir', tmp_path / 'joined')
    config.write_text(text + "custom_imports = dict(imports=['antigravity'])\n")
    assert len(plan.join([folder])) == 2 and 'antigravity' not in sys.modules
    assert not (ROOT / 'ran').exists() and not (tmp_path / 'ran').exists()
    # of one's own they may
    config.write_text(text + 'import os\nos.environ["JOINED"] = "1"\ndel os\n')
    monkeypatch.setenv('JOINED', '0')
    assert len(plan.join([folder], trust=True)) == 2 and os.environ['JOINED'] == '1'
    with pytest.raises(SystemExit):
        compare(*command, '--trust')
    assert '--trust is for --join' in capsys.readouterr().err


def test_damaged_files_of_a_comparison(elsewhere):
    """After a power cut: a sentence that names the file, and what to do."""
    folder, command = elsewhere
    run = next(folder.glob('*nearest*/seed0'))
    noted, result, config = (
        folder / 'plan.json',
        run / 'result.json',
        run.with_suffix('.py'),
    )
    matches = run / 'matches.npz'
    errors = {
        noted: r'plan\.json is damaged .*write \{"configs": \["faster-.*"seeds": \[0\]',
        result: r'result\.json is damaged .*remove it',
        matches: r'matches\.npz is damaged.*remove it',
        config: r'seed0\.py (is damaged|cannot be read as data)',
    }
    whole = {path: path.read_bytes() for path in errors}
    for content in (b'', bytes(40), b'\xff\xfe', b'[1]', whole[matches][:-30]):
        for path in errors:
            path.write_bytes(content)
            with pytest.raises(ValueError, match=errors[path]):
                plan.join([folder])
                Evaluation.load(matches)
            path.write_bytes(whole[path])
    np.savez(matches, **{**np.load(matches), 'image': np.zeros(0, int)})
    with pytest.raises(ValueError, match='damaged.* do not fit together'):
        Evaluation.load(matches)
    for path in errors:
        path.write_bytes(bytes(40))
        with pytest.raises(ValueError, match=errors[path]):
            compare(*command, '--report-only')
        path.write_bytes(whole[path])


def test_what_cannot_be_joined_is_refused(compared, elsewhere, tmp_path, capsys):
    parts = split(compared[0], tmp_path, SHAPES_DLU.stem, NEAREST.stem)
    config = next(parts[1].glob('*/seed0.py'))
    text = config.read_text()
    config.write_text(text.replace('instances_val.json', 'instances_other.json'))
    with pytest.raises(ValueError, match='differ in data or evaluators(.|\n)*_other'):
        plan.join(parts)
    config.write_text(text)
    noted = json.loads((parts[1] / 'plan.json').read_text())
    for key, value in (
        ('training', dict(processes=8, flags=[])),
        ('options', {'train_cfg.max_epochs': '9'}),
    ):
        (parts[1] / 'plan.json').write_text(json.dumps({**noted, key: value}))
        with pytest.raises(ValueError, match=f'other flags, {key}'):
            plan.join(parts)
    with pytest.raises(ValueError, match='are one run'):
        plan.join([parts[0], elsewhere[0]])
    with pytest.raises(FileNotFoundError, match=r'no plan\.json'):
        plan.join([tmp_path])
    shutil.rmtree(parts[0] / SHAPES_DLU.stem)
    with pytest.raises(FileNotFoundError, match='no finished run'):
        plan.join(parts[:1])
    with pytest.raises(ValueError, match='already holds a comparison, whose report'):
        compare('--join', parts[1], '--work-dir', elsewhere[0])
    for command, message in (
        (['--join', parts[1], '--seeds', 1], 'leave out --seeds'),
        (['--join', parts[1], '--dry-run'], 'leave out --dry-run'),
        ([SHAPES_DLU, '--join', parts[1]], 'in its place'),
        ([], 'give CONFIG'),
    ):
        with pytest.raises(SystemExit):
            compare(*command)
        assert message in capsys.readouterr().err
