"""Draw detections into images and videos with MMDetection's inferencer."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
from mmdet.apis import DetInferencer
from mmdet.apis.det_inferencer import IMG_EXTENSIONS
from mmengine.config import Config
from mmengine.utils import ProgressBar
from torch import nn

from ..engine import load_detector
from ..utils.files import atomic_write, check_writable
from .images import file_names, image_names
from .scores import explain_empty

#: Suffixes of the files that are read as videos.
VIDEOS = ('.mp4', '.avi', '.mov', '.mkv', '.webm')


class _Inferencer(DetInferencer):
    """MMDetection's inferencer on a detector that is loaded and checked already."""

    def __init__(self, detector: nn.Module) -> None:
        self._detector = detector
        cfg = detector.cfg.copy()
        # backends keep what is drawn in a folder of their own
        cfg.visualizer = dict(
            cfg.get('visualizer') or dict(type='DetLocalVisualizer', name='predict'),
            vis_backends=[],
        )
        scope = cfg.get('default_scope') or 'mmdet'
        # mmengine warns of its own registry of functions
        logging.disable(logging.WARNING)
        try:
            super().__init__(cfg, scope=scope, show_progress=False)
        finally:
            logging.disable(logging.NOTSET)

    def _init_model(self, cfg: Config, weights: str | None, device: str) -> nn.Module:
        return self._detector

    def draw(self, image: str | np.ndarray, score_thr: float) -> tuple:
        """The picture (H, W, 3) of an image in BGR, and what was found in it."""
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', '.*out of bounds')
            found = self(
                image, return_vis=True, no_save_vis=True, pred_score_thr=score_thr
            )
        picture, predictions = found['visualization'][0], found['predictions'][0]
        # a file is drawn in RGB, an array, which is BGR, as it is
        return picture[..., ::-1] if isinstance(image, str) else picture, predictions


def predict(
    config: str | os.PathLike,
    checkpoint: str | os.PathLike,
    inputs: Sequence[str | os.PathLike],
    out: str | os.PathLike = 'work_dirs/predict',
    *,
    score_thr: float = 0.3,
    device: str = 'cpu',
    cfg_options: Mapping | None = None,
    upsampler: dict | None = None,
) -> list[Path]:
    """Draw detections into images and videos, and write them as JSON.

    ``dlu_mmdet predict`` from Python.

    Args:
        config (str | PathLike): The detector's config.
        checkpoint (str | PathLike): Its checkpoint.
        inputs (Sequence[str | PathLike]): Images, folders of images, and videos.
        out (str | PathLike): Folder of a picture or video for each, and of
            ``predictions.json``: a list with ``file``, ``frame`` (of a video) and, for
            each detection above the threshold, its class, score and box x1 y1 x2 y2
            in pixels.
        score_thr (float): Detections with a lower score are left out.
        device (str): Where the detector runs.
        cfg_options (Mapping, optional): Settings of the config to override.
        upsampler (dict, optional): ``upsample_cfg`` of the neck.

    Returns:
        list[Path]: The pictures and videos.

    Raises:
        FileNotFoundError: If a config, checkpoint or input does not exist.
        ValueError: If a folder has no images, a file cannot be read, or the threshold
            is not in [0, 1].
    """
    if not 0 <= score_thr <= 1:
        raise ValueError(f'--score-thr must be in [0, 1], got {score_thr}')
    files = list(_files(inputs))
    out = Path(out)
    check_writable(out / 'predictions.json')
    detector = load_detector(config, checkpoint, device, cfg_options, upsampler)
    inferencer = _Inferencer(detector)
    classes = detector.dataset_meta['classes']
    found, written, empty = [], [], {}
    # one name may be in two folders
    names = [
        name[: -len(Path(name).suffix)] if _is_video(name) else name
        for name in image_names(files)
    ]
    for file, name in zip(files, file_names(names)):
        if _is_video(file):
            target = out / Path(name).with_suffix('.mp4').name
            frames = _draw_video(inferencer, file, target, score_thr)
        else:
            target = out / name
            frames = [_draw_image(inferencer, file, target, score_thr)]
        for number, predictions in enumerate(frames):
            entry: dict[str, Any] = (
                dict(file=file, frame=number) if _is_video(file) else dict(file=file)
            )
            entry['detections'] = _listed(predictions, classes, score_thr)
            found.append(entry)
        written.append(target)
        number = sum([len(e['detections']) for e in found if e['file'] == file])
        if not number:
            best = max((s for p in frames for s in p['scores']), default=None)
            empty[Path(file).name] = best
        print(f'{target}: {number} detections of score >= {score_thr:g}', flush=True)
    with atomic_write(out / 'predictions.json') as partial:
        partial.write_text(json.dumps(found, indent=1), encoding='utf-8')
    if empty:
        print(explain_empty(empty, score_thr, '--score-thr '))
    print(f'boxes: {out / "predictions.json"}')
    return written


