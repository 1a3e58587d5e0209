"""Commands: what they say before they work, and after; whose run is in a folder."""

import inspect
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from conftest import ROOT, SHAPES_DLU, as_arguments, load_tool, run
from mmengine.config import Config

from dlu_mmdet import cli
from dlu_mmdet.cli import arguments, convert, explain, export
from dlu_mmdet.config import default_work_dir, load_config, parse_options
from dlu_mmdet.datasets import formats
from dlu_mmdet.engine import check_unoccupied
from dlu_mmdet.explain.cam import METHODS
from dlu_mmdet.explain.evaluate import explain_dataset, explain_images
from dlu_mmdet.explain.options import Options
from dlu_mmdet.export import PARTS
from dlu_mmdet.upsamplers import UPSAMPLERS
from dlu_mmdet.visualization import show
from dlu_mmdet.visualization.predict import predict

COMMANDS = sorted(cli.commands())
# neither PyTorch nor MMDetection can be imported
BARE = (
    'import sys\n'
    'for name in ("torch", "mmcv", "mmengine", "mmdet", "numpy"): '
    'sys.modules[name] = None\n'
    'sys.argv = ["dlu_mmdet", *sys.argv[1:]]\n'
    'from dlu_mmdet.cli import main\n'
    'main()'
)


def bare(*words):
    return run('-c', BARE, *words).stdout


# ---- help ---------------------------------------------------------------------------


def test_help_is_a_line_for_each_command():
    """Else a newcomer has to guess what there is; maintainers' scripts are not it."""
    shown = bare('--help')
    listed = [line.split()[0] for line in shown.splitlines() if line.startswith('  ')]
    assert listed == COMMANDS
    assert {'train', 'test', 'compare', 'visualize', 'predict'} < {*COMMANDS}
    assert not {'gpu_check', 'cuda_counts', 'arguments'} & {*COMMANDS}
    assert all(len(line) < 80 for line in shown.splitlines())


def test_version_needs_nothing():
    """A bug report about MMDetection that cannot be imported has it too."""
    shown = bare('--version')
    assert 'dlu_mmdet: ' in shown and 'torch: ' in shown and 'CPU loops: ' in shown


@pytest.mark.parametrize('name', COMMANDS)
def test_help_of_a_command_imports_nothing_and_shows_defaults(name):
    shown = bare(name, '--help')
    assert shown.startswith(f'usage: dlu_mmdet {name} ')
    assert '--traceback' in shown
    words = ' '.join(shown.split())
    expected = dict(
        train='(default: none)',
        explain='(default: xgradcam gradcam gradcam++ ablationcam)',
        predict='(default: 0.3)',
        complexity='(default: 2 4 8 16)',
        compare='(default: work_dirs/comparison)',
        export='(default: detector)',
    )
    assert expected.get(name, '') in words and '(default: None)' not in words


@pytest.mark.parametrize('words', [['--help'], ['--version'], ['train', '--help']])
def test_the_reader_of_a_pipe_may_leave(words):
    """As ``head`` does, which is no reason for a traceback."""
    command = shlex.join([sys.executable, '-m', 'dlu_mmdet', *words])
    # `true` has ended when the other begins to write
    shell = ['bash', '-c', f'(sleep 0.2; {command}) | true']
    result = subprocess.run(shell, stderr=subprocess.PIPE, text=True)
    assert result.stderr == ''


def test_names_in_the_help_are_those_of_the_code():
    """They are written twice, since the help imports nothing."""
    own = {cls.__module__ for cls in UPSAMPLERS.module_dict.values()}
    registered = [
        name
        for name, cls in UPSAMPLERS.module_dict.items()
        if cls.__module__.startswith('dlu_mmdet.')
    ]
    assert own and sorted(registered) == [*arguments.UPSAMPLERS]
    assert tuple(METHODS) == explain.METHODS
    assert PARTS == export.PARTS and tuple(formats.CONVERTIBLE) == convert.CONVERTIBLE


