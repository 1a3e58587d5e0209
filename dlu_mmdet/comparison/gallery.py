"""The images of a test set with what every upsampler's detector finds in them."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..datasets.coco_io import COCO
from ..evaluation.error_types import KINDS, classify_errors
from ..evaluation.instances import NO_DETECTIONS, Detections, Objects
from ..utils.files import atomic_write
from ..visualization.images import as_rgb

#: Detections with lower scores are not shown.
SCORE_THR = 0.3
#: Up to as many images are in the page itself; of more there is a folder.
MAX_EMBEDDED = 300
#: Longer side of an image in the page, in pixels.
SIDE = 512
_TRUE, _IGNORED = -1, -2


@dataclass(frozen=True)
class Written:
    """A gallery as the page takes it.

    Attributes:
        data (str): A script with the data; empty if they are in a folder.
        address (str): The address of the script in the folder; or empty. Detections of
            other seeds are in further scripts, which the page loads when it needs them.
        sentence (str): Which images cannot be shown; empty if all can.
    """

    data: str
    address: str
    sentence: str


class Gallery:
    """Images, objects and detections, for ``report.html``.

    Args:
        coco (COCO): The annotations.
        classes (Sequence[str]): Class names, by label.
        objects (Mapping[object, Objects]): Ground truth by image id.
        folder (str): Folder of the images.
    """

    def __init__(
        self,
        coco: COCO,
        classes: Sequence[str],
        objects: Mapping[object, Objects],
        folder: str,
    ) -> None:
        self._images = [coco.imgs[image] for image in objects]
        self._classes = [str(name) for name in classes]
        self._objects = objects
        self._folder = folder
        # by upsampler and seed, the folder of the run and JSON of each image, which
        # takes a tenth of the memory of lists
        self._found: dict[str, dict[int, tuple[str, list[str]]]] = {}

    def __len__(self) -> int:
        return len(self._images)

    def add(
        self,
        name: str,
        seed: int,
        run: str | os.PathLike,
        detections: Mapping[object, Detections],
    ) -> None:
        """Add the detections of a run.

        Args:
            name (str): Name of the upsampler.
            seed (int): Seed of the run.
            run (str | PathLike): Folder of the run.
            detections (Mapping[object, Detections]): By image id.
        """
        found = [
            _found(detections.get(image, NO_DETECTIONS).above(SCORE_THR), truth)
            for image, truth in self._objects.items()
        ]
        self._found.setdefault(name, {})[seed] = str(run), found

    def write(self, work_dir: Path, baseline: str) -> Written:
        """Write what does not fit into the page.

        Args:
            work_dir (Path): Folder of the page; large sets get a folder in it,
                ``report_images``.
            baseline (str): Name of the upsampler to compare with at first.

        Returns:
            Written: What the page needs.
        """
        embedded = len(self) <= MAX_EMBEDDED
        target = work_dir / 'report_images'
        # numpy and Pillow let go of the interpreter while they work
        with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
            made = list(
                pool.map(
                    lambda each: self._picture(
                        each[0], each[1], None if embedded else target
                    ),
                    enumerate(self._images),
                )
            )
        lost = [file for file, picture in made if picture is None]
        sentence = ''
        if lost:
            sentence = (
                f'{len(lost)} of {len(self)} images are not shown, because their files '
                f'cannot be read (the first: {lost[0]}); put them back, or give --data '
                f'FOLDER, the folder they are in now, with --report-only or --join.'
            )
        names, choices = [*self._found], self._choices()
        head = dict(
            upsamplers=[
                dict(name=name, runs=[runs[u][0] for runs in choices.values()])
                for u, name in enumerate(names)
            ],
            seeds=[*choices],
            baseline=names.index(baseline) if baseline in names else 0,
            classes=self._classes,
            kinds=KINDS,
            scoreThr=SCORE_THR,
        )
        data = self._data(head, [picture for _, picture in made])
        found = [_found_script(k, runs) for k, runs in enumerate(choices.values())]
        if embedded:
            return Written(''.join(chain(data, *found)), '', sentence)
        _write(target / 'data.js', chain(data, found[0]))
        for number, script in enumerate(found[1:], 1):
            _write(target / f'found{number}.js', script)
        return Written('', f'{target.name}/data.js', sentence)

    def _choices(self) -> dict[str, list[tuple[str, list[str]]]]:
        """Runs of every upsampler that are shown together, by seed."""
        own = [*self._found.values()]
        common = [seed for seed in own[0] if all(seed in each for each in own)]
        if not common:
            return {'first of each': [next(iter(each.values())) for each in own]}
        return {str(seed): [each[seed] for each in own] for seed in sorted(common)}

    def _data(self, head: Mapping, pictures: Sequence) -> Iterator[str]:
        """The data apart from detections as a script, part by part."""
        yield f'const galleryData = {_script_json(head)};\ngalleryData.found = [];\n'
        yield 'galleryData.images = [\n'
        for image, picture in zip(self._images, pictures):
            truth = self._objects[image['id']]
            rows = [
                [*box, label, crowd]
                for box, label, crowd in zip(
                    truth.boxes.round(1).tolist(),
                    truth.labels.tolist(),
                    truth.crowd.astype(int).tolist(),
                )
            ]
            source, width, height = picture or ('', image['width'], image['height'])
            named = [image['id'], image['file_name'], width, height, source, rows]
            yield f'{_script_json(named)},\n'
        yield '];\n'

    def _picture(
        self, number: int, image: Mapping, target: Path | None
    ) -> tuple[str, tuple[str, int, int] | None]:
        """An image's file; its address in the page, width and height, if readable."""
        file = os.path.join(self._folder, image['file_name'])
        try:
            with Image.open(file) as opened:
                content, width, height = _shrink(opened)
        # Pillow raises errors of many kinds for damaged files
        except Exception:
            return file, None
        if target is None:
            text = base64.b64encode(content).decode()
            return file, (f'data:image/jpeg;base64,{text}', width, height)
        path = target / f'{number:06d}.jpg'
        with atomic_write(path) as partial:
            partial.write_bytes(content)
        return file, (f'{target.name}/{path.name}', width, height)


