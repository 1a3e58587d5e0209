"""Configs by path or by name, and with another upsampler in their neck."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mmcv.ops
import mmdet.registry
import mmengine.registry
from mmengine.config import Config
from mmengine.registry import DefaultScope, Registry

from ..necks import NECKS, with_upsampler
from ..upsamplers import (
    UPSAMPLERS,
    registered_name,
    resolve_upsampler,
    split_file,
    upsampler_class,
)
from .custom_data import prepare_data, say, use_dataset_folder
from .overrides import merge_options
from .schedule import fit_schedule

# what a config of MMDetection 2 says, and where MMDetection 3 reads it
_OF_VERSION_2 = {
    'data': 'train_dataloader, val_dataloader and test_dataloader',
    'optimizer': 'optim_wrapper.optimizer',
    'optimizer_config': 'optim_wrapper.clip_grad',
    'lr_config': 'param_scheduler',
    'momentum_config': 'param_scheduler',
    'runner': 'train_cfg',
    'total_epochs': 'train_cfg.max_epochs',
    'evaluation': 'val_evaluator and train_cfg.val_interval',
    'checkpoint_config': 'default_hooks.checkpoint',
    'log_config': 'default_hooks.logger',
    'dist_params': 'env_cfg.dist_cfg',
    'img_norm_cfg': 'model.data_preprocessor',
}
# whose modules are imported by MMDetection's tools, or cannot be named
_STACK = ('dlu_mmdet', 'mmcv', 'mmdet', 'mmengine', '__main__')
# of these, what may be a variable of another config
_MAYBE_VARIABLES = ('data', 'optimizer', 'runner', 'img_norm_cfg')


def read_config(name: str | os.PathLike) -> Config:
    """Read a config.

    Args:
        name (str | PathLike): A file, or one of an installed package as
            ``mmdet::retinanet/retinanet_r50_fpn_1x_coco.py``.

    Returns:
        Config: Complete.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is written for MMDetection 2, or is no text, as a power cut
            may leave it.
    """
    # custom_imports may name a module of the current folder, as with python -m
    here = os.getcwd()
    added = here not in sys.path
    if added:
        sys.path.append(here)
    try:
        cfg = _read(name)
    finally:
        if added:
            sys.path.remove(here)
    _refuse_version_2(name, cfg)
    return cfg


def _read(name: str | os.PathLike) -> Config:
    """Read a file or a config of an installed package."""
    package, found, path = str(name).partition('::')
    if not found:
        if not Path(name).is_file():
            folder = Path(name).parent.parent
            raise FileNotFoundError(
                f'config {name} does not exist{_nearest(Path(name).name, folder)}; the '
                f'configs are in configs/, from any folder dlu_mmdet::shapes/'
                f'faster-rcnn_r18_fpn-dlu_shapes.py, those of MMDetection '
                f'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
            )
        try:
            text = Path(name).read_text(encoding='utf-8')
            if not text.strip() or '\0' in text:
                raise ValueError('it is empty, or holds zeros')
        except ValueError as error:
            raise ValueError(
                f'config {name} is damaged ({error}); copy it again, or remove it and '
                f'let the command that wrote it do so anew'
            ) from error
        try:
            return Config.fromfile(name)
        # whatever the Python of a config raises
        except Exception as error:
            raise ValueError(
                f'config {name} cannot be read ({type(error).__name__}: '
                f'{" ".join(str(error).split())}); correct it'
            ) from error
    # not mmengine's get_config: mmengine 0.10 looks for an editable package elsewhere
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # no name of a module
        spec = None
    parents = (spec and spec.submodule_search_locations) or ['']
    folder = Path(parents[0], '.mim', 'configs')
    if not (folder / path).is_file():
        near = _nearest(Path(path).name, folder, f'{package}::') if spec else ''
        raise FileNotFoundError(
            f'config {name} is not in the installed package {package}{near}; '
            f'its names are PACKAGE::FOLDER/FILE.py, as in its folder configs'
        )
    return Config.fromfile(folder / path)


def _nearest(name: str, folder: Path, prefix: str = '') -> str:
    """The configs of the folders in a folder whose names are nearest, as a clause."""
    paths = {path.name: path.relative_to(folder) for path in folder.glob('*/*.py')}
    near = difflib.get_close_matches(name, paths, n=3)
    if not near:
        return ''
    root = prefix or f'{folder}/'
    return f'; the nearest are {", ".join(f"{root}{paths[key]}" for key in near)}'


class _DictCalls(ast.NodeTransformer):
    """Turns ``dict(a=1)`` and ``dict({'a': 1})`` into literals."""

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        keys = [keyword.arg for keyword in node.keywords]
        if not isinstance(node.func, ast.Name) or node.func.id != 'dict':
            return node
        if not node.args and None not in keys:
            values = [keyword.value for keyword in node.keywords]
            return ast.Dict(list(map(ast.Constant, keys)), values)
        if len(node.args) == 1 and not keys and isinstance(node.args[0], ast.Dict):
            return node.args[0]
        return node


def read_dumped_config(path: str | os.PathLike) -> Config:
    """Read a config that mmengine dumped as data: nothing in it runs or is imported.

    Args:
        path (str | PathLike): The file.

    Returns:
        Config: Its settings.

    Raises:
        FileNotFoundError: If it does not exist.
        ValueError: If it is damaged, or holds more than ``name = value`` where the
            values are literals and calls of ``dict``.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'config {path} does not exist')
    try:
        settings = read_settings(Path(path).read_text(encoding='utf-8'))
        return Config(settings, filename=str(path))
    # whatever a text that mmengine does not write leads its readers to
    except Exception as error:
        raise ValueError(
            f'config {path} cannot be read as data: it is damaged, or holds code '
            f'({error})'
        ) from error


