"""List the runs of a comparison and check that they are comparable."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mmengine.config import Config

from ..config import (
    SPLIT_FOLDER,
    check_foreign,
    config_stem,
    fit_schedule,
    merge_options,
    read_config,
    read_dumped_config,
    refuse_unreached,
    set_upsampler,
    upsampler_label,
    use_dataset_folder,
)
from ..config.custom_data import say
from ..datasets.preflight import coco_evaluators, iter_datasets
from ..necks import upsampler_name
from ..utils.files import read_json
from ..utils.tables import to_json
from .inputs import DATA as COMPARED
from .inputs import differing, leaves
from .outputs import check_outputs
from .runs import ALONE, Launch, Run, directory_lock, write


@dataclass(frozen=True)
class Entry:
    """A config of a comparison.

    Args:
        source (str): The config file or name, as the user gave it.
        stem (str): Stem of its file names.
        upsampler (str, optional): Name of the neck's upsampler.
        cfg (Config): The complete config.
    """

    source: str
    stem: str
    upsampler: str | None
    cfg: Config


def plan(
    configs: Sequence[str | Path],
    seeds: Sequence[int],
    work_dir: str | Path,
    options: Mapping | None = None,
    launch: Launch = ALONE,
    upsamplers: Sequence[dict | None] = (None,),
    data: Mapping | None = None,
    moved: bool = False,
) -> list[Run]:
    """List the runs of a comparison, seed by seed.

    Args:
        configs (Sequence[str | Path]): Config files, or names of MMDetection's, each
            once.
        seeds (Sequence[int]): Seeds, each once.
        work_dir (str | Path): Folder of the comparison. Configs, upsamplers and
            seeds may be added to the comparison that it holds.
        options (Mapping, optional): Settings to override in every config.
        launch (Launch): How they will be run.
        upsamplers (Sequence[dict | None]): An ``upsample_cfg`` for each; None keeps
            the config's own neck. Defaults to (None,).
        data (Mapping, optional): Arguments of
            :func:`~dlu_mmdet.config.use_dataset_folder`, to use a folder instead of
            every config's data.
        moved (bool): Whether the runs are only reported, so that ``data`` may be
            where their data are now. Their configs are then those of their folders.

    Returns:
        list[Run]: Every config and upsampler with every seed.

    Raises:
        FileNotFoundError: If a config does not exist.
        ValueError: If a config or seed is given twice, a config has no neck, is not
            scored by COCO's box AP or names a place that all runs would write to,
            configs differ in data or evaluators, or ``work_dir`` holds another
            comparison.
    """
    _refuse_repeated(configs, 'config')
    _refuse_repeated(seeds, 'seed')
    _refuse_one_label(upsamplers)
    entries, lengths = [], []
    for config in configs:
        for upsampler in upsamplers:
            cfg = read_config(config)
            if data:
                use_dataset_folder(cfg, **data)
            if upsampler:
                set_upsampler(cfg, upsampler)
            lengths.append(fit_schedule(cfg, options, launch.processes))
            # an upsampler without parameters may stand beside one that has them
            merge_options(cfg, options or {}, reach=False)
            _check_config(config, cfg)
            check_outputs(config, cfg)
            _skip_last_validation(cfg)
            stem, name = config_stem(config), upsampler_name(cfg.model.get('neck'))
            if upsampler:
                name = upsampler_label(upsampler)
                stem += f'-{name}'
            entries.append(Entry(str(config), stem, name, cfg))
    for length in filter(None, dict.fromkeys(lengths)):
        say(length)
    refuse_unreached([entry.cfg for entry in entries], options or {})
    _refuse_repeated([entry.stem for entry in entries], 'config name')
    _check_comparable(entries)
    _check_work_dir(Path(work_dir), [e.stem for e in entries], seeds, launch)

    names = _names({entry.stem: entry.upsampler for entry in entries})
    runs = []
    for seed in seeds:
        for entry in entries:
            cfg = Config(entry.cfg.to_dict())
            cfg.randomness = dict(cfg.get('randomness', {}), seed=seed)
            run = Run(
                names[entry.stem],
                entry.source,
                entry.stem,
                cfg,
                seed,
                Path(work_dir, entry.stem, f'seed{seed}'),
            )
            runs.append(_check_written(run, moved and bool(data)))
    return runs


def _check_written(run: Run, moved: bool) -> Run:
    """Refuse a run whose folder has another config, or take that of moved data."""
    written = run.config
    if not written.exists() or written.read_bytes() == run.cfg.pretty_text.encode():
        return run
    if moved:
        return replace(run, cfg=_read_unrun(written))
    raise ValueError(
        f'{run.work_dir} belongs to another version of {run.source}, or '
        f'{written} is damaged; remove both, or name another --work-dir'
    )


def join(folders: Sequence[str | Path], trust: bool = False) -> list[Run]:
    """List the finished runs of several comparisons as one.

    Their files are read as data: no code in them runs.

    Args:
        folders (Sequence[str | Path]): Work directories of comparisons.
        trust (bool): Whether their configs may execute code, for example for
            ``custom_imports``. Defaults to False.

    Returns:
        list[Run]: The runs with a result, diverged ones included, seed by seed.

    Raises:
        FileNotFoundError: If a folder holds no comparison or no finished run.
        ValueError: If the comparisons differ in data, evaluators or flags, have the
            same config with other settings, or hold a run twice; if a file is damaged,
            or a config that is not trusted could run code.
    """
    _refuse_repeated(folders, '--join')
    plans = {Path(folder): _read_plan(Path(folder)) for folder in folders}
    (first, noted), *others = plans.items()
    for folder, own in others:
        for key in ('training', 'options'):
            # comparisons of an earlier version did not note their options
            if key in noted and key in own and noted[key] != own[key]:
                raise ValueError(
                    f'{first} and {folder} were run with other flags, {key} '
                    f'{noted[key]} and {own[key]}, so they cannot be joined; join '
                    f'comparisons of the same flags'
                )
    runs: dict[tuple[int, str], Run] = {}
    known: dict[str, Entry] = {}
    for folder, own in plans.items():
        found = list(_read_finished(folder, own, trust))
        if not found:
            raise FileNotFoundError(
                f'{folder} holds no finished run; finish its comparison first'
            )
        for run in found:
            entry = Entry(str(run.config), run.stem, run.name, run.cfg)
            if (run.seed, run.stem) in runs:
                raise ValueError(
                    f'{runs[run.seed, run.stem].work_dir} and {run.work_dir} are one '
                    f'run, so it would count twice; join folders without common runs'
                )
            _check_same(known.setdefault(run.stem, entry), entry)
            runs[run.seed, run.stem] = run
    _check_comparable(list(known.values()))
    names = _names({stem: entry.upsampler for stem, entry in known.items()})
    # sorting keeps the order of equal seeds
    listed = sorted(runs.values(), key=lambda run: run.seed)
    return [replace(run, name=names[run.stem]) for run in listed]


def _read_plan(folder: Path) -> dict:
    """Read what :func:`begin` wrote."""
    file = folder / 'plan.json'
    if not file.exists():
        raise FileNotFoundError(
            f'{folder} holds no comparison (no plan.json); name a --work-dir of '
            f'dlu_mmdet compare'
        )
    there = [p.with_suffix('') for p in folder.glob('*/seed*.py')]
    seeds = {p.name[4:] for p in there}
    content = dict(
        configs=sorted({p.parent.name for p in there}),
        seeds=sorted(int(seed) for seed in seeds if seed.isdecimal()),
    )
    remedy = f'for what is in the folder write {json.dumps(content)} into it'
    plan = read_json(file, ('configs', 'seeds'), remedy)
    for key, kind in (('configs', str), ('seeds', int)):
        values = plan[key]
        if not isinstance(values, list) or not all(isinstance(v, kind) for v in values):
            raise ValueError(f'{file} is damaged ({key} {values!r}); {remedy}')
    return plan


def _read_finished(folder: Path, plan: Mapping, trust: bool) -> Iterator[Run]:
    """The finished runs of a comparison, from its folder alone."""
    for seed in plan['seeds']:
        for stem in plan['configs']:
            work_dir = folder / stem / f'seed{seed}'
            written = work_dir.with_suffix('.py')
            if (work_dir / 'result.json').exists():
                cfg = read_config(written) if trust else _read_unrun(written)
                run = Run(stem, str(written), stem, cfg, seed, work_dir)
                yield replace(run, name=run.existing_result.upsampler)


def _read_unrun(written: Path) -> Config:
    """Read a config without running it, and check that its model can be built."""
    try:
        cfg = read_dumped_config(written)
        dataset = cfg.test_dataloader.dataset
        check_foreign(cfg.model, 'model', written)
        check_foreign(dataset, 'test_dataloader.dataset', written, built=False)
    except (AttributeError, ValueError) as error:
        raise ValueError(f'{error}; where it is your own, --trust runs it') from error
    return cfg


def _names(upsamplers: Mapping[str, str | None]) -> dict[str, str]:
    """Names of configs: the upsampler, where no other config has the same."""
    names = list(upsamplers.values())
    return {
        stem: name if name is not None and names.count(name) == 1 else stem
        for stem, name in upsamplers.items()
    }


def _refuse_repeated(values: Sequence, what: str) -> None:
    texts = [str(value) for value in values]
    repeated = sorted({text for text in texts if texts.count(text) > 1})
    if repeated:
        raise ValueError(f'{what} {", ".join(repeated)} is given twice; give it once')


def _refuse_one_label(upsamplers: Sequence[dict | None]) -> None:
    """Refuse two upsamplers with the same name."""
    labels: dict[str, dict] = {}
    for each in filter(None, upsamplers):
        other = labels.setdefault(upsampler_label(each), each)
        if other != each:
            raise ValueError(
                f'the upsamplers {other["type"]} and {each["type"]} would both be '
                f'called {upsampler_label(each)}, and runs are named by it; rename '
                f'one of the classes'
            )


def _check_config(config: str | Path, cfg: Config) -> None:
    """Refuse a config whose results could not be compared."""
    if not cfg.model.get('neck'):
        raise ValueError(
            f'{config} has no model.neck, so there is no upsampler to compare'
        )
    evaluators = cfg.get('test_evaluator')
    if box_evaluator(cfg) is None:
        raise ValueError(
            f'{config}: test_evaluator must be a CocoMetric with an ann_file and the '
            f"metric 'bbox', got {evaluators}"
        )
    if not classes_of(cfg):
        raise ValueError(
            f'{config}: test_dataloader.dataset must be a data set of this machine '
            f'with classes, got the type {cfg.test_dataloader.dataset.get("type")}'
        )


def box_evaluator(cfg: Config) -> Mapping | None:
    """The first of a config's test evaluators that scores boxes of a file."""
    for _, evaluator in coco_evaluators(cfg, 'test'):
        metrics = evaluator.get('metric', 'bbox')
        metrics = [metrics] if isinstance(metrics, str) else metrics
        if evaluator.get('ann_file') and 'bbox' in metrics:
            return evaluator
    return None


