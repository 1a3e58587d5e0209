"""Join the results of several data sets: the same as ``dlu_mmdet summarize``."""

from dlu_mmdet.cli import run

if __name__ == '__main__':
    run('summarize')
