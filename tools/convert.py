"""Convert a data set to COCO format: the same as ``dlu_mmdet convert``."""

from dlu_mmdet.cli import run

if __name__ == '__main__':
    run('convert')
