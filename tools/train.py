"""Train a detector: the same as ``dlu_mmdet train``."""

from dlu_mmdet.cli import run

if __name__ == '__main__':
    run('train')