def read_settings(text: str) -> dict[str, object]:
    """Read the text of a config that mmengine dumped as data.

    Args:
        text (str): ``name = value`` each, where values are literals and calls of dict.

    Returns:
        dict[str, object]: The values by name.

    Raises:
        ValueError: If it holds more, or nothing.
        SyntaxError: If it is not Python.
    """
    settings = {}
    for statement in ast.parse(text).body:
        if not isinstance(statement, ast.Assign):
            raise ValueError(f'line {statement.lineno} is not NAME = VALUE')
        name, *others = statement.targets
        if others or not isinstance(name, ast.Name):
            raise ValueError(f'line {statement.lineno} is not NAME = VALUE')
        settings[name.id] = ast.literal_eval(_DictCalls().visit(statement.value))
    if not settings:
        raise ValueError('it has no settings')
    return settings


# these hold addresses of weights, which are loaded without running code
_WEIGHTS = ('init_cfg', 'pretrained', 'teacher_ckpt')


def check_foreign(part: Mapping, key: str, source: object, built: bool = True) -> None:
    """Refuse to build what could run code from somebody else's config.

    mmengine imports and calls whatever a ``type`` names by its path, and some classes
    evaluate a string, or read the file that it names.

    Args:
        part (Mapping): Part of a config.
        key (str): Where it is in the config, for the message.
        source (object): Whose config it is, for the message.
        built (bool): Whether the part is built, and not only its types looked up.
            Defaults to True.

    Raises:
        ValueError: If a type is registered neither in MMDetection nor here, or a
            string in what is built is no plain word.
    """
    registries = [
        registry
        for module in (mmdet.registry, mmengine.registry)
        for registry in vars(module).values()
        if isinstance(registry, Registry)
    ]
    # some types of layers are looked up in mmcv.ops
    known = set(mmcv.ops.__all__)
    objects = {id(getattr(mmcv.ops, name)) for name in known}
    for registry in (*registries, UPSAMPLERS):
        for name, cls in registry.module_dict.items():
            known |= {name, f'{registry.scope}.{name}'}
            objects.add(id(cls))

    def is_registered(name: str) -> bool:
        module, _, last = name.rpartition('.')
        # a path is looked up in what is imported already
        found = getattr(sys.modules.get(module), '__dict__', {}).get(last)
        return name in known or id(found) in objects

    scopes = {registry.scope for registry in registries}
    for where, value in _strings(part, key):
        if where.endswith('.type'):
            inner = value.removeprefix(f'{NECKS.scope}.')
            fine = is_registered(value) or is_registered(inner)
        elif where.endswith('._scope_'):
            fine = value in scopes
        else:
            word = re.fullmatch(r'[\w.-]*', value) and not os.path.isfile(value)
            fine = word or not built or any(p in _WEIGHTS for p in where.split('.'))
        if not fine:
            raise ValueError(
                f'{source}: {where}={value!r} names nothing that is registered here, '
                f'and is no plain word, so what is built from it could run code'
            )


