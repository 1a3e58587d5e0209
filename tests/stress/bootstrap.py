"""What the report of a large comparison costs: python tests/stress/bootstrap.py.

Makes matches as large as those of COCO's val2017 (5,000 images, 80 classes, 36,781
objects), for so many upsamplers and seeds, and prints seconds, the processor's seconds
and the peak of memory of loading them, of the jackknife, and of tables, pictures
and page. How many detections an image has decides the most; 100 is COCO's limit.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from stopwatch import stopwatch

from dlu_mmdet.comparison import report
from dlu_mmdet.comparison import summary as comparison
from dlu_mmdet.comparison.runs import RunResult
from dlu_mmdet.comparison.summary import Costs, Environment, Row, Spread, Summary
from dlu_mmdet.evaluation.average_precision import (
    METRICS,
    Evaluation,
    differences_to_baseline,
)

CLASSES, OBJECTS, THRESHOLDS = 80, 36_781, 10
#: Shares of small, medium and large objects in val2017, of its annotation file.
SIZES = (0.41, 0.34, 0.25)


def objects_of(images: int, rng: np.random.Generator) -> np.ndarray:
    """(4, CLASSES, images): a long-tailed draw of classes, any image."""
    share = 1 / np.arange(1, CLASSES + 1)
    number = round(OBJECTS * images / 5000)
    classes = rng.choice(CLASSES, number, p=share / share.sum())
    objects = np.zeros((4, CLASSES, images), np.int32)
    sizes = 1 + rng.choice(3, number, p=SIZES)
    where = rng.integers(images, size=number)
    np.add.at(objects, (0, classes, where), 1)
    np.add.at(objects, (sizes, classes, where), 1)
    return objects


def detector(
    objects: np.ndarray, per_image: int, skill: float, rng: np.random.Generator
) -> Evaluation:
    """A detector that finds an object at a threshold with falling probability."""
    images = objects.shape[2]
    chances = skill * np.linspace(1, 0.1, THRESHOLDS)
    start, image, hit, ignored = [0], [], [], []
    for k in range(CLASSES):
        found = [np.repeat(np.arange(images), objects[a, k]) for a in (1, 2, 3)]
        false = round(images * per_image / CLASSES) - sum(map(len, found))
        own = np.concatenate([*found, rng.integers(images, size=max(false, 0))])
        size = np.repeat([1, 2, 3, 0], [*map(len, found), max(false, 0)])
        size[size == 0] = 1 + rng.choice(3, np.sum(size == 0), p=SIZES)
        real = np.arange(len(own)) < sum(map(len, found))
        # true ones tend to the front
        order = np.argsort(rng.random(len(own)) - 0.6 * real, kind='stable')
        own, size, real = own[order], size[order], real[order]
        matched = real & (rng.random(len(own)) < chances[:, None])
        elsewhere = np.stack(
            [np.zeros(len(own), bool)] + [size != a for a in (1, 2, 3)]
        )
        left_out = np.broadcast_to(elsewhere[:, None], (4, THRESHOLDS, len(own)))
        image.append(own)
        hit.append(matched & ~left_out)
        ignored.append(left_out)
        start.append(start[-1] + len(own))
    return Evaluation(
        start=np.array(start),
        image=np.concatenate(image).astype(np.int32),
        hit=np.concatenate(hit, axis=2),
        ignored=np.concatenate(ignored, axis=2),
        objects=objects,
    )


def summary_of(evaluations: dict, differences: dict) -> Summary:
    """As comparison.summarize returns it, with costs that nobody measured."""
    rows, listed = [], []
    for name, each in evaluations.items():
        values = [evaluation.score() for evaluation in each.values()]
        scores = {key: Spread.over([found[key] for found in values]) for key in METRICS}
        scores.update(training_seconds=Spread(0.0), seconds_per_iteration=Spread(0.0))
        costs = Costs(0, 0, 0, 0, [800, 1344], 'none', 0.0, 0.0)
        rows.append(Row(name, scores, costs, name, list(range(len(each)))))
        # a line of the log each 50 iterations of 12 epochs
        curve = [[50 * i, 1 / i] for i in range(1, 1760)]
        listed += [
            RunResult.from_json(
                dict(upsampler=name, seed=seed, loss=curve, validation=[[12, 0.3]])
            )
            for seed in each
        ]
    return Summary(
        baseline=rows[0].name,
        num_images=evaluations[rows[0].name][0].num_images,
        rows=sorted(rows, key=lambda row: -row.ap.mean),
        differences=differences,
        runs=listed,
        diverged=[],
        environment=Environment.here('none'),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--upsamplers', type=int, default=9)
    parser.add_argument('--seeds', type=int, default=5)
    parser.add_argument('--images', type=int, default=5000)
    parser.add_argument('--per-image', type=int, default=100, help='detections')
    parser.add_argument('--groups', type=int, default=200, help='of images')
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    say = stopwatch()
    say('imports')
    with tempfile.TemporaryDirectory() as folder:
        objects = objects_of(args.images, rng)
        files = {}
        for number in range(args.upsamplers):
            for seed in range(args.seeds):
                made = detector(objects, args.per_image, 0.6 + 0.01 * number, rng)
                file = Path(folder, f'{number}-{seed}.npz')
                made.save(file)
                files.setdefault(f'upsampler{number}', []).append(file)
        del made
        say(f'made {args.upsamplers * args.seeds} files of {file.stat().st_size:,} B')
        evaluations = {
            name: {seed: Evaluation.load(file) for seed, file in enumerate(each)}
            for name, each in files.items()
        }
        say('loaded')
        differences = differences_to_baseline(
            evaluations,
            'upsampler0',
            args.groups,
            progress=lambda done, total: print(f'  {done}/{total}', end='\r'),
        )
        say(f'jackknife, {args.groups} groups')
        summary = summary_of(evaluations, differences)
        say('scored')
        comparison.save(summary, folder)
        report.save(summary, folder)
        say('report')


if __name__ == '__main__':
    main()
