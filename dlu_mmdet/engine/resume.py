"""Find the checkpoint to resume from."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path

import torch
from mmengine.config import Config


def _checkpoints(work_dir: Path) -> list[Path]:
    """What training saved in a folder, whole or not."""
    return [*work_dir.glob('epoch_*.pth'), *work_dir.glob('iter_*.pth')]


def latest_checkpoint(work_dir: str | os.PathLike) -> Path | None:
    """The checkpoint that a training in a folder resumes from.

    A killed process may leave an empty or outdated ``last_checkpoint``, or a truncated
    ``epoch_N.pth``. A power cut may leave files of zeros.

    Args:
        work_dir (str | PathLike): Folder of a training.

    Returns:
        Path | None: What ``last_checkpoint`` names or, where that is not whole, the
        youngest whole ``epoch_*.pth`` or ``iter_*.pth``; or a later one written since.
        A file elsewhere that it names counts where the folder has none.
    """
    return next(iter(_by_preference(Path(work_dir))), None)


def _by_preference(work_dir: Path) -> list[Path]:
    """Whole checkpoints, the one that training goes on from first."""
    whole = sorted(filter(_is_whole, _checkpoints(work_dir)), key=_age, reverse=True)
    named = _named_checkpoint(work_dir)
    if named is None:
        return whole
    # the folder may have been moved or copied
    own = work_dir / named.name
    if not _is_whole(own):
        return whole or list(filter(_is_whole, [named]))
    # an older training in this folder may have left more epochs
    later = [
        path
        for path in whole
        if path.stat().st_mtime > own.stat().st_mtime
        and (_kind(path) != _kind(own) or _number(path) > _number(own))
    ]
    return list(dict.fromkeys([*later, own, *whole]))


def _named_checkpoint(work_dir: Path) -> Path | None:
    """What ``last_checkpoint`` names, if it is a name."""
    file = work_dir / 'last_checkpoint'
    try:
        name = file.read_bytes().decode('utf-8-sig').strip() if file.is_file() else ''
    except (OSError, UnicodeDecodeError):
        return None
    return Path(name) if name and '\0' not in name else None


def _is_whole(path: Path) -> bool:
    """Whether a file is a whole zip file: the directory of one comes last."""
    return os.path.isfile(path) and zipfile.is_zipfile(path)


def _is_intact(path: Path) -> bool:
    """Whether the content of a whole zip file is what was written, by its checksums.

    torch does not look: it would load the zeros that a power cut may leave.
    """
    if not getattr(torch.serialization, 'get_crc32_options', lambda: True)():
        return True
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error):
        return False


def _age(path: Path) -> tuple[float, int]:
    """Sort key: the newest checkpoint is the greatest."""
    return path.stat().st_mtime, _number(path)


def _kind(path: Path) -> str:
    """Whether a checkpoint is called by its epoch or by its iteration."""
    return path.stem.partition('_')[0]


def _number(path: Path) -> int:
    """Epoch or iteration in the name of a checkpoint."""
    digits = path.stem.rpartition('_')[2]
    return int(digits) if digits.isdecimal() else -1


def resume_latest(cfg: Config) -> None:
    """Make a config resume from the latest checkpoint of its ``work_dir``.

    Without a checkpoint the training starts from scratch, with the config's own
    ``load_from``. Skipped checkpoints are reported.

    Args:
        cfg (Config): Gets ``resume`` and, with a checkpoint, ``load_from``.
    """
    work_dir = Path(cfg.work_dir)
    truncated = [p.name for p in _checkpoints(work_dir) if not _is_whole(p)]
    damaged, latest = [], None
    for path in _by_preference(work_dir):
        if _is_intact(path):
            latest = path
            break
        damaged.append(path.name)
    said = ''
    for what, names in (('truncated', truncated), ('damaged', damaged)):
        if names:
            said += f'; {what} and skipped: {", ".join(sorted(names))}'
    file, named = work_dir / 'last_checkpoint', _named_checkpoint(work_dir)
    if named is None and file.exists():
        said += f'; {file} is damaged'
    elif named and latest != named and not _is_whole(work_dir / named.name):
        said += f'; {file} names {named}, which is no whole checkpoint of this folder'
    cfg.resume = latest is not None
    if latest:
        cfg.load_from = str(latest)
        said = f'--resume: goes on from {latest}{said}'
    else:
        said = f'--resume: no checkpoint in {cfg.work_dir}, training starts anew{said}'
    print(said, flush=True)