@pytest.mark.parametrize(
    'words, function, shared',
    [
        ('predict c p i', predict, None),
        ('visualize detections c p', show.show_detections, show.Options),
        ('visualize kernels c p', show.show_kernels, show.Options),
        ('visualize features c p', show.show_features, show.Options),
        ('explain c p', explain_dataset, Options),
        ('explain c p i', explain_images, Options),
    ],
)
def test_defaults_are_those_of_the_functions(words, function, shared):
    name, *rest = words.split()
    given = vars(load_tool(name).parse_args(rest))
    given['methods'] = given.get('method')
    calls = [function, *([shared] if shared else [])]
    for key, parameter in {
        key: parameter
        for call in calls
        for key, parameter in inspect.signature(call).parameters.items()
        if parameter.default is not parameter.empty
    }.items():
        value, expected = given[key], parameter.default
        if key == 'measures':
            value = tuple(value)
        # flags of curves, which --measures asks for
        if key not in ('steps', 'curves_out'):
            assert (value or None) == (expected or None) or str(value) == expected, key


@pytest.mark.parametrize('name', COMMANDS)
def test_a_script_of_tools_is_the_command(name):
    assert run(f'tools/{name}.py', '--help').stdout.startswith(
        f'usage: dlu_mmdet {name} '
    )


# ---- errors -------------------------------------------------------------------------


def test_a_mistake_is_one_sentence():
    """Forty lines of traceback hide what to do."""
    failed = run('-m', 'dlu_mmdet', 'train', 'none.py', check=False)
    (line,) = failed.stdout.splitlines()
    assert failed.returncode == 1
    assert line.startswith('dlu_mmdet train: error: config none.py does not exist; ')
    for ask in (dict(flag=['--traceback']), dict(env={'DLU_MMDET_TRACEBACK': '1'})):
        shown = run(
            *('-m', 'dlu_mmdet', 'train', 'none.py', *ask.get('flag', [])),
            check=False,
            env={**os.environ, **ask.get('env', {})},
        ).stdout
        assert 'Traceback' in shown and 'FileNotFoundError: config none.py' in shown


def test_a_fault_of_the_code_keeps_its_traceback(monkeypatch, capsys):
    def fail(error):
        raise error

    class Command:
        main = staticmethod(lambda: fail(ValueError('of this test file')))

    monkeypatch.setattr(cli, 'import_module', lambda _: Command)
    monkeypatch.setattr('sys.argv', ['dlu_mmdet'])
    with pytest.raises(ValueError, match='of this test file'):
        cli.run('train')
    # what a config names and mmengine does not find is the user's
    Command.main = lambda: UPSAMPLERS.build(dict(type='dlux', channels=1))
    with pytest.raises(SystemExit) as info:
        cli.run('train')
    assert info.value.code == 1
    shown = capsys.readouterr().err
    assert shown.startswith('dlu_mmdet train: error: ') and 'dlux' in shown


@pytest.mark.parametrize(
    'text, message',
    [
        ('train_cfg', 'is not KEY=VALUE'),
        ('=3', 'is not KEY=VALUE'),
        ('a=[1,2', r'a=\[1,2 has no value that can be read'),
        ('a={1', 'a={1 has no value that can be read'),
        ("a=[dict(type='A', b=1)]", "write a dict as {'key': value}"),
    ],
)
def test_bad_options(text, message, capsys):
    with pytest.raises(ValueError, match=message):
        parse_options([text])
    with pytest.raises(SystemExit):
        load_tool('train').parse_args(['x.py', '--cfg-options', text])
    assert '--cfg-options' in capsys.readouterr().err.splitlines()[-1]


def test_options_of_dicts():
    """A backend of the visualizer, and names with dots."""
    text = "visualizer.vis_backends=[{'type': 'A'}, {'type': 'B'}]"
    assert parse_options([text, "a={'b.c': 1}", 'd=[1,e]', 'f=(1,)']) == {
        'visualizer.vis_backends': [dict(type='A'), dict(type='B')],
        'a': {'b.c': 1},
        'd': [1, 'e'],
        'f': (1,),
    }


@pytest.mark.parametrize(
    'flags, missing',
    [(['test', '{config}', '{folder}/epoch_9.pth'], 'epoch_9.pth does not exist'),
     (['test', '{config}', '{folder}'], 'is a folder'),
     (['predict', '{config}', '{folder}/epoch_9.pth', '.'], 'epoch_9.pth does not'),
     (['train', '{config}', '--resume', '{folder}/epoch_9.pth'], 'epoch_9.pth does')],
)  # fmt: skip
def test_a_missing_checkpoint_lists_those_that_are_there(
    trained, tmp_path, monkeypatch, flags, missing
):
    monkeypatch.chdir(tmp_path)
    cv2.imwrite('x.png', cv2.UMat(8, 8, cv2.CV_8UC3).get())
    words = dict(config=trained / SHAPES_DLU.name, folder=trained)
    name, *rest = [flag.format(**words) for flag in flags]
    with pytest.raises(FileNotFoundError, match=missing) as info:
        load_tool(name).main(rest)
    assert f'there are {trained}/epoch_4.pth, ' in str(info.value)
    # and where there are none, what makes one
    with pytest.raises(FileNotFoundError, match='dlu_mmdet train CONFIG makes one'):
        load_tool('test').main([str(words['config']), 'nothing/x.pth'])


