"""Count parameters and FLOPs of upsamplers: the same as ``dlu_mmdet complexity``."""

from dlu_mmdet.cli import run

if __name__ == '__main__':
    run('complexity')
