"""Masks of a COCO data set as label images, for MMSegmentation.

    python benchmarks/semantic_masks.py data/nuclei

Writes a mask for each image to the folders ``masks_train`` and ``masks_val`` of the
data set. 0 is the background, 1 the first category of the annotation file.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools.coco import COCO


def main(root: Path) -> None:
    for split in ('train', 'val'):
        coco = COCO(root / 'annotations' / f'instances_{split}.json')
        labels = {c: i for i, c in enumerate(coco.getCatIds(), start=1)}
        folder = root / f'masks_{split}'
        folder.mkdir(exist_ok=True)
        for image in coco.loadImgs(coco.getImgIds()):
            mask = np.zeros((image['height'], image['width']), np.uint8)
            for annotation in coco.loadAnns(coco.getAnnIds(image['id'])):
                inside = coco.annToMask(annotation).astype(bool)
                mask[inside] = labels[annotation['category_id']]
            name = Path(image['file_name']).with_suffix('.png').name
            Image.fromarray(mask).save(folder / name)
        print(f'{folder}: {len(coco.imgs)} label images')


if __name__ == '__main__':
    main(Path(sys.argv[1]))
