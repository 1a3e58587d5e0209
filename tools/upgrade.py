"""Put an upsampler into a trained detector: the same as ``dlu_mmdet upgrade``."""

from dlu_mmdet.cli import run

if __name__ == '__main__':
    run('upgrade')
