"""Picture detections, kernels and features: the same as ``dlu_mmdet visualize``."""

from dlu_mmdet.cli import run

if __name__ == '__main__':
    run('visualize')