def _is_video(file: str) -> bool:
    return Path(file).suffix.lower() in VIDEOS


def _files(inputs: Sequence[str | os.PathLike]) -> Iterator[str]:
    """The files of the command line, folders opened."""
    for given in map(str, inputs):
        if Path(given).is_dir():
            inside = sorted(
                str(path)
                for path in Path(given).iterdir()
                if path.suffix.lower() in (*IMG_EXTENSIONS, *VIDEOS)
            )
            if not inside:
                raise ValueError(
                    f'{given} has no images or videos; their names end with '
                    f'{", ".join((*IMG_EXTENSIONS, *VIDEOS))}'
                )
            yield from inside
        elif '://' in given or Path(given).is_file():
            yield given
        else:
            raise FileNotFoundError(f'{given} does not exist; check the path')


def _draw_image(
    inferencer: _Inferencer, file: str, target: Path, score_thr: float
) -> dict:
    """Write the picture of an image; returns what was found."""
    if '://' not in file and mmcv.imread(file) is None:
        raise ValueError(
            f'{file} cannot be read as an image or a video; convert it to .png or .mp4'
        )
    picture, found = inferencer.draw(file, score_thr)
    if not cv2.imwrite(str(target), picture):
        raise OSError(f'{target} cannot be written')
    return found


def _draw_video(
    inferencer: _Inferencer, file: str, target: Path, score_thr: float
) -> list[dict]:
    """Write a video with the detections of each frame; returns what was found."""
    video = mmcv.VideoReader(file)
    # negative where OpenCV cannot count
    if video.frame_cnt <= 0 or not video.width:
        raise ValueError(
            f'{file} cannot be read as a video; convert it to .mp4 with H.264'
        )
    found, size = [], (video.width, video.height)
    # the writer goes by the suffix
    partial = target.with_name(f'.{target.stem}.partial{target.suffix}')
    codec = cv2.VideoWriter_fourcc(*'mp4v')
    writer = cv2.VideoWriter(str(partial), codec, video.fps or 25, size)
    try:
        progress = ProgressBar(len(video))
        for frame in video:
            if frame is None:
                break
            picture, predictions = inferencer.draw(frame, score_thr)
            writer.write(np.ascontiguousarray(picture))
            found.append(predictions)
            progress.update()
        writer.release()
        os.replace(partial, target)
    finally:
        writer.release()
        partial.unlink(missing_ok=True)
    print()
    return found


def _listed(found: Mapping, classes: Sequence[str], score_thr: float) -> list[dict]:
    """The detections above the threshold, the best first."""
    rows = zip(found['labels'], found['scores'], found.get('bboxes', []))
    return [
        {
            'class': str(classes[label]),
            'score': round(score, 4),
            'box': [round(value, 2) for value in box],
        }
        for label, score, box in sorted(rows, key=lambda row: -row[1])
        if score >= score_thr
    ]