def _strings(value: object, key: str) -> Iterator[tuple[str, str]]:
    """The strings in a part of a config that is built, with their dotted keys."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _strings(inner, f'{key}.{name}')
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from _strings(inner, f'{key}.{index}')


def _refuse_version_2(name: str | os.PathLike, cfg: Config) -> None:
    """Refuse a config of MMDetection 2; warn of what is left of one.

    Raises:
        ValueError: If no part of it is of MMDetection 3.
    """
    new = [k for k in cfg if k.endswith('_dataloader') or k == 'optim_wrapper']
    old = [key for key in _OF_VERSION_2 if key in cfg and key not in _MAYBE_VARIABLES]
    data = cfg.get('data')
    if isinstance(data, dict):
        only = ['samples_per_gpu', 'workers_per_gpu']
        only += [] if new else ['train', 'val', 'test']
        old = ['data'] * any(key in data for key in only) + old
    if not new:
        # beside these the others are no variables
        old += [key for key in _MAYBE_VARIABLES[1:] if key in cfg]
    if not old:
        return
    moved = ', '.join(f'{key} is now {_OF_VERSION_2[key]}' for key in old[:4])
    if not new:
        raise ValueError(
            f"config {name} is in MMDetection 2's form ({', '.join(old)}), which "
            f'MMDetection 3 does not read ({moved}); take the config of the same '
            f'detector from MMDetection 3, as in mmdet::retinanet/'
            f'retinanet_r50_fpn_1x_coco.py, or rewrite it by '
            f'https://mmdetection.readthedocs.io/en/latest/migration/'
            f'config_migration.html'
        )
    warnings.warn(
        f"config {name} has keys of MMDetection 2's form, which nothing reads, so "
        f'they change nothing: {moved}',
        stacklevel=3,
    )


def config_stem(name: str | os.PathLike) -> str:
    """A config's file name without folders and ``.py``."""
    return Path(str(name).rpartition('::')[2]).stem


def load_config(
    name: str | os.PathLike,
    *,
    work_dir: str | os.PathLike | None = None,
    cfg_options: Mapping | None = None,
    upsampler: dict | None = None,
    launcher: str = 'none',
    train: bool = False,
    **data: Any,
) -> Config:
    """Read the config of a training or a test, with what the command line says.

    Args:
        name (str | PathLike): See :func:`read_config`.
        work_dir (str | PathLike, optional): Defaults to the config's, or
            :func:`default_work_dir`.
        cfg_options (Mapping, optional): See
            :func:`~dlu_mmdet.config.overrides.merge_options`.
        upsampler (dict, optional): See :func:`set_upsampler`.
        launcher (str): 'none', 'pytorch', 'slurm' or 'mpi'. Defaults to 'none'.
        train (bool): Whether it is trained, so that its length is fitted to its images
            (:func:`~dlu_mmdet.config.schedule.fit_schedule`). Defaults to False.
        **data: See :func:`~dlu_mmdet.config.custom_data.prepare_data`.

    Returns:
        Config: With ``launcher`` and ``work_dir`` set.

    Raises:
        FileNotFoundError: If there is no such config, no data where ``data`` says, or
            no file of the upsampler.
        TypeError: If the upsampler is no class of modules.
        ValueError: If an option would change nothing, or the upsampler is unknown.
    """
    cfg = read_config(name)
    if upsampler:
        # before data are split into the work directory
        upsampler = resolve_upsampler(upsampler)
    options = cfg_options or {}
    work_dir = str(
        work_dir
        or options.get('work_dir')
        or cfg.get('work_dir')
        or default_work_dir(name, upsampler, data.get('data'))
    )
    if prepared := prepare_data(work_dir, **data):
        use_dataset_folder(cfg, **prepared)
    if upsampler:
        set_upsampler(cfg, upsampler)
    if train and (length := fit_schedule(cfg, options)):
        say(length)
    merge_options(cfg, options)
    cfg.launcher = launcher
    cfg.work_dir = work_dir
    return cfg


