"""Files of others: checkpoints, pickles and configs run no code of theirs."""

import io
import os
import pickle
import sys
import tarfile
import types
from collections import OrderedDict
from types import SimpleNamespace

import mmengine
import numpy as np
import pytest
import torch
from conftest import SHAPES_DLU, load_tool
from mmdet.datasets import OpenImagesChallengeDataset
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.fileio import BaseStorageBackend, backends
from mmengine.fileio.handlers import file_handlers
from mmengine.hooks import CheckpointHook
from mmengine.logging import HistoryBuffer
from mmengine.optim import scheduler
from mmengine.registry import init_default_scope
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.structures import InstanceData

from dlu_mmdet.config import check_foreign, read_config, read_dumped_config
from dlu_mmdet.config.read import read_settings
from dlu_mmdet.engine import CheckpointGuardHook, load_checkpoint, use_safe_loaders
from dlu_mmdet.utils import torch_compat
from dlu_mmdet.utils.torch_compat import EXPORTS


class Code:
    """Makes a pickle that calls something when it is loaded."""

    def __init__(self, call, *args):
        self.reduced = call, args

    def __reduce__(self):
        return self.reduced


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A checkpoint that makes a file called 'ran' in the working directory."""
    monkeypatch.chdir(tmp_path)
    torch.save(dict(state_dict={}, meta=Code(os.mkdir, 'ran')), 'evil-0123abcd.pth')
    return tmp_path / 'evil-0123abcd.pth'


@pytest.fixture
def loaders(monkeypatch):
    """A process as the tools have it, and mmengine as it was afterwards."""
    for owner, name in (
        (CheckpointLoader, '_get_checkpoint_loader'),
        (OpenImagesChallengeDataset, '_get_relation_matrix'),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    for ending, handler in file_handlers.items():
        monkeypatch.setitem(file_handlers, ending, handler)
    use_safe_loaders()
    return CheckpointLoader


# ---- checkpoints -------------------------------------------------------------------


@pytest.mark.parametrize(
    'code',
    [
        Code(os.mkdir, 'ran'),
        Code(getattr, Config, 'fromfile'),
        Code(getattr, HistoryBuffer, '__subclasses__'),
        Code(eval, '1'),
    ],
)
@pytest.mark.parametrize('zipped', [True, False])
def test_checkpoint_that_runs_code(tmp_path, monkeypatch, code, zipped):
    monkeypatch.chdir(tmp_path)
    state = dict(state_dict={}, message_hub=code)
    if zipped:
        torch.save(state, 'evil.pth')
    else:
        with open('evil.pth', 'wb') as file:
            pickle.dump(state, file, protocol=2)
    with pytest.raises(ValueError, match=r'evil\.pth is refused.*could run code'):
        load_checkpoint('evil.pth', 'cpu')
    assert not (tmp_path / 'ran').exists()


def addresses(file, monkeypatch):
    """An address of every kind that mmengine knows, all of one file."""
    url = f'https://nowhere/{file.name}'

    def download(url, path, *_, **__):
        with open(path, 'wb') as copy:
            copy.write(file.read_bytes())

    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    monkeypatch.setenv('TORCH_HOME', str(file.parent / 'torch'))
    monkeypatch.setenv('MMENGINE_HOME', str(file.parent))
    (file.parent / 'open_mmlab.json').write_text(f'{{"evil": "{file.name}"}}')
    zoo = dict.fromkeys(('evil', 'resnet50'), url)
    for zoo_of in ('get_mmcls_models', 'get_torchvision_models'):
        monkeypatch.setattr(mmengine_checkpoint, zoo_of, lambda: zoo)

    class Store(BaseStorageBackend):
        def get(self, path):
            return file.read_bytes()

        def get_text(self, path):
            return file.read_text()

    monkeypatch.setitem(backends.registry_utils.backends, 'petrel', Store)
    model = SimpleNamespace(name='evil', download=lambda path: download('', path))
    cloud = SimpleNamespace(get=lambda path: model)
    pavi = types.ModuleType('pavi')
    pavi.modelcloud = cloud
    monkeypatch.setitem(sys.modules, 'pavi', pavi)
    found = {
        '': str(file),
        'file://': file.as_uri(),
        'http://': url.replace('https', 'http'),
        'https://': url,
        r'(\S+\:)?s3://': 'cluster:s3://bucket/evil.pth',
        r'(\S+\:)?petrel://': 'petrel://bucket/evil.pth',
        # without torchvision it has few names
        'torchvision://': 'torchvision://resnet50',
        'modelzoo://': 'modelzoo://resnet50',
    }
    for scheme in CheckpointLoader._schemes:
        found.setdefault(scheme, f'{scheme}evil')
    return found


@pytest.mark.parametrize('tool', [True, False])
def test_no_kind_of_address_runs_code(evil, monkeypatch, request, tool):
    """Else a config that names one does, in whatever tool reads it."""
    load = load_checkpoint
    if tool:
        load = request.getfixturevalue('loaders').load_checkpoint
    # of a user's own, or of an mmengine to come
    schemes = dict(CheckpointLoader._schemes, **{'new://': lambda name, _: evil_load()})
    monkeypatch.setattr(CheckpointLoader, '_schemes', schemes)

    def evil_load():
        return torch.load(evil, weights_only=False)

    found = addresses(evil, monkeypatch)
    assert len(found) > 10
    for scheme, address in found.items():
        with pytest.raises(ValueError, match='refused|damaged'):
            load(address, 'cpu')
        assert not os.path.exists('ran'), scheme
    with pytest.raises(ValueError, match="no model of the name 'evli'; nearest.* evil"):
        load('open-mmlab://evli', 'cpu')


@pytest.mark.parametrize(
    'name, given',
    [
        ('train', ['none.py']),
        ('test', ['none.py', 'none.pth']),
        ('visualize', ['detections', 'none.py', 'none.pth']),
        ('explain', ['none.py', 'none.pth']),
        pytest.param(
            'export',
            ['none.py', 'none.pth', '--out', 'x.onnx'],
            marks=pytest.mark.skipif(not EXPORTS, reason='export needs torch 2.7'),
        ),
        ('compare', ['none.py']),
        ('compare', ['--join', 'none']),
        ('summarize', ['none']),
    ],
)
def test_every_tool_that_reads_configs_is_safe(
    monkeypatch, tmp_path, name, given, loaders
):
    """Else it runs what a pre-trained backbone or a teacher's checkpoint holds."""
    own = CheckpointLoader.__dict__['_get_checkpoint_loader']
    monkeypatch.setattr(CheckpointLoader, '_get_checkpoint_loader', None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match='none'):
        load_tool(name).main(given)
    assert CheckpointLoader.__dict__['_get_checkpoint_loader'].__func__ is own.__func__


