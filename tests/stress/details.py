"""What errors, sizes and images of a large comparison cost: tests/stress/details.py.

Makes a test set as large as COCO's val2017 (5,000 images, 80 classes, 36,781 objects)
and predictions of so many runs, and prints seconds, the processor's seconds and the
peak of memory of reading them all, and of the page with its images.
"""

from __future__ import annotations

import argparse
import json
import pickle
import tempfile
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from PIL import Image
from stopwatch import stopwatch

from dlu_mmdet import register_all_modules
from dlu_mmdet.comparison import gallery as gallery_module
from dlu_mmdet.comparison.collect import predictions_of
from dlu_mmdet.comparison.details import details_of
from dlu_mmdet.comparison.gallery import Gallery
from dlu_mmdet.comparison.ground_truth import GroundTruth
from dlu_mmdet.comparison.runs import Run
from dlu_mmdet.evaluation.instances import detections_of

CLASSES, OBJECTS = 80, 36_781


def make_set(root: Path, images: int, rng: np.random.Generator) -> dict:
    """Annotations, and as many files of one noisy photo of 640 x 480."""
    (root / 'images').mkdir(parents=True)
    noise = rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)
    photo = root / 'photo.jpg'
    Image.fromarray(noise).resize((640, 480)).save(photo, quality=90)
    listed, annotations = [], []
    share = 1 / np.arange(1, CLASSES + 1)
    number = round(OBJECTS * images / 5000)
    classes = rng.choice(CLASSES, number, p=share / share.sum())
    for i in range(images):
        name = f'{i:012d}.jpg'
        (root / 'images' / name).hardlink_to(photo)
        listed.append(dict(id=i, file_name=name, width=640, height=480))
    for k, image in zip(classes, rng.integers(images, size=number)):
        side = np.exp(rng.uniform(np.log(10), np.log(300), 2))
        box = [*rng.uniform(0, 300, 2).tolist(), *side.tolist()]
        each = dict(id=len(annotations) + 1, image_id=int(image), bbox=box, iscrowd=0)
        each.update(area=box[2] * box[3], category_id=int(k) + 1)
        annotations.append(each)
    categories = [dict(id=k + 1, name=f'class {k}') for k in range(CLASSES)]
    content = dict(images=listed, annotations=annotations, categories=categories)
    (root / 'instances.json').write_text(json.dumps(content))
    return content


def predict(content: dict, per_image: int, rng: np.random.Generator) -> list[dict]:
    """Shifted objects and false positives, most with low scores."""
    own: dict[int, list] = {image['id']: [] for image in content['images']}
    for each in content['annotations']:
        own[each['image_id']].append(each)
    samples = []
    for image, objects in own.items():
        boxes = np.array([each['bbox'] for each in objects]).reshape(-1, 4)
        boxes = boxes + rng.normal(0, 0.1, boxes.shape) * np.tile(boxes[:, 2:], 2)
        false = per_image - len(boxes)
        other = np.c_[rng.uniform(0, 300, (false, 2)), rng.uniform(10, 200, (false, 2))]
        boxes = np.concatenate([boxes, other]).clip(0)
        boxes[:, 2:] += boxes[:, :2] + 1
        labels = [each['category_id'] - 1 for each in objects]
        labels += rng.integers(0, CLASSES, false).tolist()
        scores = np.r_[rng.random(len(objects)), rng.random(false) ** 8]
        found = dict(
            bboxes=torch.tensor(boxes, dtype=torch.float32),
            scores=torch.tensor(scores, dtype=torch.float32),
            labels=torch.tensor(labels),
        )
        samples.append(dict(img_id=image, pred_instances=found))
    return samples


def config(root: Path) -> Config:
    dataset = dict(
        type='CocoDataset',
        data_root=str(root),
        ann_file='instances.json',
        data_prefix=dict(img='images/'),
        metainfo=dict(classes=[f'class {k}' for k in range(CLASSES)]),
        pipeline=[dict(type='Resize', scale=(1333, 800), keep_ratio=True)],
    )
    evaluator = dict(type='CocoMetric', ann_file=str(root / 'instances.json'))
    return Config(
        dict(
            model=dict(type='FasterRCNN'),
            test_dataloader=dict(dataset=dataset),
            test_evaluator=evaluator,
        )
    )


def save_page(gallery: Gallery, out: Path) -> None:
    """Write report.html with nothing but images, and the folder beside it."""
    here = Path(gallery_module.__file__)
    written = gallery.write(out, 'upsampler0')
    style, script = (here.with_suffix(end).read_text() for end in ('.css', '.js'))
    (out / 'report.html').write_text(
        f'<!DOCTYPE html><meta charset="utf-8"><style>{style}</style>'
        f'<div id="gallery"></div><script src="{written.address}"></script>'
        f'<script>{script}</script>'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--upsamplers', type=int, default=9)
    parser.add_argument('--seeds', type=int, default=5)
    parser.add_argument('--images', type=int, default=5000)
    parser.add_argument('--per-image', type=int, default=100, help='detections')
    parser.add_argument('--groups', type=int, default=200, help='of images')
    parser.add_argument('--out', help='folder for the page and its images')
    parser.add_argument('--pages', action='store_true', help='of the images alone')
    args = parser.parse_args()
    register_all_modules()
    rng = np.random.default_rng(0)
    say = stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        content = make_set(root / 'data', args.images, rng)
        cfg, runs = config(root / 'data'), []
        # a few different files stand for all
        for seed in range(args.seeds):
            for u in range(args.upsamplers):
                run = Run(f'upsampler{u}', 'x', 'x', cfg, seed, root / f'{u}-{seed}')
                run.work_dir.mkdir()
                if len(runs) < 2:
                    samples = predict(content, args.per_image, rng)
                    run.predictions.write_bytes(pickle.dumps(samples))
                else:
                    run.predictions.hardlink_to(runs[len(runs) % 2].predictions)
                runs.append(run)
        del content, samples
        size = runs[0].predictions.stat().st_size
        say(f'made {len(runs)} files of {size:,} B')
        if args.pages:
            truth = GroundTruth.of(runs[0])
            gallery = Gallery(truth.coco, truth.classes, truth.objects, truth.folder)
            for run in runs:
                samples = predictions_of(run, CLASSES)
                gallery.add(run.name, run.seed, run.work_dir, detections_of(samples))
            say('boxes of all runs')
            out = Path(args.out or root / 'out')
            out.mkdir(exist_ok=True)
            save_page(gallery, out)
            say('page')
            return
        details = details_of(runs[:1], 'upsampler0', args.groups, add_results=True)
        size = next(runs[0].work_dir.glob('*.bbox.json')).stat().st_size
        say(f'one run, with result JSON of {size:,} B')
        details = details_of(
            runs,
            'upsampler0',
            args.groups,
            add_results=False,
            progress=lambda done, total: print(f'  {done}/{total}', end='\r'),
        )
        say('all runs')
        out = Path(args.out or root / 'out')
        out.mkdir(exist_ok=True)
        save_page(details.gallery, out)
        files = [*(out / 'report_images').glob('*')]
        total = sum(file.stat().st_size for file in files)
        say(f'images: {len(files)} files, {total:,} B')


if __name__ == '__main__':
    main()