def check_masks(run: Run) -> None:
    """Refuse a run whose masks will not be scored."""
    if not any(
        'segm' in evaluator.get('metric', ())
        for _, evaluator in coco_evaluators(run.cfg, 'test')
    ):
        raise ValueError(
            f'{run.source}: no test_evaluator scores masks; leave out --metric, or for '
            f"a detector with masks set its metric to ['bbox', 'segm']"
        )


def classes_of(cfg: Config) -> Sequence[str]:
    """Class names of the test set, by label."""
    found = iter_datasets(cfg.test_dataloader.dataset, 'test_dataloader.dataset')
    return next((source.classes for source in found), ())


def _skip_last_validation(cfg: Config) -> None:
    """Leave out a validation that the test after training repeats."""
    loop = cfg.train_cfg
    last = loop.get('max_epochs') or loop.get('max_iters')
    if last and loop.get('val_interval', 1) >= last:
        loop.val_begin = last + 1


def _check_comparable(entries: Sequence[Entry]) -> None:
    """Refuse configs with different data or evaluators."""
    first = leaves(entries[0].cfg, COMPARED)
    for entry in entries[1:]:
        if lines := differing(first, leaves(entry.cfg, COMPARED)):
            raise ValueError(
                f'{entries[0].source} and {entry.source} differ in data or '
                f'evaluators, so their AP cannot be compared; compare configs of the '
                f'same data. They differ in\n{lines}'
            )


