"""How often differences are called significant: python tests/stress/significance.py.

Simulates comparisons of six upsamplers whose detections are drawn at random. Prints the
false positives where no upsampler differs from another, and the share of true gains of
0.02 and 0.05 AP that are found. Images differ in difficulty and number of objects.
Every XX"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from functools import cache

import numpy as np

from dlu_mmdet.evaluation import average_precision
from dlu_mmdet.evaluation.average_precision import Evaluation, differences_to_baseline

SEED_SD = 0.02
#: Spread of how well an upsampler suits an image, beside 0.7 for how hard it is.
SUITS_SD = 0.3


def evaluation(
    skill: float, hard: np.ndarray, objects: np.ndarray, rng: np.random.Generator
) -> Evaluation:
    """A detector of one class and one IoU threshold, on images of (I,) difficulty."""
    images = len(objects)
    image = np.repeat(np.arange(images), objects)
    quality = skill - hard[image] + rng.normal(scale=1.2, size=len(image))
    false = np.repeat(np.arange(images), rng.poisson(3 * np.exp(0.3 * hard)))
    scores = [0.7 * quality + rng.normal(size=len(image))]
    scores.append(rng.normal(size=len(false)) - 0.4)
    order = np.argsort(-np.concatenate(scores))
    hit = np.zeros((4, 1, len(order)), bool)
    hit[0, 0] = np.concatenate([quality > 0, np.zeros(len(false), bool)])[order]
    found = np.zeros((4, 1, images), np.int32)
    found[0, 0] = objects
    return Evaluation(
        start=np.array([0, len(order)]),
        image=np.concatenate([image, false])[order].astype(np.int32),
        hit=hit,
        ignored=np.zeros_like(hit),
        objects=found,
    )


@cache
def skills() -> tuple[np.ndarray, np.ndarray]:
    """Skills, and the AP that each has on many images."""
    rng, grid = np.random.default_rng(0), np.linspace(-0.2, 0.6, 9)
    hard, objects = rng.normal(scale=0.7, size=40_000), 1 + rng.poisson(3, 40_000)
    suits = rng.normal(scale=SUITS_SD, size=40_000)
    every = np.ones((1, len(objects)), int)
    return grid, np.array(
        [
            evaluation(s, hard - suits, objects, rng).metrics(every, ['AP'])[0, 0]
            for s in grid
        ]
    )


def comparison(
    gains: np.ndarray, seeds: int, images: int, rng: np.random.Generator
) -> dict[str, dict]:
    """The differences in AP of upsamplers whose true AP is 0.4 + (U,) gains."""
    hard, objects = rng.normal(scale=0.7, size=images), 1 + rng.poisson(3, images)
    grid, aps = skills()
    spread = SEED_SD if seeds > 1 else 0
    evaluations = {}
    for number, gain in enumerate(gains):
        suits = rng.normal(scale=SUITS_SD, size=images)
        evaluations[str(number)] = {
            seed: evaluation(
                np.interp(0.4 + gain + rng.normal(scale=spread), aps, grid),
                hard - suits,
                objects,
                rng,
            )
            for seed in range(seeds)
        }
    found = differences_to_baseline(evaluations, '0', groups=100, names=('AP',))
    return {name: each['AP'] for name, each in found.items()}


def rates(
    seeds: int, images: int, repeats: int, upsamplers: int = 6, seed: int = 0
) -> tuple[float, ...]:
    """Shares of simulated comparisons.

    Returns:
        tuple[float, ...]: Of single intervals without a true difference, those that
        leave out 0; of comparisons without any, those that call one significant; of
        true gains of 0.02 and of 0.05, those that are called significant.
    """
    rng = np.random.default_rng([seed, seeds, images])
    outside, families, power = [], [], []
    gains = np.zeros(upsamplers)
    for _ in range(repeats):
        found = comparison(gains, seeds, images, rng).values()
        outside.append(np.mean([d.low > 0 or d.high < 0 for d in found]))
        families.append(any(d.significant for d in found))
        found = comparison(np.array([0, 0.02, 0.05, *gains[3:]]), seeds, images, rng)
        power.append([bool(found[name].significant) for name in '12'])
    return float(np.mean(outside)), float(np.mean(families)), *np.mean(power, axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--images', type=int, nargs='+', default=[20, 50, 100, 500])
    parser.add_argument('--seeds', type=int, nargs='+', default=[2, 3, 5])
    parser.add_argument('--repeats', type=int, default=400)
    parser.add_argument('--processes', type=int, default=2)
    parser.add_argument(
        '--min-images', type=int, help='for an interval, to see where it stops holding'
    )
    args = parser.parse_args()
    average_precision.MIN_IMAGES = args.min_images or average_precision.MIN_IMAGES
    print('| images | seeds | single | family | +0.02 found | +0.05 found |')
    print('| --: | --: | --: | --: | --: | --: |')
    cells = [(seeds, images) for images in args.images for seeds in args.seeds]
    with ProcessPoolExecutor(args.processes) as pool:
        found = pool.map(rates, *zip(*cells), [args.repeats] * len(cells))
        for (seeds, images), shares in zip(cells, found):
            line = ' | '.join(f'{100 * share:.1f} %' for share in shares)
            print(f'| {images} | {seeds} | {line} |', flush=True)


if __name__ == '__main__':
    main()
