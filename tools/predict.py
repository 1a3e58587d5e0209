"""Draw detections into your images and videos: the same as ``dlu_mmdet predict``."""

from dlu_mmdet.cli import run

if __name__ == '__main__':
    run('predict')
