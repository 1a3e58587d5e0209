"""The hook behind ``dlu_mmdet test --show-dir``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import mmdet.engine
from matplotlib import rc_context
from mmdet.registry import HOOKS
from mmdet.structures import DetDataSample
from mmengine.dataset import BaseDataset
from mmengine.runner import Runner

from .fonts import plain_settings
from .images import file_names, image_names, loaded_pixels
from .scores import explain_empty


# in mmdet's registry it takes the place of the hook that it extends
@HOOKS.register_module(force=True)
class DetVisualizationHook(mmdet.engine.DetVisualizationHook):
    """mmdet's hook, drawing on the image that the pipeline loaded.

    mmdet reads the file again with its own flags, so boxes of an image loaded without
    its EXIF orientation are drawn on the rotated image. It also gives two images of the
    same name, or one image with two ids, one file, and reads ``$`` in a class name as
    mathematics.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self._drawn, self._empty = 0, {}

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict,
        outputs: Sequence[DetDataSample],
    ) -> None:
        """Draw the first image of every so many batches; see mmdet."""
        step = runner.iter + batch_idx
        if not self.draw or step % self.interval:
            return
        if not hasattr(self, '_val_loaders'):
            self._val_loaders, _ = _list_images(runner.val_dataloader.dataset)
        transforms = self._val_loaders[_path(outputs[0].img_path)]
        self._draw(outputs[0], transforms, 'val_img', step)

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict,
        outputs: Sequence[DetDataSample],
    ) -> None:
        """Draw every image; see mmdet."""
        if not self.draw:
            return
        if not hasattr(self, '_test_loaders'):
            loaders, images = _list_images(runner.test_dataloader.dataset)
            names = file_names(image_names([path for path, _ in images]))
            self._test_loaders, self._files = loaders, dict(zip(images, names))
            # a pipeline of one's own may not hand the ids on
            for (path, _), name in zip(images, names):
                self._files.setdefault((path, None), name)
        for sample in outputs:
            self._test_index += 1
            path = _path(sample.img_path)
            file = None
            if self.test_out_dir is not None:
                folder = Path(runner.work_dir, runner.timestamp, self.test_out_dir)
                folder.mkdir(parents=True, exist_ok=True)
                file = str(folder / self._files[path, sample.get('img_id')])
            self._draw(
                sample, self._test_loaders[path], 'test_img', self._test_index, file
            )

    def after_test_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Log which images have no detection above the threshold."""
        if self._empty:
            flag = '--cfg-options default_hooks.visualization.score_thr='
            reason = explain_empty(self._empty, self.score_thr, flag)
            number = f'{len(self._empty)} of {self._drawn}'
            runner.logger.info(f'pictures without detections, {number}: {reason}')
        self._drawn, self._empty = 0, {}

    after_val_epoch = after_test_epoch

    def _note_score(self, sample: DetDataSample) -> None:
        found = sample.get('pred_instances')
        if found is None or 'scores' not in found:
            return
        best = float(found.scores.max()) if len(found) else None
        if best is None or best <= self.score_thr:
            self._empty[Path(_path(sample.img_path)).name] = best

    def _draw(
        self,
        sample: DetDataSample,
        transforms: Sequence[Callable],
        name: str,
        step: int,
        file: str | None = None,
    ) -> None:
        self._drawn += 1
        self._note_score(sample)
        classes = self._visualizer.dataset_meta.get('classes') or ()
        with rc_context(plain_settings(classes)):
            self._visualizer.add_datasample(
                Path(_path(sample.img_path)).name if self.show else name,
                loaded_pixels(transforms, sample.img_path),
                data_sample=sample,
                show=self.show,
                wait_time=self.wait_time,
                pred_score_thr=self.score_thr,
                out_file=file,
                step=step,
            )


def _path(path: str | Sequence[str]) -> str:
    """The file of an image, or the first of several."""
    return path if isinstance(path, str) else path[0]


def _list_images(
    dataset: BaseDataset,
) -> tuple[dict[str, Sequence[Callable]], list[tuple[str, object]]]:
    """What loads the images of a data set, or of those that it wraps, by file.

    Returns:
        tuple: The transforms; each file with each id that it is listed under.
    """
    inner = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    if inner != [None]:
        loaders, images = {}, []
        for each in inner:
            own_loaders, own_images = _list_images(each)
            loaders.update(own_loaders)
            images += own_images
        return loaders, list(dict.fromkeys(images))
    infos = map(dataset.get_data_info, range(len(dataset)))
    images = [(_path(info['img_path']), info.get('img_id')) for info in infos]
    return dict.fromkeys(
        (path for path, _ in images), dataset.pipeline.transforms
    ), images
