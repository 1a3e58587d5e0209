"""An upsampler of the user's own: found by every tool, and held to the contract."""

import os
import re
import shlex
import subprocess
import sys

import pytest
from conftest import CONFIGS, ROOT, as_arguments, load_tool
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from dlu_mmdet.comparison import plan
from dlu_mmdet.comparison import summary as comparison
from dlu_mmdet.comparison.inputs import check_inputs, fingerprint
from dlu_mmdet.comparison.summary import Spread
from dlu_mmdet.config import merge_options, read_config, set_upsampler, upsampler_label
from dlu_mmdet.config.read import check_foreign, parse_upsampler
from dlu_mmdet.engine import load_detector
from dlu_mmdet.evaluation import complexity
from dlu_mmdet.heads import UpsampleMaskHead
from dlu_mmdet.upsamplers import UPSAMPLERS, resolve_upsampler, upsampler_class
from dlu_mmdet.upsamplers.contract import CHECKS

BILINEAR = CONFIGS / 'shapes' / 'faster-rcnn_r18_fpn-bilinear_shapes.py'
RETINANET = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
README = (ROOT / 'README.md').read_text()
PAGE = (ROOT / 'docs' / 'custom-upsamplers.md').read_text()


def snippet(text, name):
    """The Python block of a document that defines a class."""
    blocks = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    return next(block for block in blocks if f'class {name}(' in block)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with the file of the README."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'mine.py').write_text(snippet(README, 'Mine'))
    return tmp_path


def neck_of(cfg):
    init_default_scope('mmdet')
    return MODELS.build(cfg.model.neck)


