"""Evaluate a detector: the same as ``dlu_mmdet test``."""

from dlu_mmdet.cli import run

if __name__ == '__main__':
    run('test')