def _shrink(image: Image.Image) -> tuple[bytes, int, int]:
    """A JPEG of an image for the page, and the image's own width and height."""
    width, height = image.size
    # tag 274 says how a camera was held; these four exchange the sides
    if image.getexif().get(274) in (5, 6, 7, 8):
        width, height = height, width
    image.draft('RGB', (SIDE, SIDE))
    if image.mode.startswith(('I', 'F')):
        image = Image.fromarray(as_rgb(np.asarray(image)))
    image = ImageOps.exif_transpose(image).convert('RGB')
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, 'JPEG', quality=80)
    return buffer.getvalue(), width, height


def _found(found: Detections, truth: Objects) -> str:
    """Detections and objects not found, as JSON.

    A detection is x, y, width, height, label, score and kind of error, -1 for a true
    positive and -2 for one that does not count. An object that was not found is its
    number, negative (from -1) where no error of a detection explains it.
    """
    errors = classify_errors(found, truth)
    code = np.where(errors.matches.det_ignored, _IGNORED, errors.kind)
    rows = [
        [*box, label, score, kind]
        for box, label, score, kind in zip(
            found.boxes.round(1).tolist(),
            found.labels.tolist(),
            found.scores.round(2).tolist(),
            code.tolist(),
        )
    ]
    lost = [
        -1 - i if errors.missed[i] else i
        for i in np.flatnonzero(errors.matches.false_negatives).tolist()
    ]
    return json.dumps([rows, lost], separators=(',', ':'))


def _found_script(number: int, runs: Sequence[tuple[str, list[str]]]) -> Iterator[str]:
    """The detections of one choice of seed as a script, image by image."""
    yield f'galleryData.found[{number}] = [\n'
    for own in zip(*(found for _, found in runs)):
        yield f'[{",".join(own)}],\n'
    yield '];\n'


def _write(path: Path, parts: Iterable[str]) -> None:
    """Write a script, whole or not at all."""
    with atomic_write(path) as partial:
        with partial.open('w', encoding='utf-8') as file:
            file.writelines(parts)


def _script_json(value: object) -> str:
    """JSON that may stand inside a script element."""
    return json.dumps(value, separators=(',', ':')).replace('<', '\\u003c')