def default_work_dir(
    name: str | os.PathLike,
    upsampler: Mapping | None = None,
    data: str | os.PathLike | None = None,
) -> str:
    """The work directory of a run that names none: 'work_dirs/CONFIG_UPSAMPLER_DATA'.

    Args:
        name (str | PathLike): The config.
        upsampler (Mapping, optional): Of ``--upsampler``.
        data (str | PathLike, optional): The folder of ``--data``.

    Returns:
        str: The folder.
    """
    parts = [config_stem(name)]
    if upsampler:
        parts.append(upsampler_label(upsampler))
    if data:
        parts.append(Path(os.path.abspath(data)).name)
    return str(Path('work_dirs', '_'.join(parts)))


def parse_upsampler(text: str) -> dict:
    """Read the value of ``--upsampler``.

    Whether there is such an upsampler, :func:`set_upsampler` finds out: the config may
    register it.

    Args:
        text (str): ``NAME`` or ``NAME:key=value,key=value``, where NAME may be
            ``path/to/mine.py:Mine``.

    Returns:
        dict: ``upsample_cfg``: ``type`` and the arguments, numbers and the like as
        such.

    Raises:
        ValueError: If it has another form.
    """
    # a path may have a colon, or '=', but not both
    file = re.match(r'(?:[^:]*?|[^=]*?)\.py(?=:|$)', text)
    if file:
        name, _, arguments = text[file.end() + 1 :].partition(':')
        if not name or '=' in name:
            raise ValueError(
                f'--upsampler {text} must name a class of the file, as in '
                f'{file[0]}:Mine or {file[0]}:Mine:key=value,key=value'
            )
        name = f'{file[0]}:{name}'
    else:
        name, _, arguments = text.partition(':')
    cfg = dict(type=name)
    # commas inside brackets belong to a value
    for argument in re.split(r',(?![^(\[]*[)\]])', arguments) if arguments else ():
        key, found, value = argument.partition('=')
        if not found or not key.isidentifier() or not value:
            raise ValueError(
                f'--upsampler {text}: {argument!r} is no argument; the form is '
                f'NAME:key=value,key=value, as in carafe:up_kernel=3,up_group=2'
            )
        try:
            cfg[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            cfg[key] = value
    return cfg


def set_upsampler(cfg: Config, upsample_cfg: dict) -> None:
    """Put an upsampler into a config's neck, so that the config is complete.

    Args:
        cfg (Config): Changed in place: ``model``, and ``custom_imports`` where they
            lack this package or the module that registers the upsampler.
        upsample_cfg (dict): See :func:`dlu_mmdet.upsamplers.resolve_upsampler`.

    Raises:
        FileNotFoundError: If the upsampler is in a file that does not exist.
        TypeError: If the upsampler is no class of modules that takes ``channels`` and
            ``scale_factor``, or an argument does not fit.
        ValueError: If there is no model or no neck, or nothing in it enlarges a map,
            or the upsampler is unknown or does not fit.
    """
    if not cfg.get('model'):
        raise ValueError(
            f'{cfg.filename or "the config"} has no model, so there is no neck for the '
            f'upsampler {upsample_cfg["type"]!r}'
        )
    upsample_cfg = resolve_upsampler(upsample_cfg)
    # names are looked up as they will be in the run
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        cfg.model = with_upsampler(cfg.model, upsample_cfg)
    add_import(cfg, 'dlu_mmdet')
    module = upsampler_class(upsample_cfg).__module__
    # another config of a comparison may have imported it
    if not split_file(upsample_cfg['type']) and module.split('.')[0] not in _STACK:
        add_import(cfg, module)


def add_import(cfg: Config, name: str) -> None:
    """Let a config import a module, in ``custom_imports``, unless it does."""
    imports = dict(cfg.get('custom_imports') or {})
    names = imports.get('imports') or []
    names = [names] if isinstance(names, str) else list(names)
    if not any(f'{name}.'.startswith(f'{known}.') for known in names):
        cfg.custom_imports = dict(imports, imports=[*names, name])


def upsampler_label(upsample_cfg: Mapping) -> str:
    """An upsampler in a file's name: 'dlu', 'carafe-up_kernel-3'."""
    parts = [registered_name(upsample_cfg['type'])]
    for key, value in upsample_cfg.items():
        if key != 'type':
            parts += [key, re.sub(r'[^\w.]+', '-', str(value)).strip('-')]
    return '-'.join(parts)


def enable_amp(cfg: Config) -> None:
    """What ``--amp`` asks for."""
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.loss_scale = 'dynamic'