def test_the_readme_runs_as_pasted(small, shapes_root, folder, monkeypatch):
    """By the installed command, for which the current folder is no place of modules.

    The config that it leaves needs neither the flag nor this folder.
    """
    code = snippet(README, 'Mine')
    lines = code[code.index('@UPSAMPLERS') :].splitlines()
    assert len([line for line in lines if line]) <= 12
    command = re.search(r'^    dlu_mmdet (train .* --upsampler mine)$', README, re.M)
    installed = folder / 'bin' / 'dlu_mmdet'
    installed.parent.mkdir()
    installed.write_text('from dlu_mmdet.__main__ import main\nmain()\n')
    options = {
        'model.backbone.depth': 18,
        'model.backbone.init_cfg': None,
        'model.neck.in_channels': '[64,128,256,512]',
        'train_cfg.max_epochs': 1,
        'train_cfg.val_interval': 9,
        'train_dataloader.batch_size': 8,
        'train_dataloader.dataset.pipeline.2.scale': '(64,64)',
        'val_dataloader.dataset.pipeline.1.scale': '(64,64)',
        **{k: v for k, v in small.items() if 'workers' in k},
    }
    ended = subprocess.run(
        [sys.executable, installed, *shlex.split(command[1]), '--data', shapes_root]
        + [*as_arguments(options), '--work-dir', 'left'],
        cwd=folder,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        text=True,
        capture_output=True,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    left = folder / 'left' / 'retinanet_r50_fpn_1x_coco.py'
    (folder / 'other').mkdir()
    monkeypatch.chdir(folder / 'other')
    model = load_detector(left, folder / 'left' / 'epoch_1.pth')
    assert [type(m).__name__ for m in model.neck.upsample_modules] == ['Mine'] * 2
    with pytest.raises(ValueError, match=rf'--upsampler {folder}/mine\.py:mine\)'):
        load_detector(BILINEAR, folder / 'left' / 'epoch_1.pth')


@pytest.mark.parametrize(
    ('text', 'expected', 'label'),
    [
        ('mine', dict(type='{}/mine.py:mine'), 'mine'),
        ('mine.py:mine', dict(type='{}/mine.py:mine'), 'mine'),
        ('./mine.py:Mine', dict(type='{}/mine.py:Mine'), 'Mine'),
        ('a=b/own.py:Mine:k=3', dict(type='{}/a=b/own.py:Mine', k=3), 'Mine-k-3'),
        ('a:b/own.py:Mine:k=x.py', dict(type='{}/a:b/own.py:Mine', k='x.py'), None),
        ('package', dict(type='{}/package/__init__.py:package'), 'package'),
        ('dlu:offset_init=x.py', dict(type='dlu', offset_init='x.py'), None),
    ],
)
def test_forms_of_the_name(text, expected, label, folder):
    own = (
        (folder / 'mine.py').read_text().replace('scale_factor=2', 'scale_factor, k=1')
    )
    for path in ('a=b/own.py', 'a:b/own.py', 'package/impl.py'):
        (folder / path).parent.mkdir()
        (folder / path).write_text(own.replace("'mine'", "'package'"))
    (folder / 'package' / '__init__.py').write_text('from .impl import Mine')
    found = resolve_upsampler(parse_upsampler(text))
    assert found == {**expected, 'type': expected['type'].format(folder)}
    assert label in (None, upsampler_label(parse_upsampler(text)))
    # of another folder's file nothing is left behind
    assert not {'mine', 'package'} & {*UPSAMPLERS.module_dict}
    upsampler_class(found)


def test_two_files_may_register_one_name(folder):
    (folder / 'v2').mkdir()
    text = (folder / 'mine.py').read_text()
    (folder / 'v2' / 'mine.py').write_text(f'import beside\n{text}')
    (folder / 'v2' / 'beside.py').write_text('')
    names = ('mine', 'v2/mine.py:mine')
    first, second = (upsampler_class(resolve_upsampler(dict(type=n))) for n in names)
    assert first is not second and first.__name__ == second.__name__ == 'Mine'
    with pytest.raises(ValueError, match='mine and v2/mine.py:mine would both be call'):
        plan.plan([BILINEAR], [0], 'w', upsamplers=[dict(type=n) for n in names])


def test_published_figures_are_not_those_of_a_file(folder):
    text = (folder / 'mine.py').read_text()
    (folder / 'own.py').write_text(text.replace('class Mine', 'class dlu'))
    for name, expected in (('dlu', 38.6), ('own.py:dlu', None)):
        cfg = read_config('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py')
        set_upsampler(cfg, parse_upsampler(name))
        assert comparison.published(cfg)[0] == expected


def test_a_file_may_register_in_mmdets_models(folder):
    """Also in the mask head, where its parameters count as an upsampler's."""
    text = (folder / 'mine.py').read_text()
    text = text.replace(
        'dlu_mmdet.upsamplers import UPSAMPLERS', 'mmdet.registry import MODELS'
    )
    (folder / 'in_models.py').write_text(
        text.replace('UPSAMPLERS', 'MODELS').replace("'mine'", "'in_models'")
    )
    try:
        for _ in range(2):
            found = resolve_upsampler(dict(type='in_models'))
            assert found == dict(type=f'{folder}/in_models.py:in_models')
        head = UpsampleMaskHead(in_channels=4, conv_out_channels=4, upsample_cfg=found)
        assert [*complexity.find_upsamplers(head)] == ['upsample']
    finally:
        MODELS.module_dict.pop('in_models', None)


def test_what_custom_imports_register(folder, monkeypatch):
    """Also for the other configs of a comparison, and by its file all the same."""
    text = (folder / 'mine.py').read_text().replace("'mine'", "'imported'")
    (folder / 'imported_module.py').write_text(text)
    cfg = read_config(BILINEAR)
    cfg.custom_imports = dict(imports=['imported_module'])
    cfg.dump(folder / 'own.py')
    path = list(sys.path)
    try:
        planned = plan.plan(
            ['own.py', BILINEAR], [0], 'w', upsamplers=[dict(type='imported')]
        )
        assert sys.path == path
        for run in planned:
            assert run.cfg.model.neck.upsample_cfg == dict(type='imported')
            assert {*run.cfg.custom_imports.imports} == {'imported_module', 'dlu_mmdet'}
        found = upsampler_class(dict(type='imported_module.py:imported'))
        assert found is UPSAMPLERS.get('imported')
    finally:
        UPSAMPLERS.module_dict.pop('imported', None)
        sys.modules.pop('imported_module', None)


@pytest.mark.parametrize('name', [BILINEAR, RETINANET, 'own.py'])
def test_a_config_is_complete(name, folder, monkeypatch):
    """By the flag, by --cfg-options and from the config; read in another folder."""
    if name == 'own.py':
        own = "dict(type='{{ fileDirname }}/mine.py:Mine')"
        (folder / name).write_text(
            f"_base_ = '{BILINEAR}'\nmodel = dict(neck=dict(upsample_cfg={own}))\n"
        )
    cfg = read_config(name)
    options = {}
    if name == RETINANET:
        set_upsampler(cfg, parse_upsampler('mine'))
    elif name == BILINEAR:
        options = {'model.neck.upsample_cfg.type': 'mine.py:Mine'}
    merge_options(cfg, options)
    cfg.dump(folder / 'left.py')
    (folder / 'other').mkdir()
    monkeypatch.chdir(folder / 'other')
    left = Config.fromfile('../left.py')
    assert left.model.neck.upsample_cfg.type.startswith(f'{folder}/mine.py:')
    assert type(neck_of(left).upsample_modules[0]).__name__ == 'Mine'


def test_a_comparison_keeps_a_hash_of_the_file(folder):
    planned = plan.plan(
        [BILINEAR], [0], 'w', upsamplers=[None, parse_upsampler('mine.py:Mine')]
    )
    assert [run.name for run in planned] == ['bilinear', 'Mine']
    before = [fingerprint(run.cfg, ['custom_imports']) for run in planned]
    with (folder / 'mine.py').open('a') as file:
        file.write('# another version\n')
    after = fingerprint(planned[1].cfg, ['custom_imports'])
    key = f'custom_imports.{folder}/mine.py'
    assert not before[0] and [*after] == [key] and before[1][key] != after[key]
    found = [
        type('R', (), dict(stem=r.stem, work_dir=r.work_dir, state='', inputs=inputs))
        for r, inputs in zip(planned, before)
    ]
    # bilinear has no file, which is no other code
    assert check_inputs(found) == []
    (said,) = check_inputs(found, {planned[1].stem: after})
    assert 'different code' in said and 'mine.py' in said
    # read as data, it could run
    with pytest.raises(ValueError, match='could run code'):
        check_foreign(planned[1].cfg.model, 'model', 'a folder')


BAD = {
    'none.py:Mine': (FileNotFoundError, r'file .*/none\.py does not exist; name the'),
    'mine.py:Other': (ValueError, r"no class 'Other'; name one .*: mine, Mine$"),
    'mine.py:F': (TypeError, r'mine\.py:F.* must be a class derived from torch.nn.Mod'),
    'bad.py:Plain': (TypeError, r'Plain.* must be a class derived from torch.nn.Mod'),
    'bad.py:NoRatio': (TypeError, 'does not take scale_factor; the class must be bui'),
    'bad.py:Nothing': (TypeError, 'does not take channels and scale_factor; the cla'),
    'bad.py:NoGuide': (TypeError, 'does not take guide_channels; the class must be'),
    'bad.py:More': (TypeError, "missing a required argument: 'kernel'; give it in"),
    'raises.py:Mine': (ValueError, r'raises\.py cannot be loaded: KeyError in line 2'),
    'syntax.py:Mine': (ValueError, r'cannot be loaded: SyntaxError.*line 1'),
    'ends.py:Mine': (ValueError, r'cannot be loaded: SystemExit in line 1'),
    'twice.py:Mine': (ValueError, r"KeyError.*'?dlu is already registered"),
    'unknown': (ValueError, "'unknown' is not registered; .*dlu,.* path/to/mine.py:M"),
    'raises': (ValueError, r'raises\.py cannot be loaded'),
    'bad': (ValueError, r"has no class 'bad'; name one of it"),
    '../mine': (ValueError, "'../mine' is not registered"),
    'FPN': (TypeError, "'FPN' does not take channels and scale_factor"),
}


@pytest.mark.parametrize('text', BAD)
def test_bad_names(text, folder):
    (folder / 'raises.py').write_text('x = {}\nx["key"]\n')
    (folder / 'syntax.py').write_text('class Mine(\n')
    (folder / 'ends.py').write_text('raise SystemExit(3)\n')
    mine = (folder / 'mine.py').read_text()
    (folder / 'twice.py').write_text(mine.replace("'mine'", "'dlu'"))
    (folder / 'bad.py').write_text(
        'from torch import nn\n'
        'class Plain:\n    def __init__(self, channels, scale_factor): ...\n'
        'class NoRatio(nn.Module):\n    def __init__(self, channels): ...\n'
        'class Nothing(nn.Module): ...\n'
        'class NoGuide(nn.Module):\n    guided = True\n'
        '    def __init__(self, channels, scale_factor): ...\n'
        'class More(nn.Module):\n'
        '    def __init__(self, channels, scale_factor, kernel): ...\n'
    )
    error, message = BAD[text]
    registered = dict(UPSAMPLERS.module_dict)
    cfg = read_config(BILINEAR)
    with pytest.raises(error, match=message) as caught:
        set_upsampler(cfg, parse_upsampler(text))
        neck_of(cfg)
    assert '\n' not in str(caught.value)
    assert registered == UPSAMPLERS.module_dict


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('mine.py', 'must name a class of the file, as in mine.py:Mine'),
        ('mine.py:', 'must name a class of the file, as in mine.py:Mine'),
        ('mine.py:k=3', 'must name a class of the file, as in mine.py:Mine'),
        ('mine.py:A:B', "'B' is no argument; the form is NAME:key=value"),
        ('mine.py:A,B', 'has no class'),
        ('mine.py:A:k', "'k' is no argument; the form is NAME:key=value"),
    ],
)
def test_malformed_names(text, message, folder):
    with pytest.raises(ValueError, match=message):
        resolve_upsampler(parse_upsampler(text))


