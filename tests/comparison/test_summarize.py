"""Results of several data sets in one table."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import SHAPES_DLU, load_tool
from PIL import Image
from scipy import stats

from dlu_mmdet.comparison.cross_dataset import CrossDatasetResults, plot, read_results
from dlu_mmdet.comparison.runs import RunResult


def result(upsampler, seed, ap, **classes):
    sizes = {}
    if ap is not None:
        sizes = dict(AP50=ap + 0.2, AP75=ap, APs=ap - 0.1, APm=ap + 0.1, APl=None)
    return dict(
        upsampler=upsampler,
        seed=seed,
        AP=ap,
        **sizes,
        classes={name: dict(AP=value) for name, value in classes.items()},
    )


def write_all(folder, values):
    """values[upsampler]: AP by seed; files as compare.py leaves them."""
    for upsampler, aps in values.items():
        for seed, ap in enumerate(aps):
            own = folder / upsampler / f'seed{seed}'
            own.mkdir(parents=True)
            found = result(upsampler, seed, ap, one=ap - 0.1, two=ap + 0.1)
            (own / 'result.json').write_text(json.dumps(found))
            # others of mmengine and of the comparison, which are no results
            (own / 'scalars.json').write_text('{"loss": 1}\n{"loss": 2}\n')
            (own / 'metrics.json').write_text('{"coco/bbox_mAP": 0.5}')
    return folder


SHAPES = dict(bilinear=[0.40, 0.44], dlu=[0.47, 0.50], carafe=[0.50, 0.52])
CELLS = dict(bilinear=[0.30, 0.36, 0.32], dlu=[0.29, 0.35, 0.38])


@pytest.fixture
def folders(tmp_path):
    return [
        write_all(tmp_path / 'shapes', SHAPES),
        write_all(tmp_path / 'cells', CELLS),
    ]


def run_result(*args):
    return RunResult.from_json(result(*args))


def across(**values):
    results = {
        (name, seed): run_result(name, seed, ap)
        for name, aps in values.items()
        for seed, ap in aps.items()
    }
    return CrossDatasetResults(dict(set=results))


def test_a_difference_is_taken_over_common_seeds():
    """dlu is bilinear + 0.1 with every seed, but lacks the best."""
    found = across(bilinear={0: 0.1, 1: 0.2, 2: 0.9}, dlu={0: 0.2, 1: 0.3})
    difference = found.differences('set')['dlu']
    assert difference.value == pytest.approx(0.1)
    expected = stats.ttest_ind([0.2, 0.3], [0.1, 0.2], equal_var=False)
    assert difference.p == pytest.approx(expected.pvalue)


def test_upsamplers_without_a_common_seed_have_no_difference():
    """Else the means of other seeds, or of other upsamplers, would decide."""
    early, late = {0: 0.40, 1: 0.44}, {2: 0.47, 3: 0.50, 4: 0.51}
    found = across(bilinear=early, nearest=early, carafe=late, dlu=late)
    lines = {line[0]: line[1] for line in found.difference_table()[1:]}
    assert lines['carafe'] == lines['dlu'] == '-'
    assert lines['nearest'] == '+0.000 (-0.122 to +0.122)'
    plot(found)


def test_one_seed_has_no_interval():
    found = across(bilinear={0: 0.3}, dlu={0: 0.4}).difference_table()
    assert found[1] == ['dlu', '+0.100']


def test_a_metric_of_few_images_has_no_interval():
    base, aps = {0: 0.40, 1: 0.41, 2: 0.42}, {0: 0.60, 1: 0.61, 2: 0.62}
    found = across(bilinear=base, dlu=aps)
    assert found.size_table()[1][2] == '+0.200†'
    for results in found.sets.values():
        for key, each in results.items():
            results[key] = replace(each, images=dict(AP=3))
    assert found.size_table()[1][2] == '+0.200'
    assert found.difference_table()[1][1] == '+0.200'


def test_stars_are_corrected_over_the_upsamplers_of_a_column():
    """p is 0.02 and 0.04: only the first is below 5 % twice as large."""
    base = {seed: 0.4 + 0.01 * seed for seed in range(3)}
    aps = {seed: ap + 0.046 for seed, ap in base.items()}
    alone = across(bilinear=base, dlu=aps)
    ((_, starred),) = alone.difference_table()[1:]
    many = across(bilinear=base, **{f'u{n}': aps for n in range(20)})
    lines = many.difference_table()[1:]
    assert starred.endswith('*') and not any(line[1].endswith('*') for line in lines)
    # exploratory metrics say so by another sign
    assert many.size_table()[1][2] == '+0.046†'


def test_tables(folders):
    found = {folder.name: read_results(folder) for folder in folders}
    across = CrossDatasetResults(found)
    # +0.09, then the mean of +0.065 and +0.013
    assert across.upsamplers == ['carafe', 'dlu', 'bilinear']
    assert across.accuracy_table()[1:] == [
        ['carafe', '0.510 ± 0.014 (2)', '-'],
        ['dlu', '0.485 ± 0.021 (2)', '0.340 ± 0.046 (3)'],
        ['bilinear', '0.420 ± 0.028 (2)', '0.327 ± 0.031 (3)'],
    ]
    carafe, dlu = across.difference_table()[1:]
    assert carafe[0] == 'carafe' and carafe[1].startswith('+0.090 (')
    assert carafe[2:] == ['-', '-']
    gains = [0.065, 0.04 / 3]
    low, high = stats.ttest_1samp(gains, 0).confidence_interval(0.95)
    assert dlu[3] == f'{np.mean(gains):+.3f} ({low:+.3f} to {high:+.3f})'
    # no object of this size in any set
    assert [line[-1] for line in across.size_table()[1:]] == ['-'] * 3
    classes = across.class_table()
    assert [line[:2] for line in classes[1:]] == [
        [name, category] for name in ('shapes', 'cells') for category in ('one', 'two')
    ]
    assert classes[1][2:] == [line[2] for line in across.size_table()[1:3]]


def test_agreement_of_the_orders():
    order = ['a', 'b', 'c', 'd', 'bilinear']
    one = {(name, 0): run_result(name, 0, 0.1 * i) for i, name in enumerate(order)}
    other = {
        (name, 0): run_result(name, 0, 0.5 - 0.1 * i) for i, name in enumerate(order)
    }
    across = CrossDatasetResults(dict(one=one, other=other, same=one))
    found = {line[:2]: line[2:] for line in across.rank_correlations()}
    assert found['one', 'same'][:2] == (5, pytest.approx(1))
    assert found['one', 'other'][:2] == (5, pytest.approx(-1))
    # two of 5! orders are as far from 0
    assert found['one', 'same'][2] == pytest.approx(2 / 120)


def test_the_tool_writes_table_and_picture(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        'sys.argv', ['summarize.py', *map(str, folders), '--out', str(tmp_path / 'out')]
    )
    assert load_tool('summarize').main() == 0
    text = (tmp_path / 'out/summary.md').read_text()
    assert '0.485 ± 0.021 (2)' in text and text in capsys.readouterr().out
    with Image.open(tmp_path / 'out/summary.png') as picture:
        assert picture.width > 3 * 250


def test_mask_ap(folders, monkeypatch, capsys):
    """As compare --metric segm leaves it; without it the file is named."""
    command = ['summarize.py', str(folders[0]), '--metric', 'segm']
    monkeypatch.setattr('sys.argv', command)
    with pytest.raises(ValueError, match=r'has no mask AP; .* --metric segm adds it'):
        load_tool('summarize').main()
    for file in folders[0].glob('*/*/result.json'):
        content = json.loads(file.read_text())
        content.update(mask_AP=content['AP'] / 2, mask_AP50=0.4)
        file.write_text(json.dumps(content))
    assert load_tool('summarize').main() == 0
    shown = capsys.readouterr().out
    assert '| mask AP minus bilinear |' in shown and '0.242 ± 0.011 (2)' in shown
    assert 'mask AP as a fraction' in shown and '| mask AP75 |' in shown


def test_the_picture_has_a_panel_for_each_set_and_for_all(folders):
    found = {folder.name: read_results(folder) for folder in folders}
    across = CrossDatasetResults(found)
    figure = plot(across)
    assert [axis.get_title() for axis in figure.axes] == ['shapes', 'cells', 'all sets']
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ['dlu', 'carafe']


def test_bad_input(folders, tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere is no folder; name those of'):
        read_results(tmp_path / 'nowhere')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(FileNotFoundError, match='empty holds no result of a run'):
        read_results(tmp_path / 'empty')
    copy = folders[0] / 'copy.json'
    copy.write_text((folders[0] / 'dlu/seed1/result.json').read_text())
    with pytest.raises(ValueError, match='copy.json and .* both hold dlu with seed 1'):
        read_results(folders[0])
    with pytest.raises(ValueError, match='cells has no result of the baseline carafe'):
        CrossDatasetResults({'cells': read_results(folders[1])}, 'carafe')


def test_results_of_other_data_are_not_averaged(folders):
    """By the hashes that each result has, wherever its data lay."""
    files = [folders[0] / 'dlu' / f'seed{seed}' / 'result.json' for seed in (0, 1)]
    key = 'val_evaluator.ann_file'
    for file, hashed in zip(files, ('1', '1')):
        content = json.loads(file.read_text())
        content['inputs'] = {key: f'/{file.parent.name}/val.json (sha256 {hashed})'}
        file.write_text(json.dumps(content))
    assert len(read_results(folders[0])) == 6
    content['inputs'][key] = '/data/val.json (sha256 2)'
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f'seed0.*seed1.* other data(.|\n)*{key}'):
        read_results(folders[0])


def test_a_result_that_diverged_is_left_out(folders):
    file = folders[0] / 'dlu' / 'seed1' / 'result.json'
    content = json.loads(file.read_text())
    content['diverged'] = dict(iteration=31, reason='the loss is nan')
    file.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match='seed1.*diverged'):
        assert len(read_results(folders[0])) == 5


def test_two_folders_of_one_name(folders, monkeypatch):
    monkeypatch.setattr('sys.argv', ['summarize.py', *map(str, folders[:1] * 2)])
    with pytest.raises(ValueError, match='two folders are called shapes; .* rename'):
        load_tool('summarize').main()


def test_results_of_others_run_no_code(folders, tmp_path, monkeypatch):
    """Else --costs builds an upsampler of their choice, by its path."""
    monkeypatch.chdir(tmp_path)
    repo = tmp_path / 'repo'
    repo.mkdir()
    (repo / 'hubconf.py').write_text('import os\nos.mkdir("ran")\n')
    for cfg in (
        dict(type='torch.hub.load', repo_or_dir='repo', model='x', source='local'),
        dict(type='antigravity.X'),
        dict(type='dlu', mode='__import__("os").mkdir("ran")'),
    ):
        for path in folders[0].glob('*/*/result.json'):
            content = json.loads(path.read_text())
            own = cfg if content['upsampler'] == 'dlu' else dict(type='bilinear')
            path.write_text(json.dumps({**content, 'upsample_cfg': own}))
        across = CrossDatasetResults({'shapes': read_results(folders[0])}, 'bilinear')
        with pytest.raises(ValueError, match='dlu: upsample_cfg.* could run code'):
            load_tool('summarize').measure(across, SHAPES_DLU)
    assert not (tmp_path / 'ran').exists() and 'antigravity' not in sys.modules


def test_a_damaged_result_is_not_left_out(folders):
    """A power cut leaves zeros; without a word a seed would be missing."""
    path = next(folders[0].glob('dlu/*/result.json'))
    for name in ('result.json', 'dlu0.json'):
        path = path.rename(path.with_name(name))
        path.write_bytes(bytes(60))
        with pytest.raises(ValueError, match=rf'{name} is damaged'):
            read_results(folders[0])


@pytest.mark.parametrize(
    'wrong', [dict(counts=[1]), dict(diverged=dict(step=3)), dict(loss=[3])]
)
def test_a_result_of_another_structure_is_damaged(folders, wrong):
    path = next(folders[0].glob('dlu/*/result.json'))
    path.write_text(json.dumps({**json.loads(path.read_text()), **wrong}))
    with pytest.raises(ValueError, match=r'result\.json is damaged \(not the result'):
        read_results(folders[0])


def test_a_seed_without_objects_is_not_plotted():
    found = across(bilinear={0: 0.4, 1: None}, dlu={0: 0.5, 1: 0.6})
    dots = [line for line in plot(found).axes[0].lines if line.get_marker() == '.']
    assert [list(line.get_xdata()) for line in dots] == [[pytest.approx(0.1)]]