def test_pretrained_weights_run_no_code(evil, config, monkeypatch, loaders):
    """As a config names them, which the model loads itself."""
    address = addresses(evil, monkeypatch)['open-mmlab://']
    config.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=address)
    init_default_scope('mmdet')
    model = MODELS.build(config.model)
    with pytest.raises(ValueError, match='refused'):
        model.init_weights()
    assert not os.path.exists('ran')


@pytest.mark.parametrize('text', ['a.b = 1', 'a = b = 1', 'a[0] = 1', 'a, b = 1, 2'])
def test_settings_have_one_name_each(text):
    with pytest.raises(ValueError, match='line 1 is not NAME = VALUE'):
        read_settings(text)


def test_every_kind_of_address_loads(tmp_path, monkeypatch, loaders):
    """Else what is safe is of no use."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / 'fine.pth'
    torch.save(dict(state_dict={'backbone.weight': torch.ones(2)}), file)
    found = addresses(file, monkeypatch)
    for scheme, address in found.items():
        if scheme == 'pavi://':
            continue
        state = loaders.load_checkpoint(address, 'cpu')['state_dict']
        key = 'weight' if scheme == 'mmcls://' else 'backbone.weight'
        assert state[key].tolist() == [1, 1], scheme


def test_the_state_of_every_schedule_loads(tmp_path, loaders):
    """Else a training with milestones leaves checkpoints that are refused."""
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=1, momentum=0.9)
    args = dict(
        ConstantParamScheduler={},
        CosineAnnealingParamScheduler=dict(T_max=9),
        CosineRestartParamScheduler=dict(periods=[5], eta_min=0),
        ExponentialParamScheduler=dict(gamma=0.9),
        LinearParamScheduler={},
        MultiStepParamScheduler=dict(milestones=[3, 3, 8]),
        OneCycleParamScheduler=dict(eta_max=2, total_steps=9),
        PolyParamScheduler={},
        ReduceOnPlateauParamScheduler={},
        StepParamScheduler=dict(step_size=3),
    )
    states = {}
    for name, more in args.items():
        built = getattr(scheduler, name)(optimizer, 'lr', **more)
        states[name] = built.state_dict()
    # stores functions of its own too
    log = HistoryBuffer([1.0], [1])
    state = dict(state_dict={}, param_schedulers=states, message_hub=log)
    torch.save(state, tmp_path / 'a.pth')
    found = loaders.load_checkpoint(str(tmp_path / 'a.pth'), 'cpu')
    assert found['param_schedulers'] == states
    assert found['message_hub'].data[0].tolist() == [1]


class _Getattr:
    def __init__(self, *args):
        self.args = args

    def __reduce__(self):
        return getattr, self.args


@pytest.mark.parametrize(
    'args',
    [
        (torch.Tensor, '__init__'),
        (scheduler.OneCycleParamScheduler, '__init__'),
        (OrderedDict, 'fromkeys'),
    ],
)
def test_no_other_attribute_is_read(tmp_path, loaders, args):
    torch.save(dict(state_dict={}, evil=_Getattr(*args)), tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='refused, since loading it could run code'):
        loaders.load_checkpoint(str(tmp_path / 'a.pth'), 'cpu')


def test_archives_that_torch_hands_to_other_readers(tmp_path, monkeypatch):
    """Before torch 2.6 they get past weights_only (CVE-2025-32434)."""
    monkeypatch.setattr(torch_compat, 'AT_LEAST_26', False)
    torch.jit.script(torch.nn.ReLU()).save(str(tmp_path / 'script.pth'))
    with tarfile.open(tmp_path / 'tar.pth', 'w') as archive:
        archive.add(__file__, 'storages')
    monkeypatch.setattr(torch, 'load', lambda *_, **__: pytest.fail('it is loaded'))
    for name in ('script', 'tar'):
        with pytest.raises(ValueError, match=rf'{name}\.pth.*TorchScript or tar'):
            load_checkpoint(tmp_path / f'{name}.pth')


def test_no_text_of_a_checkpoint_runs(tmp_path):
    """mmengine runs meta.config where it resumes."""
    meta = dict(config='import os; os.mkdir("ran")', epoch=1)
    torch.save(dict(state_dict={}, meta=meta), tmp_path / 'a.pth')
    assert load_checkpoint(tmp_path / 'a.pth')['meta'] == dict(epoch=1)


@pytest.mark.parametrize('size', [0, 30, 200])
def test_damaged_pickles_get_a_sentence(tmp_path, size):
    """Of the kind before zip files, which torch still reads."""
    state = dict(state_dict={'weight': torch.ones(4)})
    for name, zipped in (('old', False), ('new', True)):
        path = tmp_path / f'{name}.pth'
        torch.save(state, path, _use_new_zipfile_serialization=zipped)
        whole = path.read_bytes()
        for content in (whole[:size], whole[:size] + bytes(100), bytes(size)):
            path.write_bytes(content)
            with pytest.raises(
                ValueError, match=f'{name}.pth .*(cannot be read|is refused)'
            ):
                load_checkpoint(path)


def test_a_resumed_training_removes_its_own_files_only(tmp_path):
    """Else it removes the best checkpoint of the folder that it was copied from, or
    whatever the checkpoint names, and folders too."""
    hook, guard = CheckpointHook(), CheckpointGuardHook()
    runner = SimpleNamespace(
        model=torch.nn.ReLU(),
        cfg=Config(),
        _resume=True,
        _load_from='a.pth',
        work_dir=str(tmp_path / 'copy'),
        hooks=[hook],
        optim_wrapper=None,
    )

    def resumed(**info):
        checkpoint = dict(
            state_dict={}, meta=dict(epoch=1), message_hub=dict(runtime_info=info)
        )
        guard.after_load_checkpoint(runner, checkpoint)
        return info

    best = str(tmp_path / 'copy' / 'best_AP_epoch_1.pth')
    info = resumed(best_ckpt='/original/best_AP_epoch_1.pth', keep_ckpt_ids=[1, 2])
    assert info == dict(best_ckpt=best, keep_ckpt_ids=[1, 2])
    info = resumed(best_ckpt_AP=str(tmp_path), keep_ckpt_ids=['1/../../../x'])
    assert info == dict(best_ckpt_AP=None)
    hook.out_dir = '/elsewhere'
    info = resumed(best_ckpt='/original/best_AP.pth')
    assert info['best_ckpt'] == '/elsewhere/copy/best_AP.pth'
    with pytest.raises(
        ValueError, match=r'from a\.pth, which has no meta, message_hub'
    ):
        guard.after_load_checkpoint(runner, dict(state_dict={}))


# ---- pickles and other data --------------------------------------------------------


def test_pickles_of_data(tmp_path, monkeypatch, loaders):
    """Proposals and predictions; what mmdet writes is read, and nothing else runs."""
    monkeypatch.chdir(tmp_path)
    proposals = InstanceData(bboxes=np.ones((2, 4), np.float32), scores=np.ones(2))
    sample = dict(
        img_id=np.int64(3),
        ori_shape=(4, 5),
        pred_instances=dict(bboxes=torch.ones(2, 4), labels=torch.tensor([0, 1])),
        masks=[dict(size=[4, 5], counts=b'\xff0')],
    )
    mmengine.dump([proposals, sample], 'data.pkl')
    with open('later.pickle', 'wb') as file:
        pickle.dump([proposals, sample], file, protocol=pickle.HIGHEST_PROTOCOL)
    for name in ('data.pkl', 'later.pickle'):
        boxes, found = mmengine.load(name)
        assert boxes.bboxes.tolist() == proposals.bboxes.tolist() and len(boxes) == 2
        labels = found['pred_instances'].pop('labels')
        assert labels.dtype == torch.int64 and labels.tolist() == [0, 1]
        assert found['pred_instances']['bboxes'].tolist() == [[1] * 4] * 2
        assert (found['img_id'], found['masks']) == (3, sample['masks'])
    buffer = io.BytesIO()
    torch.save(Code(os.mkdir, 'ran'), buffer)
    for code in (
        Code(os.mkdir, 'ran'),
        Code(eval, 'None'),
        # what a pickled tensor is rebuilt by
        Code(torch.storage._load_from_bytes, buffer.getvalue()),
        Code(pickle.loads, pickle.dumps(Code(os.mkdir, 'ran'))),
    ):
        mmengine.dump([code], 'evil.pkl')
        with pytest.raises(ValueError, match='could run code'):
            mmengine.load('evil.pkl')
    assert not os.path.exists('ran')


def test_yaml_and_arrays_of_data(tmp_path, monkeypatch, loaders):
    monkeypatch.chdir(tmp_path)
    content = dict(a=(1, 2), b=[dict(c='d', e=None)])
    mmengine.dump(content, 'data.yaml')
    assert mmengine.load('data.yaml') == content
    with open('evil.yml', 'w') as file:
        file.write('a: !!python/object/apply:os.mkdir [ran]')
    with pytest.raises(Exception, match='could not determine a constructor'):
        mmengine.load('evil.yml')
    data_set = SimpleNamespace(backend_args=None)
    tree = np.eye(3)
    read = OpenImagesChallengeDataset._get_relation_matrix
    with open('tree.np', 'wb') as file:
        np.save(file, tree)
    assert (read(data_set, 'tree.np') == np.eye(2)).all()
    with open('evil.np', 'wb') as file:
        pickle.dump(Code(os.mkdir, 'ran'), file)
    with pytest.raises(ValueError, match='contains pickled|containing pickled'):
        read(data_set, 'evil.np')
    assert not os.path.exists('ran')


# ---- configs -----------------------------------------------------------------------


@pytest.mark.parametrize('name', ['shapes/faster-rcnn_r18_fpn-dlu_shapes'])
def test_a_dumped_config_is_read_as_data(tmp_path, name):
    cfg = Config.fromfile(f'configs/{name}.py')
    cfg.model.extra = {'not an identifier': (1, -2.5, None, 'a\nb'), 3: {'x': (True,)}}
    cfg.dump(tmp_path / 'dumped.py')
    assert read_dumped_config(tmp_path / 'dumped.py').to_dict() == cfg.to_dict()


@pytest.mark.parametrize(
    'text',
    [
        'import os\nos.mkdir("ran")',
        'a = __import__("os").mkdir("ran")',
        'a = dict(b=[c for c in ().__class__.__base__.__subclasses__()])',
        'a = dict(**{"b": open("ran", "w")})',
        'a = dict([("b", 1)])',
        'a, b = 1, 2',
        'a[0] = 1',
        'filename = 1',
        'a = ' + '(' * 500 + ')' * 500,
        b'a = 1\0',
        b'\0' * 50,
        b'\xff\xfe',
        'a = {[]: 1}',
    ],
)
def test_a_config_that_holds_code_is_not_read(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / 'foreign.py'
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ValueError, match=r'foreign\.py cannot be read as data'):
        read_dumped_config(file)
    assert not os.path.exists('ran')


@pytest.mark.parametrize('content', [b'', bytes(50), b'a = 1\0\0', b'\xff\xfea'])
def test_a_damaged_config(tmp_path, content):
    """Else Python says so, and not of which file."""
    (tmp_path / 'seed0.py').write_bytes(content)
    with pytest.raises(ValueError, match=r'seed0\.py is damaged .*copy it again'):
        read_config(tmp_path / 'seed0.py')


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('type', 'os.system'),
        ('backbone.type', 'subprocess.call'),
        # mmcv evaluates it
        ('test_cfg.rpn.nms.type', '(lambda *_, **__: __import__("os").mkdir("ran"))()'),
        ('neck.upsample_cfg.type', 'torch.hub.load'),
        ('backbone._scope_', 'somewhere'),
        ('backbone.init_cfg', dict(type='os.system', _delete_=True)),
        ('teacher_config', str(SHAPES_DLU)),
        ('backbone.norm_cfg.type', 'dlu_mmdet.os.system'),
    ],
)
def test_what_is_built_from_a_foreign_config_is_registered(key, value):
    model = Config.fromfile(SHAPES_DLU).model
    # as a config in Python is dumped
    model.backbone.type = 'mmdet.models.backbones.ResNet'
    model.neck.type = 'dlu_mmdet.necks.UpsampleFPN'
    check_foreign(model, 'model', 'a.py')
    cfg = Config(dict(model=model))
    cfg.merge_from_dict({f'model.{key}': value})
    with pytest.raises(ValueError, match=rf'a\.py: model\.{key}.* could run code'):
        check_foreign(cfg.model, 'model', 'a.py')
