"""Export a detector to ONNX: the same as ``dlu_mmdet export``."""

from dlu_mmdet.cli import run

if __name__ == '__main__':
    run('export')