def _check_same(first: Entry, second: Entry) -> None:
    """Refuse two configs of one name that differ in more than the seed."""
    settings = []
    for cfg in (first.cfg, second.cfg):
        settings.append(leaves(cfg, sorted({*first.cfg, *second.cfg})))
        settings[-1].pop('randomness.seed', None)
    if lines := differing(*settings):
        raise ValueError(
            f'{first.source} and {second.source} have one name and other settings; '
            f'join comparisons of the same config. They differ in\n{lines}'
        )


def _check_work_dir(
    work_dir: Path, stems: Sequence[str], seeds: Sequence[int], launch: Launch
) -> None:
    """Refuse a folder of another comparison."""
    file = work_dir / 'plan.json'
    own: dict[str, list] = dict(configs=list(stems), seeds=list(seeds))
    if file.exists():
        noted = _read_plan(work_dir)
        training = noted.pop('training', launch.training)
        noted.pop('options', None)  # a run that has begun checks its whole config
        if training != launch.training:
            raise ValueError(
                f'{work_dir} holds a comparison trained with {training}, and this one '
                f'has {launch.training}; give the same flags and --processes, or '
                f'another --work-dir'
            )
        for key, values in noted.items():
            left = [str(value) for value in values if value not in own[key]]
            if left:
                raise ValueError(
                    f'{work_dir} holds a comparison with {key} {", ".join(left)} '
                    f'too; name them as well, or another --work-dir'
                )
    elif work_dir.exists() and any(p.name != SPLIT_FOLDER for p in work_dir.iterdir()):
        raise ValueError(
            f'{work_dir} is not empty and holds no comparison; name another --work-dir'
        )


def begin(
    work_dir: str | Path,
    runs: Sequence[Run],
    launch: Launch = ALONE,
    options: Mapping | None = None,
) -> None:
    """Write ``plan.json``: configs, seeds and flags of a comparison.

    Args:
        work_dir (str | Path): Folder of the comparison; created if missing.
        runs (Sequence[Run]): The runs, from :func:`plan`.
        launch (Launch): How the runs are started.
        options (Mapping, optional): Settings that were overridden.

    Raises:
        ValueError: If the file system has no locks.
    """
    noted = dict(
        configs=list(dict.fromkeys(run.stem for run in runs)),
        seeds=list(dict.fromkeys(run.seed for run in runs)),
        training=launch.training,
        options={key: str(value) for key, value in (options or {}).items()},
    )
    Path(work_dir).mkdir(parents=True, exist_ok=True)
    with directory_lock(Path(work_dir)):
        write(Path(work_dir, 'plan.json'), to_json(noted))