@pytest.mark.parametrize(
    'text, message',
    [
        ('model = dict(', r'cfg.py cannot be read \(SyntaxError: '),
        ('model = nothing', r'cfg.py cannot be read \(NameError: name .nothing'),
        ("_base_ = 'dlu_mmdet::_base_/none.py'", r'cfg.py cannot be read \('),
        ("custom_imports = dict(imports=['nowhere'])", 'cfg.py cannot be read'),
    ],
)
def test_a_broken_config_is_named(tmp_path, text, message):
    """A traceback through mmengine names <unknown>."""
    (tmp_path / 'cfg.py').write_text(text)
    with pytest.raises(ValueError, match=message) as info:
        load_tool('train').main([str(tmp_path / 'cfg.py')])
    assert '\n' not in str(info.value)


def test_the_recipe_without_data_asks_for_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = str(ROOT / 'configs/_base_/faster-rcnn_r18_fpn_own-data.py')
    with pytest.raises(FileNotFoundError, match='folder of your data: --data DIR'):
        load_tool('train').main([recipe])


def test_missing_data_name_the_flag(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
    with pytest.raises(FileNotFoundError, match='by --data DIR, or by --cfg-options'):
        load_tool('train').main([config])


# ---- work directories ---------------------------------------------------------------


def test_default_work_dirs_are_distinct(shapes_root):
    """Two upsamplers, or two data sets, would overwrite each other's checkpoints."""
    name = 'dlu_mmdet::shapes/faster-rcnn_r18_fpn-bilinear_shapes.py'
    stem = 'work_dirs/faster-rcnn_r18_fpn-bilinear_shapes'
    carafe = dict(type='carafe', up_kernel=3)
    assert default_work_dir(name) == stem
    assert default_work_dir(name, carafe) == f'{stem}_carafe-up_kernel-3'
    assert default_work_dir(name, None, 'a/mine/') == f'{stem}_mine'
    cfg = load_config(name, upsampler=dict(type='dlu'), data=shapes_root)
    assert cfg.work_dir == f'{stem}_dlu_shapes'
    assert load_config(name, work_dir='w').work_dir == 'w'


def test_another_run_is_not_overwritten(trained, tmp_path):
    """The checkpoints of hours would be gone without a word."""
    cfg = Config.fromfile(trained / SHAPES_DLU.name)
    # the same again is what MMDetection's users know
    cfg.update(work_dir=str(trained), launcher='pytorch', load_from=None)
    check_unoccupied(cfg)
    cfg.optim_wrapper.optimizer.lr = 1.0
    with pytest.raises(ValueError) as info:
        check_unoccupied(cfg)
    said = str(info.value)
    assert f'{trained} has the checkpoints of another config, {SHAPES_DLU.name}' in said
    assert 'optim_wrapper.optimizer.lr is 0.' in said and 'and 1.0 now' in said
    assert 'another folder with --work-dir' in said
    # what is resumed goes on, and a folder without checkpoints has nothing to lose
    cfg.resume = True
    check_unoccupied(cfg)
    cfg.update(resume=False, work_dir=str(tmp_path))
    shutil.copy(trained / SHAPES_DLU.name, tmp_path)
    check_unoccupied(cfg)


def test_a_finished_training_says_so_and_what_is_next(small, trained, tmp_path):
    """--resume of it looked like a training that did nothing."""
    folder = tmp_path / 'run'
    shutil.copytree(trained, folder)
    last = folder / 'epoch_4.pth'
    (folder / 'last_checkpoint').write_text(str(last))
    command = [SHAPES_DLU, '--work-dir', folder, '--resume', *as_arguments(small)]
    shown = run('-m', 'dlu_mmdet', 'train', *command, cwd=tmp_path).stdout
    assert 'this training is finished: all of its 4 epochs are done' in shown
    assert 'creating index' not in shown and 'OneDL' not in shown
    *_, commands = shown.split('next:\n')
    lines = [shlex.split(line) for line in commands.splitlines()]
    assert [line[:2] for line in lines] == [
        ['dlu_mmdet', name]
        for name in ('test', 'visualize', 'predict', 'explain', 'export')
    ]
    assert lines[0][2:] == [f'run/{SHAPES_DLU.name}', 'run/epoch_4.pth']
    for line in lines:
        for word in line[2:]:
            folder_of = Path(tmp_path, word).parent
            assert '/' not in word or folder_of.is_dir(), word
    # the config is to begin anew, with no hook of the resumed run
    left = Config.fromfile(folder / SHAPES_DLU.name)
    assert not left.get('resume') and left.get('load_from') is None
    assert 'CheckpointGuardHook' not in left.pretty_text
    check_unoccupied(Config.fromfile(trained / SHAPES_DLU.name))
    tested = run('-m', *lines[0][:1], *lines[0][1:], cwd=tmp_path).stdout
    assert 'coco/bbox_mAP' in tested
    # the arguments are read; tests of each command run them
    for _, name, *rest in lines:
        load_tool(name).parse_args(rest)


# ---- predict ------------------------------------------------------------------------


def test_predict_in_folders_images_and_videos(shapes_root, trained, tmp_path, capsys):
    images = sorted((shapes_root / 'val').glob('*.png'))[:3]
    (tmp_path / 'a').mkdir()
    for path in images[:2]:
        shutil.copy(path, tmp_path / 'a')
    video = tmp_path / 'clip.mp4'
    frames = [cv2.imread(str(path)) for path in images]
    size = frames[0].shape[1::-1]
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*'mp4v'), 5, size)
    for frame in frames:
        writer.write(frame)
    writer.release()
    out = tmp_path / 'out'
    load_tool('predict').main([
        *map(str, (trained / SHAPES_DLU.name, trained / 'epoch_4.pth')),
        *map(str, (tmp_path / 'a', images[0], video)),
        *('--out', str(out), '--score-thr', '0.0'),
    ])  # fmt: skip
    found = json.loads((out / 'predictions.json').read_text())
    assert len(found) == 3 + 3 and [e.get('frame') for e in found[3:]] == [0, 1, 2]
    # one image in two folders: two pictures, the same detections
    assert found[0]['detections'] == found[2]['detections'] != []
    best = found[0]['detections'][0]
    assert {*best} == {'class', 'score', 'box'} and len(best['box']) == 4
    files = {path.name for path in out.iterdir()}
    assert len(files) == 5 and {'clip.mp4', 'predictions.json'} < files
    drawn = cv2.imread(str(out / f'a-{images[0].name}'))
    assert drawn is not None and abs(drawn.astype(int) - frames[0]).max() > 100
    reader = cv2.VideoCapture(str(out / 'clip.mp4'))
    assert reader.get(cv2.CAP_PROP_FRAME_COUNT) == 3
    assert 'page' not in capsys.readouterr().out


