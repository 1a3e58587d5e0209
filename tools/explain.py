"""Explain detections by class activation maps: the same as ``dlu_mmdet explain``."""

from dlu_mmdet.cli import run

if __name__ == '__main__':
    run('explain')
