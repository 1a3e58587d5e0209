"""Split one COCO file into a training and a validation part."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Mapping

# the group of images without objects: the last one
_NO_OBJECTS = (math.inf, 0)


def check_split(fraction: float, seed: int) -> None:
    """Check the arguments of :func:`split_images`.

    Args:
        fraction (float): The share of the images to validate on.
        seed (int): Seed of the random choice.

    Raises:
        ValueError: If the fraction is not between 0 and 1, or the seed is negative.
    """
    if not 0 < fraction < 1:
        raise ValueError(
            f'--val-fraction must be between 0 and 1, as in 0.2, got {fraction:g}'
        )
    if seed < 0:
        raise ValueError(f'--split-seed must be 0 or more, got {seed}')


def split_images(content: Mapping, fraction: float, seed: int = 0) -> tuple[dict, dict]:
    """Split a COCO file by image, with about the same share of every class.

    Images are grouped by their rarest class. Each group gives its share to validation,
    the rarest class first; what rounding leaves over goes to the next group. A group
    never gives its last image, so that its class can be learned.

    Args:
        content (Mapping): COCO file, as :func:`dlu_mmdet.datasets.coco_io.read`
            returns it.
        fraction (float): The share of the images to validate on, between 0 and 1.
        seed (int): Seed of the random choice. Defaults to 0.

    Returns:
        tuple[dict, dict]: The training and the validation part. Ids and categories are
        those of ``content``.

    Raises:
        ValueError: If the arguments are wrong, or a part would have no images.
    """
    check_split(fraction, seed)
    classes = {image['id']: set() for image in content['images']}
    for ann in content['annotations']:
        if ann['image_id'] in classes:
            classes[ann['image_id']].add(ann['category_id'])
    order = {category['id']: i for i, category in enumerate(content['categories'])}
    counts = defaultdict(int)
    for found in classes.values():
        for category in found:
            counts[category] += 1
    rank = {c: (counts[c], order.get(c, len(order))) for c in counts}
    groups = defaultdict(list)
    for image, found in classes.items():
        groups[min((rank[c] for c in found), default=_NO_OBJECTS)].append(image)

    rng = random.Random(seed)
    chosen, rest = set(), 0.0
    for key in sorted(groups):
        group = groups[key]
        rng.shuffle(group)
        rest += fraction * len(group)
        # the tiny term undoes the rounding of sums such as 3 * 0.1
        number = int(rest + 0.5 + 1e-9)
        number = max(0, min(number, len(group) - (key != _NO_OBJECTS)))
        chosen.update(group[:number])
        rest -= number
    training, validation = (
        {
            **content,
            'images': [i for i in content['images'] if (i['id'] in chosen) == val],
            'annotations': [
                ann
                for ann in content['annotations']
                if ann['image_id'] in classes and (ann['image_id'] in chosen) == val
            ],
        }
        for val in (False, True)
    )
    for part, what in ((training, 'training'), (validation, 'validation')):
        if not part['images']:
            raise ValueError(
                f'--val-fraction {fraction:g} of {len(classes)} images leaves no image '
                f'for {what}; use another fraction, or more images'
            )
    return training, validation


def describe_parts(parts: Mapping[str, Mapping]) -> str:
    """Name the number of images and objects of every part, and what a part lacks.

    Args:
        parts (Mapping[str, Mapping]): COCO files by split.

    Returns:
        str: As in 'train 80 images, 240 objects; val 20 images, 61 objects'.
    """
    text, found = [], {}
    for split, part in parts.items():
        found[split] = {ann['category_id'] for ann in part['annotations']}
        images, objects = len(part['images']), len(part['annotations'])
        text.append(f'{split} {images} images, {objects} objects')
    used = set().union(*found.values())
    for split, part in parts.items():
        names = [
            repr(category['name'])
            for category in part['categories']
            if category['id'] in used - found[split]
        ]
        if names:
            more = f' and {len(names) - 6} more' if len(names) > 6 else ''
            text.append(f'{split} has no {", ".join(names[:6])}{more}')
    return '; '.join(text)