@pytest.mark.parametrize(
    'given, message',
    [
        (['none.png'], 'none.png does not exist'),
        (['empty'], 'empty has no images or videos'),
        (['text.png'], 'text.png cannot be read as an image or a video'),
        (['text.mp4'], 'text.mp4 cannot be read as a video'),
        (['text.png', '--score-thr', '2'], r'--score-thr must be in \[0, 1\], got 2'),
        (['text.png', '--out', 'text.png'], 'cannot be written'),
    ],
)
def test_bad_inputs_of_predict(trained, tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    Path('empty').mkdir()
    for name in ('text.png', 'text.mp4'):
        Path(name).write_text('text')
    pair = [*map(str, (trained / SHAPES_DLU.name, trained / 'epoch_4.pth'))]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_tool('predict').main([*pair, *given])
    assert not list(Path().glob('work_dirs/predict/*'))


# ---- what is written about it -------------------------------------------------------


def test_no_text_says_to_install_from_an_index():
    """The package is on none, so that such a command fails."""
    files = [
        *ROOT.glob('*.md'),
        *ROOT.glob('docs/*.md'),
        *ROOT.glob('dlu_mmdet/**/*.py'),
    ]
    for file in files:
        text = file.read_text()
        assert 'dlu_mmdet[' not in text, file
        assert 'pip install dlu' not in text, file
