"""Check an upsampler of your own: the same as ``dlu_mmdet check``."""

from dlu_mmdet.cli import run

if __name__ == '__main__':
    run('check')
