"""What reading and checking a COCO file costs: python tests/stress/annotations.py.

Makes a file as large as COCO's instances_train2017.json (118,287 images, 860,001
objects with polygons, 80 classes) in a temporary folder, and prints the seconds of
parsing it, of what is checked on top, and of mmdet's data set with and without.
"""

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

import mmdet.datasets
from mmdet.datasets import api_wrappers
from mmengine.config import Config

from dlu_mmdet.datasets import check_data, coco_io


def make(path: Path, num_images: int, num_objects: int) -> None:
    """Write the file, object by object."""
    rng = random.Random(0)
    classes = mmdet.datasets.CocoDataset.METAINFO['classes']
    with path.open('w') as file:
        images = [
            dict(id=i + 1, file_name=f'{i + 1:012d}.jpg', height=480, width=640)
            for i in range(num_images)
        ]
        categories = [dict(id=i + 1, name=name) for i, name in enumerate(classes)]
        head = json.dumps(dict(info={}, images=images, categories=categories))
        file.write(head[:-1] + ', "annotations": [')
        for i in range(num_objects):
            x, y = rng.uniform(0, 600), rng.uniform(0, 440)
            w, h = rng.uniform(2, 40), rng.uniform(2, 40)
            polygon = [round(rng.uniform(0, 480), 2) for _ in range(48)]
            ann = dict(
                id=i + 1,
                image_id=rng.randrange(num_images) + 1,
                category_id=rng.randrange(len(classes)) + 1,
                bbox=[round(v, 2) for v in (x, y, w, h)],
                area=round(w * h, 2),
                iscrowd=0,
                segmentation=[polygon],
            )
            file.write((', ' if i else '') + json.dumps(ann))
        file.write(']}')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--images', type=int, default=118_287)
    parser.add_argument('--objects', type=int, default=860_001)
    args = parser.parse_args()
    times = {}

    def timed(name: str, call) -> object:
        start = time.perf_counter()
        result = call()
        times[name] = time.perf_counter() - start
        print(f'{name}: {times[name]:.1f} s', flush=True)
        return result

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'annotations.json')
        make(path, args.images, args.objects)
        print(f'{path.stat().st_size / 1e6:.0f} MB, {args.objects:,} objects')
        dataset = dict(
            type='mmdet.CocoDataset',
            data_root=folder,
            ann_file=path.name,
            data_prefix=dict(img=''),
            pipeline=[],
        )
        content = timed('parse', lambda: json.loads(path.read_bytes()))
        timed('complete', lambda: coco_io.normalize_annotations(content, path))
        classes = mmdet.datasets.CocoDataset.METAINFO['classes']
        timed('survey', lambda: coco_io.count_usable(content, classes))

        own = dict(dataset)
        own.pop('type')
        mmdet.datasets.CocoDataset.COCOAPI = api_wrappers.COCO
        timed("mmdet's data set alone", lambda: mmdet.datasets.CocoDataset(**own))
        mmdet.datasets.CocoDataset.COCOAPI = coco_io.COCO
        cfg = Config(dict(train_dataloader=dict(dataset=dataset)))

        def checked() -> None:
            check_data(cfg, ('train',))
            mmdet.datasets.CocoDataset(**own)

        timed('checks and data set, one reading', checked)
    ratio = times['checks and data set, one reading'] / times["mmdet's data set alone"]
    print(f'with checks {ratio:.2f} x of without')


if __name__ == '__main__':
    main()
