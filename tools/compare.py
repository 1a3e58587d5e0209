"""Train, test and compare upsamplers: the same as ``dlu_mmdet compare``."""

from dlu_mmdet.cli import run

if __name__ == '__main__':
    run('compare')