def test_the_command_checks_a_file(folder, monkeypatch, capsys):
    from dlu_mmdet.cli import check

    def run(*arguments):
        monkeypatch.setattr('sys.argv', ['check', *arguments])
        return check.main(), capsys.readouterr().out.splitlines()

    (folder / 'guided.py').write_text(snippet(PAGE, 'Gated'))
    (folder / 'page.py').write_text(snippet(PAGE, 'Mine'))
    for name in ('mine', 'guided.py:Gated', 'page.py:Mine:kernel=5'):
        status, lines = run(name)
        assert status == 0 and len(lines) == len(CHECKS) + 1, lines
        assert all(line.endswith(' ok') for line in lines[:-1])
    # what the page prints
    shown = PAGE[PAGE.index('sizes           ok') :].split('\n```')[0].splitlines()
    assert [*shown[: len(CHECKS)]] == lines[:-1]
    text = (folder / 'mine.py').read_text()
    (folder / 'one.py').write_text(text.replace('=self.scale_factor', '=2'))
    status, lines = run('one.py:Mine', '--channels', '8')
    assert status == 1
    failed = [line for line in lines[:-1] if not line.endswith(' ok')]
    assert lines[-1].endswith(f': {len(CHECKS) - 2} of {len(CHECKS)} checks passed')
    assert re.match(r'sizes +FAILED: at a ratio of 1, for \(2, 8, 1, 1\)', failed[0])
    assert re.match(r'empty batch +FAILED: .* at a ratio of 1;', failed[1])
    for flag in ('--channels', '--guide-channels'):
        with pytest.raises(ValueError, match=f'{flag} must be at least 1, got 0'):
            run('mine', flag, '0')


