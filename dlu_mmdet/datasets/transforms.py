"""Loading of images, with errors that name the file."""

from __future__ import annotations

import mmcv.transforms
from mmdet.registry import TRANSFORMS


# in mmdet's registry it stands before mmcv's transform of the same name
@TRANSFORMS.register_module()
class LoadImageFromFile(mmcv.transforms.LoadImageFromFile):
    """mmcv's transform; an image that cannot be decoded is named.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a readable image.
    """

    def transform(self, results: dict) -> dict | None:
        """Load ``results['img_path']``; see mmcv."""
        path = results['img_path']
        try:
            return super().transform(results)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f'image {path} does not exist, though the annotations list '
                f'it; fetch it again, or remove it from them'
            ) from error
        except Exception as error:
            reason = ' '.join(str(error).split())
            raise ValueError(
                f'image {path} cannot be read ({reason}); fetch it again, or '
                f'remove it from the annotations'
            ) from error