def test_it_is_counted(folder):
    rows = complexity.measure([2], 8, names=['dlu'], more=[dict(type='mine')])
    found = {row.name: row for row in rows}
    # 8 x 8 x 3 x 3 weights, for each of 4 output pixels
    assert found['mine'].parameters == 576 + 8
    assert found['mine'].counted in (None, 2 * 576 * 4)
    assert found['mine'].terms is None and found['dlu'].terms is not None


def test_summarize_runs_no_file_unless_it_is_trusted(folder, monkeypatch):
    """The file that a result names is code."""
    tool = load_tool('summarize')
    cfg = resolve_upsampler(dict(type='mine'))
    found = dict(mine=(Spread(0.5), cfg))
    across = type('A', (), dict(sets=dict(s=None), accuracy=lambda self, name: found))()
    monkeypatch.setattr(
        'dlu_mmdet.comparison.summary.measure_costs',
        lambda planned: dict(mine='measured'),
    )
    with pytest.raises(ValueError, match='could run code; where it is your own, --tru'):
        tool.measure(across, BILINEAR)
    assert tool.measure(across, BILINEAR, trust=True)[0].costs == 'measured'
    monkeypatch.setattr(
        'dlu_mmdet.comparison.cross_dataset.read_results', lambda *args: {}
    )
    with pytest.raises(ValueError, match='--trust is for --costs'):
        tool.main([str(folder), '--trust'])
